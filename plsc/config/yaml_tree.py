"""One YAML file → plain values, and the line of every key.

A recipe holds texts, numbers, true, false and null in mappings and lists, within bounds: with YAML's aliases and merge
keys a file of a few lines can describe more than fits into memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plsc.errors import ConfigError
from plsc.signatures import shortened

MOST_BYTES, MOST_VALUES, DEEPEST = 512 * 1024, 20_000, 50
_LONGEST_KEY, _LONGEST_NUMBER = 200, 400  # characters; the largest float has 309 digits
_TAG = "tag:yaml.org,2002:"
_MERGE, _MAPPING, _SEQUENCE, _NULL = f"{_TAG}merge", f"{_TAG}map", f"{_TAG}seq", f"{_TAG}null"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_WORDS = {  # tags of scalars, in words
    f"{_TAG}str": "a text",
    f"{_TAG}int": "a whole number",
    f"{_TAG}float": "a number",
    f"{_TAG}bool": "true or false",
    _NULL: "null",
    _MERGE: "a merge key",
}
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass
class Amount:
    """What one load has read so far, over all its files. What aliases and merge keys name counts each time."""

    files: int = 0
    size: int = 0  # in bytes
    nodes: int = 0
    values: int = 0


class _Refused(Exception):
    """YAML that is not read: the line, from 1, and whether it is a bound of ours that it breaks."""

    def __init__(self, text: str, line: int, *, out_of_bounds: bool = False):
        super().__init__(text)
        self.line, self.out_of_bounds = line, out_of_bounds


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without dates and within bounds; the tree is built by _Tree, which sees every line."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str, amount: Amount):
        super().__init__(text)
        self._amount, self._depth = amount, 0

    def compose_node(self, parent, index):
        self._amount.nodes += 1
        self._depth += 1
        problem = _out_of_bounds(self._depth, self._amount.nodes)
        if problem:
            raise _Refused(problem, self.peek_event().start_mark.line + 1, out_of_bounds=True)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _out_of_bounds(depth: int, count: int) -> str | None:
    if depth > DEEPEST:
        return f"is nested more than {DEEPEST} deep, or an anchor holds its own alias"
    if count > MOST_VALUES:
        return (
            f"there are more than {MOST_VALUES:,} values; aliases, merge keys and bases count as often as they are used"
        )
    return None


def _composed(text: str, amount: Amount) -> yaml.Node | None:
    """The nodes of a text; None where it is empty. Raises _Refused."""
    loader: Any = None
    try:
        loader = _Loader(text, amount)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:  # its position counts characters
        problem = f"not valid YAML: the character {error.character:#x} is not allowed"
        raise _Refused(problem, text.count("\n", 0, error.position) + 1) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _Refused(f"not valid YAML: {error.problem or error.context}", mark.line + 1 if mark else 1) from None
    except (ValueError, OverflowError) as error:  # the number of a character or a version that there is none of
        raise _Refused(f"not valid YAML: {error}", loader.line + 1) from None


def parse_value(text: str, shown: str) -> Any:
    """The value of an override as YAML reads it; what is not YAML is a text.

    Args:
        shown: the override's place in messages.

    Raises:
        ConfigError: it is YAML that no recipe holds, or too large.
    """
    amount = Amount(size=len(text))
    if amount.size > MOST_BYTES:
        raise ConfigError(f"{shown}: the value is longer than {MOST_BYTES:,} characters")
    try:
        node = _composed(text, amount)
    except _Refused as refused:
        if refused.out_of_bounds:
            raise ConfigError(f"{shown}: {refused}") from None
        return text
    return None if node is None else _Tree(amount, lambda line: shown).value(node, ())


def parse_file(path: Path, shown: str, amount: Amount | None = None) -> tuple[dict, dict[tuple, int]]:
    """Read one file.

    Args:
        shown: the file's name in messages.
        amount: what the same load has read before, to which this file is added.

    Returns:
        (tree, lines): plain values, and key path → line.

    Raises:
        ConfigError: the file cannot be read, is not YAML, holds no mapping, has a key twice, has a tag or a value that
            no recipe has, or is too large.
    """
    amount = amount or Amount()
    text = _text(path, shown, amount)
    try:
        node = _composed(text, amount)
    except _Refused as refused:
        raise ConfigError(f"{shown}:{refused.line}: {refused}") from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{shown}: the top level must be sections such as Global, Model, DataLoader")
    tree = _Tree(amount, lambda line: f"{shown}:{line}")
    return tree.value(node, ()), tree.lines


def _text(path: Path, shown: str, amount: Amount) -> str:
    """A file's text, counted. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1 - amount.size)
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}") from None
    amount.size += len(data)
    if amount.size > MOST_BYTES:
        raise ConfigError(f"{shown}: is too large: a recipe and its bases have {MOST_BYTES:,} bytes at most")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line}: cannot be read: it is not UTF-8: {error.reason}") from None


