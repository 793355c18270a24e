"""Whether a run can fit into memory at all: asked before the model is built, so that nothing is killed silently.

What is counted is the least that any run needs. A run that is let through may still not fit; `plsc plan` estimates all.
"""

from typing import Any

import paddle

from plsc import environment
from plsc.config import Config
from plsc.engine.distributed import World
from plsc.engine.precision import Precision
from plsc.engine.sharding import degree_of
from plsc.errors import ConfigError
from plsc.models import ViTSpec, parameter_count, spec_of

# arrays of a parameter's size that an optimizer keeps; of others nothing is assumed
_STATES = {"AdamW": 2, "Adam": 2, "Lamb": 2, "Momentum": 1, "LARS": 1, "Lion": 1}
# arrays [tokens, width] of a block that backward needs at least: the inputs of its four products and of two
# normalisations, queries, keys and values; half of what a block with an MLP of four times the width has
_KEPT = 8


def check_memory(config: Config, world: World, precision: Precision, *, batch_size: int) -> None:
    """Refuse a model that has no room on the device, where its size is known before it is built.

    Args:
        batch_size: pictures of this process's update.

    Raises:
        ConfigError: naming what it would take, and what there is.
    """
    available = _available(world)
    if available is None:
        return
    try:
        spec = spec_of(config.Model.name, **config.Model.arguments)
        count = parameter_count(spec)
    except (ConfigError, TypeError):  # somebody else's model
        return
    needs = _of_parameters(config, precision, count, world.size)
    images = batch_size // config.Global.accum_steps
    activations = _of_activations(config, precision, spec, images)
    gradients = needs.pop("gradients", 0)  # which grow while backward frees activations
    fixed = sum(needs.values())
    needs["gradients" if gradients > activations else f"activations of {images:,} pictures"] = max(
        gradients, activations
    )
    total = sum(needs.values())
    start = _at_start(config, precision, count, needs)
    if max(start, total) <= available:
        return
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in needs.items() if size)
    there = f"{_gib(available)} at most on {world.device}{' (swap is not counted)' if world.on_cpu else ''}"
    if start > total:
        raise config.error(
            ("Model", "name"),
            f"{config.Model.name} has {count:,} parameters, and every process begins with all of them, built in "
            f"float32: that needs {_gib(start)}, but a process has {there}; a smaller model, or a device with more "
            "memory",
        )
    if fixed + gradients <= available:
        raise config.error(
            ("DataLoader", "Train", "sampler", "batch_size"),
            f"{batch_size:,} pictures a process need at least {_gib(total)} ({parts}), but it has {there}; a smaller "
            "batch, a larger Global.accum_steps, or DistributedStrategy.recompute (`plsc plan` shows the effect)",
        )
    raise config.error(
        ("Model", "name"),
        f"{config.Model.name} has {count:,} parameters and needs at least {_gib(total)} ({parts}), but a process has "
        f"{there}; a smaller model, or an optimizer with fewer states",
    )


def _available(world: World) -> int | None:
    """Bytes that one process has on its device at most; None where they are unknown."""
    if world.on_cpu:
        limit = environment.memory_limit()
        return None if limit is None else limit // environment.local_size()
    if world.device.startswith("gpu") and paddle.is_compiled_with_cuda():
        return paddle.device.cuda.get_device_properties().total_memory
    return None


def _of_parameters(config: Config, precision: Precision, count: int, processes: int) -> dict[str, int]:
    wanted = config.DistributedStrategy.sharding if processes > 1 else None
    stage, share = 0, count  # numbers that this process owns
    if wanted is not None:
        stage, share = wanted.stage, count // degree_of(config, processes)
    number = _stored(config, precision)
    needs = {"weights": (share if stage > 2 else count) * number}
    if config.optimizer_options.freeze:  # which may be nearly all of them
        return needs
    if precision.keeps_masters:
        needs["masters"] = share * 4
    needs["gradients"] = (share if stage > 1 else count) * number
    optimizer = config.Optimizer.name if config.Optimizer else ""
    needs[f"states of {optimizer}"] = share * 4 * _STATES.get(optimizer, 0)
    if config.EMA:
        needs["averages"] = share * 4
    return needs


def _stored(config: Config, precision: Precision) -> int:
    """Bytes of a weight."""
    return 2 if precision.active and config.FP16 is not None and config.FP16.level == "O2" else 4


def _at_start(config: Config, precision: Precision, count: int, needs: dict[str, int]) -> int:
    """Bytes that a process has at least before the first update."""
    with_weights = ["masters", "averages"]
    if precision.keeps_masters:  # with which the optimizer's states are made
        with_weights += [name for name in needs if name.startswith("states of")]
    kept = sum(needs.get(name, 0) for name in with_weights)
    return int(start_bytes(count, number=_stored(config, precision), kept=kept))


def start_bytes(count: float, *, number: int, kept: float) -> float:
    """The most that a process has before its first update, in which it has all weights whatever the stage of sharding:
    they are built in float32, and are whole until the run's state is there.

    Args:
        count: of the model's numbers. number: bytes of one as it is stored once it has its precision.
        kept: bytes of masters, optimizer's states and averages that this process has by then.
    """
    return max(4 * count, number * count + kept)


def _of_activations(config: Config, precision: Precision, spec: Any, images: int) -> int:
    if not isinstance(spec, ViTSpec) or config.optimizer_options.freeze:
        return 0
    tokens = spec.grid[0] * spec.grid[1] + spec.prefix_tokens
    kept = 1 if config.DistributedStrategy.recompute or config.Global.to_static else _KEPT
    return images * tokens * spec.embed_dim * spec.depth * kept * (2 if precision.active else 4)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
