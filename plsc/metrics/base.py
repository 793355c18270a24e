"""What a metric offers, and what several of them share."""

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import paddle
import paddle.nn.functional as F

from plsc.targets import Activation, Targets

AllReduce = Callable[[paddle.Tensor], paddle.Tensor]  # a tensor → its sum over the processes


@runtime_checkable
class Metric(Protocol):
    """A metric that streams: it adds a batch at a time on the device, joins the processes, and computes.

    Attributes:
        names: its figures from 0 to 1 of which more is better; the first metric's first one picks the best
            checkpoint.
    """

    names: list[str]

    def reset(self) -> None:
        """Forget every sample."""
        ...

    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: [B, C] float32.
            valid: [B] bool; the rows that it does not mark, as those that fill a last batch up, do not count.
        """
        ...

    def reduce(self, all_reduce: AllReduce) -> None:
        """Join the processes; afterwards each of them has the sums of all."""
        ...

    def compute(self) -> dict[str, float]:
        """Name → figure, one number each; what is larger, such as a confusion matrix, is an attribute."""
        ...


@runtime_checkable
class Attached(Protocol):
    """A metric that looks at the data set which is measured."""

    def attach(self, data: Any) -> None:
        """Called once with the data set, before the first update."""
        ...


@runtime_checkable
class WithActivation(Protocol):
    """A metric of probabilities.

    Attributes:
        activation: what makes them of logits; where it is None, that of the weights or else of Loss.Train is assigned
            before the first update.
    """

    activation: Activation | None


def probabilities(logits: paddle.Tensor, activation: Activation | None) -> paddle.Tensor:
    """[B, C] in the shape of logits; softmax where nothing is known."""
    return F.sigmoid(logits) if activation == "sigmoid" else F.softmax(logits)


class Sums:
    """A metric's state where that is one tensor of sums over samples.

    Args:
        shape: of the tensor; None where only the first batch tells.
    """

    def __init__(self, shape: list[int] | None = None, dtype: Literal["int64", "float64"] = "int64"):
        self._shape, self._dtype = shape, dtype
        self.reset()

    def reset(self) -> None:
        self._sums: paddle.Tensor | None = None if self._shape is None else paddle.zeros(self._shape, dtype=self._dtype)

    def add(self, sums: paddle.Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums

    def reduce(self, all_reduce: AllReduce) -> None:
        self._sums = all_reduce(self._total)

    @property
    def _total(self) -> paddle.Tensor:
        assert self._sums is not None, "no batch has been added"
        return self._sums
