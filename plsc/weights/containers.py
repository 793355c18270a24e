"""Files that hold arrays by name, whoever wrote them: npz, safetensors, torch archives, Paddle's pickles, TensorFlow's
checkpoints.

Reading is lazy: a Tensor knows its shape, and reads its values when asked, so that loading a
model needs the memory of one array besides the model.
"""

import io
import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from plsc import pickles
from plsc.errors import CheckpointError
from plsc.files import special_kind
from plsc.pickles import Storage, StoredTensor, item_bytes
from plsc.weights.tensor_bundle import Entry, read_bundle
from plsc.weights.tensors import Tensor

_Array = TypeVar("_Array")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_WRITTEN_TYPES = {name: code for code, name in _SAFETENSORS_TYPES.items()}
_WRITTEN_TYPES |= {"uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64"}
_BOMB_RATIO, _BOMB_BYTES = 100, 100 * 2**20

# what plsc's card is called in files of others: an entry of safetensors' metadata, an array of bytes elsewhere
CARD = "plsc_card"
_CARD_BYTES = 16 * 2**20  # at most


@dataclass
class Container:
    """Arrays by name, and what else the file says.

    Attributes:
        kind: npz, safetensors, torch, paddle or tensorflow.
        notes: plain values beside the arrays (metadata, training arguments).
        averaged: the moving averages of arrays, where the file has them; tensors itself where it has nothing else.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    notes: dict = field(default_factory=dict)
    averaged: dict[str, Tensor] = field(default_factory=dict)


def widen(raw: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 → float32, exactly."""
    return (raw.astype("uint32") << 16).view("float32")


def _values(buffer: bytes | np.ndarray, dtype: str, offset: int = 0, count: int = -1) -> np.ndarray:
    if dtype == "bfloat16":
        return widen(np.frombuffer(buffer, "<u2", count, offset))
    return np.frombuffer(buffer, np.dtype(dtype).newbyteorder("<"), count, offset)


# -- npz ------------------------------------------------------------------------------------


def _read_npz(path: Path) -> Container:
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _refuse_bombs(path, members)
        for member in members:
            if not member.filename.endswith(".npy"):
                raise CheckpointError(f"{path}: {member.filename} is not an array; is this an npz file of weights?")
            name = member.filename[: -len(".npy")]
            with archive.open(member) as file:
                shape, _, dtype = _npy_header(path, name, file)
                header = file.tell()
            size = math.prod(shape) * dtype.itemsize
            if member.file_size != header + size:
                raise CheckpointError(f"{path}: {name} is truncated: {member.file_size - header} of {size} bytes")
            tensors[name] = Tensor(shape, partial(_npz_member, path, member))
    return Container(path, "npz", tensors)


def _npy_header(path: Path, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise CheckpointError(f"{path}: {name} holds Python objects, which are never read")
    return shape, fortran, dtype


def _npz_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _refuse_bombs(path: Path, members: Collection[zipfile.ZipInfo]) -> None:
    """Weights hardly compress; an archive that claims a hundredfold does not hold weights."""
    stored = min(sum(m.compress_size for m in members), path.stat().st_size)
    claimed = sum(m.file_size for m in members)
    if claimed > _BOMB_BYTES and claimed > _BOMB_RATIO * max(stored, 1):
        raise CheckpointError(f"{path}: claims {claimed} bytes packed into {stored}; such a file is not unpacked")


# -- safetensors ------------------------------------------------------------------------------


class Writable(Protocol):
    """What write_safetensors writes into: an open binary file, or one that sums what is written."""

    def write(self, content: bytes | memoryview, /) -> int: ...


def save_safetensors(arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None) -> None:
    """Write a file of arrays by name."""
    with open(path, "wb") as file:
        write_safetensors(arrays, file, metadata)


def write_safetensors(arrays: Mapping[str, np.ndarray], file: Writable, metadata: Mapping[str, str] | None) -> None:
    """Write arrays by name in the format of safetensors, without a copy of any.

    The library's own writer first copies every array while no other thread may run, and makes a private file.

    Raises:
        CheckpointError: an array's type has no place in the format.
    """
    # the widest types first, as the library has them, so that every array begins at a multiple of its type's size
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, dict] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, array in ordered:
        dtype = _WRITTEN_TYPES.get(array.dtype.name)
        if dtype is None:
            raise CheckpointError(f"{name}: an array of {array.dtype} has no place in a safetensors file")
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, array in ordered:
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read_safetensors(path: Path) -> Container:
    with safe_open(path, framework="np") as opened:  # checks header, offsets and sizes
        metadata = dict(opened.metadata() or {})
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if path.stat().st_size > 8 + length else b""
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = _SAFETENSORS_TYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(f"{path}: {name} is of type {entry['dtype']}, which is not read")
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        tensors[name] = Tensor(shape, partial(_part, data, dtype, shape, start, end))
    return Container(path, "safetensors", tensors, metadata)


