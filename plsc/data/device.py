"""A batch of arrays → tensors on the device, normalised."""

from collections import deque
from typing import Any

import numpy as np
import paddle

_UPLOADS = 2  # batches on their way to a GPU at most


class DeviceInput:
    """Moves batches to the device and finishes pictures there, in float32.

    To a GPU batches are copied from pinned memory while it computes; on a GPU nobody has run this.

    Args:
        normalize: a NormalizeImage (or Preprocess) with scale, mean and std; None only scales to 0 … 1.
        then: device transforms that follow it, see plsc.data.transforms.base.
    """

    def __init__(self, normalize=None, then=()):
        scale = normalize.scale if normalize is not None else 1.0 / 255.0
        mean = np.asarray(normalize.mean if normalize is not None else [0.0], "float32")
        std = np.asarray(normalize.std if normalize is not None else [1.0], "float32")
        # (x · scale - mean) / std  =  x · factor + offset
        self._factor = paddle.to_tensor((scale / std).reshape([1, -1, 1, 1]).astype("float32"))
        self._offset = paddle.to_tensor((-mean / std).reshape([1, -1, 1, 1]))
        self._then = list(then)
        self._uploads: deque[tuple[Any, dict[str, paddle.Tensor]]] = deque()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, paddle.Tensor]:
        """image [B, H, W, C] uint8 → [B, C, H, W] float32; the other arrays as they are."""
        tensors = self._uploaded(batch)
        image = self.normalize(tensors["image"])
        with paddle.no_grad():
            for transform in self._then:
                image = transform.apply(image, tensors)
        return {**tensors, "image": image}

    def _uploaded(self, batch) -> dict[str, paddle.Tensor]:
        if not paddle.get_device().startswith("gpu"):
            return {name: paddle.to_tensor(array) for name, array in batch.items()}
        pinned = {name: paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()) for name, array in batch.items()}
        tensors = {name: tensor.cuda(blocking=False) for name, tensor in pinned.items()}
        done: Any = paddle.device.cuda.Event()  # typed without its methods
        done.record()
        # pinned memory must not be used again before its copy is done
        self._uploads.append((done, pinned))
        if len(self._uploads) > _UPLOADS:
            self._uploads.popleft()[0].synchronize()
        return tensors

    @paddle.no_grad()
    def normalize(self, image):
        """[B, H, W, C] uint8 → [B, C, H, W] float32."""
        image = image.transpose([0, 3, 1, 2]).astype("float32")
        return image * self._factor + self._offset
