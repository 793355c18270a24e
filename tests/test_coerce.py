"""Text → number or tuple: what is read, what is left alone, what is refused."""

import math
import tracemalloc
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from plsc.config.coerce import coerce, parse_literal

READ = [
    ("3e-3", float, 0.003),
    ("1e-8", float, 1e-8),
    ("1.0/255.0", float, 1.0 / 255.0),
    ("2.**32", float, 2.0**32),
    ("-0.8", float, -0.8),
    ("(1 + 2) * 3 - 4", float, 5.0),
    (3, float, 3.0),
    ("64", int, 64),
    ("64.0", int, 64),
    (64.0, int, 64),
    ("2**4", int, 16),
    ("1_000", int, 1000),
    ("(0.9, 0.999)", tuple[float, float], (0.9, 0.999)),
    ("[0.9, 0.999]", tuple[float, float], (0.9, 0.999)),
    ([0.9, "0.999"], tuple[float, float], (0.9, 0.999)),
    ("(1, 2, 3)", tuple[float, ...], (1.0, 2.0, 3.0)),
    ("[None, 3, 224, 224]", list[int | None], [None, 3, 224, 224]),
    (["None", 3, 224, "224"], list[int | None], [None, 3, 224, 224]),
    (["1e-3", "1e-4"], list[float], [1e-3, 1e-4]),
    ("(0.5, 0.5)", list[float], [0.5, 0.5]),
    ("[[1, 2], [3]]", list[list[int]], [[1, 2], [3]]),
    ("[1, 2]", list, [1, 2]),
    ("1, 2", tuple, (1, 2)),
    ("None", float | None, None),
    ("None", str | None, None),
    ("1e-3", float | None, 1e-3),
    ("224", int | tuple[int, int], 224),
    ("(224, 192)", int | tuple[int, int], (224, 192)),
    ([224, 192], int | tuple[int, int], (224, 192)),
    ("[1, 5]", int | list[int], [1, 5]),
    ("(1, 5)", int | list[int], [1, 5]),
    ("1e-3", Annotated[float, Field(gt=0)], 1e-3),
    ({"a": "1e-3"}, dict[str, float], {"a": 1e-3}),
]


def _same(a, b) -> bool:
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(("value", "annotation", "expected"), READ)
def test_literals_become_what_the_annotation_asks_for(value, annotation, expected):
    got = coerce(value, annotation)
    assert _same(got, expected), got


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("3e-3", str),
        ("1.0/255.0", str | None),
        ("(1, 2)", Any),
        ("3e-3", int | float | bool | str),
        ("1", bool),
        ("True", bool),
        ("cosine", Literal["cosine", "linear"]),
        (["3e-3", "None"], list[str]),
        ({"a": "3e-3"}, dict[str, int | float | bool | str]),
        ("__import__('os')", str),
    ],
)
def test_text_stays_text_where_no_number_is_asked_for(value, annotation):
    assert _same(coerce(value, annotation), value)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("fast", float),
        ("(1, 2)", float),
        ("None", float),
        ("[1]", int),
        (2.5, int),
        (True, int),
        (True, float),
        (None, float),
        ("224", list[int]),
        ("(1, 2, 3)", tuple[float, float]),
        ([1, 2, 3], tuple[float, float]),
        ("__import__('os').getcwd()", float),
        ("9**9**9", float | None),
    ],
)
def test_what_does_not_fit_is_returned_unchanged(value, annotation):
    assert _same(coerce(value, annotation), value)


@pytest.mark.parametrize("value", ["10**400", "0x" + "f" * 400, 10**400], ids=["power", "hexadecimal", "number"])
def test_a_whole_number_outside_float_is_refused_not_a_crash(value):
    """coerce never raises; the type check refuses what it leaves."""
    assert coerce(value, float) == value


