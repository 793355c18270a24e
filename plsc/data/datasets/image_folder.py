"""Pictures in one folder a class."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np

from plsc.data.datasets.on_disk import OnDisk
from plsc.data.words import some
from plsc.errors import DataError
from plsc.registry import DATASETS, InputPath

log = logging.getLogger("plsc")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@DATASETS.register()
class ImageFolder(OnDisk):
    """Pictures in root/<class>/…; classes are the folders' names in alphabetical order, or all numbers in theirs.

    A folder without a picture is not a class: a warning names it.
    """

    def __init__(self, root: Annotated[str, InputPath()], extensions: tuple[str, ...] = EXTENSIONS):
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder (ImageFolder.root); name one that holds a folder for each class")
        folders = _in_order(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        if not folders:
            raise DataError(
                f"{root}: holds no folders (ImageFolder.root); put the pictures of each class into a folder of their "
                "own, or name another folder"
            )
        endings = tuple(extension.lower() for extension in extensions)
        by_class = {name: _pictures(self.root / name, endings) for name in folders}
        class_names = [name for name in folders if by_class[name]]
        empty = [name for name in folders if not by_class[name]]
        if not class_names:
            raise DataError(
                f"{root}: its folders hold no pictures ending in {', '.join(endings)} (ImageFolder.extensions); give "
                "their endings there, or name another folder as ImageFolder.root"
            )
        if empty:
            log.warning(
                "%s: folders without a picture are not classes: %s; remove them, or add the endings of their pictures "
                "to ImageFolder.extensions",
                root,
                some(empty),
            )
        labels = np.repeat(np.arange(len(class_names)), [len(by_class[name]) for name in class_names])
        super().__init__((path for name in class_names for path in by_class[name]), labels, class_names)


def _pictures(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Paths of the pictures below a folder, sorted."""
    return sorted(
        os.path.join(place, file)
        for place, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(endings)
    )


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted; numbers by their value, since folders 0 … 999 mean 10 after 9."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else names
