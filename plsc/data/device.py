"""A batch of arrays → tensors on the device, normalised."""

import itertools
from typing import Any

import numpy as np
import paddle

from plsc.data.normalising import factor_and_offset, normalised

_STAGED = 2  # batches in the host's memory that the device may not have copied yet


class DeviceInput:
    """Moves batches to the device and finishes pictures there, in float32.

    To a GPU or a plug-in device, batches are copied while it computes: `start` copies the next one, `finish` takes
    it when the one before is done with. On a GPU nobody has run this; tests/amp proves the order on a pretend device.

    Args:
        normalize: a NormalizeImage (or Preprocess) with scale, mean and std; None only scales to 0 … 1.
        then: device transforms that follow it, see plsc.data.transforms.base.
    """

    def __init__(self, normalize=None, then=()):
        self._numbers = factor_and_offset(normalize)
        self._factor, self._offset = (paddle.to_tensor(values.reshape([1, -1, 1, 1])) for values in self._numbers)
        self._then = list(then)
        self._copies = CopiesAhead() if _has_streams() else None
        self._started: dict[str, paddle.Tensor] | None = None

    @property
    def copies_ahead(self) -> bool:
        """Whether copying goes on beside computing here, so that starting early is worth it."""
        return self._copies is not None

    @property
    def started(self) -> bool:
        """Whether a batch was started and not yet finished."""
        return self._started is not None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, paddle.Tensor]:
        """image [B, H, W, C] uint8 → [B, C, H, W] float32; the other arrays as they are."""
        self.start(batch)
        return self.finish()

    def start(self, batch: dict[str, np.ndarray]) -> None:
        """Begin to copy a batch, whose arrays may change afterwards. The one started before must be finished."""
        assert self._started is None, "a batch is finished before the next is started"
        if self._copies is not None:
            self._started = self._copies.start(batch)
        else:
            if paddle.get_device() == "cpu":
                batch = {**batch, "image": normalised(batch["image"], *self._numbers)}
            self._started = {name: paddle.to_tensor(array) for name, array in batch.items()}

    def finish(self) -> dict[str, paddle.Tensor]:
        """The batch that was started, as `__call__` returns it."""
        tensors, self._started = self._started, None
        assert tensors is not None, "a batch is started before it is finished"
        if self._copies is not None:
            self._copies.await_copy()
        image = tensors["image"]
        finished = {"image": self.normalize(image) if image.dtype == paddle.uint8 else image}
        for name, tensor in tensors.items():
            if name != "image":
                finished[name] = tensor if self._copies is None else tensor.clone()
        if self._copies is not None:
            self._copies.release()
        with paddle.no_grad():
            for transform in self._then:
                finished["image"] = transform.apply(finished["image"], finished)
        return finished

    @paddle.no_grad()
    def normalize(self, image):
        """[B, H, W, C] uint8 → [B, C, H, W] float32."""
        image = image.transpose([0, 3, 1, 2]).astype("float32")
        return image * self._factor + self._offset


class CopiesAhead:
    """Copies batches to the device on a stream of their own, so that neither host nor device waits for a copy.

    Every batch is copied to the same memory on the device, which belongs to the stream that computes: memory that is
    handed out again for each batch might still be in use there. On a GPU the host's side is pinned memory.
    """

    def __init__(self) -> None:
        self._place = paddle.CUDAPinnedPlace() if paddle.get_device().startswith("gpu") else paddle.CPUPlace()
        self._stream: Any = paddle.device.Stream()
        self._buffers: dict[str, paddle.Tensor] = {}
        # events are recorded again and again, since Paddle waits for one of a plug-in device that it deletes
        self._released: Any = paddle.device.Event()
        self._copied: Any = None
        self._staged: list[tuple[Any, dict[str, paddle.Tensor]]] = [(paddle.device.Event(), {}) for _ in range(_STAGED)]
        self._turn = itertools.cycle(range(_STAGED))

    def start(self, batch: dict[str, np.ndarray]) -> dict[str, paddle.Tensor]:
        """Queue the copy of a batch; returns the memory it goes to, to be read between await_copy and release."""
        turn = next(self._turn)
        copied, earlier = self._staged[turn]
        if earlier and not copied.query():
            copied.synchronize()
        staged = {name: paddle.to_tensor(array, place=self._place) for name, array in batch.items()}
        if any(_differ(self._buffers.get(name), tensor) for name, tensor in staged.items()):
            self._buffers = {name: paddle.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in staged.items()}
            self.release()  # the memory is free once what has been queued is done
        self._stream.wait_event(self._released)
        with paddle.device.stream_guard(self._stream):
            for name, tensor in staged.items():
                self._buffers[name].copy_(tensor, False)  # type: ignore[call-arg]
        copied.record(self._stream)
        self._staged[turn] = (copied, staged)  # which must stay as it is until it is copied
        self._copied = copied
        return self._buffers

    def await_copy(self) -> None:
        """What is computed from now on comes after the copy that was queued last."""
        paddle.device.current_stream().wait_event(self._copied)

    def release(self) -> None:
        """What is copied from now on comes after what has been queued for computing."""
        self._released.record(paddle.device.current_stream())


def _differ(buffer: paddle.Tensor | None, tensor: paddle.Tensor) -> bool:
    return buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype


def _has_streams() -> bool:
    """Whether Paddle copies beside computing on the present device; XPUs are left out, where nobody has tried it."""
    return paddle.get_device().split(":")[0] not in {"cpu", "xpu"}
