"""The Vision Transformer: its numbers against NumPy, its sizes, its protocol, its initialisation."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from scipy.special import erf

from plsc.errors import ConfigError
from plsc.loading import create_model
from plsc.models import VisionTransformer, ViTSpec
from plsc.models.init import undrawn
from plsc.models.layers import Attention, Block, Dropout, DropPath
from plsc.registry import MODELS

SMALL = dict(img_size=8, patch_size=4, class_num=5, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)


def build(**fields) -> VisionTransformer:
    """A small model in eval mode whose every weight is drawn anew, so that no zero hides a fault."""
    paddle.seed(0)
    model = VisionTransformer(ViTSpec(**{**SMALL, **fields}))
    rng = np.random.default_rng(3)
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        centre = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0
        parameter.set_value((centre + 0.2 * rng.standard_normal(parameter.shape)).astype("float32"))
    model.eval()
    return model


def images(spec: ViTSpec, count: int = 3) -> np.ndarray:
    height, width = (spec.img_size,) * 2 if isinstance(spec.img_size, int) else spec.img_size
    return np.random.default_rng(5).standard_normal((count, spec.in_chans, height, width)).astype("float32")


def run(model, pixels: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(pixels)).numpy()


# -- a second implementation, in NumPy and float64 ----------------------------------------


class NumpyViT:
    """The ViT of the paper, written from its definition; `maps` are the attention weights by block."""

    def __init__(self, model):
        self.spec = model.spec
        self.p = {name: parameter.numpy().astype("float64") for name, parameter in model.named_parameters()}
        self.maps = []

    def linear(self, name, x):
        y = x @ self.p[f"{name}.weight"]
        bias = self.p.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + self.spec.epsilon)
        return y * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def gelu(self, x):
        if self.spec.act == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))

    def mlp(self, name, x):
        return self.linear(f"{name}.fc2", self.gelu(self.linear(f"{name}.fc1", x)))

    def attend(self, q, k, v, scale):
        """[B, Nq, C], [B, N, C], [B, N, C] → mixed [B, Nq, C] and weights [B, H, Nq, N], a head at a time."""
        heads = self.spec.num_heads
        size = q.shape[-1] // heads
        mixed, weights = np.zeros_like(q), []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = scale * q[..., part] @ k[..., part].transpose(0, 2, 1)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weight = scores / scores.sum(axis=-1, keepdims=True)
            mixed[..., part] = weight @ v[..., part]
            weights.append(weight)
        return mixed, np.stack(weights, axis=1)

    def block(self, i, x):
        spec, name = self.spec, f"blocks.{i}"
        q, k, v = np.split(self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)), 3, axis=-1)
        scale = (spec.embed_dim // spec.num_heads) ** -0.5 if spec.qk_scale is None else spec.qk_scale
        mixed, weights = self.attend(q, k, v, scale)
        self.maps.append(weights)
        x = x + self.linear(f"{name}.attn.proj", mixed) * self.p.get(f"{name}.ls1.gamma", 1.0)
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x)) * self.p.get(f"{name}.ls2.gamma", 1.0)

    def patches(self, x):
        weight, bias = self.p["patch_embed.proj.weight"], self.p["patch_embed.proj.bias"]
        width, _, height, across = weight.shape
        rows = [
            x[:, :, i * height : (i + 1) * height, j * across : (j + 1) * across].reshape(len(x), -1)
            for i in range(x.shape[2] // height)
            for j in range(x.shape[3] // across)
        ]
        return np.stack(rows, axis=1) @ weight.reshape(width, -1).T + bias

    def tokens(self, x):
        x = self.patches(x.astype("float64"))
        prefix = [self.p[name] for name in ("cls_token", "reg_token") if name in self.p]
        prefix = [np.repeat(token, len(x), axis=0) for token in prefix]
        if self.spec.no_embed_class:
            x = np.concatenate([*prefix, x + self.p["pos_embed"]], axis=1)
        else:
            x = np.concatenate([*prefix, x], axis=1) + self.p["pos_embed"]
        for i in range(self.spec.depth):
            x = self.block(i, x)
        return x if self.spec.fc_norm else self.norm("norm", x)

    def pool(self, x):
        spec = self.spec
        if spec.pool == "token":
            return x[:, 0]
        if spec.pool == "avg":
            return x[:, int(spec.class_token) + spec.reg_tokens :].mean(axis=1)
        q = self.linear("attn_pool.q", np.repeat(self.p["attn_pool.latent"], len(x), axis=0))
        k, v = np.split(self.linear("attn_pool.kv", x), 2, axis=-1)
        mixed, _ = self.attend(q, k, v, (spec.embed_dim // spec.num_heads) ** -0.5)
        x = self.linear("attn_pool.proj", mixed)
        return (x + self.mlp("attn_pool.mlp", self.norm("attn_pool.norm", x)))[:, 0]

    def features(self, x):
        x = self.pool(self.tokens(x))
        if self.spec.fc_norm:
            x = self.norm("fc_norm", x)
        return np.tanh(self.linear("head0", x)) if self.spec.representation_size else x

    def __call__(self, x):
        x = self.features(x)
        return self.linear("head", x) if self.spec.class_num else x


SPECS = {
    "plain": {},
    "pre_logits": dict(representation_size=7),
    "tanh_gelu": dict(act="gelu_tanh"),
    "average": dict(pool="avg", class_token=False),
    "average_with_class_token": dict(pool="avg"),
    "average_fc_norm": dict(pool="avg", fc_norm=True, reg_tokens=1, class_token=False),
    "map": dict(pool="map", class_token=False),
    "map_with_class_token_tanh_gelu": dict(pool="map", act="gelu_tanh"),
    "registers": dict(reg_tokens=3),
    "average_leaves_registers_out": dict(reg_tokens=3, pool="avg"),
    "no_embed_class": dict(no_embed_class=True, reg_tokens=2),
    "layer_scale": dict(layer_scale=0.1),
    "not_square": dict(img_size=(12, 8), patch_size=(3, 4), in_chans=2),
    "image_no_multiple_of_patch": dict(img_size=(9, 11), patch_size=4),
    "no_qkv_bias_own_scale": dict(qkv_bias=False, qk_scale=0.5),
    "head_dim_4": dict(num_heads=4),
    "head_dim_12_own_scale": dict(embed_dim=24, qk_scale=0.7),
    "large_epsilon": dict(epsilon=1e-3),
    "no_head": dict(class_num=0),
    "sincos": dict(pos_embed="sincos2d", img_size=(12, 8)),
}


@pytest.mark.parametrize("fields", SPECS.values(), ids=SPECS)
def test_forward_equals_numpy(fields):
    """Logits equal those of a second implementation, written from the paper's definitions."""
    model = build(**fields)
    pixels = images(model.spec)
    np.testing.assert_allclose(run(model, pixels), NumpyViT(model)(pixels), rtol=1e-5, atol=1e-5)


