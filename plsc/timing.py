"""How fast checkpoints, recipes' models and exports answer: images a second, latency. Importing it imports no Paddle.

A model is timed in dygraph, with its blocks compiled and, on CPU, in the graph that evaluation and prediction make of
it; an export in its own runtime. Images are random; the time runs from an array in memory to the logits in memory.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plsc
from plsc import environment, files
from plsc.errors import ConfigError, DeviceError
from plsc.runs.tables import text_table

if TYPE_CHECKING:
    import numpy as np

    from plsc.config import Config
    from plsc.loading import LoadedModel
    from plsc.predictor import Predictor

log = logging.getLogger("plsc")

_WARM_UP = 3  # runs before the clock starts; the first compiles
_CLASSES = 1000  # of fresh models, where class_num is auto
_ROUNDS = 5  # runtimes take turns, so that a slow moment of the machine meets all of them


@dataclass(frozen=True)
class Timing:
    """What one runtime took for one batch size.

    Attributes:
        path: as it was given; of a model with fresh weights the recipe's name.
        runtime: dygraph, to_static, graph, or of exports Paddle Inference or onnxruntime.
        device: Paddle's name of it. threads: of the process, on CPU.
        batch, height, width: of the images.
        images_per_second: over all runs. p50_ms, p90_ms, p99_ms: percentiles of a batch's milliseconds.
        runs: batches that were timed.
    """

    path: str
    runtime: str
    device: str
    threads: int
    batch: int
    height: int
    width: int
    images_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int

    @property
    def conditions(self) -> str:
        """What it was timed on, in words."""
        return "random images in memory; milliseconds are of one batch"

    def cells(self) -> dict[str, str]:
        """Its row of a table: title → text."""
        speeds = {"images/s": self.images_per_second, "p50 ms": self.p50_ms, "p90 ms": self.p90_ms}
        return {
            "path": self.path,
            "runtime": self.runtime,
            "batch": str(self.batch),
            "size": f"{self.height}x{self.width}",
            **{title: f"{value:,.1f}" for title, value in {**speeds, "p99 ms": self.p99_ms}.items()},
            "runs": str(self.runs),
        }


@dataclass(frozen=True)
class _Contender:
    """One way in which a path can run. `model` makes it for one batch size, for which a graph is made."""

    path: str
    runtime: str
    model: "Callable[[], Predictor]"


def benchmark(
    paths: str | Path | Sequence[str | Path] = (),
    *,
    config: "Config | None" = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    seconds: float = 3.0,
    img_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> list[Timing]:
    """Time models, side by side.

    Args:
        paths: run directories, checkpoints, weights files and exports.
        config: a recipe that says the model of weights that do not; without paths its model is timed, with fresh
            weights.
        batch_sizes: images a batch. seconds: for each timing, about.
        img_size: another image size than the model's, in pixels.
        device: cpu, gpu, …; auto takes a GPU where there is one. threads: on CPU; the default is as many as cores. Both
            kinds of threads are fixed where Paddle was imported before.

    Returns:
        A Timing for each batch size and runtime, in this order.

    Raises:
        CheckpointError: a path cannot be read, or takes no images of this size.
        ConfigError: the size of a model's images is unknown, or there is nothing to time.
        DeviceError: this Paddle lacks the device, or a library that an export needs is missing.

    Example:
        for timing in benchmark(["output/mine", "mine_onnx"], batch_sizes=[1, 32]):
            print(timing.path, timing.runtime, timing.batch, timing.images_per_second)
    """
    environment.import_paddle(cpu_threads=threads)
    from plsc.devices import on_device

    with on_device(device) as device:
        paths = [paths] if isinstance(paths, (str, Path)) else paths
        contenders = [contender for path in paths for contender in _contenders(str(path), img_size, device, config)]
        if not paths:
            if config is None:
                raise ConfigError("nothing to time is given: name weights or exports (PATH), or a recipe (-c RECIPE)")
            contenders = _of_models(Path(config.source.name).stem, lambda: _fresh(config, img_size), device)
        return [timing for batch in batch_sizes for timing in _timings(contenders, batch, seconds, device)]


def document(timings: Sequence[Any]) -> dict[str, Any]:
    """Timings, or StepTimings, and the versions they are of, as plain values for JSON."""
    import paddle

    return {
        "images": "random",
        "versions": {"plsc": plsc.__version__, "paddle": paddle.__version__},
        "rows": [asdict(timing) for timing in timings],
    }


def text(timings: Sequence[Any]) -> str:
    """Timings, or StepTimings, as a table under the conditions that they have in common."""
    first = timings[0]
    threads = f", {first.threads} thread{'' if first.threads == 1 else 's'}" if first.device == "cpu" else ""
    rows = [timing.cells() for timing in timings]
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    shown = text_table(table, left=[True, True, *[False] * (len(table[0]) - 2)])
    return f"{first.device}{threads}; {first.conditions}\n{shown}"


def write_timings(timings: Sequence[Any], path: str | Path) -> None:
    """Write their `document` as JSON, whole or not at all. Raises ConfigError where it cannot."""
    try:
        files.write_json(Path(path), document(timings))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _contenders(path: str, img_size: int | None, device: str, config: "Config | None") -> list[_Contender]:
    from plsc import loading, predictor, runtimes

    if predictor.is_export(path):
        exported = predictor.load_predictor(path, img_size=img_size, device=device)
        return [_Contender(path, runtimes.NAMES[exported.kind], lambda: exported)]
    return _of_models(path, lambda: loading.load_model(path, img_size=img_size, config=config), device)


def _of_models(path: str, load: "Callable[[], LoadedModel]", device: str) -> list[_Contender]:
    import paddle

    from plsc import predictor
    from plsc.engine.blocks import compile_blocks

    plain, compiled = load(), load()
    assert isinstance(compiled.network, paddle.nn.Layer)
    compile_blocks(compiled.network)
    contenders = [
        _Contender(path, "dygraph", lambda: predictor.of_network(plain)),
        _Contender(path, "to_static", lambda: predictor.of_network(compiled)),
    ]
    if device == "cpu":
        contenders.append(_Contender(path, "graph", lambda: predictor.of_network(plain, "graph")))
    return contenders


def _fresh(config: "Config", img_size: int | None) -> "LoadedModel":
    """The recipe's model with fresh weights."""
    from plsc import build
    from plsc.loading import LoadedModel
    from plsc.model_card import ModelCard
    from plsc.weights import Source

    if config.Model.arguments.get("class_num") == "auto":
        config = config.replace({"Model.class_num": _CLASSES})
    if img_size is not None and "img_size" in config.Model.arguments:
        config = config.replace({"Model.img_size": img_size})
    network = build.model(config)
    network.eval()
    card = ModelCard(model=config.Model.name, spec=asdict(network.spec))
    return LoadedModel(network, card, Source.of_arrays(config.source.name, {}, card))


