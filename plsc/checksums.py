"""Checksums of a checkpoint's files: checksums.json, written with a checkpoint and compared when it is read.

    {"step": 1234, "files": {"model.safetensors": {"bytes": 343261248, "crc32": "9ae0daaf"}, …}}

CRC-32 finds what disks, copies and people do to files: every change within 32 neighbouring bits, and of all other
changes all but one in 4,294,967,296. It is not a signature: who wants to deceive writes another checksums.json. It is
zlib's, which the standard library has and which lets other threads run; docs/training.md compares its speed.
"""

import contextlib
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from plsc import files, places
from plsc.bounds import NonNegative
from plsc.errors import CheckpointError

FILE = "checksums.json"
FORMAT: Literal[3] = 3  # of trainer.json in checkpoints that have checksums

_PIECE = 2**20  # bytes that are summed and written at a time
_REMEDY = "copy the checkpoint again or name another one; --no-verify reads it without comparing checksums"


class _Sum(BaseModel):
    """Of one file: its length and the CRC-32 of its content, in eight hexadecimal digits."""

    bytes: NonNegative
    crc32: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes with CRC-32 {self.crc32}"


class _Checksums(BaseModel):
    """checksums.json."""

    step: NonNegative
    files: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], _Sum]


class SummedFile:
    """A file that is being written, and the sum of what was written so far."""

    def __init__(self, file: files.UncachedFile):
        self._file, self._bytes, self._crc = file, 0, 0

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes; each piece is summed while the processor's cache has it, so that nothing is read again."""
        view = memoryview(content)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._crc = zlib.crc32(piece, self._crc)
            self._file.write(piece)
        self._bytes += len(view)
        return len(view)

    @property
    def sum(self) -> _Sum:
        return _Sum(bytes=self._bytes, crc32=f"{self._crc:08x}")


class SummedFolder:
    """Writes the files of one checkpoint, and their sums."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._sums: dict[str, _Sum] = {}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[SummedFile]:
        """Context of writing one file."""
        with files.UncachedFile(self._folder / name) as file:
            summed = SummedFile(file)
            yield summed
        self._sums[name] = summed.sum

    def write_text(self, name: str, text: str) -> None:
        """Write one text file in UTF-8."""
        with self.open(name) as file:
            file.write(text.encode("utf-8"))

    @property
    def sums(self) -> dict[str, dict[str, Any]]:
        """Length and CRC-32 of the files so far, by name."""
        return {name: written.model_dump() for name, written in self._sums.items()}

    def add(self, sums: Mapping[str, Any]) -> None:
        """Files that another process has written into the folder, as its `sums` are."""
        self._sums |= {name: _Sum.model_validate(written) for name, written in sums.items()}

    def finish(self, step: int) -> None:
        """Write checksums.json of a checkpoint of `step`."""
        files.write_json(self._folder / FILE, _Checksums(step=step, files=self._sums).model_dump())


def verify(folder: Path, arrays: Collection[str] | None = None) -> None:
    """Compare a checkpoint's files with their checksums. Checkpoints of earlier formats, which have none, pass.

    Args:
        arrays: names of the .safetensors files to be compared, which are large; None for all. Small files always are.

    Raises:
        CheckpointError: naming every file that is missing, or is not the one that was written; or the folder's name is
            of another step.
    """
    folder = Path(folder)
    content = files.read_json(folder / FILE, dict, error=CheckpointError)
    if content is None:
        trainer = files.read_json(folder / "trainer.json", dict, error=CheckpointError) or {}
        if trainer.get("format") == FORMAT:
            raise CheckpointError(f"{folder}: incomplete: {FILE} {files.absence(folder / FILE)}; {_REMEDY}")
        return
    try:
        checksums = _Checksums.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{folder / FILE}: damaged: {problems(error)}; {_REMEDY}") from error
    check_name(folder, checksums.step, FILE)
    wrong = []
    for name, written in checksums.files.items():
        if arrays is None or not name.endswith(".safetensors") or name in arrays:
            difference = _difference(folder / name, written)
            if difference:
                wrong.append(f"{name} {difference}")
    if wrong:
        raise CheckpointError(f"{folder}: damaged: {'; '.join(wrong)}\n  {_REMEDY}")


def fingerprint(folder: Path) -> bytes:
    """What tells a checkpoint from others: the content of its checksums.json, in earlier formats of its trainer.json.

    Raises:
        CheckpointError: it cannot be read.
    """
    file = Path(folder) / (FILE if (Path(folder) / FILE).is_file() else "trainer.json")
    try:
        return files.read_bytes(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error


def check_name(folder: Path, step: int, file: str) -> None:
    """Raise CheckpointError where a folder's name is of another step than a file in it says."""
    named = places.step_of(folder.resolve())
    if named not in (None, step):
        raise CheckpointError(
            f"{folder}: its name is of step {named}, but its {file} says step {step}: it was renamed, or other "
            f"files were copied into it; name it {places.step_name(step)} if its files belong together"
        )


def problems(error: ValidationError) -> str:
    """What pydantic found wrong, in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _difference(path: Path, written: _Sum) -> str | None:
    """How a file differs from what was written; None where it does not."""
    try:
        if not path.is_file():
            return files.absence(path)
        if path.stat().st_size != written.bytes:
            return f"has {path.stat().st_size:,} bytes, not the {written.bytes:,} that were written"
        read = _sum_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if read == written else f"has CRC-32 {read.crc32}, not the {written.crc32} that was written"


def _sum_of(path: Path) -> _Sum:
    crc, count, piece = 0, 0, memoryview(bytearray(min(_PIECE, max(1, path.stat().st_size))))
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while read := file.readinto(piece):
            crc = zlib.crc32(piece[:read], crc)
            count += read
    return _Sum(bytes=count, crc32=f"{crc:08x}")
