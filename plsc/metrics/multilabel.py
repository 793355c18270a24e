"""Decisions about data sets with several labels a sample; a label of weight 0 is none."""

from typing import Literal

import paddle
import paddle.nn.functional as F

from plsc.errors import ConfigError
from plsc.metrics.topk import TopkAcc
from plsc.registry import METRICS
from plsc.targets import Targets


@METRICS.register()
class PrecisionAt1:
    """Share of samples of which the highest logit's class is one of its labels; without labels none is right."""

    def __init__(self):
        self.names = ["precision_at_1"]
        self._accuracy = TopkAcc(1)

    def reset(self):
        self._accuracy.reset()

    def update(self, logits, targets: Targets, valid=None):
        """Add logits [B, C]; where `valid` [B] bool is given, only those it marks."""
        self._accuracy.update(logits, targets, valid)

    def reduce(self, all_reduce):
        """Sum over processes; `all_reduce` maps a tensor to its sum."""
        self._accuracy.reduce(all_reduce)

    def compute(self) -> dict[str, float]:
        return {"precision_at_1": self._accuracy.compute()["top1"]}


@METRICS.register()
class F1:
    """F1 of the classes whose probability is above a threshold: macro and micro.

    Macro is the mean over the classes that have samples, `f1_classes` of them; micro is that of all
    decisions together, in every class.

    Args:
        threshold: of the probability. Softmax of data with one label a sample knows none: the highest logit decides.
        activation: softmax; sigmoid for models trained with a binary loss a class (BCELoss, ViTCELoss). Unsaid it is
            that of the weights or, where they do not say, of Loss.Train; without a recipe softmax.
    """

    def __init__(self, threshold: float = 0.5, activation: Literal["softmax", "sigmoid"] | None = None):
        if not 0.0 < threshold < 1.0:
            raise ConfigError(f"Metric: F1.threshold is {threshold}; a probability between 0 and 1 is asked for")
        self.threshold, self.activation = threshold, activation or "softmax"
        self.names = ["f1_macro", "f1_micro"]
        self.reset()

    def reset(self):
        self._sums = None

    @paddle.no_grad()
    def update(self, logits, targets: Targets, valid=None):
        """Add logits [B, C]; where `valid` [B] bool is given, only those it marks."""
        said = self._decided(logits, one_label=targets.label is not None)
        right = targets.to_dense(logits.shape[1]) > 0
        if valid is not None:
            said, right = said & valid.unsqueeze(1), right & valid.unsqueeze(1)
        sums = paddle.stack([part.astype("int64").sum(axis=0) for part in (said & right, said, right)])
        self._sums = sums if self._sums is None else self._sums + sums

    def _decided(self, logits, *, one_label: bool):
        """[B, C] bool: the classes that the model names."""
        if self.activation == "sigmoid":
            return F.sigmoid(logits) > self.threshold
        if one_label:
            return F.one_hot(logits.argmax(axis=1), logits.shape[1]) > 0
        return F.softmax(logits) > self.threshold

    def reduce(self, all_reduce):
        """Sum over processes; `all_reduce` maps a tensor to its sum."""
        self._sums = all_reduce(self._sums)

    def compute(self) -> dict[str, float]:
        both, said, right = self._sums.numpy()  # of each class
        present = right > 0
        by_class = 2 * both[present] / (said + right)[present]
        decisions = (said + right).sum()
        return {
            "f1_macro": float(by_class.mean()) if present.any() else float("nan"),
            "f1_micro": float(2 * both.sum() / decisions) if decisions else float("nan"),
            "f1_classes": int(present.sum()),
        }
