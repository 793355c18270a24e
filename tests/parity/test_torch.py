"""plsc's weights against the libraries they come from and go to: same picture, same logits, both ways.

Random weights, float32. `make test-parity` installs torch, timm and transformers; without them all is skipped.
"""

# ruff: noqa: E402

import dataclasses
import json
import math
import os
import tempfile
from pathlib import Path

import pytest

REASON = "make test-parity installs them"
torch = pytest.importorskip("torch", reason=REASON)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # after that: where torch is missing, other tests run in this process
timm = pytest.importorskip("timm", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

import numpy as np
import paddle
from PIL import Image
from safetensors.torch import save_file
from timm.layers import Mlp, StdConv2dSame
from timm.models.vision_transformer import checkpoint_filter_fn

from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError
from plsc.loading import load_pretrained
from plsc.model_card import ModelCard
from plsc.models import spec_of
from plsc.models.vision_transformer import VisionTransformer, ViTSpec
from plsc.weights import Source, read, write
from plsc.weights.containers import Container
from plsc.weights.read import foreign
from plsc.weights.tensors import Tensor

TOLERANCE = 1e-4  # absolute, on logits whose deviation is about 1


@pytest.fixture
def folder():
    """A folder that is gone afterwards; pytest keeps its own, and these files are large."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


# -- random models ----------------------------------------------------------------------------


def drawn(name: str, shape, rng) -> np.ndarray:
    """Weights that leave no parameter without effect: activations and logits of deviation about 1."""
    shape, noise = tuple(shape), rng.standard_normal(tuple(shape)).astype("float32")
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight", "ln.weight")) or len(shape) == 0:
        return 1 + 0.2 * noise
    if len(shape) == 1:
        return 0.2 * noise
    if "backbone" in name:
        return noise  # standardised by the convolution; so large, its epsilon, which timm has otherwise, is nothing
    fan_in = {2: shape[-1], 4: math.prod(shape[1:])}.get(len(shape), 4)
    return noise / np.float32(math.sqrt(fan_in))


def randomised(model, seed: int = 0):
    """A torch model with every parameter drawn anew, in evaluation mode."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(drawn(name, parameter.shape, rng)))
    return model.eval()


def timm_model(name: str, **options):
    return randomised(timm.create_model(name, **options))


def plsc_model(**spec):
    """A plsc model with every parameter drawn anew, in evaluation mode."""
    model, rng = VisionTransformer(ViTSpec(**spec)), np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        values = drawn(name, parameter.shape[::-1] if parameter.ndim == 2 else parameter.shape, rng)
        parameter.set_value(np.ascontiguousarray(values.T) if parameter.ndim == 2 else values)
    model.eval()
    return model


def source_of(model, folder, **extra) -> Source:
    """A plsc model through plsc's own file."""
    arrays = {name: p.numpy() for name, p in model.named_parameters()}
    source = Source.of_arrays(
        folder, arrays, ModelCard(model="VisionTransformer", spec=dataclasses.asdict(model.spec), **extra)
    )
    write(source, "safetensors", folder / "own.safetensors")
    return read(folder / "own.safetensors")


def loaded(path, **stated):
    """A plsc model of the spec that the file tells, with all of the file's weights and no others."""
    model = VisionTransformer(ViTSpec(**{**read(path).card.spec, **stated}))
    report = load_pretrained(model, str(path), strict=True)
    assert report.exact
    model.eval()
    return model


def pictures(size, channels: int = 3, count: int = 2) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(7).standard_normal((count, channels, height, width)).astype("float32")


def of_plsc(model, batch) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(batch)).numpy()


def of_torch(model, batch) -> np.ndarray:
    with torch.no_grad():
        out = model(torch.from_numpy(batch))
    return (out if isinstance(out, torch.Tensor) else out.logits).numpy()


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "logits too small for the tolerance"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def save(model, path: Path) -> Path:
    """A torch model in the format that the name of the file tells."""
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in path.name)
    return path


# -- timm -------------------------------------------------------------------------------------

FILES = ("model.safetensors", "model.pth", "legacy.pth")

