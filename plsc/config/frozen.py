"""Values that cannot be changed, and back again."""

import inspect
from collections.abc import Mapping
from typing import Any

from plsc.config.coerce import coerce


class FrozenDict(dict):
    """A dict that cannot be changed."""

    def _refuse(self, *_args, **_keywords):
        raise TypeError(
            'a configuration cannot be changed; config.replace({"Section.key": value}) makes a changed copy'
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self):  # for copy and pickle, which would set its items
        return FrozenDict, (dict(self),)


def frozen(value):
    """A value whose lists are tuples and whose dicts are FrozenDicts, all the way down."""
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value


def plain(value):
    """A value whose tuples are lists and whose mappings are dicts, as YAML has them."""
    if type(value) in (dict, FrozenDict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [plain(item) for item in value]
    return value


def thawed(arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """A component's arguments in the types that its factory's annotations say: lists, tuples and dicts of their own."""
    return {key: coerce(plain(value), parameters[key].annotation) for key, value in arguments.items()}
