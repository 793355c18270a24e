"""Street View House Numbers (Netzer et al., 2011), read from its official files of cropped digits."""

from pathlib import Path
from typing import Literal

import numpy as np

from plsc.data.datasets.archives import Official, official_file, read_matlab
from plsc.data.datasets.arrays import InMemory
from plsc.data.datasets.download import Root
from plsc.errors import DataError
from plsc.registry import DATASETS

_ADDRESS = "http://ufldl.stanford.edu/housenumbers"
FILES = {
    "train": Official(f"{_ADDRESS}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test": Official(f"{_ADDRESS}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    "extra": Official(f"{_ADDRESS}/extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7"),
}


@DATASETS.register()
class SVHN(InMemory):
    """SVHN, cropped digits: 73,257 training, 26,032 test and 531,131 easier extra pictures of 32 x 32 px, 10 classes.

    `root` holds train_32x32.mat, test_32x32.mat and extra_32x32.mat; with `download` a missing one is fetched and must
    match its official checksum. Class 0 is the digit 0, which the files call 10.
    """

    def __init__(self, root: Root, split: Literal["train", "test", "extra"] = "train", download: bool = False):
        path = official_file(Path(root).expanduser(), FILES[split], "SVHN", download)
        pixels, labels = read_matlab(path, "X", "y")
        if pixels.ndim == 3:  # a single picture, whose axis is taken out
            pixels = pixels[..., np.newaxis]
        if pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.dtype != np.uint8:
            raise DataError(f"{path}: its X is {list(pixels.shape)} {pixels.dtype}, not [32, 32, 3, n] uint8")
        if labels.shape != pixels.shape[3:]:
            raise DataError(f"{path}: has {pixels.shape[3]} pictures, but {labels.size} labels")
        if labels.min() < 1 or labels.max() > 10:
            raise DataError(f"{path}: its labels reach from {labels.min()} to {labels.max()}, not from 1 to 10")
        images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
        digits = [str(digit) for digit in range(10)]
        super().__init__(images, labels.astype("int64") % 10, digits, name=f"SVHN {split}")
