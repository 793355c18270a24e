"""A page of docs/ that a program writes, or with --check only compares: exit code 1 where it differs."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def main(description: str | None, page: Callable[[], str], path: Path) -> int:
    """The command of tools/generate_NAME_docs.py for docs/NAME.md, whose text `page` makes; returns the exit code."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--output", type=Path, default=path, metavar="FILE", help=f"default: docs/{path.name}")
    arguments = parser.parse_args()
    text = page()
    if not arguments.check:
        arguments.output.write_text(text, encoding="utf-8")
        return 0
    if arguments.output.is_file() and arguments.output.read_text(encoding="utf-8") == text:
        return 0
    print(f"{arguments.output}: differs; run tools/generate_{path.stem}_docs.py", file=sys.stderr)
    return 1
