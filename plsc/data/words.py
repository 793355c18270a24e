"""Counts and lists of names as messages have them."""

from collections.abc import Sequence


def some(names: Sequence, most: int = 10) -> str:
    """The first of some names, and their number where there are more: "a, b, … (12 in all)"."""
    return ", ".join(map(str, names[:most])) + (f", … ({len(names):,} in all)" if len(names) > most else "")


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A count with its noun: "1 class", "2,000 samples"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
