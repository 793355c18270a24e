"""Measured figures as text and files: a table as JSON, CSV or Markdown, counts of classes and confusion as CSV."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plsc import files
from plsc.engine.evaluation import Evaluation
from plsc.errors import ConfigError
from plsc.runs.tables import csv_table, markdown_table, text_table

TABLE_ENDINGS = (".json", ".csv", ".md")
_MOST_CLASSES = 50  # of a confusion matrix that is printed


def write_table(results: Sequence[Evaluation], path: str | Path, *, alone: bool = False) -> None:
    """Write measurements, in the format of the file's ending: .json, .csv or .md.

    Args:
        alone: a single measurement is a plain JSON object; else its rows are a list named `rows`.

    Raises:
        ConfigError: the file cannot be written, or has another ending.
    """
    ending = Path(path).suffix.lower()
    if ending not in TABLE_ENDINGS:
        raise ConfigError(f"{path}: is written as {', '.join(TABLE_ENDINGS)}; end the name so")
    rows = [result.to_dict() for result in results]
    if ending == ".csv":
        errors = ["error"] if any(result.error for result in results) else []
        columns = [*results[0].about, *figure_names(results), *errors]
        _write(path, csv_table([columns, *([row.get(name) for name in columns] for row in rows)]))
    elif ending == ".md":
        _write(path, _markdown(results))
    else:
        content = rows[0] if alone else {"rows": rows}
        _write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_classes(result: Evaluation, path: str | Path) -> None:
    """Write a line a class: number, name, samples, how many are right, and their share (empty without samples).

    Args:
        result: measured with the metric PerClassAccuracy.

    Raises:
        ConfigError: it was not, or the file cannot be written.
    """
    counts = result.classes
    if counts is None:
        raise ConfigError(f"{path}: there are no counts of classes: evaluate with metrics=['PerClassAccuracy']")
    rows = [
        [c, class_name(result.class_names, c), samples, right, right / samples if samples else ""]
        for c, (samples, right) in enumerate(zip(counts.samples.tolist(), counts.right.tolist(), strict=True))
    ]
    _write(path, csv_table([["class", "name", "samples", "right", "top1"], *rows]))


def write_confusion(result: Evaluation, path: str | Path) -> None:
    """Write the confusion matrix, a row a true class and a column a predicted one.

    plsc.visualize.draw_confusion draws it.

    Args:
        result: measured with the metric ConfusionMatrix.

    Raises:
        ConfigError: it was not, or the file cannot be written.
    """
    if result.confusion is None:
        raise ConfigError(f"{path}: there is no confusion matrix: evaluate with metrics=['ConfusionMatrix']")
    rows = [[c, class_name(result.class_names, c), *counts] for c, counts in enumerate(result.confusion.tolist())]
    _write(path, csv_table([["class", "name", *range(len(rows))], *rows]))


def class_name(names: list[str] | None, c: int) -> str:
    """A class's name; empty where it has none."""
    return names[c] if names is not None and c < len(names) else ""


def figure_names(results: Sequence[Evaluation]) -> list[str]:
    """Of all rows, in the order in which they are first met."""
    return list(dict.fromkeys(name for result in results for name in result))


def columns(results: Sequence[Evaluation]) -> list[list[str]]:
    """A table to be read: names, then a row a measurement, with fractions in percent.

    Data and resolution have a column where they differ between the rows, errors where there are any.
    """
    names = ["weights"]
    for name in ("data", "resolution"):
        if len({str(result.about[name]) for result in results if result.about[name] is not None}) > 1:
            names.append(name)
    names += figure_names(results)
    names += ["error"] if any(result.error for result in results) else []
    return [names, *([" ".join(shown(result, name).split()) for name in names] for result in results)]


def shown(result: Evaluation, name: str) -> str:
    """A figure or fact as a reader wants it."""
    if name not in result:
        value = result.to_dict().get(name)
        return "" if value is None else str(value)
    value = result[name]
    if name in result.fractions:
        return f"{100 * value:.2f} %"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def text(results: Sequence[Evaluation]) -> str:
    """Measurements as a terminal shows them: of one a line a figure, several side by side."""
    if len(results) == 1:
        return text_table([(name, shown(results[0], name)) for name in results[0]], left=[True, True])
    rows = columns(results)
    return text_table(rows, left=_at_left(results, rows[0]))


def confusion_text(matrix: np.ndarray, class_names: list[str] | None = None) -> str:
    """A confusion matrix as a terminal shows it: a row a true class, a column a predicted one, classes that occur."""
    classes = [c for c, count in enumerate((matrix.sum(axis=0) + matrix.sum(axis=1)).tolist()) if count]
    if len(classes) > _MOST_CLASSES:
        return f"the confusion of {len(classes)} classes is too large to print; --confusion FILE writes it"
    named = [(c, class_name(class_names, c)) for c in classes]
    labels = [str(c) if name in ("", str(c)) else f"{c} {name}" for c, name in named]
    first = max(map(len, labels))
    width = max(len(str(matrix.max())), len(str(classes[-1])))
    lines = ["rows: the true class; columns: the predicted one"]
    lines.append(" " * first + "".join(f" {c:>{width}}" for c in classes))
    for c, label in zip(classes, labels, strict=True):
        lines.append(f"{label:<{first}}" + "".join(f" {matrix[c, k] or '.':>{width}}" for k in classes))
    return "\n".join(lines)


def _markdown(results: Sequence[Evaluation]) -> str:
    rows = columns(results)
    return markdown_table(rows, left=_at_left(results, rows[0]))


def _at_left(results: Sequence[Evaluation], names: Sequence[str]) -> list[bool]:
    """Which columns are texts."""
    figures = figure_names(results)
    return [name not in figures for name in names]


def _write(path: str | Path, text: str) -> None:
    try:
        files.write_text(Path(path), text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
