"""Data sets small enough to lie in memory as one array."""

import numpy as np

from plsc.data.datasets.base import Dataset, Sample


class InMemory(Dataset):
    """Pictures [N, H, W, C] uint8 with one class each.

    Args:
        name: what messages call the data set; a picture is the name and its number.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: list[str], name: str):
        self._images, self._labels, self._name = images, labels, name
        self.class_names = class_names

    def __len__(self):
        return len(self._labels)

    def name(self, index: int) -> str:
        return f"{self._name} {index}"

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._images[index], int(self._labels[index]), self.name(index))
