"""Tar shards as webdataset and img2dataset write them: KEY.jpg beside KEY.cls or KEY.json."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.byte_file import ByteFile
from plsc.data.datasets.image_folder import EXTENSIONS
from plsc.data.datasets.labels import Labels
from plsc.data.datasets.shards import Format, in_shards
from plsc.errors import DataError
from plsc.files import parse_json
from plsc.registry import DATASETS


class _Tar(Format):
    """Members of one key follow each other; the key is the name up to the first dot of its last part."""

    name = "WebDataset"

    def __init__(self, label_key: str, prob_key: str):
        self.label_key, self.prob_key = label_key, prob_key
        self.options = {"label_key": label_key, "prob_key": prob_key}

    def index(self, path: Path, best) -> dict[str, np.ndarray]:
        places, probabilities = [], []
        file = ByteFile(path)
        try:
            for key, members in _samples(path):
                image = next((members[e] for e in members if f".{e}" in EXTENSIONS), None)
                if image is None:
                    continue  # img2dataset also writes what it could not fetch
                entry = self._label_member(file, key, members)
                if entry is None:
                    raise DataError(f"{key}: has neither {key}.cls nor {self.label_key!r} in {key}.json")
                kind, member = entry
                labels = self._labels(kind, file.read(member.offset_data, member.size), key)
                places.append((image.offset_data, image.size, member.offset_data, member.size, kind == "json"))
                probabilities.append(best(labels))
        finally:
            file.close()
        return {
            "places": np.array(places, dtype=np.int64).reshape(-1, 5),
            "best": np.array(probabilities, dtype=np.float32),
        }

    def _label_member(self, file: ByteFile, key: str, members: dict) -> tuple[str, tarfile.TarInfo] | None:
        """(kind, member) of what has a sample's labels."""
        if "json" in members:
            member = members["json"]
            content = file.read(member.offset_data, member.size)
            if self.label_key in parse_json(content, dict, where=f"{key}.json", error=DataError):
                return "json", member
        return ("cls", members["cls"]) if "cls" in members else None

    def open(self, path: Path) -> ByteFile:
        return ByteFile(path)

    def sample(self, opened: ByteFile, entries, k: int) -> tuple[bytes, Labels]:
        offset, size = (int(n) for n in entries["places"][k][:2])
        return opened.read(offset, size), self.labels(opened, entries, k)

    def labels(self, opened: ByteFile, entries, k: int) -> Labels:
        offset, size, is_json = (int(n) for n in entries["places"][k][2:])
        return self._labels("json" if is_json else "cls", opened.read(offset, size), f"sample {k}")

    def _labels(self, kind: str, text: bytes, key: str) -> Labels:
        try:
            if kind == "cls":
                return Labels(tuple(int(part) for part in text.decode().split(",")))
            content = parse_json(text, dict, where=f"{key}.json", error=DataError)
            ids, probs = content[self.label_key], content.get(self.prob_key)
            ids = tuple(int(i) for i in (ids if isinstance(ids, list) else [ids]))
            probs = None if probs is None else tuple(float(p) for p in probs)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DataError(f"{key}: its labels cannot be read from its .{kind}: {error}") from error
        if probs is not None and len(probs) != len(ids):
            raise DataError(f"{key}: has {len(ids)} labels but {len(probs)} probabilities")
        return Labels(ids, probs)


def _samples(path: Path):
    """(key, {extension: member}) of a tar's samples in order."""
    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    tar: Any  # typed without firstmember and members
    try:
        with tarfile.open(path, "r:") as tar:
            empty = tar.firstmember is None  # where Python 3.10 fails to look for a next one
            while not empty and (member := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps all it has seen
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                this = f"{folder}/{stem}" if folder else stem
                if this != key and members:
                    yield key, members
                    members = {}
                key = this
                members[extension.lower()] = member
            # tarfile takes a damaged header for the end
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"is damaged or cut short at byte {tar.offset}")
    except tarfile.TarError as error:
        raise DataError(f"no whole tar file: {error}") from error
    if members:
        yield key, members


@DATASETS.register()
@in_shards
def WebDataset(label_key: str = "labels", prob_key: str = "label_probs"):
    """Tar shards of webdataset, img2dataset or `plsc data prepare`: paths, globs, ranges {0000..0127}, addresses."""
    return _Tar(label_key, prob_key)
