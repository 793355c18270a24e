"""What one training step asks of a device, counted where time cannot be measured.

The host waits for it in float16 only, and the next batch is copied while it computes.
"""

import json

import numpy as np
import paddle
import pytest

import plsc
from plsc.data.device import CopiesAhead, DeviceInput
from plsc.engine.guard import FiniteGuard
from plsc.engine.trainer import Trainer
from plsc.tensors import on_device
from tests.accelerator import build
from tests.amp.runs import RANDOM, digits, events, half, kernels, launched, train, watched_waits
from tests.test_sharding import STAGES

STEPS = 6
BETWEEN = slice(1, STEPS - 1)  # updates that are not logged
SETTINGS = {
    "float32": None,
    "float16 O2": half("O2"),
    "float16 O1": half("O1"),
    "bfloat16 O2": half("O2", "bfloat16"),
    "bfloat16 O1": half("O1", "bfloat16"),
}
QUIET = {"print_batch_step": 1000, "eval_during_train": False, "save_interval": 1000, "save_unit": "epoch"}


def per_step(monkeypatch, tmp_path, fp16, read, tree=None, **sections) -> list:
    """What `read` returns of each update of a run whose log lines are of its first and last."""
    seen, advance = [], Trainer.advance

    def counted(self, batches):
        read()
        norm = advance(self, batches)
        seen.append(read())
        return norm

    monkeypatch.setattr(Trainer, "advance", counted)
    tree = digits(STEPS) if tree is None else tree
    sections["Global"] = {**QUIET, **sections.get("Global", {})}
    train(tmp_path / "run", tree, fp16=fp16, **sections)
    assert len(seen) == STEPS
    return seen[BETWEEN]


def waits_per_step(monkeypatch, tmp_path, fp16, **more) -> list[dict[str, int]]:
    """Where the host waits for the device in each update, and how often."""
    with watched_waits() as seen:

        def read() -> dict[str, int]:
            waits = dict(seen)
            seen.clear()
            return waits

        return per_step(monkeypatch, tmp_path, fp16, read, **more)


def with_everything() -> dict:
    """Micro-batches, an average, mixing, random erasing, dropout, stochastic depth, clipping, layer decay, and every
    second block recomputed."""
    tree = digits(STEPS)
    tree["DistributedStrategy"] = {"recompute": {"layerlist_interval": 2}}
    tree["Optimizer"] |= {"layer_decay": 0.8}
    tree["Global"] |= {"accum_steps": 2}
    tree["Model"] |= RANDOM
    tree["EMA"] = {"decay": 0.99}
    part = tree["DataLoader"]["Train"]["dataset"]
    part["transform_ops"].insert(1, {"RandomErasing": {"probability": 0.5}})
    part["batch_transform_ops"] = [{"Mixup": {"alpha": 0.8}}]
    return tree


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_host_waits_only_for_the_overflow_of_float16(setting, monkeypatch, tmp_path):
    """One value is read, GradScaler's found_inf; for it Paddle waits twice for the stream."""
    steps = waits_per_step(monkeypatch, tmp_path, SETTINGS[setting], tree=with_everything())
    for waits in steps:
        assert_only_the_overflow_is_waited_for(waits, setting)


def assert_only_the_overflow_is_waited_for(waits: dict[str, int], setting: str) -> None:
    if not setting.startswith("float16"):
        assert waits == {}
        return
    assert all(where.endswith(" step") for where in waits), waits
    assert sum(count for where, count in waits.items() if where.startswith("copy to host")) == 1
    assert sum(waits.values()) == 3


def compiled() -> dict:
    tree = with_everything()
    del tree["DistributedStrategy"]
    tree["Global"]["to_static"] = True
    return tree


def assert_only_the_executor_waits(waits: dict[str, int]) -> None:
    """Paddle's, once for the forward and once for the backward of a block, in each micro-batch."""
    tree = compiled()
    runs = tree["Model"]["depth"] * tree["Global"]["accum_steps"]
    where = {place.rsplit(maxsplit=1)[-1]: count for place, count in waits.items()}
    assert where == {"forward_features": runs, "backward": runs}
    assert all(place.startswith("wait for a stream") for place in waits)


