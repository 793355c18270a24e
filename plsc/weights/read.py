"""A path → weights in plsc's names, whoever wrote them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plsc import places
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError
from plsc.files import read_json
from plsc.model_card import ModelCard
from plsc.weights.containers import DAMAGE, Container, Tensor, open_container
from plsc.weights.infer import infer_spec
from plsc.weights.layouts import recognise
from plsc.weights.processor import from_processor


@dataclass
class Source:
    """Weights in plsc's names and orientation, read one array at a time.

    Attributes:
        path: the file that was read.
        tensors: name → Tensor.
        layout: plsc, google, timm, huggingface, torchvision, lukemelas, jeonsworld, coyo or paddle.
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
        tensors = {name: Tensor(tuple(a.shape), lambda a=a: a) for name, a in arrays.items()}
        return cls(path, tensors, card=card or ModelCard())

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


def read(path, weights: str = "model") -> Source:
    """Read weights; the format is recognised by content.

    Args:
        path: a file, a folder of plsc, Hugging Face or PLSC, a run directory, `latest` or `best`,
            a .pdparams file without its ending, or a TensorFlow checkpoint's prefix, file or folder.
        weights: model, or ema for the averaged ones of a plsc or TensorFlow checkpoint.

    Raises:
        CheckpointError: missing, damaged, of an unknown model, or asking to run code.
    """
    file = places.weights_file(path, weights)
    container = _open(file)
    if container.kind == "tensorflow" and weights == "ema":
        if not container.averaged:
            raise CheckpointError(f"{file}: holds no averaged weights (optimizer slots called average)")
        container.tensors |= container.averaged
    mapped = recognise(container)
    unknown = {name: t.shape for name, t in mapped.unknown.items()}
    if mapped.layout == "plsc" and weights == "ema":  # frozen weights stand in the model's own file, not averaged
        own = read(file.parent / "model.safetensors")
        return dataclasses.replace(own, path=file, tensors=own.tensors | mapped.tensors)
    own_format = mapped.layout == "plsc"
    card = ModelCard.from_metadata(container.notes, file) if own_format else _foreign_card(file, mapped)
    _check_spec(file, card.spec)
    return Source(file, mapped.tensors, mapped.layout, card, unknown)


def _foreign_card(file: Path, mapped) -> ModelCard:
    """What somebody else's weights say, by their arrays and, with Hugging Face, by the files beside them."""
    facts, class_names, preprocess = dict(mapped.facts), None, None
    if mapped.layout == "huggingface":
        said, class_names = _huggingface_config(file.parent / "config.json")
        facts.update(said)
        processor = read_json(file.parent / "preprocessor_config.json", dict, error=CheckpointError)
        preprocess = from_processor(processor or {})
    stated = {name for name, value in facts.items() if value is not None}
    try:
        spec = infer_spec({name: t.shape for name, t in mapped.tensors.items()}, facts)
    except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{file}: the shapes of its arrays do not make a Vision Transformer: {error}") from error
    return ModelCard(
        model="VisionTransformer",
        spec=spec,
        inferred=frozenset(spec.keys() - stated),
        preprocess=preprocess and Preprocess.from_dict(preprocess),
        class_names=class_names,
    )


def _is_text(value) -> bool:
    return isinstance(value, str)


def _check_spec(path: Path, spec: dict) -> None:
    """Refuse a spec whose sizes are no sizes; the model checks the rest."""

    def is_size(value) -> bool:
        if isinstance(value, (list, tuple)):
            return len(value) == 2 and all(map(is_size, value))
        return type(value) is int and value > 0

    for name in ("img_size", "patch_size", "num_heads", "embed_dim"):
        if name in spec and not is_size(spec[name]):
            raise CheckpointError(f"{path}: damaged: the spec's {name} is {spec[name]!r}")
    layers = spec.get("resnet_layers")
    if layers is not None and not (isinstance(layers, (list, tuple)) and all(type(n) is int and n > 0 for n in layers)):
        raise CheckpointError(f"{path}: damaged: the spec's resnet_layers is {layers!r}")
    if not isinstance(spec.get("reg_tokens", 0), int):
        raise CheckpointError(f"{path}: damaged: the spec's reg_tokens is {spec['reg_tokens']!r}")


def _huggingface_config(path: Path) -> tuple[dict, list[str] | None]:
    """What a Hugging Face config.json adds to the shapes, and the class names."""
    config = read_json(path, dict, error=CheckpointError) or {}
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(map(_is_text, labels.values())):
        raise CheckpointError(f"{path}: damaged: id2label is no mapping to names")
    numbered = [labels.get(str(i)) for i in range(len(labels))]
    class_names = numbered if labels and None not in numbered else None
    activation = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
    said = config.get("hidden_act")
    if said is not None and (not _is_text(said) or said not in activation):
        raise CheckpointError(
            f"{path}: hidden_act is {said!r}, which the model does not have; it has gelu, exact or tanh"
        )
    facts = {
        "img_size": config.get("image_size"),
        "num_heads": config.get("num_attention_heads"),
        "epsilon": config.get("layer_norm_eps"),
        "act": activation.get(said),
    }
    return facts, class_names
