"""Data sets of picture files that stay where they are, one class each."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from plsc.data.datasets.base import Dataset, Sample
from plsc.errors import DataError
from plsc.files import read_bytes


class OnDisk(Dataset):
    """Picture files with one class each.

    Args:
        paths: of the files, in order. labels: [N] integers, their classes.
    """

    def __init__(self, paths: Iterable[str | Path], labels: np.ndarray, class_names: list[str]):
        # one array of bytes, not objects: workers share its pages, and reading changes none
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._labels = np.asarray(labels)
        self.class_names = class_names

    def __len__(self):
        return len(self._labels)

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[index]))

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def __getitem__(self, index: int) -> Sample:
        path = self.name(index)
        try:
            image = read_bytes(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        return Sample(image, int(self._labels[index]), path)