# (timm's name, options for timm, fields that no shape tells)
LAYOUTS = {
    "plain": ("vit_base_patch16_224", {}, {}),
    "32 pixels a patch": ("vit_large_patch32_224", {}, {}),
    "no head": ("vit_small_patch16_224", {"num_classes": 0}, {}),
    "no qkv bias": ("vit_small_patch16_224", {"qkv_bias": False}, {}),
    "one channel": ("vit_small_patch16_224", {"in_chans": 1}, {}),
    "fc_norm, class token": ("vit_small_patch16_224", {"global_pool": "avg"}, {}),
    "norm, then average": ("vit_base_patch16_gap_224", {}, {"num_heads": 16}),
    "average, class token": ("vit_small_patch16_224", {"global_pool": "avg", "fc_norm": False}, {"pool": "avg"}),
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {"img_size": 112, "num_classes": 11}, {}),
    "registers with position": ("vit_small_patch16_224", {"reg_tokens": 3}, {}),
    "registers, fc_norm": ("vit_betwixt_patch16_reg4_gap_256", {}, {}),
    "attention pooling": ("vit_base_patch16_siglip_224", {"num_classes": 11}, {}),
    "tanh gelu": ("vit_small_patch16_224", {"act_layer": "gelu_tanh"}, {"act": "gelu_tanh"}),
    "not square": ("vit_small_patch16_224", {"img_size": (64, 48)}, {"img_size": (64, 48)}),
    "hybrid": ("vit_base_r50_s16_224", {}, {}),
    "hybrid, four stages": ("vit_small_r26_s32_224", {"img_size": 128}, {}),
    "hybrid, stem alone": ("vit_tiny_r_s16_p8_224", {}, {}),
}
SMALL = {"img_size": 64, "depth": 2, "num_classes": 19}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    name, options, stated = LAYOUTS[request.param]
    return name, {**SMALL, **options}, stated


@pytest.mark.parametrize("file", FILES)
def test_timm_to_plsc(layout, file, folder):
    name, options, stated = layout
    theirs = timm_model(name, **options)
    path = save(theirs, folder / file)
    batch = pictures(options["img_size"], options.get("in_chans", 3))
    ours = loaded(path, **stated)
    assert read(path).layout == "timm"
    assert_same(of_plsc(ours, batch), of_torch(theirs, batch))


def test_plsc_to_timm(layout, folder):
    """The spec is the one read from timm's own file, the weights are plsc's."""
    name, options, stated = layout
    first = save(timm_model(name, **options), folder / "first.safetensors")
    ours = plsc_model(**{**read(first).card.spec, **stated})
    write(source_of(ours, folder), "timm", folder / "written.safetensors")
    theirs = timm.create_model(name, checkpoint_path=str(folder / "written.safetensors"), **options).eval()
    batch = pictures(options["img_size"], options.get("in_chans", 3))
    assert_same(of_plsc(ours, batch), of_torch(theirs, batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vit_base_patch16_224", "model.safetensors"),
        ("vit_large_patch32_224", "model.pth"),
        ("deit_tiny_patch16_224", "legacy.pth"),
        ("vit_base_r50_s16_224", "legacy.pth"),
        ("vit_tiny_r_s16_p8_224", "model.safetensors"),
    ],
)
def test_timm_to_plsc_in_full(name, file, folder):
    theirs = timm_model(name, num_classes=1000)
    path = save(theirs, folder / file)
    batch = pictures(224, count=1)
    expected = of_torch(theirs, batch)
    del theirs
    assert_same(of_plsc(loaded(path), batch), expected)


