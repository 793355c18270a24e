"""Augmentation policies of torchvision, DeiT III and big_vision. timm's are in timm_auto_augment.py."""

from dataclasses import dataclass
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field

from plsc.bounds import NonNegative, Positive
from plsc.data.transforms import policies
from plsc.data.transforms.draws import either_side
from plsc.data.transforms.pixel_operations import RESAMPLING, fill_of, grayscale, operate, to_array, to_pillow
from plsc.errors import ConfigError
from plsc.registry import TRANSFORMS

_Filter = Literal["nearest", "bilinear", "bicubic"]
_ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")


@dataclass(frozen=True)
class _Range:
    """How torchvision's policies turn a part, 0 … 1, of an operation's strength into its value.

    Attributes:
        strongest: signed operation → its largest value: a factor, pixels, degrees, or the distance of
            an enhancement's factor from 1.
        bits: the most that Posterize takes away.
    """

    strongest: dict[str, float]
    bits: int

    def apply(self, picture, name: str, part: float, rng, resample):
        if name == "Posterize":
            return operate(picture, name, round(8 - self.bits * part))
        if name == "Solarize":
            return operate(picture, name, 255.0 * (1.0 - part))
        if name not in self.strongest:
            return operate(picture, name)
        value = either_side(self.strongest[name] * part, rng)
        if name in _ENHANCEMENTS:
            return operate(picture, name, 1.0 + value)
        if name.startswith("Translate"):
            value = int(value)
        return operate(picture, name, value, resample=resample)


_NARROW = _Range({"ShearX": 0.3, "Rotate": 30.0, **dict.fromkeys(_ENHANCEMENTS, 0.9)}, bits=4)
_WIDE = _Range(
    {
        **dict.fromkeys(("ShearX", "ShearY"), 0.99),
        **dict.fromkeys(("TranslateX", "TranslateY"), 32.0),
        "Rotate": 135.0,
        **dict.fromkeys(_ENHANCEMENTS, 0.99),
    },
    bits=6,
)


@TRANSFORMS.register()
class AutoAugment:
    """AutoAugment's policy for ImageNet with torchvision's ranges (Cubuk et al., 2019).

    One of 25 pairs of operations; what comes in at the edges is black. The same policy in timm's
    ranges, and others, are in TimmAutoAugment.
    """

    def __init__(self, interpolation: _Filter = "nearest"):
        self.resample = RESAMPLING[interpolation]

    def __call__(self, image, rng):
        picture = to_pillow(image, "AutoAugment")
        for name, probability, level in policies.IMAGENET[int(rng.integers(len(policies.IMAGENET)))]:
            if rng.random() < probability:
                picture = _NARROW.apply(picture, name, level / 9, rng, self.resample)
        return to_array(picture)


_WIDE_OPERATIONS = ("Identity", *_WIDE.strongest, "Posterize", "Solarize", "AutoContrast", "Equalize")


@TRANSFORMS.register()
class TrivialAugmentWide:
    """One operation at a strength drawn from its whole range (Müller and Hutter, 2021), as in torchvision.

    What comes in at the edges is black.
    """

    def __init__(self, num_magnitude_bins: Annotated[int, Field(ge=2)] = 31, interpolation: _Filter = "nearest"):
        self.bins, self.resample = num_magnitude_bins, RESAMPLING[interpolation]

    def __call__(self, image, rng):
        name = _WIDE_OPERATIONS[int(rng.integers(len(_WIDE_OPERATIONS)))]
        if name == "Identity":
            return image
        picture = to_pillow(image, "TrivialAugmentWide")
        part = int(rng.integers(self.bins)) / (self.bins - 1)
        return to_array(_WIDE.apply(picture, name, part, rng, self.resample))


_RANDOM_OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    *_ENHANCEMENTS,
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)


