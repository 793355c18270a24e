"""A path → weights in the names of their model, whoever wrote them."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plsc import checksums, places
from plsc.errors import CheckpointError
from plsc.files import parse_json
from plsc.model_card import ModelCard
from plsc.weights import huggingface, timm
from plsc.weights.containers import CARD, DAMAGE, Container, open_container
from plsc.weights.families import Family, families, family_of
from plsc.weights.index_files import ENDING, read_index
from plsc.weights.layouts import Layout, read_arrays, recognised
from plsc.weights.tensors import Tensor

log = logging.getLogger("plsc")


@dataclass
class Source:
    """Weights in the names and orientation of their model, read one array at a time.

    Attributes:
        path: the file that was read.
        tensors: name → Tensor.
        layout: plsc, paddle, or the name of a family's layout, such as google or timm.
        card: what the weights say of themselves.
        unknown: shapes of arrays without a counterpart, by the file's own names.
    """

    path: Path
    tensors: dict[str, Tensor]
    layout: str = "plsc"
    card: ModelCard = field(default_factory=ModelCard)
    unknown: dict[str, tuple] = field(default_factory=dict)

    @classmethod
    def of_arrays(cls, path: str | Path, arrays: dict[str, np.ndarray], card: ModelCard | None = None) -> "Source":
        """From arrays in memory."""
        return cls(Path(path), {name: Tensor.of(a) for name, a in arrays.items()}, card=card or ModelCard())

    def with_card(self, **changes: Any) -> "Source":
        """The same weights, which say something else of themselves."""
        return dataclasses.replace(self, card=dataclasses.replace(self.card, **changes))

    def check_known(self) -> None:
        """Raise CheckpointError where a field of the model that has to be stated, such as num_heads, is a guess."""
        family, card = family_of(self.card.model), self.card
        missing = [name for name in family.needed if name in card.assumed]
        if not missing:
            return
        fields = " and ".join(missing)
        named = family.architecture(self.path) if card.architecture is None else card.architecture
        cause = "neither the file nor its name states it"
        if named is not None:
            known = named in family.architectures
            cause = f"the arrays are not those of {named}" if known else f"{named} is not an architecture known here"
        raise CheckpointError(
            f"{self.path}: {fields} of its model is unknown: no array's shape shows it, and {cause}. State it by a "
            "recipe (-c RECIPE), by config.json beside the file, or by the architecture's name as that of the file or "
            "its folder (vit_base_patch16_224.safetensors); or once for all: plsc convert "
            f"{self.path} --num-heads N --to safetensors --output PATH"
        )

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Name → array, read when asked for."""
        return LazyArrays({name: partial(self.read, name) for name in self.tensors})

    def read(self, name: str) -> np.ndarray:
        """One array. Raises CheckpointError where it is damaged or not finite."""
        try:
            array = np.ascontiguousarray(self.tensors[name].read()).reshape(self.tensors[name].shape)
        except DAMAGE as error:
            raise CheckpointError(f"{self.path}: {name} is damaged: {error or type(error).__name__}") from error
        if array.dtype.kind not in "fiub":
            raise CheckpointError(f"{self.path}: {name} holds {array.dtype}, not plain numbers")
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                finite = np.isfinite(array.astype("float32", copy=False)).all()
            if not finite:
                raise CheckpointError(f"{self.path}: {name} holds values that are not finite in float32")
        return array


