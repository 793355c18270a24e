"""Checkpoints: a folder a step, written beside its place and renamed, without any pickle.

checkpoints/step-00001234/   a PART.safetensors for each part with arrays: model, optimizer, ema, …; where processes
                             share them out, PART-00001-of-00004.safetensors, … and PART.safetensors.index.json
                             trainer.json, the JSON values of all parts
                             config.yaml, preprocess.json, classes.json
                             checksums.json, of all these files
checkpoints/latest, best     text files that name such a folder
"""

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from safetensors import safe_open

from plsc import checksums, files, places
from plsc.engine.state import BestRecord, Stateful
from plsc.errors import CheckpointError
from plsc.places import step_name
from plsc.weights.containers import DAMAGE, write_safetensors
from plsc.weights.index_files import ENDING, read_index
from plsc.weights.read import LazyArrays

log = logging.getLogger("plsc")

_LONG_WAIT_SECONDS = 1.0  # for the checkpoint before, of which the log then tells

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Description:
    """What a run's checkpoints hold beside the state of its parts; the same in all of them.

    Attributes:
        documents: JSON content by name. texts: text by file name.
        metadata: of a part's .safetensors file, by the part's name: text by name.
    """

    documents: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class _Trainer(BaseModel):
    """trainer.json: which parts have a .safetensors file, and the JSON values of all parts."""

    format: Literal[2, 3] = checksums.FORMAT
    files: list[Annotated[str, Field(pattern=r"^\w+$")]]
    parts: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: the state of each part, by name."""

    path: Path
    parts: Mapping[str, Mapping[str, Any]]

    def validated(self, part: str, kind: type[_Model]) -> _Model:
        """The state of a part as a model of pydantic. Raises CheckpointError where it does not fit."""
        try:
            return kind.model_validate(self.parts.get(part, {}))
        except ValidationError as error:
            problems = checksums.problems(error)
            raise CheckpointError(f"{self.path / 'trainer.json'}: damaged: {part}: {problems}") from error

    def restore(self, parts: Mapping[str, Stateful]) -> None:
        """Give parts their state; one that the checkpoint does not have keeps its initial state, with a warning.

        Raises:
            CheckpointError: a state does not fit; the message names the checkpoint.
        """
        for name, part in parts.items():
            if name not in self.parts:
                log.warning("%s has no state of %s, which begins now", self.path, name)
                continue
            try:
                part.load_state_dict(self.parts[name])
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"{self.path}: damaged: the state of {name}: {type(error).__name__}: {error}"
                ) from error


@dataclass(frozen=True)
class Snapshot:
    """Everything a checkpoint holds, as it was at one moment: arrays in memory of their own, the rest as text.

    Attributes:
        step: updates done.
        arrays: of a part, by name, for each part that has some. metadata: of its file.
        texts: by file name.
        share: (number from 0, of how many) where several processes write the arrays of one checkpoint.
    """

    step: int
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    metadata: Mapping[str, Mapping[str, str]]
    texts: Mapping[str, str]
    share: tuple[int, int] | None = None

    @classmethod
    def take(
        cls,
        step: int,
        parts: Mapping[str, Stateful],
        description: Description,
        share: tuple[int, int] | None = None,
    ) -> "Snapshot":
        """The present state of the parts. Raises TypeError naming what is neither an array nor a JSON value."""
        states = {name: _split(name, part.state_dict()) for name, part in parts.items()}
        arrays = {name: arrays for name, (arrays, _) in states.items() if arrays}
        trainer = _Trainer(files=list(arrays), parts={name: values for name, (_, values) in states.items()})
        documents = {"trainer": trainer.model_dump(), **description.documents}
        texts = {f"{name}.json": _as_text(content) for name, content in documents.items()}
        metadata = {name: {"format": "plsc", **description.metadata.get(name, {})} for name in arrays}
        return cls(step, arrays, metadata, {**texts, **description.texts}, share)

    def file_of(self, part: str) -> str:
        """Name of the file with a part's arrays."""
        if self.share is None:
            return f"{part}.safetensors"
        number, count = self.share
        return f"{part}-{number + 1:05d}-of-{count:05d}.safetensors"

    def write_arrays(self, folder: checksums.SummedFolder) -> None:
        for part, arrays in self.arrays.items():
            with folder.open(self.file_of(part)) as file:
                write_safetensors(arrays, file, self.metadata[part])

    def write_texts(self, folder: checksums.SummedFolder) -> None:
        for name, text in self.texts.items():
            folder.write_text(name, text)


