"""What a check is: one measurement, with what is expected and what to do where it is not so."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from plsc.doctor.meetings import Meetings
    from plsc.engine.distributed import World
    from plsc.engine.trainer import Trainer

Half = Literal["float16", "bfloat16"]
Verdict = Literal["pass", "warn", "fail", "skip"]
_BY_WEIGHT: tuple[Verdict, ...] = ("fail", "warn", "pass", "skip")

_STRAGGLER = 0.7  # of the median of all processes


@dataclass(frozen=True)
class Finding:
    """What one check makes of one process.

    Attributes:
        verdict: pass, warn, fail or skip. measured, expected, remedy: for the reader; measured has a skip's reason.
        figure: a rate, more is better, so that slow processes can be named; None without one.
        data: what JSON can hold, for `compare` and for programs.
    """

    verdict: Verdict
    measured: str
    expected: str = ""
    remedy: str = ""
    figure: float | None = None
    data: Any = None


@dataclass
class Site:
    """Where checks are done, and what earlier ones have measured for later ones.

    Attributes:
        device: Paddle's name of it; as it was asked for until the check "device" has passed.
        run_directory: where a run would write. model, batch_size: of the training step; batch_size None: by speed.
        world: the processes; None until they have joined. meetings: what they exchange outside collectives.
        memory: bytes that a process has on the device; None if unknown.
        half: the first half-precision type whose kernels are right; None without one.
        tflops: measured rate of matrix products. bytes_per_second: measured rate of all_reduce.
        shared: whether all processes see the run directory.
        trainer, batches: of the training step. images_per_second: of this process, its input
            aside. waiting: share of the steps that it waited for pictures.
        scratch: a folder in the run directory for the time of the checks.
        stuck: whether a thread still waits for a check that hangs. ended: whether another process has ended.
    """

    device: str
    run_directory: Path
    model: str
    batch_size: int | None = None
    world: "World | None" = None
    meetings: "Meetings | None" = None
    memory: int | None = None
    half: Half | None = None
    tflops: float | None = None
    bytes_per_second: float | None = None
    shared: bool = False
    trainer: "Trainer | None" = None
    images_per_second: float | None = None
    waiting: float = 0.0
    batches: "Iterator[dict[str, np.ndarray]] | None" = None
    scratch: Path | None = None
    stuck: bool = False
    ended: bool = False

    def anywhere(self, what: str, here: bool) -> bool:
        """Whether something is so on any process, as all of them answer together."""
        return here if self.meetings is None else self.meetings.any(what, here, 30.0)

    @property
    def size(self) -> int:
        return 1 if self.world is None else self.world.size

    @property
    def rank(self) -> int:
        return 0 if self.world is None else self.world.rank


Run = Callable[[Site], Finding]
Compare = Callable[[Mapping[int, Finding]], Finding]


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        run: makes the finding of this process.
        compare: the findings of all, by rank, where none failed → that of the row.
        seconds: after which it counts as hung. alone: it needs neither the device nor other processes.
        several: it is skipped where there is one process.
    """

    name: str
    run: Run
    compare: Compare
    seconds: float
    alone: bool
    several: bool


CHECKS: dict[str, Check] = {}  # in the order of the table


def heaviest(verdicts: Iterable[Verdict]) -> Verdict:
    """fail before warn before pass before skip."""
    return min(verdicts, key=_BY_WEIGHT.index)


def worst(findings: Mapping[int, Finding]) -> Finding:
    """The heaviest verdict, of the slowest process where there are figures; a process much slower is warned of."""
    verdict = heaviest(f.verdict for f in findings.values())
    ranks = [rank for rank, f in findings.items() if f.verdict == verdict]
    figures = {rank: figure for rank in ranks if (figure := findings[rank].figure) is not None}
    chosen = min(figures, key=figures.__getitem__, default=ranks[0])
    finding = findings[chosen]
    if len(figures) > 1:
        if verdict == "pass" and figures[chosen] < _STRAGGLER * statistics.median(figures.values()):
            remedy = f"process {chosen} is much slower than the others: look at its temperature and other programs"
            expected = f"at least {100 * _STRAGGLER:.0f} % of the median of all processes"
            finding = dataclasses.replace(finding, verdict="warn", expected=expected, remedy=remedy)
        return dataclasses.replace(finding, measured=f"{finding.measured} (process {chosen}, the slowest)")
    if len(ranks) < sum(f.verdict != "skip" for f in findings.values()):
        which = f"process {chosen}" if len(ranks) == 1 else f"process {chosen} and {len(ranks) - 1} more"
        return dataclasses.replace(finding, measured=f"{finding.measured} ({which})")
    return finding


def check(
    name: str, *, seconds: float, alone: bool = False, several: bool = False, compare: Compare = worst
) -> Callable[[Run], Check]:
    """Decorator that adds a check to `plsc doctor`, to which all processes come together.

    Its arguments are a Check's; docs/doctor.md has an example. After one that hung, what needs the device is not tried.
    """

    def add(run: Run) -> Check:
        CHECKS[name] = Check(name, run, compare, seconds, alone, several)
        return CHECKS[name]

    return add


def skip(reason: str) -> Finding:
    return Finding("skip", reason)


def judge(measured: str, expected: str, remedy: str, *, warn: bool = False, fail: bool = False, **more: Any) -> Finding:
    """A finding that fails, or else warns, where it should, and passes without the remedy; `more` are a Finding's."""
    verdict: Verdict = "fail" if fail else "warn" if warn else "pass"
    return Finding(verdict, measured, expected, "" if verdict == "pass" else remedy, **more)


def seconds_of(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def reason(error: BaseException) -> str:
    """The line of an error's text, often Paddle's stack, that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "(at " not in line]
    telling = [line for line in lines if "Error:" in line or "not registered" in line]
    return f"{type(error).__name__}: {(telling or lines or ['without a text'])[0]}"[:300]
