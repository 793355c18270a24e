"""Ranges that several components' arguments have, for their signatures; see plsc.signatures."""

from typing import Annotated

from pydantic import AfterValidator, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
InsideUnit = Annotated[float, Field(gt=0, lt=1)]
PartOfWhole = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Workers = Annotated[int, Field(ge=0, le=1024)]  # processes
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Size = Pixels | tuple[Pixels, Pixels]  # one number for both sides, or a pair


def _rising(pair: tuple) -> tuple:
    if pair[0] > pair[1]:
        raise ValueError("the first of the pair should not be above the second")
    return pair


Rising = AfterValidator(_rising)  # of a pair (low, high)