def standardised_by_google(self, x):
    """StdConv of vit_jax/models_resnet.py: the deviation + 1e-5, where timm has the root of variance + 1e-8."""
    size, step = self.weight.shape[-1], self.stride[0]
    over = [max((-(-side // step) - 1) * step + size - side, 0) for side in x.shape[-2:]]
    x = torch.nn.functional.pad(x, [over[1] // 2, over[1] - over[1] // 2, over[0] // 2, over[0] - over[0] // 2])
    weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
    weight = weight / (weight.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)
    return torch.nn.functional.conv2d(x, weight, stride=step)


@pytest.mark.parametrize("numerics", ["google", "timm"])
def test_small_kernels_of_hybrids(numerics, monkeypatch, folder):
    """Where kernels are small, the epsilons tell: a file of timm's is read with timm's, and resnet_norm has both."""
    theirs = timm_model("vit_base_r50_s16_224", **SMALL)
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, StdConv2dSame):
                module.weight /= math.sqrt(module.weight[0].numel())
            if isinstance(module, torch.nn.GroupNorm) and numerics == "google":
                module.eps = 1e-6
    if numerics == "google":
        monkeypatch.setattr(StdConv2dSame, "forward", standardised_by_google)
    source = read(save(theirs, folder / "model.pth"))
    assert source.card.spec["resnet_norm"] == "timm"
    source = source.with_card(spec={**source.card.spec, "resnet_norm": numerics})
    ours = VisionTransformer(ViTSpec(**source.card.spec))
    load_pretrained(ours, source, strict=True)
    ours.eval()
    assert_same(of_plsc(ours, pictures(64)), of_torch(theirs, pictures(64)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("ViT_base_patch16_224", "vit_base_patch16_224"),
        ("ViT_large_patch32_224", "vit_large_patch32_224"),
        ("DeiT_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("R50_ViT_base_patch16_224", "vit_base_r50_s16_224"),
        ("R_ViT_tiny_patch16_224", "vit_tiny_r_s16_p8_224"),
    ],
)
def test_plsc_to_timm_in_full(own, name, folder):
    """The model of plsc's name, without pre-logits, is the model of timm's name."""
    ours = plsc_model(**dataclasses.asdict(spec_of(own, representation_size=None)))
    batch = pictures(224, count=1)
    expected = of_plsc(ours, batch)
    write(source_of(ours, folder), "timm", folder / "written.safetensors")
    del ours
    theirs = timm.create_model(name, num_classes=1000, checkpoint_path=str(folder / "written.safetensors")).eval()
    assert_same(expected, of_torch(theirs, batch))


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("vit_small_patch16_224", ("google", "npz")),
        ("vit_small_patch16_224", ("huggingface", "folder")),
        ("vit_base_r50_s16_224", ("google", "npz")),
    ],
)
def test_timm_through_another_format_and_back_is_the_same_bits(name, pair, folder):
    theirs = timm_model(name, **SMALL)
    path = save(theirs, folder / "model.pth")
    write(read(path), pair[0], folder / pair[1])
    write(read(folder / pair[1]), "timm", folder / "back.safetensors")
    back = timm.create_model(name, checkpoint_path=str(folder / "back.safetensors"), **SMALL)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


def test_weights_inside_a_training_checkpoint(folder):
    """The state of a run: names after `module.`, views of one storage, arguments and an optimizer beside it."""
    import argparse

    theirs = timm_model("vit_small_patch16_224", **SMALL)
    state = {f"module.{k}": v.t().contiguous().t() if v.ndim == 2 else v for k, v in theirs.state_dict().items()}
    both = torch.cat([state["module.norm.weight"], state["module.norm.bias"]])
    state["module.norm.weight"], state["module.norm.bias"] = both[:384], both[384:]
    optimizer = torch.optim.AdamW(theirs.parameters()).state_dict()
    run = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": optimizer, "state_dict": state}
    batch = pictures(64)
    for legacy in (False, True):
        torch.save(run, folder / "run.pth.tar", _use_new_zipfile_serialization=not legacy)
        assert_same(of_plsc(loaded(folder / "run.pth.tar"), batch), of_torch(theirs, batch))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_read_exactly(file, dtype, folder):
    theirs = timm_model("vit_small_patch16_224", **SMALL).to(dtype)
    ours = loaded(save(theirs, folder / file))
    theirs = theirs.float()
    batch = pictures(64)
    assert_same(of_plsc(ours, batch), of_torch(theirs, batch))


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        ({"img_size": 96}, {"pos_embed"}),
        ({"img_size": 48}, {"pos_embed"}),
        ({"img_size": (80, 48)}, {"pos_embed"}),
        ({"img_size": 96, "patch_size": 24}, {"patch_embed.proj.weight"}),
        ({"img_size": 96, "patch_size": 32}, {"pos_embed", "patch_embed.proj.weight"}),
    ],
    ids=str,
)
def test_another_resolution_is_as_timm_resizes_it(options, adapted, folder):
    """Position embedding and patch kernel at another size, as timm's without antialiasing."""
    theirs = timm_model("vit_small_patch16_224", **SMALL)
    path = save(theirs, folder / "model.safetensors")
    other = timm.create_model("vit_small_patch16_224", **{**SMALL, **options}).eval()
    other.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), other, interpolation="bicubic", antialias=False))
    ours = VisionTransformer(ViTSpec(**{**read(path).card.spec, **options}))
    report = load_pretrained(ours, str(path))
    ours.eval()
    assert set(report.adapted) == adapted and not report.initialised and not report.ignored
    batch = pictures(options["img_size"])
    assert_same(of_plsc(ours, batch), of_torch(other, batch))


