"""Damaged and hostile weights files: refused by one CheckpointError, with nothing run and no weight changed.

The files are written here by hand: pickles opcode by opcode, torch archives with stand-ins for torch.
"""

import collections
import io
import json
import os
import pickle
import re
import struct
import sys
import time
import tracemalloc
import types
import zipfile
from unittest import mock

import numpy as np
import paddle
import pytest
from safetensors.numpy import save as safetensors_bytes

from plsc import loading, pickles
from plsc.errors import CheckpointError
from plsc.models.vision_transformer import VisionTransformer, ViTSpec
from tests.helpers import TINY_MODEL, within

SPEC = {name: value for name, value in TINY_MODEL.items() if name != "name"}
SECONDS, MEGABYTES = 1.5, 48

# -- torch archives without torch -----------------------------------------------------------

_STORAGE_TYPES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


class FakeStorage:
    def __init__(self, array, dtype, count):
        raw = np.ascontiguousarray(array)
        if dtype == "bfloat16":  # the upper half of a float32
            raw = (raw.astype("float32").view("uint32") >> 16).astype("uint16")
        else:
            raw = raw.astype(dtype)
        self.raw, self.dtype, self.key = raw.tobytes(), dtype, None
        self.count = raw.size if count is None else count


class FakeTensor:
    """What torch.save sees of a tensor; any part may be said wrong."""

    def __init__(self, array, dtype="float32", *, shape=None, strides=None, offset=0, count=None, storage=None):
        array = np.asarray(array)
        self.storage = storage or FakeStorage(array, dtype, count)
        self.shape = array.shape if shape is None else shape
        usual = tuple(int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(array.ndim))
        self.strides, self.offset = usual if strides is None else strides, offset


def _torch_modules() -> dict:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError("only its name is used")

    def _rebuild_parameter():
        raise AssertionError("only its name is used")

    for function in (_rebuild_tensor_v2, _rebuild_parameter):
        function.__module__, function.__qualname__ = "torch._utils", function.__name__
        setattr(utils, function.__name__, function)
    for name in _STORAGE_TYPES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = utils
    return {"torch": torch, "torch._utils": utils}


class _TorchPickler(pickle.Pickler):
    def __init__(self, file, *, legacy=False, parameters=False):
        super().__init__(file, protocol=2)
        self.legacy, self.parameters, self.storages = legacy, parameters, []

    def persistent_id(self, value):
        if not isinstance(value, FakeStorage):
            return None
        if value not in self.storages:
            value.key = str(len(self.storages))
            self.storages.append(value)
        kind = getattr(sys.modules["torch"], _STORAGE_TYPES[value.dtype])
        saved = ("storage", kind, value.key, "cpu", value.count)
        return (*saved, None) if self.legacy else saved

    def reducer_override(self, value):
        if not isinstance(value, FakeTensor):
            return NotImplemented
        parts = (value.storage, value.offset, value.shape, value.strides, False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, parts


def _torch_pickle(tree, legacy=False):
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, _torch_modules()):
        pickler = _TorchPickler(file, legacy=legacy)
        pickler.dump(tree)
    return file.getvalue(), pickler.storages


def torch_zip(path, tree, *, leave_out=(), cut=None, byteorder=b"little", pickled=None, prefix="archive"):
    """torch.save as since 1.6. leave_out: storage keys; cut: bytes kept of each storage; pickled: for data.pkl."""
    program, storages = _torch_pickle(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{prefix}/data.pkl", program if pickled is None else pickled)
        archive.writestr(f"{prefix}/byteorder", byteorder)
        for storage in storages:
            if storage.key not in leave_out:
                archive.writestr(f"{prefix}/data/{storage.key}", storage.raw[:cut])
        archive.writestr(f"{prefix}/version", "3\n")
    return path


def torch_legacy(path, tree, *, pickled=None, keys=None, count=None, storage_bytes=True):
    """torch.save before 1.6. pickled: for the tree; keys: for the list of storages; count: said of each storage."""
    program, storages = _torch_pickle(tree, legacy=True)
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, facts):
            pickle.dump(value, file, protocol=2)
        file.write(program if pickled is None else pickled)
        pickle.dump([s.key for s in storages] if keys is None else keys, file, protocol=2)
        for storage in storages if storage_bytes else ():
            file.write(struct.pack("<q", storage.count if count is None else count) + storage.raw)
    return path


def torch_state(arrays: dict, dtype="float32") -> dict:
    """Arrays in plsc's names → timm's: Linear weights turned to [out, in]."""
    turned = {n: a.T if a.ndim == 2 and n.endswith(".weight") else a for n, a in arrays.items()}
    return collections.OrderedDict((n, FakeTensor(a, dtype)) for n, a in turned.items())


def google_names(arrays: dict, heads: int) -> dict:
    """Arrays in plsc's names → Google's original npz."""
    out = {}
    for name, a in arrays.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if match:
            block, part, kind = f"Transformer/encoderblock_{match[1]}", match[2], match[3]
            attention, theirs = f"{block}/MultiHeadDotProductAttention_1", "kernel" if kind == "weight" else "bias"
            if part == "attn.qkv":
                for which, piece in zip(("query", "key", "value"), np.split(a, 3, axis=-1), strict=True):
                    out[f"{attention}/{which}/{theirs}"] = piece.reshape(*piece.shape[:-1], heads, -1)
            elif part == "attn.proj":
                out[f"{attention}/out/{theirs}"] = a.reshape(heads, -1, a.shape[1]) if kind == "weight" else a
            elif part.startswith("norm"):
                out[f"{block}/LayerNorm_{0 if part == 'norm1' else 2}/{'scale' if kind == 'weight' else 'bias'}"] = a
            else:
                out[f"{block}/MlpBlock_3/Dense_{0 if part == 'mlp.fc1' else 1}/{theirs}"] = a
            continue
        plain = {
            "cls_token": "cls",
            "pos_embed": "Transformer/posembed_input/pos_embedding",
            "patch_embed.proj.weight": "embedding/kernel",
            "patch_embed.proj.bias": "embedding/bias",
            "norm.weight": "Transformer/encoder_norm/scale",
            "norm.bias": "Transformer/encoder_norm/bias",
            "head0.weight": "pre_logits/kernel",
            "head0.bias": "pre_logits/bias",
            "head.weight": "head/kernel",
            "head.bias": "head/bias",
        }
        out[plain[name]] = a.transpose(2, 3, 1, 0) if name == "patch_embed.proj.weight" else a
    return out