def _images(contender: _Contender, model: "Predictor", batch: int) -> "np.ndarray":
    """Random images [batch, C, height, width] float32 of the size that the model takes."""
    import numpy as np

    if model.size is None:
        raise ConfigError(f"{contender.path}: the size of its images is unknown; give img_size (--resolution PIXELS)")
    return np.random.default_rng(0).standard_normal((batch, model.channels or 3, *model.size), dtype="float32")


def _timings(contenders: list[_Contender], batch: int, seconds: float, device: str) -> list[Timing]:
    """Of one batch size."""
    turns, running = [], []
    for contender in contenders:
        model = contender.model()
        images = _images(contender, model, batch)
        try:
            for _ in range(_WARM_UP):
                model.run(images)
        except DeviceError as error:
            if contender.runtime != "graph":
                raise
            log.warning("%s: %s", contender.path, error)  # a model of somebody's own may be none
            continue
        turns.append((model, images))
        running.append(contender)
    times: list[list[float]] = [[] for _ in turns]
    for _ in range(_ROUNDS):
        for (model, images), taken in zip(turns, times, strict=True):
            taken += _timed(model, images, seconds / _ROUNDS)
    return [
        _summary(contender, images.shape, taken, device)
        for contender, (_, images), taken in zip(running, turns, times, strict=True)
    ]


def _timed(model: "Predictor", images: "np.ndarray", seconds: float) -> list[float]:
    """Seconds of each run, for about `seconds`; the first, while another's threads are still busy, does not count."""
    model.run(images)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        model.run(images)
        taken.append(time.perf_counter() - start)
    return taken


def _summary(contender: _Contender, shape: tuple[int, ...], taken: list[float], device: str) -> Timing:
    import numpy as np

    batch, _, height, width = shape
    p50, p90, p99 = (round(1000 * float(value), 3) for value in np.percentile(taken, [50, 90, 99]))
    return Timing(
        path=contender.path,
        runtime=contender.runtime,
        device=device,
        threads=environment.thread_count(),
        batch=batch,
        height=height,
        width=width,
        images_per_second=round(batch * len(taken) / sum(taken), 2),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        runs=len(taken),
    )
