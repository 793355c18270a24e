"""What keeps state between updates, as parts that a checkpoint saves and restores without knowing them."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import paddle
from pydantic import BaseModel

from plsc.bounds import NonNegative, Positive
from plsc.data.sampler import Sampler
from plsc.errors import CheckpointError
from plsc.optim import Optimizer
from plsc.tensors import assign, named_tensors, to_numpy

log = logging.getLogger("plsc")


@runtime_checkable
class Stateful(Protocol):
    """A part whose state is saved."""

    def state_dict(self) -> dict[str, Any]:
        """Arrays and JSON values by name. Called on the first process alone: no collectives.

        The arrays are written while training goes on: they are copies, or wrapped in Copied.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict returned. Raises CheckpointError where it does not fit."""
        ...


class Copied:
    """A part whose arrays may be those that it changes in place, such as a user's: its state has copies of them."""

    def __init__(self, part: Stateful):
        self._part = part

    def state_dict(self) -> dict[str, Any]:
        state = self._part.state_dict()
        return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._part.load_state_dict(state)


class Weights:
    """The model's parameters, as float32 masters where there are any, and its buffers.

    Args:
        saves: whether this process saves an array, by its name; None for all.
    """

    def __init__(self, model: paddle.nn.Layer, optimizer: Optimizer, saves: Callable[[str], bool] | None = None):
        self._model, self._optimizer, self._saves = model, optimizer, saves

    def state_dict(self) -> dict[str, np.ndarray]:
        exact, tensors = self._optimizer.weights(), named_tensors(self._model)
        if self._saves is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if self._saves(name)}
        return {name: to_numpy(exact.get(name, tensor)) for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        tensors = named_tensors(self._model)
        wrong = [name for name, t in tensors.items() if name not in state or list(state[name].shape) != list(t.shape)]
        wrong += sorted(state.keys() - tensors.keys())
        if wrong:
            raise CheckpointError(f"is of another model: {', '.join(wrong[:4])} do not fit; Model must stay as it was")
        for name, tensor in tensors.items():
            assign(tensor, state[name])
        self._optimizer.assign_masters(state)


class ProgressState(BaseModel):
    """What a checkpoint keeps of a run's progress, as far as it is read again."""

    step: NonNegative
    seed: NonNegative
    global_batch: Positive
    steps_per_epoch: Positive
    order: dict[str, Any] = {}
    held_out: dict[str, Any] | None = None  # None before plsc kept it


class Progress:
    """Where a run is, in updates, and the order of samples that this means.

    Attributes:
        step: updates done.
        total_steps, steps_per_epoch: updates of the whole run and of an epoch.
        global_batch: samples of an update, over all processes.

    Args:
        held_out: what the data set keeps out of training, see build.held_out; a continued run must agree.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        total_steps: int,
        seed: int,
        world_size: int,
        held_out: Mapping[str, Any] | None = None,
    ):
        self.step, self.total_steps = 0, total_steps
        self.steps_per_epoch, self.global_batch = sampler.steps_per_epoch, sampler.global_batch
        self._seed, self._order, self._world_size = seed, sampler.identity(), world_size
        self._held_out = held_out

    @property
    def epoch(self) -> int:
        """Epoch of the last update, from 1."""
        return (max(self.step, 1) - 1) // self.steps_per_epoch + 1

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def due(self, interval: int, unit: str) -> bool:
        """Whether something that is done every `interval` steps or epochs (0: never) is due after this update."""
        every = interval * (self.steps_per_epoch if unit == "epoch" else 1)
        return interval > 0 and self.step % every == 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.step * self.global_batch,
            "epoch": self.epoch,
            "global_batch": self.global_batch,
            "steps_per_epoch": self.steps_per_epoch,
            "seed": self._seed,
            "order": self._order,
            "held_out": self._held_out,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = ProgressState.model_validate(state)
        self.step = saved.step
        if saved.steps_per_epoch != self.steps_per_epoch:
            log.warning(
                "an epoch has %d updates, but had %d at the checkpoint: the data set or drop_last changed",
                self.steps_per_epoch,
                saved.steps_per_epoch,
            )
        changed = [name for name, before in saved.order.items() if self._order.get(name) != before]
        if changed:
            log.warning(
                "the order of samples is another than at the checkpoint, since these changed: %s; of this epoch some "
                "samples may be repeated and others left out",
                ", ".join(changed),
            )


class BestRecord(BaseModel):
    """An evaluation that was the best: the value of a metric, at a step, of the weights raw or ema."""

    metric: str
    value: float
    step: NonNegative
    weights: Literal["raw", "ema"]


def evaluation_record(metric: str, step: int, results: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """The better evaluation of a step as a BestRecord has it; None where none has finite figures, which is logged.

    Args:
        metric: name of the figure that is compared; the loss, where there is one, must be finite, too.
        results: figures by the weights, raw or ema.
    """
    values = {}
    for weights, figures in results.items():
        compared = {key: figures[key] for key in ("loss", metric) if key in figures}
        if metric in figures and all(map(math.isfinite, compared.values())):
            values[weights] = figures[metric]
            continue
        of = " of the averaged weights" if weights == "ema" else ""
        shown = ", ".join(f"{key} {value}" for key, value in compared.items())
        log.warning("step %d%s is not taken for the best: its evaluation has %s", step, of, shown)
    if not values:
        return None
    weights = max(values, key=lambda w: values[w])
    return {"metric": metric, "value": values[weights], "step": step, "weights": weights}


class Best:
    """The best evaluation so far, by the first figure of the first metric.

    Attributes:
        record: metric, value, step and weights (raw or ema); None before the first evaluation.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None

    def improved_by(self, record: Mapping[str, Any]) -> bool:
        """Keep the record where it is better than the best so far; returns whether it is."""
        if self.record is not None and record["value"] <= self.record["value"]:
            return False
        self.record = dict(record)
        return True

    def state_dict(self) -> dict[str, Any]:
        return self.record or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.record = BestRecord.model_validate(state).model_dump() if state else None
