"""Two processes with a pretend device each: half-precision gradients that travel, as NumPy computes them."""

import numpy as np
import pytest

from tests.accelerator import build
from tests.amp import line
from tests.amp.line import AVERAGED, OPTIMIZERS, Emulation, check
from tests.amp.runs import POLICIES, launched

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, accelerator):
    """The folder with all runs of two processes, made in one launch."""
    folder = tmp_path_factory.mktemp("two")
    trees = {f"linear {policy} {dtype}": linear({"dtype": dtype, **POLICIES[policy]}) for policy, dtype in TRAVELLING}
    trees |= {f"parts {policy}": linear(POLICIES[policy], parts=2) for policy in IN_PARTS}
    trees |= {f"overflow {policy}": linear(overflowing(policy)) for policy in OVERFLOWING}
    for name, tree in trees.items():
        tree["Global"] |= {"device": build.DEVICE, "output_dir": str(folder / name)}
    launched(folder, [{"train": tree} for tree in trees.values()])
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