# -- pickles by opcode ----------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: bytes, how: str = "REDUCE") -> bytes:
    """The opcodes that leave module.name(*arguments) on the stack."""
    packed = b"(" + b"".join(arguments)
    if how == "INST":
        return packed + f"i{module}\n{name}\n".encode()
    if how == "OBJ":
        return b"(" + named(module, name) + b"".join(arguments) + b"o"
    if how == "NEWOBJ":
        return named(module, name) + packed + b"t\x81"
    if how == "NEWOBJ_EX":
        return named(module, name) + packed + b"t}\x92"
    if how == "STACK_GLOBAL":
        return text(module) + text(name) + b"\x93" + packed + b"tR"
    if how == "BUILD":  # an object whose __setstate__ is made module.name
        blank = named("collections", "OrderedDict") + b")R"
        return blank + b"}" + text("__setstate__") + named(module, name) + b"sb" + arguments[0] + b"b"
    return named(module, name) + packed + b"tR"


def program(*opcodes: bytes) -> bytes:
    """A whole pickle; of protocol 2 where Python 2's names are to be understood. No file is under eight bytes."""
    body = b"".join(opcodes)
    return (b"\x80\x02" if b"__builtin__" in body else b"\x80\x04") + body + b"." + bytes(8)


def attacks(canary) -> dict[str, bytes]:
    """Opcodes that create the canary when a plain unpickler follows them."""
    command, code = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    argv = b"](" + text("touch") + text(str(canary)) + b"e"
    system = [called("os", "system", command, how=how) for how in ("REDUCE", "INST", "OBJ", "STACK_GLOBAL", "BUILD")]
    return {
        "os.system": system[0],
        "os.system by INST": system[1],
        "os.system by OBJ": system[2],
        "os.system by STACK_GLOBAL": system[3],
        "os.system by BUILD": system[4],
        "posix.system": called("posix", "system", command),
        "subprocess.Popen": called("subprocess", "Popen", argv),
        "subprocess.Popen by NEWOBJ and BUILD": called("subprocess", "Popen", how="NEWOBJ")
        + b"0"
        + called("subprocess", "call", argv),
        "subprocess.check_output": called("subprocess", "check_output", argv),
        "builtins.eval": called("builtins", "eval", code),
        "builtins.exec": called("builtins", "exec", code),
        "__builtin__.eval": called("__builtin__", "eval", code),
        "builtins.getattr": called("builtins", "getattr", called("builtins", "__import__", text("os")), text("system"))
        + b"("
        + command
        + b"tR",
        "pathlib.Path.touch": called("pathlib", "Path", text(str(canary)), how="NEWOBJ_EX")
        + b"0"
        + called("os", "mknod", text(str(canary))),
        "pickle.loads": called(
            "pickle", "loads", b"B" + struct.pack("<I", len(program(system[0]))) + program(system[0])
        ),
        "operator.methodcaller": called("operator", "methodcaller", text("touch"))
        + b"("
        + called("pathlib", "Path", text(str(canary)))
        + b"tR",
        "a dotted name": text("os") + text("path.os.system") + b"\x93(" + command + b"tR",
        "memoised and dropped": system[0] + b"0}",
        "after a valid dict": b"}" + text("a") + b"K\x01s0" + system[0],
    }


ATTACKS = list(attacks("/nowhere"))


class Reduced:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


# -- the checks -----------------------------------------------------------------------------


def fresh_network(**fields) -> VisionTransformer:
    paddle.seed(0)
    network = VisionTransformer(ViTSpec(**{**SPEC, "head_init": "scheme", **fields}))
    network.eval()
    return network


def other_weights(seed=1, **fields) -> dict[str, np.ndarray]:
    """Random arrays in plsc's names, none of which equals the fresh network's."""
    rng = np.random.default_rng(seed)
    parameters = fresh_network(**fields).named_parameters()
    return {name: rng.standard_normal(p.shape).astype("float32") for name, p in parameters}


ARRAYS = other_weights()


def values(network) -> dict[str, np.ndarray]:
    return {name: p.numpy().copy() for name, p in network.named_parameters()}


def assert_refused(path, reason: str, network=None, **options) -> str:
    """One CheckpointError that names path and reason; quick, small in memory, and the model as it was."""
    network = network or fresh_network()
    before = values(network)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with within(SECONDS), pytest.raises(CheckpointError) as error:
            loading.load_pretrained(network, str(path), **options)
        seconds = time.perf_counter() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert path.name in message
    assert re.search(reason, message), f"{message!r} does not say {reason!r}"
    changed = [name for name, a in values(network).items() if not np.array_equal(a, before[name])]
    assert not changed, f"refused, but {len(changed)} of {len(before)} parameters have changed: {changed[:3]}"
    assert peak < MEGABYTES * 2**20, f"took {peak / 2**20:.0f} MB"
    assert seconds < SECONDS
    return message


