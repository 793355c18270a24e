"""Arrays ⇄ tensors."""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import paddle

_QUEUED = 64  # copies of on_device that the device may not have made yet


def named_tensors(layer: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """What a layer's weights consist of, by structured name: parameters, and the buffers that are to be saved."""
    parameters = dict(layer.named_parameters())
    buffers = {id(buffer) for _, buffer in layer.named_buffers()}
    saved = {name: tensor for name, tensor in layer.state_dict().items() if id(tensor) in buffers}
    return {**parameters, **saved}


def to_numpy(tensor: paddle.Tensor) -> np.ndarray:
    """A C-contiguous array with memory of its own; bfloat16, which NumPy lacks, becomes float32 without loss."""
    if tensor.dtype == paddle.bfloat16:
        tensor = tensor.astype("float32")
    return np.asarray(tensor.numpy(), order="C")  # ascontiguousarray would give a scalar a dimension


def on_device(array: np.ndarray) -> paddle.Tensor:
    """The array's copy on the present device, queued there; paddle.to_tensor waits until all else is done."""
    device = paddle.get_device()
    if device == "cpu":
        return paddle.to_tensor(array)
    queued = next(_queued(device))
    if queued.staged is not None and not queued.copied.query():
        queued.copied.synchronize()
    queued.staged = paddle.to_tensor(array, place=paddle.CPUPlace())
    tensor = queued.staged._copy_to(paddle.framework._current_expected_place(), False)
    queued.copied.record(paddle.device.current_stream())
    return tensor


class _Queued:
    """The host's side of a copy, which stays as it is until the device has made the copy."""

    def __init__(self) -> None:
        self.copied: Any = paddle.device.Event()
        self.staged: paddle.Tensor | None = None


@lru_cache
def _queued(device: str) -> Iterator[_Queued]:
    """The last copies to a device, to be used in turn."""
    return itertools.cycle([_Queued() for _ in range(_QUEUED)])


@paddle.no_grad()
def assign(tensor: paddle.Tensor, array: np.ndarray) -> None:
    """Give a tensor the array's values, in the tensor's own type. Raises ValueError for another shape."""
    if list(array.shape) != list(tensor.shape):
        raise ValueError(f"an array of shape {list(array.shape)} for a tensor of {list(tensor.shape)}")
    paddle.assign(paddle.to_tensor(array).astype(tensor.dtype), output=tensor)
