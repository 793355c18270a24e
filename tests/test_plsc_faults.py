"""The faults of the older PLSC (commit bd0c824) and the tests that show that plsc does not have them.

"silent" is a wrong result that nothing reports, "crash" a crash on ordinary input, "safety" a danger
to checkpoints. Each line is: fault → tests. What no other file shows is tested below.

silent 1: unknown keys of YAML and of -o are ignored → test_broken_configs.py::test_reported_with_exit_code_2,
    test_config.py::test_several_problems_are_reported_together_each_on_a_line_with_its_place,
    test_config.py::test_problems_of_overrides_are_placed_at_them,
    test_plsc_faults.py::test_no_factory_swallows_unknown_arguments
silent 2: epsilon of AdamW has no effect; a key stands twice → test_config.py::test_epsilon_of_adamw_is_used_and_shown,
    test_compat_plsc.py::test_every_key_has_its_evident_meaning,
    test_plsc_faults.py::test_epsilon_reaches_the_update, test_config.py::test_duplicate_keys_name_both_lines
silent 3: a resumed run follows the checkpoint's schedule, at rate 0 past its end →
    test_training.py::test_continuing_with_more_epochs_follows_the_new_schedule
silent 4: a resumed run forgets the best metric → test_training.py::test_the_best_checkpoint_survives_a_resume
silent 5: finetune strips the head in evaluation too →
    test_checkpoint.py::test_finetune_resets_the_head_in_training_only
silent 6: weights that do not fit, or none, are only a warning →
    test_checkpoint.py::test_eval_refuses_weights_that_do_not_fit,
    test_checkpoint.py::test_eval_without_weights_is_refused,
    test_weights.py::test_strict_lists_what_does_not_fit,
    test_weights.py::test_a_file_that_has_nothing_for_the_model_is_an_error,
    test_checkpoint.py::test_resuming_another_model_is_refused
silent 7: one process never recomputes → test_plsc_faults.py::test_one_process_recomputes,
    test_training.py::test_recompute_changes_nothing_but_memory
silent 8: workers draw the same numbers every epoch, and as other ranks' workers →
    test_loader.py::test_augmentation_is_new_every_epoch,
    test_plsc_faults.py::test_random_streams_differ_by_sample_epoch_seed_and_process,
    test_plsc_faults.py::test_device_draws_differ_by_step_part_and_rank
silent 9: random crops reach out of the picture → test_plsc_faults.py::test_a_crop_stays_inside_the_picture,
    test_plsc_faults.py::test_a_crop_shows_no_pixel_that_the_picture_lacks
silent 10: clipping by parameter group, its norm in float16 →
    test_optim.py::test_clipping_is_global_over_parameter_groups,
    test_optim.py::test_half_precision_is_measured_in_float32,
    test_plsc_faults.py::test_the_norm_over_half_precision_parameters_does_not_overflow,
    test_plsc_faults.py::test_an_overflow_of_the_loss_scale_is_seen_in_the_norm
silent 11: evaluation's loss is one rank's; the averaged weights' metric is the raw weights' →
    test_checkpoint.py::test_eval_counts_every_sample_once_on_three_processes,
    test_checkpoint.py::test_eval_repeats_the_evaluation_of_training,
    test_plsc_faults.py::test_averaged_weights_are_recorded_as_such
silent 12: (loud) optimizer state hangs on how parameters are grouped on this device →
    test_optim.py::test_state_round_trip, test_plsc_faults.py::test_state_moves_between_groupings

crash 1: without a seed → test_plsc_faults.py::test_a_run_without_seed_is_that_of_seed_0
crash 2: with seed 0 → test_plsc_faults.py::test_a_run_without_seed_is_that_of_seed_0
crash 3: a run no longer than its warm-up → test_schedules.py::test_a_run_shorter_than_its_warmup_stays_in_it,
    test_plsc_faults.py::test_a_warmup_longer_than_the_run_is_warned_of
crash 4: TimmCosine without warm-up → test_schedules.py::test_timm_cosine_without_warmup
crash 5: a damaged picture hangs a loader without workers →
    test_loader.py::test_a_damaged_picture_stops_the_run_and_is_named
crash 6: with workers it is not named → test_loader.py::test_a_damaged_picture_stops_the_run_and_is_named,
    test_failures.py::test_processes_fail_together_with_the_first_error
crash 7: max_loss_scaling 2.**32 as documented → test_config.py::test_yaml_texts_that_are_numbers
crash 8: 1e-3 in a list → test_config.py::test_yaml_texts_that_are_numbers
crash 9: no LRScheduler (which plsc asks for by name) → test_broken_configs.py::test_reported_with_exit_code_2,
    test_plsc_faults.py::test_without_a_schedule_the_section_is_asked_for
crash 10: no Metric → test_plsc_faults.py::test_a_run_without_metric_is_evaluated
crash 11: two processes without DistributedStrategy → test_plsc_faults.py::test_two_processes_of_a_bare_configuration
crash 12: use_dali → test_config.py::test_keys_that_are_not_offered_are_refused_with_the_reason
crash 13: the profiler's option -p → test_plsc_faults.py::test_the_profiler_writes_a_trace,
    test_plsc_faults.py::test_wrong_profiler_options_are_refused,
    test_plsc_faults.py::test_a_profile_that_the_run_never_reaches_is_reported
crash 14: export of a configuration with O2 →
    test_plsc_faults.py::test_an_o2_configuration_is_exported
crash 15: an epoch's last batch that accum_steps does not divide →
    test_sampler.py::test_an_epoch_has_every_sample_and_completes_from_its_head,
    test_plsc_faults.py::test_the_last_batch_of_an_epoch_is_accumulated
crash 16: accum_steps that does not divide the batch, reported after all set-up →
    test_broken_configs.py::test_reported_with_exit_code_2
crash 17: names that do not exist, in branches nobody visited →
    test_plsc_faults.py::test_every_name_in_the_code_exists, test_plsc_faults.py::test_every_option_of_a_transform_works
crash 18: interpolation random → test_plsc_faults.py::test_random_interpolation_draws_both
crash 19: an argument of a named model as override →
    test_plsc_faults.py::test_every_named_model_takes_an_argument_by_override

safety 1: a kill while saving loses the only checkpoint →
    test_checkpoint.py::test_a_kill_at_any_moment_leaves_a_complete_latest,
    test_plsc_faults.py::test_a_stop_between_any_two_operations_of_saving,
    test_checkpoint.py::test_a_full_disk_leaves_no_half_checkpoint
safety 2: parts of an old and a new checkpoint mix →
    test_plsc_faults.py::test_a_stop_between_any_two_operations_of_saving,
    test_plsc_faults.py::test_going_back_to_an_earlier_checkpoint_replaces_the_later_ones
safety 3: all ranks write the same files → test_plsc_faults.py::test_another_rank_writes_nothing,
    test_plsc_faults.py::test_two_processes_of_a_bare_configuration
safety 4: the writing rank is chosen by its device number → test_plsc_faults.py::test_the_first_rank_is_reported_by_rank
safety 5: no saving and resuming within an epoch, no state of random numbers →
    test_training.py::test_a_resumed_run_ends_bit_equal,
    test_training.py::test_a_resumed_run_of_two_processes_ends_bit_equal
safety 6: max_train_step ends without saving → test_checkpoint.py::test_a_run_directory_holds_what_the_contract_says,
    test_plsc_faults.py::test_max_train_step_saves
safety 7: SIGTERM ends without saving → test_failures.py::test_a_signal_saves_and_the_run_continues
safety 8: two checkpoints within one second collide →
    test_checkpoint.py::test_retention_keeps_latest_best_and_as_many_as_asked
"""

