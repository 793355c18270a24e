"""What the model really receives: pictures after transforms, normalisation and mixing, on one sheet."""

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plsc import build
from plsc.config import Config
from plsc.data.sampler import Draw
from plsc.errors import ConfigError
from plsc.targets import Targets
from plsc.visualize import sheet

_COLUMNS = 8  # at most
_WIDE = 1.6  # how much wider than high a sheet should be
_LEAST_SHARE = 0.02  # classes below are left out of a caption: label smoothing gives every class a little
_MOST_NAMED = 3
_INCHES, _LETTERS, _LINES = 1.6, 26, 3  # of a picture's side, and of the caption above it


def draw_contact_sheet(
    config: Config, mode: Literal["Train", "Eval"], output: str | Path, *, count: int = 32, copies: int = 1
) -> Path:
    """Draw the first pictures of a mode as its loader, device input and mixing hand them to the model.

    A row is a batch of its own, mixed by its own draw. With several copies a row is one picture, and each
    column the batch of another epoch.

    Args:
        mode: of Eval the pictures come from all over the data set.
        output: a .png or .svg file.
        count: pictures on the sheet, rounded up to whole rows. copies: epochs to show of each picture.

    Returns:
        The file that was written.

    Raises:
        ConfigError: there is no such mode, or so many pictures do not fit on a sheet.
        DataError: the data cannot be read.
    """
    cells, shape = loaded_cells(config, mode, count=count, copies=copies)
    layout = "each column is another epoch" if copies > 1 else "each row is a batch"
    return draw_sheet(cells, Path(output), title=f"{mode}: {config.DataLoader[mode].dataset.name}, {shape}; {layout}")


def loaded_cells(
    config: Config, mode: Literal["Train", "Eval"], *, count: int, copies: int = 1
) -> tuple[list[Sequence[tuple[np.ndarray, str]]], str]:
    """Rows of (picture [H, W, C] uint8, caption), see `draw_contact_sheet`, and the pictures' shape in words."""
    if mode not in config.DataLoader:
        raise ConfigError(f"{config.source.name}: DataLoader.{mode} is missing")
    across = columns(count) if copies == 1 else max(1, count // copies)
    rows = -(-count // across) if copies == 1 else 1
    sheet.check_count(across * rows * copies, "ask for fewer with --count or --copies")
    data = build.dataset(config, mode)
    config = build.resolve_class_num(config, data)
    feed = build.feed(config, mode, batch_size=across, data=data)
    try:
        plan = _plan(config, mode, feed, across=across, rows=rows)
        if copies > 1:
            plan = [[draw._replace(epoch=epoch) for draw in plan[0]] for epoch in range(copies)]
        mixers = build.mixing(config) if mode == "Train" else []
        cells: list[Sequence[tuple[np.ndarray, str]]] = [
            _cells(config, mode, feed, mixers, feed.input(arrays), step)
            for step, arrays in enumerate(feed.loader.run(iter(plan)))
        ]
    finally:
        feed.loader.close()
    if copies > 1:
        cells = list(zip(*cells, strict=True))
    return cells, "x".join(map(str, feed.loader.fetcher.fields()["image"].shape))


def columns(count: int) -> int:
    """Of a sheet of so many pictures: somewhat wider than high, with few empty places."""

    def cost(across: int) -> float:
        rows = -(-count // across)
        return 2.0 * (across * rows - count) / count + abs(math.log(across / rows / _WIDE))

    return min(range(1, min(_COLUMNS, count) + 1), key=cost)


def _plan(config: Config, mode: str, feed: build.Feed, *, across: int, rows: int) -> list[list[Draw]]:
    """The draws of each batch: of training its true order, of evaluation from all over the data set."""
    size = len(feed.data)
    if mode == "Train" and size >= across:
        sampler = build.sampler(config, feed.data, across, rank=0, world_size=1)
        return list(itertools.islice(sampler.batches(0), rows))
    indices = np.linspace(0, size - 1, across * rows).astype(int).reshape(rows, across)
    return [[Draw(0, int(index)) for index in row] for row in indices]


def _cells(config: Config, mode: str, feed: build.Feed, mixers: list, batch: dict, step: int) -> list[tuple]:
    """(picture, caption) of each row of a batch, mixed as the trainer does in this step on the first process."""
    image, target = batch["image"], Targets.of(batch).to_dense(build.class_num(config))
    rng = np.random.default_rng([config.Global.seed, step, 0])
    for mixer in mixers:
        image, target = mixer(image, target, rng)
    bgr = any(not part.arguments.get("to_rgb", True) for part in config.DataLoader[mode].transforms)
    shown = displayable(image.numpy(), feed.normalize, bgr)
    return [(shown[k], caption(row, feed.data.class_names)) for k, row in enumerate(target.numpy())]


def displayable(image: np.ndarray, normalize: Any, bgr: bool) -> np.ndarray:
    """Normalised [B, C, H, W] float32 → [B, H, W, C] uint8 as it was before normalisation, in RGB."""
    pixels = image.transpose(0, 2, 3, 1)
    if normalize is None:
        pixels = pixels * 255.0
    else:
        pixels = (pixels * np.asarray(normalize.std) + np.asarray(normalize.mean)) / normalize.scale
    return np.clip(np.rint(pixels[..., ::-1] if bgr else pixels), 0, 255).astype("uint8")


def caption(target: np.ndarray, names: list[str] | None) -> str:
    """A dense target [C] in words: "cat", "cat, dog" for several whole labels, "0.70 cat + 0.30 dog" for shares."""
    order = [int(k) for k in np.argsort(-target, kind="stable") if target[k] >= _LEAST_SHARE]
    if not order:
        return "no label"
    named = [names[k] if names is not None and k < len(names) else f"class {k}" for k in order[:_MOST_NAMED]]
    more = f" and {len(order) - _MOST_NAMED} more" if len(order) > _MOST_NAMED else ""
    if all(target[k] == 1.0 for k in order):
        return ", ".join(named) + more
    return " + ".join(f"{target[k]:.2f} {name}" for k, name in zip(order, named, strict=False)) + more


def draw_sheet(cells: Sequence[Sequence[tuple[np.ndarray, str]]], output: Path, *, title: str) -> Path:
    """Draw rows of (picture [H, W, C] uint8, caption) on one sheet."""
    across = max(len(row) for row in cells)
    figure = sheet.new(_INCHES * across + 0.3, (_INCHES + 0.4) * len(cells) + 0.5, title)
    axes = figure.subplots(len(cells), across, squeeze=False)
    for axis in axes.flat:
        sheet.without_frame(axis)
    for row, line in zip(axes, cells, strict=True):
        for axis, (picture, text) in zip(row, line, strict=False):
            enlarged = "nearest" if picture.shape[0] < _INCHES * sheet.DOTS_PER_INCH else "antialiased"
            shown = picture[..., :3] if picture.shape[2] >= 3 else picture[..., 0]
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation=enlarged)
            lines = textwrap.wrap(sheet.plain(text), _LETTERS)
            sheet.set_title(axis, "\n".join(lines[:_LINES]), size=7)
    return sheet.save(figure, output)
