"""Which picture files a path means."""

import glob
import os
import re
from pathlib import Path

from plsc.data.datasets.image_folder import EXTENSIONS
from plsc.errors import DataError


def find_pictures(name: str | Path) -> list[str]:
    """The picture files that a file, a folder (with those below it) or a pattern such as "more/**/*.png" means.

    Those of folders and patterns are sorted, 2.jpg before 10.jpg.

    Raises:
        DataError: there are none.
    """
    name = str(name)
    if os.path.isdir(name):
        files = [
            os.path.join(place, file)
            for place, _, files in os.walk(name, followlinks=True)
            for file in files
            if file.lower().endswith(EXTENSIONS)
        ]
        if not files:
            raise DataError(f"{name}: there are no pictures in it that end in {', '.join(EXTENSIONS)}")
        return sorted(files, key=natural_order)
    if os.path.exists(name):
        return [name]
    if not glob.has_magic(name):
        raise DataError(f"{name}: no such file or folder (looked in {os.getcwd()})")
    files = [file for file in glob.glob(name, recursive=True) if os.path.isfile(file)]
    if not files:
        raise DataError(f"{name}: no file has such a name (looked in {os.getcwd()})")
    return sorted(files, key=natural_order)


def natural_order(name: str) -> list[int | str]:
    """A key that sorts 2.jpg before 10.jpg."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)]