class Checkpoints:
    """The checkpoints folder of one run. Only the first process calls what writes.

    Args:
        keep: checkpoints to keep besides latest and best: 0 none, N the last N, below 0 all.
    """

    def __init__(self, folder: str | Path, keep: int = 0):
        self.folder, self.keep = Path(folder), keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.folder / step_name(step)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, rising."""
        return places.steps(self.folder)

    def find(self, which: str) -> Path | None:
        """The folder that latest, best or step-… names; latest is the newest where no file names one."""
        return places.find(self.folder, which)

    def wait_for_earlier_run(self) -> None:
        """Wait for a checkpoint that an earlier run of this process still writes here, interrupted while it waited."""
        for thread in threading.enumerate():
            if isinstance(thread, Writing) and thread.path.parent.resolve() == self.folder.resolve():
                log.info("waiting for %s, which an earlier run still writes", thread.path)
                thread.join()

    def newest_first(self) -> list[Path]:
        """The checkpoints that a run may go on with: what latest names, and those before it."""
        try:
            latest = self.find("latest")
        except CheckpointError as error:
            log.warning("%s; the newest checkpoint is taken", error)
            latest = None
        steps = [step for step in reversed(self.steps()) if latest is None or step_name(step) <= latest.name]
        return [self.folder / step_name(step) for step in steps]

    def save(self, step: int, parts: Mapping[str, Stateful], description: Description) -> Path:
        """As `write`, of the present state."""
        return self.write(Snapshot.take(step, parts, description))

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint and point `latest` to it; one of the same step, left by a run that went back, is replaced.

        Raises:
            CheckpointError: it could not be written; what was there before is still there.
        """
        with self.replacing(snapshot.step) as folder:
            summed = checksums.SummedFolder(folder)
            snapshot.write_arrays(summed)
            snapshot.write_texts(summed)
            summed.finish(snapshot.step)
        self.point("latest", snapshot.step)
        return self.folder / step_name(snapshot.step)

    @contextlib.contextmanager
    def replacing(self, step: int) -> Iterator[Path]:
        """Context that yields an empty folder, which becomes the checkpoint of `step` at its end.

        Raises:
            CheckpointError: it could not be written; what was there before is still there.
        """
        path = self.folder / step_name(step)
        try:
            self._remove_leftovers()
            with files.replacing_folder(path) as folder:
                yield folder
        except OSError as error:
            raise CheckpointError(f"{path}: the checkpoint could not be written: {error}") from error

    def _remove_leftovers(self) -> None:
        """Remove what a kill or a failure while writing left, whether folder or pointer."""
        for leftover in self.folder.glob(f"{files.WRITING}*"):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()

    def point(self, name: str, step: int, record: Mapping[str, Any] | None = None) -> None:
        """Let latest or best name the checkpoint of `step`; `record` is the reason, in a second line."""
        try:
            files.write_text(self.folder / name, f"{step_name(step)}\n" + (f"{json.dumps(record)}\n" if record else ""))
        except OSError as error:
            raise CheckpointError(f"{self.folder / name}: could not be written: {error}") from error

    def best_record(self) -> dict[str, Any] | None:
        """The record that `best` was pointed with, where its checkpoint is still there; None where it is damaged."""
        try:
            if self.find("best") is None:
                return None
            lines = (self.folder / "best").read_text(encoding="utf-8").splitlines()
            return BestRecord.model_validate_json(lines[1]).model_dump() if len(lines) > 1 else None
        except (CheckpointError, ValidationError, OSError) as error:
            problem = checksums.problems(error) if isinstance(error, ValidationError) else error
            log.warning("%s: damaged, and left aside: %s", self.folder / "best", problem)
            return None

    def correct_best(self, step: int, record: Mapping[str, Any] | None) -> None:
        """Let `best` name the checkpoint of `record`, the best of a run that continues after `step`.

        It names another one where it was damaged, where a kill came between saving and pointing, and where the run went
        back. Without such a checkpoint, a `best` that names a step after `step` is removed.
        """
        if record is not None and record["step"] in self.steps():
            self.point("best", record["step"], record)
            return
        try:
            named = self.find("best")
            if named is not None and named.name > step_name(step):
                (self.folder / "best").unlink()
        except CheckpointError:  # damaged, as best_record has logged
            return
        except OSError as error:
            raise CheckpointError(f"{self.folder / 'best'}: could not be removed: {error}") from error

    def prune(self) -> None:
        """Remove what neither `keep` nor latest and best hold.

        Steps after latest, left by a run that went back, stay until the new run reaches them.
        """
        if self.keep < 0:
            return
        try:
            latest, best = self.find("latest"), self.find("best")
        except CheckpointError as error:  # else the checkpoint that it names would go
            log.warning("%s; no checkpoint is removed until it can be read", error)
            return
        steps = [step for step in self.steps() if latest is None or step_name(step) <= latest.name]
        held = {path.name for path in (latest, best) if path}
        held |= {step_name(step) for step in (steps[-self.keep :] if self.keep else [])}
        for step in steps:
            if step_name(step) not in held:
                # renamed first: a removal cut short must not leave half a checkpoint under its name
                removed = self.folder / f"{files.WRITING}removed-{step_name(step)}"
                try:
                    (self.folder / step_name(step)).rename(removed)
                    shutil.rmtree(removed)
                except OSError as error:  # the run must not end over a cleanup
                    log.warning("%s could not be removed: %s", removed, error)


