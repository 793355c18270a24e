"""The hybrid of ViT-pytorch: the fixture's logits are those of torch, and plsc's."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make test-parity installs it")

from plsc.loading import load_model  # noqa: E402
from tests import jeonsworld  # noqa: E402
from tests.parity.architectures import of_plsc  # noqa: E402


def test_the_hybrid(tmp_path):
    expected = jeonsworld.reference(jeonsworld.arrays(), jeonsworld.pictures())
    np.testing.assert_allclose(json.loads(jeonsworld.LOGITS.read_text()), expected, atol=1e-5)
    weights = {name: torch.from_numpy(array) for name, array in jeonsworld.arrays().items()}
    torch.save(weights, tmp_path / "R50-ViT-B_16_checkpoint.bin")
    from plsc.convert import convert_weights

    convert_weights(tmp_path / "R50-ViT-B_16_checkpoint.bin", "safetensors", tmp_path / "own.safetensors", num_heads=2)
    ours = load_model(tmp_path / "own.safetensors").network
    np.testing.assert_allclose(of_plsc(ours, jeonsworld.pictures()), expected, atol=1e-5)
