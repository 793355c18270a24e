"""Optimizer state, gradients and weights spread over processes: the same run, less memory, checkpoints for all."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

import plsc
from plsc.cli import main
from plsc.config import load
from plsc.engine import checkpoint
from plsc.engine.distributed import World
from plsc.engine.sharding import Sharding, check_sharding, largest_share, owners
from plsc.errors import ConfigError
from plsc.places import step_name
from plsc.weights import read
from tests.helpers import launched, metrics, stopped, tiny_digits, write_config

STAGES = (1, 2, 3)
STEPS = 20
PARTS = ("model", "optimizer", "ema")


def recipe(processes: int, sharding: dict | None = None, **strategy) -> dict:
    """All that meets sharded gradients and weights: clipping, averages, layer decay, micro-batches, random draws."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": STEPS, "accum_steps": 2, "max_num_latest_checkpoint": -1}
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 10, "eval_unit": "step"}
    tree["Model"] |= {"drop_rate": 0.1, "drop_path_rate": 0.2}
    # with Adam's own epsilon the gradient of keys' biases, which is 0 but for rounding, would move them
    tree["Optimizer"] |= {"layer_decay": 0.8, "epsilon": 1e-4}
    tree["Optimizer"]["grad_clip"]["clip_norm"] = 0.5  # below most norms
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 32 // processes
    tree["DataLoader"]["Eval"]["dataset"]["slice"] = "[:64]"
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    tree["DistributedStrategy"] = {**({} if sharding is None else {"sharding": sharding}), **strategy}
    return tree


def calm(processes: int, sharding: dict | None = None) -> dict:
    """Twelve updates that draw nothing by process, so that they are the same in any number of processes."""
    tree = recipe(processes, sharding)
    tree["Global"] |= {"max_train_step": 12, "eval_during_train": False, "save_interval": 8, "save_unit": "step"}
    tree["Model"] |= {"drop_rate": 0.0, "drop_path_rate": 0.0}
    tree["Optimizer"]["freeze"] = ["patch_embed.*", "blocks.0.norm1.*"]
    return tree


def plain(**settings) -> dict:
    """Stage 2 by Paddle's own layers, which compiled blocks keep: dropout of the CPU's draws other numbers."""
    tree = recipe(2, {"stage": 2})
    tree["Global"] |= {"cpu_forms": False, "max_train_step": 10, **settings}
    return tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with all runs of two processes, made in one launch."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [("whole", recipe(2))]
    for stage in STAGES:
        jobs.append((f"stage {stage}", recipe(2, {"stage": stage}, **({"recompute": {}} if stage == 3 else {}))))
    jobs += [("plain", plain()), ("compiled", plain(to_static=True))]
    jobs += [("broken", stopped(recipe(2, {"stage": 3}), step)) for step in (8, 12)]
    jobs += [("straight", stopped(recipe(2, {"stage": 3}), 12))]
    jobs += [("calm", calm(2)), ("calm 2", stopped(calm(2, {"stage": 2}), 8))]
    launched(folder, jobs, 2)
    return folder


def latest(run: Path) -> checkpoint.Saved:
    return checkpoint.read(run)


def assert_same_course(run: Path, whole: Path, bound: float = 1e-5) -> None:
    for kind in ("train", "eval"):
        one, other = metrics(run, kind), metrics(whole, kind)
        assert len(one) == len(other) > 0
        for name in ("loss", "grad_norm") if kind == "train" else ("loss",):
            np.testing.assert_allclose([r[name] for r in one], [r[name] for r in other], rtol=bound)


def assert_close(run: Path, whole: Path, bound: float = 1e-5) -> None:
    """The arrays of two runs' latest checkpoints."""
    a, b = latest(run).parts, latest(whole).parts
    for part in PARTS:
        assert a[part].keys() == b[part].keys()
        for name in a[part]:
            np.testing.assert_allclose(a[part][name], b[part][name], rtol=bound, atol=bound, err_msg=f"{part} {name}")


def assert_bit_equal(run: Path, other: Path) -> None:
    a, b = latest(run).parts, latest(other).parts
    for part in PARTS:
        assert a[part].keys() == b[part].keys()
        for name in a[part]:
            assert np.asarray(a[part][name]).tobytes() == np.asarray(b[part][name]).tobytes(), f"{part} {name}"


# -- who owns what ------------------------------------------------------------------------


