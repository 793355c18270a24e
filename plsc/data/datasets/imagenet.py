"""Pictures named in a list file: one `path label` a line, as ImageNet comes in PLSC."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from plsc.bounds import Positive
from plsc.data.byte_file import ByteFile
from plsc.data.class_names import read_class_names
from plsc.data.datasets.base import Dataset, Sample, padded
from plsc.data.index import cached, stamp
from plsc.errors import DataError
from plsc.files import read_bytes
from plsc.registry import DATASETS, InputPath

_LINES_CHECKED, _PICTURES_CHECKED = 20_000, 200
_PIECE = 1 << 26  # bytes of the list that are looked at together
_NEWLINE, _COMMA = ord("\n"), ord(",")
_SHORTEST = 4  # bytes of a line that is not looked at alone


def line_index(text: np.ndarray) -> dict[str, np.ndarray]:
    """Where the lines of a text begin and how long they are, without blank ones, and the most commas in one.

    Args:
        text: uint8, possibly mapped from a file; a piece at a time is in memory.
    """
    starts, lengths, most_commas, begun, begun_commas = [], [], 0, 0, 0
    for first in range(0, len(text), _PIECE):
        piece = np.asarray(text[first : first + _PIECE])
        ends = np.flatnonzero(piece == _NEWLINE) + first
        if first + len(piece) == len(text) and text[-1] != _NEWLINE:
            ends = np.append(ends, len(text))
        if len(ends) == 0:
            raise DataError(f"a line is longer than {_PIECE >> 20} MB")
        begins = np.concatenate([[begun], ends[:-1] + 1])
        begun = int(ends[-1]) + 1
        kept = ends - begins >= _SHORTEST
        for k in np.flatnonzero(~kept):  # blank, or too short to be right, which its reader reports
            kept[k] = bool(bytes(text[begins[k] : ends[k]]).strip())
        starts.append(begins[kept])
        lengths.append((ends - begins)[kept].astype(np.int32))
        places = np.flatnonzero(piece == _COMMA) + first
        commas = np.searchsorted(places, ends)
        in_lines = np.diff(commas, prepend=0)
        in_lines[0] += begun_commas
        begun_commas = len(places) - int(commas[-1])
        most_commas = max(most_commas, int(in_lines.max()))
    return {
        "starts": np.concatenate(starts) if starts else np.zeros(0, np.int64),
        "lengths": np.concatenate(lengths) if lengths else np.zeros(0, np.int32),
        "most_commas": np.array([most_commas]),
    }


@DATASETS.register()
class ImageNetDataset(Dataset):
    """A list file's pictures: `relative/path label` a line, or `path 3,17,240` with multi_label.

    The file stays on disk, and so does the index of a large one's lines, which is built once a machine (see
    plsc.data.index). Of the pictures' existence only samples are checked before a run.

    Args:
        image_root: the folder that the paths begin in. cls_label_path: the list file.
        delimiter: between path and label. multi_label: labels are numbers with commas between them.
        class_num: labels must be below. class_names: a file with a class name a line, in the labels' order.
    """

    def __init__(
        self,
        image_root: Annotated[str, InputPath()],
        cls_label_path: Annotated[str, InputPath()],
        delimiter: Annotated[str, Field(min_length=1)] = " ",
        multi_label: bool = False,
        class_num: Positive | None = None,
        class_names: Annotated[str, InputPath()] | None = None,
    ):
        self.image_root, self.list_path = Path(image_root).expanduser(), Path(cls_label_path).expanduser()
        self.delimiter, self.multi_label, self.class_num = delimiter, multi_label, class_num
        self.class_names = read_class_names(class_names, class_num) if class_names else None
        if not self.image_root.is_dir():
            raise DataError(f"{image_root}: no such folder (ImageNetDataset.image_root)")
        if not self.list_path.is_file():
            raise DataError(f"{cls_label_path}: no such list file (ImageNetDataset.cls_label_path)")
        if self.list_path.stat().st_size == 0:
            raise DataError(f"{cls_label_path}: the list file is empty")
        self._file = ByteFile(self.list_path)  # read, not mapped: a list that is written again would be SIGBUS
        self._size = self.list_path.stat().st_size
        try:
            lines = self._lines()
        except DataError as error:
            raise DataError(f"{cls_label_path}: {error}") from error
        self._starts, self._lengths = lines["starts"], lines["lengths"]
        if not len(self._starts):
            raise DataError(f"{cls_label_path}: the list file has no lines")
        path, _ = self._parse(0)
        if not path.is_file():
            raise DataError(f"{path}: named in line {self._line(0)} of {cls_label_path}, but there is no such file")
        # 1 would mean plain classes
        self.max_labels = max(2, int(lines["most_commas"][0]) + 1) if multi_label else 1

    def _lines(self) -> dict[str, np.ndarray]:
        def index():
            return line_index(np.memmap(self.list_path, dtype=np.uint8, mode="r"))

        path = self.list_path.resolve()
        if self._size < _PIECE:
            return index()
        return cached(f"lines of {path}", {"format": 2, "stamp": stamp(path)}, index)

    def _line(self, k: int) -> int:
        """Number of sample k's line in the file, from 1."""
        before = np.memmap(self.list_path, dtype=np.uint8, mode="r")[: self._starts[k]]
        return int(np.count_nonzero(before == _NEWLINE)) + 1

    def check(self, class_num: int) -> None:
        """Look at lines spread over the list, their labels and some of their pictures, before a run begins.

        Raises DataError naming the line of the first that does not fit.
        """
        for k, chosen in enumerate(self._spread(_LINES_CHECKED)):
            path, labels = self._parse(chosen)
            if max(labels) >= class_num:
                raise DataError(
                    f"{self.list_path}, line {self._line(chosen)}: its label is {max(labels)}, but Model.class_num "
                    f"is {class_num}; labels count from 0"
                )
            if k % (_LINES_CHECKED // _PICTURES_CHECKED) == 0 and not path.is_file():
                raise DataError(f"{path}: no such file (line {self._line(chosen)} of {self.list_path})")

    def _spread(self, count: int):
        """At most `count` indices, the first and the last among them."""
        return np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64)).tolist()

    def _parse(self, k: int):
        line = self.line(k).decode("utf-8", "surrogateescape")
        path, delimiter, text = line.rpartition(self.delimiter)
        try:
            labels = tuple(dict.fromkeys(int(part) for part in text.split(",")))
        except ValueError:
            labels = ()
        if not delimiter or not labels or (len(labels) > 1 and not self.multi_label):
            form = "path 3,17,240" if self.multi_label else "path label"
            raise DataError(
                f"{self.list_path}, line {self._line(k)}: expected {form.replace(' ', self.delimiter)!r}, got {line!r}"
            )
        if min(labels) < 0 or (self.class_num is not None and max(labels) >= self.class_num):
            wrong = min(labels) if min(labels) < 0 else max(labels)
            limit = "" if self.class_num is None else f"; class_num is {self.class_num}"
            raise DataError(f"{self.list_path}, line {self._line(k)}: there is no class {wrong}{limit}")
        return self.image_root / path, labels

    def __len__(self):
        return len(self._starts)

    def name(self, index: int) -> str:
        return str(self._parse(index)[0])

    def line(self, index: int) -> bytes:
        """A sample's line in the file, without its end."""
        return self._file.read(int(self._starts[index]), int(self._lengths[index])).rstrip()

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
        texts = [text for run in runs for text in self._label_texts(int(run[0]), int(run[-1]))]
        try:
            if self.multi_label:
                labels = padded([tuple(dict.fromkeys(map(int, text.split(b",")))) for text in texts])
            else:
                labels = np.array(list(map(int, texts)), dtype=np.int64)
            if labels.min(initial=0) >= (-1 if self.multi_label else 0):
                return labels
        except ValueError:
            pass
        for index in indices.tolist():
            self._parse(index)  # raises the error that names the line
        raise AssertionError("a line was refused and then taken")

    def _label_texts(self, first: int, last: int) -> list[bytes]:
        """What follows the path in the lines of samples `first` … `last`."""
        begin = int(self._starts[first])
        block = self._file.read(begin, int(self._starts[last]) + int(self._lengths[last]) - begin)
        starts, lengths = (self._starts[first : last + 1] - begin).tolist(), self._lengths[first : last + 1].tolist()
        delimiter = self.delimiter.encode()
        lines = (block[start : start + length] for start, length in zip(starts, lengths, strict=True))
        return [line.rstrip().rpartition(delimiter)[2] for line in lines]

    def __getitem__(self, index: int) -> Sample:
        path, labels = self._parse(index)
        try:
            image = read_bytes(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror} (line {self._line(index)} of {self.list_path})") from error
        return Sample(image, labels if self.multi_label else labels[0], str(path))
