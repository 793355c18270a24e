"""Pictures in one folder a class."""

import os
from pathlib import Path

import numpy as np

from plsc.data.datasets.base import Sample
from plsc.errors import DataError
from plsc.registry import DATASETS

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@DATASETS.register()
class ImageFolder:
    """Pictures in root/<class>/…; classes are the folders' names in alphabetical order, or all numbers in theirs."""

    max_labels = 1

    def __init__(self, root: str, extensions: list[str] = EXTENSIONS):
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder; ImageFolder.root holds one folder a class")
        self.class_names = _in_order(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        if not self.class_names:
            raise DataError(f"{root}: holds no folders; ImageFolder expects one folder a class in it")
        endings = tuple(extension.lower() for extension in extensions)
        paths, labels = [], []
        for label, name in enumerate(self.class_names):
            found = []
            for folder, _, files in os.walk(self.root / name, followlinks=True):
                found += (os.path.join(folder, file) for file in files if file.lower().endswith(endings))
            paths += sorted(found)
            labels += [label] * len(found)
        if not paths:
            raise DataError(f"{root}: holds no pictures ending in {', '.join(endings)}")
        # one array of bytes, not objects: workers share its pages, and reading changes none
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._labels = np.array(labels, dtype="int64")

    def __len__(self):
        return len(self._labels)

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[index]))

    def __getitem__(self, index: int) -> Sample:
        path = self.name(index)
        return Sample(Path(path).read_bytes(), int(self._labels[index]), path)


def _in_order(names) -> list[str]:
    """Sorted; numbers by their value, since 10 behind 9 is what folders 0 … 999 mean."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else names
