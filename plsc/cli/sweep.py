"""Run a recipe with many settings and seeds, and rank them.

Each run is an ordinary run directory. The same command continues a search that was stopped or killed; runs that failed
are tried again, and do not end the others.
"""

import argparse
import sys

from plsc import environment
from plsc.cli.common import above_zero, add_config_arguments
from plsc.errors import ConfigError

EXAMPLES = """\
  plsc sweep -c digits LRScheduler.learning_rate=1e-3,2e-3 Global.seed=0,1,2 -o Global.epochs=5 --jobs 2
  plsc sweep -c my_run.yaml "LRScheduler.learning_rate=log(1e-4,1e-2)" --trials 9 --halving 3
  plsc sweep -c my_run.yaml Optimizer.weight_decay=0.05,0.1 --devices gpu:0,gpu:1
  plsc sweep examples/coyo_search.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "space",
        nargs="+",
        metavar="KEY=VALUES",
        help="values with commas between them, log(LOW,HIGH) or uniform(LOW,HIGH); Global.seed=0,1,2 repeats each "
        "candidate; or one .yaml file that has the whole search",
    )
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the search; default: the recipe's output_dir with -sweep"
    )
    parser.add_argument(
        "--trials", type=above_zero, metavar="N", help="random draws of what log(…) and uniform(…) give bounds of"
    )
    parser.add_argument(
        "--halving",
        type=above_zero,
        metavar="N",
        help="successive halving: one candidate in N goes on to N times the updates, again and again",
    )
    parser.add_argument(
        "--jobs",
        type=above_zero,
        metavar="N",
        help="runs at the same time, with a share of the cores each; default: 1",
    )
    parser.add_argument(
        "--devices", default="", metavar="NAME,NAME", help="a run at a time on each, such as gpu:0,gpu:1"
    )


def run(arguments: argparse.Namespace) -> int:
    from plsc.sweeps import as_mapping, read_file, sweep

    overrides = as_mapping(arguments.override)
    config, space, output = arguments.config, arguments.space, arguments.output
    trials, halving = arguments.trials, arguments.halving
    if config is None:
        if len(space) != 1 or not space[0].endswith((".yaml", ".yml")):
            raise ConfigError("name the recipe with -c RECIPE, or give one .yaml file that has the whole search")
        file = read_file(space[0])
        config, space = file.recipe, file.space
        output, trials, halving = output or file.output_dir, trials or file.trials, halving or file.halving
        overrides = {**file.overrides, **overrides}
    try:
        result = sweep(
            config,
            space,
            output_dir=output,
            overrides=overrides,
            imports=arguments.imports,
            trials=trials,
            halving=halving,
            jobs=arguments.jobs,
            devices=[device for device in arguments.devices.split(",") if device],
            on_change=lambda line: print(line, flush=True),
        )
    except (KeyboardInterrupt, environment.Terminated):
        print("the same command continues the search", file=sys.stderr, flush=True)
        raise
    print(result.text(), end="")
    return 1 if result.failed else 0
