"""Bounds that are written in signatures: in recipes all together with their places, in calls from Python by name."""

import textwrap
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field

from plsc import registry
from plsc.bounds import BelowOne, NonNegative, Positive, PositiveFloat
from plsc.config import load
from plsc.errors import ConfigError
from plsc.losses import BCELoss, CELoss, ViTCELoss
from plsc.metrics import ECE, F1, TopkAcc
from plsc.optim import schedules
from plsc.registry import InputPath, Registry, mark_of
from plsc.signatures import describe, holding_bounds, is_bounded, validated
from tests.helpers import tiny_digits, write_config


def test_bounds_of_a_recipe_and_its_overrides_are_reported_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = tiny_digits()
    tree["Loss"]["Train"] = [{"CELoss": {"weight": -1.0}}]
    tree["LRScheduler"]["warmup_steps"] = -2
    tree["Metric"]["Eval"] = [{"TopkAcc": {"topk": [1, 0]}}]
    path = write_config(tmp_path / "run.yaml", tree)
    with pytest.raises(ConfigError) as caught:
        load(path, ["Optimizer.betas=(0.9, 1.0)", "Optimizer.weight_decay=-1"])
    head, *rows = str(caught.value).splitlines()
    assert head == "the configuration has 5 problems:"
    lines = path.read_text().splitlines()
    for text, place, key, bound in [
        ("weight: -1.0", "run.yaml:", "Loss.Train.0.CELoss.weight", "greater than or equal to 0"),
        ("warmup_steps", "run.yaml:", "LRScheduler.warmup_steps", "greater than or equal to 0"),
        ("topk", "run.yaml:", "Metric.Eval.0.TopkAcc.topk", "greater than or equal to 1"),
        ("", "-o Optimizer.betas=(0.9, 1.0)", "Optimizer.betas", "less than 1"),
        ("", "-o Optimizer.weight_decay=-1", "Optimizer.weight_decay", "greater than or equal to 0"),
    ]:
        numbers = [str(i) for i, line in enumerate(lines, 1) if text and text in line]
        places = [f"{place}{number}" for number in numbers] or [place]
        assert sum(row.startswith(tuple(f"  {p}: {key}: " for p in places)) and bound in row for row in rows) == 1, key


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: CELoss(weight=-0.1), "CELoss.weight: got -0.1; it should be greater than or equal to 0"),
        (lambda: BCELoss(1.0, 1.0), "BCELoss.epsilon: got 1.0; it should be less than 1"),
        (lambda: ViTCELoss(type="sofmax"), "ViTCELoss.type: expected one of softmax, sigmoid, got 'sofmax'"),
        (lambda: ECE(bins=0), "ECE.bins: "),
        (lambda: F1(float("nan")), "F1.threshold: "),
        (lambda: TopkAcc([]), "TopkAcc.topk: "),
        (lambda: TopkAcc([1, 0]), "TopkAcc.topk: "),
        (
            lambda: schedules.Cosine(float("inf"), total_steps=1, steps_per_epoch=1),
            "Cosine.learning_rate: got inf; it should be a finite number",
        ),
    ],
)
def test_bounds_hold_for_calls_from_python(call, argument):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(argument)


def test_numbers_of_other_types_are_no_obstacle():
    assert CELoss(weight=np.float32(0.5), epsilon=0).weight == 0.5
    assert TopkAcc((1, 3)).topk == [1, 3]


def test_a_call_that_python_refuses_stays_a_type_error():
    with pytest.raises(TypeError, match="epsilom"):
        CELoss(epsilom=0.1)
    with pytest.raises(TypeError, match="learning_rate"):
        schedules.Cosine(total_steps=1, steps_per_epoch=1)


def test_a_class_stays_itself():
    """Subclasses, isinstance and the signature are as written."""
    parts = Registry("part")

    @parts.register()
    class Part:
        """A part."""

        def __init__(self, size: Positive = 1):
            self.size = size

    class Smaller(Part):
        pass

    assert isinstance(Smaller(2), Part) and Smaller(2).size == 2
    assert list(parts.get("Part").parameters()) == ["size"] and parts.get("Part").summary == "A part."
    with pytest.raises(ConfigError, match=r"Part\.size"):
        Smaller(0)


