"""Tables of names: somebody's arrays ⇄ a model's own, each table used in both directions.

A family of models (plsc.weights.families) has a Layout for each codebase whose weights it opens. A Layout is a list of
rules; reading goes through them from theirs to ours, writing from ours to theirs, and the first rule that fits an
array's name is the one that counts. Arrays are turned lazily: their shapes are known at once.

Names in rules are patterns: {i} is a number, {i+1} the same number counted from 1, {p} is weight or bias, and <a|b> is
a or b, of which the first is written.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plsc.errors import CheckpointError
from plsc.weights.tensors import Tensor, joined

Tensors = Mapping[str, Tensor]
Spec = Mapping[str, Any]

_PART = re.compile(r"\{(\w)(\+1)?\}|<([^>]*)>")
_WRAPPED = 4  # prefixes, at most
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "teacher.", "student.", "_layers.", "_orig_mod.")


class Name:
    """A pattern of names, see the head of this file."""

    def __init__(self, text: str):
        self._parts = _PART.split(text)  # text, field, +1, alternatives, text, …
        pattern, seen = "", set()
        for k in range(0, len(self._parts), 4):
            pattern += re.escape(self._parts[k])
            field, _, choices = self._parts[k + 1 : k + 4] or (None, None, None)
            if choices is not None:
                pattern += f"(?:{'|'.join(map(re.escape, choices.split('|')))})"
            elif field is not None:
                kind = "weight|bias" if field == "p" else "[0-9]+"
                pattern += f"(?P={field})" if field in seen else f"(?P<{field}>{kind})"
                seen.add(field)
        self._pattern = re.compile(pattern)

    def match(self, name: str) -> dict[str, str] | None:
        """The fields of a name; None where it does not fit."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        shifted = {field for field, plus in zip(self._parts[1::4], self._parts[2::4], strict=True) if plus}
        return {field: str(int(v) - 1) if field in shifted else v for field, v in match.groupdict().items()}

    def fill(self, fields: Mapping[str, str]) -> str:
        """The name that has these fields."""
        text = self._parts[0]
        for k in range(1, len(self._parts), 4):
            field, plus, choices, rest = self._parts[k : k + 4]
            if choices is not None:
                text += choices.split("|")[0]
            else:
                text += str(int(fields[field]) + 1) if plus else fields[field]
            text += rest
        return text


@dataclass(frozen=True)
class Turn:
    """How an array's values stand in a file.

    Attributes:
        read: (array, all of the file's arrays) → the model's array.
        write: (the model's array, its spec) → the file's array.
        dimensions: of the file's array; None for any number.
    """

    read: Callable[[Tensor, Tensors], Tensor] = lambda tensor, _: tensor
    write: Callable[[Tensor, Spec], Tensor] = lambda tensor, _: tensor
    dimensions: int | None = None


AS_IS = Turn()


def never(spec: Spec) -> bool:
    """For rules of spellings that are read and not written."""
    return False


class Rule:
    """One row of a table.

    Args:
        ours: the model's name of an array.
        theirs: the file's name, or several: their arrays stand side by side, in this order, along the last axis of
            ours.
        turn: how the values of each of theirs stand there.
        written: whether a model with this spec is written so.
    """

    def __init__(
        self,
        ours: str,
        theirs: str | tuple[str, ...],
        turn: Turn = AS_IS,
        *,
        written: Callable[[Spec], bool] = lambda spec: True,
    ):
        self.ours, self.turn, self.written = Name(ours), turn, written
        self.theirs = [Name(name) for name in ((theirs,) if isinstance(theirs, str) else theirs)]


