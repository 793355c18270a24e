"""A data set read through: what is damaged, double or odd in it, and how its classes are filled."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from plsc.data.datasets.base import Dataset, Sample, name_of, sample_of
from plsc.data.fetch import DAMAGE
from plsc.data.parallel import each
from plsc.data.transforms.decode import decode
from plsc.datatools.sources import Source
from plsc.errors import DataError

THRESHOLDS = (0.05, 0.10, 0.20, 0.25)  # COYO-Labeled-300M's own table has these
_CHUNK = 256
_EXAMPLES = 10  # kept of each oddity, and of labels out of range
_MOST_DAMAGED = 100_000  # listed; all are counted
_ENDINGS = {
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},  # a JPEG followed by further pictures, as some cameras write
    "PNG": {".png"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
}


def picture(data: Dataset, index: int) -> tuple[Sample, np.ndarray]:
    """A sample with its pixels [H, W, C] uint8. Raises DataError that names the picture."""
    sample = None
    try:
        sample = sample_of(data, index)
        return sample, sample.image if isinstance(sample.image, np.ndarray) else decode(sample.image)
    except DAMAGE as error:
        raise DataError(f"{sample.name}: {error}" if sample else str(error)) from error


def check(
    data: Dataset | Source,
    *,
    class_num: int | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Read and decode every sample.

    Args:
        data: the data set, or a Source of one.
        class_num: labels must be below; None takes the Source's, else the number of the data set's class names,
            if it has any.
        workers: processes; 0 works in this one, None takes one for each core.
        progress: called with the number of samples read since it was last called.

    Returns:
        A report of plain values, which JSON can hold: samples and readable are counts; damaged,
        labels_out_of_range and each remark of `oddities` have a count and the first of them as examples, at most
        100,000 damaged pictures and 10 of the others; duplicates are groups of equal pictures; classes, sizes and
        kinds describe the whole; thresholds is a table where labels have weights, else None.
    """
    source = Source.of(data)
    data, names = source.data, source.data.class_names
    limit = class_num or source.class_num or (len(names) if names is not None else None)
    chunk = max(_CHUNK, len(data) // 10_000)
    tasks = (range(start, min(start + chunk, len(data))) for start in range(0, len(data), chunk))
    parts = each(lambda indices, tick: _look(data, indices, limit, tick), tasks, workers=workers, progress=progress)
    whole = _Part.of(range(len(data)))
    for part in _in_order(parts):
        whole.add(part)
    readable = whole.sizes[:, 0] > 0
    return {
        "samples": len(data),
        "readable": int(readable.sum()),
        "damaged": whole.damaged.summary(),
        "labels_out_of_range": whole.out_of_range.summary(),
        "duplicates": _duplicates(data, whole, readable),
        "classes": class_summary(whole.classes, names, limit),
        "sizes": _size_summary(whole.sizes[readable]),
        "kinds": dict(whole.kinds.most_common()),
        "oddities": {remark: some.summary() for remark, some in whole.odd.items()},
        "thresholds": threshold_table(whole.above, whole.weighted),
    }


@dataclass
class _Some:
    """The first of some things, at most `most`, and how many there are."""

    most: int = _EXAMPLES
    count: int = 0
    first: list = field(default_factory=list)

    def append(self, thing) -> None:
        self.update(_Some(count=1, first=[thing]))

    def update(self, later: "_Some") -> None:
        """Add those of later samples."""
        self.count += later.count
        self.first += later.first[: self.most - len(self.first)]

    def summary(self) -> dict:
        return {"count": self.count, "examples": self.first}


@dataclass
class _Part:
    """What a range of samples is like.

    Attributes:
        start: the first sample.
        digests: [n, 2] uint64, of the stored content. labels: [n] int64, equal for equal labels.
        sizes: [n, 2] height and width, 0 where the picture cannot be read.
        above: [T, 2], see count_above. weighted: pictures whose labels have weights.
    """

    start: int
    digests: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    damaged: _Some = field(default_factory=lambda: _Some(_MOST_DAMAGED))
    out_of_range: _Some = field(default_factory=_Some)
    classes: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    odd: dict[str, _Some] = field(default_factory=dict)  # remark → names
    above: np.ndarray = field(default_factory=lambda: np.zeros((len(THRESHOLDS), 2), np.int64))
    weighted: int = 0

    @classmethod
    def of(cls, indices: range) -> "_Part":
        """Of samples that are not read yet."""
        n = len(indices)
        return cls(
            start=indices.start,
            digests=np.zeros([n, 2], "uint64"),
            labels=np.zeros(n, "int64"),
            sizes=np.zeros([n, 2], "int32"),
        )

    def add(self, part: "_Part"):
        """Add a part of these samples, which comes after the parts added before."""
        first = part.start - self.start
        rows = slice(first, first + len(part.labels))
        self.digests[rows], self.labels[rows], self.sizes[rows] = part.digests, part.labels, part.sizes
        self.damaged.update(part.damaged)
        self.out_of_range.update(part.out_of_range)
        self.classes.update(part.classes)
        self.kinds.update(part.kinds)
        for remark, some in part.odd.items():
            self.odd.setdefault(remark, _Some()).update(some)
        self.above = self.above + part.above
        self.weighted += part.weighted


def _in_order(parts: Iterable[_Part]) -> Iterator[_Part]:
    """Parts of a data set in the order of its samples; only those that are ahead of their turn are kept."""
    ahead, start = {}, 0
    for part in parts:
        ahead[part.start] = part
        while start in ahead:
            part = ahead.pop(start)
            start += len(part.labels)
            yield part


def _look(data, indices: range, limit: int | None, tick) -> _Part:
    part, weights = _Part.of(indices), []
    for row, index in enumerate(indices):
        try:
            sample, pixels = picture(data, index)
        except DataError as error:
            part.damaged.append({"index": index, "reason": str(error)})
        else:
            part.digests[row], part.labels[row] = _digest(sample.image), hash(sample.label)
            part.sizes[row] = pixels.shape[:2]
            _count_labels(part, index, sample, limit)
            _count_kind(part, sample)
            if sample.weights is not None:
                weights.append(sample.weights)
        tick()
    part.above, part.weighted = count_above(weights, THRESHOLDS), len(weights)
    return part


def _digest(image: bytes | np.ndarray) -> np.ndarray:
    """[2] uint64 of the stored content, to find equal ones by."""
    content = repr(image.shape).encode() + image.tobytes() if isinstance(image, np.ndarray) else image
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), "uint64")


