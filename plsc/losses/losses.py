"""The losses of the recipes, in numerically stable form and float32."""

import functools
import operator
from collections.abc import Iterable
from typing import Literal

import paddle
import paddle.nn.functional as F

from plsc.bounds import BelowOne, NonNegativeFloat
from plsc.errors import ConfigError
from plsc.losses.base import Loss
from plsc.registry import LOSSES
from plsc.targets import Activation, Targets


def _log_softmax(logits: paddle.Tensor) -> paddle.Tensor:
    # Paddle's own, like its softmax and cross_entropy, cuts values at -64 on CPU
    return logits - paddle.logsumexp(logits, axis=-1, keepdim=True)


def _softmax_cross_entropy(logits: paddle.Tensor, dense: paddle.Tensor) -> paddle.Tensor:
    """[B] of logits and dense targets [B, C]."""
    return -(dense * _log_softmax(logits)).sum(axis=-1)


def _sigmoid_cross_entropy(logits: paddle.Tensor, dense: paddle.Tensor) -> paddle.Tensor:
    """[B, C] of logits and dense targets [B, C]."""
    return F.binary_cross_entropy_with_logits(logits, dense, reduction="none")


@LOSSES.register()
class CELoss:
    """Softmax cross entropy of hard or soft targets, with label smoothing y(1 - e) + e / C.

    Args:
        weight: in the sum of a section's losses.
        epsilon: e of the smoothing; None is 0.
    """

    activation: Activation = "softmax"

    def __init__(self, weight: NonNegativeFloat = 1.0, epsilon: BelowOne | None = None):
        self.weight, self.epsilon = weight, epsilon or 0.0

    def __call__(self, logits: paddle.Tensor, targets: Targets) -> paddle.Tensor:
        if self.epsilon == 0.0 and targets.label is not None and targets.dense is None:
            picked = paddle.take_along_axis(_log_softmax(logits), targets.label.unsqueeze(1), axis=1)
            return -picked.reshape([-1])
        class_num = logits.shape[-1]
        dense = targets.to_dense(class_num)
        return _softmax_cross_entropy(logits, dense * (1.0 - self.epsilon) + self.epsilon / class_num)


@LOSSES.register()
class ViTCELoss:
    """ViT's loss, summed over classes: sigmoid for pre-training, softmax for fine-tuning.

    Args:
        weight: in the sum of a section's losses.
        epsilon: e of the smoothing; None is 0.
        type: sigmoid cross entropy of each class, or softmax cross entropy.
        smoothing: towards one, y(1 - e) + e (Google, PLSC), or towards half, y(1 - e) + e / 2 (Keras and so COYO-ViT).
    """

    def __init__(
        self,
        weight: NonNegativeFloat = 1.0,
        epsilon: BelowOne | None = None,
        type: Activation = "sigmoid",
        smoothing: Literal["towards_one", "towards_half"] = "towards_one",
    ):
        self.weight, self.epsilon, self.activation = weight, epsilon or 0.0, type
        self.floor = self.epsilon * (1.0 if smoothing == "towards_one" else 0.5)

    def __call__(self, logits: paddle.Tensor, targets: Targets) -> paddle.Tensor:
        dense = targets.to_dense(logits.shape[-1])
        if self.epsilon:
            dense = dense * (1.0 - self.epsilon) + self.floor
        if self.activation == "softmax":
            return _softmax_cross_entropy(logits, dense)
        return _sigmoid_cross_entropy(logits, dense).sum(axis=-1)


@LOSSES.register()
class BCELoss:
    """Sigmoid binary cross entropy for multi-label targets.

    Args:
        weight: in the sum of a section's losses.
        epsilon: e of the smoothing y(1 - e) + e / 2; None is 0.
        class_reduction: sum or mean over the classes.
        target_threshold: a target above it becomes 1, another one 0, before the smoothing: with 0 both classes of a
            mixed picture are right (Wightman et al., 2021, "ResNet strikes back"; DeiT III). None leaves targets as
            they are.
    """

    activation: Activation = "sigmoid"

    def __init__(
        self,
        weight: NonNegativeFloat = 1.0,
        epsilon: BelowOne | None = None,
        class_reduction: Literal["sum", "mean"] = "sum",
        target_threshold: BelowOne | None = None,
    ):
        self.weight, self.epsilon, self.class_reduction = weight, epsilon or 0.0, class_reduction
        self.target_threshold = target_threshold

    def __call__(self, logits: paddle.Tensor, targets: Targets) -> paddle.Tensor:
        dense = targets.to_dense(logits.shape[-1])
        if self.target_threshold is not None:
            dense = (dense > self.target_threshold).astype("float32")
        loss = _sigmoid_cross_entropy(logits, dense * (1.0 - self.epsilon) + 0.5 * self.epsilon)
        return loss.sum(axis=-1) if self.class_reduction == "sum" else loss.mean(axis=-1)


class WeightedSum:
    """The losses of one section, each times its weight: outputs, Targets → [B] float32."""

    def __init__(self, losses: Iterable[Loss]):
        self.losses = list(losses)
        if self.losses and not any(loss.weight for loss in self.losses):
            raise ConfigError("the weights of all losses are 0, so that nothing is learnt")

    @property
    def activation(self) -> Activation | None:
        """Of several losses that of the one with the largest weight."""
        return max(self.losses, key=lambda loss: loss.weight).activation

    def __call__(self, outputs: paddle.Tensor, targets: Targets) -> paddle.Tensor:
        outputs = outputs.astype("float32")
        values = [loss(outputs, targets) * loss.weight for loss in self.losses]
        return functools.reduce(operator.add, values)