def test_every_process_owns_about_as_much():
    sizes = {f"{i}.{kind}": n for i in range(40) for kind, n in (("qkv", 3000), ("fc1", 4000), ("bias", 7))}
    for count in (2, 3, 8, 32):
        dealt = owners(sizes, count)
        assert dealt.keys() == sizes.keys()
        assert set(dealt.values()) == set(range(count))
        assert largest_share(sizes, count) <= sum(sizes.values()) / count + max(sizes.values())
    assert owners(sizes, 8) == owners(dict(reversed(sizes.items())), 8)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_the_course_is_that_of_data_parallel_training(runs, stage):
    """Losses, norms and evaluations of twenty updates, raw and averaged weights, and all state at their end."""
    assert_same_course(runs / f"stage {stage}", runs / "whole")
    assert_close(runs / f"stage {stage}", runs / "whole")


@pytest.mark.distributed
def test_gradients_of_compiled_blocks_are_sharded(runs):
    """Global.to_static with stage 2: they leave backward block by block as in dygraph, with the same random draws."""
    assert_same_course(runs / "compiled", runs / "plain")
    assert_close(runs / "compiled", runs / "plain")


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_each_process_keeps_half_of_the_optimizer(runs, stage):
    """Measured by the log, and by what each process saved."""
    log = (runs / f"stage {stage}" / "train.log").read_text()
    assert f"sharding: stage {stage} over 2 processes" in log
    [record] = [r for r in metrics(runs / f"stage {stage}") if r["step"] == STEPS]
    folder = runs / f"stage {stage}" / "checkpoints" / step_name(STEPS)
    saved = sum(a.nbytes for a in latest(runs / "whole").parts["optimizer"].values())
    assert 0.5 * saved <= record["optimizer_state_bytes"] < 0.55 * saved
    for part in PARTS:
        sizes = [(folder / f"{part}-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2)]
        assert max(sizes) < 1.2 * min(sizes)
    assert "optimizer_state_bytes" not in metrics(runs / "whole")[-1]


def test_copies_measure_one_norm():
    """Over all processes at once: sums of two groups may differ in their last bits, and their weights with them."""
    sharding = object.__new__(Sharding)
    sharding.degree, sharding._world = 2, World(size=6)
    sharding._world.all_reduce = lambda tensor: tensor.scale_(6.0)
    assert sharding.copies == 3
    assert sharding.total(paddle.to_tensor([2.5])).item() == pytest.approx(5.0)


# -- checkpoints --------------------------------------------------------------------------


@pytest.mark.distributed
def test_a_resumed_run_ends_bit_equal(runs):
    """tests/amp and `make test-storm` have the other stages."""
    straight, broken = runs / "straight", runs / "broken"
    assert [r["step"] for r in metrics(broken)] == list(range(1, 13))
    assert [r["loss"] for r in metrics(broken)] == [r["loss"] for r in metrics(straight)]
    assert_bit_equal(broken, straight)


@pytest.mark.distributed
def test_one_process_goes_on_where_two_shared(runs, tmp_path):
    """And writes whole files again."""
    tree, begun = calm(1, {"stage": 1}), runs / "calm 2" / "checkpoints" / step_name(8)
    tree["Global"] |= {"output_dir": str(tmp_path / "run"), "checkpoint": str(begun)}
    plsc.train(plsc.load_config(tree))
    run, whole = metrics(tmp_path / "run"), metrics(runs / "calm")[8:]
    assert [r["step"] for r in run] == [9, 10, 11, 12]
    np.testing.assert_allclose([r["loss"] for r in run], [r["loss"] for r in whole], rtol=1e-5)
    assert_close(tmp_path / "run", runs / "calm")
    files = {file.name for file in (tmp_path / "run" / "checkpoints" / step_name(12)).iterdir()}
    assert {f"{part}.safetensors" for part in PARTS} <= files


@pytest.mark.long
@pytest.mark.distributed
def test_four_processes_and_groups_of_two(runs, tmp_path):
    """The courses of all stages, and runs that go on from whole checkpoints and from those of two processes."""
    jobs = [("whole", recipe(4))]
    for stage in STAGES:
        jobs.append((f"stage {stage}", recipe(4, {"stage": stage})))
        jobs.append((f"groups {stage}", recipe(4, {"stage": stage, "degree": 2})))
    begun = {"of two": runs / "calm 2", "of one": runs / "calm"}
    for name, run in begun.items():
        for stage in (1, 3):
            tree = calm(4, {"stage": stage})
            tree["Global"] |= {"checkpoint": str(run / "checkpoints" / step_name(8)), "resume": None}
            jobs.append((f"{name} {stage}", tree))
    launched(tmp_path, jobs, 4)
    for stage in STAGES:
        for name in (f"stage {stage}", f"groups {stage}"):
            assert_same_course(tmp_path / name, tmp_path / "whole")
            assert_close(tmp_path / name, tmp_path / "whole")
        names = {file.name for file in (tmp_path / f"groups {stage}" / "checkpoints" / step_name(STEPS)).iterdir()}
        assert len([name for name in names if name.startswith("optimizer-")]) == 2, "the copies write nothing"
    for name in begun:
        for stage in (1, 3):
            assert_close(tmp_path / f"{name} {stage}", runs / "calm")


@pytest.mark.distributed
def test_what_reads_weights_reads_shares(runs, tmp_path):
    run, whole, picture = runs / "stage 2", runs / "whole", tmp_path / "grey.png"
    cv2.imwrite(str(picture), np.arange(64, dtype=np.uint8).reshape(8, 8))
    for weights in ("model", "ema"):
        source, other = read(run, weights), read(whole, weights)
        assert source.layout == "plsc"
        assert source.card == other.card
        assert source.tensors.keys() == other.tensors.keys()
    figures = [plsc.evaluate(path, ema=True) for path in (run, whole)]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-5)
    for name, arguments in {
        "convert": ["convert", run, "--to", "safetensors", "--output", tmp_path / "one.safetensors"],
        "export": ["export", "--weights", run, "--output", tmp_path / "export"],
        "predict": ["predict", "--weights", run, picture],
    }.items():
        assert main([str(argument) for argument in arguments]) == 0, name
    merged = read(tmp_path / "one.safetensors")
    for name, array in read(run).arrays.items():
        np.testing.assert_array_equal(merged.read(name), array)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "optimizer-00002-of-00002.safetensors").unlink(), "optimizer-00002-of-00002"),
        (lambda folder: os.truncate(folder / "model-00001-of-00002.safetensors", 100), "model-00001-of-00002"),
        (lambda folder: (folder / "ema.safetensors.index.json").unlink(), "ema.safetensors"),
        (lambda folder: (folder / "checksums.json").unlink(), "checksums.json"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"pos_embed": "../outside.safetensors"}})
            ),
            "model.safetensors.index.json",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"nobody": "model-00001-of-00002.safetensors"}})
            ),
            "model.safetensors.index.json",
        ),
    ],
    ids=["a share is missing", "a share is cut", "no index", "no checksums", "outside", "an array is missing"],
)
def test_damaged_shares_are_refused(runs, tmp_path, damage, expected):
    folder = tmp_path / step_name(STEPS)
    shutil.copytree(runs / "stage 1" / "checkpoints" / step_name(STEPS), folder)
    damage(folder)
    for verify in (True, False):
        if expected == "checksums.json" and not verify:
            continue
        with pytest.raises(plsc.CheckpointError, match=expected):
            checkpoint.read(folder, verify=verify)


