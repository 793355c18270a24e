"""A data set → webdataset shards: pictures resized once, tar files of samples in a mixed order.

A shard NAME-000000.tar holds KEY.jpg with KEY.cls (the class), or with KEY.json (labels, label_probs) where
pictures have several labels; KEY is the picture's number in the data set. Equal input and settings give equal
bytes: tar headers carry no time and no owner.

Each shard is written under another name and renamed, then noted in shards.jsonl, so that whatever ends the
work, all but the shards in the making stay. manifest.json comes last: where it is, the shards are complete.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from plsc.bounds import NonNegative, Positive
from plsc.data.datasets.base import Dataset, Sample
from plsc.data.parallel import each
from plsc.data.transforms.geometry import ResizeImage
from plsc.datatools.inspection import picture
from plsc.datatools.sources import Source
from plsc.errors import DataError
from plsc.files import parse_json, replacing_file, write_json
from plsc.signatures import holding_bounds

JOURNAL, MANIFEST = "shards.jsonl", "manifest.json"
_MOST_DAMAGED = 100  # in a row: then it is the storage, not the pictures
_MEASURED = 64  # pictures that the size of a shard in bytes is estimated from


@partial(holding_bounds, name="Settings")
@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the shards' content; a restart with other settings is refused.

    Attributes:
        short_side: pixels; larger pictures are resized to it, bicubic and antialiased.
        quality: of the JPEGs written.
        shard_size: samples of a shard.
        shuffle: write samples in an order drawn from `seed`, else in the data set's. Reading takes a shard's
            samples together, so each should hold all classes.
        name: how the shards' names begin: letters, digits, - and _.
    """

    short_side: Positive = 256
    quality: Annotated[int, Field(ge=1, le=100)] = 80
    shard_size: Positive = 1000
    shuffle: bool = True
    seed: NonNegative = 0
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "shard"


