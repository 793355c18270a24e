"""Pickled files (checkpoints, CIFAR), read without running what is in them.

A pickle is a program: it names functions and calls them. The reader here knows a short list of
names (arrays, tensors, storages, plain containers), answers each with a stand-in of its own, and
refuses every other by name. Nothing of torch or Paddle is needed.

Time and memory stay in proportion to the file: its steps are counted, what it copies is charged to a budget that grows
with its size, keys are plain values (hashing tuples of tuples can take forever), sets are not made at all.
"""

import codecs
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plsc.errors import CheckpointError

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_ARRAY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_MOST_OPCODES, _MOST_VALUES, _DEEPEST = 1_000_000, 2_000_000, 50
_MOST_DIMENSIONS, _LARGEST = 32, 2**63 - 1
_LONGEST_KEY, _MOST_NUMBER_KEYS = 1000, 10_000  # hashes of text are salted, those of numbers a file can choose
_COPIES, _SLACK = 4, 1_000_000  # what may be copied: so many times the file, and so much besides
ITEM_BYTES = {"bfloat16": 2}


def item_bytes(dtype: str) -> int:
    return ITEM_BYTES.get(dtype) or np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Storage:
    """A torch storage: where its bytes are is the archive's business."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A torch tensor: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor without a storage")
    if len(shape) != len(strides) or not _are_sizes((offset, *shape, *strides)):
        raise ValueError("a tensor whose shape, strides or offset are none")
    shape, strides = tuple(shape), tuple(strides)
    if np.prod(shape, dtype=object) > storage.count:
        raise CheckpointError(f"a tensor of shape {shape} reaches outside its storage of {storage.count} values")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0
    if min((offset, *shape, *strides)) < 0 or (all(shape) and last >= storage.count):
        raise CheckpointError("a tensor reaches outside its storage")
    return StoredTensor(storage, offset, shape, strides)


def _are_sizes(values: tuple) -> bool:
    """Whether values are whole numbers as the shape of an array has them, and not too many."""
    return len(values) <= 2 * _MOST_DIMENSIONS + 1 and all(type(n) is int and abs(n) <= _LARGEST for n in values)


def _rebuild_parameter(data, *_):
    return data


class _Mapping(dict):
    """Stand-in of OrderedDict, which Python 2 makes of a list of pairs."""

    def __init__(self, items=()):
        super().__init__()
        for key, value in items.items() if isinstance(items, dict) else items:
            if _is_number_key(key):
                raise CheckpointError("an ordered mapping whose keys are not texts")
            self[key] = value

    def __setstate__(self, state):
        """Attributes, such as torch's _metadata, are dropped."""


class _Set(list):
    """Stand-in of a set: its items are not hashed."""

    def __init__(self, items=()):
        super().__init__(items)


class _Namespace:
    """Stand-in of argparse.Namespace: training scripts store their arguments so."""

    def __init__(self, *_):
        self.values = {}

    def __setstate__(self, state):
        self.values = dict(state) if isinstance(state, dict) else {}


class _Dtype:
    """Stand-in of numpy.dtype for the plain number types."""

    def __init__(self, name="", *_):
        if not isinstance(name, str) or name not in _ARRAY_TYPES:
            shown = repr(name[:20]) if isinstance(name, str) else type(name).__name__
            raise CheckpointError(f"an array of type {shown}; only plain numbers are read")
        self.name, self.order = name, "<"

    def __setstate__(self, state):
        self.order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"

    def numpy(self) -> np.dtype:
        return np.dtype((self.order if self.order in "<>" else "=") + self.name)


