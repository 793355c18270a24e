"""Classification: learn the labels of pictures, one or several each."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import paddle

from plsc.registry import TASKS
from plsc.targets import Targets
from plsc.tasks.base import TaskOutput


@TASKS.register()
class Classification:
    """Pictures and their labels, mixed by batch_transform_ops; the losses are those of the section Loss."""

    def __init__(self, *, loss: Callable | None, mixing: Sequence[Callable] = (), class_num: int = 0):
        self._loss, self._mixing, self._class_num = loss, list(mixing), class_num

    def prepare(self, batch: dict[str, paddle.Tensor], rng: np.random.Generator) -> dict[str, paddle.Tensor]:
        """The batch with mixed pictures and their dense targets."""
        if not self._mixing:
            return batch
        assert self._class_num is not None, "mixing needs the number of classes"
        image, target = batch["image"], Targets.of(batch).to_dense(self._class_num)
        for mix in self._mixing:
            image, target = mix(image, target, rng)
        return {**batch, "image": image, "target": target}

    def __call__(
        self, network: Callable[[paddle.Tensor], paddle.Tensor], batch: Mapping[str, paddle.Tensor]
    ) -> TaskOutput:
        logits, targets = network(batch["image"]).astype("float32"), Targets.of(batch)
        return TaskOutput(self._loss(logits, targets) if self._loss is not None else None, logits, targets)
