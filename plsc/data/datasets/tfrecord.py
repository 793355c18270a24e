"""TFRecord files in the layout of tensorflow_datasets, as COYO-Labeled-300M has them. TensorFlow is not needed.

A record is length (uint64), its checksum, the data, its checksum; the data is a tf.train.Example, a
protocol buffer: Example{1: Features{1: map<name, Feature>}}, Feature{1: bytes, 2: float, 3: int64 list}.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plsc.data.byte_file import ByteFile
from plsc.data.datasets.labels import Labels
from plsc.data.datasets.shards import Format, in_shards
from plsc.errors import DataError
from plsc.registry import DATASETS

_HEAD, _FOOT = 12, 4
_BLOCK = 4096
_LENGTH_DELIMITED, _VARINT, _FIXED64, _FIXED32 = 2, 0, 1, 5


class _Records(Format):
    name = "TFRecord"

    def __init__(self, image_key: str, label_key: str, prob_key: str):
        self.image_key, self.label_key, self.prob_key = image_key, label_key, prob_key
        self.options = {"image_key": image_key, "label_key": label_key, "prob_key": prob_key}

    def index(self, path: Path, best) -> dict[str, np.ndarray]:
        places, probabilities = [], []
        size, offset = path.stat().st_size, 0
        file = ByteFile(path)
        try:
            while offset < size:
                head = file.read(offset, _HEAD)
                length, checksum = struct.unpack("<QI", head)
                if masked_crc32c(head[:8]) != checksum:
                    raise DataError(f"the record at byte {offset} is damaged: its length's checksum is wrong")
                if offset + _HEAD + length + _FOOT > size:
                    raise DataError(f"the record at byte {offset} is cut short")
                # the picture, nearly all of a record, is not read
                labels = self._labels(self._features(Lazy(file, offset + _HEAD, length), skip=self.image_key))
                places.append((offset + _HEAD, length))
                probabilities.append(best(labels))
                offset += _HEAD + length + _FOOT
        finally:
            file.close()
        return {
            "places": np.array(places, dtype=np.int64).reshape(-1, 2),
            "best": np.array(probabilities, dtype=np.float32),
        }

    def open(self, path: Path) -> ByteFile:
        return ByteFile(path)

    def sample(self, opened: ByteFile, entries, k: int) -> tuple[bytes, Labels]:
        offset, length = (int(n) for n in entries["places"][k])
        features = self._features(opened.read(offset, length))
        image = features.get(self.image_key)
        if not isinstance(image, list) or len(image) != 1:
            raise DataError(f"has no picture under {self.image_key!r}; there are {', '.join(sorted(features))}")
        return image[0], self._labels(features)

    def labels(self, opened: ByteFile, entries, k: int) -> Labels:
        offset, length = (int(n) for n in entries["places"][k])
        return self._labels(self._features(Lazy(opened, offset, length), skip=self.image_key))

    def _features(self, data, skip: str | None = None) -> dict:
        try:
            return parse_example(data, skip)
        except (IndexError, struct.error, UnicodeDecodeError, ValueError, KeyError) as error:
            raise DataError(f"a record is not a tf.train.Example: {error}") from error

    def _labels(self, features: dict) -> Labels:
        if self.label_key not in features:
            raise DataError(f"has no labels under {self.label_key!r}; there are {', '.join(sorted(features))}")
        ids = tuple(np.asarray(features[self.label_key], dtype=np.int64).tolist())
        probs = features.get(self.prob_key)
        if probs is None or (len(probs) == 0 and not ids):
            return Labels(ids)
        if len(probs) != len(ids):
            raise DataError(f"has {len(ids)} labels but {len(probs)} probabilities")
        return Labels(ids, tuple(np.asarray(probs, dtype=np.float64).tolist()))


class Lazy:
    """Bytes of a file that are read where they are looked at, a block at a time; slices are lazy too."""

    def __init__(self, file: ByteFile, offset: int, size: int, whole: "Lazy | None" = None):
        self._file, self._offset, self._size = file, offset, size
        self._whole = whole or self  # what this is a slice of; it keeps the block
        self._block_at, self._block = 0, b""

    def __len__(self):
        return self._size

    def __getitem__(self, at):
        if isinstance(at, slice):
            start, stop, _ = at.indices(self._size)
            return Lazy(self._file, self._offset + start, max(0, stop - start), self._whole)
        if not 0 <= at < self._size:
            raise IndexError("a number reaches over the end of its message")
        return self._whole._byte(self._offset + at)

    def _byte(self, place: int) -> int:
        at = place - self._block_at
        if not 0 <= at < len(self._block):
            size = min(_BLOCK, self._offset + self._size - place)
            self._block_at, self._block, at = place, self._file.read(place, size), 0
        return self._block[at]

    def __bytes__(self):
        return self._file.read(self._offset, self._size)


def _varint(data, at: int) -> tuple[int, int]:
    """(value, where it ends)"""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(data):
    """(field number, wire type, value) of a message; length-delimited values are memoryviews."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire in (_LENGTH_DELIMITED, _FIXED64, _FIXED32):
            if wire == _LENGTH_DELIMITED:
                length, at = _varint(data, at)
            else:
                length = 8 if wire == _FIXED64 else 4
            if at + length > len(data):
                raise ValueError("a field reaches over the end of its message")
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        yield number, wire, value


def _messages(data) -> Iterator[tuple[int, memoryview]]:
    """(field number, message) of a message's fields that are messages or bytes."""
    return ((number, value) for number, wire, value in _fields(data) if wire == _LENGTH_DELIMITED)


def parse_example(data, skip: str | None = None) -> dict:
    """A serialised tf.train.Example → name → list of bytes, float32 array or int64 array.

    Args:
        data: bytes or Lazy. skip: a feature that is left out, and not read.

    Raises ValueError, IndexError or KeyError where it is none.
    """
    features = {}
    for number, message in _messages(memoryview(data) if isinstance(data, bytes) else data):
        if number != 1:
            continue
        for kind, entry in _messages(message):
            if kind == 1:
                parts = dict(_messages(entry))
                name = bytes(parts[1]).decode()
                if name != skip:
                    features[name] = _feature(memoryview(bytes(parts.get(2, b""))))
    return features


def _feature(message):
    for number, values in _messages(message):
        if number == 1:
            return [bytes(value) for _, value in _messages(values)]
        if number == 2:
            # packed into one field, or a field each
            parts = [np.frombuffer(v, "<f4") for _, wire, v in _fields(values) if wire in (_LENGTH_DELIMITED, _FIXED32)]
            return np.concatenate(parts or [np.zeros(0, "<f4")])
        if number == 3:
            packed = (_integers(wire, v) for _, wire, v in _fields(values) if wire in (_LENGTH_DELIMITED, _VARINT))
            return np.array([n for numbers in packed for n in numbers], dtype=np.int64)
    return []


def _integers(wire: int, value):
    integers, at = [value] if wire == _VARINT else [], 0
    while wire != _VARINT and at < len(value):
        number, at = _varint(value, at)
        integers.append(number)
    return [n - (1 << 64) if n >= 1 << 63 else n for n in integers]


def _crc_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord: CRC-32C (Castagnoli), rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@DATASETS.register()
@in_shards
def TFRecord(image_key: str = "image", label_key: str = "labels", prob_key: str = "label_probs"):
    """TFRecord shards of tensorflow_datasets, as COYO-Labeled-300M has them; ImageNet's label_key is label."""
    return _Records(image_key, label_key, prob_key)