@TRANSFORMS.register()
class RandAugment:
    """num_ops operations of 14, all at one strength (Cubuk et al., 2020), as in torchvision.

    What comes in at the edges is black. timm's RandAugment is TimmAutoAugment, big_vision's BigVisionRandAugment.

    Args:
        magnitude: one of num_magnitude_bins steps between nothing, 0, and the strongest.
    """

    def __init__(
        self,
        num_ops: Positive = 2,
        magnitude: NonNegative = 9,
        num_magnitude_bins: Annotated[int, Field(ge=2)] = 31,
        interpolation: _Filter = "nearest",
    ):
        if magnitude >= num_magnitude_bins:
            raise ConfigError(
                f"RandAugment.magnitude is {magnitude}; with num_magnitude_bins {num_magnitude_bins} it is at most "
                f"{num_magnitude_bins - 1}"
            )
        self.num_ops, self.part = num_ops, magnitude / (num_magnitude_bins - 1)
        self.resample = RESAMPLING[interpolation]

    def __call__(self, image, rng):
        picture = to_pillow(image, "RandAugment")
        sides = {"TranslateX": picture.width, "TranslateY": picture.height}
        strongest = _NARROW.strongest | {"ShearY": 0.3} | {name: 150 / 331 * side for name, side in sides.items()}
        strength = _Range(strongest, bits=4)
        for i in rng.integers(len(_RANDOM_OPERATIONS), size=self.num_ops):
            name = _RANDOM_OPERATIONS[i]
            if name != "Identity":
                picture = strength.apply(picture, name, self.part, rng, self.resample)
        return to_array(picture)


@TRANSFORMS.register()
class ThreeAugment:
    """Grayscale, solarize or Gaussian blur, one of them: 3-Augment (Touvron et al., 2022: DeiT III).

    Solarize inverts values from 128 on; the blur's standard deviation is uniform in 0.1 … 2 pixels.
    DeiT III adds ColorJitter with 0.3 for brightness, contrast and saturation after it.
    """

    def __call__(self, image, rng):
        picture = to_pillow(image, "ThreeAugment")
        choice = int(rng.integers(3))
        if choice == 0:
            return to_array(grayscale(picture))
        if choice == 1:
            return to_array(operate(picture, "Solarize", 128))
        return to_array(operate(picture, "GaussianBlur", rng.uniform(0.1, 2.0)))


_GREY = (128, 128, 128)
_BIG_VISION = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)


@TRANSFORMS.register()
class BigVisionRandAugment:
    """RandAugment (Cubuk et al., 2020) as big_vision draws it: `randaug(num_layers, magnitude)`.

    Each layer applies one of 16 operations, none of them the identity, at the same magnitude; grey 128
    comes in at the edges. Published models were trained with two faults of that code, so they are here
    too: the threshold of Solarize wraps at 256 (magnitude 10 inverts everything; big_vision issue 110),
    and Contrast blends with the grey height * width / 256, at most 255, instead of the picture's mean
    (issue 109). Values follow Pillow, which TensorFlow's differ from by rounding.

    Args:
        magnitude: 0 … 30; 10 and 15 are usual.
    """

    def __init__(self, num_layers: Positive = 2, magnitude: Annotated[float, Field(ge=0, le=30)] = 10.0):
        self.num_layers, self.part = num_layers, magnitude / 10.0

    def __call__(self, image, rng):
        picture = to_pillow(image, "BigVisionRandAugment")
        for i in rng.integers(len(_BIG_VISION), size=self.num_layers):
            picture = self._apply(picture, _BIG_VISION[i], rng)
        return to_array(picture)

    def _apply(self, picture, name: str, rng):
        part = self.part
        if name == "Cutout":
            return _cut_out(picture, int(part * 40), rng)
        if name == "Contrast":
            return _contrast_with_area(picture, part * 1.8 + 0.1)
        values = {
            "Posterize": min(8, int(part * 4)),
            "Solarize": int(part * 256) % 256,
            "SolarizeAdd": int(part * 110),
            **dict.fromkeys(("Color", "Brightness", "Sharpness"), part * 1.8 + 0.1),
        }
        signed = {
            "Rotate": part * 30.0,
            **dict.fromkeys(("ShearX", "ShearY"), part * 0.3),
            **dict.fromkeys(("TranslateX", "TranslateY"), part * 100.0),
        }
        if name in signed:
            return operate(picture, name, either_side(signed[name], rng), fill=fill_of(picture, _GREY))
        return operate(picture, name, values.get(name))


def _cut_out(picture, half: int, rng):
    """A grey square of side 2 * half about a random pixel, cut at the picture's edges."""
    y, x = int(rng.integers(picture.height)), int(rng.integers(picture.width))
    box = (max(0, x - half), max(0, y - half), min(picture.width, x + half), min(picture.height, y + half))
    picture = picture.copy()
    picture.paste(fill_of(picture, _GREY), box)
    return picture


def _contrast_with_area(picture, factor: float):
    level = min(255, picture.width * picture.height // 256)
    return Image.blend(Image.new(picture.mode, picture.size, fill_of(picture, (level,) * 3)), picture, factor)
