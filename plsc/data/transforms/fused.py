"""Decoding and random cropping in one: only what the crop needs of a JPEG is decoded."""

from collections.abc import Sequence

from plsc.data.transforms.base import Transform
from plsc.data.transforms.decode import DecodeImage, decode_region, jpeg_header
from plsc.data.transforms.geometry import BoxCrop


class DecodeAndCrop:
    """DecodeImage followed by a random crop: the same draws, and the same pixels where the crop is exact.

    A crop that OpenCV shrinks to less than half is decoded at half, a quarter or an eighth of its size:
    the decoder averages where OpenCV would skip pixels. With Pillow's resizing nothing is reduced.
    """

    def __init__(self, decode: DecodeImage, crop: BoxCrop):
        self.decode, self.crop = decode, crop

    def __call__(self, image, rng):
        header = jpeg_header(image) if isinstance(image, bytes) else None
        if header is None or not header.upright:
            return self.crop(self.decode(image, rng), rng)
        box = self.crop.box(header.height, header.width, rng)
        pixels = decode_region(image, header, box, self._factor(*box[2:]))
        return self.crop.resized(self.decode.in_order(pixels), rng)

    def _factor(self, height: int, width: int) -> int:
        if self.crop.backend != "cv2":
            return 1
        times = min(height / self.crop.height, width / self.crop.width)
        return next((factor for factor in (8, 4, 2) if times >= factor), 1)


def fuse(transforms: Sequence[Transform]) -> list[Transform]:
    """The transforms with DecodeImage and a crop right after it made one."""
    if len(transforms) > 1 and isinstance(transforms[0], DecodeImage) and isinstance(transforms[1], BoxCrop):
        return [DecodeAndCrop(transforms[0], transforms[1]), *transforms[2:]]
    return list(transforms)
