"""What is searched: settings and their values, as texts, a mapping or a YAML file → the candidates."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plsc.config.source import Overrides
from plsc.config.yaml_tree import parse_file, parse_value
from plsc.errors import ConfigError
from plsc.registry import nearest

SEED = "Global.seed"
Values = Mapping[str, Any]  # dotted key → value

_DRAWN = re.compile(r"(log|uniform)\((.+)\)")
_DIGITS = 4  # of drawn numbers, so that folders have names that can be read


@dataclass(frozen=True)
class Drawn:
    """Numbers drawn between two bounds: uniform, or log where their logarithms are."""

    kind: str
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One of them."""
        if self.kind == "log":
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return float(f"{value:.{_DIGITS}g}")


Dimension = tuple[Any, ...] | Drawn


def parse(space: Mapping[str, Any] | Iterable[str]) -> dict[str, Dimension]:
    """Key → its values, or the bounds that they are drawn between.

    Args:
        space: texts "Optimizer.weight_decay=0.05,0.1", "…=log(1e-4,1e-2)", "…=uniform(0,0.5)"; or a mapping of keys to
            lists, single values, such texts, {"log": [1e-4, 1e-2]} or {"uniform": [0, 0.5]}.

    Raises:
        ConfigError: an entry is none of these, a key is given twice, or values are equal.
    """
    if isinstance(space, str):
        raise ConfigError(f"{space!r}: give a list of such texts, or a mapping")
    entries = space.items() if isinstance(space, Mapping) else map(_split, space)
    dimensions: dict[str, Dimension] = {}
    for key, value in entries:
        if key in dimensions:
            raise ConfigError(f"{key}: is given twice in what is searched")
        dimensions[key] = _dimension(key, value)
    if not dimensions:
        raise ConfigError("nothing is searched: give settings with values, such as Optimizer.weight_decay=0.05,0.1")
    return dimensions


def candidates(dimensions: Mapping[str, Dimension], trials: int | None) -> list[dict[str, Any]]:
    """Every combination of the listed values, without seeds, times `trials` draws of the others.

    Raises:
        ConfigError: trials are given without anything to draw, or the other way round.
    """
    listed = {key: values for key, values in dimensions.items() if not isinstance(values, Drawn) and key != SEED}
    drawn = {key: values for key, values in dimensions.items() if isinstance(values, Drawn)}
    if SEED in drawn:
        raise ConfigError(f"{SEED}: give a list of seeds, such as {SEED}=0,1,2")
    if drawn and trials is None:
        raise ConfigError(f"{next(iter(drawn))} is drawn at random: say how often (--trials N)")
    if trials is not None and not drawn:
        raise ConfigError("--trials is the number of random draws, but nothing is drawn: use log(…) or uniform(…)")
    rng = np.random.default_rng(0)
    draws = [{key: bounds.draw(rng) for key, bounds in drawn.items()} for _ in range(trials or 1)]
    grid = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    points = [{**point, **draw} for draw in draws for point in grid]
    return [{key: point[key] for key in dimensions if key != SEED} for point in points]


def as_mapping(overrides: Overrides) -> dict[str, Any]:
    """Overrides as plsc.load_config takes them → dotted key → value."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    plain = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"-o {text}: an override has the form Section.key=value, for instance -o Global.epochs=3")
        plain[key.strip()] = parse_value(value, f"-o {text}")
    return plain


def seeds(dimensions: Mapping[str, Dimension]) -> list[int] | None:
    """The seeds that each candidate is run with; None where the recipe's own is taken."""
    values = dimensions.get(SEED)
    return None if values is None or isinstance(values, Drawn) else list(values)


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise ConfigError(f"{text}: what is searched has the form KEY=VALUES, such as Optimizer.weight_decay=0.05,0.1")
    return key.strip(), value


def _dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, str):
        drawn = _DRAWN.fullmatch(value.strip())
        if drawn:
            return _drawn(key, drawn[1], [parse_value(part, key) for part in drawn[2].split(",")])
        value = [parse_value(part, key) for part in _parts(value)]
    elif isinstance(value, Mapping):
        if len(value) != 1:
            raise ConfigError(f"{key}: is drawn by one of {{log: [low, high]}} and {{uniform: [low, high]}}")
        [(kind, bounds)] = value.items()
        return _drawn(key, kind, bounds)
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values:
        raise ConfigError(f"{key}: has no values")
    if any(values[i] in values[:i] for i in range(len(values))):
        raise ConfigError(f"{key}: has a value twice: {', '.join(map(str, values))}")
    return values


def _parts(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def _drawn(key: str, kind: str, bounds: Any) -> Drawn:
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: {kind} takes two numbers, low and high, not {bounds!r}") from None
    if kind not in ("log", "uniform"):
        raise ConfigError(f"{key}: {kind!r} is not a way to draw; there are log and uniform")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{key}: {kind}({low:g}, {high:g}): the second number must be above the first")
    if kind == "log" and low <= 0:
        raise ConfigError(f"{key}: log({low:g}, {high:g}): both must be above 0")
    return Drawn(kind, low, high)


# -- the YAML form ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepFile:
    """A search as a YAML file has it.

    Attributes:
        recipe: a path or the name of a shipped recipe. space: see `parse`. overrides: dotted key → value, for all runs.
        output_dir, trials, halving: as the arguments of plsc.sweep; None where the file has none.
    """

    recipe: str
    space: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    output_dir: str | None = None
    trials: int | None = None
    halving: int | None = None


_KINDS: dict[str, type | tuple[type, ...]] = {
    "recipe": str,
    "space": dict,
    "overrides": dict,
    "output_dir": str,
    "trials": int,
    "halving": int,
}


def read_file(path: str | Path) -> SweepFile:
    """Read a search. Raises ConfigError naming file, line and key where it is none."""
    path = Path(path)
    tree, lines = parse_file(path, str(path))
    for key, value in tree.items():
        where = f"{path}:{lines[(key,)]}: {key}"
        if key not in _KINDS:
            close = nearest(key, _KINDS)
            raise ConfigError(f"{where}: is not a key of a search; " + (f"did you mean {close}?" if close else _keys()))
        kind = _KINDS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{where}: is {value!r}; expected {_expected(key)}")
    for key in ("recipe", "space"):
        if key not in tree:
            raise ConfigError(f"{path}: {key} is missing; {_keys()}")
    return SweepFile(**tree)


def _keys() -> str:
    return f"a search has the keys {', '.join(_KINDS)}"


def _expected(key: str) -> str:
    kinds = {str: "a text", dict: "a mapping of dotted keys to values", int: "a whole number"}
    return kinds[_KINDS[key]]  # type: ignore[index]


def shown(value: Any) -> str:
    """A value as short as it can be read again."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key → its last parts, as many as distinguish all keys."""
    for parts in range(1, max((key.count(".") + 1 for key in keys), default=1) + 1):
        short = {key: ".".join(key.split(".")[-parts:]) for key in keys}
        if len(set(short.values())) == len(keys):
            return short
    return {key: key for key in keys}
