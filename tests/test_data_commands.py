"""`plsc data prepare`, `check` and `show`: shards that lose nothing, reports that miss nothing, true pictures."""

import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plsc import config as configs
from plsc.cli import main
from plsc.data.datasets import Digits, ImageFolder, ImageNetDataset, WebDataset
from plsc.data.datasets.base import Sample
from plsc.data.parallel import each
from plsc.data.transforms.decode import decode
from plsc.datatools import Settings, Source, check, prepare, samples_of
from plsc.datatools.inspection import THRESHOLDS, class_summary, count_above, threshold_table
from plsc.datatools.shards import encode
from plsc.errors import ConfigError, DataError
from plsc.visualize import contact_sheet
from tests.helpers import CHECKOUT, clean_environment, plsc, tiny_digits, write_config

SETTINGS = Settings(short_side=32, quality=85, shard_size=10)
checked = partial(check, workers=0)


def noise(height: int, width: int, seed: int) -> Image.Image:
    """A picture of soft colours, unlike any other."""
    coarse = np.random.default_rng(seed).integers(0, 256, [4, 4, 3], dtype="uint8")
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """36 pictures of 3 classes: large and small JPEGs, PNGs, grey and turned ones."""
    root = tmp_path_factory.mktemp("folder")
    for label, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir()
        for i in range(12):
            size = (48 + 4 * i, 40 + 6 * label) if i % 3 else (20 + label, 24 + i)
            image = noise(*size, seed=100 * label + i)
            if i in (5, 6):
                image = image.convert("L")
            exif = Image.Exif()
            if i == 7:
                exif[0x0112] = 6
            if i % 4 == 3:
                image.save(root / name / f"{i:02d}.png")
            else:
                image.save(root / name / f"{i:02d}.jpg", quality=92, exif=exif)
    return root


def members(output) -> dict[str, bytes]:
    """Every member of every shard."""
    collected = {}
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.name not in collected, "keys are unique"
                collected[member.name] = archive.extractfile(member).read()
    return collected


def shard_bytes(output) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("*.tar"))}


def exit_code(*words) -> int:
    """Of a command in this process, also where argparse refuses it."""
    try:
        return main([str(word) for word in words])
    except SystemExit as error:
        return error.code


def make(folder, output, settings=SETTINGS, **kwargs) -> dict:
    source = Source(ImageFolder(str(folder)), {"root": str(folder)})
    return prepare(source, output, settings, **{"workers": 0, **kwargs})


# -- prepare: content -------------------------------------------------------------------------


def test_every_sample_is_there_once_with_its_label_and_size(folder, tmp_path):
    """Keys are the pictures' numbers; the short side is the wish, or what it was where that is less."""
    data = ImageFolder(str(folder))
    make(folder, tmp_path)
    actual = members(tmp_path)
    assert sorted(actual) == sorted(f"{k:09d}.{e}" for k in range(36) for e in ("cls", "jpg"))
    for k in range(36):
        stored, before = actual[f"{k:09d}.jpg"], decode(data[k].image)
        assert int(actual[f"{k:09d}.cls"]) == data[k].label
        with Image.open(io.BytesIO(stored)) as image:
            assert image.format == "JPEG" and image.mode == "RGB" and "progressive" not in image.info
        height, width = decode(stored).shape[:2]
        assert min(height, width) == min(32, *before.shape[:2])
        factor = min(height, width) / min(before.shape[:2])
        assert max(height, width) == round(factor * max(before.shape[:2]))


def test_small_rgb_jpegs_keep_their_bytes_and_nothing_else_does(folder, tmp_path):
    data = ImageFolder(str(folder))
    make(folder, tmp_path)
    actual = members(tmp_path)
    kept = {k for k in range(36) if actual[f"{k:09d}.jpg"] == data[k].image}
    small = set()
    for k in range(36):
        with Image.open(io.BytesIO(data[k].image)) as image:
            if image.format == "JPEG" and image.mode == "RGB" and min(image.size) <= 32:
                small.add(k)
    assert kept == small and 0 < len(small) < 36


def test_a_resized_png_is_what_pillow_makes_of_it(folder):
    """Byte for byte: bicubic with antialiasing, JPEG of the stated quality, 4:2:0."""
    image = noise(90, 60, seed=4)
    stored = io.BytesIO()
    image.save(stored, "PNG")
    packed = encode(stored.getvalue(), decode(stored.getvalue()), short_side=32, quality=85)
    expected = io.BytesIO()
    image.resize((32, 48), Image.Resampling.BICUBIC).save(
        expected, "JPEG", quality=85, subsampling="4:2:0", progressive=False
    )
    assert packed == expected.getvalue()
    coarser = encode(stored.getvalue(), decode(stored.getvalue()), short_side=32, quality=40)
    assert len(coarser) < len(packed)


