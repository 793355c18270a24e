"""A checked run: frozen, with its own copy for every change."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from plsc.config import schema
from plsc.config.frozen import frozen, plain
from plsc.config.paths import missing
from plsc.config.schema import Component, DataSection
from plsc.config.source import Source
from plsc.errors import ConfigError
from plsc.registry import InputPath

_FILE = InputPath()


@dataclass(frozen=True)
class Config:
    """A run, checked. Sections are attributes; it cannot be changed, `replace` makes a changed copy.

    Attributes:
        LRScheduler, Optimizer: None where they are absent and only training needs them; so are the losses, the
            training data and the training metrics.
        notes: what was accepted without effect, or otherwise than its author may expect.
        source: what it was read from; it knows where each key was written.
    """

    Global: schema.Global
    DistributedStrategy: schema.DistributedStrategy
    FP16: schema.FP16 | None
    EMA: schema.EMA | None
    Model: Component
    Task: Component | None
    Loss: Mapping[str, tuple[Component, ...]]
    LRScheduler: Component | None
    Optimizer: Component | None
    optimizer_options: schema.OptimizerOptions
    DataLoader: Mapping[str, DataSection]
    Metric: Mapping[str, tuple[Component, ...]]
    Export: schema.Export
    notes: tuple[str, ...] = ()
    source: Source = field(default_factory=Source)

    def __post_init__(self):
        for name in ("Loss", "DataLoader", "Metric", "notes"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def error(self, path: tuple, text: str) -> ConfigError:
        """A ConfigError that names the key and where it was written."""
        return ConfigError(self.source.located(path, text))

    def check_input(self, path: tuple, value, mark: InputPath = _FILE) -> None:
        """Raise ConfigError, with the folders it was looked for in, where a file that a key names is missing."""
        problem = missing(self.source, path, value, mark)
        if problem:
            raise self.error(path, problem)

    def replace(self, changes: Mapping[str, Any]) -> "Config":
        """A copy with some keys changed; this one stays as it is.

        Args:
            changes: dotted keys as a recipe and -o have them → values of the types that a checked configuration
                has (they are not checked again): {"Global.seed": 3, "DataLoader.Train.sampler.batch_size": None,
                "Loss.Train.0.CELoss.epsilon": 0.1, "Metric.Eval": [Component("TopkAcc", {...})]}.

        Raises:
            KeyError: there is no such key.
        """
        config = self
        for key, value in changes.items():
            config = _changed(config, tuple(key.split(".")), value, key)
        return config

    def to_dict(self) -> dict:
        """The resolved run as plain values; written to YAML it is a recipe that runs in any folder."""
        out = {f.name: _written(getattr(self, f.name)) for f in dataclasses.fields(self)}
        del out["notes"], out["source"]
        options = out.pop("optimizer_options")
        if self.Optimizer is not None:
            out["Optimizer"] |= options
        out["Global"]["output_dir"] = str(Path(self.Global.output_dir).absolute())
        return {section: keys for section, keys in out.items() if keys is not None}


_LISTS = {"transform_ops": "transforms", "batch_transform_ops": "batch_transforms"}


def _changed(at, path: tuple[str, ...], value, key: str):
    """`at` with what lies below it at `path` exchanged; mappings, sections and components are copied on the way."""
    if not path:
        return frozen(value)
    head, rest = path[0], path[1:]
    if isinstance(at, Config) and head == "Optimizer" and rest and rest[0] in schema.OptimizerOptions.model_fields:
        head = "optimizer_options"
    elif isinstance(at, DataSection) and head == "dataset" and rest and rest[0] in _LISTS:
        head, rest = _LISTS[rest[0]], rest[1:]
    if isinstance(at, Component):
        if head == at.name and rest:  # an item of a list, `- Name: arguments`
            head, rest = rest[0], rest[1:]
        if head in at.arguments:
            return dataclasses.replace(at, arguments=_changed(at.arguments, (head, *rest), value, key))
    if isinstance(at, BaseModel) and head in type(at).model_fields:
        return at.model_copy(update={head: _changed(getattr(at, head), rest, value, key)})
    if isinstance(at, Mapping) and (head in at or not rest):
        return frozen({**at, head: _changed(at.get(head), rest, value, key)})
    if isinstance(at, tuple) and head.isdecimal() and int(head) < len(at):
        i = int(head)
        return (*at[:i], _changed(at[i], rest, value, key), *at[i + 1 :])
    if isinstance(at, (Config, DataSection)) and head in {f.name for f in dataclasses.fields(at)}:
        return dataclasses.replace(at, **{head: _changed(getattr(at, head), rest, value, key)})
    raise KeyError(f"{key}: there is no {head} to replace")


def _written(value):
    """A section, or a value in it, as a recipe has it, in dict, list and scalars."""
    if isinstance(value, Component):
        return {"name": value.name, **_written(value.arguments)}
    if isinstance(value, DataSection):
        dataset = {**_written(value.dataset), "transform_ops": _written(value.transforms)}
        if value.batch_transforms:
            dataset["batch_transform_ops"] = _written(value.batch_transforms)
        return {"dataset": dataset, "sampler": _written(value.sampler), "loader": _written(value.loader)}
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, tuple):  # components in a list are written as `- Name: arguments`
        return [{i.name: _written(i.arguments) or None} if isinstance(i, Component) else _written(i) for i in value]
    return value
