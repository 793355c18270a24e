"""Jobs that go on by themselves: tools/restart.py, and elastic training over a real etcd."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest

from tests.helpers import CHECKOUT, clean_environment, metrics

RESTART = CHECKOUT / "tools" / "restart.py"
DEMO = CHECKOUT / "tools" / "elastic_demo.py"


# -- tools/restart.py -----------------------------------------------------------------------

# writes a line into `starts` when it starts and into `signals` for every SIGTERM; the first argument is a list of exit
# codes, one a start, "wait" for a command that runs until SIGTERM, "ill" for one that says so before
COMMAND = """\
import signal, sys, time
def handle(number, frame):
    open("signals", "a").write(f"{number}\\n")
signal.signal(signal.SIGTERM, handle)
open("starts", "a").write("x\\n")
codes = sys.argv[1].split(",")
code = codes[min(len(open("starts").readlines()), len(codes)) - 1]
if code == "ill":
    print("a line", "requested lease not found", "and more", file=sys.stderr, flush=True)
if code in ("wait", "ill"):
    while not __import__("os").path.exists("signals"):
        time.sleep(0.02)
    time.sleep(0.5)  # a second signal would arrive within this time
    sys.exit(15)
sys.exit(int(code))
"""


def restart(folder: Path, codes: str, *options: str) -> subprocess.Popen:
    (folder / "command.py").write_text(COMMAND)
    return subprocess.Popen(
        [sys.executable, RESTART, "--pause", "0.1", *options, sys.executable, "command.py", codes],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(path: Path, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("codes", "options", "code", "starts"),
    [
        ("0", (), 0, 1),
        ("1,250,15,0", (), 0, 4),
        ("1,2,0", (), 2, 2),  # the user must correct something
        ("1,250,0", ("--tries", "2"), 250, 2),
    ],
)
def test_a_failed_command_is_started_again(tmp_path, codes, options, code, starts):
    started = restart(tmp_path, codes, *options)
    _, output = started.communicate(timeout=60)
    assert (started.returncode, lines(tmp_path / "starts")) == (code, starts), output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_reaches_the_command_once(tmp_path, number, code):
    """The launcher takes a second signal as an order to be quick: 10 seconds to save instead of 30."""
    started = restart(tmp_path, "wait")
    wait_for(tmp_path / "starts")
    os.killpg(started.pid, number)
    _, output = started.communicate(timeout=60)
    assert started.returncode == code, output
    assert lines(tmp_path / "starts") == 1 and lines(tmp_path / "signals") == 1


def test_a_command_that_says_it_is_ill_is_started_again(tmp_path):
    started = restart(tmp_path, "ill,0", "--restart_on", "lease not found")
    _, output = started.communicate(timeout=60)
    assert started.returncode == 0, output
    assert lines(tmp_path / "starts") == 2 and lines(tmp_path / "signals") == 1
    assert "a line requested lease not found and more\n" in output, "the command's own words were not passed on"


def test_a_failure_after_long_work_counts_as_the_first(tmp_path, monkeypatch, process_state):
    spec = importlib.util.spec_from_file_location("restart", RESTART)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "command.py").write_text(COMMAND)
    for seconds, code in ((-1.0, 0), (600.0, 1)):
        monkeypatch.setattr(module, "_LASTING_SECONDS", seconds)
        command = [sys.executable, "command.py", "1,1,1,0"]
        assert module.Restarting(command, tries=2, pause=0.0).run() == code
        (tmp_path / "starts").unlink()


def test_a_signal_during_the_pause_ends_it(tmp_path):
    started = restart(tmp_path, "1", "--pause", "60")
    assert "starting again in 60 s" in started.stderr.readline()
    started.terminate()
    assert started.wait(timeout=10) == 143
    assert lines(tmp_path / "starts") == 1


def test_the_command_is_asked_to_end_when_restart_is_killed(tmp_path):
    started = restart(tmp_path, "wait")
    wait_for(tmp_path / "starts")
    started.kill()
    started.communicate(timeout=60)
    wait_for(tmp_path / "signals")


# -- elastic training -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("elastic_demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rehearsed(demo, folder: Path):
    """The files of a job that went well, written by hand."""
    steps = range(1, demo.STEPS + 1)
    records = [{"kind": "train", "step": step, "loss": 2.0 - step / 1000} for step in steps]
    records.append({"kind": "eval", "step": demo.STEPS, "top1": 0.5})
    for run in ("run", "uninterrupted"):
        (folder / run).mkdir(parents=True)
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step, size in ((20, 2), (40, 1), (52, 1), (demo.STEPS, 2)):
        path = folder / "run" / "checkpoints" / f"step-{step:08d}" / "trainer.json"
        path.parent.mkdir(parents=True)
        progress = {"step": step, "world_size": size, "global_batch": demo.GLOBAL_BATCH}
        path.write_text(json.dumps({"parts": {"progress": progress}}))
    for name in demo.NAMES:
        (folder / f"{name}.log").write_text("restart.py: exit code 250: starting again in 1 s (failure 1 of 20)\n")
    return demo.Job(folder)


def double(folder):
    with open(folder / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 21, "loss": 1.979}\n')


def lose(folder):
    path = folder / "run" / "metrics.jsonl"
    path.write_text(re.sub(r'.*"step": 21,.*\n', "", path.read_text()))


def other_loss(folder):
    path = folder / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 1.979', '"loss": 1.985'))


def other_batch(folder):
    path = folder / "run" / "checkpoints" / "step-00000040" / "trainer.json"
    path.write_text(path.read_text().replace("64", "32"))


def never_alone(folder):
    for path in (folder / "run" / "checkpoints").glob("*/trainer.json"):
        path.write_text(path.read_text().replace('"world_size": 1', '"world_size": 2'))


def unfinished(folder):
    shutil.rmtree(max((folder / "run" / "checkpoints").iterdir()))


def evaluated_twice(folder):
    with open(folder / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "eval", "step": 160, "top1": 0.5}\n')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (double, r"steps \[\] are missing, \[21\] stand twice"),
        (lose, r"steps \[21\] are missing, \[\] stand twice"),
        (other_loss, "loss of step 21 differs by 3.0e-03"),
        (other_batch, r"global batches \[32, 64\]"),
        (never_alone, r"written by \[2\] processes"),
        (unfinished, "no checkpoint of step 160"),
        (evaluated_twice, r"evaluations of the steps \[160, 160\]"),
    ],
)
def test_the_demonstration_sees_what_is_wrong(demo, tmp_path, damage, message):
    job = rehearsed(demo, tmp_path)
    assert "written by 2, then 1, then 2 processes" in " ".join(demo.check(job, tmp_path / "uninterrupted"))
    damage(tmp_path)
    with pytest.raises(demo.Failed, match=message):
        demo.check(job, tmp_path / "uninterrupted")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed: apt-get install etcd-server")
@pytest.mark.skipif(
    importlib.util.find_spec("etcd3") is None, reason="etcd's client is not installed: pip install 'plsc[elastic]'"
)
def test_a_job_goes_on_when_a_node_is_lost_and_comes_back(tmp_path):
    """Two launchers and etcd. The node of rank 0, which writes the checkpoints, is killed and started again."""
    started = subprocess.Popen(
        [sys.executable, DEMO, "--folder", tmp_path],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = started.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    logs = "".join(f"\n{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(tmp_path.glob("*.log")))
    assert started.returncode == 0, output + logs

    assert [record["step"] for record in metrics(tmp_path / "run")] == list(range(1, 161))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*/trainer.json"))
    progress = [json.loads(path.read_text())["parts"]["progress"] for path in checkpoints]
    assert [size for size, _ in groupby(stated["world_size"] for stated in progress)][-3:] == [2, 1, 2]
    assert {stated["global_batch"] for stated in progress} == {64}
    assert progress[-1]["step"] == 160