# -- labels -----------------------------------------------------------------------------------


def _count_labels(part: _Part, index: int, sample: Sample, limit: int | None):
    labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
    for label in labels:
        if label < 0 or (limit is not None and label >= limit):
            part.out_of_range.append({"index": index, "name": sample.name, "label": int(label)})
        else:
            part.classes[label] += 1


def class_summary(counts: dict[int, int], names: list[str] | None, class_num: int | None) -> dict:
    """How the classes are filled.

    Returns:
        counts of each class, names, the smallest and largest class that is not empty with their ratio
        (None where all are empty), and the empty ones.
    """
    number = max([class_num or 0, len(names or ()), *(label + 1 for label in counts)])
    filled = [int(counts.get(label, 0)) for label in range(number)]
    present = [label for label in range(number) if filled[label]]
    smallest = min(present, key=lambda label: filled[label], default=None)
    largest = max(present, key=lambda label: filled[label], default=None)
    return {
        "counts": filled,
        "names": names,
        "smallest": smallest,
        "largest": largest,
        "ratio": filled[largest] / filled[smallest] if largest is not None and smallest is not None else None,
        "empty": [label for label in range(number) if not filled[label]],
    }


def count_above(weights: list[tuple[float, ...]], thresholds) -> np.ndarray:
    """[T, 2] int64: pictures with a label of at least each threshold, and such labels. Sums over parts add up.

    Args:
        weights: probabilities of each picture's labels, as many as it has.
    """
    counts = np.zeros([len(thresholds), 2], "int64")
    for row, threshold in enumerate(thresholds):
        kept = [sum(weight >= threshold for weight in picture) for picture in weights]
        counts[row] = sum(n > 0 for n in kept), sum(kept)
    return counts


