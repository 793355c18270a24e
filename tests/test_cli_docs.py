"""docs/cli.md is what the parser says."""

import re
import subprocess
import sys

import pytest

from plsc.cli import main
from plsc.cli.main import COMMANDS
from tests.helpers import CHECKOUT, clean_environment

SCRIPT, PAGE = CHECKOUT / "tools" / "generate_cli_docs.py", CHECKOUT / "docs" / "cli.md"
_HEADING = re.compile(r"^#+ (plsc .+)$", re.MULTILINE)


def generate(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=clean_environment(COLUMNS="40"),
        capture_output=True,
        text=True,
        timeout=60,
    )


def help_of(capsys, *command) -> str:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The text of each command in the page."""
    parts = _HEADING.split(PAGE.read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_is_up_to_date(tmp_path):
    """Written anew, on a narrow terminal, it is the same."""
    done = generate("--output", tmp_path / "cli.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cli.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), (
        "run tools/generate_cli_docs.py"
    )
    assert generate("--check", "--output", tmp_path / "cli.md").returncode == 0


@pytest.mark.parametrize("text", ["an older page\n", None], ids=["drifted", "missing"])
def test_check_finds_a_page_that_drifted(tmp_path, text):
    page = tmp_path / "cli.md"
    if text is not None:
        page.write_text(text)
    done = generate("--check", "--output", page)
    assert done.returncode == 1 and "run tools/generate_cli_docs.py" in done.stderr
    assert (page.read_text() if page.exists() else None) == text, "--check writes nothing"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_there(name, sections, capsys):
    """As its --help shows them, with those of its subcommands."""
    found = [section for section in sections if section.split()[:2] == ["plsc", name]]
    assert found
    for section in found:
        shown = help_of(capsys, *section.split()[1:])
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown.partition("options:")[2].partition("examples:")[0]))
        assert options - {"--help"} <= set(re.findall(r"--[a-z][\w-]*", sections[section])), section


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name, sections):
    found = [text for section, text in sections.items() if section.split()[:2] == ["plsc", name]]
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", "\n".join(found), re.DOTALL))
    assert f"plsc {name} " in blocks


def test_tables_are_whole(sections):
    """A bar in a cell is escaped: every line of a table has two cells."""
    rows = [line for text in sections.values() for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, row


def test_writing_it_needs_no_paddle():
    program = (
        "import runpy, sys\nsys.argv = ['generate', '--check']\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "sys.exit(3 if 'paddle' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=clean_environment(), capture_output=True, timeout=60)
    assert done.returncode == 0
