"""Notices the first loss or gradient that is not finite, without waiting for the device."""

import paddle

from plsc.engine.distributed import World


class FiniteGuard:
    """Keeps, on the device, the first step whose loss or gradient norm was not finite.

    It is read at log steps and before each evaluation and checkpoint, so none is ever made of
    such weights.
    """

    def __init__(self, world: World):
        self._world = world
        self._first = paddle.zeros([1], dtype="int64")  # 0: none so far

    @paddle.no_grad()
    def watch(self, step: int, loss: paddle.Tensor, norm: paddle.Tensor | None = None) -> None:
        """Look at one update's loss and norm (None: the loss scale takes care of the gradients)."""
        finite = paddle.isfinite(loss)
        if norm is not None:
            finite = finite & paddle.isfinite(norm)
        new = (self._first == 0) & ~finite.reshape([1])
        self._first = paddle.where(new, paddle.full([1], step, dtype="int64"), self._first)

    def first_step(self) -> int | None:
        """That step of any process, or None. A collective; reads from the device."""
        # the largest over processes: gradients are shared, so a bad step is bad everywhere
        first = int(self._world.all_reduce_max(self._first.clone()).numpy()[0])
        return first or None
