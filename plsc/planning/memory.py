"""The memory that one device needs: weights, optimizer and activations, counted on a shallow copy of the model.

A model of two and one of three blocks are built and run for one small batch on the CPU, where Paddle counts every byte
that it allocates. All amounts are linear in the number of blocks and in the batch, so that two such models give those
of the whole one. Models without blocks or depth are built and run whole.
"""

import contextlib
import ctypes
import dataclasses
import gc
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F

from plsc import build
from plsc.config import Config
from plsc.devices import count_devices
from plsc.engine import blocks, sharding
from plsc.errors import ConfigError
from plsc.models import ViTSpec
from plsc.models.base import HasBlocks
from plsc.models.spec import pair
from plsc.optim.groups import freeze

_BATCH = 2  # images of the batch that is run
_SHALLOW = 2  # blocks of the shallower model

# Freed blocks that no later tensor fits into, as a share of the activations: glibc's heap keeps them, as
# environment.keep_freed_memory asks. Measured with ViTs of width 192 to 768 and batches of 4 to 16: 0.44 to 0.57.
_GAPS = 0.5

# What activations take in half precision, of their float32 size. O2 has all of them in half precision. O1 keeps the
# residual stream, the input of two normalisations, in float32: of the 17 arrays of a block as wide as the model, 2.
_HALF = {"O2": 0.5, "O1": (2 * 4 + 15 * 2) / (17 * 4)}


@dataclass(frozen=True)
class Footprint:
    """Numbers and bytes of a model in float32, with its optimizer.

    Attributes:
        parameters, trained: how many numbers. optimizer: bytes of the optimizer's states.
        sizes: numbers of each trained parameter. within: of all that are in blocks. largest: of a block's.
        activations: bytes an image that forward keeps for backward. recomputed: the same where every block is
            recomputed; None where it cannot be. block: bytes an image inside one block. attention: bytes an image of
            attention matrices, a part of activations that flash attention does without.
        workspace: bytes an image that backward needs besides, at its height.
        outside: bytes of this process that are none of Paddle's tensors: Python, libraries and their buffers.
    """

    parameters: float
    trained: float
    optimizer: float
    sizes: tuple[int, ...]
    within: float
    largest: float
    activations: float
    recomputed: float | None
    block: float
    attention: float
    workspace: float
    outside: float


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. Its peak is less than the sum: gradients grow while backward frees activations.

    Attributes:
        process: Python and the libraries, on a CPU; 0 on other devices, whose driver takes some hundred MiB besides.
        weights, masters, optimizer, average: kept during the whole run; masters are float32 copies of half-precision
            weights, average is the EMA.
        gradients: of all trained parameters. communication: copies of gradients that travel between devices. Where
            DistributedStrategy.sharding spreads any of these, on the device that has most.
        activations: of one micro-batch as the configuration has it, with its input and backward's workspace.
        activations_kept, activations_recomputed: the same without and with DistributedStrategy.recompute; the latter is
            None where the model cannot be recomputed here.
        peak: the most at one time.
        micro_batch: images of it. largest: of the largest micro-batch that fits `available`; 0 where none does.
        available: the device's memory; None where it is unknown, and with it `largest` and `fits`.
    """

    process: int
    weights: int
    masters: int
    optimizer: int
    average: int
    gradients: int
    communication: int
    activations: int
    activations_kept: int
    activations_recomputed: int | None
    peak: int
    micro_batch: int
    largest: int | None
    available: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the peak is below what is available; None where that is unknown."""
        return None if self.available is None else self.peak <= self.available


def footprint(config: Config) -> Footprint:
    """Count a model on the CPU. Raises ConfigError where it cannot be built, or takes no images of its own size."""
    depth = config.Model.arguments.get("depth")
    before = paddle.get_device()
    paddle.set_device("cpu")
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # what is freed while others are counted would be taken off their amounts
    try:
        if not isinstance(depth, int) or depth <= _SHALLOW + 1 or config.optimizer_options.freeze:
            counted = _counted(config)
        else:
            two, three = (_counted(config.replace({"Model.depth": _SHALLOW + k})) for k in (0, 1))
            counted = _deeper(two, three, depth - _SHALLOW)
        return dataclasses.replace(counted, outside=_outside())
    finally:
        if collecting:
            gc.enable()
        paddle.set_device(before)


