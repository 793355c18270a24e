"""Vision Transformers on the pretend accelerator: what only a device that counts its kernels, and computes as the CPU
does, can show. What any device shows is in tests/device."""

import numpy as np
import pytest

import plsc
from tests.amp.runs import RANDOM, assert_bit_equal, digits, half, kernels, losses, train, weights
from tests.helpers import tiny_digits


def test_float32_is_the_cpus_bit_for_bit(tmp_path):
    """Dropout and averaging included: what differs below is precision alone."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["EMA"] = {"decay": 0.9}
    tree["Global"]["cpu_forms"] = False  # the device has the plain forms
    cpu, device = train(tmp_path / "cpu", tree, device="cpu"), train(tmp_path / "device", tree)
    assert losses(device).tolist() == losses(cpu).tolist()
    for part in ("model", "optimizer", "ema"):
        assert_bit_equal(weights(device, part), weights(cpu, part))


@pytest.mark.parametrize("to_static", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_which_kernels_run_in_half_precision(tmp_path, level, dtype, to_static):
    """O1: products and convolutions; O2: all of the network. Never the loss, the norm of the gradients, the masters."""
    kernels()
    train(tmp_path / "run", digits(5), fp16=half(level, dtype), Global={"to_static": to_static})
    ran = kernels()
    for name in ("matmul", "matmul_grad", "conv2d", "conv2d_grad"):
        assert f"{name} float32" not in ran
        assert ran[f"{name} {dtype}"] >= 5
    inside, outside = (dtype, "float32") if level == "O2" else ("float32", dtype)
    for name in ("layer_norm", "layer_norm_grad", "softmax", "softmax_grad", "gelu", "gelu_grad"):
        assert f"{name} {outside}" not in ran
        assert ran[f"{name} {inside}"] >= 5
    for name in ("exp", "log", "logsumexp", "mean", "squared_l2_norm", "check_finite_and_unscale"):
        assert f"{name} {dtype}" not in ran, "the loss and the update are float32"
    assert (f"adamw {dtype}" in ran) == (level == "O2")


@pytest.mark.parametrize("policy", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_recompute_computes_again(tmp_path, policy, dtype):
    """With dropout on."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    kernels()
    plain = train(tmp_path / "plain", tree, fp16=half(policy, dtype))
    once = kernels()[f"matmul {dtype}"]
    recompute = {"recompute": {"layerlist_interval": 1}}
    again = train(tmp_path / "again", tree, fp16=half(policy, dtype), DistributedStrategy=recompute)
    assert kernels()[f"matmul {dtype}"] > 1.5 * once, "nothing was computed again"
    assert losses(again).tolist() == losses(plain).tolist()


def test_evaluation_is_in_the_runs_precision(tmp_path):
    """And prediction in float32."""
    run = train(tmp_path / "run", digits(2), fp16=half("O2"))
    kernels()
    plsc.evaluate(run)
    assert kernels()["matmul float16"] > 0
    plsc.load_predictor(run, device="npu").predict(np.zeros((1, 8, 8, 1), "uint8"))
    assert kernels()["matmul float32"] > 0