import ast
import builtins
import dis
import importlib
import inspect
import itertools
import json
import logging
import os
import pkgutil
import re
import shutil
import sys
import types
import typing
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plsc as package
from plsc import build, components, environment, files, loading, predictor, registry
from plsc.checksums import SummedFolder
from plsc.cli import main
from plsc.config import load
from plsc.data.fetch import Fetcher
from plsc.data.sampler import DistributedBatchSampler
from plsc.data.transforms import RandCropImage, RandomHorizontalFlip
from plsc.data.transforms.base import DeviceTransform, InputStep
from plsc.engine import checkpoint, profiling
from plsc.engine.assembly import assemble
from plsc.engine.callbacks import Callbacks
from plsc.engine.checkpoint import Checkpoints, Description
from plsc.engine.distributed import World
from plsc.engine.loggers import loggers
from plsc.engine.trainer import Trainer, draw_seed
from plsc.errors import ConfigError
from plsc.optim import GradientClip
from plsc.places import step_name
from tests.helpers import Part, log_texts, metrics, plsc, tiny_digits, write_config

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture
def logged():
    with log_texts(logging.INFO) as texts:
        yield texts


def small(steps: int = 4, run: str = "run", **globals_) -> dict:
    """tiny_digits of a few updates into the working directory; no part of it is shared with another."""
    tree = json.loads(json.dumps(tiny_digits()))
    tree["Global"] |= {"max_train_step": steps, "output_dir": run, **globals_}
    return tree


def trainer(tree: dict, world: World | None = None) -> Trainer:
    config, world = load(str(write_config(Path("run.yaml"), tree))), world or World()
    return assemble(config, world, Callbacks(loggers(config), is_first=world.is_first))


def losses(run) -> list[float]:
    return [record["loss"] for record in metrics(run)]


