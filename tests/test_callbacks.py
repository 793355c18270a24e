"""Callbacks: called at their moments with figures and paths, and a run with them computes what it would without."""

import json
import math
import random
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

import plsc
from plsc.config import load
from plsc.engine.callbacks import Callback, CallbackError, Callbacks, RunInfo
from plsc.engine.loggers import loggers, recorded_evaluations
from plsc.errors import DataError
from tests.helpers import CHECKOUT, clean_environment, metrics, tiny_digits, write_config

pytestmark = pytest.mark.usefixtures("process_state")


def config(output_dir="run", steps: int = 4, **globals_):
    """Evaluation and a checkpoint every second update, with averages."""
    tree = tiny_digits()
    tree["Model"] |= {"drop_rate": 0.1, "drop_path_rate": 0.2}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    tree["Global"] |= {"output_dir": str(output_dir), "max_train_step": steps, "eval_during_train": True}
    tree["Global"] |= {"eval_interval": 2, "eval_unit": "step", "save_interval": 2, "save_unit": "step", **globals_}
    return load(tree)


class Journal(Callback):
    """Notes what it is called with."""

    def __init__(self):
        self.moments, self.records = [], []

    def start(self, run):
        self.run = run
        self.moments.append("start")

    def after_step(self, step, record):
        self.moments.append(f"step {step}")
        self.records.append(dict(record))

    def after_evaluation(self, step, weights, record):
        self.moments.append(f"evaluation {step} {weights}")
        self.records.append(dict(record))

    def after_save(self, step, path):
        assert (path / "trainer.json").is_file()
        self.moments.append(f"save {step} {path.name}")

    def end(self, result):
        self.result = result
        self.moments.append("end")

    def failure(self, error):
        self.error = error
        self.moments.append("failure")


def test_the_moments_of_a_run():
    """In order, with the figures of metrics.jsonl; a continued run begins at its step."""
    journal = Journal()
    result = plsc.train(config(print_batch_step=2), callbacks=[journal])
    saves = {step: f"save {step} step-{step:08d}" for step in (2, 4)}
    evaluations = {step: [f"evaluation {step} {weights}" for weights in ("raw", "ema")] for step in (2, 4)}
    assert journal.moments == [
        "start",
        "step 1",
        "step 2",
        saves[2],
        *evaluations[2],
        "step 4",
        saves[4],
        *evaluations[4],
        "end",
    ]
    assert journal.result is result
    run = journal.run
    assert (run.step, run.total_steps, run.steps_per_epoch, run.global_batch) == (0, 4, 45, 32)
    assert (run.rank, run.world_size, run.run_directory) == (0, 1, Path("run"))
    assert run.config.Global.max_train_step == 4
    apart = ("kind", "step", "weights")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k not in apart} for line in lines] == journal.records
    again = Journal()
    plsc.train(config(steps=6, resume="auto", print_batch_step=2), callbacks=[again])
    assert again.run.step == 4 and again.moments[:2] == ["start", "step 6"]


class Dice(Journal):
    """Draws from every generator there is, and sets them."""

    def __init__(self):
        super().__init__()
        for name in ("start", "after_step", "after_evaluation", "after_save", "end"):
            setattr(self, name, self.drawing(getattr(self, name)))

    def drawing(self, method):
        def call(*arguments):
            method(*arguments)
            random.seed(len(self.moments))
            np.random.seed(len(self.moments))
            paddle.seed(len(self.moments))
            return random.random() + np.random.rand() + paddle.rand([3]).sum().item()

        return call


def test_a_run_with_callbacks_ends_bit_equal():
    """With dropout, augmentation and averages: weights, state and figures are those of the run without callbacks."""
    pytest.importorskip("tensorboardX")
    plsc.train(config("without"))
    plsc.train(config("with", loggers=["tensorboard"]), callbacks=[Dice(), Journal()])
    for part in ("model", "optimizer", "ema"):
        one, two = (load_file(f"{run}/checkpoints/step-00000004/{part}.safetensors") for run in ("without", "with"))
        assert one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)
    timed = {"images_per_second", "data_time_fraction", "checkpoint_copy_seconds", "checkpoint_write_seconds"}
    one, two = ([{k: v for k, v in r.items() if k not in timed} for r in metrics(run)] for run in ("without", "with"))
    assert one == two and len(one) == 4


