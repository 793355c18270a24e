"""What the processes have between them: joining, collectives, bandwidth, clocks."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import paddle
import paddle.distributed as dist

from plsc import environment
from plsc.doctor.checks import Finding, Site, check, skip, worst
from plsc.doctor.meetings import Meetings
from plsc.engine.distributed import World

WAIT_SECONDS = 120.0  # for each other
_MOST_ROUNDS = 16  # of pairs that are measured at the same time
_UNEVEN = 0.5  # of the median of like pairs
_LATE, _TOO_LATE = 1.0, 30.0  # seconds between clocks
_ONE = "there is one process"
_REMEDY = "try NCCL_DEBUG=INFO, another NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, NCCL_P2P_DISABLE=1, NCCL_IB_DISABLE=1"

Type = Literal["float32", "int64", "float16", "bfloat16"]
Attempt = Callable[[Type], tuple[paddle.Tensor, np.ndarray]]

_runs = iter(range(1, 1_000_000))


@check("processes", seconds=WAIT_SECONDS)
def processes(site: Site) -> Finding:
    """Join them; the later checks need it."""
    site.world = World.start(site.device, WAIT_SECONDS)
    if site.size == 1:
        return Finding("pass", "1, without the launcher" if not environment.launched() else "1")
    site.meetings = Meetings(site.rank, site.size, str(next(_runs)))
    return Finding("pass", f"{site.size}, {environment.local_size()} on a machine", "all that the launcher started")


@check("clocks", seconds=30, compare=lambda findings: _skew(findings))
def clocks(site: Site) -> Finding:
    """The time of each process when all have reached one place."""
    if site.meetings is None:
        return skip(_ONE)
    times = []
    for k in range(3):
        late = site.meetings.meet(f"clock {k}", 5.0)
        if late:
            return Finding("fail", late)
        times.append(time.time())
    return Finding("pass", "", data=times)


def _skew(findings: Mapping[int, Finding]) -> Finding:
    first = findings[min(findings)]
    if first.data is None:
        return worst(findings)
    skews = {
        rank: statistics.median(a - b for a, b in zip(finding.data, first.data, strict=True))
        for rank, finding in findings.items()
    }
    rank = max(skews, key=lambda rank: abs(skews[rank]))
    largest = abs(skews[rank])
    shown = f"at most {largest:.1f} s apart"
    if largest <= _LATE:
        return Finding("pass", shown, f"at most {_LATE:g} s")
    remedy = "run chrony or ntpd on every node: records of failures and files' times are compared between nodes"
    shown = f"process {rank} is {largest:.1f} s {'ahead of' if skews[rank] > 0 else 'after'} process 0"
    return Finding("fail" if largest > _TOO_LATE else "warn", shown, f"at most {_LATE:g} s", remedy)


# -- collectives ------------------------------------------------------------------------------------


def _types(site: Site) -> list[Type]:
    half: list[Type] = [site.half] if site.half else []
    return ["float32", "int64", *half]


def _numbers(rank: int, dtype: Type) -> np.ndarray:
    """1,000 numbers of one process, whose sums over 2,000 processes are exact; in half precision few add to them."""
    index = np.arange(1000)
    return index // (rank + 1) % 2 * (rank < 128) if "float16" in dtype else (index % 7 + 1) * (rank + 1)


def _tensor(numbers: np.ndarray, dtype: Type) -> paddle.Tensor:
    return paddle.to_tensor(numbers.astype("int64")).astype(dtype)


def _compared(name: str, site: Site, attempts: Mapping[str, Attempt]) -> Finding:
    """The finding of what should be equal: what is attempted → the type → (made, right)."""
    if site.size == 1:
        return skip(_ONE)
    wrong = []
    for what, attempt in attempts.items():
        for dtype in _types(site):
            tensor, right = attempt(dtype)
            made = tensor.astype("float64").numpy()
            if not np.array_equal(made, right):
                i = int(np.flatnonzero(made.ravel() != np.ravel(right))[0])
                wrong.append(f"{what} of {dtype} gives {made.ravel()[i]:g} for {np.ravel(right)[i]:g}")
    if wrong:
        return Finding("fail", "; ".join(wrong), f"{name} is exact", f"nothing trained here is right; {_REMEDY}")
    return Finding("pass", f"right in {', '.join(_types(site))}", "exact values")


@check("all_reduce", seconds=25)
def all_reduce(site: Site) -> Finding:
    def reduced(operation: Any, right: Callable[..., np.ndarray]) -> Attempt:
        def attempt(dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
            tensor = _tensor(_numbers(site.rank, dtype), dtype)
            dist.all_reduce(tensor, op=operation)
            return tensor, right([_numbers(rank, dtype) for rank in range(site.size)], axis=0)

        return attempt

    return _compared(
        "all_reduce",
        site,
        {"the sum": reduced(dist.ReduceOp.SUM, np.sum), "the largest": reduced(dist.ReduceOp.MAX, np.max)},
    )


@check("broadcast", seconds=25)
def broadcast(site: Site) -> Finding:
    def attempt(dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
        source = site.size - 1
        tensor = _tensor(_numbers(site.rank, dtype), dtype)
        dist.broadcast(tensor, src=source)
        return tensor, _numbers(source, dtype)

    return _compared("broadcast", site, {"the last process's tensor": attempt})


@check("all_gather", seconds=25)
def all_gather(site: Site) -> Finding:
    def attempt(dtype: Type) -> tuple[paddle.Tensor, np.ndarray]:
        gathered: list[paddle.Tensor] = []
        dist.all_gather(gathered, _tensor(_numbers(site.rank, dtype), dtype))
        return paddle.stack(gathered), np.stack([_numbers(rank, dtype) for rank in range(site.size)])

    return _compared("all_gather", site, {"the list": attempt})


@check("barrier", seconds=25)
def barrier(site: Site) -> Finding:
    """The last process comes late: nobody may leave before it has come."""
    if site.meetings is None:
        return skip(_ONE)
    dist.barrier()
    began, late = time.monotonic(), 0.3
    if site.rank == site.size - 1:
        time.sleep(late)
    dist.barrier()
    waited = time.monotonic() - began
    if waited < late / 2:
        return Finding("fail", f"left after {waited:.2f} s, before all had come", "all wait for the last", _REMEDY)
    return Finding("pass", "waits for the last process", "all wait for the last")


# -- bandwidth ----------------------------------------------------------------------------------------


def _megabytes(site: Site) -> int:
    return 16 if site.device == "cpu" else 64


@check("all_reduce rate", seconds=25)
def all_reduce_rate(site: Site) -> Finding:
    if site.size == 1:
        return skip(_ONE)
    megabytes = _megabytes(site)
    tensor = paddle.ones([megabytes * 250_000])
    times = []
    for _ in range(4):
        began = time.perf_counter()
        dist.all_reduce(tensor)
        tensor[0].item()
        times.append(time.perf_counter() - began)
    site.bytes_per_second = megabytes * 1e6 / statistics.median(times[1:])
    on_wire = 2 * (site.size - 1) / site.size * site.bytes_per_second
    shown = f"{site.bytes_per_second / 1e9:.3g} GB/s of {megabytes} MB, {on_wire / 1e9:.3g} GB/s on each link"
    return Finding("pass", shown, "see gradient reduction", data=site.bytes_per_second)


@check("pairs", seconds=60, compare=lambda findings: _evenness(findings))
def pairs(site: Site) -> Finding:
    """Send and receive between each two processes, disjoint pairs at the same time; distances of 2^k where many."""
    if site.size == 1:
        return skip(_ONE)
    span = 1 << (site.size - 1).bit_length()
    distances = range(1, span) if span <= _MOST_ROUNDS else [1 << k for k in range(span.bit_length() - 1)]
    megabytes = _megabytes(site) // 4
    tensor, rates = paddle.ones([megabytes * 250_000]), {}
    for distance in distances:  # of the ranks' bits: every process has one partner at most
        partner = site.rank ^ distance
        if partner >= site.size:
            continue
        times = []
        for _ in range(3):
            began = time.perf_counter()
            try:
                for sender in sorted((site.rank, partner)):
                    if sender == site.rank:
                        dist.send(tensor, dst=partner)
                    else:
                        dist.recv(tensor, src=partner)
            except NotImplementedError:
                return skip(f"{site.device} cannot send to one process")
            tensor[0].item()
            times.append(time.perf_counter() - began)
        rates[str(partner)] = 2 * megabytes / 1e3 / min(times)
    return Finding("pass", "", data={"rates": rates, "machine": site.rank // environment.local_size()})


def _evenness(findings: Mapping[int, Finding]) -> Finding:
    """Every pair's rate in GB/s, compared with those on one machine or between machines."""
    if any(finding.data is None for finding in findings.values()):
        return worst(findings)
    like: dict[str, dict[str, float]] = {}
    for rank, finding in findings.items():
        for partner, rate in finding.data["rates"].items():
            other = findings.get(int(partner))
            if other is not None and rank < int(partner):
                near = finding.data["machine"] == other.data["machine"]
                like.setdefault("on one machine" if near else "between machines", {})[f"{rank}-{partner}"] = rate
    shown, slow = [], []
    for kind, rates in like.items():
        median, slowest = statistics.median(rates.values()), min(rates, key=lambda pair: rates[pair])
        shown.append(f"{kind} {median:.3g} GB/s, the slowest {slowest} with {rates[slowest]:.3g}")
        slow += [f"{pair} ({rate:.3g} GB/s)" for pair, rate in rates.items() if rate < _UNEVEN * median]
    text = "; ".join(shown)
    if slow:
        remedy = f"look at cables, ports and nvidia-smi topo -m of the processes {', '.join(slow[:8])}"
        return Finding("warn", text, "like pairs are about as fast", remedy, data=like)
    return Finding("pass", text, "like pairs are about as fast", data=like)
