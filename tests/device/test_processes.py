"""Two processes with a device each: all that they agree on, sharded or not, and the same training as one process."""

import json

import numpy as np
import pytest

import plsc
from plsc.devices import count_devices
from tests.device.runs import assert_same, column, digits, launched, losses, stateful, train
from tests.device.target import DEVICE, MAIN, ON_CPU, Precision
from tests.helpers import metrics
from tests.test_sharding import STAGES, recipe

pytestmark = pytest.mark.distributed

COMPARED = [MAIN[0], MAIN[2], MAIN[3]]
FALLING = {"init_loss_scaling": 2.0**25, "incr_every_n_steps": 3}
STATE = MAIN[0] if ON_CPU else Precision("float16", "O2")


def vit() -> dict:
    tree = digits(12)
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 32
    return tree


def all_state(processes: int = 2) -> dict:
    tree = stateful(12)
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 32 // processes
    return tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory, accelerator):
    """The folder with all runs of two processes, made in one launch."""
    if not ON_CPU and count_devices(DEVICE).count < 2:
        pytest.skip(f"there is one {DEVICE} only")
    folder = tmp_path_factory.mktemp("two")
    jobs = [(str(p), vit(), p.fp16(), {}) for p in COMPARED if not p.missing]
    jobs += [("straight", all_state(), STATE.fp16(**FALLING), {})]
    jobs += [
        ("broken", all_state(), STATE.fp16(**FALLING), {"max_train_step": stop, "resume": "auto"}) for stop in (5, 12)
    ]
    jobs += [("whole", recipe(2), None, {})]
    jobs += [(f"stage {stage}", recipe(2, {"stage": stage}), None, {}) for stage in STAGES]
    listed = []
    for name, tree, fp16, more in jobs:
        tree["Global"] |= {"device": DEVICE, "output_dir": str(folder / name), **more}
        listed.append({"train": tree if fp16 is None else {**tree, "FP16": fp16}})
    listed.append({"evaluate": str(folder / "float32"), "into": str(folder / "evaluation.json")})
    launched(folder, listed)
    return folder


@pytest.mark.parametrize("precision", COMPARED, ids=str)
def test_two_devices_follow_one(runs, tmp_path, reference, precision):
    """With the same global batch."""
    two, one = runs / str(precision), train(tmp_path / "one", digits(12), fp16=precision.fp16())
    bound = precision.bounds.again
    np.testing.assert_allclose(losses(two), losses(one), rtol=bound)
    np.testing.assert_allclose(column(two, "grad_norm"), column(one, "grad_norm"), rtol=20 * bound)
    np.testing.assert_allclose(losses(two), losses(reference(digits(12))), rtol=precision.bounds.relative)


def test_a_resumed_run_ends_as_a_straight_one(runs, repeats):
    straight, broken = runs / "straight", runs / "broken"
    assert [r["step"] for r in metrics(broken)] == list(range(1, 13))
    assert_same(straight, broken, exact=repeats, bound=STATE.bounds.again)
    assert column(broken, "loss_scale") == column(straight, "loss_scale")
    assert ON_CPU or len(set(column(straight, "loss_scale"))) > 2


@pytest.mark.parametrize("stage", STAGES)
def test_sharded_training_is_that_of_data_parallel_training(runs, stage):
    """Over twenty updates, in float32."""
    sharded, whole = runs / f"stage {stage}", runs / "whole"
    assert len(losses(sharded)) == 20
    np.testing.assert_allclose(losses(sharded), losses(whole), rtol=1e-5)
    np.testing.assert_allclose(column(sharded, "grad_norm"), column(whole, "grad_norm"), rtol=1e-4)
    assert len(list((sharded / "checkpoints" / "step-00000020").glob("optimizer*.safetensors"))) == 2


def test_one_device_goes_on_where_two_were(runs, tmp_path):
    """From a checkpoint of two processes, with its loss scale and its counts."""
    tree = all_state(processes=1)
    tree["Global"]["checkpoint"] = str(runs / "broken" / "checkpoints" / "step-00000005")
    run = train(tmp_path / "run", tree, fp16=STATE.fp16(**FALLING))
    assert [r["step"] for r in metrics(run)] == list(range(6, 13))
    assert column(run, "loss_scale") == column(runs / "straight", "loss_scale")[5:]


def test_evaluation(runs):
    """Every sample once over two devices: the figures of one."""
    two = json.loads((runs / "evaluation.json").read_text())
    one = plsc.evaluate(runs / "float32")
    assert two["samples"] == one["samples"] == 360
    assert abs(two["top1"] - one["top1"]) <= 1 / 360
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
