"""One YAML file → plain values, and the line of every key."""

from pathlib import Path

import yaml

from plsc.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without dates; the tree is built by _convert, which sees every line."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_value(text: str):
    """The value of an override as YAML reads it; what YAML cannot read is a text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def parse_file(path: Path, shown: str) -> tuple[dict, dict[tuple, int]]:
    """Read one file.

    Args:
        shown: the file's name in messages.

    Returns:
        (tree, lines): plain values, and key path → line.

    Raises:
        ConfigError: the file cannot be read, is not YAML, holds no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise ConfigError(f"{shown}: is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}:{mark.line + 1}" if mark else shown
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{shown}: the top level must be sections such as Global, Model, DataLoader")
    lines: dict[tuple, int] = {}
    try:
        return _convert(node, (), shown, lines), lines
    except RecursionError:
        raise ConfigError(f"{shown}: is nested too deeply, or an anchor holds its own alias") from None


def _convert(node: yaml.Node, path: tuple, file: str, lines: dict[tuple, int]):
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node, path, file, lines)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for i, item in enumerate(node.value):
            place = (*path, i)
            lines[place] = item.start_mark.line + 1
            items.append(_convert(item, place, file, lines))
        return items
    try:
        return _Loader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{file}:{node.start_mark.line + 1}: {problem}") from None


def _convert_mapping(node: yaml.MappingNode, path: tuple, file: str, lines: dict[tuple, int]) -> dict:
    mapping: dict = {}
    own_lines: dict[str, int] = {}
    own = {id(key) for key, _ in node.value}
    for key_node, value_node in _merged(node, file):
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{file}:{line}: a key must be a plain word")
        key = key_node.value
        place = (*path, key)
        if key in own_lines:
            where = ".".join(map(str, place))
            raise ConfigError(f"{file}: the key {where} stands twice, in line {own_lines[key]} and in line {line}")
        if id(key_node) in own:
            own_lines[key] = line
        lines[place] = line
        mapping[key] = _convert(value_node, place, file, lines)
    return mapping


def _merged(node: yaml.MappingNode, file: str) -> list:
    """The pairs of a mapping, after those that its merge keys (`<<: *anchor`) bring in."""
    inherited, own = [], []
    for key, value in node.value:
        if key.tag != _MERGE:
            own.append((key, value))
            continue
        for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
            if not isinstance(source, yaml.MappingNode):
                raise ConfigError(f"{file}:{key.start_mark.line + 1}: << takes a section, or a list of sections")
            inherited += _merged(source, file)
    return inherited + own
