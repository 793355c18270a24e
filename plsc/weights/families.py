"""Families of models: what their weights are called, and what weights of theirs tell. plsc.models registers its own.

A model without a family loads, trains and is saved; its family is needed to open and write weights of other codebases,
and where weights of another size are to be adapted.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from plsc import components
from plsc.errors import CheckpointError, ConfigError
from plsc.signatures import describe
from plsc.weights.layouts import Layout, Spec, Tensors
from plsc.weights.tensors import Tensor

if TYPE_CHECKING:
    from plsc.weights.read import Source


@dataclass(frozen=True)
class Target:
    """A place in the model that weights are loaded into.

    Attributes:
        name, shape: of the parameter. spec: of the model. position: how position embeddings are resized.
    """

    name: str
    shape: tuple[int, ...]
    spec: Any
    position: str


@dataclass(frozen=True)
class Adapted:
    """An array that was fitted to another model.

    Attributes:
        how: in words, for the report. by_size: whether another image size alone makes it differ.
    """

    how: str
    read: Callable[[], np.ndarray]
    by_size: bool = False


@dataclass(frozen=True)
class Family:
    """What one kind of model tells plsc of its weights.

    Attributes:
        model: the registered model that any spec of the family rebuilds; the layouts' weights are its.
        models: all registered names of the family.
        spec: the dataclass of its specs, whose types and bounds hold for what files say.
        layouts: other codebases' names, the first that recognises a file reads it.
        names: a pattern of the family's own names, for layouts that share them.
        infer: (shapes by name, fields that are stated) → the spec's fields as far as they tell.
        unseen: fields of the spec that no array's shape shows: a model that differs in them loads, and computes
            otherwise.
        usual: those of `unseen` that `infer` leaves open, with the values that are assumed where they are not stated.
        needed: those of `unseen` that `infer` guesses; strict readers refuse a guess.
        architectures: names of published ones → the spec's fields that shapes do not show, and some that shapes do,
            by which a name is checked.
        matrices: endings of names of linear layers → wide or tall, as the matrix stands in the model: [in, out].
        dimensions: patterns of names → how many dimensions such an array has; the first that fits counts.
        block: a pattern of how names in a block begin, such as blocks.3.; all blocks have the same arrays.
        head: how names of the head begin, that of the classifier first.
        classifiers: how names of all that has a column a class begin; () where it is the first of head alone.
        body: a pattern of names, its own and in files of others, of what a model is without its head: training does not
            start from weights of which such an array is left out, or initialised, unless it is asked to.
        parts: those of `unseen` that are parts of the body without arrays of their own.
        computed: spec → names of arrays whose values follow from it.
        without_head: fields of the spec of a model without it.
        adapt: (source, array, target) → the array fitted to another model; None where it is not, or need not be.
    """

    model: str = ""
    models: frozenset[str] = frozenset()
    spec: type | None = None
    layouts: tuple[Layout, ...] = ()
    names: str = ".+"
    infer: Callable[[Mapping[str, tuple], Mapping[str, Any]], dict[str, Any]] = lambda shapes, stated: dict(stated)
    unseen: tuple[str, ...] = ()
    usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()
    architectures: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    matrices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dimensions: tuple[tuple[str, int], ...] = ()
    block: str | None = None
    head: tuple[str, ...] = ("head.",)
    classifiers: tuple[str, ...] = ()
    body: str = ""
    parts: tuple[str, ...] = ()
    computed: Callable[[Any], frozenset[str]] = lambda spec: frozenset()
    without_head: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"class_num": 0})
    adapt: "Callable[[Source, Tensor, Target], Adapted | None]" = lambda source, tensor, target: None

    def is_own(self, name: str) -> bool:
        """Whether a name is one that its models have."""
        return re.fullmatch(self.names, name) is not None

    def architecture(self, path: Path) -> str | None:
        """The published architecture whose name a file's name, or that of its folder, begins with.

        A tag or hash may follow after a dot or a hyphen: vit_base_patch16_224.augreg_in21k, deit_tiny-a1311bcf.pth. A
        folder may be one of Hugging Face's cache.
        """
        path = Path(os.path.abspath(path))  # links stay: Hugging Face's cache consists of them
        cached = [part.rpartition("--")[2] for part in path.parts[:-1] if part.startswith("models--")]
        for place in (path.name, path.parent.name, *cached[-1:]):
            fitting = [
                name
                for name in self.architectures
                if place.startswith(name) and place[len(name) : len(name) + 1] in ("", ".", "-")
            ]
            if fitting:
                return max(fitting, key=len)
        return None

    def check(self, spec: Spec) -> None:
        """Raise CheckpointError for a field of a spec that has a value of another type, or out of its bounds."""
        if self.spec is None:
            return
        for field in dataclasses.fields(self.spec):
            if field.name not in spec:
                continue
            kind: Any = field.type
            try:  # as JSON, where 16 is a number, "16" is none, and a list may be a tuple
                TypeAdapter(kind).validate_json(json.dumps(spec[field.name]), strict=True)
            except (ValidationError, TypeError, ValueError) as error:
                expected = describe(kind)
                raise CheckpointError(
                    f"damaged: the spec's {field.name} is {spec[field.name]!r}, expected {expected}"
                ) from error

    def check_arrays(self, tensors: Tensors) -> None:
        """Raise CheckpointError for arrays of a wrong number of dimensions or without values, and for half a block."""
        blocks: dict[str, set[str]] = {}
        for name, tensor in tensors.items():
            shape = tensor.shape
            known = next((n for pattern, n in self.dimensions if re.fullmatch(pattern, name)), None)
            wanted = len(shape) if known is None else known
            if len(shape) != wanted or not all(shape):
                raise CheckpointError(f"{name} has shape {list(shape)}; it needs {wanted} dimensions, none of them 0")
            if known == 3 and shape[0] != 1:
                raise CheckpointError(f"{name} has shape {list(shape)}; its first dimension must be 1")
            in_block = re.match(self.block, name) if self.block else None
            if in_block:
                blocks.setdefault(in_block[0], set()).add(name[in_block.end() :])
        everything = set().union(*blocks.values())
        for block, names in blocks.items():
            if names != everything:
                missing = ", ".join(sorted(block + name for name in everything - names)[:3])
                raise CheckpointError(f"{missing} is missing, while other blocks have it")


DEFAULT = Family()  # of models that registered none
_families: list[Family] = []


def register_family(family: Family) -> None:
    """Let weights of a family be opened and written.

    Raises:
        ConfigError: another family has one of its models.
    """
    others = [other for other in _families if other.model != family.model]  # it may be made again, as in a notebook
    for other in others:
        if family.models & other.models:
            both = ", ".join(sorted(family.models & other.models))
            raise ConfigError(f"the family of {family.model} cannot be registered: {other.model}'s has {both} already")
    _families[:] = [*others, family]


@functools.cache
def _register_all() -> None:
    components.register_models()


def families() -> list[Family]:
    """All that are registered, plsc's own and those of installed packages."""
    _register_all()
    return list(_families)


def family_of(model: str | None) -> Family:
    """The family of a model by its registered name; DEFAULT where it has none."""
    return next((family for family in families() if model in family.models), DEFAULT)


def family_of_spec(spec: Any) -> Family:
    """The family of a model by its spec; DEFAULT where it has none."""
    return next((family for family in families() if family.spec is not None and isinstance(spec, family.spec)), DEFAULT)
