"""What plsc's precision policy computes, held against the same in NumPy with every rounding in its place.

A linear layer on 64 pictures, twelve updates. The two differ by the order of float32 sums, which now and then turns a
rounding: where weights themselves are half precision nearly all are bit-equal, and where float32 masters are kept they
differ far less than half precision differs from float32. A policy that is not followed is seen.
"""

import itertools

import numpy as np
import pytest

from plsc.errors import TrainingError
from tests.amp import line
from tests.amp.line import AVERAGED, OPTIMIZERS, STEPS, check, farthest
from tests.amp.runs import POLICIES, assert_bit_equal, column, train, weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_policy(tmp_path, optimizer, policy, dtype):
    fp16 = {"dtype": dtype, **POLICIES[policy]}
    run = train(tmp_path / "run", line.recipe(OPTIMIZERS[optimizer]), fp16=fp16, EMA=AVERAGED)
    check(run, line.Emulation(OPTIMIZERS[optimizer], fp16), half_weights=policy == "O2-no-masters")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_accumulation(tmp_path, policy, dtype):
    """Four micro-batches: summed in float32 with float32 gradients, else in what Paddle stores."""
    fp16, optimizer = {"dtype": dtype, **POLICIES[policy]}, OPTIMIZERS["Momentum"]
    run = train(tmp_path / "run", line.recipe(optimizer), fp16=fp16, Global={"accum_steps": 4}, EMA=AVERAGED)
    check(run, line.Emulation(optimizer, fp16, parts=4), half_weights=policy == "O2-no-masters")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_loss_scale_falls_and_rises(tmp_path, policy):
    """It begins too high, is halved at every second overflow, doubled after two good updates, and overflows again."""
    scaling = {"init_loss_scaling": 2.0**20, "incr_every_n_steps": 2}
    fp16, optimizer = {"dtype": "float16", "GradScaler": scaling, **POLICIES[policy]}, OPTIMIZERS["Momentum"]
    run = train(tmp_path / "run", line.recipe(optimizer), fp16=fp16, EMA=AVERAGED)
    log = check(run, line.Emulation(optimizer, fp16), half_weights=policy == "O2-no-masters")
    scales = log["loss_scale"]
    assert sum(log["skipped"]) >= 4, "the emulation should overflow"
    assert any(b < a for a, b in itertools.pairwise(scales)), "and fall"
    assert any(b > a for a, b in itertools.pairwise(scales)), "and rise"
    before = {part: weights(run, part, step=1) for part in ("model", "optimizer")}
    for step in range(2, STEPS + 1):
        now = {part: weights(run, part, step=step) for part in ("model", "optimizer")}
        same = all(a.tobytes() == now[part][n].tobytes() for part in now for n, a in before[part].items())
        assert same == log["skipped"][step - 1], f"step {step}: a skipped update, and only that, changes nothing"
        before = now
    text = (run / "train.log").read_text()
    assert text.count("update was skipped") == sum(log["skipped"])
    assert "nan" not in text


def test_a_fixed_loss_scale(tmp_path):
    """Every update overflows, none lowers the scale: the run ends with an error that says so."""
    scaling = {"init_loss_scaling": 2.0**20, "use_dynamic_loss_scaling": False, "max_skipped_updates": 5}
    with pytest.raises(TrainingError, match=r"5 updates in a row.*1\.04858e"):
        train(tmp_path / "run", line.recipe(OPTIMIZERS["Momentum"]), fp16={"GradScaler": scaling})
    assert column(tmp_path / "run", "skipped_updates") == [1, 2, 3, 4]


def test_no_unscale_list(tmp_path):
    """The gradients that it names keep the scale: here the bias learns four times as fast."""
    optimizer = {"name": "Momentum", "momentum": 0.9}
    fp16 = {"level": "O2", "GradScaler": {"init_loss_scaling": 4.0, "no_unscale_list": ["bias"]}}
    run = train(tmp_path / "run", line.recipe(optimizer), fp16=fp16, EMA=AVERAGED)
    check(run, line.Emulation(optimizer, fp16))
    assert farthest(weights(run), weights(train(tmp_path / "plain", line.recipe(optimizer)))) > 0.1


def test_masters_keep_small_updates(tmp_path):
    """At a rate of 1e-6 float16 weights cannot move at all; their float32 masters move by the whole sum."""
    tree = line.recipe({"name": "Momentum", "momentum": 0.0})
    tree["LRScheduler"]["learning_rate"] = 1e-6
    first = line.first_weights()
    lost = train(tmp_path / "lost", tree, fp16=POLICIES["O2-no-masters"])
    assert_bit_equal(weights(lost), {name: w.astype("float16") for name, w in first.items()})
    kept = weights(train(tmp_path / "kept", tree, fp16=POLICIES["O2"]))
    exact = weights(train(tmp_path / "exact", tree))
    moved = {name: np.abs(exact[name] - first[name]).max() for name in first}
    for name in first:
        assert moved[name] > 0
        assert np.abs(kept[name] - exact[name]).max() < 0.05 * moved[name] + 2.0**-24
