"""TensorFlow 2 checkpoints: those that TensorFlow itself wrote, with its logits, and damaged and hostile ones.

tests/fixtures/coyo is written by make_coyo_checkpoint.py there. What TensorFlow would not write is written here by
hand, with a checksum and a table of its own.
"""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc import loading, places
from plsc.cli.main import main
from plsc.errors import CheckpointError
from plsc.models.vision_transformer import VisionTransformer, ViTSpec
from plsc.weights import read
from plsc.weights.containers import open_container
from plsc.weights.tensor_bundle import crc32c, read_bundle
from tests.helpers import write_config
from tests.test_hostile_checkpoints import ARRAYS, SECONDS, assert_refused, fresh_network, values, within

COYO = Path(__file__).parent / "fixtures" / "coyo"
PREFIXES = {"pretraining": "last_checkpoint", "finetuned": "best_checkpoint", "averaged": "ckpt-3"}
FORMS = [("pretraining", "model"), ("finetuned", "model"), ("averaged", "model"), ("averaged", "ema")]
HEADS = 2  # as make_coyo_checkpoint.py has it, and no file says it


# -- what TensorFlow wrote --------------------------------------------------------------------


def numbers_of_tensorflow(kind: str, weights: str = "model") -> tuple[np.ndarray, np.ndarray]:
    """Pixels and the logits that TensorFlow computed of them."""
    with np.load(COYO / kind / "io.npz") as io:
        return io["pixels"], io["logits_average" if weights == "ema" else "logits"]


@paddle.no_grad()
def logits(network, pixels: np.ndarray) -> np.ndarray:
    network.eval()
    return network(paddle.to_tensor(((pixels - 127.5) / 127.5).astype("float32").transpose(0, 3, 1, 2))).numpy()


def network_of(source, **fields) -> VisionTransformer:
    """The model that a checkpoint says, but for the heads."""
    return VisionTransformer(ViTSpec(**{**source.card.spec, "num_heads": HEADS, **fields}))


@pytest.mark.parametrize(("kind", "weights"), FORMS)
def test_logits_are_those_of_tensorflow(kind, weights):
    source = read(COYO / kind, weights)
    assert (source.layout, source.unknown) == ("coyo", {})
    network = network_of(source)
    assert loading.load_pretrained(network, source, strict=True).exact
    pixels, expected = numbers_of_tensorflow(kind, weights)
    np.testing.assert_allclose(logits(network, pixels), expected, atol=1e-5, rtol=0)


def test_the_logits_tell_the_facts_of_the_layout():
    """Exact GELU, no pre-logits' tanh, other heads or the other weights would not pass above."""
    pixels, expected = numbers_of_tensorflow("pretraining")
    source = read(COYO / "pretraining")
    assert source.card.stated.items() >= {"act": "gelu_tanh", "epsilon": 1e-6, "pool": "token"}.items()
    assert source.card.spec["representation_size"] == 12
    for change in ({"act": "gelu"}, {"num_heads": 1}, {"epsilon": 1e-3}):
        network = network_of(source, **change)
        loading.load_pretrained(network, source)
        assert np.abs(logits(network, pixels) - expected).max() > 1e-4, change
    raw, averaged = (numbers_of_tensorflow("averaged", weights)[1] for weights in ("model", "ema"))
    assert np.abs(raw - averaged).max() > 0.1


def test_arrays_of_every_type_in_two_data_files():
    tensors = open_container(COYO / "types" / "types.index").tensors
    with np.load(COYO / "types" / "values.npz") as expected:
        assert set(tensors) == set(expected)  # so the text is left out
        for name in expected:
            array = tensors[name].read()
            assert array.dtype == expected[name].dtype and array.shape == tensors[name].shape, name
            assert np.array_equal(array, expected[name]), name


def test_variables_in_slices_are_refused():
    with pytest.raises(CheckpointError, match=r"sliced\.index: .*slices \(partitioned variables\), which are not read"):
        read_bundle(COYO / "types" / "sliced.index")


