"""Families of Vision Transformers as a user has them: weights of others are trained a step, evaluated and exported."""

import numpy as np
import paddle
import pytest

from plsc import export, loading
from plsc.data.preprocess import Preprocess
from plsc.weights import write
from tests.test_vit_families import BEIT, CLIP, DINOV2, DINOV3, EVA02, MAP, SWIGLU, build, logits, source_of

PREPROCESS = Preprocess(resize=(24, 24), mean=(0.5,) * 3, std=(0.5,) * 3)
KINDS = {
    "distilled DeiT": dict(distillation="heads"),
    "DINOv2 giant": DINOV2 | SWIGLU | dict(reg_tokens=2, no_embed_class=True),
    "DINOv3": DINOV3 | dict(pool="avg"),
    "EVA-02": EVA02 | dict(mlp_norm=True),
    "learned frequencies": dict(
        rope="mixed", rope_temperature=10.0, rope_order="xy", pos_embed="none", layer_scale=1e-5
    ),
    "BEiT": BEIT,
    "CLIP": CLIP | dict(act="quick_gelu"),
    "SigLIP": MAP,
    "parallel": dict(block="parallel", qk_norm="rmsnorm", norm="rmsnorm"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_lowers_the_loss(kind):
    """On one batch; every parameter that has a gradient moves."""
    network = build(**KINDS[kind])
    network.train()
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 24, 24)).astype("float32"))
    labels = paddle.to_tensor([0, 1, 2, 0])
    optimizer = paddle.optimizer.SGD(1e-3, parameters=network.parameters())
    losses = []
    for _ in range(2):
        loss = paddle.nn.functional.cross_entropy(network(images), labels)
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    assert losses[1] < losses[0]


@pytest.mark.long
@pytest.mark.parametrize("format", ["onnx", "paddle"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_with_the_self_check(kind, format, tmp_path):
    """export_model compares the runtime's logits with the network's before it leaves the folder."""
    model = build(**KINDS[kind])
    write(source_of(model, preprocess=PREPROCESS), "safetensors", tmp_path / "own.safetensors")
    loaded = loading.load_model(tmp_path / "own.safetensors")
    np.testing.assert_array_equal(logits(loaded.network), logits(model))
    exported = export.export_model(tmp_path / "own.safetensors", tmp_path / format, format=format)
    assert exported
