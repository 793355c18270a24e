"""Two processes with a device each: half-precision gradients that travel, and everything that processes agree on."""

import json

import numpy as np
import pytest

import plsc
from tests.accelerator import build
from tests.amp import line
from tests.amp.line import AVERAGED, OPTIMIZERS, Emulation, check
from tests.amp.runs import (
    POLICIES,
    RANDOM,
    assert_bit_equal,
    column,
    digits,
    half,
    launched,
    losses,
    train,
    weights,
)
from tests.helpers import metrics, tiny_digits

pytestmark = pytest.mark.distributed

MOMENTUM = OPTIMIZERS["Momentum"]
TRAVELLING = [(policy, dtype) for policy in ("O1", "O2", "O2-no-masters") for dtype in ("float16", "bfloat16")]
IN_PARTS = ["O1", "O2", "O2-half-gradients"]
OVERFLOWING = ["O1", "O2"]
TOO_HIGH = 1.5 * 2.0**18  # the loss scale at which the second process's pictures overflow, and not the first's


def linear(fp16: dict, parts: int = 1) -> dict:
    tree = line.recipe(MOMENTUM)
    tree["Global"] |= {"accum_steps": parts, "imports": ["tests.amp.parts"]}
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = line.SAMPLES // 2
    return {**tree, "FP16": fp16, "EMA": AVERAGED}


def overflowing(policy: str) -> dict:
    return {**POLICIES[policy], "GradScaler": {"init_loss_scaling": TOO_HIGH, "incr_every_n_steps": 3}}


def vit(fp16: dict | None) -> dict:
    tree = digits(12)
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 32
    return tree if fp16 is None else {**tree, "FP16": fp16}


def stateful(processes: int = 2) -> dict:
    """Everything that holds state, under a loss scale that falls and rises."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["Global"] |= {"max_train_step": 12, "accum_steps": 2, "max_num_latest_checkpoint": -1}
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 32 // processes
    fp16 = half("O2", init_loss_scaling=2.0**25, incr_every_n_steps=3)
    return {**tree, "FP16": fp16, "EMA": {"decay": 0.9}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, accelerator):
    """The folder with all runs of two processes, made in one launch."""
    folder = tmp_path_factory.mktemp("two")
    trees = {f"linear {policy} {dtype}": linear({"dtype": dtype, **POLICIES[policy]}) for policy, dtype in TRAVELLING}
    trees |= {f"parts {policy}": linear(POLICIES[policy], parts=2) for policy in IN_PARTS}
    trees |= {f"overflow {policy}": linear(overflowing(policy)) for policy in OVERFLOWING}
    trees |= {"vit float32": vit(None), "vit float16": vit(half("O2")), "vit bfloat16": vit(half("O2", "bfloat16"))}
    trees |= {"straight": stateful()}
    jobs = [(name, tree, {}) for name, tree in trees.items()]
    jobs += [("broken", stateful(), {"max_train_step": stop, "resume": "auto"}) for stop in (5, 12)]
    for name, tree, more in jobs:
        tree["Global"] |= {"device": build.DEVICE, "output_dir": str(folder / name), **more}
    jobs = [{"train": tree} for _, tree, _ in jobs]
    jobs += [{"evaluate": str(folder / "vit float16"), "into": str(folder / "evaluation.json")}]
    launched(folder, jobs)
    return folder


@pytest.mark.parametrize(("policy", "dtype"), TRAVELLING)
def test_gradients_travel_as_they_are_stored(runs, policy, dtype):
    """As NumPy computes it: each process's gradients are halved, added, and rounded to their type."""
    emulation = Emulation(MOMENTUM, {"dtype": dtype, **POLICIES[policy]}, ranks=2)
    check(runs / f"linear {policy} {dtype}", emulation, half_weights=policy == "O2-no-masters")


@pytest.mark.parametrize("policy", IN_PARTS)
def test_micro_batches(runs, policy):
    """Float32 gradients of half-precision weights are summed in float32 and averaged once."""
    check(runs / f"parts {policy}", Emulation(MOMENTUM, POLICIES[policy], parts=2, ranks=2))


@pytest.mark.parametrize("policy", OVERFLOWING)
def test_an_overflow_on_one_device_is_skipped_on_both(runs, policy):
    """At first only the second process's pictures overflow: averaging carries that to both."""
    fp16 = overflowing(policy)
    each = [Emulation(MOMENTUM, fp16, ranks=2).process(rank, np.float32(TOO_HIGH))[1] for rank in (0, 1)]
    assert [all(np.isfinite(g).all() for g in gradients.values()) for gradients in each] == [True, False]
    log = check(runs / f"overflow {policy}", Emulation(MOMENTUM, fp16, ranks=2))
    assert log["skipped"][0]
    assert not all(log["skipped"])


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 5e-3)])
def test_two_devices_follow_one(runs, tmp_path, dtype, bound):
    """With the same global batch."""
    tree = digits(12)
    one = train(tmp_path / "one", tree, fp16=None if dtype == "float32" else half("O2", dtype))
    two = runs / f"vit {dtype}"
    np.testing.assert_allclose(losses(two), losses(one), rtol=bound)
    np.testing.assert_allclose(column(two, "grad_norm"), column(one, "grad_norm"), rtol=20 * bound)
    if dtype == "float32":
        cpu = train(tmp_path / "cpu", tree, device="cpu")
        np.testing.assert_allclose(losses(two), losses(cpu), rtol=bound)


def test_a_resumed_run_ends_bit_equal(runs):
    straight, broken = runs / "straight", runs / "broken"
    assert [r["step"] for r in metrics(broken)] == list(range(1, 13))
    assert losses(broken).tolist() == losses(straight).tolist()
    assert column(broken, "loss_scale") == column(straight, "loss_scale")
    assert len(set(column(straight, "loss_scale"))) > 2
    for part in ("model", "optimizer", "ema"):
        assert_bit_equal(weights(broken, part), weights(straight, part))


def test_one_device_goes_on_where_two_were(runs, tmp_path):
    """From a checkpoint of two processes, with its loss scale and its counts."""
    tree = stateful(processes=1)
    tree["Global"]["checkpoint"] = str(runs / "broken" / "checkpoints" / "step-00000005")
    run = train(tmp_path / "run", tree)
    assert column(run, "loss_scale") == column(runs / "straight", "loss_scale")[5:]


def test_evaluation(runs):
    """Every sample once over two devices: the figures of one."""
    two = json.loads((runs / "evaluation.json").read_text())
    one = plsc.evaluate(runs / "vit float16")
    assert two["samples"] == one["samples"] == 360
    assert two["top1"] == one["top1"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
