"""Data sets in shards: what is written is what is read; damage, changes and far files are named."""

import faulthandler
import io
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import struct
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.config import load
from plsc.data import remote as remote_module
from plsc.data.datasets import Digits, ImageNetDataset, Parquet, Sample, Stack, TFRecord, WebDataset
from plsc.data.datasets import shards as shards_module
from plsc.data.datasets.combine import sliced
from plsc.data.datasets.labels import LabelPolicy, Labels
from plsc.data.datasets.tfrecord import masked_crc32c, parse_example
from plsc.data.fetch import Fetcher
from plsc.data.index import cache_folder, cached
from plsc.data.loader import Loader
from plsc.data.sampler import Draw
from plsc.errors import ConfigError, DataError
from tests.helpers import tiny_digits, write_config

pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
fsspec = pytest.importorskip("fsspec")

import pyarrow.parquet as parquet  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No cache of the user is touched."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# What writes the files is independent of plsc: tarfile, an encoder of protocol buffers, pyarrow.


def write_tar(path, members, kind=tarfile.GNU_FORMAT):
    """A tar of (name, bytes) members; bytes None makes a folder."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            if data is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return str(path)


def varint(number: int) -> bytes:
    number %= 1 << 64  # negative numbers are two's complement
    out = bytearray()
    while number > 127:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def delimited(field: int, data: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(data)) + data


def feature(values, packed: bool) -> bytes:
    """A tf.train.Feature: list of bytes, float32 array or list of int."""
    if isinstance(values, np.ndarray):
        numbers = [struct.pack("<f", v) for v in values]
        inner = delimited(1, b"".join(numbers)) if packed else b"".join(varint(1 * 8 + 5) + n for n in numbers)
        return delimited(2, inner)
    if values and isinstance(values[0], bytes):
        return delimited(1, b"".join(delimited(1, value) for value in values))
    numbers = [varint(v) for v in values]
    inner = delimited(1, b"".join(numbers)) if packed else b"".join(varint(1 * 8 + 0) + n for n in numbers)
    return delimited(3, inner)


def example(features: dict, packed: bool = True) -> bytes:
    """A serialised tf.train.Example."""
    entries = (delimited(1, key.encode()) + delimited(2, feature(v, packed)) for key, v in features.items())
    return delimited(1, b"".join(delimited(1, entry) for entry in entries))


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) bit by bit, by RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        for k in range(8):
            bit = (byte >> k ^ crc) & 1
            crc = crc >> 1 ^ (0x82F63B78 if bit else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> bytes:
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def write_records(path, records):
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + masked(crc32c(length)) + record + masked(crc32c(record)))
    return str(path)


def picture(n: int) -> bytes:
    """Bytes that no other n has; the data sets do not look into pictures."""
    return b"\xff\xd8" + n.to_bytes(4, "big") * (5 + n % 40) + b"\xff\xd9"


def write_shard(kind: str, path, numbers, labels=None) -> str:
    """A shard of any format with picture(n) and the class n % 7 for each number, or labels[n]."""
    stated = {n: n % 7 if labels is None else labels[n] for n in numbers}
    if kind == "WebDataset":
        pairs = ([(f"{n:06d}.jpg", picture(n)), (f"{n:06d}.cls", str(stated[n]).encode())] for n in numbers)
        return write_tar(path, itertools.chain.from_iterable(pairs))
    if kind == "TFRecord":
        return write_records(path, (example({"image": [picture(n)], "label": [stated[n]]}) for n in numbers))
    table = pyarrow.table({"image": [picture(n) for n in numbers], "label": [stated[n] for n in numbers]})
    parquet.write_table(table, path, row_group_size=4)
    return str(path)


def open_data(kind: str, files, **options):
    if kind == "WebDataset":
        return WebDataset(files, **options)
    return {"TFRecord": TFRecord, "Parquet": Parquet}[kind](files, label_key="label", **options)


def contents(data) -> list:
    return [(data[i].image, data[i].label) for i in range(len(data))]


def in_child(function, timeout: float = 30.0) -> tuple[int, str]:
    """(exit code, what it returned) of a function run in a forked process; minus the signal that killed it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work():
        faulthandler.disable()
        try:
            theirs.send(str(function()))
        except Exception as error:
            theirs.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        received = ours.recv() if ours.poll(timeout) else "it hangs"
    except EOFError:
        received = ""
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, received


KINDS = pytest.mark.parametrize("kind", ["WebDataset", "TFRecord", "Parquet"])


# -- what is written is read ------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_samples_are_what_was_written(tmp_path, form):
    """Folders, long names, upper-case and double extensions, .cls or .json, members beside and without pictures."""
    long = "deep/" + "x" * 90 + "/" + "y" * 90
    soft = {"labels": [4, 2], "label_probs": [0.25, 0.5], "caption": "a tench"}
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("./a/0001.jpg", picture(1)),
            ("./a/0001.cls", b"3\n"),
            ("b", None),
            ("b/0001.JPEG", picture(2)),  # the same last part as before: another sample, of another folder
            ("b/0001.seg.png", b"not this one"),
            ("b/0001.txt", b"a caption"),
            ("b/0001.JSON", json.dumps({"labels": 5}).encode()),
            ("gone.json", json.dumps({"labels": [1], "status": "failed_to_download"}).encode()),
            (f"{long}.png", picture(3)),
            (f"{long}.json", json.dumps(soft).encode()),
            ("both.cls", b"6"),
            ("both.json", json.dumps({"width": 3}).encode()),  # says nothing of labels
            ("both.webp", picture(4)),
            ("empty.txt", b""),
            ("last.cls", b"0"),
            ("last.jpg", picture(512)),
        ],
        form,
    )
    data = WebDataset(path)
    assert contents(data) == [(picture(1), 3), (picture(2), 5), (picture(3), 2), (picture(4), 6), (picture(512), 0)]
    assert data.shard_sizes.tolist() == [5] and data.max_labels == 1
    assert path in data[3].name
    several = WebDataset(path, label_mode="soft")
    assert several[2].label == (2, 4) and several[2].weights == (0.5, 0.25)
    assert several[0].label == (3,) and several[0].weights == (1.0,)
    assert several.labels_of(np.arange(1, 4)).tolist() == [[5, -1], [2, 4], [6, -1]]


def test_other_json_keys(tmp_path):
    members = [("0.jpg", picture(0)), ("0.json", b'{"y": [1, 2], "p": [0.1, 0.9], "labels": 5}')]
    data = WebDataset(write_tar(tmp_path / "a.tar", members), label_key="y", prob_key="p")
    assert data[0].label == 2


@pytest.mark.parametrize("packed", [True, False])
def test_records_are_what_was_written(tmp_path, packed):
    """Labels packed into one field, as TensorFlow writes them, or a field each; probabilities; other features."""
    rng = np.random.default_rng(0)
    wrote = []
    for n in range(20):
        ids = rng.integers(0, 21841, n % 5).tolist()
        probs = rng.random(len(ids)).astype("float32")
        wrote.append((picture(n), ids, probs))
    records = [
        example({"imagehash": [b"\x00" * 8], "image": [image], "labels": ids, "label_probs": probs, "id": [-n]}, packed)
        for n, (image, ids, probs) in enumerate(wrote)
    ]
    data = TFRecord(write_records(tmp_path / "a.tfrecord", records), label_mode="soft", drop_empty=False)
    assert len(data) == 20
    for k, (image, ids, probs) in enumerate(wrote):
        order = np.argsort(-probs, kind="stable")
        assert data[k].image == image
        assert data[k].label == tuple(ids[i] for i in order)
        assert data[k].weights == tuple(float(probs[i]) for i in order)


NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=8).map(lambda v: np.array(v, "float32"))
FEATURES = st.dictionaries(
    st.text(max_size=8), st.one_of(NUMBERS, FLOATS, st.lists(st.binary(max_size=300), min_size=1, max_size=4))
)


@settings(max_examples=60, deadline=None)
@given(features=FEATURES, packed=st.booleans())
def test_every_example_is_parsed(features, packed):
    """Any names, negative and large integers, several byte strings, empty lists."""
    actual = parse_example(example(features, packed))
    assert actual.keys() == features.keys()
    for name, values in features.items():
        assert np.array_equal(actual[name], values) if isinstance(values, np.ndarray) else list(actual[name]) == values


def test_fields_from_elsewhere_are_passed_over():
    """Fields of every wire type that an Example does not have, before and after the features."""
    other = varint(9 * 8) + varint(7) + varint(10 * 8 + 1) + bytes(8) + varint(11 * 8 + 5) + bytes(4)
    other += delimited(12, b"x")
    assert list(parse_example(other + example({"label": [5]}) + other)["label"]) == [5]


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_checksums_of_the_standard(data, checksum):
    """The vectors of RFC 3720, B.4."""
    assert struct.pack("<I", masked_crc32c(data)) == masked(checksum)
    assert crc32c(data) == checksum


@given(st.binary(max_size=64))
def test_checksums_are_those_of_googles_library(data):
    google_crc32c = pytest.importorskip("google_crc32c")
    assert struct.pack("<I", masked_crc32c(data)) == masked(google_crc32c.value(data))


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_rows_are_what_was_written(tmp_path, as_struct):
    """{bytes, path} as Hugging Face writes it or plain bytes; one class; row groups of unequal sizes."""
    images = [{"bytes": picture(n), "path": f"{n}.jpg"} if as_struct else picture(n) for n in range(23)]
    table = pyarrow.table({"label": [n % 5 for n in range(23)], "other": ["x"] * 23, "image": images})
    with parquet.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table[:10], table[10:11], table[11:]):
            writer.write_table(part)
    data = Parquet(str(tmp_path / "a.parquet"), cached_row_groups=1)
    assert contents(data) == [(picture(n), n % 5) for n in range(23)]
    assert data[22].image == picture(22) and data[3].image == picture(3)  # against the order, through one kept group
    assert data.shard_sizes.tolist() == [10, 1, 12]


