"""Weights of other codebases: the numbers of Google's own code, every layout, adaptation, writing, plsc convert.

The layouts are made here by renaming and turning the arrays of one small model, apart from plsc's own tables.
"""

import collections
import dataclasses
import json
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from plsc import loading
from plsc.cli.main import main
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError
from plsc.model_card import ModelCard
from plsc.models import PRESETS, spec_of
from plsc.models.spec import reduced
from plsc.models.vision_transformer import VisionTransformer, ViTSpec
from plsc.models.vit_family import infer_spec
from plsc.weights import Source, formats, read, write
from tests.helpers import CHECKOUT, SHARED, clean_environment, plsc
from tests.test_hostile_checkpoints import FakeTensor, google_names, npz, torch_legacy, torch_zip

FIXTURES = Path(__file__).parent / "fixtures"
DEIT = SHARED / "weights" / "deit_tiny_patch16_224"
# as many classes and pre-logits as the width: head, head0 and proj are square, and would load turned
SPEC = dict(img_size=32, patch_size=8, class_num=16, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
FIELDS = ("embed_dim", "depth", "num_heads", "class_num", "representation_size", "patch_size", "img_size", "pool")


def network_of(seed=0, **fields) -> VisionTransformer:
    paddle.seed(seed)
    network = VisionTransformer(ViTSpec(**{**SPEC, "head_init": "scheme", **fields}))
    network.eval()
    return network


def drawn(seed=1, **fields) -> dict[str, np.ndarray]:
    """Random arrays for a model, in plsc's names."""
    rng = np.random.default_rng(seed)
    shapes = {name: p.shape for name, p in network_of(**fields).named_parameters()}
    return {name: (0.3 * rng.standard_normal(shape)).astype("float32") for name, shape in shapes.items()}


def with_arrays(arrays: dict, **fields) -> VisionTransformer:
    """The model that has these arrays, set without plsc's reading."""
    network = network_of(**fields)
    for name, p in network.named_parameters():
        p.set_value(arrays[name])
    return network


def values(network) -> dict[str, np.ndarray]:
    return {name: p.numpy() for name, p in network.named_parameters()}


def pictures(*shape) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(5).standard_normal(shape or (2, 3, 32, 32)).astype("float32"))


@paddle.no_grad()
def logits(network, x=None) -> np.ndarray:
    return network(pictures() if x is None else x).numpy()


def loaded(path, strict=True, **fields) -> VisionTransformer:
    network = network_of(**fields)
    loading.load_pretrained(network, str(path), strict=strict)
    return network


def assert_loads(path, arrays: dict, layout: str, **fields) -> None:
    """The file gives the arrays bit for bit, and so the logits, under the name of its layout."""
    network = network_of(**fields)
    report = loading.load_pretrained(network, str(path), strict=True)
    assert report.layout == layout
    for name, value in values(network).items():
        assert np.array_equal(value, arrays[name]), name
    assert np.array_equal(logits(network), logits(with_arrays(arrays, **fields)))


# -- the numbers of others ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_small_token", "vit_small_prelogits", "hybrid_mini", "r_stem_vit_small"])
def test_parity_with_googles_code(name):
    """Encoder, pre-logits and logits of google-research/vision_transformer, whose GELU is the tanh form."""
    with np.load(FIXTURES / f"{name}_io.npz") as io:
        reference = {key: io[key] for key in ("input", "encoded", "pre_logits", "logits")}
        config = json.loads(str(io["config"]))
    resnet = config.get("resnet") or {}
    network = network_of(
        img_size=config["image_size"],
        patch_size=tuple(config["patches"]["size"]),
        class_num=config["num_classes"],
        embed_dim=config["hidden_size"],
        depth=config["transformer"]["num_layers"],
        num_heads=config["transformer"]["num_heads"],
        mlp_ratio=config["transformer"]["mlp_dim"] / config["hidden_size"],
        representation_size=config["representation_size"],
        act="gelu_tanh",
        resnet_layers=tuple(resnet["num_layers"]) if resnet else None,
        resnet_width=resnet.get("width_factor", 1.0),
    )
    report = loading.load_pretrained(network, str(FIXTURES / f"{name}.npz"), strict=True)
    assert report.exact
    with paddle.no_grad():
        tokens = network.forward_features(paddle.to_tensor(reference["input"].transpose(0, 3, 1, 2).copy()))
        actual = {
            "encoded": tokens,
            "pre_logits": network.forward_head(tokens, pre_logits=True),
            "logits": network.forward_head(tokens),
        }
    for key, value in actual.items():
        np.testing.assert_allclose(value.numpy(), reference[key], rtol=1e-4, atol=1e-4, err_msg=key)
    spec = ViTSpec(**read(FIXTURES / f"{name}.npz").card.spec)
    assert (spec.grid, spec.num_heads, spec.resnet_layers) == (
        network.spec.grid,
        network.spec.num_heads,
        network.spec.resnet_layers,
    )


@pytest.mark.shared
@pytest.mark.parametrize("file", ["timm.safetensors", "google.npz"])
def test_deit_tiny(file):
    """From the spec that the file alone tells, with both forms of GELU."""
    with np.load(DEIT / "reference_io.npz") as io:
        x = paddle.to_tensor(io["input_nhwc"].transpose(0, 3, 1, 2).copy())
        expected = {"gelu": io["logits_exact_gelu"], "gelu_tanh": io["logits_tanh_gelu"]}
    spec = read(DEIT / file).card.spec
    for act, reference in expected.items():
        network = VisionTransformer(ViTSpec(**{**spec, "act": act}))
        network.eval()
        loading.load_pretrained(network, str(DEIT / file), strict=True)
        actual = logits(network, x)
        np.testing.assert_allclose(actual, reference, atol=1e-3)
        assert (actual.argmax(1) == reference.argmax(1)).all()
    assert np.abs(expected["gelu"] - expected["gelu_tanh"]).max() > 1e-3  # else the two would not be distinguished


# -- layouts: arrays in plsc's names → theirs ----------------------------------------------------


def turned(arrays: dict) -> dict:
    """Linear weights as PyTorch has them, [out, in]."""
    return {n: a.T.copy() if a.ndim == 2 and n.endswith(".weight") else a for n, a in arrays.items()}


def renamed(arrays: dict, rules: dict[str, str], qkv: str | None = None) -> dict:
    """Names by pattern; with `qkv` (block, part, kind) the fused attention is split in rows of [out, in]."""
    out = {}
    for name, array in turned(arrays).items():
        match = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name)
        if match and qkv:
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                theirs = qkv.format(block=match[1], part=part, letter=part[0], kind=match[2])
                out[theirs] = np.ascontiguousarray(piece)
            continue
        (target,) = {re.sub(f"^{old}$", new, name) for old, new in rules.items() if re.fullmatch(old, name)}
        out[target] = array
    return out


def timm(arrays: dict) -> dict:
    return {re.sub(r"^head0\.", "pre_logits.fc.", n): a for n, a in turned(arrays).items()}


