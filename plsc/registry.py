"""Names in YAML → factories in Python. The registries are plsc's only global state.

A factory's signature is its schema: parameter names, annotations and defaults are what
`plsc list` shows and what the configuration is checked against.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plsc.errors import ConfigError


def nearest(name: str, candidates) -> str | None:
    """The candidate most like `name`, or None where nothing is near."""
    candidates = [str(c) for c in candidates]
    folded = {c.lower().replace("_", ""): c for c in candidates}
    exact = folded.get(str(name).lower().replace("_", ""))
    if exact:
        return exact
    found = difflib.get_close_matches(str(name), candidates, n=1, cutoff=0.6)
    return found[0] if found else None


@dataclass(frozen=True)
class ListOf:
    """Marks a factory's parameter that takes a list of components: Annotated[list, ListOf(TRANSFORMS)].

    In YAML it is a list of the form `- Name: arguments`; the factory receives the built components.
    """

    registry: "Registry"


@dataclass(frozen=True)
class InputPath:
    """Marks a factory's parameter that takes the path of a file or folder to read: Annotated[str, InputPath()].

    In a recipe a relative one is looked for in the working directory, then beside the recipe; the factory receives
    the absolute path.

    Attributes:
        pattern: may hold the wildcards *, ? and [].
        made: the folder is made where it is missing, as one that is downloaded to.
    """

    pattern: bool = False
    made: bool = False


@dataclass(frozen=True)
class KeysOf:
    """Marks a factory's parameter that takes another's arguments: Annotated[dict | None, KeysOf(METRICS, "TopkAcc")].

    The factory receives all of them, checked and with defaults; those in `without` cannot be given.
    """

    registry: "Registry"
    name: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One registered factory and what the configuration may say about it.

    Attributes:
        supplied: parameters the engine fills in (the number of steps, the classes, …);
            they cannot be set from YAML.
        argument_aliases: other spellings of parameters, alias → parameter.
        inert: keys accepted for compatibility that change nothing, key → reason.
        refused: keys known from elsewhere that plsc does not offer, key → reason.
        remarks: keys that differ from where users know them, key → (value at which nothing differs, what does).
    """

    name: str
    factory: Callable
    supplied: frozenset = frozenset()
    argument_aliases: Mapping[str, str] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, tuple] = field(default_factory=dict)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters that YAML may set, in order."""
        return {name: p for name, p in self._signature.items() if name not in self.supplied}

    @functools.cached_property
    def _signature(self) -> Mapping[str, inspect.Parameter]:
        # annotations are texts where their module begins with `from __future__ import annotations`
        return inspect.signature(self.factory, eval_str=True).parameters

    def nested(self) -> dict[str, "Registry"]:
        """Parameters that take lists of components → the components' registry."""
        found = {name: list_of(p.annotation) for name, p in self.parameters().items()}
        return {name: registry for name, registry in found.items() if registry}

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        doc = inspect.getdoc(self.factory) or ""
        return doc.split("\n", 1)[0]

    def build(self, arguments: Mapping[str, Any], **supplied):
        """Call the factory with checked arguments and those `supplied` it asks for."""
        wanted = {k: v for k, v in supplied.items() if k in self.supplied}
        return self.factory(**arguments, **wanted)


def list_of(annotation) -> "Registry | None":
    """The registry of an annotation marked with ListOf."""
    mark = _mark(annotation, ListOf)
    return mark.registry if mark else None


def keys_of(annotation) -> KeysOf | None:
    """The KeysOf that an annotation is marked with."""
    return _mark(annotation, KeysOf)


def _mark(annotation, kind: type):
    return next((mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, kind)), None)


def _place(factory: Callable) -> str:
    """Module and name of a definition; one that is made again, as in a notebook's cell, has the same."""
    return f"{factory.__module__}.{factory.__qualname__}"


