"""Resizing, cropping and flipping."""

import abc
import math
from typing import Annotated, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from plsc.bounds import Fraction, PartOfWhole, Pixels, PositiveFloat, Rising, Size
from plsc.data.transforms.base import DoesNotFit
from plsc.data.transforms.decode import MOST_PIXELS
from plsc.errors import ConfigError, DataError
from plsc.registry import TRANSFORMS

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area", "box", "hamming"]
Backend = Literal["cv2", "pil"]
Scale = Annotated[tuple[PartOfWhole, PartOfWhole], Rising]  # limits of a crop's part of the area
Ratio = Annotated[tuple[PositiveFloat, PositiveFloat], Rising]  # limits of a crop's width / height

_CV2 = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
_PIL = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def check_interpolation(interpolation: str, backend: str) -> None:
    table = _CV2 if backend == "cv2" else _PIL
    if interpolation not in table:
        raise ConfigError(f"the backend {backend} has no interpolation {interpolation}; it has {', '.join(table)}")


def resize(image: np.ndarray, height: int, width: int, interpolation: str, backend: str) -> np.ndarray:
    """[H, W, C] uint8 → [height, width, C] uint8.

    Pillow's filters cover the source pixels of each target pixel (antialiasing) when shrinking;
    OpenCV's bilinear and bicubic look at 2 x 2 and 4 x 4 source pixels only.
    """
    if image.shape[:2] == (height, width):
        return image
    if height * width > MOST_PIXELS:  # of a very long and narrow picture
        raise DataError(f"would have {width}x{height} pixels; more than {MOST_PIXELS:,} are refused")
    if backend == "cv2":
        out = cv2.resize(image, (width, height), interpolation=_CV2[interpolation])
        return out if out.ndim == 3 else out[..., np.newaxis]  # cv2 drops a single channel
    if image.shape[2] == 1:
        grey = Image.fromarray(image[..., 0]).resize((width, height), _PIL[interpolation])
        return np.asarray(grey)[..., np.newaxis]
    return np.asarray(Image.fromarray(image).resize((width, height), _PIL[interpolation]))


def as_size(value: Size) -> tuple[int, int]:
    """(height, width). A pair is PLSC's (width, height)."""
    width, height = (value, value) if isinstance(value, int) else value
    return height, width


@TRANSFORMS.register()
class ResizeImage:
    """Resize to `size` (one number or width, height), or the short side to `resize_short`.

    With keep_above a picture whose short side lies between that and resize_short stays as it is. The long side is
    rounded to whole pixels; with truncate its fraction is cut off, as in torchvision.
    """

    def __init__(
        self,
        size: Size | None = None,
        resize_short: Pixels | None = None,
        interpolation: Interpolation = "bilinear",
        backend: Backend = "cv2",
        keep_above: Pixels | None = None,
        truncate: bool = False,
    ):
        if keep_above is not None and (resize_short is None or keep_above > resize_short):
            raise ConfigError(f"ResizeImage.keep_above is {keep_above}; it needs a resize_short not below it")
        self.keep_above, self.truncate = keep_above, truncate
        if (size is None) == (resize_short is None):
            raise ConfigError("ResizeImage takes either size or resize_short")
        check_interpolation(interpolation, backend)
        self.size = None if size is None else as_size(size)
        self.resize_short, self.interpolation, self.backend = resize_short, interpolation, backend

    def __call__(self, image, rng):
        if self.size is not None:
            height, width = self.size
        else:
            assert self.resize_short is not None
            short = min(image.shape[:2])
            if self.keep_above is not None and self.keep_above <= short <= self.resize_short:
                return image
            height, width = (self._scaled(side, short, self.resize_short) for side in image.shape[:2])
        return resize(image, height, width, self.interpolation, self.backend)

    def _scaled(self, side: int, short: int, new_short: int) -> int:
        """A side's new length in pixels, where the short one becomes new_short."""
        if self.truncate:
            return int(new_short * side / short)
        return max(1, round(side * (new_short / short)))


@TRANSFORMS.register()
class Resize(ResizeImage):
    """ResizeImage as torchvision has it: one number is the short side, a pair (height, width)."""

    def __init__(self, size: Size, interpolation: Interpolation = "bilinear", backend: Backend = "pil"):
        if isinstance(size, int):
            super().__init__(resize_short=size, interpolation=interpolation, backend=backend, truncate=True)
        else:
            super().__init__(size=size[::-1], interpolation=interpolation, backend=backend)


@TRANSFORMS.register()
class CenterCropImage:
    """Cut the middle: size is one number or (width, height).

    Half a pixel of the corner's place is cut off; with round_corner 0.5 becomes 0 and 1.5 becomes 2, as in torchvision.
    """

    def __init__(self, size: Size, round_corner: bool = False):
        self.height, self.width = as_size(size)
        self.round_corner = round_corner

    def __call__(self, image, rng):
        height, width = image.shape[:2]
        if height < self.height or width < self.width:
            raise DoesNotFit(
                self, f"{width}x{height} pixels are too few for a center crop of {self.width}x{self.height}"
            )
        top, left = self._middle(height - self.height), self._middle(width - self.width)
        return image[top : top + self.height, left : left + self.width]

    def _middle(self, left_over: int) -> int:
        return round(left_over / 2) if self.round_corner else left_over // 2


