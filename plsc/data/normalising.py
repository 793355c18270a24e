"""Pixels → the model's input: pixel * factor + offset, which is (pixel * scale - mean) / std. Imports no Paddle."""

from typing import Any

import numpy as np


def factor_and_offset(normalize: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a NormalizeImage or Preprocess, a float32 value a channel [C] or for all channels [1]; None divides by 255."""
    if normalize is None:
        return np.array([1.0 / 255.0], "float32"), np.array([0.0], "float32")
    mean, std = (np.asarray(values, "float32") for values in (normalize.mean, normalize.std))
    return (normalize.scale / std).astype("float32"), -mean / std


def normalised(images: np.ndarray, factor: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[B, H, W, C] uint8 → [B, C, H, W] float32: as Paddle computes it, in a tenth of the time."""
    batch, height, width, channels = images.shape
    values = np.broadcast_arrays(np.arange(channels), factor, offset)  # a grey picture may get several channels
    result = np.empty((batch, len(values[0]), height, width), "float32")
    for plane, source, times, plus in zip(result.swapaxes(0, 1), *values, strict=True):
        np.multiply(images[..., source], times, out=plane, dtype="float32")
        plane += plus
    return result