class LazyArrays(Mapping[str, np.ndarray]):
    """Name → array, made by a function when asked for and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]):
        self._makers = makers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _open(file: Path) -> Container:
    if not file.name.endswith(ENDING):
        return open_container(file)
    parts = [open_container(file.parent / name) for name in _files(file)]
    notes = parts[0].notes if all(part.notes.get("format") == "plsc" for part in parts) else {}
    return Container(file, "safetensors", {k: t for part in parts for k, t in part.tensors.items()}, notes)


def _files(file: Path) -> list[str]:
    """Names of the files with the arrays: itself, or those of an index."""
    return sorted(set(read_index(file).values())) if file.name.endswith(ENDING) else [file.name]


def read(path: str | Path, weights: str = "model", *, names: Collection[str] = (), verify: bool = True) -> Source:
    """Read weights; the format is recognised by content.

    Args:
        path: a file, a folder of plsc, Hugging Face or PLSC, a run directory, `latest` or `best`,
            a .pdparams file without its ending, or a TensorFlow checkpoint's prefix, file or folder.
        weights: model, or ema for the averaged ones of a plsc, TensorFlow or torch checkpoint.
        names: of the model that is to be loaded. A file of Paddle's that nobody's layout fits is read by them.
        verify: compare the file, if a plsc checkpoint's, and the small ones beside it with their checksums.

    Raises:
        CheckpointError: missing, damaged, of an unknown model, or asking to run code.

    Example:
        >>> source = read("ViT-B_16.npz")
        >>> source.layout, source.card.spec["depth"]
        ('google', 12)
    """
    file = places.weights_file(path, weights)
    if verify and places.is_checkpoint(file.parent):
        checksums.verify(file.parent, _files(file))
    container = _open(file)
    if container.kind in ("tensorflow", "torch") and weights == "ema":
        if not container.averaged:
            looked = {"tensorflow": "optimizer slots called average", "torch": "model_ema or state_dict_ema"}
            raise CheckpointError(f"{file}: holds no averaged weights ({looked[container.kind]})")
        raw = container.tensors if container.kind == "tensorflow" else {}  # which averages part of them
        container.tensors = {**raw, **container.averaged}
    elif container.averaged is container.tensors:
        log.warning("%s: holds averaged weights only, which are read", file)
    elif container.kind == "torch" and container.averaged:
        log.warning("%s: holds averaged weights, too, which --ema reads; the raw ones are read", file)
    if container.notes.get("format") != "plsc":
        return foreign(container, names)
    if weights == "ema":  # frozen weights and buffers are in the model's own file, not averaged
        own = read(file.parent, verify=verify)
        return dataclasses.replace(own, path=file, tensors=own.tensors | container.tensors)
    card = ModelCard.from_metadata(container.notes, file)
    family = family_of(card.model)
    with _naming(file):
        family.check(card.spec)
        family.check_arrays(container.tensors)
    return Source(file, container.tensors, "plsc", card)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Context whose CheckpointErrors name the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def foreign(container: Container, names: Collection[str] = ()) -> Source:
    """Somebody else's weights, by the first layout that recognises them."""
    for family in families():
        for layout in family.layouts:
            with _naming(container.path):
                tensors = recognised(layout, container.tensors)
            if tensors is not None:
                return _by_layout(container, tensors, family, layout)
    if container.kind == "paddle" and set(names) & container.tensors.keys():
        return Source(container.path, container.tensors, "paddle")
    some = ", ".join(list(container.tensors)[:5])
    models = ", ".join(family.model for family in families())
    raise CheckpointError(
        f"{container.path}: the names of its arrays are of no known model ({models}): {some or 'there are none'}, …"
    )