def npz(path, arrays: dict, compressed=False):
    with open(path, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return path


def paddle_file(path, tree):
    path.write_bytes(pickle.dumps(tree, protocol=4))
    return path


def safetensors_file(path, arrays: dict, metadata=None):
    path.write_bytes(safetensors_bytes({n: np.ascontiguousarray(a) for n, a in arrays.items()}, metadata))
    return path


def raw_safetensors(path, header, data: bytes = b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


WRITERS = {
    "npz": lambda folder: npz(folder / "w.npz", google_names(ARRAYS, SPEC["num_heads"])),
    "npz-compressed": lambda folder: npz(folder / "w.npz", google_names(ARRAYS, SPEC["num_heads"]), compressed=True),
    "safetensors": lambda folder: safetensors_file(folder / "w.safetensors", ARRAYS),
    "torch": lambda folder: torch_zip(folder / "w.pth", torch_state(ARRAYS)),
    "torch-legacy": lambda folder: torch_legacy(folder / "w.pth", torch_state(ARRAYS)),
    "paddle": lambda folder: paddle_file(folder / "w.pdparams", ARRAYS),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_files_are_good_before_they_are_spoilt(tmp_path, kind):
    """Else every refusal below could be for another reason."""
    network = fresh_network()
    report = loading.load_pretrained(network, str(WRITERS[kind](tmp_path)), strict=True)
    assert report.exact
    assert all(np.array_equal(a, ARRAYS[name]) for name, a in values(network).items())


# -- files that would run something -----------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_plain_unpickler_runs_the_attack(tmp_path, attack):
    """The canary sings: so its silence below means something."""
    canary = tmp_path / "canary"
    try:
        made = pickle.loads(program(attacks(canary)[attack]))
        if hasattr(made, "wait"):
            made.wait()
    except Exception:
        pass  # what the call returns may not be what the rest of the pickle wants
    assert canary.exists()


def _paddle_direct(folder, opcodes):
    (folder / "w.pdparams").write_bytes(program(opcodes))
    return folder / "w.pdparams"


def _in_state_dict(opcodes: bytes) -> bytes:
    """{"state_dict": {"patch_embed.proj.weight": attack}}"""
    inner = b"}" + text("patch_embed.proj.weight") + opcodes + b"s"
    return program(b"}" + text("state_dict") + inner + b"s")


def _paddle_nested(folder, opcodes):
    (folder / "w.pdparams").write_bytes(_in_state_dict(opcodes))
    return folder / "w.pdparams"


def _torch_zip(folder, opcodes):
    return torch_zip(folder / "w.pth", torch_state(ARRAYS), pickled=_in_state_dict(opcodes))


def _torch_legacy(folder, opcodes):
    return torch_legacy(folder / "w.pth", torch_state(ARRAYS), pickled=_in_state_dict(opcodes))


def _hugging_face(folder, opcodes):
    torch_zip(folder / "pytorch_model.bin", torch_state(ARRAYS), pickled=program(opcodes))
    return folder / "pytorch_model.bin"


CARRIERS = {
    "pdparams": _paddle_direct,
    "pdparams-nested": _paddle_nested,
    "torch-zip": _torch_zip,
    "torch-legacy": _torch_legacy,
    "pytorch_model.bin": _hugging_face,
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_pickle_is_run(tmp_path, attack, carrier):
    canary = tmp_path / "canary"
    path = CARRIERS[carrier](tmp_path, attacks(canary)[attack])
    message = assert_refused(path, r"refused: it asks for [\w.]+, which is neither .* nothing of it was run")
    assert not canary.exists()
    assert "it asks for collections" not in message


def test_pickled_objects_in_an_npz_are_not_run(tmp_path):
    canary = tmp_path / "canary"
    arrays = {**google_names(ARRAYS, 2), "head/bias": np.array([Reduced(os.system, f"touch {canary}")], object)}
    with open(tmp_path / "w.npz", "wb") as file:
        np.savez(file, **arrays)
    assert_refused(tmp_path / "w.npz", r"head/bias holds Python objects")
    assert not canary.exists()
    with np.load(tmp_path / "w.npz", allow_pickle=True) as opened:
        opened["head/bias"]
    assert canary.exists()


def test_objects_in_an_array_of_a_pdparams_are_not_run(tmp_path):
    canary = tmp_path / "canary"
    tree = {**ARRAYS, "head.bias": np.array([Reduced(os.system, f"touch {canary}")] * 10, object)}
    assert_refused(paddle_file(tmp_path / "w.pdparams", tree), r"(O8|posix\.system)")
    assert not canary.exists()


def test_plain_objects_in_an_array_are_refused(tmp_path):
    tree = {**ARRAYS, "head.bias": np.array([None] * 10, object)}
    assert_refused(paddle_file(tmp_path / "w.pdparams", tree), "'O8'; only plain numbers")


@pytest.mark.parametrize("where", ["first", "second", "keys"])
def test_every_pickle_of_a_legacy_torch_file_is_guarded(tmp_path, where):
    """The format is five pickles in a row."""
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    attack = program(attacks(canary)["os.system"])
    magic, version = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), pickle.dumps(1001, protocol=2)
    tree, _ = _torch_pickle(torch_state(ARRAYS), legacy=True)
    parts = {
        "first": [attack],
        "second": [magic, attack],
        "keys": [magic, version, pickle.dumps({}, protocol=2), tree, attack],
    }
    path.write_bytes(b"".join(parts[where]))
    assert_refused(path, r"it asks for os\.system")
    assert not canary.exists()


@pytest.mark.parametrize(
    "saved",
    [
        b"(" + text("module") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x0at",
        b"(" + text("storage") + text("UntypedStorage") + text("0") + text("cpu") + b"K\x0at",
        b"(" + text("storage") + named("torch", "FloatStorage") + b"t",
        b"(" + text("storage") + b"]" + text("0") + text("cpu") + b"K\x0at",
        b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + text("many") + b"t",
        text("storage"),
        b"N",
    ],
    ids=["another kind", "another storage", "short", "a list for a type", "no number", "text", "nothing"],
)
@pytest.mark.parametrize("carrier", ["torch-zip", "torch-legacy", "pdparams"])
def test_tricks_with_persistent_ids(tmp_path, saved, carrier):
    assert_refused(CARRIERS[carrier](tmp_path, saved + b"Q"), r"reference to something|damaged, or no checkpoint")


def test_persistent_id_that_would_be_run(tmp_path):
    canary = tmp_path / "canary"
    saved = b"(" + text("storage") + attacks(canary)["os.system"] + text("0") + text("cpu") + b"K\x0at"
    assert_refused(CARRIERS["torch-zip"](tmp_path, saved + b"Q"), r"os\.system")
    assert not canary.exists()


def test_a_file_cannot_change_the_reader(tmp_path):
    """BUILD with a pair sets attributes, on functions too; what one file sets, the next would meet."""
    before = pickles._encode.__defaults__
    change = b"(N}" + text("__defaults__") + b"(" + text("utf-8") + b"tst"
    opcodes = named("_codecs", "encode") + change + b"b0" + b"}" + text("a") + b"K\x01s"
    try:
        assert_refused(_paddle_direct(tmp_path, opcodes), "w.pdparams")
        assert pickles._encode.__defaults__ == before
    finally:
        pickles._encode.__defaults__ = before


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (called("_codecs", "encode", text("x"), text("rot13")), "encoding 'rot13'"),
        (called("numpy", "dtype", text("O")), "'O'; only plain numbers"),
        (called("numpy", "ndarray", b"(K\x02t"), "array without content|holds no weights"),
        (called("numpy.core.multiarray", "_reconstruct"), "array without content|holds no weights"),
        (called("numpy.core.multiarray", "scalar", named("numpy", "dtype"), b"C\x04abcd"), "unknown type|damaged"),
        (called("torch._utils", "_rebuild_tensor_v2", b"N", b"K\x00", b")", b")"), "without a storage"),
        (called("builtins", "tuple", b"K\x05"), "damaged"),
        (b"\x82\x01", "damaged"),
        (b"]2a", "nested too deeply|damaged|holds no weights"),
    ],
    ids=["codec", "dtype", "ndarray", "reconstruct", "scalar", "tensor", "tuple", "extension", "self-containing"],
)
def test_admitted_names_with_arguments_of_others(tmp_path, opcodes, reason):
    assert_refused(_paddle_nested(tmp_path, opcodes), reason)


# -- truncated and spoilt files ---------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 0.2, 0.5, 0.9, -1])
@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_files(tmp_path, kind, kept):
    path = WRITERS[kind](tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert_refused(path, "damaged|truncated|missing|not a file of weights")


def _spoilt(path, place: bytes, offset: int, count: int = 24):
    """Overwrite bytes `offset` after the first occurrence of `place`."""
    whole = bytearray(path.read_bytes())
    start = whole.index(place) + len(place) + offset
    whole[start : start + count] = b"\xff" * count
    path.write_bytes(bytes(whole))
    return path


@pytest.mark.parametrize("offset", [0, 300])
def test_spoilt_compressed_npz(tmp_path, offset):
    """In the deflated header of an array, and in its values."""
    path = npz(tmp_path / "w.npz", google_names(ARRAYS, 2), compressed=True)
    name = b"Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel.npy"
    assert_refused(_spoilt(path, name, offset + 20), "damaged")


def test_spoilt_values_fail_their_checksum(tmp_path):
    path = npz(tmp_path / "w.npz", google_names(ARRAYS, 2))
    name = b"Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel.npy"
    assert_refused(_spoilt(path, name, 300, 2), "damaged|CRC")


def test_spoilt_values_of_a_torch_zip(tmp_path):
    path = torch_zip(tmp_path / "w.pth", torch_state(ARRAYS))
    assert_refused(_spoilt(path, b"archive/data/20", 8, 2), "damaged|CRC")


def test_spoilt_deflated_data_pkl(tmp_path):
    program_, _ = _torch_pickle(torch_state(ARRAYS))
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program_)
    assert_refused(_spoilt(tmp_path / "w.pth", b"archive/data.pkl", 0), "damaged")


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_encrypted_archives(tmp_path, kind):
    """Flag bit 0 of every member's entry."""
    path = WRITERS[kind](tmp_path)
    whole = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = whole.find(signature)
        while at >= 0:
            whole[at + flags] |= 1
            at = whole.find(signature, at + 4)
    path.write_bytes(bytes(whole))
    assert_refused(path, "encrypted|damaged")


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
        b'{"message": "Not Found", "documentation_url": "https://example.org"}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 346284714\n",
        b"\x00" * 4096,
        b"\xff" * 4096,
        b"PK\x05\x06" + b"\x00" * 18,
        b"PK\x03\x04" + b"\x00" * 400,
        b"\x1f\x8b\x08" + b"\x00" * 200,
        b"\x89HDF\r\n\x1a\n" + b"\x00" * 200,
        b"(lp0\ncos\nsystem\n(S'true'\ntR.",
    ],
    ids=["html", "json", "git-lfs", "zeros", "ones", "empty zip", "zip head", "gzip", "hdf5", "protocol 0"],
)
@pytest.mark.parametrize("name", ["vit.pth", "vit.npz", "model.safetensors", "vit.pdparams"])
def test_other_things_under_the_name_of_weights(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, "not a file of weights|damaged|binary stream")


