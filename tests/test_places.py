"""What a path means, in the one place that knows."""

from pathlib import Path

import pytest

from plsc import places
from plsc.errors import CheckpointError


def checkpoint(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("trainer.json", "config.yaml", "model.safetensors", *files):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """Steps 10 (best, with averages) and 20 (latest)."""
    folder = tmp_path / "run" / "checkpoints"
    checkpoint(folder / "step-00000010", "ema.safetensors")
    checkpoint(folder / "step-00000020")
    (folder / "best").write_text('step-00000010\n{"value": 1}\n')
    (folder / "latest").write_text("step-00000020\n")
    (tmp_path / "run" / "config.yaml").write_text("")
    return tmp_path / "run"


def export(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("path", "latest_first", "best_first"),
    [
        (".", 20, 10),
        ("checkpoints", 20, 10),
        ("checkpoints/latest", 20, 20),
        ("checkpoints/best", 10, 10),
        ("checkpoints/step-00000010", 10, 10),
        ("checkpoints/step-00000030", None, None),
        ("absent", None, None),
    ],
)
def test_the_checkpoint_of_a_path(run, path, latest_first, best_first):
    for prefer, step in ((("latest",), latest_first), (("best", "latest"), best_first)):
        expected = None if step is None else run / "checkpoints" / places.step_name(step)
        assert places.checkpoint(run / path, prefer) == expected


def test_latest_is_the_newest_where_its_file_is_of_no_use(run):
    for text in ("step-00000099\n", "", "../../elsewhere\n"):
        (run / "checkpoints" / "latest").write_text(text)
        assert places.find(run / "checkpoints", "latest").name == "step-00000020"
        (run / "checkpoints" / "best").write_text(text)
        assert places.find(run / "checkpoints", "best") is None
    (run / "checkpoints" / "latest").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="latest: cannot be read"):
        places.find(run / "checkpoints", "latest")


@pytest.mark.parametrize(
    "path",
    [
        ".",
        "checkpoints",
        "checkpoints/best",
        "checkpoints/step-00000010",
        "checkpoints/step-00000010/model.safetensors",
        "checkpoints/step-00000010/config.yaml",
    ],
)
def test_the_run_of_a_path(run, path):
    assert places.run_directory(run / path) == run


def test_what_lies_beside_runs_belongs_to_none(run, tmp_path):
    (run / "mine.safetensors").write_text("")
    (tmp_path / "checkpoints").mkdir()
    for path in (run / "mine.safetensors", tmp_path, tmp_path / "checkpoints" / "vit.npz", tmp_path / "checkpoints"):
        assert places.run_directory(path) is None


@pytest.mark.parametrize(
    ("path", "file"),
    [
        (".", "config.yaml"),
        ("checkpoints/latest", "checkpoints/step-00000020/config.yaml"),
        ("checkpoints/step-00000010", "checkpoints/step-00000010/config.yaml"),
        ("checkpoints/step-00000010/model.safetensors", "checkpoints/step-00000010/config.yaml"),
        ("checkpoints", None),
    ],
)
def test_the_recipe_of_a_path(run, path, file):
    assert places.recipe(run / path) == (None if file is None else run / file)


@pytest.mark.parametrize(
    ("files", "model"),
    [
        (("inference.json", "inference.pdiparams"), "inference.json"),
        (("inference.pdmodel", "inference.pdiparams"), "inference.pdmodel"),
        (("model.onnx", "export.json"), "model.onnx"),
        (("vit.onnx",), "vit.onnx"),
        (("vit.pdmodel", "vit.pdiparams"), "vit.pdmodel"),
        (("inference.json",), None),
        (("model.onnx", "model.safetensors"), None),
        (("config.json", "pytorch_model.bin"), None),
    ],
)
def test_exports(tmp_path, files, model):
    """A folder of weights with an ONNX file of its own beside them is not an export."""
    folder = export(tmp_path / "folder", *files)
    assert places.exported_model(folder) == (None if model is None else folder / model)


@pytest.mark.parametrize("name", ["inference", "inference.json", "inference.pdiparams"])
def test_an_export_by_its_files(tmp_path, name):
    folder = export(tmp_path / "folder", "inference.json", "inference.pdiparams")
    assert places.exported_model(folder / name) == folder / "inference.json"
    with pytest.raises(CheckpointError, match="is an export"):
        places.weights_file(folder / name)


@pytest.mark.parametrize("key", ["origin", "source"])
def test_an_export_names_what_it_was_made_of(tmp_path, key):
    folder = export(tmp_path / "folder", "model.onnx")
    (folder / "export.json").write_text(f'{{"{key}": "output/mine"}}')
    with pytest.raises(CheckpointError, match="name the checkpoint that it was made of, output/mine"):
        places.weights_file(folder)


def test_a_folder_with_several_files_of_paddle_asks_for_one(tmp_path):
    folder = export(tmp_path / "folder", "a.pdparams", "b.pdparams")
    with pytest.raises(CheckpointError, match=r"there are a\.pdparams, b\.pdparams: name one"):
        places.weights_file(folder)
    (folder / "b.pdparams").unlink()
    assert places.weights_file(folder) == places.weights_file(folder / "a") == folder / "a.pdparams"


def test_a_run_directory_without_pointers_is_read_from_its_newest_checkpoint(run):
    for name in places.POINTERS:
        (run / "checkpoints" / name).unlink()
    assert places.weights_file(run) == run / "checkpoints" / "step-00000020" / "model.safetensors"
