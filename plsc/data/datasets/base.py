"""What every data set offers."""

from typing import NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One picture with its label, as stored.

    Attributes:
        image: the encoded file's bytes, or pixels [H, W, C] uint8.
        label: a class, or a tuple of classes where the data set has several labels.
        name: what an error message calls the picture: its path, or data set and index.
        weights: of each label where there are several, for instance its probability; None makes each 1.
    """

    image: bytes | np.ndarray
    label: int | tuple[int, ...]
    name: str
    weights: tuple[float, ...] | None = None


def name_of(data: "Dataset", index: int) -> str:
    """A sample's name, without reading the picture where the data set knows it."""
    return data.name(index) if hasattr(data, "name") else data[index].name


class Dataset(Protocol):
    """A sequence of samples.

    Attributes:
        class_names: the classes' names in order, or None where the data set does not say.
        max_labels: most labels of one sample; 1 means every label is a plain class.

    Data sets that lie in shards also have `shard_sizes`, the samples of each shard in order. Those that know
    a sample's name without reading it have `name(index)`.
    """

    class_names: list[str] | None
    max_labels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
