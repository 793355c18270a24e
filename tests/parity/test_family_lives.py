"""Families as timm and transformers write them: read, trained, evaluated, exported, written back for the library."""

# ruff: noqa: E402

import os

import pytest

REASON = "make test-parity installs them"
torch = pytest.importorskip("torch", reason=REASON)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # after that: where torch is missing, other tests run in this process
timm = pytest.importorskip("timm", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

import json

import numpy as np
from safetensors.torch import load_file

from plsc.loading import load_model
from plsc.models.spec import ViTSpec
from plsc.weights import read
from tests.family_life import CLASSES, fields_of, live, logits, pictures
from tests.parity.architectures import HUGGINGFACE, of_torch, randomised

TINY = dict(depth=2, embed_dim=32, num_heads=2, img_size=32, in_chans=1, num_classes=CLASSES)
# name → (timm's architecture, arguments)
TIMM = {
    "plain ViT": ("vit_tiny_patch16_224", {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", dict(patch_size=16)),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "SigLIP 2": ("vit_base_patch16_siglip_224", {}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {}),
    "BEiT": ("beit_base_patch16_224", {}),
    "EVA-02": ("eva02_base_patch14_224", dict(patch_size=16)),
    "hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "QK norm and parallel blocks": ("vit_base_patch16_xp_224", {}),
    "rotary and learned positions": ("vit_small_patch16_rope_ape_224", {}),
}


@pytest.mark.parametrize("family", TIMM)
def test_timm(family, tmp_path):
    name, options = TIMM[family]
    options = {**TINY, **options}
    theirs = randomised(timm.create_model(name, **options))
    arguments = {key: value for key, value in options.items() if key != "num_classes"}
    timm.models.save_for_hf(theirs, tmp_path / "hub", model_args=arguments, safe_serialization=True)
    fields = fields_of(ViTSpec(**read(tmp_path / "hub").card.spec))
    written = live(tmp_path / "hub", "timm", tmp_path, fields, lambda batch: of_torch(theirs, batch))
    theirs.load_state_dict(load_file(written))
    ours = load_model(tmp_path / "run").network
    batch = pictures(fields)
    np.testing.assert_allclose(of_torch(theirs, batch), logits(ours, batch), atol=1e-4)


LABELS = {"id2label": dict(enumerate("0123456789")), "label2id": {name: i for i, name in enumerate("0123456789")}}
NAMES = (
    "ViTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2WithRegistersForImageClassification",
    "DINOv3ViTModel",
    "CLIPVisionModel",
    "CLIPForImageClassification",
    "SiglipVisionModel",
    "BeitForImageClassification, relative positions",
    "Data2VecVisionForImageClassification",
    "ViTMAEModel",
    "IJepaForImageClassification",
)
HEADLESS = ("DINOv3ViTModel", "CLIPVisionModel", "SiglipVisionModel")  # classes that have none


@pytest.mark.parametrize("name", NAMES)
def test_transformers(name, tmp_path):
    kind, config, options, run = HUGGINGFACE[name]
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    small |= dict(image_size=32, patch_size=8, num_channels=1)
    options = {**options, **(LABELS if "id2label" in options else {})}
    if config == "CLIPConfig":
        text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
        made = transformers.CLIPConfig(vision_config=small, text_config=text, **options)
    else:
        made = getattr(transformers, config)(**{**small, **options})
    theirs = randomised(getattr(transformers, kind)(made))
    theirs.save_pretrained(tmp_path / "hub")
    fields = fields_of(ViTSpec(**read(tmp_path / "hub").card.spec))
    written = live(
        tmp_path / "hub",
        "huggingface",
        tmp_path,
        fields,
        lambda batch: of_torch(run(theirs), batch),
        keeps_new_head=name not in HEADLESS,
    )
    kind = json.loads((written.parent / "config.json").read_text())["architectures"][0]
    again = getattr(transformers, kind).from_pretrained(written.parent).eval()
    batch = pictures(fields)
    if name in HEADLESS:
        ours = load_model(written).network
        expected = of_torch(run(again), batch)
    else:
        ours = load_model(tmp_path / "run").network
        expected = of_torch(lambda x: again(x).logits, batch)
    np.testing.assert_allclose(logits(ours, batch), expected, atol=1e-4)
