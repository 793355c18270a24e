"""AdamW whose update of many small parameters is one call.

Why it is here: Paddle's AdamW spends 15 µs of Python on each parameter, which for a small model is more than the update
itself, and starts a kernel for each on an accelerator. Its kernel for many tensors at once (fused_adam) computes the
same numbers, bit for bit; the state stays one accumulator a parameter, as checkpoints and sharding have it.
tests/test_optim.py holds both against each other. Nothing in Paddle itself uses that kernel, so on an accelerator it is
compared with AdamW first.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from plsc import compat
from plsc.tensors import assign, to_numpy

log = logging.getLogger("plsc")


class MultiTensorAdamW(paddle.optimizer.AdamW):
    """paddle.optimizer.AdamW over parameter groups; one call a group where all weights are float32.

    Paddle's own step is taken for half-precision weights, since the kernel takes no float32 gradients of those, and on
    devices where it is missing or computes something else.
    """

    @paddle.no_grad()
    def step(self) -> None:
        if not self._at_once():
            super().step()
            return
        overflowed = self._get_auxiliary_var("found_inf")
        if overflowed is not None:
            self._set_auxiliary_var("found_inf", bool(overflowed))  # read from the device, once
            if self._get_auxiliary_var("found_inf"):
                return
        rate = paddle.full([1], self.get_lr(), dtype="float32")
        groups: list[Any] = self._param_groups
        for group in groups:
            trained = [p for p in group["params"] if not p.stop_gradient and p.grad is not None]
            if trained:
                self._update(trained, rate if group["learning_rate"] == 1.0 else rate * group["learning_rate"], group)

    def _at_once(self) -> bool:
        device = paddle.get_device()
        if compat.IS_PADDLE_2 or (device != "cpu" and not _computes_right(device)):
            return False
        groups: list[Any] = self._param_groups
        return all(p.dtype == paddle.float32 for group in groups for p in group["params"])

    def _update(self, trained: list[paddle.Tensor], rate: paddle.Tensor, group: dict[str, Any]) -> None:
        fresh = [p for p in trained if p.name not in self._already_create_accumulator]
        if fresh:
            self._create_accumulators(paddle.base.framework.default_main_program().global_block(), fresh)
        names = [p.name for p in trained]
        first, second, power1, power2 = (
            [self._accumulators[kind][name] for name in names]
            for kind in ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")
        )
        paddle._C_ops.fused_adam_(
            *(trained, [p.grad for p in trained], rate, first, second, None, power1, power2, None, None),
            *(self._beta1, self._beta2, self._epsilon, _CHUNK, group["weight_decay"]),
            *(True, False, False, False),  # decoupled decay, no masters, powers of beta a parameter, no amsgrad
        )


_CHUNK = 2**16  # of the kernel's work on a GPU; it must be given
_BETAS, _EPSILON, _DECAY, _RATE = (0.9, 0.99), 1e-6, 0.1, 0.01
_SHAPES = ((5,), (3, 7), (_CHUNK + 9,))


def updated_by_numpy(
    weight: np.ndarray,
    gradients: Sequence[np.ndarray],
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
) -> np.ndarray:
    """A weight after AdamW's updates by these gradients, in float64: what kernels are compared with."""
    first, second, weight = np.zeros(weight.shape), np.zeros(weight.shape), weight.astype("float64")
    for t, gradient in enumerate(gradients, 1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient.astype("float64") ** 2
        step = first / (1 - betas[0] ** t) / (np.sqrt(second / (1 - betas[1] ** t)) + epsilon)
        weight = weight * (1 - rate * decay) - rate * step
    return weight


@functools.cache
def _computes_right(device: str) -> bool:
    """Whether the kernel is there on the present device, and its updates are AdamW's, also of a loaded state.

    Looked at once.
    """
    rng = np.random.default_rng(0)
    weights, *gradients = ([rng.normal(size=shape).astype("float32") for shape in _SHAPES] for _ in range(4))
    try:
        with paddle.utils.unique_name.guard("plsc_check_"):
            tensors = [
                paddle.create_parameter(w.shape, "float32", default_initializer=paddle.nn.initializer.Assign(w))
                for w in weights
            ]
            group: Any = {"params": tensors, "weight_decay": _DECAY}
            optimizer = MultiTensorAdamW(_RATE, *_BETAS, _EPSILON, parameters=[group])
        for t, of_step in enumerate(gradients):
            for tensor, gradient in zip(tensors, of_step, strict=True):
                tensor.grad = paddle.to_tensor(gradient)
            if t == 1:  # Paddle may have made the state elsewhere than a continued run puts it
                for state in [s for of_kind in optimizer._accumulators.values() for s in of_kind.values()]:
                    assign(state, to_numpy(state))
            optimizer._update(tensors, paddle.full([1], _RATE, dtype="float32"), group)
        wrong = []
        for tensor, weight, of_weight in zip(tensors, weights, zip(*gradients, strict=True), strict=True):
            exact = updated_by_numpy(weight, of_weight, rate=_RATE, betas=_BETAS, epsilon=_EPSILON, decay=_DECAY)
            if not np.allclose(tensor.numpy(), exact, 1e-5, 1e-6):
                wrong.append(weight.shape)
        problem = f"computes something else for {wrong}" if wrong else ""
    except Exception as error:  # what Paddle raises where a device has no such kernel is of several kinds
        problem = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    if problem:
        log.warning("AdamW updates one parameter after the other: fused_adam on %s: %s", device, problem)
    return not problem
