"""Time models and training: images a second and latency, side by side.

A checkpoint, or the model of a recipe with fresh weights, is timed in dygraph, with its blocks compiled
(Global.to_static) and, on CPU, in the graph that evaluation and prediction make of it; an export in its own
runtime. Images are random; the time runs from an array in memory to the logits in memory.

With --train a recipe's updates are timed as its run does them, in dygraph and with compiled blocks: forward, loss,
backward, clipping and the optimizer's step, in its precision and micro-batches. Its data need not be there.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from plsc import environment
from plsc.cli.common import (
    above_zero,
    add_config_arguments,
    checked_output,
    optional_config,
    positive,
    several_above_zero,
)
from plsc.errors import ConfigError

if TYPE_CHECKING:
    from plsc.step_timing import StepTiming
    from plsc.timing import Timing

EXAMPLES = """\
  plsc benchmark output/mine
  plsc benchmark output/mine mine_paddle mine_onnx --batch-sizes 1,8,32 --seconds 5 --output speed.json
  plsc benchmark -c digits                                   # its model, with fresh weights
  plsc benchmark -c digits --train                           # its updates, at its batch size
  plsc benchmark -c my_run.yaml --train --batch-sizes 8,16 -o Global.device_tflops=0.5 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="run directories, checkpoints, weights files, exports")
    add_config_arguments(parser, required=False)
    parser.add_argument("--train", action="store_true", help="time the updates of -c RECIPE")
    parser.add_argument(
        "--batch-sizes",
        type=several_above_zero,
        metavar="N,N,…",
        help="default: 1,8,32; with --train the recipe's, of one process",
    )
    parser.add_argument("--threads", type=above_zero, metavar="N", help="on CPU; default: as many as cores")
    parser.add_argument(
        "--seconds", type=positive, default=3.0, metavar="S", help="for each row of the table (default: %(default)s)"
    )
    parser.add_argument("--resolution", type=above_zero, metavar="PIXELS", help="another image size than the model's")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, gpu, …; default: the recipe's Global.device, else a GPU where there is one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--output", metavar="FILE", help="also write the table, as .json")


def run(arguments: argparse.Namespace) -> int:
    output = checked_output("--output", arguments.output, (".json",)) if arguments.output else None
    environment.prepare(cpu_threads=arguments.threads)
    return _training(arguments, output) if arguments.train else _answers(arguments, output)


def _answers(arguments: argparse.Namespace, output: Path | None) -> int:
    from plsc.timing import benchmark

    config = optional_config(arguments)
    timings = benchmark(
        arguments.paths,
        config=config,
        batch_sizes=arguments.batch_sizes or (1, 8, 32),
        seconds=arguments.seconds,
        img_size=arguments.resolution,
        device=arguments.device or (config.Global.device if config else "auto"),
        threads=arguments.threads,
    )
    return _show(arguments, timings, output)


def _training(arguments: argparse.Namespace, output: Path | None) -> int:
    from plsc.step_timing import benchmark_training

    if arguments.paths or not arguments.config:
        raise ConfigError("--train times the updates of a recipe: give -c RECIPE, and no PATH")
    device = [f"Global.device={arguments.device}"] if arguments.device else []
    timings = benchmark_training(
        arguments.config,
        overrides=[*arguments.override, *device],
        imports=arguments.imports,
        batch_sizes=arguments.batch_sizes or (),
        seconds=arguments.seconds,
        img_size=arguments.resolution,
    )
    return _show(arguments, timings, output)


def _show(arguments: argparse.Namespace, timings: "list[Timing] | list[StepTiming]", output: Path | None) -> int:
    """Print the timings as a table or JSON, and write them."""
    from plsc.timing import document, text, write_timings

    print(json.dumps(document(timings), indent=1) if arguments.json else text(timings).rstrip())
    if output:
        write_timings(timings, output)
        if not arguments.json:
            print(f"written to {output}")
    return 0
