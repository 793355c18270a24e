"""Hold a part of a data set out: each class in proportion, the same part whenever and wherever it is asked for."""

import hashlib
import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from plsc import environment
from plsc.data.datasets.base import Dataset, labels_of
from plsc.data.datasets.combine import knows_labels
from plsc.data.index import cached
from plsc.data.parallel import each
from plsc.data.words import some
from plsc.errors import DataError

log = logging.getLogger("plsc")

_CHUNK = 50_000
_SLOW_CHUNK = 256  # of pictures that are read for their labels
_LARGE = 1_000_000  # samples; above, labels are read in processes, and what is held out is found once a machine


@dataclass(frozen=True)
class LabelTable:
    """All labels of a data set.

    Attributes:
        ids: [M] int32, those of each sample after those of the one before.
        counts: [N] labels of each sample.
    """

    ids: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, data: Dataset) -> "LabelTable":
        """Read without pictures where the data set can, else sample by sample, in several processes."""
        size, known = len(data), knows_labels(data)
        step = _CHUNK if known else _SLOW_CHUNK
        alone = known and size <= _LARGE
        workers = 0 if alone else max(1, environment.available_cores() // environment.local_size())
        if not known:
            log.info("reading %d samples for their labels; a data set with labels_of(indices) spares this", size)
        chunks = [range(start, min(start + step, size)) for start in range(0, size, step)]
        with tqdm(desc="reading labels", total=size, unit=" labels", delay=2.0, leave=False, disable=None) as bar:
            parts = dict(each(partial(_labels_of_chunk, data), chunks, workers=workers, progress=bar.update))
        ids, counts = zip(*(parts[chunk.start] for chunk in chunks), strict=True)
        return cls(np.concatenate(ids), np.concatenate(counts))

    @property
    def classes(self) -> int:
        """How many there are: one more than the largest label."""
        return len(self.class_counts())

    def class_counts(self) -> np.ndarray:
        """[C] samples of each class up to the largest there is."""
        return np.bincount(self.ids)

    def rarest(self) -> np.ndarray:
        """[N] the class of each sample that the fewest samples have; -1 of a sample without labels."""
        if (self.counts == 1).all():
            return self.ids
        by_rarity = np.argsort(self.class_counts(), kind="stable")
        rank = np.empty(len(by_rarity), dtype=np.int32)
        rank[by_rarity] = np.arange(len(by_rarity))
        rarest = np.full(len(self.counts), -1, dtype=np.int32)
        labelled = self.counts > 0
        starts = (np.cumsum(self.counts) - self.counts)[labelled]
        if len(starts):
            rarest[labelled] = by_rarity[np.minimum.reduceat(rank[self.ids], starts)]
        return rarest


def _labels_of_chunk(data: Dataset, chunk: range, tick) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    labels = labels_of(data, np.arange(chunk.start, chunk.stop)).reshape(len(chunk), -1)
    tick(len(chunk))
    there = labels >= 0
    return chunk.start, (labels[there].astype(np.int32), there.sum(axis=1).astype(np.int32))


def split(data: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which samples are kept and which are held out: a function of the labels, the fraction and the seed alone.

    Each class gives its rounded share, but at least one sample, and keeps at least one. A sample with several
    labels counts for the rarest of them.

    Returns:
        (kept, held out): two rising arrays of integers.

    Raises:
        DataError: no class has two samples.
    """
    classes = LabelTable.of(data).rarest()
    names = data.class_names or ()
    single = np.flatnonzero(np.bincount(classes[classes >= 0]) == 1)
    if len(single):
        named = [names[k] if k < len(names) else k for k in single]
        log.warning("val_fraction holds nothing out of classes with a single sample: %s", some(named))
    if len(classes) <= _LARGE:
        parts = _drawn_parts(classes, fraction, seed)
    else:
        facts = {"labels": hashlib.sha256(classes.tobytes()).hexdigest(), "fraction": fraction, "seed": seed}
        parts = cached("val_fraction", facts, lambda: _drawn_parts(classes, fraction, seed))
    if not len(parts["held"]):
        raise DataError("val_fraction holds nothing out: no class has two samples")
    return parts["kept"], parts["held"]


def _drawn_parts(classes: np.ndarray, fraction: float, seed: int) -> dict[str, np.ndarray]:
    """The indices that are kept and held, by [N] classes."""
    draws = np.random.Philox(key=seed).random_raw(len(classes))
    order = np.lexsort((draws, classes))
    _, begins, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    shares = np.clip(np.floor(sizes * fraction + 0.5), 1, sizes - 1)
    chosen = order[np.arange(len(order)) - np.repeat(begins, sizes) < np.repeat(shares, sizes)]
    held = np.zeros(len(classes), dtype=bool)
    held[chosen] = True
    return {"kept": np.flatnonzero(~held), "held": np.flatnonzero(held)}