HOSTILE = {
    "call": "__import__('os').system('true')",
    "attribute": "().__class__",
    "name": "os",
    "nan-name": "nan",
    "tower": "9**9**9",
    "large-exponent": "2**2000",
    "large-negative-exponent": "2**-2000",
    "large-base": "(999999999**1000)**1000",
    "overflow": "10.0**400",
    "zero-division": "1/0",
    "comprehension": "[x for x in (1,)]",
    "generator": "(1 for x in ())",
    "lambda": "lambda: 1",
    "f-string": "f'{1}'",
    "text": "'text'",
    "bytes": "b'1'",
    "dict": "{1: 2}",
    "set": "{1, 2}",
    "conditional": "1 if 1 else 2",
    "comparison": "1 < 2",
    "and": "1 and 2",
    "not": "not 1",
    "invert": "~1",
    "floor-division": "1 // 2",
    "modulo": "7 % 2",
    "shift": "1 << 40",
    "bit-or": "1 | 2",
    "matmul": "1 @ 2",
    "subscript": "[1, 2][0]",
    "star": "*[1], 2",
    "walrus": "(y := 1)",
    "ellipsis": "...",
    "complex": "1j",
    "complex-root": "(-8)**0.5",
    "repeat": "[1] * 3",
    "concatenate": "[1] + [2]",
    "negative-none": "-None",
    "await": "await x",
    "empty": "",
    "blank": "  ",
    "two-statements": "1; 2",
    "two-lines": "1\n2",
    "null-byte": "1\0",
    "surrogate": "\ud800",
    "open": "(1",
    "digits": "9" * 10_000,
    "nested-lists": "[" * 5000 + "]" * 5000,
    "nested-parentheses": "(" * 5000 + "1" + ")" * 5000,
    "many-signs": "-" * 20_000 + "1",
    "many-powers": "1**" * 20_000 + "1",
    "many-sums": "1+" * 20_000 + "1",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_anything_but_arithmetic_is_refused(text):
    with pytest.raises(ValueError):
        parse_literal(text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_passes_through_coercion_untouched(text):
    assert coerce(text, float) == text
    assert coerce(text, list[int]) == text


def test_a_repeated_list_is_refused_before_it_is_made():
    """`[0] * 10**9` must not fill the memory first."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            parse_literal("[0] * 1000000")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000, f"{peak} bytes were taken"


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite)
def test_floats_round_trip(number):
    got = coerce(repr(number), float)
    assert type(got) is float and got == number and math.copysign(1, got) == math.copysign(1, number)


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_round_trip(number):
    assert _same(coerce(repr(number), int), number)
    assert _same(coerce(str(number), int | None), number)


@given(st.integers(-(2**53), 2**53))
def test_whole_numbers_become_floats_where_floats_are_asked_for(number):
    assert _same(coerce(str(number), float), float(number))


@given(finite, finite)
def test_pairs_round_trip(a, b):
    assert _same(coerce(repr((a, b)), tuple[float, float]), (a, b))
    assert _same(coerce(repr([a, b]), tuple[float, float]), (a, b))
    assert _same(coerce([repr(a), repr(b)], tuple[float, float]), (a, b))


@given(st.lists(st.none() | st.integers(-(10**6), 10**6), max_size=8))
def test_lists_with_none_round_trip(items):
    assert _same(coerce(repr(items), list[int | None]), items)
    assert _same(coerce([str(item) for item in items], list[int | None]), items)


numbers = st.integers(0, 9999).map(str) | st.floats(0, 1e6).map(repr) | st.just("None")
expressions = st.recursive(
    numbers | st.sampled_from(["x", "x()", "x.y", "'a'", "1j", "...", "True"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**", "//", "%", ","]), inner).map("".join),
        inner.map("({})".format),
        inner.map("[{}]".format),
        inner.map("-{}".format),
        inner.map("f({})".format),
    ),
    max_leaves=8,
)
texts = st.one_of(st.text(max_size=30), st.text("0123456789.eE+-*/()[], Nonex_'\"", max_size=30), expressions)


def _is_plain(value) -> bool:
    if isinstance(value, (tuple, list)):
        return type(value) in (tuple, list) and all(map(_is_plain, value))
    return value is None or isinstance(value, (int, float))


@settings(max_examples=500, deadline=None)
@given(texts)
def test_parsing_gives_numbers_none_tuples_and_lists_or_value_error(text):
    try:
        value = parse_literal(text)
    except ValueError:
        return
    assert _is_plain(value), value


@settings(max_examples=300, deadline=None)
@given(texts)
def test_coercion_gives_what_was_asked_for_or_the_text(text):
    for annotation, kind in ((float, float), (int, int), (list[float], list), (tuple[float, ...], tuple)):
        got = coerce(text, annotation)
        assert got == text or type(got) is kind, (annotation, got)
