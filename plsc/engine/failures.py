"""Processes that fail together, and print the first error.

A process that fails writes errors/rank-N.txt into the run directory. The others see the file and print it, and two
seconds later all end: otherwise they would die inside a collective, with gloo by an abort that no Python sees, and the
launcher would report that instead of the cause. Where the first process is writing a checkpoint, all wait for it first,
since the launcher ends everybody soon after the first one has left.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from plsc import environment, files, places
from plsc.errors import PlscError

_POLL_SECONDS = 0.25
_LINGER_SECONDS = 2.0
_LOCK_SECONDS = 3600.0
_WRITE_SECONDS = 3.0  # for a record, on a disk that may hang; gloo aborts five seconds after a process is given up
_SAVE_SECONDS = 15.0  # for a checkpoint; gloo aborts after 30, and a launcher that was asked to end waits 10 to 30
_SAVED_SECONDS = 1.0  # between a checkpoint's place and its name in `latest` there is nothing to see
_WAIT_FOR_CAUSE_SECONDS = 5.0
_START_SKEW_SECONDS = 60.0  # a process may fail before another one has come this far
USER_ERROR, FAULT = 2, 1
_SIGNALLED = 128  # the exit code after a signal is this and its number


def exit_code(error: BaseException) -> int:
    """2 of a PlscError, 130 of Ctrl-C, 143 of SIGTERM, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return _SIGNALLED + signal.SIGINT
    if isinstance(error, environment.Terminated):
        return _SIGNALLED + signal.SIGTERM
    return USER_ERROR if isinstance(error, PlscError) else FAULT


def message(error: BaseException) -> str:
    """What the user reads: a PlscError's text, the name of a signal, else the traceback."""
    if isinstance(error, PlscError):
        return f"error: {error}"
    code = exit_code(error)
    if code > _SIGNALLED:
        return f"ended by {signal.Signals(code - _SIGNALLED).name}; nothing of this moment was saved"
    return "".join(traceback.format_exception(error)).rstrip()


def _run_identity() -> str:
    """The same in all processes of one launch; other launches mostly have another."""
    return f"{os.environ.get('PADDLE_MASTER', '-')}/{os.environ.get('PADDLE_JOB_ID', '-')}".replace(" ", "")


