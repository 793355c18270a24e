"""Attention distance: how far across the picture a head looks, in pixels.

Dosovitskiy et al. (2021), figures 7 (right) and 11; Raghu et al., "Do Vision Transformers See Like
Convolutional Neural Networks?" (2021), section 4. It is to attention what the receptive field is to a convolution.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from plsc.data.preprocess import Preprocess
from plsc.models.base import Model
from plsc.visualize import sheet
from plsc.visualize.attention import attention_weights, model_input
from plsc.visualize.pictures import PatchSpec, Picture, patch_stride


def patch_distances(grid: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """[P, P]: pixels between the centres of each two patches; `stride` is (down, across) in pixels."""
    down, across = (axis.reshape(-1) * step for axis, step in zip(np.mgrid[: grid[0], : grid[1]], stride, strict=True))
    return np.hypot(down[:, None] - down, across[:, None] - across)


def attention_distance(weights: np.ndarray, prefix: int, grid: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Attention [..., H, N, N] → [..., H]: the mean distance from a patch to the patches it attends to, in pixels.

    Each patch's distances are averaged by its attention weights, then the patches. Class and register
    tokens have no place: they are left out, and the weights to the patches made to sum to one.
    """
    between = np.asarray(weights, "float64")[..., prefix:, prefix:]
    between = between / between.sum(axis=-1, keepdims=True)
    return (between * patch_distances(grid, stride)).sum(axis=-1).mean(axis=-1)


def even_distance(grid: tuple[int, int], stride: tuple[int, int]) -> float:
    """The distance of a head that attends to every patch alike."""
    return float(patch_distances(grid, stride).mean())


def measure(network: Model, preprocess: Preprocess, pictures: Sequence[Picture]) -> np.ndarray:
    """[L, H]: the attention distance of every head in pixels, the mean over pictures."""
    spec: PatchSpec = network.spec
    total = np.zeros([spec.depth, spec.num_heads])
    for picture in pictures:
        for layer, weights in enumerate(attention_weights(network, model_input(preprocess, picture))):
            total[layer] += attention_distance(weights, spec.prefix_tokens, spec.grid, patch_stride(spec))
    return total / len(pictures)


def draw_distances(axis: Axes, distances: np.ndarray, spec: PatchSpec, pictures: int) -> None:
    """A point a head over the layers. distances: [L, H] in pixels."""
    layers, heads = distances.shape
    depth = np.arange(1, layers + 1)
    for head in range(heads):
        label = "a head" if head == 0 else None
        axis.plot(depth, distances[:, head], "o", markersize=5, color="C0", alpha=0.7, label=label)
    axis.plot(depth, distances.mean(axis=1), color="C1", linewidth=1.5, label="mean of the heads")
    axis.axhline(
        even_distance(spec.grid, patch_stride(spec)),
        color="0.5",
        linestyle="--",
        linewidth=1,
        label="attending to all patches alike",
    )
    axis.set_title(f"Attention distance, mean of {pictures} picture{'s' if pictures > 1 else ''}", fontsize=10)
    axis.set_xlabel("layer")
    axis.set_ylabel("mean attention distance (pixels)")
    sheet.whole_numbers(axis.xaxis)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