# -- what cannot be -----------------------------------------------------------------------


def config_of(tmp_path, sharding, **strategy):
    return load(str(write_config(tmp_path / "c.yaml", recipe(1, sharding, **strategy))))


def test_degrees_that_do_not_fit_are_refused(tmp_path):
    config = config_of(tmp_path, {"stage": 2, "degree": 3})
    with pytest.raises(ConfigError, match=r"sharding\.degree: 3 does not divide the run's 4 processes"):
        check_sharding(config, World(size=4))
    check_sharding(config, World(size=6))
    check_sharding(config, World(size=1))
    with pytest.raises(ConfigError, match="2 trained parameters cannot be spread over 4"):
        Sharding(1, 4, paddle.nn.Linear(2, 2), World(size=4))


def test_paddle_2_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("plsc.engine.sharding.IS_PADDLE_2", True)
    with pytest.raises(ConfigError, match=r"DistributedStrategy\.sharding.*needs Paddle 3"):
        check_sharding(config_of(tmp_path, {}), World(size=2))


def test_plscs_name(tmp_path):
    assert config_of(tmp_path, None, data_sharding=True).DistributedStrategy.sharding.stage == 1
    assert config_of(tmp_path, None, data_sharding=False).DistributedStrategy.sharding is None
    assert config_of(tmp_path, {}).DistributedStrategy.sharding.degree is None
    assert config_of(tmp_path, {"stage": 3}).DistributedStrategy.sharding.stage == 3
    with pytest.raises(ConfigError, match="stage 3"):
        load(str(tmp_path / "c.yaml"), ["Global.to_static=True"])
    for wrong in ({"stage": 4}, {"degree": 1}, {"degree": 0}):
        with pytest.raises(ConfigError, match="sharding"):
            config_of(tmp_path, wrong)
    with pytest.raises(ConfigError, match="keep one"):
        config_of(tmp_path, {"stage": 2}, data_sharding=True)