class Writing(threading.Thread):
    """One checkpoint on its way to the disk.

    What takes long here (writing, summing, syncing) lets other threads run meanwhile.

    Args:
        best: the record with which `best` is to name this checkpoint; None where it is not to.
        copy_seconds: what taking the snapshot took.
        write: what puts the snapshot into its place.

    Attributes:
        error: why it could not be written. seconds: what writing took.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        snapshot: Snapshot,
        best: Mapping[str, Any] | None,
        copy_seconds: float,
        write: Callable[[Snapshot], object],
    ):
        # a daemon: a process that is to end at once does not wait for it
        super().__init__(name="plsc-checkpoint", daemon=True)
        self.step, self.path = snapshot.step, checkpoints.folder / step_name(snapshot.step)
        self.copy_seconds, self.seconds = copy_seconds, 0.0
        self.error: Exception | None = None
        self._checkpoints, self._best, self._write = checkpoints, best, write
        self._snapshot: Snapshot | None = snapshot

    def run(self) -> None:
        start, snapshot, self._snapshot = time.perf_counter(), self._snapshot, None
        assert snapshot is not None
        try:
            self._write(snapshot)
            if self._best is not None:
                self._checkpoints.point("best", self.step, self._best)
            self._checkpoints.prune()
        except Exception as error:  # raised where the run waits for it
            self.error = error
            return
        self.seconds = time.perf_counter() - start
        log.info("saved %s: copied in %.2f s, written in %.2f s", self.path, self.copy_seconds, self.seconds)


@dataclass(frozen=True)
class Written:
    """A checkpoint that is on the disk, with the seconds that copying the state and writing it took."""

    step: int
    path: Path
    copy_seconds: float
    write_seconds: float


class Checkpointer:
    """Saves the parts of one run into its checkpoints folder. On the first process only.

    Training waits for the copy of the state in the host's memory; a thread writes it while training goes on. One
    checkpoint is written at a time: before the next one is saved, `wait` is called.

    Args:
        parts: by the names under which their state is saved.
        description: what all checkpoints hold besides.
    """

    def __init__(self, checkpoints: Checkpoints, parts: Mapping[str, Stateful], description: Description):
        self._checkpoints, self._parts, self._description = checkpoints, parts, description
        self._writing: Writing | None = None

    def save(self, step: int, best: Mapping[str, Any] | None = None) -> None:
        """Copy the present state, and begin to write a checkpoint of it.

        Older ones are removed when it is written, see Global.max_num_latest_checkpoint.

        Args:
            best: the record with which `best` is to name it, where it is the best so far.
        """
        assert self._writing is None, "the checkpoint before was not waited for"
        start = time.perf_counter()
        snapshot = Snapshot.take(step, self._parts, self._description)
        seconds = time.perf_counter() - start
        self._writing = Writing(self._checkpoints, snapshot, best, seconds, self._checkpoints.write)
        self._writing.start()

    def save_share(self, step: int) -> None:
        """What each process does after the first one's `save`: nothing, where that one writes all."""

    def meet(self) -> None:
        """What each process does before the first one's `wait`: nothing, where that one writes all."""

    @property
    def ended(self) -> bool:
        """Whether a checkpoint's writing has ended, well or not, and was not yet waited for."""
        return self._writing is not None and not self._writing.is_alive()

    def wait(self) -> Written | None:
        """The checkpoint that was being written, when it is; None where none was.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is None:
            return None
        start = time.perf_counter()
        self._writing.join()
        waited, writing, self._writing = time.perf_counter() - start, self._writing, None
        if writing.error is not None:
            raise writing.error
        if waited > _LONG_WAIT_SECONDS:
            log.info("training waited %.1f s for %s to be written", waited, writing.path)
        return Written(writing.step, writing.path, writing.copy_seconds, writing.seconds)

    def point_best(self, record: Mapping[str, Any]) -> None:
        """Let `best` name the checkpoint of record["step"], which is written."""
        self._checkpoints.point("best", record["step"], record)
        self._checkpoints.prune()

    def newest(self) -> Path | None:
        return self._checkpoints.find("latest")


def _split(part: str, state: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, JSON values) of a part's state. Raises TypeError naming what is neither."""
    arrays = {name: np.asarray(value, order="C") for name, value in state.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in state.items() if name not in arrays}
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"the state of {part}: {name}: a state holds arrays and JSON values: {error}") from error
    return arrays, values


