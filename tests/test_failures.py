"""What goes wrong goes wrong aloud, at once and together: signals, dead processes, bad numbers."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from plsc.engine import failures
from plsc.errors import DataError
from tests.helpers import (
    CHECKOUT,
    children,
    clean_environment,
    command,
    gone,
    metrics,
    plsc,
    rank_of,
    start,
    tiny_digits,
    wait_for_step,
    write_config,
)


def long_run() -> dict:
    tree = tiny_digits()
    tree["Global"] |= {"epochs": 1000, "max_train_step": None}
    tree["DataLoader"]["Train"]["loader"]["num_workers"] = 1
    return tree


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_continues(tmp_path, number):
    """Ctrl-C and SIGTERM end after the update in progress, with a checkpoint of that very step."""
    process, run = start(tmp_path, long_run())
    wait_for_step(run, 5)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output
    last = metrics(run)[-1]["step"]
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step-{last:08d}"
    assert f"stopped at step {last}" in output and "Global.resume=auto" in output
    plsc("train", "-c", tmp_path / "run.yaml", "-o", f"Global.output_dir={run}", "-o", "Global.resume=auto",
         "-o", f"Global.max_train_step={last + 3}", cwd=tmp_path)  # fmt: skip
    assert metrics(run)[-1]["step"] == last + 3


@pytest.mark.distributed
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(tmp_path):
    """The processes vote: one checkpoint, written by the first, no process goes on."""
    process, run = start(tmp_path, long_run(), processes=2)
    wait_for_step(run, 3)
    trainers = [p for p in children(process.pid) if rank_of(p) == "1"]
    everyone = children(process.pid)
    os.kill(trainers[0], signal.SIGTERM)
    process.wait(timeout=60)
    output = (tmp_path / "output.txt").read_text()
    assert "stopped at step" in output and "Traceback" not in output
    assert (run / "checkpoints" / "latest").is_file()
    assert gone(everyone)


@pytest.mark.distributed
def test_ctrl_c_of_the_launcher_says_how_to_continue(tmp_path):
    """On its own console, which by then shows no process's output; the processes have saved.

    Records of an earlier, larger run and of another command in the folder, and an evaluation that fails beside the run,
    are not taken for its failures.
    """
    run = tmp_path / "run"
    errors = run / "errors"
    errors.mkdir(parents=True)
    (errors / "rank-5.txt").write_text(f"failed {time.time()} 1 -/-\nan old error\n")
    (errors / "rank-1.txt").write_text(f"failed {time.time()} 1 elsewhere/default\nof another launch\n")
    assert failures.Failures(run, 0, 2)._earliest_of_others() is None
    config = write_config(tmp_path / "run.yaml", long_run())
    launcher = subprocess.Popen(
        command(["train", "-c", config, "-o", f"Global.output_dir={run}"], 2, tmp_path / "log"),
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_step(run, 3)
    evaluated = plsc("eval", "--weights", run, "-o", "Model.depth=3", check=False)
    assert evaluated.returncode == 2
    wait_for_step(run, metrics(run)[-1]["step"] + 40)
    launcher.send_signal(signal.SIGINT)
    _, console = launcher.communicate(timeout=60)
    assert not any("failed:" in log.read_text() for log in [run / "train.log", *(tmp_path / "log").glob("workerlog.*")])
    step = int((run / "checkpoints" / "latest").read_text().split("-")[1])
    assert "stopping after this update, then saving" in console
    assert (
        f"stopped at step {step} of" in console
        and f"--nproc_per_node 2 tools/train.py -c {run / 'config.yaml'}" in console
    )


@pytest.mark.distributed
def test_a_signal_to_every_process_saves(tmp_path):
    """As Slurm and systemd send it: to loaders too, while the processes have not yet agreed on the last step."""
    tree = long_run()
    tree["DataLoader"]["Train"]["loader"]["num_workers"] = 2
    process, run = start(tmp_path, tree, processes=2)
    wait_for_step(run, 60)  # until votes are some steps apart
    everyone = children(process.pid)
    assert len(everyone) == 6
    for pid in reversed(everyone):
        os.kill(pid, signal.SIGTERM)
    process.wait(timeout=60)
    assert "error" not in (tmp_path / "output.txt").read_text()
    last = metrics(run)[-1]["step"]
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step-{last:08d}"
    assert gone(everyone)


@pytest.mark.distributed
def test_a_killed_launcher_leaves_nobody(tmp_path):
    """SIGKILL of the launcher: trainers and their workers die with it."""
    process, run = start(tmp_path, long_run(), processes=2)
    wait_for_step(run, 3)
    everyone = children(process.pid)
    assert len(everyone) >= 4
    process.kill()
    process.wait()
    assert gone(everyone)


@pytest.mark.smoke
@pytest.mark.distributed
def test_processes_fail_together_with_the_first_error(tmp_path, picture_tree):
    """A damaged picture on one process: both end with code 2, the picture is named on the first one's console."""
    root = tmp_path / "pictures"
    root.mkdir()
    lines = (picture_tree / "train_list.txt").read_text().splitlines()
    lines[37] = "train/class_3/none.jpg 3"
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    tree = tiny_digits()
    tree["Model"] |= {"in_chans": 3, "class_num": 4}
    tree["DataLoader"]["Train"]["dataset"] = {
        "name": "ImageNetDataset",
        "image_root": str(picture_tree),
        "cls_label_path": str(root / "list.txt"),
        "transform_ops": [{"DecodeImage": None}, {"ResizeImage": {"size": 8}}, {"NormalizeImage": None}],
    }
    tree["DataLoader"]["Train"]["sampler"] |= {"batch_size": 4}
    process, run = start(tmp_path, tree, processes=2)
    assert process.wait(timeout=60) == 2
    output = (tmp_path / "output.txt").read_text()
    assert "train/class_3/none.jpg: No such file" in output
    assert "Traceback" not in output
    [error] = (run / "errors").glob("rank-*.txt")
    assert "none.jpg" in error.read_text()


