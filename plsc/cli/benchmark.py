"""Time checkpoints and exports: images a second and latency, side by side.

A checkpoint is timed in dygraph and with its blocks compiled (Global.to_static), an export in its own runtime.
Images are random; the time runs from an array in memory to the logits in memory, without reading pictures.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from plsc.cli.common import above_zero, checked_output, positive, several_above_zero

EXAMPLES = """\
  plsc benchmark output/mine
  plsc benchmark output/mine mine_paddle mine_onnx --batch-sizes 1,8,32 --seconds 5 --output speed.json
"""

_WARM_UP = 3  # runs before the clock starts; the first compiles
_ROUNDS = 5  # contenders take turns, so that a slow moment of the machine meets all of them


@dataclass(frozen=True)
class Timing:
    """What one runtime took for one batch size. Times in milliseconds a batch."""

    path: str
    runtime: str
    batch: int
    height: int
    width: int
    images_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


def add_arguments(parser):
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


def run(arguments) -> int:
    from plsc import environment

    output = checked_output("--output", arguments.output, (".json",)) if arguments.output else None
    environment.prepare(device=arguments.device, cpu_threads=arguments.threads)
    environment.import_paddle()
    from plsc.engine.distributed import select_device

    device = select_device(arguments.device)
    contenders = [found for path in arguments.paths for found in _contenders(path, arguments.resolution, device)]
    timings = []
    for batch in arguments.batch_sizes:
        timings += _measure(contenders, batch, arguments.seconds)
    where = f"{device}, {environment.thread_count()} threads" if device == "cpu" else device
    print(f"{where}; random images in memory; milliseconds are of one batch")
    _print(timings)
    if output:
        _write(output, timings, device, arguments.seconds)
    return 0


def _contenders(path: str, resolution: int | None, device: str) -> list:
    """(path, name of the runtime, predictor) of each way in which a path can run."""
    from plsc import predictor, runtimes
    from plsc.engine.blocks import compile_blocks

    if predictor.is_export(path):
        exported = predictor.load(path, img_size=resolution, device=device)
        return [(path, runtimes.NAMES[exported.kind], exported)]
    compiled = predictor.load_model(path, img_size=resolution)
    compile_blocks(compiled.network)
    plain = predictor.load_model(path, img_size=resolution)
    return [(path, "dygraph", predictor.of_network(plain)), (path, "to_static", predictor.of_network(compiled))]


def _measure(contenders, batch: int, seconds: float) -> list[Timing]:
    import numpy as np

    generator = np.random.default_rng(0)
    images = []
    for path, _, model in contenders:
        shape = (batch, model.channels or 3, *_size(path, model))
        images.append(generator.standard_normal(shape, dtype="float32"))
    for (_, _, model), array in zip(contenders, images, strict=True):
        for _ in range(_WARM_UP):
            model.run(array)
    times = [[] for _ in contenders]
    for _ in range(_ROUNDS):
        for (_, _, model), array, taken in zip(contenders, images, times, strict=True):
            taken += _timed(model, array, seconds / _ROUNDS)
    return [
        _timing(path, runtime, array.shape, taken)
        for (path, runtime, _), array, taken in zip(contenders, images, times, strict=True)
    ]


def _size(path: str, model) -> tuple[int, int]:
    from plsc.errors import ConfigError

    if model.size is None:
        raise ConfigError(f"{path}: nothing says which size its images have; give --resolution PIXELS")
    return model.size


def _timed(model, images, seconds: float) -> list[float]:
    """Seconds of each run, for about `seconds`; the first, while another's threads come to rest, does not count."""
    model.run(images)
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        model.run(images)
        taken.append(time.perf_counter() - start)
    return taken


def _timing(path: str, runtime: str, shape, taken: list[float]) -> Timing:
    import numpy as np

    batch, _, height, width = shape
    p50, p90, p99 = (round(1000 * float(value), 3) for value in np.percentile(taken, [50, 90, 99]))
    speed = round(batch * len(taken) / sum(taken), 2)
    return Timing(path, runtime, batch, height, width, speed, p50, p90, p99, len(taken))


def _print(timings: list[Timing]):
    titles = ["path", "runtime", "batch", "size", "images/s", "p50 ms", "p90 ms", "p99 ms", "runs"]
    table = [
        [
            t.path,
            t.runtime,
            str(t.batch),
            f"{t.height}x{t.width}",
            f"{t.images_per_second:,.1f}",
            *(f"{value:,.1f}" for value in (t.p50_ms, t.p90_ms, t.p99_ms)),
            str(t.runs),
        ]
        for t in timings
    ]
    widths = [max(map(len, column)) for column in zip(titles, *table, strict=True)]
    for line in (titles, *table):
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(left + right))


def _write(output: Path, timings: list[Timing], device: str, seconds: float):
    import paddle

    import plsc
    from plsc import environment
    from plsc.errors import ConfigError

    content = {
        "device": device,
        "threads": environment.thread_count(),
        "seconds": seconds,
        "images": "random",
        "versions": {"plsc": plsc.__version__, "paddle": paddle.__version__},
        "rows": [asdict(timing) for timing in timings],
    }
    try:
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error
    print(f"written to {output}")
