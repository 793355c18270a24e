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

from plsc import build, environment
from plsc.config import Config
from plsc.devices import count_devices
from plsc.engine import blocks, sharding
from plsc.engine.capacity import start_bytes
from plsc.errors import ConfigError
from plsc.models import VisionTransformer, ViTSpec
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
            attention matrices, a part of activations that flash attention does without; 0 where it is not taken.
        workspace: bytes an image that backward needs besides, at its height; without the parameters' gradients, unless
            it is counted for a CPU.
        shallow: numbers of blocks of the models that were run instead of the whole one; empty where that was run.
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
    shallow: tuple[int, ...]
    outside: float


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. Its peak is less than the sum: gradients grow while backward frees activations.

    Attributes:
        process: Python and the libraries, on a CPU; 0 on other devices, whose driver takes some hundred MiB besides.
        weights, masters, optimizer, average: kept during the whole run; masters are float32 copies of half-precision
            weights, average is the EMA. Weights include the half-precision copies of O1, which backward needs.
        gradients: of all trained parameters, and their sums over micro-batches where these are kept apart.
            communication: copies of gradients that travel between devices. Where DistributedStrategy.sharding spreads
            any of these, on the device that has most.
        activations: of one micro-batch as the configuration has it, with its input and backward's workspace.
        activations_kept, activations_recomputed: the same without and with DistributedStrategy.recompute; the latter is
            None where the model cannot be recomputed here.
        start: before the first update, when every process has all weights, which it builds in float32, whatever the
            stage of sharding. peak: the most at one time, this included.
        micro_batch: images of it. largest: of the largest micro-batch that fits `available`; 0 where none does.
        available: the device's memory; None where it is unknown, and with it `largest` and `fits`.
        traffic: bytes that the device receives from others in an update, where nothing is sent twice.
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
    start: int
    peak: int
    micro_batch: int
    largest: int | None
    available: int | None
    traffic: int

    @property
    def fits(self) -> bool | None:
        """Whether the peak is below what is available; None where that is unknown."""
        return None if self.available is None else self.peak <= self.available


def footprint(config: Config, *, on_cpu: bool = False) -> Footprint:
    """Count a model on the CPU. Raises ConfigError where it cannot be built, or takes no images of its own size.

    Args:
        on_cpu: whether it is to run there: see `_workspace`; a ViT's last block makes the tokens that are read.
    """
    depth = config.Model.arguments.get("depth")
    before = paddle.get_device()
    paddle.set_device("cpu")
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # what is freed while others are counted would be taken off their amounts
    try:
        if not isinstance(depth, int) or depth <= _SHALLOW + 1 or config.optimizer_options.freeze:
            counted = _counted(config, on_cpu)
        else:
            two = _counted(config.replace({"Model.depth": _SHALLOW}), on_cpu)
            gc.collect()  # of a large model two together are too much for a small machine
            three = _counted(config.replace({"Model.depth": _SHALLOW + 1}), on_cpu)
            counted = _deeper(two, three, depth - _SHALLOW)
        gc.collect()
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
    o2 = fp16 is not None and fp16.level == "O2"
    number = 2 if o2 else 4  # bytes of a weight, and of its gradient when it travels
    apart = o2 and fp16 is not None and fp16.master_grad  # gradients become float32 after each backward
    sums = config.Global.accum_steps > 1
    recompute = config.DistributedStrategy.recompute if counted.recomputed is not None else None
    recomputed_blocks = 0.0 if recompute is None else 1.0 / recompute.layerlist_interval  # the share of them
    weights = counted.parameters * number
    # of O1 backward keeps the half-precision weights that it computed with, but not of a block that is recomputed
    casts = counted.parameters - recomputed_blocks * max(0.0, counted.within - counted.largest)
    casts *= 2 if fp16 and not o2 else 0
    masters = counted.trained * 4 if o2 and fp16 and fp16.master_weight else 0
    average = counted.trained * 4 if config.EMA else 0
    gradients = counted.trained * (4 if apart else number)
    communication = counted.trained * number if devices > 1 and not (apart and sums) else 0
    states = counted.optimizer
    wanted = config.DistributedStrategy.sharding if devices > 1 else None
    if wanted is not None:
        share = share_of(config, counted, devices)
        masters, average, states = share * masters, share * average, share * states
        if wanted.stage > 1:  # what is outside of blocks waits for backward's end, blocks travel
            gradients = share * gradients
            outside = counted.trained - counted.within
            communication = number * (outside + counted.largest * (2 + sharding.IN_FLIGHT))
        if wanted.stage > 2:  # a block is in use while the next one comes
            here = counted.parameters - counted.within + share * counted.within + 2 * counted.largest
            weights *= min(1.0, here / counted.parameters)
    weights += casts
    kept_apart = apart or (wanted is not None and wanted.stage > 1)
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
    if recomputed is not None:
        now = recomputed_blocks * recomputed + (1.0 - recomputed_blocks) * kept
    process = counted.outside if on_cpu else 0.0
    start = process + start_bytes(counted.parameters, number=number, kept=masters + states + average)
    fixed = process + weights + masters + states + average + communication
    fixed += gradients if sums else 0
    grown = 0.0 if sums and not kept_apart else gradients  # while backward frees activations

    def peak(images: int) -> float:
        return max(start, fixed + images * extra + max(images * now, grown))

    largest = None
    if available is not None:
        room = available - fixed
        largest = max(0, math.floor(min(room / (now + extra), (room - grown) / extra))) if start <= available else 0
    return Memory(
        process=round(process),
        weights=round(weights),
        masters=round(masters),
        optimizer=round(states),
        average=round(average),
        gradients=round(gradients * (2 if sums and kept_apart else 1)),
        communication=round(communication),
        activations=round(micro_batch * (now + extra)),
        activations_kept=round(micro_batch * (kept + extra)),
        activations_recomputed=None if recomputed is None else round(micro_batch * (recomputed + extra)),
        start=round(start),
        peak=round(peak(micro_batch)),
        micro_batch=micro_batch,
        largest=largest,
        available=available,
        traffic=round(_traffic(config, counted, devices, number=number, summed=4 if apart and sums else number)),
    )