@dataclass(frozen=True)
class Lack:
    """Something that a model can have and a format cannot hold.

    Attributes:
        field: of the model's spec. what: in words.
        harmless: values with which the model does not have it; an absent field has the first.
        beside: values of other fields without which it does no harm.
    """

    field: str
    what: str
    harmless: tuple = (None,)
    beside: tuple[tuple[str, Any], ...] = ()

    def refuse(self, spec: Spec, format: str) -> None:
        """Raise CheckpointError where the model has it."""
        value = spec.get(self.field, self.harmless[0])
        if value not in self.harmless and all(spec.get(name) == other for name, other in self.beside):
            raise CheckpointError(f"{format} has no place for {self.what} (the model's {self.field} is {value!r})")


@dataclass(frozen=True)
class Setting:
    """A field of a model's spec in Hugging Face's config.json.

    Attributes:
        theirs, ours: its names. values: theirs → ours, where they differ; of several for one of ours the first is
            written.
        stated: whether reading takes it, as no array's shape shows it.
        default: of a spec that does not have the field; None where it must, or where the entry is left out.
    """

    theirs: str
    ours: str
    values: Mapping[Any, Any] | None = None
    stated: bool = False
    default: Any = None

    def read(self, value: Any, where: str) -> Any:
        """Ours of theirs. Raises CheckpointError, which `where` begins, for a value that the model does not have."""
        if self.values is None:
            return value
        if not isinstance(value, str) or value not in self.values:
            known = ", ".join(map(str, self.values))
            raise CheckpointError(f"{where}: {self.theirs} is {value!r}, which the model does not have; it has {known}")
        return self.values[value]

    def write(self, value: Any) -> Any:
        """Theirs of ours. Raises StopIteration where there is none."""
        return value if self.values is None else next(theirs for theirs, ours in self.values.items() if ours == value)


@dataclass(frozen=True)
class HuggingFace:
    """What a folder of Hugging Face's has besides arrays.

    Attributes:
        settings: fields of the spec in config.json. constants: what else stands there.
        architectures: transformers' classes with a head and without.
        derived: spec → further entries.
        required: entries that have this value, where they stand there at all.
        tower: the entry in which the settings stand, of models that have another tower besides; None where they stand
            among the other entries.
    """

    settings: tuple[Setting, ...]
    constants: Mapping[str, Any]
    architectures: tuple[str, str]
    derived: Callable[[Spec], dict[str, Any]] = lambda spec: {}
    required: Mapping[str, Any] = field(default_factory=dict)
    tower: str | None = None


@dataclass(frozen=True)
class Timm:
    """What timm's config.json states besides arrays.

    Attributes:
        settings: fields of the spec in its model_args.
        architecture: spec → the one that rebuilds it, given model_args; None where no arguments do.
        stated: fields that were read one by one → as they go together. derived: spec → model_args besides settings.
        read_only: settings that are read and not written.
        seen: arguments that arrays show, or that change no logit. Others that are not settings are refused.
    """

    settings: tuple[Setting, ...]
    architecture: Callable[[Spec], str | None]
    stated: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    read_only: tuple[Setting, ...] = ()
    seen: frozenset[str] = frozenset()
    derived: Callable[[Spec], dict[str, Any]] = lambda spec: {}


