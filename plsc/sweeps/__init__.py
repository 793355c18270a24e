"""Searches over settings and seeds: many runs of one recipe, each a process with a run directory of its own."""

from plsc.sweeps.space import as_mapping, read_file
from plsc.sweeps.sweeper import Standing, SweepResult, sweep

__all__ = ["Standing", "SweepResult", "as_mapping", "read_file", "sweep"]