def latest(run="run") -> checkpoint.Saved:
    return checkpoint.read(run)


# -- the map ------------------------------------------------------------------------------


def faults() -> dict[str, list[tuple[str, str]]]:
    """Label → (file, test) of each line of the docstring's map."""
    collected, label = {}, None
    for line in __doc__.splitlines():
        start = re.match(r"(silent|crash|safety) \d+(?=: )", line)
        label = start.group() if start else label if line.startswith("    ") else None
        if label:
            collected.setdefault(label, []).extend(re.findall(r"(test_\w+\.py)::(test_\w+)", line))
    return collected


def test_the_map_names_tests_that_exist():
    """Every fault of the list has its line, every line a test that is there, every test here a line."""
    counts = {"silent": 12, "crash": 19, "safety": 8}
    assert list(faults()) == [f"{kind} {i}" for kind, count in counts.items() for i in range(1, count + 1)]
    folder, defined = Path(__file__).parent, {}
    for file in {file for tests in faults().values() for file, _ in tests}:
        nodes = ast.parse((folder / file).read_text()).body
        defined[file] = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for label, tests in faults().items():
        assert tests, f"{label} has no test"
        assert not [f"{file}::{name}" for file, name in tests if name not in defined[file]], label
    here = Path(__file__).name
    named = {name for tests in faults().values() for file, name in tests if file == here}
    assert {n for n in defined[here] if n.startswith("test_")} - named == {"test_the_map_names_tests_that_exist"}


# -- silent wrong results -----------------------------------------------------------------

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, registry.Registry)}


def test_no_factory_swallows_unknown_arguments():
    """No registered factory, as the configuration sees it, has *args or **kwargs for a typing error to end in."""
    components.register_all()
    assert len(REGISTRIES) == 10 and all(list(r) for r in REGISTRIES.values())
    for kind, known in REGISTRIES.items():
        for name in known:
            kinds = {p.kind for p in known.get(name).parameters().values()}
            open_ended = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
            assert not kinds & open_ended, f"{kind} {name}"


@pytest.mark.parametrize("key", ["epsilon", "eps"])
def test_epsilon_reaches_the_update(key):
    """The first update of AdamW is lr · g / (|g| + epsilon): at epsilon 1 half of that at 1e-8 where g is 1."""
    moved = {}
    for epsilon in (1e-8, 1.0):
        tree = small()
        tree["Optimizer"] = {"name": "AdamW", key: epsilon}
        config = load(str(write_config(Path("run.yaml"), tree)))
        model = build.model(config)
        update = build.optimizer(config, model, multi_precision=False)
        before = model.norm.bias.numpy()
        model.norm.bias.sum().backward()
        update.set_lr(0.1)
        update.paddle_optimizer.step()
        moved[epsilon] = before - model.norm.bias.numpy()
    np.testing.assert_allclose(moved[1e-8], 0.1, rtol=1e-4)
    np.testing.assert_allclose(moved[1.0], 0.05, rtol=1e-4)


@pytest.mark.parametrize("interval", [None, 1, 2])
def test_one_process_recomputes(interval):
    """In one update each recomputed block runs twice, the others once."""
    tree = small()
    if interval:
        tree["DistributedStrategy"] = {"recompute": {"layerlist_interval": interval}}
    run = trainer(tree)
    calls = [0] * len(run.model.blocks)

    def counted(i, forward):
        def call(x):
            calls[i] += 1
            return forward(x)

        return call

    for i, block in enumerate(run.model.blocks):
        block.mlp.forward = counted(i, block.mlp.forward)
    run.advance(run.feed.loader.run(run.sampler.batches(0)))
    assert calls == {None: [1, 1], 1: [2, 2], 2: [2, 1]}[interval]


class Nothing:
    """A data set for a Fetcher whose samples nobody reads."""

    max_labels, class_names = 1, None

    def __len__(self):
        return 40


def test_random_streams_differ_by_sample_epoch_seed_and_process():
    """Every draw of two ranks, three epochs and three seeds has a random stream of its own."""
    streams, draws = set(), 0
    for seed in (0, 1, 7):
        fetcher = Fetcher(Nothing(), [], seed=seed, class_num=None)
        for rank in range(2):
            sampler = DistributedBatchSampler(4, False, True, size=40, seed=seed, rank=rank, world=2)
            for step in range(3 * sampler.steps_per_epoch):
                for draw in sampler.batch(step):
                    streams.add(tuple(fetcher.generator(draw).integers(0, 2**63, 2).tolist()))
                    draws += 1
    assert len(streams) == draws == 3 * 3 * 40


