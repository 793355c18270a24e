"""How fast checkpoints and exports answer: images a second and latency. Importing it imports no Paddle.

A checkpoint is timed in dygraph and with its blocks compiled, an export in its own runtime. Images are random; the time
runs from an array in memory to the logits in memory.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import plsc
from plsc import environment, files
from plsc.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from plsc.predictor import Predictor

_WARM_UP = 3  # runs before the clock starts; the first compiles
_ROUNDS = 5  # runtimes take turns, so that a slow moment of the machine meets all of them


@dataclass(frozen=True)
class Timing:
    """What one runtime took for one batch size.

    Attributes:
        path: as it was given. runtime: dygraph, to_static, Paddle Inference or onnxruntime.
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


@dataclass(frozen=True)
class _Contender:
    """One way in which a path can run."""

    path: str
    runtime: str
    model: "Predictor"

    def images(self, batch: int) -> "np.ndarray":
        """Random images [batch, C, height, width] float32 of the size that the model takes."""
        import numpy as np

        if self.model.size is None:
            raise ConfigError(f"{self.path}: the size of its images is unknown; give img_size (--resolution PIXELS)")
        shape = (batch, self.model.channels or 3, *self.model.size)
        return np.random.default_rng(0).standard_normal(shape, dtype="float32")


def benchmark(
    paths: str | Path | Sequence[str | Path],
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    seconds: float = 3.0,
    img_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> list[Timing]:
    """Time models, side by side.

    Args:
        paths: run directories, checkpoints, weights files and exports.
        batch_sizes: images a batch. seconds: for each timing, about.
        img_size: another image size than the model's, in pixels.
        device: cpu, gpu, …; auto takes a GPU where there is one. threads: on CPU; the default is as many as cores. Both
            kinds of threads are fixed where Paddle was imported before.

    Returns:
        A Timing for each batch size and runtime, in this order.

    Raises:
        CheckpointError: a path cannot be read, or takes no images of this size.
        ConfigError: the size of a model's images is unknown.
        DeviceError: this Paddle lacks the device, or a library that an export needs is missing.

    Example:
        for timing in benchmark(["output/mine", "mine_onnx"], batch_sizes=[1, 32]):
            print(timing.path, timing.runtime, timing.batch, timing.images_per_second)
    """
    environment.import_paddle(cpu_threads=threads)
    from plsc.devices import on_device

    with on_device(device) as device:
        paths = [paths] if isinstance(paths, (str, Path)) else paths
        contenders = [contender for path in paths for contender in _contenders(str(path), img_size, device)]
        return [timing for batch in batch_sizes for timing in _timings(contenders, batch, seconds, device)]


def write_timings(timings: Sequence[Timing], path: str | Path) -> None:
    """Write timings and the versions they are of as JSON, whole or not at all. Raises ConfigError where it cannot."""
    import paddle

    content = {
        "images": "random",
        "versions": {"plsc": plsc.__version__, "paddle": paddle.__version__},
        "rows": [asdict(timing) for timing in timings],
    }
    try:
        files.write_json(Path(path), content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _contenders(path: str, img_size: int | None, device: str) -> list[_Contender]:
    import paddle

    from plsc import loading, predictor, runtimes
    from plsc.engine.blocks import compile_blocks

    if predictor.is_export(path):
        exported = predictor.load_predictor(path, img_size=img_size, device=device)
        return [_Contender(path, runtimes.NAMES[exported.kind], exported)]
    compiled, plain = (loading.load_model(path, img_size=img_size) for _ in range(2))
    assert isinstance(compiled.network, paddle.nn.Layer)
    compile_blocks(compiled.network)
    return [
        _Contender(path, runtime, predictor.of_network(loaded))
        for runtime, loaded in (("dygraph", plain), ("to_static", compiled))
    ]


def _timings(contenders: list[_Contender], batch: int, seconds: float, device: str) -> list[Timing]:
    """Of one batch size."""
    turns = [(contender.model, contender.images(batch)) for contender in contenders]
    for model, images in turns:
        for _ in range(_WARM_UP):
            model.run(images)
    times: list[list[float]] = [[] for _ in turns]
    for _ in range(_ROUNDS):
        for (model, images), taken in zip(turns, times, strict=True):
            taken += _timed(model, images, seconds / _ROUNDS)
    return [
        _summary(contender, images.shape, taken, device)
        for contender, (_, images), taken in zip(contenders, turns, times, strict=True)
    ]


def _timed(model: "Predictor", images: "np.ndarray", seconds: float) -> list[float]:
    """Seconds of each run, for about `seconds`; the first, while another's threads come to rest, does not count."""
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