@pytest.mark.parametrize("kind", ["pretraining", "finetuned"])
def test_no_averaged_weights(kind):
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        read(COYO / kind, "ema")


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (256, None)])
def test_heads_of_the_four_models_of_coyo_vit(tmp_path, width, heads):
    """Its code has no other; for a width it does not have, the heads are unknown."""
    names = {"class_emb": (1, 1, width), "embedding/kernel": (2, 2, 3, width), "pos_emb": (1, 5, width)}
    arrays = {f"backbone/{name}": np.zeros(shape, "float32") for name, shape in names.items()}
    assert read(write_bundle(tmp_path / "w", arrays)).card.stated.get("num_heads") == heads


@pytest.mark.parametrize("saved", ["model-weights", "backbone-weights"])
def test_files_of_save_weights(tmp_path, saved):
    """The trainer of coyo-vit also calls save_weights for the model and for the backbone alone."""
    arrays, _ = coyo_arrays(ARRAYS)
    if saved == "model-weights":
        replaced = {"backbone/": "layer_with_weights-0/", "model/": ""}
        arrays["model/optimizer/iter"] = np.int64(5)
    else:
        replaced = {"backbone/": ""}
        arrays = {name: a for name, a in arrays.items() if not name.startswith("model/")}
    for old, new in replaced.items():
        arrays = {re.sub("^" + old, new, name): a for name, a in arrays.items()}
    source = read(write_bundle(tmp_path / saved, arrays))
    assert source.unknown == {}
    expected = {n: a for n, a in ARRAYS.items() if saved == "model-weights" or not n.startswith("head.")}
    assert set(source.tensors) == set(expected)
    assert all(np.array_equal(source.read(name), a) for name, a in expected.items())


# -- what a path means ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREFIXES)
@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001", None])
def test_a_prefix_an_index_a_data_file_or_a_folder(kind, ending):
    path = COYO / kind if ending is None else COYO / kind / f"{PREFIXES[kind]}{ending}"
    assert places.weights_file(path) == COYO / kind / f"{PREFIXES[kind]}.index"


def _folder(tmp_path, *prefixes, pointer=None) -> Path:
    for prefix in prefixes:
        for file in (COYO / "finetuned").glob("best_checkpoint.*"):
            shutil.copy(file, tmp_path / file.name.replace("best_checkpoint", prefix))
    if pointer is not None:
        (tmp_path / "checkpoint").write_text(pointer)
    return tmp_path


@pytest.mark.parametrize("named", ["ckpt-2", "./ckpt-2", "/on/another/machine/ckpt-2", "C:\\\\runs\\\\ckpt-2"])
def test_the_pointer_file_chooses(tmp_path, named):
    """It names the newest of several, by a path that may be of the machine that wrote it."""
    folder = _folder(
        tmp_path,
        "ckpt-1",
        "ckpt-2",
        "ckpt-3",
        pointer=f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: …',
    )
    for path in (folder, folder / "checkpoint"):
        assert places.weights_file(path).name == "ckpt-2.index"


def test_several_checkpoints_without_a_pointer(tmp_path):
    folder = _folder(tmp_path, "ckpt-1", "ckpt-2")
    with pytest.raises(CheckpointError, match=r"holds 2 TensorFlow checkpoints \(ckpt-1, ckpt-2\); name one"):
        places.weights_file(folder)
    assert read(folder / "ckpt-1").layout == "coyo"


def test_a_pointer_to_what_is_not_there(tmp_path):
    folder = _folder(tmp_path, "ckpt-1", pointer='model_checkpoint_path: "ckpt-9"')
    for path in (folder, folder / "checkpoint"):
        with pytest.raises(CheckpointError, match=r"checkpoint: names ckpt-9, but ckpt-9\.index is not beside it"):
            places.weights_file(path)