def test_compiled_blocks_wait_in_paddles_executor_alone(monkeypatch, tmp_path):
    """Of that plsc decides nothing."""
    for waits in waits_per_step(monkeypatch, tmp_path, None, tree=compiled()):
        assert_only_the_executor_waits(waits)


# -- two devices --------------------------------------------------------------------------

OVER_TWO = ("float32", "float16 O2", "bfloat16 O1")
UNSHARDED = 0


@pytest.fixture(scope="module")
def over_two(tmp_path_factory, accelerator):
    """The folder with all runs of two processes, made in one launch; counted.py writes what is counted."""
    folder = tmp_path_factory.mktemp("two")
    trees = {(stage, setting): with_everything() for stage in (UNSHARDED, *STAGES) for setting in OVER_TWO}
    trees |= {(stage, "compiled"): compiled() for stage in (1, 2)}
    for (stage, setting), tree in trees.items():
        tree["Global"] |= {**QUIET, "imports": ["tests.amp.counted"], "device": build.DEVICE}
        tree["Global"]["output_dir"] = str(folder / f"{stage} {setting}")
        tree["DataLoader"]["Train"]["sampler"]["batch_size"] //= 2
        if stage:
            tree["DistributedStrategy"] = {**tree.get("DistributedStrategy", {}), "sharding": {"stage": stage}}
        if SETTINGS.get(setting):
            tree["FP16"] = SETTINGS[setting]
    launched(folder, [{"train": tree} for tree in trees.values()])
    return folder


def waits_over_two(folder, stage: int, setting: str) -> list[dict[str, int]]:
    """Of each process's updates that are not logged."""
    waits = []
    for rank in (0, 1):
        lines = (folder / f"{stage} {setting}" / f"waits-{rank}.jsonl").read_text().splitlines()
        assert len(lines) == STEPS
        waits += [json.loads(line) for line in lines[BETWEEN]]
    return waits


@pytest.mark.distributed
@pytest.mark.parametrize("setting", OVER_TWO)
@pytest.mark.parametrize("stage", (UNSHARDED, *STAGES))
def test_travelling_gradients_and_weights_are_not_waited_for(over_two, stage, setting):
    """By the host: streams wait for what travels. In float16 the processes agree on an overflow before it is read."""
    for waits in waits_over_two(over_two, stage, setting):
        assert_only_the_overflow_is_waited_for(waits, setting)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", (1, 2))
def test_compiled_blocks_wait_as_often_where_they_are_sharded(over_two, stage):
    for waits in waits_over_two(over_two, stage, "compiled"):
        assert_only_the_executor_waits(waits)


# -- one device ---------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["float32", "float16 O1", "float16 O2"])
def test_kernels_of_the_update_take_many_arrays(setting, monkeypatch, tmp_path):
    """Two groups, with weight decay and without. Half-precision weights are updated one by one."""
    tree = digits(STEPS)
    for counts in per_step(monkeypatch, tmp_path, SETTINGS[setting], kernels, tree):
        at_once = setting != "float16 O2"
        assert counts.get("fused_adam float32", 0) == (2 if at_once else 0)
        assert (counts.get("adamw float32", 0) + counts.get("adamw float16", 0) == 0) is at_once
        # clipping, and in float16 the loss scale
        assert counts["check_finite_and_unscale float32"] == (1 if setting == "float32" else 2)
        assert counts["squared_l2_norm float32"] == arrays_of(tree)


def arrays_of(tree: dict) -> int:
    return len(plsc.create_model(**tree["Model"]).parameters())


def test_an_injected_wait_is_counted(monkeypatch, tmp_path):
    """The tests above fail where anything reads from the device."""
    watch = FiniteGuard.watch

    def curious(self, step, loss, norm=None):
        loss.item()
        watch(self, step, loss, norm)

    monkeypatch.setattr(FiniteGuard, "watch", curious)
    for waits in waits_per_step(monkeypatch, tmp_path, None):
        assert sorted(where.split(" at ")[0] for where in waits) == ["copy to host", "wait for a stream"]
        assert all(where.endswith(" curious") for where in waits)


