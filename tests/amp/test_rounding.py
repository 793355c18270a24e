"""The bounds of tests/device on a device that rounds otherwise than the CPU, as a GPU does.

The pretend accelerator computes float32 with the CPU's own kernels, bit for bit, so that a bound of zero would hold on
it. Here every gradient of a run on it is inexact by a share of its largest number.
"""

import zlib

import numpy as np
import paddle
import pytest

from plsc.engine.precision import Precision
from tests.device import test_training
from tests.device.conftest import reference  # noqa: F401 - a fixture
from tests.device.runs import digits, losses, train
from tests.device.target import FLOAT32
from tests.helpers import tiny_digits

ROUNDING, WRONG = 1e-6, 0.03  # ten times what sums in another order change in float32; a kernel that is nearly right
HALF_ROUNDING = 2.0**-11


@pytest.fixture
def inexact(monkeypatch):
    """A function: how inexact gradients are from now on, where the device is not the CPU."""

    def set_to(share: float) -> None:
        unscale = Precision.unscale

        @paddle.no_grad()
        def inexactly(self, optimizer):
            for name, parameter in optimizer.named:
                if parameter.grad is not None and paddle.get_device() != "cpu":
                    gradient = parameter.grad.numpy()
                    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(gradient.shape)
                    parameter.grad.set_value(gradient + (share * np.abs(gradient).max() * noise).astype("float32"))
            unscale(self, optimizer)

        monkeypatch.setattr(Precision, "unscale", inexactly)

    return set_to


@pytest.mark.parametrize("share", [ROUNDING, WRONG])
def test_losses_over_forty_updates(tmp_path, inexact, share):
    """As tests/device/test_training.py compares them: another rounding is within the bounds, a wrong kernel is not."""
    cpu = train(tmp_path / "cpu", digits(), device="cpu")
    inexact(share)
    apart = np.abs(losses(train(tmp_path / "device", digits())) - losses(cpu))
    bounds = FLOAT32.bounds
    assert apart.max() > 0
    assert (apart[:10].max() < bounds.early and apart.max() < bounds.late) == (share == ROUNDING), apart


@pytest.mark.parametrize("share", [ROUNDING, WRONG])
def test_losses_of_short_runs(tmp_path, inexact, share):
    cpu = train(tmp_path / "cpu", tiny_digits(), device="cpu")
    inexact(share)
    device = losses(train(tmp_path / "device", tiny_digits()))
    apart = np.abs(device / losses(cpu) - 1.0).max()
    assert apart > 0
    assert (apart < FLOAT32.bounds.relative) == (share == ROUNDING), apart


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
def test_weights_in_half_precision(tmp_path, reference, inexact, optimizer):  # noqa: F811
    """They end near those of float32 though every gradient is rounded once more."""
    inexact(HALF_ROUNDING)
    test_training.test_every_optimizer(tmp_path, reference, optimizer, test_training.O2)
