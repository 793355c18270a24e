"""Arrays that are built once on a machine and mapped into memory by every process afterwards."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plsc.errors import DataError

log = logging.getLogger("plsc")


def cache_folder() -> Path:
    """Where indices lie: $PLSC_CACHE, else plsc in the user's cache folder, else in the temporary one."""
    said = os.environ.get("PLSC_CACHE")
    if said:
        return Path(said).expanduser()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plsc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # a read-only home; the other place is as good
    return Path(tempfile.gettempdir()) / f"plsc-{os.getuid()}"


def stamp(path) -> list:
    """What tells a changed file: its size in bytes and time of change."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def cached(place: str, facts: dict, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of an index, read-only and memory-mapped.

    One process builds under a lock while the others wait. An index whose facts differ is built anew.

    Args:
        place: what the index is of; there is one index a place.
        facts: plain values that tell whether it still holds: format, options, stamps of files.
        build: makes the arrays.

    Raises:
        DataError: the cache folder cannot be written.
    """
    folder = cache_folder() / "index" / hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    facts = {"place": place, **facts}
    found = _mapped(folder, facts)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{folder}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot be written: {error}; PLSC_CACHE names another folder") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _mapped(folder, facts)
        if found is None:
            arrays = build()
            try:
                _write(folder, facts, arrays)
            except OSError as error:
                raise DataError(f"{folder}: cannot be written: {error}; PLSC_CACHE names another folder") from error
            found = _mapped(folder, facts)
    return found


def _mapped(folder: Path, facts: dict):
    try:
        kept = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if kept["facts"] != json.loads(json.dumps(facts)):
            return None
        # an empty array cannot be mapped
        return {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r" if filled else None))
            for name, filled in kept["arrays"].items()
        }
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, EOFError):
        return None  # absent or damaged; that too many files are open is no reason to build it anew


def _write(folder: Path, facts: dict, arrays: dict[str, np.ndarray]):
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        said = {"facts": facts, "arrays": {name: bool(array.size) for name, array in arrays.items()}}
        (fresh / "facts.json").write_text(json.dumps(said), encoding="utf-8")
        old = fresh.with_name(f"{fresh.name}-old")
        # moved, not removed: on NFS a folder whose files are mapped somewhere cannot be removed
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