def test_a_pointer_cannot_lead_out_of_its_folder(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    _folder(tmp_path, "ckpt-1")
    (inner / "checkpoint").write_text('model_checkpoint_path: "../ckpt-1"')
    with pytest.raises(CheckpointError, match="is not beside it"):
        places.weights_file(inner)


def test_a_file_called_checkpoint_of_another_kind(tmp_path):
    """Some write a torch archive of this name."""
    (tmp_path / "checkpoint").write_bytes(b"PK\x03\x04" + bytes(100))
    assert places.weights_file(tmp_path / "checkpoint") == tmp_path / "checkpoint"
    assert places.weights_file(_folder(tmp_path, "ckpt-1")).name == "ckpt-1.index"


def test_weights_of_others_go_before_a_tensorflow_checkpoint(tmp_path):
    folder = _folder(tmp_path, "ckpt-1")
    (folder / "model.safetensors").write_bytes(b"")
    assert places.weights_file(folder).name == "model.safetensors"


# -- the commands -----------------------------------------------------------------------------

pictures_of = ["DecodeImage", {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "ToCHWImage"]


@pytest.fixture
def recipe(tmp_path, process_state):
    """A recipe that says the model of the fixture, and TensorFlow's pixels as pictures with a list of them."""

    def write(kind: str, weights: str = "model") -> tuple[Path, list[Path]]:
        pixels, expected = numbers_of_tensorflow(kind, weights)
        files = [tmp_path / f"{i}.png" for i in range(len(pixels))]
        for file, picture in zip(files, pixels, strict=True):
            Image.fromarray(picture).save(file)
        labels = expected.argmax(1)
        lines = [f"{file.name} {label}\n" for file, label in zip(files, labels, strict=True)]
        (tmp_path / "list.txt").write_text("".join(lines))
        transforms = [{name: None} if isinstance(name, str) else name for name in pictures_of]
        dataset = {
            "name": "ImageNetDataset",
            "image_root": str(tmp_path),
            "cls_label_path": str(tmp_path / "list.txt"),
            "transform_ops": transforms,
        }
        part = {"dataset": dataset, "sampler": {"name": "DistributedBatchSampler", "batch_size": 4}}
        tree = {
            "Global": {
                "device": "cpu",
                "epochs": 1,
                "max_train_step": 1,
                "eval_during_train": False,
                "output_dir": str(tmp_path / "run"),
            },
            "Model": {
                "name": "VisionTransformer",
                "img_size": 16,
                "patch_size": 4,
                "class_num": 7,
                "embed_dim": 16,
                "depth": 2,
                "num_heads": HEADS,
                "mlp_ratio": 2.0,
                "act": "gelu_tanh",
                "representation_size": 12 if kind == "pretraining" else None,
            },
            "Loss": {"Train": [{"CELoss": {}}], "Eval": [{"CELoss": {}}]},
            "LRScheduler": {"name": "Cosine", "learning_rate": 0.01},
            "Optimizer": {"name": "Momentum", "momentum": 0.9},
            "DataLoader": {"Train": part, "Eval": part},
            "Metric": {"Train": [{"TopkAcc": {"topk": [1]}}], "Eval": [{"TopkAcc": {"topk": [1]}}]},
        }
        return write_config(tmp_path / "recipe.yaml", tree), files

    return write


def shares_of(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype("float64") - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("kind", "weights"), FORMS)
def test_predict(recipe, capsys, kind, weights):
    path, files = recipe(kind, weights)
    ema = ["--ema"] if weights == "ema" else []
    arguments = ["-c", path, "--weights", COYO / kind / PREFIXES[kind], "--topk", 7, "--format", "jsonl", *ema]
    assert main(["predict", *map(str, [*arguments, *files])]) == 0
    expected = shares_of(numbers_of_tensorflow(kind, weights)[1])
    for line, row in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        for guess in json.loads(line)["predictions"]:
            assert abs(guess["probability"] - row[guess["class"]]) < 1.01e-4


@pytest.mark.parametrize(("kind", "weights"), FORMS)
def test_convert(tmp_path, kind, weights):
    """To plsc's own format, from which TensorFlow's logits come without a recipe."""
    output = tmp_path / "w.safetensors"
    ema = ["--ema"] if weights == "ema" else []
    arguments = ["--num-heads", HEADS, *ema, "--to", "safetensors", "--output", output]
    assert main(["convert", *map(str, [COYO / kind / PREFIXES[kind], *arguments])]) == 0
    pixels, expected = numbers_of_tensorflow(kind, weights)
    source = read(output)
    network = VisionTransformer(ViTSpec(**source.card.spec))
    loading.load_pretrained(network, source, strict=True)
    np.testing.assert_allclose(logits(network, pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["pretraining", "finetuned"])
def test_eval(recipe, capsys, kind):
    """Every label is TensorFlow's own best class."""
    path, _ = recipe(kind)
    assert main(["eval", "-c", str(path), "--weights", str(COYO / kind), "--output", "found.json"]) == 0
    row = json.loads(Path("found.json").read_text())
    assert row["top1"] == 1.0
    expected = -np.log(shares_of(numbers_of_tensorflow(kind)[1]).max(1)).mean()
    assert abs(row["loss"] - expected) < 1e-5


def test_train(recipe, caplog):
    path, _ = recipe("finetuned")
    overrides = [
        "-o",
        f"Global.pretrained_model={COYO / 'pretraining' / 'last_checkpoint'}",
        "-o",
        "Global.finetune=True",
    ]
    assert main(["train", "-c", str(path), *overrides]) == 0
    assert "30 arrays loaded as they are (names of coyo)" in Path("run/train.log").read_text()


# -- bundles by hand --------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """CRC-32C bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    actual = crc32c(data)  # which is compared with the one above in a test of its own
    return ((actual >> 15 | actual << 17) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(shape=(), kind=1, shard=0, offset=0, size=4, crc=0, more=b"") -> bytes:
    """A BundleEntryProto."""
    dimensions = b"".join(field(2, field(1, side)) for side in shape)
    place = field(3, shard) + field(4, offset) + field(5, size)
    return field(1, kind) + field(2, dimensions) + place + varint(6 << 3 | 5) + struct.pack("<I", crc) + more


def header(shards=1, endianness=0, consumer=0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1) + field(2, consumer))


def block(items) -> bytes:
    """Names that share their beginnings, and one restart."""
    out, before = b"", b""
    for name, value in items:
        shared = 0
        while shared < min(len(name), len(before)) and name[shared] == before[shared]:
            shared += 1
        out += varint(shared) + varint(len(name) - shared) + varint(len(value)) + name[shared:] + value
        before = name
    return out + struct.pack("<II", 0, 1)


def sealed(content: bytes, compression: int = 0) -> bytes:
    content += bytes([compression])
    return content + struct.pack("<I", masked(content))


def table(blocks: list[bytes], *, handles=None, compression=0) -> bytes:
    """A whole index of blocks. handles: a function of those that are right."""
    out, right = b"", []
    for content in blocks:
        right.append((len(out), len(content)))
        out += sealed(content, compression)
    handles = right if handles is None else handles(right)
    meta = varint(len(out)) + varint(8)
    out += sealed(struct.pack("<II", 0, 1))
    names = block([(struct.pack(">I", i), varint(at) + varint(size)) for i, (at, size) in enumerate(handles)])
    footer = meta + varint(len(out)) + varint(len(names))
    return out + sealed(names) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def coyo_arrays(arrays: dict) -> tuple[dict, dict]:
    """Arrays in plsc's names → coyo-vit's; and which became which."""
    layers = {"attn.proj": "att/combine_heads", "norm1": "layernorm1", "norm2": "layernorm2"}
    layers |= {"mlp.fc1": "mlp/layer_with_weights-0", "mlp.fc2": "mlp/layer_with_weights-1"}
    tops = {"norm": "backbone/norm", "head": "model/layer_with_weights-1", "head0": "backbone/representation"}
    tops |= {"patch_embed.proj": "backbone/embedding"}
    out, names = {}, {}
    for name, a in arrays.items():
        layer, _, kind = name.rpartition(".")
        kinds = ("gamma", "beta") if "norm" in layer else ("kernel", "bias")
        kind = kinds[kind == "bias"]
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
        if match and match[2] == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), np.split(a, 3, axis=-1), strict=True):
                out[f"backbone/enc_layers/{match[1]}/att/{part}_dense/{kind}"] = piece
            continue
        if match:
            names[name] = f"backbone/enc_layers/{match[1]}/{layers[match[2]]}/{kind}"
        elif name in ("cls_token", "pos_embed"):
            names[name] = {"cls_token": "backbone/class_emb", "pos_embed": "backbone/pos_emb"}[name]
        else:
            names[name] = f"{tops[layer]}/{kind}"
        out[names[name]] = a.transpose(2, 3, 1, 0) if a.ndim == 4 else a
    return out, names


def items_of(arrays: dict, shards: int = 1) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Entries of an index in order, and the bytes of its data files."""
    kinds, data, items = {"float32": 1, "float64": 2, "int64": 9, "float16": 19, "complex64": 8}, [b""] * shards, []
    for i, (name, a) in enumerate(sorted((f"{n}/.ATTRIBUTES/VARIABLE_VALUE".encode(), a) for n, a in arrays.items())):
        raw, shard = np.asarray(a).tobytes(), i % shards
        place = dict(shard=shard, offset=len(data[shard]), size=len(raw), crc=masked(raw))
        items.append((name, entry(np.shape(a), kinds[str(np.asarray(a).dtype)], **place)))
        data[shard] += raw
    return items, data


def write_bundle(prefix, arrays: dict, *, shards=1, head=None, change=None, **options) -> Path:
    """A checkpoint. change: a function of the list of entries; options: of table."""
    items, data = items_of(arrays, shards)
    items = [(b"", header(shards) if head is None else head), *(change(items) if change else items)]
    blocks = [block(items[at : at + 8]) for at in range(0, len(items), 8)]
    for shard, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)
    path = prefix.with_name(f"{prefix.name}.index")
    path.write_bytes(table(blocks, **options))
    return path


def refused(path, reason: str, **options) -> str:
    return assert_refused(path, reason, fresh_network(act="gelu_tanh"), **options)


@pytest.fixture
def good():
    return coyo_arrays(ARRAYS)[0]


@pytest.mark.parametrize("shards", [1, 3])
def test_the_files_are_good_before_they_are_spoilt(tmp_path, good, shards):
    network = fresh_network(act="gelu_tanh")
    report = loading.load_pretrained(network, str(write_bundle(tmp_path / "w", good, shards=shards)), strict=True)
    assert report.exact and report.layout == "coyo"
    assert all(np.array_equal(a, ARRAYS[name]) for name, a in values(network).items())


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 12, 13, 20, 1000, 4099, 4 * 2**16 - 4, 4 * 2**16 + 9, 600_001])
def test_the_checksum(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == checksum(data)


def test_the_published_checksums():
    """RFC 3720, B.4."""
    examples = {bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E, b"123456789": 0xE3069283}
    assert {data: crc32c(data) for data in examples} == examples


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 47, 48, 0.2, 0.5, 0.9, -8, -1])
def test_a_truncated_index(tmp_path, good, kept):
    path = write_bundle(tmp_path / "w", good)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(path, "truncated")


@pytest.mark.parametrize("kept", [0, 1, 0.5, -1])
def test_a_truncated_data_file(tmp_path, good, kept):
    path = write_bundle(tmp_path / "w", good)
    data = tmp_path / "w.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with within(SECONDS), pytest.raises(CheckpointError, match=r"w\.data-00000-of-00001: truncated: .* ends at byte"):
        loading.load_pretrained(fresh_network(), str(path))


@pytest.mark.parametrize("absent", [0, 2])
def test_a_missing_data_file(tmp_path, good, absent):
    path = write_bundle(tmp_path / "w", good, shards=3)
    (tmp_path / f"w.data-0000{absent}-of-00003").unlink()
    with pytest.raises(CheckpointError, match=rf"w\.data-0000{absent}-of-00003: is missing; w\.index"):
        loading.load_pretrained(fresh_network(), str(path))


def test_spoilt_values_fail_their_checksum(tmp_path, good):
    """Each bit counts, also the last one."""
    path = write_bundle(tmp_path / "w", good)
    data = tmp_path / "w.data-00000-of-00001"
    whole = bytearray(data.read_bytes())
    whole[-1] ^= 1
    data.write_bytes(whole)
    network = fresh_network(act="gelu_tanh")
    before = values(network)
    with pytest.raises(CheckpointError, match=r"w\.data-00000-of-00001: damaged: the checksum of \S+ is wrong"):
        loading.load_pretrained(network, str(path))
    assert all(np.array_equal(a, before[name]) for name, a in values(network).items())


def _entries(*items):
    return lambda _: list(items)


NAME = b"backbone/class_emb/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": b""}, "0 data files"),
        ({"head": header(100_000)}, "100000 data files"),
        ({"head": header(-1)}, "field 1 is not a count"),
        ({"head": header(1, endianness=1)}, "big-endian"),
        ({"head": header(1, consumer=2)}, "reader of version 2"),
        ({"head": field(1, 1) + field(3, 5)}, "its header: a number where a message should be"),
        ({"head": b"\xff" * 12}, "its header: a number has over ten bytes"),
        ({"head": field(3, field(1, 1))[:-1]}, "its header: .*truncated|ends within"),
        ({"compression": 1}, "compressed with snappy, which is not read"),
        ({"compression": 9}, "compressed in a way numbered 9"),
        ({"handles": lambda right: [(at, size + 1) for at, size in right]}, "checksum of the block"),
        ({"handles": lambda right: right[::-1]}, "does not begin with|ascending order"),
        ({"handles": lambda right: [right[0]] * 5000}, "ascending order"),
        ({"handles": lambda right: [(2**62, 8)]}, "not inside the file"),
        ({"handles": lambda right: [(0, 2**62)]}, "not inside the file"),
        ({"handles": lambda right: [(0, 0)]}, "not inside the file"),
        ({"handles": lambda right: []}, "has no entries"),
        ({"change": lambda items: items[::-1]}, "ascending order"),
        ({"change": lambda items: [items[0], *items]}, "ascending order"),
        ({"change": _entries((b"", header()))}, "ascending order"),
        ({"change": _entries((b"\xff\xfe", entry()))}, "damaged"),
        ({"change": _entries((b"\0\1w", entry()))}, "slices"),
        ({"change": _entries((NAME, entry([4], size=16, more=field(7, b""))))}, "slices"),
        ({"change": _entries((NAME, entry([4], kind=8, size=32)))}, "type 8, which is not read"),
        ({"change": _entries((NAME, entry([4], kind=0, size=16)))}, "type 0, which is not read"),
        ({"change": _entries((NAME, entry([4], shard=1, size=16)))}, "data file 1 of 1"),
        ({"change": _entries((NAME, entry([4], size=12)))}, r"12 bytes for float32 of shape \[4\]"),
        ({"change": _entries((NAME, entry([2**62, 4], size=16)))}, "16 bytes for float32"),
        ({"change": _entries((NAME, entry([2**40], size=2**42)))}, "truncated: .* ends at byte 4398046511104"),
        ({"change": _entries((NAME, entry([4], offset=2**62, size=16)))}, "truncated"),
        ({"change": _entries((NAME, entry([-1], size=-4)))}, "is not a count"),
        ({"change": _entries((NAME, entry([-1, -1], size=4)))}, "is not a count"),
        ({"change": _entries((NAME, entry([4], offset=-16, size=16)))}, "is not a count"),
        ({"change": _entries((NAME, entry([1] * 33)))}, "33 dimensions"),
        ({"change": _entries((NAME, entry([1] * 300_000)))}, "longer than its block or than any entry is"),
        ({"change": _entries((NAME, field(1, b"x")))}, "is not a count"),
        ({"change": _entries((NAME, field(1, 1) + field(2, 5)))}, "a number where a message should be"),
        ({"change": _entries((NAME, field(1, 1) + field(2, field(2, 5))))}, "a number where a message should be"),
        ({"change": _entries((NAME, b"\x0b"))}, "unknown kind 3"),
        ({"change": _entries((NAME, b"\x0a\x7fab"))}, "truncated"),
        ({"change": _entries((NAME, entry([4], size=16)), (NAME + b"2", entry([4], size=16)))}, "shares its bytes"),
        ({"change": _entries((b"a" * 1025, entry()))}, "longer than its block or than any entry is"),
    ],
)
def test_damaged_and_hostile_indices(tmp_path, good, options, reason):
    path = write_bundle(tmp_path / "w", good, **options)
    with within(SECONDS), pytest.raises(CheckpointError, match=reason) as error:
        read(path)
    assert "w.index" in str(error.value) or "w.data-" in str(error.value)
    if "w.data-" not in str(error.value):
        refused(path, reason)


def test_blocks_that_say_more_than_they_hold(tmp_path, good):
    path = write_bundle(tmp_path / "w", good)
    for content, reason in {
        b"\x05\x01\x01ab" + struct.pack("<II", 0, 1): "longer than its block",
        b"\x00\x7f\x01ab" + struct.pack("<II", 0, 1): "longer than its block",
        b"\x00\x01\xff\xff\xff\x7fab" + struct.pack("<II", 0, 1): "longer than its block",
        b"\x80" * 8: "has no entries",
        struct.pack("<I", 2**32 - 1): "has no entries",
        bytes(100_000) + struct.pack("<I", 25_000): "has no entries",
        b"abc": "not inside the file",
    }.items():
        path.write_bytes(table([content]))
        refused(path, reason)


def test_a_huge_index(tmp_path):
    path = tmp_path / "w.index"
    with open(path, "wb") as file:
        file.truncate(2**40)
    refused(path, r"an index of 1099511627776 bytes")


def test_an_index_of_very_many_names(tmp_path, good):
    names = [b"%05d" % i for i in range(6_000)]
    path = write_bundle(tmp_path / "w", good, change=lambda items: [(name, entry(kind=7)) for name in names])
    refused(path, "lists over 5000 arrays")


def test_names_that_are_long_by_what_they_share(tmp_path, good):
    """A kilobyte in memory each, some bytes of the file."""
    (tmp_path / "w.data-00000-of-00001").touch()
    items = [(b"", header()), *((b"a" * 1000 + b"%05d" % i, entry(kind=7, size=0)) for i in range(4_900))]
    path = tmp_path / "w.index"
    path.write_bytes(table([block(items)]))
    assert path.stat().st_size < 200_000
    refused(path, "no known model")


def test_values_that_are_not_finite(tmp_path, good):
    for value in (np.nan, np.inf):
        arrays = {**good, "model/layer_with_weights-1/bias": np.full(10, value, "float32")}
        refused(write_bundle(tmp_path / "w", arrays), r"head\.bias holds values that are not finite")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("backbone/class_emb", ()),
        ("backbone/class_emb", (16,)),
        ("backbone/pos_emb", (5, 16)),
        ("backbone/embedding/kernel", (16, 16)),
        ("backbone/embedding/kernel", ()),
        ("backbone/enc_layers/0/att/query_dense/kernel", (256,)),
        ("backbone/enc_layers/0/att/query_dense/kernel", (0, 16)),
        ("backbone/enc_layers/0/att/key_dense/kernel", (15, 16)),
        ("backbone/enc_layers/0/att/value_dense/bias", ()),
        ("backbone/enc_layers/0/mlp/layer_with_weights-0/kernel", (32,)),
        ("backbone/norm/gamma", ()),
        ("model/layer_with_weights-1/kernel", (16,)),
    ],
)
def test_arrays_of_the_wrong_shape(tmp_path, good, name, shape):
    refused(write_bundle(tmp_path / "w", {**good, name: np.ones(shape, "float32")}), "w.index")


@pytest.mark.parametrize("absent", ["query_dense/kernel", "key_dense/kernel", "value_dense/bias"])
def test_half_an_attention(tmp_path, good, absent):
    arrays = {name: a for name, a in good.items() if name != f"backbone/enc_layers/1/att/{absent}"}
    refused(write_bundle(tmp_path / "w", arrays), r"blocks\.1\.attn\.qkv\.(weight|bias) has 2 of 3 parts")


def test_checkpoints_of_other_models(tmp_path):
    arrays = {"model/bert/embeddings/kernel": np.ones([3, 4], "float32"), "save_counter": np.int64(1)}
    refused(write_bundle(tmp_path / "w", arrays), "no known model .*: model/bert/embeddings/kernel")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\n", bytes(4096)],
    ids=["empty", "html", "git-lfs", "zeros"],
)
def test_other_things_under_the_name_of_an_index(tmp_path, content):
    (tmp_path / "best_checkpoint.index").write_bytes(content)
    refused(tmp_path / "best_checkpoint.index", "truncated, or no index of a TensorFlow checkpoint")


def _read_whole(path) -> dict[str, np.ndarray] | None:
    """All arrays, None where the checkpoint is refused; no other exception, and quick."""
    try:
        with within(SECONDS):
            source = read(path)
            return {name: source.read(name) for name in source.tensors}
    except CheckpointError:
        return None


def test_fuzzed_bytes_of_an_index(tmp_path, good):
    """A spoilt byte is noticed, unless it pads the footer."""
    path = write_bundle(tmp_path / "w", good)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(whole) - 48, 200), *range(len(whole) - 48, len(whole))]
    unnoticed = set()
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        arrays = _read_whole(path)
        if arrays is not None:
            assert all(np.array_equal(a, ARRAYS[name]) for name, a in arrays.items())
            unnoticed.add(len(whole) - place)
    assert all(8 < offset <= 48 for offset in unnoticed)


def test_fuzzed_blocks_with_right_checksums(tmp_path, good):
    """What a hostile writer makes: the checksums say nothing against it."""
    items, data = items_of(good)
    (tmp_path / "w.data-00000-of-00001").write_bytes(data[0])
    path = tmp_path / "w.index"
    items = [(b"", header()), *items]
    blocks = [block(items[at : at + 8]) for at in range(0, len(items), 8)]
    rng, read_all = np.random.default_rng(1), 0
    for _ in range(500):
        spoilt = [bytearray(content) for content in blocks]
        for _ in range(rng.integers(1, 4)):
            content = spoilt[rng.integers(len(spoilt))]
            at = int(rng.integers(len(content)))
            how = rng.integers(3)
            if how == 0:
                content[at] = int(rng.integers(256))
            elif how == 1:
                del content[at : at + int(rng.integers(1, 5))]
            else:
                content[at:at] = rng.bytes(int(rng.integers(1, 5)))
        path.write_bytes(table([bytes(content) for content in spoilt]))
        read_all += _read_whole(path) is not None
    assert read_all < 250  # else the bytes that count were not met
