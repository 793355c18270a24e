"""TensorFlow 2 checkpoints, PREFIX.index and PREFIX.data-00000-of-0000N, read without TensorFlow.

The index is a table of LevelDB's format, sorted by name: data blocks with prefix-compressed names, an index block that
lists them, and a footer that says where that is. Each value is a protocol buffer: under the empty name the header,
under every other one the type, shape, shard, offset, size and checksum of an array whose bytes are in that shard.

Reference: tensorflow/core/util/tensor_bundle, tensorflow/core/protobuf/tensor_bundle.proto and LevelDB's
doc/table_format.md. TensorFlow writes the blocks of an index uncompressed; one with snappy's blocks is not read.
"""

import functools
import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plsc.errors import CheckpointError

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last eight bytes of every index
_FOOTER = 48
_BLOCK_TRAILER = 5  # kind of compression, checksum

# far above any Vision Transformer's (some kilobytes a block of the model), so that a hostile index ends soon
_INDEX_BYTES, _ENTRIES, _NAME_BYTES, _VALUE_BYTES, _DIMENSIONS = 4 * 2**20, 5_000, 1024, 4096, 32

_TYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_NOT_NUMBERS = (7, 20, 21)  # string, resource, variant
_ITEM_BYTES = {name: 2 if name == "bfloat16" else np.dtype(name).itemsize for name in _TYPES.values()}