@pytest.mark.parametrize("setting", ["float32", "float16 O2"])
def test_the_next_batch_is_copied_while_the_device_computes(setting, monkeypatch, tmp_path):
    """By the order in which things are queued."""
    for notes in per_step(monkeypatch, tmp_path, SETTINGS[setting], events):
        places = {}
        for place, what in enumerate(notes):
            places.setdefault(what, []).append(place)
        (copying,) = {what for what in places if what.startswith("copy to device on")}
        stream = copying.removeprefix("copy to device on ")
        assert stream.startswith("stream ")  # and not the one that computes
        first, last = min(places[copying]), max(places[copying])
        computed = [place for what, at in places.items() if what.startswith("kernel") for place in at]
        updating = ("kernel adamw", "kernel fused_adam")
        of_update = min(place for what, at in places.items() if what.startswith(updating) for place in at)
        (finished,) = [at[0] for what, at in places.items() if what.startswith("the compute stream waits")]
        # this batch: the device waits for its copy, then it is normalised, then its memory is free again
        assert finished < min(computed)
        (release,) = [what for what in places if what.startswith("event ") and what.endswith("on the compute stream")]
        (after_release,) = [what for what in places if what.startswith(f"{stream} waits for event ")]
        assert after_release.split()[-1] == release.split()[1]
        assert min(computed) < places[release][0] < places[after_release][0] < first
        # the next one: queued after this one's backward and before its update, for which float16 waits
        assert sum(place < first for place in computed) > len(computed) / 2
        assert last < of_update
        waited = [at[0] for what, at in places.items() if what.startswith(("wait for", "copy to host"))]
        assert all(last < place for place in waited)


# -- the input by itself ------------------------------------------------------------------


def arrays(seed: int, rows: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (rows, 5, 6, 3), dtype=np.uint8), "label": rng.integers(0, 9, rows)}


def is_batch(batch, of: dict[str, np.ndarray]) -> bool:
    image = (of["image"].transpose(0, 3, 1, 2) / 255.0).astype("float32")
    return np.allclose(batch["image"].numpy(), image, atol=1e-6) and np.array_equal(batch["label"].numpy(), of["label"])


def test_batches_arrive_whole():
    """Though the host's arrays are used again at once, the copies are late, and batches have other sizes."""
    to_device = DeviceInput()
    kept = []
    for seed, rows in enumerate([4, 4, 4, 7, 7, 2, 4]):
        given = arrays(seed, rows)
        to_device.start(given)
        for array in given.values():
            array[...] = 0
        kept.append((to_device.finish(), arrays(seed, rows)))
    assert all(is_batch(batch, expected) for batch, expected in kept)


def test_the_device_notices_a_batch_used_before_its_copy(monkeypatch):
    monkeypatch.setattr(CopiesAhead, "await_copy", lambda self: None)
    assert not is_batch(DeviceInput()(arrays(0)), arrays(0))


def test_the_device_notices_arrays_used_again_before_their_copy(monkeypatch):
    """As they would be without a staged copy."""
    to_tensor = paddle.to_tensor

    def shared(array, place=None, **rest):
        return to_tensor(array, place=place, **rest) if place is None else paddle.utils.dlpack.from_dlpack(array)

    given = arrays(0)
    to_device = DeviceInput()
    monkeypatch.setattr(paddle, "to_tensor", shared)
    to_device.start(given)
    monkeypatch.undo()
    given["image"][...] = 0
    assert not is_batch(to_device.finish(), arrays(0))


def test_small_arrays_stay_until_they_are_copied():
    """More of them than are kept, on a stream whose copies are late."""
    given = [np.full([1000], number, "float32") for number in range(200)]
    paddle.ones([1])  # the first stream is that which computes
    late = paddle.device.Stream()
    with paddle.device.stream_guard(late):
        copies = [on_device(array) for array in given]
    late.synchronize()
    for copy, array in zip(copies, given, strict=True):
        np.testing.assert_array_equal(copy.numpy(), array)
