"""Opening and reading data sets of a pretrainer's size: seconds and memory, with stand-ins for the pictures.

    python benchmarks/data_scale.py [--lines 14000000] [--shards 10000]

Writes a list file and tar shards into a temporary folder (about 1 GB), opens each twice (the first
time builds the index), goes through an epoch in training order and prints what the process's own
memory (RssAnon, without pages of mapped files) was on the way. It takes about two minutes.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IN_SHARD, CLASSES, LOOKS = 20, 21841, 8


def own_memory() -> float:
    """The process's own memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def write_list(folder: Path, count: int) -> Path:
    (folder / "n00000000").mkdir()
    (folder / "n00000000" / "n00000000_0.JPEG").touch()
    path = folder / "list.txt"
    with open(path, "w") as file:
        for start in range(0, count, 100_000):
            some = range(start, min(start + 100_000, count))
            labels = [i * 7919 % CLASSES for i in some]
            file.write("".join(f"n{k:08d}/n{k:08d}_{i}.JPEG {k}\n" for i, k in zip(some, labels, strict=True)))
    return path


def write_shards(folder: Path, count: int) -> str:
    for number in range(count):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for k in range(IN_SHARD):
                for ending, content in (("jpg", b"picture"), ("cls", b"%d" % (k % CLASSES))):
                    member = tarfile.TarInfo(f"{k:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder / "*.tar")


def look(name: str, opened, read) -> None:
    """Open twice, then read an epoch; a line each."""
    from plsc.data.datasets.combine import shard_sizes
    from plsc.data.sampler import Sampler

    for what in ("the first time", "again"):
        started = time.perf_counter()
        data = opened()
        print(f"{name}: {len(data):,} samples opened {what} in {time.perf_counter() - started:.1f} s")
    sampler = Sampler(
        size=len(data),
        batch_size=4096,
        drop_last=True,
        shuffle=True,
        seed=0,
        rank=0,
        world=1,
        shard_sizes=shard_sizes(data),
    )
    started, memory = time.perf_counter(), []
    for step in range(sampler.steps_per_epoch):
        for draw in sampler.batch(step):
            read(data, draw.index)
        if step % max(1, sampler.steps_per_epoch // LOOKS) == 0:
            memory.append(f"{own_memory():.0f}")
    seconds = time.perf_counter() - started
    print(
        f"{name}: an epoch of {sampler.steps_per_epoch} batches in {seconds:.0f} s; own memory, MB: {' '.join(memory)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=14_000_000, help="lines of the list file")
    parser.add_argument("--shards", type=int, default=10_000, help=f"tar files of {IN_SHARD} samples each")
    arguments = parser.parse_args()
    from plsc.data.datasets import ImageNetDataset, WebDataset

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PLSC_CACHE"] = str(folder / "cache")
        path = write_list(folder, arguments.lines)
        look(
            "list",
            lambda: ImageNetDataset(image_root=str(folder), cls_label_path=str(path)),
            lambda data, index: data._parse(index),  # all but the picture's file
        )
        pattern = write_shards(folder, arguments.shards)
        look("shards", lambda: WebDataset(files=pattern), lambda data, index: data[index])


if __name__ == "__main__":
    main()