def threshold_table(above: np.ndarray, pictures: int) -> list[dict] | None:
    """What a least label probability would leave, as in COYO-Labeled-300M's description.

    Args:
        above: of count_above with THRESHOLDS. pictures: whose labels have weights; 0 gives None.
    """
    if not pictures:
        return None
    return [
        {"threshold": threshold, "labels_per_kept": labels / kept if kept else 0.0, "kept": kept / pictures}
        for threshold, (kept, labels) in zip(THRESHOLDS, above.tolist(), strict=True)
    ]


# -- pictures ---------------------------------------------------------------------------------


def _count_kind(part: _Part, sample: Sample):
    """Note format and mode, and what decoding changes."""
    if isinstance(sample.image, np.ndarray):
        part.kinds[f"pixels of {sample.image.shape[2]} channels"] += 1
        return
    try:
        with Image.open(io.BytesIO(sample.image)) as image:
            part.kinds[f"{image.format} {image.mode}"] += 1
            remarks = _remarks(image, sample.name)
    except (OSError, ValueError, SyntaxError):  # OpenCV read it; Pillow knows no such format
        part.kinds["unknown to Pillow"] += 1
        return
    for remark in remarks:
        part.odd.setdefault(remark, _Some()).append(sample.name)


def _remarks(image: Image.Image, name: str) -> list[str]:
    remarks = []
    if image.mode == "CMYK":
        remarks.append("CMYK, converted to RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        remarks.append("transparent, the alpha channel is dropped")
    if image.mode.startswith(("I", "F")):
        remarks.append("more than 8 bits a channel, scaled to 8")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        remarks.append("animated, the first frame is taken")
    if image.getexif().get(0x0112, 1) != 1:
        remarks.append("turned, by its EXIF orientation")
    ending = "." + name.rpartition(".")[2].lower()
    if ending in set.union(*_ENDINGS.values()) and ending not in _ENDINGS.get(image.format or "", {ending}):
        remarks.append(f"{image.format} by content, {ending} by name")
    return remarks


def _duplicates(data, whole: _Part, readable: np.ndarray) -> list[dict]:
    """Groups of samples with equal content: their names, and whether their labels differ."""
    digests, labels = whole.digests, whole.labels
    chosen = np.flatnonzero(readable)
    order = chosen[np.lexsort((chosen, digests[chosen, 1], digests[chosen, 0]))]
    # whether each is as the one before it; a last False ends the last group
    same = np.concatenate([[False], (digests[order[1:]] == digests[order[:-1]]).all(axis=1), [False]])
    begins, ends = np.flatnonzero(~same[:-1] & same[1:]), np.flatnonzero(same[:-1] & ~same[1:]) + 1
    groups = [order[begin:end] for begin, end in zip(begins, ends, strict=True)]
    groups.sort(key=lambda group: group[0])
    return [
        {
            "pictures": [name_of(data, int(index)) for index in group],
            "across_classes": len(set(labels[group].tolist())) > 1,
        }
        for group in groups
    ]


def _size_summary(sizes: np.ndarray) -> dict | None:
    """Smallest, median and largest width, height and short side in pixels."""
    if not len(sizes):
        return None
    sides = {"width": sizes[:, 1], "height": sizes[:, 0], "short_side": sizes.min(axis=1)}
    return {
        name: {"min": int(side.min()), "median": float(np.median(side)), "max": int(side.max())}
        for name, side in sides.items()
    }
