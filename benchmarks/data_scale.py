"""Opening and reading data sets of a pretrainer's size: seconds and memory, with stand-ins for the pictures.

    python benchmarks/data_scale.py [--lines 14000000] [--shards 10000]

Writes a list file and tar shards into a temporary folder (about 1 GB). Each is opened twice (the first time
builds the index), in a process of its own that tells its peak: ru_maxrss, pages of mapped files included. Then
the list's lines are read for an epoch in training order, and some thousand samples of the shards through the
loader with two workers. On the way the processes' own memory is reported: RssAnon, without pages of mapped files;
what workers share with the trainer since they began counts in each. It takes two to three minutes.
"""

import argparse
import io
import multiprocessing
import os
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IN_SHARD, CLASSES, LOOKS = 20, 21841, 8
WORKERS, LOADED = 2, 20_000  # samples of the shards that go through the loader
LIST, SHARDS = "list", "shards"


def own_memory() -> float:
    """Of this process and its children, MB."""
    own = Path(f"/proc/self/task/{os.getpid()}")
    processes = ["self", *(own / "children").read_text().split()]
    lines = [line for name in processes for line in Path(f"/proc/{name}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def peak_memory() -> float:
    """Of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def write_list(folder: Path, count: int) -> None:
    (folder / "n00000000").mkdir()
    (folder / "n00000000" / "n00000000_0.JPEG").touch()
    with open(folder / "list.txt", "w") as file:
        for start in range(0, count, 100_000):
            some = range(start, min(start + 100_000, count))
            labels = [i * 7919 % CLASSES for i in some]
            file.write("".join(f"n{k:08d}/n{k:08d}_{i}.JPEG {k}\n" for i, k in zip(some, labels, strict=True)))


def write_shards(folder: Path, count: int) -> None:
    for number in range(count):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for k in range(IN_SHARD):
                for ending, content in (("jpg", b"picture"), ("cls", b"%d" % (k % CLASSES))):
                    member = tarfile.TarInfo(f"{k:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def opened(kind: str, folder: Path):
    from plsc.data.datasets import ImageNetDataset, WebDataset

    if kind == LIST:
        return ImageNetDataset(image_root=str(folder), cls_label_path=str(folder / "list.txt"))
    return WebDataset(files=str(folder / "*.tar"))


def training_order(data, batch_size: int):
    from plsc.data.datasets.base import shard_sizes
    from plsc.data.sampler import EpochSampler

    sizes = shard_sizes(data)
    return EpochSampler(
        size=len(data), batch_size=batch_size, drop_last=True, shuffle=True, seed=0, rank=0, world=1, shard_sizes=sizes
    )


def in_a_process(function, *arguments) -> None:
    """Begun anew, not forked: its peak is its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__}: exit code {process.exitcode}")


def open_once(kind: str, folder: Path, when: str) -> None:
    import plsc.data.datasets  # noqa: F401 - outside of what is measured

    before, started = peak_memory(), time.perf_counter()
    data = opened(kind, folder)
    seconds = time.perf_counter() - started
    print(
        f"{kind}: {len(data):,} samples opened {when} in {seconds:.1f} s; peak {peak_memory():.0f} MB, before it "
        f"{before:.0f} MB"
    )


def read_lines(folder: Path) -> None:
    """An epoch of the list, all but the pictures' files."""
    data = opened(LIST, folder)
    order = training_order(data, batch_size=4096)
    steps = order.steps_per_epoch
    started, memory = time.perf_counter(), []
    for step in range(steps):
        for draw in order.batch(step):
            data._parse(draw.index)
        if step % max(1, steps // LOOKS) == 0:
            memory.append(own_memory())
    tell(f"{LIST}: an epoch of {steps * 4096:,} lines", started, memory)


def load_shards(folder: Path) -> None:
    """Some of an epoch of the shards as training reads them, but for decoding."""
    import numpy as np

    from plsc.data.fetch import Fetcher
    from plsc.data.loader import Loader

    data = opened(SHARDS, folder)
    order = training_order(data, batch_size=256)
    steps = min(order.steps_per_epoch, LOADED // 256)
    pixels = np.zeros([8, 8, 3], "uint8")
    fetcher = Fetcher(data, [lambda image, rng: pixels], seed=0, class_num=CLASSES)
    loader = Loader(fetcher, batch_size=256, num_workers=WORKERS)
    started, memory = time.perf_counter(), []
    try:
        for step, _ in enumerate(loader.run(order.batch(step) for step in range(steps))):
            if step % max(1, steps // LOOKS) == 0:
                memory.append(own_memory())
    finally:
        loader.close()
    tell(f"{SHARDS}: {steps * 256:,} samples through the loader with {WORKERS} workers", started, memory)


def tell(what: str, started: float, memory: list[float]) -> None:
    shown = " ".join(f"{megabytes:.0f}" for megabytes in memory)
    print(f"{what} in {time.perf_counter() - started:.1f} s; own memory, MB: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=14_000_000, help="lines of the list file")
    parser.add_argument("--shards", type=int, default=10_000, help=f"tar files of {IN_SHARD} samples each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PLSC_CACHE"] = str(folder / "cache")
        for kind, write, count, read in (
            (LIST, write_list, arguments.lines, read_lines),
            (SHARDS, write_shards, arguments.shards, load_shards),
        ):
            write(folder, count)
            for when in ("the first time", "again"):
                in_a_process(open_once, kind, folder, when)
            in_a_process(read, folder)


if __name__ == "__main__":
    main()
