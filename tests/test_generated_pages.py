"""docs/cli.md, docs/api.md and docs/recipes.md are what the parser, docstrings and recipes say."""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers import CHECKOUT, clean_environment

PAGES = ["cli", "api", "recipes"]


def generate(name: str, *arguments):
    script = [sys.executable, str(CHECKOUT / "tools" / f"generate_{name}_docs.py"), *map(str, arguments)]
    # on a narrow terminal
    return subprocess.run(script, env=clean_environment(COLUMNS="40"), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(tmp_path, name):
    """Written anew, it is the same."""
    done = generate(name, "--output", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    page = CHECKOUT / "docs" / f"{name}.md"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), (
        f"run tools/generate_{name}_docs.py"
    )


@pytest.mark.parametrize("text", ["an older page\n", None, "the page\n"], ids=["drifted", "missing", "same"])
def test_check_finds_a_page_that_drifted(tmp_path, monkeypatch, capsys, text):
    spec = importlib.util.spec_from_file_location("generated_page", CHECKOUT / "tools" / "generated_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "cli.md"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["generate_cli_docs.py", "--check"])
    same = text == "the page\n"
    assert module.main(None, lambda: "the page\n", path) == (0 if same else 1)
    assert same or "run tools/generate_cli_docs.py" in capsys.readouterr().err
    assert (path.read_text() if path.exists() else None) == text, "--check writes nothing"


def test_the_page_of_the_command_line_needs_no_paddle():
    """It is checked before every commit."""
    program = "import sys, generate_cli_docs; generate_cli_docs.page(); sys.exit(3 if 'paddle' in sys.modules else 0)"
    environment = clean_environment(PYTHONPATH=str(CHECKOUT / "tools"))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0
