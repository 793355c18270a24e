"""A checked run: frozen, with its own copy for every change."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from plsc.config import schema
from plsc.config.paths import missing
from plsc.config.schema import Component, DataSection
from plsc.config.source import Source
from plsc.errors import ConfigError
from plsc.registry import InputPath


@dataclass(frozen=True)
class Config:
    """A run, checked. Sections are attributes.

    Attributes:
        notes: what was accepted without effect, or otherwise than its author may expect.
        source: what it was read from; it knows where each key was written.
    """

    Global: schema.Global
    DistributedStrategy: schema.DistributedStrategy
    FP16: schema.FP16 | None
    EMA: schema.EMA | None
    Model: Component
    Task: Component | None
    Loss: dict[str, list[Component]]
    LRScheduler: Component
    Optimizer: Component
    optimizer_options: schema.OptimizerOptions
    DataLoader: dict[str, DataSection]
    Metric: dict[str, list[Component]]
    Export: schema.Export
    notes: list[str] = field(default_factory=list)
    source: Source = field(default_factory=Source)

    def error(self, path: tuple, text: str) -> ConfigError:
        """A ConfigError that names the key and where it was written."""
        return ConfigError(self.source.located(path, text))

    def check_input(self, path: tuple, value, mark: InputPath = InputPath()) -> None:  # noqa: B008
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
        out = {
            "Global": {**self.Global.model_dump(), "output_dir": str(Path(self.Global.output_dir).absolute())},
            "DistributedStrategy": self.DistributedStrategy.model_dump(),
            "FP16": self.FP16.model_dump() if self.FP16 else None,
            "EMA": self.EMA.model_dump() if self.EMA else None,
            "Model": self.Model.as_section(),
            "Task": self.Task.as_section() if self.Task else None,
            "Loss": {mode: [c.as_item() for c in items] for mode, items in self.Loss.items()},
            "LRScheduler": self.LRScheduler.as_section(),
            "Optimizer": {**self.Optimizer.as_section(), **self.optimizer_options.model_dump()},
            "DataLoader": {mode: _data_as_dict(section) for mode, section in self.DataLoader.items()},
            "Metric": {mode: [c.as_item() for c in items] for mode, items in self.Metric.items()},
            "Export": self.Export.model_dump(),
        }
        return _plain({k: v for k, v in out.items() if v is not None})


_LISTS = {"transform_ops": "transforms", "batch_transform_ops": "batch_transforms"}


def _changed(at, path: tuple[str, ...], value, key: str):
    """`at` with what lies below it at `path` exchanged; mappings, sections and components are copied on the way."""
    if not path:
        return value
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
        return {**at, head: _changed(at.get(head), rest, value, key)}
    if isinstance(at, (list, tuple)) and head.isdecimal() and int(head) < len(at):
        i = int(head)
        return type(at)([*at[:i], _changed(at[i], rest, value, key), *at[i + 1 :]])
    if isinstance(at, (Config, DataSection)) and head in {f.name for f in dataclasses.fields(at)}:
        return dataclasses.replace(at, **{head: _changed(getattr(at, head), rest, value, key)})
    raise KeyError(f"{key}: there is no {head} to replace")


def _data_as_dict(section: DataSection) -> dict:
    dataset = section.dataset.as_section()
    dataset["transform_ops"] = [c.as_item() for c in section.transforms]
    if section.batch_transforms:
        dataset["batch_transform_ops"] = [c.as_item() for c in section.batch_transforms]
    return {"dataset": dataset, "sampler": section.sampler.as_section(), "loader": section.loader.model_dump()}


def _plain(value):
    if isinstance(value, Component):
        return _plain(value.as_item())
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
