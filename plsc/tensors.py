"""Arrays ⇄ tensors."""

import numpy as np
import paddle


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
    place = paddle.framework._current_expected_place()
    return paddle.to_tensor(array, place=paddle.CPUPlace())._copy_to(place, False)


@paddle.no_grad()
def assign(tensor: paddle.Tensor, array: np.ndarray) -> None:
    """Give a tensor the array's values, in the tensor's own type. Raises ValueError for another shape."""
    if list(array.shape) != list(tensor.shape):
        raise ValueError(f"an array of shape {list(array.shape)} for a tensor of {list(tensor.shape)}")
    paddle.assign(paddle.to_tensor(array).astype(tensor.dtype), output=tensor)
