"""One entry of a configuration → one component."""

import inspect
from typing import Any

from plsc.config import Component, Config, thawed
from plsc.config.schema import DATASET_KEYS
from plsc.data.datasets.base import check_protocol
from plsc.data.datasets.combine import Subset, sliced
from plsc.data.split import split
from plsc.errors import ConfigError, DataError
from plsc.registry import DATASETS, Registry, missing_members


def component(config: Config, registry: Registry, part: Component, **supplied: Any) -> Any:
    """Build one component.

    Args:
        supplied: values of the arguments that the engine fills in; the factory gets those that it has parameters for.

    Raises:
        ConfigError, DataError: the constructor refuses its arguments, or what they name; the message begins with the
            key's place.
    """
    entry, arguments = registry.get(part.name), dict(part.arguments)
    for name, kind in entry.nested().items():
        arguments[name] = [component(config, kind, inner) for inner in arguments[name]]
    for name, mark in entry.inputs().items():
        config.check_input((*part.path, name), arguments.get(name), mark)
    keys = DATASET_KEYS.keys() - entry.parameters().keys() if registry is DATASETS else ()
    cut = {key: arguments.pop(key, None) for key in keys}
    try:
        built = entry.build(thawed(arguments, entry.parameters()), **supplied)
    except ConfigError as error:
        raise config.error(part.path, str(error)) from error
    except DataError as error:
        raise DataError(config.source.located(part.path, str(error))) from error
    return _part(config, part, built, **cut) if registry is DATASETS else built


def _part(
    config: Config,
    part: Component,
    data: Any,
    slice: str | None = None,
    val_fraction: float | None = None,
    val_seed: int = 0,
) -> Any:
    """The part of a data set that its keys choose: of val_fraction what is held out in Eval, the rest in Train."""
    key: tuple = ()
    try:
        check_protocol(data)
        if slice is not None:
            key = ("slice",)
            data = sliced(data, slice)
        if val_fraction is not None:
            key = ("val_fraction",)
            kept, held = split(data, val_fraction, val_seed)
            data = Subset(data, held if part.path[1:2] == ("Eval",) else kept)
    except (ConfigError, DataError) as error:
        raise config.error((*part.path, *key), str(error)) from error
    return data


def check_members(config: Config, part: Component, built: Any, protocol: type) -> None:
    """Raise ConfigError where a component lacks what its protocol, a `typing.Protocol` class, asks for."""
    missing = missing_members(built, protocol)
    if missing:
        kind = protocol.__name__
        raise config.error(
            part.path,
            f"{part.name} lacks {', '.join(missing)}, which a {kind.lower()} needs; "
            f"{protocol.__module__}.{kind} describes them:\n{inspect.getdoc(protocol)}",
        )
