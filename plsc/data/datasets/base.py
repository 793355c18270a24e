"""What a data set offers: the protocol that every one follows, and abilities that some have."""

from abc import abstractmethod
from collections.abc import Hashable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from plsc.errors import DataError


class Sample(NamedTuple):
    """One picture with its label, as stored.

    Attributes:
        image: the encoded file's bytes, or pixels [H, W, C] uint8.
        label: a class, or a tuple of classes where the data set has several labels.
        name: what an error message calls the picture, for instance its path; empty: data set and index.
        weights: of each label where there are several, for instance its probability; None makes each 1.
    """

    image: bytes | np.ndarray
    label: int | tuple[int, ...]
    name: str = ""
    weights: tuple[float, ...] | None = None


@runtime_checkable
class Dataset(Protocol):
    """A sequence of samples: what a recipe's `dataset` has to be.

    Derived from this class, a data set has the two attributes; another one says them itself. Everything else
    is optional: Sharded, GroupReader, FetchesAhead, Named, Labelled, LabelChecked.

    Attributes:
        class_names: the classes' names in the order of their labels; None where they have none.
        max_labels: most labels of one sample; 1 means that every label is a plain class.

    Example:
        @plsc.register_dataset()
        class Squares(Dataset):
            class_names = ["dark", "bright"]

            def __init__(self, count: int = 100):
                self.count = count

            def __len__(self):
                return self.count

            def __getitem__(self, index):
                return Sample(np.full((8, 8, 3), 200 * (index % 2), "uint8"), index % 2)
    """

    class_names: list[str] | None = None
    max_labels: int = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Sharded(Protocol):
    """Lies in files of many samples, which training then reads one after the other (see sampler.LaneOrder).

    Attributes:
        shard_sizes: [S] samples of each file, or of each group within a file, in order; None: not in shards.
    """

    shard_sizes: np.ndarray | None


@runtime_checkable
class GroupReader(Protocol):
    """A Sharded data set.

    Attributes:
        reads_groups: whether one sample costs the reading of its whole shard.
    """

    reads_groups: bool


@runtime_checkable
class FetchesAhead(Protocol):
    """Lies in shards, some of which may be far away: what comes next can be fetched before it is read.

    Attributes:
        is_remote: whether any of them is far away; else nothing is fetched.
    """

    is_remote: bool

    def shards_of(self, indices: np.ndarray) -> list[Hashable]:
        """The shards that samples [n] lie in, in the order they are first needed."""

    def fetch_shard(self, shard: Hashable) -> None:
        """Make one of them ready on this machine, as reading it would. Raises DataError where that fails."""


@runtime_checkable
class Named(Protocol):
    """Knows the name of a sample without reading it."""

    def name(self, index: int) -> str:
        """What messages call the sample."""


@runtime_checkable
class Labelled(Protocol):
    """Knows the labels of samples without reading their pictures."""

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """Labels of samples.

        Args:
            indices: [n] int64, rising.

        Returns:
            [n] integers, or where max_labels is above 1 [n, K], padded with -1.
        """


@runtime_checkable
class LabelChecked(Protocol):
    """Looks at some of its labels before a run begins."""

    def check(self, class_num: int) -> None:
        """Raise DataError where a label is not below `class_num`, or a picture is missing."""


def check_protocol(data: object) -> None:
    """Refuse what is not a data set. Raises DataError that names what is missing or in the way."""
    kind = type(data).__name__
    if not isinstance(data, Dataset):
        raise DataError(
            f"{kind} is not a data set: it needs __len__, __getitem__, class_names and max_labels; derive it from "
            "plsc.data.datasets.Dataset, which has the latter two"
        )
    methods: dict[str, object] = {
        "name(index)": data.name if isinstance(data, Named) else None,
        "labels_of(indices)": data.labels_of if isinstance(data, Labelled) else None,
        "check(class_num)": data.check if isinstance(data, LabelChecked) else None,
    }
    for method, there in methods.items():
        if there is not None and not callable(there):
            name = method.partition("(")[0]
            raise DataError(f"{kind}.{name} is a {type(there).__name__}; rename it: plsc calls {method}, where it is")


def sample_of(data: Dataset, index: int) -> Sample:
    """A sample with its name. Raises DataError where the data set gives something else."""
    sample = data[index]
    if not isinstance(sample, Sample):
        raise DataError(
            f"{type(data).__name__}[{index}] is of type {type(sample).__name__}; a data set gives Sample(image, label)"
        )
    return sample if sample.name else sample._replace(name=_unread_name(data, index))


def name_of(data: Dataset, index: int) -> str:
    """A sample's name, without reading the picture where the data set knows it."""
    return data.name(index) if isinstance(data, Named) else sample_of(data, index).name


def _unread_name(data: Dataset, index: int) -> str:
    return data.name(index) if isinstance(data, Named) else f"{type(data).__name__}, sample {index}"


def shard_sizes(data: Dataset) -> np.ndarray | None:
    """Samples of each shard in order where the data set lies in shards, else None."""
    return data.shard_sizes if isinstance(data, Sharded) else None


def reads_groups(data: Dataset) -> bool:
    """Whether one sample costs the reading of its whole shard."""
    return isinstance(data, GroupReader) and data.reads_groups


def fetches_ahead(data: Dataset) -> bool:
    """Whether a data set has shards that are worth fetching before they are read."""
    return isinstance(data, FetchesAhead) and data.is_remote


def shards_of(data: Dataset, indices: np.ndarray) -> list[Hashable]:
    """As FetchesAhead has it; none of a data set that has no remote shards."""
    return data.shards_of(indices) if isinstance(data, FetchesAhead) and data.is_remote else []


def check_labels(data: Dataset, class_num: int) -> None:
    """Let a data set that can look at some of its labels; see LabelChecked."""
    if isinstance(data, LabelChecked):
        data.check(class_num)


def labels_of(data: Dataset, indices: np.ndarray) -> np.ndarray:
    """Labels as Labelled gives them; of a data set that cannot, by reading the samples."""
    if not len(indices):
        return np.zeros(0 if data.max_labels == 1 else (0, 1), dtype="int64")
    if isinstance(data, Labelled):
        return np.asarray(data.labels_of(indices))
    labels = [sample_of(data, int(index)).label for index in indices]
    return np.asarray(labels, dtype="int64") if data.max_labels == 1 else padded(labels)


def padded(labels: list[int | tuple[int, ...]]) -> np.ndarray:
    """Labels of n samples → [n, K] int64, padded with -1, K the most of one sample (at least 1)."""
    several = [label if isinstance(label, tuple) else (label,) for label in labels]
    table = np.full((len(several), max(map(len, several), default=1) or 1), -1, dtype="int64")
    for row, label in zip(table, several, strict=True):
        row[: len(label)] = label
    return table
