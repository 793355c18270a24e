"""What a task offers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import paddle

from plsc.errors import ConfigError


@dataclass
class TaskOutput:
    """What a task makes of one batch.

    Attributes:
        loss: [B] float32, a value for each sample; None where evaluation has no loss.
        outputs: what metrics measure, float32; in classification the logits [B, C].
        targets: what metrics hold against the outputs; in classification plsc.targets.Targets.
    """

    loss: paddle.Tensor | None
    outputs: paddle.Tensor
    targets: Any

    def __post_init__(self) -> None:
        if self.loss is not None and list(self.loss.shape) != [self.outputs.shape[0]]:
            raise ValueError(
                f"the loss of a task has the shape {list(self.loss.shape)}, not [{self.outputs.shape[0]}]: one value "
                "for each sample, not their mean"
            )

    def mean_loss(self) -> paddle.Tensor:
        """What is learnt from: the mean over samples. Raises ConfigError where the task has none."""
        if self.loss is None:
            raise ConfigError("Task: has no loss in training")
        return self.loss.mean()


@runtime_checkable
class Task(Protocol):
    """What one update learns from: a network and a batch → losses, outputs and targets.

    The loop and the evaluator know nothing else of what is learnt. Registered with plsc.register_task and named by a
    recipe's section Task. One is made for training and one for evaluation; the engine supplies those of these
    arguments that its factory has: mode ("Train" or "Eval"), loss (outputs, targets → [B]:
    the losses of the mode), mixing (the batch transforms, in training) and class_num.

    A task that keeps state between updates has state_dict and load_state_dict, see plsc.engine.state.Stateful.
    """

    def __call__(
        self, network: Callable[[paddle.Tensor], paddle.Tensor], batch: Mapping[str, paddle.Tensor]
    ) -> TaskOutput:
        """Forward.

        Args:
            network: pictures [B, C, H, W] float32 → the model's outputs, in the run's precision.
            batch: tensors on the device: image, label or label_ids and label_weights, index, valid; see DataLoader.
        """
        ...


@runtime_checkable
class PreparesBatch(Protocol):
    """A task that changes a whole local batch before it is split into micro-batches, as Mixup does."""

    def prepare(self, batch: dict[str, paddle.Tensor], rng: np.random.Generator) -> dict[str, paddle.Tensor]:
        """The batch to learn from. `rng` belongs to this update and process: draw from it and from nothing else."""
        ...
