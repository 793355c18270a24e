"""Checkpoints that are not what was written: each kind of damage is named, and what can go on does."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

import plsc
from plsc import checksums, files, places
from plsc.config import load
from plsc.engine import assembly, checkpoint, run_directory
from plsc.engine.assembly import assemble
from plsc.engine.callbacks import Callbacks
from plsc.engine.checkpoint import Checkpoints, Description
from plsc.engine.distributed import World
from plsc.engine.loggers import MetricsFile
from plsc.engine.state import Best
from plsc.errors import CheckpointError
from plsc.weights.containers import save_safetensors
from tests.helpers import Part, log_texts, summed_anew, tiny_digits, write_config


def save(checkpoints: Checkpoints, step: int) -> None:
    parts = {name: Part(w=np.full([5000], step, "float32")) for name in ("model", "optimizer")}
    progress = Part(step=step, seed=7, global_batch=32, steps_per_epoch=45)
    checkpoints.save(step, {**parts, "progress": progress}, Description(texts={"config.yaml": f"step: {step}\n"}))


@pytest.fixture
def checkpoints(tmp_path):
    """Of steps 1, 2 and 3, all kept."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=-1)
    for step in (1, 2, 3):
        save(checkpoints, step)
    checkpoints.point("best", 2, {"metric": "top1", "value": 0.5, "step": 2, "weights": "raw"})
    return checkpoints


def flip(path, name="model.safetensors"):
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 4
    (path / name).write_bytes(content)


def zero_a_block(path, name="optimizer.safetensors"):
    with open(path / name, "r+b") as file:
        file.seek(8192)
        file.write(bytes(4096))


def swap(path, name="model.safetensors"):
    """For the file of the step before, of the same length."""
    shutil.copy(path.parent / "step-00000002" / name, path / name)


def link_in_a_circle(path, name="trainer.json"):
    (path / name).unlink()
    (path / name).symlink_to(name)


def rename(path):
    shutil.rmtree(path)
    shutil.copytree(path.parent / "step-00000002", path)


