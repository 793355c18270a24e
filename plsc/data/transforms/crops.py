"""Random crops, resized to one size, as other training systems draw them. RandCropImage is PLSC's own.

Every crop lies inside its picture and has at least one pixel. Ratios are width / height.
"""

import math
from typing import Literal

from plsc.bounds import Positive, Size
from plsc.data.transforms.draws import log_uniform
from plsc.data.transforms.geometry import Backend, Interpolation, RandomCrop, Ratio, Scale
from plsc.registry import TRANSFORMS


def _sides(area: float, ratio: float) -> tuple[int, int]:
    """(height, width) in whole pixels of a box of this area and ratio."""
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


@TRANSFORMS.register()
class RandomResizedCrop(RandomCrop):
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
class MAERandCropImage(RandomCrop):
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
class InceptionCrop(RandomCrop):
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
