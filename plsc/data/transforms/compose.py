"""Transforms made of transforms."""

from typing import Annotated

from plsc.bounds import Fraction
from plsc.data.transforms.base import DeviceTransform, InputStep
from plsc.errors import ConfigError
from plsc.registry import TRANSFORMS, ListOf


@TRANSFORMS.register()
class Compose:
    """Several transforms as one, in their order."""

    def __init__(self, transforms: Annotated[list, ListOf(TRANSFORMS)]):
        _check(transforms, "Compose")
        self.transforms = transforms

    def __call__(self, image, rng):
        return _in_order(self.transforms, image, rng)


@TRANSFORMS.register()
class RandomApply:
    """All of several transforms, in their order, with probability p; else none."""

    def __init__(self, transforms: Annotated[list, ListOf(TRANSFORMS)], p: Fraction = 0.5):
        _check(transforms, "RandomApply")
        self.transforms, self.p = transforms, p

    def __call__(self, image, rng):
        return _in_order(self.transforms, image, rng) if rng.random() < self.p else image


def _check(transforms, name: str) -> None:
    if not transforms:
        raise ConfigError(f"{name}.transforms is empty; list at least one")
    for transform in transforms:
        if isinstance(transform, (DeviceTransform, InputStep)):
            inner = type(transform).__name__
            raise ConfigError(f"{name}.transforms: {inner} works on whole batches; put it after {name}")


def _in_order(transforms, image, rng):
    for transform in transforms:
        image = transform(image, rng)
    return image