def test_forward_features_are_the_normalised_tokens():
    model = build(reg_tokens=1)
    pixels = images(model.spec)
    tokens = model.forward_features(paddle.to_tensor(pixels))
    assert list(tokens.shape) == [3, 1 + 1 + 4, 16]
    np.testing.assert_allclose(tokens.numpy(), NumpyViT(model).tokens(pixels), rtol=1e-5, atol=1e-5)


def test_sincos_position_embedding():
    """[sin x, cos x, sin y, cos y] of a token at (row y, column x), frequencies 10000^(-i / (C/4 - 1)); not trained."""
    model = build(pos_embed="sincos2d", img_size=(12, 8), embed_dim=16)
    table = model.pos_embed.numpy()[0]
    assert model.pos_embed.stop_gradient
    assert not table[0].any()  # the class token has none
    for row in range(3):
        for column in range(2):
            expected = []
            for position in (column, row):
                angles = [position / 10000 ** (i / 3) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[1 + row * 2 + column], expected, rtol=1e-6, atol=1e-7)


# -- sizes --------------------------------------------------------------------------------


def parameter_count(model) -> int:
    return sum(math.prod(p.shape) for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        # C (3 p² + 1) patch embedding, C class token, C (1 + (224 / p)²) positions,
        # depth (12 C² + 13 C) blocks, 2 C norm; B/16: 590,592 + 768 + 151,296 + 85,054,464 + 1,536
        ("ViT_base_patch16_224", 12, 85_798_656),
        ("ViT_base_patch32_224", 12, 87_455_232),
        ("ViT_large_patch16_224", 24, 303_301_632),
        ("ViT_large_patch32_224", 24, 305_510_400),
        ("ViT_huge_patch14_224", 32, 630_764_800),
    ],
)
def test_parameter_counts_of_the_paper(name, depth, expected, monkeypatch):
    """Without head and pre-logits; models of depth 1 and 2 tell what one block and the rest have."""
    monkeypatch.setattr("plsc.models.vision_transformer.init_weights", lambda model, scheme: None)  # quick
    one, two = (parameter_count(create_model(name, depth=d, class_num=0, representation_size=None)) for d in (1, 2))
    assert MODELS.get(name).parameters()["depth"].default == depth
    assert one + (depth - 1) * (two - one) == expected


