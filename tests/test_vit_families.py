"""Families of Vision Transformers through the formats of others: written in a layout, read again, the same logits."""

import dataclasses
import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from plsc.convert import convert_weights
from plsc.errors import CheckpointError, ConfigError
from plsc.loading import load_model, load_pretrained
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec
from plsc.weights import Source, read, write
from tests import jeonsworld
from tests.test_hostile_checkpoints import FakeTensor, torch_zip

TINY = dict(img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, class_num=3, mlp_ratio=2.5)
EVA02 = dict(
    rope="axial", rope_reference=16, rope_temperature=1e4, mlp="swiglu", k_bias=False, pool="avg", fc_norm=True
)
DINOV3 = dict(rope="centred", pos_embed="none", reg_tokens=4, k_bias=False, layer_scale=1e-5, epsilon=1e-5)
BEIT = dict(rel_pos_bias=True, pos_embed="none", k_bias=False, layer_scale=1e-5, pool="avg", fc_norm=True)
CLIP = dict(norm_pre=True, patch_bias=False, epsilon=1e-5)
MAP = dict(class_token=False, pool="map", act="gelu_tanh")
DINOV2 = dict(layer_scale=1e-5)
SWIGLU = dict(mlp="swiglu", mlp_ratio=88 / 32)
# (format, what the arrays tell of the model without being given, what has to be given)
FORMATS: dict[str, tuple[str, dict, dict]] = {
    "timm: DeiT, distilled": ("timm", dict(distillation="heads"), {}),
    "timm: DeiT III": ("timm", dict(layer_scale=1e-5, no_embed_class=True), {}),
    "timm: DINOv2 giant": ("timm", DINOV2 | SWIGLU, {}),
    "timm: CLIP": ("timm", CLIP, dict(act="quick_gelu")),
    "timm: EVA-02": ("timm", EVA02, {}),
    "timm: EVA-02 base": ("timm", EVA02 | dict(mlp_norm=True), {}),
    "timm: EVA-02's CLIP": ("timm", EVA02 | dict(mlp_norm=True, attn_norm=True), {}),
    "timm: DINOv3": ("timm", DINOV3 | dict(pool="avg"), dict(img_size=24)),
    "timm: DINOv3 plus": ("timm", DINOV3 | dict(pool="avg") | SWIGLU, dict(img_size=24)),
    "timm: Perception Encoder": (
        "timm",
        CLIP
        | dict(rope="axial", rope_offset=1.0, rope_order="xy", rope_reference=3, rope_temperature=1e4)
        | dict(pool="map", pool_heads=8, pool_mlp_ratio=4.0),
        {},
    ),
    "timm: learned frequencies": (
        "timm",
        dict(rope="mixed", rope_temperature=10.0, rope_order="xy", pos_embed="none", layer_scale=1e-5),
        dict(img_size=24),
    ),
    "timm: registers and attention pooling": ("timm", dict(reg_tokens=2, pool="map", pool_prefix=False), {}),
    "timm: BEiT": ("timm", BEIT, {}),
    "timm: norms of queries and keys": ("timm", dict(qk_norm="layernorm"), {}),
    "timm: RMSNorm": ("timm", dict(norm="rmsnorm", qk_norm="rmsnorm", final_norm=False), {}),
    "timm: parallel": ("timm", dict(block="parallel", qk_norm="layernorm", layer_scale=1e-5), {}),
    "timm: parallel without biases": ("timm", dict(block="parallel", qkv_bias=False), {}),
    "timm: norms after": ("timm", {}, dict(block="post")),
    "Hugging Face: ViT": ("huggingface", {}, {}),
    "Hugging Face: I-JEPA": ("huggingface", dict(class_token=False, pool="avg"), {}),
    "Hugging Face: DeiT": ("huggingface", dict(distillation="heads"), {}),
    "Hugging Face: DeiT, one head": ("huggingface", dict(distillation="token"), {}),
    "Hugging Face: DINOv2": ("huggingface", DINOV2 | dict(pool="token_avg", mlp_ratio=2), {}),
    "Hugging Face: DINOv2 with registers": (
        "huggingface",
        DINOV2 | dict(pool="token_avg", reg_tokens=2, no_embed_class=True, mlp_ratio=2),
        {},
    ),
    "Hugging Face: DINOv2 giant": ("huggingface", DINOV2 | SWIGLU | dict(class_num=0), {}),
    "Hugging Face: DINOv3": ("huggingface", DINOV3 | dict(class_num=0), {}),
    "Hugging Face: DINOv3 plus": ("huggingface", DINOV3 | SWIGLU | dict(class_num=0), {}),
    "Hugging Face: CLIP": ("huggingface", CLIP | dict(act="quick_gelu", class_num=0), {}),
    "Hugging Face: SigLIP": ("huggingface", MAP | dict(class_num=0), {}),
    "Hugging Face: BEiT": ("huggingface", BEIT, {}),
    "timm: SigLIP": ("timm", MAP, dict(act="gelu_tanh")),
}


