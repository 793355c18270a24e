"""What the engine does to a model's blocks: recompute their activations, compile them, have them compute otherwise.

A model without blocks is treated as one block.
"""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import paddle

from plsc import compat
from plsc.config import Config
from plsc.errors import ConfigError
from plsc.models.base import HasBlocks, Randomness
from plsc.registry import TASKS


def blocks_of(model: Any) -> list[paddle.nn.Layer]:
    """The model's blocks; the model itself where it has none."""
    return list(model.blocks) if isinstance(model, HasBlocks) else [model]


def recompute_blocks(model: paddle.nn.Layer, *, interval: int, names: Sequence[str], on_cpu: bool) -> int:
    """Keep no activations inside every `interval`-th block, nor inside the layers `names`.

    Returns how many layers. Raises ConfigError for a name that is not a layer of the model.
    """
    layers = blocks_of(model)[::interval]
    known = dict(model.named_sublayers())
    for name in names:
        if name not in known:
            raise ConfigError(
                f"DistributedStrategy.recompute.names: {name!r} is not a layer of the model, such as blocks.0.mlp"
            )
        if known[name] not in layers:
            layers.append(known[name])
    if not compat.recompute_keeps_random_state(on_cpu) and any(map(_draws_random_numbers, layers)):
        raise ConfigError(
            "DistributedStrategy.recompute: Paddle 2.6 cannot repeat random numbers on CPU; set drop_rate, "
            "attn_drop_rate and drop_path_rate to 0, or use Paddle 3"
        )
    for layer in layers:
        recomputed = MethodType(_recomputing(vars(layer).get("forward"), on_cpu), layer)
        setattr(layer, "forward", recomputed)  # noqa: B010 - mypy: a method
    return len(layers)


def _draws_random_numbers(layer: paddle.nn.Layer) -> bool:
    return layer.random if isinstance(layer, Randomness) else True


def _recomputing(own: Callable | None, on_cpu: bool) -> Callable[..., paddle.Tensor]:
    """A forward for a layer whose own is given, else its class's: so a deep copy computes with its own weights."""

    def forward(layer: paddle.nn.Layer, *inputs: Any) -> paddle.Tensor:
        plain = own or MethodType(type(layer).forward, layer)
        return compat.recompute(plain, *inputs, on_cpu=on_cpu) if layer.training else plain(*inputs)

    return forward


def take_cpu_forms(config: Config) -> bool:
    """Whether the layers of a run on CPU compute by plsc.models.cpu_forms.

    That is so where it is asked for, or the task is plsc's: one of somebody else's may need what they lack. Compiled
    blocks have the plain layers.
    """
    if config.Global.to_static:
        return False
    if config.Global.cpu_forms is not None or config.Task is None:
        return config.Global.cpu_forms is not False
    return TASKS.get(config.Task.name).factory.__module__.startswith("plsc.")


def compile_blocks(model: Any) -> int:
    """Compile each block; returns how many. Gradients of a block still leave while the next runs."""
    blocks = blocks_of(model)
    for block in blocks:
        compat.to_static(block)
    return len(blocks)