def prepare(
    data: Dataset | Source,
    output: str | Path,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write a data set as webdataset shards, those that are not there yet, then their manifest.

    Args:
        data: the data set, or a Source of one, whose description the manifest has.
        output: the folder; it holds nothing but this data set's shards. A start that was interrupted is continued;
            one from another source or with other settings is refused.
        settings: None: the defaults.
        workers: processes; 0 works in this one, None takes one for each core.
        progress: called with the number of samples written since it was last called, finished shards of an
            earlier start included.

    Returns:
        The manifest, as manifest.json has it: settings, source, count, bytes, class_names, class_counts (a list),
        shards with file, count, bytes and sha256, and skipped: index and reason of each damaged picture.

    Raises:
        DataError: other settings than an earlier start's, no readable picture, no room on the disk.
    """
    source, settings = Source.of(data), settings or Settings()
    data, output = source.data, Path(output).expanduser()
    begun = {"settings": dataclasses.asdict(settings), "source": {**source.description, "samples": len(data)}}
    begun = json.loads(json.dumps(begun))  # as the journal will have it
    try:
        output.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_Journal(output, begun)) as journal:
            _write_missing(data, output, settings, journal, workers, progress)
            records = [journal.records[n] for n in sorted(journal.records)]
            manifest = _manifest(begun, records, journal.class_counts, data.class_names)
            write_json(output / MANIFEST, manifest)
    except OSError as error:
        raise DataError(f"{error.filename or output}: {error.strerror or error}; the shards done are kept") from error
    return manifest


def _write_missing(data, output: Path, settings: Settings, journal: "_Journal", workers: int | None, progress):
    """Write the shards that the journal does not know."""
    order = _order(len(data), settings)
    shards = range(-(-len(data) // settings.shard_size))
    pieces = [order[n * settings.shard_size :][: settings.shard_size] for n in shards]
    missing = [n for n in shards if n not in journal.records]
    if missing:
        (output / MANIFEST).unlink(missing_ok=True)  # where it is, nothing is missing
    progress(sum(len(pieces[n]) for n in journal.records))

    def write(number: int, tick) -> dict:
        path = output / f"{settings.name}-{number:06d}.tar"
        return {"shard": number, **_write_shard(path, data, pieces[number], settings, tick)}

    with contextlib.closing(each(write, missing, workers=workers, progress=progress)) as written:
        for record in written:
            journal.add(record)


def samples_of(data: Dataset | Source, megabytes: float, settings: Settings) -> int:
    """Samples of a shard of about so many megabytes (10^6 bytes), by pictures from all over the data set."""
    data, sizes = Source.of(data).data, []
    for index in np.unique(np.linspace(0, len(data) - 1, _MEASURED).astype(np.int64)).tolist():
        with contextlib.suppress(DataError):
            members = _members(index, *picture(data, index), settings)
            sizes.append(sum(512 + -(-len(content) // 512) * 512 for _, content in members))
    if not sizes:
        raise DataError(f"none of {_MEASURED} pictures from all over the data set can be read")
    return max(1, int(megabytes * 1e6 / np.mean(sizes)))


def encode(image: bytes | np.ndarray, pixels: np.ndarray, short_side: int, quality: int) -> bytes:
    """A stored picture as JPEG whose short side is at most `short_side`.

    A picture that is small enough and an RGB JPEG already stays as it is, byte for byte.

    Args:
        image: as stored, see Sample. pixels: decoded, [H, W, C] uint8.

    Raises:
        DataError: more channels, or a longer side, than a JPEG can have.
    """
    small = min(pixels.shape[:2]) <= short_side
    if small and isinstance(image, bytes) and _is_rgb_jpeg(image):
        return image
    if pixels.shape[2] not in (1, 3):
        raise DataError(f"{pixels.shape[2]} channels; a JPEG has 1 or 3")
    if not small:
        pixels = ResizeImage(resize_short=short_side, interpolation="bicubic", backend="pil")(pixels, None)
    packed = io.BytesIO()
    grey = pixels.shape[2] == 1
    try:
        Image.fromarray(pixels[..., 0] if grey else pixels).save(packed, "JPEG", quality=quality)
    except OSError as error:
        raise DataError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels cannot be written as JPEG: {error}") from error
    return packed.getvalue()


def _is_rgb_jpeg(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format == "JPEG" and image.mode == "RGB"
    except (OSError, ValueError, SyntaxError):
        return False  # only OpenCV knows it


def _members(index: int, sample: Sample, pixels: np.ndarray, settings: Settings) -> list[tuple[str, bytes]]:
    """(name, content) of a sample's members."""
    key = f"{index:09d}"
    try:
        jpeg = encode(sample.image, pixels, settings.short_side, settings.quality)
    except DataError as error:
        raise DataError(f"{sample.name}: {error}") from error
    if isinstance(sample.label, tuple):
        labels: dict[str, list] = {"labels": list(sample.label)}
        if sample.weights is not None:
            labels["label_probs"] = list(sample.weights)
        return [(f"{key}.jpg", jpeg), (f"{key}.json", json.dumps(labels).encode())]
    return [(f"{key}.jpg", jpeg), (f"{key}.cls", str(sample.label).encode())]


# -- shards -----------------------------------------------------------------------------------


class _Counted:
    """A file that is written through, with length and SHA-256 of what went by."""

    def __init__(self, file):
        self._file, self.bytes, self._hash = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _write_shard(path: Path, data: Dataset, indices, settings: Settings, tick) -> dict:
    """Write one shard; its record: file, bytes, sha256, count, class_counts, skipped. Of no sample there is no file."""
    with replacing_file(path) as writing, open(writing, "wb") as file:
        counted = _Counted(file)
        record = _fill(counted, data, indices, settings, tick)
    if not record["count"]:
        path.unlink()
    return {"file": path.name, "bytes": counted.bytes, "sha256": counted.sha256, **record}


def _fill(file, data: Dataset, indices, settings: Settings, tick) -> dict:
    """Write samples into a tar file: their count and class_counts, and the damaged ones as skipped."""
    classes: Counter[int] = Counter()
    skipped: list[dict] = []
    in_a_row = 0
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for index in map(int, indices):
            try:
                sample, pixels = picture(data, index)
                members = _members(index, sample, pixels, settings)
            except DataError as error:
                skipped.append({"index": index, "reason": str(error)})
                in_a_row += 1
                if in_a_row == _MOST_DAMAGED:
                    raise DataError(f"{_MOST_DAMAGED} pictures in a row cannot be read; the last: {error}") from error
            else:
                in_a_row = 0
                classes.update(sample.label if isinstance(sample.label, tuple) else [sample.label])
                for name, content in members:
                    member = tarfile.TarInfo(name)  # time 0, owner 0, mode 644
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            tick()
    class_counts = {str(label): count for label, count in sorted(classes.items())}
    return {"count": len(indices) - len(skipped), "class_counts": class_counts, "skipped": skipped}


def _order(samples: int, settings: Settings) -> np.ndarray:
    indices = np.arange(samples, dtype=np.int32 if samples < 2**31 else np.int64)
    if settings.shuffle:
        np.random.Generator(np.random.Philox(key=settings.seed)).shuffle(indices)
    return indices


def _manifest(begun: dict, records: list[dict], class_counts: Counter, class_names: list[str] | None) -> dict:
    count = sum(r["count"] for r in records)
    if not count:
        raise DataError("none of the pictures can be read; shards.jsonl has the reasons")
    number = max([len(class_names or ()), *(label + 1 for label in class_counts)])
    shards = [{key: r[key] for key in ("file", "count", "bytes", "sha256")} for r in records if r["count"]]
    return {
        "format": "webdataset",
        **begun,
        "count": count,
        "bytes": sum(shard["bytes"] for shard in shards),
        "class_names": class_names,
        "class_counts": [class_counts[label] for label in range(number)],
        "shards": shards,
        "skipped": sorted((picture for r in records for picture in r["skipped"]), key=lambda picture: picture["index"]),
    }


# -- what an earlier start has done ---------------------------------------------------------


class _Journal:
    """shards.jsonl: a first line with what was begun, then one for each finished shard.

    Attributes:
        records: number of each shard that is there, as it was written → its record, without class_counts: of
            300,000 shards with most of 21,841 classes each these would fill the memory.
        class_counts: of all these shards together.

    Raises:
        DataError: something else was begun in the folder, or is being done.
    """

    def __init__(self, folder: Path, begun: dict):
        self._file = open(folder / JOURNAL, "a+b")  # noqa: SIM115 - see close
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another preparation is at work there") from None
        self.records: dict[int, dict] = {}
        self.class_counts: Counter[int] = Counter()
        _, before = next(self._lines(), (0, None))
        if before is None:
            foreign = next(folder.glob("[!.]*.tar"), None)
            if foreign:
                raise DataError(f"{foreign}: is not of this data set; choose an empty folder for the shards")
            self._append(begun)
        else:
            _refuse_change(folder, before, begun)
            self._read_back(folder)

    def _read_back(self, folder: Path):
        """Note the shards that are there. Of one that was lost and written again, the last line counts."""
        last = {record["shard"]: place for place, record in self._finished()}
        for place, record in self._finished():
            if last[record["shard"]] == place and _is_there(folder, record):
                self._note(record)

    def _finished(self) -> Iterator[tuple[int, dict]]:
        """(place, record) of each finished shard's line."""
        return itertools.islice(self._lines(), 1, None)

    def _lines(self) -> Iterator[tuple[int, dict]]:
        """(place in the file, content) of each line; one cut short by a kill is cut off."""
        self._file.seek(0)
        place = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                return
            yield place, parse_json(line, dict, where=self._file.name, error=DataError)
            place += len(line)

    def _append(self, line: dict):
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _note(self, record: dict):
        self.class_counts.update({int(label): count for label, count in record["class_counts"].items()})
        self.records[record["shard"]] = {key: value for key, value in record.items() if key != "class_counts"}

    def add(self, record: dict):
        """Note a finished shard."""
        self._append(record)
        self._note(record)

    def close(self):
        self._file.close()


def _is_there(folder: Path, record: dict) -> bool:
    path = folder / record["file"]
    return record["count"] == 0 or (path.is_file() and path.stat().st_size == record["bytes"])


def _refuse_change(folder: Path, before: dict, now: dict):
    changed = [
        f"{key} {before[part].get(key)!r}, now {now[part].get(key)!r}"
        for part in ("settings", "source")
        for key in {**before[part], **now[part]}
        if before[part].get(key) != now[part].get(key)
    ]
    if changed:
        raise DataError(
            f"{folder}: was begun with {'; '.join(changed)}. Go on with the settings of the first start, or choose "
            "another folder"
        )
