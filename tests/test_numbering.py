"""Which number a class has: folders of numbers, parts of a class list, shards as --data."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from plsc.data.datasets import ImageFolder
from tests.helpers import plsc, tiny_digits, write_config


def folders(root, names, size=8):
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((size, size), 20 * k, np.uint8)).save(root / name / "a.png")
    return root


def test_folders_of_numbers_are_in_the_order_of_the_numbers(tmp_path):
    data = ImageFolder(str(folders(tmp_path / "a", ["10", "2", "0", "1"])))
    assert data.class_names == ["0", "1", "2", "10"]
    data = ImageFolder(str(folders(tmp_path / "b", ["10", "2", "x"])))
    assert data.class_names == ["10", "2", "x"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on ten folders of grey pictures."""
    folder = tmp_path_factory.mktemp("run")
    tree = tiny_digits()
    tree["Global"]["output_dir"] = str(folder / "run")
    tree["Model"]["in_chans"] = 3
    root = str(folders(folder / "pictures", [str(k) for k in range(10)]))
    for mode in ("Train", "Eval"):
        transforms = [{"DecodeImage": None}, {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}]
        tree["DataLoader"][mode]["dataset"] = {"name": "ImageFolder", "root": root, "transform_ops": transforms}
    plsc("train", "-c", write_config(folder / "c.yaml", tree))
    return folder / "run"


def test_few_folders_for_a_model_of_many_classes_are_refused(run, tmp_path):
    root = folders(tmp_path / "part", ["seven", "three"])
    weights = tmp_path / "timm.safetensors"
    plsc("convert", run, "--to", "timm", "--output", weights)
    save_file(load_file(weights), weights)  # without the metadata, which names the classes
    done = plsc("eval", "-c", run / "config.yaml", "--weights", weights, "--data", root, check=False)
    assert done.returncode == 2
    assert "2 classes (seven, three, …) are numbered from 0, but the model has 10" in done.stderr
    # all ten by the model's own names are in its order
    plsc("eval", "--weights", run, "--data", folders(tmp_path / "all", [str(k) for k in range(10)]))


def test_evaluation_takes_shards(run, tmp_path):
    root = folders(tmp_path / "all", [str(k) for k in range(10)])
    plsc("data", "prepare", "--folder", root, "--output", tmp_path / "shards", "--shard-size", "4")
    environment = {"PLSC_CACHE": str(tmp_path / "cache")}
    for k, data in enumerate((root, tmp_path / "shards")):
        plsc("eval", "--weights", run, "--data", data, "--output", tmp_path / f"{k}.json", env=environment)
    by_folder, by_shards = (json.loads((tmp_path / f"{k}.json").read_text()) for k in (0, 1))
    assert by_folder["samples"] == by_shards["samples"] == 10
    assert by_folder["top1"] == by_shards["top1"]
