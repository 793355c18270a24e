"""Published architectures by name, and timm's config.json, against timm itself."""

# ruff: noqa: E402

import pytest

REASON = "make test-parity installs them"
torch = pytest.importorskip("torch", reason=REASON)
timm = pytest.importorskip("timm", reason=REASON)

import dataclasses

import numpy as np
import paddle
from safetensors.numpy import load_file, save_file

from plsc.data.preprocess import Preprocess
from plsc.loading import load_model
from plsc.model_card import ModelCard
from plsc.models.published import ARCHITECTURES
from plsc.models.spec import ViTSpec
from plsc.models.vision_transformer import VisionTransformer
from plsc.weights import Source, write

NAMES = sorted(
    name
    for module in ("vision_transformer", "deit", "vision_transformer_hybrid", "eva", "beit")
    for name in timm.list_models(module=module)
    if name in ARCHITECTURES
)
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def test_the_table_has_timms_names():
    assert len(NAMES) > 180


@pytest.mark.parametrize("name", NAMES)
def test_a_name_states_what_timm_builds(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    row, block = ARCHITECTURES[name], model.blocks[0]
    heads = getattr(block, "attn", block).num_heads
    assert (row["embed_dim"], row["depth"], row["num_heads"]) == (model.embed_dim, len(model.blocks), heads)
    norm = block.norm1 if hasattr(block, "norm1") else block.in_norm
    assert row["epsilon"] == norm.eps
    activation = type(block.mlp.act if hasattr(block, "mlp") else block.mlp_act).__name__
    assert activation == "SiLU" or row["act"] == ACTIVATIONS[activation]


MODELS = {
    "plain": {},
    "not square, other heads": {"img_size": (32, 48), "num_heads": 8, "act": "gelu_tanh"},
    "average of patches beside a class token": {"pool": "avg"},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "layer_scale": 0.1, "pool": "avg", "fc_norm": True},
    "attention pooling over registers": {"pool": "map", "reg_tokens": 2},
    "a norm before the blocks": {"norm_pre": True, "patch_bias": False, "act": "quick_gelu"},
    "CLIP": {"norm_pre": True, "patch_bias": False, "epsilon": 1e-5},
    "norms after": {"block": "post", "class_token": False, "pool": "avg", "qkv_bias": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_timm_rebuilds_a_model_from_what_plsc_writes(tmp_path, name):
    """config.json alone, without plsc's card, is enough for timm and for plsc."""
    fields = dict(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=2, class_num=5)
    network = VisionTransformer(ViTSpec(**{**fields, **MODELS[name]}))
    rng = np.random.default_rng(0)
    for parameter in network.parameters():
        parameter.set_value((0.3 * rng.standard_normal(parameter.shape)).astype("float32"))
    network.eval()
    arrays = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    preprocess = Preprocess(resize=36, crop=(32, 32), mean=(0.1,) * 3, std=(0.2,) * 3, truncate=True, round_corner=True)
    square = isinstance(network.spec.img_size, int)
    spec = dataclasses.asdict(network.spec)
    card = ModelCard("VisionTransformer", spec, preprocess=preprocess if square else None)
    file, _ = write(Source.of_arrays("made", arrays, card), "timm", f"{tmp_path}/made/")
    save_file(load_file(file), file, metadata={"format": "pt"})
    theirs = timm.create_model(f"local-dir:{tmp_path}/made", pretrained=True).eval()
    images = rng.standard_normal((2, 3, *np.broadcast_to(network.spec.img_size, 2))).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected = theirs(torch.from_numpy(images)).numpy()
        ours = load_model(file).network(paddle.to_tensor(images)).numpy()
        np.testing.assert_allclose(network(paddle.to_tensor(images)).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=theirs))
    assert not square or ("Resize(size=36" in str(transform) and "CenterCrop(size=(32, 32)" in str(transform))