# -- bombs ------------------------------------------------------------------------------------


def _zeros_member(archive, name: str, shape, method=zipfile.ZIP_DEFLATED):
    """An .npy of zeros, written a piece at a time."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = method
    left, piece = 4 * int(np.prod(shape)), bytes(2**20)
    with archive.open(info, "w", force_zip64=True) as file:
        file.write(head.getvalue())
        while left:
            file.write(piece[:left])
            left -= min(left, len(piece))


def _npz_bomb(path, claimed_compressed=None):
    """pos_embed of 160 MB of zeros: of the right width, so that only its size speaks against it."""
    shape = (1, 1 + 1581**2, 16)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in ARRAYS.items():
            if name != "pos_embed":
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
        _zeros_member(archive, "pos_embed", shape)
        if claimed_compressed:
            archive.getinfo("pos_embed.npy").compress_size = claimed_compressed
    assert path.stat().st_size < 2**20
    return path


def test_an_npz_bomb(tmp_path):
    assert_refused(_npz_bomb(tmp_path / "w.npz"), r"claims \d+ bytes packed into \d+")


def test_an_npz_bomb_that_lies_about_its_packed_size(tmp_path):
    """The directory says 100 MB are stored, in a file of half a megabyte."""
    assert_refused(_npz_bomb(tmp_path / "w.npz", 100 * 2**20), "claims|damaged|packed")


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "byteorder"])
def test_a_torch_zip_bomb(tmp_path, member):
    """Whichever part of the archive is 120 MB of zeros, deflated."""
    pickled, (storage,) = _torch_pickle({"pos_embed": FakeTensor(np.zeros([1, 5, 16]))})
    contents = {"data.pkl": [pickled], "byteorder": [b"little"], "data/0": [storage.raw]}
    contents[member] = [bytes(2**20)] * 120
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, pieces in contents.items():
            with archive.open(f"archive/{name}", "w") as file:
                file.writelines(pieces)
    assert_refused(tmp_path / "w.pth", r"claims \d+ bytes packed into \d+")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"B" + struct.pack("<I", 2**32 - 1) + b"abc",
        b"\x8e" + struct.pack("<Q", 2**40) + b"abc",
        b"\x8e" + struct.pack("<Q", 2**63) + b"abc",
        b"X" + struct.pack("<I", 2**32 - 1) + b"abc",
        b"\x8d" + struct.pack("<Q", 2**60) + b"abc",
        b"\x96" + struct.pack("<Q", 2**40) + b"abc",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc",
        b"\x95" + struct.pack("<Q", 2**60) + b"N",
    ],
    ids=["bytes", "long bytes", "longer bytes", "text", "long text", "bytearray", "number", "frame"],
)
@pytest.mark.parametrize("carrier", ["pdparams", "torch-zip"])
def test_a_pickle_that_claims_a_huge_length(tmp_path, opcodes, carrier):
    path = CARRIERS[carrier](tmp_path, opcodes)
    tracemalloc.start()
    try:
        with within(SECONDS), pytest.raises(CheckpointError, match=path.name):
            loading.load_pretrained(fresh_network(), str(path))
    finally:
        tracemalloc.stop()


def test_a_pickle_with_a_huge_memo(tmp_path):
    """Twelve bytes that make the unpickler's memo half a gigabyte."""
    assert_refused(_paddle_direct(tmp_path, b"}r" + struct.pack("<I", 2**25)), "damaged|refused|no weights")


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("carrier", ["pdparams", "torch-zip", "torch-legacy"])
def test_lists_of_lists_of_lists(tmp_path, kind, carrier):
    """Forty levels, each twice the level below by reference: some hundred bytes, 2^40 values."""
    opcodes = b"K\x01q\x00"
    for level in range(40):
        mine, below = bytes([level + 1]), bytes([level])
        if kind == "list":
            opcodes += b"0](h" + below + b"h" + below + b"eq" + mine
        else:
            opcodes += b"0}(" + text("a") + b"h" + below + text("b") + b"h" + below + b"uq" + mine
    assert_refused(CARRIERS[carrier](tmp_path, opcodes), "w.pdparams|w.pth")


