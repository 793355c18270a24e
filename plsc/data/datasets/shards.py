"""Data sets in shards: files that hold thousands of pictures each, indexed once, read at random within.

A file format is a Format (webdataset.py, tfrecord.py, parquet.py); finding, copying, indexing and counting
shards is here, and the same for all of them.
"""

import glob
import hashlib
import inspect
import logging
import os
import resource
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np

from plsc.bounds import Fraction, Positive, PositiveFloat
from plsc.data.class_names import read_class_names
from plsc.data.datasets.base import Dataset, Sample, padded
from plsc.data.datasets.labels import LabelMode, LabelPolicy, Labels
from plsc.data.index import cache_folder, cached, stamp
from plsc.data.parallel import each
from plsc.data.remote import LocalCopies, is_remote, list_remote, read_remote
from plsc.environment import available_cores
from plsc.errors import ConfigError, DataError
from plsc.files import parse_json, read_json, refuse_special
from plsc.registry import InputPath

log = logging.getLogger("plsc")

# a shard costs two descriptors, its own and its index's; other data sets and sockets need some too
_OPEN_FILES = max(8, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
_MOST_LISTED = 20
_INDEXED_HERE = 8  # so few shards are indexed without processes
_INDEX_FORMAT = 2


class Format(Protocol):
    """One file format of shards.

    Attributes:
        name: what messages call it, and part of the index's identity with `options`.
        reads_groups: whether one sample costs the reading of its whole group; see `index`.
    """

    name: str
    options: dict
    reads_groups: bool = False

    @abstractmethod
    def index(self, path: Path, best: Callable[[Labels], float]) -> dict[str, np.ndarray]:
        """Read a file through: arrays with an entry a sample, which `sample` understands.

        Args:
            best: Labels → probability of the most probable one; it fills the array `best` [n] float32.
                An array `groups` [g] may give the sizes of groups of samples that are cheap to read together.

        Raises:
            DataError: the file is damaged.
        """

    @abstractmethod
    def open(self, path: Path):
        """Something that `sample` and `labels` read from; it has a method close."""

    @abstractmethod
    def sample(self, opened, entries: dict[str, np.ndarray], k: int) -> tuple[bytes, Labels]:
        """Picture and labels of the k-th entry."""

    @abstractmethod
    def labels(self, opened, entries: dict[str, np.ndarray], k: int) -> Labels:
        """Labels of the k-th entry, read without its picture."""


def find_shards(files: str | list[str], owner: str) -> tuple[list[str], list[int] | None]:
    """Paths or addresses of shards, sorted within each pattern: globs, {0000..0127} ranges, lists of shards (.json).

    Returns:
        (shards, counts): counts are the samples of each shard where lists say it of all, else None.

    Raises:
        DataError: no file fits a pattern, one is named twice, or a list is damaged.
    """
    if not files:
        raise ConfigError(f"{owner}.files is empty; it takes paths, globs and addresses")
    shards: list[str] = []
    counts: list[int] = []
    for pattern in [files] if isinstance(files, str) else files:
        if pattern.endswith(".json"):
            for path, count in _shard_list(pattern, owner):
                shards.append(path)
                counts.append(count)
            continue
        for text in _ranges(pattern):
            paths = list_remote(text) if is_remote(text) else _list_local(os.path.expanduser(text))
            if not paths:
                named = "" if text == pattern else f", which {pattern} names"
                raise DataError(f"{text}: no such file{named} (looked in {os.getcwd()}); see {owner}.files")
            shards += paths
    twice = [path for path, count in zip(*np.unique(shards, return_counts=True), strict=True) if count > 1]
    if twice:
        raise DataError(f"{twice[0]}: is named twice in {owner}.files")
    return shards, counts if len(counts) == len(shards) else None


def _shard_list(path: str, owner: str) -> list[tuple[str, int]]:
    """(path or address, samples) of each shard in manifest.json of `plsc data prepare` or an index of webdataset.

    Names in it are looked for beside it.
    """
    try:
        text = read_remote(path) if is_remote(path) else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {owner}.files names it") from error
    content = parse_json(text, dict, where=path, error=DataError)
    folder = path.rpartition("/")[0]
    try:
        if "shardlist" in content:  # what webdataset's widsindex writes
            pairs = [(str(entry["url"]), int(entry["nsamples"])) for entry in content["shardlist"]]
        else:
            pairs = [(str(entry["file"]), int(entry["count"])) for entry in content["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: is not a list of shards: it needs `shards` with file and count of each, as plsc data prepare "
            "writes it, or `shardlist` with url and nsamples, as webdataset does"
        ) from error
    if not pairs or min(count for _, count in pairs) < 0:
        raise DataError(f"{path}: is not a list of shards: it names none, or one with a negative count")
    return [(name if is_remote(name) or name.startswith("/") else f"{folder or '.'}/{name}", n) for name, n in pairs]


def _list_local(pattern: str) -> list[str]:
    return [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))


def _ranges(pattern: str) -> list[str]:
    """ "a-{000..002}.tar" → a-000.tar, a-001.tar, a-002.tar, as webdataset writes ranges."""
    before, brace, rest = pattern.partition("{")
    inner, closed, after = rest.partition("}")
    first, dots, last = inner.partition("..")
    if not (brace and closed and dots and first.isdigit() and last.isdigit()):
        return [pattern]
    numbers = range(int(first), int(last) + 1)
    return [text for n in numbers for text in _ranges(f"{before}{n:0{len(first)}d}{after}")]


class Shards(Dataset):
    """A data set that lies in shards of one format.

    Attributes:
        shard_sizes: samples of each shard, or group within one, that the label policy keeps.
        reads_groups: whether one sample costs the reading of its whole group.
    """

    def __init__(
        self,
        shard_format: Format,
        files,
        *,
        policy: LabelPolicy,
        class_names: str | None,
        cache_dir: str | None,
        cache_gigabytes: float | None,
    ):
        self.format, self.policy = shard_format, policy
        self.files, self._listed = find_shards(files, shard_format.name)
        self.max_labels = policy.max_labels
        self.reads_groups = shard_format.reads_groups
        self.is_remote = any(map(is_remote, self.files))
        self._copies = LocalCopies(cache_dir, cache_gigabytes) if self.is_remote else None
        self._opened: OrderedDict[int, tuple] = OrderedDict()
        self.class_names = read_class_names(class_names) if class_names else _manifest_names(self.files[0])
        self._ends, self.shard_sizes = self._counts()
        if self._ends[-1] == 0:
            raise DataError(f"{shard_format.name}: none of the {len(self.files)} shards holds a picture that is kept")

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        name, image, labels = self._read(index)
        label, weights = self.policy(labels)
        return Sample(image, label, name, weights)

    def _read(self, index: int) -> tuple[str, bytes, Labels]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        k = index - (int(self._ends[shard - 1]) if shard else 0)
        name = self.files[shard]
        try:
            opened, entries, kept = self._open(shard)
            k = k if kept is None else int(kept[k])
            name = f"{name}, sample {k}"
            return name, *self.format.sample(opened, entries, k)
        except (DataError, OSError, ValueError) as error:
            raise DataError(f"{name}: {error}") from error

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        owners = np.searchsorted(self._ends, indices, side="right")
        parts = []
        for shard in np.unique(owners).tolist():
            rows = indices[owners == shard] - (int(self._ends[shard - 1]) if shard else 0)
            parts.append(self._label_table(shard)[rows])
        most = max((part.shape[1] for part in parts), default=1)
        table = np.concatenate([np.pad(p, ((0, 0), (0, most - p.shape[1])), constant_values=-1) for p in parts])
        return table[:, 0] if self.max_labels == 1 else table

    def _label_table(self, shard: int) -> np.ndarray:
        """[n, K] labels of a file's samples that are kept, padded with -1; read once a machine."""
        file, policy = self.files[shard], self.policy
        facts = {"format": _INDEX_FORMAT, "options": self.format.options, "labels": policy.label_identity}

        def read() -> dict[str, np.ndarray]:
            try:
                opened, entries, kept = self._open(shard)
                places = range(int(self._ends[shard] - (self._ends[shard - 1] if shard else 0)))
                places = places if kept is None else kept.tolist()
                return {"labels": padded([policy(self.format.labels(opened, entries, k))[0] for k in places])}
            except (DataError, OSError, ValueError) as error:
                raise DataError(f"{file}: {error}") from error

        table = cached(f"labels of {self.format.name} {_absolute(file)}", {**facts, **self._facts(shard)}, read)
        return np.array(table["labels"])  # not kept mapped: each mapping costs an open file

    def shards_of(self, indices: np.ndarray) -> list[Hashable]:
        owners = np.searchsorted(self._ends, indices, side="right")
        return [shard for shard in dict.fromkeys(owners.tolist()) if is_remote(self.files[shard])]

    def fetch_shard(self, shard: Hashable) -> None:
        assert isinstance(shard, int), "it comes from shards_of"
        self._index(shard)
        self._with_local(shard, lambda path: None)

    # -- indices --------------------------------------------------------------------------

    def _with_local(self, shard: int, use: Callable):
        """use(path of the file, or of its copy)"""
        file = self.files[shard]
        if not is_remote(file):
            return use(Path(file))
        assert self._copies is not None, "remote shards have copies"
        return self._copies.with_copy(file, use)

    def _index(self, shard: int) -> dict[str, np.ndarray]:
        file = self.files[shard]
        facts = {"format": _INDEX_FORMAT, "options": self.format.options, **self._facts(shard)}
        return cached(f"{self.format.name} {_absolute(file)}", facts, lambda: self._build(shard))

    def _facts(self, shard: int) -> dict:
        """What differs once a file has changed; a remote one is taken to stay as it is."""
        file = self.files[shard]
        if is_remote(file):
            return {}
        try:
            refuse_special(file)
            return {"stamp": stamp(file)}
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}; {self.format.name}.files names it") from error

    def _build(self, shard: int) -> dict[str, np.ndarray]:
        def index(path: Path):
            arrays = {**self.format.index(path, self.policy.best), "bytes": np.array([path.stat().st_size])}
            return {name: _narrowed(array) for name, array in arrays.items()}

        try:
            return self._with_local(shard, index)
        except (DataError, OSError, ValueError) as error:
            raise DataError(f"{self.files[shard]}: cannot be indexed: {error}") from error

    def _sizes(self, shard: int) -> list[int]:
        """Samples kept of each group of a file."""
        entries = self._index(shard)
        keeps = self.policy.keeps(entries["best"])
        if "groups" not in entries:
            return [int(keeps.sum())]
        return [int(part.sum()) for part in np.split(keeps, np.cumsum(entries["groups"])[:-1])]

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """(ends of the files, sizes of all groups), as lists of shards say, else counted once a machine.

        From a list no shard is looked at before it is read. It cannot say what a threshold leaves, nor groups.
        """
        self._first_facts: list[dict] | None = None
        if self._listed is None or self.policy.threshold is not None or self.reads_groups:
            self._listed = None
        else:
            sizes = np.array(self._listed, dtype=np.int64)
            return np.cumsum(sizes), sizes
        digest = hashlib.sha256()
        self._first_facts = [self._facts(shard) for shard in range(len(self.files))]
        for file, facts in zip(self.files, self._first_facts, strict=True):
            digest.update(repr((_absolute(file), facts)).encode("utf-8", "surrogateescape"))
        facts = {"format": _INDEX_FORMAT, "options": self.format.options, "keeps": self.policy.identity}
        counts = cached(f"{self.format.name} counts {digest.hexdigest()}", facts, self._count)
        return np.array(counts["ends"]), np.array(counts["sizes"])

    def _count(self) -> dict[str, np.ndarray]:
        """Count every file; those without an index get one, several at a time."""
        from tqdm import tqdm

        numbers = range(len(self.files))
        if len(self.files) <= _INDEXED_HERE:
            sizes = [self._sizes(shard) for shard in numbers]
        else:
            title = f"indexing {self.format.name} shards"
            log.info("%s: %d", title, len(numbers))

            def sized(shard: int, tick):
                tick()
                try:
                    return shard, self._sizes(shard), None
                except DataError as error:
                    return shard, [], str(error)

            with tqdm(desc=title, total=len(numbers), unit=" shards", delay=2.0, leave=False, disable=None) as bar:
                done = list(each(sized, numbers, workers=min(available_cores(), 32), progress=bar.update))
            _refuse_damaged(sorted(error for _, _, error in done if error), self.format.name)
            sizes = [groups for _, groups, _ in sorted(done)]
        return {
            "ends": np.cumsum([sum(groups) for groups in sizes], dtype=np.int64),
            "sizes": np.array([size for groups in sizes for size in groups], dtype=np.int64),
        }

    def _open(self, shard: int):
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        changed = DataError(f"has changed since it was indexed; {self._remedy(shard)}")
        if self._first_facts is not None and self._facts(shard) != self._first_facts[shard]:
            raise changed
        entries = self._index(shard)
        # not kept mapped: each mapping costs an open file
        keeps, size = self.policy.keeps(entries.pop("best")), int(entries.pop("bytes")[0])
        kept = None if keeps.all() else np.flatnonzero(keeps)
        if self._listed is not None and int(keeps.sum()) != self._listed[shard]:
            raise DataError(
                f"holds {int(keeps.sum())} samples with labels, but the list in {self.format.name}.files says "
                f"{self._listed[shard]}; write the list again, or name the shards themselves in its place"
            )

        def opened(path: Path):
            if path.stat().st_size != size:
                raise changed
            return self.format.open(path)

        self._opened[shard] = (self._with_local(shard, opened), entries, kept)
        if len(self._opened) > _OPEN_FILES:
            _, (oldest, _, _) = self._opened.popitem(last=False)
            oldest.close()
        return self._opened[shard]

    def _remedy(self, shard: int) -> str:
        if self._copies is not None and is_remote(self.files[shard]):
            return f"delete {cache_folder() / 'index'} and {self._copies.folder}, and start again"
        return "start again"


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Integers in the fewest bytes that hold them: of 300 million samples each byte is 0.3 GB."""
    if array.dtype.kind != "i" or not array.size or array.min() < 0:
        return array
    return array.astype(np.min_scalar_type(int(array.max())))


def _refuse_damaged(errors: list[str], owner: str):
    """Raise one DataError of all files that cannot be indexed."""
    if not errors:
        return
    more = [f"and {len(errors) - _MOST_LISTED} more"] if len(errors) > _MOST_LISTED else []
    remedy = f"fetch them again, or leave them out of {owner}.files"
    raise DataError("\n  ".join([f"{len(errors)} shards cannot be used; {remedy}:", *errors[:_MOST_LISTED], *more]))


def _absolute(file: str) -> str:
    return file if is_remote(file) else os.path.abspath(file)


def _manifest_names(shard: str) -> list[str] | None:
    """Class names in the manifest.json that `plsc data prepare` leaves beside its shards."""
    if is_remote(shard):
        return None
    folder = Path(shard).parent
    manifest = read_json(folder / "manifest.json", dict, error=DataError)
    if manifest is None and (folder / "shards.jsonl").is_file():
        raise DataError(f"{folder}: its shards are not complete; run the same plsc data prepare again")
    return manifest and manifest.get("class_names")


def open_shards(
    shard_format: Format,
    files: Annotated[str | list[str], InputPath(pattern=True)],
    label_mode: LabelMode = "class",
    label_prob_threshold: Fraction | None = None,
    normalize_labels: bool = False,
    drop_empty: bool = True,
    max_labels: Positive = 50,
    class_names: Annotated[str, InputPath()] | None = None,
    cache_dir: Annotated[str, InputPath(made=True)] | None = None,
    cache_gigabytes: PositiveFloat | None = None,
) -> Shards:
    """Shards of one format; the keys are described in docs/data.md."""
    policy = LabelPolicy(
        mode=label_mode,
        threshold=label_prob_threshold,
        normalize=normalize_labels,
        drop_empty=drop_empty,
        most=max_labels,
        owner=shard_format.name,
    )
    return Shards(
        shard_format,
        files,
        policy=policy,
        class_names=class_names,
        cache_dir=cache_dir,
        cache_gigabytes=cache_gigabytes,
    )


def in_shards(make_format: Callable[..., Format]):
    """Decorator: a format's constructor → a factory of data sets, with its own keys and those of all shards."""
    own = inspect.signature(make_format).parameters
    files, *common = list(inspect.signature(open_shards).parameters.values())[1:]
    signature = inspect.Signature([files, *own.values(), *common])

    def factory(*values, **named) -> Shards:
        arguments = signature.bind(*values, **named).arguments
        of_format = {name: arguments.pop(name) for name in own if name in arguments}
        return open_shards(make_format(**of_format), **arguments)

    factory.__signature__ = signature  # type: ignore[attr-defined]
    factory.__name__, factory.__doc__ = make_format.__name__, make_format.__doc__
    return factory