def _check_signature(factory: Callable) -> None:
    """Refuse a factory whose signature does not say every argument by its name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind not in named:
            raise ConfigError(
                f"{_place(factory)} cannot be registered: recipes are checked against its signature, so that each "
                f"argument has a name there, unlike {parameter}"
            )


def missing_members(component, protocol: type) -> list[str]:
    """The public members of a `typing.Protocol` class that a component lacks."""
    members = [*protocol.__annotations__, *vars(protocol)]
    public = [name for name in members if not name.startswith("_") or name == "__call__"]
    return [name for name in dict.fromkeys(public) if not hasattr(component, name)]


class Registry:
    """Names of one kind of component."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._refused_prefixes: dict[str, str] = {}

    @property
    def plural(self) -> str:
        return "losses" if self.kind == "loss" else f"{self.kind}s".replace(" ", "_")

    def register(
        self,
        name: str | None = None,
        *,
        aliases=(),
        supplied=(),
        argument_aliases=None,
        inert=None,
        refused=None,
        remarks=None,
    ):
        """Decorator: make a class or function available under `name` (default: its own)."""

        def add(factory):
            _check_signature(factory)
            entry = Entry(
                name=name or factory.__name__,
                factory=factory,
                supplied=frozenset(supplied),
                argument_aliases=dict(argument_aliases or {}),
                inert=dict(inert or {}),
                refused=dict(refused or {}),
                remarks=dict(remarks or {}),
            )
            for key in (entry.name, *aliases):
                present = self._entries.get(self._aliases.get(key, key))
                if present and _place(present.factory) != _place(factory):
                    raise ConfigError(
                        f"{self.kind} {key} of {_place(factory)} cannot be registered: {_place(present.factory)} has "
                        "the name; choose another"
                    )
            self._entries[entry.name] = entry
            self._aliases.update(dict.fromkeys(aliases, entry.name))
            return factory

        return add

    def refuse(self, name: str, reason: str, *, prefix: bool = False):
        """Know a name from elsewhere, or how such names begin in any case, and say why plsc does not have it."""
        if prefix:
            self._refused_prefixes[name.lower()] = reason
        else:
            self._refused[name] = reason

    def _reason_against(self, name: str) -> str | None:
        if name in self._refused:
            return self._refused[name]
        return next((why for start, why in self._refused_prefixes.items() if name.lower().startswith(start)), None)

    def __contains__(self, name) -> bool:
        return name in self._entries or name in self._aliases

    def __iter__(self):
        return iter(sorted(self._entries))

    def get(self, name: str) -> Entry:
        """The entry of `name`. Raises ConfigError with the nearest name if there is none."""
        name = self._aliases.get(name, name)
        if name in self._entries:
            return self._entries[name]
        reason = self._reason_against(name)
        if reason:
            raise ConfigError(f"{self.kind} {name} is not part of plsc: {reason}")
        known = [*self._entries, *self._aliases]
        close = nearest(name, known)
        if close:
            hint = f"did you mean {close}?"
        elif len(known) <= 12:
            hint = "there are " + ", ".join(sorted(known))
        else:
            hint = f"`plsc list {self.plural}` shows them all"
        raise ConfigError(f"no {self.kind} is called {name!r}; {hint}")

    def aliases_of(self, name: str) -> list[str]:
        return sorted(alias for alias, target in self._aliases.items() if target == name)


MODELS = Registry("model")
DATASETS = Registry("dataset")
TRANSFORMS = Registry("transform")
BATCH_TRANSFORMS = Registry("batch transform")
SAMPLERS = Registry("sampler")
OPTIMIZERS = Registry("optimizer")
SCHEDULERS = Registry("scheduler")
LOSSES = Registry("loss")
METRICS = Registry("metric")

MODELS.refuse("convnext", "only Vision Transformers are offered", prefix=True)
for _prefix in ("swin_", "cait_", "mae_", "convmae_", "cae_"):
    MODELS.refuse(_prefix, "only plain Vision Transformers are offered", prefix=True)
for _prefix in ("iresnet", "mobilefacenet", "facevit"):
    MODELS.refuse(_prefix, "face recognition is not offered", prefix=True)
for _name in ("FaceIdentificationDataset", "FaceVerificationDataset", "FaceRandomDataset"):
    DATASETS.refuse(_name, "face recognition is not offered")
_SELF_SUPERVISED = "it serves self-supervised training, which is not offered"
for _name in ("TwoViewsTransform", "RandomResizedCropWithTwoImages", "SimCLRGaussianBlur", "BYOLSolarize"):
    TRANSFORMS.refuse(_name, _SELF_SUPERVISED)
LOSSES.refuse("MarginLoss", "face recognition is not offered")
METRICS.refuse("LFWAcc", "face recognition is not offered")
