"""Weights by name: hf:, timm:, google: and https:// → files on this machine, downloaded once.

| name | what |
|---|---|
| hf:google/vit-base-patch16-224, with @REVISION where wanted | a repository of Hugging Face's hub |
| timm:deit_tiny_patch16_224.fb_in1k | hf:timm/deit_tiny_patch16_224.fb_in1k |
| google:imagenet21k/ViT-B_16 | that .npz of Google's bucket vit_models |
| https://…/ViT-B_16.npz, with #sha256=… where wanted | that file |

The hub's files are in its own cache, which HF_HOME moves and HF_HUB_OFFLINE keeps from the network; others in
$XDG_CACHE_HOME/plsc/weights (~/.cache/plsc/weights). PLSC_OFFLINE=1 uses what is there, for all of them.
"""

import base64
import fcntl
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plsc.errors import CheckpointError
from plsc.files import read_json, write_json

log = logging.getLogger("plsc")

GOOGLE_BUCKET = "https://storage.googleapis.com/vit_models"
_NAME = re.compile(r"(hf|timm|google):(?!/)(.+)|https?:/.*", re.DOTALL)
_OWN_MACHINE = ("127.0.0.1", "localhost", "::1")  # what may be asked without encryption
_BLOCK, _TIMEOUT = 2**20, 60  # bytes, seconds

# what a repository may hold, the first that is there: each with what a whole set of weights consists of
HUB_FILES = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("*.safetensors", "*.npz", "*.pth", "*.pdparams", "*.index", "*.data-*", "checkpoint"),
)
HUB_DOCUMENTS = ("config.json", "preprocessor_config.json", "preprocess.json", "classes.json")


def is_remote(path: object) -> bool:
    """Whether a path is the name of weights that are to be downloaded."""
    return _NAME.fullmatch(str(path)) is not None


def local(name: str | Path) -> Path:
    """The file or folder that a name means, downloaded where it is not here yet.

    Raises:
        CheckpointError: it cannot be downloaded, is not what its checksum says, or the hub's client is not installed.
    """
    name = re.sub(r"^(https?):/+", r"\1://", str(name))  # a Path has one slash
    kind, _, rest = name.partition(":")
    if kind == "timm":
        return _of_hub(name, f"timm/{rest}")
    if kind == "hf":
        return _of_hub(name, rest)
    if kind == "google":
        return _of_address(name, f"{GOOGLE_BUCKET}/{rest.removesuffix('.npz')}.npz")
    return _of_address(name, name)


def is_offline() -> bool:
    """Whether the environment keeps plsc from the network."""
    return any(
        os.environ.get(key, "").upper() in ("1", "TRUE", "YES", "ON") for key in ("PLSC_OFFLINE", "HF_HUB_OFFLINE")
    )


# -- Hugging Face's hub -------------------------------------------------------------------------


def _of_hub(name: str, repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(f"{name}: needs huggingface_hub: pip install 'plsc[hub]'") from error
    repository, _, revision = repository.partition("@")
    offline = is_offline()
    for patterns in HUB_FILES:
        try:
            folder = Path(
                snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=[*patterns, *HUB_DOCUMENTS],
                    local_files_only=offline,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                )
            )
        except LocalEntryNotFoundError as error:
            cause = "is not in the cache, and the environment forbids the network" if offline else reason(error)
            raise CheckpointError(f"{name}: {cause}") from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(f"{name}: cannot be downloaded: {reason(error)}") from error
        if any(file for pattern in patterns for file in folder.glob(pattern)):
            return folder
    raise CheckpointError(f"{name}: the repository holds no weights; looked for {', '.join(sum(HUB_FILES, ()))}")


def reason(error: BaseException) -> str:
    """The first line of what an error says, else its kind."""
    return str(error).strip().split("\n")[0] or type(error).__name__


# -- addresses ----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloaded files stand."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "plsc" / "weights"


def _of_address(name: str, address: str) -> Path:
    address, _, fragment = address.partition("#")
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in _OWN_MACHINE:
        raise CheckpointError(f"{name}: is not encrypted; give an address that begins with https://")
    if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", fragment):
        raise CheckpointError(f"{name}: after # stands sha256= and 64 hexadecimal digits")
    file = Path(urllib.parse.unquote(parts.path)).name
    if file in ("", ".", ".."):
        raise CheckpointError(f"{name}: names no file")
    folder = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]
    target = folder / file
    wanted = fragment.removeprefix("sha256=").lower()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one machine download it once
            if not target.is_file():
                if is_offline():
                    raise CheckpointError(f"{name}: is not in {folder}, and the environment forbids the network")
                _download(name, address, target)
            if wanted:
                _compare(name, target, "sha256", wanted)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(
            f"{name}: cannot be downloaded: {reason(error)}; what has arrived is kept, and the next start continues. "
            f"Without a network download {address} elsewhere and give its path"
        ) from error
    return target


def _download(name: str, address: str, target: Path) -> None:
    """Fetch a file, from where an interrupted download of the same content ended; whole or not at all."""
    part, notes = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.json")
    before: dict[str, Any] = read_json(notes, dict, error=CheckpointError) or {} if part.is_file() else {}
    start = part.stat().st_size if before.get("validator") else 0
    request = urllib.request.Request(address, headers={"User-Agent": "plsc", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", before["validator"])
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # all of it had arrived
            raise
        answer = None
    if answer is not None:
        with answer:
            continues = answer.status == 206
            length = answer.headers.get("Content-Length")
            size = None if length is None else int(length) + (start if continues else 0)
            before = {
                "size": size,
                "validator": answer.headers.get("ETag") or answer.headers.get("Last-Modified"),
                "md5": _md5(answer.headers.get_all("x-goog-hash") or []),
            }
            write_json(notes, before)
            log.info("downloading %s: %s bytes%s", address, size or "unknown", f" from {start}" if continues else "")
            with open(part, "ab" if continues else "wb") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
    arrived, size = part.stat().st_size, before.get("size")
    if size is not None and arrived < size:
        raise OSError(f"the connection ended after {arrived} of {size} bytes")
    if size is not None and arrived > size:
        part.unlink()
        raise CheckpointError(f"{name}: {arrived} bytes arrived instead of {size}; they are removed")
    if before.get("md5"):
        _compare(name, part, "md5", before["md5"])
    os.replace(part, target)


def _md5(hashes: list[str]) -> str | None:
    """Of Google's header, in hexadecimal digits."""
    for entry in ",".join(hashes).split(","):
        kind, _, value = entry.strip().partition("=")
        if kind == "md5":
            return base64.b64decode(value).hex()
    return None


def _compare(name: str, file: Path, kind: str, wanted: str) -> None:
    """Remove a file that is not what it should be, and raise CheckpointError."""
    make: Callable[[], Any] = getattr(hashlib, kind)
    digest = make()
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != wanted:
        file.unlink()
        raise CheckpointError(
            f"{name}: its {kind} is {digest.hexdigest()}, expected {wanted}; the file is removed, the next start "
            "downloads it again"
        )