@dataclass(frozen=True)
class Entry:
    """One array of a bundle.

    Attributes:
        shape: as the index says it.
        dtype: NumPy's name of its type, or bfloat16.
        read: returns its bytes, once their checksum is right.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], bytes]


def read_bundle(index: Path) -> dict[str, Entry]:
    """The arrays of a checkpoint by name. Texts and what else is not an array of numbers are left out.

    Raises:
        CheckpointError: damaged, of a kind that is not read, or a part of it is missing.
        OSError: a file cannot be read.
    """
    table = list(_table(index))
    if not table or table[0][0]:
        raise CheckpointError(f"{index}: damaged: it does not begin with the checkpoint's header")
    shards = _header(index, table[0][1])
    entries, spans = {}, []
    for name, value in table[1:]:
        if name[:1] == b"\0":  # where TensorFlow 1 puts the slices of a partitioned variable
            raise CheckpointError(f"{index}: holds variables in slices (partitioned variables), which are not read")
        try:
            text = name.decode()
            entry, span = _entry(index, text, _fields(value), shards)
        except ValueError as error:
            raise CheckpointError(f"{index}: damaged: {name.decode(errors='replace')}: {error}") from error
        spans.append((*span, text))
        if entry is not None:
            entries[text] = entry
    _check_spans(index, spans, shards)
    return entries


def _shard(index: Path, number: int, shards: int) -> Path:
    return index.with_name(f"{index.name.removesuffix('.index')}.data-{number:05d}-of-{shards:05d}")


def _header(index: Path, value: bytes) -> int:
    """The number of shards."""
    try:
        fields = _fields(value)
        shards, is_big_endian = _number(fields, 1), _number(fields, 2)
        version = _number(_fields(_bytes(fields, 3)), 2)  # that a reader must have at least
    except ValueError as error:
        raise CheckpointError(f"{index}: damaged: its header: {error}") from error
    if is_big_endian:
        raise CheckpointError(f"{index}: written on a big-endian machine, which is not read")
    if version > 1:
        raise CheckpointError(f"{index}: asks for a reader of version {version}; this one is of version 1")
    if not 1 <= shards <= 99_999:
        raise CheckpointError(f"{index}: damaged: it has {shards} data files")
    return shards


def _entry(index: Path, name: str, fields: dict, shards: int) -> tuple[Entry | None, tuple[int, int, int]]:
    """An array, None where it is of another kind; and where its bytes are: shard, start, end."""
    kind, shard, offset, size = (_number(fields, n) for n in (1, 3, 4, 5))
    if 7 in fields:
        raise CheckpointError(f"{index}: {name} is stored in slices (a partitioned variable), which is not read")
    if shard >= shards:
        raise ValueError(f"it is in data file {shard} of {shards}")
    span = (shard, offset, offset + size)
    if kind in _NOT_NUMBERS:
        return None, span
    dtype = _TYPES.get(kind)
    if dtype is None:
        raise CheckpointError(f"{index}: {name} is of TensorFlow's type {kind}, which is not read")
    dimensions = _fields(_bytes(fields, 2)).get(2, [])
    if len(dimensions) > _DIMENSIONS:
        raise ValueError(f"it has {len(dimensions)} dimensions")
    shape = tuple(_number(_fields(_message(dimension)), 1) for dimension in dimensions)
    if size != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"{size} bytes for {dtype} of shape {list(shape)}")
    checksum = _number(fields, 6)
    path = _shard(index, shard, shards)

    def read() -> bytes:
        with open(path, "rb") as file:
            file.seek(offset)
            raw = file.read(size)
        if masked_crc32c(raw) != checksum:
            raise CheckpointError(f"{path}: damaged: the checksum of {name} is wrong")
        return raw

    return Entry(shape, dtype, read), span


def _check_spans(index: Path, spans: list[tuple[int, int, int, str]], shards: int) -> None:
    """Refuse arrays that end after their file does, or that share bytes."""
    spans.sort()
    for shard, inside in itertools.groupby(spans, key=lambda span: span[0]):
        path, previous = _shard(index, shard, shards), 0
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; {index.name} says that it holds some of the arrays")
        length = path.stat().st_size
        for _, start, end, name in inside:
            if end > length:
                raise CheckpointError(f"{path}: truncated: {name} ends at byte {end}, the file at {length}")
            if start < previous and start != end:
                raise CheckpointError(f"{index}: damaged: {name} shares its bytes with another array")
            previous = max(previous, end)


# -- the table --------------------------------------------------------------------------------


def _table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(name, value) of a LevelDB table, in ascending order."""
    length = path.stat().st_size
    if length > _INDEX_BYTES:
        raise CheckpointError(f"{path}: an index of {length} bytes; those of Vision Transformers are under a megabyte")
    raw = path.read_bytes()
    if len(raw) < _FOOTER or not raw.endswith(_MAGIC):
        raise CheckpointError(f"{path}: truncated, or no index of a TensorFlow checkpoint: its footer is missing")
    previous, count = None, 0
    try:
        _, at = _handle(raw, len(raw) - _FOOTER)  # of the block of meta data, which TensorFlow leaves empty
        blocks, _ = _handle(raw, at)
        for _, handle in _block(path, raw, *blocks):
            block, _ = _handle(handle, 0)
            for name, value in _block(path, raw, *block):
                if previous is not None and name <= previous:
                    raise ValueError("its names are not in ascending order")
                previous, count = name, count + 1
                if count > _ENTRIES:
                    raise CheckpointError(f"{path}: lists over {_ENTRIES} arrays, which no Vision Transformer has")
                yield name, value
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def _block(path: Path, raw: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, value) of one block."""
    end = start + size
    if size < 4 or end + _BLOCK_TRAILER > len(raw) - _FOOTER:
        raise ValueError(f"the block from byte {start} to byte {end} is not inside the file")
    compression, checksum = struct.unpack_from("<BI", raw, end)
    if masked_crc32c(raw[start : end + 1]) != checksum:
        raise ValueError(f"the checksum of the block at byte {start} is wrong")
    if compression:
        how = "with snappy" if compression == 1 else f"in a way numbered {compression}"
        raise CheckpointError(
            f"{path}: its blocks are compressed {how}, which is not read; TensorFlow writes them uncompressed"
        )
    (restarts,) = struct.unpack_from("<I", raw, end - 4)
    end -= 4 * (restarts + 1)
    if end <= start:  # so that there are no more blocks than names
        raise ValueError(f"the block at byte {start} has no entries")
    at, name = start, b""
    while at < end:
        shared, at = _varint(raw, at)
        added, at = _varint(raw, at)
        length, at = _varint(raw, at)
        if shared > len(name) or shared + added > _NAME_BYTES or length > _VALUE_BYTES or at + added + length > end:
            raise ValueError(f"the entry before byte {at} is longer than its block or than any entry is")
        name = name[:shared] + raw[at : at + added]
        at += added + length
        yield name, raw[at - length : at]


def _handle(raw: bytes, at: int) -> tuple[tuple[int, int], int]:
    """(first byte, size) of a block, and where reading goes on."""
    start, at = _varint(raw, at)
    size, at = _varint(raw, at)
    return (start, size), at


# -- protocol buffers -------------------------------------------------------------------------


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(a number in groups of seven bits, where reading goes on)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise ValueError("it ends within a number")
        value |= (raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return value, at
    raise ValueError("a number has over ten bytes")


def _fields(raw: bytes) -> dict[int, list[int | bytes]]:
    """The values of a message, by number of field."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(raw, at)
        else:
            if wire == 2:
                length, at = _varint(raw, at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise ValueError(f"field {number} is of unknown kind {wire}")
            if at + length > len(raw):
                raise ValueError(f"field {number} is truncated")
            part = raw[at : at + length]
            value = part if wire == 2 else int.from_bytes(part, "little")
            at += length
        fields.setdefault(number, []).append(value)
    return fields


def _number(fields: dict, number: int) -> int:
    """A field that counts something: 0 where it is missing, as the format has it."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int) or value >= 2**63:
        raise ValueError(f"field {number} is not a count")
    return value


def _bytes(fields: dict, number: int) -> bytes:
    return _message(fields.get(number, [b""])[-1])


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message should be")
    return value


# -- CRC-32C ----------------------------------------------------------------------------------
#
# The register after a message is linear in its bits: with A(r) the register after four zero bytes, the message of
# 32-bit words w0 … wn gives A(wn ^ A(… A(w0 ^ start))). So the front half of a row of words, sent through n/2 times A,
# can be added to its back half: the row folds to one word in a few operations on whole arrays.

_WORDS = 2**16  # of one fold


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli, RFC 3720) of bytes; about a gigabyte a second."""
    register = 0xFFFFFFFF
    words = np.frombuffer(data, "<u4", len(data) // 4)
    for start in range(0, len(words), _WORDS):
        row = words[start : start + _WORDS].astype(np.uint32)
        row[0] ^= register
        while len(row) > 1:
            half = 1 << (len(row) - 1).bit_length() - 1  # the largest power of two below the length
            front, row = row[:-half], row[-half:]
            row[half - len(front) :] ^= _advanced(front, half)
        register = int(_advanced(row, 1)[0])
    for byte in data[4 * len(words) :]:
        register = _BYTES[(register ^ byte) & 255] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The checksum as LevelDB and TensorFlow store it."""
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _after_zeros(register: int, bits: int) -> int:
    for _ in range(bits):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


_BYTES = [_after_zeros(byte, 8) for byte in range(256)]


def _advanced(words: np.ndarray, count: int) -> np.ndarray:
    """Each word as a register, after `count` (a power of two) words of zeros."""
    low, high = _tables(count)
    return low[words & 0xFFFF] ^ high[words >> 16]


@functools.cache
def _tables(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The register after `count` words of zeros, for each value of its lower and of its upper half."""
    columns = np.array([1 << bit for bit in range(32)], np.uint32)
    if count == 1:
        columns = np.array([_after_zeros(int(column), 32) for column in columns], np.uint32)
    else:
        columns = _advanced(_advanced(columns, count // 2), count // 2)
    tables = []
    for half in (columns[:16], columns[16:]):
        table = np.zeros(1, np.uint32)
        for column in half:
            table = np.concatenate([table, table ^ column])
        tables.append(table)
    return tables[0], tables[1]
