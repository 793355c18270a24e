"""The global gradient norm, in float32 over every parameter, and clipping by it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import paddle


def squared_norm(gradient: paddle.Tensor) -> paddle.Tensor:
    """Sum of squares, float32, shape [1]."""
    if gradient.dtype != paddle.float32:
        gradient = gradient.astype("float32")
    return paddle._C_ops.squared_l2_norm(gradient)


def _scale_by_device(gradients: list[paddle.Tensor], factor: paddle.Tensor) -> None:
    """Scale gradients in place, where a host must not read the factor: those in float32 by GradScaler's kernel."""
    alike = [gradient for gradient in gradients if gradient.dtype == paddle.float32]
    if alike:
        paddle._C_ops.check_finite_and_unscale_(alike, 1.0 / factor.reshape([1]))  # it divides
    for gradient in gradients:
        if gradient.dtype != paddle.float32:
            paddle._C_ops.multiply_(gradient, factor.astype(gradient.dtype))


@dataclass(frozen=True)
class GradientClip:
    """Clip by global norm (Pascanu et al., 2013), with PLSC's options.

    Attributes:
        clip_norm: the norm above which gradients are scaled down; None measures only.
        clip_norm_max: upper bound of the factor that gradients are multiplied by where they are clipped.
        always_clip: scale to clip_norm where the norm is smaller, too.
        no_clip_list: parts of the names of parameters left out of both norm and clipping.
    """

    clip_norm: float | None = None
    clip_norm_max: float | None = None
    always_clip: bool = False
    no_clip_list: tuple[str, ...] = ()

    @paddle.no_grad()
    def __call__(self, named_parameters: Iterable[tuple[str, paddle.Tensor]]) -> paddle.Tensor:
        """Scale the gradients in place; returns their norm before, a scalar on the device."""
        gradients = [
            p.grad
            for name, p in named_parameters
            if p.grad is not None and not any(part in name for part in self.no_clip_list)
        ]
        norm = self.total(gradients).sqrt()
        if self.clip_norm is not None:
            factor = self.clip_norm / (norm + 1e-6)
            if self.clip_norm_max is not None:
                factor = paddle.clip(factor, max=self.clip_norm_max)
            if not self.always_clip:
                factor = paddle.where(norm > self.clip_norm, factor, paddle.ones_like(factor))
            if paddle.get_device() == "cpu":
                scale_: Any = paddle.Tensor.scale_  # takes a tensor, too, which its types omit
                for gradient in gradients:  # multiply_ spreads the factor first, which takes six times as long
                    scale_(gradient, factor)
            else:
                _scale_by_device(gradients, factor)
        return norm

    def total(self, gradients: list[paddle.Tensor]) -> paddle.Tensor:
        """The sum of all their squares, float32, shape []."""
        return paddle.add_n([squared_norm(g) for g in gradients]).reshape([]) if gradients else paddle.zeros([])
