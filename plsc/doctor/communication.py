"""What the processes have between them: joining, clocks, collectives, the run directory."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import paddle
import paddle.distributed as dist

from plsc import environment
from plsc.doctor.checks import Finding, Half, Run, Site, check, judge, worst
from plsc.doctor.meetings import Meetings
from plsc.engine.distributed import World
from plsc.engine.run_directory import check_shared
from plsc.errors import ConfigError

WAIT_SECONDS = 120.0  # for each other
_LATE, _TOO_LATE = 1.0, 30.0  # seconds between clocks
_REMEDY = "try NCCL_DEBUG=INFO, another NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, NCCL_P2P_DISABLE=1, NCCL_IB_DISABLE=1"

Type = Literal["float32", "int64"] | Half
Attempt = Callable[[Site, Type], tuple[paddle.Tensor, np.ndarray]]

_runs = itertools.count(1)


@check("processes", seconds=WAIT_SECONDS)
def processes(site: Site) -> Finding:
    """Join them; the later checks need it."""
    site.world = World.start(site.device, WAIT_SECONDS)
    if site.size == 1:
        return Finding("pass", "1, without the launcher" if not environment.launched() else "1")
    site.meetings = Meetings(site.rank, site.size, str(next(_runs)))
    return Finding("pass", f"{site.size}, {environment.local_size()} on a machine", "all that the launcher started")


def _skew(findings: Mapping[int, Finding]) -> Finding:
    """How far the clocks are from the first process's."""
    times = {rank: finding.data for rank, finding in findings.items()}
    if None in times.values():
        return worst(findings)
    first = times[min(times)]
    skews = {rank: statistics.median(a - b for a, b in zip(mine, first, strict=True)) for rank, mine in times.items()}
    rank = max(skews, key=lambda rank: abs(skews[rank]))
    largest = abs(skews[rank])
    shown = f"at most {largest:.1f} s apart"
    if largest > _LATE:
        shown = f"process {rank} is {largest:.1f} s {'ahead of' if skews[rank] > 0 else 'after'} process 0"
    remedy = "run chrony or ntpd on every node: records of failures and files' times are compared between nodes"
    return judge(shown, f"at most {_LATE:g} s", remedy, warn=largest > _LATE, fail=largest > _TOO_LATE)


@check("clocks", seconds=30, several=True, compare=_skew)
def clocks(site: Site) -> Finding:
    """The time of each process when all have reached one place."""
    assert site.meetings is not None
    times = []
    for k in range(3):
        late = site.meetings.meet(f"clock {k}", 5.0)
        if late:
            return Finding("fail", late)
        times.append(time.time())
    return Finding("pass", "", data=times)


# -- collectives ------------------------------------------------------------------------------------


@check("barrier", seconds=25, several=True)
def barrier(site: Site) -> Finding:
    """The last process comes late: nobody may leave before it has come."""
    dist.barrier()
    began, late = time.monotonic(), 0.3
    if site.rank == site.size - 1:
        time.sleep(late)
    dist.barrier()
    waited, expected = time.monotonic() - began, "all wait for the last"
    if waited < late / 2:
        return Finding("fail", f"left after {waited:.2f} s, before all had come", expected, _REMEDY)
    return Finding("pass", "waits for the last process", expected)


def _numbers(rank: int, dtype: Type) -> np.ndarray:
    """1,000 numbers of one process, whose sums over 2,000 processes are exact; in half precision few add to them."""
    index = np.arange(1000)
    return index // (rank + 1) % 2 * (rank < 128) if "float16" in dtype else (index % 7 + 1) * (rank + 1)


def _of_all(site: Site, dtype: Type) -> np.ndarray:
    return np.stack([_numbers(rank, dtype) for rank in range(site.size)])


def _own(site: Site, dtype: Type) -> paddle.Tensor:
    return paddle.to_tensor(_numbers(site.rank, dtype).astype("int64")).astype(dtype)


def _equal(attempts: Mapping[str, Attempt]) -> Run:
    """The function of a check: what is attempted → the type → (made, right), which must be equal."""

    def run(site: Site) -> Finding:
        types: list[Type] = ["float32", "int64", *([site.half] if site.half else [])]
        wrong = []
        for what, attempt in attempts.items():
            for dtype in types:
                tensor, right = attempt(site, dtype)
                made = tensor.astype("float64").numpy()
                if not np.array_equal(made, right):
                    i = int(np.flatnonzero(made.ravel() != right.ravel())[0])
                    wrong.append(f"{what} of {dtype} gives {made.ravel()[i]:g} for {right.ravel()[i]:g}")
        if wrong:
            return Finding("fail", "; ".join(wrong), "exact values", f"nothing trained here is right; {_REMEDY}")
        return Finding("pass", f"right in {', '.join(types)}", "exact values")

    return run


def _broadcast(site: Site, dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
    tensor = _own(site, dtype)
    dist.broadcast(tensor, src=site.size - 1)
    return tensor, _numbers(site.size - 1, dtype)


def _all_reduced(operation: str, right: Callable[..., np.ndarray]) -> Attempt:
    def attempt(site: Site, dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
        tensor = _own(site, dtype)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation))
        return tensor, right(_of_all(site, dtype), axis=0)

    return attempt


def _reduced(site: Site, dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
    tensor, last = _own(site, dtype), site.size - 1
    dist.reduce(tensor, dst=last)
    if site.rank != last:  # what it has now is left open
        return _own(site, dtype), _numbers(site.rank, dtype)
    return tensor, _of_all(site, dtype).sum(axis=0)


def _gathered(site: Site, dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
    gathered: list[paddle.Tensor] = []
    dist.all_gather(gathered, _own(site, dtype))
    return paddle.stack(gathered), _of_all(site, dtype)


_COLLECTIVES: dict[str, dict[str, Attempt]] = {
    "broadcast": {"the last process's tensor": _broadcast},
    "all_reduce": {"the sum": _all_reduced("SUM", np.sum), "the largest": _all_reduced("MAX", np.max)},
    "reduce": {"the last process's sum": _reduced},
    "all_gather": {"the list": _gathered},
}
for _name, _attempts in _COLLECTIVES.items():
    check(_name, seconds=25, several=True)(_equal(_attempts))


@check("run directory", seconds=60)
def shared_directory(site: Site) -> Finding:
    """Whether all processes see what the first one writes there."""
    assert site.world is not None
    site.run_directory.mkdir(parents=True, exist_ok=True)
    problem = ""
    try:
        check_shared(site.run_directory, site.world)
    except ConfigError as error:
        problem = str(error).splitlines()[0]
    site.shared = not site.anywhere("not shared", bool(problem))
    shown = problem or f"{site.run_directory.resolve()} can be written"
    remedy = "give a folder on a file system of all nodes, by the same path, as Global.output_dir must be"
    return judge(shown, "all processes see the same files", remedy, fail=bool(problem))
