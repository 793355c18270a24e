"""A run directory that can no longer be written: full, read-only, removed or replaced. The run ends with one message.

The full and the read-only disk are file systems in memory that only the process of the test sees.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plsc
from plsc.cli import main
from plsc.engine.tracking import log, logging_to
from plsc.errors import ConfigError
from plsc.files import AppendedFile
from tests.helpers import CHECKOUT, clean_environment, tiny_digits, wait_for_step, write_config


def tree(steps: int = 6, **changes) -> dict:
    made = json.loads(json.dumps(tiny_digits()))
    made["Global"] |= {"max_train_step": steps, "epochs": 1 + steps // 44, "output_dir": "run", **changes}
    return made


def steps_of(run: Path) -> list[int]:
    """Of the lines of metrics.jsonl, each of which must be whole."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# -- in this process ------------------------------------------------------------------------------


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl"])
def test_a_full_device(tmp_path, capsys, name):
    """From the command: exit code 2, one message that names the file, no traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to("/dev/full")
    code = main(["train", "-c", str(write_config(tmp_path / "run.yaml", tree()))])
    out, err = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in out + err
    assert err.count("error: ") == 1
    assert f"run/{name} cannot be written: No space left on device" in err


class Fault(plsc.Callback):
    """Does something to the run directory after step 3."""

    def __init__(self, do):
        self.do = do

    def after_step(self, step, record):
        if step == 3:
            self.do(Path("run"))


def _removed(run: Path) -> None:
    shutil.rmtree(run)


def _replaced(run: Path) -> None:
    run.rename("moved")
    run.mkdir()


def _file_replaced(run: Path) -> None:
    shutil.copy(run / "metrics.jsonl", "copy")
    os.replace("copy", run / "metrics.jsonl")


def _log_removed(run: Path) -> None:
    (run / "train.log").unlink()


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize(
    ("do", "file"),
    [
        (_removed, "metrics.jsonl|train.log"),
        (_replaced, "metrics.jsonl|train.log"),
        (_file_replaced, "metrics.jsonl"),
        (_log_removed, "train.log"),
    ],
)
def test_a_run_directory_that_is_removed_or_replaced(do, file):
    """Files that are open could be written on and on, and nobody would find them."""
    with pytest.raises(ConfigError, match=rf"run/({file}) cannot be written: it was removed or replaced while the run"):
        plsc.train(plsc.load_config(tree()), callbacks=[Fault(do)])
    moved = Path("moved")
    if moved.exists():
        assert steps_of(moved) == [1, 2, 3]


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    import resource

    path = tmp_path / "lines"
    file = AppendedFile(path)
    file.add("first")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.add("x" * 100)
        file.add("last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    file.close()
    file.close()
    assert path.read_text() == "first\nlast\n"


def test_a_named_pipe_for_a_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.log")
    with pytest.raises(OSError, match="No such device or address"):
        AppendedFile(tmp_path / "train.log")


@pytest.mark.usefixtures("process_state")
def test_a_log_line_of_another_thread_that_cannot_be_written_is_raised_at_the_end(tmp_path):
    import threading

    path = tmp_path / "train.log"
    with pytest.raises(ConfigError, match="it was removed or replaced"), logging_to(path):
        path.unlink()
        thread = threading.Thread(target=lambda: log.info("a line"))
        thread.start()
        thread.join()


# -- processes that train -------------------------------------------------------------------------


def on_a_small_disk(folder: Path, *command: str) -> list[str]:
    """A command in a mount namespace of its own, where disk/ of a folder is a file system in memory."""
    mount = 'mount -t tmpfs -o size=8m none disk && exec "$@"'
    made = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
    tried = subprocess.run([*made[:6], "true"], cwd=folder, capture_output=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip("file systems cannot be mounted here")
    return made


def without_root_rights(folder: Path, *command: str) -> list[str]:
    """A command that permissions hold for, even as root."""
    if os.geteuid() != 0:
        return list(command)
    rights = "-dac_override,-dac_read_search"
    made = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    if not shutil.which("setpriv") or subprocess.run([*made[:3], "true"], capture_output=True).returncode:
        pytest.skip("root's rights cannot be given away here")
    return made


def _fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def _make_read_only(disk: Path) -> None:
    for folder in (disk / "run" / "checkpoints", disk / "run"):
        folder.chmod(0o555)


@pytest.mark.parametrize(
    ("started", "fault", "reason"),
    [
        (on_a_small_disk, _fill, "No space left on device"),
        (without_root_rights, _make_read_only, "Permission denied"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_fails_while_the_run_is_at_work(tmp_path, started, fault, reason):
    """The run ends with exit code 2 and one message; what was written before is whole."""
    (tmp_path / "disk").mkdir()
    made = tree(1_000_000, output_dir="disk/run", save_interval=200, save_unit="step", print_batch_step=2)
    config = write_config(tmp_path / "run.yaml", made)
    process = subprocess.Popen(
        started(tmp_path, sys.executable, "-m", "plsc", "train", "-c", str(config)),
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    disk = Path(f"/proc/{process.pid}/root{tmp_path}/disk")  # as the process sees it
    try:
        wait_for_step(disk / "run", 210, timeout=120)
        kept = os.open(disk / "run", os.O_RDONLY)  # holds the file system after the process
        fault(disk)
        began = time.monotonic()
        _, err = process.communicate(timeout=120)
        seconds = time.monotonic() - began
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 2, err
    assert "Traceback" not in err and err.count("error: ") == 1
    assert "written" in err and reason in err
    assert seconds < 60
    run = Path(f"/proc/self/fd/{kept}")
    steps = steps_of(run)
    assert steps == [1, *range(2, len(steps) * 2 - 1, 2)]
    assert (run / "checkpoints" / "step-00000200" / "trainer.json").is_file()
    assert (run / "train.log").read_text().endswith("\n")
    os.close(kept)
    _make_writable(tmp_path / "disk" / "run")


def _make_writable(run: Path) -> None:
    """For whoever removes the folders of tests."""
    for folder in (run, run / "checkpoints"):
        if folder.is_dir():
            folder.chmod(0o755)