def test_scanned_blocks_without_values(tmp_path):
    """An array [200000, 0] has no bytes, and big_vision's layout would make it as many blocks."""
    arrays = google_names(ARRAYS, 2)
    arrays["Transformer/encoderblock/LayerNorm_0/scale"] = np.zeros([200_000, 0], "float32")
    assert_refused(npz(tmp_path / "w.npz", arrays), "encoderblock")


# -- safetensors ------------------------------------------------------------------------------

_ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": _ENTRY}, bytes(16), 2**40),
        ({"a": _ENTRY}, bytes(16), 2**63),
        ({"a": _ENTRY}, bytes(16), 10),
        ({"a": _ENTRY, "b": {**_ENTRY, "data_offsets": [8, 24]}}, bytes(24), None),
        ({"a": {**_ENTRY, "data_offsets": [16, 32]}}, bytes(16), None),
        ({"a": {**_ENTRY, "data_offsets": [0, 2**62]}}, bytes(16), None),
        ({"a": {**_ENTRY, "data_offsets": [16, 0]}}, bytes(16), None),
        ({"a": {**_ENTRY, "data_offsets": [-16, 0]}}, bytes(16), None),
        ({"a": {**_ENTRY, "shape": [2**62, 4]}}, bytes(16), None),
        ({"a": {**_ENTRY, "shape": [-4]}}, bytes(16), None),
        ({"a": {**_ENTRY, "shape": [3]}}, bytes(16), None),
        ({"a": {**_ENTRY, "dtype": "F12"}}, bytes(16), None),
        ({"a": {**_ENTRY, "dtype": "F8_E4M3", "shape": [16]}}, bytes(16), None),
        ({"a": {"dtype": "F32"}}, bytes(16), None),
        ({"a": 5}, bytes(16), None),
        ({"a": _ENTRY}, bytes(32), None),
        (b'{"a": [[[', bytes(16), None),
        (b"{" + b'"a":{' * 5000, bytes(16), None),
        (b"{\xff\xfe}", bytes(16), None),
        ({}, b"", None),
    ],
    ids=[
        "huge length",
        "overflowing length",
        "short length",
        "overlap",
        "gap",
        "outside the file",
        "backwards",
        "negative offset",
        "overflowing shape",
        "negative shape",
        "shape and size differ",
        "unknown type",
        "float8",
        "no offsets",
        "no entry",
        "bytes after it",
        "no json",
        "nested json",
        "no text",
        "empty",
    ],
)
def test_safetensors_headers(tmp_path, header, data, length):
    assert_refused(raw_safetensors(tmp_path / "w.safetensors", header, data, length), "damaged|not read|no known")


