"""docs/api.md is what the docstrings say, and those of public functions say enough."""

import inspect
import re
import subprocess
import sys

import pytest

import plsc
from tests.helpers import CHECKOUT, clean_environment

SCRIPT, PAGE = CHECKOUT / "tools" / "generate_api_docs.py", CHECKOUT / "docs" / "api.md"
NAMES = [name for name in plsc.__all__ if not name.startswith("__")]
FUNCTIONS = [name for name in NAMES if inspect.isroutine(getattr(plsc, name))]
RAISE_NOTHING = {"list_models"}


def generate(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date(tmp_path, page):
    done = generate("--output", tmp_path / "api.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api.md").read_text(encoding="utf-8") == page, "run tools/generate_api_docs.py"


@pytest.mark.parametrize("text", ["an older page\n", None], ids=["drifted", "missing"])
def test_check_finds_a_page_that_drifted(tmp_path, text):
    path = tmp_path / "api.md"
    if text is not None:
        path.write_text(text)
    done = generate("--check", "--output", path)
    assert done.returncode == 1 and "run tools/generate_api_docs.py" in done.stderr
    assert (path.read_text() if path.exists() else None) == text, "--check writes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there(name, page):
    assert re.search(rf"^(### {name}|\| `{name}` \|.*)$", page, re.MULTILINE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_of_functions_are_whole(name):
    """Every argument, what is raised, and an example; annotations for all."""
    function = getattr(plsc, name)
    doc, signature = inspect.getdoc(function), inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    missing = [p.name for p in parameters if not re.search(rf"\b{p.name}\b", doc.split("Args:\n")[-1])]
    assert not missing, f"plsc.{name}: its docstring does not explain {missing}"
    unannotated = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert not unannotated and signature.return_annotation is not signature.empty, f"plsc.{name}: {unannotated}"
    assert "Raises:\n" in doc or name in RAISE_NOTHING, f"plsc.{name}: its docstring does not say what it raises"
    assert "Example:\n" in doc or ">>> " in doc, f"plsc.{name}: its docstring has no example"
