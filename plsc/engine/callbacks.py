"""What a program can have done at certain moments of a run: log elsewhere, notify, copy checkpoints.

Callbacks are given figures and paths, never the model: a run with them computes what it would without.

    class Announce(Callback):
        def after_evaluation(self, step, weights, record):
            print(f"step {step}: {record['top1']:.2%}")

    plsc.train(config, callbacks=[Announce()])
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from plsc.errors import PlscError

if TYPE_CHECKING:
    from plsc.config import Config
    from plsc.engine.run import TrainResult

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class RunInfo:
    """A run, as it begins.

    Attributes:
        run_directory: Global.output_dir.
        config: the resolved configuration.
        step: updates that were done before; above 0 where the run continues.
        total_steps, steps_per_epoch: updates of the whole run and of an epoch.
        global_batch: samples of an update, over all processes.
        rank, world_size: this process and how many there are.
    """

    run_directory: Path
    config: "Config"
    step: int
    total_steps: int
    steps_per_epoch: int
    global_batch: int
    rank: int
    world_size: int


@runtime_checkable
class Callback(Protocol):
    """Moments of a run. A subclass has those methods that it needs; the others do nothing.

    All are called between two updates, on the first process only unless all_processes is True. On several processes
    the others wait meanwhile, in after_step for 25 seconds at most on CPU. An error in a callback ends the run.
    """

    # methods without a statement would be abstract to a type checker

    all_processes: bool = False

    def start(self, run: RunInfo) -> None:
        """Before the first update."""
        return None

    def after_step(self, step: int, record: Mapping[str, float]) -> None:
        """After an update that is logged (Global.print_batch_step), with its figures: loss, lr, grad_norm, …"""
        return None

    def after_evaluation(self, step: int, weights: str, record: Mapping[str, float]) -> None:
        """After an evaluation of the `weights` raw or ema, with its figures: loss, top1, samples, …"""
        return None

    def after_save(self, step: int, path: Path) -> None:
        """After a checkpoint was written: with the next log line, evaluation or checkpoint, or at the end.

        On the first process only.
        """
        return None

    def end(self, result: "TrainResult") -> None:
        """After the last update, or the one after which a signal stopped the run."""
        return None

    def failure(self, error: BaseException) -> None:
        """When the run ends with an error, instead of `end`. What this raises is logged and goes no further."""
        return None


class CallbackError(Exception):
    """An error in a callback."""


class Callbacks:
    """Several callbacks, as one process has them.

    Raises:
        TypeError: one lacks methods of a Callback.
    """

    def __init__(self, callbacks: Sequence[Callback], *, is_first: bool):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callback {_name(callback)} lacks methods; derive it from plsc.Callback")
        self._callbacks = [callback for callback in callbacks if is_first or callback.all_processes]

    def start(self, run: RunInfo) -> None:
        self._each("start", lambda callback: callback.start(run))

    def after_step(self, step: int, record: Mapping[str, Any]) -> None:
        record = MappingProxyType(dict(record))
        self._each("after_step", lambda callback: callback.after_step(step, record))

    def after_evaluation(self, step: int, weights: str, record: Mapping[str, Any]) -> None:
        record = MappingProxyType(dict(record))
        self._each("after_evaluation", lambda callback: callback.after_evaluation(step, weights, record))

    def after_save(self, step: int, path: Path) -> None:
        self._each("after_save", lambda callback: callback.after_save(step, path))

    def end(self, result: "TrainResult") -> None:
        self._each("end", lambda callback: callback.end(result))

    def failure(self, error: BaseException) -> None:
        for callback in self._callbacks:
            try:
                callback.failure(error)
            except Exception as problem:  # the error that ends the run is the one to be seen
                log.warning("callback %s failed in failure: %s: %s", _name(callback), type(problem).__name__, problem)

    def _each(self, moment: str, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except PlscError as error:
                raise type(error)(f"callback {_name(callback)}: {error}") from error
            except Exception as error:
                raise CallbackError(
                    f"callback {_name(callback)} failed in {moment}: {type(error).__name__}: {error}"
                ) from error


def _name(callback: object) -> str:
    return type(callback).__name__
