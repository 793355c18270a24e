"""ImageNet-ReaL: accuracy on reassessed labels (Beyer et al., "Are we done with ImageNet?", 2020)."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import paddle

from plsc.errors import ConfigError, DataError
from plsc.files import read_bytes
from plsc.metrics.base import AllReduce
from plsc.metrics.topk import TopkAcc
from plsc.registry import METRICS, InputPath
from plsc.targets import Targets

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real_labels(path: str | Path) -> list[list[int]]:
    """The labels of each picture of ImageNet's validation set, in the order of their numbers.

    Args:
        path: real.json of https://github.com/google-research/reassessed-imagenet, a list of lists of classes.

    Raises:
        DataError: the file is not there, or not of this form.
    """
    try:
        labels = json.loads(read_bytes(Path(path).expanduser()))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror} (ImageNet-ReaL's real.json)") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(labels, list) or not labels or not all(map(_is_row, labels)):
        raise DataError(f"{path}: not ImageNet-ReaL's labels, which are one list of classes a picture")
    return labels


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and all(type(c) is int and c >= 0 for c in row)


@runtime_checkable
class Named(Protocol):
    """A data set that knows a sample's name without reading it."""

    def name(self, index: int) -> str: ...


@METRICS.register()
class RealAcc:
    """Top-1 accuracy by ImageNet-ReaL: right is any of a picture's reassessed labels; pictures without are skipped.

    `real_samples` are the pictures that have labels. A picture is found in real.json by the number in its
    file name (ILSVRC2012_val_00000293.JPEG); where the first picture's name has none, by its place, and then
    the data set must have as many pictures as the file.

    Args:
        labels: the file real.json.
    """

    def __init__(self, labels: Annotated[str, InputPath()]):
        self._path, self._labels = labels, read_real_labels(labels)
        self._most = max(1, max(map(len, self._labels)))
        self._largest = max((c for row in self._labels for c in row), default=0)
        self.names = ["real_top1"]
        self._accuracy = TopkAcc(1)
        self._data: Any = None

    def attach(self, data: Any) -> None:
        """Remember the data set. Raises DataError where its pictures cannot be found in the file."""
        self._data = data
        self._by_name = _NUMBER.search(Path(self._name(0)).name) is not None
        if not self._by_name and len(data) != len(self._labels):
            raise DataError(
                f"{self._path}: has labels of {len(self._labels):,} pictures, the data set has {len(data):,}, and "
                f"their names ({self._name(0)}) do not say which is which, as ILSVRC2012_val_ and 8 digits would"
            )
        self._places = np.full(len(data), -1, "int64")

    def _name(self, index: int) -> str:
        """Of a sample."""
        return self._data.name(index) if isinstance(self._data, Named) else self._data[index].name

    def reset(self) -> None:
        self._accuracy.reset()

    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        if self._data is None:
            raise ConfigError("Metric: RealAcc measures ImageNet's validation pictures; it belongs in Metric.Eval")
        if self._largest >= logits.shape[1]:
            raise DataError(
                f"{self._path}: has labels up to {self._largest}, the model {logits.shape[1]} classes; ImageNet-ReaL "
                "needs the 1,000 classes of ImageNet in their usual order"
            )
        ids = np.full([logits.shape[0], self._most], -1, "int32")
        counted = np.ones(len(ids), bool) if valid is None else valid.numpy()
        assert targets.index is not None
        index = targets.index.numpy()
        for row in np.flatnonzero(counted):
            labels = self._labels[self._place(index[row])]
            ids[row, : len(labels)] = labels
        real = Targets(label_ids=paddle.to_tensor(ids), label_weights=paddle.ones(ids.shape))
        self._accuracy.update(logits, real, paddle.to_tensor(ids[:, 0] >= 0))

    def _place(self, index: int) -> int:
        """Of a sample in the file, from 0."""
        if not self._by_name:
            return index
        if self._places[index] < 0:
            name = self._name(index)
            number = _NUMBER.search(Path(name).name)
            if not number or not 1 <= int(number[1]) <= len(self._labels):
                raise DataError(f"{name}: its name has no number that {self._path} has; ILSVRC2012_val_00000001 has")
            self._places[index] = int(number[1]) - 1
        return int(self._places[index])

    def reduce(self, all_reduce: AllReduce) -> None:
        self._accuracy.reduce(all_reduce)

    def compute(self) -> dict[str, float]:
        return {"real_top1": self._accuracy.compute()["top1"], "real_samples": self._accuracy.samples}