def _as_text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def locate(path: str | Path) -> Path:
    """The checkpoint folder that a path means: itself, or a run directory's latest. Raises CheckpointError."""
    folder = places.checkpoint(path)
    if folder:
        return folder
    path = Path(path).expanduser()
    for wanted in (path, path / "trainer.json"):
        if wanted.is_symlink() and not wanted.exists():
            raise CheckpointError(f"{wanted}: {files.absence(wanted)}")
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    raise CheckpointError(f"{path}: neither a checkpoint (a folder with trainer.json) nor a run directory with some")


def read(path: str | Path, *, verify: bool = True) -> Saved:
    """Read a checkpoint to continue from, of this version or of an earlier one.

    Args:
        verify: compare its files with their checksums first.

    Raises:
        CheckpointError: naming the file that is missing, damaged or of another step.
    """
    path = locate(path)
    if verify:
        checksums.verify(path)
    file = path / "trainer.json"
    content = files.read_json(file, dict, error=CheckpointError)
    try:
        trainer = _Trainer.model_validate(_from_format_1(content) if content.get("format") == 1 else content)
    except ValidationError as error:
        problems = checksums.problems(error)
        raise CheckpointError(f"{file}: damaged, or of another version of plsc: {problems}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged: {type(error).__name__}: {error}") from error
    step = trainer.parts.get("progress", {}).get("step")
    if isinstance(step, int):
        checksums.check_name(path, step, file.name)
    parts: dict[str, Mapping[str, Any]] = dict(trainer.parts)
    for name, arrays in _arrays(path, trainer.files).items():
        parts[name] = LazyArrays({**{k: partial(_given, v) for k, v in trainer.parts.get(name, {}).items()}, **arrays})
    return Saved(path, parts)


def _given(value: Any) -> Any:
    return value


def _arrays(folder: Path, parts: list[str]) -> dict[str, dict[str, Callable[[], np.ndarray]]]:
    """Of each part: its arrays by name, each read when asked for: of what is spread, a process takes its own.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    indices = {part: folder / f"{part}.safetensors{ENDING}" for part in parts}
    spread = {part: read_index(index) for part, index in indices.items() if index.is_file()}
    whole = {part: f"{part}.safetensors" for part in parts if part not in spread}
    names = [*whole.values(), *sorted({name for index in spread.values() for name in index.values()})]
    missing = [path for path in (folder / name for name in names) if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder}: incomplete: {', '.join(f'{p.name} {files.absence(p)}' for p in missing)}")
    opened = {name: _opened(folder / name) for name in names}
    arrays = {part: opened[name] for part, name in whole.items()}
    for part, index in spread.items():
        lacking = [f"{array} in {name}" for array, name in index.items() if array not in opened[name]]
        if lacking:
            raise CheckpointError(f"{indices[part]}: damaged: there is no {', no '.join(lacking[:3])}")
        arrays[part] = {array: opened[name][array] for array, name in index.items()}
    return arrays


def _opened(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """The arrays of a .safetensors file by name."""

    def read_array(name: str) -> np.ndarray:
        try:
            return opened.get_tensor(name)
        except DAMAGE as error:
            raise CheckpointError(f"{path}: damaged: {name}: {error}") from error

    try:
        opened = safe_open(path, framework="np")
        return {name: partial(read_array, name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def _from_format_1(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """trainer.json of plsc 3.0, where the values of all parts are side by side."""
    progress = ("step", "samples", "epoch", "global_batch", "steps_per_epoch", "seed", "order", "world_size")
    parts = {
        "model": {},
        "optimizer": {},
        "precision": trainer.get("precision") or {},
        "progress": {name: trainer[name] for name in progress if name in trainer},
        "best": trainer.get("best") or {},
    }
    if "ema" in trainer.get("parts", ()):
        parts["ema"] = {"|updates": trainer["ema_updates"]}
    return {"files": trainer.get("parts", ["model"]), "parts": parts}
