"""The filters of the patch embedding, by their principal components.

Dosovitskiy et al. (2021), figure 7 (left): the first 28 components resemble a basis for the fine
structure within a patch.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from plsc.models import VisionTransformer
from plsc.tensors import to_numpy
from plsc.visualize import sheet
from plsc.visualize.subject import Drawable, subject_of

USUAL_COUNT, USUAL_COLUMNS = 28, 7


def pixel_filters(network: VisionTransformer) -> tuple[np.ndarray, str]:
    """The filters [C, in_chans, h, w] that touch the pixels, and whose they are.

    In hybrids these are the ResNet's first convolution, standardised as it applies them.
    """
    if network.spec.resnet_layers is None:
        return to_numpy(network.patch_embed.proj.weight), "patch embedding"
    return to_numpy(network.patch_embed.backbone.stem.conv.standardised()), "ResNet's first convolution"


def principal_components(filters: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Filters [C, in_chans, h, w] → (components [K, in_chans, h, w], shares [all] of the variance, falling).

    Components have length one. Their sign, which is arbitrary, is such that the largest value is positive.
    K is `count`, or less where there are no more.
    """
    flat = filters.reshape(len(filters), -1).astype("float64")
    _, values, rows = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    variance = values**2
    total = variance.sum()
    rows = rows[:count]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    rows = rows * np.where(largest < 0, -1.0, 1.0)
    return rows.reshape(-1, *filters.shape[1:]), variance / total if total > 0 else variance


def as_pictures(components: np.ndarray) -> np.ndarray:
    """Components [K, in_chans, h, w] → [K, h, w, 3] between 0 and 1: zero is mid-grey, each uses the whole range.

    Channels that are not red, green and blue are averaged to grey.
    """
    if components.shape[1] != 3:
        components = np.repeat(components.mean(axis=1, keepdims=True), 3, axis=1)
    largest = np.abs(components).max(axis=(1, 2, 3), keepdims=True)
    return (0.5 + 0.5 * components / np.where(largest > 0, largest, 1.0)).transpose([0, 2, 3, 1])


def draw_components(axis: Axes, components: np.ndarray, shares: np.ndarray, whose: str) -> None:
    """Principal components as one panel, in the order of reading."""
    pictures = as_pictures(components)
    rows = -(-len(pictures) // USUAL_COLUMNS)
    columns = min(len(pictures), USUAL_COLUMNS)
    padded = np.ones([rows * columns, *pictures.shape[1:]])
    padded[: len(pictures)] = pictures
    gap = max(1, pictures.shape[1] // 8)
    axis.imshow(sheet.tiles(padded.reshape(rows, columns, *pictures.shape[1:]), gap, fill=1.0), interpolation="nearest")
    sheet.without_frame(axis)
    axis.set_title(
        f"Filters of the {whose}: first {len(pictures)} principal\n"
        f"components, {100 * shares[: len(pictures)].sum():.0f} % of the variance",
        fontsize=10,
    )


def draw_spectrum(axis: Axes, shares: np.ndarray, count: int) -> None:
    """The share of the variance that the first components have together."""
    numbers = np.arange(1, len(shares) + 1)
    axis.plot(numbers, 100 * np.cumsum(shares), color="C0")
    axis.axvline(count, color="0.5", linestyle="--", linewidth=1, label=f"the {count} drawn")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(0, 102)
    axis.set_xlabel("components")
    axis.set_ylabel("variance explained (%)")
    axis.set_title("Variance that they explain together", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")


def draw_filters(model: Drawable, output: str | Path, *, count: int = USUAL_COUNT) -> Path:
    """Draw the principal components of a model's first filters, and how much of their variance these explain.

    Args:
        model: a path of weights, or a model of plsc.load_model.
        output: a .png or .svg file. count: of components.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the model has no patch embedding, or the components do not fit on a sheet.
    """
    subject = subject_of(model)
    filters, whose = pixel_filters(subject.vit("patch embedding"))
    components, shares = principal_components(filters, count)
    columns = min(len(components), USUAL_COLUMNS if count <= USUAL_COUNT else 12)
    rows = -(-len(components) // columns)
    sheet.check_count(rows * columns, "give a smaller --components")
    side = min(1.2, 9.0 / columns)
    height, width = filters.shape[2:]
    title = f"{subject.name}: filters of the {whose} ({len(filters)} of {width} × {height} px), principal components"
    figure = sheet.new(columns * side + 4.6, max(3.6, rows * (side + 0.28)) + 0.5, title)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[columns * side, 4.4]))
    axes = left.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        sheet.without_frame(axis)
    for k, (axis, picture) in enumerate(zip(axes.flat, as_pictures(components), strict=False)):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(f"{k + 1}:  {100 * shares[k]:.2g} %", fontsize=8)
    draw_spectrum(right.subplots(), shares, len(components))
    return sheet.save(figure, Path(output))
