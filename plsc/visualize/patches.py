"""A picture as the model cuts it: what it sees of the picture, the grid, and the patches one by one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from plsc.models import ViTSpec
from plsc.models.spec import pair
from plsc.visualize import sheet
from plsc.visualize.pictures import Picture, covered, patch_stride, prefix_names
from plsc.visualize.subject import Drawable, read_pictures, subject_of


def cut(pixels: np.ndarray, spec: ViTSpec) -> np.ndarray:
    """Pixels [height, width, C] → patches [rows, columns, h, w, C], in the order of the tokens.

    In hybrids these are the cells of the feature map, the last ones of a picture that is not a multiple of them
    filled with zeros.
    """
    (rows, columns), (h, w) = spec.grid, patch_stride(spec)
    seen = pixels[: rows * h, : columns * w]
    whole = np.zeros([rows * h, columns * w, pixels.shape[2]], pixels.dtype)
    whole[: seen.shape[0], : seen.shape[1]] = seen
    return whole.reshape(rows, h, columns, w, -1).transpose([0, 2, 1, 3, 4])


def draw_patches(model: Drawable, pictures: Sequence[str | Path], output: str | Path) -> Path:
    """Draw pictures as a model cuts them: the file with the part that is seen, the grid on it, the patches apart.

    Args:
        model: a path of weights, a model of plsc.load_model, or a Config, whose model needs no weights.
        pictures: files. output: a .png or .svg file.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the model cuts no patches, or it is unknown how pictures enter it.
        DataError: a file is not a picture, or does not fit the model.
    """
    subject = subject_of(model)
    subject.check_vit("patches")
    sheet.check_count(3 * len(pictures), "give fewer pictures")
    spec, seen = subject.spec, read_pictures(subject, pictures)
    height, width = pair(spec.img_size)
    panel = 3.6
    figure = sheet.new(
        3 * panel + 0.6, len(pictures) * (panel * height / width + 0.2) + 0.5, _title(subject.name, spec)
    )
    axes = figure.subplots(len(pictures), 3, squeeze=False)
    for (first, second, third), picture in zip(axes, seen, strict=True):
        _draw_original(first, picture, panel)
        _draw_grid(second, picture, spec)
        _draw_apart(third, picture, spec)
    return sheet.save(figure, Path(output))


def _title(name: str, spec: ViTSpec) -> str:
    """The sizes, in words."""
    (rows, columns), (h, w) = spec.grid, patch_stride(spec)
    tokens = " + ".join([*prefix_names(spec), f"{rows * columns} patches"])
    kind = "cells of the ResNet's features" if spec.resnet_layers is not None else "patches"
    return f"{name}: {rows} × {columns} {kind} of {h} × {w} px; tokens: {tokens}"


def _draw_original(axis: Axes, picture: Picture, inches: float) -> None:
    rows, columns = picture.size
    axis.imshow(picture.original, extent=(0, columns, rows, 0))
    top, left, height, width = picture.box
    axis.add_patch(Rectangle((left, top), width, height, fill=False, color="C1", linewidth=2))
    axis.set_xlabel("pixel")
    axis.set_ylabel("pixel")
    axis.tick_params(labelsize=7)
    name = sheet.plain(picture.name, inches)
    sheet.set_title(axis, f"{name}\n{columns} × {rows} px; in the frame: what the model sees")


def _draw_grid(axis: Axes, picture: Picture, spec: ViTSpec) -> None:
    height, width = picture.pixels.shape[:2]
    axis.imshow(picture.shown, extent=(0, width, height, 0))
    (h, w), (bottom, right) = patch_stride(spec), covered(spec)
    axis.hlines(np.arange(0, bottom + 1, h), 0, right, color="white", linewidth=0.6)
    axis.vlines(np.arange(0, right + 1, w), 0, bottom, color="white", linewidth=0.6)
    unseen = [((0, bottom), width, height - bottom), ((right, 0), width - right, bottom)]
    for corner, across, down in unseen:
        axis.add_patch(Rectangle(corner, across, down, color="0.5", alpha=0.7, linewidth=0))
    axis.set_xlabel("pixel")
    axis.set_ylabel("pixel")
    axis.tick_params(labelsize=7)
    rest = "; grey: not seen" if (bottom, right) != (height, width) else ""
    sheet.set_title(axis, f"The model's input\n{width} × {height} px{rest}")


def _draw_apart(axis: Axes, picture: Picture, spec: ViTSpec) -> None:
    patches = cut(picture.shown, spec)
    rows, columns, h, w = patches.shape[:4]
    gap = max(1, max(h, w) // 6)
    axis.imshow(sheet.tiles(patches / 255.0, gap, fill=1.0), interpolation="nearest")
    sheet.number_tiles(axis, (range(rows), range(columns)), (h, w), gap)
    sheet.set_title(axis, f"Cut into {rows * columns} patches\ntokens run row by row")