def test_parquet_rows_with_probabilities(tmp_path):
    columns = {
        "img": [picture(n) for n in range(4)],
        "labels": [[3, 1], [2], [], [5, 6, 7]],
        "probs": [[0.25, 0.75], [0.5], [], [0.1, 0.2, 0.3]],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    options = dict(image_key="img", label_key="labels", prob_key="probs", label_mode="soft")
    data = Parquet(str(tmp_path / "a.parquet"), **options)
    assert [data[i].label for i in range(3)] == [(1, 3), (2,), (7, 6, 5)]
    assert [data[i].weights for i in range(3)] == [(0.75, 0.25), (0.5,), (0.3, 0.2, 0.1)]
    assert data.shard_sizes.tolist() == [3]


@KINDS
def test_files_come_in_their_order(tmp_path, kind):
    """A list as it is given, a pattern sorted, a {000..002} range counted; shard sizes in the same order."""
    counts = {"b-000": range(5), "b-001": range(10, 13), "b-002": range(20, 26), "a": range(30, 32)}
    for name, numbers in counts.items():
        write_shard(kind, tmp_path / name, numbers)
    numbers = [*range(30, 32), *range(5), *range(10, 13), *range(20, 26)]
    for second in ("b-{000..002}", "b-*", "b-00[0-9]"):
        data = open_data(kind, [str(tmp_path / "a"), str(tmp_path / second)])
        assert contents(data) == [(picture(n), n % 7) for n in numbers]
        assert data.shard_sizes.sum() == len(data)
    if kind != "Parquet":
        assert data.shard_sizes.tolist() == [2, 5, 3, 6]
    for index in (-1, len(data), 10**9):
        with pytest.raises(IndexError):
            data[index]
    assert sum(1 for _ in data) == len(data)


@KINDS
def test_many_files_are_indexed_by_several_processes(tmp_path, kind, monkeypatch):
    """Above the number that is indexed without processes; empty files in between."""
    if kind == "TFRecord":
        write_shard(kind, tmp_path / "03-empty", [])
    for k in range(20):
        write_shard(kind, tmp_path / f"{k:02d}", range(100 * k, 100 * k + k % 4 + 1))
    data = open_data(kind, str(tmp_path / "[0-9]*"))
    numbers = [n for k in range(20) for n in range(100 * k, 100 * k + k % 4 + 1)]
    assert contents(data) == [(picture(n), n % 7) for n in numbers]


def test_what_indexing_processes_are_sent_does_not_grow_with_the_files(tmp_path, monkeypatch):
    """The list of files, which may be long, is not sent along with every few of them."""
    for k in range(40):
        write_shard("WebDataset", tmp_path / f"{k:02d}.tar", [k])
    asked, original = [], shards_module.Shards.__reduce_ex__
    monkeypatch.setattr(shards_module.Shards, "__reduce_ex__", lambda *of: asked.append(1) or original(*of))
    assert len(WebDataset(str(tmp_path / "*.tar"))) == 40
    assert len(asked) <= 1


def test_indexing_processes_end_without_a_word(tmp_path, capfd):
    """Ended by a signal, each would print Paddle's report of a crash."""
    for k in range(20):
        write_shard("WebDataset", tmp_path / f"{k:02d}.tar", [k])
    assert len(WebDataset(str(tmp_path / "*.tar"))) == 20
    time.sleep(0.2)
    assert capfd.readouterr() == ("", "")


@KINDS
def test_damage_among_many_files_is_named(tmp_path, kind):
    """Also where processes index them."""
    paths = [write_shard(kind, tmp_path / f"{k:02d}", range(k, k + 3)) for k in range(12)]
    with open(paths[7], "r+b") as file:
        file.truncate(os.path.getsize(paths[7]) // 2)
    with pytest.raises(DataError, match=paths[7]):
        open_data(kind, paths)


@KINDS
def test_more_shards_than_a_process_may_open(tmp_path, kind):
    """Random reads over 400 shards under the usual limit of 1024 open files."""
    for k in range(400):
        write_shard(kind, tmp_path / f"{k:03d}", [k, k + 1])
    data = open_data(kind, str(tmp_path / "*"))

    def read():
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        for index in np.random.default_rng(0).permutation(np.repeat(np.arange(800), 2)).tolist():
            assert data[index].image == picture(index // 2 + index % 2)
        return "all"

    assert in_child(read) == (0, "all")


@KINDS
def test_workers_read_what_one_process_reads(tmp_path, kind):
    """Forked after the parent has opened shards itself."""
    paths = [write_shard(kind, tmp_path / f"{k}", range(20 * k, 20 * k + 20)) for k in range(3)]
    data = open_data(kind, paths)

    def pixels(image, rng):
        return np.frombuffer(image[2:6], "uint8").reshape(1, 1, 4)

    draws = [[Draw(0, (7 * k + 13 * i) % 60) for i in range(16)] for k in range(6)]
    for workers in (0, 3):
        load = Loader(Fetcher(data, [pixels], seed=0, class_num=7), batch_size=16, num_workers=workers)
        for asked, batch in zip(draws, load.run(draws), strict=False):
            assert batch["image"][:, 0, 0].tolist() == [list(draw.index.to_bytes(4, "big")) for draw in asked]
            assert batch["label"].tolist() == [draw.index % 7 for draw in asked]
        load.close()


# -- parts and sums ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
    start=st.none() | st.integers(-25, 25),
    stop=st.none() | st.integers(-25, 25),
    bracketed=st.booleans(),
)
def test_a_slice_is_pythons(sizes, start, stop, bracketed):
    """The samples of a Python slice; sizes of shards that say which of its samples lie together."""

    class Data:
        class_names, max_labels, shard_sizes = None, 1, np.array(sizes)

        def __len__(self):
            return sum(sizes)

        def __getitem__(self, index):
            return Sample(b"", index)

    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    expected = list(range(sum(sizes)))[start:stop]
    if not expected:
        with pytest.raises(DataError, match="leaves no sample"):
            sliced(Data(), text)
        return
    part = sliced(Data(), f"[{text}]" if bracketed else text)
    assert [part[i].label for i in range(len(part))] == expected
    owner = np.repeat(np.arange(len(sizes)), sizes)[expected]
    assert part.shard_sizes.tolist() == np.unique(owner, return_counts=True)[1].tolist()
    for index in (-1, len(part)):
        with pytest.raises(IndexError):
            part[index]


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:3", "1.5:2"])
def test_no_slice(text):
    with pytest.raises(ConfigError, match="slice is"):
        sliced(Digits(), text)


def test_a_stack_of_formats(tmp_path):
    """Samples and shards one after the other; a data set without shards counts as one."""
    parts = [open_data(kind, write_shard(kind, tmp_path / kind, range(6))) for kind in ("WebDataset", "Parquet")]
    digits = sliced(Digits(), ":5")
    stack = Stack([parts[0], digits, sliced(parts[1], "1:")])
    assert len(stack) == 6 + 5 + 5
    assert contents(parts[0]) == [(stack[i].image, stack[i].label) for i in range(6)]
    assert all(np.array_equal(stack[6 + i].image, digits[i].image) for i in range(5))
    assert [stack[11 + i].image for i in range(5)] == [picture(n) for n in range(1, 6)]
    assert stack.shard_sizes.tolist() == [6, 5, 3, 2]
    assert stack.class_names == digits.class_names
    for index in (-1, len(stack)):
        with pytest.raises(IndexError):
            stack[index]


def test_a_stack_refuses_other_classes(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    path = write_shard("TFRecord", tmp_path / "a", range(3), labels=[0, 1, 0])
    named = open_data("TFRecord", path, class_names=str(tmp_path / "names.txt"))
    assert named.class_names == ["cat", "dog"]
    with pytest.raises(DataError, match="different classes"):
        Stack([named, Digits()])
    with pytest.raises(ConfigError, match="empty"):
        Stack([])


def stacked(tmp_path, **first) -> dict:
    """A configuration whose training data is a Stack of a sliced tar and sliced digits."""
    path = write_shard("WebDataset", tmp_path / "a.tar", range(6))
    tree = tiny_digits()
    parts = [{"WebDataset": {"files": path, **first}}, {"Digits": {"slice": "[-10:]"}}]
    tree["DataLoader"]["Train"]["dataset"] = {"name": "Stack", "datasets": parts, "slice": "1:", "transform_ops": []}
    return tree


def test_data_sets_within_data_sets_come_from_yaml(tmp_path):
    """Stack and slice, also nested; the resolved configuration is the same again."""
    from plsc import build

    config = load(str(write_config(tmp_path / "c.yaml", stacked(tmp_path, slice=":4"))))
    data = build.dataset(config, "Train")
    assert len(data) == 4 + 10 - 1
    assert [data[i].image for i in range(3)] == [picture(n) for n in (1, 2, 3)]
    assert data.shard_sizes.tolist() == [3, 10]
    again = load(str(write_config(tmp_path / "again.yaml", config.to_dict())))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fils": "x"}, r"DataLoader\.Train\.dataset\.datasets\.0\.WebDataset\.fils.*did you mean files"),
        ({"label_mode": "hard"}, r"datasets\.0\.WebDataset\.label_mode: expected one of class, multi_hot, soft"),
        ({"slice": 3}, r"datasets\.0\.WebDataset\.slice: got 3; write it in quotes as in Python"),
        ({"slice": "x"}, r"datasets\.0\.WebDataset\.slice: got 'x'; write it in quotes as in Python"),
    ],
)
def test_problems_within_are_located(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        load(str(write_config(tmp_path / "c.yaml", stacked(tmp_path, **wrong))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slice": "[9:9]"}, r"datasets\.0\.WebDataset\.slice: slice \[9:9\] of \d+ samples leaves no sample"),
        ({"label_prob_threshold": 1.5}, r"datasets\.0\.WebDataset\.label_prob_threshold: got 1\.5; it should be less"),
        ({"max_labels": 0}, r"WebDataset\.max_labels: got 0; it should be greater"),
        ({"drop_empty": False}, r"drop_empty cannot be False"),
        ({"cache_gigabytes": 0.0}, r"WebDataset\.cache_gigabytes: got 0\.0; it should be greater"),
        ({"files": []}, r"files"),
    ],
)
def test_wrong_options_are_located(tmp_path, wrong, message):
    from plsc import build

    path = write_config(tmp_path / "c.yaml", stacked(tmp_path, **wrong))
    with pytest.raises((ConfigError, DataError), match=message):
        build.dataset(load(str(path)), "Train")


@pytest.mark.parametrize("unquoted", ["[:4]", ":4", "[-4:]"])
def test_a_slice_is_written_as_in_python_on_the_command_line(tmp_path, unquoted):
    """-o …slice=[:4], which YAML takes for a list."""
    from plsc import build

    path = write_config(tmp_path / "c.yaml", tiny_digits())
    config = load(str(path), [f"DataLoader.Train.dataset.slice={unquoted}"])
    assert len(build.dataset(config, "Train")) == 4


@pytest.mark.parametrize("nested", [False, True])
def test_the_same_pictures_for_training_and_evaluation_are_reported(tmp_path, caplog, nested):
    """Also where the data sets lie within a Stack."""
    from plsc import build

    tree = stacked(tmp_path) if nested else tiny_digits()
    tree["DataLoader"]["Eval"]["dataset"] = tree["DataLoader"]["Train"]["dataset"]
    config = load(str(write_config(tmp_path / "c.yaml", tree)))
    train, evaluation = (build.dataset(config, mode) for mode in ("Train", "Eval"))
    build.compare_parts(config, train, evaluation)
    assert "read the same pictures" in caplog.text


# -- damage and change ------------------------------------------------------------------------


@KINDS
def test_a_truncated_file_is_refused_by_name(tmp_path, kind):
    """Wherever it is cut. Only where a record ends, a TFRecord file cannot be distinguished from a whole one."""
    path = write_shard(kind, tmp_path / "a", range(6))
    whole = (tmp_path / "a").read_bytes()
    legitimate = {0}
    if kind == "TFRecord":
        for n in range(6):
            legitimate.add(max(legitimate) + 16 + len(example({"image": [picture(n)], "label": [n % 7]})))
    if kind == "WebDataset":  # what follows the first block of zeros is padding
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
        legitimate |= set(range(end + 512, len(whole)))
    cuts = sorted({*range(1, len(whole), max(1, len(whole) // 40)), *range(512, len(whole), 512), *legitimate})
    for cut in cuts:
        (tmp_path / "a").write_bytes(whole[:cut])
        if cut in legitimate:
            continue
        with pytest.raises(DataError, match=path):
            open_data(kind, path)
            pytest.fail(f"cut at byte {cut} of {len(whole)} silently")


def test_a_damaged_tar_header_is_refused(tmp_path):
    """Else all that follows it would be missing silently."""
    path = write_shard("WebDataset", tmp_path / "a", range(6))
    whole = (tmp_path / "a").read_bytes()
    for name in (b"000003.jpg", b"000003.cls"):
        at = whole.index(name)
        (tmp_path / "a").write_bytes(whole[:at] + b"1" + whole[at + 1 :])
        with pytest.raises(DataError, match=path):
            WebDataset(path)


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        entry = tarfile.TarInfo("0.jpg")
        tar.addfile(entry, io.BytesIO())
    with pytest.raises(DataError, match=r"a\.tar.*no whole tar file"):
        WebDataset(str(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (("0.cls", b"cat"), "0: its labels cannot be read from its .cls"),
        (("0.cls", b""), "cannot be read"),
        (("0.json", b'{"labels": [1, 2], "label_probs": [0.5]}'), "has 2 labels but 1 probabilities"),
        (("0.json", b'{"labels": null}'), "cannot be read from its .json"),
        (("0.json", b'{"labels": [Infinity]}'), "cannot be read from its .json"),
        (("0.json", b"[1]"), "0.json: damaged: it holds no mapping"),
        (("0.json", b'{"labels": '), "cannot be indexed"),
        (("0.json", b'{"caption": "x"}'), r"has neither 0.cls nor 'labels' in 0.json"),
        (("0.json", b"\xff\xfe\x00"), "cannot be indexed"),
        (("0.json", b"[" * 100_000), "0.json: damaged"),
        (("1.cls", b"1"), r"has neither 0.cls"),
    ],
)
def test_unreadable_labels_in_a_tar(tmp_path, label, message):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", picture(0)), label])
    with pytest.raises(DataError, match=message) as caught:
        WebDataset(path)
    assert path in str(caught.value)


def labelled_by(value: bytes) -> bytes:
    """An Example whose feature `label` is this message."""
    return delimited(1, delimited(1, delimited(1, b"label") + delimited(2, value)))


@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 30,
        delimited(1, delimited(1, delimited(2, b""))),  # an entry without a name
        varint(1 * 8 + 0) + varint(1 << 40),  # a number where the features should be
        delimited(1, varint(1 * 8 + 0) + varint(5)),
        delimited(1, delimited(1, varint(1 * 8 + 0) + varint(1 << 50))),  # a number where a name should be
        delimited(1, delimited(1, delimited(1, b"\xff\xfe") + delimited(2, b""))),
        labelled_by(delimited(2, delimited(1, b"abc"))),  # three quarters of a number
    ],
)
def test_a_record_that_is_no_example(tmp_path, message):
    path = write_records(tmp_path / "a", [example({"image": [picture(0)], "label": [1]}), message])
    with pytest.raises(DataError, match=path):
        open_data("TFRecord", path)


@pytest.mark.parametrize(
    "message",
    [
        labelled_by(varint(3 * 8) + varint(4)),  # numbers where lists should be
        labelled_by(delimited(2, varint(8) + varint(1))),
        labelled_by(delimited(3, delimited(1, b"\xff" * 9 + b"\x7f"))),  # 70 bits
    ],
)
def test_a_record_of_odd_fields(tmp_path, message):
    """What a reader of protocol buffers may pass over or refuse, and nothing else."""
    path = write_records(tmp_path / "a", [example({"image": [picture(0)], "label": [1]}), message])
    try:
        data = open_data("TFRecord", path)
    except DataError as error:
        assert path in str(error)
    else:
        assert data[0].label == 1


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), where=st.integers(0, 3))
def test_damaged_records_never_raise_anything_but_data_errors(tmp_path_factory, place, value, where):
    """Any byte changed: told by name, or inside a picture and unnoticed."""
    folder = tmp_path_factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    record = bytearray(example({"image": [picture(3)], "label": [300, -1], "probs": np.ones(3, "float32")}))
    record[place % (40 if where else len(record))] = value
    path = write_records(folder / "a", [bytes(record)])
    try:
        data = TFRecord(path, label_key="label", label_mode="multi_hot", drop_empty=False)
        data[0]
    except DataError as error:
        assert path in str(error)


def test_a_damaged_length_is_found_before_it_is_believed(tmp_path):
    """A length of petabytes is neither allocated nor read."""
    path = write_shard("TFRecord", tmp_path / "a", range(4))
    whole = bytearray((tmp_path / "a").read_bytes())
    whole[6] ^= 0x40
    (tmp_path / "a").write_bytes(whole)
    with pytest.raises(DataError, match=f"{path}.*checksum"):
        open_data("TFRecord", path)


def test_damaged_parquet_is_refused_by_name(tmp_path):
    """Bytes of labels and metadata changed at random: a DataError or no harm."""
    path = write_shard("Parquet", tmp_path / "a", range(12))
    whole = (tmp_path / "a").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        bad = bytearray(whole)
        bad[len(whole) - 1 - int(rng.integers(0, 600))] ^= 1 << int(rng.integers(8))
        (tmp_path / "a").write_bytes(bad)
        try:
            data = open_data("Parquet", path)
            contents(data)
        except DataError as error:
            assert path in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"], "label": [1]}, "has no column image; there are picture, label"),
        ({"image": [b"x"], "label": ["cat"]}, "cannot be indexed"),
        ({"image": [b"x"], "label": [None]}, "a row has no 'label'"),
        ({"image": [b"x"], "label": [[1, None]]}, "cannot be indexed"),
        ({"image": [b"x"], "label": [{"id": 1}]}, "cannot be indexed"),
    ],
)
def test_unreadable_parquet(tmp_path, columns, message):
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"a.parquet.*{message}"):
        Parquet(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("probs", [[[0.5]], [0.5]])
def test_parquet_probabilities_that_do_not_fit(tmp_path, probs):
    parquet.write_table(pyarrow.table({"image": [b"x"], "label": [[1, 2]], "p": probs}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet"):
        Parquet(str(tmp_path / "a.parquet"), prob_key="p")


def test_a_sample_without_a_picture_names_its_file(tmp_path):
    """The index does not look at pictures; the reader does."""
    parts = [
        (TFRecord, write_records(tmp_path / "a.tfrecord", [example({"img": [b"x"], "label": [1]})])),
        (Parquet, str(tmp_path / "a.parquet")),
    ]
    table = pyarrow.table({"image": [{"bytes": None, "path": "there.jpg"}], "label": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    for kind, path in parts:
        data = kind(path, label_key="label")
        with pytest.raises(DataError, match=f"{path}.*image"):
            data[0]
        fetcher = Fetcher(data, [], seed=0, class_num=2)
        with pytest.raises(DataError, match=path):
            fetcher.fields()


@KINDS
def test_files_that_are_not_there(tmp_path, kind):
    with pytest.raises(DataError, match=r"absent-\*\.x: no such file"):
        open_data(kind, str(tmp_path / "absent-*.x"))
    path = write_shard(kind, tmp_path / "a", range(2))
    with pytest.raises(DataError, match=r"b-\{0\.\.1\}"):
        open_data(kind, [path, str(tmp_path / "b-{0..1}")])
    with pytest.raises(DataError, match="named twice"):
        open_data(kind, [path, str(tmp_path / "*a")])
    with pytest.raises((ConfigError, DataError), match="files"):
        open_data(kind, [])


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    path = write_shard("WebDataset", tmp_path / "a[0].tar", range(2))
    assert len(WebDataset(path)) == 2


@KINDS
def test_a_file_replaced_by_a_smaller_one_is_reported_by_name(tmp_path, kind):
    """After it was counted and before it is first read: no other sample and no IndexError."""
    path = write_shard(kind, tmp_path / "a", range(8))
    data = open_data(kind, path)
    write_shard(kind, tmp_path / "b", range(90, 92))
    os.replace(tmp_path / "b", tmp_path / "a")
    for index in (0, 7):
        with pytest.raises(DataError, match=f"{path}.*changed"):
            data[index]


@KINDS
def test_a_file_that_is_gone_is_reported_by_name(tmp_path, kind):
    path = write_shard(kind, tmp_path / "a", range(8))
    data = open_data(kind, path)
    os.remove(path)
    with pytest.raises(DataError, match=path):
        data[0]


@pytest.mark.parametrize("kind", ["WebDataset", "TFRecord"])
def test_a_file_truncated_under_way_is_reported_by_name(tmp_path, kind):
    path = write_shard(kind, tmp_path / "a", range(8))
    data = open_data(kind, path)
    data[0]
    os.truncate(path, 100)
    with pytest.raises(DataError, match=path):
        data[7]


def test_a_parquet_file_truncated_under_way_kills_nobody(tmp_path):
    """Reading a mapped file after its end is SIGBUS."""
    rng = np.random.default_rng(0)
    table = pyarrow.table({"image": [rng.bytes(20_000) for _ in range(40)], "label": list(range(40))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    data = Parquet(str(tmp_path / "a.parquet"))
    data[0]

    def read():
        os.truncate(tmp_path / "a.parquet", 4096)
        return data[39]

    code, received = in_child(read)
    assert code != -signal.SIGBUS
    assert received.startswith("DataError") and "a.parquet" in received


@KINDS
def test_class_names_beside_the_shards(tmp_path, kind):
    """From the manifest that is left there, or a text file; a damaged one is named."""
    path = write_shard(kind, tmp_path / "a", range(4))
    assert open_data(kind, path).class_names is None
    (tmp_path / "manifest.json").write_text(json.dumps({"class_names": ["a", "b"], "more": 1}))
    assert open_data(kind, path).class_names == ["a", "b"]
    (tmp_path / "names.txt").write_text("x\n\ny \nz\n", encoding="utf-8")
    assert open_data(kind, path, class_names=str(tmp_path / "names.txt")).class_names == ["x", "y", "z"]
    for wrong in ("[1]", "{"):
        (tmp_path / "manifest.json").write_text(wrong)
        with pytest.raises(DataError, match=r"manifest\.json: damaged"):
            open_data(kind, path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "names.txt").write_bytes("Bär\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"names\.txt"):
        open_data(kind, path, class_names=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        open_data(kind, path, class_names=str(tmp_path / "absent.txt"))


# -- the index --------------------------------------------------------------------------------


def bytes_read() -> int:
    """What this process has read so far."""
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("rchar")).split()[1])


@KINDS
def test_a_second_start_reads_no_shards_through(tmp_path, kind):
    """The index is built once; afterwards a start reads next to nothing, and the same samples."""
    rng = np.random.default_rng(0)
    images = [rng.bytes(100_000) for _ in range(20)]
    if kind == "WebDataset":
        members = [pair for n in range(20) for pair in ((f"{n}.jpg", images[n]), (f"{n}.cls", b"1"))]
        path = write_tar(tmp_path / "a", members)
    elif kind == "TFRecord":
        path = write_records(tmp_path / "a", [])
        with open(path, "ab") as file:
            for image in images:
                record = example({"image": [image], "label": [1]})
                length = struct.pack("<Q", len(record))
                file.write(length + masked(crc32c(length)) + record + bytes(4))
    else:
        parquet.write_table(pyarrow.table({"image": images, "label": [1] * 20}), tmp_path / "a", row_group_size=5)
        path = str(tmp_path / "a")
    open_data(kind, path)
    before = bytes_read()
    data = open_data(kind, path)
    assert bytes_read() - before < 50_000
    assert [data[i].image for i in range(20)] == images


@KINDS
def test_an_index_is_built_anew_when_its_file_changes(tmp_path, kind):
    path = write_shard(kind, tmp_path / "a", range(5))
    assert len(open_data(kind, path)) == 5
    write_shard(kind, tmp_path / "a", range(40, 48))
    assert contents(open_data(kind, path)) == [(picture(n), n % 7) for n in range(40, 48)]
    # the same length in bytes, at another time
    write_shard(kind, tmp_path / "a", range(50, 58), labels=dict.fromkeys(range(50, 58), 6))
    os.utime(tmp_path / "a", ns=(1, 1))
    assert contents(open_data(kind, path)) == [(picture(n), 6) for n in range(50, 58)]


def test_other_options_are_another_index(tmp_path):
    """The same file by other keys, thresholds and formats, alternately."""
    members = [
        ("0.jpg", picture(0)),
        ("0.json", b'{"a": 1, "b": [2, 3], "p": [0.5, 0.25]}'),
        ("1.jpg", picture(1)),
        ("1.json", b'{"a": 4, "b": [], "p": []}'),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):
        assert [s.label for s in WebDataset(path, label_key="a", prob_key="none")] == [1, 4]
        soft = dict(label_key="b", prob_key="p", label_mode="soft")
        assert [s.label for s in WebDataset(path, **soft)] == [(2, 3)]
        assert [s.label for s in WebDataset(path, **soft, drop_empty=False)] == [(2, 3), ()]
        assert [s.label for s in WebDataset(path, **soft, label_prob_threshold=0.3)] == [(2,)]
        with pytest.raises(DataError, match="none of the 1 shards holds a picture that is kept"):
            WebDataset(path, **soft, label_prob_threshold=0.6)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"facts": {}}', None])
def test_a_damaged_index_is_built_anew(tmp_path, cache, damage):
    """Each of its files cut, emptied or gone, as after a crash of the machine."""
    path = write_shard("TFRecord", tmp_path / "a", range(5))
    expected = contents(open_data("TFRecord", path))
    for victim in sorted(cache.rglob("*.npy")) + sorted(cache.rglob("facts.json")):
        if damage is None:
            victim.unlink()
        else:
            victim.write_bytes(damage)
        assert contents(open_data("TFRecord", path)) == expected


def test_several_processes_build_an_index_once(tmp_path):
    """Real processes, all at once: one builds while the others wait, and all see the same."""
    done = tmp_path / "built"

    def build():
        with open(done, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return {"a": np.arange(1000), "b": np.zeros((0, 3))}

    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Event()

    def work():
        start.wait()
        actual = cached("a place", {"n": 1}, build)
        results.put((int(actual["a"].sum()), actual["b"].shape))

    processes = [context.Process(target=work) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    assert [results.get(timeout=20) for _ in processes] == [(499500, (0, 3))] * 6
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(done.read_text().splitlines()) == 1


def test_a_build_that_failed_or_died_leaves_the_next_to_build(tmp_path, cache):
    """An error, and a killed process, release the lock and leave no half of an index."""

    def fails():
        raise DataError("damaged")

    with pytest.raises(DataError):
        cached("a place", {}, fails)
    code, _ = in_child(lambda: cached("a place", {}, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert code == -signal.SIGKILL
    assert cached("a place", {}, lambda: {"a": np.ones(3)})["a"].tolist() == [1, 1, 1]
    assert cached("a place", {}, fails)["a"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError):
        cached("a place", {}, fails)["a"][0] = 5  # read-only


def test_who_has_mapped_an_old_index_keeps_it(tmp_path):
    old = cached("a place", {"n": 1}, lambda: {"a": np.arange(100_000)})["a"]
    new = cached("a place", {"n": 2}, lambda: {"a": np.arange(10) + 7})["a"]
    assert old.sum() == 4999950000 and new.sum() == 115


def test_where_the_cache_lies(tmp_path, monkeypatch):
    """$PLSC_CACHE, the user's cache folder, or the temporary one where that cannot be written."""
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PLSC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "plsc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "plsc"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    fallen = cache_folder()
    assert fallen.parent == tmp_path / "temporary"
    path = write_shard("TFRecord", tmp_path / "a", range(3))
    assert len(open_data("TFRecord", path)) == 3 and list(fallen.rglob("*.npy"))


def test_a_read_only_home_falls_back(tmp_path, monkeypatch):
    """A folder that exists and cannot be written, as another user (root may write everywhere)."""
    home = tmp_path / "home" / ".cache" / "plsc"
    home.mkdir(parents=True)
    for folder in (home, home.parent, home.parent.parent):
        folder.chmod(0o555)
    monkeypatch.delenv("PLSC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def asked():
        if os.getuid() == 0:
            for parent in tmp_path.parents:
                if parent.stat().st_uid == 0 and parent != parent.parent:
                    parent.chmod(parent.stat().st_mode | 0o055)
            os.setuid(65534)
        return cache_folder()

    try:
        code, received = in_child(asked)
    finally:
        for folder in (home.parent.parent, home.parent, home):
            folder.chmod(0o755)
    assert code == 0 and str(tmp_path / "home") not in received and "plsc-" in received


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    """$PLSC_CACHE that is not a folder: a message that names it, not a traceback."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "file"))
    path = write_shard("TFRecord", tmp_path / "a", range(3))
    with pytest.raises((ConfigError, DataError), match=str(tmp_path / "file")):
        open_data("TFRecord", path)


# -- files that are far -----------------------------------------------------------------------


@pytest.fixture
def bucket():
    """A folder in fsspec's memory; forked processes have it too."""
    memory = fsspec.filesystem("memory")
    memory.makedirs("/bucket", exist_ok=True)
    yield memory
    memory.rm("/bucket", recursive=True)


def upload(bucket, kind: str, tmp_path, count: int, each: int) -> None:
    for k in range(count):
        path = write_shard(kind, tmp_path / "made", range(100 * k, 100 * k + each))
        bucket.put_file(path, f"/bucket/s-{k:03d}")
        os.remove(path)


@KINDS
def test_far_shards_are_copied_once(tmp_path, kind, bucket, cache):
    """By pattern, range and list; the second start needs neither network nor copies."""
    upload(bucket, kind, tmp_path, 3, 5)
    expected = [(picture(100 * k + n), (100 * k + n) % 7) for k in range(3) for n in range(5)]
    for files in (
        "memory:///bucket/s-*",
        "memory:///bucket/s-{000..002}",
        [f"memory:///bucket/s-00{k}" for k in range(3)],
    ):
        assert contents(open_data(kind, files)) == expected
    copies = [path for path in (cache / "remote").iterdir() if not path.name.startswith(".")]
    assert len(copies) == 3
    for copy in copies:
        copy.unlink()
    bucket.rm("/bucket/s-001")
    data = open_data(kind, [f"memory:///bucket/s-00{k}" for k in range(3)])
    assert len(data) == 15  # counted without a copy
    assert data[14].image == picture(204)
    with pytest.raises(DataError, match=r"memory:///bucket/s-001.*cannot be fetched"):
        data[7]


def test_copies_lie_where_they_should(tmp_path, bucket, cache):
    upload(bucket, "TFRecord", tmp_path, 2, 3)
    open_data("TFRecord", "memory:///bucket/*", cache_dir=str(tmp_path / "fast" / "disk"))
    assert len([p for p in (tmp_path / "fast" / "disk").iterdir() if not p.name.startswith(".")]) == 2
    assert not (cache / "remote").exists()


def write_big(bucket, count: int, size: int) -> None:
    """TFRecord shards of one picture of `size` bytes each."""
    for k in range(count):
        record = example({"image": [bytes([k]) * size], "label": [k]})
        length = struct.pack("<Q", len(record))
        bucket.pipe_file(f"/bucket/{k:02d}", length + masked(crc32c(length)) + record + bytes(4))


def test_above_its_limit_the_cache_loses_what_was_used_longest_ago(tmp_path, bucket, cache, monkeypatch):
    """Three copies of 1 MB fit into 3.5 MB."""
    write_big(bucket, 6, 1_000_000)
    monkeypatch.setattr(shards_module, "_OPEN_FILES", 1)
    data = open_data("TFRecord", "memory:///bucket/*", cache_gigabytes=0.0035)

    def kept() -> set[str]:
        return {p.name[-2:] for p in (cache / "remote").iterdir() if not p.name.startswith(".")}

    assert kept() == {"03", "04", "05"}
    for k, expected in ((3, {"03", "04", "05"}), (0, {"00", "03", "05"}), (4, {"00", "03", "04"})):
        time.sleep(0.02)
        assert data[k].image == bytes([k]) * 1_000_000
        assert kept() == expected
    assert not [p for p in (cache / "remote").iterdir() if p.name.startswith(".part")]


def test_a_cache_smaller_than_one_file_still_works(tmp_path, bucket):
    write_big(bucket, 3, 1_000_000)
    data = open_data("TFRecord", "memory:///bucket/*", cache_gigabytes=1e-6)
    assert [data[k].label for k in (2, 0, 1, 2)] == [2, 0, 1, 2]


def test_processes_share_a_small_cache(tmp_path, bucket, monkeypatch):
    """Each evicts what another is about to open; nobody fails."""
    write_big(bucket, 8, 200_000)
    monkeypatch.setattr(shards_module, "_OPEN_FILES", 1)
    data = open_data("TFRecord", "memory:///bucket/*", cache_gigabytes=0.0005)
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def work(seed):
        try:
            for k in np.random.default_rng(seed).integers(0, 8, 150).tolist():
                assert data[k].image == bytes([k]) * 200_000
            results.put("")
        except Exception as error:
            results.put(f"{type(error).__name__}: {error}")

    processes = [context.Process(target=work, args=(seed,)) for seed in range(4)]
    for process in processes:
        process.start()
    received = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert received == [""] * 4


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("address", ["memory:///bucket/absent", "memory:///bucket/absent-*"])
def test_a_far_file_that_is_not_there(tmp_path, bucket, address):
    with pytest.raises(DataError, match="memory:///bucket/absent"):
        WebDataset(address)


@pytest.mark.parametrize("pattern", ["a.tar", "*.tar"])
def test_a_server_that_does_not_answer_is_reported(pattern):
    """A real address where nobody listens; ftp connects as soon as it is asked for."""
    address = f"ftp://127.0.0.1:{closed_port()}/{pattern}"
    with pytest.raises(DataError, match=r"ftp://127\.0\.0\.1"):
        WebDataset(address)


class Faulty(fsspec.AbstractFileSystem):
    """A store whose library has errors of its own, as gcsfs and aiohttp do."""

    protocol = "faulty"

    class Trouble(Exception):
        pass

    def get_file(self, rpath, lpath, **options):
        raise self.Trouble("503, service unavailable")

    def glob(self, path, **options):
        raise self.Trouble("503, service unavailable")


@pytest.mark.parametrize("pattern", ["a.tar", "*.tar"])
def test_errors_of_a_stores_library_are_reported(pattern, monkeypatch):
    monkeypatch.setattr(remote_module, "_FIRST_PAUSE", 0.01)
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    with pytest.raises(DataError, match=r"faulty://x/.*tar.*503"):
        WebDataset(f"faulty://x/{pattern}")


def test_an_unknown_protocol_is_reported():
    with pytest.raises(ConfigError, match=r"nowhere://x/a\.tar"):
        WebDataset("nowhere://x/a.tar")


# -- labels -----------------------------------------------------------------------------------


def expected_labels(ids, probs, *, mode, threshold, normalize, most) -> dict[int, float]:
    """class → weight, straight from the description; empty where nothing is left. Probabilities are float32."""
    weights = [1.0] * len(ids) if probs is None else list(probs)
    pairs = [
        (i, w) for i, w in zip(ids, weights, strict=True) if threshold is None or np.float32(w) >= np.float32(threshold)
    ]
    pairs = sorted(pairs, key=lambda pair: pair[1], reverse=True)
    pairs = pairs[: 1 if mode == "class" else most]
    if mode != "soft":
        pairs = [(i, 1.0) for i, _ in pairs]
    total = sum(w for _, w in pairs)
    if normalize and mode != "class" and total > 0:
        pairs = [(i, w / total) for i, w in pairs]
    return dict(pairs)


PROBABILITIES = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.floats(1e-6, 1.0)
POLICY = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["class", "multi_hot", "soft"]),
        "threshold": st.none() | PROBABILITIES,
        "normalize": st.booleans(),
        "most": st.integers(2, 5),
    }
)


@st.composite
def labelled(draw, single: bool = False):
    ids = draw(st.lists(st.integers(0, 19), unique=True, max_size=7))
    probs = draw(st.none() | st.lists(PROBABILITIES, min_size=len(ids), max_size=len(ids)))
    return Labels(tuple(ids), None if probs is None else tuple(probs))


@settings(max_examples=300, deadline=None)
@given(options=POLICY, labels=labelled())
def test_the_policy_is_what_it_says(options, labels):
    """Chosen labels and weights against a direct computation; and whether the picture stays."""
    expected = expected_labels(*labels, **options)
    policy = LabelPolicy(**options, drop_empty=True, owner="test")
    kept = policy.keeps(np.array([policy.best(labels)], dtype=np.float32))[0]
    assert kept == bool(expected)
    if not kept:
        return
    label, weights = policy(labels)
    if options["mode"] == "class":
        assert weights is None and policy.max_labels == 1
        [chosen] = expected
        best = 1.0 if labels.probs is None else max(labels.probs)
        assert label == chosen or dict(zip(*labels, strict=True))[label] == best  # of equal ones, either
        return
    assert len(label) <= policy.max_labels == options["most"]
    assert sorted(weights, reverse=True) == pytest.approx(sorted(expected.values(), reverse=True))
    if labels.probs is None or len(set(labels.probs)) == len(labels.probs):
        assert dict(zip(label, weights, strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["TFRecord", "WebDataset"])
def test_a_probability_at_the_threshold_counts(tmp_path, kind, threshold):
    """In whatever precision the file holds it, and for every mode; with labels around it."""
    if kind == "TFRecord":
        probs = np.array([threshold, threshold / 2], "float32")
        path = write_records(tmp_path / "a", [example({"image": [picture(0)], "labels": [5, 3], "label_probs": probs})])
    else:
        entry = json.dumps({"labels": [5, 3], "label_probs": [threshold, threshold / 2]}).encode()
        path = write_tar(tmp_path / "a", [("0.jpg", picture(0)), ("0.json", entry)])
    make = {"TFRecord": TFRecord, "WebDataset": WebDataset}[kind]
    assert make(path, label_prob_threshold=threshold)[0].label == 5
    assert make(path, label_prob_threshold=threshold, label_mode="multi_hot")[0].label == (5,)


def test_a_probability_just_below_the_threshold_does_not_leave_an_empty_sample(tmp_path):
    """What is counted as kept has a label."""
    below = np.nextafter(0.7, 0.0)
    entry = json.dumps({"labels": [5], "label_probs": [below]}).encode()
    path = write_tar(tmp_path / "a", [("0.jpg", picture(0)), ("0.json", entry), ("1.jpg", picture(1)), ("1.cls", b"2")])
    data = WebDataset(path, label_prob_threshold=0.7)
    assert [sample.label for sample in data] in ([2], [5, 2])


@settings(max_examples=25, deadline=None)
@given(
    pictures=st.lists(labelled(), min_size=1, max_size=9),
    options=POLICY,
    drop_empty=st.booleans(),
    kind=st.sampled_from(["WebDataset", "Parquet"]),
)
def test_dropped_samples_vanish(tmp_path_factory, pictures, options, drop_empty, kind):
    """From length, shard sizes and indices; kept ones without labels come as nothing, down to the dense target."""
    import paddle

    from plsc.targets import Targets

    if options["mode"] == "class":
        drop_empty = True
    folder = tmp_path_factory.mktemp("labels")
    pixels = np.zeros([1, 1, 3], "uint8")
    names = [folder / "a", folder / "b"]
    halves = [pictures[: len(pictures) // 2], pictures[len(pictures) // 2 :]]
    number = itertools.count()
    for name, half in zip(names, halves, strict=True):
        numbers = [next(number) for _ in half]
        if kind == "WebDataset":
            members = []
            for n, (ids, probs) in zip(numbers, half, strict=True):
                stated = {"labels": ids} if probs is None else {"labels": ids, "label_probs": probs}
                members += [(f"{n}.jpg", picture(n)), (f"{n}.json", json.dumps(stated).encode())]
            write_tar(name, members)
        else:
            columns = {
                "image": pyarrow.array([picture(n) for n in numbers], pyarrow.binary()),
                "label": pyarrow.array([list(ids) for ids, _ in half], pyarrow.list_(pyarrow.int64())),
                "p": pyarrow.array([probs and list(probs) for _, probs in half], pyarrow.list_(pyarrow.float64())),
            }
            parquet.write_table(pyarrow.table(columns), name)
    wanted = [expected_labels(*labels, **options) for labels in pictures]
    kept = [n for n, labels in enumerate(wanted) if labels or not drop_empty]
    make = dict(
        files=[str(name) for name in names],
        label_mode=options["mode"],
        label_prob_threshold=options["threshold"],
        normalize_labels=options["normalize"],
        max_labels=options["most"],
        drop_empty=drop_empty,
    )
    extra = {} if kind == "WebDataset" else {"prob_key": "p"}
    factory = {"WebDataset": WebDataset, "Parquet": Parquet}[kind]
    if not kept:
        with pytest.raises(DataError, match="none of the 2 shards"):
            factory(**make, **extra)
        return
    data = factory(**make, **extra)
    assert [sample.image for sample in data] == [picture(n) for n in kept]
    first = sum(n < len(halves[0]) for n in kept)
    sizes = [size for size in data.shard_sizes.tolist() if size]
    assert sizes == [size for size in (first, len(kept) - first) if size]

    fetcher = Fetcher(data, [lambda image, rng: pixels], seed=0, class_num=20)
    arrays = {name: np.empty((len(kept), *f.shape), f.dtype) for name, f in fetcher.fields().items()}
    for row in range(len(kept)):
        fetcher.store(arrays, row, Draw(0, row))
    dense = Targets.of({name: paddle.to_tensor(array) for name, array in arrays.items()}).to_dense(20).numpy()
    for row, n in enumerate(kept):
        assert sorted(dense[row][dense[row] > 0]) == pytest.approx(sorted(w for w in wanted[n].values() if w), rel=1e-5)
        if not wanted[n]:
            assert set(arrays["label_ids"][row]) == {-1} and not arrays["label_weights"][row].any()
            assert not dense[row].any()
        elif len(set(pictures[n].probs or ())) == len(pictures[n].ids) and options["mode"] != "class":
            target = np.zeros(20)
            target[list(wanted[n])] = list(wanted[n].values())
            np.testing.assert_allclose(dense[row], target, rtol=1e-5)


def dense_targets(data, class_num=20) -> np.ndarray:
    """What the loss sees of every sample."""
    import paddle

    from plsc.targets import Targets

    fetcher = Fetcher(data, [lambda image, rng: np.zeros([1, 1, 3], "uint8")], seed=0, class_num=class_num)
    arrays = {name: np.empty((len(data), *f.shape), f.dtype) for name, f in fetcher.fields().items()}
    for row in range(len(data)):
        fetcher.store(arrays, row, Draw(0, row))
    return Targets.of({name: paddle.to_tensor(a) for name, a in arrays.items()}).to_dense(class_num).numpy()


def test_a_label_named_twice_counts_once(tmp_path):
    """A multi-hot target has no twos."""
    path = write_tar(tmp_path / "a", [("0.jpg", picture(0)), ("0.json", b'{"labels": [3, 5, 3]}')])
    target = np.zeros((1, 20), "float32")
    target[0, [3, 5]] = 1
    assert np.array_equal(dense_targets(WebDataset(path, label_mode="multi_hot")), target)


@pytest.mark.parametrize("mode", ["multi_hot", "soft"])
def test_one_label_at_most_may_be_asked_for(tmp_path, mode):
    """max_labels 1: the most probable one with its weight, or none."""
    entries = [b'{"labels": [3, 5], "label_probs": [0.25, 0.5]}', b'{"labels": [], "label_probs": []}']
    members = [m for n in range(2) for m in ((f"{n}.jpg", picture(n)), (f"{n}.json", entries[n]))]
    path = write_tar(tmp_path / "a", members)
    target = np.zeros((2, 20), "float32")
    target[0, 5] = 0.5 if mode == "soft" else 1.0
    data = WebDataset(path, label_mode=mode, max_labels=1, drop_empty=False)
    assert np.array_equal(dense_targets(data), target)


def test_a_multi_label_list_whose_pictures_have_one_label_each(tmp_path):
    """A list without any comma, read with multi_label."""
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "list.txt").write_text("a.jpg 3\na.jpg 5\n")
    data = ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"), multi_label=True)
    assert dense_targets(data).argmax(axis=1).tolist() == [3, 5]


def test_a_class_that_the_model_does_not_have(tmp_path):
    path = write_shard("TFRecord", tmp_path / "a", range(3), labels=[0, 9, -1])
    data = open_data("TFRecord", path)
    fetcher = Fetcher(data, [lambda image, rng: np.zeros([1, 1, 3], "uint8")], seed=0, class_num=5, damaged="skip")
    arrays = {name: np.empty((1, *f.shape), f.dtype) for name, f in fetcher.fields().items()}
    fetcher.store(arrays, 0, Draw(0, 0))
    for index, wrong in ((1, 9), (2, -1)):
        with pytest.raises(DataError, match=f"{path}.*label is {wrong}, but Model.class_num is 5"):
            fetcher.store(arrays, 0, Draw(0, index))


def test_a_file_of_a_range_that_is_missing_is_reported(tmp_path):
    write_shard("WebDataset", tmp_path / "a-000", range(2))
    write_shard("WebDataset", tmp_path / "a-002", range(2))
    names = sorted(path.name for path in tmp_path.iterdir())
    pattern = str(tmp_path / names[0].replace("000", "{000..002}"))
    with pytest.raises(DataError, match=r"a-001.*: no such file, which .*\{000\.\.002\}.* names"):
        open_data("WebDataset", pattern)


def test_all_damaged_shards_are_named_together(tmp_path):
    paths = [write_shard("WebDataset", tmp_path / f"a-{k:03d}", range(3)) for k in range(12)]
    for k in (2, 7, 9):
        Path(paths[k]).write_bytes(Path(paths[k]).read_bytes()[:700])
    with pytest.raises(DataError) as refused:
        open_data("WebDataset", [str(p) for p in paths])
    message = str(refused.value)
    assert message.startswith("3 shards cannot be used") and all(str(paths[k]) in message for k in (2, 7, 9))


def test_shards_whose_preparation_was_broken_off_are_refused(tmp_path):
    path = write_shard("WebDataset", tmp_path / "a", range(3))
    (tmp_path / "shards.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="not complete; run the same plsc data prepare again"):
        open_data("WebDataset", path)


def test_indexing_records_does_not_read_the_pictures(tmp_path):
    """COYO is some 18 TB: its index is made of the labels alone."""
    large = b"\xff\xd8" + bytes(40_000) + b"\xff\xd9"
    probs = np.array([0.5, 0.25], "float32")
    records = [example({"image": [large], "label": [k, k + 1], "label_probs": probs}) for k in range(12)]
    records += [example({"label": [7], "image": [large]})]
    path = write_records(tmp_path / "a", records)

    def bytes_read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("rchar")))

    before = bytes_read()
    data = TFRecord(path, label_key="label", label_mode="multi_hot")
    assert bytes_read() - before < 0.3 * Path(path).stat().st_size
    assert [data[k].label for k in (0, 11, 12)] == [(0, 1), (11, 12), (7,)]
    assert data[3].image == large


def test_indices_that_nobody_uses_are_removed_once_a_day(cache):
    """Looking at all of them after each of ten thousand would take minutes."""
    cached("old", {}, lambda: {"a": np.arange(3)})
    (folder,) = [path for path in (cache / "index").iterdir() if path.is_dir()]
    long_ago = time.time() - 100 * 24 * 3600
    os.utime(folder, (long_ago, long_ago))
    cached("new", {}, lambda: {"a": np.arange(3)})
    assert folder.is_dir()  # looked at today already
    os.utime(cache / "index" / ".cleaned", (long_ago, long_ago))
    os.utime(folder, (long_ago, long_ago))
    cached("newer", {}, lambda: {"a": np.arange(3)})
    assert not folder.is_dir()
    assert len([path for path in (cache / "index").iterdir() if path.is_dir()]) == 2
