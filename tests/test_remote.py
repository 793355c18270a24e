"""Weights by name, from servers on this machine: cache, resume, checksums, offline, and the hub's client."""

import base64
import hashlib
import json

import pytest

from plsc import loading, places, remote
from plsc.config import load
from plsc.errors import CheckpointError
from tests.helpers import tiny_digits, write_config
from tests.http_server import FileServer
from tests.test_export import write_model

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("PLSC_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with FileServer() as server:
        yield server


def test_a_file_is_downloaded_once(server, monkeypatch):
    server.files["/models/w.npz"] = CONTENT
    name = f"{server.address}/models/w.npz"
    first = remote.local(name)
    assert first.read_bytes() == CONTENT and first.name == "w.npz"
    assert sorted(file.name for file in first.parent.iterdir()) == [".lock", "w.npz", "w.npz.json"]
    assert remote.local(name) == first and len(server.requests) == 1
    monkeypatch.setenv("PLSC_OFFLINE", "1")
    assert remote.local(name) == first
    with pytest.raises(CheckpointError, match=r"other\.npz: is not in .*, and the environment forbids the network"):
        remote.local(f"{server.address}/models/other.npz")
    assert len(server.requests) == 1


def test_an_interrupted_download_continues(server):
    server.files["/w.npz"], server.cut = CONTENT, [1000, 5000]
    name = f"{server.address}/w.npz"
    for arrived in (1000, 6000):
        with pytest.raises(CheckpointError, match=f"ended after {arrived} of {len(CONTENT)} bytes.*start continues"):
            remote.local(name)
    assert remote.local(name).read_bytes() == CONTENT
    assert [wanted for _, _, wanted in server.requests] == [None, "bytes=1000-", "bytes=6000-"]


def test_a_file_that_changed_between_begins_anew(server):
    server.files["/w.npz"], server.cut = CONTENT, [1000]
    with pytest.raises(CheckpointError):
        remote.local(f"{server.address}/w.npz")
    server.files["/w.npz"] = other = CONTENT[::-1]
    assert remote.local(f"{server.address}/w.npz").read_bytes() == other


def test_checksums_are_compared(server):
    server.files["/w.npz"] = CONTENT
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    with pytest.raises(CheckpointError, match=f"its sha256 is {right}, expected {wrong}; the file is removed"):
        remote.local(f"{server.address}/w.npz#sha256={wrong}")
    assert remote.local(f"{server.address}/w.npz#sha256={right}").read_bytes() == CONTENT
    server.files["/v.npz"] = CONTENT
    server.headers["x-goog-hash"] = "crc32c=AAAAAA==,md5=" + base64.b64encode(hashlib.md5(b"else").digest()).decode()
    with pytest.raises(CheckpointError, match="its md5 is"):
        remote.local(f"{server.address}/v.npz")
    with pytest.raises(CheckpointError, match="after # stands sha256="):
        remote.local(f"{server.address}/w.npz#md5=12")


def test_without_a_network_the_message_says_what_to_do(server):
    server.close()
    with pytest.raises(CheckpointError, match=r"w\.npz: cannot be downloaded: .*refused.*download .* elsewhere"):
        remote.local(f"{server.address}/w.npz")
    with pytest.raises(CheckpointError, match="is not encrypted"):
        remote.local("http://example.org/w.npz")


def test_missing_files_are_reported(server):
    with pytest.raises(CheckpointError, match=r"absent\.npz: cannot be downloaded: HTTP Error 404"):
        remote.local(f"{server.address}/absent.npz")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hf:google/vit-base-patch16-224", True),
        ("timm:deit_tiny_patch16_224.fb_in1k", True),
        ("google:imagenet21k/ViT-B_16", True),
        ("https://example.org/ViT-B_16.npz", True),
        ("output/mine", False),
        ("hf:/etc", False),
        ("s3://bucket/w.npz", False),
        ("C:weights", False),
    ],
)
def test_which_paths_are_names(path, expected):
    assert remote.is_remote(path) is expected


def test_a_model_and_a_recipe_take_names(server, tmp_path, monkeypatch):
    """Google's bucket stands for all; a recipe's name is not a path."""
    monkeypatch.setattr(remote, "GOOGLE_BUCKET", f"{server.address}/vit_models")
    model = write_model(tmp_path / "own.safetensors")
    server.files["/vit_models/imagenet21k/Tiny.npz"] = model.read_bytes()
    assert loading.load_model("google:imagenet21k/Tiny").network.spec.embed_dim == 16
    assert places.weights_file("google:imagenet21k/Tiny").name == "Tiny.npz"
    tree = tiny_digits()
    tree["Global"]["pretrained_model"] = "google:imagenet21k/Tiny"
    assert load(str(write_config(tmp_path / "recipe.yaml", tree))).Global.pretrained_model == "google:imagenet21k/Tiny"


# -- the hub ------------------------------------------------------------------------------


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """A stand-in of the hub's API with one repository."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install 'plsc[hub]'")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    model = write_model(tmp_path / "own.safetensors")
    sha, repository = "0123456789abcdef" * 2 + "01234567", "timm/tiny.mine"
    files = {"model.safetensors": model.read_bytes(), "config.json": b"{}", "pytorch_model.bin": b"never"}
    listing = {"id": repository, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
    for revision in ("main", sha):
        server.files[f"/api/models/{repository}/revision/{revision}"] = json.dumps(listing).encode()
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files.items()
        ]
        server.files[f"/api/models/{repository}/tree/{revision}"] = json.dumps(tree).encode()
    for name, content in files.items():
        server.files[f"/{repository}/resolve/{sha}/{name}"] = content
    server.headers["X-Repo-Commit"] = sha
    return server


def test_a_repository_of_the_hub(hub, monkeypatch):
    loaded = loading.load_model("timm:tiny.mine")
    assert loaded.network.spec.embed_dim == 16 and "models--timm--tiny.mine" in str(loaded.path)
    assert not any(path.endswith("pytorch_model.bin") for _, path, _ in hub.requests), "one set of weights is enough"
    count = len(hub.requests)
    monkeypatch.setenv("PLSC_OFFLINE", "1")
    assert loading.load_model("hf:timm/tiny.mine").path == loaded.path and len(hub.requests) == count
    with pytest.raises(CheckpointError, match="hf:timm/absent: is not in the cache"):
        remote.local("hf:timm/absent")


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(CheckpointError, match=r"hf:timm/absent: .*"):
        remote.local("hf:timm/absent")
    with pytest.raises(CheckpointError, match=r"hf:a/b/c: cannot be downloaded"):
        remote.local("hf:a/b/c")
