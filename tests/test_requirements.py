"""One line installs plsc for each device: the extras and requirements files, as pip resolves them."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import CHECKOUT, clean_environment

FILES = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "plsc/__init__.py", "plsc/errors.py"]
# device → the packages that it needs, beside those of every plsc
PACKAGES = {"gpu": ["paddlepaddle-gpu"], "xpu": ["paddlepaddle-xpu"], "npu": ["paddle-custom-npu"]}


def write_wheel(index: Path, package: str, version: str) -> None:
    """An empty wheel in a simple index."""
    name = package.replace("-", "_")
    folder = index / package
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        about = ["Wheel-Version: 1.0", "Generator: plsc", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
        wheel.writestr(f"{info}/WHEEL", "\n".join(about))
        wheel.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(folder.glob("*.whl")))
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


@pytest.fixture
def source(tmp_path):
    """What pip reads of the checkout, so that it writes nothing there."""
    folder = tmp_path / "source"
    for name in [*FILES, *(path.name for path in CHECKOUT.glob("requirements*.txt"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((CHECKOUT / name).read_bytes())
    return folder


def pip(source: Path, *arguments, **environment) -> subprocess.CompletedProcess:
    """What pip would install."""
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-build-isolation", *arguments],
        cwd=source,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
    )


def offline(index: Path | None = None) -> dict[str, str]:
    """pip with no index but this one, as the variable PADDLE_INDEX; what is installed here counts as there."""
    none = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "file:///nowhere", "PIP_EXTRA_INDEX_URL": ""}
    none |= {"PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
    return none | ({} if index is None else {"PADDLE_INDEX": index.as_uri()})


def would_install(done: subprocess.CompletedProcess) -> set[str]:
    [line] = [line for line in done.stdout.splitlines() if line.startswith("Would install ")]
    return set(line.split()[2:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "device", ["gpu", pytest.param("xpu", marks=pytest.mark.long), pytest.param("npu", marks=pytest.mark.long)]
)
def test_a_requirements_file_takes_paddle_from_the_index_that_is_named(source, tmp_path, device):
    """The newest of Paddle 3, and not the 2.6.2 of other indices."""
    for package in PACKAGES[device]:
        for version in ("2.6.2", "3.3.1", "4.0.0"):
            write_wheel(tmp_path / "index", package, version)
    done = pip(source, "-r", f"requirements-{device}.txt", **offline(tmp_path / "index"))
    assert done.returncode == 0, done.stderr
    expected = {f"{package}-3.3.1" for package in PACKAGES[device]}
    assert {name for name in would_install(done) if name.startswith("paddle")} == expected


@pytest.mark.long
def test_without_the_index_the_variable_is_named(source):
    done = pip(source, "-r", "requirements-gpu.txt", **offline())
    assert done.returncode != 0
    assert "PADDLE_INDEX" in done.stdout + done.stderr
    assert "paddlepaddle-gpu" in done.stderr


# what `make` calls in the place of Python: it makes an environment whose pip finds nothing
STUB = """#!/bin/sh
[ "$1 $2" = "-m venv" ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
[ "$1 $2" != "-m pip" ]
"""


@pytest.mark.parametrize("device", ["gpu", "npu", "cpu"])
def test_make_names_the_variable_where_pip_finds_no_paddle(tmp_path, device):
    for name in ("Makefile", "pyproject.toml", "tools/check_system.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"PLSC_TEST_DEVICE={device}", "test-device"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "pip install" in done.stdout
    assert (f"PADDLE_INDEX=… names it, see requirements-{device}.txt" in done.stderr) == (device != "cpu"), done.stderr


# -- with a network --------------------------------------------------------------------------


def versions(package: str) -> list[str]:
    """Those that pip's index has, the newest first. Skips where pip reaches no index."""
    pip_index = [sys.executable, "-m", "pip", "index", "versions"]
    done = subprocess.run([*pip_index, package], capture_output=True, text=True)
    line = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if line is None and subprocess.run([*pip_index, "tqdm"], capture_output=True).returncode != 0:
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    return line[1].split(", ") if line else []


@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "newest"),
    [("paddlepaddle", "3"), ("paddlepaddle-gpu", "2"), ("paddlepaddle-xpu", None), ("paddle-custom-npu", None)],
)
def test_what_pypi_has(package, newest):
    """Where this fails, more has come to PyPI: the requirements file, README and docs can be shorter."""
    there = versions(package)
    assert (there[0].split(".")[0] if there else None) == newest
    assert not there or "2.6.2" in there, "which the extras paddle26 and paddle26-gpu ask for"
