"""Networks of Google's code on the device: logits that were stored in float32, within the bounds of each precision."""

import json

import numpy as np
import paddle
import pytest

from plsc import loading
from plsc.config.schema import FP16
from plsc.engine.precision import Precision as Policy
from plsc.models import VisionTransformer, ViTSpec
from plsc.weights import read
from tests.device.target import MAIN
from tests.helpers import CHECKOUT

FIXTURES = CHECKOUT / "tests" / "fixtures"
NAMES = ["vit_small_token", "vit_small_prelogits", "hybrid_mini", "r_stem_vit_small"]


@pytest.mark.parametrize("precision", MAIN, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_stored_logits(name, precision):
    with np.load(FIXTURES / f"{name}_io.npz") as io:
        pictures, expected, config = io["input"], io["logits"], json.loads(str(io["config"]))
    spec = dict(read(FIXTURES / f"{name}.npz").card.spec)
    network = VisionTransformer(ViTSpec(**{**spec, "act": "gelu_tanh"}))
    network.eval()
    assert loading.load_pretrained(network, str(FIXTURES / f"{name}.npz"), strict=True).exact
    assert spec["depth"] == config["transformer"]["num_layers"]
    policy = Policy(FP16(**precision.fp16()) if precision.policy else None, on_cpu=False)
    network, _ = policy.decorate(network)
    with paddle.no_grad():
        logits = policy.forward(network)(paddle.to_tensor(pictures.transpose(0, 3, 1, 2).copy()))
    apart = np.abs(logits.astype("float32").numpy() - expected).max()
    assert apart <= precision.bounds.logits * np.abs(expected).max()
    assert apart > 0 or not precision.policy, "half precision did not take part"


def test_gradients_of_a_network(tmp_path):
    """In float32, as on the CPU: of every parameter, relative to its largest."""
    with np.load(FIXTURES / "vit_small_token_io.npz") as io:
        pictures = io["input"].transpose(0, 3, 1, 2).copy()
    here, gradients = paddle.get_device(), {}
    for device in ("cpu", here):
        paddle.set_device(device)
        spec = read(FIXTURES / "vit_small_token.npz").card.spec
        network = VisionTransformer(ViTSpec(**spec))
        loading.load_pretrained(network, str(FIXTURES / "vit_small_token.npz"), strict=True)
        network.eval()
        logits = network(paddle.to_tensor(pictures))
        paddle.nn.functional.cross_entropy(logits, paddle.zeros([len(pictures)], "int64")).backward()
        gradients[device] = {name: p.grad.numpy() for name, p in network.named_parameters()}
    for name, expected in gradients["cpu"].items():
        apart = np.abs(gradients[here][name] - expected).max()
        assert apart <= 1e-4 * np.abs(expected).max() + 1e-7, name