class Failures:
    """The run's errors folder, as one process sees it.

    Records carry the launch they belong to and their time, so that neither an earlier run's nor
    another command's failure in the same folder is taken for one of this run.
    """

    def __init__(self, run_directory: str | Path, rank: int, size: int):
        self.folder = Path(run_directory) / "errors"
        self._checkpoints = Path(run_directory) / places.CHECKPOINTS
        self.rank, self.size = rank, size
        self._own = self.folder / f"rank-{rank}.txt"
        self._stopped, self._ending = threading.Event(), threading.Event()
        self._identity, self._since = _run_identity(), time.time() - _START_SKEW_SECONDS
        # a job that is started again at the same address must not fail of its last failure
        recorded = self._read(self._own)
        if recorded is not None and recorded[1] == self._identity:
            self._own.unlink(missing_ok=True)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Context in which this process ends when another one fails. Enter it when all processes have been started."""
        if self.size == 1:
            yield
            return
        threading.Thread(target=self._watch, name="plsc-failures", daemon=True).start()
        try:
            yield
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            failure = self._earliest_of_others()
            if failure:
                self._end_with(failure)

    @staticmethod
    def _read(path: Path) -> tuple[float, str, int, str] | None:
        """(time, launch, exit code, text) of a record; None where there is none, or no whole one yet."""
        try:
            head, _, text = path.read_text(encoding="utf-8").partition("\n")
            _, when, code, identity = head.split()
            return float(when), identity, int(code), text
        except (OSError, ValueError):
            return None

    def _others(self) -> dict[int, tuple[float, int, str]]:
        """(time, exit code, text) of the failures of other processes of this run, by rank."""
        failures = {}
        for path in self.folder.glob("rank-*.txt"):  # one look into a folder that mostly is not there
            number = path.stem.removeprefix("rank-")
            recorded = self._read(path)
            if recorded is None or not number.isdecimal() or int(number) == self.rank or int(number) >= self.size:
                continue
            when, identity, code, text = recorded
            if identity == self._identity and when > self._since:
                failures[int(number)] = (when, code, text)
        return failures

    def _earliest_of_others(self) -> tuple[float, int, int, str] | None:
        """(time, rank, exit code, text) of the first failure elsewhere, or None."""
        failures = [(when, rank, code, text) for rank, (when, code, text) in self._others().items()]
        return min(failures) if failures else None

    def _end_with(self, failure: tuple[float, int, int, str]) -> NoReturn:
        self._ending.set()
        when, rank, code, text = failure
        how = "was stopped" if code > _SIGNALLED else "failed"
        print(f"process {rank} of {self.size} {how}:\n{text}", file=sys.stderr, flush=True)
        waited = self._let_checkpoint_be_written()
        self._end_after(time.time() if waited else when, code)

    def _let_checkpoint_be_written(self) -> bool:
        """Wait for the checkpoint that the first process is writing, for a limited time; returns whether there was one.

        All processes see it alike, in the run directory, so that none leaves before.
        """
        seen = threading.Event()
        _within(_SAVE_SECONDS, self._watch_checkpoint, seen)  # looking may take for ever, too, on a disk that hangs
        return seen.is_set()

    def _watch_checkpoint(self, seen: threading.Event) -> None:
        """Until no checkpoint of this run is being written; sets `seen` when there is one."""
        until = time.monotonic()
        while True:
            if self._writes_checkpoint():
                seen.set()
                until = time.monotonic() + _SAVED_SECONDS
            elif time.monotonic() >= until:
                return
            time.sleep(_POLL_SECONDS)

    def _writes_checkpoint(self) -> bool:
        """Whether there is a checkpoint, or its name in `latest`, that is not yet in its place. Not one of a kill."""
        for pattern in (f"{files.WRITING}step-*", f"{files.WRITING}latest"):
            for path in self._checkpoints.glob(pattern):
                with contextlib.suppress(OSError):  # it is in its place now, or cannot be looked at
                    if path.stat().st_mtime > self._since:
                        return True
        return False

    def _end_after(self, when: float, code: int) -> NoReturn:
        """Leave when all have had time to read a record of the time `when`.

        Until then no other thread runs: the first process that leaves breaks the connections of the others, and a main
        thread that waits in gloo would abort its process, for which it needs Python's lock.
        """
        sys.setswitchinterval(_LOCK_SECONDS)
        until = time.monotonic() + min(_LINGER_SECONDS, max(0.0, when + _LINGER_SECONDS - time.time()))
        while (remaining := until - time.monotonic()) > 0:
            ctypes.PyDLL(None).usleep(int(1e6 * remaining))  # PyDLL keeps the lock
        self._end(code)

    @staticmethod
    def _end(code: int) -> NoReturn:
        """Leave at once: broken connections to other processes must not turn the end into an abort."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def record(self, error: BaseException) -> None:
        """Write this process's error for the others and for whoever reads the run directory.

        Of several processes, prints it too, or the one elsewhere that caused it, and ends this process: the others
        wait for it in a collective. One process goes on with its exception; where that is a PlscError, it is not
        written, since the folder may be another run's.

        Args:
            error: an exception, or the KeyboardInterrupt or environment.Terminated of a signal.
        """
        self._stopped.set()
        code, text = exit_code(error), message(error)
        if self.size == 1:
            if code == FAULT:
                self._write(code, text)
            return
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # it ends anyhow, and by its first cause
                signal.signal(number, signal.SIG_IGN)
        if code == FAULT:  # perhaps only a broken connection: the cause is what another process has written
            until = time.monotonic() + _WAIT_FOR_CAUSE_SECONDS
            while time.monotonic() < until:
                cause = self._earliest_of_others()
                if cause:
                    self._end_with(cause)
                time.sleep(_POLL_SECONDS)
        print(text, file=sys.stderr, flush=True)
        self._write(code, text)
        self._let_checkpoint_be_written()
        until = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < until and len(self._others()) < self.size - 1:
            time.sleep(_POLL_SECONDS)
        self._end(code)

    def give_up(self, text: str) -> None:
        """End all processes, since one of them no longer takes part. Not for the main thread, which waits for it."""
        if self._ending.is_set():  # the others fail to come since one of them has failed, which is on the console
            return
        text = f"error: {text}"
        print(text, file=sys.stderr, flush=True)
        self._write(FAULT, text)
        self._end_after(time.time(), FAULT)

    def _write(self, code: int, text: str) -> None:
        """Write the record, unless the disk hangs."""

        def write() -> None:
            try:
                files.write_text(self._own, f"failed {time.time()} {code} {self._identity}\n{text}\n")
            except OSError as problem:
                print(f"({self._own} could not be written: {problem})", file=sys.stderr)

        if not _within(_WRITE_SECONDS, write):
            print(f"({self._own} is not yet written after {_WRITE_SECONDS:.0f} s)", file=sys.stderr)


def _within(seconds: float, act: Callable[..., None], *arguments: Any) -> bool:
    """Call in a thread, which is left to itself after `seconds`; returns whether it has ended by then."""
    thread = threading.Thread(target=act, args=arguments, name="plsc-failure", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