def test_device_draws_differ_by_step_part_and_rank():
    """Dropout's seeds over seeds, steps, micro-batches and ranks: all different, all that Paddle takes."""
    made = [draw_seed(*key) for key in itertools.product((0, 1, 2**32 - 1), range(20), range(4), range(8))]
    assert len(set(made)) == len(made)
    assert all(0 <= seed < 2**63 for seed in made)


sides = st.integers(1, 400)
shares = st.floats(0.001, 3.0)


@settings(max_examples=500, deadline=None)
@given(height=sides, width=sides, scale=st.tuples(shares, shares), ratio=st.tuples(shares, shares), seed=st.integers(0))
def test_a_crop_stays_inside_the_picture(height, width, scale, ratio, seed):
    """Whatever the picture's size and the crop's scale and ratio, its box has pixels and lies inside."""
    crop = RandCropImage(8, scale=tuple(sorted(scale)), ratio=tuple(sorted(ratio)))
    rng = np.random.default_rng(seed)
    for _ in range(5):
        top, left, h, w = crop.box(height, width, rng)
        assert h >= 1 and w >= 1
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_a_crop_shows_no_pixel_that_the_picture_lacks(backend):
    """PLSC's check: crops of at least 0.6 of a white picture of 40 pixels are white; the whole area is reached."""
    crop, rng = RandCropImage(32, scale=(0.6, 1.0), backend=backend), np.random.default_rng(0)
    white = np.full([40, 40, 3], 255, "uint8")
    assert all((crop(white, rng) == 255).all() for _ in range(2000))
    ends = [(top + h, left + w) for top, left, h, w in (crop.box(40, 40, rng) for _ in range(2000))]
    assert max(e[0] for e in ends) == max(e[1] for e in ends) == 40


def with_gradients(dtype: str, **values):
    """Parameters whose gradients are the given values, in a type."""
    return [
        (name, types.SimpleNamespace(grad=paddle.to_tensor(np.asarray(value, "float32")).astype(dtype)))
        for name, value in values.items()
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_norm_over_half_precision_parameters_does_not_overflow(dtype):
    """Squares, their sum in one parameter, and the sum over parameters, each above float16's 65504."""
    named = with_gradients(dtype, a=np.full([64, 64], 2048.0), b=np.full([64, 64], 2048.0), c=[512.0])
    norm = GradientClip()(named)
    assert norm.dtype == paddle.float32
    assert norm.item() == pytest.approx(np.sqrt(2 * 4096 * 2048.0**2 + 512.0**2), rel=1e-5)
    if dtype == "bfloat16":  # Paddle has no float16 multiplication on CPU
        GradientClip(clip_norm=1.0)(named)
        assert GradientClip()(named).item() == pytest.approx(1.0, rel=1e-2)


def test_an_overflow_of_the_loss_scale_is_seen_in_the_norm():
    """An infinite gradient, which the scaler skips, gives an infinite norm, and the next update is not touched."""
    clip = GradientClip(clip_norm=1.0)
    norm = clip(with_gradients("float32", a=[np.inf, 1.0], b=[3.0]))
    assert norm.item() == np.inf
    named = with_gradients("float32", a=[3.0, 0.0], b=[4.0])
    assert clip(named).item() == pytest.approx(5.0)
    np.testing.assert_allclose(named[1][1].grad.numpy(), 0.8, rtol=1e-5)


def test_averaged_weights_are_recorded_as_such(monkeypatch):
    """metrics.jsonl and VisualDL have both evaluations apart, each with its own numbers."""
    scalars = {}

    class LogWriter:
        def __init__(self, logdir):
            pass

        def add_scalar(self, tag, value, step):
            scalars[tag] = value

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=LogWriter))
    tree = small(6, eval_during_train=True, use_visualdl=True)
    tree["LRScheduler"] = {"learning_rate": 0.05}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    run = trainer(tree)
    run.fit()
    records = {record["weights"]: record for record in metrics("run", "eval")}
    truth = {"raw": run.evaluator.run(run.model)}
    with run.average.applied(run.model) as averaged:
        truth["ema"] = run.evaluator.run(averaged)
    assert truth["raw"]["loss"] != pytest.approx(truth["ema"]["loss"], rel=1e-4)
    for weights, prefix in (("raw", "eval"), ("ema", "eval_ema")):
        for name, value in truth[weights].items():
            assert records[weights][name] == pytest.approx(value, rel=1e-6)
            assert scalars[f"{prefix}/{name}"] == pytest.approx(value, rel=1e-6)


