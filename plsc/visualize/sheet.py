"""What all drawn sheets share: size, titles, tiles, colour bars, and writing PNG or SVG."""

import functools
import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from plsc.errors import ConfigError

log = logging.getLogger("plsc")

ENDINGS = (".png", ".svg")
DOTS_PER_INCH = 110
# constrained layout takes some seconds for so many panels, and more cannot be read at a glance
MOST_PANELS = 240
# that an inch holds of a panel's title (8 points), and of a sheet's (12 points)
_LETTERS_PER_INCH, _TITLE_LETTERS_PER_INCH = 13, 11
# fonts with the characters of Chinese, Japanese and Korean class and file names, as systems have them
_WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "SimHei",
)


def new(width: float, height: float, title: str | None = None) -> Figure:
    """An empty sheet, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    pad(figure, 0.07)
    if title:
        longest = max(map(len, title.splitlines()))
        size = min(12.0, 12.0 * width * _TITLE_LETTERS_PER_INCH / longest)
        figure.suptitle(plain(title), fontsize=size, parse_math=False)
    return figure


def pad(figure: Figure, inches: float) -> None:
    """Room around each panel of a sheet of `new`."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=inches, h_pad=inches)


def save(figure: Figure, path: Path) -> Path:
    """Write the sheet. Raises ConfigError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(figure, path, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def svg(figure: Figure, name: str) -> str:
    """The sheet as an <svg> element with text that can be selected, for a page; `name` is for messages."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        _write(figure, text, name, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _write(figure: Figure, target: Path | io.StringIO, name: str, **options: Any) -> None:
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            text.set_fontfamily(_fonts())
    with warnings.catch_warnings(record=True) as caught:
        figure.savefig(target, dpi=DOTS_PER_INCH, **options)
    without_font = [warning for warning in caught if str(warning.message).startswith("Glyph")]
    for warning in caught:
        if warning not in without_font:
            warnings.warn(warning.message, stacklevel=2)
    if without_font:
        log.warning("%s: no installed font has some of its characters; install for instance fonts-noto-cjk", name)


@functools.cache
def _fonts() -> list[str]:
    """matplotlib's own font, then those installed that have what it lacks."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed)]


def plain(text: str, inches: float | None = None) -> str:
    """Text that can be drawn (no stray bytes of file names), its middle left out where a panel is too narrow."""
    text = str(text).encode("utf-8", "replace").decode()
    most = len(text) if inches is None else max(8, int(inches * _LETTERS_PER_INCH))
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def end_of(path: str | Path) -> str:
    """The last two parts of a path, for a title."""
    return "/".join(Path(path).parts[-2:])


def set_title(axis: Axes, text: str, size: float = 9) -> None:
    """A title in which `$` is a dollar sign."""
    axis.set_title(text, fontsize=size, parse_math=False)


def check_count(panels: int, remedy: str) -> None:
    """Raise ConfigError where a sheet would have too many panels to be read."""
    if panels > MOST_PANELS:
        raise ConfigError(f"{panels} panels do not fit on one sheet, which holds {MOST_PANELS}; {remedy}")


def arrange(items: int, per_item: int) -> tuple[int, int, int]:
    """How items of `per_item` panels each share a sheet about as wide as high.

    Returns:
        (items side by side, columns of one item, lines of one item).
    """
    most = 13 if items > 1 and per_item > 8 else 8  # columns; small panels where they let a model's 12 layers line up
    lines = math.ceil(per_item / most)
    columns = math.ceil(per_item / lines)
    side_by_side = round(math.sqrt(items * lines / columns))
    return max(1, min(side_by_side, items, most // columns)), columns, lines


def bar(
    figure: FigureBase,
    axes: Axes | np.ndarray,
    *,
    low: float,
    high: float,
    colours: str,
    label: str,
    ticks: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    **place: Any,
) -> None:
    """A colour bar beside axes, for values from `low` to `high`."""
    scale = ScalarMappable(Normalize(low, high), cmap=colours)
    drawn = figure.colorbar(scale, ax=axes, label=label, ticks=ticks, **place)
    if names is not None:
        drawn.set_ticklabels(names)
    drawn.ax.tick_params(labelsize=8)


def tiles(pictures: np.ndarray, gap: int, fill: float = np.nan) -> np.ndarray:
    """[rows, columns, height, width, …] → one picture, `gap` pixels of `fill` between its tiles."""
    rows, columns, height, width, *rest = pictures.shape
    sheet = np.full([rows * (height + gap) - gap, columns * (width + gap) - gap, *rest], fill, "float64")
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = pictures[i, j]
    return sheet


def number_tiles(axis: Axes, shown: Sequence[Sequence[int] | np.ndarray], sides: tuple[int, int], gap: int) -> None:
    """Patch numbers beside `tiles`: `shown` are their (rows, columns), from 0; sides is (height, width)."""
    for ticks, numbers, side in zip((axis.set_yticks, axis.set_xticks), shown, sides, strict=True):
        named = range(0, len(numbers), -(-len(numbers) // 7))
        ticks([k * (side + gap) + (side - 1) / 2 for k in named], [str(numbers[k] + 1) for k in named], fontsize=8)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel("patch column")
    axis.set_ylabel("patch row")


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def without_frame(axis: Axes) -> None:
    """No ticks and no frame, as for photographs."""
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