class _Tree:
    """Nodes → plain values.

    Args:
        amount: counted on with every value made.
        where: line → place in messages.

    Attributes:
        lines: key path → line.
    """

    def __init__(self, amount: Amount, where: Callable[[int], str]):
        self._amount, self._where = amount, where
        self._constructor = yaml.constructor.SafeConstructor()
        self.lines: dict[tuple, int] = {}

    def value(self, node: yaml.Node, path: tuple) -> Any:
        """The value of a node. Raises ConfigError with its place."""
        self._amount.values += 1
        self._check_bounds(node, len(path))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = []
            if node.tag != _SEQUENCE:
                raise self._error(node, _about_tag(node.tag))
            for i, item in enumerate(node.value):
                place = (*path, i)
                self.lines[place] = item.start_mark.line + 1
                items.append(self.value(item, place))
            return items
        assert isinstance(node, yaml.ScalarNode), node
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: tuple) -> dict:
        if node.tag != _MAPPING:
            raise self._error(node, _about_tag(node.tag))
        mapping: dict = {}
        own_lines: dict[str, int] = {}
        own = {id(key) for key, _ in node.value}
        for key_node, value_node in self._merged(node, len(path)):
            line = key_node.start_mark.line + 1
            key = self._key(key_node)
            place = (*path, key)
            if key in own_lines:
                where = ".".join(map(str, place))
                lines = f"in line {own_lines[key]} and in line {line}"
                raise self._error(key_node, f"the key {where} is given twice, {lines}")
            if id(key_node) in own:
                own_lines[key] = line
            self.lines[place] = line
            mapping[key] = self.value(value_node, place)
        return mapping

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be a plain word")
        if node.tag not in _WORDS:
            raise self._error(node, _about_tag(node.tag))
        if len(node.value) > _LONGEST_KEY:
            raise self._error(node, f"a key of {len(node.value):,} characters; no recipe has one")
        return node.value

    def _merged(self, node: yaml.MappingNode, depth: int) -> list:
        """The pairs of a mapping, after those that its merge keys (`<<: *anchor`) bring in."""
        self._check_bounds(node, depth)
        inherited, own = [], []
        for key, value in node.value:
            if key.tag != _MERGE:
                own.append((key, value))
                continue
            for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if not isinstance(source, yaml.MappingNode):
                    raise self._error(key, "<< takes a section, or a list of sections")
                merged = self._merged(source, depth + 1)
                self._amount.values += 1 + len(merged)
                self._check_bounds(key, depth)
                inherited += merged
        return inherited + own

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        tag, text = node.tag, node.value
        if tag not in _WORDS:
            raise self._error(node, _about_tag(tag))
        if tag == _MERGE:  # << where it is not a key
            return text
        if tag in _NUMBERS and len(text) > _LONGEST_NUMBER:
            raise self._error(node, f"a number of {len(text):,} characters; no key takes one")
        try:
            if tag == _NULL and text not in _NULLS:
                raise ValueError(text)
            return self._constructor.construct_object(node)
        except (ValueError, LookupError, ArithmeticError):
            problem = f"{shortened(text)} is not {_WORDS[tag]}, as its tag !!{tag.removeprefix(_TAG)} demands"
            raise self._error(node, problem) from None

    def _check_bounds(self, node: yaml.Node, depth: int) -> None:
        problem = _out_of_bounds(depth, self._amount.values)
        if problem:
            raise self._error(node, problem)

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self._where(node.start_mark.line + 1)}: {text}")


def _about_tag(tag: str) -> str:
    name = f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag
    return f"the tag {shortened(name)} is not read; a recipe holds texts, numbers, true, false and null"