def test_the_manifest_tells_the_truth(folder, tmp_path):
    manifest = make(folder, tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    files = shard_bytes(tmp_path)
    assert [shard["file"] for shard in manifest["shards"]] == [f"shard-{n:06d}.tar" for n in range(4)] == list(files)
    for shard in manifest["shards"]:
        assert shard["sha256"] == hashlib.sha256(files[shard["file"]]).hexdigest()
        assert shard["bytes"] == len(files[shard["file"]])
        with tarfile.open(fileobj=io.BytesIO(files[shard["file"]])) as archive:
            assert shard["count"] == len(archive.getnames()) / 2
    assert [shard["count"] for shard in manifest["shards"]] == [10, 10, 10, 6]
    assert manifest["count"] == 36 and manifest["bytes"] == sum(map(len, files.values()))
    assert manifest["class_names"] == ["ant", "bee", "cow"] and manifest["class_counts"] == [12, 12, 12]
    assert manifest["settings"]["short_side"] == 32 and manifest["settings"]["quality"] == 85
    assert manifest["skipped"] == []


def test_tar_headers_carry_neither_time_nor_owner(folder, tmp_path):
    make(folder, tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert archive.format != tarfile.PAX_FORMAT or not archive.pax_headers
    assert (tmp_path / "shard-000000.tar").read_bytes()[257:263] == b"ustar\0"


def test_equal_input_gives_equal_bytes(folder, tmp_path):
    """Whatever the number of processes; another seed gives another order of the same samples."""
    for name, workers in (("a", 0), ("b", 1), ("c", 3)):
        make(folder, tmp_path / name, workers=workers)
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b") == shard_bytes(tmp_path / "c")
    make(folder, tmp_path / "d", Settings(short_side=32, quality=85, shard_size=10, seed=1))
    assert shard_bytes(tmp_path / "a") != shard_bytes(tmp_path / "d")
    assert members(tmp_path / "a") == members(tmp_path / "d")


def test_shards_are_mixed_unless_it_is_declined(folder, tmp_path):
    make(folder, tmp_path / "mixed", Settings(short_side=32, shard_size=18))
    make(folder, tmp_path / "sorted", Settings(short_side=32, shard_size=18, shuffle=False))
    classes = {}
    for name in ("mixed", "sorted"):
        with tarfile.open(tmp_path / name / "shard-000000.tar") as archive:
            labels = [archive.extractfile(m).read() for m in archive if m.name.endswith(".cls")]
            classes[name] = Counter(int(label) for label in labels)
    assert classes["sorted"] == {0: 12, 1: 6}
    assert set(classes["mixed"]) == {0, 1, 2} and min(classes["mixed"].values()) >= 3


def test_what_is_written_is_read_back(folder, tmp_path):
    """By the data set for shards, and by webdataset's convention of keys; prepared again, it is the same."""
    data = ImageFolder(str(folder))
    make(folder, tmp_path / "first")
    shards = WebDataset(str(tmp_path / "first" / "*.tar"))
    assert shards.class_names == data.class_names and len(shards) == 36
    assert shards.shard_sizes.tolist() == [10, 10, 10, 6]
    assert Counter(shards[k].label for k in range(36)) == {0: 12, 1: 12, 2: 12}
    prepare(shards, tmp_path / "again", SETTINGS, workers=0)
    pictures = [
        Counter(content for name, content in members(tmp_path / of).items() if name.endswith("jpg"))
        for of in ("first", "again")
    ]
    assert pictures[0] == pictures[1]


def test_several_labels_become_json(picture_tree, tmp_path):
    data = ImageNetDataset(str(picture_tree), str(picture_tree / "multi_list.txt"), multi_label=True)
    manifest = prepare(data, tmp_path, Settings(short_side=24, shard_size=20), workers=0)
    actual = members(tmp_path)
    assert json.loads(actual["000000047.json"]) == {"labels": [3, 0]} and not any(n.endswith(".cls") for n in actual)
    assert manifest["class_counts"] == [24, 24, 24, 24] and manifest["class_names"] is None
    shards = WebDataset(str(tmp_path / "*.tar"), label_mode="multi_hot")
    read = Counter(shards[k].label for k in range(len(shards)))
    assert read == Counter(data[k].label for k in range(len(data)))


class Listed:
    """A data set of given samples; an exception among them is raised."""

    class_names = None

    def __init__(self, samples, max_labels=1):
        self.samples, self.max_labels = samples, max_labels

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(self.samples[index], BaseException):
            raise self.samples[index]
        return self.samples[index]


def jpeg(seed: int, size=(20, 24)) -> bytes:
    packed = io.BytesIO()
    noise(*size, seed=seed).save(packed, "JPEG")
    return packed.getvalue()


def test_label_weights_are_kept(tmp_path):
    samples = [Sample(jpeg(0), (4, 9), "a", (0.5, 0.125)), Sample(jpeg(1), (2,), "b", (1.0,))]
    prepare(Listed(samples, max_labels=2), tmp_path, SETTINGS, workers=0)
    actual = members(tmp_path)
    assert json.loads(actual["000000000.json"]) == {"labels": [4, 9], "label_probs": [0.5, 0.125]}
    read = WebDataset(str(tmp_path / "*.tar"), label_mode="soft")
    assert {(read[k].label, read[k].weights) for k in range(2)} == {((4, 9), (0.5, 0.125)), ((2,), (1.0,))}


def test_pixels_of_one_channel_become_grey_jpegs(tmp_path):
    data = Digits(split="test")
    prepare(data, tmp_path, Settings(shard_size=500), workers=0)
    actual = members(tmp_path)
    with Image.open(io.BytesIO(actual["000000007.jpg"])) as image:
        assert image.mode == "L" and image.size == (8, 8)
    assert int(actual["000000007.cls"]) == data[7].label
    pixels = np.zeros([8, 8, 2], "uint8")
    with pytest.raises(DataError, match="none of the pictures can be read"):
        prepare(Listed([Sample(pixels, 0, "odd")]), tmp_path / "odd", SETTINGS, workers=0)


def test_what_no_jpeg_can_hold_is_skipped(tmp_path):
    """A side above 65,500 pixels is no reason to stop."""
    wide = np.zeros([4, 70_000, 3], "uint8")
    manifest = prepare(Listed([Sample(wide, 0, "wide"), Sample(jpeg(0), 0, "b")]), tmp_path, SETTINGS, workers=0)
    [entry] = manifest["skipped"]
    assert entry["index"] == 0 and entry["reason"].startswith("wide: 70000x4 pixels cannot be written as JPEG")


def test_a_shard_size_in_megabytes_is_about_kept(tmp_path):
    """Estimated from pictures all over the data set: within a fifth, on pictures of unequal size."""
    data = Listed([Sample(jpeg(k, (24 + k % 9, 200)), 0, f"{k}") for k in range(200)])
    settings = Settings(short_side=64, shard_size=samples_of(data, 0.1, Settings(short_side=64)))
    manifest = prepare(data, tmp_path, settings, workers=0)
    assert len(manifest["shards"]) > 3
    assert all(80_000 < shard["bytes"] < 120_000 for shard in manifest["shards"][:-1])


# -- prepare: damage, restarts ----------------------------------------------------------------


def test_damaged_pictures_are_left_out_and_listed(tmp_path):
    damaged = {3: Sample(b"<html>", 1, "page.jpg"), 5: DataError("lost.jpg: No such file"), 6: OSError("Stale handle")}
    data = Listed([damaged.get(k, Sample(jpeg(k), k % 2, f"{k}.jpg")) for k in range(12)])
    for workers in (0, 2):
        manifest = prepare(data, tmp_path / f"{workers}", SETTINGS, workers=workers)
        assert manifest["count"] == 9 and manifest["class_counts"] == [5, 4]
        assert [entry["index"] for entry in manifest["skipped"]] == [3, 5, 6]
        assert manifest["skipped"][0]["reason"].startswith("page.jpg: not a readable picture")
    assert shard_bytes(tmp_path / "0") == shard_bytes(tmp_path / "2")


def test_a_shard_of_nothing_is_no_file(tmp_path):
    data = Listed([Sample(b"", 0, "x"), Sample(b"", 0, "y"), Sample(jpeg(1), 0, "z")])
    settings = Settings(shard_size=2, shuffle=False)
    manifest = prepare(data, tmp_path, settings, workers=0)
    assert [shard["file"] for shard in manifest["shards"]] == ["shard-000001.tar"] == list(shard_bytes(tmp_path))
    assert prepare(data, tmp_path, settings, workers=0) == manifest


def test_storage_that_is_gone_ends_the_work(tmp_path):
    """A hundred failures in a row are not a hundred damaged pictures."""
    data = Listed([OSError("Input/output error")] * 300)
    with pytest.raises(DataError, match="100 pictures in a row cannot be read; the last: Input/output error"):
        prepare(data, tmp_path, Settings(shard_size=150), workers=1)
    assert shard_bytes(tmp_path) == {} and not list(tmp_path.glob(".writing*"))


def test_many_damaged_pictures_are_no_storage_that_is_gone(tmp_path):
    data = Listed([Sample(jpeg(k) if k % 80 == 79 else b"", 0, f"{k}") for k in range(240)])
    manifest = prepare(data, tmp_path, Settings(shard_size=240, shuffle=False), workers=0)
    assert manifest["count"] == 3 and len(manifest["skipped"]) == 237


def arguments(folder, output, *more) -> list[str]:
    return ["data", "prepare", "--folder", str(folder), "--output", str(output), "--short-side", "32", *more]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """90 pictures that take some milliseconds each."""
    root = tmp_path_factory.mktemp("many")
    (root / "one").mkdir()
    for k in range(90):
        noise(600, 700, seed=k).save(root / "one" / f"{k:03d}.jpg")
    return root


def start(folder, output) -> subprocess.Popen:
    """`plsc data prepare` in a process group of its own, as a terminal starts it, until shards are there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", *arguments(folder, output, "--shard-size", "6", "--workers", "2")],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    journal = output / "shards.jsonl"
    while not (journal.exists() and len(journal.read_bytes().splitlines()) >= 4):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)
    return process


def group_is_gone(group: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_start_is_continued(many, tmp_path, how):
    """kill -9 of the parent, or Ctrl-C to all: finished shards stay as they are, the whole ends as if undisturbed."""
    process = start(many, tmp_path / "out")
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
        _, output = process.communicate(timeout=30)
        assert process.returncode == 130 and output == b"interrupted\n"
        assert not list((tmp_path / "out").glob(".writing*"))
    else:
        process.kill()
        process.wait()
    assert group_is_gone(process.pid), "no worker outlives it"
    assert not (tmp_path / "out" / "manifest.json").exists()
    records = [json.loads(line) for line in (tmp_path / "out" / "shards.jsonl").read_text().splitlines()[1:]]
    done = {record["file"]: (tmp_path / "out" / record["file"]).stat().st_mtime_ns for record in records}
    assert 3 <= len(done) < 15
    plsc(*arguments(many, tmp_path / "out", "--shard-size", "6"))
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == changed for name, changed in done.items())
    whole = make(many, tmp_path / "whole", Settings(short_side=32, shard_size=6))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["shards"] == whole["shards"] and manifest["class_counts"] == [90]


def test_another_run_of_a_finished_one_changes_nothing(folder, tmp_path):
    first = make(folder, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    counts = []
    assert make(folder, tmp_path, progress=counts.append) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == times
    assert sum(counts) == 36


def test_a_lost_or_cut_shard_is_written_again(folder, tmp_path):
    make(folder, tmp_path)
    before = shard_bytes(tmp_path)
    (tmp_path / "shard-000001.tar").unlink()
    cut = tmp_path / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    (tmp_path / ".writing-shard-000001.tar").write_bytes(b"left by a kill")
    journal = tmp_path / "shards.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": 9, "fi')
    make(folder, tmp_path)
    assert shard_bytes(tmp_path) == before and not list(tmp_path.glob(".writing*"))
    make(folder, tmp_path)


def test_classes_of_a_shard_that_was_lost_and_written_again_count_once(tmp_path):
    """By the last of its lines, in this start and in the next, also where the picture changed meanwhile."""
    data = Listed([Sample(jpeg(k), k % 3, f"{k}") for k in range(20)])
    settings = Settings(short_side=32, shard_size=10, shuffle=False)
    assert prepare(data, tmp_path, settings, workers=0)["class_counts"] == [7, 7, 6]
    data.samples[2] = data.samples[2]._replace(label=0)
    (tmp_path / "shard-000000.tar").unlink()
    for _ in range(2):
        assert prepare(data, tmp_path, settings, workers=0)["class_counts"] == [8, 7, 5]
    assert len((tmp_path / "shards.jsonl").read_text().splitlines()) == 1 + 2 + 1


def test_a_journal_of_many_classes_is_not_kept_in_memory(tmp_path):
    """300 finished shards of 3000 classes each: 30 MB of text, much more as dictionaries."""
    data = Listed(range(300))
    begun = {"settings": dataclasses.asdict(Settings(shard_size=1)), "source": {"samples": 300}}
    counts = {str(label): 2 for label in range(3000)}
    with open(tmp_path / "shards.jsonl", "w") as file:
        file.write(json.dumps(begun) + "\n")
        for k in range(300):
            name = f"shard-{k:06d}.tar"
            (tmp_path / name).touch()
            record = {
                "shard": k,
                "file": name,
                "bytes": 0,
                "sha256": "",
                "count": 1,
                "class_counts": counts,
                "skipped": [],
            }
            file.write(json.dumps(record) + "\n")
    tracemalloc.start()
    try:
        manifest = prepare(Source(data), tmp_path, Settings(shard_size=1), workers=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert manifest["class_counts"] == [600] * 3000 and manifest["count"] == 300
    assert peak < 4e6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quality": 80}, "quality 85, now 80"),
        ({"short_side": 48}, "short_side 32, now 48"),
        ({"shard_size": 5}, "shard_size 10, now 5"),
        ({"seed": 3}, "seed 0, now 3"),
        ({"shuffle": False}, "shuffle True, now False"),
        ({"name": "train"}, "name 'shard', now 'train'"),
    ],
)
def test_a_restart_with_other_settings_is_refused(folder, tmp_path, changed, message):
    make(folder, tmp_path)
    before = shard_bytes(tmp_path)
    with pytest.raises(DataError, match=f"was begun with {message}. .*another folder"):
        make(folder, tmp_path, Settings(**{**dict(short_side=32, quality=85, shard_size=10), **changed}))
    assert shard_bytes(tmp_path) == before


def test_another_data_set_is_refused(folder, many, tmp_path):
    make(folder, tmp_path)
    with pytest.raises(DataError, match=r"root '.*', now '.*samples 36, now 90"):
        make(many, tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "train-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000000.tar: is not of this data set"):
        make(folder, tmp_path / "foreign")


def test_a_list_of_another_delimiter_is_prepared_and_the_delimiter_belongs_to_the_source(tmp_path, capsys):
    """Paths with spaces; a restart with another delimiter is refused, an empty one too."""
    (tmp_path / "my pictures").mkdir()
    for k in range(3):
        (tmp_path / "my pictures" / f"{k}.jpg").write_bytes(jpeg(k))
    (tmp_path / "list.txt").write_text("".join(f"my pictures/{k}.jpg\t{k}\n" for k in range(3)))
    given = [
        "data",
        "prepare",
        "--list",
        str(tmp_path / "list.txt"),
        "--output",
        str(tmp_path / "out"),
        "--workers",
        "0",
    ]
    assert main([*given, "--delimiter", "\t"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["class_counts"] == [1, 1, 1] and manifest["source"]["delimiter"] == "\t"
    (tmp_path / "list.txt").write_text("".join(f"my pictures/{k}.jpg {k}\n" for k in range(3)))
    capsys.readouterr()
    assert main(given) == 2
    assert r"delimiter '\t', now ' '" in capsys.readouterr().err
    assert main([*given, "--delimiter", ""]) == 2
    assert "delimiter: got ''" in capsys.readouterr().err


def test_two_at_once_in_one_folder_are_refused(folder, tmp_path):
    with open(tmp_path / "shards.jsonl", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another preparation is at work there"):
            make(folder, tmp_path)


def test_a_full_disk_keeps_what_is_done(folder, tmp_path):
    """The system refuses to write more than 16 KB a file: one message, no half shard."""
    command = " ".join([sys.executable, "-m", "plsc", *arguments(folder, tmp_path, "--shard-size", "30")])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 16; {command}"],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "File too large; the shards done are kept" in done.stderr, done.stderr
    assert not list(tmp_path.glob("*.tar*")) and not (tmp_path / "manifest.json").exists()


def test_the_command_line_of_prepare(folder, tmp_path):
    """Exit code 1 where pictures are left out, with their names; 2 for what the user can correct."""
    (tmp_path / "data" / "ant").mkdir(parents=True)
    for k in range(4):
        (tmp_path / "data" / "ant" / f"{k}.jpg").write_bytes(jpeg(k))
    (tmp_path / "data" / "ant" / "4.jpg").write_bytes(b"<html>")
    done = plsc(*arguments(tmp_path / "data", tmp_path / "out", "--workers", "1"), check=False)
    assert done.returncode == 1
    assert f"damaged: {tmp_path}/data/ant/4.jpg: not a readable picture" in done.stdout
    assert "4 samples in 1 shard, " in done.stdout and "1 damaged picture left out" in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--output", "o"], "one of -c RECIPE, --folder DIR and --list FILE"),
        (["--folder", "a", "--list", "b", "--output", "o"], "one of -c RECIPE"),
        (["--folder", "nowhere", "--output", "o"], "nowhere: no such folder"),
        (
            ["--folder", "FOLDER", "--output", "o", "--quality", "0"],
            "--quality: '0' is not a whole number from 1 to 100",
        ),
        (["--folder", "FOLDER", "--output", "o", "--short-side", "0"], "--short-side: '0'"),
        (["--folder", "FOLDER", "--output", "o", "--shard-size", "0"], "--shard-size: '0'"),
        (
            ["--folder", "FOLDER", "--output", "o", "--shard-size", "ten"],
            "--shard-size: 'ten' is not a number of samples",
        ),
        (["--folder", "FOLDER", "--output", "o", "--shard-size", "0MB"], "--shard-size: '0MB'"),
        (["--folder", "FOLDER", "--output", "o", "--shard-size", "nanMB"], "--shard-size: 'nanMB'"),
        (["--folder", "FOLDER", "--output", "o", "--name", "a b"], "name: got 'a b'"),
        (["--folder", "FOLDER", "--output", "o", "--seed", "-1"], "--seed"),
        (["--folder", "FOLDER", "--output", "o", "--workers", "-1"], "--workers"),
        (["--folder", "FOLDER", "--output", "FOLDER/ant/01.jpg"], "01.jpg"),
    ],
)
def test_wrong_arguments_are_named(folder, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    assert exit_code("data", "prepare", *(part.replace("FOLDER", str(folder)) for part in given)) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


# -- processes --------------------------------------------------------------------------------


def killed_at(task, tick):
    if task == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def faulty_at(task, tick):
    if task == 5:
        raise KeyError("a fault of the code")
    return task


def test_a_killed_process_is_reported():
    with pytest.raises(DataError, match="a process was killed"):
        list(each(killed_at, range(50), workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_code_comes_through(workers):
    with pytest.raises(KeyError, match="a fault of the code"):
        list(each(faulty_at, range(50), workers=workers))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_task_is_done_and_counted_once(workers):
    def count(task, tick):
        for _ in range(task):
            tick()
        return task

    counts = []
    assert sorted(each(count, range(20), workers=workers, progress=counts.append)) == list(range(20))
    assert sum(counts) == sum(range(20))


def test_an_abandoned_iteration_ends_its_processes():
    def slow(task, tick):
        for _ in range(10_000):
            time.sleep(0.01)
            tick()

    pids = each(lambda task, tick: os.getpid() if task < 1 else slow(task, tick), range(4), workers=2)
    pid = next(pids)
    started = time.monotonic()
    pids.close()
    assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- check ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    """Three classes of 6, 3 and 1 readable pictures, damaged ones, duplicates and odd kinds."""
    root = tmp_path_factory.mktemp("flawed")
    for name in ("ant", "bee", "cow"):
        (root / name).mkdir()
    for k in range(5):
        noise(30 + k, 50, seed=k).save(root / "ant" / f"{k}.jpg")
    (root / "ant" / "again.jpg").write_bytes((root / "ant" / "2.jpg").read_bytes())
    (root / "bee" / "same.jpg").write_bytes((root / "ant" / "0.jpg").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 3
    noise(20, 20, seed=8).save(root / "bee" / "turned.jpg", exif=exif)
    noise(21, 20, seed=9).convert("CMYK").save(root / "bee" / "cmyk.jpg")
    noise(100, 10, seed=10).quantize(8).save(root / "cow" / "palette.jpg", "PNG", transparency=0)
    (root / "cow" / "empty.jpg").write_bytes(b"")
    (root / "cow" / "half.jpg").write_bytes((root / "ant" / "3.jpg").read_bytes()[:400])
    return root


def test_a_flawed_folder_is_reported_completely(flawed):
    report = checked(ImageFolder(str(flawed)))
    assert report["samples"] == 12 and report["readable"] == 10
    assert report["damaged"]["count"] == 2
    reasons = [entry["reason"] for entry in report["damaged"]["examples"]]
    assert [reason.split(": ")[0] for reason in reasons] == [str(flawed / "cow" / n) for n in ("empty.jpg", "half.jpg")]
    groups = [({os.path.relpath(p, flawed) for p in g["pictures"]}, g["across_classes"]) for g in report["duplicates"]]
    assert groups == [({"ant/0.jpg", "bee/same.jpg"}, True), ({"ant/2.jpg", "ant/again.jpg"}, False)]
    classes = report["classes"]
    assert classes["counts"] == [6, 3, 1] and (classes["largest"], classes["smallest"]) == (0, 2)
    assert classes["ratio"] == 6.0 and classes["empty"] == [] and classes["names"] == ["ant", "bee", "cow"]
    heights = [30, 31, 32, 33, 34, 32, 30, 20, 21, 100]
    widths = [50] * 7 + [20, 20, 10]
    short = [min(pair) for pair in zip(heights, widths, strict=True)]
    for name, sides in (("height", heights), ("width", widths), ("short_side", short)):
        assert report["sizes"][name] == {"min": min(sides), "median": np.median(sides), "max": max(sides)}
    assert report["kinds"] == {"JPEG RGB": 8, "JPEG CMYK": 1, "PNG P": 1}
    oddities = {what: [os.path.relpath(p, flawed) for p in o["examples"]] for what, o in report["oddities"].items()}
    assert oddities == {
        "turned, by its EXIF orientation": ["bee/turned.jpg"],
        "CMYK, converted to RGB": ["bee/cmyk.jpg"],
        "transparent, the alpha channel is dropped": ["cow/palette.jpg"],
        "PNG by content, .jpg by name": ["cow/palette.jpg"],
    }
    assert report["labels_out_of_range"] == {"count": 0, "examples": []} and report["thresholds"] is None


def test_digits_are_named_without_being_read():
    data = Digits(split="test")
    assert data.name(7) == data[7].name == "digits test 7"


def test_the_report_does_not_depend_on_processes(flawed, monkeypatch):
    """Nor on how the work is cut."""
    data = ImageFolder(str(flawed))
    whole = checked(data)
    monkeypatch.setattr("plsc.datatools.inspection._CHUNK", 2)
    counts = []
    assert checked(data, workers=2, progress=counts.append) == whole == checked(data, workers=0)
    assert sum(counts) == 12


def test_animations_and_deep_pictures_are_noted(tmp_path):
    pictures = [noise(20, 20, seed=k).quantize(8) for k in range(2)]
    moving, deep = io.BytesIO(), io.BytesIO()
    pictures[0].save(moving, "GIF", save_all=True, append_images=pictures[1:])
    Image.fromarray(np.arange(400, dtype="uint16").reshape(20, 20)).save(deep, "PNG")
    report = checked(Listed([Sample(moving.getvalue(), 0, "a.gif"), Sample(deep.getvalue(), 0, "b.png")]))
    assert report["oddities"]["animated, the first frame is taken"]["examples"] == ["a.gif"]
    assert report["oddities"]["more than 8 bits a channel, scaled to 8"]["examples"] == ["b.png"]


def test_pixels_are_checked_too():
    report = checked(Digits(split="test"))
    assert report["kinds"] == {"pixels of 1 channels": 360} and report["damaged"]["count"] == 0
    assert report["sizes"]["width"] == {"min": 8, "median": 8.0, "max": 8} and sum(report["classes"]["counts"]) == 360
    same = np.zeros([4, 4, 1], "uint8")
    samples = [Sample(same, 0, "a"), Sample(same.reshape(2, 8, 1), 0, "b"), Sample(same.copy(), 1, "c")]
    [group] = checked(Listed(samples))["duplicates"]
    assert group == {"pictures": ["a", "c"], "across_classes": True}


def test_labels_out_of_range_are_named():
    samples = [Sample(jpeg(k), label, f"{k}") for k, label in enumerate((0, 4, 2, -1, 1))]
    report = checked(Listed(samples), class_num=4)
    outside = report["labels_out_of_range"]
    assert outside["count"] == 2 and [(f["index"], f["label"]) for f in outside["examples"]] == [(1, 4), (3, -1)]
    assert report["classes"]["counts"] == [1, 1, 1, 0] and report["classes"]["empty"] == [3]
    assert checked(Listed(samples[:3]))["labels_out_of_range"]["count"] == 0
    several = [Sample(jpeg(0), (0, 7), "a"), Sample(jpeg(1), (1,), "b")]
    outside = checked(Listed(several, 2), class_num=3)["labels_out_of_range"]
    assert outside["examples"] == [{"index": 0, "name": "a", "label": 7}]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_often_wrong_is_counted_and_its_first_named(monkeypatch, workers):
    """The first by their place in the data set, whatever process finds them first, and no more are kept."""
    monkeypatch.setattr("plsc.datatools.inspection._CHUNK", 7)
    monkeypatch.setattr("plsc.datatools.inspection._MOST_DAMAGED", 12)
    pixels = np.zeros([2, 2, 1], "uint8")
    samples = [Sample(pixels, 5, f"{k}") if k % 2 else DataError(f"{k}: gone") for k in range(200)]
    report = checked(Listed(samples), class_num=3, workers=workers)
    assert report["damaged"]["count"] == 100 and report["labels_out_of_range"]["count"] == 100
    assert [entry["index"] for entry in report["damaged"]["examples"]] == list(range(0, 24, 2))
    assert [entry["index"] for entry in report["labels_out_of_range"]["examples"]] == list(range(1, 21, 2))


def test_the_command_line_says_that_not_all_damaged_pictures_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("plsc.datatools.inspection._MOST_DAMAGED", 25)
    (tmp_path / "ant").mkdir()
    for k in range(30):
        (tmp_path / "ant" / f"{k:02d}.jpg").write_bytes(b"")
    report = tmp_path / "report.json"
    assert main(["data", "check", "--folder", str(tmp_path), "--workers", "0", "--output", str(report)]) == 1
    out = capsys.readouterr().out
    assert out.count("damaged: ") == 20 and "… and 10 more" in out and "the report lists the first 25" in out
    damaged = json.loads(report.read_text())["damaged"]
    assert damaged["count"] == 30 and len(damaged["examples"]) == 25


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), max_size=30))
def test_duplicates_are_those_that_a_dictionary_finds(drawn):
    """Groups in the order of their first pictures, each in the order of the data set; what is damaged is in none."""
    samples = [Sample(np.full([1, 1, 1], k, "uint8"), label, f"{i}") for i, (k, label) in enumerate(drawn)]
    samples = [DataError("gone") if sample.image[0, 0, 0] == 0 else sample for sample in samples]
    expected = {}
    for i, (k, label) in enumerate(drawn):
        if k:
            expected.setdefault(k, []).append((f"{i}", label))
    expected = [
        {"pictures": [name for name, _ in group], "across_classes": len({label for _, label in group}) > 1}
        for group in expected.values()
        if len(group) > 1
    ]
    assert checked(Listed(samples))["duplicates"] == expected


class Numbered:
    """Pixels that say their number, all different, made when asked for."""

    class_names, max_labels = None, 1

    def __len__(self):
        return 60_000

    def __getitem__(self, index):
        return Sample(np.array([index], "int64").view("uint8").reshape(1, 8, 1), 0, "")


def test_checking_keeps_little_of_each_sample():
    """36 bytes are kept of each, and sorting them takes some times that; an object each would take more."""
    tracemalloc.start()
    try:
        report = checked(Numbered())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report["duplicates"] == [] and report["readable"] == 60_000
    assert peak < 60_000 * 150


@given(counts=st.dictionaries(st.integers(0, 12), st.integers(1, 1000)), classes=st.none() | st.integers(1, 15))
def test_class_summary_matches_a_count_by_hand(counts, classes):
    summary = class_summary(counts, None, classes)
    number = len(summary["counts"])
    assert {label: n for label, n in enumerate(summary["counts"]) if n} == counts
    assert number == max([classes or 0, *(label + 1 for label in counts)])
    assert summary["empty"] == [label for label in range(number) if label not in counts]
    if counts:
        assert counts[summary["smallest"]] == min(counts.values())
        assert counts[summary["largest"]] == max(counts.values())
        assert summary["ratio"] == max(counts.values()) / min(counts.values())
    else:
        assert summary["ratio"] is summary["smallest"] is summary["largest"] is None


def test_the_threshold_table_by_hand():
    """Four pictures: at 0.10 three keep a label, five labels in all."""
    weights = [(0.9, 0.1, 0.05), (0.2, 0.19), (0.10,), (0.04, 0.01)]
    table = threshold_table(count_above(weights, THRESHOLDS), pictures=4)
    assert [row["threshold"] for row in table] == [0.05, 0.10, 0.20, 0.25]
    assert [row["kept"] for row in table] == [0.75, 0.75, 0.5, 0.25]
    assert [row["labels_per_kept"] for row in table] == [2.0, 5 / 3, 1.0, 1.0]
    assert threshold_table(np.zeros([4, 2]), pictures=0) is None
    assert threshold_table(np.zeros([4, 2], "int64"), pictures=3)[0] == {
        "threshold": 0.05,
        "labels_per_kept": 0.0,
        "kept": 0.0,
    }


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5).map(tuple), min_size=1, max_size=20))
def test_counts_above_thresholds_match_numpy_and_add_up(weights):
    above = np.array(weights)[None] >= np.array(THRESHOLDS)[:, None, None]
    expected = np.stack([above.any(axis=2).sum(axis=1), above.sum(axis=(1, 2))], axis=1)
    assert np.array_equal(count_above(weights, THRESHOLDS), expected)
    half = len(weights) // 2
    parts = count_above(weights[:half], THRESHOLDS) + count_above(weights[half:], THRESHOLDS)
    assert np.array_equal(parts, expected)


def test_weighted_labels_are_tabled_over_chunks(monkeypatch):
    monkeypatch.setattr("plsc.datatools.inspection._CHUNK", 2)
    samples = [Sample(jpeg(k), (0, 1), f"{k}", (0.3, 0.06 * k)) for k in range(5)]
    table = checked(Listed(samples, 2), workers=2)["thresholds"]
    assert [row["kept"] for row in table] == [1.0, 1.0, 1.0, 1.0]
    assert [row["labels_per_kept"] for row in table] == [(5 + n) / 5 for n in (4, 3, 1, 0)]


def test_the_command_line_of_check(flawed, folder, tmp_path):
    """0 for a whole folder, 1 for a flawed one with every finding in words, the rest in the JSON."""
    done = plsc("data", "check", "--folder", flawed, "--output", tmp_path / "deep" / "report.json", check=False)
    assert done.returncode == 1
    for text in (
        "12 samples, 10 of them readable",
        "the smallest is cow with 1, the largest ant with 6, 6.0 times as many",
        f"damaged: {flawed}/cow/empty.jpg: the file is empty",
        "there more than once: 2 pictures, with 2 copies; 1 of them with different labels",
        f"different labels: {flawed}/ant/0.jpg = {flawed}/bee/same.jpg",
        f"1 x CMYK, converted to RGB: {flawed}/bee/cmyk.jpg",
    ):
        assert text in done.stdout, done.stdout
    report = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert report["source"] == {"dataset": "ImageFolder", "root": str(flawed)} and report["samples"] == 12
    assert plsc("data", "check", "--folder", folder).returncode == 0


def test_names_that_are_no_text_are_reported(tmp_path, capsys):
    """Bytes of an old file system in a picture's and a folder's name; an --output that cannot be written."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    (place / os.fsdecode(b"\xff.jpg")).write_bytes(b"<html>")
    for name in ("a.jpg", os.fsdecode(b"\xfe.jpg")):
        (place / name).write_bytes(jpeg(1))
    given = ["data", "check", "--folder", str(tmp_path), "--workers", "0"]
    assert main([*given, "--output", str(tmp_path / "report.json")]) == 1
    out = capsys.readouterr().out
    assert r"damaged: " in out and r"caf\udce9/\udcff.jpg" in out and r"\udcfe.jpg" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["duplicates"][0]["pictures"] == [str(place / name) for name in ("a.jpg", os.fsdecode(b"\xfe.jpg"))]
    shards = ["data", "prepare", "--folder", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert main(shards) == 1
    capsys.readouterr()
    for wrong, message in (("out", "is written as .json"), ("report.json/r.json", "report.json is not a folder")):
        assert main([*given, "--output", str(tmp_path / wrong)]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.out == "", "told before a picture is read"


def test_a_list_and_a_recipe_are_checked(picture_tree, tmp_path, process_state, capsys):
    """--list with several labels a line; a recipe whose class_num is too small; a slice of it."""
    listed = ["--list", str(picture_tree / "multi_list.txt"), "--multi-label"]
    assert main(["data", "check", *listed, "--workers", "0"]) == 0
    assert "4 classes, none with more pictures than 24" in capsys.readouterr().out
    tree = tiny_digits()
    recipe = str(write_config(tmp_path / "recipe.yaml", tree))
    assert main(["data", "check", "-c", recipe, "--mode", "Eval", "--workers", "0"]) == 0
    assert "360 samples, 360 of them readable" in capsys.readouterr().out
    small = ["-o", "Model.class_num=9", "-o", "DataLoader.Train.dataset.slice=[:100]"]
    assert main(["data", "check", "-c", recipe, *small, "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert "100 samples" in out and "label out of range: digits train" in out
    del tree["DataLoader"]["Eval"]
    recipe = str(write_config(tmp_path / "recipe.yaml", tree))
    assert main(["data", "check", "-c", recipe, "--mode", "Eval"]) == 2
    assert "DataLoader.Eval is missing" in capsys.readouterr().err


def test_a_recipe_is_prepared(tmp_path, process_state):
    recipe = str(write_config(tmp_path / "recipe.yaml", tiny_digits()))
    given = ["-c", recipe, "--mode", "Eval", "-o", "DataLoader.Eval.dataset.slice='[-50:]'"]
    assert main(["data", "prepare", *given, "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["count"] == 50 and manifest["source"]["slice"] == "[-50:]" and manifest["source"]["samples"] == 50


# -- show -------------------------------------------------------------------------------------


def shown(monkeypatch, tmp_path, tree, mode="Train", **how) -> list[list[tuple[np.ndarray, str]]]:
    """The rows of (picture, caption) that a contact sheet is drawn from."""
    seen = []
    monkeypatch.setattr(contact_sheet, "draw_sheet", lambda cells, output, title: seen.extend(cells))
    config = configs.load(str(write_config(tmp_path / "recipe.yaml", tree)))
    contact_sheet.draw_contact_sheet(config, mode, tmp_path / "sheet.png", **how)
    return seen


def plain_digits() -> dict:
    """tiny_digits without augmentation."""
    tree = tiny_digits()
    tree["DataLoader"]["Train"]["dataset"]["transform_ops"].pop(0)
    return tree


def test_the_sheet_shows_the_pixels_of_the_trainers_order(monkeypatch, tmp_path, process_state):
    """Normalised and back again, nothing is lost; rows are the first samples of the run's order."""
    rows = shown(monkeypatch, tmp_path, plain_digits(), count=12, copies=1)
    assert [len(row) for row in rows] == [4, 4, 4]
    data = Digits()
    order = np.arange(len(data))
    np.random.Generator(np.random.Philox(key=[7, 0])).shuffle(order)  # Global.seed is 7
    for k, (picture, text) in enumerate(itertools.chain(*rows)):
        sample = data[int(order[k])]
        assert np.array_equal(picture, sample.image) and text == str(sample.label)


@pytest.mark.parametrize(("count", "across"), [(1, 1), (3, 3), (7, 4), (10, 5), (12, 4), (16, 4), (30, 6), (32, 8)])
def test_a_sheet_is_somewhat_wider_than_high_with_few_empty_places(count, across):
    assert contact_sheet.columns(count) == across


def test_mixed_pictures_are_what_their_captions_say(monkeypatch, tmp_path, process_state):
    """Each is share x itself + (1 - share) x a picture of its row, with the classes and shares of the caption."""
    plain = shown(monkeypatch, tmp_path, plain_digits(), count=16, copies=1)
    tree = plain_digits()
    tree["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = [{"Mixup": {"alpha": 1.0, "prob": 1.0}}]
    mixed = shown(monkeypatch, tmp_path, tree, count=16, copies=1)
    shares = set()
    for before, after in zip(plain, mixed, strict=True):
        for k, (picture, text) in enumerate(after):
            fits = []
            for other, label in before:
                for share in (float(part.split()[0]) for part in text.split(" + ")):
                    both = share * before[k][0].astype(float) + (1 - share) * other
                    named = {before[k][1], label} if 0.02 <= share <= 0.98 else {before[k][1]}
                    # the caption's share has two digits
                    if np.abs(both - picture).max() <= 3 and {part.split()[-1] for part in text.split(" + ")} == named:
                        fits.append(share)
            assert fits or text == before[k][1], text
            shares |= set(fits)
    assert len(shares - {1.0}) >= 2, "nothing was mixed, or every row alike"


def test_copies_are_the_same_pictures_in_other_epochs(monkeypatch, tmp_path, process_state):
    tree = tiny_digits()
    tree["DataLoader"]["Train"]["dataset"]["transform_ops"][0] = {"RandShift": {"pixels": 3}}
    rows = shown(monkeypatch, tmp_path, tree, count=20, copies=4)
    assert [len(row) for row in rows] == [4] * 5
    for row in rows:
        assert len({text for _, text in row}) == 1
        assert len({picture.tobytes() for picture, _ in row}) > 1
        bags = {tuple(sorted(picture.ravel())) for picture, _ in row}
        assert len(bags) < 5  # shifted, not another digit


def test_evaluation_is_shown_from_all_over_the_data_set(monkeypatch, tmp_path, process_state):
    rows = shown(monkeypatch, tmp_path, plain_digits(), mode="Eval", count=3, copies=1)
    data = Digits(split="test")
    assert [text for _, text in rows[0]] == [str(data[k].label) for k in (0, 179, 359)]
    assert all(np.array_equal(rows[0][i][0], data[k].image) for i, k in enumerate((0, 179, 359)))


@pytest.mark.parametrize("to_rgb", [True, False])
def test_colours_are_shown_as_they_are(monkeypatch, tmp_path, process_state, to_rgb):
    """Three means and deviations, RGB or BGR to the model: the sheet shows the picture."""
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    image = noise(8, 8, seed=5)
    image.save(tmp_path / "pictures" / "a" / "one.png")
    tree = plain_digits()
    tree["Model"] |= {"in_chans": 3, "class_num": 1}
    normalize = {"NormalizeImage": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    tree["DataLoader"]["Eval"]["dataset"] = {
        "name": "ImageFolder",
        "root": str(tmp_path / "pictures"),
        "transform_ops": [{"DecodeImage": {"to_rgb": to_rgb}}, normalize],
    }
    [[(picture, text)]] = shown(monkeypatch, tmp_path, tree, mode="Eval", count=1, copies=1)
    assert np.array_equal(picture, np.asarray(image)) and text == "a"


@pytest.mark.parametrize(
    ("target", "names", "message"),
    [
        ([0.0, 1.0, 0.0], ["ant", "bee", "cow"], "bee"),
        ([1.0, 0.0, 1.0], ["ant", "bee", "cow"], "ant, cow"),
        ([0.3, 0.0, 0.7], ["ant", "bee", "cow"], "0.70 cow + 0.30 ant"),
        ([0.005, 0.99, 0.005], ["ant", "bee", "cow"], "0.99 bee"),
        ([0.0, 0.0, 0.0], ["ant", "bee", "cow"], "no label"),
        ([0.0, 1.0], None, "class 1"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], list("abcde"), "a, b, c and 2 more"),
        ([0.2, 0.2, 0.2, 0.2, 0.2], list("abcde"), "0.20 a + 0.20 b + 0.20 c and 2 more"),
    ],
)
def test_captions(target, names, message):
    assert contact_sheet.caption(np.array(target, "float32"), names) == message


def test_the_command_line_of_show(tmp_path, process_state, capsys):
    recipe = str(write_config(tmp_path / "recipe.yaml", tiny_digits()))
    output = str(tmp_path / "new" / "sheet.png")
    assert main(["data", "show", "-c", recipe, "--count", "12", "--output", output]) == 0
    assert f"written to {output}" in capsys.readouterr().out
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 700 and sheet.height > 600
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 10
    for wrong, stated in (
        (["--count", "0"], "--count: '0'"),
        (["--copies", "0"], "--copies: '0'"),
        (["--count", "2000"], "--count"),
        (["--output", "sheet.jpg"], "sheet.jpg"),
    ):
        assert exit_code("data", "show", "-c", recipe, *wrong) == 2
        assert stated in capsys.readouterr().err


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="quality: got 101"):
        Settings(quality=101)
