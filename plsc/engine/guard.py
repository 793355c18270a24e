"""Notices the first loss or gradient that is not finite, without waiting for the device."""

import paddle

from plsc.errors import TrainingError


class FiniteGuard:
    """Keeps, on the device, the first step whose loss or gradient norm was not finite.

    It is read at log steps and before each evaluation and checkpoint, so none is ever made of
    such weights.
    """

    def __init__(self):
        self._first = paddle.zeros([1], dtype="int64")  # 0: none so far

    @paddle.no_grad()
    def watch(self, step: int, loss, norm=None) -> None:
        """Look at one update's loss and norm (None: the loss scaler looks after the gradients)."""
        finite = paddle.isfinite(loss)
        if norm is not None:
            finite = finite & paddle.isfinite(norm)
        new = (self._first == 0) & ~finite.reshape([1])
        self._first = paddle.where(new, paddle.full([1], step, dtype="int64"), self._first)

    def check(self, trainer) -> None:
        """Raise TrainingError where any process met such a step. A collective; reads from the device."""
        # the largest over processes: gradients are shared, so a bad step is bad everywhere
        first = int(trainer.world.all_reduce_max(self._first.clone()).item())
        if first == 0:
            return
        kept = trainer.checkpoints.find("latest") if trainer.step else None
        raise TrainingError(
            f"the loss or gradient of step {first} (epoch {(first - 1) // trainer.steps_per_epoch + 1}) is not finite "
            f"(learning rate {trainer.schedule(first - 1):.3e}).\n"
            f"  Nothing was saved since; the newest checkpoint is {kept or 'none'}.\n"
            "  A lower LRScheduler.learning_rate, a longer warm-up or Optimizer.grad_clip usually helps."
        )
