"""Weights of one model → arrays for another of the same family, and a report of what was done."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import numpy as np

from plsc.errors import CheckpointError
from plsc.weights.families import Target, family_of_spec
from plsc.weights.read import LazyArrays, Source


@dataclass
class Report:
    """What became of each array: names with shapes.

    Attributes:
        loaded: taken as they are. adapted: name → how. initialised: of the model, not in the file.
        ignored: in the file, not in the model.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    layout: str = "plsc"

    @property
    def exact(self) -> bool:
        return not (self.adapted or self.initialised or self.ignored)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} arrays loaded as they are (names of {self.layout})"]
        for title, entries in (
            ("adapted", self.adapted),
            ("initialised", self.initialised),
            ("ignored", self.ignored),
        ):
            lines += [f"  {title:<12}{name:<32}{how}" for name, how in entries.items()]
        return "\n".join(lines)


def _shown(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def adapt(
    source: Source,
    shapes: Mapping[str, Sequence[int]],
    spec: Any,
    *,
    reset_head: bool = False,
    strict: bool = False,
    resized: bool = False,
    allow: Sequence[str] = (),
    class_names: list[str] | None = None,
    position: str = "bicubic",
) -> tuple[Mapping[str, np.ndarray], Report]:
    """Fit a Source to a model.

    Args:
        shapes: the model's parameters and buffers, name → shape. spec: of the model.
        reset_head: leave out head and pre-logits, to be trained from scratch.
        strict: anything but loading as it is raises CheckpointError, as evaluation asks.
        resized: strict admits what another image size changes, such as a position embedding.
        allow: patterns of names that may be left out or initialised, where the start is not strict; otherwise only the
            head and what goes with it may.
        class_names: of the model's classes; the head's columns are picked by name where the file has names too.
        position: how a position embedding is resized, bicubic or bilinear.

    Returns:
        (arrays to load, read when asked for; Report).
    """
    family = family_of_spec(spec)
    classifier, computed = family.classifiers or family.head[0], family.computed(spec)
    makers: dict[str, Callable[[], np.ndarray]] = {}
    report, by_size = Report(layout=source.layout), set()
    columns = _columns(source, class_names)
    names_there, names_here = source.card.class_names or [], class_names or []
    if strict and columns is not None and not reset_head:
        theirs = [name for name in names_there if name not in names_here]
        ours = [name for name in names_here if name not in names_there]
        raise CheckpointError(
            f"{source.path}: has {len(names_there)} classes, the data set {len(names_here)}"
            + (f"; only in the checkpoint: {', '.join(theirs[:5])}" if theirs else "")
            + (f"; only in the data set: {', '.join(ours[:5])}" if ours else "")
            + ("" if theirs or ours else ", in another order")
        )
    for name, shape in shapes.items():
        shape = tuple(shape)
        tensor = source.tensors.get(name)
        if tensor is None and name in computed:
            continue
        if tensor is None:
            report.initialised[name] = f"{_shown(shape)}, not in the file"
            continue
        change = f"{_shown(tensor.shape)} → {_shown(shape)}"
        if reset_head and name.startswith(family.head):
            report.initialised[name] = f"{_shown(shape)}, trained from scratch"
        elif name.startswith(classifier) and columns == "other":
            report.initialised[name] = f"{_shown(shape)}, the file has other classes"
        elif name.startswith(classifier) and columns is not None and tensor.shape[-1] == len(names_there):
            makers[name] = partial(_picked, source, name, columns)
            report.adapted[name] = f"{change}, classes picked by name"
        elif name.startswith(family.head) and not _whole_layer_fits(source, name, shapes):
            report.initialised[name] = f"{_shown(shape)}, the file has {_shown(tensor.shape)}"
        elif (adapted := family.adapt(source, tensor, Target(name, shape, spec, position))) is not None:
            makers[name] = adapted.read
            report.adapted[name] = f"{change}, {adapted.how}"
            by_size |= {name} if adapted.by_size else set()
        elif tensor.shape == shape:
            makers[name] = partial(source.read, name)
            report.loaded.append(name)
        else:
            raise CheckpointError(
                f"{source.path}: {name} has shape {_shown(tensor.shape)}, the model {_shown(shape)}; "
                "is Model.name that of the checkpoint?"
            )
    report.ignored = {
        name: f"{_shown(t.shape)}, not in the model" for name, t in source.tensors.items() if name not in shapes
    }
    report.ignored.update({name: f"{_shown(shape)}, unknown name" for name, shape in source.unknown.items()})
    if not report.loaded:
        raise CheckpointError(f"{source.path}: none of its {len(source.tensors)} arrays fits the model")
    if strict and (report.initialised or report.ignored or set(report.adapted) - (by_size if resized else set())):
        raise CheckpointError(f"{source.path}: does not fit the model as it is:\n{report}")
    if not strict:
        _check_body(source, report, family.body, allow)
    return LazyArrays(makers), report


def _check_body(source: Source, report: Report, body: str, allow: Sequence[str]) -> None:
    """Raise CheckpointError where a part of the model's body is left out or initialised, and no pattern allows it."""
    pattern = re.compile(body) if body else None
    lines: list[str] = []
    missing: list[str] = []
    for title, entries in (("left out", report.ignored), ("initialised", report.initialised)):
        names = [name for name in entries if pattern is not None and pattern.fullmatch(name)]
        groups: dict[str, list[str]] = {}
        for name in names:
            if not any(fnmatchcase(name, allowed) for allowed in allow):
                groups.setdefault(re.sub(r"(?<=[./_])[0-9]+(?=[./])", "*", name), []).append(name)
        lines += [f"  {title:<12}{group:<40}{_how(entries, group_names)}" for group, group_names in groups.items()]
        missing += groups
    if lines:
        listed = "\n".join(lines)
        raise CheckpointError(
            f"{source.path}: training does not start from these weights as they are: parts of the model are left "
            f"out or initialised:\n{listed}\nIs Model that of the weights? To start all the same: "
            f"Global.pretrained_allow: [{', '.join(dict.fromkeys(missing))}] (pretrained_allow of create_model)"
        )


def _how(entries: Mapping[str, str], names: list[str]) -> str:
    count = f"{len(names)} arrays, " if len(names) > 1 else ""
    return count + entries[names[0]]


def _picked(source: Source, name: str, columns: Any) -> np.ndarray:
    return source.read(name)[..., columns]


def _columns(source: Source, class_names: list[str] | None) -> "list[int] | Literal['other'] | None":
    """Columns of the file's head in the order of the model's classes; None: as they are; "other": they differ."""
    theirs = source.card.class_names
    if class_names is None or theirs is None or theirs == class_names or len(set(theirs)) != len(theirs):
        return None
    place = {name: i for i, name in enumerate(theirs)}
    if not all(name in place for name in class_names):
        return "other"
    return [place[name] for name in class_names]


def _whole_layer_fits(source: Source, name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether weight and bias of a layer both fit: half a head is none."""
    layer = name.rpartition(".")[0] + "."
    return all(
        key in source.tensors and source.tensors[key].shape == tuple(shape)
        for key, shape in shapes.items()
        if key.startswith(layer)
    )
