"""plsc.diagnose: every check in turn, each within its time, on all processes; one table of them."""

import dataclasses
import functools
import logging
import queue
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paddle

import plsc
from plsc import environment
from plsc.doctor.checks import CHECKS, Check, Finding, Site, Verdict, heaviest, reason, skip, worst
from plsc.models import spec_of
from plsc.runs.tables import text_table

# isort: off
from plsc.doctor import software, hardware, communication, rates, training  # noqa: F401 - checks in this order
# isort: on

log = logging.getLogger("plsc")

_WAIT_SECONDS = 1.0
_NEEDED = (hardware.device.name, communication.processes.name)  # by those that are not done alone


@dataclass(frozen=True)
class Row(Finding):
    """One check of all processes: the worst finding, or what was made of all.

    Attributes:
        name: of the check. seconds: that it took on the first process. figures: by rank, where processes have one.
    """

    name: str = ""
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What `plsc doctor` found.

    Attributes:
        device, processes: what was looked at. seconds: that it took. rows: of the table.
        stuck: whether a thread still waits for a check. ended: whether the launcher ends all, since a process crashed.
    """

    device: str
    processes: int
    seconds: float
    rows: tuple[Row, ...]
    stuck: bool = False
    ended: bool = False

    @property
    def verdict(self) -> Verdict:
        """The heaviest of all rows."""
        return heaviest(row.verdict for row in self.rows)

    def row(self, name: str) -> Row:
        """The row of a check. Raises KeyError where there is none."""
        return {row.name: row for row in self.rows}[name]

    def text(self) -> str:
        """The table, and below it what to do."""
        cells = [(row.verdict.upper(), row.name, row.measured) for row in self.rows]
        parts = [text_table([("", "check", "measured"), *cells], left=[True] * 3)]
        todo = [row for row in self.rows if row.verdict in ("fail", "warn")]
        parts += ["\nwhat to do:\n"] if todo else ["\n"]
        parts += [f"  {row.name}: {row.remedy}{row.expected and f' (expected: {row.expected})'}\n" for row in todo]
        verdicts = [row.verdict for row in self.rows]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "warn", "fail", "skip"))
        return f"{''.join(parts)}{self.processes} x {self.device}: {counts} in {self.seconds:.0f} s\n"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"plsc": plsc.__version__, "verdict": self.verdict, **dataclasses.asdict(self)}

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> "Diagnosis":
        """What `to_dict` has made, as read from JSON."""
        rows = tuple(Row(**row) for row in content["rows"])
        return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)} | {"rows": rows})


class _Worker:
    """A thread that makes calls one after the other; a call that does not end is left to itself, with the thread."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="plsc-doctor", daemon=True).start()

    def _work(self) -> None:
        while (job := self._calls.get()) is not None:
            future, function = job
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def call(self, function: Callable[[], Any], seconds: float) -> Future:
        """The call after its end, or after so many seconds: then it is not done()."""
        future: Future = Future()
        self._calls.put((future, function))
        until = time.monotonic() + seconds
        # in parts: a signal that comes just before a wait, or to another thread, is acted on after it
        while not future.done() and (left := until - time.monotonic()) > 0:
            wait([future], timeout=min(left, _WAIT_SECONDS))
        return future

    def end(self) -> None:
        self._calls.put(None)


