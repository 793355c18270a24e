"""Transforms that the device applies to whole batches; here they only carry their arguments."""

from typing import Annotated

from pydantic import Field

from plsc.bounds import PositiveFloat
from plsc.data.transforms.base import InputStep
from plsc.errors import ConfigError
from plsc.registry import TRANSFORMS


@TRANSFORMS.register()
class NormalizeImage(InputStep):
    """(image * scale - mean) / std, a value a channel, in float32 on the device."""

    def __init__(
        self,
        scale: PositiveFloat = 1.0 / 255.0,
        mean: Annotated[tuple[float, ...], Field(min_length=1)] = (0.485, 0.456, 0.406),
        std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225),
    ):
        if len(mean) != len(std):
            raise ConfigError(f"NormalizeImage has {len(mean)} means and {len(std)} standard deviations")
        self.scale, self.mean, self.std = scale, tuple(mean), tuple(std)


@TRANSFORMS.register()
class Normalize(NormalizeImage):
    """NormalizeImage in torchvision's words: (image - mean) / std of 0 … 1 after ToTensor, else of 0 … 255."""

    def __init__(
        self,
        mean: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0, 0.0, 0.0),
        std: tuple[PositiveFloat, ...] = (1.0, 1.0, 1.0),
    ):
        super().__init__(scale=1.0, mean=mean, std=std)


@TRANSFORMS.register()
class ToTensor(InputStep):
    """[H, W, C] 0 … 255 → [C, H, W] 0 … 1, in float32 on the device; Normalize may follow it."""


@TRANSFORMS.register()
class ToCHWImage(InputStep):
    """[H, W, C] → [C, H, W]. The device does it in any case; the name is PLSC's."""
