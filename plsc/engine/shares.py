"""A checkpoint that several processes write, each its own share of the arrays, see plsc.engine.sharding.

The first process makes the folder beside its place. Then each of them writes NAME-0000i-of-0000N.safetensors into it,
at the same time and beside training. The first one waits for the others' notes of what they wrote, adds the index
files, checksums and all else, and renames the folder: until then there is no checkpoint, whichever process is killed
when.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import paddle

from plsc import checksums, files
from plsc.engine.checkpoint import Checkpointer, Checkpoints, Description, Snapshot, Writing, Written
from plsc.engine.distributed import World
from plsc.engine.state import Stateful
from plsc.errors import CheckpointError
from plsc.weights.index_files import ENDING, index_text

_POLL_SECONDS = 0.02


def _note(folder: Path, number: int) -> Path:
    """Where a process tells the first one what it has written; removed before the folder gets its name."""
    return folder / f"{files.WRITING}share-{number:05d}.json"


def _contents(snapshot: Snapshot) -> dict[str, Any]:
    """Of each part, the file of its arrays, their names and bytes."""
    return {
        part: {
            "file": snapshot.file_of(part),
            "arrays": sorted(arrays),
            "bytes": sum(a.nbytes for a in arrays.values()),
        }
        for part, arrays in snapshot.arrays.items()
    }


class _Share(threading.Thread):
    """One process's part of a checkpoint on its way to the disk.

    Attributes:
        error: why it could not be written.
    """

    def __init__(self, snapshot: Snapshot, folder: Path, number: int):
        super().__init__(name="plsc-checkpoint-share", daemon=True)  # as plsc.engine.checkpoint.Writing
        self._snapshot, self._folder, self._number = snapshot, folder, number
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            summed = checksums.SummedFolder(self._folder)
            self._snapshot.write_arrays(summed)
            for name in summed.sums:
                files.sync(self._folder / name)  # by who wrote it: on a network disk another node cannot
            note = {"sums": summed.sums, "parts": _contents(self._snapshot)}
            files.write_json(_note(self._folder, self._number), note)
        except OSError as error:
            self.error = CheckpointError(f"{self._folder}: this process's share could not be written: {error}")
        except Exception as error:  # raised where the run waits for it
            self.error = error


class SharedCheckpointer(Checkpointer):
    """As Checkpointer, where each process has a share of some parts. On all processes.

    Args:
        shared: names of the parts of which each process has its own arrays; the first one has all of the others.
        number, count: of this process among those that write; number is None for one that holds a copy only.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        parts: Mapping[str, Stateful],
        description: Description,
        *,
        shared: tuple[str, ...],
        world: World,
        number: int | None,
        count: int,
    ):
        super().__init__(checkpoints, parts, description)
        self._world, self._number, self._count = world, number, count
        self._own = dict(parts) if number == 0 else {name: part for name, part in parts.items() if name in shared}
        self._opened: contextlib.ExitStack | None = None  # the folder that is being filled
        self._best: Mapping[str, Any] | None = None
        self._share: _Share | None = None
        self._cancelled, self._pending = threading.Event(), False

    def save(self, step: int, best: Mapping[str, Any] | None = None) -> None:
        """Make the folder that all are to write into. On the first process, before `save_share` on all."""
        assert self._writing is None, "the checkpoint before was not waited for"
        self._opened, self._best = contextlib.ExitStack(), best
        self._opened.enter_context(self._checkpoints.replacing(step))

    def save_share(self, step: int) -> None:
        """Copy this process's share of the present state, and begin to write it."""
        self._pending, self._cancelled = True, threading.Event()
        if self._number is None:
            return
        start = time.perf_counter()
        snapshot = Snapshot.take(step, self._own, self._description, share=(self._number, self._count))
        seconds = time.perf_counter() - start
        folder = files.writing_folder(self._checkpoints.path(step))
        if self._number > 0:
            self._share = _Share(snapshot, folder, self._number)
            self._share.start()
            return
        assert self._opened is not None, "save comes first"
        write = partial(self._write_all, self._opened, folder, self._cancelled)
        self._writing = Writing(self._checkpoints, snapshot, self._best, seconds, write)
        self._writing.start()

    def _write_all(
        self, opened: contextlib.ExitStack, folder: Path, cancelled: threading.Event, snapshot: Snapshot
    ) -> None:
        """The first process's share, and what makes a checkpoint of all shares.

        Where this fails the folder stays until `wait`: the others may still write into it.
        """
        summed = checksums.SummedFolder(folder)
        snapshot.write_arrays(summed)
        maps: dict[str, dict[str, str]] = {}
        sizes: dict[str, int] = {}
        contents = [_contents(snapshot)]
        for number in range(1, self._count):
            note = self._wait_for(_note(folder, number), number, cancelled)
            summed.add(note["sums"])
            contents.append(note["parts"])
        for parts in contents:
            for part, content in parts.items():
                maps.setdefault(part, {}).update(dict.fromkeys(content["arrays"], content["file"]))
                sizes[part] = sizes.get(part, 0) + content["bytes"]
        for part, weight_map in maps.items():
            summed.write_text(f"{part}.safetensors{ENDING}", index_text(weight_map, sizes[part]))
        snapshot.write_texts(summed)
        summed.finish(snapshot.step)
        opened.close()  # put into its place
        self._checkpoints.point("latest", snapshot.step)

    def _wait_for(self, path: Path, number: int, cancelled: threading.Event) -> dict[str, Any]:
        """Another process's note, when it is there; it is removed."""
        until = time.monotonic() + self._world.timeout
        while True:
            note = files.read_json(path, dict, error=CheckpointError)
            if note is not None:
                path.unlink()
                return note
            if cancelled.wait(_POLL_SECONDS):
                raise CheckpointError(
                    f"{path.parent}: the checkpoint is not written, since a process failed to write its share; the "
                    "reason is in that process's output"
                )
            if time.monotonic() > until:
                raise CheckpointError(f"{path.parent}: process {number} has not written its share")

    def meet(self) -> None:
        """Wait until every process has written its share, if any is being written; not for the first one's work.

        Raises:
            CheckpointError: this process could not.
        """
        if not self._pending:
            return
        self._pending = False
        error = None
        if self._share is not None:
            self._share.join()
            error, self._share = self._share.error, None
        self._world.barrier()  # a disk may be slow, and gloo is not patient
        failed = paddle.to_tensor([int(error is not None)], dtype="int32")
        if self._world.all_reduce_max(failed).item():
            self._cancelled.set()
        if error is not None:
            raise error

    def wait(self) -> Written | None:
        """As Checkpointer; after `meet`, since the folder is removed here where it could not be put into its place."""
        try:
            return super().wait()
        except Exception:
            assert self._opened is not None
            with self._opened:
                raise

    @property
    def ended(self) -> bool:
        """As Checkpointer on the first process; on the others whether writing has failed."""
        if self._number == 0:
            return super().ended
        return self._share is not None and not self._share.is_alive() and self._share.error is not None