def plain_timm_models() -> list[str]:
    """timm's Vision Transformers by name, hybrids of a plain ResNetV2 included.

    Without the toys called test_, and what shapes cannot tell: vit_base_patch16_gap_224, of width 768, alone has
    16 heads; of width 1536 SigLIP's giant has 16 and RADIO's 24. Differential attention (vit_d*) is refused.
    """
    left_out = ["vit_base_patch16_gap_224", "vit_giant_patch16_radio*", "vit_d*"]
    plain = timm.list_models("vit_*", module="vision_transformer", exclude_filters=left_out)
    return plain + timm.list_models("vit_*_r*_s*", module="vision_transformer_hybrid", exclude_filters="*resnet*")


def has_only_known_parts(model) -> bool:
    block = model.blocks[0]
    return (
        type(model).__name__ == "VisionTransformer"
        and type(block).__name__ == "Block"
        and isinstance(model.norm_pre, torch.nn.Identity)
        and isinstance(block.attn.q_norm, torch.nn.Identity)
        and type(block.mlp) is Mlp
        and isinstance(model.patch_drop, torch.nn.Identity)
        and isinstance(model.norm, (torch.nn.LayerNorm, torch.nn.Identity))
        and model.pos_embed is not None
    )


def test_inferred_spec_of_every_timm_model():
    """Shapes alone tell the spec of all of timm's Vision Transformers that plsc can build."""
    wrong, seen = [], 0
    for name in plain_timm_models():
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        if not has_only_known_parts(model):
            continue
        tensors = {k: Tensor(tuple(v.shape), lambda: None) for k, v in model.state_dict().items()}
        mapped = foreign(Container(Path(name), "torch", tensors))
        spec = ViTSpec(**mapped.card.spec)
        seen += 1
        block = model.blocks[0]
        fc_norm = isinstance(model.fc_norm, torch.nn.LayerNorm)
        expected = {
            "grid": tuple(model.patch_embed.grid_size),
            "embed_dim": model.embed_dim,
            "num_heads": block.attn.num_heads,
            "class_num": model.num_classes,
            "class_token": model.cls_token is not None,
            "reg_tokens": model.num_reg_tokens,
            "no_embed_class": model.no_embed_class and model.num_prefix_tokens > 0,
            "fc_norm": fc_norm,
            "pool": model.global_pool,
        }
        if mapped.unknown:
            wrong.append(f"{name}: unknown {list(mapped.unknown)}")
        for field, value in expected.items():
            if getattr(spec, field) != value:
                wrong.append(f"{name}: {field} is {getattr(spec, field)}, timm's {value}")
        if int(spec.embed_dim * spec.mlp_ratio) != block.mlp.fc1.out_features:
            wrong.append(f"{name}: mlp_ratio {spec.mlp_ratio}, timm's hidden width {block.mlp.fc1.out_features}")
    assert seen > 100
    assert not wrong, "\n".join(wrong)


# -- Hugging Face -----------------------------------------------------------------------------

HF = dict(
    hidden_size=96, num_hidden_layers=2, num_attention_heads=6, intermediate_size=200, image_size=48, patch_size=8
)
HF_KINDS = {
    "plain": {},
    "no qkv bias": {"qkv_bias": False},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "gelu_new": {"hidden_act": "gelu_new"},
    "large epsilon": {"layer_norm_eps": 1e-3},
    "one channel": {"num_channels": 1},
    "not square": {"image_size": [48, 32]},
    "a width whose ratio rounds down": {"hidden_size": 176, "num_attention_heads": 11, "intermediate_size": 240},
}
LABELS = ["cat", "dog", "größe", "a, b"]


def huggingface_model(kind=transformers.ViTForImageClassification, **options):
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    return randomised(kind(transformers.ViTConfig(**{**HF, **labels, **options})))


@pytest.mark.parametrize("kind", HF_KINDS)
@pytest.mark.parametrize("file", ["save_pretrained", "pytorch_model.bin"])
def test_huggingface_to_plsc(kind, file, folder):
    theirs = huggingface_model(**HF_KINDS[kind])
    theirs.save_pretrained(folder)
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / file)
    ours = loaded(folder)
    source = read(folder)
    assert source.layout == "huggingface"
    assert source.card.class_names == LABELS
    batch = pictures(theirs.config.image_size, theirs.config.num_channels)
    assert_same(of_plsc(ours, batch), of_torch(theirs, batch))


