"""A checkpoint that several processes write: whole or not there, whatever fails, and whoever."""

import json
import threading

import numpy as np
import pytest

from plsc.engine import checkpoint
from plsc.engine.checkpoint import Checkpoints, Description
from plsc.engine.distributed import World
from plsc.engine.shares import SharedCheckpointer
from plsc.errors import CheckpointError
from tests.helpers import Part

COUNT = 3


class Together(World):
    """Processes of a run that are threads of this one."""

    def __init__(self, rank: int, meeting: threading.Barrier, flags: list):
        super().__init__(rank=rank, size=COUNT, timeout=20.0)
        self._meeting, self._flags = meeting, flags

    def barrier(self):
        self._meeting.wait(20)

    def all_reduce_max(self, tensor):
        self._flags[self.rank] = tensor.item()
        self._meeting.wait(20)
        tensor.fill_(max(self._flags))
        self._meeting.wait(20)
        return tensor


class Run:
    """Three processes, each with its own arrays of model and optimizer; the first one has the progress."""

    def __init__(self, folder):
        self.checkpoints, meeting = Checkpoints(folder, -1), threading.Barrier(COUNT)
        flags, self.processes = [0] * COUNT, []
        for rank in range(COUNT):
            parts = {
                "model": Part(**{f"w{rank}": np.full([2, rank + 1], float(rank), "float32")}),
                "optimizer": Part(**{f"w{rank}|moment": np.full([4], 10.0 + rank, "float32")}),
                "progress": Part(step=7, rank=rank),
            }
            world = Together(rank, meeting, flags)
            self.processes.append(
                SharedCheckpointer(
                    self.checkpoints,
                    parts,
                    Description(texts={"config.yaml": "a: 1\n"}),
                    shared=("model", "optimizer"),
                    world=world,
                    number=rank,
                    count=COUNT,
                )
            )

    def begin(self, step: int, without: int | None = None) -> None:
        """Save, in all processes but one."""
        self.processes[0].save(step)
        for rank, process in enumerate(self.processes):
            if rank != without:
                process.save_share(step)

    def end(self) -> list[Exception | None]:
        """What each process raises where it waits for the checkpoint."""
        errors: list[Exception | None] = [None] * COUNT

        def wait(rank: int) -> None:
            try:
                self.processes[rank].meet()
                if rank == 0:
                    self.processes[0].wait()
            except CheckpointError as error:
                errors[rank] = error

        threads = [threading.Thread(target=wait, args=(rank,)) for rank in range(COUNT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return errors


def fail_to_write(monkeypatch, name: str):
    """Let writing the array `name` fail, as on a full disk."""
    write = checkpoint.write_safetensors

    def failing(arrays, file, metadata):
        if name in arrays:
            raise OSError(28, "No space left on device")
        write(arrays, file, metadata)

    monkeypatch.setattr(checkpoint, "write_safetensors", failing)


def test_all_shares_make_one_checkpoint(tmp_path):
    run = Run(tmp_path)
    run.begin(7)
    assert run.end() == [None] * COUNT
    saved = checkpoint.read(tmp_path / "step-00000007")
    for rank in range(COUNT):
        np.testing.assert_array_equal(saved.parts["model"][f"w{rank}"], np.full([2, rank + 1], float(rank)))
    assert sorted(saved.parts["optimizer"]) == [f"w{rank}|moment" for rank in range(COUNT)]
    assert saved.parts["progress"] == {"step": 7, "rank": 0}
    index = json.loads((tmp_path / "step-00000007" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 2 * (1 + 2 + 3)
    assert index["weight_map"] == {f"w{i}": f"model-0000{i + 1}-of-00003.safetensors" for i in range(COUNT)}
    assert not list(tmp_path.rglob(".writing*"))
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


@pytest.mark.parametrize("rank", range(COUNT))
def test_a_share_that_cannot_be_written_leaves_the_checkpoint_before(tmp_path, monkeypatch, rank):
    """The process at fault says why, the first one does not wait, and the next save works."""
    run = Run(tmp_path)
    run.begin(7)
    run.end()
    with monkeypatch.context() as patched:
        fail_to_write(patched, f"w{rank}")
        run.begin(9)
        errors = run.end()
    assert "No space left on device" in str(errors[rank])
    if rank:
        assert "a process failed to write its share" in str(errors[0])
    assert run.checkpoints.steps() == [7]
    assert not list(tmp_path.glob(".writing*"))
    assert not any(errors[i] for i in range(1, COUNT) if i != rank), "only the one at fault, and the first"
    checkpoint.read(tmp_path)
    again = Run(tmp_path)
    again.begin(9)
    assert again.end() == [None] * COUNT
    assert run.checkpoints.steps() == [7, 9]


def test_the_folder_stays_while_others_write_into_it(tmp_path, monkeypatch):
    """The first process has failed: a slower one still ends without an error that would hide the reason."""
    run, write = Run(tmp_path), checkpoint.write_safetensors

    def slow(arrays, file, metadata):
        if "w0" in arrays:
            raise OSError(28, "No space left on device")
        if "w1" in arrays:
            run.processes[0]._writing.join(20)
        write(arrays, file, metadata)

    monkeypatch.setattr(checkpoint, "write_safetensors", slow)
    run.begin(7)
    errors = run.end()
    assert isinstance(errors[0], CheckpointError) and "No space left on device" in str(errors[0])
    assert errors[1:] == [None, None]
    assert not list(tmp_path.iterdir())


def test_without_one_share_there_is_no_checkpoint(tmp_path):
    """As after a kill of one process: nothing has the checkpoint's name, and the next run's save clears it away."""
    run = Run(tmp_path)
    run.begin(7, without=2)
    for process in run.processes[1:]:
        if process._share is not None:
            process._share.join(20)
    assert run.checkpoints.steps() == []
    assert run.checkpoints.newest_first() == []
    assert list(tmp_path.glob(".writing-step-00000007/model-00002-of-00003.safetensors"))
    run.processes[0]._cancelled.set()  # its process would have ended
    with pytest.raises(CheckpointError, match="failed to write its share"):
        run.processes[0].wait()
    again = Run(tmp_path)
    again.begin(7)
    assert again.end() == [None] * COUNT
    assert run.checkpoints.steps() == [7]


def test_a_copy_writes_nothing(tmp_path):
    """A process of another group meets the others, and has no file."""
    run = Run(tmp_path)
    run.processes[2]._number = None
    for process in run.processes:
        process._count = 2
    run.begin(7)
    assert run.end() == [None] * COUNT
    assert sorted(checkpoint.read(tmp_path).parts["model"]) == ["w0", "w1"]
