"""plsc sweep: what is searched, the journal, runs as processes that fail or are killed, and successive halving."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plsc
from plsc import environment, files
from plsc.cli import main
from plsc.cli.common import config_of
from plsc.cli.main import parser
from plsc.config import load
from plsc.engine.run import locked
from plsc.errors import ConfigError
from plsc.sweeps import child, scheduler
from plsc.sweeps.journal import SETTINGS, Journal, make_runs
from plsc.sweeps.scheduler import Rungs
from plsc.sweeps.slots import slots
from plsc.sweeps.space import candidates, parse, read_file, seeds
from tests.helpers import CHECKOUT, children, clean_environment, gone, metrics, tiny_digits, write_config

RATE, DEPTH = "LRScheduler.learning_rate", "Model.depth"


def tree(**settings) -> dict:
    made = tiny_digits()
    made["Global"] |= {"eval_during_train": True, "eval_interval": 5, "eval_unit": "step", **settings}
    return made


# -- what is searched -------------------------------------------------------------------------------


def test_lists_make_a_grid_and_seeds_repeat_it():
    space = parse([f"{RATE}=0.06,0.03", "Global.seed=0,1", "Optimizer.betas=(0.9, 0.99),(0.9, 0.999)", f"{DEPTH}=2"])
    points = candidates(space, None)
    assert [(p[RATE], p["Optimizer.betas"]) for p in points] == [
        (rate, betas) for rate in (0.06, 0.03) for betas in ("(0.9, 0.99)", "(0.9, 0.999)")
    ]
    assert seeds(space) == [0, 1] and all(point[DEPTH] == 2 and "Global.seed" not in point for point in points)
    runs = make_runs(points, [0, 1])
    assert [run.candidate for run in runs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert runs[1].name == "2-learning_rate=0.06-betas=_0.9_0.99_-depth=2-seed=1"
    assert len({run.name for run in runs}) == 8


def test_random_draws_lie_within_their_bounds_and_are_the_same_again():
    space = parse({RATE: {"log": [1e-4, 1e-2]}, "Model.drop_rate": "uniform(0, 0.5)", DEPTH: [2, 3]})
    points = candidates(space, 40)
    assert points == candidates(space, 40) and len(points) == 80
    rates = [point[RATE] for point in points]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates) and len(set(rates)) == 40
    assert 0.3 < sum(rate < 1e-3 for rate in rates) / 80 < 0.7, "half of a log-uniform draw lies below the middle"
    assert all(0 <= point["Model.drop_rate"] <= 0.5 for point in points)


@pytest.mark.parametrize(
    ("space", "trials", "text"),
    [
        ([], None, "nothing is searched"),
        ([RATE], None, "has the form KEY=VALUES"),
        ([f"{RATE}=1,1"], None, "has a value twice"),
        ([f"{RATE}=1", f"{RATE}=2"], None, "is given twice"),
        ([f"{RATE}=log(0,1)"], 2, "both must be above 0"),
        ([f"{RATE}=uniform(2,1)"], 2, "must be above the first"),
        ([f"{RATE}=log(1)"], 2, "takes two numbers"),
        ({RATE: {"normal": [0, 1]}}, 2, "is not a way to draw"),
        ([f"{RATE}=log(1e-3,1)"], None, "--trials N"),
        ([f"{RATE}=1,2"], 3, "nothing is drawn"),
        (["Global.seed=uniform(0,9)"], 3, "give a list of seeds"),
    ],
)
def test_what_cannot_be_searched(space, trials, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        candidates(parse(space), trials)


def test_the_yaml_form(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(f"recipe: digits\nspace:\n  {RATE}: [0.1, 0.2]\noverrides: {{Global.epochs: 2}}\nhalving: 3\n")
    file = read_file(path)
    assert (file.recipe, file.space, file.halving, file.trials) == ("digits", {RATE: [0.1, 0.2]}, 3, None)
    assert file.overrides == {"Global.epochs": 2}
    for text, problem in [
        ("recipe: digits\nspaces: {a: 1}\n", "search.yaml:2: spaces: is not a key of a search; did you mean space"),
        ("recipe: digits\n", "space is missing"),
        ("recipe: [digits]\nspace: {a: 1}\n", "search.yaml:1: recipe: is .* expected a text"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            read_file(path)


def test_the_shipped_search_of_coyo_is_its_own():
    file = read_file(CHECKOUT / "examples" / "coyo_search.yaml")
    points = candidates(parse(file.space), file.trials)
    assert [(point[RATE], point["Global.max_train_step"]) for point in points] == [
        (rate, steps) for rate in (0.06, 0.03, 0.01) for steps in (20000, 40000)
    ]
    for point in points:
        load(file.recipe, {**file.overrides, **point})


# -- where runs are at work -----------------------------------------------------------------------------


def test_jobs_share_the_cores_and_devices_have_a_run_each(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    two = slots(2, [])
    assert [slot.cores for slot in two] == [(0, 1), (2, 3)] and two[0].environment()["OMP_NUM_THREADS"] == "2"
    placed = slots(None, ["gpu:0", "gpu:1"])
    assert [(slot.device, slot.cores) for slot in placed] == [("gpu:0", None), ("gpu:1", None)]
    assert placed[1].environment()["OMP_NUM_THREADS"] == "2"
    [one] = slots(None, [])
    assert one.cores is None and one.device is None
    for jobs, devices, text in [(6, [], "give no more jobs"), (2, ["gpu:0"], "keep one"), (None, ["a", "a"], "twice")]:
        with pytest.raises(ConfigError, match=text):
            slots(jobs, devices)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(ConfigError, match="--jobs 2: this process has 1 core; give no more jobs"):
        slots(2, [])


# -- the journal ------------------------------------------------------------------------------------------


def test_a_search_goes_on_only_as_the_same(tmp_path):
    runs = make_runs([{RATE: 1}, {RATE: 2}], None)
    journal = Journal.open(tmp_path, {"recipe": "a", "trials": None}, runs)
    journal.runs[0].state = "done"
    journal.save()
    again = Journal.open(tmp_path, {"recipe": "a", "trials": None}, make_runs([{RATE: 1}, {RATE: 2}], None))
    assert [run.state for run in again.runs] == ["done", "waiting"]
    with pytest.raises(ConfigError, match="another search, which differs in recipe;"):
        Journal.open(tmp_path, {"recipe": "b", "trials": None}, runs)
    again = Journal.open(tmp_path, {"recipe": "a", "trials": None, "halving": None}, runs)
    assert [run.state for run in again.runs] == ["done", "waiting"], "null is as absent"
    (tmp_path / "sweep.json").write_text('{"format": 1, "definition')
    with pytest.raises(ConfigError, match="damaged"):
        Journal.open(tmp_path, {"recipe": "a"}, runs)


def test_a_kill_while_the_journal_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    journal = Journal.open(tmp_path, {}, make_runs([{RATE: 1}], None))
    before = journal.path.read_text()
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    journal.runs[0].state = "done"
    with pytest.raises(KeyboardInterrupt):
        journal.save()
    assert journal.path.read_text() == before


# -- halving, with processes that end at once ---------------------------------------------------------------


def test_rungs():
    assert Rungs.of(9, 3) == Rungs((1 / 9, 1 / 3, 1.0), (9, 3, 1))
    assert Rungs.of(8, 3) == Rungs((1 / 3, 1.0), (8, 3))
    assert Rungs.of(5, None) == Rungs((1.0,), (5,))


class Finished:
    """A process of a run that has ended when it is first asked. Its score is given by `scores`."""

    scores: dict = {}
    started: list = []
    codes: dict = {}

    def __init__(self, command, **_):
        *_, folder, fraction = command
        settings = files.read_json(Path(folder) / SETTINGS, error=ConfigError)["overrides"]
        rate, seed = settings[RATE], settings.get("Global.seed")
        Finished.started.append((rate, seed, float(fraction)))
        step = round((settings.get("Global.max_train_step") or 90) * float(fraction))
        record = {"kind": "eval", "step": step, "weights": "raw", "loss": 1.0, "top1": self.scores[rate] + step / 1e4}
        with open(f"{folder}/metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        os.makedirs(f"{folder}/checkpoints", exist_ok=True)
        with open(f"{folder}/checkpoints/best", "w") as file:
            file.write('step-00000001\n{"metric": "top1"}\n')
        self.code = self.codes.get(rate, 0)

    def poll(self):
        return self.code

    def terminate(self):
        pass

    def wait(self, timeout=None):
        return self.code


@pytest.fixture
def finished(monkeypatch):
    monkeypatch.setattr(scheduler.subprocess, "Popen", Finished)
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(Finished, "started", [])
    monkeypatch.setattr(Finished, "codes", {})
    monkeypatch.setattr(Finished, "scores", {rate: rate / 10 for rate in (1, 2, 3, 4, 5, 6)})
    return Finished


def test_halving_trains_the_better_ones_longer(tmp_path, finished):
    space = {RATE: [1, 2, 3, 4], "Global.seed": [0, 1]}
    result = plsc.sweep(tree(), space, output_dir=tmp_path / "s", halving=2)
    lengths = {}
    for rate, _, fraction in finished.started:
        lengths.setdefault(fraction, []).append(rate)
    assert lengths == {0.25: [1, 1, 2, 2, 3, 3, 4, 4], 0.5: [3, 3, 4, 4], 1.0: [4, 4]}
    assert [s.values[RATE] for s in result.standings] == [4, 3, 2, 1]
    assert [s.state for s in result.standings] == ["done", "dropped", "dropped", "dropped"]
    assert result.best.mean == pytest.approx(0.4 + 90 / 1e4) and result.best.steps == 90 and result.metric == "top1"
    before = list(finished.started)
    again = plsc.sweep(tree(), space, output_dir=tmp_path / "s", halving=2)
    assert finished.started == before and again == result, "nothing is left to do"


def test_a_kill_between_rungs_loses_nothing(tmp_path, finished):
    """Killed as each run is about to begin, the search chooses the same candidates and repeats no run."""

    class Kill(BaseException):
        pass

    budget = 0

    def on_change(line):
        nonlocal budget
        if line.endswith("done") or "running" not in line:
            return
        budget += 1
        if budget % 2 == 0:
            raise Kill

    for _ in range(20):
        try:
            result = plsc.sweep(tree(), {RATE: [1, 2, 3, 4]}, output_dir=tmp_path / "s", halving=2, on_change=on_change)
            break
        except Kill:
            continue
    assert budget > 7 and [s.values[RATE] for s in result.standings] == [4, 3, 2, 1]
    assert sorted(finished.started) == sorted(set(finished.started)) and len(finished.started) == 7


def test_a_failed_run_is_left_out_and_tried_again(tmp_path, finished):
    finished.codes = {4: -9}
    lines = []
    result = plsc.sweep(tree(), {RATE: [2, 3, 4]}, output_dir=tmp_path / "s", halving=3, on_change=lines.append)
    assert result.failed == 1 and [(s.values[RATE], s.state) for s in result.standings] == [
        (3, "done"),
        (2, "dropped"),
        (4, "failed"),
    ]
    assert any("failed: ended by signal 9 (SIGKILL)" in line for line in lines)
    assert "failed: ended by signal 9" in (tmp_path / "s" / "table.md").read_text()
    assert (3, None, 1.0) in finished.started and (4, None, 1.0) not in finished.started
    finished.codes = {}
    again = plsc.sweep(tree(), {RATE: [2, 3, 4]}, output_dir=tmp_path / "s", halving=3)
    assert finished.started[-2:] == [(4, None, pytest.approx(1 / 3)), (4, None, 1.0)], "better than what was left out"
    assert again.failed == 0 and [s.values[RATE] for s in again.standings] == [4, 3, 2]
    plain = plsc.sweep(tree(), {RATE: [2, 3, 4]}, output_dir=tmp_path / "t")
    assert plain.failed == 0 and plain.best.values == {RATE: 4}


def test_a_run_that_had_failed_is_left_out_where_it_is_worse_than_those_that_were(tmp_path, finished):
    """Of two seeds one fails and brings the candidate down; tried again it decides as it would have at first."""
    finished.codes = {1: 2}
    space = {RATE: [1, 2, 3], "Global.seed": [0, 1]}
    plsc.sweep(tree(), space, output_dir=tmp_path / "s", halving=3)
    finished.codes, finished.started[:] = {}, []
    result = plsc.sweep(tree(), space, output_dir=tmp_path / "s", halving=3)
    assert {(rate, round(fraction, 2)) for rate, _, fraction in finished.started} == {(1, 0.33)}, "no further"
    assert [(s.values[RATE], s.state) for s in result.standings] == [(3, "done"), (2, "dropped"), (1, "dropped")]


def test_the_best_settings_can_be_pasted_into_a_shell(tmp_path, finished):
    space = {RATE: [1], "Optimizer.betas": [[0.9, 0.99]], "Global.max_train_step": [None], "Global.to_static": [False]}
    text = plsc.sweep(tree(), space, output_dir=tmp_path / "s").text()
    [best] = re.findall("^best: .* with (.*)$", text, re.MULTILINE)
    given = [part for part in shlex.split(best) if part != "-o"]
    assert load(tree(), given).to_dict() == load(tree(), {key: values[0] for key, values in space.items()}).to_dict()


def test_the_reason_of_a_failure_is_the_errors_line(tmp_path):
    (tmp_path / "output.txt").write_text(
        "05:01:02 I Train\nTraceback (most recent call last):\n  File x\nValueError: (InvalidArgument) shapes differ\n"
        "  [Hint: Expected 3 == 4] (at x.cc:1)\n  [operator < matmul > error]\n"
    )
    assert scheduler._reason(tmp_path / "output.txt", 1) == "ValueError: (InvalidArgument) shapes differ"


def test_the_reason_of_a_failure_is_the_last_attempts(tmp_path, monkeypatch):
    """What a run printed in an earlier attempt stays in its file."""
    monkeypatch.setattr(scheduler, "_PROGRAM", "failing")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for text in ("print('error: no disk'); raise SystemExit(2)", "raise MemoryError('no memory')"):
        (tmp_path / "failing.py").write_text(text)
        result = plsc.sweep(tree(), {RATE: [1]}, output_dir=tmp_path / "s")
    assert result.standings[0].errors == ("MemoryError: no memory",)
    assert "no disk" in (result.standings[0].runs[0] / scheduler.OUTPUT).read_text()


def test_the_best_need_not_be_the_longest(tmp_path, finished):
    space = {RATE: [1, 2], "Global.max_train_step": [20, 40]}
    result = plsc.sweep(tree(), space, output_dir=tmp_path / "s")
    finished.scores = {1: 0.4, 2: 0.1}
    other = plsc.sweep(tree(), space, output_dir=tmp_path / "t")
    lengths = [[(s.values[RATE], s.steps) for s in r.standings] for r in (result, other)]
    assert lengths == [[(2, 40), (2, 20), (1, 40), (1, 20)], [(1, 40), (1, 20), (2, 40), (2, 20)]]


def test_the_table_has_means_and_spreads(tmp_path, finished):
    finished.scores = {1: 0.1, 2: 0.2}
    result = plsc.sweep(tree(), {RATE: [1, 2], "Global.seed": [0, 1, 2]}, output_dir=tmp_path / "s")
    titles, first, _, best, runs = result.text().splitlines()
    assert titles.split() == ["learning_rate", "top1", "spread", "seeds", "updates", "state"]
    assert first.split() == ["1", "2", "0.2090", "0.0000", "3", "90", "done"]
    assert best == f"best: top1 0.2090 ± 0.0000 over 3 seeds with -o {RATE}=2"
    assert runs == f"runs, table.md and table.csv: {tmp_path / 's'}"
    assert (tmp_path / "s" / "table.csv").read_text().splitlines()[1] == "1,2,0.2090,0.0000,3,90,done"


@pytest.mark.parametrize(
    ("space", "options", "text"),
    [
        ({"Optimizer.learning_rat": [1, 2]}, {}, "learning_rat"),
        ({"Global.output_dir": ["a", "b"]}, {}, "is set by the search"),
        ({"DataLoader.Eval.dataset.split": ["train", "test"]}, {}, "must be on the same data for all"),
        (
            {"DataLoader.Eval.dataset": [{"name": "Digits"}, {"name": "CIFAR10"}]},
            {},
            "must be on the same data for all",
        ),
        ({RATE: [1]}, {"halving": 1}, "halving is 1"),
        ({RATE: [1]}, {"overrides": ["Global.eval_during_train=False"]}, "ranks runs by their evaluation"),
    ],
)
def test_what_is_refused_before_anything_runs(space, options, text, tmp_path, finished):
    with pytest.raises(ConfigError, match=text):
        plsc.sweep(tree(), space, output_dir=tmp_path / "s", **options)
    assert not finished.started and not (tmp_path / "s").exists()


def test_a_changed_recipe_is_another_search(tmp_path, finished):
    plsc.sweep(tree(), {RATE: [1, 2]}, output_dir=tmp_path / "s")
    with pytest.raises(ConfigError, match=r"another search, which differs in recipe\.Global\.epochs;"):
        plsc.sweep(tree(epochs=2), {RATE: [1, 2]}, output_dir=tmp_path / "s")
    with pytest.raises(ConfigError, match=r"another search, which differs in .*space\.LRScheduler\.learning_rate;"):
        plsc.sweep(tree(), {RATE: [1, 3]}, output_dir=tmp_path / "s")


# -- processes ----------------------------------------------------------------------------------------------


def test_runs_have_session_cores_and_niceness_of_the_search(tmp_path, monkeypatch):
    """Of a session of its own the niceness would count for nothing under Linux's autogroups."""
    (tmp_path / "where.py").write_text(
        "import os\n"
        "print('error:', os.getsid(0), os.getpgid(0) == os.getpid(), sorted(os.sched_getaffinity(0)), os.nice(0))\n"
        "raise SystemExit(2)\n"
    )
    monkeypatch.setattr(scheduler, "_PROGRAM", "where")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        result = plsc.sweep(tree(), {RATE: [1]}, output_dir=tmp_path / "s")
    finally:
        os.sched_setaffinity(0, cores)
    assert result.standings[0].errors == (f"{os.getsid(0)} True [{min(cores)}] {os.nice(0)}",)