def share_of(config: Config, counted: Footprint, devices: int) -> float:
    """The part of the trained parameters that the process which owns most owns, where a run is sharded.

    Raises:
        ConfigError: the devices cannot be divided into groups.
    """
    wanted = config.DistributedStrategy.sharding
    if wanted is None or devices == 1:
        return 1.0
    degree = sharding.degree_of(config, devices)
    return sharding.largest_share({str(i): size for i, size in enumerate(counted.sizes)}, degree) / counted.trained


def memory_of(
    config: Config, counted: Footprint, *, micro_batch: int, devices: int, on_cpu: bool, available: int | None
) -> Memory:
    """The memory of one of several devices that run a configuration.

    Args:
        counted: see `footprint`. micro_batch: images of it. available: bytes of the device; None if unknown.
    """
    fp16 = config.FP16 if config.FP16 and config.FP16.level != "O0" and not on_cpu else None
    accumulated = config.Global.accum_steps > 1
    o2 = fp16 is not None and fp16.level == "O2"
    gradient = 4 if not o2 or (fp16 and fp16.master_grad) else 2  # bytes of one
    weights = counted.parameters * (2 if o2 else 4) + counted.parameters * (2 if fp16 and not o2 else 0)  # O1: casts
    masters = counted.trained * 4 if o2 and fp16 and fp16.master_weight else 0
    average = counted.trained * 4 if config.EMA else 0
    gradients = counted.trained * gradient
    communication = gradients if devices > 1 else 0
    states, built = counted.optimizer, 0.0
    wanted = config.DistributedStrategy.sharding if devices > 1 else None
    if wanted is not None:
        share = share_of(config, counted, devices)
        masters, average, states = share * masters, share * average, share * states
        outside = counted.trained - counted.within
        if wanted.stage > 1:  # what is outside of blocks waits for backward's end, blocks travel
            gradients = share * gradients * (2 if accumulated else 1)
            communication = gradient * (outside + counted.largest * (1 + sharding.IN_FLIGHT))
        if wanted.stage > 2:
            built = counted.parameters * 4.0
            here = counted.parameters - counted.within + share * counted.within + counted.largest
            weights *= here / counted.parameters
    half = 1.0 if fp16 is None else _HALF[fp16.level]
    attention = counted.attention * half if fp16 else 0.0  # which flash attention does not keep
    kept = counted.activations * half - attention
    block = counted.block * half - attention * (counted.block / counted.activations if counted.activations else 0)
    recomputed = None if counted.recomputed is None else counted.recomputed * half + block
    extra = counted.workspace * half + _input_bytes(config)
    if on_cpu:
        kept, extra = kept * (1.0 + _GAPS), extra * (1.0 + _GAPS)
        recomputed = None if recomputed is None else recomputed * (1.0 + _GAPS)
    now = kept
    if config.DistributedStrategy.recompute is not None and recomputed is not None:
        share = 1.0 / config.DistributedStrategy.recompute.layerlist_interval
        now = share * recomputed + (1.0 - share) * kept
    process = counted.outside if on_cpu else 0.0
    fixed = process + weights + masters + states + average + communication
    fixed += gradients if accumulated else 0

    def peak(images: int) -> float:
        return max(process + built, fixed + max(images * (now + extra), 0 if accumulated else gradients))

    largest = None
    if available is not None:
        largest = max(0, math.floor((available - fixed) / (now + extra))) if peak(0) <= available else 0
    return Memory(
        process=round(process),
        weights=round(weights),
        masters=round(masters),
        optimizer=round(states),
        average=round(average),
        gradients=round(gradients),
        communication=round(communication),
        activations=round(micro_batch * (now + extra)),
        activations_kept=round(micro_batch * (kept + extra)),
        activations_recomputed=None if recomputed is None else round(micro_batch * (recomputed + extra)),
        peak=round(peak(micro_batch)),
        micro_batch=micro_batch,
        largest=largest,
        available=available,
    )


def device_memory(device: str, processes: int) -> int | None:
    """Bytes that one process has on a device of this machine; None where the device does not report it."""
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes
    if device.startswith("gpu") and count_devices("gpu").count:
        return paddle.device.cuda.get_device_properties().total_memory
    return None


