"""Writing files and folders so that a kill at any moment leaves the old or the new one; reading files, and JSON.

What is written goes beside its place first, is synced, and is then renamed.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plsc.errors import PlscError

_PIECE = 8 * 2**20  # bytes that an UncachedFile writes at a time, a multiple of any block
_LOCK, _YOUNG_SECONDS = "lock", 10.0  # of a temporary folder; one that is younger may not be locked yet
WRITING = ".writing-"  # how names begin that a killed process may leave; nobody reads them


def sync(path: Path) -> None:
    """Make the system write a file's content, or a folder's names, to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class UncachedFile:
    """A new file that is written past the system's page cache (O_DIRECT), where its file system has that.

    Through the cache the kernel copies every byte once more, and displaces what training reads: docs/performance.md has
    both costs. What is shorter than a piece, and the rest after the last whole piece, goes through the cache.
    """

    def __init__(self, path: Path):
        self._buffer = mmap.mmap(-1, _PIECE)  # begins at a page, as direct writing asks for
        self._view, self._filled = memoryview(self._buffer), 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._direct = getattr(os, "O_DIRECT", 0)
        try:
            self._descriptor = os.open(path, flags | self._direct, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = 0
            self._descriptor = os.open(path, flags, 0o666)

    def __enter__(self) -> "UncachedFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self._filled:
                self._use_cache()
                self._flush()
        finally:
            self._view.release()
            self._buffer.close()
            os.close(self._descriptor)

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes, of which a memoryview has one dimension."""
        rest = memoryview(content)
        while len(rest):
            part = rest[: _PIECE - self._filled]
            self._view[self._filled : self._filled + len(part)] = part
            self._filled, rest = self._filled + len(part), rest[len(part) :]
            if self._filled == _PIECE:
                self._flush()
        return len(content)

    def _flush(self) -> None:
        """Write what the buffer holds."""
        done = 0
        while done < self._filled:
            try:
                done += os.write(self._descriptor, self._view[done : self._filled])
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._use_cache()  # a file system that lets files be opened so, but not written
            if done < self._filled:
                self._use_cache()  # a part that was written need not end at a block
        self._filled = 0

    def _use_cache(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Context that yields a path to write to; at its end the file is synced and takes the place of `path`.

    Where the block raises, nothing of it stays. Missing parent folders are made.

    Raises:
        OSError: the file cannot be written, or `path` is a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f"{WRITING}{path.name}")
    try:
        yield writing
        sync(writing)
        os.replace(writing, path)
        sync(path.parent)
    finally:
        writing.unlink(missing_ok=True)


def writing_folder(path: Path) -> Path:
    """Where replacing_folder lets a folder be filled."""
    return path.with_name(f"{WRITING}{path.name}")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Context that yields an empty folder to fill; at its end it is synced and takes the place of `path`.

    A folder that stands there is moved aside, and removed when the new one is in place. Where the block raises, or the
    new one cannot be put there, nothing of it stays, and the old one is back in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = writing_folder(path)
    replaced = path.with_name(f"{WRITING}replaced-{path.name}")
    moved = False
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        yield writing
        for file in [*writing.rglob("*"), writing]:
            sync(file)
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            os.replace(path, replaced)
            moved = True
        os.replace(writing, path)
        sync(path.parent)
    finally:
        if moved and not path.exists():
            os.replace(replaced, path)
        shutil.rmtree(writing, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Context that yields an empty folder in the system's temporary one; at its end it is removed.

    What killed processes left under the same name is removed first: a folder whose lock nobody holds.
    """
    parent, prefix = Path(tempfile.gettempdir()), f"{name}-{os.getuid()}-"
    for left in parent.glob(f"{prefix}*"):
        _remove_unlocked(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with open(folder / _LOCK, "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    """Remove a temporary folder, unless a process is at work in it, or begins to be."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
            return
        with open(folder / _LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing_file(Path(path)) as writing:
        writing.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # names of files whose bytes are not text
        text = json.dumps(content, indent=1, allow_nan=False)
    write_text(path, text + "\n")


class AppendedFile:
    """A file that whole lines are added to, for as long as a run takes. What is there stays.

    Raises:
        OSError: the file cannot be opened for writing, or is a named pipe that nobody reads.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # which a pipe would wait without
        self._descriptor = os.open(self.path, flags, 0o666)

    def add(self, line: str) -> None:
        """Write a line and its end, whole or not at all.

        Raises:
            OSError: the disk is full or read-only, or the path is no longer this file, so that nobody would find it.
        """
        opened = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise OSError(errno.ENOENT, "it was removed or replaced while the run was at work", str(self.path))
        content = f"{line}\n".encode("utf-8", "surrogateescape")
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:
            with contextlib.suppress(OSError):  # /dev/full and its like
                os.ftruncate(self._descriptor, opened.st_size)
            raise

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def special_kind(path: str | Path) -> str | None:
    """What a path is that is neither a file nor a folder, of which opening may wait, and reading not end; else None."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def refuse_special(path: str | Path) -> None:
    """Raise OSError where a path is a named pipe, a socket or a device."""
    kind = special_kind(path)
    if kind:
        raise OSError(errno.EINVAL, f"is {kind}, not a file", str(path))


def read_bytes(path: str | Path) -> bytes:
    """The content of a file. Raises OSError where it cannot be read, or is a named pipe, a socket or a device."""
    refuse_special(path)
    return Path(path).read_bytes()


def absence(path: Path) -> str:
    """Why there is no file or folder at a path, for a message: it is missing, or a link that leads nowhere."""
    if not path.is_symlink():
        return "is missing"
    return f"is a link that leads nowhere or in a circle, to {os.readlink(path)}"


def read_json(path: Path, kind: type | None = None, *, error: type[PlscError]) -> Any:
    """The content of a JSON file; None where there is no such file.

    Args:
        kind: dict, or list for a list of texts; None admits any content.
        error: raised, naming the file, where it cannot be read, is not JSON or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from problem
    return parse_json(content, kind, where=str(path), error=error)


def parse_json(text: str | bytes, kind: type | None = None, *, where: str, error: type[PlscError]) -> Any:
    """JSON text as `read_json`; `where` begins the message of the error."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: damaged: {problem}") from problem
    if kind is not None and not isinstance(value, kind):
        raise error(f"{where}: damaged: it holds no {'mapping' if kind is dict else kind.__name__}")
    if kind is list and not all(isinstance(item, str) for item in value):
        raise error(f"{where}: damaged: it is not a list of texts")
    return value
