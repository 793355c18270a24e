"""A run on COYO-Labeled-300M's scale, simulated on one machine: order, memory and time of every process.

    python benchmarks/coyo_scale.py [--samples 300000000] [--shards 30000] [--ranks 256] [--then 128]

No picture is needed: a list names the shards at an address and how many samples each has, as plsc data prepare writes
it; their number varies from shard to shard. Each process of the run is simulated by one after the other in this one,
through plsc's own list, order and sampler. Counted are

- the order: a whole epoch of all processes, every sample once and nothing twice;
- a continued run: the first part of the epoch by --ranks processes, the rest by --then, nothing twice, nothing lost;
- lanes: from how many shards one process reads, and how many processes read a shard;
- what one process costs, in a process of its own: seconds and memory until the data set is open, and until its first
  batch is read, with shards that are made when they are asked for.

It takes some minutes of one core, and a few hundred MB of memory and of disk.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH = 16  # samples of one process's batch
SEED = 7
PICTURE = bytes(40_000)  # about what one of COYO has


def shard_counts(samples: int, shards: int) -> np.ndarray:
    """Samples of each shard: within a tenth of their mean, and `samples` together."""
    drawn = np.random.default_rng(0).uniform(0.9, 1.1, shards)
    ends = np.round(np.cumsum(drawn) / drawn.sum() * samples).astype(np.int64)
    return np.diff(ends, prepend=0)


def write_list(path: Path, counts: np.ndarray) -> None:
    shards = [{"file": f"coyo-{number:06d}.tar", "count": int(count)} for number, count in enumerate(counts)]
    path.write_text(json.dumps({"format": "webdataset", "count": int(counts.sum()), "shards": shards}))


def opened(listed: Path):
    from plsc.data.datasets import WebDataset

    return WebDataset(str(listed))


def sampler_of(data, rank: int, world: int, batch_size: int, lanes: int):
    from plsc.data.datasets.base import shard_sizes
    from plsc.data.sampler import DistributedBatchSampler

    return DistributedBatchSampler(
        batch_size=batch_size,
        drop_last=True,
        shuffle=True,
        lanes=lanes,
        size=len(data),
        seed=SEED,
        rank=rank,
        world=world,
        shard_sizes=shard_sizes(data),
    )


def part_of_epoch(sampler, first: int, last: int) -> np.ndarray:
    """What the sampler's process reads in updates [first, last) of epoch 0, in one array."""
    start, stop = first * sampler.global_batch, last * sampler.global_batch
    return sampler.order(0).take(np.arange(start + sampler.rank, stop, sampler.world))


def agrees_with_batches(sampler, update: int) -> bool:
    """Whether `part_of_epoch` is what training gets."""
    drawn = [draw.index for draw in sampler.batch(update)]
    return drawn == part_of_epoch(sampler, update, update + 1).tolist()


