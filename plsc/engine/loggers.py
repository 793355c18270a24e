"""Where a run's figures go: console, metrics.jsonl, and with Global.loggers VisualDL, TensorBoard, Weights & Biases."""

import importlib
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from plsc import files, places
from plsc.config import Config
from plsc.engine.callbacks import Callback, RunInfo
from plsc.engine.tracking import cannot_be_written, duration
from plsc.errors import DeviceError

if TYPE_CHECKING:
    from plsc.engine.run import TrainResult

log = logging.getLogger("plsc")

# record's entry → its text in a log line; the others, such as loss and top1, are figures with four decimals
_SHOWN: dict[str, Callable[[Any], str]] = {
    "lr": "lr {:.3e}".format,
    "images_per_second": "{:.1f} images/s".format,
    "mfu": lambda value: f"MFU {100 * value:.1f} %",
    "data_time_fraction": lambda value: f"data wait {100 * value:.0f} %",
    "grad_norm": "grad norm {:.3f}".format,
    "loss_scale": "loss scale {:g}".format,
    "skipped_updates": "skipped updates {}".format,
    "skipped_images": "skipped pictures {}".format,
    "checkpoint_copy_seconds": "checkpoint copied in {:.2f} s".format,
    "checkpoint_write_seconds": "written in {:.2f} s".format,
    "memory_bytes": lambda value: f"memory {value / 2**30:.1f} GiB",
}


class Console(Callback):
    """A log line for each moment of a run."""

    def start(self, run: RunInfo) -> None:
        self._run = run

    def after_step(self, step: int, record: Mapping[str, float]) -> None:
        run = self._run
        shown = [
            f"epoch {record['epoch']}/{-(-run.total_steps // run.steps_per_epoch)}",
            f"step {step}/{run.total_steps}",
        ]
        for name, value in record.items():
            if name != "epoch":
                shown.append(_SHOWN[name](value) if name in _SHOWN else f"{name} {value:.4f}")
        if "grad_norm" not in record:
            shown.append("this update was skipped: its gradients overflowed")
        seconds_left = (run.total_steps - step) * run.global_batch / record["images_per_second"]
        log.info("  ".join([*shown, f"ETA {duration(seconds_left)}"]))

    def after_evaluation(self, step: int, weights: str, record: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in record.items() if name not in ("epoch", "samples"))
        of = " of the averaged weights" if weights == "ema" else ""
        log.info("evaluation%s after epoch %d, step %d: %s", of, record["epoch"], step, shown)


_METRICS = "metrics.jsonl"