def test_a_callback_cannot_change_the_figures():
    """They are read-only, so that the next callback sees what the run has measured."""

    class Flatterer(Callback):
        def after_step(self, step, record):
            record["loss"] = 0.0

    with pytest.raises(CallbackError, match="callback Flatterer failed in after_step: TypeError"):
        plsc.train(config(), callbacks=[Flatterer()])
    assert metrics("run")[0]["loss"] > 1.0


class Raising(Callback):
    def __init__(self, moment: str, error: Exception):
        setattr(self, moment, self.fail)
        self.error = error

    def fail(self, *_):
        raise self.error


@pytest.mark.parametrize("moment", ["start", "after_step", "after_evaluation", "after_save", "end"])
def test_an_error_in_a_callback_fails_the_run_by_name(moment):
    """And the other callbacks hear of it; a later run in the process works."""
    journal = Journal()
    with pytest.raises(CallbackError, match=f"callback Raising failed in {moment}: OSError: disk") as error:
        plsc.train(config(), callbacks=[journal, Raising(moment, OSError("disk"))])
    assert journal.moments[-1] == "failure" and journal.error is error.value
    assert "OSError: disk" in Path("run/errors/rank-0.txt").read_text()
    assert plsc.train(config("next", steps=1)).finished


def test_what_a_user_can_mend_keeps_its_kind():
    with pytest.raises(DataError, match=r"^callback Raising: the disk is full$"):
        plsc.train(config(), callbacks=[Raising("start", DataError("the disk is full"))])


def test_an_error_while_failing_hides_nothing():
    """Whatever `failure` raises, the run's own error is what is raised."""
    callbacks = [Raising("failure", OSError("no mail")), Raising("after_step", ValueError("the cause"))]
    with pytest.raises(CallbackError, match="the cause"):
        plsc.train(config(), callbacks=callbacks)
    assert "callback Raising failed in failure: OSError: no mail" in Path("run/train.log").read_text()


def test_what_is_no_callback_is_refused():
    """A class that has all methods need not inherit; one that lacks some is named."""
    methods = ("start", "after_step", "after_evaluation", "after_save", "end", "failure")
    whole = type("Whole", (), {"all_processes": False, **{name: lambda self, *_: None for name in methods}})
    Callbacks([whole()], is_first=True)
    half = type("Half", (), {"start": lambda self, run: None})
    with pytest.raises(TypeError, match="callback Half lacks"):
        Callbacks([half()], is_first=True)


def test_the_time_of_callbacks_is_not_the_trainings():
    """A callback that takes a second would otherwise leave at most 32 images a second."""

    class Slow(Callback):
        def after_step(self, step, record):
            time.sleep(1.0)

    plsc.train(config(steps=3, eval_during_train=False, save_interval=0), callbacks=[Slow()])
    assert metrics("run")[-1]["images_per_second"] > 40


SCRIPT = """
import os, sys, plsc

class Everywhere(plsc.Callback):
    all_processes = True
    def start(self, run):
        self.run, self.moments = run, []
    def after_step(self, step, record):
        self.moments.append(f"step {step} loss {record['loss']:.6f}")
    def after_evaluation(self, step, weights, record):
        self.moments.append(f"evaluation {step} {record['samples']}")
    def end(self, result):
        open(f"everywhere-{self.run.rank}-of-{self.run.world_size}", "w").write(",".join(self.moments))

class First(plsc.Callback):
    def end(self, result):
        open(f"first-{os.environ['PADDLE_TRAINER_ID']}", "w").close()

plsc.train(plsc.load_config(sys.argv[1]), callbacks=[Everywhere(), First()])
"""