def torchvision(arrays: dict, first="0", second="3") -> dict:
    layer = r"encoder.layers.encoder_layer_\1"
    rules = {
        r"patch_embed\.proj\.(\w+)": r"conv_proj.\1",
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        r"blocks\.(\d+)\.norm1\.(\w+)": layer + r".ln_1.\2",
        r"blocks\.(\d+)\.norm2\.(\w+)": layer + r".ln_2.\2",
        r"blocks\.(\d+)\.attn\.qkv\.(\w+)": layer + r".self_attention.in_proj_\2",
        r"blocks\.(\d+)\.attn\.proj\.(\w+)": layer + r".self_attention.out_proj.\2",
        r"blocks\.(\d+)\.mlp\.fc1\.(\w+)": layer + rf".mlp.{first}.\2",
        r"blocks\.(\d+)\.mlp\.fc2\.(\w+)": layer + rf".mlp.{second}.\2",
        r"norm\.(\w+)": r"encoder.ln.\1",
        r"head0\.(\w+)": r"heads.pre_logits.\1",
        r"head\.(\w+)": r"heads.head.\1",
    }
    return renamed(arrays, rules)


def lukemelas(arrays: dict) -> dict:
    rules = {
        r"patch_embed\.proj\.(\w+)": r"patch_embedding.\1",
        "cls_token": "class_token",
        "pos_embed": "positional_embedding.pos_embedding",
        r"blocks\.(\d+)\.(norm\d)\.(\w+)": r"transformer.blocks.\1.\2.\3",
        r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"transformer.blocks.\1.proj.\2",
        r"blocks\.(\d+)\.mlp\.(fc\d)\.(\w+)": r"transformer.blocks.\1.pwff.\2.\3",
        r"norm\.(\w+)": r"norm.\1",
        r"head0\.(\w+)": r"pre_logits.\1",
        r"head\.(\w+)": r"fc.\1",
    }
    return renamed(arrays, rules, "transformer.blocks.{block}.attn.proj_{letter}.{kind}")


def jeonsworld(arrays: dict) -> dict:
    rules = {
        r"patch_embed\.proj\.(\w+)": r"transformer.embeddings.patch_embeddings.\1",
        "cls_token": "transformer.embeddings.cls_token",
        "pos_embed": "transformer.embeddings.position_embeddings",
        r"blocks\.(\d+)\.norm1\.(\w+)": r"transformer.encoder.layer.\1.attention_norm.\2",
        r"blocks\.(\d+)\.norm2\.(\w+)": r"transformer.encoder.layer.\1.ffn_norm.\2",
        r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"transformer.encoder.layer.\1.attn.out.\2",
        r"blocks\.(\d+)\.mlp\.(fc\d)\.(\w+)": r"transformer.encoder.layer.\1.ffn.\2.\3",
        r"norm\.(\w+)": r"transformer.encoder.encoder_norm.\1",
        r"head\.(\w+)": r"head.\1",
    }
    return renamed(arrays, rules, "transformer.encoder.layer.{block}.attn.{part}.{kind}")