def test_a_folder_has_one_search_at_a_time(tmp_path, finished):
    (tmp_path / "s").mkdir()
    with locked(tmp_path / "s", 0.0), pytest.raises(ConfigError, match="--output: another search is at work in"):
        plsc.sweep(tree(), {RATE: [1]}, output_dir=tmp_path / "s")


# -- real runs ----------------------------------------------------------------------------------------------


def test_a_run_that_pauses_goes_on_as_if_it_had_not(tmp_path):
    """Until stops after the evaluation at or after its share; continued, the figures are those of a straight run."""
    straight = load(tree(output_dir=str(tmp_path / "straight")))
    plsc.train(straight)
    paused = child.Until(0.3)
    result = plsc.train(load(tree(output_dir=str(tmp_path / "paused"))), callbacks=[paused])
    assert paused.reached and not result.finished and metrics(tmp_path / "paused", "eval")[-1]["step"] == 5
    rest = child.Until(1.0)
    result = plsc.train(load(tree(output_dir=str(tmp_path / "paused"), resume="auto")), callbacks=[rest])
    assert result.finished and not rest.reached
    timed = {"images_per_second", "data_time_fraction", "checkpoint_copy_seconds", "checkpoint_write_seconds"}

    def figures(run):
        records = [*metrics(run), *metrics(run, "eval")]
        return [{name: value for name, value in record.items() if name not in timed} for record in records]

    assert figures(tmp_path / "paused") == figures(tmp_path / "straight")