def build(**fields) -> VisionTransformer:
    """A small model of which every parameter is drawn."""
    model, rng = VisionTransformer(ViTSpec(**{**TINY, **fields})), np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.set_value((centre + 0.3 * rng.standard_normal(parameter.shape)).astype("float32"))
    model.eval()
    return model


def source_of(model: VisionTransformer, **card_fields) -> Source:
    arrays = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    card = ModelCard(model="VisionTransformer", spec=dataclasses.asdict(model.spec), **card_fields)
    return Source.of_arrays("made", arrays, card)


@paddle.no_grad()
def logits(model) -> np.ndarray:
    size = model.spec.img_size
    return model(
        paddle.to_tensor(np.random.default_rng(1).standard_normal((2, 3, size, size)).astype("float32"))
    ).numpy()


def without_card(path) -> None:
    """What is left of a file that others wrote: plsc's own card is not in it."""
    for file in [path, *path.glob("*.safetensors")] if path.is_dir() else [path]:
        if file.is_file():
            save_file(load_file(file), file, metadata={"format": "pt"})


def rebuilt(path, **given) -> VisionTransformer:
    """The model that a file tells, with all of its weights."""
    source = read(path)
    model = VisionTransformer(ViTSpec(**{**source.card.spec, **given}))
    assert load_pretrained(model, source, strict=not given).exact
    model.eval()
    return model