def walk(data, parts: list[tuple[int, int, int]], lanes: int, global_batch: int) -> dict:
    """Read an epoch, part after part.

    Args:
        parts: (processes, first update, update after the last).
    """
    seen, reads, began = np.zeros(len(data), dtype=bool), 0, time.process_time()
    ends = np.cumsum(data.shard_sizes)
    readers = np.zeros(len(ends), dtype=np.int32)
    shards_of_rank, checked = [], 0
    for world, first, last in parts:
        for rank in range(world):
            sampler = sampler_of(data, rank, world, global_batch // world, lanes)
            samples = part_of_epoch(sampler, first, last)
            for update in (first, last - 1):
                assert agrees_with_batches(sampler, update)
                checked += 1
            seen[samples] = True
            reads += len(samples)
            touched = np.bincount(np.searchsorted(ends, samples, side="right"), minlength=len(ends)) > 0
            readers += touched
            shards_of_rank.append(int(touched.sum()))
    different = int(seen.sum())
    return {
        "read": different,
        "twice": reads - different,
        "lost": len(data) - len(data) % global_batch - different,
        "left out by drop_last": len(data) % global_batch,
        "shards a process reads": f"{min(shards_of_rank)} to {max(shards_of_rank)}",
        "processes that read a shard": f"{np.mean(readers):.2f} on average, {readers.max()} at most",
        "batches compared with the sampler's": checked,
        "processor seconds": round(time.process_time() - began, 1),
    }


# -- one process by itself ----------------------------------------------------------------


def memory(kind: str) -> float:
    """VmRSS or RssAnon of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1000


def make_shards(folder: Path, counts: np.ndarray, numbers: list[int]) -> int:
    """Tar files of pictures, where they are not there yet; returns the bytes written."""
    written = 0
    for number in numbers:
        path = folder / f"coyo-{number:06d}.tar"
        if path.exists():
            continue
        with tarfile.open(path, "w") as archive:
            for k in range(int(counts[number])):
                for ending, content in (("jpg", PICTURE), ("cls", b"%d" % (k % 21841))):
                    member = tarfile.TarInfo(f"{k:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        written += path.stat().st_size
    return written


def one_process(listed: Path, rank: int, world: int, global_batch: int, lanes: int, results) -> None:
    import plsc.data.datasets  # noqa: F401 - outside of what is measured
    from plsc.data.fetch import Fetcher
    from plsc.data.loader import Loader

    before, started, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    data = opened(listed)
    figures = {"open_seconds": time.perf_counter() - started, "open_cpu": time.process_time() - cpu}
    sampler = sampler_of(data, rank, world, global_batch // world, lanes)
    ends = np.cumsum(data.shard_sizes)
    # only the shards that the first updates need are there
    needed = np.unique(np.searchsorted(ends, part_of_epoch(sampler, 0, 2), side="right")).tolist()
    figures["made"] = make_shards(listed.parent, data.shard_sizes, [0, *needed])
    started, cpu = time.perf_counter(), time.process_time()
    pixels = np.zeros([8, 8, 3], "uint8")
    loader = Loader(
        Fetcher(data, [lambda image, rng: pixels], seed=SEED, class_num=21841), batch_size=global_batch // world
    )
    next(iter(loader.run(sampler.batches(0))))
    figures |= {"batch_seconds": time.perf_counter() - started, "batch_cpu": time.process_time() - cpu}
    figures |= {"memory": memory("VmRSS") - before, "rss": memory("VmRSS"), "before": before}
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    results.put(figures)


def index_bytes(cache: Path) -> tuple[int, int]:
    """(bytes of all indices in the cache, how many there are)."""
    folders = [path for path in (cache / "index").iterdir() if path.is_dir()]
    return sum(file.stat().st_size for folder in folders for file in folder.iterdir()), len(folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300_000_000)
    parser.add_argument("--shards", type=int, default=30_000)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--then", type=int, default=128, help="processes of the continued run")
    arguments = parser.parse_args()
    lanes = world = arguments.ranks
    global_batch = BATCH * world
    counts = shard_counts(arguments.samples, arguments.shards)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PLSC_CACHE"] = str(folder / "cache")
        listed = folder / "manifest.json"
        write_list(listed, counts)
        print(f"{len(counts):,} shards, {counts.sum():,} samples; the list has {listed.stat().st_size / 1e6:.1f} MB")
        context = multiprocessing.get_context("spawn")
        for rank in (0, world - 1):
            results = context.Queue()
            process = context.Process(target=one_process, args=(listed, rank, world, global_batch, lanes, results))
            process.start()
            figures = results.get()
            process.join()
            size, count = index_bytes(folder / "cache")
            print(
                f"process {rank} of {world}: open in {figures['open_seconds']:.2f} s ({figures['open_cpu']:.2f} of "
                f"processor), first batch of {global_batch // world} after {figures['batch_seconds']:.2f} s more "
                f"({figures['batch_cpu']:.2f}); {figures['memory']:.0f} MB more than the {figures['before']:.0f} MB "
                f"before, peak {figures['peak']:.0f} MB; {size / 1e6:.2f} MB of index in {count} shards"
            )
        data = opened(listed)
        steps = len(data) // global_batch
        for title, parts in (
            (f"an epoch on {world}", [(world, 0, steps)]),
            (
                f"an epoch on {world}, from its middle on {arguments.then}",
                [(world, 0, steps // 2), (arguments.then, steps // 2, steps)],
            ),
        ):
            print(
                title
                + ": "
                + "; ".join(f"{key} {value}" for key, value in walk(data, parts, lanes, global_batch).items())
            )


if __name__ == "__main__":
    main()
