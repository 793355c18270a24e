"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read from their official archives."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from plsc import pickles
from plsc.data.datasets.archives import archive_or_folder, members, missing
from plsc.data.datasets.arrays import InMemory
from plsc.data.datasets.download import Root, download_official
from plsc.errors import CheckpointError, DataError
from plsc.registry import DATASETS

_SIDE, _VALUES = 32, 3 * 32 * 32
_LARGEST_MEMBER = 256 << 20  # CIFAR-100's training member has 155 MB


@dataclass(frozen=True)
class _Layout:
    """What an official archive holds, and where.

    Attributes:
        owner: the data set's name in messages. archive, folder: the file, and the folder inside it.
        meta: the member with the classes' names. splits: the members of each split, in order.
        paddle: how paddle.vision's constants for the archive begin.
    """

    owner: str
    archive: str
    folder: str
    meta: str
    splits: dict[str, list[str]]
    paddle: str


_CIFAR10 = _Layout(
    owner="CIFAR10",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    meta="batches.meta",
    splits={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    paddle="CIFAR10",
)
_CIFAR100 = _Layout(
    owner="CIFAR100",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    meta="meta",
    splits={"train": ["train"], "test": ["test"]},
    paddle="CIFAR100",
)


@DATASETS.register()
class CIFAR10(InMemory):
    """CIFAR-10: 50,000 training and 10,000 test pictures of 32 x 32 px in colour, 10 classes.

    `root` is cifar-10-python.tar.gz, the unpacked folder cifar-10-batches-py, or a folder that holds one of
    them; the archive is read without unpacking it. With `download` a missing archive is fetched into `root`
    and must match the official checksum. A local one is judged by its content: shapes, counts, labels.
    """

    def __init__(self, root: Root, split: Literal["train", "test"] = "train", download: bool = False):
        batches, meta = _read(_CIFAR10, root, split, download)
        names = _class_names(meta, "label_names", root)
        images = _images(batches, meta)
        super().__init__(images, _labels(batches, "labels", len(names)), names, f"CIFAR-10 {split}")


@DATASETS.register()
class CIFAR100(InMemory):
    """CIFAR-100: 50,000 training and 10,000 test pictures of 32 x 32 px in colour, 100 classes in 20 groups.

    `root` and `download` as for CIFAR10, with cifar-100-python.tar.gz and the folder cifar-100-python.
    `label` chooses the 100 fine classes or the 20 coarse ones.
    """

    def __init__(
        self,
        root: Root,
        split: Literal["train", "test"] = "train",
        label: Literal["fine", "coarse"] = "fine",
        download: bool = False,
    ):
        batches, meta = _read(_CIFAR100, root, split, download)
        names = _class_names(meta, f"{label}_label_names", root)
        images = _images(batches, meta)
        super().__init__(images, _labels(batches, f"{label}_labels", len(names)), names, f"CIFAR-100 {split}")


def _read(layout: _Layout, root: str, split: str, download: bool) -> tuple[dict[Path, dict], dict]:
    """(the split's members by place, the member with the names)."""
    source = _locate(layout, Path(root).expanduser(), download)
    inside = source / layout.folder if source.is_file() else source
    wanted = [layout.meta, *layout.splits[split]]
    read = members(source, layout.folder, wanted, _LARGEST_MEMBER)
    content = {name: _unpickled(data, inside / name) for name, data in read}
    lacking = [name for name in wanted if name not in content]
    if lacking:
        raise DataError(f"{source}: holds no {layout.folder}/{lacking[0]}; it is not an archive of {layout.owner}")
    return {inside / name: content[name] for name in layout.splits[split]}, content[layout.meta]


def _locate(layout: _Layout, root: Path, download: bool) -> Path:
    """The archive, or the unpacked folder."""
    place = archive_or_folder(root, layout.archive, layout.folder, layout.meta)
    if place is not None:
        return place
    if not download:
        raise missing(root, layout.archive, layout.folder, layout.owner)
    from paddle.vision.datasets import cifar as official

    url, md5 = (getattr(official, f"{layout.paddle}_{what}") for what in ("URL", "MD5"))
    return download_official(url, md5, root.parent if root.name == layout.archive else root)


def _unpickled(data: bytes, place: Path) -> dict:
    """A member's dictionary with text keys; Python 2 wrote them as bytes. Nothing in the pickle is run."""
    try:
        content = pickles.load(io.BytesIO(data), place)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if not isinstance(content, dict):
        raise DataError(f"{place}: holds {type(content).__name__}, not the dictionary of an official archive")
    return {_text(key): value for key, value in content.items()}


def _text(value) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _images(batches: dict[Path, dict], meta: dict) -> np.ndarray:
    """[N, 32, 32, 3] uint8 of all members."""
    parts, expected = [], meta.get("num_cases_per_batch")
    for place, batch in batches.items():
        data = batch.get("data")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _VALUES or data.dtype != np.uint8:
            shown = f"{list(data.shape)} {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
            raise DataError(f"{place}: its data is {shown}, not [n, {_VALUES}] uint8")
        if expected is not None and len(data) != expected:
            raise DataError(f"{place}: has {len(data)} pictures, but the archive says {expected}")
        parts.append(data)
    planes = np.concatenate(parts).reshape(-1, 3, _SIDE, _SIDE)  # red, green and blue, each row by row
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _labels(batches: dict[Path, dict], key: str, classes: int) -> np.ndarray:
    """[N] int64 of all members, one for each picture."""
    parts = []
    for place, batch in batches.items():
        labels, count = batch.get(key), len(batch["data"])
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise DataError(f"{place}: its {key} are not a list of whole numbers")
        if len(labels) != count:
            raise DataError(f"{place}: has {count} pictures, but {len(labels)} {key}")
        if labels and not 0 <= min(labels) <= max(labels) < classes:
            raise DataError(
                f"{place}: its {key} reach from {min(labels)} to {max(labels)}; there are {classes} classes"
            )
        parts.append(np.array(labels, dtype="int64"))
    return np.concatenate(parts)


def _class_names(meta: dict, key: str, root: str) -> list[str]:
    names = meta.get(key)
    if not isinstance(names, list) or not names:
        raise DataError(f"{root}: the archive does not say its {key}")
    return [_text(name) for name in names]