# name → width, depth, heads, MLP width, pre-logits width, image, patch
SIZES = {
    "ViT_tiny_patch16_224": (192, 12, 3, 768, None, 224, 16),
    "ViT_small_patch16_224": (384, 12, 6, 1536, None, 224, 16),
    "ViT_base_patch16_224": (768, 12, 12, 3072, 768, 224, 16),
    "ViT_base_patch16_384": (768, 12, 12, 3072, None, 384, 16),
    "ViT_base_patch32_224": (768, 12, 12, 3072, 768, 224, 32),
    "ViT_base_patch32_384": (768, 12, 12, 3072, None, 384, 32),
    "ViT_large_patch16_224": (1024, 24, 16, 4096, 1024, 224, 16),
    "ViT_large_patch16_384": (1024, 24, 16, 4096, None, 384, 16),
    "ViT_large_patch32_224": (1024, 24, 16, 4096, 1024, 224, 32),
    "ViT_large_patch32_384": (1024, 24, 16, 4096, None, 384, 32),
    "ViT_huge_patch14_224": (1280, 32, 16, 5120, 1280, 224, 14),
    "ViT_huge_patch14_384": (1280, 32, 16, 5120, None, 384, 14),
    "ViT_g_patch14_224": (1408, 40, 16, 6144, 1408, 224, 14),
    "ViT_giant_patch14_224": (1408, 40, 16, 6144, 1408, 224, 14),
    "ViT_G_patch14_224": (1664, 48, 16, 8192, 1664, 224, 14),
    "ViT_gigantic_patch14_224": (1664, 48, 16, 8192, 1664, 224, 14),
    "ViT_6B_patch14_224": (2320, 80, 16, 11495, 2320, 224, 14),
    "DeiT_tiny_patch16_224": (192, 12, 3, 768, None, 224, 16),
    "DeiT_small_patch16_224": (384, 12, 6, 1536, None, 224, 16),
    "DeiT_base_patch16_224": (768, 12, 12, 3072, None, 224, 16),
    "DeiT_base_patch16_384": (768, 12, 12, 3072, None, 384, 16),
}


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes(name):
    """The registered signature's defaults are the published sizes."""
    fields = {key: parameter.default for key, parameter in MODELS.get(name).parameters().items()}
    width, depth, heads, hidden, representation, image, patch = SIZES[name]
    assert fields["embed_dim"] == width
    assert fields["depth"] == depth
    assert fields["num_heads"] == heads
    assert int(fields["embed_dim"] * fields["mlp_ratio"]) == hidden
    assert fields["representation_size"] == representation
    assert fields["img_size"] == image
    assert fields["patch_size"] == patch
    assert fields["qkv_bias"] is True
    assert fields["epsilon"] == 1e-6
    assert fields["class_num"] == 1000


@pytest.mark.parametrize(
    ("name", "scheme", "head_init", "head_bias"),
    [
        ("ViT_base_patch16_224", "plsc", "scheme", -10.0),
        ("ViT_large_patch32_224", "plsc", "scheme", -10.0),
        ("ViT_base_patch16_384", "plsc", "zeros", 0.0),
        ("DeiT_base_patch16_224", "timm", "scheme", 0.0),
        ("ViT_small_patch16_224", "jax", "zeros", 0.0),
    ],
)
def test_named_initialisation(name, scheme, head_init, head_bias):
    """PLSC's pre-training heads begin at xavier and -10, its fine-tuning heads at zero."""
    fields = {key: parameter.default for key, parameter in MODELS.get(name).parameters().items()}
    assert (fields["weight_init"], fields["head_init"], fields["head_bias"]) == (scheme, head_init, head_bias)


def _matrices(model) -> dict[str, bool]:
    """Of linear layers: whether any value is not zero."""
    return {name: bool(p.any()) for name, p in model.named_parameters() if p.ndim == 2 and name.endswith("weight")}


def test_matrices_that_are_loaded_next_are_not_drawn_in_this_thread():
    fields = SMALL | {"weight_init": "timm", "head_init": "scheme", "representation_size": 16}
    with undrawn(), ThreadPoolExecutor(1) as pool:
        empty, other = VisionTransformer(ViTSpec(**fields)), pool.submit(VisionTransformer, ViTSpec(**fields)).result()
    drawn = VisionTransformer(ViTSpec(**fields))
    assert not any(_matrices(empty).values()) and len(_matrices(empty)) > 8
    assert all(_matrices(drawn).values()) and all(_matrices(other).values())


def test_a_factory_builds_what_its_signature_says():
    """A field given over the preset counts; the rest is the preset's. The MLP's width is cut, not rounded."""
    model = create_model("ViT_tiny_patch16_224", depth=1, img_size=32, class_num=3, mlp_ratio=4.999)
    spec = model.spec
    assert (spec.embed_dim, spec.num_heads, spec.depth, spec.img_size) == (192, 3, 1, 32)
    assert list(model.blocks[0].mlp.fc1.weight.shape) == [192, 959]  # 192 x 4.999 = 959.8
    assert run(model, images(spec)).shape == (3, 3)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="ViT_base_patch16_224"):
        create_model("ViT_base_patch16_244")


# -- the model protocol -------------------------------------------------------------------


