"""AdamW whose update of many small parameters is one call.

Why it is here: Paddle's AdamW spends 15 µs of Python on each parameter, which for a small model is more than the update
itself. Its kernel for many tensors at once (fused_adam) computes the same numbers, bit for bit; the state stays one
accumulator a parameter, as checkpoints and sharding have it. tests/test_optim.py holds both against each other.
"""

from typing import Any

import paddle

from plsc import compat


class MultiTensorAdamW(paddle.optimizer.AdamW):
    """paddle.optimizer.AdamW over parameter groups; one call a group on CPU, Paddle's own step elsewhere."""

    @paddle.no_grad()
    def step(self) -> None:
        if compat.IS_PADDLE_2 or paddle.get_device() != "cpu":
            super().step()
            return
        rate = paddle.full([1], self.get_lr(), dtype="float32")
        groups: list[Any] = self._param_groups
        for group in groups:
            trained = [p for p in group["params"] if not p.stop_gradient and p.grad is not None]
            if trained:
                self._update(trained, rate if group["learning_rate"] == 1.0 else rate * group["learning_rate"], group)

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