@pytest.mark.parametrize("kind", FORMATS)
def test_written_and_read_again(kind, tmp_path):
    to, fields, given = FORMATS[kind]
    model = build(**fields, **{k: v for k, v in given.items() if k not in fields})
    path = tmp_path / ("folder" if to == "huggingface" else "file.safetensors")
    write(source_of(model), to, path)
    without_card(path)
    given = {"num_heads": 2, **given} if to == "timm" else given
    np.testing.assert_allclose(logits(rebuilt(path, **given)), logits(model), atol=2e-6)


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        ("huggingface", dict(rope="axial"), "no place for rotary position embedding"),
        ("huggingface", CLIP | dict(qk_norm="layernorm"), "a norm before the blocks"),
        ("google", dict(rope="centred", pos_embed="none"), "no place for"),
        ("torchvision", dict(block="post"), "norms after or in parallel"),
        ("jeonsworld", dict(act="quick_gelu"), "another GELU"),
        ("lukemelas", dict(distillation="heads"), "a distillation token"),
        ("timm", dict(distillation="token"), "a distillation token"),
    ],
)
def test_what_a_format_cannot_hold(to, fields, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        write(source_of(build(**fields)), to, tmp_path / "out")


def meta_dinov2(model) -> dict[str, np.ndarray]:
    """Arrays as Meta's DINOv2 with registers has them: the class token's position in the table."""
    arrays = {n: p.numpy().T if p.ndim == 2 else p.numpy() for n, p in model.named_parameters()}
    table, arrays["register_tokens"] = arrays.pop("pos_embed"), arrays.pop("reg_token")
    position = np.random.default_rng(2).standard_normal((1, 1, 32)).astype("float32")
    arrays["cls_token"] = arrays["cls_token"] - position
    return arrays | {"pos_embed": np.concatenate([position, table], axis=1), "mask_token": np.zeros((1, 32), "float32")}


def test_registers_of_metas_dinov2(tmp_path):
    model = build(layer_scale=1e-5, reg_tokens=2, no_embed_class=True, class_num=0)
    arrays = {name: np.ascontiguousarray(array) for name, array in meta_dinov2(model).items()}
    save_file(arrays, tmp_path / "dinov2.safetensors")
    np.testing.assert_allclose(logits(rebuilt(tmp_path / "dinov2.safetensors", num_heads=2)), logits(model), atol=1e-5)


def test_biases_of_metas_dinov3(tmp_path):
    """Its keys' biases are masked, whatever stands there."""
    model = build(**DINOV3, class_num=0)
    arrays = {n: np.ascontiguousarray(p.numpy().T if p.ndim == 2 else p.numpy()) for n, p in model.named_parameters()}
    for i in range(2):
        q, v = arrays.pop(f"blocks.{i}.attn.q_bias"), arrays.pop(f"blocks.{i}.attn.v_bias")
        arrays[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([q, np.full(32, 9.0, "float32"), v])
        arrays[f"blocks.{i}.attn.qkv.bias_mask"] = np.zeros(96, "float32")
    arrays["storage_tokens"], arrays["rope_embed.periods"] = arrays.pop("reg_token"), np.ones(4, "float32")
    save_file(arrays, tmp_path / "dinov3.safetensors")
    np.testing.assert_allclose(
        logits(rebuilt(tmp_path / "dinov3.safetensors", num_heads=2, img_size=24)), logits(model), atol=2e-6
    )


def test_a_shared_bias_becomes_one_of_each_block(tmp_path):
    model = build(**BEIT)
    write(source_of(model), "huggingface", tmp_path / "hf")
    arrays = load_file(tmp_path / "hf/model.safetensors")
    tables = [name for name in arrays if name.endswith("relative_position_bias_table")]
    shared = arrays[tables[0]]
    arrays = {name: array for name, array in arrays.items() if name not in tables}
    arrays["beit.encoder.relative_position_bias.relative_position_bias_table"] = shared
    save_file(arrays, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    for block in model.blocks:
        block.attn.rel_pos_bias.table.set_value(shared)
    np.testing.assert_allclose(logits(rebuilt(tmp_path / "hf")), logits(model), atol=2e-6)


def test_biases_of_another_grid(tmp_path):
    """A bias that depends linearly on the distance does so on a finer grid; the class token's rows stay."""
    model = build(**BEIT)
    down, across = np.mgrid[-2:3, -2:3].reshape(2, -1).astype("float32")
    for block in model.blocks:
        table = np.stack([down + 2 * across, across - down], axis=1)
        block.attn.rel_pos_bias.table.set_value(np.concatenate([table, [[7, 8], [9, 10], [11, 12]]]).astype("float32"))
    write(source_of(model), "timm", tmp_path / "file.safetensors")
    source = read(tmp_path / "file.safetensors")
    larger = VisionTransformer(ViTSpec(**{**source.card.spec, "num_heads": 2, "img_size": 48}))
    report = load_pretrained(larger, source, strict=True, resized=True, position="bilinear")
    assert set(report.adapted) == {f"blocks.{i}.attn.rel_pos_bias.table" for i in range(2)}
    table = larger.blocks[0].attn.rel_pos_bias.table.numpy()
    np.testing.assert_array_equal(table[-3:], [[7, 8], [9, 10], [11, 12]])
    inner = table[:-3].reshape(11, 11, 2)[3:-3, 3:-3]
    np.testing.assert_allclose(np.diff(inner, axis=1)[..., 0], 2 * 4 / 10, atol=1e-4)
    np.testing.assert_allclose(np.diff(inner, axis=0)[..., 0], 4 / 10, atol=1e-4)


def test_open_clips_tower_alone(tmp_path):
    """Text and scale are left out; the projection is a head without bias."""
    model = build(**CLIP, class_num=0)
    write(source_of(model), "timm", tmp_path / "trunk.safetensors")
    arrays = {f"visual.trunk.{name}": array for name, array in load_file(tmp_path / "trunk.safetensors").items()}
    weight = np.random.default_rng(3).standard_normal((5, 32)).astype("float32")
    arrays |= {"visual.head.proj.weight": weight, "text.blocks.0.norm1.weight": np.ones(7, "float32")}
    save_file(arrays | {"logit_scale": np.ones(1, "float32")}, tmp_path / "clip.safetensors")
    expected = logits(model) @ weight.T
    np.testing.assert_allclose(logits(rebuilt(tmp_path / "clip.safetensors", num_heads=2)), expected, atol=1e-5)


def test_a_bias_after_clips_projection_is_not_lost(tmp_path):
    model = build(**CLIP, act="quick_gelu")
    with pytest.raises(CheckpointError, match=r"visual_projection\.bias"):
        write(source_of(model), "huggingface", tmp_path / "hf")
    model.head.bias.set_value(np.zeros(3, "float32"))
    write(source_of(model), "huggingface", tmp_path / "hf")
    np.testing.assert_allclose(logits(rebuilt(tmp_path / "hf")), logits(model), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.attns.0.norm.weight", "side by side"),
        ("blocks.0.attn.lambda_q1", "differential attention"),
        ("blocks.0.attn.gate.weight", "gated attention"),
    ],
)
def test_blocks_that_a_vision_transformer_has_not(name, message, tmp_path):
    write(source_of(build()), "timm", tmp_path / "file.safetensors")
    save_file(load_file(tmp_path / "file.safetensors") | {name: np.ones(4, "float32")}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "file.safetensors")


def test_both_heads_of_a_distilled_model_follow_the_names_of_classes(tmp_path):
    model = build(distillation="heads")
    write(source_of(model, class_names=["cat", "dog", "emu"]), "safetensors", tmp_path / "own.safetensors")
    other = build(distillation="heads", class_num=2)
    load_pretrained(other, read(tmp_path / "own.safetensors"), class_names=["emu", "cat"])
    for head in ("head", "head_dist"):
        ours, theirs = getattr(other, head), getattr(model, head)
        np.testing.assert_array_equal(ours.weight.numpy(), theirs.weight.numpy()[:, [2, 0]])
        np.testing.assert_array_equal(ours.bias.numpy(), theirs.bias.numpy()[[2, 0]])


def test_a_head_that_a_format_lacks_is_left_out(tmp_path):
    """Trained with ten classes, given away without them."""
    source = source_of(build(**MAP))
    with pytest.raises(CheckpointError, match="has no place for"):
        write(source, "huggingface", tmp_path / "whole")
    write(source, "huggingface", tmp_path / "hf", backbone=True)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["SiglipVisionModel"]


@pytest.fixture
def hybrid(tmp_path):
    """A hybrid's file as ViT-pytorch saves it."""
    tree = {name: FakeTensor(array) for name, array in jeonsworld.arrays().items()}
    return torch_zip(tmp_path / "R50-ViT-B_16_checkpoint.bin", tree)


def test_jeonsworlds_hybrid(hybrid, tmp_path):
    """The logits of ViT-pytorch, and the same bits in its names again."""
    with pytest.raises(CheckpointError, match="num_heads of its model is unknown"):
        convert_weights(hybrid, "safetensors", tmp_path / "own.safetensors")
    convert_weights(hybrid, "safetensors", tmp_path / "own.safetensors", num_heads=jeonsworld.HEADS)
    loaded = load_model(tmp_path / "own.safetensors")
    spec = loaded.network.spec
    assert (spec.resnet_norm, list(spec.resnet_layers), spec.img_size) == ("jeonsworld", [2, 1, 1], jeonsworld.SIZE)
    expected = json.loads(jeonsworld.LOGITS.read_text())
    actual = loaded.network(paddle.to_tensor(jeonsworld.pictures())).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert convert_weights(tmp_path / "own.safetensors", "jeonsworld", tmp_path / "back.safetensors").unsaid == [
        "num_heads 2"
    ]
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == jeonsworld.arrays().keys()
    for name, array in jeonsworld.arrays().items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_hybrids_of_other_numerics_stay_apart(hybrid, tmp_path):
    """jeonsworld's ResNet is none of timm's or Google's, nor the other way."""
    convert_weights(hybrid, "safetensors", tmp_path / "own.safetensors", num_heads=jeonsworld.HEADS)
    with pytest.raises(CheckpointError, match="timm has no place for a ResNet that computes otherwise"):
        convert_weights(tmp_path / "own.safetensors", "timm", tmp_path / "timm.safetensors")
    with pytest.raises(CheckpointError, match="Google's npz has no place for"):
        convert_weights(tmp_path / "own.safetensors", "google", tmp_path / "google.npz")
    fields = dict(img_size=32, patch_size=1, resnet_layers=(1, 1, 1), resnet_width=0.5)
    with pytest.raises(CheckpointError, match=r"ViT-pytorch has no place .*resnet_norm is 'google'"):
        write(source_of(build(**fields)), "jeonsworld", tmp_path / "x.safetensors")
    for wrong in (dict(resnet_layers=(1, 1)), dict(img_size=40)):
        with pytest.raises(ConfigError, match="three resnet_layers, and an img_size divisible by 16"):
            ViTSpec(**{**TINY, **fields, "resnet_norm": "jeonsworld", **wrong})


def test_gates_of_another_function_are_refused(tmp_path):
    """DINOv3 of transformers may gate with GELU; ours gates with SiLU."""
    write(source_of(build(**DINOV3, **SWIGLU, class_num=0)), "huggingface", tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["hidden_act"] == "silu"
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    without_card(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu'"):
        read(tmp_path / "hf")