def test_forward_is_head_after_features():
    model = build(representation_size=7)
    x = paddle.to_tensor(images(model.spec))
    logits = model.forward_head(model.forward_features(x))
    assert np.array_equal(logits.numpy(), model(x).numpy())
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    assert list(before.shape) == [3, 7]
    np.testing.assert_allclose(before.numpy(), NumpyViT(model).features(images(model.spec)), rtol=1e-5, atol=1e-5)


def test_blocks_are_a_layer_list():
    model = build(depth=3)
    assert isinstance(model.blocks, paddle.nn.LayerList)
    assert len(model.blocks) == 3
    assert all(isinstance(block, Block) for block in model.blocks)


def test_parameter_names_and_shapes():
    """PLSC's names, timm's where PLSC has none; linear weights are [in, out]."""
    model = build(representation_size=7, reg_tokens=2, layer_scale=0.1, depth=1)
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "patch_embed.proj.weight": [16, 3, 4, 4],
        "patch_embed.proj.bias": [16],
        "cls_token": [1, 1, 16],
        "reg_token": [1, 2, 16],
        "pos_embed": [1, 1 + 2 + 4, 16],
        "blocks.0.norm1.weight": [16],
        "blocks.0.norm1.bias": [16],
        "blocks.0.attn.qkv.weight": [16, 48],
        "blocks.0.attn.qkv.bias": [48],
        "blocks.0.attn.proj.weight": [16, 16],
        "blocks.0.attn.proj.bias": [16],
        "blocks.0.ls1.gamma": [16],
        "blocks.0.norm2.weight": [16],
        "blocks.0.norm2.bias": [16],
        "blocks.0.mlp.fc1.weight": [16, 32],
        "blocks.0.mlp.fc1.bias": [32],
        "blocks.0.mlp.fc2.weight": [32, 16],
        "blocks.0.mlp.fc2.bias": [16],
        "blocks.0.ls2.gamma": [16],
        "norm.weight": [16],
        "norm.bias": [16],
        "head0.weight": [16, 7],
        "head0.bias": [7],
        "head.weight": [7, 5],
        "head.bias": [5],
    }


def test_position_embedding_rows():
    """no_embed_class leaves out the rows of the class and register tokens."""
    assert list(build(reg_tokens=2, no_embed_class=True).pos_embed.shape) == [1, 4, 16]
    assert list(build(class_token=False, pool="avg").pos_embed.shape) == [1, 4, 16]


def test_reset_classifier():
    """Another number of classes: a new head drawn as the spec says, and the spec follows."""
    paddle.seed(0)
    model = VisionTransformer(ViTSpec(**SMALL, head_bias=-10.0))
    model.reset_classifier(11)
    assert model.spec.class_num == 11
    assert list(model.head.weight.shape) == [16, 11]
    assert not model.head.weight.numpy().any()
    assert (model.head.bias.numpy() == -10.0).all()
    assert list(model(paddle.to_tensor(images(model.spec))).shape) == [3, 11]
    model.reset_classifier(0)
    assert model.spec.class_num == 0
    assert not [name for name, _ in model.named_parameters() if name.startswith("head")]
    assert list(model(paddle.to_tensor(images(model.spec))).shape) == [3, 16]


def test_reset_classifier_draws_by_the_scheme():
    """head_init: scheme is xavier-uniform after the pre-logits: |w| ≤ sqrt(6 / (40 + 60))."""
    model = VisionTransformer(ViTSpec(**SMALL, representation_size=40, weight_init="plsc", head_init="scheme"))
    model.reset_classifier(60)
    weight = np.abs(model.head.weight.numpy())
    assert weight.shape == (40, 60)
    bound = math.sqrt(6 / 100)
    assert 0.97 * bound < weight.max() <= bound


def test_layer_id():
    model = build(depth=3, reg_tokens=1, representation_size=7, layer_scale=0.1)
    expected = {"patch_embed": 0, "cls_token": 0, "reg_token": 0, "pos_embed": 0, "norm": 4, "head0": 4, "head": 4}
    for name, _ in model.named_parameters():
        first, *rest = name.split(".")
        assert model.layer_id(name) == (int(rest[0]) + 1 if first == "blocks" else expected[first]), name
    pooled = build(depth=3, pool="map")
    assert pooled.layer_id("attn_pool.latent") == 4
    assert build(depth=12).layer_id("blocks.10.norm1.weight") == 11


def test_no_weight_decay():
    """The names of embeddings that the model really has."""
    assert build().no_weight_decay() == {"cls_token", "pos_embed"}
    assert build(reg_tokens=1).no_weight_decay() == {"cls_token", "reg_token", "pos_embed"}
    assert build(pool="map", class_token=False).no_weight_decay() == {"attn_pool.latent", "pos_embed"}


