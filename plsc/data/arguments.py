"""Types of arguments with their bounds, which signatures are written with (see plsc.signatures)."""

from typing import Annotated

from pydantic import AfterValidator, Field

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Part = Annotated[float, Field(gt=0, le=1)]  # of a whole, but not nothing of it


def _rising(pair: tuple) -> tuple:
    if pair[0] > pair[1]:
        raise ValueError("the first of the pair should not be above the second")
    return pair


Rising = AfterValidator(_rising)  # of a pair (low, high)

Size = Count | tuple[Count, Count]  # pixels: one number for both sides, or a pair
