"""Fields of ViTSpec that the plain Vision Transformer lacks: what each computes, and that it pays for none."""

import dataclasses
import math
import warnings

import numpy as np
import paddle
import pytest

from plsc import compat
from plsc.data.class_names import imagenet_names
from plsc.engine.blocks import recompute_blocks
from plsc.errors import ConfigError
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec, cpu_forms, parameter_count, spec_of
from plsc.models.layers import (
    Attention,
    Block,
    QuickGelu,
    RelativePositionBias,
    RMSNorm,
    Rotary,
    SwiGlu,
    rope_coordinates,
)

TINY = dict(img_size=(24, 16), patch_size=8, embed_dim=32, depth=2, num_heads=2, class_num=3, mlp_ratio=2.0)
KINDS: dict[str, dict] = {
    "CLIP": dict(norm_pre=True, patch_bias=False, act="quick_gelu", epsilon=1e-5),
    "DINOv2 giant": dict(mlp="swiglu", layer_scale=1e-5, reg_tokens=2, no_embed_class=True),
    "DINOv2's linear head": dict(pool="token_avg", layer_scale=1e-5),
    "DINOv3": dict(rope="centred", pos_embed="none", reg_tokens=4, k_bias=False, layer_scale=1e-5, epsilon=1e-5),
    "EVA-02": dict(rope="axial", rope_reference=16, rope_temperature=1e4, mlp="swiglu", mlp_norm=True, k_bias=False),
    "EVA-02's CLIP": dict(rope="axial", rope_reference=16, mlp="swiglu", mlp_norm=True, attn_norm=True, k_bias=False),
    "learned frequencies": dict(rope="mixed", rope_temperature=10.0, rope_order="xy", pos_embed="none"),
    "Perception Encoder": dict(
        rope="axial",
        rope_offset=1.0,
        rope_order="xy",
        rope_reference=3,
        norm_pre=True,
        pool="map",
        pool_heads=4,
        pool_mlp_ratio=4.0,
    ),
    "BEiT": dict(rel_pos_bias=True, pos_embed="none", k_bias=False, layer_scale=0.1, pool="avg", fc_norm=True),
    "distilled": dict(distillation="heads"),
    "a distillation token without a head": dict(distillation="token"),
    "ViT-22B": dict(block="parallel", qk_norm="layernorm", qkv_bias=False, layer_scale=0.1),
    "ViT-5": dict(norm="rmsnorm", qk_norm="rmsnorm", rope="axial", reg_tokens=4, qkv_bias=False, layer_scale=1e-4),
    "post-norm": dict(block="post", class_token=False, pool="avg"),
    "no norm at the end": dict(final_norm=False, pool="avg"),
    "pooling without prefix": dict(pool="map", pool_prefix=False, reg_tokens=2),
    "one rate of stochastic depth": dict(drop_path_rate=0.3, drop_path_uniform=True),
}


def build(seed: int = 0, **fields) -> VisionTransformer:
    """A small model whose every weight is drawn, so that none is without effect."""
    model, rng = VisionTransformer(ViTSpec(**{**TINY, **fields})), np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.set_value((centre + 0.3 * rng.standard_normal(parameter.shape)).astype("float32"))
    model.eval()
    return model


def images(count: int = 2) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(5).standard_normal((count, 3, 24, 16)).astype("float32"))


# -- every kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_counted_and_has_an_effect(kind):
    model = build(**KINDS[kind])
    assert parameter_count(model.spec) == sum(math.prod(p.shape) for p in model.parameters())
    (model(images()) * paddle.to_tensor([1.0, -2.0, 3.0])).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in without if "k_norm.bias" not in name], without  # softmax does not see the latter