def _part(data: bytes | np.ndarray, dtype: str, shape: tuple[int, ...], start: int, end: int) -> np.ndarray:
    """The values of one array of a .safetensors file."""
    return _values(data[start:end], dtype).reshape(shape) if end > start else np.zeros(shape, "float32")


# -- torch ------------------------------------------------------------------------------------


def _read_torch_zip(path: Path) -> Container:
    with zipfile.ZipFile(path) as archive:
        _refuse_bombs(path, archive.infolist())
        roots = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(roots) != 1:
            raise CheckpointError(f"{path}: a zip archive, but neither npz nor a torch checkpoint")
        prefix = roots[0][: -len("data.pkl")]
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise CheckpointError(f"{path}: written on a big-endian machine, which is not read")
        tree = pickles.load(io.BytesIO(archive.read(roots[0])), path)
        sizes = {info.filename: info.file_size for info in archive.infolist()}

    def storage(entry: Storage) -> bytes:
        with zipfile.ZipFile(path) as opened:
            return opened.read(f"{prefix}data/{entry.key}")

    def check(entry: Storage) -> None:
        size = sizes.get(f"{prefix}data/{entry.key}")
        if size is None or size < entry.count * item_bytes(entry.dtype):
            raise CheckpointError(f"{path}: the values of storage {entry.key} are missing or truncated")

    return _torch_container(path, tree, storage, check)


def _read_torch_legacy(path: Path) -> Container:
    """The format before torch 1.6: pickles in a row, then each storage with its length before it."""
    with open(path, "rb") as file:
        pickles.load(file, path)  # magic number
        pickles.load(file, path)  # protocol version
        machine = pickles.load(file, path)
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise CheckpointError(f"{path}: written on a big-endian machine, which is not read")
        tree = pickles.load(file, path)
        keys = pickles.load(file, path)
        used: dict[str, Storage] = {}
        _walk(tree, lambda tensor: used.setdefault(tensor.storage.key, tensor.storage))
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CheckpointError(f"{path}: damaged: its list of storages is none")
        places, at, end = {}, file.tell(), path.stat().st_size
        for key in keys:
            file.seek(at)
            head = file.read(8)
            if key not in used or len(head) < 8:
                raise CheckpointError(f"{path}: the values of storage {key} are missing")
            (count,) = struct.unpack("<q", head)
            places[key] = at + 8
            at += 8 + count * item_bytes(used[key].dtype)
            if count < 0 or count < used[key].count or at > end:
                raise CheckpointError(f"{path}: the values of storage {key} are truncated")

    def storage(entry: Storage) -> bytes:
        with open(path, "rb") as opened:
            opened.seek(places[entry.key])
            return opened.read(entry.count * item_bytes(entry.dtype))

    def check(entry: Storage) -> None:
        if entry.key not in places:
            raise CheckpointError(f"{path}: the values of storage {entry.key} are missing")

    return _torch_container(path, tree, storage, check)


