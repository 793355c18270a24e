"""Checkpoints are written beside training: what is saved is the state at the save, and failures come to light."""

import json
import logging
import threading
import time

import numpy as np
import paddle
import pytest

from plsc.config import load
from plsc.data.loader import Loader
from plsc.engine import checkpoint
from plsc.engine.assembly import assemble
from plsc.engine.callbacks import Callback, Callbacks
from plsc.engine.checkpoint import Checkpointer, Checkpoints, Description
from plsc.engine.distributed import World
from plsc.engine.evaluator import Evaluator
from plsc.engine.loggers import MetricsFile
from plsc.engine.state import Copied, Stateful
from plsc.errors import CheckpointError, TrainingError
from tests.helpers import Part, metrics, tiny_digits, write_config


class Gate:
    """Holds every writing of arrays until it is opened; counts them."""

    def __init__(self, monkeypatch, *, is_open: bool = False):
        self._open, self.entered, self.error = threading.Event(), threading.Event(), None
        self._write = checkpoint.write_safetensors
        monkeypatch.setattr(checkpoint, "write_safetensors", self.write)
        if is_open:
            self.open()

    def open(self):
        self._open.set()

    def write(self, arrays, file, metadata):
        self.entered.set()
        assert self._open.wait(20), "nobody opened the gate"
        if self.error is not None:
            raise self.error
        self._write(arrays, file, metadata)


def run_at(folder, *callbacks, **changes):
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 4, "save_interval": 2, "save_unit": "step", "output_dir": str(folder)}
    tree["Global"] |= {"max_num_latest_checkpoint": -1, **changes}
    tree["EMA"] = {"decay": 0.5}
    folder.mkdir(exist_ok=True)
    config = load(str(write_config(folder / "c.yaml", tree)))
    return assemble(config, World(), Callbacks([MetricsFile(), *callbacks], is_first=True))


def test_training_goes_on_and_the_checkpoint_is_of_the_step_of_its_save(tmp_path, monkeypatch):
    """Updates change weights, moments and averages in place while the checkpoint is written; none gets into it."""
    straight = run_at(tmp_path / "straight", max_train_step=2)
    straight.fit()

    class Opener(Callback):
        def after_step(self, step, record):
            if step == 3:
                assert gate.entered.wait(10) and not (tmp_path / "run/checkpoints/latest").exists()
                gate.open()

    gate = Gate(monkeypatch)
    run_at(tmp_path / "run", Opener()).fit()
    one, two = (checkpoint.read(tmp_path / name / "checkpoints/step-00000002") for name in ("straight", "run"))
    for part in ("model", "optimizer", "ema"):
        assert one.parts[part].keys() == two.parts[part].keys()
        for name, value in one.parts[part].items():
            np.testing.assert_array_equal(two.parts[part][name], value, err_msg=name)
    assert two.parts["progress"]["step"] == 2


def test_one_checkpoint_is_written_at_a_time(tmp_path, monkeypatch):
    """The next save waits for the one before; the log says so, and how long copying and writing took."""
    checkpointer = Checkpointer(Checkpoints(tmp_path, -1), {"model": Part(w=np.ones(5, "float32"))}, Description())
    gate = Gate(monkeypatch)
    checkpointer.save(1)
    with pytest.raises(AssertionError, match="not waited for"):
        checkpointer.save(2)
    assert not checkpointer.ended
    threading.Timer(0.3, gate.open).start()
    written = checkpointer.wait()
    assert (written.step, written.path.name) == (1, "step-00000001")
    assert written.write_seconds > 0.2 > written.copy_seconds > 0.0
    assert checkpointer.wait() is None
    checkpointer.save(2)
    assert checkpointer.wait().step == 2


@pytest.mark.parametrize("noticed_at", ["report", "save", "end"])
def test_a_failed_write_ends_the_run_with_its_cause(tmp_path, monkeypatch, noticed_at):
    """At the next log line, save or end: whichever comes first after it."""
    changes = {
        "report": {"max_train_step": 400, "save_interval": 2, "save_unit": "step"},
        "save": {"print_batch_step": 1000, "max_train_step": 400},
        "end": {"save_interval": 0, "max_train_step": 2},
    }[noticed_at]
    gate = Gate(monkeypatch, is_open=True)
    gate.error = OSError(28, "No space left on device")
    trainer = run_at(tmp_path / "run", **changes)
    with pytest.raises(CheckpointError, match=r"step-00000002: the checkpoint could not be written: .*No space left"):
        trainer.fit()
    assert trainer.progress.step <= 4
    folder = tmp_path / "run" / "checkpoints"
    assert not list(folder.glob("step-*")) and not list(folder.glob(".writing-*"))