def test_huggingface_in_shards(folder):
    theirs = huggingface_model()
    theirs.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert_same(of_plsc(loaded(folder), pictures(48)), of_torch(theirs, pictures(48)))


def test_huggingface_backbone_with_pooler(folder):
    """The pooler of ViTModel is plsc's pre-logits."""
    theirs = huggingface_model(transformers.ViTModel)
    theirs.save_pretrained(folder)
    ours = loaded(folder)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pictures(48))).pooler_output.numpy()
    assert_same(of_plsc(ours, pictures(48)), expected)


def test_an_activation_that_plsc_lacks_is_refused(folder):
    """Else the logits would be silently wrong."""
    huggingface_model(hidden_act="relu").save_pretrained(folder)
    with pytest.raises(CheckpointError, match="relu"):
        read(folder)


PLSC = dict(img_size=48, patch_size=8, embed_dim=96, depth=2, num_heads=6, mlp_ratio=200 / 96, class_num=4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False},
        {"act": "gelu_tanh", "epsilon": 1e-5},
        {"in_chans": 1},
        {"img_size": (48, 32), "patch_size": (8, 16)},
        {"img_size": 50},  # the rest of 2 pixels is not seen
    ],
    ids=str,
)
def test_plsc_to_huggingface(fields, folder):
    ours = plsc_model(**{**PLSC, **fields})
    write(source_of(ours, folder, class_names=LABELS), "huggingface", folder / "hf")
    theirs, info = transformers.ViTForImageClassification.from_pretrained(folder / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert theirs.config.label2id == {name: i for i, name in enumerate(LABELS)}
    batch = pictures(ours.spec.img_size, ours.spec.in_chans)
    assert_same(of_plsc(ours, batch), of_torch(theirs.eval(), batch))
    assert_same(of_plsc(loaded(folder / "hf"), batch), of_torch(theirs, batch))


@pytest.mark.slow
def test_base_16_to_huggingface(folder):
    ours = plsc_model(**dataclasses.asdict(spec_of("ViT_base_patch16_224", representation_size=None)))
    write(source_of(ours, folder), "huggingface", folder / "hf")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder / "hf").eval()
    assert theirs.config.id2label[999] == "LABEL_999"
    batch = pictures(224, count=1)
    assert_same(of_plsc(ours, batch), of_torch(theirs, batch))


@pytest.mark.parametrize("representation_size", [None, 64])
def test_plsc_backbone_to_huggingface(representation_size, folder):
    ours = plsc_model(**PLSC, representation_size=representation_size)
    write(source_of(ours, folder), "huggingface", folder / "hf", backbone=True)
    theirs = transformers.ViTModel.from_pretrained(folder / "hf", add_pooling_layer=False).eval()
    batch = pictures(48)
    with paddle.no_grad():
        tokens = ours.forward_features(paddle.to_tensor(batch)).numpy()
    with torch.no_grad():
        assert_same(tokens, theirs(torch.from_numpy(batch)).last_hidden_state.numpy())


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("preprocess", "picture"),
    [
        (Preprocess(resize=(48, 48)), (100, 140)),
        (Preprocess(resize=(48, 48), interpolation="bilinear", **IMAGENET), (30, 41)),
        (Preprocess(resize=(48, 32), **IMAGENET), (101, 77)),
        (Preprocess(resize=64, crop=(48, 48), **IMAGENET), (128, 160)),
        (Preprocess(resize=64, crop=(48, 48), interpolation="bilinear"), (192, 128)),
        (Preprocess(resize=(60, 60), crop=(48, 48)), (128, 160)),
        (Preprocess(crop=(48, 48)), (60, 52)),
        (Preprocess(), (48, 48)),
        (Preprocess(resize=(48, 48), scale=1.0, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)), (100, 140)),
    ],
    ids=str,
)
def test_image_processor(preprocess, picture, folder):
    """A picture through transformers is the picture through plsc, to 2 of 255."""
    ours = plsc_model(**PLSC)
    write(source_of(ours, folder, preprocess=preprocess), "huggingface", folder / "hf")
    pixels = np.random.default_rng(3).integers(0, 256, (*picture, 3), dtype="uint8")
    image = Image.fromarray(pixels)
    kind = json.loads((folder / "hf/preprocessor_config.json").read_text())["image_processor_type"]
    expected = preprocess(pixels).astype("float32").transpose(2, 0, 1)
    for processor in (transformers.AutoImageProcessor, getattr(transformers, kind)):
        prepared = np.asarray(processor.from_pretrained(folder / "hf")(image, return_tensors="np")["pixel_values"][0])
        mean, std = (np.reshape(values, (3, 1, 1)) for values in (preprocess.mean, preprocess.std))
        back = (prepared * std + mean) / preprocess.scale
        assert back.shape == expected.shape
        assert np.abs(back - expected).max() <= 2.01