def test_state_moves_between_groupings():
    """State saved under one grouping of the parameters continues under another, bit for bit."""
    grouped = small(2)
    grouped["Optimizer"] |= {"no_weight_decay": ["bias", "norm", "token", "position"], "layer_decay": 0.7}
    first = trainer(grouped)
    first.fit()
    single = small(4, run="other", checkpoint="run")
    single["Optimizer"] |= {"no_weight_decay": []}
    second = trainer(single)
    state, again = first.optimizer.state_dict(), second.optimizer.state_dict()
    groups = [len(run.optimizer.paddle_optimizer._param_groups) for run in (first, second)]
    assert groups[0] > 1 and groups[1] == 1
    assert {key.split("|")[0] for key in state} == {name for name, _ in first.model.named_parameters()}
    assert state.keys() == again.keys()
    assert all(np.array_equal(again[key], array) for key, array in state.items())
    second.fit()


# -- crashes on ordinary input ------------------------------------------------------------


def test_a_run_without_seed_is_that_of_seed_0():
    """No seed and seed 0, with a loader's process, train alike; seed 1 trains otherwise."""
    seen = {}
    for name, seed in (("none", None), ("zero", 0), ("one", 1)):
        tree = small(3, run=name)
        tree["DataLoader"]["Train"]["loader"]["num_workers"] = 1
        del tree["Global"]["seed"]
        if seed is not None:
            tree["Global"]["seed"] = seed
        assert main(["train", "-c", str(write_config(Path("run.yaml"), tree))]) == 0
        seen[name] = losses(name)
    assert len(seen["none"]) == 3
    assert seen["none"] == seen["zero"] != seen["one"]


@pytest.mark.parametrize(
    ("schedule", "problem", "remedy"),
    [
        ({"name": "ViTLRScheduler", "warmup_steps": 10_000}, "warmup_steps: is 10000, but", "set it to 1,"),
        ({"name": "TimmCosine", "warmup_epoch": 5}, "warmup_epoch: is 5.0, but", "set it to 0,"),
        ({"name": "Cosine", "warmup_steps": 4}, "warmup_steps: is 4, but", "set it to 1,"),
    ],
    ids=["ViTLRScheduler", "TimmCosine", "Cosine"],
)
def test_a_warmup_longer_than_the_run_is_warned_of(logged, schedule, problem, remedy):
    """A run of 4 updates ends inside its warm-up, rising, with one warning: both lengths, the key, and a value."""
    schedule = {**schedule, "learning_rate": 0.01}
    tree = small(4)
    del tree["Global"]["epochs"]
    tree["LRScheduler"] = schedule
    trainer(tree).fit()
    rates = [record["lr"] for record in metrics("run")]
    assert len(rates) == 4 and rates == sorted(rates) and rates[-1] < 0.01
    [warning] = [text for text in logged if "the run of 4 updates is no longer than the warm-up of" in text]
    assert f"LRScheduler.{problem}" in warning and remedy in warning
    schedule[problem.partition(":")[0]] = int(re.sub(r"\D", "", remedy))
    logged.clear()
    build.schedule(load(tree), 4, 1)
    assert not logged, "with the value that the warning gives"


@pytest.mark.parametrize("value", ["absent", None])
def test_without_a_schedule_the_section_is_asked_for(capsys, value):
    """Exit code 2 and the section's name, no traceback."""
    tree = small()
    del tree["LRScheduler"]
    if value != "absent":
        tree["LRScheduler"] = value
    assert main(["train", "-c", str(write_config(Path("run.yaml"), tree))]) == 2
    error = capsys.readouterr().err
    assert "LRScheduler" in error and "Traceback" not in error


@pytest.mark.parametrize("metric", ["absent", {}, {"Train": [{"TopkAcc": {}}]}, {"Eval": []}], ids=str)
def test_a_run_without_metric_is_evaluated(metric):
    """Evaluation then measures top-1 and top-5, and the best checkpoint is known."""
    tree = small(2, eval_during_train=True)
    del tree["Metric"], tree["Loss"]["Eval"]
    if metric != "absent":
        tree["Metric"] = metric
    trainer(tree).fit()
    [record] = metrics("run", "eval")
    assert 0.0 <= record["top1"] <= record["top5"] <= 1.0 and record["samples"] == 360
    assert Checkpoints(Path("run") / "checkpoints").best_record()["metric"] == "top1"
    assert ("top1" in metrics("run")[0]) == ("Train" in metric)


@pytest.mark.distributed
def test_two_processes_of_a_bare_configuration(tmp_path):
    """No DistributedStrategy, Metric or seed: the same run as of one process; the first one alone saves."""
    tree = small(6)
    assert "DistributedStrategy" not in tree
    del tree["Metric"], tree["Global"]["seed"]
    tree["Global"] |= {"save_interval": 2, "save_unit": "step", "max_num_latest_checkpoint": -1}
    config = write_config(tmp_path / "run.yaml", tree)
    plsc("train", "-c", config, cwd=tmp_path)
    two = ["-o", "Global.output_dir=two", "-o", "DataLoader.Train.sampler.batch_size=16"]
    done = plsc("train", "-c", config, *two, processes=2, cwd=tmp_path, log_dir=tmp_path / "log")
    np.testing.assert_allclose(losses("two"), losses("run"), rtol=1e-5)
    assert Checkpoints("two/checkpoints").steps() == [2, 4, 6]
    assert not list(Path("two").rglob(".writing*"))
    logs = {path.name: path.read_text() for path in Path("log").glob("workerlog.*")}
    assert [logs[f"workerlog.{rank}"].count("saved two/checkpoints") for rank in (0, 1)] == [3, 0], done.stdout


