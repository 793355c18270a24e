"""Weights that are pushed to the hub, a stand-in on this machine, and what stands there then."""

import json
import logging
import re

import numpy as np
import pytest
import yaml

import plsc
from plsc import hub, loading
from plsc.cli.main import main
from plsc.errors import CheckpointError, ConfigError
from tests.hub_server import hub_server
from tests.test_export import dygraph, images, write_model

pytest.importorskip("huggingface_hub", reason="pip install 'plsc[hub]'")
NAMES = ["cat", "dog", "größe", *(f"class {i}" for i in range(3, 10))]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server(tmp_path / "hub-home", monkeypatch) as server:
        yield server


@pytest.fixture
def weights(tmp_path):
    return write_model(tmp_path / "own.safetensors", class_names=NAMES)


def text_of(server, name):
    return server.repositories[name]["README.md"].decode()


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("safetensors", ["README.md", "model.safetensors"]),
        ("timm", ["README.md", "config.json", "model.safetensors"]),
        ("huggingface", ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]),
        ("google", ["README.md", "model.npz"]),
        ("pdparams", ["README.md", "model.pdparams"]),
        ("torchvision", ["README.md", "model.safetensors"]),
    ],
)
def test_pushed_and_read_back_by_name(server, weights, tmp_path, to, expected):
    """Every format: the same bits, the same logits, names of classes and preprocessing."""
    if to == "google":  # whose models have tanh GELU or say otherwise in plsc's card
        weights = write_model(tmp_path / "tanh.safetensors", class_names=NAMES, act="gelu_tanh")
    made = plsc.convert_weights(weights, to, push="me/tiny")
    assert made.pushed == f"{server.address}/me/tiny" and made.written == []
    assert [files for _, _, files in server.commits] == [expected]
    first, second = loading.load_model(weights), loading.load_model("hf:me/tiny")
    for name, array in first.source.arrays.items():
        np.testing.assert_array_equal(second.source.arrays[name], array, err_msg=name)
    np.testing.assert_array_equal(dygraph(second.network, images(2)), dygraph(first.network, images(2)))
    assert second.card.class_names == NAMES and second.card.preprocess == first.card.preprocess
    text = text_of(server, "me/tiny")
    assert ("import timm" in text) == (to == "timm")
    assert ("from transformers import" in text) == (to == "huggingface")
    assert 'plsc.load_model("hf:me/tiny")' in text


def test_the_readme_states_what_is_known(server, weights):
    plsc.convert_weights(weights, "huggingface", push="me/tiny", license="apache-2.0")
    text = text_of(server, "me/tiny")
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["vision", "plsc"],
        "license": "apache-2.0",
    }
    for row in ("input size | 32 x 32 pixels", "width | 16", "heads | 2", "resize | short side to 36 pixels, bicubic"):
        assert f"| {row} |" in text
    assert "   2  größe\n" in text and "AutoImageProcessor, ViTForImageClassification" in text
    assert "Evaluation" not in text and "assumed" not in text


def test_the_readme_states_nothing_else(server, tmp_path):
    """No licence, classes, preprocessing, other libraries; what is assumed is said to be."""
    card = plsc.ModelCard(model="VisionTransformer", spec={"class_num": 0, "act": "gelu"}, assumed=frozenset({"act"}))
    text = hub.readme("me/bare", card, "safetensors", [tmp_path / "model.safetensors"])
    assert "license" not in text and "## Classes" not in text and "## Pictures" not in text and "timm" not in text
    assert "gelu (assumed: the weights do not state it)" in text and "image-feature-extraction" in text
    assert "load_predictor" not in text


