"""One update from several micro-batches: how a batch is split, and how the gradients become one."""

import contextlib
from collections.abc import Iterator, Sequence

import paddle

from plsc.engine.distributed import World


class Accumulation:
    """The micro-batches of each update.

    Gradients travel between processes with the last micro-batch only.

    Args:
        network: what forward goes through, data-parallel where there are several processes.
        named: (name, parameter) of everything trained.
        count: micro-batches that a local batch is split into.
        apart: whether gradients are summed outside Paddle, see Precision.accumulates_apart.
    """

    def __init__(
        self,
        network: paddle.nn.Layer,
        named: Sequence[tuple[str, paddle.Tensor]],
        world: World,
        *,
        count: int,
        apart: bool,
    ):
        self._network, self._world, self.count = network, world, count
        self._sums = GradientSums(named, world) if apart and count > 1 else None

    def split(self, batch: dict[str, paddle.Tensor]) -> Iterator[dict[str, paddle.Tensor]]:
        """The micro-batches of a local batch, in order."""
        if self.count == 1:
            yield batch
            return
        rows = batch["image"].shape[0] // self.count
        for i in range(self.count):
            yield {name: tensor[i * rows : (i + 1) * rows] for name, tensor in batch.items()}

    @contextlib.contextmanager
    def micro_batch(self, i: int) -> Iterator[None]:
        """Context of forward and backward of micro-batch `i`; after the last the gradients are the update's."""
        with self._world.accumulating(self._network) if self._is_local(i) else contextlib.nullcontext():
            yield
        if self._sums is not None:
            self._sums.take(i == self.count - 1)

    def backward(self, i: int, loss: paddle.Tensor) -> None:
        """Backward of micro-batch `i`, inside its context; the last one's waits for the other processes."""
        with contextlib.nullcontext() if self._is_local(i) else self._world.averaging():
            loss.backward()

    def _is_local(self, i: int) -> bool:
        """Whether the gradients of micro-batch `i` stay on this process, until `GradientSums` averages them."""
        return self._sums is not None or i < self.count - 1


class GradientSums:
    """Takes each micro-batch's gradients away, and adds their sum to the last one's, in float32.

    For half-precision weights with float32 gradients (see Precision.accumulates_apart), which Paddle cannot add up
    itself. Every micro-batch is local to its process; the last step averages over processes.

    Args:
        named: (name, parameter) of everything trained.
    """

    def __init__(self, named: Sequence[tuple[str, paddle.Tensor]], world: World):
        self._parameters = [parameter for _, parameter in named]
        self._sums: dict[int, paddle.Tensor] = {}
        self._world = world

    @paddle.no_grad()
    def take(self, last: bool) -> None:
        """After one backward: add its gradients to the sums; the last one's become the update's."""
        for i, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if last and gradient is None and i in self._sums:  # the last micro-batch did not use it
                parameter.grad = gradient = paddle.zeros_like(self._sums[i])
            if gradient is None:
                continue
            if not last:
                gradient = gradient.astype("float32")
                self._sums[i] = self._sums[i].add_(gradient) if i in self._sums else gradient.clone()
                parameter.clear_gradient(False)  # None, so that the next backward does not add to it
                continue
            if i in self._sums:
                gradient.add_(self._sums.pop(i))
            if self._world.size > 1:
                self._world.all_reduce(gradient)
                gradient.scale_(1.0 / self._world.size)
