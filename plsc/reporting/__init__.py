"""One page about runs: curves, settings, what the best one gets wrong, what it saw."""

from plsc.reporting.reporter import report

__all__ = ["report"]
