"""Encoded bytes → pixels."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from plsc.errors import DataError
from plsc.registry import TRANSFORMS

MOST_PIXELS = 2 * 89_478_485  # Pillow's own limit; a small file can claim any size
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BASELINE, _SOS, _APP1 = {0xC0, 0xC1}, 0xDA, 0xE1
_LONG = 4  # EXIF's type; the standard says short, not all writers do
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_ORIENTATION = 0x0112  # EXIF's tag
# by orientation; ImageOps.exif_transpose does the same, but writes the tags again, of which odd ones stop it
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what its readers raise on damaged files of one kind or another
_PILLOWS_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_CONTEXT_ROWS = 16  # below a region: smooth chroma upsampling looks at them


class JpegHeader(NamedTuple):
    """What a JPEG says before its pixels.

    Attributes:
        height, width: pixels as stored. height_at, scan_at: where in the file the height and the pixels stand.
        upright: its EXIF orientation leaves it as it is.
        in_rows: all colours of one row follow each other from top to bottom (baseline, one scan), so that
            the upper part can be decoded alone.
    """

    height: int
    width: int
    height_at: int
    scan_at: int
    upright: bool
    in_rows: bool


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None where the bytes are something else or damaged."""
    if not data.startswith(_JPEG_START):
        return None
    at, frame, upright = 2, None, True
    try:
        while True:
            while data[at + 1] == 0xFF:  # fill bytes
                at += 1
            marker = data[at + 1]
            if data[at] != 0xFF:
                return None
            if marker in _WITHOUT_LENGTH:
                at += 2
                continue
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker in _SOF and frame is None:
                frame = (marker, at + 5, *struct.unpack_from(">HHB", data, at + 5))
            elif marker == _APP1 and data[at + 4 : at + 8] == b"Exif":
                upright = _orientation(data[at + 10 : at + 2 + length]) == 1
            elif marker == _SOS:
                break
            at += 2 + length
        in_scan = data[at + 4]
    except (IndexError, struct.error):
        return None
    if frame is None:
        return None
    kind, height_at, height, width, components = frame
    if not height or not width:
        return None
    return JpegHeader(height, width, height_at, at, upright, kind in _BASELINE and in_scan == components)


def _orientation(tiff: bytes) -> int:
    """Tag 0x0112 of EXIF's first directory; 1 (upright) where it is missing or damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for k in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * k)
            if tag == _ORIENTATION:
                if kind == _LONG:
                    (value,) = struct.unpack_from(order + "I", tiff, directory + 2 + 12 * k + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _refuse_too_large(height: int, width: int):
    if height * width > MOST_PIXELS:
        raise DataError(f"has {width}x{height} pixels; more than {MOST_PIXELS:,} are refused")


def _is_whole(data: bytes, header: JpegHeader) -> bool:
    """Whether a JPEG has its end marker; decoders fill what is missing with grey and tell nobody."""
    return _JPEG_END in data[max(header.scan_at, len(data) - 4096) :]


def decode(data: bytes) -> np.ndarray:
    """An encoded picture as RGB [H, W, 3] uint8, turned as its EXIF orientation says.

    libjpeg-turbo decodes JPEG, Pillow the rest and all that is unusual: turned or damaged JPEGs, of
    which it refuses truncated ones. (OpenCV decodes PNG hardly faster, but prints libpng's warnings.)
    16 bits become the upper 8, transparency is dropped, of an animation the first picture is taken.

    Raises:
        DataError: the bytes are not a picture, only part of one, or have more than MOST_PIXELS pixels.
    """
    if not data:
        raise DataError("the file is empty")
    header = jpeg_header(data)
    if header is not None:
        _refuse_too_large(header.height, header.width)
        if header.upright and _is_whole(data, header):
            try:
                return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            except ValueError:
                pass  # CMYK, or damage that Pillow judges
    return _by_pillow(data)


def _by_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_too_large(image.height, image.width)
            turn = _TURNS.get(image.getexif().get(_ORIENTATION))
            image = image if turn is None else image.transpose(turn)
            if image.mode.startswith("I;16"):  # convert would clip, not scale
                upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(upper[..., np.newaxis], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except _PILLOWS_ERRORS as error:
        reason = str(error).replace(" <_io.BytesIO object", "").split(" at 0x")[0]
        raise DataError(f"not a readable picture: {reason}") from error


def decode_region(data: bytes, header: JpegHeader, box: tuple[int, int, int, int], factor: int = 1) -> np.ndarray:
    """A part of an upright JPEG as RGB uint8, without decoding what lies below it where the file allows.

    Args:
        box: (top, left, height, width) in pixels of the picture.
        factor: 1, 2, 4 or 8: the part comes out that many times smaller, as the decoder averages.

    With factor 1 the pixels are those of the whole picture, decoded and cut.

    Raises:
        DataError: as decode.
    """
    top, left, height, width = box
    _refuse_too_large(header.height, header.width)
    pixels = None
    if _is_whole(data, header):
        rows = header.height
        if header.in_rows and top + height + _CONTEXT_ROWS < rows:
            # a file that claims fewer rows is decoded that far; a baseline JPEG has them in order
            rows = top + height + _CONTEXT_ROWS
            at = header.height_at
            data = b"".join((memoryview(data)[:at], struct.pack(">H", rows), memoryview(data)[at + 2 :]))
        try:
            pixels = simplejpeg.decode_jpeg(
                data,
                colorspace="RGB",
                strict=rows == header.height,
                min_height=-(-rows // factor) if factor > 1 else 0,
                min_width=-(-header.width // factor) if factor > 1 else 0,
            )
        except ValueError:
            pixels = None
    if pixels is None:
        pixels, factor = _by_pillow(data), 1
    if factor > 1:
        bottom, right = -(-(top + height) // factor), -(-(left + width) // factor)
        return pixels[top // factor : bottom, left // factor : right]
    return pixels[top : top + height, left : left + width]


@TRANSFORMS.register()
class DecodeImage:
    """Decode a picture file to RGB (to_rgb) or BGR; pixels pass through as they are."""

    def __init__(self, to_rgb: bool = True):
        self.to_rgb = to_rgb

    def __call__(self, image, rng):
        return self.in_order(decode(image)) if isinstance(image, bytes) else image

    def in_order(self, pixels: np.ndarray) -> np.ndarray:
        """RGB → the channels' order asked for."""
        return pixels if self.to_rgb else np.ascontiguousarray(pixels[..., ::-1])
