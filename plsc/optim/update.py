"""One update of all parameters: measure and clip the gradients, step, and keep state by name."""

import logging
from collections.abc import Collection, Mapping

import numpy as np
import paddle
from paddle import nn

from plsc import compat
from plsc.errors import CheckpointError
from plsc.optim.clipping import GradientClip
from plsc.tensors import assign, to_numpy

log = logging.getLogger("plsc")


class Optimizer:
    """A Paddle optimizer with its state under the model's own parameter names.

    Paddle names state after generated names (linear_0.w_0), which depend on how many layers the
    process has built; here it is `blocks.0.attn.qkv.weight|moment1`.

    Args:
        paddle_optimizer: over the trainable parameters of `model`, or those of `owned`.
        owned: names of the parameters that this process updates, where others update the rest (plsc.engine.sharding).

    Attributes:
        trained: (name, parameter) of each that is trained. named: of each that this process updates, mostly the same.
    """

    def __init__(
        self,
        paddle_optimizer: paddle.optimizer.Optimizer,
        model: nn.Layer,
        clip: GradientClip,
        owned: Collection[str] | None = None,
    ):
        self.paddle_optimizer = paddle_optimizer
        self.clip = clip
        self.trained = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
        self.named = self.trained if owned is None else [(name, p) for name, p in self.trained if name in owned]

    def set_lr(self, lr: float) -> None:
        self.paddle_optimizer.set_lr(lr)

    def clip_gradients(self) -> paddle.Tensor:
        """Clip in place; returns the global norm before, a scalar on the device."""
        return self.clip(self.named)

    def clear_gradients(self) -> None:
        self.paddle_optimizer.clear_grad(set_to_zero=False)

    def end_update(self) -> None:
        """What follows the step, once per update."""
        self.clear_gradients()

    def state_bytes(self) -> int:
        """Bytes of accumulators and float32 masters on this process."""
        masters = getattr(self.paddle_optimizer, "_master_weights", None) or {}
        states = [tensor for tensors in self.paddle_optimizer._accumulators.values() for tensor in tensors.values()]
        return sum(tensor.size * tensor.element_size() for tensor in [*states, *masters.values()])

    def weights(self) -> dict[str, paddle.Tensor]:
        """Name → the tensor that the optimizer really updates: the float32 master where there is one."""
        masters = getattr(self.paddle_optimizer, "_master_weights", None) or {}
        return {name: masters.get(p.name, p) for name, p in self.named}

    def _names(self) -> dict[str, str]:
        """Paddle's name of a parameter or of its master weight → ours."""
        return {tensor.name: name for name, tensor in self.weights().items()} | {p.name: n for n, p in self.named}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays by "parameter|accumulator"; a parameter that was never updated has none."""
        names = self._names()
        return {
            f"{names[owner]}|{kind}": to_numpy(tensor)
            for kind, accumulators in self.paddle_optimizer._accumulators.items()
            for owner, tensor in accumulators.items()
        }

    def create_state(self) -> None:
        """Accumulators and master weights of every parameter, which Paddle otherwise makes in the first step."""
        compat.optimizer_accumulators_need_helper(self.paddle_optimizer)
        block = paddle.base.framework.default_main_program().global_block()
        self.paddle_optimizer._create_accumulators(block, [parameter for _, parameter in self.named])

    def assign_masters(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Give the float32 masters, where there are any, values that half-precision weights have rounded."""
        parameters = dict(self.named)
        for name, weight in self.weights().items():
            if weight is not parameters[name]:
                assign(weight, arrays[name])

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what state_dict returned. Raises CheckpointError where the two do not match."""
        own, trained = {name for name, _ in self.named}, {name for name, _ in self.trained}
        unknown = sorted({key.rsplit("|", 1)[0] for key in state} - trained)
        if unknown:
            raise CheckpointError(f"the optimizer state has parameters that are not trained here: {_some(unknown)}")
        keys = {key for key in state if key.rsplit("|", 1)[0] in own}
        present = {key.rsplit("|", 1)[0] for key in keys}
        self.create_state()
        names = self._names()
        fresh = [name for name, _ in self.named if name not in present]
        if fresh and present:
            log.warning("the optimizer state of %d arrays begins now: they were not trained before", len(fresh))
        wanted = {}
        for kind, accumulators in self.paddle_optimizer._accumulators.items():
            for owner, tensor in accumulators.items():
                if names[owner] in present:
                    wanted[f"{names[owner]}|{kind}"] = tensor
        if wanted.keys() != keys:
            different = sorted(wanted.keys() ^ keys)
            raise CheckpointError(
                f"the optimizer state is of another kind of optimizer; it differs in {_some(different)}"
            )
        for key, tensor in wanted.items():
            array = state[key]
            if list(tensor.shape) != list(array.shape):
                raise CheckpointError(f"the optimizer state {key} has shape {array.shape}, not {tensor.shape}")
            assign(tensor, array)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