def huggingface(arrays: dict, version=4, prefix="vit.") -> dict:
    layer = prefix + (r"encoder.layer.\1" if version == 4 else r"layers.\1")
    mlp = {"fc1": "intermediate.dense", "fc2": "output.dense"} if version == 4 else {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    rules = {
        r"patch_embed\.proj\.(\w+)": prefix + r"embeddings.patch_embeddings.projection.\1",
        "cls_token": prefix + "embeddings.cls_token",
        "pos_embed": prefix + "embeddings.position_embeddings",
        r"blocks\.(\d+)\.norm1\.(\w+)": layer + r".layernorm_before.\2",
        r"blocks\.(\d+)\.norm2\.(\w+)": layer + r".layernorm_after.\2",
        r"blocks\.(\d+)\.attn\.proj\.(\w+)": layer
        + f".attention.{'output.dense' if version == 4 else 'o_proj'}"
        + r".\2",
        r"blocks\.(\d+)\.mlp\.fc1\.(\w+)": layer + f".{mlp['fc1']}" + r".\2",
        r"blocks\.(\d+)\.mlp\.fc2\.(\w+)": layer + f".{mlp['fc2']}" + r".\2",
        r"norm\.(\w+)": prefix + r"layernorm.\1",
        r"head0\.(\w+)": prefix + r"pooler.dense.\1",
        r"head\.(\w+)": r"classifier.\1",
    }
    part = "attention.attention.{part}" if version == 4 else "attention.{letter}_proj"
    return renamed(arrays, rules, layer.replace(r"\1", "{block}") + f".{part}.{{kind}}")


def linen(arrays: dict) -> dict:
    """flax linen and AugReg: sub-modules counted by kind."""
    changed = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0", "Attention_1": "Attention_0"}
    out = {}
    for name, array in google_names(arrays, SPEC["num_heads"]).items():
        for old, new in changed.items():
            name = name.replace(old, new)
        out[name] = array
    return out


def big_vision(arrays: dict, scanned=False) -> dict:
    """A root pos_embedding without the class token's row, MAPHead_0, blocks stacked where scanned."""
    pool = {n: a for n, a in arrays.items() if n.startswith("attn_pool.")}
    out = linen({n: a for n, a in arrays.items() if n not in pool})
    position = out.pop("Transformer/posembed_input/pos_embedding")
    if "cls" in out:  # which is added before the class token comes in
        out["cls"], position = out["cls"] + position[:, :1], position[:, 1:]
    out["pos_embedding"] = position
    if pool:
        heads, width = SPEC["num_heads"], SPEC["embed_dim"]
        key, value = np.split(pool["attn_pool.kv.weight"], 2, axis=1)
        key_bias, value_bias = np.split(pool["attn_pool.kv.bias"], 2)
        attention = "MAPHead_0/MultiHeadDotProductAttention_0"
        for part, kernel, bias in (
            ("query", pool["attn_pool.q.weight"], pool["attn_pool.q.bias"]),
            ("key", key, key_bias),
            ("value", value, value_bias),
        ):
            out[f"{attention}/{part}/kernel"] = kernel.reshape(width, heads, -1)
            out[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        out[f"{attention}/out/kernel"] = pool["attn_pool.proj.weight"].reshape(heads, -1, width)
        out[f"{attention}/out/bias"] = pool["attn_pool.proj.bias"]
        out["MAPHead_0/probe"] = pool["attn_pool.latent"]
        out["MAPHead_0/LayerNorm_0/scale"] = pool["attn_pool.norm.weight"]
        out["MAPHead_0/LayerNorm_0/bias"] = pool["attn_pool.norm.bias"]
        for i, fc in enumerate(("fc1", "fc2")):
            out[f"MAPHead_0/MlpBlock_0/Dense_{i}/kernel"] = pool[f"attn_pool.mlp.{fc}.weight"]
            out[f"MAPHead_0/MlpBlock_0/Dense_{i}/bias"] = pool[f"attn_pool.mlp.{fc}.bias"]
    if scanned:
        first = [n for n in out if n.startswith("Transformer/encoderblock_0/")]
        for name in first:
            all_depths = [out.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(SPEC["depth"])]
            out[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(all_depths)
    return out


def prefixed(prefix: str):
    return lambda arrays: {prefix + n: a for n, a in google_names(arrays, SPEC["num_heads"]).items()}


PLAIN, PRE_LOGITS = {}, {"representation_size": 16}
GAP, MAP = {"class_token": False, "pool": "avg"}, {"class_token": False, "pool": "map"}
LAYOUTS = {
    "google": (lambda a: google_names(a, 2), "google", PRE_LOGITS),
    "google-gap": (lambda a: google_names(a, 2), "google", GAP),
    "linen": (linen, "google", PRE_LOGITS),
    "opt/target/": (prefixed("opt/target/"), "google", PRE_LOGITS),
    "optimizer/target/": (prefixed("optimizer/target/"), "google", PLAIN),
    "params/": (prefixed("params/"), "google", PLAIN),
    "params/img/": (prefixed("params/img/"), "google", PLAIN),
    "big_vision-gap": (big_vision, "google", GAP),
    "big_vision-gap-scanned": (lambda a: big_vision(a, scanned=True), "google", GAP),
    "big_vision-map": (big_vision, "google", MAP),
    "big_vision-map-scanned": (lambda a: big_vision(a, scanned=True), "google", MAP),
    "timm": (timm, "timm", PRE_LOGITS),
    "timm-gap": (timm, "timm", {**GAP, "fc_norm": True}),
    "timm-registers": (timm, "timm", {"reg_tokens": 4, "no_embed_class": True, "layer_scale": 1e-5}),
    "timm-map": (timm, "timm", MAP),
    "timm-hybrid": (
        timm,
        "timm",
        {"resnet_layers": (1, 1), "resnet_width": 0.5, "patch_size": 1, "resnet_norm": "timm"},
    ),
    "torchvision": (torchvision, "torchvision", PRE_LOGITS),
    "torchvision-old": (lambda a: torchvision(a, "linear_1", "linear_2"), "torchvision", PLAIN),
    "lukemelas": (lukemelas, "lukemelas", PRE_LOGITS),
    "jeonsworld": (jeonsworld, "jeonsworld", PLAIN),
    "transformers-4": (huggingface, "huggingface", PLAIN),
    "transformers-5": (lambda a: huggingface(a, 5), "huggingface", PLAIN),
    "transformers-4-bare": (lambda a: huggingface(a, 4, ""), "huggingface", PRE_LOGITS),
    "transformers-5-bare": (lambda a: huggingface(a, 5, ""), "huggingface", PRE_LOGITS),
}


def _torch(write_file, wrap=lambda tree: tree):
    def write_tree(path, theirs):
        return write_file(path, wrap(collections.OrderedDict((n, FakeTensor(a)) for n, a in theirs.items())))

    return write_tree


def _safetensors(path, theirs):
    save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, path)
    return path


def _paddle(path, tree, wrap=lambda tree: tree):
    paddle.save(wrap({n: paddle.to_tensor(np.ascontiguousarray(a)) for n, a in tree.items()}), str(path))
    return path


CONTAINERS = {
    "npz": npz,
    "safetensors": _safetensors,
    "zip": _torch(torch_zip),
    "legacy": _torch(torch_legacy),
    "paddle": _paddle,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_in_every_container(tmp_path, name, container):
    """proj, head and pre-logits are square here: one turned the wrong way would fit; its values show it."""
    convert, layout, fields = LAYOUTS[name]
    arrays = drawn(**fields)
    path = CONTAINERS[container](tmp_path / "weights.bin", convert(arrays))
    expected = "paddle" if (layout, container) == ("timm", "paddle") else layout
    assert_loads(path, arrays, expected, **fields)
    spec = read(path).card.spec
    wanted = network_of(**fields).spec
    for field in ("embed_dim", "depth", "class_num", "representation_size", "pool", "class_token", "reg_tokens"):
        default = next(f.default for f in dataclasses.fields(ViTSpec) if f.name == field)
        assert spec.get(field, default) == getattr(wanted, field), field


@pytest.mark.parametrize("scanned", [False, True])
def test_big_visions_class_token(tmp_path, scanned):
    """Its position is added before the class token comes in: other arrays, the same logits."""
    arrays = drawn()
    network = loaded(npz(tmp_path / "w.npz", big_vision(arrays, scanned)))
    np.testing.assert_allclose(logits(network), logits(with_arrays(arrays)), rtol=1e-5, atol=1e-5)
    assert not network.pos_embed.numpy()[:, 0].any()
    assert np.array_equal(network.pos_embed.numpy()[:, 1:], arrays["pos_embed"][:, 1:])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_turned_square_matrix_would_show(name):
    """The check of the checks: with proj turned, the logits differ."""
    fields = LAYOUTS[name][2]
    arrays = drawn(**fields)
    wrong = {**arrays, "blocks.0.attn.proj.weight": arrays["blocks.0.attn.proj.weight"].T}
    assert np.abs(logits(with_arrays(wrong, **fields)) - logits(with_arrays(arrays, **fields))).max() > 1e-3


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "backbone.", "_orig_mod.", "module.model.", "_orig_mod.module.", "teacher.backbone."],
)
def test_prefixed_names(tmp_path, prefix):
    arrays = drawn()
    path = CONTAINERS["zip"](tmp_path / "w.pth", {prefix + n: a for n, a in timm(arrays).items()})
    assert_loads(path, arrays, "timm")


@pytest.mark.parametrize("write_file", [torch_zip, torch_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: {"model": tree},
        lambda tree: {"state_dict": tree, "epoch": 3, "arch": "vit"},
        lambda tree: {"model": {"state_dict": tree}, "optimizer": {"state": {}}},
        lambda tree: {"model_ema": tree, "best": 0.5},
    ],
    ids=["model", "state_dict", "both", "ema"],
)
def test_wrapped_state_dicts(tmp_path, write_file, wrap):
    arrays = drawn()
    assert_loads(_torch(write_file, wrap)(tmp_path / "w.pth", timm(arrays)), arrays, "timm")


def test_views_of_one_storage(tmp_path):
    """As torch keeps tensors that share memory, and turned ones: with offsets and strides."""
    arrays = timm(drawn())
    flat = np.concatenate([a.reshape(-1) for a in arrays.values()])
    whole, tree, at = FakeTensor(flat), collections.OrderedDict(), 0
    for name, array in arrays.items():
        tree[name] = FakeTensor(array, storage=whole.storage, offset=at)
        at += array.size
    proj = "blocks.0.attn.proj.weight"
    tree[proj] = FakeTensor(np.ascontiguousarray(arrays[proj].T), strides=(1, 16))
    assert_loads(torch_zip(tmp_path / "w.pth", tree), drawn(), "timm")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors", "npz", "paddle"])
def test_other_precisions(tmp_path, container, dtype):
    """Exactly the values that the file holds."""
    arrays = drawn()
    if dtype == "bfloat16":
        halves = {n: (a.view("uint32") >> 16).astype("uint16") for n, a in arrays.items()}
        rounded = {n: (h.astype("uint32") << 16).view("float32") for n, h in halves.items()}
    else:
        rounded = {n: a.astype(dtype).astype("float32") for n, a in arrays.items()}
    path = tmp_path / "w.bin"
    if container in ("zip", "legacy"):
        tree = {n: FakeTensor(a, dtype) for n, a in timm(rounded).items()}
        (torch_zip if container == "zip" else torch_legacy)(path, tree)
    elif container == "paddle":
        paddle.save({n: paddle.to_tensor(a).astype(dtype) for n, a in rounded.items()}, str(path))
    elif dtype != "bfloat16":
        CONTAINERS[container](path, {n: a.astype(dtype) for n, a in timm(rounded).items()})
    elif container == "npz":
        pytest.skip("NumPy has no bfloat16")
    else:
        raw = {n: np.ascontiguousarray(h) for n, h in timm(halves).items()}
        save_file(raw, path)
        path.write_bytes(_marked_bfloat16(path.read_bytes()))
    assert_loads(path, rounded, "paddle" if container == "paddle" else "timm")


def _marked_bfloat16(raw: bytes) -> bytes:
    """A safetensors file of U16 → the same of BF16, whose header is a byte longer for each array."""
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"U16"', b'"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


# -- PLSC -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["epoch_3.pdparams", "epoch_3", "."])
def test_plscs_files_by_name_by_prefix_and_in_a_folder(tmp_path, asked):
    """PLSC's own commands leave the ending out, or keep it; both are understood."""
    arrays = drawn(**PRE_LOGITS)
    _paddle(tmp_path / "epoch_3.pdparams", arrays)
    (tmp_path / "epoch_3.pdstates").write_bytes(b"not weights")
    assert_loads(tmp_path / asked, arrays, "paddle", **PRE_LOGITS)


@pytest.mark.parametrize("name", ["best_model", "latest"])
def test_plscs_output_folder(tmp_path, name):
    arrays = drawn()
    _paddle(tmp_path / f"{name}.pdparams", arrays)
    _paddle(tmp_path / "epoch_1.pdparams", drawn(2))
    assert_loads(tmp_path, arrays, "paddle")


@pytest.mark.parametrize("key", ["model", "state_dict", "net"])
def test_nested_files_of_paddle_save(tmp_path, key):
    arrays = drawn()
    path = _paddle(tmp_path / "w.pdparams", arrays, lambda tree: {key: tree, "epoch": 3})
    assert_loads(path, arrays, "paddle")


def test_a_models_own_state_dict(tmp_path):
    """As paddle.save(layer.state_dict()) writes it, with Paddle's names beside."""
    arrays = drawn()
    paddle.save(with_arrays(arrays).state_dict(), str(tmp_path / "w.pdparams"))
    assert_loads(tmp_path / "w.pdparams", arrays, "paddle")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_of_paddle_save(tmp_path, protocol):
    arrays = drawn()
    tree = {n: paddle.to_tensor(a) for n, a in arrays.items()}
    paddle.save(tree, str(tmp_path / "w.pdparams"), protocol=protocol)
    assert_loads(tmp_path / "w.pdparams", arrays, "paddle")


# -- adaptation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patch", "grid"), [(48, 8, (6, 6)), ((24, 56), 8, (3, 7)), (64, 16, (4, 4)), (16, 8, (2, 2))]
)
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_position_embedding_of_another_grid(tmp_path, size, patch, grid, method):
    """bilinear as Google's scipy.ndimage.zoom(order=1), bicubic as Paddle's interpolate."""
    arrays = drawn()
    path = npz(tmp_path / "w.npz", google_names(arrays, 2))
    network = network_of(img_size=size, patch_size=patch)
    report = loading.load_pretrained(network, str(path), position=method)
    actual, old = network.pos_embed.numpy(), arrays["pos_embed"]
    table = old[0, 1:].reshape(4, 4, 16)
    if method == "bilinear":
        ndimage = pytest.importorskip("scipy.ndimage")
        expected = ndimage.zoom(table, (grid[0] / 4, grid[1] / 4, 1), order=1)
    else:
        picture = paddle.to_tensor(table.transpose(2, 0, 1)[None].copy())
        expected = F.interpolate(picture, size=list(grid), mode="bicubic", align_corners=False).numpy()
        expected = expected[0].transpose(1, 2, 0)
    assert np.array_equal(actual[:, 0], old[:, 0])
    np.testing.assert_allclose(actual[0, 1:], expected.reshape(-1, 16), rtol=1e-4, atol=1e-5)
    assert ("pos_embed" in report.adapted) == (grid != (4, 4))


