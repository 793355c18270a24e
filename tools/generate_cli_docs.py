"""Write docs/cli.md from the command line's own parser; with --check only compare, exit code 1 where they differ."""

import argparse
import sys
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from generated_page import main  # noqa: E402

from plsc.cli.main import Parser, parser  # noqa: E402

PAGE = CHECKOUT / "docs" / "cli.md"

_HEAD = """\
<!-- Written by tools/generate_cli_docs.py from the parser; change the help texts in plsc/cli/ instead. -->

# The command line
"""

_EXIT_CODES = """\
Exit codes: 0 done; 1 done in part, as the command says, or a fault of plsc with its traceback; 2 something that the
user can correct, with one message; 130 after Ctrl-C, 143 after SIGTERM.
"""


def page() -> str:
    """The whole text."""
    root = parser()
    commands = _subcommands(root)
    parts = [_HEAD, f"{root.description}\n", _contents(commands), _examples(root), _options(root), _EXIT_CODES]
    for command in commands:
        parts += _section(command, level=2)
    return "\n".join(part for part in parts if part)


def _contents(commands: list[Parser]) -> str:
    lines = []
    for command in commands:
        link = command.prog.replace(" ", "-")
        lines.append(f"- [{command.prog}](#{link}): {command.description.strip().splitlines()[0]}")
    return "\n".join([*lines, ""])


def _section(command: Parser, level: int) -> list[str]:
    """A command with its arguments and examples, then its own subcommands."""
    parts = [
        f"{'#' * level} {command.prog}\n",
        f"{command.description.strip()}\n",
        _options(command),
        _examples(command),
    ]
    for inner in _subcommands(command):
        parts += _section(inner, level + 1)
    return parts


# argparse has no public way to ask a parser for its arguments


def _subcommands(command: Parser) -> list[Parser]:
    actions = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    return [inner.filled() for action in actions for inner in action.choices.values()]


def _options(command: Parser) -> str:
    """A table of the arguments; empty where there are none but --help."""
    left_out = (argparse._SubParsersAction, argparse._HelpAction)
    rows = [_row(action, command.prog) for action in command._actions if not isinstance(action, left_out)]
    return "\n".join(["| argument | meaning |", "|---|---|", *rows, ""]) if rows else ""


def _row(action: argparse.Action, prog: str) -> str:
    value = _value(action)
    if action.option_strings:
        *others, last = action.option_strings
        name = ", ".join([*(f"`{other}`" for other in others), f"`{last} {value}`" if value else f"`{last}`"])
    else:
        name = f"`{value}`"
    text = (action.help or "").removesuffix(" (default: %(default)s)")  # which Python 3.10 appends to --no-… switches
    meaning = text % {**vars(action), "prog": prog}
    if action.option_strings and action.required:
        meaning = f"required; {meaning}"
    if action.choices and action.metavar:
        meaning += f"; one of {', '.join(map(str, action.choices))}"
    cells = [" ".join(cell.split()).replace("|", "\\|") for cell in (name, meaning)]
    return f"| {' | '.join(cells)} |"


def _value(action: argparse.Action) -> str:
    """What follows an option, or stands for a positional argument; empty for a switch."""
    if action.nargs == 0:
        return ""
    name = action.metavar
    if name is None and action.choices:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    if name is None:
        name = action.dest.upper() if action.option_strings else action.dest
    several = {"+": f"{name} …", "*": f"[{name} …]", "?": f"[{name}]"}
    return several.get(action.nargs, name)


def _examples(command: Parser) -> str:
    """The text after the help: indented lines are commands."""
    blocks, lines = [], (command.epilog or "").splitlines()
    while lines:
        indented = lines[0].startswith("  ")
        count = next((k for k, line in enumerate(lines) if line and line.startswith("  ") != indented), len(lines))
        text = textwrap.dedent("\n".join(lines[:count])).strip()
        blocks.append(f"```bash\n{text}\n```\n" if indented else f"{text}\n")
        lines = lines[count:]
    return "\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main(__doc__, page, PAGE))
