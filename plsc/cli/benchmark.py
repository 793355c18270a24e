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
    print_table,
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

_TITLES = ("path", "runtime", "batch", "size", "images/s", "p50 ms", "p90 ms", "p99 ms", "runs")
_STEP_TITLES = ("recipe", "runtime", "batch", "size", "images/s", "ms/update", "memory MiB", "MFU", "updates")


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
    note = "random images in memory; milliseconds are of one batch"
    _show(arguments, timings, note, _TITLES, [_row(timing) for timing in timings], output)
    return 0


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
    note = f"{timings[0].precision}; updates as the run does them, on pictures of noise in memory"
    _show(arguments, timings, note, _STEP_TITLES, [_step_row(timing) for timing in timings], output)
    return 0


def _show(
    arguments: argparse.Namespace,
    timings: "list[Timing] | list[StepTiming]",
    note: str,
    titles: tuple[str, ...],
    rows: list[list[str]],
    output: Path | None,
) -> None:
    """Print the timings as a table or JSON, and write them."""
    from plsc.timing import document, write_timings

    if arguments.json:
        print(json.dumps(document(timings), indent=1))
    else:
        device, threads = timings[0].device, timings[0].threads
        print(f"{device}, {threads} thread{'' if threads == 1 else 's'}" if device == "cpu" else device, note, sep="; ")
        print_table([titles, *rows], left=[True, True, *[False] * (len(titles) - 2)])
    if output:
        write_timings(timings, output)
        if not arguments.json:
            print(f"written to {output}")


def _row(timing: "Timing") -> list[str]:
    speeds = (timing.images_per_second, timing.p50_ms, timing.p90_ms, timing.p99_ms)
    size = f"{timing.height}x{timing.width}"
    return [
        timing.path,
        timing.runtime,
        str(timing.batch),
        size,
        *(f"{value:,.1f}" for value in speeds),
        str(timing.runs),
    ]


def _step_row(timing: "StepTiming") -> list[str]:
    memory, mfu = timing.memory_bytes, timing.mfu
    return [
        timing.recipe,
        timing.runtime,
        str(timing.batch) if timing.accum_steps == 1 else f"{timing.batch} in {timing.accum_steps} parts",
        f"{timing.height}x{timing.width}",
        f"{timing.images_per_second:,.1f}",
        f"{timing.ms:,.1f}",
        "" if memory is None else f"{memory / 2**20:,.0f}",
        "" if mfu is None else f"{mfu:.1%}",
        str(timing.updates),
    ]
