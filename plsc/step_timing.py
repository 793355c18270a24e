"""How fast a recipe trains: the engine's own update, on pictures of noise. Importing it imports no Paddle.

What the recipe reads (data, weights, checkpoints) need not be there. Its model, loss, optimizer, precision,
micro-batches, mixing and what else an update consists of are its own; the time is that of whole updates, without
reading pictures.
"""

import ctypes
import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plsc import environment
from plsc.api import load_config
from plsc.config import Component, Config
from plsc.errors import ConfigError

if TYPE_CHECKING:
    from plsc.engine.distributed import World

_WARM_UP = 3  # updates before the clock starts; the first compiles, the second has the optimizer's state
_ROUNDS = 5
_SIZE, _CLASSES = 224, 1000  # of models that take any size, and where class_num is auto


@dataclass(frozen=True)
class StepTiming:
    """What updates of one form took.

    Attributes:
        recipe: by name. runtime: dygraph, or to_static with compiled blocks.
        device: Paddle's name of it. threads: of the process, on CPU. precision: float32, or as the section FP16 says.
        batch: images of an update. accum_steps: micro-batches that it is split into.
        height, width: of the images.
        images_per_second, ms: of the median round; ms are of an update.
        memory_bytes: most that was held at the same time, on the device or, on CPU, by this form of the process; None
            where it cannot be measured.
        mfu: model FLOPs utilisation; None where the device's peak is unknown (Global.device_tflops).
        updates: that were timed.
    """

    recipe: str
    runtime: str
    device: str
    threads: int
    precision: str
    batch: int
    accum_steps: int
    height: int
    width: int
    images_per_second: float
    ms: float
    memory_bytes: int | None
    mfu: float | None
    updates: int

    @property
    def conditions(self) -> str:
        """What it was timed on, in words."""
        return f"{self.precision}; updates as the run does them, on pictures of noise in memory"

    def cells(self) -> dict[str, str]:
        """Its row of a table: title → text."""
        parts = "" if self.accum_steps == 1 else f" in {self.accum_steps} parts"
        return {
            "recipe": self.recipe,
            "runtime": self.runtime,
            "batch": f"{self.batch}{parts}",
            "size": f"{self.height}x{self.width}",
            "images/s": f"{self.images_per_second:,.1f}",
            "ms/update": f"{self.ms:,.1f}",
            "memory MiB": "" if self.memory_bytes is None else f"{self.memory_bytes / 2**20:,.0f}",
            "MFU": "" if self.mfu is None else f"{self.mfu:.1%}",
            "updates": str(self.updates),
        }


