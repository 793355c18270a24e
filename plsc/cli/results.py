"""Measured figures as a table on the console, and as JSON, CSV, Markdown or a picture in files."""

import contextlib
import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from plsc.errors import ConfigError

TABLE_ENDINGS = (".json", ".csv", ".md")
CLASSES_ENDINGS = (".csv",)
CONFUSION_ENDINGS = (".csv", ".png", ".svg")
MOST_PRINTED_CLASSES = 50


@dataclass
class Row:
    """One measurement.

    Attributes:
        about: what was measured: weights, ema, config, data, resolution.
        figures: name → number. percent: names of figures that are shown in percent.
        error: why there are none.
    """

    about: dict
    figures: dict = field(default_factory=dict)
    percent: set = field(default_factory=set)
    error: str | None = None

    @property
    def title(self) -> str:
        """What tells it from other rows."""
        facts = [self.about[name] for name in ("weights", "data", "resolution")]
        return ", ".join(str(fact) for fact in facts if fact is not None)

    def values(self) -> dict:
        """All of it, plain; what is not finite, which JSON cannot say, is None."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        return {**self.about, **figures, **({"error": self.error} if self.error else {})}

    def shown(self, name: str) -> str:
        """A figure or fact as a reader wants it."""
        if name not in self.figures:
            value = self.values().get(name)
            return "" if value is None else str(value)
        value = self.figures[name]
        if name in self.percent:
            return f"{100 * value:.2f} %"
        return str(value) if isinstance(value, int) else f"{value:.6g}"


def numbered(path: Path, number: int, count: int) -> Path:
    """The file of one row among `count`: confusion.csv of the second is confusion-2.csv."""
    return path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def list_of_figures(row: Row) -> str:
    """One row, a line a figure."""
    width = max(map(len, row.figures))
    return "\n".join(f"{name:<{width}}  {row.shown(name)}" for name in row.figures)


def table(rows: list[Row]) -> str:
    """Several rows side by side."""
    names = _columns(rows)
    lines = [names, *(_cells(row, names) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    figures = _figures(rows)
    aligned = [
        [cell.rjust(w) if name in figures else cell.ljust(w) for name, cell, w in zip(names, line, widths, strict=True)]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _columns(rows: list[Row]) -> list[str]:
    """Weights, data and resolution where they differ between the rows, the figures, and errors where there are any."""
    about = ["weights"]
    for name in ("data", "resolution"):
        if len({str(row.about[name]) for row in rows if row.about[name] is not None}) > 1:
            about.append(name)
    return [*about, *_figures(rows), *_error(rows)]


def _figures(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.figures))


def _error(rows: list[Row]) -> list[str]:
    return ["error"] if any(row.error for row in rows) else []


def _cells(row: Row, names: list[str]) -> list[str]:
    return [" ".join(row.shown(name).split()) for name in names]


def write(rows: list[Row], path: Path, *, alone: bool) -> None:
    """All rows, in the format of the file's ending. A row that is to stay alone is a plain JSON object, else `rows`.

    Raises:
        ConfigError: the file cannot be written.
    """
    ending = path.suffix.lower()
    with _file(path) as file:
        if ending == ".csv":
            writer = csv.DictWriter(file, [*rows[0].about, *_figures(rows), *_error(rows)])
            writer.writeheader()
            writer.writerows(row.values() for row in rows)
        elif ending == ".md":
            file.write(_markdown(rows))
        else:
            content = rows[0].values() if alone else {"rows": [row.values() for row in rows]}
            file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _markdown(rows: list[Row]) -> str:
    names, figures = _columns(rows), _figures(rows)
    lines = [names, ["---:" if name in figures else "---" for name in names]]
    lines += ([cell.replace("|", "\\|") for cell in _cells(row, names)] for row in rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_classes(path: Path, samples, right, names) -> None:
    """A line a class: number, name, samples, how many are right, and their share (empty without samples)."""
    with _file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "samples", "right", "top1"])
        for c, (count, hits) in enumerate(zip(samples.tolist(), right.tolist(), strict=True)):
            writer.writerow([c, _name(names, c), count, hits, hits / count if count else ""])


def write_confusion(path: Path, matrix, names) -> None:
    """The matrix as CSV, a row a true class and a column a predicted one, or as a picture (PNG, SVG)."""
    if path.suffix.lower() != ".csv":
        from plsc.visualize.confusion import draw_confusion

        draw_confusion(matrix, [_name(names, c) or str(c) for c in range(len(matrix))], path)
        return
    with _file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", *range(len(matrix))])
        for c, row in enumerate(matrix.tolist()):
            writer.writerow([c, _name(names, c), *row])


def confusion_text(matrix, names) -> str:
    """The matrix to be printed: a row a true class, a column a predicted one; without classes that do not occur."""
    classes = [c for c, count in enumerate((matrix.sum(axis=0) + matrix.sum(axis=1)).tolist()) if count]
    if len(classes) > MOST_PRINTED_CLASSES:
        return f"the confusion of {len(classes)} classes is too large to print; --confusion FILE writes it"
    labels = [str(c) if _name(names, c) in ("", str(c)) else f"{c} {_name(names, c)}" for c in classes]
    first = max(map(len, labels))
    width = max(len(str(matrix.max())), len(str(classes[-1])))
    lines = ["rows: the true class; columns: the predicted one"]
    lines.append(" " * first + "".join(f" {c:>{width}}" for c in classes))
    for c, label in zip(classes, labels, strict=True):
        lines.append(f"{label:<{first}}" + "".join(f" {matrix[c, k] or '.':>{width}}" for k in classes))
    return "\n".join(lines)


def _name(names, c: int) -> str:
    return names[c] if names is not None and c < len(names) else ""


@contextlib.contextmanager
def _file(path: Path):
    """A file to write text into. Raises ConfigError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
