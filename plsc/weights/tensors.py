"""An array in a file: its shape is known at once, its values are read when asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """An array that is read, and then turned, when asked for.

    Attributes:
        read: returns the values; bfloat16 as float32.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "Tensor":
        """An array in memory."""
        return cls(tuple(array.shape), lambda: array)

    def reshaped(self, *shape: int) -> "Tensor":
        """In another shape; one side may be -1. Raises ValueError where the number of values differs."""
        count, known = math.prod(self.shape), math.prod(side for side in shape if side != -1)
        if shape.count(-1) == 1 and known and count % known == 0:
            shape = tuple(count // known if side == -1 else side for side in shape)
        if math.prod(shape) != count or min(shape, default=0) < 0:
            raise ValueError(f"{list(self.shape)} cannot become {list(shape)}")
        return Tensor(shape, lambda: self.read().reshape(shape))

    def transposed(self, *axes: int) -> "Tensor":
        """With its axes in another order; without arguments reversed."""
        axes = axes or tuple(reversed(range(len(self.shape))))
        if len(axes) != len(self.shape):
            raise ValueError(f"{list(self.shape)} has {len(self.shape)} dimensions, not {len(axes)}")
        return Tensor(tuple(self.shape[axis] for axis in axes), lambda: self.read().transpose(axes))

    def at(self, index: int) -> "Tensor":
        """One of the arrays that are stacked along the first axis."""
        return Tensor(self.shape[1:], lambda: self.read()[index])

    def rows(self, start: int, end: int | None = None) -> "Tensor":
        """Those from start to end along the first axis."""
        start, end, _ = slice(start, end).indices(self.shape[0])
        return Tensor((max(0, end - start), *self.shape[1:]), lambda: self.read()[start:end])

    def split(self, count: int) -> "list[Tensor]":
        """`count` equal parts along the last axis. Raises ValueError where it is not divisible."""
        if not self.shape or self.shape[-1] % count:
            raise ValueError(f"{list(self.shape)} cannot be split into {count}")
        width = self.shape[-1] // count
        shape = (*self.shape[:-1], width)

        def part(k: int) -> np.ndarray:
            return self.read()[..., k * width : (k + 1) * width]

        return [Tensor(shape, partial(part, k)) for k in range(count)]


def joined(tensors: list[Tensor], axis: int = -1) -> Tensor:
    """Tensors side by side along an axis. Raises ValueError where their other sides differ."""
    first = tensors[0].shape
    axis %= max(len(first), 1)
    rests = {(tensor.shape[:axis], tensor.shape[axis + 1 :], len(tensor.shape)) for tensor in tensors}
    if not first or len(rests) > 1:
        raise ValueError(f"{', '.join(str(list(tensor.shape)) for tensor in tensors)} do not go side by side")
    width = sum(tensor.shape[axis] for tensor in tensors)
    shape = (*first[:axis], width, *first[axis + 1 :])
    return Tensor(shape, lambda: np.concatenate([tensor.read() for tensor in tensors], axis=axis))
