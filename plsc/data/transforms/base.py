"""What transforms are: on the host a picture → a picture, on the device a batch → a batch."""

from abc import abstractmethod
from typing import Protocol, runtime_checkable

import numpy as np

from plsc.errors import DataError


class DoesNotFit(DataError):
    """A picture that a transform cannot take, such as one that is smaller than its crop.

    Attributes:
        transform: the transform's name.
    """

    def __init__(self, transform: object, text: str):
        super().__init__(text)
        self.transform = type(transform).__name__


@runtime_checkable
class Transform(Protocol):
    """A step on the host, in the loader's processes: any callable of this form, for instance a function.

    Draws come from `rng` alone, so that they belong to the sample (see plsc.data.fetch).
    """

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H, W, C] uint8 → [H', W', C'] uint8; the first transform of a chain may get encoded bytes."""


@runtime_checkable
class DeviceTransform(Protocol):
    """A step on the device, after normalisation, on a whole batch.

    Its random draws are made on the host with each sample, and travel in the batch. Derived from this class, a
    transform without draws needs only `apply`.
    """

    def fields(self, height: int, width: int, channels: int) -> dict[str, tuple[tuple, str]]:
        """Name → (shape, type) of the arrays that every sample carries for a picture of this size."""
        return {}

    def draw(self, rng: np.random.Generator, height: int, width: int, channels: int) -> dict[str, np.ndarray]:
        """The draws of one sample: an array for each of `fields`."""
        return {}

    @abstractmethod
    def apply(self, image, batch: dict):
        """Normalised pictures [B, C, H, W] float32, and the batch's tensors by name, → pictures of that shape."""


class InputStep:
    """Says how pixels become the model's input; DeviceInput does it. Of NormalizeImage and its like, not of others'."""


@runtime_checkable
class BatchTransform(Protocol):
    """Mixes a whole batch on the device, before it is split into micro-batches."""

    def __call__(self, image, target, rng: np.random.Generator):
        """Pictures [B, C, H, W] float32 and dense targets [B, classes] → (pictures, targets) of these shapes."""