class _Array:
    """Stand-in of numpy.ndarray, filled by its state."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # bytes of a pickle that Python 2 wrote
            data = data.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise CheckpointError("an array that does not consist of plain numbers")
        if not isinstance(shape, tuple) or not _are_sizes(shape):
            raise ValueError("an array whose shape is none")
        array = np.frombuffer(data, dtype.numpy())
        if array.size != int(np.prod(shape, dtype=np.int64)):
            raise CheckpointError(f"an array of shape {shape} with {array.size} values")
        self.value = array.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_):
    return _Array()


def _scalar(dtype, data=b""):
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise CheckpointError("a number of an unknown type")
    return np.frombuffer(data, dtype.numpy())[0].item()


def _encode(text, encoding="latin1"):
    if encoding not in ("latin1", "latin-1"):
        shown = repr(encoding[:20]) if isinstance(encoding, str) else type(encoding).__name__
        raise CheckpointError(f"text in the encoding {shown}")
    return codecs.latin_1_encode(text)[0]


_ADMITTED = {
    ("collections", "OrderedDict"): _Mapping,
    ("collections", "defaultdict"): lambda *_: {},
    ("builtins", "tuple"): lambda items=(): tuple(items),
    ("builtins", "set"): _Set,
    ("builtins", "list"): lambda items=(): list(items),
    ("builtins", "dict"): lambda *_: {},
    ("builtins", "bytes"): lambda: b"",  # how Python 3 writes empty bytes where Python 2 shall read them
    ("argparse", "Namespace"): _Namespace,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): lambda items=(): tuple(items),
    ("torch", "device"): lambda *_: "device",
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[(_module, "_reconstruct")] = _reconstruct
    _ADMITTED[(_module, "scalar")] = _scalar
for _name in _STORAGES:
    _ADMITTED[("torch", _name)] = _name
for _name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"):
    _ADMITTED[("torch", _name)] = f"torch.{_name}"
# what Python 2 wrote
for _name in ("tuple", "set", "list", "dict", "bytes"):
    _ADMITTED[("__builtin__", _name)] = _ADMITTED[("builtins", _name)]


_PythonUnpickler: Any = pickle._Unpickler  # typed without its stack and its load methods


def _is_number_key(key) -> bool:
    """Whether a key is plain, but no text. Raises CheckpointError for one that is not plain."""
    if isinstance(key, (str, bytes)):
        if len(key) > _LONGEST_KEY:
            raise CheckpointError(f"a key of {len(key):,} characters")
        return False
    parts = key if type(key) is tuple and len(key) <= _MOST_DIMENSIONS else (key,)
    for part in parts:
        if isinstance(part, int) and abs(part) > _LARGEST:
            raise CheckpointError("a key that is a huge number")
        if not isinstance(part, (int, float, type(None))) and not (isinstance(part, str) and len(part) <= _LONGEST_KEY):
            raise CheckpointError(f"a key that is not a plain value: {type(key).__name__}")
    return True


class _Dispatch(dict):
    """Opcode → its method. Counts what it is asked for, which is each step of a pickle."""

    count = 0

    def __getitem__(self, opcode):
        self.count += 1
        if self.count > _MOST_OPCODES:
            raise CheckpointError(f"it has more than {_MOST_OPCODES:,} steps")
        return super().__getitem__(opcode)


class _Memo(dict):
    """Index → value, for indices as a pickle has them: rising from 0."""

    def __setitem__(self, index, value):
        if index > _MOST_OPCODES:
            raise CheckpointError("its memo is too large")
        super().__setitem__(index, value)


class _File:
    """An open file that is not asked for more than it has: a reader may reserve what a damaged length claims."""

    def __init__(self, file):
        self._file, self.readline = file, file.readline
        at = file.tell()
        self.size = file.seek(0, os.SEEK_END)
        file.seek(at)

    def read(self, count: int) -> bytes:
        if count > 4096 and count > self.size - self._file.tell():
            raise EOFError("the file ends within a value")
        return self._file.read(count)


class _Unpickler(_PythonUnpickler):
    """Python's own unpickler written in Python: what it calls can be looked at, and its steps can be counted.

    The one in C reserves memory for any index that a file names.
    """

    def __init__(self, file):
        bounded = _File(file)
        super().__init__(bounded, encoding="latin1")
        self.memo, self.dispatch = _Memo(), _Dispatch(self.dispatch)
        self._budget, self._number_keys = _COPIES * bounded.size + _SLACK, 0

    def charge(self, *values) -> None:
        """Count what is about to be copied. Raises CheckpointError where it is out of proportion to the file."""
        self._budget -= sum(len(value) for value in values if hasattr(value, "__len__"))
        if self._budget < 0:
            raise CheckpointError("it copies its values more often than any file of weights")

    def _charge_call(self, arguments) -> None:
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"it calls something with {type(arguments).__name__} for arguments")
        self.charge(arguments)
        self.charge(*arguments)

    def check_key(self, key) -> None:
        self._number_keys += _is_number_key(key)
        if self._number_keys > _MOST_NUMBER_KEYS:
            raise CheckpointError(f"more than {_MOST_NUMBER_KEYS:,} keys are not texts")

    # -- opcodes --------------------------------------------------------------------------

    dispatch = dict(_PythonUnpickler.dispatch)

    def load_build(self):
        state, built = self.stack[-1], self.stack[-2]
        if not isinstance(built, (_Array, _Dtype, _Namespace, dict)):
            raise CheckpointError(f"it sets the state of {type(built).__name__}; nothing of it was run")
        self.charge(state, *(state if isinstance(state, tuple) and len(state) <= _MOST_DIMENSIONS else ()))
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def load_reduce(self):
        self._charge_call(self.stack[-1])
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self):
        self._charge_call(self.stack[-1])
        super().load_newobj()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self):
        self.charge(self.stack[-1])
        self._charge_call(self.stack[-2])
        super().load_newobj_ex()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _instantiate(self, klass, args):
        self._charge_call(tuple(args))
        super()._instantiate(klass, args)

    def load_bytearray8(self):
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_setitem(self):
        self._require_mapping(self.stack[-3])
        self.check_key(self.stack[-2])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self):
        self._require_mapping(self.metastack[-1][-1])
        for key in self.stack[::2]:
            self.check_key(key)
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    @staticmethod
    def _require_mapping(target) -> None:
        if not isinstance(target, dict):
            raise CheckpointError(f"it sets a key of {type(target).__name__}")

    def load_dict(self):
        for key in self.stack[::2]:
            self.check_key(key)
        super().load_dict()

    dispatch[pickle.DICT[0]] = load_dict

    def load_empty_set(self):
        self.append(_Set())

    dispatch[pickle.EMPTY_SET[0]] = load_empty_set

    def load_additems(self):
        items = self.pop_mark()
        if not isinstance(self.stack[-1], _Set):
            raise CheckpointError(f"it adds items to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self):
        self.load_tuple()

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def find_class(self, module, name):
        try:
            return _ADMITTED[(module, name)]
        except KeyError:
            raise CheckpointError(
                f"it asks for {module[:100]}.{name[:100]}, which is neither an array nor a plain container; nothing of "
                "it was run"
            ) from None

    def persistent_load(self, saved):
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
            raise CheckpointError("a reference to something that is not a tensor storage")
        _, kind, key, _, count, *_ = saved
        if not isinstance(kind, str) or kind not in _STORAGES or not isinstance(key, (str, int)):
            raise CheckpointError("a reference to something that is not a tensor storage")
        if not _are_sizes((count,)):
            raise ValueError("a storage whose length is none")
        return Storage(str(key), _STORAGES[kind], count)


def load(file, path: Path):
    """One pickle from an open binary file → plain containers, numbers, arrays, StoredTensor.

    Raises:
        CheckpointError: it asks for anything else, or is damaged.
    """
    try:
        unpickler = _Unpickler(file)
        return _plain(unpickler.load(), unpickler.charge)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: refused: {error}") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        MemoryError,
        RecursionError,
        ImportError,
        UnicodeDecodeError,
        struct.error,
    ) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{path}: damaged, or no checkpoint: {reason}") from None


def _plain(value, charge):
    """Stand-ins → their values, through containers, each of which is turned once.

    What several containers share counts in each of them, so that whoever walks through the result is done in time.
    """
    done: dict[int, tuple[object, int]] = {}

    def turn(value, depth: int) -> tuple[object, int]:
        """A value turned, and of how many it consists."""
        if isinstance(value, (str, bytes, bytearray)):
            charge(value)
        if not isinstance(value, (_Array, _Namespace, dict, list, tuple)):
            return value, 1
        if id(value) in done:
            return done[id(value)]
        if depth > _DEEPEST:
            raise CheckpointError("its containers are nested too deeply")
        result: object
        count = 1
        if isinstance(value, _Array):
            if value.value is None:
                raise CheckpointError("an array without content")
            result = value.value
        else:
            items = value.values if isinstance(value, _Namespace) else value
            inner = [turn(item, depth + 1) for item in (items.values() if isinstance(items, dict) else items)]
            count += sum(size for _, size in inner)
            turned = [item for item, _ in inner]
            if isinstance(items, dict):
                result = dict(zip(items, turned, strict=True))
            else:
                result = turned if type(items) is list else tuple(turned)
        if count > _MOST_VALUES:
            raise CheckpointError("its containers hold too many values")
        done[id(value)] = result, count
        return result, count

    return turn(value, 0)[0]
