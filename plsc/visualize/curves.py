"""Loss, accuracy, learning rate and throughput of runs, from their metrics.jsonl."""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plsc.runs.records import read_metrics, run_names
from plsc.visualize import sheet


class _Panel(NamedTuple):
    name: str
    title: str
    label: str
    scale: str = "linear"
    factor: float = 1.0


_NOTHING = _Panel("", "Accuracy", "")
_LOSS = _Panel("loss", "Loss", "loss", "log")
_TOP5 = _Panel("top5", "Accuracy, top-5", "top-5 (%)", factor=100.0)
_NORM = _Panel("grad_norm", "Gradient norm, before clipping", "norm", "log")
_RATE = _Panel("lr", "Learning rate", "learning rate")
_THROUGHPUT = _Panel("images_per_second", "Throughput, without evaluation and saving", "images / s", "from zero")
# the figures of plsc.metrics in which runs are compared, the first that was logged is drawn
_ACCURACIES = (
    _Panel("top1", "Accuracy", "top-1 (%)", factor=100.0),
    _Panel("precision_at_1", "Precision at 1", "precision at 1 (%)", factor=100.0),
    _Panel("mAP", "Mean average precision", "mAP (%)", factor=100.0),
    _Panel("auc", "Area under the ROC curve", "AUC (%)", factor=100.0),
    _Panel("f1_macro", "F1, mean over classes", "F1 (%)", factor=100.0),
    _Panel("mean_class_top1", "Accuracy, mean over classes", "top-1 (%)", factor=100.0),
    _Panel("real_top1", "Accuracy on ReaL labels", "top-1 (%)", factor=100.0),
)
# kind of record, whose weights, style, what
_LINES = (
    ("train", "raw", "-", "training"),
    ("eval", "raw", "D-", "evaluation"),
    ("eval", "ema", "s--", "evaluation, averaged weights"),
)
_FEW_POINTS = 20  # each gets a point
_MARK = 4  # size, in points
_LETTERS = 120  # of a line of the legend of runs


def draw_curves(folders: Iterable[str | Path], output: str | Path) -> Path | None:
    """Draw runs into one picture (PNG or SVG by its ending); returns its path, None where there are no records."""
    runs = {name: read_metrics(folder) for name, folder in run_names(folders).items()}
    if not any(runs.values()):
        return None
    panels = _panels(runs.values())
    across = 2 if len(panels) <= 4 else 3
    title = next(iter(runs)) if len(runs) == 1 else None
    figure = sheet.new(5.5 * across, 7 if len(runs) == 1 else 7.5, title)
    axes = figure.subplots(2, across)
    for axis, panel in itertools.zip_longest(axes.flat, panels):
        if panel is not None:
            _draw_panel(axis, panel, runs)
        else:
            sheet.without_frame(axis)
    if len(runs) > 1:
        _name_runs(figure, runs)
    return sheet.save(figure, Path(output))


