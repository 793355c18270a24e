"""Pickled files (checkpoints, CIFAR), read without running what is in them.

A pickle is a program: it names functions and calls them. The reader here knows a short list of
names (arrays, tensors, storages, plain containers), answers each with a stand-in of its own, and
refuses every other by name. Nothing of torch or Paddle is needed.
"""

import codecs
import collections
import pickle
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
_MOST_VALUES, _DEEPEST = 1_000_000, 50
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
    shape, strides = tuple(int(n) for n in shape), tuple(int(n) for n in strides)
    if np.prod(shape, dtype=object) > storage.count:
        raise CheckpointError(f"a tensor of shape {shape} reaches outside its storage of {storage.count} values")
    last = int(offset) + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0
    if min((int(offset), *shape, *strides), default=0) < 0 or (all(shape) and last >= storage.count):
        raise CheckpointError("a tensor reaches outside its storage")
    return StoredTensor(storage, int(offset), shape, strides)


def _rebuild_parameter(data, *_):
    return data


class _Namespace:
    """Stand-in of argparse.Namespace: training scripts store their arguments so."""

    def __init__(self, *_):
        self.values = {}

    def __setstate__(self, state):
        self.values = dict(state) if isinstance(state, dict) else {}


class _Dtype:
    """Stand-in of numpy.dtype for the plain number types."""

    def __init__(self, name="", *_):
        if name not in _ARRAY_TYPES:
            raise CheckpointError(f"an array of type {name!r}; only plain numbers are read")
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
        raise CheckpointError(f"text in the encoding {encoding!r}")
    return codecs.latin_1_encode(text)[0]


_ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("builtins", "tuple"): lambda items=(): tuple(items),
    ("builtins", "set"): lambda items=(): set(items),
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


class _Unpickler(_PythonUnpickler):
    """Python's own unpickler written in Python: its memo is a dict, and what it calls can be looked at.

    The one in C reserves memory for any index that a file names.
    """

    dispatch = dict(_PythonUnpickler.dispatch)

    def load_build(self):
        if not isinstance(self.stack[-2], (_Array, _Dtype, _Namespace, dict)):
            raise CheckpointError(f"it sets the state of {type(self.stack[-2]).__name__}; nothing of it was run")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module, name):
        try:
            return _ADMITTED[(module, name)]
        except KeyError:
            raise CheckpointError(
                f"it asks for {module}.{name}, which is neither an array nor a plain container; nothing of it was run"
            ) from None

    def persistent_load(self, saved):
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage" or saved[1] not in _STORAGES:
            raise CheckpointError("a reference to something that is no tensor storage")
        return Storage(str(saved[2]), _STORAGES[saved[1]], int(saved[4]))


def load(file, path: Path):
    """One pickle from an open binary file → plain containers, numbers, arrays, StoredTensor.

    Raises:
        CheckpointError: it asks for anything else, or is damaged.
    """
    try:
        return _plain(_Unpickler(file, encoding="latin1").load())
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
    ) as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint: {type(error).__name__}: {error}") from None


def _plain(value):
    """Stand-ins → their values, through containers, each of which is turned once."""
    done: dict[int, object] = {}

    def turn(value, depth: int):
        if not isinstance(value, (_Array, _Namespace, dict, list, tuple)):
            return value
        if id(value) in done:
            return done[id(value)]
        if depth > _DEEPEST or len(done) > _MOST_VALUES:
            raise CheckpointError("its containers are nested too deeply, or are too many")
        if isinstance(value, _Array):
            if value.value is None:
                raise CheckpointError("an array without content")
            result = value.value
        elif isinstance(value, (dict, _Namespace)):
            items = value.values if isinstance(value, _Namespace) else value
            result = {key: turn(item, depth + 1) for key, item in items.items()}
        else:
            result = type(value)(turn(item, depth + 1) for item in value)
        done[id(value)] = result
        return result

    return turn(value, 0)
