"""What augmentation does to the pixels of one picture, through Pillow, whose values the references have.

A transform turns its array into a Pillow picture once, works on that, and turns it back once.
Pictures have 3 channels, red, green and blue, or a single one. A single channel has neither hue nor
saturation: what changes only those leaves it as it is.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from plsc.errors import ConfigError

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the highest bits of each value, 0 … 8; 0 leaves black, which ImageOps.posterize refuses."""
    mask = 256 - (1 << max(0, 8 - bits))
    return _look_up(image, [level & mask for level in range(256)])


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Values below 128 become brighter by `amount`, at most 255."""
    return _look_up(image, [min(255, level + amount) if level < 128 else level for level in range(256)])


def _look_up(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))


# output (x, y) → input (a x + b y + c, d x + e y + f), as Image.transform takes it
_MATRICES = {
    "ShearX": lambda factor: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor: (1, 0, 0, factor, 1, 0),
    "TranslateX": lambda pixels: (1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda pixels: (1, 0, 0, 0, 1, pixels),
}
GEOMETRIC = (*_MATRICES, "Rotate")
_TONES = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "GaussianBlur": lambda image, sigma: image.filter(ImageFilter.GaussianBlur(radius=sigma)),
}


def to_pillow(image: np.ndarray, name: str) -> Image.Image:
    """[H, W, C] uint8 with 1 or 3 channels → picture of mode L or RGB; `name` is the transform's.

    Raises:
        ConfigError: another number of channels.
    """
    channels = image.shape[2]
    if channels not in (1, 3):
        raise ConfigError(f"{name} takes pictures of 1 or 3 channels, these have {channels}")
    return Image.fromarray(image if channels == 3 else image[..., 0])


def to_array(image: Image.Image) -> np.ndarray:
    """A picture of mode L or RGB → [H, W, 1 or 3] uint8."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def operate(image: Image.Image, name: str, value=None, *, resample=Image.Resampling.NEAREST, fill=None) -> Image.Image:
    """One operation that policies choose from.

    Args:
        name: ShearX, ShearY, TranslateX, TranslateY, Rotate, AutoContrast, Equalize, Invert, Posterize,
            Solarize, SolarizeAdd, Color, Contrast, Brightness, Sharpness or GaussianBlur.
        value: the shear's factor; pixels to the left or up; degrees, counter-clockwise; bits kept;
            the least value that is inverted; the amount added to values below 128; the enhancement's
            factor, 1 of which changes nothing; the blur's standard deviation in pixels.
        resample, fill: of the geometric ones; what comes in is `fill`, a value a channel, or black.
    """
    if name in _MATRICES:
        matrix = _MATRICES[name](value)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)
    if name == "Rotate":
        return image.rotate(value, resample=resample, fillcolor=fill)
    return _TONES[name](image, value)


def grayscale(image: Image.Image) -> Image.Image:
    """The luma in every channel (ITU-R 601-2)."""
    return image.convert("L").convert(image.mode)


def shift_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn the hue by a part of the circle, -0.5 … 0.5, in Pillow's steps of 1/256."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    steps = int(turn * 255)
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def fill_of(image: Image.Image, colour: tuple[int, int, int]):
    """A colour as Pillow takes it for this picture; a single channel gets its mean."""
    return colour if image.mode == "RGB" else round(sum(colour) / 3)
