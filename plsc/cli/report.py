"""Write runs as one page of HTML that works offline.

Results, curves, settings and their differences; of the best run accuracy by class, confusion, worst mistakes with their
pictures and samples after augmentation; environment.
"""

import argparse

from plsc.cli.common import above_zero, add_import_argument, checked_output

EXAMPLES = """\
  plsc report output/digits --output digits.html
  plsc report output/first output/second
  plsc report output/digits-sweep --samples 2000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them such as a search's")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="an .html file; default: report.html")
    parser.add_argument(
        "--samples",
        type=above_zero,
        default=10_000,
        metavar="N",
        help="of the evaluation data to measure at most, spread over it; default: %(default)s",
    )
    add_import_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    output = checked_output("--output", arguments.output, (".html", ".htm"))
    import plsc

    path = plsc.report(arguments.runs, output, samples=arguments.samples, imports=arguments.imports)
    print(f"written to {path}")
    return 0