def test_annotations_that_are_texts_are_read(tmp_path, monkeypatch):
    """As in a module that begins with `from __future__ import annotations`."""
    text = """
        from __future__ import annotations

        from plsc.bounds import BelowOne
        from plsc.registry import Registry

        PARTS = Registry("part")

        @PARTS.register()
        def part(share: BelowOne = 0.5):
            return share
    """
    (tmp_path / "texts.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    import texts

    assert texts.PARTS.get("part").parameters()["share"].annotation == BelowOne
    assert texts.part(0.25) == 0.25
    with pytest.raises(ConfigError, match=r"part\.share: got 1\.5"):
        texts.part(1.5)


def test_annotations_that_cannot_be_read_are_reported():
    parts = Registry("part")

    @parts.register()
    def part(size: "NoSuchType" = 1):  # noqa: F821
        return size

    with pytest.raises(ConfigError, match=r"part: its annotations cannot be read: .*NoSuchType"):
        parts.get("part").parameters()


def test_a_function_without_bounds_costs_no_check():
    calls = []
    plain = holding_bounds(lambda x: calls.append(x), "plain")
    plain("anything")
    assert calls == ["anything"]


@pytest.mark.parametrize(
    ("annotation", "bounded"),
    [
        (int, False),
        (list[float], False),
        (Annotated[str, InputPath()], False),
        (Positive, True),
        (Positive | None, True),
        (list[BelowOne], True),
        (tuple[float, PositiveFloat], True),
        (Literal["a", "b"], True),
        (dict[str, Annotated[list[int], Field(min_length=1)]], True),
    ],
)
def test_what_counts_as_a_bound(annotation, bounded):
    assert is_bounded(annotation) is bounded


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (Positive, 0, "got 0; it should be greater than or equal to 1"),
        (Positive, "x", "expected a whole number, got 'x'"),
        (list[NonNegative], ["x"], "expected a list of whole numbers, got"),
        (Annotated[list[int], Field(min_length=2)], [1], "at least 2 items"),
        (Literal["a", "b"], "c", "expected one of a, b, got 'c'"),
    ],
)
def test_what_does_not_fit_is_stated_in_words(annotation, value, text):
    with pytest.raises(ValueError, match=text):
        validated(value, annotation, strict=True)


def test_marks_are_found_also_beside_null():
    assert mark_of(Annotated[str, InputPath(pattern=True)] | None, InputPath).pattern
    assert mark_of(str | None, InputPath) is None
    assert describe(Annotated[str, InputPath()] | None) == "a text or null"


# -- registering --------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused_and_one_made_again_is_replaced():
    """As a notebook's cell that is run twice."""
    parts = Registry("part")

    def cell(value):
        @parts.register("Part", aliases=["P"])
        def part():
            return value

    cell(1)
    cell(2)
    assert parts.get("P").build({}) == 2

    with pytest.raises(ConfigError, match=r"part P of .*other.* has the name"):

        @parts.register("Other", aliases=["P"])
        def other():
            pass


@pytest.mark.parametrize("form", ["*sizes", "**keys"])
def test_a_signature_that_leaves_names_open_is_refused(form):
    namespace = {}
    exec(f"def part({form}): pass", namespace)
    with pytest.raises(ConfigError, match=rf"part cannot be registered.*{form.replace('*', '[*]')}"):
        Registry("part").register()(namespace["part"])


def test_what_the_engine_fills_in_is_stated_by_the_kind():
    """A factory names what it wants of it, and cannot be given it by a recipe."""
    entry = registry.SCHEDULERS.get("Cosine")
    assert entry.supplied_parameters() == ["total_steps", "steps_per_epoch"]
    tree = tiny_digits()
    tree["LRScheduler"]["total_steps"] = 5
    with pytest.raises(ConfigError, match=r"LRScheduler\.total_steps: cannot be given"):
        load(tree)