@pytest.mark.distributed
def test_a_killed_process_ends_the_other(tmp_path):
    """SIGKILL of one trainer: the run ends with an error soon, nobody waits for ever."""
    process, run = start(tmp_path, long_run(), processes=2)
    wait_for_step(run, 3)
    everyone = children(process.pid)
    os.kill(next(p for p in everyone if rank_of(p) == "1"), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert gone(everyone)


def test_a_process_is_not_aborted_while_others_read_the_cause(tmp_path):
    """The first to leave breaks the connections of others, whose C++ would abort; for that it needs Python's lock."""
    program = (
        "import ctypes, os, sys, threading, time\n"
        "from plsc.engine.failures import Failures\n"
        "first, second = (Failures(sys.argv[1], rank, 2) for rank in range(2))\n"
        "with first.watched():\n"
        "    second._write(2, 'error: the cause')\n"
        "    ctypes.CDLL(None).usleep(1000000)\n"
        "    os.abort()\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "process 1 of 2 failed:\nerror: the cause" in done.stderr
    assert time.monotonic() - started > 2.0, "it left before a third one can have read the cause"


class Left(BaseException):
    """Instead of the end of a process."""


@pytest.fixture
def leaving(monkeypatch):
    """Failures raise Left where they would end the process, with short waits."""

    def end(code):
        raise Left(code)

    interval = sys.getswitchinterval()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(failures.Failures, "_end", staticmethod(end))
    for name, seconds in {"LINGER": 0.1, "POLL": 0.02, "SAVED": 0.3, "SAVE": 5.0, "WRITE": 0.3}.items():
        monkeypatch.setattr(failures, f"_{name}_SECONDS", seconds)
    yield
    sys.setswitchinterval(interval)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def end(one: failures.Failures, how: str) -> float:
    """The seconds until a process has left, by its own error or by that of another one."""
    started = time.monotonic()
    with pytest.raises(Left):
        if how == "own":
            one.record(DataError("the cause"))
        else:
            one._end_with((time.time(), 1, 2, "error: the cause"))
    sys.setswitchinterval(0.005)
    return time.monotonic() - started


@pytest.mark.parametrize("how", ["own", "other"])
def test_nobody_leaves_while_a_checkpoint_is_written(tmp_path, leaving, how, capsys):
    """Nor before `latest` names it; but the error is printed and recorded at once."""
    folder, early = tmp_path / "checkpoints", []
    writing = folder / ".writing-step-00000002"
    writing.mkdir(parents=True)

    def write() -> None:
        time.sleep(0.5)
        early.append((tmp_path / "errors" / "rank-0.txt").exists() or how == "other")
        early.append("error: the cause" in capsys.readouterr().err)
        writing.rename(folder / "step-00000002")
        time.sleep(0.1)
        (folder / "latest").write_text("step-00000002\n")

    thread = threading.Thread(target=write)
    thread.start()
    end(failures.Failures(tmp_path, 0, 2), how)
    assert (folder / "latest").exists()
    thread.join()
    assert early == [True, True]


@pytest.mark.parametrize("how", ["own", "other"])
def test_the_wait_for_a_checkpoint_has_an_end(tmp_path, leaving, how, monkeypatch):
    """On a disk that hangs; and what an earlier run has left half written is not waited for."""
    writing = tmp_path / "checkpoints" / ".writing-step-00000002"
    writing.mkdir(parents=True)
    monkeypatch.setattr(failures, "_SAVE_SECONDS", 0.5)
    assert 0.5 < end(failures.Failures(tmp_path, 0, 2), how) < 5.0
    monkeypatch.setattr(failures, "_SAVE_SECONDS", 20.0)
    os.utime(writing, (time.time() - 3600,) * 2)
    assert end(failures.Failures(tmp_path, 0, 2), how) < 5.0


@pytest.mark.parametrize("how", ["own", "missing"])
def test_a_disk_that_hangs_does_not_hide_the_error(tmp_path, leaving, how, monkeypatch, capsys):
    hanging = threading.Event()
    monkeypatch.setattr(failures.files, "write_text", lambda *_: hanging.wait(10))
    started, one = time.monotonic(), failures.Failures(tmp_path, 0, 2)
    with pytest.raises(Left):
        one.record(DataError("the cause")) if how == "own" else one.give_up("the cause")
    sys.setswitchinterval(0.005)
    hanging.set()
    assert time.monotonic() - started < 5.0
    printed = capsys.readouterr().err
    assert printed.startswith("error: the cause\n") and "rank-0.txt is not yet written" in printed


def test_a_process_that_failed_is_not_reported_as_silent(tmp_path, leaving, capsys):
    """While all wait for a checkpoint it gives no more signs."""
    one = failures.Failures(tmp_path, 0, 2)
    end(one, "other")
    capsys.readouterr()
    one.give_up("process 1 of 2 has given no sign")
    assert capsys.readouterr().err == "" and not (tmp_path / "errors").exists()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, where):
    """The message names the step, and no checkpoint of such weights is written."""
    tree = tiny_digits()
    tree["Global"] |= {"print_batch_step": 4, "save_interval": 1, "save_unit": "step"}
    if where == "loss":
        tree["LRScheduler"] = {"learning_rate": 1e30}
        tree["Optimizer"] = {"name": "SGD"}
    else:  # the loss is finite, its gradient overflows when squared and summed
        tree["Loss"]["Train"] = [{"CELoss": {"weight": 1e30}}]
    run = tmp_path / "run"
    done = plsc("train", "-c", write_config(tmp_path / "c.yaml", tree), "-o", f"Global.output_dir={run}", check=False)
    assert done.returncode == 2
    assert "is not finite" in done.stderr and "Traceback" not in done.stderr
    assert "of step 1 " in done.stderr or "of step 2 " in done.stderr
    saved = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert saved in ([], ["step-00000001"])


def test_an_existing_run_is_not_overwritten(tmp_path):
    """Starting again into the same folder is refused, with both ways out; the run is left as it was."""
    tree = tiny_digits()
    tree["Global"]["max_train_step"] = 2
    config, run = write_config(tmp_path / "c.yaml", tree), tmp_path / "run"
    plsc("train", "-c", config, "-o", f"Global.output_dir={run}")
    before = (run / "metrics.jsonl").read_text()
    done = plsc("train", "-c", config, "-o", f"Global.output_dir={run}", check=False)
    assert done.returncode == 2
    assert "Global.resume=auto" in done.stderr and "Global.output_dir" in done.stderr
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("processes", [None, pytest.param(2, marks=pytest.mark.distributed)])
def test_the_log_has_every_line_once(tmp_path, processes):
    """Paddle's import leaves a handler on the root logger; no line of ours is doubled by it."""
    tree = tiny_digits()
    if processes:
        tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 16
    run = tmp_path / "run"
    config = write_config(tmp_path / "c.yaml", tree)
    done = plsc("train", "-c", config, "-o", f"Global.output_dir={run}", processes=processes, cwd=tmp_path)
    for text in (done.stdout + done.stderr, (run / "train.log").read_text()):
        for step in range(1, 11):
            assert text.count(f"step {step}/10 ") == 1
    fields = ("epoch ", "loss ", "top1 ", "lr ", "images/s", "data wait", "grad norm", "ETA")
    line = next(x for x in done.stdout.splitlines() if "step 10/10" in x)
    assert all(name in line for name in fields)


def test_a_job_that_is_started_again_waits_for_the_run_before_it(tmp_path):
    """As where a scheduler replaces a job that is still saving: with resume=auto the new run goes on after its end.

    Without it the second run is refused, and leaves the first alone.
    """
    first, run = start(tmp_path, long_run())
    wait_for_step(run, 3)
    refused = plsc("train", "-c", tmp_path / "run.yaml", "-o", f"Global.output_dir={run}", check=False)
    assert refused.returncode == 2 and "another run is at work" in refused.stderr
    wait_for_step(run, metrics(run)[-1]["step"] + 20)
    again = subprocess.Popen(
        command(["train", "-c", tmp_path / "run.yaml", "-o", f"Global.output_dir={run}", "-o", "Global.resume=auto"]),
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "another run is at work" in again.stderr.readline()
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 128 + signal.SIGTERM
    step = metrics(run)[-1]["step"]
    wait_for_step(run, step + 3)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=30)
    assert again.returncode == 128 + signal.SIGTERM
    steps = [record["step"] for record in metrics(run)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= step + 3


def test_a_signal_during_evaluation_ends_it(tmp_path):
    """The checkpoint is written first, and the evaluation is given up."""
    tree = long_run()
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 2, "eval_unit": "step"}
    tree["Global"] |= {"save_interval": 2, "save_unit": "step", "output_dir": str(tmp_path / "run")}
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        "from plsc import environment\n"
        "environment.prepare()\n"
        "environment.import_paddle()\n"
        "from plsc.metrics import TopkAcc\n"
        "update = TopkAcc.update\n"
        "def slowly(self, *arguments):\n"
        "    update(self, *arguments)\n"
        "    if len(arguments) == 3:\n"  # with `valid`: in evaluation
        "        print('EVALUATING', flush=True)\n"
        "        time.sleep(2)\n"
        "TopkAcc.update = slowly\n"
        "from plsc.cli import main\n"
        "sys.exit(main(['train', '-c', sys.argv[1]]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(write_config(tmp_path / "c.yaml", tree))],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "EVALUATING" in line:
            break
    saved, until = tmp_path / "run" / "checkpoints" / "step-00000002", time.monotonic() + 10
    while not saved.is_dir() and time.monotonic() < until:  # written beside the evaluation, which takes 24 s
        time.sleep(0.05)
    assert saved.is_dir() and not metrics(tmp_path / "run", "eval"), "saved without waiting for the evaluation"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 10
