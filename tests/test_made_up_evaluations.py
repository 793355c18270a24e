"""Each evaluation stands once in metrics.jsonl and counts for `best`, wherever a run is killed or stopped."""

import itertools
import json

import pytest

from plsc.config import load
from plsc.engine.assembly import assemble
from plsc.engine.callbacks import Callbacks
from plsc.engine.checkpoint import Checkpointer, Checkpoints
from plsc.engine.distributed import World
from plsc.engine.evaluator import Evaluator
from plsc.engine.loggers import MetricsFile, recorded_evaluations
from tests.helpers import metrics, tiny_digits, write_config

TIMED = {"images_per_second", "data_time_fraction", "mfu"}
TIMED |= {"checkpoint_copy_seconds", "checkpoint_write_seconds"}


class Killed(BaseException):
    """What nobody catches, as a kill."""


def config_at(folder, **changes):
    """Four updates, saved and evaluated every two, with averages."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 4, "save_interval": 2, "save_unit": "step", "max_num_latest_checkpoint": -1}
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 2, "eval_unit": "step", "resume": "auto"}
    tree["Global"] |= {"output_dir": str(folder), **changes}
    tree["DataLoader"]["Eval"]["sampler"]["batch_size"] = 180
    tree["EMA"] = {"decay": 0.5, "ema_eval": True}
    folder.mkdir(exist_ok=True)
    return load(str(write_config(folder / "c.yaml", tree)))


def run(config):
    trainer = assemble(config, World(), Callbacks([MetricsFile()], is_first=True))
    trainer.fit()
    return trainer


def outcome(folder):
    """What a kill must not change: the lines of metrics.jsonl but for times, best, and the last weights."""
    lines = [
        {k: v for k, v in r.items() if k not in TIMED} for kind in ("train", "eval") for r in metrics(folder, kind)
    ]
    checkpoints = Checkpoints(folder / "checkpoints")
    weights = (checkpoints.find("latest") / "model.safetensors").read_bytes()
    return lines, checkpoints.best_record(), checkpoints.find("best").name, weights


class Kill:
    """Ends a run before or after the nth evaluation, line of metrics.jsonl or change of best."""

    def __init__(self, monkeypatch, at: int):
        self.at, self.done = at, 0
        for owner, name in ((Evaluator, "run"), (MetricsFile, "_write"), (Checkpointer, "point_best")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*arguments):
            self.done += 1
            if self.done == self.at:
                raise Killed
            result = function(*arguments)
            self.done += 1
            if self.done == self.at:
                raise Killed
            return result

        return call


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(config_at(folder))
    assert [(r["step"], r["weights"]) for r in metrics(folder, "eval")] == [
        (2, "raw"), (2, "ema"), (4, "raw"), (4, "ema"),
    ]  # fmt: skip
    return outcome(folder)


def test_a_kill_at_any_moment_leaves_each_evaluation_once(tmp_path, monkeypatch, straight):
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        config = config_at(folder)
        with monkeypatch.context() as patch:
            kill = Kill(patch, at)
            try:
                run(config)
            except Killed:
                killed = True
            else:
                killed = False
        run(config)
        assert outcome(folder) == straight, f"after a kill at moment {at}"
        if not killed:
            break
    assert kill.done > 20, "too few moments"


def test_a_stop_during_an_evaluation_and_again_while_it_is_made_up(tmp_path, monkeypatch, straight):
    """In the evaluation of the weights, in that of the averages, and in the making up."""
    config, evaluate = config_at(tmp_path / "run"), Evaluator.run
    for stopped_at in (1, 2, 1, None):  # which evaluation of each start
        count = itertools.count(1)

        def stopping(self, network, stop, count=count, stopped_at=stopped_at):
            return evaluate(self, network, (lambda: True) if next(count) == stopped_at else stop)

        monkeypatch.setattr(Evaluator, "run", stopping)
        run(config)
        assert not metrics(tmp_path / "run", "eval") or stopped_at is None
    assert outcome(tmp_path / "run") == straight


def test_a_stop_at_a_step_whose_evaluation_is_due(tmp_path, monkeypatch, straight):
    """The stop saves and leaves the evaluation to the next start."""
    config = config_at(tmp_path / "run")
    trainer = assemble(config, World(), Callbacks([MetricsFile()], is_first=True))
    monkeypatch.setattr(trainer.stop, "agreed", lambda: trainer.progress.step == 2)
    trainer.fit()
    assert trainer.progress.step == 2 and not metrics(tmp_path / "run", "eval")
    run(config)
    assert outcome(tmp_path / "run") == straight


def test_a_finished_run_started_again_measures_nothing_again(tmp_path, monkeypatch, straight):
    """Its summary has the recorded figures."""
    folder = tmp_path / "run"
    first = run(config_at(folder))
    monkeypatch.setattr(Evaluator, "run", None)
    again = run(config_at(folder))
    assert outcome(folder) == straight
    assert again.last == first.last and again.best.record == first.best.record


def test_a_best_that_was_not_pointed_to_is_found_in_the_records(tmp_path, straight):
    """Of the checkpoint that the run continues; a pointer that is missing or damaged is written anew."""
    folder = tmp_path / "run"
    run(config_at(folder))
    pointer = folder / "checkpoints" / "best"
    pointer.unlink()
    run(config_at(folder))
    assert outcome(folder) == straight


def test_another_runs_checkpoint_is_evaluated_in_the_new_run(tmp_path):
    """Its figures are the other run's, so the new one has its own, and a checkpoint that its best names."""
    run(config_at(tmp_path / "one"))
    new = config_at(tmp_path / "two", checkpoint=str(tmp_path / "one"))
    run(new)
    assert recorded_evaluations(tmp_path / "two", 4).keys() == {"raw", "ema"}
    best = Checkpoints(tmp_path / "two" / "checkpoints").best_record()
    assert best is None or best["step"] == 4


