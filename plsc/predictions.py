"""Predictions as text: a table, comma-separated values, or a JSON object a line.

>>> import plsc
>>> from plsc import predictions
>>> batches = plsc.load_predictor("output/digits").stream(["seven.png"])
>>> for text in predictions.as_json_lines(batches):
...     print(text, end="")
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from plsc.runs.tables import csv_table

if TYPE_CHECKING:
    from plsc.predictor import Prediction

# pictures' paths and their best classes, as Predictor.stream gives them
Batch = Sequence[tuple[str, list["Prediction"]]]

_DIGITS = 4  # of probabilities: runtimes differ in the sixth


def as_json_lines(batches: Iterable[Batch]) -> Iterator[str]:
    """The lines of each batch, a picture each: {"image": …, "predictions": [{"class", "name", "probability"}, …]}."""
    for batch in batches:
        yield "".join(
            json.dumps({"image": path, "predictions": [_mapping(prediction) for prediction in best]}) + "\n"
            for path, best in batch
        )


def as_csv(batches: Iterable[Batch]) -> Iterator[str]:
    """A row of titles, then the rows of each batch, one a picture and class."""
    yield csv_table([["image", "rank", "class", "name", "probability"]])
    for batch in batches:
        rows = [
            [path_text(path), rank, p.index, p.name, f"{p.probability:.{_DIGITS}f}"]
            for path, best in batch
            for rank, p in enumerate(best, start=1)
        ]
        yield csv_table(rows)


def as_table(batches: Iterable[Batch]) -> Iterator[str]:
    """The rows of each batch, one a picture. Columns are as wide as the first batch needs."""
    widths: Sequence[int] = ()
    for batch in batches:
        rows = [[path_text(path), *map(_short, best)] for path, best in batch]
        widths = widths or [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield "".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
            for row in rows
        )


FORMATS: dict[str, Callable[[Iterable[Batch]], Iterator[str]]] = {
    "table": as_table,
    "jsonl": as_json_lines,
    "csv": as_csv,
}


def path_text(path: str) -> str:
    """A path as text, also where its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def _mapping(prediction: "Prediction") -> dict[str, object]:
    probability = round(prediction.probability, _DIGITS)
    return {"class": prediction.index, "name": prediction.name, "probability": probability}


def _short(prediction: "Prediction") -> str:
    """ImageNet's classes have several names, separated by commas; the first is enough."""
    return f"{prediction.name.split(',')[0]} {prediction.probability:.2%}"
