"""scikit-learn's handwritten digits: 1797 scans of 8 x 8 pixels, bundled with the library."""

from typing import Literal

import numpy as np

from plsc.bounds import InsideUnit, Seed
from plsc.data.datasets.arrays import InMemory
from plsc.registry import DATASETS


@DATASETS.register()
class Digits(InMemory):
    """Handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak, 1998): 8 x 8 px, 1 channel, 10 classes.

    The split is drawn once from `seed`, class by class, so that both parts have every digit.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        test_fraction: InsideUnit = 0.2,
        seed: Seed = 0,
    ):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        scans = load_digits()
        everything = np.arange(len(scans.target))
        train, test = train_test_split(everything, test_size=test_fraction, random_state=seed, stratify=scans.target)
        chosen = train if split == "train" else test
        pixels = np.rint(scans.images[chosen] * (255.0 / 16.0)).astype("uint8")  # stored as 0 … 16
        classes = [str(digit) for digit in range(10)]
        super().__init__(pixels[..., np.newaxis], scans.target[chosen], classes, name=f"digits {split}")