@pytest.mark.parametrize("fields", [{}, dict(reg_tokens=1, layer_scale=0.5), dict(num_heads=4, qk_scale=0.9)])
def test_attention_maps(fields):
    """One [B, H, N, N] a block, rows summing to one, as NumPy computes them; without dropout, mode restored."""
    model = build(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, **fields)
    model.train()
    pixels = images(model.spec)
    maps = model.attention_maps(paddle.to_tensor(pixels))
    assert model.training
    assert model.blocks[0].attn.training
    tokens = 1 + model.spec.reg_tokens + 4
    reference = NumpyViT(model)
    reference(pixels)
    assert len(maps) == 2
    for actual, expected in zip(maps, reference.maps, strict=True):
        assert list(actual.shape) == [3, model.spec.num_heads, tokens, tokens]
        assert actual.stop_gradient
        np.testing.assert_allclose(actual.numpy().sum(axis=-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-6)
    model.eval()
    model.attention_maps(paddle.to_tensor(pixels))
    assert not model.training


def test_the_spec_rebuilds_the_model():
    """create_model("VisionTransformer", **asdict(spec)) has the same parameters and, with them, the same output."""
    model = build(representation_size=7, reg_tokens=1, img_size=(12, 8), act="gelu_tanh", layer_scale=0.1)
    model.reset_classifier(4)
    again = create_model("VisionTransformer", **dataclasses.asdict(model.spec))
    assert again.spec == model.spec
    state = {name: p.numpy() for name, p in model.named_parameters()}
    assert {n: list(p.shape) for n, p in again.named_parameters()} == {n: list(a.shape) for n, a in state.items()}
    for name, parameter in again.named_parameters():
        parameter.set_value(state[name])
    again.eval()
    pixels = images(model.spec)
    assert np.array_equal(run(again, pixels), run(model, pixels))


def test_the_mean_of_all_tokens():
    """Class token and registers included, with the norm after it: Pytorch-VIT's head."""
    model = build(pool="all", fc_norm=True, reg_tokens=1, head_init="scheme")
    tokens = model.forward_features(paddle.to_tensor(images(model.spec)))
    mean = tokens.numpy().astype("float64").mean(axis=1)
    normal = (mean - mean.mean(axis=1, keepdims=True)) / np.sqrt(mean.var(axis=1, keepdims=True) + 1e-6)
    normal = normal * model.fc_norm.weight.numpy() + model.fc_norm.bias.numpy()
    np.testing.assert_allclose(model.forward_head(tokens, pre_logits=True).numpy(), normal, rtol=1e-4, atol=1e-5)


def test_batch_norm_before_a_probes_head():
    """No scale and shift; batch statistics in training, their running mean, of momentum 0.9, in evaluation."""
    model = VisionTransformer(ViTSpec(**SMALL, head_batch_norm=True, head_init=0.01))
    trained = {n for n, p in model.named_parameters() if n.startswith("head") and not p.stop_gradient}
    assert trained == {"head.weight", "head.bias"}
    features = np.random.default_rng(0).normal(3.0, 2.0, [32, 16]).astype("float32")
    tokens = np.repeat(features[:, None], 5, axis=1)
    weight, mean, var = (a.astype("float64") for a in (model.head.weight.numpy(), features.mean(0), features.var(0)))
    model.train()
    actual = model.forward_head(paddle.to_tensor(tokens)).numpy()
    np.testing.assert_allclose(actual, (features - mean) / np.sqrt(var + 1e-6) @ weight, rtol=1e-3, atol=1e-4)
    model.eval()
    actual = model.forward_head(paddle.to_tensor(tokens)).numpy()
    expected = (features - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var * 32 / 31 + 1e-6) @ weight  # as PyTorch counts it
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert {n for n in model.state_dict() if n.startswith("head_norm")} == {"head_norm._mean", "head_norm._variance"}
    model.reset_classifier(4)
    assert not model.head_norm._mean.numpy().any()  # a new head begins anew


# -- initialisation -----------------------------------------------------------------------


def fresh(scheme: str, **fields) -> dict[str, np.ndarray]:
    """Weights by name of a wide one-block model as drawn."""
    paddle.seed(11)
    spec = ViTSpec(**{**SMALL, "embed_dim": 96, "num_heads": 3, "depth": 1, "mlp_ratio": 3.0, **fields})
    model = VisionTransformer(dataclasses.replace(spec, weight_init=scheme))
    return {name: p.numpy() for name, p in model.named_parameters()}


def assert_uniform(weight, bound: float):
    assert np.abs(weight).max() <= bound * (1 + 1e-6)
    assert np.abs(weight).max() > 0.98 * bound
    np.testing.assert_allclose(weight.std(), bound / math.sqrt(3), rtol=0.04)
    assert abs(weight.mean()) < 0.05 * bound


def assert_normal(weight, std: float, rtol: float = 0.04):
    """Spread `std`, and as much outside two of them as a normal distribution has (4.55 %)."""
    np.testing.assert_allclose(weight.std(), std, rtol=rtol)
    assert abs(weight.mean()) < 0.1 * std
    assert 0.02 < (np.abs(weight) > 2 * std).mean() < 0.08


def test_torch_draws_as_pytorch_where_nothing_is_stated():
    """Weights and biases uniform within 1 / sqrt(inputs), tokens and positions N(0, 1); the head alike."""
    w = fresh("torch", head_init="scheme", class_num=400, img_size=32, patch_size=4, reg_tokens=1)
    for name, inputs in (("attn.qkv", 96), ("attn.proj", 96), ("mlp.fc1", 96), ("mlp.fc2", 288)):
        assert_uniform(w[f"blocks.0.{name}.weight"], 1 / math.sqrt(inputs))
        assert 0 < np.abs(w[f"blocks.0.{name}.bias"]).max() <= 1 / math.sqrt(inputs)
    patch = math.prod(w["patch_embed.proj.weight"].shape[1:])
    assert_uniform(w["patch_embed.proj.weight"], 1 / math.sqrt(patch))
    assert_uniform(w["head.weight"], 1 / math.sqrt(96))
    assert_uniform(w["head.bias"], 1 / math.sqrt(96))
    assert_normal(w["pos_embed"], 1.0)
    assert np.abs(w["cls_token"]).max() > 1 and np.abs(w["reg_token"]).max() > 1
    assert not fresh("torch", head_init="zeros")["head.bias"].any()
    assert (fresh("torch", head_init="scheme", head_bias=-3.0)["head.bias"] == -3.0).all()


def test_a_head_of_a_given_deviation():
    """MAE's: truncated normal, whatever the scheme of the others."""
    for scheme in ("jax", "timm"):
        w = fresh(scheme, head_init=0.01, class_num=300, head_bias=1.0)
        assert_normal(w["head.weight"], 0.01)
        assert (w["head.bias"] == 1.0).all()


def test_jax_draws_q_k_and_v_as_matrices_of_their_own():
    """Xavier-uniform over [96, 96] each, sqrt(6 / 192); MLP biases N(0, 1e-6), others 0."""
    w = fresh("jax")
    for part in np.split(w["blocks.0.attn.qkv.weight"], 3, axis=1):
        assert_uniform(part, math.sqrt(6 / (96 + 96)))
    assert_uniform(w["blocks.0.attn.proj.weight"], math.sqrt(6 / (96 + 96)))
    assert_uniform(w["blocks.0.mlp.fc1.weight"], math.sqrt(6 / (96 + 288)))
    assert_uniform(w["blocks.0.mlp.fc2.weight"], math.sqrt(6 / (288 + 96)))
    assert not w["blocks.0.attn.qkv.bias"].any()
    assert not w["blocks.0.attn.proj.bias"].any()
    assert_normal(w["blocks.0.mlp.fc1.bias"], 1e-6, rtol=0.2)


def test_jax_draws_the_pooling_matrices_apart():
    """k and v of attention pooling are matrices of their own, as q, k and v of a block."""
    w = fresh("jax", pool="map", class_token=False)
    for part in np.split(w["attn_pool.kv.weight"], 2, axis=1):
        assert_uniform(part, math.sqrt(6 / (96 + 96)))
    assert_uniform(w["attn_pool.q.weight"], math.sqrt(6 / (96 + 96)))


def test_jax_patch_embedding_is_lecun_normal():
    """flax: truncated at ±2 sigma, sigma widened so that the variance is 1 / fan_in = 1 / 48."""
    weight = fresh("jax")["patch_embed.proj.weight"]
    std = math.sqrt(1 / 48)
    np.testing.assert_allclose(weight.std(), std, rtol=0.04)
    assert np.abs(weight).max() <= 2 * std / 0.87962566 * (1 + 1e-5)


def test_plsc_draws_over_the_fused_matrix():
    """PLSC: xavier over [96, 288], and Paddle's default N(0, sqrt(2 / fan_in)) for the patch embedding."""
    w = fresh("plsc")
    assert_uniform(w["blocks.0.attn.qkv.weight"], math.sqrt(6 / (96 + 288)))
    assert_uniform(w["blocks.0.mlp.fc1.weight"], math.sqrt(6 / (96 + 288)))
    assert_normal(w["patch_embed.proj.weight"], math.sqrt(2 / 48))
    assert_normal(w["blocks.0.mlp.fc1.bias"], 1e-6, rtol=0.2)


def test_coyo_draws_q_k_v_and_fc1_glorot_normal():
    """COYO: std sqrt(2 / (fan_in + fan_out)) there, glorot-uniform elsewhere, the patch embedding too."""
    w = fresh("coyo")
    for part in np.split(w["blocks.0.attn.qkv.weight"], 3, axis=1):
        assert_normal(part, math.sqrt(2 / (96 + 96)))
    assert_normal(w["blocks.0.mlp.fc1.weight"], math.sqrt(2 / (96 + 288)))
    assert_uniform(w["blocks.0.mlp.fc2.weight"], math.sqrt(6 / (288 + 96)))
    assert_uniform(w["blocks.0.attn.proj.weight"], math.sqrt(6 / (96 + 96)))
    assert_uniform(w["patch_embed.proj.weight"], math.sqrt(6 / (48 + 96 * 16)))


def test_timm_draws_002_everywhere():
    w = fresh("timm")
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert_normal(w[f"blocks.0.{name}.weight"], 0.02)
        assert not w[f"blocks.0.{name}.bias"].any()
    assert_uniform(w["patch_embed.proj.weight"], math.sqrt(1 / 48))


@pytest.mark.parametrize("scheme", ["jax", "plsc", "coyo", "timm"])
def test_embeddings_and_norms(scheme):
    """Position embedding N(0, 0.02), class token 0, LayerNorm 1 and 0, LayerScale as asked."""
    w = fresh(scheme, img_size=32, reg_tokens=20, layer_scale=0.3)
    assert_normal(w["pos_embed"], 0.02)
    assert_normal(w["reg_token"], 0.02, rtol=0.1)
    assert not w["cls_token"].any()
    assert not w["patch_embed.proj.bias"].any()
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        assert (w[f"{name}.weight"] == 1).all()
        assert not w[f"{name}.bias"].any()
    assert (w["blocks.0.ls1.gamma"] == np.float32(0.3)).all()


def test_head_initialisation():
    """zeros or the scheme's, with a constant bias, which leaves the pre-logits' bias at 0."""
    w = fresh("plsc", head_init="zeros", head_bias=-10.0, representation_size=64, class_num=64)
    assert not w["head.weight"].any()
    assert (w["head.bias"] == -10.0).all()
    assert not w["head0.bias"].any()
    assert_uniform(w["head0.weight"], math.sqrt(6 / (96 + 64)))
    w = fresh("plsc", head_init="scheme", class_num=64)
    assert_uniform(w["head.weight"], math.sqrt(6 / (96 + 64)))
    assert not w["head.bias"].any()
    assert_normal(fresh("timm", head_init="scheme", class_num=64)["head.weight"], 0.02)


def test_initialisation_follows_the_seed():
    """The same seed draws the same weights."""
    first, second = fresh("jax"), fresh("jax")
    assert all(np.array_equal(first[name], second[name]) for name in first)


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(in_chans=0), "in_chans"),
        (dict(embed_dim=0), "embed_dim"),
        (dict(depth=0), "depth"),
        (dict(num_heads=0), "num_heads"),
        (dict(num_heads=3), "num_heads"),
        (dict(drop_rate=1.0), "drop_rate"),
        (dict(attn_drop_rate=-0.1), "attn_drop_rate"),
        (dict(drop_path_rate=1.5), "drop_path_rate"),
        (dict(patch_size=16), "patch_size"),
        (dict(patch_size=0), "patch_size"),
        (dict(patch_size=(4, 9)), "patch_size"),
        (dict(class_num=-1), "class_num"),
        (dict(reg_tokens=-1), "reg_tokens"),
        (dict(class_token=False), "class_token"),
        (dict(fc_norm=True), "fc_norm"),
        (dict(pos_embed="sincos2d", embed_dim=18), "sincos2d"),
        (dict(mlp_ratio=0.0), "mlp_ratio"),
        (dict(epsilon=-1.0), "epsilon"),
        (dict(epsilon=0.1), "epsilon"),  # Paddle's LayerNorm takes up to 0.001
        (dict(representation_size=-3), "representation_size"),
    ],
)
def test_wrong_specs_are_refused_by_name(fields, named):
    """A ConfigError names the field that cannot be."""
    with pytest.raises(ConfigError, match=named):
        ViTSpec(**{**SMALL, **fields})


