"""A picture file as the model sees it: which part of it, at which size, cut into which patches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from plsc.data.preprocess import Preprocess
from plsc.data.transforms import CenterCropImage, DecodeImage
from plsc.data.transforms.geometry import resize
from plsc.errors import DataError
from plsc.files import read_bytes
from plsc.models import ViTSpec
from plsc.models.spec import pair, reduction

_LONGEST = 1024  # pixels of a photograph on a sheet: more are not seen, and many pictures stay in memory at once


class PatchSpec(Protocol):
    """What the drawings of pictures and attention ask of a model's spec; a ViTSpec is one."""

    @property
    def img_size(self) -> int | tuple[int, int]: ...

    @property
    def in_chans(self) -> int: ...

    @property
    def patch_size(self) -> int | tuple[int, int]: ...

    @property
    def grid(self) -> tuple[int, int]: ...  # patches down and across

    @property
    def prefix_tokens(self) -> int: ...  # tokens before the patches

    @property
    def pool(self) -> str: ...  # what the head sees: token, avg, token_avg or map, see ViTSpec

    @property
    def depth(self) -> int: ...

    @property
    def num_heads(self) -> int: ...


@dataclass
class Picture:
    """One picture on its way into a model.

    Attributes:
        name: of its file.
        size: (height, width) of its file.
        original: the whole of it to look at, [H, W, 3] uint8, RGB, at most 1024 pixels long.
        box: (top, left, height, width) in the file's pixels, the part that the model sees.
        pixels: [height, width, C] uint8, what enters the model before it is normalised.
        rgb: whether the channels of `pixels` are red, green, blue; else blue, green, red.
    """

    name: str
    size: tuple[int, int]
    original: np.ndarray
    box: tuple[float, float, float, float]
    pixels: np.ndarray
    rgb: bool

    @property
    def shown(self) -> np.ndarray:
        """What the model sees, for a reader: [height, width, 3] uint8, RGB."""
        if self.pixels.shape[2] == 1:
            return np.repeat(self.pixels, 3, axis=2)
        return self.pixels if self.rgb else self.pixels[..., ::-1]

    @property
    def grey(self) -> np.ndarray:
        """[height, width] uint8."""
        return cv2.cvtColor(np.ascontiguousarray(self.shown), cv2.COLOR_RGB2GRAY)


def read_picture(path: str | Path, preprocess: Preprocess, spec: PatchSpec) -> Picture:
    """Read and preprocess one file. Raises DataError naming it where it is not a picture, or does not fit the model."""
    path = Path(path).expanduser()
    try:
        data = read_bytes(path)
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name the pictures in it, for instance {path}/*.jpg") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _seen(path.name, data, preprocess, spec)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _seen(name: str, data: bytes, preprocess: Preprocess, spec: PatchSpec) -> Picture:
    original = pixels = DecodeImage()(data, None)
    size = original.shape[:2]
    box = np.array([0.0, 0.0, *size])
    if not preprocess.rgb:
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    for step in preprocess.host_transforms():
        before, pixels = pixels, step(pixels, None)
        if isinstance(step, CenterCropImage):
            factor = np.array(size) / before.shape[:2]
            corner = (np.array(before.shape[:2]) - pixels.shape[:2]) // 2
            box = np.concatenate([corner * factor, pixels.shape[:2] * factor])
    if spec.in_chans == 1:
        if (pixels != pixels[..., :1]).any():
            raise DataError("has colours; the model takes grey pictures")
        pixels = pixels[..., :1]
    if pixels.shape[2] != spec.in_chans:
        raise DataError(f"a picture file gives {pixels.shape[2]} channels, the model takes {spec.in_chans}")
    if pixels.shape[:2] != pair(spec.img_size):
        height, width = pixels.shape[:2]
        expected = "x".join(map(str, pair(spec.img_size)))
        raise DataError(
            f"has {height}x{width} pixels (height x width) after the preprocessing, the model takes {expected}; "
            "give -c RECIPE whose DataLoader.Eval resizes and crops to that, or pictures of that size"
        )
    height, width = (max(1, round(side * min(1.0, _LONGEST / max(size)))) for side in size)
    original = resize(original, height, width, "area", "cv2")
    top, left, box_height, box_width = box.tolist()
    return Picture(name, size, original, (top, left, box_height, box_width), pixels, preprocess.rgb)


def prefix_names(spec: ViTSpec) -> list[str]:
    """The tokens before the patches, in words."""
    names = ["class token"] * spec.class_token + ["distillation token"] * (spec.distillation is not None)
    return names + [f"{spec.reg_tokens} registers"] * bool(spec.reg_tokens)


def patch_stride(spec: PatchSpec) -> tuple[int, int]:
    """Pixels of the picture (down, across) from one patch to the next; in hybrids the ResNet's stride counts too."""
    stride = reduction(spec.resnet_layers) if isinstance(spec, ViTSpec) else 1
    height, width = pair(spec.patch_size)
    return height * stride, width * stride


def covered(spec: PatchSpec) -> tuple[int, int]:
    """(height, width) in pixels, from the upper left corner, of what the patches cover."""
    height, width = (
        min(side, count * step)
        for side, count, step in zip(pair(spec.img_size), spec.grid, patch_stride(spec), strict=True)
    )
    return height, width
