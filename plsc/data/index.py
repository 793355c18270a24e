"""Arrays that are built once on a machine and mapped into memory by every process afterwards."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from plsc.errors import DataError

log = logging.getLogger("plsc")

_KEPT_SECONDS, _CLEANING_SECONDS = 60 * 24 * 3600.0, 24 * 3600.0


def cache_folder() -> Path:
    """Where indices lie: $PLSC_CACHE, else plsc in the user's cache folder, else in the temporary one."""
    chosen = os.environ.get("PLSC_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plsc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # a read-only home; the other place is as good
    return Path(tempfile.gettempdir()) / f"plsc-{os.getuid()}"


def stamp(path: str | Path) -> list[int]:
    """What differs once a file has changed: its size in bytes and time of change."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def cached(place: str, facts: dict, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of an index, read-only and memory-mapped.

    One process builds under a lock while the others wait. Other facts are another index; what nobody has
    used for two months is removed.

    Args:
        place: what the index is of.
        facts: plain values that differ where it no longer holds: format, options, stamps of files.
        build: makes the arrays.

    Raises:
        DataError: the cache folder cannot be written.
    """
    facts = {"place": place, **facts}
    key = json.dumps(facts, sort_keys=True).encode("utf-8", "surrogateescape")
    folder = cache_folder() / "index" / hashlib.sha256(key).hexdigest()[:32]
    arrays = _mapped(folder, facts)
    if arrays is not None:
        return arrays
    with _naming(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{folder}.lock", "a")  # noqa: SIM115
    with lock:
        _wait_for(lock, place)
        arrays = _mapped(folder, facts)
        if arrays is None:
            built = build()
            with _naming(folder):
                _write(folder, facts, built)
                _remove_unused(folder.parent)
            arrays = _mapped(folder, facts)
            assert arrays is not None, "what has been written is there"
    return arrays


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Context that makes a DataError of what the system refuses in a folder."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be used: {error}; PLSC_CACHE names another folder") from error


def _wait_for(lock: TextIO, place: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that builds the index of %s", place)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: each builds, and the last one stays


def _remove_unused(parent: Path) -> None:
    """Remove indices that were not used for long, and what killed processes left; once a day, since it visits all."""
    cleaned = parent / ".cleaned"
    with contextlib.suppress(OSError):
        if time.time() - cleaned.stat().st_mtime < _CLEANING_SECONDS:
            return
    cleaned.touch()
    before = time.time() - _KEPT_SECONDS
    for path in parent.iterdir():
        with contextlib.suppress(OSError):  # another process removes it, or uses it just now
            if path.stat().st_mtime < before:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _mapped(folder: Path, facts: dict) -> dict[str, np.ndarray] | None:
    """The arrays that a folder holds, mapped; None where they are absent, damaged or of other facts."""
    try:
        kept = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if kept["facts"] != json.loads(json.dumps(facts)):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        # an empty array cannot be mapped
        return {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r" if filled else None))
            for name, filled in kept["arrays"].items()
        }
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, EOFError):
        return None  # but that too many files are open is no reason to build it again


def _write(folder: Path, facts: dict, arrays: dict[str, np.ndarray]) -> None:
    """Put a folder of arrays in place, whole.

    Unlike files.replacing_folder it has a name of its own for each process, since some file systems have no locks, and
    does not wait for the disk: a damaged index is built again.
    """
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    fresh.chmod(folder.parent.stat().st_mode & 0o777)  # for a cache that several users share
    try:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        content = {"facts": facts, "arrays": {name: bool(array.size) for name, array in arrays.items()}}
        (fresh / "facts.json").write_text(json.dumps(content), encoding="utf-8")
        old = fresh.with_name(f"{fresh.name}-old")
        # moved, not removed: on NFS a folder whose files are mapped somewhere cannot be removed
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
