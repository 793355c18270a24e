"""A path → weights in the names of their model, whoever wrote them."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plsc import checksums, places
from plsc.errors import CheckpointError
from plsc.files import read_json
from plsc.model_card import ModelCard
from plsc.weights import huggingface
from plsc.weights.containers import DAMAGE, Container, open_container
from plsc.weights.families import Family, families, family_of
from plsc.weights.layouts import Layout, read_arrays, recognised
from plsc.weights.tensors import Tensor


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
    def of_arrays(cls, path, arrays: dict[str, np.ndarray], card: ModelCard | None = None) -> "Source":
        """From arrays in memory."""
        return cls(Path(path), {name: Tensor.of(a) for name, a in arrays.items()}, card=card or ModelCard())

    def with_card(self, **changes) -> "Source":
        """The same weights, which say something else of themselves."""
        return dataclasses.replace(self, card=dataclasses.replace(self.card, **changes))

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Name → array, read when asked for."""
        return LazyArrays({name: lambda n=name: self.read(n) for name in self.tensors})

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


class LazyArrays(Mapping):
    """Name → array, made by a function when asked for and not kept."""

    def __init__(self, makers: dict):
        self._makers = makers

    def __getitem__(self, name):
        return self._makers[name]()

    def __iter__(self):
        return iter(self._makers)

    def __len__(self):
        return len(self._makers)


def _open(file: Path) -> Container:
    if not file.name.endswith(".index.json"):
        return open_container(file)
    named = (read_json(file, dict, error=CheckpointError) or {}).get("weight_map")
    names = set(named.values()) if isinstance(named, dict) and all(map(_is_text, named.values())) else None
    if not names:
        raise CheckpointError(f"{file}: damaged: it has no weight_map of file names")
    if any(Path(name).name != name or name in ("", ".", "..") for name in names):
        raise CheckpointError(f"{file}: names a file outside its folder")
    names = sorted(names)
    parts = [open_container(file.parent / name) for name in names]
    return Container(file, "safetensors", {k: t for part in parts for k, t in part.tensors.items()}, {})


def read(path, weights: str = "model", *, names: Collection[str] = (), verify: bool = True) -> Source:
    """Read weights; the format is recognised by content.

    Args:
        path: a file, a folder of plsc, Hugging Face or PLSC, a run directory, `latest` or `best`,
            a .pdparams file without its ending, or a TensorFlow checkpoint's prefix, file or folder.
        weights: model, or ema for the averaged ones of a plsc or TensorFlow checkpoint.
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
        checksums.verify(file.parent, [file.name])
    container = _open(file)
    if container.kind == "tensorflow" and weights == "ema":
        if not container.averaged:
            raise CheckpointError(f"{file}: holds no averaged weights (optimizer slots called average)")
        container.tensors |= container.averaged
    if container.notes.get("format") != "plsc":
        return foreign(container, names)
    if weights == "ema":  # frozen weights and buffers stand in the model's own file, not averaged
        own = read(file.parent / "model.safetensors", verify=verify)
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
    """Weights in a layout, and what they say: by their arrays and, with Hugging Face, by the files beside them."""
    with _naming(container.path):
        known, unknown = read_arrays(layout, tensors, is_own=family.is_own, matrices=family.matrices)
        family.check_arrays(known)
    facts, class_names, preprocess = layout.facts(tensors, known), None, None
    if layout.huggingface is not None:
        folder = container.path.parent
        stated, class_names = huggingface.read_config(layout.huggingface, folder)
        facts, preprocess = {**facts, **stated}, huggingface.read_preprocess(folder)
    facts = {name: value for name, value in facts.items() if value is not None}
    with _naming(container.path):
        family.check(facts)
    spec = family.infer({name: tensor.shape for name, tensor in known.items()}, facts)
    card = ModelCard(
        model=family.model,
        spec=spec,
        inferred=frozenset(spec.keys() - facts.keys()),
        preprocess=preprocess,
        class_names=class_names,
    )
    name = "paddle" if layout.own_names and container.kind == "paddle" else layout.name
    return Source(container.path, known, name, card, {name: tensor.shape for name, tensor in unknown.items()})


def _is_text(value) -> bool:
    return isinstance(value, str)
