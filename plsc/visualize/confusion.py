"""A confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plsc.visualize import sheet

_MOST_NAMED, _MOST_COUNTED = 50, 20
_NUMBERS = 11  # ticks where there are too many classes for names


def draw_confusion(matrix: np.ndarray, names: list[str], output: str | Path) -> Path:
    """Draw which class is taken for which, as shares of each true class; returns the picture's path.

    See `confusion_figure`.

    Args:
        matrix, names: see there. output: PNG or SVG, by its ending.

    Raises:
        ConfigError: the file cannot be written.
    """
    return sheet.save(confusion_figure(matrix, names), Path(output))


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Which class is taken for which, as shares of each true class.

    Classes that neither occur nor are predicted are left out. Up to 50 are named, and up to 20 have their
    counts written in.

    Args:
        matrix: [C, C] counts; a row is the true class, a column the predicted one.
        names: of the classes.
    """
    classes = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    count, matrix = len(classes), matrix[np.ix_(classes, classes)]
    side = min(14.0, 4.0 + 0.3 * count)
    figure = sheet.new(side + 1.0, side)
    sheet.pad(figure, 0.15)
    axis = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if count <= _MOST_NAMED:
        shown = [sheet.plain(names[c], inches=1.6) for c in classes.tolist()]
        axis.set_xticks(
            range(count), shown, rotation=90 if max(map(len, shown)) > 2 else 0, fontsize=8, parse_math=False
        )
        axis.set_yticks(range(count), shown, fontsize=8, parse_math=False)
    else:
        places = np.linspace(0, count - 1, _NUMBERS).astype(int)
        axis.set_xticks(places, classes[places])
        axis.set_yticks(places, classes[places])
    if count <= _MOST_COUNTED:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=8, color=colour)
    sheet.bar(figure, axis, low=0.0, high=1.0, colours="Blues", label="share of the true class", shrink=0.7)
    return figure
