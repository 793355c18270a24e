"""Values of the right type that no run can have: not finite, of weight 0, larger than the picture or the memory."""

import json
import logging
import math
import typing

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plsc
from plsc import components, environment, registry
from plsc.config import schema
from plsc.config.checker import component_fields
from plsc.data.transforms import NormalizeImage, RandomErasing, RandShift, ResizeImage
from plsc.data.transforms.base import DoesNotFit
from plsc.engine import capacity
from plsc.engine.distributed import World
from plsc.engine.precision import Precision
from plsc.errors import ConfigError, DataError
from plsc.losses import CELoss, WeightedSum
from plsc.signatures import validated
from tests.helpers import tiny_digits

pytestmark = pytest.mark.usefixtures("process_state")


def _takes_numbers(annotation) -> bool:
    return annotation is float or any(map(_takes_numbers, typing.get_args(annotation)))


def _number_keys():
    components.register_all()
    for kind in (r for r in vars(registry).values() if isinstance(r, registry.Registry)):
        for name in kind:
            for key, (annotation, _) in component_fields(kind, name).items():
                yield f"{name}.{key}", annotation
    for section in vars(schema).values():
        if isinstance(section, type) and issubclass(section, schema.Section):
            for key, field in section.model_fields.items():
                annotation = typing.Annotated[(field.annotation, *field.metadata, key)]
                yield f"{section.__name__}.{key}", annotation


def test_no_key_takes_a_number_that_is_not_finite():
    """Of all components and sections, alone and in lists and mappings."""
    checked = 0
    for name, annotation in _number_keys():
        if not _takes_numbers(annotation):
            continue
        for number in (math.nan, math.inf, -math.inf):
            for value in (number, (number,), (number,) * 2, (number,) * 3, (number,) * 4, {"a": number}):
                checked += 1
                with pytest.raises(ValueError):
                    print(name, validated(value, annotation, strict=True))
    assert checked > 1000


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: NormalizeImage(mean=[math.nan], std=[1.0]), "NormalizeImage.mean"),
        (lambda: NormalizeImage(scale=math.inf), "NormalizeImage.scale"),
        (lambda: NormalizeImage(scale=0.0), "NormalizeImage.scale"),
        (lambda: NormalizeImage(std=(1.0, math.inf, 1.0)), "NormalizeImage.std"),
        (lambda: RandomErasing(mean=(math.nan,)), "RandomErasing.mean"),
        (lambda: plsc.create_model("ViT_tiny_patch16_224", head_bias=math.nan), "head_bias"),
        (lambda: ResizeImage(size=10**6), "ResizeImage.size"),
        (lambda: WeightedSum([CELoss(weight=0.0), CELoss(weight=0.0)]), "nothing is learnt"),
    ],
    ids=["mean", "scale", "scale 0", "std", "erasing", "model", "size", "losses"],
)
def test_from_python_too(call, part):
    with pytest.raises(ConfigError, match=part):
        call()


def test_own_components_with_plain_annotations_are_held_to_finite_numbers():
    @registry.LOSSES.register()
    class OwnLossOfThisTest(CELoss):
        def __init__(self, factor: float = 1.0, name: str = "x"):
            super().__init__()

    try:
        with pytest.raises(ConfigError, match=r"OwnLossOfThisTest.factor: got nan; it should be finite"):
            OwnLossOfThisTest(factor=math.nan)
        OwnLossOfThisTest(factor=np.float32(2.0))
    finally:
        registry.LOSSES._entries.pop("OwnLossOfThisTest")


def test_a_shift_as_large_as_the_picture_names_the_picture():
    picture = np.zeros((8, 12, 1), np.uint8)
    assert RandShift(7)(picture, np.random.default_rng(0)).shape == picture.shape
    with pytest.raises(DoesNotFit, match="12x8 pixels are too few for a shift of 8"):
        RandShift(8)(picture, np.random.default_rng(0))


