"""Hugging Face's image-processor config (preprocessor_config.json) ↔ how pictures enter plsc's models.

Reference: transformers' ViTImageProcessor, which resizes to one size, and CLIPImageProcessor, which also crops; both
work with Pillow.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plsc.errors import CheckpointError

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_INTERPOLATION = {number: name for name, number in _RESAMPLE.items()}


def to_processor(preprocess: dict, spec: dict) -> dict:
    """Fields of Preprocess → an image-processor config: ViT's resizes to one size, CLIP's also crops.

    Raises:
        CheckpointError: the config has no place for something.
    """
    if not preprocess.get("rgb", True):
        raise CheckpointError(
            "a Hugging Face image processor gives red, green, blue; this model takes blue, green, red"
        )
    if preprocess["resize"] is not None and preprocess["interpolation"] not in _RESAMPLE:
        raise CheckpointError(f"a Hugging Face image processor has no interpolation {preprocess['interpolation']}")
    config = {
        "do_resize": preprocess["resize"] is not None,
        "resample": _RESAMPLE.get(preprocess["interpolation"]),
        "do_rescale": True,
        "rescale_factor": preprocess["scale"],
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }
    size, crop = preprocess["resize"], preprocess["crop"]
    if crop is None and not isinstance(size, int):
        own = spec["img_size"]
        height, width = size or ((own, own) if isinstance(own, int) else own)
        return {"image_processor_type": "ViTImageProcessor", **config, "size": {"height": height, "width": width}}
    if size is not None:
        config["size"] = {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]}
    config["do_center_crop"] = crop is not None
    if crop is not None:
        config["crop_size"] = {"height": crop[0], "width": crop[1]}
    return {"image_processor_type": "CLIPImageProcessor", **config}


_Pixels = Annotated[int, Field(gt=0)]
_Channels = Annotated[list[float], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Area(_Part):
    height: _Pixels
    width: _Pixels


class _ShortSide(_Part):
    shortest_edge: _Pixels


class _Processor(_Part):
    """The configs that are understood. Of these kinds all resize, crop, rescale and normalise, in this order."""

    model_config = ConfigDict(extra="ignore")

    image_processor_type: Annotated[
        str, Field(pattern=r"^(ViT|DeiT|CLIP|Bit)(ImageProcessor(Fast)?|FeatureExtractor)$")
    ]
    do_resize: bool
    size: _Area | _ShortSide | None = None
    resample: Literal[0, 1, 2, 3, 4, 5] | None = None
    do_center_crop: bool | None = None
    crop_size: _Area | None = None
    do_pad: Literal[False] | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0)] = 1 / 255
    do_normalize: bool
    image_mean: _Channels | None = None
    image_std: _Channels | None = None


def from_processor(config: dict[str, Any]) -> dict[str, Any] | None:
    """An image-processor config → fields of Preprocess; None where it is of another kind or does not say all."""
    try:
        stated = _Processor.model_validate(config)
    except ValidationError:
        return None
    crops = stated.do_center_crop
    if crops is None and stated.image_processor_type.startswith("ViT"):  # it knows no crop
        crops = False
    size = stated.size if stated.do_resize else None
    crop = stated.crop_size if crops else None
    if (stated.do_resize and (size is None or stated.resample is None)) or crops is None or (crops and crop is None):
        return None
    if stated.do_normalize and (stated.image_mean is None or stated.image_std is None or 0.0 in stated.image_std):
        return None
    return {
        "resize": None if size is None else _resize(size),
        "crop": None if crop is None else [crop.height, crop.width],
        "interpolation": "bicubic" if stated.resample is None else _INTERPOLATION[stated.resample],
        "backend": "pil",
        "scale": stated.rescale_factor if stated.do_rescale else 1.0,
        "mean": stated.image_mean if stated.do_normalize else [0.0],
        "std": stated.image_std if stated.do_normalize else [1.0],
        "rgb": True,
        "keep_above": None,
        "truncate": isinstance(size, _ShortSide),  # transformers cuts the long side's fraction off
        "round_corner": False,
    }


def _resize(size: _Area | _ShortSide) -> int | list[int]:
    return size.shortest_edge if isinstance(size, _ShortSide) else [size.height, size.width]