@dataclass(frozen=True)
class Layout:
    """One codebase's names and orientation of one family's arrays.

    Attributes:
        name: of the format, such as timm.
        title: of the codebase in messages, such as "Hugging Face's ViT".
        rules: the table.
        probe: a name by which a file is recognised, once wrappers such as module. are off.
        open: instead of a probe: a file's arrays → those that the rules know, None where it is another's file.
        close: what open does to arrays, undone: those that the rules wrote, and the model's spec → the file's.
        own_names: whether the model's own names are theirs, too.
        linear: whether matrices of linear layers stand as [in, out] or as [out, in]. Files of the latter kind are asked
            for their orientation when they are read, since Paddle's own have these names, too.
        facts: (the file's arrays, the model's arrays) → fields of the spec that they state.
        guesses: the same → fields as most files of such arrays have them, though a few have others. They are assumed,
            whatever facts say of them, where neither name nor config.json states them.
        square: whether its code has square pictures only, so that the number of positions states the image size.
        prefix: of all names but the head's, in files of a model with a head.
        fixed: fields of the spec of which the codebase has one value only.
        refuse: the file's arrays → why they are of no model of the family, where they are not.
        lacks: what cannot be written.
        container: what is written: safetensors, npz or folder (Hugging Face's); None where nothing is.
        huggingface, timm: what config.json beside the arrays holds.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    probe: str | None = None
    open: Callable[[Tensors], dict[str, Tensor] | None] | None = None
    close: Callable[[dict[str, Tensor], Spec], dict[str, Tensor]] = lambda tensors, _: tensors
    own_names: bool = False
    linear: Literal["in_out", "out_in"] = "out_in"
    facts: Callable[[Tensors, Tensors], dict[str, Any]] = lambda theirs, ours: {}
    guesses: Callable[[Tensors, Tensors], dict[str, Any]] = lambda theirs, ours: {}
    square: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    refuse: Callable[[Tensors], str | None] = lambda theirs: None
    prefix: str = ""
    lacks: tuple[Lack, ...] = ()
    container: Literal["safetensors", "npz", "folder"] | None = "safetensors"
    huggingface: HuggingFace | None = None
    timm: Timm | None = None

    def holds(self, spec: Spec) -> bool:
        """Whether it has a place for all that a model is."""
        try:
            for lack in self.lacks:
                lack.refuse(spec, self.title)
        except CheckpointError:
            return False
        return True


# -- theirs → ours ------------------------------------------------------------------------------


def recognised(layout: Layout, tensors: Tensors) -> dict[str, Tensor] | None:
    """A file's arrays without wrapping prefixes; None where they are not in this layout."""
    if layout.open is not None:
        return layout.open(tensors)
    assert layout.probe is not None, f"{layout.name} has neither probe nor open"
    return unwrapped(tensors, layout.probe, (layout.prefix,) if layout.prefix else ())


def unwrapped(tensors: Tensors, probe: str, prefixes: tuple[str, ...] = ()) -> dict[str, Tensor] | None:
    """A file's arrays without prefixes that wrap a model; None where none of them leads to a name.

    Args:
        probe: the name. prefixes: beside the usual ones, such as module.
    """
    for _ in range(_WRAPPED + 1):
        if probe in tensors:
            return dict(tensors)
        prefixes = (*prefixes, *_PREFIXES)
        endings = [name for name in tensors if name.endswith(probe)]
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in endings)), None)
        if prefix is None and endings and endings[0].endswith(f".{probe}"):
            common = endings[0].removesuffix(probe)  # somebody's own, such as net.
            prefix = common if all(name.startswith(common) for name in tensors) else None
        if prefix is None:
            return None
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return None


