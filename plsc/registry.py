"""Names in recipes → factories in Python. The registries are plsc's only global state.

A factory's signature is its schema: parameter names, annotations (with bounds, see plsc.signatures) and defaults are
what `plsc list` shows and what a configuration is checked against.
"""

import difflib
import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from plsc.errors import ConfigError
from plsc.signatures import Factory, holding_bounds, parameters

Mark = TypeVar("Mark")


def nearest(name: str, candidates: Iterable) -> str | None:
    """The candidate most like `name`, or None where nothing is near."""
    candidates = [str(c) for c in candidates]
    folded = {c.lower().replace("_", ""): c for c in candidates}
    exact = folded.get(str(name).lower().replace("_", ""))
    if exact:
        return exact
    close = difflib.get_close_matches(str(name), candidates, n=1, cutoff=0.6)
    return close[0] if close else None


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern as of files fits, such as "ViT_small*", in any case."""
    fits = re.compile(fnmatch.translate(pattern), re.IGNORECASE).fullmatch
    return [name for name in names if fits(name)]


@dataclass(frozen=True)
class ListOf:
    """Marks a factory's parameter that takes a list of components: Annotated[list, ListOf(TRANSFORMS)].

    In a recipe it is a list of the form `- Name: arguments`; the factory receives the built components.
    """

    registry: "Registry"


@dataclass(frozen=True)
class KeysOf:
    """Marks a factory's parameter that takes another's arguments: Annotated[dict | None, KeysOf(METRICS, "TopkAcc")].

    The factory receives all of them, checked and with defaults; those in `without` cannot be given.
    """

    registry: "Registry"
    name: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputPath:
    """Marks a factory's parameter that takes the path of a file or folder to read: Annotated[str, InputPath()].

    A recipe's relative path is looked for in the working directory, then beside the recipe; the factory receives one
    that is there. A run's config.yaml has the absolute path.

    Attributes:
        pattern: may hold the wildcards *, ? and [].
        made: need not be there, since the component makes it, as a folder that it downloads to.
    """

    pattern: bool = False
    made: bool = False


def mark_of(annotation: Any, kind: type[Mark]) -> Mark | None:
    """What an annotation, or a part of a union, is marked with of a kind; None where it is not."""
    marks = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, kind)]
    if marks:
        return marks[0]
    parts = getattr(annotation, "__args__", ())
    return next((mark for mark in (mark_of(part, kind) for part in parts) if mark), None)


def list_of(annotation: Any) -> "Registry | None":
    """The registry of an annotation marked with ListOf."""
    mark = mark_of(annotation, ListOf)
    return mark.registry if mark else None


def missing_members(component: Any, protocol: type) -> list[str]:
    """The public members of a `typing.Protocol` class that a component lacks."""
    members = [*protocol.__annotations__, *vars(protocol)]
    public = [name for name in members if not name.startswith("_") or name == "__call__"]
    return [name for name in dict.fromkeys(public) if not hasattr(component, name)]


@dataclass(frozen=True)
class Entry:
    """One registered factory.

    Attributes:
        supplied: parameters that the engine fills in (the number of steps, the parameter groups, …); recipes cannot
            set them.
    """

    name: str
    factory: Callable
    supplied: frozenset[str] = frozenset()

    @functools.cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return parameters(self.factory)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters that recipes may set, in order."""
        return {name: p for name, p in self._parameters.items() if name not in self.supplied}

    def supplied_parameters(self) -> list[str]:
        """The parameters that the engine fills in."""
        return [name for name in self._parameters if name in self.supplied]

    def nested(self) -> dict[str, "Registry"]:
        """Parameters that take lists of components → the components' registry."""
        registries = {name: list_of(p.annotation) for name, p in self.parameters().items()}
        return {name: registry for name, registry in registries.items() if registry}

    def inputs(self) -> dict[str, InputPath]:
        """Parameters that take paths of files to read → their marks."""
        marks = {name: mark_of(p.annotation, InputPath) for name, p in self.parameters().items()}
        return {name: mark for name, mark in marks.items() if mark}

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        doc = inspect.getdoc(self.factory) or ""
        return doc.split("\n", 1)[0]

    def build(self, arguments: Mapping[str, Any], **supplied: Any) -> Any:
        """Call the factory with checked arguments and those `supplied` that it has parameters for."""
        wanted = {name: supplied[name] for name in self.supplied_parameters() if name in supplied}
        return self.factory(**arguments, **wanted)


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


class Registry:
    """Names of one kind of component.

    Args:
        kind: "loss", as messages call one.
        supplied: parameters that the engine fills in for every factory that has them.
    """

    def __init__(self, kind: str, supplied: Iterable[str] = ()):
        self.kind = kind
        self.supplied = frozenset(supplied)
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}

    @property
    def plural(self) -> str:
        return "losses" if self.kind == "loss" else f"{self.kind}s".replace(" ", "_")

    def register(
        self, name: str | None = None, *, aliases: Iterable[str] = (), supplied: Iterable[str] = ()
    ) -> Callable[[Factory], Factory]:
        """Decorator: make a class or function available in recipes.

        Its signature is the schema of its arguments. Bounds in it hold for calls from Python as well.

        Args:
            name: in recipes; default: the factory's own.
            aliases: other names.
            supplied: parameters that recipes cannot set, besides those of the registry.

        Raises:
            ConfigError: another factory has the name, or the signature has *args or **kwargs.

        Example:
            @TRANSFORMS.register()
            class Invert:
                def __init__(self, p: Annotated[float, Field(ge=0, le=1)] = 0.5): ...
        """

        def add(factory: Factory) -> Factory:
            _check_signature(factory)
            own = name or factory.__name__
            for key in (own, *aliases):
                present = self._entries.get(self._aliases.get(key, key))
                if present and _place(present.factory) != _place(factory):
                    raise ConfigError(
                        f"{self.kind} {key} of {_place(factory)} cannot be registered: {_place(present.factory)} has "
                        "the name; choose another"
                    )
            factory = holding_bounds(factory, own)
            self._entries[own] = Entry(own, factory, self.supplied | frozenset(supplied))
            self._aliases.update(dict.fromkeys(aliases, own))
            return factory

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def get(self, name: str) -> Entry:
        """The entry of `name`. Raises ConfigError with the nearest name if there is none."""
        name = self._aliases.get(name, name)
        if name in self._entries:
            return self._entries[name]
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
SAMPLERS = Registry("sampler", supplied=("size", "seed", "rank", "world", "shard_sizes"))
OPTIMIZERS = Registry("optimizer", supplied=("groups", "multi_precision"))
SCHEDULERS = Registry("scheduler", supplied=("total_steps", "steps_per_epoch"))
LOSSES = Registry("loss")
METRICS = Registry("metric")
TASKS = Registry("task", supplied=("mode", "loss", "mixing", "class_num"))
