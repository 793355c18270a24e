"""Versions, and which of them do not go together."""

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import plsc
from plsc.doctor.checks import Finding, Site, Verdict, check, worst

PACKAGES = {
    "paddlepaddle": "Paddle",
    "paddlepaddle-gpu": "Paddle (GPU)",
    "paddlepaddle-xpu": "Paddle (XPU)",
    "numpy": "NumPy",
    "protobuf": "protobuf",
    "opencv-python": "OpenCV",
    "opencv-python-headless": "OpenCV (headless)",
    "safetensors": "safetensors",
    "simplejpeg": "simplejpeg",
    "paddle2onnx": "paddle2onnx",
    "etcd3": "etcd3",
}
_SHOWN = ("plsc", "Paddle", "Paddle (GPU)", "Paddle (XPU)", "NumPy", "Python", "protobuf", "paddle2onnx")
_PADDLES = ("Paddle", "Paddle (GPU)", "Paddle (XPU)")


def installed() -> dict[str, str]:
    """Versions by name, with a checksum of plsc's own sources, which a stale copy on another node does not have."""
    versions = {"plsc": plsc.__version__, "Python": platform.python_version()}
    for package, name in PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    content = hashlib.sha256()
    folder = Path(plsc.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return versions | {"plsc's sources": content.hexdigest()[:12]}


def conflicts(versions: Mapping[str, str], *, scaled: bool) -> Iterator[Finding]:
    """Known conflicts of versions by name, each with its remedy.

    Args:
        scaled: whether float16 with a loss scale can run here.
    """

    def conflict(verdict: Verdict, what: str, remedy: str) -> Finding:
        return Finding(verdict, what, remedy=remedy)

    paddles = {name: versions[name] for name in _PADDLES if name in versions}
    paddle = _number(next(iter(paddles.values()), "3.0"))  # 0.0 is a development build of Paddle 3
    second = (0, 0) < paddle < (3, 0)
    numpy, protobuf = _number(versions.get("NumPy", "0")), _number(versions.get("protobuf", "0"))
    if len(paddles) > 1:
        names = " and ".join(paddles)
        yield conflict("fail", f"{names} are installed over each other", "uninstall all of them, then install one")
    if second and numpy >= (2, 0):
        yield conflict("fail", "Paddle 2 was built against NumPy 1", "pip install 'numpy<2', or Paddle 3")
    if second and protobuf >= (4, 0):
        yield conflict("fail", "Paddle 2 with protobuf 4 breaks fleet", "pip install 'protobuf<4', or Paddle 3")
    if second and "paddle2onnx" in versions and _number(versions["paddle2onnx"]) >= (2, 0):
        yield conflict("warn", "paddle2onnx 2 needs Paddle 3: no export to ONNX", "Paddle 3 for exports to ONNX")
    if scaled and (3, 0) <= paddle <= (3, 3) and numpy >= (2, 4):
        yield conflict(
            "warn",
            "Paddle's GradScaler raises TypeError with NumPy 2.4 when it lowers the loss scale",
            "nothing for plsc, which lowers it itself; for loops of your own pip install 'numpy<2.4'",
        )
    slow = os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION") == "python"
    if "etcd3" in versions and protobuf >= (4, 0) and not slow:
        yield conflict(
            "warn",
            "etcd3 does not import with protobuf 4: no elastic training",
            "export PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python where runs are elastic",
        )
    if {"OpenCV", "OpenCV (headless)"} <= versions.keys() and versions["OpenCV"] != versions["OpenCV (headless)"]:
        yield conflict("warn", "two versions of OpenCV are installed over each other", "pip uninstall opencv-python")
    python = _number(versions["Python"])
    if not (3, 10) <= python <= (3, 12):
        yield conflict("warn", f"plsc is not tested on Python {versions['Python']}", "Python 3.10, 3.11 or 3.12")


def _number(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    parts = [int(part) for part in re.findall(r"\d+", version)[:2]]
    return (parts[0] if parts else 0, parts[1] if len(parts) > 1 else 0)


def same_everywhere(findings: Mapping[int, Finding]) -> Finding:
    """The row of all processes: what differs between them is a failure."""
    first = findings[min(findings)]
    for rank, finding in sorted(findings.items()):
        mine, theirs = first.data or {}, finding.data or {}
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if differing:
            values = ", ".join(f"{n} {theirs.get(n, 'absent')} for {mine.get(n, 'absent')}" for n in differing)
            return Finding(
                "fail",
                f"process {rank} has {values} of process {min(findings)}",
                "the same on all processes",
                "install the same versions, and the same copy of plsc, on every node",
                data=first.data,
            )
    return worst(findings)


@check("versions", seconds=30, alone=True, compare=same_everywhere)
def versions(site: Site) -> Finding:
    import paddle

    present = installed()
    shown = ", ".join(f"{name} {present[name]}" for name in _SHOWN if name in present)
    scaled = site.device not in ("cpu", "auto") or paddle.is_compiled_with_cuda()
    known = list(conflicts(present, scaled=scaled))
    if not known:
        return Finding("pass", shown, "no known conflict, the same on all processes", data=present)
    return Finding(
        "fail" if any(c.verdict == "fail" for c in known) else "warn",
        f"{shown}; {'; '.join(c.measured for c in known)}",
        "no known conflict",
        "; ".join(c.remedy for c in known),
        data=present,
    )
