"""A recipe or a dict, with its bases and overrides → one tree of plain values that knows where each came from."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plsc.config.frozen import frozen
from plsc.config.recipes import locate
from plsc.config.yaml_tree import DEEPEST, Amount, parse_file, parse_value
from plsc.errors import ConfigError
from plsc.signatures import shortened

KeyPath = tuple  # of str and int
_LONGEST_SHOWN = 200  # characters of an override in messages
_MOST_FILES = 100  # files of one load, each as often as it is named
Overrides = Iterable[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a key was written.

    Attributes:
        text: as messages show it: "run.yaml:12", "-o Global.seed=3", "in the given dict".
        file: the file it stands in; None for a dict or an override.
        override: whether an override set it.
    """

    text: str
    file: Path | None = None
    override: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Source:
    """A tree of dict, list and scalars with the origin of each key.

    Attributes:
        tree: the merged configuration.
        origins: key path → where it was written.
        name: what was asked for, as messages show it.
        notes: what a user should know of the reading.
    """

    tree: dict = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    name: str = ""
    notes: list[str] = field(default_factory=list)

    def frozen(self) -> "Source":
        """A copy that cannot be changed."""
        return Source(frozen(self.tree), frozen(self.origins), self.name, frozen(self.notes))

    def origin(self, path: KeyPath) -> Origin:
        """Where the key was written; for an absent key, where its nearest parent was."""
        path = tuple(path)
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, Origin(self.name))

    def value(self, path: KeyPath):
        """What was written at a key path; None where nothing was."""
        at: Any = self.tree
        for key in path:
            known = at.keys() if isinstance(at, dict) else range(len(at)) if isinstance(at, (list, tuple)) else ()
            if key not in known:
                return None
            at = at[key]
        return at

    def located(self, path: KeyPath, text: str) -> str:
        """`text` after the place and the name of a key."""
        return f"{self.origin(path)}: {'.'.join(map(str, path))}: {text}"


def load_source(source: str | Path | Mapping, overrides: Overrides = ()) -> Source:
    """Read a recipe with its bases and apply overrides, in order.

    Args:
        source: a path, the bare name of a shipped recipe, or a dict of sections as a recipe has them.
        overrides: texts "A.B.0.C=value", whose values are read as YAML, or a dict {"A.B.0.C": value}.

    Raises:
        ConfigError: the file is missing, not YAML, has a key twice, or an override does not fit.
    """
    loaded = _of_dict(source) if isinstance(source, Mapping) else _of_file(locate(_plain(source, ())), Amount())
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r}: give a list of such texts, or a dict {{'Global.epochs': 3}}")
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _override(loaded, key, _plain(value, ()), f"override {key}={shortened(value)}")
        return loaded
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            key = ""
        shown = f"-o {text if len(text) <= _LONGEST_SHOWN and text.isprintable() else shortened(text)}"
        _override(loaded, key, parse_value(value, shown), shown)
    return loaded


def _of_file(path: Path, amount: Amount, seen: tuple[Path, ...] = ()) -> Source:
    shown = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    if path in seen:
        chain = " → ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{shown}: _base_ leads in a circle: {chain}")
    amount.files += 1
    if amount.files > _MOST_FILES:
        raise ConfigError(f"{shown}: _base_ names more than {_MOST_FILES} files, each as often as it is named")
    tree, lines = parse_file(path, shown, amount)
    origins = {key: Origin(f"{shown}:{line}", path) for key, line in lines.items()}
    return _with_bases(Source(tree, origins, name=shown), path.parent, amount, (*seen, path))


def _of_dict(tree: Mapping) -> Source:
    return _with_bases(Source(_plain(tree, ()), name="in the given dict"), Path.cwd(), Amount(), ())


def _plain(value, path: KeyPath):
    """A copy in dict, list and scalars; paths become texts."""
    if len(path) > DEEPEST:
        raise ConfigError(f"in the given dict: {path[0]} is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"in the given dict: {'.'.join(map(str, path)) or 'the top level'}: {key!r} is not a key"
                )
        return {key: _plain(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, (*path, i)) for i, item in enumerate(value)]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _with_bases(source: Source, folder: Path, amount: Amount, seen: tuple[Path, ...]) -> Source:
    """A source over the files that its `_base_` names, which lie beside it or are shipped."""
    bases = source.tree.pop("_base_", None)
    if bases is None:
        return source
    merged = Source(name=source.name)
    for base in bases if isinstance(bases, list) else [bases]:
        try:
            path = locate(base, beside=folder)
        except ConfigError as error:
            raise ConfigError(f"{source.origin(('_base_',))}: _base_: {error}") from None
        merged = _merge(merged, _of_file(path, amount, seen))
    return _merge(merged, source)


def _merge(base: Source, child: Source) -> Source:
    """The child's keys over the base's. A section whose `name` changes is replaced whole."""
    replaced: set[KeyPath] = set()
    notes = [*base.notes, *child.notes]

    def over(old: dict, new: dict, path: KeyPath) -> dict:
        result = dict(old)
        for key, value in new.items():
            here, before = (*path, key), result.get(key)
            if isinstance(before, dict) and isinstance(value, dict):
                if value.get("name", before.get("name")) == before.get("name"):
                    result[key] = over(before, value, here)
                    continue
                dropped = [name for name in before if name not in ("name", *value)]
                if dropped:
                    text = (
                        f"changes from {before.get('name', 'the default')} to {value['name']}, so that these keys of "
                        f"{base.origin(here)} are dropped: {', '.join(dropped)}"
                    )
                    notes.append(child.located((*here, "name"), text))
            replaced.add(here)
            result[key] = value
        return result

    tree = over(base.tree, child.tree, ())
    return Source(tree, _without(base.origins, replaced) | child.origins, name=child.name, notes=notes)


def _without(origins: Mapping[KeyPath, Origin], paths: Collection[KeyPath]) -> dict[KeyPath, Origin]:
    """The origins without those of `paths` and of all below them."""
    return {key: o for key, o in origins.items() if not any(key[:n] in paths for n in range(1, len(key) + 1))}


def _override(source: Source, key: str, value, shown: str) -> None:
    """Set a dotted key, making sections on the way; `shown` is its place in messages."""
    parts = [part.strip() for part in str(key).split(".")]
    if not all(parts):
        raise ConfigError(f"{shown}: an override has the form Section.key=value, for instance -o Global.epochs=3")
    at: Any = source.tree
    path: tuple = ()
    part: int | str
    for depth, part in enumerate(parts):
        if isinstance(at, list):
            if not part.isdecimal() or int(part) >= len(at):
                indices = f"give an index from 0 to {len(at) - 1}" if at else "it has nothing to override"
                raise ConfigError(f"{shown}: {'.'.join(map(str, path))} is a list of {len(at)}; {indices}")
            part = int(part)
        elif not isinstance(at, dict):
            raise ConfigError(f"{shown}: {'.'.join(map(str, path))} is {at!r} and has no keys")
        path = (*path, part)
        if depth == len(parts) - 1:
            at[part] = value
            kept = _without(source.origins, {path})
            source.origins.clear()
            source.origins.update(kept)
        elif isinstance(at, dict) and at.get(part) is None:
            at[part] = {}
        else:
            at = at[part]
            continue
        source.origins[path] = Origin(shown, override=True)
        at = at[part]