def test_the_recorded_command_repeats_the_run(tmp_path):
    """Without the search: the same configuration, of a recipe and of a dict."""
    (tmp_path / "own.py").write_text("")
    overrides = {RATE: 1e-05, "Optimizer.betas": [0.9, 0.99], "Model.drop_rate": "0.1", "Global.flags": {}}
    overrides |= {
        "Global.save_unit": "step",
        "Global.max_train_step": None,
        "Global.output_dir": str(tmp_path / "a run"),
    }
    recipe = str(write_config(tmp_path / "recipe.yaml", tree()))
    settings = {
        "recipe": recipe,
        "overrides": {**overrides, "Global.resume": "auto"},
        "imports": [str(tmp_path / "own.py")],
    }
    expected = plsc.load_config(recipe, overrides, settings["imports"]).to_dict()

    def repeated(words):
        assert words[0] == "plsc"
        return config_of(parser().parse_args(words[1:]))

    words = child.command(settings, tmp_path)
    assert words[4:6] == ["--import", str(tmp_path / "own.py")]
    assert repeated(words).to_dict() == expected and repeated(words).Global.resume is None
    write_config(tmp_path / "config.yaml", expected)
    assert repeated(child.command({**settings, "recipe": tree()}, tmp_path)).to_dict() == expected