@pytest.mark.parametrize("factor", [2, (2, 3)])
def test_tokens_of_enlarged_pictures_stay(tmp_path, factor):
    """A resampled patch kernel sees in enlarged patches what the file's saw in theirs."""
    down, across = (factor, factor) if isinstance(factor, int) else factor
    arrays = drawn()
    network = network_of(img_size=(32 * down, 32 * across), patch_size=(8 * down, 8 * across))
    report = loading.load_pretrained(network, str(npz(tmp_path / "w.npz", google_names(arrays, 2))))
    assert "patch kernel resampled" in report.adapted["patch_embed.proj.weight"]

    def enlarged(x):
        size = [x.shape[2] * down, x.shape[3] * across]
        return F.interpolate(x, size=size, mode="bicubic", align_corners=False)

    x = pictures(2, 3, 32, 32)
    patches = x.reshape([2, 3, 4, 8, 4, 8]).transpose([0, 2, 4, 1, 3, 5]).reshape([32, 3, 8, 8])
    big = enlarged(patches).reshape([2, 4, 4, 3, 8 * down, 8 * across]).transpose([0, 3, 1, 4, 2, 5])
    with paddle.no_grad():
        before = with_arrays(arrays).patch_embed(x).numpy()
        after = network.patch_embed(big.reshape([2, 3, 32 * down, 32 * across])).numpy()
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)
    smooth = F.interpolate(pictures(2, 3, 4, 4), size=[32, 32], mode="bicubic", align_corners=False)
    with paddle.no_grad():  # enlarged whole, patches see a little of their neighbours
        before = with_arrays(arrays).patch_embed(smooth).numpy()
        after = network.patch_embed(enlarged(smooth)).numpy()
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before)


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (3, 4)])
def test_other_channels(tmp_path, theirs, ours):
    """A grey picture gives the same tokens, in however many channels it stands."""
    arrays = drawn(in_chans=theirs)
    network = network_of(in_chans=ours)
    report = loading.load_pretrained(network, str(npz(tmp_path / "w.npz", google_names(arrays, 2))))
    assert list(report.adapted) == ["patch_embed.proj.weight"]
    grey = pictures(2, 1, 32, 32)
    if (theirs, ours) == (3, 4):
        expected = np.concatenate([arrays["patch_embed.proj.weight"]] * 2, axis=1)[:, :4] * 0.75
        np.testing.assert_allclose(network.patch_embed.proj.weight.numpy(), expected, rtol=1e-6)
        return
    expected = logits(with_arrays(arrays, in_chans=theirs), grey.tile([1, theirs, 1, 1]))
    np.testing.assert_allclose(logits(network, grey.tile([1, ours, 1, 1])), expected, rtol=1e-4, atol=1e-4)


