"""Checkpoints: a folder a step, written beside its place and renamed, without any pickle.

checkpoints/step-00001234/   model.safetensors  optimizer.safetensors  ema.safetensors
                             trainer.json  config.yaml  preprocess.json  classes.json
checkpoints/latest, best     text files that name such a folder
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from plsc import places
from plsc.errors import CheckpointError
from plsc.places import step_name
from plsc.weights.containers import save_safetensors

log = logging.getLogger("plsc")

_WRITING = ".writing-"


@dataclass
class Saved:
    """A checkpoint that was read.

    Attributes:
        arrays: part (model, optimizer, ema) → name → array.
        trainer: trainer.json.
    """

    path: Path
    arrays: dict[str, dict[str, np.ndarray]]
    trainer: dict


class Checkpoints:
    """The checkpoints folder of one run. Only the first process calls what writes.

    Args:
        keep: checkpoints to keep besides latest and best: 0 none, N the last N, below 0 all.
    """

    def __init__(self, folder, keep: int = 0):
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, rising."""
        return places.steps(self.folder)

    def find(self, which: str) -> Path | None:
        """The folder that latest, best or step-… names; latest is the newest where no file says it."""
        return places.find(self.folder, which)

    def save(self, step: int, *, arrays: dict, documents: dict, texts: dict, metadata: dict) -> Path:
        """Write a checkpoint; one of the same step, left by a run that went back, is replaced.

        Args:
            arrays: part → name → array, each part a safetensors file; empty parts are left out.
            documents: name → JSON content. texts: file name → text.
            metadata: of model.safetensors, text by name.
        """
        place = self.folder / step_name(step)
        writing = self.folder / f"{_WRITING}{place.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"{_WRITING}*"):  # of a kill, whether folder or pointer
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            writing.mkdir()
            for part, named in arrays.items():
                if named:
                    contiguous = {name: np.ascontiguousarray(array) for name, array in named.items()}
                    about = metadata if part == "model" else {"format": "plsc"}
                    save_safetensors(contiguous, writing / f"{part}.safetensors", about)
            for name, content in documents.items():
                (writing / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            for name, text in texts.items():
                (writing / name).write_text(text, encoding="utf-8")
            for path in [*writing.iterdir(), writing]:
                _sync(path)
            if place.is_dir():
                place.rename(self.folder / f"{_WRITING}replaced-{place.name}")
            writing.rename(place)
            for replaced in self.folder.glob(f"{_WRITING}replaced-*"):
                shutil.rmtree(replaced, ignore_errors=True)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise CheckpointError(f"{place}: the checkpoint could not be written: {error}") from error
        return place

    def point(self, name: str, step: int, record: dict | None = None) -> None:
        """Let latest or best name the checkpoint of `step`; `record` says why, in a second line."""
        beside = self.folder / f"{_WRITING}{name}"
        try:
            beside.write_text(step_name(step) + "\n" + (json.dumps(record) + "\n" if record else ""), encoding="utf-8")
            _sync(beside)
            beside.rename(self.folder / name)
            _sync(self.folder)
        except OSError as error:
            raise CheckpointError(f"{self.folder / name}: could not be written: {error}") from error

    def best_record(self) -> dict | None:
        """The record that `best` was pointed with, where its checkpoint is still there."""
        pointer = self.folder / "best"
        lines = pointer.read_text(encoding="utf-8").splitlines() if pointer.is_file() and self.find("best") else []
        try:
            return json.loads(lines[1]) if len(lines) > 1 else None
        except ValueError:
            return None

    def prune(self) -> None:
        """Remove what neither `keep` nor latest and best hold.

        Steps after latest, left by a run that went back, stay until the new run reaches them.
        """
        if self.keep < 0:
            return
        latest, best = self.find("latest"), self.find("best")
        steps = [step for step in self.steps() if latest is None or step_name(step) <= latest.name]
        held = {path.name for path in (latest, best) if path}
        held |= {step_name(step) for step in (steps[-self.keep :] if self.keep else [])}
        for step in steps:
            if step_name(step) not in held:
                # renamed first: a removal cut short must not leave half a checkpoint under its name
                dying = self.folder / f"{_WRITING}removed-{step_name(step)}"
                try:
                    (self.folder / step_name(step)).rename(dying)
                    shutil.rmtree(dying)
                except OSError as error:  # the run must not end over a cleanup
                    log.warning("%s could not be removed: %s", dying, error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locate(path) -> Path:
    """The checkpoint folder that a path means: itself, or a run directory's latest."""
    found = places.checkpoint(path)
    if found:
        return found
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    raise CheckpointError(f"{path}: neither a checkpoint (a folder with trainer.json) nor a run directory with some")


def read(path) -> Saved:
    """Read a checkpoint to continue from. Raises CheckpointError naming the file that does not fit."""
    path = locate(path)
    arrays = {}
    for part in ("model", "optimizer", "ema"):
        file = path / f"{part}.safetensors"
        if file.is_file():
            try:
                arrays[part] = load_file(file)
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{file}: damaged: {error}") from error
    try:
        trainer = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'trainer.json'}: damaged: {error}") from error
    missing = [part for part in trainer.get("parts", ["model"]) if part not in arrays]
    if missing:
        raise CheckpointError(f"{path}: incomplete: {', '.join(f'{part}.safetensors' for part in missing)} is missing")
    return Saved(path, arrays, trainer)
