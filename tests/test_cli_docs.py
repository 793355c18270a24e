"""docs/cli.md has every option and an example of each command."""

import re

import pytest

from plsc.cli import main
from plsc.cli.main import COMMANDS
from tests.helpers import CHECKOUT

PAGE = CHECKOUT / "docs" / "cli.md"
_HEADING = re.compile(r"^#+ (plsc .+)$", re.MULTILINE)


def help_of(capsys, *command) -> str:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The text of each command in the page."""
    parts = _HEADING.split(PAGE.read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_there(name, sections, capsys):
    """As its --help shows them, with those of its subcommands."""
    named = [section for section in sections if section.split()[:2] == ["plsc", name]]
    assert named
    for section in named:
        shown = help_of(capsys, *section.split()[1:])
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown.partition("options:")[2].partition("examples:")[0]))
        assert options - {"--help"} <= set(re.findall(r"--[a-z][\w-]*", sections[section])), section


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name, sections):
    texts = [text for section, text in sections.items() if section.split()[:2] == ["plsc", name]]
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", "\n".join(texts), re.DOTALL))
    assert f"plsc {name} " in blocks


def test_tables_are_whole(sections):
    """A bar in a cell is escaped: every line of a table has two cells."""
    rows = [line for text in sections.values() for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, row