def test_wrong_image_size_names_both_sizes():
    model = build(img_size=(12, 8))
    with pytest.raises(ValueError, match=r"12x8.*8x12"):
        model(paddle.zeros([1, 3, 8, 12]))


# -- attention, dropout, drop path --------------------------------------------------------


class Recorder:
    """Stands in for scaled_dot_product_attention, keeps how it was called, and computes."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.function(*args, **kwargs)


@pytest.fixture
def attention_calls(monkeypatch):
    recorder = Recorder(F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", recorder)
    return recorder.calls


def attention(width: int, heads: int, *, qk_scale=None, attn_drop_rate: float = 0.0) -> Attention:
    paddle.seed(2)
    layer = Attention(ViTSpec(embed_dim=width, num_heads=heads, qk_scale=qk_scale, attn_drop_rate=attn_drop_rate))
    layer.eval()
    return layer


@pytest.mark.parametrize("qk_scale", [None, 0.3])
def test_attention_asks_for_flash(attention_calls, qk_scale):
    """q, k and v are handed over as [B, N, H, D] and without `scale`, which would switch flash off."""
    layer = attention(16, 2, qk_scale=qk_scale)
    assert layer.flash
    layer(paddle.randn([3, 5, 16]))
    ((args, kwargs),) = attention_calls
    assert len(args) == 3
    assert all(list(tensor.shape) == [3, 5, 2, 8] for tensor in args)
    assert "scale" not in kwargs
    assert kwargs.get("attn_mask") is None
    assert kwargs.get("dropout_p", 0.0) == 0.0


def test_attention_dropout_only_in_training(attention_calls):
    layer = attention(16, 2, attn_drop_rate=0.4)
    x = paddle.randn([1, 3, 16])
    layer(x)
    layer.train()
    layer(x)
    assert [kwargs["dropout_p"] for _, kwargs in attention_calls] == [0.0, 0.4]
    assert [kwargs["training"] for _, kwargs in attention_calls] == [False, True]


@pytest.mark.parametrize(("width", "heads"), [(24, 2), (20, 2), (264, 1)])
def test_other_head_widths_take_the_explicit_path(attention_calls, width, heads):
    """12 and 10 are not multiples of 8, 264 is more than 256."""
    layer = attention(width, heads)
    assert layer.flash is False
    layer(paddle.randn([2, 4, width]))
    assert attention_calls == []


def test_head_width_256_is_the_widest_for_flash():
    assert attention(256, 1).flash is True


@pytest.mark.parametrize("qk_scale", [None, 0.3])
def test_both_paths_compute_the_same(qk_scale):
    """The explicit path, with and without its weights, equals the flash path."""
    layer = attention(16, 2, qk_scale=qk_scale)
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 6, 16)).astype("float32"))
    fused = layer(x).numpy()
    layer.flash = False
    np.testing.assert_allclose(layer(x).numpy(), fused, rtol=1e-5, atol=1e-6)
    out, weights = layer.forward_with_weights(x)
    np.testing.assert_allclose(out.numpy(), fused, rtol=1e-5, atol=1e-6)
    assert list(weights.shape) == [3, 2, 6, 6]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    """Each of 2000 samples is 0 or x / (1 - rate) as a whole; 30 % are 0, and the mean stays 1."""
    paddle.seed(4)
    layer = DropPath(0.3)
    layer.train()
    out = layer(paddle.ones([2000, 3, 4])).numpy()
    kept = out[:, 0, 0] > 0
    np.testing.assert_allclose(out, np.where(kept, 1 / 0.7, 0.0)[:, None, None] * np.ones((1, 3, 4)), rtol=1e-6)
    # standard deviation of the share: sqrt(0.3 x 0.7 / 2000) = 0.010
    assert abs(kept.mean() - 0.7) < 0.04
    assert abs(out.mean() - 1.0) < 0.06
    layer.eval()
    assert (layer(paddle.ones([5, 3, 4])).numpy() == 1).all()


def test_drop_path_leaves_the_residual():
    """A dropped sample passes a block unchanged but for the other branch; with both dropped, wholly."""
    paddle.seed(4)
    block = Block(ViTSpec(embed_dim=16, num_heads=2, mlp_ratio=2.0), drop_path_rate=0.9)
    block.train()
    x = paddle.randn([64, 3, 16])
    unchanged = (block(x).numpy() == x.numpy()).all(axis=(1, 2))
    assert 0.6 < unchanged.mean() < 0.95  # 0.9² = 0.81, deviation 0.05


def test_drop_path_rises_linearly_with_depth():
    model = build(depth=4, drop_path_rate=0.3)
    np.testing.assert_allclose([block.drop_path.rate for block in model.blocks], [0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("layer", [Dropout(0.0), DropPath(0.0)])
def test_rate_0_adds_no_operation(layer):
    """In training, too, the very tensor comes back."""
    layer.train()
    x = paddle.randn([2, 3, 4])
    assert layer(x) is x


@pytest.mark.parametrize("layer", [Dropout(0.5), DropPath(0.5)])
def test_evaluation_adds_no_operation(layer):
    layer.eval()
    x = paddle.randn([2, 3, 4])
    assert layer(x) is x


def test_training_without_dropout_is_deterministic():
    """With every rate at 0 a model in training computes what it does in evaluation."""
    model = build()
    pixels = images(model.spec)
    expected = run(model, pixels)
    model.train()
    assert np.array_equal(run(model, pixels), expected)


def test_dropout_acts_after_the_position_embedding():
    """drop_rate changes training runs and leaves evaluation alone."""
    model = build(drop_rate=0.5, depth=1)
    pixels = images(model.spec)
    assert np.array_equal(run(model, pixels), run(model, pixels))
    model.train()
    assert isinstance(model.pos_drop, Dropout)
    assert model.pos_drop.rate == 0.5
    assert not np.allclose(run(model, pixels), run(model, pixels))
