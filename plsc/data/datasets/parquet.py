"""Parquet files with an image column, as Hugging Face hosts data sets: {bytes, path} or plain bytes, and a label."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from plsc.bounds import Positive
from plsc.data.datasets.labels import Labels
from plsc.data.datasets.shards import Format, in_shards
from plsc.errors import ConfigError, DataError
from plsc.registry import DATASETS


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet: reading needs pyarrow; pip install pyarrow") from None
    return pyarrow


class _RowGroups:
    """An open file whose row groups are read whole, and kept as long as there is room.

    Args:
        kept: (path, number, columns) → row group, of all files of the data set. most: how many are kept.
    """

    def __init__(self, path: Path, kept: OrderedDict, most: int):
        self._path, self._kept, self._most = path, kept, most
        self._file = _pyarrow().parquet.ParquetFile(path)  # not mapped: a file that shrinks would be SIGBUS
        metadata = self._file.metadata
        self._ends = np.cumsum([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)])

    def row(self, k: int, columns: tuple[str, ...]) -> dict:
        group = int(np.searchsorted(self._ends, k, side="right"))
        key = (self._path, group, columns)
        if key not in self._kept:
            self._kept[key] = self._file.read_row_group(group, columns=list(columns), use_threads=False)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        k -= int(self._ends[group - 1]) if group else 0
        table = self._kept[key]
        return {name: table.column(name)[k].as_py() for name in table.column_names}

    def close(self):
        self._file.close()


class _Parquet(Format):
    name, reads_groups = "Parquet", True

    def __init__(self, image_key: str, label_key: str, prob_key: str | None, cached_row_groups: int):
        self.image_key, self.label_key, self.prob_key = image_key, label_key, prob_key
        self.cached_row_groups = cached_row_groups
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self.options = {"image_key": image_key, "label_key": label_key, "prob_key": prob_key}
        self._label_columns = (label_key, prob_key) if prob_key else (label_key,)

    def index(self, path: Path, best) -> dict[str, np.ndarray]:
        pyarrow = _pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                missing = {self.image_key, *self._label_columns} - set(file.schema_arrow.names)
                if missing:
                    there = ", ".join(file.schema_arrow.names)
                    raise DataError(f"has no column {', '.join(sorted(missing))}; there are {there}")
                groups = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
                probabilities = [
                    best(self._labels(row))
                    for batch in file.iter_batches(batch_size=10_000, columns=list(self._label_columns))
                    for row in batch.to_pylist()
                ]
        except pyarrow.ArrowException as error:
            raise DataError(f"no whole Parquet file: {error}") from error
        return {"groups": np.array(groups, dtype=np.int64), "best": np.array(probabilities, dtype=np.float32)}

    def open(self, path: Path) -> _RowGroups:
        return _RowGroups(path, self._kept, self.cached_row_groups)

    def sample(self, opened: _RowGroups, entries, k: int) -> tuple[bytes, Labels]:
        row = opened.row(k, (self.image_key, *self._label_columns))
        image = row[self.image_key]
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise DataError(f"holds no bytes in column {self.image_key!r}; a path alone is not enough")
        return image, self._labels(row)

    def labels(self, opened: _RowGroups, entries, k: int) -> Labels:
        return self._labels(opened.row(k, self._label_columns))

    def _labels(self, row: dict) -> Labels:
        ids, probs = row[self.label_key], row[self.prob_key] if self.prob_key else None
        if ids is None:
            raise DataError(f"a row has no {self.label_key!r}")
        try:
            ids = tuple(int(i) for i in (ids if isinstance(ids, list) else [ids]))
            probs = None if probs is None else tuple(float(p) for p in probs)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"a row's labels cannot be read: {error}") from error
        if probs is not None and len(probs) != len(ids):
            raise DataError(f"a row has {len(ids)} labels but {len(probs)} probabilities")
        return Labels(ids, probs)


@DATASETS.register()
@in_shards
def Parquet(
    image_key: str = "image", label_key: str = "label", prob_key: str | None = None, cached_row_groups: Positive = 64
):
    """Parquet files with an image column, as Hugging Face's ImageNet; a process keeps cached_row_groups in memory."""
    return _Parquet(image_key, label_key, prob_key, cached_row_groups)