@pytest.mark.slow
def test_runs_are_ordinary_runs_and_a_failing_one_does_not_end_the_others(tmp_path, capsys):
    recipe = write_config(tmp_path / "recipe.yaml", tree())
    folder = tmp_path / "s"
    command = ["sweep", "-c", str(recipe), "Model.img_size=8,12", "--output", str(folder), "--jobs", "2"]
    assert main(command) == 1, "a run failed: the pictures have 8 pixels"
    printed = capsys.readouterr().out
    assert "failed: " in printed and "but Model.img_size is 12x12" in printed and "best: top1 0." in printed
    [good] = folder.glob("*img_size=8")
    assert {"config.yaml", "metrics.jsonl", "train.log", "environment.json", "checkpoints"} <= {
        path.name for path in good.iterdir()
    }
    assert plsc.evaluate(good)["samples"] == 360
    assert "Warning" not in (good / scheduler.OUTPUT).read_text()
    recorded = json.loads((good / "environment.json").read_text())
    assert recorded["threads"] == max(1, environment.available_cores() // 2)
    assert recorded["command"][:4] == ["plsc", "train", "-c", str(recipe)]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_in_the_middle_loses_nothing(number, tmp_path):
    """A signal to the search ends its runs, with checkpoints; the same command goes on where they were."""
    settings = {"epochs": 40, "max_train_step": 1500, "eval_interval": 1500, "save_interval": 200, "save_unit": "step"}
    made = tree(**settings, print_batch_step=50)
    recipe = write_config(tmp_path / "recipe.yaml", made)
    folder = tmp_path / "s"
    command = [sys.executable, "-m", "plsc", "sweep", "-c", str(recipe), f"{RATE}=0.001,0.002,0.003"]
    command += ["--output", str(folder)]
    options = dict(env=clean_environment(PYTHONPATH=str(CHECKOUT)), cwd=tmp_path)

    def steps(number):
        run = next(folder.glob(f"{number}-*"), None)
        try:
            return metrics(run)[-1]["step"] if run else 0
        except (OSError, IndexError, json.JSONDecodeError):
            return 0

    with open(tmp_path / "first.txt", "w") as output:
        search = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
    until = time.monotonic() + 300
    while steps(2) < 300 and time.monotonic() < until:
        assert search.poll() is None, (tmp_path / "first.txt").read_text()
        time.sleep(0.1)
    at_work = children(search.pid)
    search.send_signal(number)
    assert search.wait(timeout=150) == (-9 if number == signal.SIGKILL else 130)
    assert at_work and gone(at_work, timeout=60)
    journal = json.loads((folder / "sweep.json").read_text())
    assert [run["state"] for run in journal["runs"]] == ["done", "running", "waiting"]
    [first] = folder.glob("1-*")
    log_before = (first / "train.log").read_text()

    done = subprocess.run(command, capture_output=True, text=True, timeout=400, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (first / "train.log").read_text() == log_before, "a run that was done is not done again"
    [second] = folder.glob("2-*")
    assert "continuing " in (second / "train.log").read_text()
    straight = load(made, {RATE: 0.002, "Global.output_dir": str(tmp_path / "straight")})
    plsc.train(straight)
    ours, theirs = metrics(second, "eval")[-1], metrics(tmp_path / "straight", "eval")[-1]
    assert ours == theirs, "the killed run ends bit for bit where a straight one does"