PROFILE = "batch_range=[2,4];state=CPU;sorted_key=max;tracer_option=Default;exit_on_finished={};profile_path=traces"


@pytest.mark.parametrize(("exit_on_finished", "last"), [("True", 4), ("false", 6)])
def test_the_profiler_writes_a_trace(tmp_path, exit_on_finished, last):
    """-p in PLSC's form: a table, a trace, and the run ends at the range's end as asked."""
    config = write_config(tmp_path / "run.yaml", small(6))
    done = plsc("train", "-c", config, "-p", PROFILE.format(exit_on_finished), cwd=tmp_path)
    [trace] = (tmp_path / "traces").glob("*.json")
    assert "matmul" in trace.read_text()
    assert "Operator Summary" in done.stdout
    assert metrics("run")[-1]["step"] == last
    assert latest().parts["progress"]["step"] == last


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ("batch_rnge=[1,2]", "batch_range"),
        ("batch_range", "batch_range"),
        ("batch_range=[4,2]", "batch_range"),
        ("batch_range=[2,2]", "batch_range"),
        ("batch_range=[-1,2]", "batch_range"),
        ("batch_range=[1]", "batch_range"),
        ("batch_range=3", "batch_range"),
        ("batch_range=[1.5,2.5]", "batch_range"),
        ("batch_range=[a,b]", "batch_range"),
        ("state=TPU", "state"),
        ("sorted_key=fastest", "sorted_key"),
        ("tracer_option=Everything", "tracer_option"),
        ("exit_on_finished=maybe", "exit_on_finished"),
        ("profile_path", "profile_path"),
    ],
)
def test_wrong_profiler_options_are_refused(options, key):
    """A ConfigError that names the key."""
    with pytest.raises(ConfigError, match=key):
        profiling.parse(options)


def test_a_profile_that_the_run_never_reaches_is_reported(logged):
    """batch_range after the run's end is refused or warned of, not passed over."""
    try:
        trainer(small(3, profiler_options="batch_range=[10,20]")).fit()
    except ConfigError as error:
        logged.append(str(error))
    assert any("batch_range" in text or "profile" in text for text in logged)


def test_an_o2_configuration_is_exported(tmp_path):
    """In PLSC's form of the command; the export computes what the trained model does."""
    tree = small(2)
    tree["FP16"] = {"level": "O2"}
    tree["Export"] = {"export_type": "paddle", "input_shape": [None, 1, 8, 8]}
    config = write_config(tmp_path / "run.yaml", tree)
    assert main(["train", "-c", str(config)]) == 0
    assert main(["export", "-c", str(config), "-o", "Global.pretrained_model=run"]) == 0
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype("float32")
    network = loading.load_model("run").network
    with paddle.no_grad():
        expected = network(paddle.to_tensor(images)).numpy()
    np.testing.assert_allclose(predictor.load_predictor("run/export").run(images), expected, atol=1e-4)


def test_the_last_batch_of_an_epoch_is_accumulated():
    """1437 digits leave 29 for the 45th batch of 32, completed: in 4 parts the same loss and norm as in one."""
    seen = []
    for parts in (1, 4):
        run = trainer(small(None, run=f"parts{parts}", accum_steps=parts))
        assert len(run.feed.data) == 44 * 32 + 29
        run.progress.step = run.progress.steps_per_epoch - 1
        assert run.progress.step == 44
        norm = run.advance(run.feed.loader.run(run.sampler.batches(run.progress.step)))
        assert run.progress.epoch == 1 and run.progress.step == 45
        seen.append((run.mean_loss.compute()["loss"], norm.item()))
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-5)


def modules():
    """Every module of plsc, imported, but the one that runs the command line."""
    for module in pkgutil.walk_packages(package.__path__, "plsc."):
        if not module.name.endswith("__main__"):
            yield importlib.import_module(module.name)


def globals_read(code: types.CodeType):
    """Names that functions inside a code object read from their module, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from ((i.argval, constant) for i in dis.get_instructions(constant) if i.opname == "LOAD_GLOBAL")
            yield from globals_read(constant)


def test_every_name_in_the_code_exists():
    """No function reads a name that neither its module nor Python has, in branches visited or not."""
    checked = 0
    for module in modules():
        code = compile(inspect.getsource(module) or "pass", module.__file__, "exec")
        known = vars(module).keys() | vars(builtins).keys()
        for name, where in globals_read(code):
            assert name in known, f"{module.__file__}:{where.co_firstlineno}: {name}"
            checked += 1
    assert checked > 1000


def choices(annotation) -> list:
    """The values that the Literals of an annotation admit."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in choices(part)]