def read_arrays(
    layout: Layout, tensors: Tensors, *, is_own: Callable[[str], bool], matrices: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A recognised file's arrays in the model's names and orientation.

    Args:
        is_own: whether a name is one of the model's.
        matrices: ending of a name → wide or tall, as the model has that linear layer's matrix.

    Returns:
        (known, unknown), the latter by the file's names.

    Raises:
        CheckpointError: arrays do not go together.
    """
    reason = layout.refuse(tensors)
    if reason is not None:
        raise CheckpointError(reason)
    pieces: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    unknown: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = _place_of(name, layout, is_own)
        if place is None:
            unknown[name] = tensor
            continue
        ours, number, count, turn = place
        if number in pieces.get(ours, ()):
            raise CheckpointError(f"{name} and another array are both {ours}")
        if turn.dimensions not in (None, len(tensor.shape)):
            raise CheckpointError(f"{name} has shape {list(tensor.shape)}; it needs {turn.dimensions} dimensions")
        try:
            pieces.setdefault(ours, {})[number] = turn.read(tensor, tensors)
        except ValueError as error:
            raise CheckpointError(f"{name} has a shape that does not fit its place: {error}") from error
        counts[ours] = count
    turned = layout.linear == "out_in" and _is_turned(pieces, matrices)
    known = {}
    for ours, parts in pieces.items():
        if len(parts) < counts[ours]:
            raise CheckpointError(
                f"{ours.rpartition('.')[0]} is not whole: {ours} has {len(parts)} of {counts[ours]} parts"
            )
        row = [parts[k].transposed() if turned and _is_matrix(ours, parts[k]) else parts[k] for k in sorted(parts)]
        try:
            known[ours] = joined(row) if len(row) > 1 else row[0]
        except ValueError as error:
            raise CheckpointError(f"the parts of {ours} do not fit each other: {error}") from error
    return known, unknown


def _place_of(name: str, layout: Layout, is_own: Callable[[str], bool]) -> tuple[str, int, int, Turn] | None:
    """(the model's name, which part of it, of how many, how it stands) of an array."""
    for rule in layout.rules:
        for number, theirs in enumerate(rule.theirs):
            fields = theirs.match(name)
            if fields is not None:
                return rule.ours.fill(fields), number, len(rule.theirs), rule.turn
    return (name, 0, 1, AS_IS) if layout.own_names and is_own(name) else None


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and name.endswith(".weight")


def _is_turned(pieces: Mapping[str, Mapping[int, Tensor]], matrices: Mapping[str, str]) -> bool:
    """Whether matrices stand as [out, in]: decided once for a file, as a square one fits either way."""
    votes = set()
    for name, parts in pieces.items():
        shape = parts[min(parts)].shape
        kind = next((kind for ending, kind in matrices.items() if name.endswith(ending)), None)
        if kind and len(parts) == 1 and len(shape) == 2 and shape[0] != shape[1]:
            votes.add((shape[0] < shape[1]) != (kind == "wide"))
    asked = " and ".join(sorted({ending.split(".")[-2] for ending in matrices}))
    if len(votes) > 1:
        raise CheckpointError(f"the shapes of {asked} contradict each other: some are [in, out], others [out, in]")
    if not votes and matrices:
        raise CheckpointError(
            f"it is unknown whether its matrices are [in, out] or [out, in]: {asked} are square or missing"
        )
    return votes.pop() if votes else True


# -- ours → theirs ------------------------------------------------------------------------------


def write_arrays(
    layout: Layout, tensors: Tensors, spec: Spec, *, is_own: Callable[[str], bool], head: Iterable[str]
) -> dict[str, Tensor]:
    """A model's arrays in a layout's names and orientation: read_arrays the other way.

    Args:
        is_own: whether a name is one of the model's.
        head: how names of the classifier begin.

    Raises:
        CheckpointError: the layout has no place for something.
    """
    for lack in layout.lacks:
        lack.refuse(spec, layout.title)
    out, of_head = {}, set()
    for name, tensor in tensors.items():
        names, turn = _names_of(name, layout, spec, is_own)
        parts = tensor.split(len(names)) if len(names) > 1 else [tensor]
        for theirs, part in zip(names, parts, strict=True):
            if layout.linear == "out_in" and _is_matrix(name, part):
                part = part.transposed()
            try:
                out[theirs] = turn.write(part, spec)
            except ValueError as error:
                raise CheckpointError(f"{name} cannot be written as {layout.title} has it: {error}") from error
            if name.startswith(tuple(head)):
                of_head.add(theirs)
    out = layout.close(out, spec)
    return {(layout.prefix if of_head and name not in of_head else "") + name: tensor for name, tensor in out.items()}


def _names_of(name: str, layout: Layout, spec: Spec, is_own: Callable[[str], bool]) -> tuple[list[str], Turn]:
    """The file's names of one of the model's arrays, and how it stands there."""
    for rule in layout.rules:
        fields = rule.ours.match(name)
        if fields is not None and rule.written(spec):
            return [theirs.fill(fields) for theirs in rule.theirs], rule.turn
    if layout.own_names and is_own(name):
        return [name], AS_IS
    raise CheckpointError(f"{layout.title} has no place for {name}")
