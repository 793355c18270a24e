"""How fast disk, matrix products and network are."""

import os
import shutil
import statistics
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import paddle
import paddle.distributed as dist

from plsc import environment
from plsc.doctor.checks import Finding, Half, Site, check, judge, seconds_of, skip, worst
from plsc.engine.utilisation import device_peak
from plsc.models import parameter_count, spec_of

_BLOCK, _MOST_BLOCKS, _DISK_SECONDS = 2**24, 16, 6.0
_CHECKPOINT_SECONDS, _VERY_LONG_SECONDS = 60.0, 600.0
_SLOW, _VERY_SLOW = 0.5, 0.25  # of the data sheet's rate of products
_MOST_ROUNDS = 16  # of pairs that are measured at the same time
_UNEVEN = 0.5  # of the median of like pairs


@check("disk", seconds=60, alone=True)
def disk(site: Site) -> Finding:
    """The first process writes checkpoints: as fast as it can sync files."""
    if environment.rank() != 0:
        return skip("the first process writes checkpoints")
    size = 12 * parameter_count(spec_of(site.model))  # weights and two moments of AdamW, in float32
    site.run_directory.mkdir(parents=True, exist_ok=True)
    path = site.run_directory / f".doctor-{uuid.uuid4().hex}"
    try:
        rate = _write_rate(path)
    finally:
        path.unlink(missing_ok=True)
    free, seconds = shutil.disk_usage(site.run_directory).free, size / rate
    shown = f"{rate / 1e6:,.0f} MB/s: {size / 1e9:.2f} GB of {site.model} in {seconds:.1f} s; {free / 1e9:,.0f} GB free"
    expected = f"a checkpoint in {_CHECKPOINT_SECONDS:.0f} s, room for three"
    if free < 3 * size:
        return Finding("fail", shown, expected, "make room, or choose another run directory")
    remedy = "choose a faster file system, or save less often (Global.save_interval): the next save waits for it"
    slow, very_slow = seconds > _CHECKPOINT_SECONDS, seconds > _VERY_LONG_SECONDS
    return judge(shown, expected, remedy, warn=slow, fail=very_slow)


def _write_rate(path: Path) -> float:
    """Bytes a second that reach the disk."""
    block = np.random.default_rng(0).bytes(_BLOCK)
    began, written = time.perf_counter(), 0
    with open(path, "wb") as file:
        while written < _MOST_BLOCKS * _BLOCK and time.perf_counter() - began < _DISK_SECONDS:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written += _BLOCK
    return written / (time.perf_counter() - began)


@check("matrix rate", seconds=60)
def matrix_rate(site: Site) -> Finding:
    """In half precision where its kernels are right."""
    dtype = site.half or "float32"
    rate = product_rate(dtype)
    site.tflops = rate / 1e12
    shown = f"{rate / 1e12:,.3g} TFLOPS in {dtype}" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOPS in {dtype}"
    peak = device_peak(site.device, half=site.half is not None)
    if peak is None:
        return Finding("pass", shown, "no data sheet is known of it", figure=site.tflops)
    share = site.tflops / peak
    remedy = "look for other programs on the device, its power limit and temperature (nvidia-smi -q -d PERFORMANCE)"
    shown += f", {100 * share:.0f} % of the data sheet"
    slow, very_slow = share < _SLOW, share < _VERY_SLOW
    return judge(shown, f"{peak:g} TFLOPS", remedy, warn=slow, fail=very_slow, figure=site.tflops)


def product_rate(dtype: Literal["float32"] | Half) -> float:
    """Best rate of square matrix products, operations a second; so large that one takes 20 ms."""

    def multiply() -> None:
        paddle.matmul(a, a)[0, 0].item()  # which waits for it

    size, seconds = 256, 0.0
    while seconds < 0.02 and size < 8192:
        size *= 2
        a = paddle.randn([size, size]).astype(dtype)
        seconds = min(seconds_of(multiply) for _ in range(4))
    return 2.0 * size**3 / seconds


def _megabytes(site: Site) -> int:
    return 16 if site.device == "cpu" else 64


@check("all_reduce rate", seconds=25, several=True)
def all_reduce_rate(site: Site) -> Finding:
    megabytes = _megabytes(site)
    tensor = paddle.ones([megabytes * 250_000])

    def once() -> None:
        dist.all_reduce(tensor)
        tensor[0].item()  # which waits for it

    rate = megabytes * 1e6 / statistics.median([seconds_of(once) for _ in range(4)][1:])
    site.bytes_per_second, on_wire = rate, 2 * (site.size - 1) / site.size * rate
    shown = f"{rate / 1e9:.3g} GB/s of {megabytes} MB, {on_wire / 1e9:.3g} GB/s on each link"
    return Finding("pass", shown, "see gradient reduction", data=rate)


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
    remedy = f"look at cables, ports and nvidia-smi topo -m of the processes {', '.join(slow[:8])}"
    return judge("; ".join(shown), "like pairs are about as fast", remedy, warn=bool(slow), data=like)


@check("pairs", seconds=60, several=True, compare=_evenness)
def pairs(site: Site) -> Finding:
    """Send and receive between each two processes, disjoint pairs at the same time; distances of 2^k where many."""
    span = 1 << (site.size - 1).bit_length()
    distances = range(1, span) if span <= _MOST_ROUNDS else [1 << k for k in range(span.bit_length() - 1)]
    megabytes = _megabytes(site) // 4
    tensor, rates = paddle.ones([megabytes * 250_000]), {}
    for distance in distances:  # of the ranks' bits: every process has one partner at most
        partner = site.rank ^ distance
        if partner >= site.size:
            continue

        def both_ways(partner: int = partner) -> None:
            for sender in sorted((site.rank, partner)):
                if sender == site.rank:
                    dist.send(tensor, dst=partner)
                else:
                    dist.recv(tensor, src=partner)
            tensor[0].item()

        try:
            rates[str(partner)] = 2 * megabytes / 1e3 / min(seconds_of(both_ways) for _ in range(3))
        except NotImplementedError:
            return skip(f"{site.device} cannot send to one process")
    return Finding("pass", "", data={"rates": rates, "machine": site.rank // environment.local_size()})