def test_an_error_of_training_lets_the_checkpoint_be_written(tmp_path, monkeypatch, caplog):
    """The error is the run's; a checkpoint that was on its way is there afterwards, or its failure is in the log."""
    for fails in (False, True):
        with monkeypatch.context() as patch:
            gate = Gate(patch)
            gate.error = OSError(5, "Input/output error") if fails else None
            trainer = run_at(tmp_path / str(fails))
            advance = trainer.advance

            def failing(batches, trainer=trainer, advance=advance, gate=gate):
                if trainer.progress.step == 2:
                    threading.Timer(0.2, gate.open).start()
                    raise TrainingError("the run's own error")
                return advance(batches)

            patch.setattr(trainer, "advance", failing)
            with caplog.at_level(logging.ERROR, "plsc"), pytest.raises(TrainingError, match="the run's own"):
                trainer.fit()
        assert (tmp_path / str(fails) / "checkpoints" / "latest").exists() is not fails
    assert caplog.text.count("Input/output error") == 1


def test_of_several_processes_the_error_does_not_wait_for_the_checkpoint(tmp_path, monkeypatch):
    """It is recorded first; otherwise the first process is given up. All wait afterwards, see test_failures.py."""
    gate, trainer = Gate(monkeypatch), run_at(tmp_path / "run")
    advance = trainer.advance

    def failing(batches):
        if trainer.progress.step == 2:
            trainer.world.size = 2
            raise TrainingError("the run's own error")
        return advance(batches)

    monkeypatch.setattr(trainer, "advance", failing)
    with pytest.raises(TrainingError, match="the run's own"):
        trainer.fit()
    assert gate.entered.wait(5) and not trainer.checkpointer.ended
    gate.open()
    assert trainer.checkpointer.wait().step == 2


@pytest.mark.parametrize("fails", [False, True])
def test_callbacks_hear_of_a_checkpoint_of_a_run_that_fails(tmp_path, monkeypatch, caplog, fails):
    """Their own errors are logged; the run's is raised."""
    saved = []

    class Watch(Callback):
        def after_save(self, step, path):
            saved.append(step)
            if fails:
                raise RuntimeError("no room at the archive")

    trainer = run_at(tmp_path / "run", Watch())
    advance = trainer.advance

    def failing(batches):
        if trainer.progress.step == 2:
            raise TrainingError("the run's own error")
        return advance(batches)

    monkeypatch.setattr(trainer, "advance", failing)
    with caplog.at_level(logging.ERROR, "plsc"), pytest.raises(TrainingError, match="the run's own"):
        trainer.fit()
    assert saved == [2] and ("no room at the archive" in caplog.text) is fails


def test_best_names_a_checkpoint_that_is_written(tmp_path, monkeypatch):
    """Whether it was saved before its evaluation or because of it; pruning leaves it."""
    seen = []

    class Watch(Callback):
        def after_save(self, step, path):
            seen.append((step, path.is_dir()))

    often = {"eval_during_train": True, "eval_interval": 1, "eval_unit": "step", "max_num_latest_checkpoint": 0}
    write = checkpoint.write_safetensors
    monkeypatch.setattr(checkpoint, "write_safetensors", lambda *a: (time.sleep(0.05), write(*a)))
    trainer = run_at(tmp_path / "run", Watch(), **often)
    trainer.fit()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    best = checkpoints.best_record()
    assert best == trainer.best.record and checkpoints.find("best").name == f"step-{best['step']:08d}"
    assert checkpoint.read(checkpoints.find("best")).parts["progress"]["step"] == best["step"]
    assert checkpoints.steps() == sorted({best["step"], 4})
    assert all(there for _, there in seen) and {2, 4} <= {step for step, _ in seen}
    assert len(seen) == len(set(seen)), "each checkpoint is reported once"


