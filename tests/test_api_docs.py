"""docs/api.md has every public name, and the docstrings of public functions are complete."""

import inspect
import re

import pytest

import plsc
from tests.helpers import CHECKOUT

NAMES = [name for name in plsc.__all__ if not name.startswith("__")]
FUNCTIONS = [name for name in NAMES if inspect.isroutine(getattr(plsc, name))]
RAISE_NOTHING = {"list_models"}


@pytest.fixture(scope="module")
def page() -> str:
    return (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")


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
