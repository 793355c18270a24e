"""Official archives: found, fetched, read without unpacking, or unpacked once beside themselves."""

import contextlib
import fcntl
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from plsc.data.datasets.download import download_official
from plsc.errors import DataError
from plsc.files import WRITING

_PIECE = 1 << 20


@dataclass(frozen=True)
class Official:
    """A file as its authors publish it.

    Attributes:
        url: where it is fetched from. md5: its MD5 sum.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def official_file(root: Path, file: Official, owner: str, download: bool) -> Path:
    """A file in `root`, fetched where it is missing and `download` is set.

    Args:
        owner: the data set's name in messages.

    Raises:
        DataError: it is missing, or cannot be fetched.
    """
    path = root / file.name
    if path.is_file():
        return path
    if download:
        return download_official(file.url, file.md5, root)
    raise DataError(f"{root}: holds no {file.name}; put the official file there, or set {owner}.download to True")


def archive_or_folder(root: Path, archive: str, folder: str, marker: str) -> Path | None:
    """The unpacked folder or the archive, which `root` is or holds; None where there is neither.

    Args:
        marker: a file that the folder must hold.
    """
    for place in (root, root / folder, root / archive):
        if place.is_file() or (place / marker).is_file():
            return place
    return None


def missing(root: Path, archive: str, folder: str, owner: str) -> DataError:
    """What is raised where neither is there and nothing may be fetched."""
    return DataError(
        f"{root}: holds neither {archive} nor the folder {folder}; put the official archive there, or set "
        f"{owner}.download to True"
    )


def members(source: Path, folder: str, wanted: Iterable[str], largest: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of those wanted files that an archive has in its folder, or the unpacked folder has.

    Args:
        largest: bytes that an official member has at most.

    Raises:
        DataError: the archive is damaged, or a member is larger.
    """
    wanted = set(wanted)
    if source.is_dir():
        yield from ((name, (source / name).read_bytes()) for name in sorted(wanted) if (source / name).is_file())
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                inside, name = ("", "", *PurePosixPath(member.name).parts)[-2:]
                if inside != folder or name not in wanted or not member.isfile():
                    continue
                if member.size > largest:
                    raise DataError(f"{source}: {member.name} has {member.size:,} bytes, more than any official one")
                content = archive.extractfile(member)
                assert content is not None, "of files, which isfile() says it is"
                yield name, content.read()
            _read_to_the_end(archive)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{source}: damaged archive: {error}") from error


def unpacked(root: Path, archive: Official, folder: str, *, owner: str, download: bool, largest: int) -> Path:
    """The folder that an archive holds, unpacked into `root` where it is not there yet.

    One process of a machine unpacks while others wait. Only plain files are unpacked, and only those inside the
    folder; it takes its name when it is complete, so that a kill leaves no half of it.

    Args:
        folder: the one folder at the archive's top that is wanted.
        largest: bytes that the official files have together at most.

    Raises:
        DataError: the archive is missing, damaged, or is not the official one.
    """
    target = root / folder
    if target.is_dir():
        return target
    if not (root / archive.name).is_file() and not download:
        raise missing(root, archive.name, folder, owner)
    path = official_file(root, archive, owner, download)
    with _locked(root / f".{folder}.lock", f"{path}: cannot be unpacked there"):
        if not target.is_dir():  # another process may have made it
            writing = root / f"{WRITING}{folder}"
            shutil.rmtree(writing, ignore_errors=True)
            try:
                _unpack(path, folder, writing, largest)
                os.sync()
                os.replace(writing, target)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
    return target


@contextlib.contextmanager
def _locked(path: Path, problem: str) -> Iterator[None]:
    """Context that one process of a machine is in at a time. Raises DataError where the lock cannot be made."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(open(path, "w"))
        except OSError as error:
            raise DataError(f"{problem}: {error.strerror}; unpack it yourself, or use a folder of yours") from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack(source: Path, folder: str, target: Path, largest: int) -> None:
    left = largest
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                parts = tuple(part for part in place.parts if part != ".")
                if not member.isfile() or parts[:1] != (folder,):
                    continue
                if ".." in parts:
                    raise DataError(f"{source}: {member.name} leaves the folder; this is not an official archive")
                left -= member.size
                if left < 0:
                    raise DataError(f"{source}: holds more than {largest:,} bytes; this is not an official archive")
                path = target.joinpath(*parts[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None, "of files, which isfile() says it is"
                with open(path, "wb") as file:
                    shutil.copyfileobj(content, file, _PIECE)
            _read_to_the_end(archive)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{source}: cannot be unpacked, or is damaged: {error}") from error
    if not target.is_dir():
        raise DataError(f"{source}: holds no folder {folder}; this is not an official archive")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones. Raises DataError where it is missing or no text."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_matlab(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of numbers in a MATLAB file of version 5, with their axes of one value taken out.

    Raises:
        DataError: it is damaged, or lacks one of them.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True, variable_names=names)
    except Exception as error:  # whatever its parser meets in a damaged file
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}") from error
    for name in names:
        if name not in content or not np.issubdtype(np.asarray(content[name]).dtype, np.number):
            raise DataError(f"{path}: holds no numbers {name}; it is not the official file")
    return [np.atleast_1d(content[name]) for name in names]


def _read_to_the_end(archive: tarfile.TarFile) -> None:
    """gzip's checksum is at the end of the file, after what tarfile reads."""
    assert archive.fileobj is not None
    while archive.fileobj.read(_PIECE):
        pass
