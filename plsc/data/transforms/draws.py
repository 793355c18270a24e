"""Draws that several transforms make."""

import math


def either_side(value: float, rng) -> float:
    """The value or its opposite, one as often as the other."""
    return value if rng.random() < 0.5 else -value


def log_uniform(limits, rng) -> float:
    """A number whose logarithm is uniform between those of the limits."""
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))