def transforms_with_every_option():
    """(name, arguments): each transform of the registry with every combination of its choices."""
    components.register_all()
    required = {"ResizeImage": [{"size": 12}, {"resize_short": 12}], "CenterCropImage": [{"size": 12}]}
    required |= {"RandCropImage": [{"size": 12}, {"size": (12, 10)}]}
    required |= {name: [{"size": 12}] for name in ("RandomResizedCrop", "MAERandCropImage", "InceptionCrop")}
    required |= {name: [{"size": 12}, {"size": (10, 12)}] for name in ("Resize", "CenterCrop", "RandomCrop")}
    required |= {name: [{"degrees": 30}, {"degrees": (5, 30)}] for name in ("RandomRotation", "RandomAffine")}
    required |= {name: [{"transforms": [RandomHorizontalFlip()]}] for name in ("Compose", "RandomApply")}
    for name in registry.TRANSFORMS:
        options = {k: choices(p.annotation) for k, p in registry.TRANSFORMS.get(name).parameters().items()}
        options = {key: values for key, values in options.items() if values}
        for values in itertools.product(*options.values()):
            for fixed in required.get(name, [{}]):
                yield name, {**fixed, **dict(zip(options, values, strict=True))}


def test_every_option_of_a_transform_works():
    """Each works on pictures of three channels and one, or is refused when it is built."""
    worked, refused = 0, []
    for name, arguments in transforms_with_every_option():
        try:
            transform = registry.TRANSFORMS.get(name).build(arguments)
        except ConfigError:
            refused.append((arguments["backend"], arguments["interpolation"]))
            continue
        if isinstance(transform, (DeviceTransform, InputStep)):
            continue
        for channels, seed in itertools.product((1, 3), range(4)):
            image = np.random.default_rng(seed).integers(0, 256, (20, 24, channels)).astype("uint8")
            out = transform(image, np.random.default_rng(seed))
            assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == channels, (name, arguments)
        worked += 1
    assert worked > 30
    assert set(refused) == {("cv2", "box"), ("cv2", "hamming"), ("pil", "area")}


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_random_interpolation_draws_both(backend):
    """interpolation random gives now the bilinear, now the bicubic crop of the same box."""
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype("uint8")
    made = {k: RandCropImage(50, interpolation=k, backend=backend) for k in ("random", "bilinear", "bicubic")}
    drawn = set()
    for seed in range(20):
        crops = {k: crop(image, np.random.default_rng(seed)).tobytes() for k, crop in made.items()}
        assert crops["bilinear"] != crops["bicubic"]
        [same] = [k for k in ("bilinear", "bicubic") if crops[k] == crops["random"]]
        drawn.add(same)
    assert drawn == {"bilinear", "bicubic"}


def test_every_named_model_takes_an_argument_by_override():
    """-o Model.depth=1 over a model whose name says another depth."""
    components.register_all()
    tree = small()
    fields = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4, "in_chans": 1}
    for name in registry.MODELS:
        tree["Model"] = {"name": name, "class_num": 10}
        here = fields | ({"patch_size": 1} if name.startswith("R") else {})  # of a hybrid's feature map
        config = load(str(write_config(Path("run.yaml"), tree)), [f"Model.{k}={v}" for k, v in here.items()])
        model = build.model(config)
        assert len(model.blocks) == 1 and model.spec.embed_dim == 16, name


# -- checkpoints --------------------------------------------------------------------------


class Killed(BaseException):
    """What nobody catches, as a kill."""


