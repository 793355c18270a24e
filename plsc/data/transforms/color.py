"""Colour, brightness, blur: random changes that leave every pixel in its place.

Pictures have 3 channels, red, green and blue, or a single one, which saturation, hue and grayscale
leave as it is.
"""

from typing import Annotated

from pydantic import Field

from plsc.bounds import Fraction, NonNegativeFloat, Rising
from plsc.data.transforms.pixel_operations import grayscale, operate, shift_hue, to_array, to_pillow
from plsc.registry import TRANSFORMS

_ENHANCEMENTS = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}
_Pair = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Rising]
_Factor = NonNegativeFloat | _Pair
_Turn = Annotated[float, Field(ge=-0.5, le=0.5)]  # of the hue, a part of its circle


@TRANSFORMS.register()
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in a random order, with probability p.

    A number x draws the factor from 1 - x … 1 + x (the hue's turn from -x … x, x at most 0.5), a pair
    from between its values, as in torchvision and Paddle. With a single channel, saturation and hue
    change nothing.
    """

    def __init__(
        self,
        brightness: _Factor = 0.0,
        contrast: _Factor = 0.0,
        saturation: _Factor = 0.0,
        hue: Annotated[float, Field(ge=0, le=0.5)] | Annotated[tuple[_Turn, _Turn], Rising] = 0.0,
        p: Fraction = 1.0,
    ):
        self.limits, self.p = {}, p
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            pair = value if isinstance(value, (tuple, list)) else (max(0.0, 1.0 - value), 1.0 + value)
            if tuple(pair) != (1.0, 1.0):
                self.limits[name] = pair
        pair = hue if isinstance(hue, (tuple, list)) else (-hue, hue)
        if tuple(pair) != (0.0, 0.0):
            self.limits["hue"] = pair

    def __call__(self, image, rng):
        if rng.random() >= self.p:
            return image
        picture = to_pillow(image, "ColorJitter")
        names = list(self.limits)
        for i in rng.permutation(len(names)):
            picture = _jitter(picture, names[i], rng.uniform(*self.limits[names[i]]))
        return to_array(picture)


def _jitter(picture, name: str, value: float):
    return shift_hue(picture, value) if name == "hue" else operate(picture, _ENHANCEMENTS[name], value)


@TRANSFORMS.register()
class RandomGrayscale:
    """Replace the colours by their luma, in as many channels, with probability p."""

    def __init__(self, p: Fraction = 0.1):
        self.p = p

    def __call__(self, image, rng):
        if rng.random() >= self.p:
            return image
        return to_array(grayscale(to_pillow(image, "RandomGrayscale")))


@TRANSFORMS.register()
class GaussianBlur:
    """Blur with a standard deviation drawn from `sigma`, in pixels, with probability p."""

    def __init__(self, sigma: _Pair = (0.1, 2.0), p: Fraction = 1.0):
        self.sigma, self.p = sigma, p

    def __call__(self, image, rng):
        if rng.random() >= self.p:
            return image
        picture = to_pillow(image, "GaussianBlur")
        return to_array(operate(picture, "GaussianBlur", rng.uniform(*self.sigma)))


@TRANSFORMS.register()
class Solarize:
    """Invert the values that are `threshold` or more, with probability p."""

    def __init__(self, threshold: Annotated[int, Field(ge=0, le=256)] = 128, p: Fraction = 1.0):
        self.threshold, self.p = threshold, p

    def __call__(self, image, rng):
        if rng.random() >= self.p:
            return image
        return to_array(operate(to_pillow(image, "Solarize"), "Solarize", self.threshold))
