"""STL-10 (Coates, Lee and Ng, 2011), read from its official archive."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from plsc.data.datasets.archives import Official, archive_or_folder, members, missing, official_file
from plsc.data.datasets.arrays import InMemory
from plsc.data.datasets.download import Root
from plsc.errors import ConfigError, DataError
from plsc.registry import DATASETS

ARCHIVE = Official("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb")
_FOLDER, _NAMES, _FOLDS = "stl10_binary", "class_names.txt", "fold_indices.txt"
_SIDE, _CLASSES = 96, 10
_LARGEST = 512 << 20  # test_X.bin has 221 MB; unlabeled_X.bin, which has more, is not read


@DATASETS.register()
class STL10(InMemory):
    """STL-10: 5,000 training and 8,000 test pictures of 96 x 96 px in colour, 10 classes.

    `root` is stl10_binary.tar.gz, the unpacked folder stl10_binary, or a folder that holds one of them; the archive is
    read without unpacking it, which takes a minute, the folder at once. With `download` a missing archive is fetched
    (2.6 GB) and must match the official checksum. The 100,000 pictures without labels are left out.

    Args:
        fold: one of the ten official training sets of 1,000 pictures each; None is all 5,000.
    """

    def __init__(
        self,
        root: Root,
        split: Literal["train", "test"] = "train",
        fold: Annotated[int, Field(ge=0, le=9)] | None = None,
        download: bool = False,
    ):
        if fold is not None and split == "test":
            raise ConfigError("STL10.fold is a part of the training pictures; leave it out with split test")
        place = Path(root).expanduser()
        source = archive_or_folder(place, ARCHIVE.name, _FOLDER, _NAMES)
        if source is None:
            if not download:
                raise missing(place, ARCHIVE.name, _FOLDER, "STL10")
            source = official_file(place, ARCHIVE, "STL10", download)
        wanted = [f"{split}_X.bin", f"{split}_y.bin", _NAMES, *([_FOLDS] if fold is not None else [])]
        content = dict(members(source, _FOLDER, wanted, _LARGEST))
        lacking = [name for name in wanted if name not in content]
        if lacking:
            raise DataError(f"{source}: holds no {_FOLDER}/{lacking[0]}; it is not an archive of STL10")
        images, labels = _images(content[wanted[0]], source), _labels(content[wanted[1]], source)
        if len(images) != len(labels):
            raise DataError(f"{source}: has {len(images)} pictures, but {len(labels)} labels")
        if fold is not None:
            chosen = _fold(content[_FOLDS], fold, len(labels), source)
            images, labels = images[chosen], labels[chosen]
        names = content[_NAMES].decode("latin1").split()
        if len(names) != _CLASSES:
            raise DataError(f"{source}: {_NAMES} has {len(names)} names, not {_CLASSES}")
        super().__init__(images, labels, names, name=f"STL-10 {split}")


def _images(content: bytes, source: Path) -> np.ndarray:
    """[N, 96, 96, 3] uint8; stored as red, green and blue planes, each column by column."""
    size = 3 * _SIDE * _SIDE
    if not content or len(content) % size:
        raise DataError(f"{source}: its pictures have {len(content):,} bytes, which is not a multiple of {size:,}")
    planes = np.frombuffer(content, np.uint8).reshape(-1, 3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def _labels(content: bytes, source: Path) -> np.ndarray:
    """[N] int64 from 0; stored from 1."""
    labels = np.frombuffer(content, np.uint8).astype("int64") - 1
    if len(labels) and not 0 <= labels.min() <= labels.max() < _CLASSES:
        raise DataError(f"{source}: its labels reach from {labels.min() + 1} to {labels.max() + 1}, not from 1 to 10")
    return labels


def _fold(content: bytes, fold: int, count: int, source: Path) -> np.ndarray:
    """Numbers of the pictures of one fold, a line of the file."""
    lines = content.decode("latin1").splitlines()
    try:
        chosen = np.array([int(number) for number in lines[fold].split()], dtype="int64")
    except (IndexError, ValueError) as error:
        raise DataError(f"{source}: {_FOLDS} has no numbers in line {fold + 1}") from error
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
        raise DataError(f"{source}: {_FOLDS}, line {fold + 1}: numbers must be between 0 and {count - 1}")
    return chosen
