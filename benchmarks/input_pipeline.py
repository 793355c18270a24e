"""What preparing pictures costs a core, beside decoding alone, Pillow's way and PLSC's way.

    python benchmarks/input_pipeline.py FOLDER [--rounds 7] [--pictures 250]

FOLDER holds original JPEGs, in sub-folders or not. One core prepares each picture for training at
224 px (random area and ratio, flip) in five ways that take turns in one run:

    decode alone       cv2.imdecode, the limit of anything that decodes whole pictures
    plsc               DecodeImage, RandCropImage (bicubic, cv2), RandFlipImage into a batch of uint8
    torchvision's way  Pillow: decode, random crop, bicubic, flip, float32 [C, H, W], normalised
    PLSC's way         OpenCV decodes, Pillow crops and resizes, float32 [C, H, W], normalised
    plsc, shards       as plsc, from tar shards of `plsc data prepare` (short side 256, quality 80)

Then the loader with a worker a core, beside one core alone. Medians and ratios are printed; single
figures of a shared machine mean little. It takes about a minute.
"""

import argparse
import io
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402 - the checkout comes first
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from plsc import environment  # noqa: E402

SIZE, SCALE, RATIO = 224, (0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0)
MEAN = np.array([0.485, 0.456, 0.406], dtype="float32")
STD = np.array([0.229, 0.224, 0.225], dtype="float32")


def pictures_in(folder: Path, most: int) -> list[Path]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder}: holds no JPEGs")
    return paths[:most]


def box(height: int, width: int, rng) -> tuple[int, int, int, int]:
    """torchvision's random crop: (top, left, height, width)."""
    for _ in range(10):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return 0, 0, height, width


def decode_alone(path: Path, rng):
    cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


def by_pillow(path: Path, rng):
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    top, left, height, width = box(image.height, image.width, rng)
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image).transpose(2, 0, 1).astype("float32") / 255.0
    return (pixels - MEAN[:, None, None]) / STD[:, None, None]


def as_in_plsc(path: Path, rng):
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    pixels = decoded[:, :, ::-1]
    top, left, height, width = box(pixels.shape[0], pixels.shape[1], rng)
    crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    pixels = np.asarray(Image.fromarray(crop).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    if rng.random() < 0.5:
        pixels = cv2.flip(pixels, 1)
    return ((pixels.astype("float32") * (1.0 / 255.0) - MEAN) / STD).transpose(2, 0, 1)


class Listed:
    """The pictures as a data set."""

    max_labels, class_names = 1, None

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        from plsc.data.datasets import Sample

        return Sample(self.paths[index].read_bytes(), 0, str(self.paths[index]))


def fetcher(data):
    from plsc.data.fetch import Fetcher
    from plsc.data.transforms import DecodeImage, RandCropImage, RandFlipImage

    crop = RandCropImage(size=SIZE, scale=SCALE, ratio=RATIO, interpolation="bicubic", backend="cv2")
    return Fetcher(data, [DecodeImage(), crop, RandFlipImage()], seed=0, class_num=None)


def into_batch(data):
    """A function that prepares picture k of an epoch into a row of a batch."""
    from plsc.data.sampler import Draw

    fetch = fetcher(data)
    arrays = {name: np.zeros((64, *f.shape), f.dtype) for name, f in fetch.fields().items()}
    return lambda epoch, k: fetch.store(arrays, k % 64, Draw(epoch, k))


def prepared_shards(data, folder: Path):
    from plsc.data.datasets.webdataset import WebDataset
    from plsc.datatools.shards import prepare

    os.environ["PLSC_CACHE"] = str(folder / "cache")
    prepare(data, folder / "shards")
    return WebDataset(files=str(folder / "shards" / "*.tar"))


def one_core(sides: dict, count: int, rounds: int) -> dict[str, float]:
    """Median pictures a second of each side, on one core; the order of sides turns round by round."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for n in range(rounds + 1):
            names = list(sides)
            for name in names if n % 2 == 0 else reversed(names):
                started = time.perf_counter()
                for k in range(count):
                    sides[name](n, k)
                speeds[name].append(count / (time.perf_counter() - started))
    finally:
        os.sched_setaffinity(0, cores)
    return {name: statistics.median(values[1:]) for name, values in speeds.items()}  # the first warms up


def end_to_end(data, rounds: int, workers: int) -> tuple[float, float]:
    """Median pictures a second of one core alone, and of the loader with a worker a core, in turns."""
    from plsc.data.loader import Loader
    from plsc.data.sampler import EpochSampler

    sampler = EpochSampler(size=len(data), batch_size=64, drop_last=False, shuffle=True, seed=0, rank=0, world=1)
    loader = Loader(fetcher(data), batch_size=64, num_workers=workers, prefetch_batches=3)
    batches = loader.run(sampler.batches(0))
    count = max(8, 4 * len(data) // 64)
    for _ in range(4):
        next(batches)
    alone, together = [], []
    for _ in range(rounds):
        # drain what was made ahead while the other side was measured
        for _ in range(4):
            next(batches)
        started = time.perf_counter()
        for _ in range(count):
            next(batches)
        together.append(64 * count / (time.perf_counter() - started))
        time.sleep(0.5)  # the ring fills up, then the workers rest
        alone.append(one_core({"plsc": into_batch(data)}, len(data), 1)["plsc"])
    loader.close()
    return statistics.median(alone), statistics.median(together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="original JPEGs")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--pictures", type=int, default=250, help="pictures a turn")
    arguments = parser.parse_args()
    paths = pictures_in(arguments.folder, arguments.pictures)
    environment.import_paddle()
    cv2.setNumThreads(0)
    data = Listed(paths)
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        sides = {
            "decode alone": lambda n, k: decode_alone(paths[k], rng),
            "plsc": into_batch(data),
            "torchvision's way": lambda n, k: by_pillow(paths[k], rng),
            "PLSC's way": lambda n, k: as_in_plsc(paths[k], rng),
            "plsc, shards": into_batch(prepared_shards(data, Path(name))),
        }
        speeds = one_core(sides, len(paths), arguments.rounds)
    kilobytes = statistics.mean(p.stat().st_size for p in paths) / 1000
    print(f"{len(paths)} pictures of {kilobytes:.0f} kB on average, one core, medians of {arguments.rounds} turns\n")
    print("| | pictures/s | of decode alone |\n|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.0f} | {speed / speeds['decode alone']:.2f} |")
    print("\n| ratio | measured |\n|---|---|")
    for one, other in (
        ("plsc", "PLSC's way"),
        ("plsc", "torchvision's way"),
        ("plsc", "decode alone"),
        ("plsc, shards", "plsc"),
    ):
        print(f"| {one} / {other} | {speeds[one] / speeds[other]:.2f} |")
    cores = environment.available_cores()
    alone, together = end_to_end(data, arguments.rounds, cores)
    print(f"| loader with {cores} workers / {cores} x one core | {together / (cores * alone):.2f} |")
    print(f"\nthe loader with {cores} workers: {together:.0f} pictures/s; one core alone: {alone:.0f}")


if __name__ == "__main__":
    main()