class MetricsFile(Callback):
    """metrics.jsonl of the run directory, one object a line; a continued run removes the lines after its checkpoint.

    Where that is another run's checkpoint, evaluations of its step that stand there are of other weights, and go too.
    """

    _file: files.AppendedFile | None = None  # before `start`

    def start(self, run: RunInfo) -> None:
        path = run.run_directory / _METRICS
        try:
            if path.is_file():
                own = places.find(run.run_directory / places.CHECKPOINTS, places.step_name(run.step)) is not None
                last_evaluation = run.step if own else run.step - 1
                records = [(line, _record(line)) for line in _lines(path)]
                kept = [
                    line
                    for line, record in records
                    if record and record["step"] <= (last_evaluation if record.get("kind") == "eval" else run.step)
                ]
                files.write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = files.AppendedFile(path)
        except OSError as error:
            raise cannot_be_written(path, error) from error

    def after_step(self, step: int, record: Mapping[str, float]) -> None:
        self._write({"kind": "train", "step": step, **record})

    def after_evaluation(self, step: int, weights: str, record: Mapping[str, float]) -> None:
        record = dict(record)
        self._write({"kind": "eval", "step": step, "epoch": record.pop("epoch"), "weights": weights, **record})

    def _write(self, record: dict[str, Any]) -> None:
        not_finite = [name for name, value in record.items() if _is_not_finite(value)]  # which JSON does not have
        values = {name: value for name, value in record.items() if name not in not_finite}
        if not_finite:
            values["not_finite"] = not_finite
        assert self._file is not None, "start opens it"
        try:
            self._file.add(json.dumps(values, allow_nan=False))
        except OSError as error:
            raise cannot_be_written(self._file.path, error) from error

    def end(self, result: "TrainResult") -> None:
        self._close()

    def failure(self, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def recorded_evaluations(run_directory: Path, step: int) -> dict[str, dict[str, float]]:
    """Figures of the evaluations of one step that metrics.jsonl has, by the weights raw and ema."""
    path, results = run_directory / _METRICS, {}
    for record in map(_record, _lines(path) if path.is_file() else ()):
        if record is not None and record["step"] == step and record.get("kind") == "eval":
            figures = {name: value for name, value in record.items() if isinstance(value, (int, float))}
            names = record.get("not_finite")
            figures |= {str(name): math.nan for name in names} if isinstance(names, list) else {}
            results[str(record.get("weights"))] = {k: v for k, v in figures.items() if k not in ("step", "epoch")}
    return results


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", "replace").splitlines()  # what a kill cut short may be no text


def _record(line: str) -> dict[str, Any] | None:
    """The object in a line of metrics.jsonl; None where a kill cut it short."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class _Scalars(Callback):
    """A logger of named curves: train/loss, eval/top1, eval_ema/top1, …"""

    def after_step(self, step: int, record: Mapping[str, float]) -> None:
        self.add(dict(_curves("train", record)), step)

    def after_evaluation(self, step: int, weights: str, record: Mapping[str, float]) -> None:
        self.add(dict(_curves("eval" if weights == "raw" else f"eval_{weights}", record)), step)

    def add(self, values: dict[str, float], step: int) -> None:
        """Add a point to each curve."""

    def close(self) -> None:
        """Write what is left."""

    def end(self, result: "TrainResult") -> None:
        self.close()

    def failure(self, error: BaseException) -> None:
        self.close()


def _curves(prefix: str, record: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    yield from ((f"{prefix}/{name}", value) for name, value in record.items() if name != "epoch")


class _Writer(_Scalars):
    """Curves by a writer that has add_scalar and close."""

    _writer: Any = None  # before `start`

    def add(self, values: dict[str, float], step: int) -> None:
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise cannot_be_written(Path(error.filename or type(self).__name__), error) from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class VisualDL(_Writer):
    """Curves for VisualDL in visualdl/ of the run directory."""

    def __init__(self) -> None:
        self._visualdl = _module("visualdl")

    def start(self, run: RunInfo) -> None:
        self._writer = self._visualdl.LogWriter(logdir=str(run.run_directory / "visualdl"))


class TensorBoard(_Writer):
    """Curves for TensorBoard in tensorboard/ of the run directory."""

    def __init__(self) -> None:
        self._tensorboard = _module("tensorboardX", "tensorboard")

    def start(self, run: RunInfo) -> None:
        self._writer = self._tensorboard.SummaryWriter(
            logdir=str(run.run_directory / "tensorboard"),
            purge_step=run.step + 1 if run.step else None,  # hides points after the checkpoint that a run continues
            filename_suffix=f".{run.step}",  # else files of one second have one name, and the later replaces the other
        )


class WandB(_Scalars):
    """A run of Weights & Biases, continued where the run is. WANDB_PROJECT, WANDB_MODE and its like hold as usual."""

    _run: Any = None  # before `start`

    def __init__(self) -> None:
        self._wandb = _module("wandb")

    def start(self, run: RunInfo) -> None:
        name = run.run_directory / "wandb" / "run-id.txt"
        if not (run.step and name.is_file()):
            files.write_text(name, uuid.uuid4().hex[:12] + "\n")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "plsc"),
            name=os.environ.get("WANDB_NAME", run.run_directory.resolve().name),
            id=name.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run.run_directory),
            config=run.config.to_dict(),
        )

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def end(self, result: "TrainResult") -> None:
        if result.best is not None:
            self._run.summary["best"] = dict(result.best)
        self._run.finish(exit_code=result.exit_code)

    def failure(self, error: BaseException) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1)


_LOGGERS: dict[str, type[Callback]] = {"visualdl": VisualDL, "tensorboard": TensorBoard, "wandb": WandB}


def _module(name: str, extra: str | None = None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = extra or name
        raise DeviceError(f"Global.loggers: {extra} needs the package {name}: pip install 'plsc[{extra}]'") from error


def loggers(config: Config) -> list[Callback]:
    """The loggers of a run: console, metrics.jsonl and those of Global.loggers.

    Raises:
        DeviceError: a package is missing; the message names the extra to install.
    """
    return [Console(), MetricsFile(), *(_LOGGERS[name]() for name in dict.fromkeys(config.Global.loggers))]