def test_channels_of_a_hybrid():
    network = network_of(
        img_size=64, patch_size=1, in_chans=1, class_num=10, embed_dim=64, num_heads=4,
        resnet_layers=(1, 1, 2), resnet_width=0.5,
    )  # fmt: skip
    report = loading.load_pretrained(network, str(FIXTURES / "hybrid_mini.npz"))
    assert list(report.adapted) == ["patch_embed.backbone.stem.conv.weight"]
    with np.load(FIXTURES / "hybrid_mini.npz") as file:
        expected = file["conv_root/kernel"].sum(axis=2, keepdims=True).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(network.patch_embed.backbone.stem.conv.weight.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_another_number_of_classes(tmp_path):
    arrays = drawn()
    network = network_of(class_num=5)
    fresh = network.head.weight.numpy().copy()
    report = loading.load_pretrained(network, str(npz(tmp_path / "w.npz", google_names(arrays, 2))))
    assert sorted(report.initialised) == ["head.bias", "head.weight"]
    assert np.array_equal(network.head.weight.numpy(), fresh)
    rest = {n: a for n, a in values(network).items() if not n.startswith("head.")}
    assert all(np.array_equal(a, arrays[n]) for n, a in rest.items())


def test_columns_of_the_head_by_class_name(tmp_path):
    """A Hugging Face folder names its classes; a model of some of them, in another order, takes theirs."""
    arrays, names = drawn(), [f"class {i}" for i in range(16)]
    _safetensors(tmp_path / "model.safetensors", huggingface(arrays))
    config = {"id2label": {str(i): n for i, n in enumerate(names)}, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = [7, 0, 15]
    network = network_of(class_num=3)
    loading.load_pretrained(network, str(tmp_path), class_names=[names[i] for i in wanted])
    np.testing.assert_array_equal(logits(network), logits(with_arrays(arrays))[:, wanted])
    reversed_ = network_of()
    report = loading.load_pretrained(reversed_, str(tmp_path), class_names=names[::-1])
    assert not report.exact
    np.testing.assert_array_equal(reversed_.head.bias.numpy(), arrays["head.bias"][::-1])
    others = network_of()
    report = loading.load_pretrained(others, str(tmp_path), class_names=[f"other {i}" for i in range(16)])
    assert sorted(report.initialised) == ["head.bias", "head.weight"]


def test_pre_logits_are_dropped_or_kept(tmp_path):
    arrays = drawn(**PRE_LOGITS)
    path = npz(tmp_path / "w.npz", google_names(arrays, 2))
    without = network_of(class_num=5)
    report = loading.load_pretrained(without, str(path))
    assert set(report.ignored) == {"head0.weight", "head0.bias"}
    kept = network_of(class_num=5, **PRE_LOGITS)
    loading.load_pretrained(kept, str(path))
    assert np.array_equal(kept.head0.weight.numpy(), arrays["head0.weight"])
    anew = network_of(**PRE_LOGITS)
    report = loading.load_pretrained(anew, str(path), reset_head=True)
    assert set(report.initialised) == {"head0.weight", "head0.bias", "head.weight", "head.bias"}


# -- writing ----------------------------------------------------------------------------------

PREPROCESS = {
    "resize": 36, "crop": [32, 32], "interpolation": "bicubic", "backend": "pil", "scale": 1 / 255,
    "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "rgb": True, "keep_above": None,
}  # fmt: skip
NAMES = [f"class {i}" for i in range(16)]


def source_of(**fields) -> Source:
    spec = dataclasses.asdict(network_of(**fields).spec)
    card = ModelCard(
        model="VisionTransformer", spec=spec, class_names=NAMES, preprocess=Preprocess.from_dict(PREPROCESS)
    )
    return Source.of_arrays(Path("made.safetensors"), drawn(**fields), card)


SOURCES = {
    "plain": lambda: source_of(),
    "pre-logits": lambda: source_of(**PRE_LOGITS),
    "gap": lambda: source_of(**GAP),
    "map": lambda: source_of(**MAP),
    "hybrid": lambda: read(FIXTURES / "hybrid_mini.npz"),
    "stem": lambda: read(FIXTURES / "r_stem_vit_small.npz"),
}
LACKS = {
    ("timm", "pre-logits"): "pre-logits",
    ("huggingface", "pre-logits"): "pre-logits",
    ("huggingface", "map"): "another pooling",
    ("huggingface", "hybrid"): "ResNet",
    ("huggingface", "stem"): "ResNet",
    ("google", "map"): "attention pooling",
    ("jeonsworld", "pre-logits"): "pre-logits",
    **{
        (to, model): what
        for to in ("torchvision", "lukemelas", "jeonsworld")
        for model, what in {
            "gap": "another pooling",
            "map": "another pooling",
            "hybrid": "ResNet|GELU",
            "stem": "ResNet|GELU",
        }.items()
    },
}


@pytest.mark.parametrize("model", SOURCES)
@pytest.mark.parametrize("to", formats())
def test_round_trips(tmp_path, to, model):
    """Bit for bit, with the fields that shapes tell; or refused where the format has no place."""
    source, output = SOURCES[model](), tmp_path / "out"
    if (to, model) in LACKS:
        with pytest.raises(CheckpointError, match=LACKS[to, model]):
            write(source, to, output)
        return
    for path in write(source, to, output):
        assert path.is_file()
    back = read(output)
    assert set(back.tensors) == set(source.tensors)
    assert not back.unknown
    for name in source.tensors:
        assert back.read(name).dtype == source.read(name).dtype
        assert np.array_equal(back.read(name), source.read(name)), name
    stated = FIELDS
    if model in ("hybrid", "stem"):
        stated = [*FIELDS, "resnet_width"]
        assert tuple(back.card.spec["resnet_layers"]) == tuple(source.card.spec["resnet_layers"])
    defaults = {f.name: f.default for f in dataclasses.fields(ViTSpec)}
    for field in stated:
        assert back.card.spec.get(field, defaults[field]) == source.card.spec.get(field, defaults[field]), field


@pytest.mark.parametrize("to", formats())
def test_without_the_head(tmp_path, to):
    """--backbone: also what makes pre-logits fit where they have no place."""
    source = source_of(**PRE_LOGITS)
    write(source, to, tmp_path / "out", backbone=True)
    back = read(tmp_path / "out")
    assert set(back.tensors) == {n for n in source.tensors if not n.startswith("head")}
    assert back.card.spec["class_num"] == 0
    assert back.card.class_names is None


@pytest.mark.parametrize(
    ("to", "fields", "what"),
    [
        ("huggingface", {"layer_scale": 1e-5}, "LayerScale"),
        ("google", {"layer_scale": 1e-5}, "LayerScale"),
        ("huggingface", {"reg_tokens": 4}, "register"),
        ("google", {"reg_tokens": 4}, "register"),
        ("huggingface", {**GAP, "fc_norm": True}, "pooling"),
        ("google", {**GAP, "fc_norm": True}, "norm after the pooling"),
        ("huggingface", {"no_embed_class": True}, "position embedding"),
        ("google", {"no_embed_class": True}, "position embedding"),
        ("google", {"pool": "avg"}, "class"),
        ("google", {"qkv_bias": False}, "bias"),
    ],
    ids=str,
)
def test_refusals(tmp_path, to, fields, what):
    """What the other's code cannot hold, or would compute otherwise, is not written."""
    with pytest.raises(CheckpointError, match=what):
        write(source_of(**fields), to, tmp_path / "out")


@pytest.mark.parametrize("to", ["timm", "google", "huggingface"])
def test_a_refusal_leaves_what_stood_there(tmp_path, to):
    """Neither half a file nor an emptied one."""
    fields = {"timm": PRE_LOGITS, "google": {"layer_scale": 1e-5}, "huggingface": PRE_LOGITS}[to]
    output = tmp_path / "out"
    if to != "huggingface":
        output.write_bytes(b"precious")
    with pytest.raises(CheckpointError):
        write(source_of(**fields), to, output)
    if to == "huggingface":
        assert not list(tmp_path.rglob("*.*"))
    else:
        assert output.read_bytes() == b"precious"


def test_an_unknown_format(tmp_path):
    with pytest.raises(CheckpointError, match=r"onnx.*safetensors, pdparams, google"):
        write(source_of(), "onnx", tmp_path / "out")


def test_names_and_orientation_of_what_is_written(tmp_path):
    """Against the tables of this file, not plsc's own reading."""
    source = source_of()
    arrays = drawn()
    expected = {"timm": timm(arrays), "huggingface": huggingface(arrays), "google": google_names(arrays, 2)}
    for to, theirs in expected.items():
        write(source, to, tmp_path / to)
        if to == "google":
            with np.load(tmp_path / to, allow_pickle=False) as file:
                actual = dict(file)
                assert json.loads(actual.pop("plsc_card").tobytes())["spec"]["num_heads"] == 2
        else:
            actual = load_file(tmp_path / to / "model.safetensors" if to == "huggingface" else tmp_path / to)
        assert actual.keys() == theirs.keys()
        assert all(np.array_equal(actual[n], a) for n, a in theirs.items()), to
    write(source, "pdparams", tmp_path / "w.pdparams")
    actual = paddle.load(str(tmp_path / "w.pdparams"))
    assert all(np.array_equal(actual[n].numpy(), a) for n, a in arrays.items())
    with safe_open(tmp_path / "timm", framework="np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata.keys() == {"format", "plsc_card"}


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_hugging_face_folder(tmp_path, act):
    written = write(source_of(act=act), "huggingface", tmp_path / "out")
    assert sorted(p.name for p in written) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    wanted = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[act],
        "layer_norm_eps": 1e-6, "image_size": 32, "patch_size": 8, "num_channels": 3, "qkv_bias": True,
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted
    assert config["id2label"] == {str(i): n for i, n in enumerate(NAMES)}
    assert config["label2id"] == {n: i for i, n in enumerate(NAMES)}
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "CLIPImageProcessor"  # ViT's own does not crop
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 36}, {"height": 32, "width": 32})
    assert (processor["image_mean"], processor["image_std"]) == (PREPROCESS["mean"], PREPROCESS["std"])
    assert (processor["resample"], processor["do_center_crop"], processor["do_resize"]) == (3, True, True)
    assert processor["rescale_factor"] == pytest.approx(1 / 255)
    back = read(tmp_path / "out")
    assert (back.card.class_names, back.card.spec["act"], back.card.spec["epsilon"]) == (NAMES, act, 1e-6)


@pytest.mark.parametrize(("resize", "size"), [(None, 32), ([40, 48], (40, 48))])
def test_hugging_face_preprocessing_without_crop(tmp_path, resize, size):
    preprocess = {**PREPROCESS, "resize": resize, "crop": None, "interpolation": "bilinear"}
    source = source_of().with_card(preprocess=Preprocess.from_dict(preprocess))
    write(source, "huggingface", tmp_path / "out")
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    height, width = (size, size) if isinstance(size, int) else size
    assert processor["image_processor_type"] == "ViTImageProcessor"
    assert (processor["size"], processor["resample"]) == ({"height": height, "width": width}, 2)
    assert processor["do_resize"] == (resize is not None)


def test_hugging_face_without_names_and_preprocessing(tmp_path):
    source = source_of().with_card(class_names=None, preprocess=None)
    write(source, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["3"] == "LABEL_3"


def test_plscs_own_file_keeps_everything(tmp_path):
    source = source_of(act="gelu_tanh", epsilon=1e-5)
    write(source, "safetensors", tmp_path / "w.safetensors")
    back = read(tmp_path / "w.safetensors")
    assert (back.layout, back.card.class_names, back.card.preprocess) == ("plsc", NAMES, source.card.preprocess)
    assert ViTSpec(**back.card.spec) == ViTSpec(**source.card.spec)


# -- plsc convert -------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    write(source_of(), "safetensors", tmp_path / "made.safetensors")
    return tmp_path / "made.safetensors"


@pytest.mark.parametrize("to", formats())
def test_convert(tmp_path, made, capsys, to):
    assert main(["convert", str(made), "--to", to, "--output", str(tmp_path / "sub" / "out")]) == 0
    output = capsys.readouterr().out
    assert "width 16, depth 2, heads 2, classes 16" in output
    assert f"written {tmp_path / 'sub' / 'out'}" in output
    back, arrays = read(tmp_path / "sub" / "out"), drawn()
    assert set(back.tensors) == set(arrays)
    assert all(np.array_equal(back.read(n), a) for n, a in arrays.items())


def test_convert_takes_the_number_of_heads(tmp_path, capsys):
    """timm's file does not tell it, and Google's arrays are cut by it."""
    path = _safetensors(tmp_path / "timm.safetensors", {**timm(drawn()), "fremd": np.ones(3, "float32")})
    command = ["convert", str(path), "--to", "google", "--output", str(tmp_path / "w.npz"), "--num-heads", "2"]
    assert main(command) == 0
    assert "left out, unknown: fremd [3]" in capsys.readouterr().out
    with np.load(tmp_path / "w.npz") as file:
        assert file["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"].shape == (16, 2, 8)
    assert read(tmp_path / "w.npz").card.spec["num_heads"] == 2


def test_convert_averaged_weights(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write(source_of(), "safetensors", folder / "model.safetensors")
    save_file({"head.bias": np.full(16, 3.0, "float32")}, folder / "ema.safetensors", {"format": "plsc"})
    (folder / "trainer.json").write_text("{}")
    assert main(["convert", str(folder), "--ema", "--to", "timm", "--output", str(tmp_path / "w.safetensors")]) == 0
    assert (read(tmp_path / "w.safetensors").read("head.bias") == 3.0).all()


def test_raw_weights_are_not_written_as_averaged_ones(tmp_path):
    """--ema of a file that has no averages."""
    path = _safetensors(tmp_path / "timm.safetensors", timm(drawn()))
    assert main(["convert", str(path), "--ema", "--to", "timm", "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_convert_says_that_preprocessing_is_unknown(tmp_path, capsys):
    path = _safetensors(tmp_path / "timm.safetensors", timm(drawn()))
    assert main(["convert", str(path), "--to", "huggingface", "--output", str(tmp_path / "hf"), "--num-heads=2"]) == 0
    assert "no preprocessor_config.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.npz", "--to", "timm", "--output", "out"], "absent.npz: no such file"),
        (["page.html", "--to", "timm", "--output", "out"], "page.html: not a file of weights"),
        (["prelogits.safetensors", "--to", "timm", "--output", "out"], "--backbone leaves them"),
        (["made.safetensors", "--to", "timm", "--output", "out", "--ema"], "averaged"),
        (["made.safetensors", "--to", "google", "--output", "out", "--num-heads", "3"], "not divisible by num_heads 3"),
        (["made.safetensors", "--to", "timm", "--output", "page.html/out"], "page.html"),
        (["made.safetensors", "--to", "huggingface", "--output", "page.html"], "page.html"),
        (["made.safetensors", "--to", "timm", "--output", "."], "."),
    ],
    ids=["absent", "html", "pre-logits", "ema", "heads", "below a file", "a file", "a folder"],
)
def test_convert_errors(tmp_path, made, monkeypatch, capsys, arguments, text):
    """One line and exit code 2; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").write_text("<html>nothing here</html>")
    write(source_of(**PRE_LOGITS), "safetensors", tmp_path / "prelogits.safetensors")
    assert main(["convert", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert re.search(text, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["made.safetensors"],
        ["x", "--to", "onnx", "--output", "y"],
        ["x", "--to", "timm"],
        ["x", "--to", "google", "--output", "y", "--num-heads", "-1"],
    ],
)
def test_convert_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *arguments])
    assert stopped.value.code == 2
    assert "usage: plsc convert" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["safetensors", "timm", "google", "pdparams"])
def test_convert_onto_itself(made, to):
    """The file that is read is the one written; in a process of its own, for it may die of a bus error."""
    done = plsc("convert", made, "--to", to, "--output", made, check=False)
    assert done.returncode in (0, 2), done.stderr
    back, arrays = read(made), drawn()
    assert all(np.array_equal(back.read(n), a) for n, a in arrays.items())


# -- laziness -----------------------------------------------------------------------------------

_LOADING = """
import resource, sys, tracemalloc
from plsc import environment
environment.prepare(); environment.import_paddle()
import numpy as np
from safetensors.numpy import save_file
from plsc import loading
from plsc.models.vision_transformer import ViTSpec, VisionTransformer

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

network = VisionTransformer(ViTSpec(embed_dim=768, depth=7, class_num=10))
size = sum(4 * int(np.prod(p.shape)) for p in network.parameters())
arrays = {n: np.zeros(p.shape, "float32") for n, p in network.named_parameters()}
arrays = {n: a.T.copy() if a.ndim == 2 and n.endswith(".weight") else a for n, a in arrays.items()}
save_file(arrays, sys.argv[1])
del arrays
network.norm.weight.set_value(np.full([768], 7.0, "float32"))
loading.load_pretrained(network, sys.argv[1])  # the first time, what Paddle sets up once
before, peak, assign = anonymous(), 0, loading.assign
def watched(parameter, array):
    global peak
    assign(parameter, array)
    peak = max(peak, anonymous())
loading.assign = watched
tracemalloc.start()
loading.load_pretrained(network, sys.argv[1], strict=True)
traced = tracemalloc.get_traced_memory()[1]
assert float(network.norm.weight.sum()) == 0.0
print(size, peak - before, traced)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_little_besides_the_model(tmp_path):
    """200 MB of turned matrices: what is read besides the model's own memory stays below a fifth of it."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADING, str(tmp_path / "w.safetensors")],
        cwd=CHECKOUT, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size, grown, traced = map(int, done.stdout.split()[-3:])
    assert size > 190 * 2**20
    assert grown < 0.2 * size, f"{grown / 2**20:.0f} MB besides a model of {size / 2**20:.0f} MB"
    assert traced < 0.2 * size, f"NumPy held {traced / 2**20:.0f} MB"


@pytest.mark.parametrize("container", ["npz", "safetensors", "zip", "legacy"])
def test_one_array_at_a_time(tmp_path, monkeypatch, container):
    """When one is asked for, those before it are gone."""
    path = CONTAINERS[container](tmp_path / "w.bin", timm(drawn()))
    alive, most, original = [], 0, Source.read

    def counted(self, name):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        array = original(self, name)
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Source, "read", counted)
    loaded(path)
    assert len(alive) >= len(drawn())
    assert most <= 1


@pytest.mark.parametrize("container", ["npz", "safetensors", "zip", "legacy"])
def test_listing_reads_no_values(tmp_path, monkeypatch, container):
    """read() tells shapes and spec of a file without its values."""
    path = CONTAINERS[container](tmp_path / "w.bin", timm(drawn()))

    def refuse(*_, **__):
        raise AssertionError("values were read")

    monkeypatch.setattr("plsc.weights.containers._values", refuse)
    monkeypatch.setattr("plsc.weights.containers._npz_member", refuse)
    source = read(path)
    assert source.card.spec["embed_dim"] == 16
    with pytest.raises(AssertionError, match="values were read"):
        source.read("norm.weight")


# -- sizes from shapes ----------------------------------------------------------------------------


def shapes_of(spec: ViTSpec) -> dict[str, tuple]:
    """Parameters of a token-pooled model without building it."""
    width, hidden = spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio)
    patch = (spec.patch_size, spec.patch_size) if isinstance(spec.patch_size, int) else tuple(spec.patch_size)
    shapes, channels = {}, spec.in_chans

    def conv_norm(conv: str, norm: str, kernel: tuple):
        shapes[f"{conv}.weight"] = kernel
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (kernel[0],)

    if spec.resnet_layers is not None:
        backbone, first = "patch_embed.backbone", int(64 * spec.resnet_width)
        conv_norm(f"{backbone}.stem.conv", f"{backbone}.stem.norm", (first, spec.in_chans, 7, 7))
        channels = first
        for stage, count in enumerate(spec.resnet_layers):
            inner = first * 2**stage
            for unit in range(count):
                name = f"{backbone}.stages.{stage}.blocks.{unit}"
                if unit == 0:
                    down = f"{name}.downsample"
                    conv_norm(f"{down}.conv", f"{down}.norm", (4 * inner, channels, 1, 1))
                conv_norm(f"{name}.conv1", f"{name}.norm1", (inner, channels, 1, 1))
                conv_norm(f"{name}.conv2", f"{name}.norm2", (inner, inner, 3, 3))
                conv_norm(f"{name}.conv3", f"{name}.norm3", (4 * inner, inner, 1, 1))
                channels = 4 * inner
    linear = {}
    for i in range(spec.depth):
        block = f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (width,)
        linear.update({f"{block}.attn.qkv": (width, 3 * width), f"{block}.attn.proj": (width, width)})
        linear.update({f"{block}.mlp.fc1": (width, hidden), f"{block}.mlp.fc2": (hidden, width)})
    if spec.representation_size:
        linear["head0"] = (width, spec.representation_size)
    linear["head"] = (spec.representation_size or width, spec.class_num)
    for name, shape in linear.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[1:]
    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (width, channels, *patch), (width,)
    shapes["cls_token"], shapes["norm.weight"], shapes["norm.bias"] = (1, 1, width), (width,), (width,)
    shapes["pos_embed"] = (1, spec.grid[0] * spec.grid[1] + 1, width)
    return shapes


@pytest.mark.parametrize(
    "fields",
    [
        {},
        PRE_LOGITS,
        {"patch_size": 1, "resnet_layers": (1, 2), "resnet_width": 0.5},
        {"resnet_layers": (), "patch_size": 2},
    ],
    ids=str,
)
def test_the_shapes_below_are_those_of_real_models(fields):
    network = network_of(**fields)
    assert shapes_of(network.spec) == {name: tuple(p.shape) for name, p in network.named_parameters()}


# of which shapes alone tell the spec
ZOO = {name: spec_of(name) for name in PRESETS if name.startswith(("V", "R", "DeiT_")) and "distilled" not in name}


def test_the_zoo_is_found():
    assert len(ZOO) >= 30
    assert {"ViT_base_patch16_224", "ViT_6B_patch14_224", "R50_ViT_base_patch16_224", "DeiT_tiny_patch16_224"} <= set(
        ZOO
    )


@pytest.mark.parametrize("name", ZOO)
def test_sizes_inferred_from_shapes(name):
    """A spec from nothing but shapes rebuilds every size of the zoo, the number of heads included."""
    spec = ZOO[name]
    inferred = ViTSpec(**infer_spec(shapes_of(spec), {}))
    assert shapes_of(inferred) == shapes_of(spec)
    for field in ("embed_dim", "depth", "num_heads", "patch_size", "in_chans", "class_num", "representation_size"):
        assert getattr(inferred, field) == getattr(spec, field), field
    assert (inferred.resnet_layers, inferred.pool, inferred.grid) == (spec.resnet_layers, "token", spec.grid)
    if spec.resnet_layers is not None:
        assert reduced(inferred.img_size, inferred.resnet_layers) == reduced(spec.img_size, spec.resnet_layers)
    elif spec.img_size % spec.patch_size == 0:
        assert inferred.img_size == spec.img_size


def test_every_mlp_width_is_inferred():
    """int(width × ratio) must come back to the width of fc1, though the ratio is a float."""
    wrong = []
    for width in (192, 1152, 1408, 1664, 2320):
        for hidden in range(8, 8 * width, 8):
            shapes = {"patch_embed.proj.weight": (width, 3, 16, 16), "blocks.0.mlp.fc1.weight": (width, hidden)}
            actual = int(width * infer_spec(shapes, {})["mlp_ratio"])
            wrong += [(width, hidden, actual)] * (actual != hidden)
    assert not wrong, f"{len(wrong)} widths, as (width, fc1, told): {wrong[:5]}"


# -- files as training scripts leave them ---------------------------------------------------------


def torch_tree(arrays: dict) -> dict:
    return {name: FakeTensor(array) for name, array in timm(arrays).items()}


def test_an_optimizer_beside_the_weights(tmp_path):
    """torch's optimizers count their steps in tensors without dimensions."""
    state = {0: {"step": FakeTensor(np.float32(7)), "exp_avg": FakeTensor(np.zeros(3, "float32"))}}
    tree = {"model": torch_tree(drawn()), "optimizer": {"state": state, "param_groups": [{"lr": 1e-3}]}, "epoch": 3}
    assert_loads(torch_zip(tmp_path / "w.pth", tree), drawn(), "timm")


def test_weights_in_several_files_of_torch(tmp_path):
    """pytorch_model.bin.index.json and its parts."""
    names = sorted(theirs := huggingface(drawn()))
    parts = {f"pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for file, held in parts.items():
        torch_zip(tmp_path / file, {name: FakeTensor(theirs[name]) for name in held})
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_loads(tmp_path, drawn(), "huggingface")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin: .*No such file"):
        read(tmp_path)


def test_averaged_weights_of_torch(tmp_path, caplog):
    """Told of where they stand beside the raw ones, and read when asked for."""
    averaged = drawn(seed=2)
    tree = {
        "state_dict": torch_tree(drawn()),
        "state_dict_ema": {f"module.{n}": t for n, t in torch_tree(averaged).items()},
    }
    path = torch_zip(tmp_path / "w.pth.tar", tree)
    assert_loads(path, drawn(), "timm")
    assert "holds averaged weights, too, which --ema reads; the raw ones are read" in caplog.text
    source = read(path, "ema")
    assert all(np.array_equal(source.read(name), array) for name, array in averaged.items())
    raw = torch_zip(tmp_path / "raw.pth", {"model": torch_tree(drawn())})
    with pytest.raises(CheckpointError, match=r"raw\.pth: holds no averaged weights \(model_ema or state_dict_ema\)"):
        read(raw, "ema")


@pytest.mark.parametrize("inner", [lambda tree: tree, lambda tree: {"state_dict": tree}], ids=["plain", "wrapped"])
@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_of_torch_without_raw_ones(tmp_path, caplog, key, inner):
    """With --ema and without, where the log says so."""
    path = torch_zip(tmp_path / "w.pth", {key: inner(torch_tree(drawn())), "epoch": 3})
    source = read(path, "ema")
    assert caplog.text == "" and all(np.array_equal(source.read(name), array) for name, array in drawn().items())
    assert_loads(path, drawn(), "timm")
    assert f"{path}: holds averaged weights only, which are read" in caplog.text


def test_somebodys_own_prefix(tmp_path):
    """Where all names have it; beside other arrays it may be one tower of several."""
    theirs = {f"net.{name}": array for name, array in timm(drawn()).items()}
    assert_loads(_safetensors(tmp_path / "w.safetensors", theirs), drawn(), "timm")
    _safetensors(tmp_path / "w.safetensors", theirs | {"text.weight": np.ones(3, "float32")})
    with pytest.raises(CheckpointError, match="of no known model"):
        read(tmp_path / "w.safetensors")


def test_placeholders_of_transformers_are_no_names(tmp_path):
    """LABEL_0, LABEL_1, …: with a data set of as many classes the head is kept, not drawn anew."""
    file = write(source_of().with_card(class_names=None), "huggingface", tmp_path)[0]
    save_file(load_file(file), file, metadata={"format": "pt"})  # without plsc's card
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"]["0"] == "LABEL_0" and read(tmp_path).card.class_names is None
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {**config["id2label"], "0": "cat"}}))
    assert read(tmp_path).card.class_names[:2] == ["cat", "LABEL_1"]