@pytest.mark.parametrize("kind", KINDS)
def test_attention_maps_are_those_of_the_forward_pass(kind):
    """The path that keeps weights gives the logits of the other one, and rows that sum to one."""
    model = build(**KINDS[kind])
    expected = model(images()).numpy()
    x = model._embed(images())
    for block in model.blocks:
        x, weights = block.forward_with_weights(x)
        np.testing.assert_allclose(weights.sum(axis=-1).numpy(), 1.0, atol=1e-5)
    np.testing.assert_allclose(model.forward_head(model.norm(x)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_reset_classifier_and_layer_ids(kind):
    model = build(**KINDS[kind])
    model.reset_classifier(5)
    assert model(images()).shape == [2, 5]
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert all(ids[name] == 0 for name in ids if name.startswith(("patch_embed", "norm_pre")) or "token" in name)
    assert all(ids[name] == 3 for name in ids if name.startswith(("norm.", "head", "attn_pool", "fc_norm")))
    model.reset_classifier(0)
    assert model(images()).shape[1] == (64 if model.spec.pool == "token_avg" else 32)


READS = [kind for kind in KINDS if ViTSpec(**{**TINY, **KINDS[kind]}).read_tokens is not None]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", ["plain", *READS])
def test_a_last_block_that_makes_the_tokens_that_are_read(kind, flash):
    """Logits and gradients are those of the whole model, of training with recomputation, too; tokens are whole."""

    def results():
        x = images()
        x.stop_gradient = False
        logits = model(x)
        (logits * paddle.to_tensor([1.0, -2.0, 3.0])).sum().backward()
        tensors = {"logits": logits, "images": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        model.clear_gradients()
        return arrays

    model = build(**{**KINDS.get(kind, {}), "drop_path_rate": 0.0})
    for block in model.blocks:
        block.attn.flash = block.attn.flash and flash
    whole, tokens, maps = results(), model.forward_features(images()).numpy(), model.attention_maps(images())
    model.skip_unread()
    shapes = []
    model.blocks[-1].register_forward_post_hook(lambda layer, inputs, output: shapes.append(output.shape))
    whole_block, part = {"interval": 1, "names": ()}, {"interval": 2, "names": ["blocks.1.attn"]}
    if not compat.recompute_keeps_random_state(True):
        part["names"] = []  # Paddle 2.6 recomputes no layer that may draw random numbers
    for recomputed in (None, whole_block, part):
        for block in model.blocks:
            vars(block).pop("forward", None)
        if recomputed is not None:
            recompute_blocks(model, on_cpu=True, **recomputed)
            model.train()  # nothing is dropped
        for name, array in results().items():
            scale = max(1.0, np.abs(whole[name]).max())
            np.testing.assert_allclose(array, whole[name], rtol=0, atol=1e-5 * scale, err_msg=name)
    read = 2 if kind == "distilled" else 1
    assert shapes and all(shape == [2, read, 32] for shape in shapes)
    np.testing.assert_array_equal(model.forward_features(images()).numpy(), tokens)
    np.testing.assert_array_equal(model.forward_intermediates(images(), [-1])[0].numpy(), tokens)
    for weights, expected in zip(model.attention_maps(images()), maps, strict=True):
        np.testing.assert_array_equal(weights.numpy(), expected.numpy())


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(READS)))
def test_a_head_that_reads_patches_has_all_tokens(kind):
    model = build(**KINDS[kind])
    model.skip_unread()
    assert model.last_rows is None


class PatchHead(VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        return x[:, 1:].mean(axis=1)


class Mixing(paddle.nn.Layer):
    """Somebody else's layer, which adds the mean of all tokens."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        x = self.inner(x)
        return x + x.mean(axis=1, keepdim=True)


class OwnAttention(Attention):
    def forward(self, x):
        return super().forward(x)


class OwnBlock(Block):
    def forward(self, x):
        return super().forward(x)


class OwnRotary(Rotary):
    def forward(self, q, k):
        return super().forward(q, k)


OTHERS = {
    "block": lambda model: model.blocks.__setitem__(-1, OwnBlock(model.spec)),
    "attention": lambda model: setattr(model.blocks[-1], "attn", OwnAttention(model.spec)),
    "no block": lambda model: model.blocks.__setitem__(-1, paddle.nn.Identity()),
    "no blocks": lambda model: setattr(model, "blocks", paddle.nn.LayerList()),
    "no attention": lambda model: setattr(model.blocks[-1], "attn", paddle.nn.Identity()),
    "two attentions": lambda model: setattr(model.blocks[-1], "mlp", Attention(model.spec)),
    "norm of tokens": lambda model: setattr(model.blocks[-1], "norm2", paddle.nn.LayerNorm([7, 32])),
    "rotation": lambda model: setattr(model.blocks[-1].attn, "rope", OwnRotary(model.spec)),
    "MLP": lambda model: setattr(model.blocks[-1], "mlp", Mixing(model.blocks[-1].mlp)),
    "norm": lambda model: setattr(model, "norm", Mixing(model.norm)),
    "hook": lambda model: model.blocks[-1].register_forward_post_hook(lambda layer, x, y: y + y.mean(1, keepdim=True)),
    "inner hook": lambda model: model.blocks[-1].mlp.fc1.register_forward_pre_hook(lambda layer, x: x[0].flip(1)),
    "forward": lambda model: setattr(model.blocks[-1], "forward", lambda x: x.flip(1)),
    "features": lambda model: setattr(model, "forward_features", lambda x: model.blocks[0](model._embed(x))),
    "head": lambda model: setattr(model, "forward_head", lambda x: x[:, 1:].mean(axis=1)),
}


@pytest.mark.parametrize("other", ["model", *OTHERS])
def test_parts_of_somebody_elses_read_all_tokens(other):
    fields = {**TINY, "rope": "axial" if other == "rotation" else None}
    model = (PatchHead if other == "model" else VisionTransformer)(ViTSpec(**fields))
    OTHERS.get(other, lambda model: None)(model)
    model.eval()
    expected = model(images()).numpy()
    cpu_forms.use(model)
    assert model.last_rows is None
    np.testing.assert_allclose(model(images()).numpy(), expected, rtol=0, atol=1e-5)


# -- a plain model pays for none ------------------------------------------------------------


@pytest.mark.skipif(compat.IS_PADDLE_2, reason="counts of Paddle 3's graph")
@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 63),
        ({"pool": "avg", "fc_norm": True}, 64),
        ({"layer_scale": 0.1, "reg_tokens": 2}, 68),
        ({"pool": "map", "class_token": False}, 87),
    ],
    ids=str,
)
def test_operations_of_a_plain_model(fields, count):
    """As many as before rotary embeddings, gates and norms of queries: what is not asked for costs nothing."""
    model = VisionTransformer(ViTSpec(**{**TINY, "img_size": 16, **fields}))
    model.eval()
    shape = paddle.static.InputSpec([2, 3, 16, 16], "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = paddle.jit.to_static(model.forward, input_spec=[shape], full_graph=True)
        operations = [op.name() for op in traced.concrete_program.main_program.global_block().ops]
    kinds = ("data", "parameter", "full", "full_int_array", "shadow_output", "shadow_feed")
    assert len([name for name in operations if not name.endswith(kinds)]) == count


# -- the parts ------------------------------------------------------------------------------


def test_rms_norm_and_quick_gelu():
    x = np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    norm = RMSNorm(8, 1e-3)
    norm.weight.set_value(np.arange(8, dtype="float32"))
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * np.arange(8)
    np.testing.assert_allclose(norm(paddle.to_tensor(x)).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(QuickGelu()(paddle.to_tensor(x)).numpy(), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


def test_swiglu_gates_with_its_first_half():
    layer, x = SwiGlu(4, 6, 0.0), np.random.default_rng(0).standard_normal((1, 2, 4)).astype("float32")
    weight, bias = np.random.default_rng(1).standard_normal((4, 12)).astype("float32"), np.ones(12, "float32")
    layer.fc1.weight.set_value(weight)
    layer.fc1.bias.set_value(bias)
    gate, value = np.split(x @ weight + bias, 2, axis=-1)
    expected = (gate / (1 + np.exp(-gate)) * value) @ layer.fc2.weight.numpy() + layer.fc2.bias.numpy()
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, atol=1e-5)


def scores(spec: ViTSpec, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """[H, N, N] products of one query and one key that stand at every place."""
    rotary, tokens = Rotary(spec), spec.prefix_tokens + math.prod(spec.grid)
    turned = rotary(*(paddle.to_tensor(np.tile(x, [1, tokens, 1, 1]).astype("float32")) for x in (q, k)))
    q, k = (x.numpy()[0].transpose(1, 0, 2) for x in turned)
    return q @ k.transpose(0, 2, 1)


@pytest.mark.parametrize("rope", ["axial", "centred", "mixed"])
def test_rope_tells_distances_and_leaves_other_tokens(rope):
    """The product of a query and a key depends on how far apart they stand, and a class token is not rotated."""
    spec = ViTSpec(**{**TINY, "img_size": 24, "rope": rope, "pos_embed": "none"})
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 16))
    got = scores(spec, q, k)
    np.testing.assert_allclose(got[:, 0, 0], (q * k).sum(axis=-1), atol=1e-4)
    patches = got[:, 1:, 1:].reshape(2, 3, 3, 3, 3)  # head, row and column of the query, of the key
    np.testing.assert_allclose(patches[:, 0, 0, 1, 1], patches[:, 1, 1, 2, 2], atol=1e-4)
    np.testing.assert_allclose(patches[:, 2, 0, 2, 1], patches[:, 0, 1, 0, 2], atol=1e-4)
    assert np.abs(patches[:, 0, 0, 0, 1] - patches[:, 0, 0, 1, 0]).min() > 1e-3  # across is not down
    assert np.abs(patches[:, 0, 0, 0, 1] - patches[:, 0, 1, 0, 0]).min() > 1e-3  # nor back


def test_rope_coordinates():
    wide = dict(TINY, img_size=(16, 24), pos_embed="none")
    axial = rope_coordinates(ViTSpec(**wide, rope="axial", rope_order="xy", rope_offset=1.0))
    np.testing.assert_allclose(axial, [[1, 1], [2, 1], [3, 1], [1, 2], [2, 2], [3, 2]])
    scaled = rope_coordinates(ViTSpec(**wide, rope="axial", rope_reference=(4, 6)))
    np.testing.assert_allclose(scaled, [[0, 0], [0, 2], [0, 4], [2, 0], [2, 2], [2, 4]])
    centred = rope_coordinates(ViTSpec(**wide, rope="centred"))
    np.testing.assert_allclose(centred[:, 0] / (2 * math.pi), [-0.5] * 3 + [0.5] * 3, atol=1e-6)
    np.testing.assert_allclose(centred[:3, 1] / (2 * math.pi), [-2 / 3, 0, 2 / 3], atol=1e-6)


def test_relative_position_bias_is_one_value_a_distance():
    layer = RelativePositionBias((2, 3), 1)
    layer.table.set_value(np.arange(18, dtype="float32")[:, None])
    bias = layer()[0, 0].numpy()
    assert bias[0, 0] == 17 and (bias[0, 1:] == 15).all() and (bias[1:, 0] == 16).all()
    rows, columns = np.divmod(np.arange(6), 3)
    down, across = rows[:, None] - rows, columns[:, None] - columns
    np.testing.assert_array_equal(bias[1:, 1:], (down + 1) * 5 + across + 2)


def test_a_distilled_model_averages_two_heads():
    model = build(distillation="heads")
    tokens = model.forward_features(images())
    both = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    np.testing.assert_allclose(model(images()).numpy(), both.numpy(), atol=1e-6)


def test_pooling_without_prefix_sees_patches_alone():
    model = build(pool="map", pool_prefix=False, reg_tokens=2)
    tokens = model.forward_features(images())
    changed = paddle.concat([tokens[:, :3] + 5.0, tokens[:, 3:]], axis=1)
    np.testing.assert_array_equal(model.forward_head(tokens).numpy(), model.forward_head(changed).numpy())
    weights = model.pool_weights(tokens).numpy()
    assert weights.shape == (2, 2, 9) and (weights[:, :, :3] == 0).all()
    seeing = build(pool="map", reg_tokens=2)
    assert np.abs(seeing.forward_head(tokens).numpy() - seeing.forward_head(changed).numpy()).max() > 1e-3


def test_uniform_rates():
    assert [block.drop_path.rate for block in build(**KINDS["one rate of stochastic depth"]).blocks] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distillation": "heads", "pool": "avg"}, "distillation needs class_token and pool token"),
        ({"rope": "axial", "num_heads": 16}, "rope needs heads of a width divisible by 4, not 2"),
        ({"rel_pos_bias": True, "reg_tokens": 1}, "rel_pos_bias needs class_token"),
        ({"block": "post", "layer_scale": 0.1}, "block post has no layer_scale"),
        ({"pool": "map", "pool_heads": 5}, "not divisible by pool_heads 5"),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(ConfigError, match=message):
        ViTSpec(**{**TINY, **fields})


@pytest.mark.parametrize("kind", ["google", "timm"])
def test_numerics_of_hybrids(kind):
    """Kernels so small that the epsilon tells."""
    fields = dict(TINY, img_size=32, patch_size=1, resnet_layers=(1,), resnet_width=0.5, resnet_norm=kind)
    conv = VisionTransformer(ViTSpec(**fields)).patch_embed.backbone.stem.conv
    kernel = 1e-4 * np.random.default_rng(0).standard_normal(conv.weight.shape).astype("float32")
    conv.weight.set_value(kernel)
    centred = kernel - kernel.mean(axis=(1, 2, 3), keepdims=True)
    variance = (centred**2).mean(axis=(1, 2, 3), keepdims=True)
    divisor = np.sqrt(variance) + 1e-5 if kind == "google" else np.sqrt(variance + 1e-8)
    np.testing.assert_allclose(conv.standardised().numpy(), centred / divisor, rtol=1e-3, atol=1e-5)
    norm = VisionTransformer(ViTSpec(**fields)).patch_embed.backbone.stem.norm
    assert norm._epsilon == {"google": 1e-6, "timm": 1e-5}[kind]


def test_a_spec_survives_its_json():
    """Checkpoints carry it so."""
    import json

    for fields in KINDS.values():
        spec = ViTSpec(**{**TINY, **fields})
        back = json.loads(json.dumps(dataclasses.asdict(spec)))
        assert ViTSpec(**{**back, "img_size": tuple(back["img_size"])}) == spec


# -- factories ------------------------------------------------------------------------------

# parameters with 1000 classes, as timm 1.0.31 counts its models
PUBLISHED = {
    "DeiT_tiny_distilled_patch16_224": 5_910_800,
    "DeiT3_base_patch16_224": 86_585_320,
    "DINOv2_giant_patch14_reg4_518": 1_138_020_840,
    "DINOv3_small_plus_patch16_224": 29_077_480,
    "SigLIP_so400m_patch14_384": 429_378_600,
    "CLIP_large_patch14_336": 304_532_456,
    "EVA02_large_patch14_448": 305_080_232,
    "BEiT_base_patch16_224": 86_530_984,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_models_have_the_parameters_of_the_published(name):
    assert parameter_count(spec_of(name)) == PUBLISHED[name]


def test_names_of_imagenet_stand_in_for_none():
    """Where weights have 1000 classes and names for none; names of their own come first."""
    nameless = ModelCard(spec={"class_num": 1000})
    assert [nameless.class_name(k) for k in (0, 207, 999)] == ["tench", "golden retriever", "toilet tissue"]
    assert len(set(imagenet_names())) == 1000
    assert ModelCard(spec={"class_num": 10}).class_name(3) == "3"
    assert ModelCard(spec={"class_num": 1000}, class_names=["a"] * 1000).class_name(0) == "a"