def curve_figures(folders: Iterable[str | Path]) -> list[tuple[str, Figure]]:
    """(title, figure) of each quantity that runs have logged, for a page; what was not logged is left out."""
    runs = {name: read_metrics(folder) for name, folder in run_names(folders).items()}
    figures = []
    for panel in _panels(runs.values()):
        if panel.name:
            figure = sheet.new(6.4, 3.6 if len(runs) == 1 else 3.9)
            _draw_panel(figure.subplots(), panel, runs)
            if len(runs) > 1:
                _name_runs(figure, runs, letters=_LETTERS // 2)
            figures.append((panel.title, figure))
    return figures


def _panels(runs: Iterable[list[dict[str, Any]]]) -> list[_Panel]:
    """What is drawn of runs; of top-5 and gradient norm only what was logged."""
    runs = list(runs)
    names = {name for records in runs for record in records for name in record}
    accuracy = _accuracy_of(runs) or _NOTHING
    top5 = [_TOP5] if accuracy.name == "top1" and _TOP5.name in names else []
    return [_LOSS, accuracy, *top5, _RATE, _THROUGHPUT, *([_NORM] if _NORM.name in names else [])]


def _draw_panel(axis: Axes, panel: _Panel, runs: Mapping[str, list[dict[str, Any]]]) -> None:
    if panel is _NOTHING:
        _say_nothing_logged(axis)
        return
    drawn: dict[int, Line2D] = {}
    for records, colour in zip(runs.values(), _colours(len(runs)), strict=True):
        drawn = {**_draw_run(axis, records, panel, colour), **drawn}
    _finish(axis, panel)
    _explain_lines(axis, drawn, one_run=len(runs) == 1)


def _name_runs(figure: Figure, runs: Iterable[str], letters: int = _LETTERS) -> None:
    """A legend of the runs' colours above the panels, in as many columns as their names leave room for."""
    names = list(runs)
    lines = [Line2D([], [], color=colour, linewidth=2) for colour in _colours(len(names))]
    columns = max(1, min(4, letters // (max(map(len, names)) + 6)))
    legend = figure.legend(lines, map(sheet.plain, names), loc="outside upper center", ncols=columns, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _accuracy_of(runs: Iterable[list[dict[str, Any]]]) -> _Panel | None:
    """The panel of the first accuracy that any run has logged, None where none has any."""
    names = {name for records in runs for record in records for name in record}
    for panel in _ACCURACIES:
        if panel.name in names:
            return panel
    topk = sorted(int(name[3:]) for name in names if re.fullmatch(r"top\d+", name))
    return _Panel(f"top{topk[0]}", "Accuracy", f"top-{topk[0]} (%)", factor=100.0) if topk else None


def _say_nothing_logged(axis: Axes) -> None:
    sheet.without_frame(axis)
    axis.set_title("Accuracy", fontsize=10)
    axis.text(0.5, 0.5, "no accuracy was logged", ha="center", va="center", transform=axis.transAxes)


def _colours(runs: int) -> list:
    """A colour a run; None for one alone, whose lines then differ in colour by kind."""
    if runs == 1:
        return [None]
    if runs <= 10:
        return [f"C{k}" for k in range(runs)]
    return [matplotlib.colormaps["turbo"](k / (runs - 1)) for k in range(runs)]


def _series(records: list[dict[str, Any]], kind: str, panel: _Panel, weights: str) -> tuple[list[int], list[float]]:
    """(updates, values) of one line, in the panel's unit."""
    chosen = [r for r in records if r["kind"] == kind and panel.name in r and r.get("weights", "raw") == weights]
    return [r["step"] for r in chosen], [panel.factor * r[panel.name] for r in chosen]


def _draw_run(axis: Axes, records: list[dict[str, Any]], panel: _Panel, colour: Any) -> dict[int, Line2D]:
    """Draw the lines that a run has of one quantity; returns them by their place in _LINES."""
    drawn = {}
    for j, (kind, weights, style, _) in enumerate(_LINES):
        steps, values = _series(records, kind, panel, weights)
        if not steps:
            continue
        if len(steps) <= _FEW_POINTS and style == "-":
            style = ".-"
        colour_of_line = f"C{j}" if colour is None else colour
        [drawn[j]] = axis.plot(steps, values, style, markersize=_MARK, linewidth=1.2, color=colour_of_line)
    return drawn


def _explain_lines(axis: Axes, drawn: dict[int, Line2D], *, one_run: bool) -> None:
    """A legend of the kinds of lines in a panel, each as one that was drawn."""
    lines = [
        Line2D(
            [],
            [],
            color=line.get_color() if one_run else "0.3",
            marker=line.get_marker(),
            linestyle=line.get_linestyle(),
            markersize=_MARK,
        )
        for _, line in sorted(drawn.items())
    ]
    if lines:
        axis.legend(lines, [_LINES[j][-1] for j in sorted(drawn)], fontsize=8)


def _finish(axis: Axes, panel: _Panel) -> None:
    """Title, units, scale and grid of a panel."""
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("update")
    sheet.whole_numbers(axis.xaxis)
    axis.set_ylabel(panel.label)
    if panel.scale == "log" and axis.lines and min(np.min(np.asarray(line.get_ydata())) for line in axis.lines) > 0:
        axis.set_yscale("log")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(lambda value, _: f"{value:g}")
        axis.tick_params(axis="y", which="both", labelsize=8)
    if panel.scale == "from zero":
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
