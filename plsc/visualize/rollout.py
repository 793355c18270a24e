"""Attention rollout: how much of every patch arrives where the head reads, in NumPy alone.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020), section 3; used by the ViT
paper (Dosovitskiy et al., 2021, appendix D.8). Shapes: L layers, H heads, N tokens.
"""

from collections.abc import Sequence

import numpy as np


def with_residual(weights: np.ndarray) -> np.ndarray:
    """Attention [..., N, N] → (A + I) with rows summing to one: the residual branch carries a token past it."""
    mixed = np.asarray(weights, "float64") + np.eye(weights.shape[-1])
    return mixed / mixed.sum(axis=-1, keepdims=True)


def rollout(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Attention weights of each layer [H, N, N] → [L, N, N]: what each layer's tokens hold of the first ones.

    Heads are averaged, then R_1 = Â_1 and R_l = Â_l R_(l-1). Rows sum to one.
    """
    joint: list[np.ndarray] = []
    for weights in layers:
        mixed = with_residual(weights.mean(axis=0))
        joint.append(mixed @ joint[-1] if joint else mixed)
    return np.stack(joint)


def head_rollout(layers: Sequence[np.ndarray], layer: int) -> np.ndarray:
    """[H, N, N]: the rollout to `layer` (0 is the first) with one of its heads, the layers before as they are.

    The mean over the heads is the layer's rollout. Rows sum to one.
    """
    mixed = with_residual(layers[layer])
    return mixed @ rollout(layers[:layer])[-1] if layer else mixed


POOLS = ("token", "avg", "all", "token_avg", "map")  # what a head may see, as in ViTSpec


def reading(pool: str, tokens: int, prefix: int, pool_weights: np.ndarray | None = None) -> np.ndarray:
    """[N], summing to one: the share that each token of the last layer has in what the head sees.

    Args:
        pool: token, avg, all, token_avg or map, as in ViTSpec.
        prefix: tokens before the patches.
        pool_weights: [H, N] of attention pooling.
    """
    if pool == "map":
        return np.asarray(pool_weights, "float64").mean(axis=0)
    if pool == "all":
        return np.full(tokens, 1.0 / tokens)
    share = np.zeros(tokens)
    if pool != "avg":
        share[0] = 1.0
    if pool != "token":
        share[prefix:] = 1.0 / (tokens - prefix)
    return share / share.sum()


def patch_map(reading: np.ndarray, joint: np.ndarray, prefix: int, grid: tuple[int, int]) -> np.ndarray:
    """[..., N, N] → [..., rows, columns]: what the head reads of each patch, as a multiple of the mean patch.

    The columns of class and register tokens are left out, so 1 is an even share of what the patches have.
    """
    share = (reading @ joint)[..., prefix:]
    share = share / share.mean(axis=-1, keepdims=True)
    return share.reshape(*share.shape[:-1], *grid)