def test_what_readme_shows_runs(server, weights, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("photo.jpg")
    plsc.convert_weights(weights, "safetensors", push="me/tiny")
    blocks = re.findall(r"```python\n(.*?)```", text_of(server, "me/tiny"), re.DOTALL)
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    assert scope["loaded"].network.spec.embed_dim == 16 and len(blocks) == 1


def test_figures_of_the_run(server, weights, tmp_path):
    """Those of the step and kind of the weights, and of no others."""
    folder = tmp_path / "run" / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    records = [
        {"kind": "eval", "step": 6, "epoch": 1, "weights": "raw", "top1": 0.1},
        {"kind": "eval", "step": 7, "epoch": 1, "weights": "ema", "top1": 0.2},
        {"kind": "eval", "step": 7, "epoch": 1, "weights": "raw", "top1": 0.8125, "not_finite": ["loss"]},
        {"kind": "train", "step": 7, "loss": 3.0},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert hub.figures_of(folder / "model.safetensors") == {"top1": 0.8125}
    assert hub.figures_of(folder / "ema.safetensors") == {"top1": 0.2}
    assert hub.figures_of(weights) == {}
    plsc.convert_weights(tmp_path / "run", "safetensors", push="me/run", verify=False)
    assert "| top1 | 0.8125 |" in text_of(server, "me/run")
    plsc.convert_weights(tmp_path / "run", "safetensors", push="me/body", verify=False, backbone=True)
    assert "0.8125" not in text_of(server, "me/body"), "of a model with its head"


def test_a_second_push_replaces_weights_and_keeps_the_readme(server, weights, tmp_path, caplog):
    plsc.convert_weights(weights, "timm", push="me/tiny")
    server._store("me/tiny", {**server.repositories["me/tiny"], "README.md": b"mine"})
    other = write_model(tmp_path / "other.safetensors", seed=5)
    with caplog.at_level(logging.WARNING, "plsc"):
        plsc.convert_weights(other, "timm", push="me/tiny")
    assert "me/tiny: its README.md stays as it is" in caplog.text and text_of(server, "me/tiny") == "mine"
    name = "blocks.0.attn.qkv.weight"
    pushed = loading.load_model("hf:me/tiny").source.arrays
    np.testing.assert_array_equal(pushed[name], loading.load_model(other).source.arrays[name])


def test_other_weights_there_are_not_hidden(server, weights):
    """hf:me/tiny would open model.safetensors, not the new model.npz; config.json would be taken for that of both."""
    plsc.convert_weights(weights, "timm", push="me/tiny")
    with pytest.raises(CheckpointError, match=r"me/tiny: holds config\.json already"):
        plsc.convert_weights(weights, "safetensors", push="me/tiny")
    with pytest.raises(CheckpointError, match=r"holds config\.json, model\.safetensors already"):
        plsc.convert_weights(weights, "pdparams", push="me/tiny")
    assert len(server.commits) == 1


def test_private(server, weights):
    plsc.convert_weights(weights, "safetensors", push="me/secret", private=True)
    plsc.convert_weights(weights, "safetensors", push="me/open")
    assert server.private == {"me/secret"}


def test_what_is_to_be_private_does_not_go_into_a_public_repository(server, weights):
    """The hub leaves a repository that is there as public as it is."""
    for name, private in (("me/open", False), ("me/secret", True)):
        plsc.convert_weights(weights, "safetensors", push=name, private=private)
    before = len(server.requests)
    with pytest.raises(CheckpointError, match=r"me/open: is public, and nothing was uploaded; .*leave out --private"):
        plsc.convert_weights(weights, "safetensors", push="me/open", private=True)
    assert {path for method, path, _ in server.requests[before:] if method != "GET"} == {"/api/repos/create"}
    assert len(server.commits) == 2
    plsc.convert_weights(weights, "safetensors", push="me/secret", private=True)
    assert len(server.commits) == 3


def test_the_command(server, weights, capsys):
    assert main(["convert", str(weights), "--to", "timm", "--push", "me/tiny", "--license", "mit"]) == 0
    assert f"pushed {server.address}/me/tiny, which plsc opens as hf:me/tiny" in capsys.readouterr().out
    assert "license: mit" in text_of(server, "me/tiny")
    assert main(["convert", str(weights), "--to", "timm", "--output", "x.safetensors", "--license", "mit"]) == 2
    assert "they go with --push" in capsys.readouterr().err


def test_without_token_network_or_permission(server, weights, monkeypatch):
    """Before anything is read or written where that is known."""
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(
        CheckpointError, match=r"me/tiny: cannot be written: there is no token.*hf auth login.*HF_TOKEN"
    ):
        plsc.convert_weights("absent", "timm", push="me/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match="the hub does not accept the token"):
        plsc.convert_weights(weights, "timm", push="me/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    server.refuse = 403
    with pytest.raises(CheckpointError, match="the token may not write to me; make one"):
        plsc.convert_weights(weights, "timm", push="me/tiny")
    monkeypatch.setenv("PLSC_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="forbids the network"):
        plsc.convert_weights("absent", "timm", push="me/tiny")
    monkeypatch.delenv("PLSC_OFFLINE")
    server.close()
    with pytest.raises(CheckpointError, match=r"cannot be written to http://127.*refused.*the same command continues"):
        plsc.convert_weights(weights, "timm", push="me/tiny")
    assert server.repositories == {}


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/ti ny", "me/tiny..x", ""])
def test_names_that_are_none(server, weights, name):
    with pytest.raises(ConfigError, match="is not a name of a repository"):
        plsc.convert_weights(weights, "timm", push=name)


def test_output_and_push_exclude_each_other(weights, tmp_path):
    for arguments in ({}, {"output": tmp_path / "x", "push": "me/tiny"}):
        with pytest.raises(ConfigError, match="either output, a path, or push"):
            plsc.convert_weights(weights, "timm", **arguments)
    with pytest.raises(ConfigError, match="go with push"):
        plsc.convert_weights(weights, "timm", tmp_path / "x", license="mit")
