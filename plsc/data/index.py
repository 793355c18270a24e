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
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plsc.errors import DataError

log = logging.getLogger("plsc")

_KEPT_SECONDS, _LOOKED_SECONDS = 60 * 24 * 3600.0, 24 * 3600.0


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

    One process builds under a lock while the others wait. Other facts are another index; what nobody has
    used for two months is removed.

    Args:
        place: what the index is of.
        facts: plain values that tell whether it still holds: format, options, stamps of files.
        build: makes the arrays.

    Raises:
        DataError: the cache folder cannot be written.
    """
    facts = {"place": place, **facts}
    key = json.dumps(facts, sort_keys=True).encode("utf-8", "surrogateescape")
    folder = cache_folder() / "index" / hashlib.sha256(key).hexdigest()[:32]
    found = _mapped(folder, facts)
    if found is not None:
        return found
    with _problems_told(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{folder}.lock", "a")  # noqa: SIM115
    with lock:
        _wait_for(lock, place)
        found = _mapped(folder, facts)
        if found is None:
            arrays = build()
            with _problems_told(folder):
                _write(folder, facts, arrays)
                _remove_unused(folder.parent)
            found = _mapped(folder, facts)
    return found


@contextlib.contextmanager
def _problems_told(folder: Path):
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be used: {error}; PLSC_CACHE names another folder") from error


def _wait_for(lock, place: str):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that builds the index of %s", place)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: each builds, and the last one stays


def _remove_unused(parent: Path):
    """Remove indices that were not used for long, and what killed processes left; once a day, since it looks at all."""
    looked = parent / ".looked"
    with contextlib.suppress(OSError):
        if time.time() - looked.stat().st_mtime < _LOOKED_SECONDS:
            return
    looked.touch()
    before = time.time() - _KEPT_SECONDS
    for path in parent.iterdir():
        with contextlib.suppress(OSError):  # another process removes it, or uses it just now
            if path.stat().st_mtime < before:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _mapped(folder: Path, facts: dict):
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
        return None  # absent or damaged; that too many files are open is no reason to build it anew


def _write(folder: Path, facts: dict, arrays: dict[str, np.ndarray]):
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    fresh.chmod(folder.parent.stat().st_mode & 0o777)  # for a cache that several users share
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
