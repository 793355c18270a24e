"""Calibration: does a model that says 80 % turn out right in 80 % of the cases?"""

import paddle

from plsc.bounds import Positive
from plsc.metrics.base import Sums, probabilities
from plsc.registry import METRICS
from plsc.targets import Activation, Targets


@METRICS.register()
class ECE(Sums):
    """Expected calibration error (Guo et al., 2017): the mean gap of confidence and accuracy, over bins of confidence.

    The confidence is the highest probability; bin k of n holds those above k/n up to (k + 1)/n. Less is
    better, so it cannot pick the best checkpoint.

    Args:
        bins: of equal width.
        activation: sigmoid for models trained with a binary loss a class (BCELoss, ViTCELoss). Where it is not given
            it is that of the weights, else that of Loss.Train; without a recipe softmax.
    """

    def __init__(self, bins: Positive = 15, activation: Activation | None = None):
        self.bins, self.activation = bins, activation
        self.names: list[str] = []
        super().__init__([bins, 3], "float64")  # samples, confidences, right ones

    @paddle.no_grad()
    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        confidence = probabilities(logits, self.activation).max(axis=1).astype("float64")
        right = targets.contains(logits.argmax(axis=1, keepdim=True))[:, 0]
        places = paddle.clip(paddle.ceil(confidence * self.bins).astype("int64") - 1, 0, self.bins - 1)
        values = paddle.stack([paddle.ones_like(confidence), confidence, right.astype("float64")], axis=1)
        if valid is not None:  # where, not a product: a padded row may hold anything
            values = paddle.where(valid.unsqueeze(1), values, paddle.zeros_like(values))
        self.add(paddle.scatter_nd(places.unsqueeze(1), values, [self.bins, 3]))

    def compute(self) -> dict[str, float]:
        samples, confidences, right = self._total.numpy().T
        return {"ece": float(abs(confidences - right).sum() / samples.sum()) if samples.sum() else float("nan")}
