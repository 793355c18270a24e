"""Oxford-IIIT Pets (Parkhi et al., 2012), read from its official files."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from plsc.data.datasets.archives import Official, read_lines, unpacked
from plsc.data.datasets.download import Root
from plsc.data.datasets.on_disk import OnDisk
from plsc.errors import DataError
from plsc.registry import DATASETS

_ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
PICTURES = Official(f"{_ADDRESS}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c")
ANNOTATIONS = Official(f"{_ADDRESS}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f")
_LARGEST = 4 << 30
_MOST_CLASSES = 1000  # of a list; a damaged line may have any number


@DATASETS.register()
class OxfordPets(OnDisk):
    """Oxford-IIIT Pets: 3,680 pictures for training and validation, 3,669 for testing, 37 breeds of cats and dogs.

    `root` holds images.tar.gz and annotations.tar.gz (which are unpacked there once) or the folders images and
    annotations. With `download` what is missing is fetched and must match the official checksums.
    """

    def __init__(self, root: Root, split: Literal["trainval", "test"] = "trainval", download: bool = False):
        place = Path(root).expanduser()
        images, annotations = (
            unpacked(place, archive, folder, owner="OxfordPets", download=download, largest=_LARGEST)
            for archive, folder in ((PICTURES, "images"), (ANNOTATIONS, "annotations"))
        )
        listing = annotations / f"{split}.txt"
        names, labels = _listed(listing)
        lacking = sorted({f"{name}.jpg" for name in names} - {entry.name for entry in os.scandir(images)})
        if lacking:
            raise DataError(f"{images}: holds no {lacking[0]}, which {listing} names; remove it to unpack it again")
        super().__init__((images / f"{name}.jpg" for name in names), labels, _breeds(names, labels, listing))


def _listed(listing: Path) -> tuple[list[str], np.ndarray]:
    """(pictures, classes from 0) of the lines `Abyssinian_100 1 1 1`: picture, class, species, breed in the species."""
    names, labels = [], []
    for line in read_lines(listing):
        name, *numbers = line.split()
        if len(numbers) != 3 or not numbers[0].isdecimal() or not 1 <= int(numbers[0]) <= _MOST_CLASSES or "/" in name:
            raise DataError(f"{listing}: expected a line such as 'Abyssinian_100 1 1 1', got {line!r}")
        names.append(name)
        labels.append(int(numbers[0]) - 1)
    if not names:
        raise DataError(f"{listing}: names no pictures")
    return names, np.array(labels, dtype="int64")


def _breeds(names: list[str], labels: np.ndarray, listing: Path) -> list[str]:
    """The classes' names, which the pictures' begin with."""
    breeds = dict(zip(labels.tolist(), (name.rpartition("_")[0].replace("_", " ") for name in names), strict=True))
    lacking = sorted({*range(max(breeds) + 1)} - breeds.keys())
    if lacking:
        raise DataError(f"{listing}: names no picture of class {lacking[0] + 1}, but some of {max(breeds) + 1}")
    return [breeds[label] for label in sorted(breeds)]