def _input_bytes(config: Config) -> int:
    """Of one image on the device: as uint8, and as float32 after normalisation."""
    height, width, channels = _picture(config)
    return height * width * channels * 5


def _picture(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the model takes. Raises ConfigError where it does not say."""
    size = config.Model.arguments.get("img_size")
    if size is None:
        raise config.error(("Model",), "has no img_size, so that the size of its images, and its cost, is unknown")
    return (*pair(size), config.Model.arguments.get("in_chans") or 3)


# -- counting -----------------------------------------------------------------------------------


def _counted(config: Config) -> Footprint:
    """A model as the configuration has it, built and run; `outside` is left open."""
    network = build.model(config)
    if config.optimizer_options.freeze:
        freeze(network, config.optimizer_options.freeze)
    network.train()
    sizes = [(math.prod(p.shape), not p.stop_gradient) for p in network.parameters()]
    layers = blocks.blocks_of(network) if isinstance(network, HasBlocks) else []
    in_blocks = [sum(p.size for p in layer.parameters() if not p.stop_gradient) for layer in layers]
    kept, workspace = _run(config, network)
    with _counting() as states:
        build.optimizer(config, network, multi_precision=False).create_state()
    recomputed = None
    count = len(blocks.blocks_of(network))
    try:
        blocks.recompute_blocks(network, interval=1, names=(), on_cpu=True)
        recomputed, _ = _run(config, network)
    except ConfigError:  # Paddle 2.6 cannot repeat random numbers on CPU
        pass
    inside = kept / count if isinstance(network, HasBlocks) else kept
    return Footprint(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        optimizer=states.bytes,
        sizes=tuple(sorted(size for size, trained in sizes if trained)),
        within=sum(in_blocks),
        largest=max(in_blocks, default=0),
        activations=kept,
        recomputed=recomputed,
        block=inside,
        attention=_attention(network.spec),
        workspace=workspace,
        outside=0.0,
    )


def _deeper(two: Footprint, three: Footprint, more: int) -> Footprint:
    """The model of `more` blocks above the shallower of two models that differ by one block."""

    def at(name: str) -> Any:
        low, high = getattr(two, name), getattr(three, name)
        return None if low is None or high is None else low + more * (high - low)

    linear = ("parameters", "trained", "optimizer", "within", "activations", "recomputed", "attention")
    block = Counter(three.sizes) - Counter(two.sizes)
    sizes = Counter(two.sizes) + Counter({size: more * count for size, count in block.items()})
    return dataclasses.replace(
        three,  # whose workspace is that of a deeper model, too
        **{name: at(name) for name in linear},
        sizes=tuple(sorted(sizes.elements())),
        block=three.activations - two.activations,
    )


def _run(config: Config, network: Any) -> tuple[float, float]:
    """Bytes an image that forward keeps, and that backward needs besides at its height."""
    height, width, channels = _picture(config)
    images = paddle.randn([_BATCH, channels, height, width])
    labels = paddle.zeros([_BATCH], dtype="int64")
    with _counting() as kept:
        loss = F.cross_entropy(network(images), labels)
    core = paddle.base.core
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    loss.backward()
    height_of_backward = core.host_memory_stat_peak_value("Allocated", 0) - kept.end
    network.clear_gradients()
    return kept.bytes / _BATCH, max(0, height_of_backward) / _BATCH


@dataclass
class _Count:
    """Bytes that were allocated in a block of code, and all there were at its end."""

    bytes: int = 0
    end: int = 0


@contextlib.contextmanager
def _counting() -> Iterator[_Count]:
    count, core = _Count(), paddle.base.core
    before = core.host_memory_stat_current_value("Allocated", 0)
    yield count
    count.end = core.host_memory_stat_current_value("Allocated", 0)
    count.bytes = count.end - before


def _attention(spec: Any) -> float:
    """Bytes an image of a model's attention matrices in float32."""
    if not isinstance(spec, ViTSpec):
        return 0.0
    tokens = spec.grid[0] * spec.grid[1] + spec.prefix_tokens
    return 4.0 * spec.depth * spec.num_heads * tokens**2


def _outside() -> float:
    """Bytes of this process that are not in Paddle's tensors, once freed memory has gone back to the system."""
    if not sys.platform.startswith("linux"):
        return 0.0
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return float(resident - paddle.base.core.host_memory_stat_current_value("Allocated", 0))