def test_seconds_of_copy_and_writing_are_in_log_and_metrics(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "plsc"):
        run_at(tmp_path / "run", eval_during_train=True, eval_interval=2, eval_unit="step").fit()
    lines = [line for line in metrics(tmp_path / "run") if "checkpoint_write_seconds" in line]
    assert [line["step"] for line in lines] == [3], "of the checkpoint of step 2, which its evaluation waited for"
    assert 0.0 < lines[0]["checkpoint_copy_seconds"] < 5.0 and 0.0 < lines[0]["checkpoint_write_seconds"] < 20.0
    assert caplog.text.count("copied in 0.") == 2


def test_copies_of_the_state_are_apart_from_it(tmp_path):
    """Each part's arrays, after its tensors change in place; a user's part that gives its own arrays is copied."""
    trainer = run_at(tmp_path / "run", max_train_step=1)
    trainer.fit()
    trainer.checkpointer.save(7)
    trainer.checkpointer.wait()
    snapshot = checkpoint.Snapshot.take(1, trainer.checkpointer._parts, Description())
    before = {part: {n: a.copy() for n, a in arrays.items()} for part, arrays in snapshot.arrays.items()}
    assert before.keys() == {"model", "optimizer", "ema"}
    tensors = [*trainer.model.parameters(), *trainer.average._average.values()]
    for accumulators in trainer.optimizer.paddle_optimizer._accumulators.values():
        tensors += accumulators.values()
    with paddle.no_grad():
        for tensor in tensors:
            tensor.add_(paddle.ones_like(tensor))
    for part, arrays in before.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(snapshot.arrays[part][name], array, err_msg=name)
    own = Part(w=np.zeros(3, "float32"), text="x")
    part = Copied(own)
    assert isinstance(part, Stateful)
    state = part.state_dict()
    own.state["w"] += 1
    assert state["w"].tolist() == [0, 0, 0] and state["text"] == "x"
    part.load_state_dict({"w": 1})
    assert own.state == {"w": 1}


def test_a_stop_waits_for_what_is_being_written(tmp_path, monkeypatch):
    """The checkpoint of an interval is still being written when the run is stopped: both are there at the end."""
    gate = Gate(monkeypatch)
    trainer = run_at(tmp_path / "run", max_train_step=100)
    monkeypatch.setattr(trainer.stop, "agreed", lambda: trainer.progress.step == 3)
    threading.Timer(0.5, gate.open).start()
    trainer.fit()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.steps() == [2, 3] and checkpoints.find("latest").name == "step-00000003"
    assert json.loads((checkpoints.find("latest") / "checksums.json").read_text())["step"] == 3


def test_workers_of_the_evaluation_are_not_forked_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """They would keep the copy of the state for the rest of the run. Later evaluations run beside the writing."""
    write, start, evaluate, beside = checkpoint.write_safetensors, Loader._start, Evaluator.run, []
    monkeypatch.setattr(checkpoint, "write_safetensors", lambda *a: (time.sleep(0.3), write(*a)))
    trainer = run_at(tmp_path / "run", eval_during_train=True, eval_interval=2, eval_unit="step")

    def starting(loader):
        assert loader is not trainer.evaluator.loader or trainer.checkpointer._writing is None, "forked while writing"
        start(loader)

    def evaluating(self, *arguments):
        beside.append(trainer.checkpointer._writing is not None)
        return evaluate(self, *arguments)

    monkeypatch.setattr(Loader, "_start", starting)
    monkeypatch.setattr(Evaluator, "run", evaluating)
    monkeypatch.setattr(trainer.evaluator.loader, "num_workers", 1)
    trainer.fit()
    assert beside == [False, True]


def test_a_run_waits_for_what_an_earlier_one_of_the_process_still_writes(tmp_path, monkeypatch):
    """As in a notebook where Ctrl-C came again while the run waited for its last checkpoint: it is not run over."""
    gate = Gate(monkeypatch)
    left = run_at(tmp_path / "run")
    left.progress.step = 2
    left.checkpointer.save(2)
    threading.Timer(0.3, gate.open).start()
    trainer = run_at(tmp_path / "run", resume="auto")
    assert left.checkpointer.ended and trainer.progress.step == 2
