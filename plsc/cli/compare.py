"""Put runs side by side: their figures, and what differs in their configurations."""

import argparse

from plsc.cli.common import checked_output

EXAMPLES = """\
  plsc compare output/first output/second
  plsc compare output/digits-sweep --output compared.md
  plsc compare output/* --output compared.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them such as a search's")
    parser.add_argument("--output", metavar="FILE", help="also write the tables, as .md or .csv")


def run(arguments: argparse.Namespace) -> int:
    from plsc.runs.compare import ENDINGS, compare

    output = checked_output("--output", arguments.output, ENDINGS) if arguments.output else None
    comparison = compare(arguments.runs)
    print(comparison.text(), end="")
    best = comparison.best
    if best is not None and len(comparison.runs) > 1:
        print(f"\nbest: {best.name}")
    if output:
        comparison.write(output)
        print(f"written to {output}")
    return 0
