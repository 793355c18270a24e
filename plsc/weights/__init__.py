"""Weights from files → a model, and from a model → files of others.

The machinery knows no model: families of models (plsc.weights.families) register the tables that map others' arrays
onto theirs, and each table serves both directions.
"""

from plsc.weights.adapt import Report, adapt
from plsc.weights.families import Family, register_family
from plsc.weights.read import Source, read
from plsc.weights.write import formats, unsaid, without_head, write

__all__ = [
    "Family",
    "Report",
    "Source",
    "adapt",
    "formats",
    "read",
    "register_family",
    "unsaid",
    "without_head",
    "write",
]
