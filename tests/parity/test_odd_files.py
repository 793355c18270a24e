"""Odd files against timm and transformers: renamed, wrapped, halved, without heads or config.json, of odd arguments.

Nothing may be silently wrong: a file opens with the library's logits, or is refused, or an assumption is logged.
"""

# ruff: noqa: E402

import argparse
import collections
import json
import os
from pathlib import Path

import pytest

REASON = "make test-parity installs them"
torch = pytest.importorskip("torch", reason=REASON)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # after that: where torch is missing, other tests run in this process
timm = pytest.importorskip("timm", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

import numpy as np
from safetensors.torch import save_file

from plsc.errors import PlscError
from plsc.weights import read
from tests.parity.architectures import of_plsc, of_torch, opened, pictures, randomised

TINY = dict(depth=2, embed_dim=64, num_heads=4, img_size=32, patch_size=8, num_classes=5)
HEADS = {"num_heads": 4}


def tiny(name: str = "vit_tiny_patch16_224", **options):
    return randomised(timm.create_model(name, **{**TINY, **options}))


def state(model) -> dict:
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def with_prefix(prefix: str):
    return lambda arrays: {prefix + name: tensor for name, tensor in arrays.items()}


def check(path: Path, expected, size=32, channels: int = 3, **given) -> set[str]:
    """The fields that were assumed, where the logits are the library's."""
    source = read(path)
    given = {name: value for name, value in given.items() if name in source.card.assumed}
    ours = opened(source, **given)
    batch = pictures(size, channels)
    np.testing.assert_allclose(of_plsc(ours, batch), of_torch(expected, batch), atol=1e-4)
    return set(source.card.assumed)


# -- torch's files: name → (arrays → what is saved, the model) --------------------------------------

STEPS = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
PREFIXES = [
    "module.",
    "model.",
    "module.model.",
    "_orig_mod.",
    "backbone.",
    "encoder.",
    "net.",
    "base_model.",
    "vit.",
    "student.backbone.",
    "teacher.backbone.",
    "visual.",
    "trunk.",
    "visual_encoder.",
    "ema.module.",
    "image_encoder.",
]
WRAPPED = {
    **{f"prefix {prefix}": with_prefix(prefix) for prefix in PREFIXES},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "arch": "x"},
    "Lightning": lambda s: {"state_dict": with_prefix("model.")(s), "hyper_parameters": {"lr": 1}},
    "optimizer and arguments": lambda s: {"model": s, "optimizer": STEPS, "args": argparse.Namespace(lr=1)},
    "averaged alone": lambda s: {"state_dict_ema": s},
    "teacher and student": lambda s: {
        "teacher": with_prefix("backbone.")(s),
        "student": with_prefix("module.backbone.")({name: tensor + 1 for name, tensor in s.items()}),
    },
    "ordered": collections.OrderedDict,
    "parameters": lambda s: {name: torch.nn.Parameter(tensor) for name, tensor in s.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped(name, tmp_path):
    """A teacher and its student: the teacher's, the better one."""
    model = tiny()
    torch.save(WRAPPED[name](state(model)), tmp_path / "w.pth")
    check(tmp_path / "w.pth", model, **HEADS)


def test_heads_removed(tmp_path):
    model = tiny()
    arrays = {name: tensor for name, tensor in state(model).items() if not name.startswith("head.")}
    torch.save(arrays, tmp_path / "w.pth")
    model.reset_classifier(0)
    check(tmp_path / "w.pth", model, **HEADS)
    bare = tiny(num_classes=0)
    torch.save(state(bare), tmp_path / "w.pth")
    check(tmp_path / "w.pth", bare, **HEADS)


@pytest.mark.parametrize("renamed", ["fc.", "head.0.", "head.1."])
def test_heads_of_other_names_are_refused(renamed, tmp_path):
    torch.save({name.replace("head.", renamed): t for name, t in state(tiny()).items()}, tmp_path / "w.pth")
    with pytest.raises(PlscError, match="unknown name"):
        check(tmp_path / "w.pth", None, **HEADS)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types(dtype, kind, tmp_path):
    model = tiny().to(getattr(torch, dtype))
    arrays, path = state(model), tmp_path / f"w.{kind}"
    save_file(arrays, path) if kind == "safetensors" else torch.save(arrays, path)
    check(path, model.float(), **HEADS)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_several_files(kind, tmp_path):
    model, stem = tiny(), {"safetensors": "model", "bin": "pytorch_model"}[kind]
    arrays = state(model)
    parts = {f"{stem}-0000{n + 1}-of-00002.{kind}": sorted(arrays)[n::2] for n in range(2)}
    for file, names in parts.items():
        part = {name: arrays[name] for name in names}
        save_file(part, tmp_path / file) if kind == "safetensors" else torch.save(part, tmp_path / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    check(tmp_path, model, **HEADS)
    (tmp_path / list(parts)[1]).unlink()
    with pytest.raises(PlscError, match="No such file"):
        read(tmp_path)


def test_a_whole_module_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "w.pth")
    with pytest.raises(PlscError, match="asks for timm"):
        read(tmp_path / "w.pth")


# -- unusual arguments of timm's: name → (architecture, arguments, what has to be assumed without config.json) ------

ARGUMENTS: dict[str, tuple[str, dict, str | None]] = {
    "average": ("vit_tiny_patch16_224", dict(global_pool="avg"), None),
    "average without a norm": ("vit_tiny_patch16_224", dict(global_pool="avg", fc_norm=False), "pool"),
    "average of all": ("vit_tiny_patch16_224", dict(global_pool="avg", pool_include_prefix=True), "pool"),
    "maximum": ("vit_tiny_patch16_224", dict(global_pool="max"), "pool"),
    "maximum and average": ("vit_tiny_patch16_224", dict(global_pool="avgmax"), "pool"),
    "attention pooling": ("vit_tiny_patch16_224", dict(global_pool="map"), None),
    "a norm after the class token": ("vit_tiny_patch16_224", dict(fc_norm=True), "pool"),
    "no class token": ("vit_tiny_patch16_224", dict(class_token=False, global_pool="avg"), None),
    "registers alone": ("vit_tiny_patch16_224", dict(class_token=False, reg_tokens=2, global_pool="avg"), None),
    "registers": ("vit_tiny_patch16_224", dict(reg_tokens=2), None),
    "norms of queries and keys": ("vit_tiny_patch16_224", dict(qk_norm=True), None),
    "more norms": ("vit_tiny_patch16_224", dict(scale_attn_norm=True, scale_mlp_norm=True), None),
    "no biases": ("vit_tiny_patch16_224", dict(qkv_bias=False), None),
    "a norm before": ("vit_tiny_patch16_224", dict(pre_norm=True), None),
    "no last norm": ("vit_tiny_patch16_224", dict(final_norm=False), None),
    "no positions": ("vit_tiny_patch16_224", dict(pos_embed="none"), None),
    "ReLU": ("vit_tiny_patch16_224", dict(act_layer="relu"), "act"),
    "tanh GELU": ("vit_tiny_patch16_224", dict(act_layer="gelu_tanh"), "act"),
    "RMSNorm": ("vit_tiny_patch16_224", dict(norm_layer="rmsnorm"), None),
    "rectangles": ("vit_tiny_patch16_224", dict(img_size=(16, 64)), "img_size"),
    "grey": ("vit_tiny_patch16_224", dict(in_chans=1), None),
    "an odd MLP": ("vit_tiny_patch16_224", dict(mlp_ratio=3.3), None),
    "norms after": ("vit_base_patch16_rpn_224", {}, "block"),
    "rotary and learned positions": ("vit_small_patch16_rope_ape_224", {}, "rope"),
    "DeiT III": ("deit3_small_patch16_224", {}, None),
    "EVA-02": ("eva02_base_patch14_224", {}, None),
    "EVA-02, another reference": ("eva02_base_patch14_224", dict(ref_feat_shape=(4, 4)), "unseen"),
    "EVA-02 without rotary": ("eva02_base_patch14_224", dict(use_rot_pos_emb=False), "unseen"),
    "DINOv3, another temperature": ("vit_small_patch16_dinov3", dict(rope_temperature=50.0), "unseen"),
    "DINOv3 by its class token": ("vit_small_patch16_dinov3", dict(global_pool="token"), "pool"),
    "BEiT with positions": ("beit_base_patch16_224", dict(use_abs_pos_emb=True), None),
}
REFUSED = ("maximum", "maximum and average", "a norm after the class token", "ReLU")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_in_config(name, tmp_path):
    architecture, options, _ = ARGUMENTS[name]
    options = {**TINY, **options}
    model = randomised(timm.create_model(architecture, **options))
    arguments = {key: value for key, value in options.items() if key != "num_classes"}
    timm.models.save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
    if name in REFUSED:
        with pytest.raises(PlscError, match=r"config\.json|fc_norm goes with"):
            check(tmp_path, model)
    else:
        check(tmp_path, model, options["img_size"], options.get("in_chans", 3))


@pytest.mark.parametrize("name", [name for name, (*_, assumed) in ARGUMENTS.items() if assumed != "unseen"])
def test_arguments_without_config(name, tmp_path):
    """Right, or an assumption is logged."""
    architecture, options, assumed = ARGUMENTS[name]
    options = {**TINY, **options}
    model = randomised(timm.create_model(architecture, **options))
    save_file(state(model), tmp_path / "w.safetensors")
    if assumed is not None:
        assert assumed in read(tmp_path / "w.safetensors").card.assumed
    else:
        size = {} if options["img_size"] != 32 else {"img_size": 32}
        check(tmp_path / "w.safetensors", model, 32, options.get("in_chans", 3), **HEADS, **size)
