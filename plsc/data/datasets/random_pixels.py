"""Pictures of noise, which are there at once: for measuring speed."""

import numpy as np

from plsc.bounds import Positive
from plsc.data.datasets.base import Dataset, Sample
from plsc.registry import DATASETS

_DRAWN = 64  # different pictures


@DATASETS.register()
class RandomPixels(Dataset):
    """Pictures of random pixels, drawn once and kept in memory, with one label after the other: for measuring speed."""

    def __init__(
        self,
        height: Positive = 224,
        width: Positive = 224,
        channels: Positive = 3,
        classes: Positive = 1000,
        count: Positive = 10_000,
    ):
        self._pixels = np.random.default_rng(0).integers(0, 256, (_DRAWN, height, width, channels), dtype=np.uint8)
        self._classes, self._count = classes, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._pixels[index % _DRAWN], index % self._classes)
