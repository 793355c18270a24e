"""Sums of micro-batch gradients in float32, where Paddle cannot add them up itself."""

import paddle


class GradientSums:
    """Takes each micro-batch's gradients away, and adds their sum to the last one's.

    For half-precision weights with float32 gradients (see Precision.accumulates_apart). Every
    micro-batch is local to its process; the last step averages over processes.

    Args:
        named: (name, parameter) of everything trained.
    """

    def __init__(self, named, world):
        self._parameters = [parameter for _, parameter in named]
        self._sums = [None] * len(self._parameters)
        self._world = world

    @paddle.no_grad()
    def take(self, last: bool) -> None:
        """After one backward: add its gradients to the sums; the last one's become the update's."""
        for i, parameter in enumerate(self._parameters):
            gradient, total = parameter.grad, self._sums[i]
            if gradient is None:
                continue
            if not last:
                held = gradient.astype("float32").clone()
                self._sums[i] = held if total is None else total.add_(held)
                parameter.clear_gradient(False)  # None, so that the next backward does not add to it
                continue
            if total is not None:
                gradient.add_(total)
            if self._world.size > 1:
                self._world.all_reduce(gradient)
                gradient.scale_(1.0 / self._world.size)