@pytest.mark.distributed
def test_on_the_first_process_unless_it_asks_for_all(tmp_path):
    """Under the launcher; all processes see the same figures."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 2, "eval_during_train": True, "output_dir": str(tmp_path / "run")}
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(write_config(tmp_path / "c.yaml", tree))],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.glob("first-*")] == ["first-0"]
    texts = {path.read_text() for path in tmp_path.glob("everywhere-?-of-2")}
    assert len(list(tmp_path.glob("everywhere-?-of-2"))) == 2 and len(texts) == 1
    assert [moment.split(" loss")[0] for moment in texts.pop().split(",")] == ["step 1", "step 2", "evaluation 2 360"]


# -- loggers ----------------------------------------------------------------------------------


def curves(lines) -> dict[tuple[str, int], float]:
    """(name, step) → value of every figure of metrics.jsonl, as loggers name it."""
    collected = {}
    for record in map(json.loads, lines):
        kind = record["kind"] + ("_ema" if record.get("weights") == "ema" else "")
        for name, value in record.items():
            if name not in ("kind", "step", "epoch", "weights"):
                collected[f"{kind}/{name}", record["step"]] = value
    return collected


def events(folder: Path):
    """The events of TensorBoard's files in a folder, in order."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16


def test_tensorboard_has_every_figure():
    """Of the run and of its continuation, whose files hide what came after the checkpoint."""
    pytest.importorskip("tensorboardX")
    plsc.train(config(loggers=["tensorboard"]))
    plsc.train(config(loggers=["tensorboard"], steps=6, resume="auto"))
    points, purged = {}, []
    for event in events(Path("run/tensorboard")):
        points.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
        if event.WhichOneof("what") == "session_log":
            purged.append(event.step)
    expected = curves(Path("run/metrics.jsonl").read_text().splitlines())
    assert points.keys() == expected.keys() and len(points) > 50
    assert all(points[key] == pytest.approx(value, rel=1e-6) for key, value in expected.items())
    assert purged == [5]


class FakeRun:
    def __init__(self, arguments):
        self.arguments, self.points, self.summary, self.finished = arguments, {}, {}, None

    def log(self, values, step):
        self.points.update({(name, step): value for name, value in values.items()})

    def finish(self, exit_code):
        self.finished = exit_code


def test_weights_and_biases_has_every_figure(monkeypatch):
    """One run over a continuation; a run that fails says so."""
    runs = []

    def init(**arguments):
        runs.append(FakeRun(arguments))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    result = plsc.train(config(loggers=["wandb"]))
    plsc.train(config(loggers=["wandb"], steps=6, resume="auto"))
    with pytest.raises(CallbackError):
        plsc.train(config("other", loggers=["wandb"]), callbacks=[Raising("after_step", ValueError())])
    first, second, third = runs
    assert first.arguments["project"] == "digits" and first.arguments["name"] == "run"
    assert first.arguments["config"]["Model"]["embed_dim"] == 16
    assert first.arguments["id"] == second.arguments["id"] != third.arguments["id"]
    assert first.points | second.points == curves(Path("run/metrics.jsonl").read_text().splitlines())
    assert first.summary["best"] == result.best
    assert [run.finished for run in runs] == [0, 0, 1]


@pytest.mark.slow
def test_weights_and_biases_offline(monkeypatch):
    """The true package, without a network."""
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert plsc.train(config(loggers=["wandb"])).finished
    [file] = Path("run/wandb").glob("offline-run-*/*.wandb")
    assert file.stat().st_size > 1000


def test_each_logger_is_made_once(monkeypatch):
    """use_visualdl is PLSC's name of loggers: [visualdl]."""
    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=None))
    for given in ({"use_visualdl": True}, {"loggers": ["visualdl"]}, {"use_visualdl": True, "loggers": ["visualdl"]}):
        names = [type(logger).__name__ for logger in loggers(config(**given))]
        assert names == ["Console", "MetricsFile", "VisualDL"]


def test_a_figure_that_is_not_finite_is_named_in_metrics_jsonl(tmp_path):
    """JSON has no word for it, and readers would refuse the file; an evaluation that is read again has it."""
    _, file = loggers(config())
    file.start(RunInfo(tmp_path, config(), 0, 4, 45, 32, 0, 1))
    file.after_step(1, {"epoch": 1, "loss": float("nan"), "top1": 0.5})
    file.after_evaluation(1, "raw", {"epoch": 1, "loss": float("inf"), "top1": 0.5})
    file.end(None)
    expected = {"step": 1, "epoch": 1, "top1": 0.5, "not_finite": ["loss"]}
    train, evaluation = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (train, evaluation) == ({"kind": "train", **expected}, {"kind": "eval", "weights": "raw", **expected})
    assert math.isnan(recorded_evaluations(tmp_path, 1)["raw"]["loss"])