@pytest.mark.parametrize(
    "metadata",
    [
        {"spec": "{not json"},
        {"spec": "[1, 2]"},
        {"spec": json.dumps({**SPEC, "patch_size": [0, 4]})},
        {"spec": json.dumps({**SPEC, "patch_size": "4"})},
        {"spec": json.dumps({**SPEC, "img_size": [8]})},
        {"spec": "[" * 100_000},
        {"classes": "{not json"},
        {"preprocess": "{not json"},
    ],
    ids=["json", "list", "zero patch", "text patch", "half a size", "nested", "classes", "preprocess"],
)
def test_metadata_of_plscs_own_files(tmp_path, metadata):
    path = safetensors_file(tmp_path / "w.safetensors", ARRAYS, {"format": "plsc", **metadata})
    assert_refused(path, next(iter(metadata)) + "|damaged|patch_size|img_size", class_names=["a"] * 10)


# -- tensors of torch that reach outside ------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (dict(shape=(-1, 5, 16)), "outside its storage"),
        (dict(shape=(1, 5, 16), strides=(80, -16, 1)), "outside its storage"),
        (dict(offset=-1), "outside its storage"),
        (dict(offset=1), "outside its storage"),
        (dict(shape=(1, 6, 16)), "outside its storage"),
        (dict(strides=(80, 17, 1)), "outside its storage"),
        (dict(shape=(2**62, 2**62, 2**62), strides=(2**62, 2**62, 1)), "outside its storage"),
        (dict(shape=(1, 5, 16), strides=(80, 16)), "damaged"),
        (dict(shape=("1", "x", "y")), "damaged"),
        (dict(shape=(float("nan"), 5, 16)), "damaged"),
        (dict(shape=(float("inf"), 5, 16)), "damaged"),
        (dict(count=-80), "outside its storage"),
        (dict(count=2**40), "truncated"),
        (dict(count=81), "truncated"),
        (dict(shape=(1, 1 + 1000**2, 16), strides=(0, 0, 1)), "pos_embed|outside|storage"),
        (dict(shape=(1, 2**31, 2**31), strides=(0, 0, 0)), "pos_embed|outside|storage"),
    ],
    ids=[
        "negative shape",
        "negative stride",
        "negative offset",
        "offset",
        "one row more",
        "wider stride",
        "overflow",
        "too few strides",
        "text",
        "nan",
        "inf",
        "negative count",
        "huge count",
        "one value more",
        "a row repeated a million times",
        "overflowing repetition",
    ],
)
@pytest.mark.parametrize("write", [torch_zip, torch_legacy], ids=["zip", "legacy"])
def test_tensors_outside_their_storage(tmp_path, write, parts, reason):
    tree = torch_state(ARRAYS)
    tree["pos_embed"] = FakeTensor(ARRAYS["pos_embed"], **parts)
    assert_refused(write(tmp_path / "w.pth", tree), reason)


def test_missing_and_short_storages_of_a_torch_zip(tmp_path):
    assert_refused(torch_zip(tmp_path / "a.pth", torch_state(ARRAYS), leave_out=("3",)), "storage 3 are missing")
    assert_refused(torch_zip(tmp_path / "b.pth", torch_state(ARRAYS), cut=-4), "missing or truncated")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(storage_bytes=False), "storage 0 are missing"),
        (dict(keys=[]), "missing"),
        (dict(keys=["0", "nothing"]), "missing|truncated"),
        (dict(keys=7), "damaged|missing|storage"),
        (dict(keys=[["0"]]), "damaged|missing|storage"),
        (dict(count=2**60), "truncated"),
        (dict(count=-1), "truncated"),
        (dict(count=0), "truncated"),
    ],
)
def test_storages_of_a_legacy_torch_file(tmp_path, options, reason):
    assert_refused(torch_legacy(tmp_path / "w.pth", torch_state(ARRAYS), **options), reason)


def test_big_endian_files(tmp_path):
    assert_refused(torch_zip(tmp_path / "w.pth", torch_state(ARRAYS), byteorder=b"big"), "big-endian")


def test_big_endian_legacy_files(tmp_path):
    """Its third pickle says so; read as little-endian, every weight would be another number."""
    tree, storages = _torch_pickle(torch_state(ARRAYS), legacy=True)
    with open(tmp_path / "w.pth", "wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": False}):
            pickle.dump(value, file, protocol=2)
        file.write(tree)
        pickle.dump([s.key for s in storages], file, protocol=2)
        for s in storages:
            file.write(struct.pack("<q", s.count) + np.frombuffer(s.raw, "<f4").astype(">f4").tobytes())
    assert_refused(tmp_path / "w.pth", "big-endian")


def test_two_programs_in_one_archive(tmp_path):
    path = torch_zip(tmp_path / "w.pth", torch_state(ARRAYS))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", program(b"}"))
    assert_refused(path, "neither npz nor a torch checkpoint|data.pkl")


# -- arrays that are not weights ---------------------------------------------------------------


def _with(name: str, array) -> dict:
    return {**ARRAYS, name: array}


