"""timm's config.json beside the arrays: architecture, arguments, preprocessing and class names.

Reference: timm's models/_hub.py (save_for_hf, load_model_config_from_path) and data/transforms_factory.py.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plsc.data.preprocess import Preprocess
from plsc.data.transforms.geometry import Interpolation
from plsc.errors import CheckpointError
from plsc.model_card import ModelCard
from plsc.weights.layouts import Setting, Timm

_SIZE_RATIO = 0.875  # timm's crop_pct where none is stated


def read_config(layout: Timm, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of the spec that config.json states as arguments of the model.

    Raises:
        CheckpointError: it states what the model does not have.
    """
    arguments = config.get("model_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    settings, fields = (*layout.settings, *layout.read_only), {}
    unknown = [name for name in arguments if name not in layout.seen | {setting.theirs for setting in settings}]
    if unknown:
        shown = ", ".join(f"{name} {arguments[name]!r}" for name in unknown)
        raise CheckpointError(f"{where}: model_args has {shown}, of which it is unknown what it makes of the model")
    for setting in settings:
        value = arguments.get(setting.theirs, config.get(setting.theirs))
        if value is not None and setting.stated:
            fields[setting.ours] = setting.read(value, where)
    if "img_size" not in fields:
        size = _pretrained(config).get("input_size")
        if isinstance(size, list) and len(size) == 3:
            fields["img_size"] = size[1:]
    return layout.stated(fields)


def class_names(config: Mapping[str, Any]) -> list[str] | None:
    """A name for each logit, where config.json states them."""
    names = config.get("label_names", _pretrained(config).get("label_names"))
    is_list = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return names if is_list else None


class _Pictures(BaseModel):
    """What timm states of pictures, as its evaluation transform takes it."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    input_size: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=3, max_length=3)]
    mean: Annotated[list[float], Field(min_length=1)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    interpolation: Interpolation
    crop_pct: Annotated[float, Field(gt=0, le=1)] = _SIZE_RATIO
    crop_mode: Literal["center", "squash"] = "center"


def read_preprocess(config: Mapping[str, Any]) -> Preprocess | None:
    """timm's evaluation transform, where config.json states all of it and plsc has it."""
    try:
        stated = _Pictures.model_validate({"crop_mode": "center", **_pretrained(config)})
    except ValidationError:
        return None
    _, *crop = stated.input_size
    sides = (math.floor(crop[0] / stated.crop_pct), math.floor(crop[1] / stated.crop_pct))
    if stated.crop_mode == "center" and sides[0] != sides[1]:
        return None  # timm keeps the proportions of such a picture by another rule
    return Preprocess(
        resize=sides if stated.crop_mode == "squash" else sides[0],
        crop=(crop[0], crop[1]),
        interpolation=stated.interpolation,
        backend="pil",
        mean=tuple(stated.mean),
        std=tuple(stated.std),
        truncate=True,
        round_corner=True,
    )


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    part = config.get("pretrained_cfg", config)
    return part if isinstance(part, Mapping) else {}


def config_of(layout: Timm, card: ModelCard, *, has_head: bool) -> dict[str, Any] | None:
    """The content of config.json; None where no arguments of timm's rebuild the model."""
    spec = card.spec
    architecture = layout.architecture(spec)
    if architecture is None:
        return None
    classes = spec["class_num"] if has_head else 0
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": spec["embed_dim"],
        "global_pool": spec["pool"],
        "model_args": {
            **{s.theirs: s.write(_value(s, spec)) for s in layout.settings if _value(s, spec) is not None},
            **layout.derived(spec),
        },
        "pretrained_cfg": {
            **_pictures(card.preprocess, spec),
            "num_classes": classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **({"label_names": card.class_names} if card.class_names else {}),
        },
    }


def _value(setting: Setting, spec: Mapping[str, Any]) -> Any:
    value = spec.get(setting.ours, setting.default)
    return list(value) if isinstance(value, tuple) else value


def _pictures(preprocess: Preprocess | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of pretrained_cfg; of a preprocessing that timm has not, those that come nearest."""
    size = spec["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    entries: dict[str, Any] = {"input_size": [spec["in_chans"], height, width], "fixed_input_size": True}
    if preprocess is None:
        return entries
    resize = preprocess.resize
    crop = preprocess.crop or (resize if isinstance(resize, tuple) else (height, width))
    sides = (resize, resize) if isinstance(resize, int) else resize or crop
    ratio = crop[0] / sides[0]
    if math.floor(crop[0] / ratio) != sides[0]:  # which timm computes so
        ratio = crop[0] / (sides[0] + 0.5)
    entries["input_size"][1:] = crop
    return entries | {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop_pct": ratio,
        "crop_mode": "squash" if isinstance(resize, tuple) else "center",
    }
