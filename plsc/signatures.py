"""A function's signature as the schema of its arguments: types, choices and bounds, in words and as a check.

Bounds are written where the argument is: `epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.0`, with pydantic's Field.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from plsc.errors import ConfigError

Factory = TypeVar("Factory", bound=Callable)  # what recipes build components with: a class or a function

_NAMES = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    Any: "anything",
}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_LONGEST_SHOWN = 400  # characters of a value in a message
_PLURALS = {float: "numbers", int: "whole numbers", str: "texts"}
# kinds of pydantic's errors that say more than which type was expected
_BOUNDS = (
    "greater",
    "less",
    "finite",
    "too_short",
    "too_long",
    "string_too",
    "value_error",
    "string_pattern",
    "multiple_of",
)


def parameters(factory: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a factory, with annotations as types also where its module keeps them as texts.

    Raises:
        ConfigError: an annotation is a text that names something unknown.
    """
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except NameError as error:
        raise ConfigError(
            f"{factory.__module__}.{factory.__qualname__}: its annotations cannot be read: {error}; import what they "
            "name, also outside TYPE_CHECKING"
        ) from error


def shortened(value) -> str:
    """A value as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}… ({len(text):,} characters)"


def describe(annotation) -> str:
    """A type as a user reads it: "a number", "true or false or null", …"""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(a) for a in arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin is list or (origin is tuple and arguments and arguments[-1] is Ellipsis):
        item = arguments[0]
        plain = typing.get_args(item)[0] if typing.get_origin(item) is typing.Annotated else item
        return f"a list of {_PLURALS.get(plain) or describe(plain)}"
    if origin is tuple:
        return f"{len(arguments)} values ({', '.join(describe(a) for a in arguments)})"
    if origin is dict:
        return "a mapping"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def argument_text(parameter: inspect.Parameter) -> str:
    """`name=default`, with the choices or the range where there are some: what `plsc list` shows of an argument."""
    default, annotation = parameter.default, parameter.annotation
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, str) and not default.strip():
        default = repr(default)
    text = f"{parameter.name} (required)" if default is parameter.empty else f"{parameter.name}={default}"
    if typing.get_origin(annotation) is typing.Literal:
        return f"{text} ({'|'.join(map(str, typing.get_args(annotation)))})"
    marks = [mark for field in getattr(annotation, "__metadata__", ()) for mark in getattr(field, "metadata", ())]
    limits = [f"{sign} {getattr(mark, name)}" for mark in marks for name, sign in _SIGNS.items() if hasattr(mark, name)]
    return f"{text} ({', '.join(limits)})" if limits else text


def validated(value, annotation, *, strict: bool) -> Any:
    """The value in its annotated type.

    Args:
        strict: no conversion but that of a whole number to a number.

    Raises:
        ValueError: it does not fit; the text says what was expected, or which bound it breaks.
    """
    from pydantic import ValidationError

    try:
        return _adapter(annotation).validate_python(value, strict=strict)
    except ValidationError as error:
        broken = [e["msg"] for e in error.errors() if e["type"].startswith(_BOUNDS)]
        if broken:
            bound = broken[0].removeprefix("Input ").removeprefix("Value error, ").removesuffix(" after validation")
            it = "it " if bound.startswith("should") else ""
            text = f"got {shortened(value)}; {it}{bound}"
        else:
            text = f"expected {describe(annotation)}, got {shortened(value)}"
        raise ValueError(text) from None


def _adapter(annotation):
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation that holds something unhashable
        return _cached_adapter.__wrapped__(annotation)


@functools.lru_cache(maxsize=4096)
def _cached_adapter(annotation):
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))


def is_bounded(annotation) -> bool:
    """Whether an annotation says more than types: choices, or bounds in some part of it."""
    from annotated_types import BaseMetadata
    from pydantic.fields import FieldInfo

    if typing.get_origin(annotation) is typing.Literal:
        return True
    marks = getattr(annotation, "__metadata__", ())
    if any(isinstance(mark, (BaseMetadata, FieldInfo)) for mark in marks):
        return True
    return any(is_bounded(argument) for argument in typing.get_args(annotation))


def _takes_numbers(annotation) -> bool:
    return annotation is float or any(map(_takes_numbers, typing.get_args(annotation)))


def _is_finite(value) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def holding_bounds(factory: Factory, name: str) -> Factory:
    """The factory, which from now on refuses arguments out of the bounds in its signature when it is called, and
    numbers that are not finite.

    A class stays the same class, with another `__init__`.

    Args:
        name: of the component, for messages.
    """
    function = factory.__init__ if inspect.isclass(factory) else factory
    if function is object.__init__:
        return factory

    @functools.cache
    def bounded() -> dict[str, Any]:
        of = {key: p.annotation for key, p in parameters(function).items()}
        return {key: a for key, a in of.items() if is_bounded(a) or _takes_numbers(a)}

    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        if bounded():
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                given = {}  # the call itself says what is wrong
            for key in given.keys() & bounded().keys():
                try:
                    if is_bounded(bounded()[key]):
                        validated(given[key], bounded()[key], strict=False)
                    elif not _is_finite(given[key]):
                        raise ValueError(f"got {shortened(given[key])}; it should be finite")
                except ValueError as error:
                    raise ConfigError(f"{name}.{key}: {error}") from None
        return function(*args, **kwargs)

    if not inspect.isclass(factory):
        return cast("Factory", checked)
    factory.__init__ = checked  # type: ignore[method-assign]
    return factory
