"""The position embedding: what each patch's row resembles, before and after resizing, beside sine and cosine.

Dosovitskiy et al. (2021), figure 7 (centre) and appendix D.4; Vaswani et al. (2017), section 3.5.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from plsc.errors import ConfigError
from plsc.models import ViTSpec
from plsc.models.spec import pair
from plsc.models.vision_transformer import sincos_position_embedding
from plsc.tensors import to_numpy
from plsc.visualize import distance, filters, sheet
from plsc.visualize.pictures import prefix_names
from plsc.visualize.subject import Drawable, read_pictures, subject_of
from plsc.weights.resample import position_embedding

MOST_TILES = 14  # maps across and down one panel; of larger grids as many are drawn, evenly spread
_COLOURS = "viridis"


def cosine_similarity(rows: np.ndarray) -> np.ndarray:
    """Rows [N, C] → [N, N]; a row of zeros resembles no other."""
    rows = np.asarray(rows, "float64")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length > 0, length, 1.0)
    return unit @ unit.T


def sinusoidal(positions: int, width: int) -> np.ndarray:
    """The Transformer's encoding of a sequence [positions, width]: sines at even columns, cosines at odd ones."""
    column = np.arange(width)
    angle = np.arange(positions)[:, None] / 10000.0 ** ((column - column % 2) / width)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle))


def resized_spec(spec: ViTSpec, pixels: int | None = None) -> ViTSpec:
    """The model at another image size: `pixels`, or one and a half times its own."""
    height, width = pair(spec.img_size)
    return dataclasses.replace(spec, img_size=pixels or (round(1.5 * height), round(1.5 * width)))


def chosen(count: int, most: int = MOST_TILES) -> np.ndarray:
    """Up to `most` of the indices below `count`, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def similarity_tiles(rows: np.ndarray, grid: tuple[int, int], gap: int) -> np.ndarray:
    """Patch rows [P, C] → a picture of maps: the tile at (i, j) is how patch (i, j) resembles every patch."""
    maps = cosine_similarity(rows).reshape(*grid, *grid)
    down, across = (chosen(side) for side in grid)
    return sheet.tiles(maps[np.ix_(down, across)], gap)


def draw_position(
    model: Drawable, output: str | Path, *, img_size: int | None = None, pictures: Sequence[str | Path] = ()
) -> Path:
    """Draw a position embedding, its resizing, sine and cosine, filters, and attention distance on one sheet.

    Args:
        model: a path of weights, or a model of plsc.load_model.
        output: a .png or .svg file.
        img_size: that the embedding is resized to, in pixels; by default 1.5 times the model's own.
        pictures: files to measure the attention distance on; without any the spectrum of the filters takes its place.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the model has no position embedding, or it is unknown how pictures enter it.
        DataError: a file is not a picture, or does not fit the model.
    """
    subject = subject_of(model)
    network, resized = subject.vit("position embedding"), resized_spec(subject.spec, img_size)
    if subject.spec.pos_embed == "none":
        raise ConfigError(f"{subject.name} has no position embedding to draw (its pos_embed is none)")
    distances = None
    if pictures:
        distances = distance.measure(network, subject.preprocess, read_pictures(subject, pictures))
    table = to_numpy(network.pos_embed)
    figure = sheet.new(14, 11.8, f"{subject.name}: how its patches differ")
    first, second, third = np.asarray(figure.subfigures(3, 1, height_ratios=[1.0, 1.0, 0.95]))
    _draw_grids(first, table, subject.spec, resized, subject.card.position or "bicubic")
    _draw_rows(second, table[0], subject.spec)
    left, right = third.subplots(1, 2, width_ratios=[1, 2])
    kernels, whose = filters.pixel_filters(network)
    components, shares = filters.principal_components(kernels, filters.USUAL_COUNT)
    filters.draw_components(left, components, shares, whose)
    if distances is None:
        filters.draw_spectrum(right, shares, len(components))
    else:
        distance.draw_distances(right, distances, subject.spec, len(pictures))
    return sheet.save(figure, Path(output))


def _draw_grids(figure: FigureBase, table: np.ndarray, spec: ViTSpec, resized: ViTSpec, method: str) -> None:
    """What each patch resembles: the embedding, resized by the method, and 2-D sine and cosine."""
    prefix = spec.embedded_prefix
    new = position_embedding(table, prefix, spec.grid, resized.grid, method)[:, prefix:]
    width = max(4, spec.embed_dim - spec.embed_dim % 4)
    what = "learned" if spec.pos_embed == "learned" else "fixed, sine and cosine"
    fixed = sincos_position_embedding(spec.grid, width)
    low = min(cosine_similarity(rows).min() for rows in (table[0, prefix:], new[0]))
    shown = (
        (f"Position embedding ({what})", table[0, prefix:], spec.grid, low),
        (f"The same, resized ({method})", new[0], resized.grid, low),
        ("2-D sine and cosine", fixed, spec.grid, cosine_similarity(fixed).min()),
    )
    for axis, (title, rows, grid, low) in zip(figure.subplots(1, 3), shown, strict=True):
        _draw_grid(axis, rows, grid, low)
        axis.set_title(f"{title}, {grid[0]} × {grid[1]} patches", fontsize=10)
        _similarity_bar(figure, axis, low)


def _draw_grid(axis: Axes, rows: np.ndarray, grid: tuple[int, int], low: float) -> None:
    """A map a patch, in its place, of the similarity to every patch."""
    gap = max(1, max(grid) // 10)
    # colours before resampling, so that every gap comes out white and as wide as the next
    axis.imshow(similarity_tiles(rows, grid, gap), vmin=low, vmax=1, cmap=_COLOURS, interpolation_stage="rgba")
    sheet.number_tiles(axis, [chosen(side) for side in grid], grid, gap)


def _draw_rows(figure: FigureBase, rows: np.ndarray, spec: ViTSpec) -> None:
    """The embedding's rows as a sequence, beside the sine and cosine of a sequence and what its rows resemble."""
    left, middle, right = figure.subplots(1, 3)
    sequence = sinusoidal(len(rows), spec.embed_dim)
    shown = (
        (left, rows, f"All {len(rows)} rows of the embedding{_prefix(spec)}"),
        (right, sequence, "Similarity of its rows"),
    )
    for axis, values, title in shown:
        similarity = cosine_similarity(values)
        axis.imshow(similarity, vmin=similarity.min(), vmax=1, cmap=_COLOURS, interpolation="nearest")
        axis.set_xlabel("row")
        axis.set_ylabel("row")
        axis.set_title(title, fontsize=10)
        _similarity_bar(figure, axis, similarity.min())
    middle.imshow(sequence, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto", interpolation="nearest")
    middle.set_xlabel("channel")
    middle.set_ylabel("row")
    middle.set_title("1-D sine and cosine of a sequence", fontsize=10)
    sheet.bar(figure, middle, low=-1, high=1, colours="RdBu_r", label="value")
    for axis in (left, middle, right):
        for numbers in (axis.xaxis, axis.yaxis):
            sheet.whole_numbers(numbers)


def _similarity_bar(figure: FigureBase, axis: Axes, low: float) -> None:
    sheet.bar(figure, axis, low=low, high=1, colours=_COLOURS, label="cosine similarity")


def _prefix(spec: ViTSpec) -> str:
    """ ", the class token's first" and the like, for rows before the patches."""
    return f", {' and '.join(prefix_names(spec))} first" if spec.embedded_prefix else ""
