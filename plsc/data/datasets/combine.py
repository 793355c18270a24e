"""Parts of data sets, and several as one."""

import re
from collections.abc import Hashable
from typing import Annotated

import numpy as np

from plsc.data.datasets.base import (
    Dataset,
    FetchesAhead,
    Labelled,
    Sample,
    check_labels,
    fetches_ahead,
    labels_of,
    name_of,
    reads_groups,
    sample_of,
    shard_sizes,
    shards_of,
)
from plsc.data.words import some
from plsc.errors import ConfigError, DataError
from plsc.registry import DATASETS, ListOf


class Subset(Dataset):
    """Some samples of a data set, in their order.

    Args:
        indices: which, rising: a range, or an array of integers.
    """

    def __init__(self, data: Dataset, indices: range | np.ndarray):
        self.data, self.indices = data, indices
        self.class_names, self.max_labels = data.class_names, data.max_labels
        self.reads_groups, self.is_remote = reads_groups(data), fetches_ahead(data)
        sizes = shard_sizes(data)
        self.shard_sizes = None if sizes is None else self._kept_of(sizes)

    def _kept_of(self, sizes: np.ndarray) -> np.ndarray:
        """Samples that the subset has of each shard, without the shards that it has none of."""
        ends = np.cumsum(sizes)
        if isinstance(self.indices, range):
            before = np.clip(ends, self.indices.start, self.indices.stop) - self.indices.start
        else:
            before = np.searchsorted(self.indices, ends)
        kept = np.diff(before, prepend=0)
        return kept[kept > 0]

    def check(self, class_num: int) -> None:
        check_labels(self.data, class_num)

    def _inner(self, indices: np.ndarray) -> np.ndarray:
        """Samples of the subset → of the data set."""
        return indices + self.indices.start if isinstance(self.indices, range) else self.indices[indices]

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return labels_of(self.data, self._inner(indices))

    def shards_of(self, indices: np.ndarray) -> list[Hashable]:
        return shards_of(self.data, self._inner(indices))

    def fetch_shard(self, shard: Hashable) -> None:
        if isinstance(self.data, FetchesAhead):
            self.data.fetch_shard(shard)

    def __len__(self):
        return len(self.indices)

    def name(self, index: int) -> str:
        return name_of(self.data, int(self.indices[index]))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return sample_of(self.data, int(self.indices[index]))


class Renumbered(Subset):
    """A data set with its classes numbered otherwise, by their names.

    Args:
        class_names: all of the data set's, and maybe more, each once.
    """

    def __init__(self, data: Dataset, class_names: list[str]):
        super().__init__(data, range(len(data)))
        place = {name: number for number, name in enumerate(class_names)}
        self._numbers = np.array([place[name] for name in data.class_names or ()])
        self.class_names = class_names

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        labels = super().labels_of(indices)
        return np.where(labels < 0, -1, self._numbers[labels])

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        if not all(0 <= label < len(self._numbers) for label in labels):
            raise DataError(f"{sample.name}: its label is {max(labels)}, of {len(self._numbers)} classes with names")
        numbers = tuple(int(self._numbers[label]) for label in labels)
        return sample._replace(label=numbers if isinstance(sample.label, tuple) else numbers[0])


def numbered_as(data: Dataset, class_names: list[str] | None, owner: str) -> Dataset:
    """The data set with its classes numbered as in `class_names`, those of `owner`; as it is where either has no names.

    Raises:
        DataError: it has other classes than these; or another order, with names that are there twice.
    """
    names = data.class_names
    if names is None or class_names is None or names == class_names:
        return data
    others = sorted(set(names) - set(class_names))
    if others:
        raise DataError(f"has classes that {owner} do not have: {some(others)}; they have {some(class_names)}")
    if len(set(class_names)) < len(class_names) or len(set(names)) < len(names):
        raise DataError(f"has its classes in another order than {owner}, which cannot be undone: names occur twice")
    return Renumbered(data, class_names)


def sliced(data: Dataset, piece: str) -> Subset:
    """A contiguous part of a data set, written as in Python: [:50000], [-50000:], [1000:2000].

    Raises:
        ConfigError: it is written otherwise. DataError: no sample is left.
    """
    match = re.fullmatch(r"\[?\s*(-?\d+)?\s*:\s*(-?\d+)?\s*\]?", piece)
    if not match:
        raise ConfigError(f"slice is {piece!r}; write it as in Python, for instance '[:50000]' or '[-50000:]'")
    limits = [None if text is None else int(text) for text in match.groups()]
    indices = range(len(data))[slice(*limits)]
    if not indices:
        raise DataError(f"slice {piece} of {len(data)} samples leaves no sample")
    return Subset(data, indices)


@DATASETS.register()
class Stack(Dataset):
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
        self.reads_groups, self.is_remote = any(map(reads_groups, datasets)), any(map(fetches_ahead, datasets))
        self._ends = np.cumsum([len(data) for data in datasets])
        sizes = [shard_sizes(data) for data in datasets]
        if all(s is None for s in sizes):
            self.shard_sizes = None
        else:
            whole = [[len(d)] if s is None else s for s, d in zip(sizes, datasets, strict=True)]
            self.shard_sizes = np.concatenate([np.asarray(s, dtype=np.int64) for s in whole])

    def check(self, class_num: int) -> None:
        for data in self.datasets:
            check_labels(data, class_num)

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        cuts = np.searchsorted(indices, self._ends)
        begins = self._ends - [len(data) for data in self.datasets]
        parts = np.split(indices, cuts[:-1])
        labels = [labels_of(data, part - begin) for data, part, begin in zip(self.datasets, parts, begins, strict=True)]
        if self.max_labels == 1:
            return np.concatenate(labels)
        columns = [part if part.ndim == 2 else part[:, np.newaxis] for part in labels]
        most = max(part.shape[1] for part in columns)
        return np.concatenate([np.pad(c, ((0, 0), (0, most - c.shape[1])), constant_values=-1) for c in columns])

    def __len__(self):
        return int(self._ends[-1])

    def shards_of(self, indices: np.ndarray) -> list[Hashable]:
        parts = np.searchsorted(self._ends, indices, side="right")
        needed: dict[Hashable, None] = {}
        for part in dict.fromkeys(parts.tolist()):
            begin = int(self._ends[part - 1]) if part else 0
            for shard in shards_of(self.datasets[part], indices[parts == part] - begin):
                needed[part, shard] = None
        return list(needed)

    def fetch_shard(self, shard: Hashable) -> None:
        assert isinstance(shard, tuple), "it comes from shards_of"
        part, inner = shard
        self.datasets[part].fetch_shard(inner)

    def _place(self, index: int) -> tuple[Dataset, int]:
        """(data set, index in it) of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.datasets[part], index - (int(self._ends[part - 1]) if part else 0)

    def name(self, index: int) -> str:
        return name_of(*self._place(index))

    def __getitem__(self, index: int) -> Sample:
        return sample_of(*self._place(index))


def knows_labels(data: Dataset) -> bool:
    """Whether the labels of a data set come without reading its pictures."""
    if isinstance(data, Subset):
        return knows_labels(data.data)
    if isinstance(data, Stack):
        return all(map(knows_labels, data.datasets))
    return isinstance(data, Labelled)