def benchmark_training(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    imports: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    seconds: float = 3.0,
    img_size: int | None = None,
) -> list[StepTiming]:
    """Time a recipe's updates in one process, in dygraph and with compiled blocks (Global.to_static).

    Args:
        config, overrides, imports: as in plsc.load_config. Device, threads and everything else are the recipe's.
        batch_sizes: images an update; by default the recipe's, of one process.
        seconds: for each timing, about. img_size: another image size than the model's, in pixels.

    Returns:
        A StepTiming for each batch size and form, in this order.

    Raises:
        ConfigError: the recipe does not fit, has nothing to train on, or a batch takes more memory than there is.
        DeviceError: this Paddle lacks the device.

    Example:
        for timing in benchmark_training("ViT_tiny_patch16_224_in1k", batch_sizes=[8, 32]):
            print(timing.runtime, timing.batch, timing.images_per_second, timing.memory_bytes)
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides, imports)
    elif overrides or imports:
        raise ConfigError("overrides and imports go with a recipe, not with a Config that was checked already")
    environment.import_paddle(cpu_threads=config.Global.cpu_threads)
    from plsc.engine.run import joined

    if environment.world_size() > 1:
        raise ConfigError("a benchmark of training runs in one process; start it without the launcher")
    if "Train" not in config.DataLoader:
        raise ConfigError("DataLoader.Train is missing: there is nothing to train on")
    timings = []
    with tempfile.TemporaryDirectory(prefix="plsc-benchmark-") as folder:
        config = _on_noise(config, folder, img_size)
        with joined(config) as world:
            sizes: list[int | None] = [*batch_sizes] or [None]
            for batch in sizes:
                for compiled in (False, True):
                    changes: dict[str, Any] = {"Global.to_static": compiled}
                    if batch is not None:
                        changes |= {"Global.global_batch_size": batch, "DataLoader.Train.sampler.batch_size": None}
                    timings.append(_timed(config.replace(changes), world, seconds))
                    gc.collect()  # what it held
    return timings


def _on_noise(config: Config, folder: str, img_size: int | None) -> Config:
    """The configuration on pictures of noise, without all that happens between updates."""
    from plsc import build
    from plsc.data.transforms.base import DeviceTransform, InputStep
    from plsc.models.spec import pair
    from plsc.registry import DATASETS, TRANSFORMS

    arguments, train = config.Model.arguments, config.DataLoader["Train"]
    if img_size is not None:
        if "img_size" not in arguments:
            raise config.error(("Model",), f"{config.Model.name} takes any image size; resolution has no meaning here")
        config = config.replace({"Model.img_size": img_size})
    if arguments.get("class_num") == "auto":
        config = config.replace({"Model.class_num": _CLASSES})
    height, width = pair(img_size or arguments.get("img_size") or _SIZE)
    of_device = (DeviceTransform, InputStep)  # the others make pictures of this size
    kept = [part for part in train.transforms if isinstance(build.component(config, TRANSFORMS, part), of_device)]
    channels, classes = arguments.get("in_chans") or 3, build.class_num(config)
    noise = {"height": height, "width": width, "channels": channels, "classes": max(1, classes)}
    noise = {**{name: p.default for name, p in DATASETS.get("RandomPixels").parameters().items()}, **noise}
    changes: dict[str, Any] = {
        "Global.output_dir": folder,
        "Global.eval_during_train": False,
        "Global.checkpoint": None,
        "Global.resume": None,
        "Global.pretrained_model": None,
        "Global.finetune": False,
        "DistributedStrategy.sharding": None,  # one process has nothing to share
        "DataLoader.Train.dataset": Component("RandomPixels", noise, train.dataset.path),
        "DataLoader.Train.dataset.transform_ops": kept,
    }
    return config.replace(changes)


def _timed(config: Config, world: "World", seconds: float) -> StepTiming:
    """Updates of one configuration."""
    from plsc.engine.assembly import assemble

    memory = _Memory(world.device)
    trainer = assemble(config, world)
    trainer.model.train()
    loader = trainer.feed.loader.run(trainer.sampler.batches(0))
    batches = itertools.repeat(next(loader))

    def updates(count: int) -> float:
        """Seconds of one, with the device at rest before and afterwards."""
        started = time.perf_counter()
        for _ in range(count - 1):
            trainer.advance(batches)
        trainer.advance(batches).item()
        return (time.perf_counter() - started) / count

    first = [updates(1) for _ in range(_WARM_UP)]
    count = max(1, round(seconds / _ROUNDS / first[-1]))
    taken = [updates(count) for _ in range(_ROUNDS)]
    trainer.feed.loader.close()
    update, batch = statistics.median(taken), trainer.sampler.global_batch
    height, width, _ = trainer.feed.loader.fetcher.fields()["image"].shape
    return StepTiming(
        recipe=Path(config.source.name).stem,
        runtime="to_static" if config.Global.to_static else "dygraph",
        device=world.device,
        threads=environment.thread_count(),
        precision=str(trainer.precision),
        batch=batch,
        accum_steps=config.Global.accum_steps,
        height=height,
        width=width,
        images_per_second=round(batch / update, 2),
        ms=round(1000 * update, 3),
        memory_bytes=memory.most(),
        mfu=None if trainer.full_speed is None else round(batch / update / trainer.full_speed, 4),
        updates=_ROUNDS * count,
    )


class _Memory:
    """The most memory that is held from now on: of the device or, on CPU, of the process, without what it holds now."""

    def __init__(self, device: str):
        from plsc import compat

        self._device, self._before = device, 0
        if device != "cpu":
            compat.reset_peak_memory(device)
            return
        if sys.platform.startswith("linux"):
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):
                libc.malloc_trim(0)  # what was freed would be used again unseen
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
        except OSError:
            return
        self._before = environment.process_memory("VmRSS") or 0

    def most(self) -> int | None:
        """Bytes; None where it is unknown."""
        from plsc import compat

        if self._device != "cpu":
            return compat.peak_memory_bytes(self._device)
        peak = environment.process_memory("VmHWM") if self._before else None
        return None if peak is None else max(0, peak - self._before)
