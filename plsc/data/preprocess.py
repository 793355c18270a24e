"""How a picture becomes the model's input outside training, as one object that can be saved.

The evaluator, predictor and exports use it, and checkpoints carry it, so that nobody has to
remember which crop and which mean a model was trained with.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from plsc.data.transforms import (
    CenterCropImage,
    DecodeImage,
    Normalize,
    NormalizeImage,
    ResizeImage,
    ToCHWImage,
    ToTensor,
)
from plsc.data.transforms.base import DeviceTransform, InputStep, Transform
from plsc.data.transforms.geometry import Backend, Interpolation
from plsc.errors import ConfigError


@dataclass(frozen=True)
class Preprocess:
    """Decode, resize, center crop, normalise.

    Attributes:
        resize: (height, width) in pixels, or one number: the short side. None keeps the size.
        crop: (height, width) of the center crop; None takes the whole picture.
        interpolation, backend, keep_above: as in ResizeImage.
        scale, mean, std: the model's input is (pixel * scale - mean) / std, a value a channel.
        rgb: whether the channels are red, green, blue; else blue, green, red.
        truncate, round_corner: as in ResizeImage and CenterCropImage.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"
    backend: Backend = "pil"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rgb: bool = True
    keep_above: int | None = None
    truncate: bool = False
    round_corner: bool = False

    @classmethod
    def of(cls, transforms: Iterable[Any]) -> "Preprocess":
        """From evaluation transforms. Raises ConfigError for any that are not of the standard chain."""
        chain = [DecodeImage, ResizeImage, CenterCropImage, NormalizeImage]
        host, normalize, drawn = split_transforms(transforms)
        fields: dict[str, Any] = {}
        order = []
        for transform in [*host, *([normalize] if normalize else []), *drawn]:
            order.append(next((kind for kind in chain if isinstance(transform, kind)), type(transform)))
            if isinstance(transform, DecodeImage):
                fields["rgb"] = transform.to_rgb
            elif isinstance(transform, ResizeImage):
                fields["resize"] = transform.size or transform.resize_short
                fields["interpolation"], fields["backend"] = transform.interpolation, transform.backend
                fields["keep_above"] = transform.keep_above
                fields["truncate"] = transform.truncate
            elif isinstance(transform, CenterCropImage):
                fields["crop"] = (transform.height, transform.width)
                fields["round_corner"] = transform.round_corner
            elif isinstance(transform, NormalizeImage):
                fields.update(scale=transform.scale, mean=transform.mean, std=transform.std)
        if [kind for kind in chain if kind in order] != order:
            given = ", ".join(kind.__name__ for kind in order)
            raise ConfigError(
                "DataLoader.Eval.dataset.transform_ops: evaluation takes DecodeImage, ResizeImage, CenterCropImage and "
                f"NormalizeImage, each at most once and in this order, beside ToCHWImage or ToTensor; not {given}"
            )
        return cls(**fields)

    def host_transforms(self) -> list[Callable[..., Any]]:
        """The part before the device: bytes or pixels → pixels of the model's input size."""
        steps: list[Callable[..., Any]] = [DecodeImage(to_rgb=self.rgb)]
        if self.resize is not None:
            size = None if isinstance(self.resize, int) else (self.resize[1], self.resize[0])
            short = self.resize if isinstance(self.resize, int) else None
            steps.append(ResizeImage(size, short, self.interpolation, self.backend, self.keep_above, self.truncate))
        if self.crop is not None:
            steps.append(CenterCropImage((self.crop[1], self.crop[0]), self.round_corner))
        return steps

    def __call__(self, image: bytes | np.ndarray) -> np.ndarray:
        """One picture → pixels [H, W, C] uint8."""
        first, *others = self.host_transforms()
        pixels: np.ndarray = first(image, None)
        for step in others:
            pixels = step(pixels, None)
        return pixels

    def enlarged(self, new: int, old: int) -> "Preprocess":
        """For a model of `new` pixels instead of `old`: resize and crop change in proportion."""
        sizes = ("resize", "crop", "keep_above")
        return dataclasses.replace(self, **{name: enlarged(getattr(self, name), new, old) for name in sizes})

    def to_dict(self) -> dict[str, Any]:
        """As preprocess.json has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """What `to_dict` gave, also where JSON made lists of its tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def enlarged(pixels: Any, new: int, old: int) -> Any:
    """A number of pixels, or a tuple of such, for an image size of `new` instead of `old`; None stays."""
    if isinstance(pixels, tuple):
        return tuple(enlarged(side, new, old) for side in pixels)
    return None if pixels is None else round(pixels * new / old)


class SplitTransforms(NamedTuple):
    """Transforms by where they run.

    Attributes:
        host: pixels → pixels, in the workers. normalize: on the device; None leaves pixels / 255.
        drawn: what the device does after it, with draws that come with the samples (random erasing).
    """

    host: list[Transform]
    normalize: NormalizeImage | None
    drawn: list[DeviceTransform]


def split_transforms(transforms: Iterable[Any]) -> SplitTransforms:
    """Where each transform runs.

    Raises ConfigError where one is on the wrong side of NormalizeImage.
    """
    host: list[Transform] = []
    normalize: NormalizeImage | None = None
    drawn: list[DeviceTransform] = []
    as_tensor = False
    for transform in transforms:
        name = type(transform).__name__
        if not isinstance(transform, (DeviceTransform, InputStep)):
            if not isinstance(transform, Transform):
                raise ConfigError(
                    f"transform_ops: {name} is not a transform: it is neither called with (image, rng) nor has it "
                    "fields, draw and apply; see plsc.data.transforms.base"
                )
            before = "ToTensor" if as_tensor else type(normalize).__name__
            if as_tensor or normalize is not None:
                raise ConfigError(f"transform_ops: {name} comes after {before}; it works on pixels, so put it before")
            host.append(transform)
        elif isinstance(transform, NormalizeImage):
            if normalize is not None:
                raise ConfigError(f"transform_ops: {name} is the second normalisation; keep one")
            if drawn:
                raise ConfigError(
                    f"transform_ops: {type(drawn[0]).__name__} comes before {name}; it works on what that leaves, so "
                    "put it after"
                )
            if as_tensor and not isinstance(transform, Normalize):
                raise ConfigError("transform_ops: ToTensor scales already; Normalize goes with it, not NormalizeImage")
            normalize = NormalizeImage(1.0 / 255.0, transform.mean, transform.std) if as_tensor else transform
        elif isinstance(transform, ToTensor):
            as_tensor = True
        elif not isinstance(transform, ToCHWImage):
            if any(type(other) is type(transform) for other in drawn):
                raise ConfigError(f"transform_ops: {name} is there twice; keep one")
            assert isinstance(transform, DeviceTransform), name
            drawn.append(transform)
    return SplitTransforms(host, normalize, drawn)
