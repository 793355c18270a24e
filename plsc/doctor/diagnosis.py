"""plsc.diagnose: every check in turn, each within its time, on all processes; one table of them."""

import concurrent.futures
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paddle

import plsc
from plsc import environment
from plsc.doctor import communication, hardware, software, training
from plsc.doctor.checks import BY_WEIGHT, CHECKS, Check, Finding, Site, Verdict, reason, skip, worst
from plsc.models import spec_of
from plsc.runs.tables import text_table

log = logging.getLogger("plsc")

# what comes later uses what came before; checks of others follow
_ORDER = (
    software.versions,
    hardware.device,
    hardware.shared_memory,
    training.disk,
    hardware.float32,
    hardware.float16,
    hardware.bfloat16,
    hardware.flash_attention,
    communication.processes,
    communication.clocks,
    communication.barrier,
    communication.broadcast,
    communication.all_reduce,
    communication.all_gather,
    training.shared_directory,
    hardware.matrix_rate,
    communication.all_reduce_rate,
    communication.pairs,
    training.training_step,
    training.input_rate,
    training.gradient_reduction,
)
_NEEDED = (hardware.device.name, communication.processes.name)


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
        return next(v for v in BY_WEIGHT if any(row.verdict == v for row in self.rows))

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
        counts = ", ".join(
            f"{sum(row.verdict == v for row in self.rows)} {v}" for v in ("pass", "warn", "fail", "skip")
        )
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
        self._calls: queue.SimpleQueue[tuple[concurrent.futures.Future, Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="plsc-doctor", daemon=True).start()

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    def call(self, function: Callable[[], Any], seconds: float) -> concurrent.futures.Future | None:
        """The done call, or None where it is not within `seconds`."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._calls.put((future, function))
        done, _ = concurrent.futures.wait([future], timeout=seconds)
        return future if done else None


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
    began = time.monotonic()
    site = Site(device, Path(run_directory).expanduser(), model, batch_size)
    existed = site.run_directory.is_dir()
    before = paddle.get_device()
    results: dict[str, dict[str, Any]] = {}
    try:
        try:
            for name, finding, seconds in _results(site, progress):
                results[name] = {**dataclasses.asdict(finding), "seconds": round(seconds, 2)}
        finally:
            _stop(site)
            if not site.stuck:
                paddle.set_device(before)
        return _agreed(site, results, time.monotonic() - began)
    finally:  # the others have given their results, and read no pictures any more
        try:
            _remove(site, existed)
        except OSError as error:
            log.warning("%s: what was written there for a while cannot be removed: %s", site.run_directory, error)


def _checks() -> tuple[Check, ...]:
    names = dict.fromkeys([*(check.name for check in _ORDER), *CHECKS])
    return tuple(CHECKS[name] for name in names)


def _results(site: Site, progress: Callable[[str], None]) -> Iterator[tuple[str, Finding, float]]:
    """(name, finding, seconds) of every check on this process."""
    worker, why_not = _Worker(), ""
    for check in _checks():
        began, done = time.monotonic(), None
        try:
            if not check.alone and not why_not and site.meetings is not None:
                why_not = site.meetings.meet(check.name, communication.WAIT_SECONDS) or ""
            if site.ended or (why_not and not check.alone):
                yield check.name, skip(f"not tried: {why_not}"), 0.0
                continue
            progress(check.name)
            done = worker.call(functools.partial(check.run, site), check.seconds)
            finding = _hung(check) if done is None else _finding(done)
        except environment.Terminated:
            if not environment.launched():
                raise
            finding = _ended(site)
        yield check.name, finding, time.monotonic() - began
        if done is None:
            worker, site.stuck = _Worker(), True
        if finding.verdict == "fail" and (check.name in _NEEDED or (done is None and not check.alone)):
            why_not = f"{check.name} failed"
            if site.meetings is not None and not site.ended:
                site.meetings.give_up()


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


def _finding(done: concurrent.futures.Future) -> Finding:
    error = done.exception()
    if error is None:
        return done.result()
    trace = "".join(traceback.format_exception(error))
    return Finding("fail", reason(error), "no error", "the whole error is in --json", data={"traceback": trace})


def _stop(site: Site) -> None:
    """End what reads pictures."""
    if site.trainer is not None:
        site.trainer.feed.loader.close()
        site.trainer = site.batches = None


def _remove(site: Site, existed: bool) -> None:
    """Take away what was written."""
    if environment.rank() == 0:
        if site.scratch is not None:
            shutil.rmtree(site.scratch)
        if not existed and site.run_directory.is_dir() and not any(site.run_directory.iterdir()):
            site.run_directory.rmdir()


def _agreed(site: Site, results: dict[str, dict[str, Any]], seconds: float) -> Diagnosis:
    """The diagnosis of all processes, which the first one makes, on each."""
    meetings, world = site.meetings, site.world
    if meetings is None or world is None or site.ended:
        return _merged(site, {environment.rank(): results}, seconds)
    meetings.send("results", results)
    if world.is_first:
        everyone = meetings.receive("results", range(world.size), communication.WAIT_SECONDS)
        diagnosis = _merged(site, everyone, seconds)
        meetings.send("diagnosis", diagnosis.to_dict())
    else:
        answer = meetings.receive("diagnosis", range(1), 2 * communication.WAIT_SECONDS)
        diagnosis = Diagnosis.of_dict(answer[0]) if answer else _merged(site, {world.rank: results}, seconds)
    world.leave()
    return diagnosis


def _merged(site: Site, everyone: Mapping[int, Mapping[str, Any]], seconds: float) -> Diagnosis:
    rows = []
    for check in _checks():
        results = {rank: dict(of_rank[check.name]) for rank, of_rank in everyone.items()}
        taken = {rank: result.pop("seconds") for rank, result in results.items()}
        findings = {rank: Finding(**result) for rank, result in results.items()}
        failed = any(finding.verdict == "fail" for finding in findings.values())
        finding = worst(findings) if failed else check.compare(findings)
        figures = {str(rank): f.figure for rank, f in findings.items() if f.figure is not None}
        rows.append(Row(**vars(finding), name=check.name, seconds=taken[min(taken)], figures=figures))
    missing = sorted(set(range(site.size)) - set(everyone))
    if missing:
        text = f"no answer of {', '.join(map(str, missing))} of {site.size}"
        rows.append(Row("fail", text, "all processes answer", "look at their logs", name="answers"))
    return Diagnosis(site.device, site.size, round(seconds, 1), tuple(rows), site.stuck, site.ended)
