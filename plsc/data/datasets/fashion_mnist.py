"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), read from its official IDX files."""

import gzip
import logging
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from plsc.data.datasets.arrays import InMemory
from plsc.data.datasets.download import Root, download_official
from plsc.errors import DataError
from plsc.registry import DATASETS

log = logging.getLogger("plsc")

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_SIDE, _MOST = 28, 1_000_000  # more pictures than any official file; a damaged one can claim any number
_UBYTE = 0x08  # the only type of IDX values that is used here
_FILES = {  # split → images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@DATASETS.register()
class FashionMNIST(InMemory):
    """Fashion-MNIST: 60,000 training and 10,000 test pictures of 28 x 28 px, 1 channel, 10 classes of clothing.

    `root` holds the official files train-images-idx3-ubyte.gz …, packed or unpacked. Where it does not, those
    of Debian's package dataset-fashion-mnist in /usr/share/datasets/fashion-mnist are taken, else with
    `download` the official ones are fetched into `root` and must match their checksums.
    """

    def __init__(self, root: Root, split: Literal["train", "test"] = "train", download: bool = False):
        images, labels = _locate(Path(root).expanduser(), _FILES[split], download)
        pixels, classes = read_idx(images, (_SIDE, _SIDE)), read_idx(labels, ())
        if len(pixels) != len(classes):
            raise DataError(f"{images}: has {len(pixels)} pictures, but {labels.name} has {len(classes)} labels")
        if classes.max() >= len(CLASSES):
            raise DataError(f"{labels}: has the label {classes.max()}; there are {len(CLASSES)} classes")
        super().__init__(pixels[..., np.newaxis], classes.astype("int64"), list(CLASSES), name=f"Fashion-MNIST {split}")


def _locate(root: Path, names: tuple[str, str], download: bool) -> list[Path]:
    """The files of a split, all of them in root or in Debian's folder, or fetched."""
    for folder in (root, DEBIAN):
        paths = [path for path in (_present(folder, name) for name in names) if path]
        if len(paths) == len(names):
            if folder == DEBIAN != root:
                log.info("FashionMNIST: %s is not in %s; taken from %s", names[0], root, DEBIAN)
            return paths
    if download:
        return [_present(root, name) or _fetched(root, name) for name in names]
    missing = next(name for name in names if not _present(root, name))
    raise DataError(
        f"{root}: holds no {missing}.gz; put the official files there, install Debian's package "
        "dataset-fashion-mnist, or set FashionMNIST.download to True"
    )


def _present(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _fetched(root: Path, name: str) -> Path:
    from paddle.vision.datasets import FashionMNIST as official

    split, what = ("TRAIN" if name.startswith("train") else "TEST"), ("IMAGE" if "images" in name else "LABEL")
    url, md5 = (getattr(official, f"{split}_{what}_{kind}") for kind in ("URL", "MD5"))
    return download_official(url, md5, root)


def read_idx(path: Path, item: tuple[int, ...]) -> np.ndarray:
    """[N, *item] uint8 of an IDX file, packed with gzip or not.

    The format (LeCun, Cortes and Burges): two zero bytes, the type, the number of dimensions, each dimension
    as a big-endian 32-bit number, then the values.

    Raises:
        DataError: it is damaged, or its items are of another shape.
    """
    header = struct.Struct(f">HBB{1 + len(item)}I")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(header.size)
            if len(start) < header.size:
                raise DataError(f"{path}: ends after {len(start)} bytes; it is not an IDX file")
            zero, kind, dimensions, count, *shape = header.unpack(start)
            if (zero, kind, dimensions) != (0, _UBYTE, 1 + len(item)):
                raise DataError(
                    f"{path}: begins with {start[:4].hex()}; it is not an IDX file of {1 + len(item)} dimensions"
                )
            if tuple(shape) != item or not 0 < count <= _MOST:
                raise DataError(f"{path}: says it holds {count} items of {shape}; expected {list(item)}")
            size = count * math.prod(item)
            values = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if len(values) != size:
        raise DataError(f"{path}: has {'more' if len(values) > size else 'fewer'} values than the {size:,} it says")
    return np.frombuffer(values, np.uint8).reshape(count, *item)
