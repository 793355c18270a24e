"""What several transforms demand of their arguments."""

from plsc.errors import ConfigError


def check_probability(key: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{key} is {value}; a probability is between 0 and 1")


def check_rising(
    key: str, pair, *, lowest: float = 0.0, highest: float = float("inf"), open_below: bool = True
) -> None:
    """A (low, high) pair within limits; with open_below it must lie above `lowest`."""
    low, high = pair
    inside = (lowest < low if open_below else lowest <= low) and low <= high <= highest
    if not inside:
        limits = f"{'above' if open_below else 'not below'} {lowest:g}"
        limits += f" and at most {highest:g}" if highest != float("inf") else ""
        raise ConfigError(f"{key} is {list(pair)}; it takes a rising pair {limits}")
