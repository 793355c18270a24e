"""Models by name: what is known of them without Paddle, and how they are made."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn

import plsc
from plsc.errors import CheckpointError, ConfigError
from plsc.models import VisionTransformer, ViTSpec, flops, list_models, parameter_count, spec_of
from plsc.models.layers import Attention, AttentionPool
from plsc.models.spec import pair
from tests.helpers import CHECKOUT, clean_environment

SMALL = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.5, class_num=7)
KINDS = {
    "plain": {},
    "rectangular": dict(img_size=(24, 40), patch_size=(8, 4)),
    "the rest of a picture is not seen": dict(img_size=35),
    "attention pooling": dict(pool="map", class_token=False),
    "norm after pooling": dict(pool="avg", fc_norm=True),
    "registers": dict(reg_tokens=3, no_embed_class=True, layer_scale=0.1, qkv_bias=False),
    "pre-logits": dict(representation_size=20),
    "stem": dict(resnet_layers=(), patch_size=2, img_size=(64, 90)),
    "hybrid": dict(resnet_layers=(2, 1, 2), resnet_width=0.5, patch_size=1, img_size=(70, 50)),
    "no head": dict(class_num=0, pos_embed="sincos2d", in_chans=1),
}


def operations(network: VisionTransformer) -> int:
    """Twice the multiply-adds of one image, counted layer by layer while it goes through."""
    count = 0

    def counting(of_layer):
        def add(layer, inputs, output):
            nonlocal count
            count += 2 * of_layer(layer, inputs[0], output)

        return add

    per_layer = {
        nn.Conv2D: lambda layer, x, y: math.prod(y.shape[1:]) * math.prod(layer.weight.shape[1:]),
        nn.Linear: lambda layer, x, y: math.prod(y.shape[1:-1]) * math.prod(layer.weight.shape),
        Attention: lambda layer, x, y: 2 * x.shape[1] ** 2 * layer.num_heads * layer.head_dim,
        AttentionPool: lambda layer, x, y: 2 * x.shape[1] * layer.num_heads * layer.head_dim,
    }
    for layer in network.sublayers():
        kind = next((kind for kind in per_layer if isinstance(layer, kind)), None)
        if kind is not None:
            layer.register_forward_post_hook(counting(per_layer[kind]))
    network.eval()
    with paddle.no_grad():
        network(paddle.zeros([1, network.spec.in_chans, *pair(network.spec.img_size)]))
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_costs_are_those_of_the_network(kind):
    spec = ViTSpec(**{**SMALL, **KINDS[kind]})
    network = VisionTransformer(spec)
    assert parameter_count(spec) == sum(math.prod(p.shape) for p in network.parameters())
    assert flops(spec) == operations(network)


@pytest.mark.parametrize(
    ("name", "millions", "giga_macs"),
    [  # without head and pre-logits: DeiT's table 5, and timm's results of ViT-L/16
        ("DeiT_tiny_patch16_224", 5.5, 1.26),
        ("DeiT_small_patch16_224", 21.7, 4.61),
        ("DeiT_base_patch16_224", 85.8, 17.58),
        ("ViT_large_patch16_224", 303.3, 61.60),
    ],
)
def test_published_sizes_and_costs(name, millions, giga_macs):
    spec = spec_of(name, class_num=0, representation_size=None)
    assert parameter_count(spec) / 1e6 == pytest.approx(millions, rel=0.01)
    assert flops(spec) / 2e9 == pytest.approx(giga_macs, rel=0.01)


def test_a_spec_of_another_family_is_not_counted():
    for count in (parameter_count, flops):
        with pytest.raises(TypeError, match="int cannot be counted"):
            count(3)


def test_names_specs_and_counts_need_no_paddle(tmp_path):
    code = (
        "import sys; from plsc import models as m; "
        "print(len(m.list_models()), m.spec_of('ViT').grid, m.parameter_count(m.spec_of('DeiT_tiny_patch16_224'))); "
        "assert 'paddle' not in sys.modules; import plsc.weights; plsc.weights.formats(); "
        "assert 'paddle' not in sys.modules; m.VisionTransformer; assert 'paddle' in sys.modules"
    )
    environment = clean_environment(PYTHONPATH=str(CHECKOUT))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("(14, 14) 5717416")


def test_models_are_listed_by_pattern_and_other_names():
    assert set(list_models("vit_giga*")) == {"ViT_G_patch14_224"}
    assert list_models("DeiT_base*384") == ["DeiT_base_distilled_patch16_384", "DeiT_base_patch16_384"]
    assert list_models() == sorted(list_models()) and "VisionTransformer" in list_models("ViT")
    assert list_models("nothing") == []


# -- create_model -------------------------------------------------------------------------


def test_a_model_is_created_by_name():
    model = plsc.create_model("ViT_tiny_patch16_224", class_num=3, img_size=32, depth=1, drop_path_rate=0.1)
    assert dataclasses.replace(model.spec) == spec_of(
        "ViT_tiny_patch16_224", class_num=3, img_size=32, depth=1, drop_path_rate=0.1
    )
    assert model.training and list(model(paddle.zeros([2, 3, 32, 32])).shape) == [2, 3]
    assert plsc.create_model("ViT_tiny_patch16_224", depth=1).spec.class_num == 1000
    assert plsc.create_model("ViT", class_num=0, depth=1).spec.class_num == 0


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("ViT_base_patch16_244", {}, "did you mean ViT_base_patch16_224"),
        ("swin_tiny", {}, "only plain Vision Transformers"),
        ("ViT", {"num_classes": 10}, "the number of classes is class_num"),
        ("ViT", {"image_size": 10}, "the size of images is img_size"),
        ("ViT", {"num_layers": 10}, "the number of blocks is depth"),
        ("ViT", {"hidden_dim": 10}, "the width is embed_dim"),
        ("ViT", {"dept": 10}, "did you mean depth"),
        ("ViT", {"num_heads": 0}, "greater than 0"),
        ("ViT", {"pool": "max"}, "one of token, avg, all, token_avg, map"),
        ("ViT", {"embed_dim": 100, "num_heads": 3}, "not divisible"),
        ("ViT", {"class_num": "auto"}, "class_num"),
        ("ViT", {"pretrained": True}, "takes the path of weights"),
    ],
)
def test_wrong_names_and_fields_are_answered(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        plsc.create_model(name, **fields)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        plsc.create_model("ViT", num_classes=10, depth=-1, drop_rate=1.0)
    assert all(name in str(refused.value) for name in ("num_classes", "depth", "drop_rate"))


def test_a_created_model_takes_somebodys_weights(tmp_path):
    small = {**SMALL, "class_num": 5}
    first = plsc.create_model("ViT", **small)
    arrays = {
        name: p.numpy().T if p.ndim == 2 and "weight" in name else p.numpy() for name, p in first.named_parameters()
    }
    np.savez(tmp_path / "timm.npz", **arrays)
    model = plsc.create_model("ViT", **{**small, "class_num": 3, "img_size": 48}, pretrained=tmp_path / "timm.npz")
    np.testing.assert_array_equal(model.blocks[1].attn.qkv.weight.numpy(), first.blocks[1].attn.qkv.weight.numpy())
    assert list(model.pos_embed.shape) == [1, 37, 32] and list(model.head.weight.shape) == [32, 3]
    with pytest.raises(CheckpointError, match="no such file"):
        plsc.create_model("ViT", pretrained="absent.npz")


# -- tokens of chosen blocks --------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    paddle.seed(0)
    network = VisionTransformer(ViTSpec(**{**SMALL, "depth": 3, "reg_tokens": 1}))
    network.eval()
    return network


@paddle.no_grad()
def test_tokens_of_chosen_blocks(network):
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal([2, 3, 32, 32]).astype("float32"))
    first, last, again = network.forward_intermediates(x, [0, -1, 2])
    assert list(first.shape) == [2, 2 + 16, 32]
    np.testing.assert_array_equal(last.numpy(), network.forward_features(x).numpy())
    np.testing.assert_array_equal(again.numpy(), last.numpy())
    (raw,) = network.forward_intermediates(x, [0], normalise=False)
    np.testing.assert_array_equal(raw.numpy(), network.blocks[0](network._embed(x)).numpy())
    np.testing.assert_array_equal(network.norm(raw).numpy(), first.numpy())
    assert len(network.forward_intermediates(x)) == 3 and network.forward_intermediates(x, []) == []


@pytest.mark.parametrize("number", [3, -4])
def test_a_block_that_is_not_there(network, number):
    with pytest.raises(ConfigError, match=f"no block {number}: the model has 3, 0 to 2"):
        network.forward_intermediates(paddle.zeros([1, 3, 32, 32]), [number])


def test_blocks_after_the_deepest_are_not_computed(network, monkeypatch):
    monkeypatch.setattr(network.blocks[2], "forward", None)
    assert len(network.forward_intermediates(paddle.zeros([1, 3, 32, 32]), [1, 0])) == 2