def _traffic(config: Config, counted: Footprint, devices: int, *, number: int, summed: int) -> float:
    """Bytes that a device receives in an update.

    Args:
        number: bytes of a weight. summed: bytes of a gradient as data-parallel training sends it.
    """
    if devices == 1:
        return 0.0
    wanted = config.DistributedStrategy.sharding
    reduced = 2.0 * counted.trained * summed * (devices - 1) / devices
    if wanted is None:
        return reduced
    degree, micro_batches = sharding.degree_of(config, devices), config.Global.accum_steps
    others = (degree - 1) / degree  # the part that others own
    copies = devices // degree
    if wanted.stage == 1:
        return reduced + others * counted.trained * number
    owned = counted.trained / degree
    gradients = others * counted.trained + 2.0 * owned * (copies - 1) / copies
    weights = others * (counted.trained if wanted.stage == 2 else counted.trained - counted.within)
    gathered = 2.0 * others * counted.within if wanted.stage == 3 else 0.0
    return number * (micro_batches * (gradients + gathered) + weights)


def device_memory(device: str, processes: int) -> int | None:
    """Bytes that one process has on a device of this machine; None where they are unknown."""
    if device == "cpu":
        limit = environment.memory_limit()
        return None if limit is None else limit // processes
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


def _counted(config: Config, on_cpu: bool) -> Footprint:
    """A model as the configuration has it, built and run; `outside` is left open."""
    network = build.model(config)
    if config.optimizer_options.freeze:
        freeze(network, config.optimizer_options.freeze)
    network.train()
    sizes = [(math.prod(p.shape), not p.stop_gradient) for p in network.parameters()]
    layers = blocks.blocks_of(network) if isinstance(network, HasBlocks) else []
    in_blocks = [sum(p.size for p in layer.parameters() if not p.stop_gradient) for layer in layers]
    kept, workspace = _kept(config, network), _workspace(config, network, on_cpu)
    inside = kept / (len(layers) or 1)
    if on_cpu and blocks.take_cpu_forms(config) and isinstance(network, VisionTransformer):
        network.skip_unread()  # now: the workspace of whole blocks is what was compared with processes
        kept = _kept(config, network)
    with _counting() as states:
        build.optimizer(config, network, multi_precision=False).create_state()
    recomputed = None
    try:
        blocks.recompute_blocks(network, interval=1, names=(), on_cpu=True)
        recomputed = _kept(config, network)
    except ConfigError:  # Paddle 2.6 cannot repeat random numbers on CPU
        pass
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
        attention=_attention(network),
        workspace=workspace,
        shallow=(),
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
        shallow=(_SHALLOW, _SHALLOW + 1),
    )


def _batch(config: Config) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Images and labels."""
    height, width, channels = _picture(config)
    return paddle.randn([_BATCH, channels, height, width]), paddle.zeros([_BATCH], dtype="int64")


def _kept(config: Config, network: Any) -> float:
    """Bytes an image that forward keeps for backward."""
    images, labels = _batch(config)
    with _counting() as kept:
        loss = F.cross_entropy(network(images), labels)
    del loss
    return kept.bytes / _BATCH


def _workspace(config: Config, network: Any, on_cpu: bool) -> float:
    """Bytes an image that backward needs besides, at its height.

    Gradients of parameters, whose size does not depend on the batch, would count as those of its few images: where all
    are trained, gradients go through them to the images instead. Not on a CPU: there they stand for what its heap and a
    checkpoint's copy take besides, so that the sum is what processes were measured to take (tests/test_planning.py).
    """
    images, labels = _batch(config)
    trained = [p for p in network.parameters() if not p.stop_gradient]
    replaced = trained if len(trained) == len(network.parameters()) and not on_cpu else []
    for parameter in replaced:
        parameter.stop_gradient = True
    images.stop_gradient = not replaced
    with _counting() as kept:
        loss = F.cross_entropy(network(images), labels)
    core = paddle.base.core
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    loss.backward()
    height = core.host_memory_stat_peak_value("Allocated", 0) - kept.end
    network.clear_gradients()
    for parameter in replaced:
        parameter.stop_gradient = False
    return max(0, height) / _BATCH


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


def _attention(network: Any) -> float:
    """Bytes an image of a model's attention matrices in float32, where it can take flash attention; else 0."""
    spec = network.spec
    if not isinstance(spec, ViTSpec) or not all(block.attn.flash for block in network.blocks):
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
