"""Paths in recipes: where files are looked for, what the message of a missing one names, where PLSC's runs are."""

import pytest
import yaml

from plsc import build
from plsc.config import load
from plsc.errors import ConfigError
from plsc.registry import METRICS
from tests.helpers import SHARED, metrics, plsc, tiny_digits, write_config

ROW = "[[0]]"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The command is given in work/, the recipe lies in recipes/."""
    for name in ("place", "recipes"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path


def recipe(here, labels="real.json", **changes) -> str:
    tree = tiny_digits()
    tree["Metric"] = {"Eval": [{"TopkAcc": {}}, {"RealAcc": {"labels": labels}}]}
    tree["Global"].update(changes)
    return str(write_config(here / "recipes" / "run.yaml", tree))


def labels_of(config) -> str:
    return config.Metric["Eval"][1].arguments["labels"]


def test_the_working_directory_comes_first_then_the_recipes_folder(here):
    (here / "recipes" / "real.json").write_text(ROW)
    path = recipe(here)
    assert labels_of(load(path)) == str(here / "recipes" / "real.json")
    (here / "place" / "real.json").write_text(ROW)
    assert labels_of(load(path)) == str(here / "place" / "real.json")


def test_an_override_is_looked_for_in_the_working_directory_alone(here):
    (here / "recipes" / "other.json").write_text(ROW)
    config = load(recipe(here), ["Metric.Eval.1.RealAcc.labels=other.json"])
    assert labels_of(config) == str(here / "place" / "other.json")


def test_a_base_has_a_folder_of_its_own(here):
    (here / "recipes" / "real.json").write_text(ROW)
    child = write_config(here / "place" / "child.yaml", {"_base_": recipe(here), "Global": {"seed": 1}})
    assert labels_of(load(child)) == str(here / "recipes" / "real.json")


def test_a_home_folder_and_addresses(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert labels_of(load(recipe(here, labels="~/real.json"))) == str(here / "real.json")
    assert labels_of(load(recipe(here, labels="s3://bucket/real.json"))) == "s3://bucket/real.json"


def test_weights_are_found_beside_the_recipe_also_without_their_ending(here):
    (here / "recipes" / "best_model.pdparams").touch()
    config = load(recipe(here, pretrained_model="best_model", checkpoint="./gone"))
    assert config.Global.pretrained_model == str(here / "recipes" / "best_model")
    assert config.Global.checkpoint == str(here / "place" / "gone")


def test_a_missing_file_is_reported_with_the_key_and_the_folders(here):
    config = load(recipe(here))
    with pytest.raises(ConfigError) as caught:
        build.component(config, METRICS, config.Metric["Eval"][1])
    message = str(caught.value)
    assert "run.yaml:" in message and "Metric.Eval.1.RealAcc.labels: " in message
    assert f"{here}/place/real.json is missing" in message
    assert f"looked for in {here}/place and in {here}/recipes" in message
    config = load(recipe(here, labels=str(here / "no" / "real.json")))
    with pytest.raises(ConfigError) as caught:
        build.component(config, METRICS, config.Metric["Eval"][1])
    assert "real.json is missing" in str(caught.value) and "looked for" not in str(caught.value)


@pytest.mark.parametrize("key", ["pretrained_model", "checkpoint"])
def test_missing_weights_are_reported_with_the_key_and_the_folders(here, key):
    done = plsc("train", "-c", recipe(here, **{key: "gone", "device": "cpu"}), cwd=here / "place", check=False)
    assert done.returncode == 2 and f"Global.{key}: {here}/place/gone is missing" in done.stderr
    assert f"looked for in {here}/place and in {here}/recipes" in done.stderr and "Traceback" not in done.stderr


def test_a_resolved_configuration_works_in_any_folder(here, monkeypatch):
    (here / "recipes" / "real.json").write_text(ROW)
    out = load(recipe(here, output_dir="runs/first")).to_dict()
    assert out["Global"]["output_dir"] == str(here / "place" / "runs" / "first")
    path = write_config(here / "resolved.yaml", out)
    monkeypatch.chdir(here)
    assert load(path).to_dict() == out


# -- PLSC's files, which share one output_dir ---------------------------------------------


def test_a_file_of_plscs_has_its_run_in_a_folder_of_the_models_name(here):
    tree = tiny_digits()
    tree["Global"]["output_dir"] = "./output/"
    tree["DataLoader"]["Train"]["loader"]["use_shared_memory"] = True
    path = write_config(here / "recipes" / "run.yaml", tree)
    config = load(path)
    assert config.Global.output_dir == "output/VisionTransformer"
    [note] = [note for note in config.notes if "output_dir" in note]
    assert "output/VisionTransformer" in note and "as in PLSC" in note and "run.yaml:" in note
    assert load(config.to_dict()).Global.output_dir == str(here / "place" / "output" / "VisionTransformer")
    # what is asked for by an override is meant, and a recipe of ones own is not PLSC's for its base
    assert load(path, ["Global.output_dir=mine"]).Global.output_dir == "mine"
    child = write_config(here / "place" / "child.yaml", {"_base_": str(path), "Global": {"output_dir": "mine"}})
    assert load(child).Global.output_dir == "mine"


def test_a_recipe_without_plscs_keys_has_its_run_in_output_dir(here):
    assert load(recipe(here, output_dir="./output/")).Global.output_dir == "./output/"


@pytest.mark.shared
def test_plscs_four_files_have_four_run_directories():
    paths = sorted((SHARED / "compat" / "plsc_vit").glob("*.yaml"))
    assert len({load(path).Global.output_dir for path in paths}) == len(paths) == 4


def test_two_files_of_plscs_train_beside_each_other_and_resume(here):
    for name in ("VisionTransformer", "ViT_tiny_patch16_224"):
        tree = tiny_digits()
        tree["Model"]["name"] = name
        tree["Global"].update(output_dir="./output/", task_type="classification", max_train_step=2)
        write_config(here / "place" / f"{name}.yaml", tree)
        plsc("train", "-c", f"{name}.yaml", cwd=here / "place")
        run = here / "place" / "output" / name
        assert len(metrics(run)) == 2
    again = ["train", "-c", f"{name}.yaml"]
    assert yaml.safe_load((run / "config.yaml").read_text())["Global"]["output_dir"] == str(run)
    done = plsc(*again, cwd=here / "place", check=False)
    assert done.returncode == 2 and "Global.resume=auto" in done.stderr
    plsc(*again, "-o", "Global.resume=auto", "-o", "Global.max_train_step=3", cwd=here / "place")
    assert metrics(run)[-1]["step"] == 3
