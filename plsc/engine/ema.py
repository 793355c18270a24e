"""An exponential moving average of the weights, in float32."""

import contextlib
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import paddle

from plsc.tensors import assign, to_numpy

log = logging.getLogger("plsc")

_UPDATES = "|updates"  # no parameter has such a name


class WeightAverage:
    """average = decay · average + (1 - decay) · weight, after each update, over the float32 masters.

    Args:
        weights: function returning name → the tensor to average (masters appear after the first update).
        decay: upper bound of the decay.
        ramp: decay at update t is min(decay, (1 + t) / (10 + t)), as TensorFlow's and PLSC's thres_steps.
        changed: called when the model was given other weights, where other processes are to get them.
    """

    def __init__(
        self,
        weights: Callable[[], dict[str, paddle.Tensor]],
        decay: float,
        ramp: bool,
        changed: Callable[[], None] | None = None,
    ):
        self._weights, self.decay, self.ramp, self._changed = weights, decay, ramp, changed
        self.updates = 0
        self._average = {name: w.astype("float32").clone() for name, w in weights().items()}
        for tensor in self._average.values():
            tensor.stop_gradient = True

    @paddle.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = self.decay
        if self.ramp:
            decay = min(decay, (1.0 + self.updates) / (10.0 + self.updates))
        share = paddle.full([], 1.0 - decay)  # lerp_ copies a number to the device for each array, and waits
        for name, weight in self._weights().items():
            self._average[name].lerp_(weight.astype("float32"), share)

    @contextlib.contextmanager
    def applied(self, model: paddle.nn.Layer) -> Iterator[paddle.nn.Layer]:
        """The model with the averaged weights, for the length of the block.

        Where the block fails, this process has its weights back; `changed` is not called, since processes that have not
        failed would not be there to receive them.
        """
        parameters = {name: p for name, p in model.named_parameters() if name in self._average}
        kept = {name: p.clone() for name, p in parameters.items()}
        try:
            self._assign(parameters, self._average)
            self._share()
            yield model
        finally:
            self._assign(parameters, kept)
        self._share()

    def _share(self) -> None:
        if self._changed is not None:
            self._changed()

    @staticmethod
    @paddle.no_grad()
    def _assign(parameters: dict[str, paddle.Tensor], values: dict[str, paddle.Tensor]) -> None:
        for name, parameter in parameters.items():
            paddle.assign(values[name].astype(parameter.dtype), output=parameter)

    def state_dict(self) -> dict[str, Any]:
        """The averages by the parameters' names, and how often they were updated."""
        return {_UPDATES: self.updates, **{name: to_numpy(tensor) for name, tensor in self._average.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        missing = [name for name in self._average if name not in state]
        if missing:
            log.warning("the average of %d arrays begins now: they were not trained before", len(missing))
        for name, tensor in self._average.items():
            if name in state:
                assign(tensor, state[name])
        self.updates = operator.index(state[_UPDATES])
