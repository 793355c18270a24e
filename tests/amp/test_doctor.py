"""plsc doctor on the pretend accelerator: half-precision kernels compared, and faults of them reported."""

import os

import paddle
import paddle.nn.functional as F
import pytest

from plsc.doctor import Site, hardware
from tests.accelerator import build
from tests.test_doctor import SMALL, launched

HALF = {"float16": hardware.float16, "bfloat16": hardware.bfloat16}
# one of two processes sums wrongly, in half precision alone
WRONG_SUM = """
import paddle
import paddle.distributed as dist
right = dist.all_reduce
def all_reduce(tensor, *arguments, **options):
    right(tensor, *arguments, **options)
    if tensor.dtype == paddle.float16 and dist.get_rank() == 1:
        tensor.scale_(float("inf"))
dist.all_reduce = all_reduce
"""


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(build.DEVICE, tmp_path, "ViT_base_patch16_224")


@pytest.mark.parametrize("dtype", HALF)
def test_kernels_are_right(site, dtype):
    finding = HALF[dtype].run(site)
    assert finding.verdict == "pass", finding
    assert site.half == dtype
    assert set(finding.data) == {*hardware.KERNELS, "adamw"}
    assert max(finding.data.values()) > 1e-5, "nothing was computed in half precision"


@pytest.mark.parametrize("dtype", HALF)
def test_a_wrong_kernel(site, monkeypatch, dtype):
    """Right in float32, and off by a tenth in half precision."""
    right = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *a: right(x, *a) * (1.0 if x.dtype == paddle.float32 else 1.1))
    assert hardware.float32.run(site).verdict == "pass"
    finding = HALF[dtype].run(site)
    assert finding.verdict == "fail" and finding.measured.startswith("layer_norm is off by ")
    assert f"train without {dtype}" in finding.remedy
    assert site.half is None


def test_a_missing_kernel(site, monkeypatch):
    """This device has no silu."""
    monkeypatch.setattr(F, "gelu", F.silu)
    finding = hardware.float16.run(site)
    assert finding.verdict == "fail"
    assert finding.measured.startswith("gelu does not run: ") and "not registered" in finding.measured


def test_flash_attention_is_not_taken(site):
    site.half = "float16"
    finding = hardware.flash_attention.run(site)
    assert finding.verdict == "warn"
    assert "npu" in finding.measured and "Softmax" in finding.measured


@pytest.mark.distributed
def test_two_devices(tmp_path):
    """A step in float16, and a sum that is wrong in float16 alone."""
    environment = build.settings(os.environ["CUSTOM_DEVICE_ROOT"])
    code, rows = launched(tmp_path, SMALL + WRONG_SUM, device=build.DEVICE, **environment)
    assert code == 1
    assert [name for name, row in rows.items() if row["verdict"] == "fail"] == ["all_reduce"]
    assert "the sum of float16 gives nan for 0" in rows["all_reduce"]["measured"]
    assert "float32" not in rows["all_reduce"]["measured"]
    assert "float16 (O2)" in rows["training step"]["measured"]
    assert rows["gradient reduction"]["verdict"] in ("pass", "warn")
    assert rows["pairs"]["verdict"] == "skip"
