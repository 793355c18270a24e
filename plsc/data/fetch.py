"""One draw → one row of a batch's arrays. The same code runs in workers and without them."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from plsc.data.datasets.base import Dataset, Sample, sample_of
from plsc.data.sampler import Draw
from plsc.data.transforms.base import DeviceTransform, Transform
from plsc.data.transforms.fused import fuse
from plsc.errors import ConfigError, DataError

DAMAGE = (DataError, OSError, cv2.error)
# of the machine or its storage, not of a picture
_STORAGE = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT, errno.EREMOTEIO}
_MOST_SKIPPED = 100


@dataclass(frozen=True)
class Field:
    """Shape (without the batch axis) and type of one array of a batch."""

    shape: tuple
    dtype: str


class Fetched(NamedTuple):
    """One sample, ready to be stored."""

    image: np.ndarray
    sample: Sample
    draws: dict[str, np.ndarray]


class Fetcher:
    """Reads, transforms and stores samples.

    Args:
        transforms: of the host, ending in pixels [H, W, C] uint8 of one size.
        drawn: device transforms, whose draws are made with each sample.
        seed: of the run; with a draw's epoch, index and copy it fixes the augmentation.
        class_num: labels must be below; None leaves them unchecked.
        damaged: raise, or skip: take the next sample instead (in evaluation: count it as not valid).
    """

    def __init__(
        self,
        dataset: Dataset,
        transforms: Sequence[Transform],
        *,
        seed: int,
        class_num: int | None,
        damaged: str = "raise",
        drawn: Sequence[DeviceTransform] = (),
    ):
        self.dataset, self.transforms, self.drawn, self.seed = dataset, fuse(transforms), list(drawn), seed
        self.class_num, self.damaged = class_num, damaged
        self._fields: dict[str, Field] | None = None
        self._bits = np.random.Philox(key=0)
        self._begin: dict[str, Any] = dict(self._bits.state)
        self._generator = np.random.Generator(self._bits)

    def fields(self) -> dict[str, Field]:
        """The arrays of a batch, from a first sample that is fetched."""
        if self._fields is None:
            self._fields = self._fields_of(self._first_readable(Draw(0, 0))[0].image.shape)
        return self._fields

    def _fields_of(self, shape: tuple[int, ...]) -> dict[str, Field]:
        fields = {"image": Field(shape, "uint8"), "index": Field((), "int64"), "valid": Field((), "bool")}
        for transform in self.drawn:
            for name, of in transform.fields(*shape).items():
                if name in fields:
                    raise ConfigError(f"{type(transform).__name__}: another array of the batch is called {name!r}")
                fields[name] = Field(*of)
        if self.dataset.max_labels == 1:
            fields["label"] = Field((), "int64")
        else:
            fields["label_ids"] = Field((self.dataset.max_labels,), "int32")
            fields["label_weights"] = Field((self.dataset.max_labels,), "float32")
        return fields

    def store(self, arrays: dict[str, np.ndarray], row: int, draw: Draw) -> list[str]:
        """Fill row `row` of a batch's arrays; returns what was skipped, one message a sample.

        Raises:
            DataError: naming the picture.
        """
        (image, sample, draws), skipped = self._first_readable(draw)
        # a copy of another sample would count twice in evaluation; training ignores `valid`
        valid = draw.valid and not skipped
        expected = arrays["image"].shape[1:]
        if image.shape != expected:
            raise DataError(
                f"{sample.name}: the transforms leave {_shown(image.shape)} but {_shown(expected)} for the first "
                "picture; end them with a crop or a resize to one size"
            )
        arrays["image"][row] = image
        arrays["index"][row] = draw.index
        arrays["valid"][row] = valid
        for name, values in draws.items():
            arrays[name][row] = values
        if "label" in arrays:
            arrays["label"][row] = sample.label
        else:
            labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
            arrays["label_ids"][row] = -1
            arrays["label_ids"][row, : len(labels)] = labels
            arrays["label_weights"][row] = 0.0
            arrays["label_weights"][row, : len(labels)] = 1.0 if sample.weights is None else sample.weights
        return skipped if draw.valid else []  # what fills a last batch up is reported in its own row

    def _first_readable(self, draw: Draw) -> tuple[Fetched, list[str]]:
        """The sample of a draw; with damaged: skip, else the next that can be read. And what was skipped."""
        skipped: list[str] = []
        while True:
            try:
                return self._fetch(draw), skipped
            except DataError as error:
                if self.damaged != "skip" or isinstance(error, (WrongLabel, StorageFault)):
                    raise
                skipped.append(str(error))
                if len(skipped) >= _MOST_SKIPPED:
                    raise DataError(f"{_MOST_SKIPPED} samples in a row cannot be read; the last: {error}") from error
                draw = draw._replace(index=(draw.index + 1) % len(self.dataset))

    def _fetch(self, draw: Draw) -> Fetched:
        sample = None
        try:
            sample = sample_of(self.dataset, draw.index)
            image: Any = sample.image
            generator = self.generator(draw)
            for transform in self.transforms:
                image = transform(image, generator)
        except DAMAGE as error:
            name = sample.name if sample else None
            kind = StorageFault if _is_storage_fault(error) else DataError
            raise kind(f"{name}: {error}" if name else str(error)) from error
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8:
            raise DataError(
                f"{sample.name}: the transforms leave {type(image).__name__}, not pixels; begin them with DecodeImage"
            )
        self._check_labels(sample)
        draws: dict[str, np.ndarray] = {}
        for drawn in self.drawn:
            draws.update(drawn.draw(generator, *image.shape))
        return Fetched(image, sample, draws)

    def _check_labels(self, sample: Sample):
        labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        if not labels or self.class_num is None:
            return
        wrong = min(labels) if min(labels) < 0 else max(labels)
        if not 0 <= wrong < self.class_num:
            raise WrongLabel(
                f"{sample.name}: its label is {wrong}, but Model.class_num is {self.class_num}; labels count from 0"
            )

    def generator(self, draw: Draw) -> np.random.Generator:
        """The random generator of one draw: a function of (seed, epoch, index, copy). The next call ends it."""
        key = [(self.seed << 32 | draw.epoch) & (2**64 - 1), (draw.index << 16 | draw.copy) & (2**64 - 1)]
        # one generator that is set again costs a fraction of making one, which asks the system for entropy
        state: Any = {**self._begin, "state": {"counter": self._begin["state"]["counter"], "key": key}}
        self._bits.state = state
        return self._generator


class StorageFault(DataError):
    """The storage failed, or too many files are open: no damage of the picture, so it is never skipped."""


def _is_storage_fault(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return True
        error = error.__cause__
    return False


class WrongLabel(DataError):
    """A label that the model has no output for: no damage to skip, but a wrong configuration."""


def _shown(shape) -> str:
    return "x".join(map(str, shape)) + " (height x width x channels)"