class Kill:
    """Ends the process at the nth operation on files, those that write halfway through; none after it is done."""

    def __init__(self, monkeypatch, at: int):
        self.at, self.done = at, 0
        for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree"), (os, "replace")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))
        monkeypatch.setattr(files, "sync", self.counted(files.sync))
        for owner in (Path, SummedFolder):
            monkeypatch.setattr(owner, "write_text", self.halved_text(owner.write_text))
        monkeypatch.setattr(checkpoint, "write_safetensors", self.halved_arrays(checkpoint.write_safetensors))

    def due(self) -> bool:
        self.done += 1
        return self.done >= self.at

    def counted(self, function):
        def call(*args, **kwargs):
            if self.due():
                raise Killed
            return function(*args, **kwargs)

        return call

    def halved_text(self, write):
        def call(owner, *arguments, **kwargs):
            if self.due():
                *first, text = arguments
                write(owner, *first, text[: len(text) // 2], **kwargs)
                raise Killed
            return write(owner, *arguments, **kwargs)

        return call

    def halved_arrays(self, write):
        def call(arrays, file, metadata):
            if self.due():
                file.write(bytes(40))
                raise Killed
            write(arrays, file, metadata)

        return call


PARTS = ("model", "optimizer", "ema")


def save(checkpoints: Checkpoints, step: int) -> None:
    """As the trainer does after a best evaluation; every part holds the step."""
    parts = {part: Part(w=np.full([50], step, "float32")) for part in PARTS}
    description = Description(texts={"config.yaml": f"step: {step}\n"})
    checkpoints.save(step, {**parts, "progress": Part(step=step)}, description)
    checkpoints.point("best", step)
    checkpoints.prune()


def assert_of_one_step(path) -> int:
    saved = checkpoint.read(path)
    step = saved.parts["progress"]["step"]
    assert path.name == step_name(step)
    assert {float(v) for part in PARTS for v in saved.parts[part]["w"]} == {float(step)}
    assert (path / "config.yaml").read_text() == f"step: {step}\n"
    return step


def test_a_stop_between_any_two_operations_of_saving(tmp_path, monkeypatch):
    """Whenever it comes, latest and best are whole, of one step each, and the next save works."""
    seen = set()
    for at in itertools.count(1):
        checkpoints = Checkpoints(tmp_path / str(at))
        save(checkpoints, 1)
        with monkeypatch.context() as patch:
            kill = Kill(patch, at)
            try:
                save(checkpoints, 2)
            except Killed:
                stopped = True
            else:
                stopped = False
        seen.add((assert_of_one_step(checkpoints.find("latest")), assert_of_one_step(checkpoints.find("best"))))
        for step in checkpoints.steps():
            assert_of_one_step(checkpoints.folder / step_name(step))
        try:
            save(checkpoints, 3)
        except Exception as error:
            raise AssertionError(f"after a stop at operation {at} nothing can be saved: {error!r}") from error
        assert assert_of_one_step(checkpoints.find("latest")) == 3
        if not stopped:
            break
    assert kill.done == at - 1 > 15
    assert seen == {(1, 1), (2, 1), (2, 2)}


@pytest.mark.parametrize("by", ["resume", "checkpoint"])
def test_going_back_to_an_earlier_checkpoint_replaces_the_later_ones(by):
    """Resumed at step 2 with another rate, the run's step 4 is the one saved, not that of the first run."""
    often = {"save_interval": 2, "save_unit": "step", "max_num_latest_checkpoint": -1}
    trainer(small(4, **often)).fit()
    start = {"resume": "step-00000002"} if by == "resume" else {"checkpoint": "run/checkpoints/step-00000002"}
    tree = small(4, **often, **start)
    tree["LRScheduler"]["learning_rate"] = 0.02
    again = trainer(tree)
    assert again.progress.step == 2
    again.fit()
    saved = latest()
    assert saved.parts["progress"]["step"] == 4
    different = [n for n, p in again.model.named_parameters() if not np.array_equal(saved.parts["model"][n], p.numpy())]
    assert not different, "the checkpoint of step 4 is still the first run's"


def test_another_rank_writes_nothing():
    """A trainer that is not the first trains, evaluates and saves without touching the disk."""
    tree = small(2, eval_during_train=True, run="elsewhere")
    config = load(str(write_config(Path("run.yaml"), tree)))
    before = sorted(Path().rglob("*"))
    for rank in (1, 0):
        assert sorted(Path().rglob("*")) == before
        world = World(rank=rank)
        assemble(config, world, Callbacks(loggers(config), is_first=world.is_first)).fit()
    assert latest("elsewhere").parts["progress"]["step"] == 2


def test_the_first_rank_is_reported_by_rank(monkeypatch):
    """Not by the device's number: `--devices 3` has a first rank on GPU 3."""
    assert World(device="gpu:3", rank=0).is_first and World(device="gpu:3", rank=0, size=2).is_first
    assert not World(device="gpu:0", rank=1, size=2).is_first
    monkeypatch.setenv("FLAGS_selected_gpus", "3")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    assert environment.rank() == 0
    monkeypatch.setenv("FLAGS_selected_gpus", "0")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    assert environment.rank() == 1


def test_max_train_step_saves():
    """In the middle of an epoch, without any saving interval: all parts, of that very step."""
    tree = small(3, save_interval=0, epochs=5)
    tree["EMA"] = {"decay": 0.9}
    run = trainer(tree)
    run.fit()
    saved = latest()
    assert saved.parts["progress"]["step"] == 3 and set(saved.parts) >= set(PARTS)
    weights = dict(run.model.named_parameters())
    assert all(np.array_equal(saved.parts["model"][name], p.numpy()) for name, p in weights.items())