def test_a_long_and_narrow_picture_is_not_blown_up():
    """1 x 60,000 pixels would become 512 x 30,720,000, of 47 GB."""
    with pytest.raises(DataError, match="30720000x512 pixels"):
        ResizeImage(resize_short=512)(np.zeros((1, 60_000, 3), np.uint8), None)


# -- arbitrary values ----------------------------------------------------------------------------


def _paths(value, path=()):
    """The key paths of a tree, sections and leaves."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


EVERY_KEY = [path for path in _paths(tiny_digits()) if path]
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**30), 2**63, 1e-320, 0, -0.0]))
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["1/0", "2**9999", "(1,", "auto"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "CELoss", "weight", "topk", "x", ""]), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(EVERY_KEY), TREES), min_size=1, max_size=3))
def test_any_value_of_any_key_is_taken_or_refused_with_one_message(changes):
    """As plsc config does: a Config, or a ConfigError that names the place."""
    tree = json.loads(json.dumps(tiny_digits()))
    for path, value in changes:
        at = tree
        try:
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
        except (KeyError, TypeError, IndexError):
            continue  # an earlier change replaced the section
    try:
        plsc.load_config(tree)
    except ConfigError as error:
        assert "in the given dict" in str(error)


# -- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """A function that writes files of /proc and /sys; returns their root."""

    def write(groups: str = "", **limits) -> typing.Any:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text(
            "MemTotal:  1000 kB\nMemFree: 3 kB\nSwapTotal: 24 kB\nHugePages: 0\n"
        )
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
        for name, value in limits.items():
            file = tmp_path / "sys" / "fs" / "cgroup" / name.replace("__", ".").replace("_of_", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, 1000 * 1024),
        ("0::/\n", {"memory__max": "max"}, 1000 * 1024),
        ("0::/\n", {"memory__max": 500_000}, 500_000),
        ("0::/a/b\n", {"a_of_b_of_memory__max": "max", "a_of_memory__max": 400_000}, 400_000),
        ("0::/outside/of/it\n", {"memory__max": 300_000}, 300_000),
        ("4:memory:/job\n0::/\n", {"memory_of_job_of_memory__limit_in_bytes": 200_000}, 200_000),
        ("4:memory:/job\n", {"memory_of_memory__limit_in_bytes": 2**63 - 4096}, 1000 * 1024),
        ("1:cpu,cpuacct:/job\n", {"cpu_of_job_of_memory__max": 5}, 1000 * 1024),
    ],
)
def test_the_memory_of_a_machine_or_container(machine, groups, limits, expected):
    """Without its swap, in which no run could work."""
    assert environment.memory_limit(machine(groups, **limits)) == expected


def test_the_memory_of_a_machine_that_does_not_say(tmp_path):
    assert environment.memory_limit(tmp_path) is None


def _check(monkeypatch, gibibytes: float, batch_size: int, processes: int = 1, **changes):
    config = plsc.load_config("ViT_base_patch16_224_in1k_1n8c_dp_fp16o2", {"Global.device": "cpu", **changes})
    monkeypatch.setattr(environment, "memory_limit", lambda: int(gibibytes * 2**30))
    world = World(size=processes)
    capacity.check_memory(config, world, Precision.of(config, world), batch_size=batch_size)


def test_the_least_that_a_run_needs(monkeypatch):
    """ViT-B has 87 million parameters: 0.33 GiB each of weights and gradients, 0.65 of AdamW's state."""
    _check(monkeypatch, 1.35, 1)
    with pytest.raises(
        ConfigError, match=r"Model\.name: ViT_base_patch16_224 has 8[67],\d+,\d+ param.* 1\.3 GiB.*\(swap is not"
    ):
        _check(monkeypatch, 1.28, 1)
    _check(monkeypatch, 1.0, 1, **{"Optimizer.freeze": ["blocks.*"]})
    with pytest.raises(ConfigError, match=r"averages 0\.3"):
        _check(monkeypatch, 1.4, 1, EMA={})