def _filled(value, dtype="float32", name="head.bias"):
    array = ARRAYS[name].astype(dtype)
    array.flat[-1] = value
    return _with(name, array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["npz", "safetensors", "torch", "torch-legacy", "paddle"])
def test_values_that_are_not_finite(tmp_path, kind, value):
    """One in the last array of the model: by then all others could have been loaded."""
    arrays = _filled(value)
    write = {
        "npz": lambda: npz(tmp_path / "w", google_names(arrays, 2)),
        "safetensors": lambda: safetensors_file(tmp_path / "w", arrays),
        "torch": lambda: torch_zip(tmp_path / "w", torch_state(arrays)),
        "torch-legacy": lambda: torch_legacy(tmp_path / "w", torch_state(arrays)),
        "paddle": lambda: paddle_file(tmp_path / "w", arrays),
    }
    assert_refused(write[kind](), r"head\.bias holds values that are not finite")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_infinite_values_in_half_precision(tmp_path, kind):
    tree = torch_state(ARRAYS, kind)
    tree["head.bias"] = FakeTensor(np.full([10], np.inf, "float32"), kind)
    assert_refused(torch_zip(tmp_path / "w.pth", tree), "not finite")


def test_float64_outside_float32(tmp_path):
    """Finite in the file, infinite in the model."""
    assert_refused(npz(tmp_path / "w.npz", _filled(1e300, "float64")), r"head\.bias")


@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.weight"])
def test_values_not_finite_in_what_is_resized(tmp_path, name):
    path = npz(tmp_path / "w.npz", _filled(np.nan, name=name))
    assert_refused(path, "not finite", fresh_network(img_size=24, patch_size=6))


@pytest.mark.parametrize(
    "array",
    [
        np.full([10], 1 + 2j, "complex64"),
        np.full([10], 1 + 2j, "complex128"),
        np.array(["0.5"] * 10),
        np.array([b"0.5"] * 10),
        np.zeros([10], "datetime64[s]"),
        np.zeros([10], [("a", "<f4"), ("b", "<f4")]),
    ],
    ids=["complex64", "complex128", "text", "bytes", "dates", "records"],
)
def test_arrays_of_other_types_in_an_npz(tmp_path, array):
    assert_refused(npz(tmp_path / "w.npz", _with("head.bias", array)), r"head\.bias")


@pytest.mark.parametrize("array", [np.full([10], 1 + 2j, "complex64"), np.array(["0.5"] * 10)], ids=["complex", "text"])
def test_arrays_of_other_types_in_a_pdparams(tmp_path, array):
    assert_refused(paddle_file(tmp_path / "w.pdparams", _with("head.bias", array)), r"head\.bias|only plain numbers")


@pytest.mark.parametrize(
    "wrong",
    [
        {"pos_embed": (16,)},
        {"pos_embed": ()},
        {"pos_embed": (1, 0, 16)},
        {"pos_embed": (1, 5, 17)},
        {"pos_embed": (2, 5, 16)},
        {"pos_embed": (1, 1, 5, 16)},
        {"cls_token": (16,)},
        {"patch_embed.proj.weight": (16, 16)},
        {"patch_embed.proj.weight": (0, 1, 4, 4)},
        {"patch_embed.proj.weight": (16, 1, 0, 4)},
        {"patch_embed.proj.weight": (16, 0, 4, 4)},
        {"patch_embed.proj.bias": ()},
        {"blocks.0.attn.qkv.weight": (16,)},
        {"blocks.0.attn.qkv.weight": (16, 48, 1)},
        {"blocks.0.mlp.fc1.weight": (32,)},
        {"blocks.0.mlp.fc1.weight": (16, 0)},
        {"blocks.1.norm2.weight": ()},
        {"blocks.1.norm2.bias": (17,)},
        {"norm.weight": (16, 1)},
    ],
    ids=lambda wrong: f"{next(iter(wrong))}{list(next(iter(wrong.values())))}",
)
@pytest.mark.parametrize("write", [npz, safetensors_file, paddle_file], ids=["npz", "safetensors", "paddle"])
def test_arrays_of_the_wrong_shape(tmp_path, write, wrong):
    ((name, shape),) = wrong.items()
    assert_refused(
        write(tmp_path / "w", _with(name, np.ones(shape, "float32"))), re.escape(name.split(".")[0]) + "|fc1"
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embedding/kernel", (16, 16)),
        ("embedding/kernel", ()),
        ("Transformer/posembed_input/pos_embedding", (16,)),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", (256,)),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", (0, 2, 8)),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel", (15, 2, 8)),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel", (16, 16)),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/value/bias", ()),
        ("Transformer/encoderblock/LayerNorm_0/scale", ()),
        ("head/kernel", (16,)),
    ],
)
def test_googles_arrays_of_the_wrong_shape(tmp_path, name, shape):
    arrays = {**google_names(ARRAYS, 2), name: np.ones(shape, "float32")}
    assert_refused(npz(tmp_path / "w.npz", arrays), "w.npz")


@pytest.mark.parametrize(
    "absent",
    [
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel",
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel",
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/value/bias",
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel",
        "Transformer/encoderblock_1/LayerNorm_0/bias",
    ],
)
def test_half_an_attention_in_googles_names(tmp_path, absent):
    arrays = {name: a for name, a in google_names(ARRAYS, 2).items() if name != absent}
    assert_refused(npz(tmp_path / "w.npz", arrays), "encoderblock_1|blocks.1")


def _split_qkv(arrays: dict) -> dict:
    """qkv in three, as Hugging Face and jeonsworld keep it; [out, in]."""
    out = {}
    for name, a in arrays.items():
        a = a.T if a.ndim == 2 and name.endswith(".weight") else a
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", np.split(a, 3), strict=True):
                out[name.replace(".qkv.", f".{part}.")] = piece
        else:
            out[name] = a
    return out