DAMAGE = {
    "flip": (flip, "model.safetensors has CRC-32"),
    "block": (zero_a_block, "optimizer.safetensors has CRC-32"),
    "swapped": (swap, "model.safetensors has CRC-32"),
    "recipe": (lambda path: (path / "config.yaml").write_text("step: 4\n"), "config.yaml has CRC-32"),
    "cut": (lambda path: os.truncate(path / "optimizer.safetensors", 999), "optimizer.safetensors has 999 bytes, not"),
    "gone": (lambda path: (path / "config.yaml").unlink(), "config.yaml is missing"),
    "no sums": (lambda path: (path / "checksums.json").unlink(), "checksums.json is missing"),
    "sums cut": (lambda path: os.truncate(path / "checksums.json", 20), "checksums.json: damaged"),
    "sums bytes": (lambda path: (path / "checksums.json").write_bytes(b"\xff{"), "checksums.json: damaged"),
    "sums keys": (lambda path: (path / "checksums.json").write_text("{}"), "step: Field required; files: Field"),
    "sums type": (lambda path: (path / "checksums.json").write_text('{"step": 3, "files": []}'), "files: Input"),
    "trainer bytes": (lambda path: (path / "trainer.json").write_bytes(b"\xff\xfe"), "trainer.json has 2 bytes"),
    "circle": (link_in_a_circle, "trainer.json: is a link that leads nowhere or in a circle"),
    "renamed": (rename, "its name is of step 3, but its checksums.json says step 2"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_auto_goes_back(checkpoints, damage, caplog):
    """An explicit checkpoint is an error; resume=auto takes the one before, and logs what it skipped."""
    cause, message = DAMAGE[damage]
    path = checkpoints.find("step-00000003")
    cause(path)
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert str(error.value).count("step-00000003:") <= 1, "one message"
    tree = tiny_digits()
    tree["Global"]["output_dir"] = str(checkpoints.folder.parent)
    config = load(str(write_config(checkpoints.folder.parent / "c.yaml", tree)))
    for resume in ("latest", "step-00000003"):
        with pytest.raises(CheckpointError, match="step-00000003"):
            run_directory.starting_checkpoint(config.replace({"Global.resume": resume}))
    with caplog.at_level(logging.ERROR, "plsc"):
        saved = run_directory.starting_checkpoint(config.replace({"Global.resume": "auto"}))
    assert saved.path.name == "step-00000002" and saved.parts["model"]["w"][0] == 2
    assert "SKIPPED" in caplog.text and message in caplog.text and "goes back to step-00000002" in caplog.text


def test_what_no_checksum_is_compared_with_passes_without_verifying(checkpoints):
    path = checkpoints.find("step-00000003")
    flip(path)
    assert checkpoint.read(path, verify=False).parts["progress"]["step"] == 3
    (path / "checksums.json").unlink()
    assert checkpoint.read(path, verify=False).parts["progress"]["step"] == 3


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(checkpoints):
    for step in (1, 2, 3):
        flip(checkpoints.folder / places.step_name(step))
    tree = tiny_digits()
    tree["Global"] |= {"output_dir": str(checkpoints.folder.parent), "resume": "auto"}
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is intact.*step-00000003: damaged.*step-00000001"):
        run_directory.starting_checkpoint(load(str(write_config(checkpoints.folder.parent / "c.yaml", tree))))


def test_a_folder_of_checkpoints_that_is_a_link_to_nowhere_does_not_start_afresh(tmp_path):
    """As where the disk with the checkpoints is not mounted: nothing could be saved in the end."""
    (tmp_path / "checkpoints").symlink_to("checkpoints")
    tree = tiny_digits()
    tree["Global"] |= {"output_dir": str(tmp_path), "resume": "auto"}
    with pytest.raises(
        CheckpointError, match="checkpoints: is a link that leads nowhere or in a circle, to checkpoints"
    ):
        run_directory.starting_checkpoint(load(str(write_config(tmp_path / "c.yaml", tree))))


class Second(World):
    """The second of two processes, on a node of its own, which gets from the first what it is made with."""

    def __init__(self, value):
        super().__init__(rank=1, size=2)
        self._value = value

    def broadcast(self, value):
        assert value is None
        return self._value

    @contextlib.contextmanager
    def first_only(self):
        yield False

    def barrier(self):
        pass


@pytest.mark.parametrize("format", [3, 2])
def test_a_process_on_another_node_reads_what_the_first_one_chose(checkpoints, tmp_path, format):
    """Its files may be others under the same path, or damaged there alone."""
    path, config = checkpoints.find("step-00000003"), load(str(write_config(tmp_path / "c.yaml", tiny_digits())))
    if format == 2:
        (path / "checksums.json").unlink()
        trainer = json.loads((path / "trainer.json").read_text())
        (path / "trainer.json").write_text(json.dumps({**trainer, "format": 2}))
    first = Second((str(path), checksums.fingerprint(path)))
    saved = assembly._starting_checkpoint(config, first, verify=True)
    assert saved.parts["model"]["w"][0] == 3
    assert assembly._starting_checkpoint(config, Second(None), verify=True) is None
    if format == 3:
        flip(path)
        with pytest.raises(CheckpointError, match=r"model\.safetensors has CRC-32"):
            assembly._starting_checkpoint(config, first, verify=True)
        summed_anew(path)
    else:
        (path / "trainer.json").write_text((path / "trainer.json").read_text() + "\n")
    with pytest.raises(CheckpointError, match="process 1 finds another checkpoint there than the first process"):
        assembly._starting_checkpoint(config, first, verify=True)


def test_the_best_so_far_is_what_the_first_process_reads(checkpoints, tmp_path):
    """All processes must decide alike which evaluation is the best; the file may be seen late elsewhere."""
    tree = tiny_digits()
    tree["Global"]["output_dir"] = str(tmp_path / "run")
    config, best = load(str(write_config(tmp_path / "c.yaml", tree))), Best()
    record = checkpoints.best_record()
    (checkpoints.folder / "best").unlink()
    saved = checkpoint.read(checkpoints.find("step-00000003"))
    assembly._run_directory(config, saved, SimpleNamespace(step=3), best, Second(record))
    assert record["step"] == 2 and best.record == record


def test_trainer_json_of_another_step_is_named_in_every_format(checkpoints):
    """Where checksums fit, and where there are none, as in checkpoints before format 3."""
    path = checkpoints.find("step-00000003")
    swap(path, "trainer.json")
    summed_anew(path)
    with pytest.raises(CheckpointError, match=r"name is of step 3, but its trainer\.json says step 2"):
        checkpoint.read(path)
    trainer = json.loads((path / "trainer.json").read_text())
    (path / "trainer.json").write_text(json.dumps({**trainer, "format": 2}))
    (path / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"name is of step 3, but its trainer\.json says step 2"):
        checkpoint.read(path)
    path.rename(path.with_name("kept"))  # a name that says no step
    assert checkpoint.read(path.with_name("kept")).parts["progress"]["step"] == 2


POINTERS = {
    "bytes": lambda pointer: pointer.write_bytes(b"\xff\xfe\x00"),
    "circle": lambda pointer: (pointer.unlink(), pointer.symlink_to(pointer.name)),
    "json": lambda pointer: pointer.write_text("step-00000002\n{]\n"),
    "keys": lambda pointer: pointer.write_text('step-00000002\n{"value": 0.5}\n'),
    "types": lambda pointer: pointer.write_text('step-00000002\n["top1", 0.5, 2, "raw"]\n'),
}


@pytest.mark.parametrize("damage", POINTERS)
@pytest.mark.parametrize("name", ["best", "latest"])
def test_a_damaged_pointer_alone_stops_nothing(tmp_path, damage, name):
    """A run continues, keeps its best result, and points anew."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 4, "save_interval": 2, "save_unit": "step", "max_num_latest_checkpoint": 0}
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 2, "eval_unit": "step"}
    tree["Global"] |= {"output_dir": str(tmp_path / "run"), "resume": "auto"}
    tree["LRScheduler"] = {"learning_rate": 0.0}  # so that the first evaluation stays the best
    config = load(str(write_config(tmp_path / "c.yaml", tree)))
    short = config.replace({"Global.max_train_step": 2})
    assemble(short, World(), Callbacks([MetricsFile()], is_first=True)).fit()
    folder = tmp_path / "run" / "checkpoints"
    POINTERS[damage](folder / name)
    trainer = assemble(config, World(), Callbacks([MetricsFile()], is_first=True))
    assert trainer.progress.step == 2
    trainer.fit()
    assert (folder / "latest").read_text() == "step-00000004\n"
    assert Checkpoints(folder).best_record() == trainer.best.record and trainer.best.record["step"] == 2
    assert (folder / "best").read_text().startswith("step-00000002\n") and places.steps(folder) == [2, 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one update with averaged weights."""
    folder = tmp_path_factory.mktemp("run")
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 1, "output_dir": str(folder / "run")}
    tree["EMA"] = {"decay": 0.9}
    assemble(load(str(write_config(folder / "c.yaml", tree))), World()).fit()
    return folder / "run"


@pytest.mark.parametrize("ema", [False, True])
def test_every_reader_compares_what_it_reads(run, tmp_path, ema):
    """Model or averages, and the recipe beside them; not the optimizer's large file, which only training reads."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "checkpoints" / "step-00000001"
    part = "ema" if ema else "model"
    readers = {
        "load_model": lambda **verify: plsc.load_model(copy, weights=part, **verify),
        "load_predictor": lambda **verify: plsc.load_predictor(path, weights=part, **verify),
        "evaluate": lambda **verify: plsc.evaluate(copy, ema=ema, **verify),
        "export": lambda **verify: plsc.export_model(copy, tmp_path / "export", ema=ema, **verify),
        "convert": lambda **verify: plsc.convert_weights(copy, "safetensors", tmp_path / "w", ema=ema, **verify),
    }
    zero_a_block(path, "optimizer.safetensors")
    readers["load_model"]()
    flip(path, f"{part}.safetensors")
    for name, reader in readers.items():
        with pytest.raises(CheckpointError, match=f"{part}.safetensors has CRC-32 .*, not the") as error:
            reader()
        assert "--no-verify" in str(error.value), name
    flip(path, f"{part}.safetensors")
    with open(path / "config.yaml", "a") as file:
        file.write("# edited\n")
    for reader in readers.values():
        with pytest.raises(CheckpointError, match=r"config\.yaml has [\d,]+ bytes, not the"):
            reader()
    for name in ("load_model", "load_predictor", "evaluate", "convert"):
        assert readers[name](verify=False), name


def test_a_run_goes_on_though_the_settings_cannot_be_compared(run, tmp_path):
    """It has its own recipe; the checkpoint's is only compared with it."""
    tree = {**tiny_digits(), "EMA": {"decay": 0.9}}
    tree["Global"] |= {"max_train_step": 2, "output_dir": str(tmp_path / "run"), "resume": "auto"}
    shutil.copytree(run, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "step-00000001" / "config.yaml"
    damaged.write_bytes(b"Global: [\xff\n")
    config = load(str(write_config(tmp_path / "c.yaml", tree)))
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        assemble(config, World())
    with log_texts(logging.WARNING) as warnings:
        trainer = assemble(config, World(), verify=False)
    assert trainer.progress.step == 1
    [warning] = warnings
    assert "settings differ from those of step-00000001 is unknown" in warning and str(damaged) in warning


def test_no_verify_on_the_command_line(run, tmp_path, capsys):
    from plsc.cli.main import main

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with open(copy / "checkpoints" / "step-00000001" / "config.yaml", "a") as file:
        file.write("# edited\n")
    arguments = ["convert", str(copy), "--to", "safetensors", "--output", str(tmp_path / "w.safetensors")]
    assert main(arguments) == 2 and "config.yaml has" in capsys.readouterr().err
    assert main([*arguments, "--no-verify"]) == 0


def test_the_writer_writes_what_the_library_writes(tmp_path):
    """Byte for byte, for every type, also arrays without elements or dimensions, views and the other byte order."""
    rng = np.random.default_rng(0)
    types = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
    arrays = {f"a.{name}": rng.integers(0, 100, [3, 5]).astype(name) for name in (*types, "bool")}
    arrays |= {"empty": np.zeros([0, 3], "float32"), "scalar": np.array(2.5, "float32"), "é": np.ones(1, "float32")}
    for name, array in arrays.items():
        several = {name: array, "zz": array.copy(), "b": array}
        save_safetensors(several, tmp_path / "own", {"format": "plsc"})
        assert (tmp_path / "own").read_bytes() == safetensors.numpy.save(several, {"format": "plsc"}), name
    save_safetensors(arrays, tmp_path / "all", None)
    read = safetensors.numpy.load_file(tmp_path / "all")
    assert read.keys() == arrays.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)
    views = {"turned": np.arange(12, dtype="float32").reshape(3, 4).T, "swapped": np.arange(3, dtype=">f4")}
    save_safetensors(views, tmp_path / "views", None)
    for name, array in safetensors.numpy.load_file(tmp_path / "views").items():
        np.testing.assert_array_equal(array, views[name])
    with pytest.raises(CheckpointError, match="z: an array of complex128 has no place"):
        save_safetensors({"z": np.zeros(2, "complex128")}, tmp_path / "none", None)


def test_sums_are_those_of_zlib_over_pieces(tmp_path, monkeypatch):
    """A file longer than a piece, written in several goes, has the sum of its whole content."""
    import zlib

    monkeypatch.setattr(checksums, "_PIECE", 100)
    content = np.random.default_rng(0).integers(0, 256, 1234, dtype=np.uint8).tobytes()
    folder = checksums.SummedFolder(tmp_path)
    with folder.open("model.safetensors") as file:
        for part in (content[:1], content[1:1], content[1:777], content[777:]):
            file.write(part)
    folder.finish(5)
    assert (tmp_path / "model.safetensors").read_bytes() == content
    written = json.loads((tmp_path / "checksums.json").read_text())
    assert written == {
        "step": 5,
        "files": {"model.safetensors": {"bytes": 1234, "crc32": f"{zlib.crc32(content):08x}"}},
    }
    checksums.verify(tmp_path)


@pytest.mark.parametrize("kind", ["direct", "not opened", "not written", "in parts"])
def test_files_are_whole_whatever_the_file_system_has(tmp_path, monkeypatch, kind):
    """Past the cache, or where that cannot be opened or written so, or is written in parts; of any length."""
    monkeypatch.setattr(files, "_PIECE", 8192)
    opened, write, direct = os.open, os.write, getattr(os, "O_DIRECT", 0)
    refused = []

    def refusing_open(path, flags, *arguments):
        if kind == "not opened" and flags & direct:
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *arguments)

    def refusing_write(descriptor, content):
        is_direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & direct
        if kind == "not written" and is_direct:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, content[:4096] if kind == "in parts" and is_direct else content)

    monkeypatch.setattr(os, "open", refusing_open)
    monkeypatch.setattr(os, "write", refusing_write)
    content = np.random.default_rng(0).integers(0, 256, 30_000, dtype=np.uint8).tobytes()
    for length in (0, 1, 8191, 8192, 8193, 16384, 29_999):
        path = tmp_path / f"{length}"
        path.write_bytes(b"what was there before" * 2000)
        with files.UncachedFile(path) as file:
            for start in range(0, length, 777):
                file.write(content[start : min(start + 777, length)])
        assert path.read_bytes() == content[:length], length
    assert bool(refused) == kind.startswith("not")
    with pytest.raises(KeyError), files.UncachedFile(tmp_path / "cut") as file:
        file.write(b"x")
        raise KeyError
    with pytest.raises(FileNotFoundError):
        files.UncachedFile(tmp_path / "none" / "x")


def test_a_full_disk_is_an_error_of_writing():
    with pytest.raises(OSError, match="No space left"), files.UncachedFile(Path("/dev/full")) as file:
        file.write(b"x")
