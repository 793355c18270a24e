"""Runs from Python: what `plsc train` does, several times in one process, in any thread, and nothing is left."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import paddle
import pytest

import plsc
from plsc.config import load
from plsc.engine import run
from plsc.engine.callbacks import Callback
from plsc.errors import ConfigError, DeviceError
from tests.helpers import CHECKOUT, clean_environment, metrics, tiny_digits, write_config

pytestmark = pytest.mark.usefixtures("process_state")


def config(output_dir="run", steps: int = 3, **globals_):
    tree = tiny_digits()
    tree["Global"] |= {"output_dir": str(output_dir), "max_train_step": steps, **globals_}
    return load(tree)


class Signal(Callback):
    """Sends this process a signal after the second logged update."""

    def __init__(self, number: int):
        self._number = number

    def after_step(self, step, record):
        if step == 2:
            os.kill(os.getpid(), self._number)


def test_a_run_from_python_leaves_what_the_command_leaves():
    """Figures, checkpoint, log, curves and description; the result says where, and what came of it."""
    result = plsc.train(config(eval_during_train=True))
    assert result.finished and result.step == 3 and result.signal is None and result.exit_code == 0
    assert result.last.keys() == {"loss", "top1", "top5", "samples"} and result.last["samples"] == 360
    assert result.best == {"metric": "top1", "value": result.last["top1"], "step": 3, "weights": "raw"}
    written = {path.name for path in result.run_directory.iterdir()}
    assert written == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "environment.json",
        "metrics.jsonl",
        "train.log",
    }
    log = (result.run_directory / "train.log").read_text()
    assert "final evaluation: top1" in log.splitlines()[-2]
    assert log.splitlines()[-1].endswith(f"run directory: {result.run_directory}")


def test_two_runs_in_one_process_do_not_disturb_each_other():
    """The second is bit-equal to the first; each log has its own run only; flags, logger and handlers are restored."""
    logger, mine = logging.getLogger("plsc"), logging.NullHandler()
    logger.addHandler(mine)
    before = list(logger.handlers), logger.level, logger.propagate
    flag = "FLAGS_check_nan_inf_level"
    level = paddle.get_flags(flag)
    signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    first = plsc.train(config("one", flags={flag: 2, "check_nan_inf": True}))
    assert paddle.get_flags(flag) == level and not paddle.get_flags("FLAGS_check_nan_inf")["FLAGS_check_nan_inf"]
    second = plsc.train(config("two"))
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == signals
    assert threading.active_count() <= threads + 1  # tqdm's monitor stays
    logs = [(result.run_directory / "train.log").read_text() for result in (first, second)]
    assert ["one" in log for log in logs] == [True, False] and ["two" in log for log in logs] == [False, True]
    losses = [[record["loss"] for record in metrics(result.run_directory)] for result in (first, second)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_run_outside_the_main_thread():
    """Signals stay the program's there; the run is the same."""
    plsc.train(config("main"))
    results = []
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: results.append(plsc.train(config("other"))))
    thread.start()
    thread.join()
    assert results[0].finished and signal.getsignal(signal.SIGTERM) is handler
    assert [r["loss"] for r in metrics("other")] == [r["loss"] for r in metrics("main")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_of_a_program(number):
    """The program gets the result and goes on; the log's last line says how the run continues, and it does."""
    result = plsc.train(config(steps=6), callbacks=[Signal(number)])
    assert not result.finished and result.step == 2 and result.signal == number and result.exit_code == 128 + number
    last = Path("run/train.log").read_text().splitlines()[-1]
    assert last.endswith("stopped at step 2 of 6; continue with: plsc train -c run/config.yaml -o Global.resume=auto")
    again = plsc.train(config(steps=6, resume="auto"))
    assert again.finished and [record["step"] for record in metrics("run")] == [1, 2, 3, 4, 5, 6]


def test_a_moved_run_is_not_started_anew():
    """Its config.yaml names the folder where the run was; a wish to continue that finds nothing is in the log."""
    plsc.train(config(resume="auto"))
    assert "holds no checkpoint: the run starts from the beginning" in Path("run/train.log").read_text()
    Path("run").rename("moved")
    with pytest.raises(ConfigError, match=r"holds no checkpoint, but the file lies in the run .*moved") as refused:
        plsc.train(load("moved/config.yaml", ["Global.resume=auto"]))
    moved = Path("moved").absolute()
    assert f"continue it with -o Global.output_dir={moved}" in str(refused.value)
    overrides = ["Global.resume=auto", "Global.max_train_step=5", f"Global.output_dir={moved}"]
    assert plsc.train(load("moved/config.yaml", overrides)).step == 5
    assert [record["step"] for record in metrics("moved")] == [1, 2, 3, 4, 5]


def test_a_second_ctrl_c_ends_the_run_at_once():
    """By KeyboardInterrupt, as programs and notebooks expect; the workers end and the handlers are restored."""

    class Impatient(Signal):
        def after_step(self, step, record):
            super().after_step(step, record)
            super().after_step(step, record)

    handler = signal.getsignal(signal.SIGINT)
    tree = config(steps=6).replace({"DataLoader.Train.loader.num_workers": 1})
    with pytest.raises(KeyboardInterrupt):
        plsc.train(tree, callbacks=[Impatient(signal.SIGINT)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not [t for t in threading.enumerate() if t.name.startswith("plsc")]
    assert plsc.train(config("after")).finished


def test_the_lock_is_held_and_given_back():
    """A second run in the folder is refused while the first one trains, and possible afterwards."""
    errors = []

    class Second(Callback):
        def after_step(self, step, record):
            with pytest.raises(ConfigError, match="another run is at work in run"):
                run.train(config())
            errors.append(step)

    plsc.train(config(steps=1), callbacks=[Second()])
    assert errors == [1]
    assert plsc.train(config(steps=2, resume="auto")).step == 2


class Broken(Callback):
    def after_step(self, step, record):
        raise ZeroDivisionError("a fault of the program")


def test_a_fault_is_recorded_and_raised():
    """errors/rank-0.txt has the traceback; the exception reaches the program; the next run works."""
    with pytest.raises(Exception, match="callback Broken failed in after_step"):
        plsc.train(config(), callbacks=[Broken()])
    recorded = Path("run/errors/rank-0.txt").read_text()
    assert "ZeroDivisionError: a fault of the program" in recorded and "Traceback" in recorded
    assert plsc.train(config("next")).finished


def test_what_the_user_can_mend_is_raised_and_not_recorded():
    """Of one process: the folder may be another run's."""
    plsc.train(config())
    with pytest.raises(ConfigError, match="already holds a run"):
        plsc.train(config())
    assert not Path("run/errors").exists()


def test_a_flag_that_paddle_refuses_or_does_not_know():
    """A wrong value is an error that names the key; an unknown flag is a warning."""
    with pytest.raises(ConfigError, match=r"Global\.flags.check_nan_inf: Paddle refuses the value 'perhaps'"):
        plsc.train(config("a", flags={"check_nan_inf": "perhaps"}))
    plsc.train(config("b", flags={"FLAGS_no_such_flag": 1}))
    assert "does not know FLAGS_no_such_flag" in Path("b/train.log").read_text()


@pytest.mark.parametrize("loggers", [["tensorboard"], ["wandb"], ["visualdl"]])
def test_missing_packages_are_reported_before_data_sets_are_opened(monkeypatch, loggers):
    """The message names the extra to install."""
    modules = {"tensorboard": "tensorboardX", "wandb": "wandb", "visualdl": "visualdl"}
    monkeypatch.setitem(sys.modules, modules[loggers[0]], None)
    monkeypatch.setattr("plsc.build.data.component", lambda *_, **__: pytest.fail("a data set was opened"))
    with pytest.raises(DeviceError, match=rf"pip install 'plsc\[{loggers[0]}\]'"):
        plsc.train(config(loggers=loggers))


def test_missing_weights_are_reported_before_data_sets_are_opened(monkeypatch):
    monkeypatch.setattr("plsc.build.data.component", lambda *_, **__: pytest.fail("a data set was opened"))
    for key in ("pretrained_model", "checkpoint"):
        with pytest.raises(ConfigError, match=f"Global.{key}: .*no-such"):
            plsc.train(config(**{key: "no-such-weights"}))


def test_an_unwritable_run_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Global.output_dir: .*file.* cannot be written"):
        plsc.train(config(tmp_path / "file" / "run"))


SCRIPT = """
import sys, plsc
train = plsc.train
assert "paddle" not in sys.modules, "threads are to be set before Paddle is imported"
config = plsc.load_config(sys.argv[1], overrides={"Global.output_dir": sys.argv[2]})
for name in ("one", "two"):
    result = plsc.train(config.replace({"Global.output_dir": f"{sys.argv[2]}/{name}"}))
    print("RESULT", name, result.step, result.finished)
import os
print("THREADS", os.environ["OMP_NUM_THREADS"], os.environ["FLAGS_new_executor_sequential_run"])
"""


PADDLE_FIRST = """
import paddle, plsc, sys
config = plsc.load_config(sys.argv[1], overrides={"Global.output_dir": sys.argv[2], "Global.cpu_threads": 3})
plsc.train(config)
assert not paddle.get_flags("FLAGS_new_executor_sequential_run")["FLAGS_new_executor_sequential_run"]
"""


def test_a_program_that_imports_paddle_first(tmp_path):
    """Compiled blocks draw random numbers in the same order; a number of threads that cannot be set is warned of."""
    tree = tiny_digits()
    tree["Model"] |= {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}
    tree["Global"] |= {"max_train_step": 8, "to_static": True}
    recipe = write_config(tmp_path / "run.yaml", tree)
    (tmp_path / "script.py").write_text(PADDLE_FIRST)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(recipe), str(tmp_path / "first")],
        env=clean_environment(PYTHONPATH=str(CHECKOUT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Global.cpu_threads: has no effect: Paddle was imported before" in done.stdout
    plsc.train(load(str(recipe), {"Global.output_dir": str(tmp_path / "prepared")}))
    losses = [[record["loss"] for record in metrics(tmp_path / name)] for name in ("first", "prepared")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 8


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_program_prepares_paddle_and_trains_twice(tmp_path, processes):
    """In a process of its own, and under the launcher, where the second run meets in the same store."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 3, "save_interval": 1, "save_unit": "step", "eval_during_train": True}
    (tmp_path / "script.py").write_text(SCRIPT)
    write_config(tmp_path / "run.yaml", tree)
    launch = [] if processes == 1 else ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    launch += ["--log_dir", str(tmp_path / "log")] if launch else []
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(tmp_path / "run.yaml"), str(tmp_path / "out")],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RESULT one 3 True" in done.stdout and "RESULT two 3 True" in done.stdout and "THREADS 1 1" in done.stdout
    assert "Traceback" not in done.stderr
    records = [metrics(tmp_path / "out" / name) for name in ("one", "two")]
    assert [r["loss"] for r in records[0]] == [r["loss"] for r in records[1]] and len(records[0]) == 3
