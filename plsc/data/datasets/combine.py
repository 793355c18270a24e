"""Parts of data sets, and several as one."""

import re
from typing import Annotated

import numpy as np

from plsc.data.datasets.base import Sample, name_of
from plsc.errors import ConfigError, DataError
from plsc.registry import DATASETS, ListOf


def shard_sizes(data) -> np.ndarray | None:
    """Samples of each shard in order, where the data set lies in shards; else None."""
    return getattr(data, "shard_sizes", None)


class Sliced:
    """A contiguous part of a data set, written as in Python: [:50000], [-50000:], [1000:2000].

    The limits are samples; a part that would be empty is refused.
    """

    def __init__(self, data, piece: str):
        found = re.fullmatch(r"\[?\s*(-?\d+)?\s*:\s*(-?\d+)?\s*\]?", piece)
        if not found:
            raise ConfigError(f"slice is {piece!r}; write it as in Python, for instance '[:50000]' or '[-50000:]'")
        limits = [None if text is None else int(text) for text in found.groups()]
        self._start, self._stop, _ = slice(*limits).indices(len(data))
        if self._stop <= self._start:
            raise DataError(f"slice {piece} of {len(data)} samples leaves nothing")
        self.data = data
        self.class_names, self.max_labels = data.class_names, data.max_labels
        self.reads_groups = getattr(data, "reads_groups", False)
        sizes = shard_sizes(data)
        if sizes is None:
            self.shard_sizes = None
        else:
            ends = np.clip(np.cumsum(sizes), self._start, self._stop)
            kept = np.diff(ends, prepend=self._start)
            self.shard_sizes = kept[kept > 0]

    def check(self, class_num: int) -> None:
        if hasattr(self.data, "check"):
            self.data.check(class_num)

    def __len__(self):
        return self._stop - self._start

    def name(self, index: int) -> str:
        return name_of(self.data, self._start + index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.data[self._start + index]


@DATASETS.register()
class Stack:
    """Several data sets as one, in their order; all number the same classes alike."""

    def __init__(self, datasets: Annotated[list, ListOf(DATASETS)]):
        if not datasets:
            raise ConfigError("Stack.datasets is empty; it lists the data sets to put together")
        self.datasets = datasets
        named = [data.class_names for data in datasets if data.class_names is not None]
        if any(names != named[0] for names in named):
            raise DataError("Stack: its data sets have different classes, or number them differently")
        self.class_names = named[0] if named else None
        self.max_labels = max(data.max_labels for data in datasets)
        self.reads_groups = any(getattr(data, "reads_groups", False) for data in datasets)
        self._ends = np.cumsum([len(data) for data in datasets])
        sizes = [shard_sizes(data) for data in datasets]
        if all(s is None for s in sizes):
            self.shard_sizes = None
        else:
            sizes = [[len(d)] if s is None else s for s, d in zip(sizes, datasets, strict=True)]
            self.shard_sizes = np.concatenate([np.asarray(s, dtype=np.int64) for s in sizes])

    def check(self, class_num: int) -> None:
        for data in self.datasets:
            if hasattr(data, "check"):
                data.check(class_num)

    def __len__(self):
        return int(self._ends[-1])

    def _find(self, index: int):
        """(data set, index in it) of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.datasets[part], index - (int(self._ends[part - 1]) if part else 0)

    def name(self, index: int) -> str:
        return name_of(*self._find(index))

    def __getitem__(self, index: int) -> Sample:
        data, index = self._find(index)
        return data[index]
