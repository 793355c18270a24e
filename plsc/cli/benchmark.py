"""Time checkpoints and exports: images a second and latency, side by side.

A checkpoint is timed in dygraph and with its blocks compiled (Global.to_static), an export in its own runtime.
Images are random; the time runs from an array in memory to the logits in memory, without reading pictures.
"""

import argparse
from typing import TYPE_CHECKING

from plsc import environment
from plsc.cli.common import (
    above_zero,
    add_import_argument,
    checked_output,
    import_parts,
    positive,
    print_table,
    several_above_zero,
)

if TYPE_CHECKING:
    from plsc.timing import Timing

EXAMPLES = """\
  plsc benchmark output/mine
  plsc benchmark output/mine mine_paddle mine_onnx --batch-sizes 1,8,32 --seconds 5 --output speed.json
"""

_TITLES = ("path", "runtime", "batch", "size", "images/s", "p50 ms", "p90 ms", "p99 ms", "runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run directories, checkpoints, weights files, exports")
    parser.add_argument(
        "--batch-sizes", type=several_above_zero, default=[1, 8, 32], metavar="N,N,…", help="default: 1,8,32"
    )
    parser.add_argument("--threads", type=above_zero, metavar="N", help="on CPU; default: as many as cores")
    parser.add_argument(
        "--seconds", type=positive, default=3.0, metavar="S", help="for each row of the table (default: %(default)s)"
    )
    parser.add_argument("--resolution", type=above_zero, metavar="PIXELS", help="another image size than the model's")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, gpu, …; default: a GPU where there is one"
    )
    parser.add_argument("--output", metavar="FILE", help="also write the table, as .json")
    add_import_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from plsc.timing import benchmark, write_timings

    output = checked_output("--output", arguments.output, (".json",)) if arguments.output else None
    environment.prepare(cpu_threads=arguments.threads)
    import_parts(arguments)
    timings = benchmark(
        arguments.paths,
        batch_sizes=arguments.batch_sizes,
        seconds=arguments.seconds,
        img_size=arguments.resolution,
        device=arguments.device,
        threads=arguments.threads,
    )
    device = timings[0].device
    where = f"{device}, {timings[0].threads} threads" if device == "cpu" else device
    print(f"{where}; random images in memory; milliseconds are of one batch")
    print_table([_TITLES, *map(_row, timings)], left=[True, True, *[False] * (len(_TITLES) - 2)])
    if output:
        write_timings(timings, output)
        print(f"written to {output}")
    return 0


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
