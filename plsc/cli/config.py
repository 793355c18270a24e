"""Print a run as it would be done: bases merged, overrides applied, every default filled in.

The output is itself a recipe. Keys and types are checked; device, files and data are not.
"""

import argparse
import sys

from plsc.cli.common import add_config_arguments, config_of

EXAMPLES = """\
  plsc config -c digits
  plsc config -c my_run.yaml -o Optimizer.weight_decay=0.1 > resolved.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    from plsc.engine.run_directory import config_text

    for note in config.notes:
        print(f"note: {note}", file=sys.stderr)
    print(config_text(config), end="")
    return 0