def test_blue_green_red_has_no_image_processor(folder):
    """transformers' processors leave red, green, blue; another order must not be written as if it were that."""
    source = source_of(plsc_model(**PLSC), folder, preprocess=Preprocess(resize=(48, 48), rgb=False))
    with pytest.raises(CheckpointError):
        write(source, "huggingface", folder / "hf")


# -- torchvision ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"), [("vit_b_16", "model.pth"), ("vit_b_16", "legacy.pth"), ("vit_b_32", "model.pth")]
)
def test_torchvision_to_plsc(name, file, folder):
    models = pytest.importorskip("torchvision", reason=REASON).models
    theirs = randomised(getattr(models, name)(image_size=96, num_classes=17))
    path = save(theirs, folder / file)
    ours = loaded(path)
    assert read(path).layout == "torchvision"
    assert_same(of_plsc(ours, pictures(96)), of_torch(theirs, pictures(96)))


def test_torchvision_with_pre_logits(folder):
    vit = pytest.importorskip("torchvision", reason=REASON).models.VisionTransformer
    theirs = randomised(
        vit(
            image_size=48,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=128,
            mlp_dim=200,
            num_classes=7,
            representation_size=60,
        )
    )
    ours = loaded(save(theirs, folder / "model.pth"))
    assert_same(of_plsc(ours, pictures(48)), of_torch(theirs, pictures(48)))


# -- Google's npz, as timm reads it -------------------------------------------------------------

NPZ = {
    "vit_base_patch16_224": {},
    "vit_small_patch32_224": {"img_size": 96, "depth": 2},
    "vit_base_patch16_gap_224": {"img_size": 96, "depth": 2},
    "vit_base_r50_s16_224": {},
    "vit_small_r26_s32_224": {"img_size": 128, "depth": 2},
    "vit_tiny_r_s16_p8_224": {"img_size": 96, "depth": 2},
}


@pytest.mark.parametrize("name", NPZ)
def test_plsc_to_google_to_timm(name, folder):
    options = {"num_classes": 1000, **NPZ[name]}  # some of timm's names have no head of themselves
    first = save(timm.create_model(name, **options), folder / "first.safetensors")
    stated = {"num_heads": 16} if "_gap_" in name else {}
    ours = plsc_model(**{**read(first).card.spec, **stated})
    write(source_of(ours, folder), "google", folder / "written.npz")
    theirs = timm.create_model(name, checkpoint_path=str(folder / "written.npz"), **options).eval()
    batch = pictures(options.get("img_size", 224), count=1)
    assert_same(of_plsc(ours, batch), of_torch(theirs, batch))


# -- what a format has no place for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "fields"),
    [
        ("timm", {"representation_size": 64}),
        ("huggingface", {"representation_size": 64}),
        ("huggingface", {"reg_tokens": 2}),
        ("huggingface", {"layer_scale": 0.1}),
        ("huggingface", {"pool": "avg"}),
        ("huggingface", {"no_embed_class": True}),
        ("google", {"reg_tokens": 2}),
        ("google", {"layer_scale": 0.1}),
        ("google", {"pool": "map"}),
        ("google", {"pool": "avg", "fc_norm": True}),
        ("google", {"pool": "avg"}),  # Google's `gap` models have no class token
        ("google", {"no_embed_class": True}),
        ("timm", {"qk_scale": 0.1}),
        ("huggingface", {"qk_scale": 0.1}),
        ("google", {"qk_scale": 0.1}),
    ],
    ids=str,
)
def test_what_another_format_cannot_say_is_refused(to, fields, folder):
    """Else the file would be opened silently and give other logits."""
    source = source_of(plsc_model(**{**PLSC, **fields}), folder)
    with pytest.raises(CheckpointError, match="no place"):
        write(source, to, folder / "out")
