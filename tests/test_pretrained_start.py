"""Training starts from weights of the same body; what is left out or initialised is listed, and has to be allowed."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plsc import loading
from plsc.errors import CheckpointError
from plsc.models.spec import ViTSpec
from plsc.models.vision_transformer import VisionTransformer
from plsc.weights import read, write
from tests.test_what_weights_leave_open import of_spec

PLAIN = dict(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=2, class_num=3)
OTHERS = {
    "CLIP": (dict(norm_pre=True, patch_bias=False), ["norm_pre.bias", "norm_pre.weight", "patch_embed.proj.bias"]),
    "DINOv3": (dict(rope="centred", pos_embed="none"), ["pos_embed"]),
    "QK-norm": (dict(qk_norm="layernorm"), ["blocks.*.attn.q_norm.weight", "blocks.*.attn.k_norm.bias"]),
    "BEiT": (dict(rel_pos_bias=True, pos_embed="none"), ["blocks.*.attn.rel_pos_bias.table", "pos_embed"]),
    "LayerScale": (dict(layer_scale=0.1), ["blocks.*.ls1.gamma", "blocks.*.ls2.gamma"]),
    "registers": (dict(reg_tokens=2), ["reg_token"]),
    "gap": (dict(pool="avg", fc_norm=True), ["norm.weight", "fc_norm.weight"]),
    "no qkv bias": (dict(qkv_bias=False), ["blocks.*.attn.qkv.bias"]),
    "deeper": (dict(depth=3), ["blocks.*.mlp.fc1.weight"]),
}


def without_card(source, path):
    write(source, "timm", path)
    save_file(load_file(path), path)
    return path


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("into_plain", [True, False])
def test_a_part_of_the_body_is_neither_dropped_nor_drawn_silently(tmp_path, name, into_plain):
    fields, arrays = OTHERS[name]
    specs = [ViTSpec(**PLAIN), ViTSpec(**{**PLAIN, **fields})]
    start, of_file = specs if into_plain else specs[::-1]
    path = without_card(of_spec(of_file), tmp_path / "w.safetensors")
    network = VisionTransformer(start)
    before = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"Global\.pretrained_allow: \[") as error:
        loading.load_pretrained(network, path)
    if name != "DINOv3":  # of which rope comes first
        assert [array for array in arrays if f" {array} " not in str(error.value)] == []
    assert all(np.array_equal(before[key], tensor.numpy()) for key, tensor in network.state_dict().items())
    allow = ["norm*", "fc_norm.*", "pos_embed", "reg_token", "patch_embed.proj.bias", "blocks.*", "rope"]
    assert loading.load_pretrained(network, path, allow=allow).loaded


def test_head_and_size_need_no_permission(tmp_path):
    path = without_card(of_spec(ViTSpec(**PLAIN)), tmp_path / "w.safetensors")
    report = loading.load_pretrained(VisionTransformer(ViTSpec(**{**PLAIN, "img_size": 64, "class_num": 9})), path)
    assert set(report.initialised) == {"head.weight", "head.bias"} and set(report.adapted) == {"pos_embed"}
    pre_logits = ViTSpec(**{**PLAIN, "representation_size": 16})
    assert "head0.weight" in loading.load_pretrained(VisionTransformer(pre_logits), path).initialised
    attention = ViTSpec(**{**PLAIN, "pool": "map"})
    assert "attn_pool.latent" in loading.load_pretrained(VisionTransformer(attention), path).initialised
    fixed = ViTSpec(**{**PLAIN, "pos_embed": "sincos2d", "class_token": False, "pool": "avg"})
    arrays = {key: value for key, value in load_file(path).items() if key not in ("pos_embed", "cls_token")}
    save_file(arrays, tmp_path / "fixed.safetensors")
    assert (
        "pos_embed" not in loading.load_pretrained(VisionTransformer(fixed), tmp_path / "fixed.safetensors").initialised
    )


def test_what_is_of_training_alone_is_no_part_of_the_body(tmp_path):
    """Decoders, predictors and mask tokens, which self-supervised files hold besides."""
    path = without_card(of_spec(ViTSpec(**PLAIN)), tmp_path / "w.safetensors")
    extra = ("decoder_pred.weight", "predictor.blocks.0.norm1.weight", "head_dist.bias", "text.layers.0.weight", "bias")
    save_file({**load_file(path), **{name: np.ones(3, "float32") for name in extra}}, path)
    assert loading.load_pretrained(VisionTransformer(ViTSpec(**PLAIN)), path).loaded
    save_file({**load_file(path), "rope.periods_of_mine": np.ones(3, "float32")}, path)
    with pytest.raises(CheckpointError, match=r"left out +rope\.periods_of_mine"):
        loading.load_pretrained(VisionTransformer(ViTSpec(**PLAIN)), path)


def test_create_model_takes_the_same_permission(tmp_path):
    path = without_card(of_spec(ViTSpec(**PLAIN)), tmp_path / "w.safetensors")
    fields = {**PLAIN, "layer_scale": 0.1}
    with pytest.raises(CheckpointError, match=r"initialised +blocks\.\*\.ls1\.gamma +2 arrays"):
        loading.create_model("VisionTransformer", pretrained=path, **fields)
    assert loading.create_model("VisionTransformer", pretrained=path, pretrained_allow=["blocks.*.ls?.gamma"], **fields)


def test_a_part_without_arrays_is_not_dropped_either(tmp_path):
    """timm's rope_ape models differ from DeiT III in nothing but their name."""
    arrays = load_file(without_card(of_spec(ViTSpec(**{**PLAIN, "embed_dim": 384, "depth": 12})), tmp_path / "w"))
    path = tmp_path / "vit_small_patch16_rope_ape_224.naver_in1k.safetensors"
    save_file(arrays, path)
    assert read(path).card.spec["rope"] == "axial"
    network = VisionTransformer(ViTSpec(**{**PLAIN, "embed_dim": 384, "num_heads": 6, "depth": 12}))
    with pytest.raises(CheckpointError, match=r"rope 'axial', the model has None; as in the weights: -o Model.rope="):
        loading.load_pretrained(network, path)
    assert loading.load_pretrained(network, path, allow=["rope"]).exact
