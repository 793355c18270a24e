"""The runs of a search, as processes: started where there is a place, rung by rung, each outcome in the journal."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import plsc
from plsc import environment, files
from plsc.runs import records
from plsc.sweeps.journal import SETTINGS, Journal, Run
from plsc.sweeps.slots import Slot

OUTPUT = "output.txt"  # of a run's process

_PROGRAM = "plsc.sweeps.child"  # by name: a module that is imported already is not run again
_POLL_SECONDS = 0.2
_STOP_SECONDS = 120.0  # for updates in progress and checkpoints, before what is still at work is killed


@dataclass(frozen=True)
class Rungs:
    """Successive halving (Jamieson and Talwalkar, 2016): after each share of the updates fewer candidates go on.

    Attributes:
        fractions: of a run's updates, rising to 1. keep: candidates that are trained so far.
    """

    fractions: tuple[float, ...]
    keep: tuple[int, ...]

    @classmethod
    def of(cls, candidates: int, factor: int | None) -> "Rungs":
        """One rung without a factor; else as many as leave one candidate or more for the last."""
        if factor is None:
            return cls((1.0,), (candidates,))
        cuts = 0
        while factor ** (cuts + 1) <= candidates:
            cuts += 1
        return cls(
            tuple(float(factor) ** (rung - cuts) for rung in range(cuts + 1)),
            tuple(math.ceil(candidates / factor**rung) for rung in range(cuts + 1)),
        )


@dataclass
class Scheduler:
    """Works a search off.

    Args:
        settings: what SETTINGS holds for a run.
        changed: called after each change of a run.
    """

    journal: Journal
    slots: Sequence[Slot]
    rungs: Rungs
    settings: Callable[[Run, Slot], Mapping[str, Any]]
    changed: Callable[[Run], None]
    _at_work: dict[Slot, tuple[Run, subprocess.Popen, TextIO, int]] = field(default_factory=dict)

    def work(self) -> None:
        """All that is left to do. However it ends, no process of it goes on."""
        for run in self.journal.runs:  # what was at work when the search was killed, and what failed, is tried again
            if run.state in ("running", "failed"):
                run.state, run.error = "waiting" if run.rung < 0 else "paused", None
        self.journal.save()
        try:
            for rung in range(len(self.rungs.fractions)):
                self._climb(rung)
                if rung + 1 < len(self.rungs.fractions):
                    self._drop(rung)
        finally:
            self._stop()

    def score(self, run: Run) -> float | None:
        """The figure of a run's last evaluation by which runs are compared."""
        name = self.metric
        return None if name is None else run.figures.get(name)

    @property
    def metric(self) -> str | None:
        """The first figure of the first metric of evaluation, as the runs have it."""
        names = (records.best_metric(self.journal.run_directory(run)) for run in self.journal.runs if run.figures)
        return next(filter(None, names), None)

    # -- one rung -------------------------------------------------------------------------

    def _climb(self, rung: int) -> None:
        """Train everything that is still in the search as far as a rung goes."""
        waiting = [run for run in self.journal.runs if run.state in ("waiting", "paused") and run.rung < rung]
        while waiting or self._at_work:
            for slot in self.slots:
                if waiting and slot not in self._at_work:
                    self._start(waiting.pop(0), slot, rung)
            time.sleep(_POLL_SECONDS)
            for slot, (run, process, output, start) in list(self._at_work.items()):
                code = process.poll()
                if code is not None:
                    del self._at_work[slot]
                    output.close()
                    self._ended(run, code, rung, start)

    def _start(self, run: Run, slot: Slot, rung: int) -> None:
        folder = self.journal.run_directory(run)
        files.write_json(folder / SETTINGS, self.settings(run, slot))
        run.state = "running"
        self.journal.save()
        self.changed(run)
        output = open(folder / OUTPUT, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the process
        start = (folder / OUTPUT).stat().st_size  # what earlier attempts printed
        root = str(Path(plsc.__file__).parent.parent)
        variables = slot.environment()
        variables["PYTHONPATH"] = ":".join(filter(None, [root, variables.get("PYTHONPATH")]))

        parent = os.getpid()

        def enter() -> None:
            environment.die_with_parent(parent, signal.SIGTERM)  # with a checkpoint
            # Ctrl-C is the search's, which stops its runs itself. A group, not a session: Linux weighs sessions against
            # each other (autogroups), so that `nice plsc sweep` would not make the runs any nicer
            os.setpgid(0, 0)
            slot.enter()

        process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(folder), repr(self.rungs.fractions[rung])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            preexec_fn=enter,
        )
        self._at_work[slot] = (run, process, output, start)

    def _ended(self, run: Run, code: int, rung: int, start: int) -> None:
        folder = self.journal.run_directory(run)
        if code == 0:
            last = rung + 1 == len(self.rungs.fractions)
            run.state, run.rung, run.error = ("done" if last else "paused"), rung, None
            evaluated = records.last_evaluation(records.read_metrics(folder))
            run.step = evaluated[-1]["step"] if evaluated else None
            run.figures = _best_figures(evaluated)
        else:
            run.state, run.error = "failed", _reason(folder / OUTPUT, code, start)
        self.journal.save()
        self.changed(run)

    def _drop(self, rung: int) -> None:
        """Leave out the candidates that do not go on after a rung, all in one change of the journal.

        A search that is continued has chosen already. A candidate of it that had failed, and arrives only now, goes on
        where it is as good as the best of those that were left out here.
        """
        runs = self.journal.runs
        gone_on = {run.candidate for run in runs if run.rung > rung}
        here = {run.candidate for run in runs if run.state in ("paused", "failed")} - gone_on
        means = {number: self._mean(number) for number in here}
        ranked = sorted((n for n in means if means[n] is not None), key=lambda n: (-(means[n] or 0.0), n))
        left_out = {run.candidate for run in runs if run.rung == rung and run.state == "dropped"} - here
        if gone_on or left_out:
            bar = max((mean for mean in map(self._mean, left_out) if mean is not None), default=-math.inf)
            kept = [n for n in ranked if (means[n] or 0.0) >= bar]
        else:
            kept = ranked[: self.rungs.keep[rung + 1]]
        for run in runs:  # left out while another seed of theirs had failed
            if run.candidate in kept and run.state == "dropped":
                run.state = "paused"
        dropped = [run for run in runs if run.candidate in here.difference(kept) and run.state == "paused"]
        for run in dropped:
            run.state = "dropped"
        self.journal.save()
        for run in dropped:
            self.changed(run)

    def _mean(self, candidate: int) -> float | None:
        """A candidate's mean score over seeds; None where a run failed or has no score."""
        runs = [run for run in self.journal.runs if run.candidate == candidate]
        scores = [score for score in map(self.score, runs) if score is not None]
        complete = len(scores) == len(runs) and all(run.state != "failed" for run in runs)
        return sum(scores) / len(scores) if complete else None

    def _stop(self) -> None:
        """End what is at work, with a checkpoint; what does not end in time is killed."""
        for _, process, *_ in self._at_work.values():
            process.terminate()
        until = time.monotonic() + _STOP_SECONDS
        for _, process, output, _ in self._at_work.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            output.close()
        self._at_work.clear()


def _best_figures(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of an evaluation, of raw or averaged weights, whichever are better in the first figure."""
    if not evaluated:
        return {}
    left_out = ("kind", "step", "epoch", "weights", "samples")
    figures = [{k: v for k, v in record.items() if k not in left_out} for record in evaluated]
    name = next((name for name in figures[0] if name != "loss"), "loss")
    return max(figures, key=lambda f: f.get(name, float("-inf")))


def _reason(output: Path, code: int, start: int = 0) -> str:
    """Why a process failed, from what it printed: the file from a byte on."""
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    with open(output, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    # after a traceback's last line Paddle prints hints and operators
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)(: |$)", line)]
    last = (errors or raised or lines or [f"exit code {code}"])[-1]
    return last.removeprefix("error: ")