@pytest.mark.parametrize("absent", ["q.weight", "k.weight", "v.weight", "q.bias", "v.bias"])
def test_half_a_qkv(tmp_path, absent):
    """Two thirds of an attention must not load as a model whose attention is fresh."""
    arrays = {n: a for n, a in _split_qkv(ARRAYS).items() if n != f"blocks.1.attn.{absent}"}
    assert_refused(safetensors_file(tmp_path / "w.safetensors", arrays), r"blocks\.1\.attn")


def test_q_k_and_v_whole_do_load(tmp_path):
    """So the refusals above are for what is absent."""
    network = fresh_network()
    path = safetensors_file(tmp_path / "w.safetensors", _split_qkv(ARRAYS))
    assert loading.load_pretrained(network, str(path), strict=True).exact
    assert all(np.array_equal(a, ARRAYS[name]) for name, a in values(network).items())


def test_contradictory_orientation(tmp_path):
    """One matrix [out, in] among matrices [in, out]."""
    arrays = _with("blocks.0.mlp.fc1.weight", ARRAYS["blocks.0.mlp.fc1.weight"].T)
    assert_refused(npz(tmp_path / "w.npz", arrays), "contradict each other")


def test_square_matrices_do_not_tell_their_orientation(tmp_path):
    """MLP as wide as the model, q, k and v apart: guessing would load every matrix turned, and fit."""
    arrays = other_weights(mlp_ratio=1.0)
    path = safetensors_file(tmp_path / "w.safetensors", _split_qkv(arrays))
    assert_refused(path, r"it is unknown whether its matrices are", fresh_network(mlp_ratio=1.0))


@pytest.mark.parametrize("kind", ["npz", "safetensors", "torch", "paddle"])
def test_no_known_names(tmp_path, kind):
    arrays = {"conv1.weight": np.ones([4, 3], "float32"), "layer1.0.bn1.bias": np.ones([4], "float32")}
    write = {
        "npz": lambda: npz(tmp_path / "w", arrays),
        "safetensors": lambda: safetensors_file(tmp_path / "w", arrays),
        "torch": lambda: torch_zip(tmp_path / "w", {n: FakeTensor(a) for n, a in arrays.items()}),
        "paddle": lambda: paddle_file(tmp_path / "w", arrays),
    }
    assert "conv1.weight" in assert_refused(write[kind](), "no known model")


@pytest.mark.parametrize(
    "tree",
    [{}, [], 5, None, "text", {"epoch": 3}, {"state_dict": {}}, {"model": [1, 2]}, {1: np.ones(3)}, {None: None}],
    ids=repr,
)
def test_pickles_without_weights(tmp_path, tree):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(tree, protocol=4) + b"\0" * 8)
    assert_refused(path, "holds no weights by name")


# -- folders ----------------------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    assert_refused(tmp_path, "neither a checkpoint nor a run directory")


def test_a_folder_where_a_file_should_be(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert_refused(tmp_path / "model.safetensors", "neither a checkpoint")


def test_a_path_that_is_not_there(tmp_path):
    assert_refused(tmp_path / "absent.npz", "no such file")


def _index(folder, weight_map):
    path = folder / "hub" / "model.safetensors.index.json"
    path.parent.mkdir()
    path.write_text(weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "sub/w.safetensors", "..", ""])
def test_an_index_that_names_a_file_elsewhere(tmp_path, name):
    safetensors_file(tmp_path / "w.safetensors", ARRAYS)
    names = name if name != "/etc/passwd" else str(tmp_path / "w.safetensors")
    assert_refused(_index(tmp_path, dict.fromkeys(ARRAYS, names)), "outside its folder|damaged|not a file")


@pytest.mark.parametrize(
    "weight_map",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": 5}',
        {"a": 5},
        {"a": ["b"]},
        {"a": None},
        {},
        {"a": "absent.safetensors"},
        "[" * 100_000,
    ],
    ids=["cut", "list", "no map", "number", "numbers", "lists", "null", "empty", "absent", "nested"],
)
def test_a_damaged_index(tmp_path, weight_map):
    path = _index(tmp_path, weight_map)
    with within(SECONDS), pytest.raises(CheckpointError, match=r"index\.json|absent\.safetensors"):
        loading.load_pretrained(fresh_network(), str(path))


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"id2label": 5}', '{"id2label": [1]}', '{"hidden_act": []}'])
def test_a_damaged_config_beside_hugging_faces_weights(tmp_path, content):
    """Refused by name, or passed over where it tells nothing; never another exception."""
    names = {
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "cls_token": "embeddings.cls_token",
    }
    names["blocks.0.mlp.fc1.weight"] = "encoder.layer.0.intermediate.dense.weight"
    arrays = {theirs: ARRAYS[ours].T if ARRAYS[ours].ndim == 2 else ARRAYS[ours] for ours, theirs in names.items()}
    safetensors_file(tmp_path / "model.safetensors", arrays)
    (tmp_path / "config.json").write_text(content)
    try:
        loading.load_pretrained(fresh_network(), str(tmp_path))
    except CheckpointError as error:
        assert "config.json" in str(error)


def test_no_half_of_a_model_is_loaded_when_a_later_array_does_not_fit(tmp_path):
    """Shapes are compared before anything is loaded."""
    arrays = _with("blocks.1.mlp.fc2.bias", np.ones([17], "float32"))
    assert_refused(npz(tmp_path / "w.npz", arrays), r"blocks\.1\.mlp\.fc2\.bias has shape \[17\]")


def test_strict_refuses_before_anything_is_loaded(tmp_path):
    arrays = {name: a for name, a in ARRAYS.items() if name != "norm.bias"}
    assert_refused(npz(tmp_path / "w.npz", arrays), r"norm\.bias", strict=True)
