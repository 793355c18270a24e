"""Random crops, as other training systems draw them. RandCropImage is PLSC's own.

Every crop lies inside its (padded) picture and has at least one pixel. Ratios are width / height.
"""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from plsc.bounds import Positive, Size
from plsc.data.transforms.base import DoesNotFit
from plsc.data.transforms.draws import log_uniform
from plsc.data.transforms.geometry import Backend, BoxCrop, Interpolation, Ratio, Scale
from plsc.registry import TRANSFORMS


def _sides(area: float, ratio: float) -> tuple[int, int]:
    """(height, width) in whole pixels of a box of this area and ratio."""
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


_Padding = Annotated[int, Field(ge=0, le=2**14)]  # pixels


@TRANSFORMS.register()
class RandomResizedCrop(BoxCrop):
    """Random area and ratio, drawn again up to 10 times until it fits, resized: torchvision's crop.

    The area is uniform in `scale`, the logarithm of the ratio uniform. After 10 boxes that do not fit
    it is the largest centred one whose ratio lies in `ratio`. `interpolation: random` draws bilinear
    or bicubic, as timm's RandomResizedCropAndInterpolation.
    """

    def __init__(
        self,
        size: Size,
        scale: Scale = (0.08, 1.0),
        ratio: Ratio = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Interpolation | Literal["random"] = "bilinear",
        backend: Backend = "pil",
    ):
        super().__init__(size, scale, ratio, interpolation, backend)

    def box(self, height, width, rng):
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            crop_height, crop_width = _sides(area, log_uniform(self.ratio, rng))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                return top, left, crop_height, crop_width
        return self._centred(height, width)

    def _centred(self, height: int, width: int) -> tuple[int, int, int, int]:
        crop_height, crop_width = height, width
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@TRANSFORMS.register()
class MAERandCropImage(BoxCrop):
    """Random area and ratio, each side cut at the picture's, resized: the crop of BYOL and MAE.

    The area is uniform in `scale`, the logarithm of the ratio uniform; a side that is too long becomes
    the picture's, so nothing is drawn again.
    """

    def __init__(
        self,
        size: Size,
        scale: Scale = (0.08, 1.0),
        ratio: Ratio = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Interpolation | Literal["random"] = "bilinear",
        backend: Backend = "cv2",
    ):
        super().__init__(size, scale, ratio, interpolation, backend)

    def box(self, height, width, rng):
        area = height * width * rng.uniform(*self.scale)
        crop_height, crop_width = _sides(area, log_uniform(self.ratio, rng))
        crop_height, crop_width = min(max(1, crop_height), height), min(max(1, crop_width), width)
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        return top, left, crop_height, crop_width


@TRANSFORMS.register()
class InceptionCrop(BoxCrop):
    """TensorFlow's sample_distorted_bounding_box, resized: the crop of big_vision, ViT and COYO.

    The ratio is uniform (not its logarithm), the height uniform between those of the least and the
    largest area that fit at that ratio. After `attempts` boxes outside the limits it is the whole
    picture. No object has to be covered. OpenCV's bilinear reads 2 x 2 pixels also where it shrinks,
    as tf.image.resize without antialias.
    """

    def __init__(
        self,
        size: Size,
        scale: Scale = (0.05, 1.0),
        ratio: Ratio = (0.75, 1.33),
        interpolation: Interpolation | Literal["random"] = "bilinear",
        backend: Backend = "cv2",
        attempts: Positive = 100,
    ):
        super().__init__(size, scale, ratio, interpolation, backend)
        self.attempts = attempts

    def box(self, height, width, rng):
        for _ in range(self.attempts):
            sides = self._attempt(height, width, rng.uniform(*self.ratio), rng)
            if sides:
                crop_height, crop_width = sides
                # TensorFlow never draws the last position
                top = int(rng.integers(height - crop_height)) if crop_height < height else 0
                left = int(rng.integers(width - crop_width)) if crop_width < width else 0
                return top, left, crop_height, crop_width
        return 0, 0, height, width

    def _attempt(self, height: int, width: int, ratio: float, rng) -> tuple[int, int] | None:
        """(height, width) of a box inside the picture, or None where rounding has left the limits."""
        least, most = (height * width * part for part in self.scale)
        widest = math.floor((width + 0.5 - 1e-7) / ratio)  # whose width rounds to the picture's at most
        largest = min(round(math.sqrt(most / ratio)), widest, height)
        smallest = min(round(math.sqrt(least / ratio)), largest)
        crop_height = smallest + int(rng.integers(largest - smallest + 1))
        crop_width = round(crop_height * ratio)
        if crop_height * crop_width < least:
            crop_height += 1
            crop_width = round(crop_height * ratio)
        if crop_height * crop_width > most:
            crop_height -= 1
            crop_width = round(crop_height * ratio)
        fits = 0 < crop_height <= height and 0 < crop_width <= width
        return (crop_height, crop_width) if fits and least <= crop_height * crop_width <= most else None


@TRANSFORMS.register()
class RandomCrop:
    """Cut a box of a fixed size at a random place, after padding, without resizing: torchvision's RandomCrop.

    With padding 4 it is the usual crop of CIFAR; after a Resize, with padding 4 and padding_mode reflect, the "simple
    random crop" of DeiT III (Touvron et al., 2022); without padding that of AugReg's transfer (Steiner et al., 2022).

    Args:
        size: one number or (height, width), as in torchvision.
        padding: pixels added on each side, or (left and right, top and bottom).
        pad_if_needed: add as much as a side that is too short lacks, on both of its ends.
        fill: value of what is added in the mode constant.
        padding_mode: constant, edge (the last pixel), reflect (without it) or symmetric (with it).
    """

    def __init__(
        self,
        size: Size,
        padding: _Padding | tuple[_Padding, _Padding] = 0,
        pad_if_needed: bool = False,
        fill: Annotated[int, Field(ge=0, le=255)] = 0,
        padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant",
    ):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.across, self.down = (padding, padding) if isinstance(padding, int) else padding
        self.pad_if_needed, self.fill, self.padding_mode = pad_if_needed, fill, padding_mode

    def __call__(self, image, rng):
        image = self._padded(image, self.down, self.across)
        if self.pad_if_needed:
            height, width = image.shape[:2]
            image = self._padded(image, max(0, self.height - height), max(0, self.width - width))
        height, width = image.shape[:2]
        if height < self.height or width < self.width:
            raise DoesNotFit(
                self,
                f"{width}x{height} pixels are too few for a random crop of {self.width}x{self.height}; put a Resize "
                "before RandomCrop, or set its pad_if_needed to True",
            )
        top = int(rng.integers(height - self.height + 1))
        left = int(rng.integers(width - self.width + 1))
        return image[top : top + self.height, left : left + self.width]

    def _padded(self, image, down: int, across: int):
        if not down and not across:
            return image
        widths = ((down, down), (across, across), (0, 0))
        if self.padding_mode == "constant":
            return np.pad(image, widths, constant_values=self.fill)
        return np.pad(image, widths, mode=self.padding_mode)
