"""Versions, and which of them do not go together."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import plsc
from plsc.devices import installed_builds
from plsc.doctor.checks import Finding, Site, check, heaviest, worst

_SHOWN = ("numpy", "protobuf", "paddle2onnx")
_SOURCES = "plsc's sources"
_COMPARED = (*_SHOWN, "opencv-python", "opencv-python-headless", "safetensors", "simplejpeg", "etcd3")


def installed() -> dict[str, str]:
    """Versions by package, with a checksum of plsc's own sources, which a stale copy on another node does not have."""
    versions = {"plsc": plsc.__version__, "Python": platform.python_version(), **installed_builds()}
    for package in _COMPARED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    content = hashlib.sha256()
    folder = Path(plsc.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return versions | {_SOURCES: content.hexdigest()[:12]}


def conflicts(versions: Mapping[str, str], *, scaled: bool) -> Iterator[Finding]:
    """Known conflicts of versions by package, each with its remedy.

    Args:
        scaled: whether float16 with a loss scale can run here.
    """
    paddles = {name: version for name, version in versions.items() if name.startswith("paddlepaddle")}
    paddle = _number(next(iter(paddles.values()), "3.0"))  # 0.0 is a development build of Paddle 3
    second = (0, 0) < paddle < (3, 0)
    numpy, protobuf, onnx = (_number(versions.get(name, "0")) for name in _SHOWN)
    if len(paddles) > 1:
        names = " and ".join(paddles)
        yield Finding("fail", f"{names} are installed over each other", "", "uninstall all of them, then install one")
    if second and numpy >= (2, 0):
        yield Finding("fail", "Paddle 2 was built against NumPy 1", "", "pip install 'numpy<2', or Paddle 3")
    if second and protobuf >= (4, 0):
        yield Finding("fail", "Paddle 2 with protobuf 4 breaks fleet", "", "pip install 'protobuf<4', or Paddle 3")
    if second and onnx >= (2, 0):
        remedy = "Paddle 3 for exports to ONNX"
        yield Finding("warn", "paddle2onnx 2 needs Paddle 3: no export to ONNX", "", remedy)
    if scaled and (3, 0) <= paddle <= (3, 3) and numpy >= (2, 4):
        text = (
            "Paddle's GradScaler raises TypeError with NumPy 2.4 when it lowers the loss scale; plsc lowers it itself"
        )
        yield Finding("pass", text)
    slow = os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION") == "python"
    if "etcd3" in versions and protobuf >= (4, 0) and not slow:
        remedy = "export PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python where runs are elastic"
        yield Finding("warn", "etcd3 does not import with protobuf 4: no elastic training", "", remedy)
    if len({version for name, version in versions.items() if name.startswith("opencv-python")}) > 1:
        text = "two versions of OpenCV are installed over each other"
        yield Finding("warn", text, "", "pip uninstall opencv-python")
    if not (3, 10) <= _number(versions["Python"]) <= (3, 12):
        text = f"plsc is not tested on Python {versions['Python']}"
        yield Finding("warn", text, "", "Python 3.10, 3.11 or 3.12")


def _number(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    first, second, *_ = [*map(int, re.findall(r"\d+", version)), 0, 0]
    return first, second


def same_everywhere(findings: Mapping[int, Finding]) -> Finding:
    """The row of all processes: what differs between them is a failure."""
    first = min(findings)
    mine = findings[first].data or {}
    for rank, finding in sorted(findings.items()):
        theirs = finding.data or {}
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if differing:
            values = ", ".join(f"{n} {theirs.get(n, 'absent')} for {mine.get(n, 'absent')}" for n in differing)
            text = f"process {rank} has {values} of process {first}"
            remedy = "install the same versions, and the same copy of plsc, on every node"
            return Finding("fail", text, "the same on all processes", remedy, data=mine)
    return worst(findings)


@check("versions", seconds=30, alone=True, compare=same_everywhere)
def versions(site: Site) -> Finding:
    import paddle

    present = installed()
    known = list(conflicts(present, scaled=site.device not in ("cpu", "auto") or paddle.is_compiled_with_cuda()))
    hidden = {*_COMPARED, _SOURCES} - {*_SHOWN}
    shown = ", ".join(f"{name} {version}" for name, version in present.items() if name not in hidden)
    text, remedy = "; ".join([shown, *(c.measured for c in known)]), "; ".join(c.remedy for c in known if c.remedy)
    expected = "no known conflict, the same on all processes"
    return Finding(heaviest(["pass", *(c.verdict for c in known)]), text, expected, remedy, data=present)
