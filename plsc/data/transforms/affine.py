"""Random rotations and affine maps, as torchvision draws them."""

import math
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from plsc.bounds import Fraction, PositiveFloat, Rising
from plsc.data.transforms.pixel_operations import RESAMPLING, fill_of, operate, to_array, to_pillow
from plsc.registry import TRANSFORMS

_Filter = Literal["nearest", "bilinear", "bicubic"]
_Level = Annotated[int, Field(ge=0, le=255)]
_Angles = Annotated[tuple[float, float], Rising]
_Angle = Annotated[float, Field(ge=0)]
_Slant = Annotated[float, Field(gt=-90, lt=90)]  # of a shear, in degrees
_Slants = Annotated[tuple[_Slant, _Slant], Rising]


def _limits(value) -> tuple[float, float]:
    """A number x is -x … x."""
    return (-value, value) if isinstance(value, (int, float)) else tuple(value)


@TRANSFORMS.register()
class RandomRotation:
    """Rotate about the middle by an angle drawn from `degrees`, counter-clockwise: torchvision's RandomRotation.

    Args:
        degrees: limits of the angle; a number x is (-x, x).
        fill: value of what comes in at the corners, in every channel.
    """

    def __init__(self, degrees: _Angle | _Angles, interpolation: _Filter = "nearest", fill: _Level = 0):
        self.degrees, self.resample, self.fill = _limits(degrees), RESAMPLING[interpolation], fill

    def __call__(self, image, rng):
        picture = to_pillow(image, "RandomRotation")
        fill = fill_of(picture, (self.fill,) * 3)
        return to_array(operate(picture, "Rotate", rng.uniform(*self.degrees), resample=self.resample, fill=fill))


@TRANSFORMS.register()
class RandomAffine:
    """Rotate, move, scale and shear about the middle: torchvision's RandomAffine.

    Args:
        degrees: limits of the rotation, clockwise; a number x is (-x, x), 0 none.
        translate: most movement, parts of the picture's (width, height); in whole pixels.
        scale: limits of the enlargement.
        shear: limits of the shear along x in degrees, a number x is (-x, x); or those of x and of y, four numbers.
        fill: value of what comes in, in every channel.
    """

    def __init__(
        self,
        degrees: _Angle | _Angles,
        translate: tuple[Fraction, Fraction] = (0.0, 0.0),
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], Rising] = (1.0, 1.0),
        shear: Annotated[float, Field(ge=0, lt=90)] | _Slants | tuple[_Slant, _Slant, _Slant, _Slant] = 0.0,
        interpolation: _Filter = "nearest",
        fill: _Level = 0,
    ):
        self.degrees, self.translate, self.scale = _limits(degrees), translate, scale
        slants = _limits(shear)
        self.shear = (slants[:2], slants[2:] or (0.0, 0.0))
        self.resample, self.fill = RESAMPLING[interpolation], fill

    def __call__(self, image, rng):
        height, width = image.shape[:2]
        angle = rng.uniform(*self.degrees)
        most = self.translate[0] * width, self.translate[1] * height
        moved = [round(rng.uniform(-pixels, pixels)) for pixels in most]
        scale = rng.uniform(*self.scale)
        matrix = source_of(width, height, angle, moved, scale, [rng.uniform(*limits) for limits in self.shear])
        picture = to_pillow(image, "RandomAffine")
        fill = fill_of(picture, (self.fill,) * 3)
        done = picture.transform(
            picture.size, Image.Transform.AFFINE, tuple(matrix.ravel()), resample=self.resample, fillcolor=fill
        )
        return to_array(done)


def source_of(width: int, height: int, angle: float, moved, scale: float, shear) -> np.ndarray:
    """Where in the old picture a point (x, y, 1) of the new one lies: [2, 3].

    Args:
        angle: of the rotation, in degrees, clockwise. moved: pixels (right, down).
        shear: along x and along y, in degrees. They come first, then scale and rotation, then the movement.
    """
    turn = math.radians(angle)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    along_x, along_y = (math.tan(math.radians(degrees)) for degrees in shear)
    linear = scale * rotation @ np.array([[1.0, 0.0], [-along_y, 1.0]]) @ np.array([[1.0, -along_x], [0.0, 1.0]])
    back = np.linalg.inv(linear)
    middle = np.array([width / 2, height / 2])
    return np.column_stack([back, middle - back @ (middle + np.asarray(moved))])
