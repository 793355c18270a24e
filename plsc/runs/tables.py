"""Tables to be read, as text, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

Rows = Sequence[Sequence[object]]


def text_table(rows: Rows, *, left: Sequence[bool]) -> str:
    """Rows in columns, the first of titles; aligned to the left where `left` is true, else to the right."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(c.ljust(w) if at_left else c.rjust(w) for c, w, at_left in zip(row, widths, left, strict=True))
        for row in cells
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def markdown_table(rows: Rows, *, left: Sequence[bool]) -> str:
    """The same as a table of Markdown."""
    titles, *others = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---" if at_left else "---:" for at_left in left]
    return "".join(f"| {' | '.join(line)} |\n" for line in (titles, rule, *others))


def csv_table(rows: Rows) -> str:
    """Comma-separated values; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
