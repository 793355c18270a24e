"""Signals at bad moments: in Paddle's store, in an import, between processes that wait for each other, at the end."""

import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import paddle
import pytest

from plsc import environment
from plsc.engine import joining
from plsc.engine.distributed import World
from plsc.engine.failures import Failures
from plsc.engine.stopping import StopRequest, handlers_restored
from tests.helpers import CHECKOUT, children, clean_environment, command, gone, rank_of, tiny_digits, write_config
from tests.storms.common import free_port


def test_a_signal_does_not_break_the_wait_for_another_process(process_state):
    """A system call of Paddle's store that fails with EINTR is an error of the store, and of its server a lost peer."""
    port = free_port()
    store = paddle.base.core.TCPStore("127.0.0.1", port, True, 0, 900)
    other = paddle.base.core.TCPStore("127.0.0.1", port, False, 0, 900)
    stop = StopRequest(World(size=2, rank=1))

    def ask_thrice() -> None:
        for _ in range(3):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        other.set("arrived", "yes")

    with handlers_restored():
        stop.listen()
        asking = threading.Thread(target=ask_thrice)
        asking.start()
        try:
            assert store.get("arrived") == b"yes"
        finally:
            asking.join()
    assert stop._received == signal.SIGTERM


def test_a_signal_during_an_import_of_paddle_is_handled_then(tmp_path):
    """The import takes long on a busy machine; Paddle's own handler must not see the signal."""
    (tmp_path / "paddle.py").write_text(
        "import time\nprint('importing', flush=True)\nfor _ in range(400):\n    time.sleep(0.05)\n"
    )
    program = (
        "import os, signal\nfrom plsc import environment\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\nenvironment.import_paddle()\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program],
        env=clean_environment(PYTHONPATH=f"{tmp_path}:{CHECKOUT}"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "importing\n"
    started.terminate()
    assert started.wait(timeout=10) == 7


def test_a_signal_without_handler_waits_for_the_import(tmp_path):
    (tmp_path / "paddle.py").write_text("import os\nos.kill(os.getpid(), 15)\nprint('imported', flush=True)\n")
    program = "from plsc import environment\nenvironment.import_paddle()\nprint('still here')\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(PYTHONPATH=f"{tmp_path}:{CHECKOUT}"),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "imported\n")


def test_a_program_that_was_stopped_is_not_ended_otherwise_by_a_late_signal():
    program = textwrap.dedent(
        """
        import atexit, os, signal, sys
        import plsc.cli.list
        from plsc.cli import main
        kill = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        plsc.cli.list.run = kill
        atexit.register(kill)
        sys.argv = ["plsc", "list"]
        sys.exit(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(PYTHONPATH=str(CHECKOUT)), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (143, "terminated\n")


def test_a_signal_before_the_first_update_is_recorded_for_processes_that_got_none(tmp_path):
    """They end by it, with the code of the signal; no later signal changes that."""
    program = (
        "import os, signal, sys, threading\n"
        "from plsc import environment\n"
        "from plsc.engine.failures import Failures\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "Failures(sys.argv[1], 0, 2).record(environment.Terminated())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 143
    _, rank, code, text = Failures(tmp_path, 1, 2)._earliest_of_others()
    assert (rank, code, text) == (0, 143, "ended by SIGTERM; nothing of this moment was saved\n")


# -- joining --------------------------------------------------------------------------------


def test_processes_wait_until_all_are_there_and_then_the_port_is_free():
    master, here = ("127.0.0.1", free_port()), []

    def come(rank: int, after: float) -> None:
        time.sleep(after)
        joining.wait_for_all(master, rank, 3)
        here.append(rank)

    others = [threading.Thread(target=come, args=(rank, 0.3 * rank)) for rank in (1, 2)]
    for thread in others:
        thread.start()
    joining.wait_for_all(master, 0, 3)
    assert not here, "the others wait for the store"
    with socket.create_server(("", master[1])):
        for thread in others:
            thread.join(timeout=10)
    assert sorted(here) == [1, 2]


def test_a_process_that_has_ended_is_not_counted():
    master = ("127.0.0.1", free_port())

    def come_and_go() -> None:
        time.sleep(0.2)
        with socket.create_connection(master) as connection:
            connection.sendall(b"plsc 1\n")
            time.sleep(0.1)
        with socket.create_connection(master) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        joining._let_in(master, 2, time.monotonic() + 2)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    with pytest.raises(ConnectionError, match=r"of 3 processes, \[1\] have not joined"):
        joining.wait_for_all(master, 0, 3, seconds=1.0)
    thread.join()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait_for_others(rank, process_state):
    """Paddle's own wait would not let the handler run."""

    class Asked(Exception):
        pass

    def handle(number, frame):
        raise Asked

    signal.signal(signal.SIGTERM, handle)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    started = time.monotonic()
    with pytest.raises(Asked):
        joining.wait_for_all(("127.0.0.1", free_port()), rank, 2, seconds=20)
    assert time.monotonic() - started < 5


def test_a_port_of_another_program_is_named(monkeypatch):
    monkeypatch.setattr(joining, "_PORT_SECONDS", 0.2)
    port = free_port()
    with (
        socket.create_server(("", port)),
        pytest.raises(ConnectionError, match=f"127.0.0.1:{port}: Address already in"),
    ):
        joining.wait_for_all(("127.0.0.1", port), 0, 2)


# -- the launcher's death -------------------------------------------------------------------


LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize(
    "program",
    [
        # killed before the process can ask for anything: it already has another parent
        "import time\ntime.sleep(1)\nfrom plsc.cli import main\nmain(['list'])\nprint('orphan', flush=True)",
        # between the question for the parent and the request to end with it
        "import time, ctypes\nfrom plsc import environment\nlibrary = ctypes.CDLL\n"
        "ctypes.CDLL = lambda name: time.sleep(1) or library(name)\n"
        "environment.die_with_launcher()\nprint('orphan', flush=True)",
        # after both
        "import time\nfrom plsc import environment\nenvironment.die_with_launcher()\n"
        "time.sleep(2)\nprint('orphan', flush=True)",
    ],
)
def test_no_process_outlives_a_launcher_that_is_killed_at_once(program):
    started = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, program],
        env=clean_environment(PYTHONPATH=str(CHECKOUT), PADDLE_GLOBAL_RANK="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = int(started.stdout.readline())
    time.sleep(0.5)
    started.kill()
    assert started.stdout.read() == ""
    assert gone([child])


@pytest.mark.parametrize("how", ["", " & sleep 0.5; exit"], ids=["waits", "ends first"])
def test_a_run_that_a_script_starts_without_the_launcher_is_no_orphan(tmp_path, how):
    """It sets the ranks itself; the environment that Linux shows of it is older than that."""
    program = "import time\nfrom plsc import environment\nenvironment.die_with_launcher()\n"
    (tmp_path / "rank.py").write_text(program + "time.sleep(1)\nprint('alive', flush=True)\n")
    start = f"{sys.executable} rank.py{how}"
    (tmp_path / "run.sh").write_text(f"export PADDLE_TRAINER_ID=0 PADDLE_TRAINERS_NUM=2\n{start}\ntrue\n")
    done = subprocess.run(
        ["sh", "run.sh"],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.parametrize(("parent", "adopted"), [(1, True), (4321, False)])
def test_a_parent_whose_environment_is_secret_is_not_taken_for_the_systems(monkeypatch, parent, adopted):
    """Only process 1 is, for certain."""

    def opened(path, mode):
        if path.endswith("environ"):
            raise PermissionError(path)
        return io.BytesIO(b"slurmstepd: [42.0]")

    monkeypatch.setenv("PADDLE_GLOBAL_RANK", "0")
    monkeypatch.setattr("builtins.open", opened)
    result = environment._adopted_by(parent)
    monkeypatch.undo()
    assert result is adopted


@pytest.mark.distributed
def test_workers_of_a_launcher_that_is_killed_at_once_end(tmp_path):
    run = tmp_path / "run"
    tree = tiny_digits()
    tree["Global"] |= {"epochs": 1000, "max_train_step": None, "output_dir": str(run)}
    config = write_config(tmp_path / "run.yaml", tree)
    launcher = subprocess.Popen(
        command(["train", "-c", config], 2, tmp_path / "log"),
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    workers = []
    while len(workers) < 2 and time.monotonic() < until:
        workers = [pid for pid in children(launcher.pid) if rank_of(pid) is not None]
    launcher.kill()
    launcher.wait()
    assert len(workers) == 2 and gone(workers)
    assert not run.exists(), "a worker went on"