@TRANSFORMS.register()
class CenterCrop(CenterCropImage):
    """CenterCropImage as torchvision has it: a pair is (height, width)."""

    def __init__(self, size: Size):
        super().__init__(size if isinstance(size, int) else size[::-1], round_corner=True)


class BoxCrop(abc.ABC):
    """A box drawn in the picture, resized to one size: what all random resized crops have in common.

    A subclass draws the box. Nothing else of the picture is needed, so it may be decoded alone.

    Args:
        size: one number or (width, height).
        scale: limits of the crop's part of the picture's area.
        ratio: limits of the crop's width / height.
        interpolation: random draws bilinear or bicubic.
    """

    def __init__(self, size, scale, ratio, interpolation: str, backend: str):
        self.height, self.width = as_size(size)
        if interpolation != "random":
            check_interpolation(interpolation, backend)
        self.scale, self.ratio, self.interpolation, self.backend = scale, ratio, interpolation, backend

    @abc.abstractmethod
    def box(self, height: int, width: int, rng) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) inside a picture of height x width pixels."""

    def resized(self, crop: np.ndarray, rng) -> np.ndarray:
        """What lies in the box → [self.height, self.width, C]."""
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = ("bilinear", "bicubic")[int(rng.integers(2))]
        return resize(crop, self.height, self.width, interpolation, self.backend)

    def __call__(self, image, rng):
        top, left, height, width = self.box(image.shape[0], image.shape[1], rng)
        return self.resized(image[top : top + height, left : left + width], rng)


@TRANSFORMS.register()
class RandCropImage(BoxCrop):
    """Random area and aspect ratio, resized to `size`: the inception crop, as PLSC draws it.

    The ratio is uniform in `ratio`; the area is uniform in `scale`, lowered to what fits at that
    ratio. `interpolation: random` draws bilinear or bicubic.
    """

    def __init__(
        self,
        size: Size,
        # areas that do not fit are lowered, so any are allowed
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], Rising] = (0.08, 1.0),
        ratio: Ratio = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Interpolation | Literal["random"] = "bilinear",
        backend: Backend = "cv2",
    ):
        super().__init__(size, scale, ratio, interpolation, backend)

    def box(self, height: int, width: int, rng) -> tuple[int, int, int, int]:
        root = math.sqrt(rng.uniform(*self.ratio))
        fits = min((width / height) / root**2, (height / width) * root**2)
        area = height * width * rng.uniform(min(self.scale[0], fits), min(self.scale[1], fits))
        crop_width = min(width, max(1, int(math.sqrt(area) * root)))
        crop_height = min(height, max(1, int(math.sqrt(area) / root)))
        top = int(rng.integers(0, height - crop_height + 1))
        left = int(rng.integers(0, width - crop_width + 1))
        return top, left, crop_height, crop_width


def flip(image: np.ndarray, code: int) -> np.ndarray:
    """Flipped left-right (1), upside-down (0) or both (-1); a reversed view would be slow to copy later."""
    out = cv2.flip(image, code)
    return out if out.ndim == 3 else out[..., np.newaxis]


@TRANSFORMS.register()
class RandFlipImage:
    """Flip every second picture: flip_code 1 left-right, 0 upside-down, -1 both, as in OpenCV."""

    def __init__(self, flip_code: Literal[1, 0, -1] = 1):
        self.flip_code = flip_code

    def __call__(self, image, rng):
        return flip(image, self.flip_code) if rng.random() < 0.5 else image


@TRANSFORMS.register()
class RandomHorizontalFlip:
    """Flip left-right with probability p."""

    def __init__(self, p: Fraction = 0.5):
        self.p = p

    def __call__(self, image, rng):
        return flip(image, 1) if rng.random() < self.p else image


@TRANSFORMS.register()
class RandomVerticalFlip:
    """Flip upside-down with probability p."""

    def __init__(self, p: Fraction = 0.5):
        self.p = p

    def __call__(self, image, rng):
        return flip(image, 0) if rng.random() < self.p else image


@TRANSFORMS.register()
class RandShift:
    """Move the picture by up to `pixels` in each direction; what comes in is black."""

    def __init__(self, pixels: Annotated[int, Field(ge=0, le=2**14)] = 1):
        self.pixels = pixels

    def __call__(self, image, rng):
        height, width = image.shape[:2]
        if self.pixels >= min(height, width):
            raise DoesNotFit(self, f"{width}x{height} pixels are too few for a shift of {self.pixels}")
        down, right = (int(n) for n in rng.integers(0, 2 * self.pixels + 1, size=2))
        padded = np.pad(image, ((self.pixels,) * 2, (self.pixels,) * 2, (0, 0)))
        return padded[down : down + height, right : right + width]
