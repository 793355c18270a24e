"""Food-101 (Bossard, Guillaumin and Van Gool, 2014), read from its official archive."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from plsc.data.datasets.archives import Official, read_lines, unpacked
from plsc.data.datasets.download import Root
from plsc.data.datasets.on_disk import OnDisk
from plsc.errors import DataError
from plsc.registry import DATASETS

ARCHIVE = Official("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87")
_LARGEST = 16 << 30


@DATASETS.register()
class Food101(OnDisk):
    """Food-101: 75,750 pictures for training, some with wrong labels, and 25,250 for testing, 101 dishes.

    `root` holds food-101.tar.gz (which is unpacked there once) or the folder food-101, or is that folder. With
    `download` a missing archive is fetched and must match the official checksum.
    """

    def __init__(self, root: Root, split: Literal["train", "test"] = "train", download: bool = False):
        place = Path(root).expanduser()
        if not (place / "meta").is_dir():
            place = unpacked(place, ARCHIVE, "food-101", owner="Food101", download=download, largest=_LARGEST)
        classes, listing = read_lines(place / "meta" / "classes.txt"), place / "meta" / f"{split}.txt"
        labels = {name: label for label, name in enumerate(classes)}
        pictures = read_lines(listing)
        for picture in pictures:
            folder, _, number = picture.partition("/")
            if folder not in labels or not number.isdecimal():
                raise DataError(f"{listing}: expected a line such as '{classes[0]}/1005649', got {picture!r}")
        wanted = {picture.partition("/")[0] for picture in pictures}
        present = {
            f"{name}/{entry.name}"
            for name in wanted
            if (place / "images" / name).is_dir()
            for entry in os.scandir(place / "images" / name)
        }
        lacking = next((picture for picture in pictures if f"{picture}.jpg" not in present), None)
        if lacking or not pictures:
            problem = f"holds no images/{lacking}.jpg, which {listing} names" if lacking else f"{listing} is empty"
            raise DataError(f"{place}: {problem}; remove the folder to unpack it again")
        super().__init__(
            (place / "images" / f"{picture}.jpg" for picture in pictures),
            np.array([labels[picture.partition("/")[0]] for picture in pictures], dtype="int64"),
            [name.replace("_", " ") for name in classes],
        )