def _by_layout(container: Container, tensors: dict[str, Tensor], family: Family, layout: Layout) -> Source:
    """Weights in a layout, and their model as arrays, the file's card or config.json, and its name describe it."""
    path = container.path
    with _naming(path):
        known, unknown = read_arrays(layout, tensors, is_own=family.is_own, matrices=family.matrices)
        family.check_arrays(known)
    shapes = {name: tensor.shape for name, tensor in known.items()}
    own = _card_within(container, family)
    beside = ModelCard() if own.spec else _card_beside(path, layout)
    facts = {name: value for name, value in layout.facts(tensors, known).items() if value is not None}
    stated = {**facts, **beside.spec, **own.stated}
    with _naming(path):
        family.check(stated)
    named = beside.architecture if own.spec or beside.architecture else family.architecture(path)
    of_name = _of_architecture(path, family, named, stated, shapes, certain=beside.architecture is not None)
    if beside.architecture:
        stated = {**of_name, **stated}
    earlier = {name: own.spec[name] for name in own.inferred - own.assumed if name in own.spec}
    guesses = layout.guesses(tensors, known)
    unsure = guesses.keys() - {**of_name, **layout.fixed, **beside.spec, **own.stated, **earlier}.keys()
    if of_name:  # which is as most are, where its row does not say otherwise; but for the image size, which no row has
        unsure &= {"img_size"}
    stated = {name: value for name, value in stated.items() if name not in unsure}
    known_fields = {**of_name, **layout.fixed, **stated, **earlier}
    guesses = {name: value for name, value in guesses.items() if name not in known_fields}
    spec = family.infer(shapes, {**guesses, **known_fields})
    guessed = {name for name in family.needed if name in spec and name not in known_fields} | unsure
    if "img_size" in spec and "img_size" not in known_fields and not layout.square and not of_name:
        guessed.add("img_size")  # pictures are taken as square
    assumed = frozenset(family.usual.keys() - spec.keys() | guessed)
    spec = {**family.usual, **spec, **{name: own.spec[name] for name in own.assumed & assumed if name in own.spec}}
    card = ModelCard(
        model=own.model or family.model,
        spec=spec,
        inferred=frozenset(spec.keys() - stated.keys()),
        assumed=assumed,
        architecture=own.architecture or (named if of_name or beside.architecture else None),
        preprocess=own.preprocess or beside.preprocess,
        class_names=own.class_names or beside.class_names,
        activation=own.activation,
        position=own.position,
        origin=own.origin,
    )
    name = "paddle" if layout.own_names and container.kind == "paddle" else layout.name
    return Source(path, known, name, card, {name: tensor.shape for name, tensor in unknown.items()})


def _card_within(container: Container, family: Family) -> ModelCard:
    """The card that plsc wrote into somebody else's format; an empty one where there is none."""
    text = container.notes.get(CARD)
    if not isinstance(text, str):
        return ModelCard()
    values = parse_json(text, dict, where=f"{container.path}: {CARD}", error=CheckpointError)
    card = ModelCard.from_dict(values, container.path, beside=False)
    if card.model not in family.models:
        raise CheckpointError(f"{container.path}: damaged: its {CARD} is of the model {card.model!r}")
    with _naming(container.path):
        family.check(card.spec)
    return card


def _card_beside(path: Path, layout: Layout) -> ModelCard:
    """What Hugging Face's or timm's files beside the arrays state."""
    if layout.huggingface is None and layout.timm is None:
        return ModelCard()
    config, where = huggingface.config_beside(path), str(path.parent / huggingface.CONFIG)
    if layout.huggingface is not None:
        return ModelCard(
            spec=huggingface.read_config(layout.huggingface, config, where),
            class_names=huggingface.class_names(config, where),
            preprocess=huggingface.read_preprocess(path),
        )
    name = config.get("architecture")
    if layout.timm is None or not isinstance(name, str):
        return ModelCard()
    return ModelCard(
        spec=timm.read_config(layout.timm, config, where),
        architecture=name,
        class_names=timm.class_names(config),
        preprocess=timm.read_preprocess(config),
    )


def _of_architecture(
    path: Path,
    family: Family,
    name: str | None,
    stated: Mapping[str, Any],
    shapes: Mapping[str, tuple],
    *,
    certain: bool,
) -> dict[str, Any]:
    """The fields of a published architecture that shapes do not show.

    None where the arrays are not of that size, unless it is certain: config.json then states other sizes besides.

    Raises:
        CheckpointError: the family's models cannot be it.
    """
    fields = family.architectures.get(name or "")
    if fields is None:
        return {}
    seen = family.infer(shapes, stated)
    sizes = {field: value for field, value in fields.items() if field not in family.unseen}
    if not certain and any(seen.get(field, value) != value for field, value in sizes.items()):
        return {}
    fields = {field: value for field, value in fields.items() if field not in seen or field in family.unseen}
    lacking = [f"{field} {value!r}" for field, value in fields.items() if not _has(family, field, value)]
    if lacking:
        raise CheckpointError(f"{path}: is {name}, which a {family.model} cannot be: it lacks {', '.join(lacking)}")
    return fields


def _has(family: Family, field: str, value: Any) -> bool:
    if family.spec is None or field not in {entry.name for entry in dataclasses.fields(family.spec)}:
        return False
    try:
        family.check({field: value})
    except CheckpointError:
        return False
    return True
