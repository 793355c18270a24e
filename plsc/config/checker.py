"""Raw keys and values → checked sections and components, every problem with its place."""

import inspect
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from plsc.config import plsc_dialect, schema
from plsc.config.coerce import coerce
from plsc.config.frozen import frozen
from plsc.config.paths import resolved
from plsc.config.plsc_dialect import Words
from plsc.config.schema import Component
from plsc.config.source import KeyPath, Source
from plsc.errors import ConfigError
from plsc.registry import DATASETS, MODELS, InputPath, KeysOf, Registry, list_of, mark_of, nearest
from plsc.signatures import shortened, validated

REQUIRED = inspect.Parameter.empty
_MOST_PROBLEMS = 100
Fields = Mapping[str, tuple]  # key → (annotation, default), where REQUIRED is not a default


class Checker:
    """Checks parts of one tree and collects what there is to say.

    Attributes:
        problems, notes: messages, each with its place.
        absent: where components stand that are not there, and that only training needs.
        plsc_files: files that have keys which only PLSC's have.
    """

    def __init__(self, source: Source, *, for_training: bool = True, not_run: Iterable[str] = ()):
        self.source, self.for_training = source, for_training
        self._not_run = list(not_run)
        self.problems: list[str] = []
        self.notes: list[str] = list(source.notes)
        self.absent: list[KeyPath] = []
        self.plsc_files: set[Path] = set()

    def problem(self, path: KeyPath, text: str) -> None:
        """Collect a problem. Raises ConfigError where there are more than anyone reads."""
        self.problems.append(self.source.located(path, text))
        if len(self.problems) >= _MOST_PROBLEMS:
            self.raise_problems()

    def note(self, path: KeyPath, text: str) -> None:
        self.notes.append(self.source.located(path, text))

    def raise_problems(self) -> None:
        """Raise one ConfigError with all problems, if there are any."""
        if self.problems:
            count = len(self.problems)
            head = "the configuration has a problem" if count == 1 else f"the configuration has {count} problems"
            if count >= _MOST_PROBLEMS:
                head = f"the configuration has many problems, of which these are the first {count}"
            raise ConfigError("\n  ".join([f"{head}:", *self.problems]))

    # -- keys and values ------------------------------------------------------------------

    def mapping(self, raw, path: KeyPath, *, empty_ok: bool = True) -> dict:
        """The keys of a section; an absent one has none."""
        if raw is None and empty_ok:
            return {}
        if not isinstance(raw, dict):
            self.problem(path, f"expected keys and values, got {shortened(raw)}")
            return {}
        return raw

    def known_keys(self, raw: dict, known: Iterable[str], path: KeyPath, kind: str = "key") -> None:
        """A problem for each key that is not one of `known`."""
        known = list(known)
        for key in raw:
            if key not in known:
                close = nearest(key, known)
                listed = f"{', '.join(known[:-1])} and {known[-1]}"
                hint = f"did you mean {close}?" if close else f"there are {listed}"
                self.problem((*path, key), f"unknown {kind}; {hint}")

    def value(self, value, annotation, path: KeyPath):
        """The value in its annotated type, or REQUIRED (with a problem noted) where it does not fit."""
        value = coerce(value, annotation)
        try:
            return validated(value, annotation, strict=True)
        except ValueError as error:
            choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
            close = nearest(value, choices) if isinstance(value, str) else None
            self.problem(path, str(error) + (f"; did you mean {close}?" if close else ""))
            return REQUIRED

    def fields(
        self,
        raw: dict,
        fields: Fields,
        path: KeyPath,
        *,
        owner: str,
        words: Words,
        other_keys: Iterable[str] = (),
        supplied: Iterable[str] = (),
    ) -> dict:
        """Every key of `fields` with its checked value or default.

        Args:
            owner: whose keys they are, for messages.
            other_keys: that stand in the section, too, and are checked elsewhere.
            supplied: keys that the engine fills in.
        """
        values = {}
        for key, value in raw.items():
            here, target = (*path, key), words.aliases.get(key, key)
            if target in fields:
                if target in values or (target != key and target in raw):
                    self.problem(here, f"is another name of {target}, which is given too; keep one")
                else:
                    values[target] = self._field(value, fields[target][0], here)
            elif key in words.inert:
                self.note(here, f"accepted, without effect: {words.inert[key]}")
            elif key in words.refused:
                if value is not None and value != words.harmless.get(key, REQUIRED):
                    self.problem(here, f"not offered: {words.refused[key]}")
            elif key in supplied:
                self.problem(here, "cannot be given: the engine fills it in")
            else:
                known = [*fields, *other_keys]
                close = nearest(key, [*known, *words.aliases])
                hint = f"did you mean {close}?" if close else f"it accepts {', '.join(known) or 'no keys'}"
                self.problem(here, f"unknown key of {owner}; {hint}")
        for key, (_, default) in fields.items():
            if key not in values:
                if default is REQUIRED:
                    self.problem((*path, key), f"is missing; {owner} requires it")
                values[key] = default
        return values

    def _field(self, value, annotation, path: KeyPath):
        """One value: of a section, of a list of components, of another factory's keys, or plain."""
        section = _section_of(annotation)
        if section and (value is not None or section is annotation):
            return self.section(section, value, path)
        registry = list_of(annotation)
        if registry:
            return self.items(registry, value, path)
        keys = mark_of(annotation, KeysOf)
        if keys and value is not None:
            return self._keys_of(keys, value, path)
        checked = self.value(value, annotation, path)
        mark = mark_of(annotation, InputPath)
        if mark:
            origin = self.source.origin(path)
            return resolved(checked, mark, origin.file.parent if origin.file else None)
        return checked

    def section(self, cls: type[BaseModel], raw, path: KeyPath):
        """A schema section from its mapping."""
        fields = {}
        for name, info in cls.model_fields.items():
            annotation: typing.Any = info.annotation
            for constraint in info.metadata:
                annotation = typing.Annotated[annotation, constraint]
            fields[name] = (annotation, REQUIRED if info.is_required() else info.get_default(call_default_factory=True))
        raw = self.mapping(raw, path)
        words = plsc_dialect.section(path)
        if raw.keys() & (words.inert.keys() | words.refused.keys()):
            file = self.source.origin(path).file
            self.plsc_files |= {file} if file else set()
        values = self.fields(raw, fields, path, owner=".".join(map(str, path)), words=words)
        return cls.model_construct(**{key: frozen(value) for key, value in values.items()})

    # -- components -----------------------------------------------------------------------

    def component(
        self, registry: Registry, name: str, raw: dict, path: KeyPath, *, at: KeyPath, other_keys: Iterable[str] = ()
    ) -> Component | None:
        """A registered factory's arguments.

        Args:
            at: where its name stands.
            other_keys: of the section, which are not the factory's.
        """
        reason = plsc_dialect.reason_against(registry.kind, name)
        try:
            if reason and name not in registry:
                raise ConfigError(f"{registry.kind} {name} is not part of plsc: {reason}")
            entry = registry.get(name if name in registry else plsc_dialect.name_of(registry.kind, name))
        except ConfigError as error:
            self._unknown(at, str(error))
            return None
        words = plsc_dialect.component(registry.kind, entry.name) | plsc_dialect.section(path)
        arguments = self.fields(
            raw,
            component_fields(registry, entry.name),
            path,
            owner=entry.name,
            words=words,
            other_keys=other_keys,
            supplied=entry.supplied_parameters(),
        )
        for key, (silent_at, remark) in words.remarks.items():
            if key in raw and arguments[key] != silent_at:
                self.note((*path, key), remark)
        return Component(entry.name, arguments, path)

    def _unknown(self, path: KeyPath, text: str) -> None:
        """A component that is not registered: a problem, or a note where only training needs it."""
        if self._not_run:
            allow = " ".join(f"--import {name}" for name in self._not_run)
            text += (
                f"; its configuration imports {', '.join(self._not_run)}, which runs only where you ask for it: "
                f"{allow}, or -c with the recipe"
            )
        if self.for_training or not _only_training_needs(path):
            self.problem(path, text)
        else:
            self.note(path, f"left out, since only training needs it: {text}")
            self.absent.append(path)

    def is_absent(self, *path: str) -> bool:
        """Whether something below a path is not there."""
        return any(absent[: len(path)] == path for absent in self.absent)

    def _keys_of(self, keys: KeysOf, raw, path: KeyPath) -> dict:
        """Another factory's arguments where a parameter takes them."""
        fields = component_fields(keys.registry, keys.name)
        fields = {key: field for key, field in fields.items() if key not in keys.without}
        words = plsc_dialect.component(keys.registry.kind, keys.name)
        return self.fields(self.mapping(raw, path), fields, path, owner=keys.name, words=words)

    def named(
        self, registry: Registry, raw, path: KeyPath, *, default: str | None = None, other_keys: Iterable[str] = ()
    ) -> Component | None:
        """A section of the form `name: X` with its arguments; `other_keys` are not the factory's."""
        raw = dict(self.mapping(raw, path))
        name, at = raw.pop("name", default), (*path, "name")
        if not isinstance(name, str) or not name:
            self.problem(at, f"is missing; it says which {registry.kind} to use")
            return None
        return self.component(registry, name, raw, path, at=at, other_keys=other_keys)

    def items(self, registry: Registry, raw, path: KeyPath) -> tuple[Component, ...]:
        """A list of the form `- X: arguments`."""
        if raw is None:
            return ()
        if not isinstance(raw, list):
            self.problem(path, f"expected a list of {registry.plural}, got {shortened(raw)}")
            return ()
        components = []
        for i, item in enumerate(raw):
            here = (*path, i)
            if isinstance(item, str):
                item = {item: None}
            if not isinstance(item, dict) or len(item) != 1:
                self.problem(here, f"expected one name with its arguments, got {shortened(item)}")
                continue
            [(name, arguments)] = item.items()
            here = (*here, name)
            components.append(self.component(registry, name, self.mapping(arguments, here), here, at=here))
        return tuple(component for component in components if component)

    def modes(self, registry: Registry, raw, path: KeyPath) -> dict[str, tuple[Component, ...]]:
        """A section with Train and Eval lists."""
        raw = self.mapping(raw, path)
        self.known_keys(raw, ("Train", "Eval"), path)
        return {mode: self.items(registry, raw.get(mode), (*path, mode)) for mode in ("Train", "Eval")}


def component_fields(registry: Registry, name: str) -> Fields:
    """The keys that a component takes in a recipe: its factory's, and those of its kind."""
    fields = {}
    for key, parameter in registry.get(name).parameters().items():
        annotation = typing.Any if parameter.annotation is REQUIRED else parameter.annotation
        if registry is MODELS and key == "class_num":
            annotation = annotation | typing.Literal["auto"]  # the data's number of classes
        fields[key] = (annotation, parameter.default)
    return {**schema.DATASET_KEYS, **fields} if registry is DATASETS else fields


def _only_training_needs(path: KeyPath) -> bool:
    """Whether evaluation, prediction and export do without what stands at a path."""
    alone = ("Task", "LRScheduler", "Optimizer", "Loss")
    return path[0] in alone or path[:2] in (("DataLoader", "Train"), ("Metric", "Train"))


def _section_of(annotation) -> type[BaseModel] | None:
    """The schema section that an annotation is, or that it is or None."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
