"""A data set → list files for training and validation."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from plsc.bounds import InsideUnit, NonNegative
from plsc.data.class_names import read_class_names
from plsc.data.datasets import ImageFolder, ImageNetDataset
from plsc.data.datasets.base import Dataset
from plsc.data.split import split as divided
from plsc.datatools.sources import Source
from plsc.errors import ConfigError, DataError
from plsc.files import replacing_file
from plsc.signatures import holding_bounds

LISTS, CLASSES = ("train_list.txt", "val_list.txt"), "classes.txt"


@partial(holding_bounds, name="split")
def split(
    data: Dataset | Source,
    output: str | Path,
    *,
    val_fraction: InsideUnit = 0.1,
    seed: NonNegative = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Divide a folder of class folders, or a list, into list files for ImageNetDataset.

    train_list.txt and val_list.txt have a line for each picture, with its path relative to the data set's root;
    where classes have names, classes.txt has them in the order of the labels. They are the samples that the key
    val_fraction with this val_seed leaves in DataLoader.Train and takes in DataLoader.Eval.

    Args:
        data: an ImageFolder or ImageNetDataset, or a Source of one.
        output: the folder of the list files.
        val_fraction: part of each class that goes into val_list.txt; at least one picture, where a class has two.
        seed: draws it.
        progress: called with the number of lines written since it was last called.

    Returns:
        The number of lines of train_list.txt and val_list.txt, by name.

    Raises:
        ConfigError: the data set is of another kind.
        DataError: a list file is there already, no class has two pictures, or a name cannot be in a list.
    """
    data, output = Source.of(data).data, Path(output).expanduser()
    if not isinstance(data, (ImageFolder, ImageNetDataset)):
        raise ConfigError(
            f"{type(data).__name__} has no lines for list files, which are made of an ImageFolder or ImageNetDataset; "
            "val_fraction divides any data set within a recipe"
        )
    names = [*LISTS, CLASSES] if data.class_names else list(LISTS)
    present = [name for name in names if (output / name).exists()]
    if present:
        raise DataError(f"{output / present[0]}: is there already; choose another folder for the lists")
    if data.class_names:
        _write_class_names(output / CLASSES, data.class_names)
    counts = {}
    for name, indices in zip(LISTS, divided(data, val_fraction, seed), strict=True):
        _write_lines(output / name, _lines(data, indices), progress)
        counts[name] = len(indices)
    return counts


def _write_class_names(path: Path, names: list[str]) -> None:
    _write_lines(path, map(os.fsencode, names))
    try:
        if read_class_names(path) != names:
            raise DataError(f"{path}: class names with spaces around them cannot be in a list")
    except DataError:
        path.unlink()
        raise


def _lines(data: ImageFolder | ImageNetDataset, indices: np.ndarray) -> Iterator[bytes]:
    """The samples' lines in a list file."""
    if isinstance(data, ImageNetDataset):
        yield from map(data.line, indices.tolist())
        return
    for index, label in zip(indices.tolist(), data.labels_of(indices).tolist(), strict=True):
        path = os.path.relpath(data.name(index), data.root)
        if "\n" in path:
            raise DataError(f"{data.name(index)!r}: a name with a line break cannot be in a list")
        yield os.fsencode(path) + b" %d" % label


def _write_lines(path: Path, lines: Iterable[bytes], progress: Callable[[int], None] = lambda count: None) -> None:
    with replacing_file(path) as writing, open(writing, "wb") as file:
        for line in lines:
            file.write(line + b"\n")
            progress(1)