def _walk(value: Any, visit: Callable[[StoredTensor], object]) -> None:
    """Visit every StoredTensor in containers, each container once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            visit(value)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _torch_container(
    path: Path, tree: Any, storage: Callable[[Storage], bytes], check: Callable[[Storage], None]
) -> Container:
    arrays, averaged, notes = _state_dict(path, tree, StoredTensor)

    def read(tensor: StoredTensor) -> np.ndarray:
        flat = _values(storage(tensor.storage), tensor.storage.dtype)
        strides = tuple(s * flat.itemsize for s in tensor.strides)
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
        return np.ascontiguousarray(view)

    def lazy(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        for tensor in tensors.values():
            check(tensor.storage)
        return {name: Tensor(tensor.shape, partial(read, tensor)) for name, tensor in tensors.items()}

    tensors = lazy(arrays)
    return Container(path, "torch", tensors, notes, tensors if averaged is arrays else lazy(averaged))


# keys under which training scripts keep the weights, the averaged ones last
_AVERAGED = ("model_ema", "state_dict_ema")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "teacher", "student", *_AVERAGED)


_WRAPPED = 4  # at most


def _state_dict(
    path: Path, tree: Any, kind: type[_Array]
) -> tuple[dict[str, _Array], dict[str, _Array], dict[str, Any]]:
    """The mapping name → array inside a checkpoint, that of averaged arrays, and the plain values.

    The first two are one where the checkpoint has averaged arrays only.
    """
    notes: dict[str, Any] = {}
    averaged: dict[str, _Array] = {}
    only_averaged = False
    for _ in range(_WRAPPED):
        if not isinstance(tree, dict):
            break
        arrays = {k: v for k, v in tree.items() if isinstance(v, kind) and isinstance(k, str)}
        notes.update({k: v for k, v in tree.items() if isinstance(v, (int, float, str, list)) and isinstance(k, str)})
        if arrays:
            return arrays, arrays if only_averaged else averaged, notes
        wrapper = next((k for k in _WRAPPERS if isinstance(tree.get(k), dict)), None)
        if wrapper is None:
            break
        for key in _AVERAGED:
            if key != wrapper and isinstance(tree.get(key), dict):
                averaged = {k: v for k, v in tree[key].items() if isinstance(v, kind) and isinstance(k, str)}
        only_averaged |= wrapper in _AVERAGED
        tree = tree[wrapper]
    raise CheckpointError(f"{path}: holds no weights by name; looked under {', '.join(_WRAPPERS)}")


# -- Paddle -----------------------------------------------------------------------------------


def _read_paddle(path: Path, tree: Any) -> Container:
    if isinstance(tree, dict):
        tree = {k: _paddle_value(v) for k, v in tree.items()}
    arrays, _, notes = _state_dict(path, tree, np.ndarray)
    tensors = {name: Tensor(array.shape, partial(_paddle_array, array)) for name, array in arrays.items()}
    return Container(path, "paddle", tensors, notes)


def _paddle_value(value: Any, depth: int = 0) -> Any:
    """paddle.save stores a tensor inside another object as (its name, array)."""
    if isinstance(value, dict) and depth < _WRAPPED:  # deeper than weights ever are
        return {k: _paddle_value(v, depth + 1) for k, v in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray):
        return value[1]
    return value


def _paddle_array(array: np.ndarray) -> np.ndarray:
    return widen(array) if array.dtype == np.uint16 else array  # bfloat16 is stored so, without a mark


# -- TensorFlow -------------------------------------------------------------------------------


# how TensorFlow 2 names what belongs to an object, and what an optimizer keeps of a variable
_VARIABLE, _SLOT = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/"


def _entry_values(entry: Entry) -> np.ndarray:
    return _values(entry.read(), entry.dtype).reshape(entry.shape)


def _read_tensorflow(path: Path) -> Container:
    """A checkpoint by its index: each variable under the path of attributes that leads to it.

    Of the optimizer's slots only moving averages (called average) are kept.
    """
    tensors, averaged = {}, {}
    for name, entry in read_bundle(path).items():
        tensor = Tensor(entry.shape, partial(_entry_values, entry))
        variable, is_slot, slot = name.removesuffix(_VARIABLE).partition(_SLOT)
        if not is_slot:
            tensors[variable] = tensor
        elif slot.endswith("/average"):
            averaged[variable] = tensor
    return Container(path, "tensorflow", tensors, averaged=averaged)


def _card_note(path: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """The card's text as a note; it is taken out of the arrays."""
    tensor = tensors.pop(CARD, None)
    if tensor is None:
        return {}
    if len(tensor.shape) != 1 or tensor.shape[0] > _CARD_BYTES:
        raise CheckpointError(f"{path}: damaged: {CARD} has shape {list(tensor.shape)}, it is text in bytes")
    array = tensor.read()
    if array.dtype != np.uint8:
        raise CheckpointError(f"{path}: damaged: {CARD} holds {array.dtype}, it is text in bytes")
    return {CARD: array.tobytes().decode("utf-8", errors="replace")}


def card_array(text: str) -> np.ndarray:
    """The card's text as an array of bytes."""
    return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8)


# -- which one --------------------------------------------------------------------------------


# what the libraries raise for files that are not what they say
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    SafetensorError,
    OSError,
    ValueError,
    EOFError,
    struct.error,
    RuntimeError,  # encrypted archives
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def open_container(path: Path) -> Container:
    """Recognise a file by its content and list its arrays.

    Raises:
        CheckpointError: not a file of weights, damaged, or asking to run code.
    """
    kind = special_kind(path)
    if kind:
        raise CheckpointError(f"{path}: is {kind}, not a file")
    try:
        container = _open(path)
        container.notes |= _card_note(path, container.tensors)
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a file of weights: {reason}") from error
    return container


def _open(path: Path) -> Container:
    if path.suffix == ".index":
        return _read_tensorflow(path)
    with open(path, "rb") as file:
        head = file.read(16)
    if len(head) < 8:
        raise CheckpointError(f"{path}: damaged: the file ends after {len(head)} bytes")
    if head[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
        return _read_npz(path) if is_npz else _read_torch_zip(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:1] == b"\x80":
        with open(path, "rb") as file:
            first = pickles.load(file, path)
        return _read_torch_legacy(path) if first == _TORCH_MAGIC else _read_paddle(path, first)
    if head[:4] == b"\0\0\0\0":
        raise CheckpointError(f"{path}: Paddle's binary stream (use_binary_format), which is not read")
    raise CheckpointError(f"{path}: not a file of weights: neither npz, safetensors, torch, Paddle nor TensorFlow")