def test_every_process_begins_with_the_whole_model(monkeypatch):
    """In float32, 0.32 GiB, though a 64th of it is kept; to a frozen model's weights no masters are added."""
    sharded = {"DistributedStrategy": {"sharding": {"stage": 3}}, "Global.accum_steps": 1}
    _check(monkeypatch, 0.35, 1, processes=64, **sharded)
    with pytest.raises(ConfigError, match=r"begins with all of them, built in float32: that needs 0\.3 GiB"):
        _check(monkeypatch, 0.3, 1, processes=64, **sharded)
    monkeypatch.setattr(Precision, "keeps_masters", True)
    frozen = {"Optimizer.freeze": ["blocks.*"]}
    _check(monkeypatch, 0.35, 1, **frozen)
    with pytest.raises(ConfigError, match=r"at least 0\.3 GiB"):
        _check(monkeypatch, 0.3, 1, **frozen)


def test_the_least_that_a_batch_needs(monkeypatch):
    """A picture keeps 197 x 768 x 12 x 8 numbers at least: 128 of them 6.9 GiB, in place of the gradients."""
    one = {"Global.accum_steps": 1}
    _check(monkeypatch, 8.0, 128, **one)
    with pytest.raises(ConfigError, match=r"batch_size: 128 pictures .* at least 7\.9 GiB .*activations of 128 pict"):
        _check(monkeypatch, 7.5, 128, **one)
    _check(monkeypatch, 7.5, 128, DistributedStrategy={"recompute": {}}, **one)
    _check(monkeypatch, 7.5, 128, **{"Global.accum_steps": 2})


def test_shipped_recipes_pass_on_what_they_are_made_for(monkeypatch):
    """Nothing that fits is refused: every recipe for one device's batch, in the 80 GiB of such a device."""
    from plsc.config.recipes import shipped_recipes

    for name in shipped_recipes():
        config = plsc.load_config(name)
        batch = config.DataLoader["Train"].sampler.arguments["batch_size"] if "Train" in config.DataLoader else None
        if batch and config.Model.arguments.get("class_num") != "auto":
            _check_config(monkeypatch, config, batch)


def _check_config(monkeypatch, config, batch):
    monkeypatch.setattr(environment, "memory_limit", lambda: 80 * 2**30)
    world = World()
    precision = Precision.of(config, world)
    precision.active = config.FP16 is not None and config.FP16.level != "O0"
    capacity.check_memory(config, world, precision, batch_size=batch)


# -- the best evaluation ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_that_is_not_finite_is_never_the_best(caplog, value):
    """Its accuracy is the highest; the log says why it is not taken."""

    @registry.LOSSES.register()
    class LossOfThisTest(CELoss):
        def __call__(self, logits, targets):
            return super().__call__(logits, targets) + (0.0 if len(evaluations) == 1 else value)

    evaluations = []

    class Count(plsc.Callback):
        def after_step(self, step, record):
            evaluations.append(step)

    tree = json.loads(json.dumps(tiny_digits()))
    tree["Global"] |= {"max_train_step": 2, "eval_during_train": True, "eval_unit": "step", "output_dir": "run"}
    tree["Loss"]["Eval"] = ["LossOfThisTest"]
    logging.getLogger("plsc").addHandler(caplog.handler)
    try:
        result = plsc.train(plsc.load_config(tree), callbacks=[Count()])
    finally:
        registry.LOSSES._entries.pop("LossOfThisTest")
        logging.getLogger("plsc").removeHandler(caplog.handler)
    assert result.best["step"] == 1
    assert not math.isfinite(result.last["loss"])
    assert f"step 2 is not taken for the best: its evaluation has loss {value}" in caplog.text
    best = (result.run_directory / "checkpoints" / "best").read_text()
    assert best.startswith("step-00000001") and paddle.__version__
