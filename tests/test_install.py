"""The package as users install it: everything in the wheel, commands that work outside the checkout."""

import os
import subprocess
import sys
import venv
import zipfile

import pytest

from tests.helpers import CHECKOUT, clean_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(source)], check=True)
    # what is not committed yet counts too
    changed = subprocess.run(["git", "diff", "HEAD"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    if changed:
        subprocess.run(["git", "apply", "--binary"], cwd=source, input=changed, check=True)
    subprocess.run([*pip, str(source)], check=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_recipe_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {str(p.relative_to(CHECKOUT)) for p in (CHECKOUT / "plsc" / "configs").rglob("*.yaml")}
    tracked = subprocess.run(["git", "ls-files", "plsc/configs"], cwd=CHECKOUT, capture_output=True, text=True)
    assert recipes & set(tracked.stdout.split()) <= set(names)
    assert not [name for name in names if name.startswith(("tests", "tools", "benchmarks"))]
    assert any(name.endswith("entry_points.txt") for name in names)


PROGRAM = """\
from collections.abc import Mapping
from pathlib import Path

import plsc


class PrintLoss(plsc.Callback):
    def after_step(self, step: int, record: Mapping[str, float]) -> None:
        print(step, record["loss"])


@plsc.register_dataset()
class Nothing:
    class_names: list[str] | None = None
    max_labels = 1

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> plsc.Sample:
        raise IndexError(index)


data: plsc.Dataset = Nothing()
config = plsc.load_config("digits", overrides={"Global.epochs": 2})
result = plsc.train(config, callbacks=[PrintLoss()])
folder: Path = result.run_directory
print(plsc.evaluate(folder)["top1"])
plsc.train("digits")  # wrong: a configuration is asked for
wrong: plsc.Loss = Nothing()  # wrong: a data set is not a loss
count: int = result.run_directory  # wrong: a path
"""


def test_type_checkers_see_its_annotations(wheel, tmp_path):
    """A user's own file is checked against the types of the installed wheel: each line that is wrong, and no other."""
    venv.create(tmp_path / "venv", with_pip=False)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "mine.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", tmp_path / "venv" / "bin" / "python", "mine.py"],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=""),
        capture_output=True,
        text=True,
    )
    errors = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line]
    assert errors == [n for n, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line], done.stdout


def test_training_works_outside_the_checkout(wheel, tmp_path):
    """`plsc train -c digits` from an installed wheel, in a folder with nothing in it."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    there = tmp_path / "there"
    there.mkdir()
    environment = clean_environment(PYTHONPATH=str(site))
    where = subprocess.run(
        [sys.executable, "-c", "import plsc; print(plsc.__file__)"], cwd=there, env=environment, capture_output=True
    )
    assert os.fsencode(site) in where.stdout
    done = subprocess.run(
        [sys.executable, "-m", "plsc", "train", "-c", "digits", "-o", "Global.max_train_step=2"],
        cwd=there,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (there / "output" / "digits" / "curves.png").is_file()


@pytest.mark.parametrize("command", [["train", "-c", "digits"], ["list", "losses"]])
def test_without_paddle_the_remedy_is_named(tmp_path, command):
    """No Paddle: one message that says what to install for cpu, gpu and xpu."""
    (tmp_path / "paddle.py").write_text("raise ModuleNotFoundError(\"No module named 'paddle'\", name='paddle')\n")
    done = subprocess.run(
        [sys.executable, "-m", "plsc", *command],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=f"{tmp_path}:{CHECKOUT}"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert all(word in done.stderr for word in ("paddlepaddle", "gpu:", "xpu:", "install"))
    assert "Traceback" not in done.stderr


def test_a_missing_system_library_is_named(monkeypatch):
    import ctypes

    from plsc import environment
    from plsc.errors import DeviceError

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(DeviceError, match="apt-get install libgomp1"):
        environment.require_system_libraries()


def test_an_editable_install_is_a_path(tmp_path):
    """An import hook would come after the folder named plsc that a clone is, seen from the folder around it."""
    source = tmp_path / "plsc"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(source)], check=True)
    (source / "pyproject.toml").write_text((CHECKOUT / "pyproject.toml").read_text())
    build = "from setuptools.build_meta import build_editable; print(build_editable('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True)
    wheel = zipfile.ZipFile(tmp_path / done.stdout.split()[-1])
    [path] = [name for name in wheel.namelist() if name.startswith("__editable__")]
    assert path.endswith(".pth") and wheel.read(path).decode().strip() == str(source)
