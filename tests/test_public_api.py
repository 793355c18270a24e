"""plsc as a library: what `import plsc` costs, what it offers, and the programs in examples/."""

import json
import subprocess
import sys

import pytest

import plsc
from tests.helpers import CHECKOUT, clean_environment

EXAMPLES = CHECKOUT / "examples"


def python(*arguments, cwd, timeout=300) -> str:
    """Standard output of a Python process that sees this checkout."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_is_quick_and_imports_no_paddle(tmp_path):
    program = "import sys, plsc, json; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(python("-c", program, cwd=tmp_path))
    heavy = {"paddle", "numpy", "pydantic", "yaml", "cv2", "matplotlib", "sklearn"}
    assert not heavy & set(modules)
    program = "import time; t = time.perf_counter(); import plsc; print(time.perf_counter() - t)"
    assert min(float(python("-c", program, cwd=tmp_path)) for _ in range(3)) < 0.2


@pytest.mark.parametrize("use", ["plsc.list_models('ViT*')", "plsc.ConfigError", "plsc.register_loss", "dir(plsc)"])
def test_what_does_without_paddle_does_not_import_it(use, tmp_path):
    assert python("-c", f"import sys, plsc; {use}; print('paddle' in sys.modules)", cwd=tmp_path).strip() == "False"


def test_every_public_name_is_there():
    assert set(plsc.__all__) <= set(dir(plsc))
    for name in plsc.__all__:
        value = getattr(plsc, name)
        assert name == "__version__" or value.__doc__, f"plsc.{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = plsc.trian


def test_star_import_takes_the_public_names(tmp_path):
    program = "from plsc import *; print(callable(train), callable(load_model), ConfigError.__name__)"
    assert python("-c", program, cwd=tmp_path).split() == ["True", "True", "ConfigError"]


# -- examples/ ---------------------------------------------------------------------------------


def test_a_training_loop_of_ones_own(tmp_path):
    lines = python(EXAMPLES / "own_training_loop.py", 4, cwd=tmp_path).splitlines()
    accuracy = float(lines[-1].rsplit(" ", 1)[1].rstrip("%"))
    assert len(lines) == 4 and accuracy > 20  # chance is 10


@pytest.mark.long
def test_fine_tuning_on_a_folder(tmp_path):
    text = python(EXAMPLES / "finetune.py", "--epochs", 2, "--output", "tuned", cwd=tmp_path)
    (best,) = (line for line in text.splitlines() if line.startswith("best top-1"))
    assert float(best.split(":")[1].split("%")[0]) > 70
    assert len(text.splitlines()[-3:]) == 3 and all("loop" in line for line in text.splitlines()[-3:])


@pytest.mark.long
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    place = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place)
    client.execute(env=clean_environment(PYTHONPATH=str(CHECKOUT)))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "top-1" in printed and (tmp_path / "output" / "notebook" / "curves.png").is_file()
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