def diagnose(
    *,
    device: str = "auto",
    run_directory: str | Path = "output",
    model: str = "ViT_base_patch16_224",
    batch_size: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Diagnosis:
    """Look at this machine, or with paddle.distributed.launch at all machines of a run, in about a minute.

    Every process calls it alike and gets the same answer. Each check has a time after which it counts as hung; a
    collective that hangs is reported, and leaves a thread that waits for it.

    Args:
        device: cpu, gpu, …; auto takes a GPU where there is one.
        run_directory: where runs are to write; a folder in it is used meanwhile.
        model: one of plsc.list_models, of the training step. batch_size: images a process; by default by speed.
        progress: called with the name of each check before it begins.

    Raises:
        ConfigError: there is no such model, or it is not one of plsc's own.

    Example:
        >>> diagnosis = plsc.diagnose(device="cpu", model="ViT_tiny_patch16_224")
        >>> print(diagnosis.text())
    """
    spec_of(model)
    began, before = time.monotonic(), paddle.get_device()
    site = Site(device, Path(run_directory).expanduser(), model, batch_size)
    existed = site.run_directory.is_dir()
    try:
        try:
            rows = {row.name: dataclasses.asdict(row) for row in _rows(site, progress)}
        finally:
            if site.trainer is not None:  # end what reads pictures
                site.trainer.feed.loader.close()
                site.trainer = site.batches = None
            if not site.stuck:
                paddle.set_device(before)
        return _agreed(site, rows, time.monotonic() - began)
    finally:  # the others have given their results, and read no pictures any more
        try:
            _remove(site, existed)
        except OSError as error:
            log.warning("%s: what was written there for a while cannot be removed: %s", site.run_directory, error)


def _rows(site: Site, progress: Callable[[str], None]) -> Iterator[Row]:
    """Every check on this process."""
    worker, why_not = _Worker(), ""
    for check in CHECKS.values():
        began, done = time.monotonic(), True
        try:
            if not check.alone and not why_not and site.meetings is not None:
                why_not = site.meetings.meet(check.name, communication.WAIT_SECONDS) or ""
            if site.ended or (why_not and not check.alone):
                finding = skip(f"not tried: {why_not}")
            elif check.several and site.size == 1:
                finding = skip("there is one process")
            else:
                progress(check.name)
                call = worker.call(functools.partial(check.run, site), check.seconds)
                done = call.done()
                finding = _finding(call) if done else _hung(check)
        except environment.Terminated:
            if not environment.launched():
                raise
            finding, done = _ended(site), False
        yield Row(**vars(finding), name=check.name, seconds=round(time.monotonic() - began, 2))
        if not done:
            worker, site.stuck = _Worker(), True
        if finding.verdict == "fail" and (check.name in _NEEDED or (not done and not check.alone)):
            why_not = f"{check.name} failed"
            if site.meetings is not None and not site.ended:
                site.meetings.give_up()
    worker.end()


def _ended(site: Site) -> Finding:
    """Of the check during which the launcher asked this process to end, as it does when another one has crashed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it asks several times
    site.ended = True
    remedy = "look at the log of the process that ended: what it printed last is the cause"
    return Finding("fail", "another process has ended, and the launcher ends all", "all processes go on", remedy)


def _hung(check: Check) -> Finding:
    remedy = "py-spy dump of the process says on what it waits"
    if not check.alone:
        remedy = f"a process, the network or the device does not answer: look at the logs of all processes; {remedy}"
    return Finding("fail", f"hangs: not done after {check.seconds:.0f} s", "an end", remedy)


def _finding(call: Future) -> Finding:
    error = call.exception()
    if error is None:
        return call.result()
    trace = "".join(traceback.format_exception(error))
    return Finding("fail", reason(error), "no error", "the whole error is in --json", data={"traceback": trace})


def _remove(site: Site, existed: bool) -> None:
    """Take away what was written."""
    if environment.rank() == 0:
        if site.scratch is not None:
            shutil.rmtree(site.scratch)
        if not existed and site.run_directory.is_dir() and not any(site.run_directory.iterdir()):
            site.run_directory.rmdir()


def _agreed(site: Site, rows: Mapping[str, Any], seconds: float) -> Diagnosis:
    """The diagnosis of all processes, which the first one makes, on each."""
    meetings, world = site.meetings, site.world
    if meetings is None or world is None or site.ended:
        return _merged(site, {environment.rank(): rows}, seconds)
    meetings.send("rows", rows)
    if world.is_first:
        diagnosis = _merged(site, meetings.receive("rows", range(world.size), communication.WAIT_SECONDS), seconds)
        meetings.send("diagnosis", diagnosis.to_dict())
    else:
        answer = meetings.receive("diagnosis", range(1), 2 * communication.WAIT_SECONDS)
        diagnosis = Diagnosis.of_dict(answer[0]) if answer else _merged(site, {world.rank: rows}, seconds)
    world.leave()
    return diagnosis


def _merged(site: Site, everyone: Mapping[int, Mapping[str, Any]], seconds: float) -> Diagnosis:
    """The diagnosis by what processes have found: rank → name → Row, as a dict."""
    rows = []
    for check in CHECKS.values():
        by_rank = {rank: Row(**of_rank[check.name]) for rank, of_rank in everyone.items()}
        finding = (worst if heaviest(row.verdict for row in by_rank.values()) == "fail" else check.compare)(by_rank)
        figures = {str(rank): row.figure for rank, row in by_rank.items() if row.figure is not None}
        own = {"name": check.name, "seconds": by_rank[min(by_rank)].seconds, "figures": figures}
        rows.append(Row(**{**vars(finding), **own}))
    missing = sorted(set(range(site.size)) - set(everyone))
    if missing:
        text = f"no answer of {', '.join(map(str, missing))} of {site.size}"
        rows.append(Row("fail", text, "all processes answer", "look at their logs", name="answers"))
    return Diagnosis(site.device, site.size, round(seconds, 1), tuple(rows), site.stuck, site.ended)
