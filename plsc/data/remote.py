"""Files at addresses (s3://…, gs://…, https://…) → copies on a local disk, through fsspec."""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from plsc.data.index import cache_folder
from plsc.errors import ConfigError, DataError
from plsc.files import WRITING, replacing_file

_ATTEMPTS = 20
_ABANDONED_SECONDS = 24 * 3600.0


def is_remote(path: str) -> bool:
    """Whether a path is an address, with a protocol before it."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


def _filesystem(address: str):
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{address}: addresses need fsspec; pip install fsspec") from None
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{address}: {error}") from error
    except Exception as error:  # stores' libraries have exceptions of their own, and some connect here
        raise DataError(f"{address}: cannot be reached: {error}") from error


def list_remote(pattern: str) -> list[str]:
    """Addresses that fit a pattern; one without wildcards is taken as it is."""
    wildcards = "*[" if pattern.startswith("http") else "*?["  # of a web address ? begins the query
    if not any(sign in pattern for sign in wildcards):
        return [pattern]
    filesystem, path = _filesystem(pattern)
    try:
        return sorted(filesystem.unstrip_protocol(match) for match in filesystem.glob(path))
    except Exception as error:
        raise DataError(f"{pattern}: cannot be listed: {error}") from error


class LocalCopies:
    """Copies of remote files in one folder, made on first use by one process while the others wait.

    Args:
        folder: where copies lie; None for remote/ in plsc's cache folder.
        gigabytes: above this total the copies that were used longest ago are removed; None keeps all.
    """

    def __init__(self, folder: str | None, gigabytes: float | None):
        self.folder = Path(folder).expanduser() if folder else cache_folder() / "remote"
        self.limit = None if gigabytes is None else int(gigabytes * 1e9)

    def path_of(self, address: str) -> Path:
        """The copy of a file. Raises DataError where it cannot be fetched."""
        name = hashlib.sha256(address.encode()).hexdigest()[:24] + "-" + address.rsplit("/", 1)[-1][-80:]
        copy = self.folder / name
        if not _touched(copy):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / f".{name}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _touched(copy):
                    self._fetch(address, copy)
                    self._make_room(copy)
        return copy

    def with_copy(self, address: str, use: Callable):
        """use(path of the copy); once more where another process has removed it in between."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return use(self.path_of(address))
            except FileNotFoundError:
                continue
        return use(self.path_of(address))

    def _fetch(self, address: str, copy: Path):
        filesystem, path = _filesystem(address)
        try:
            with replacing_file(copy) as writing:
                filesystem.get_file(path, str(writing))
                size = filesystem.info(path).get("size")
                if size is not None and size != writing.stat().st_size:
                    raise OSError(f"{writing.stat().st_size} of {size} bytes came")
        except Exception as error:
            raise DataError(f"{address}: cannot be fetched: {error}") from error

    def _make_room(self, newest: Path):
        for left in self.folder.glob(f"{WRITING}*"):  # of downloads that were killed
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                    left.unlink()
        if self.limit is None:
            return
        copies = []
        for path in self.folder.iterdir():
            if not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # another process makes room too
                    status = path.stat()
                    copies.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.limit:
                return
            if path != newest:
                # who has it open keeps reading it
                path.unlink(missing_ok=True)
                total -= size


def _touched(copy: Path) -> bool:
    """Whether the copy is there; its time of use becomes now."""
    try:
        os.utime(copy)
        return True
    except FileNotFoundError:
        return False
