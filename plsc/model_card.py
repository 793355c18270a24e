"""What a set of weights says of itself: one record, carried by checkpoints, loaded models, predictors and exports.

In a .safetensors file the card is the metadata, text by name; in an export it is part of export.json. Preprocessing and
class names may instead stand in preprocess.json and classes.json beside the file, as in checkpoints and exports.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from plsc.data.class_names import imagenet_names
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError
from plsc.files import parse_json, read_json

DOCUMENTS = ("preprocess", "classes")  # entries that may stand in a .json file of this name beside the weights

_KINDS = {  # of entries that are JSON
    "spec": dict,
    "inferred": list,
    "assumed": list,
    "preprocess": dict,
    "classes": list,
}
_CHOICES = {"activation": ("softmax", "sigmoid"), "position": ("bicubic", "bilinear")}
_ONLY_MODEL = "VisionTransformer"  # of files that plsc 3.0 converted: there was no other, and they do not name it


@dataclass(frozen=True)
class ModelCard:
    """What weights say of themselves. Whatever they do not say is None, or empty.

    Attributes:
        model: registered name of the model that `spec` rebuilds.
        spec: the model's arguments, field by field.
        inferred: names of the fields of `spec` that the weights do not state: they follow from shapes or
            from the architecture's name, or are assumed.
        assumed: those of them that follow from nothing.
        architecture: a published one, by the name it has there, such as timm's vit_base_patch16_224.
        preprocess: how pictures enter the model.
        class_names: a name for each logit.
        activation: what the training loss made of logits.
        position: how the position embedding is resized.
        origin: path of the weights that these were made of, where they were copied or exported.
    """

    model: str | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    inferred: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()
    architecture: str | None = None
    preprocess: Preprocess | None = None
    class_names: list[str] | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    position: Literal["bicubic", "bilinear"] | None = None
    origin: str | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """The fields of the spec that the weights state themselves, with their values."""
        return {name: value for name, value in self.spec.items() if name not in self.inferred}

    @property
    def img_size(self) -> tuple[int, int] | None:
        """(height, width) of the model's images: as the spec has it, else as the preprocessing leaves them."""
        size = self.spec.get("img_size")
        if size is None and self.preprocess is not None:
            size = self.preprocess.crop or self.preprocess.resize
            size = None if isinstance(size, int) else size  # a short side leaves the other one open
        return (size, size) if isinstance(size, int) else size and (size[0], size[1])

    @property
    def assumptions(self) -> str:
        """The fields that are assumed with their values, as messages list them; empty where there are none."""
        notes = {"img_size": " (pictures taken as square)"}
        return ", ".join(f"{name} {self.spec[name]}{notes.get(name, '')}" for name in sorted(self.assumed))

    def class_name(self, index: int) -> str:
        """A class's name, else its number. Of 1000 classes that have no names they are taken to be ImageNet's."""
        names: Sequence[str] = self.class_names or ()
        if self.class_names is None and self.spec.get("class_num") == 1000:
            names = imagenet_names()
        return names[index] if index < len(names) else str(index)

    def required_preprocess(self, path: Path) -> Preprocess:
        """The preprocessing of the weights in `path`. Raises ConfigError where it is unknown."""
        if self.preprocess is None:
            raise ConfigError(
                f"{path}: does not say how pictures enter the model; give -c RECIPE, whose DataLoader.Eval does, or a "
                "checkpoint that plsc wrote"
            )
        return self.preprocess

    # -- to files and back --------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON content; what is not known is left out."""
        values = {
            "model": self.model,
            "spec": dict(self.spec),
            "inferred": sorted(self.inferred & self.spec.keys()),
            "assumed": sorted(self.assumed & self.spec.keys()),
            "architecture": self.architecture,
            "preprocess": self.preprocess and self.preprocess.to_dict(),
            "classes": self.class_names,
            "activation": self.activation,
            "position": self.position,
            "origin": self.origin,
        }
        return {name: value for name, value in values.items() if value}

    def to_metadata(self) -> dict[str, str]:
        """The card as metadata of a .safetensors file."""
        values = self.to_dict().items()
        return {name: json.dumps(value) if name in _KINDS else value for name, value in values}

    def documents(self) -> dict[str, Any]:
        """What stands in files of its own beside the weights of a checkpoint or the graph of an export: name → JSON."""
        return {name: value for name, value in self.to_dict().items() if name in DOCUMENTS}

    def without_documents(self) -> "ModelCard":
        """The rest of the card."""
        return dataclasses.replace(self, preprocess=None, class_names=None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], file: Path, *, beside: bool = True) -> "ModelCard":
        """The card in JSON content, which may hold other entries too.

        Args:
            file: where it stands. beside: whether preprocess.json and classes.json beside it complete it.

        Raises:
            CheckpointError: an entry is damaged; the message names it and the file.
        """
        values = dict(values)
        places = {name: f"{file}: damaged: {name}" for name in ("model", "architecture", *_KINDS, *_CHOICES, "origin")}
        for name in DOCUMENTS:
            values.setdefault(name, None)
            if beside and values[name] is None:
                document = file.with_name(f"{name}.json")
                values[name] = read_json(document, _KINDS[name], error=CheckpointError)
                places[name] = f"{document}: damaged: it"
        for name, kind in _KINDS.items():
            if not isinstance(values.get(name), kind | None):
                raise CheckpointError(f"{places[name]} is {values[name]!r}, no {_SHOWN[kind]}")
        for name, choices in _CHOICES.items():
            if values.get(name) not in (None, *choices):
                raise CheckpointError(f"{places[name]} is {values[name]!r}; there are {' and '.join(choices)}")
        return cls(
            model=_text(values.get("model"), places["model"]),
            spec=values.get("spec") or {},
            inferred=frozenset(_texts(values.get("inferred"), places["inferred"]) or ()),
            assumed=frozenset(_texts(values.get("assumed"), places["assumed"]) or ()),
            architecture=_text(values.get("architecture"), places["architecture"]),
            preprocess=_preprocess(values["preprocess"], places["preprocess"]),
            class_names=_texts(values["classes"], places["classes"]),
            activation=values.get("activation"),
            position=values.get("position"),
            origin=_text(values.get("origin", values.get("source")), places["origin"]),  # plsc 3.0's exports: source
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: Path) -> "ModelCard":
        """The card in the metadata of a .safetensors file; as `from_dict`."""
        values: dict[str, Any] = dict(metadata)
        for name, kind in _KINDS.items():
            if name in values:
                values[name] = parse_json(values[name], kind, where=f"{file}: {name}", error=CheckpointError)
        if values.get("spec"):
            values.setdefault("model", _ONLY_MODEL)
        return cls.from_dict(values, file)


_SHOWN = {dict: "mapping", list: "list"}
_PREPROCESS = TypeAdapter(Preprocess)


def _text(value: Any, place: str) -> str | None:
    if not isinstance(value, str | None):
        raise CheckpointError(f"{place} is {value!r}, no text")
    return value


def _texts(values: Any, place: str) -> list[str] | None:
    if values is not None and not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{place} is not a list of texts")
    return values


def _preprocess(values: Any, place: str) -> Preprocess | None:
    if values is None:
        return None
    try:
        preprocess = _PREPROCESS.validate_python(dataclasses.asdict(Preprocess.from_dict(values)))
        preprocess.host_transforms()  # whose constructors check the values
    except (TypeError, ValidationError, ConfigError) as error:
        raise CheckpointError(f"{place}: {error}") from error
    return preprocess
