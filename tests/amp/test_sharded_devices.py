"""Sharding over two devices, in half precision: what the owners of parameters agree on."""

import numpy as np
import pytest

from tests.accelerator import build
from tests.amp import line
from tests.amp.line import AVERAGED, OPTIMIZERS, Emulation, check
from tests.amp.runs import POLICIES, RANDOM, column, half, launched, losses
from tests.amp.test_two_devices import TOO_HIGH
from tests.helpers import metrics, tiny_digits
from tests.test_sharding import STAGES, assert_bit_equal, assert_close, recipe

pytestmark = pytest.mark.distributed

MOMENTUM = OPTIMIZERS["Momentum"]
TRAVELLING = [
    (2, "O1", "float16"),
    (2, "O2", "bfloat16"),
    (3, "O2", "float16"),
    (3, "O2-no-masters", "float16"),
    (1, "O2", "float16"),
]


def linear(fp16: dict, stage: int, parts: int = 1) -> dict:
    tree = line.recipe(MOMENTUM)
    tree["Global"] |= {"accum_steps": parts, "imports": ["tests.amp.parts"]}
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = line.SAMPLES // 2
    return {**tree, "FP16": fp16, "EMA": AVERAGED, "DistributedStrategy": {"sharding": {"stage": stage}}}


def overflowing(policy: str) -> dict:
    return {**POLICIES[policy], "GradScaler": {"init_loss_scaling": TOO_HIGH, "incr_every_n_steps": 3}}


def stateful(stage: int | None) -> dict:
    """Everything that holds state, under a loss scale that falls and rises."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["Global"] |= {"max_train_step": 12, "accum_steps": 2, "max_num_latest_checkpoint": -1}
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 16
    tree["Optimizer"] |= {"epsilon": 1e-4}
    if stage:
        tree["DistributedStrategy"] = {"sharding": {"stage": stage}, "recompute": {}}
    fp16 = half("O2", init_loss_scaling=2.0**25, incr_every_n_steps=3)
    return {**tree, "FP16": fp16, "EMA": {"decay": 0.9}}


def compiled() -> dict:
    """Stage 2 with compiled blocks, which cannot be recomputed."""
    tree = stateful(2)
    tree["DistributedStrategy"].pop("recompute")
    tree["Global"]["to_static"] = True
    return tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory, accelerator):
    """The folder with all runs of two processes, made in one launch."""
    folder = tmp_path_factory.mktemp("sharded")
    jobs = [("whole", recipe(2), {})]
    jobs += [(f"stage {stage}", recipe(2, {"stage": stage}), {}) for stage in STAGES]
    jobs += [
        (f"linear {stage} {policy} {dtype}", linear({"dtype": dtype, **POLICIES[policy]}, stage), {})
        for stage, policy, dtype in TRAVELLING
    ]
    jobs += [(f"parts {stage}", linear(POLICIES["O2"], stage, parts=2), {}) for stage in STAGES]
    jobs += [(f"overflow {stage}", linear(overflowing("O2"), stage), {}) for stage in STAGES]
    jobs += [("straight whole", stateful(None), {})]
    jobs += [("compiled 2", compiled(), {})]
    for stage in (2, 3):
        jobs += [(f"straight {stage}", stateful(stage), {})]
        jobs += [(f"broken {stage}", stateful(stage), {"max_train_step": stop, "resume": "auto"}) for stop in (5, 12)]
    for name, tree, more in jobs:
        tree["Global"] |= {"device": build.DEVICE, "output_dir": str(folder / name), **more}
    launched(folder, [{"train": tree} for _, tree, _ in jobs])
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_float32_is_that_of_data_parallel_training(runs, stage):
    one, other = metrics(runs / f"stage {stage}"), metrics(runs / "whole")
    assert len(one) == 20
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in one], [r[name] for r in other], rtol=1e-5)
    assert_close(runs / f"stage {stage}", runs / "whole")


@pytest.mark.parametrize(("stage", "policy", "dtype"), TRAVELLING)
def test_gradients_travel_as_they_are_stored(runs, stage, policy, dtype):
    """As NumPy computes it, and as DataParallel's do: halved, added, and rounded to their type."""
    emulation = Emulation(MOMENTUM, {"dtype": dtype, **POLICIES[policy]}, ranks=2)
    check(runs / f"linear {stage} {policy} {dtype}", emulation, half_weights=policy == "O2-no-masters")


@pytest.mark.parametrize("stage", STAGES)
def test_an_overflow_on_one_owner_is_skipped_by_all(runs, stage):
    log = check(runs / f"overflow {stage}", Emulation(MOMENTUM, overflowing("O2"), ranks=2))
    assert log["skipped"][0]
    assert not all(log["skipped"])


@pytest.mark.parametrize("stage", (2, 3))
def test_a_resumed_run_ends_bit_equal(runs, stage):
    straight, broken = runs / f"straight {stage}", runs / f"broken {stage}"
    assert [r["step"] for r in metrics(broken)] == list(range(1, 13))
    assert losses(broken).tolist() == losses(straight).tolist()
    assert column(broken, "loss_scale") == column(straight, "loss_scale")
    assert len(set(column(straight, "loss_scale"))) > 2
    assert_bit_equal(broken, straight)


@pytest.mark.parametrize("stage", (2, 3))
def test_the_loss_scale_is_that_of_data_parallel_training(runs, stage):
    """Sums of micro-batches round once more, so that losses are near."""
    straight, whole = runs / f"straight {stage}", runs / "straight whole"
    assert column(straight, "loss_scale") == column(whole, "loss_scale")
    np.testing.assert_allclose(losses(straight), losses(whole), rtol=2e-3)


def test_gradients_of_compiled_blocks_are_sharded(runs):
    """In float16; in float32 tests/test_sharding.py holds it to 1e-5."""
    one, other = runs / "compiled 2", runs / "straight 2"
    assert column(one, "loss_scale") == column(other, "loss_scale")
    np.testing.assert_allclose(losses(one), losses(other), rtol=2e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_masters_and_moments_are_halved(runs, stage):
    """By the log's figure: of the weight and the bias of a linear layer each has one owner."""
    run = runs / f"parts {stage}"
    [largest] = {r["optimizer_state_bytes"] for r in metrics(run)}
    assert largest == 2 * 4 * line.INPUTS * line.CLASSES  # velocity and float32 master of the weight
