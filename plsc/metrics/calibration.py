"""Calibration: does a model that says 80 % turn out right in 80 % of the cases?"""

from typing import Literal

import paddle
import paddle.nn.functional as F

from plsc.errors import ConfigError
from plsc.registry import METRICS
from plsc.targets import Targets


@METRICS.register()
class ECE:
    """Expected calibration error (Guo et al., 2017): the mean gap of confidence and accuracy, over bins of confidence.

    The confidence is the highest probability; bin k of n holds those above k/n up to (k + 1)/n. Less is
    better, so it cannot pick the best checkpoint.

    Args:
        bins: of equal width.
        activation: softmax; sigmoid for models trained with a binary loss a class (BCELoss, ViTCELoss). Unsaid it is
            that of the weights or, where they do not say, of Loss.Train; without a recipe softmax.
    """

    def __init__(self, bins: int = 15, activation: Literal["softmax", "sigmoid"] | None = None):
        if bins < 1:
            raise ConfigError(f"Metric: ECE.bins is {bins}; it must be at least 1")
        self.bins, self.activation = bins, activation or "softmax"
        self.names = []
        self.reset()

    def reset(self):
        self._sums = paddle.zeros([self.bins, 3], dtype="float64")  # samples, confidences, right ones

    @paddle.no_grad()
    def update(self, logits, targets: Targets, valid=None):
        """Add logits [B, C]; where `valid` [B] bool is given, only those it marks."""
        probabilities = F.softmax(logits) if self.activation == "softmax" else F.sigmoid(logits)
        confidence = probabilities.max(axis=1).astype("float64")
        right = targets.contains(logits.argmax(axis=1, keepdim=True))[:, 0]
        places = paddle.clip(paddle.ceil(confidence * self.bins).astype("int64") - 1, 0, self.bins - 1)
        values = paddle.stack([paddle.ones_like(confidence), confidence, right.astype("float64")], axis=1)
        if valid is not None:  # where, not a product: a padded row may hold anything
            values = paddle.where(valid.unsqueeze(1), values, paddle.zeros_like(values))
        self._sums = self._sums + paddle.scatter_nd(places.unsqueeze(1), values, [self.bins, 3])

    def reduce(self, all_reduce):
        """Sum over processes; `all_reduce` maps a tensor to its sum."""
        self._sums = all_reduce(self._sums)

    def compute(self) -> dict[str, float]:
        samples, confidences, right = self._sums.numpy().T
        return {"ece": float(abs(confidences - right).sum() / samples.sum()) if samples.sum() else float("nan")}