def scored(monkeypatch, values):
    """Evaluations have these values of top1, one after the other."""
    left = iter(values)
    monkeypatch.setattr(Evaluator, "run", lambda *_: {"loss": 1.0, "top1": next(left), "samples": 1.0})


def test_a_kill_between_saving_the_best_and_pointing_to_it(tmp_path, monkeypatch):
    """The checkpoint says that it is the best, `best` names the one before: the run points to it, and keeps it."""
    config = config_at(tmp_path / "run", save_interval=0, max_num_latest_checkpoint=0, max_train_step=6)
    config = config.replace({"EMA.ema_eval": False})
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    scored(monkeypatch, [0.2, 0.4, 0.3])
    trainer = assemble(config, World(), Callbacks([MetricsFile()], is_first=True))
    point, advance = Checkpoints.point, trainer.advance

    def pointing(self, name, step, record=None):
        if (name, step) != ("best", 4):
            point(self, name, step, record)

    def killed(batches):
        if trainer.progress.step == 4:
            raise Killed
        return advance(batches)

    monkeypatch.setattr(trainer, "advance", killed)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "point", pointing)
        trainer.fit()
    assert checkpoints.find("latest").name == "step-00000004" and checkpoints.best_record()["step"] == 2
    run(config)
    assert checkpoints.best_record() == {"metric": "top1", "value": 0.4, "step": 4, "weights": "raw"}
    assert checkpoints.steps() == [4, 6]


@pytest.mark.parametrize(("save_interval", "eval_interval", "best"), [(0, 1, 1), (1, 2, None)])
def test_best_names_no_step_that_the_run_went_back_from(tmp_path, monkeypatch, save_interval, eval_interval, best):
    """It names the best until the checkpoint that is continued, or nothing."""
    changes = {"save_interval": save_interval, "eval_interval": eval_interval, "max_num_latest_checkpoint": -1}
    config = config_at(tmp_path / "run", **changes, max_train_step=2).replace({"EMA.ema_eval": False})
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    scored(monkeypatch, [0.2, 0.4] if best else [0.4])
    run(config)
    assert checkpoints.best_record()["step"] == 2
    trainer = assemble(config.replace({"Global.resume": "step-00000001"}), World())
    record = checkpoints.best_record()
    assert record == trainer.best.record and (record and record["step"]) == best
    assert (checkpoints.folder / "best").exists() is (best is not None) and checkpoints.steps() == [1, 2]


def test_evaluations_of_other_weights_of_that_step_are_not_taken(tmp_path):
    """A run that begins with another's checkpoint, where one that was given up has left figures of the same step."""
    run(config_at(tmp_path / "one"))
    new = config_at(tmp_path / "two", checkpoint=str(tmp_path / "one" / "checkpoints" / "step-00000002"))
    left = [{"kind": "train", "step": 2, "epoch": 1, "loss": 2.0}]
    left += [{"kind": "eval", "step": step, "epoch": 1, "weights": "raw", "top1": 1.0} for step in (1, 2)]
    (tmp_path / "two" / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in left))
    run(new)
    records, expected = metrics(tmp_path / "two", "eval"), metrics(tmp_path / "one", "eval")
    assert records == [left[1], *expected], "those of the step before stay, those of the step are measured"
    assert metrics(tmp_path / "two")[0] == left[0]
