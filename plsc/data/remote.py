"""Files at addresses (s3://…, gs://…, https://…) → copies on a local disk, through fsspec."""

import contextlib
import fcntl
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from plsc.data.index import cache_folder
from plsc.errors import ConfigError, DataError
from plsc.files import WRITING, replacing_file

log = logging.getLogger("plsc")

T = TypeVar("T")

_ATTEMPTS = 20
_ABANDONED_SECONDS = 24 * 3600.0
_BLOCK = 8 << 20  # bytes asked for at once
_CONNECTIONS = 4  # blocks of one file that are on their way
_TRIES = 6  # of one block: over 15 to 30 seconds where the answer is an error
_VERSIONS = 3  # of one file that changes while its blocks are fetched
_VERSION_KEYS = {"size", "etag", "lastmodified", "mtime"}  # of fsspec's info, without - and _
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_SILENT_SECONDS = 30.0  # without a byte, after which a connection counts as lost

_hosts_without_parts: set[str] = set()  # that answered a request for a part of a file with all of it


def is_remote(path: str) -> bool:
    """Whether a path is an address, with a protocol before it."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


def _filesystem(address: str):
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{address}: addresses need fsspec; pip install fsspec") from None
    options: dict[str, Any] = {}
    if address.startswith("http"):  # else a server that falls silent is waited for five minutes
        with contextlib.suppress(ImportError):
            import aiohttp

            limit = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_SECONDS, sock_read=_SILENT_SECONDS)
            options["client_kwargs"] = {"timeout": limit}
    try:
        return fsspec.core.url_to_fs(address, **options)
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
        matches = _persistently(pattern, lambda: filesystem.glob(path))
        return sorted(filesystem.unstrip_protocol(match) for match in matches)
    except Exception as error:
        raise DataError(f"{pattern}: cannot be listed: {error}") from error


def read_remote(address: str) -> bytes:
    """The content of a small file. Raises DataError where it cannot be fetched."""
    filesystem, path = _filesystem(address)
    try:
        return _persistently(address, lambda: filesystem.cat_file(path))
    except Exception as error:
        raise DataError(f"{address}: cannot be fetched: {_shown(error)}") from error


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
                _fetch_file(address, filesystem, path, writing)
        except Exception as error:
            raise DataError(f"{address}: cannot be fetched: {_shown(error)}") from error

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


class _NoParts(Exception):
    """The storage gives files as a whole only."""


def _fetch_file(address: str, filesystem: Any, path: str, copy: Path) -> None:
    """Fetch a file in parts where the storage gives them, else as a whole.

    Parts are of one version: where the file has changed when the last has come, all are fetched again.
    """
    host = urlsplit(address).netloc
    for _ in range(_VERSIONS):
        info = _persistently(address, lambda: _info(filesystem, path))
        size = info.get("size")
        if not size or info.get("partial") is False or host in _hosts_without_parts:
            break
        try:
            _fetch_blocks(address, filesystem, path, copy, size)
        except _NoParts:
            _hosts_without_parts.add(host)
            break
        except Exception:  # parts that a shorter version does not have, for example
            if _version(_info(filesystem, path)) == _version(info):
                raise
        else:
            if _version(_persistently(address, lambda: _info(filesystem, path))) == _version(info):
                return
        log.info("%s: changed while it was fetched", address)
    else:
        raise OSError(
            f"its size, ETag or time changed while it was fetched, {_VERSIONS} times in a row; "
            "start again when it is no longer written to"
        )
    _persistently(address, lambda: _fetch_whole(filesystem, path, copy, size))


def _info(filesystem: Any, path: str) -> dict[str, Any]:
    """What the storage knows of a file now; nothing for a storage that cannot be asked."""
    filesystem.invalidate_cache(path)  # listings that s3fs and others remember
    try:
        return filesystem.info(path)
    except NotImplementedError:
        return {}


def _version(info: dict[str, Any]) -> dict[str, Any]:
    """The entries that differ between two versions of a file. Stores spell them ETag or etag, for example."""
    return {key: value for key, value in info.items() if re.sub("[-_]", "", key).lower() in _VERSION_KEYS}


def _fetch_whole(filesystem: Any, path: str, copy: Path, size: int | None) -> None:
    filesystem.get_file(path, str(copy))
    if size is not None:
        _require_size(copy, size)


def _fetch_blocks(address: str, filesystem: Any, path: str, copy: Path, size: int) -> None:
    """Fetch a file block by block, several at a time, so that neither latency nor one connection is the limit.

    Raises:
        _NoParts: asked for a part, the storage sends the whole file.
    """
    with open(copy, "wb") as file, ThreadPoolExecutor(_CONNECTIONS, "plsc-fetch") as pool:

        def fetch(start: int) -> None:
            end = min(start + _BLOCK, size)

            def block() -> bytes:
                content = _part(filesystem, path, start, end)
                if len(content) < end - start:
                    raise OSError(f"{len(content)} of {end - start} bytes arrived")
                return content

            _write_at(file.fileno(), _persistently(address, block), start)

        fetch(0)
        blocks = [pool.submit(fetch, start) for start in range(_BLOCK, size, _BLOCK)]
        try:
            for block in blocks:
                block.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        _require_size(copy, size)


def _part(filesystem: Any, path: str, start: int, end: int) -> bytes:
    """The bytes from `start` to `end`, or fewer. Raises _NoParts, for a web server before more are read."""
    if path.startswith(("http://", "https://")):
        from fsspec.asyn import sync

        content = sync(filesystem.loop, _part_from_web, filesystem, path, start, end)
    else:
        content = filesystem.cat_file(path, start=start, end=end)
    if len(content) > end - start:
        raise _NoParts
    return content


async def _part_from_web(filesystem: Any, url: str, start: int, end: int) -> bytes:
    # fsspec's own way reads whatever comes into memory, the whole file too
    headers = {
        **filesystem.kwargs.get("headers", {}),
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
    }
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), **{**filesystem.kwargs, "headers": headers}) as answer:
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        is_whole = start == 0 and answer.content_length == end  # asked for all of a file, a server may answer 200
        if answer.status != 206 and not is_whole:
            raise _NoParts
        return await answer.read()


def _write_at(descriptor: int, content: bytes, start: int) -> None:
    """Write all of it: a system call may take less, on a disk that is nearly full say."""
    rest = memoryview(content)
    while len(rest):
        written = os.pwrite(descriptor, rest, start)
        if not written:
            raise OSError(f"the disk takes no more bytes; {len(rest)} of {len(content)} at byte {start} are left")
        rest, start = rest[written:], start + written


def _require_size(copy: Path, size: int) -> None:
    if copy.stat().st_size != size:
        raise OSError(f"the copy has {copy.stat().st_size} of {size} bytes")


def _persistently(address: str, ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again after errors that may pass: lost connections, 503, silence."""
    for attempt in range(_TRIES - 1):
        try:
            return ask()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, _NoParts):
            raise
        except Exception as error:  # of whatever kind the storage's library has
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
            log.info("%s: %s; asked again in %.1f s", address, _shown(error), pause)
            time.sleep(pause)
    return ask()


def _shown(error: Exception) -> str:
    return str(error) or type(error).__name__


def _touched(copy: Path) -> bool:
    """Whether the copy is there; its time of use becomes now."""
    try:
        os.utime(copy)
        return True
    except FileNotFoundError:
        return False
