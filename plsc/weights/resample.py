"""Position embeddings and patch kernels for another size."""

from collections.abc import Sequence

import numpy as np


def _cubic_matrix(new: int, old: int) -> np.ndarray:
    """[new, old] weights of cubic convolution: a = -0.75, half-pixel centres, edges repeated.

    The numbers of paddle.nn.functional.interpolate(mode="bicubic", align_corners=False).
    """
    a = -0.75
    matrix = np.zeros([new, old])
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            t = abs(centre - j)
            weight = ((a + 2) * t - (a + 3)) * t * t + 1 if t <= 1 else a * (((t - 5) * t + 8) * t - 4)
            matrix[i, min(max(j, 0), old - 1)] += weight
    return matrix


def _linear_matrix(new: int, old: int) -> np.ndarray:
    """[new, old] weights of linear interpolation with corners on corners, as scipy.ndimage.zoom(order=1)."""
    matrix = np.zeros([new, old])
    for i in range(new):
        centre = i * (old - 1) / (new - 1) if new > 1 else 0.0
        low = min(int(centre), old - 1)
        high = min(low + 1, old - 1)
        matrix[i, low] += 1.0 - (centre - low)
        matrix[i, high] += centre - low
    return matrix


_MATRICES = {"bicubic": _cubic_matrix, "bilinear": _linear_matrix}


def position_embedding(
    array: np.ndarray, prefix: int, old_grid: tuple[int, int], new_grid: tuple[int, int], method: str = "bicubic"
) -> np.ndarray:
    """[1, prefix + rows x columns, C] → the same for another grid; the prefix rows are kept.

    Args:
        method: bicubic, or bilinear as Google's code does.
    """
    matrix = _MATRICES[method]
    kept, grid = array[:, :prefix], array[0, prefix:].astype("float64")
    grid = grid.reshape(old_grid[0], old_grid[1], -1)
    grid = np.einsum("ab,bcd->acd", matrix(new_grid[0], old_grid[0]), grid)
    grid = np.einsum("ab,cbd->cad", matrix(new_grid[1], old_grid[1]), grid)
    grid = grid.reshape(1, new_grid[0] * new_grid[1], -1).astype(array.dtype)
    return np.concatenate([kept, grid], axis=1)


def patch_kernel(array: np.ndarray, new_size: Sequence[int]) -> np.ndarray:
    """[C, in, h, w] → [C, in, *new_size], so that resized patches give nearly the same tokens.

    The pseudo-inverse resize of FlexiViT (Beyer et al., 2023).
    """
    height, width = array.shape[2:]
    down = np.linalg.pinv(_cubic_matrix(new_size[0], height).T)
    across = np.linalg.pinv(_cubic_matrix(new_size[1], width).T)
    return np.einsum("ah,bw,oihw->oiab", down, across, array.astype("float64")).astype(array.dtype)


def input_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """[C, in, h, w] → [C, channels, h, w]: summed to one channel, else repeated at the same total weight."""
    old = array.shape[1]
    if channels == 1:
        return array.sum(axis=1, keepdims=True)
    repeated = np.concatenate([array] * -(-channels // old), axis=1)[:, :channels]
    return (repeated * (old / channels)).astype(array.dtype)
