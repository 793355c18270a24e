"""Decisions about data sets with several labels a sample; a label of weight 0 is none."""

import paddle
import paddle.nn.functional as F

from plsc.bounds import InsideUnit
from plsc.metrics.base import AllReduce, Sums, probabilities
from plsc.metrics.topk import TopkAcc
from plsc.registry import METRICS
from plsc.targets import Activation, Targets


@METRICS.register()
class PrecisionAt1:
    """Share of samples of which the highest logit's class is one of its labels; without labels none is right."""

    def __init__(self) -> None:
        self.names = ["precision_at_1"]
        self._accuracy = TopkAcc(1)

    def reset(self) -> None:
        self._accuracy.reset()

    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        self._accuracy.update(logits, targets, valid)

    def reduce(self, all_reduce: AllReduce) -> None:
        self._accuracy.reduce(all_reduce)

    def compute(self) -> dict[str, float]:
        return {"precision_at_1": self._accuracy.compute()["top1"]}


@METRICS.register()
class F1(Sums):
    """F1 of the classes whose probability is above a threshold: macro and micro.

    Macro is the mean over the classes that have samples, `f1_classes` of them; micro is that of all
    decisions together, in every class.

    Args:
        threshold: of the probability. Softmax of data with one label a sample has none: the highest logit decides.
        activation: as in ECE.
    """

    def __init__(self, threshold: InsideUnit = 0.5, activation: Activation | None = None):
        self.threshold, self.activation = threshold, activation
        self.names = ["f1_macro", "f1_micro"]
        super().__init__()

    @paddle.no_grad()
    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        decided = self._decided(logits, one_label=targets.label is not None)
        right = targets.to_dense(logits.shape[1]) > 0
        if valid is not None:
            decided, right = decided & valid.unsqueeze(1), right & valid.unsqueeze(1)
        parts = (decided & right, decided, right)
        self.add(paddle.stack([part.astype("int64").sum(axis=0) for part in parts]))

    def _decided(self, logits: paddle.Tensor, *, one_label: bool) -> paddle.Tensor:
        """[B, C] bool: the classes that the model names."""
        if one_label and self.activation != "sigmoid":
            return F.one_hot(logits.argmax(axis=1), logits.shape[1]) > 0
        return probabilities(logits, self.activation) > self.threshold

    def compute(self) -> dict[str, float]:
        both, decided, right = self._total.numpy()  # of each class
        present = right > 0
        by_class = 2 * both[present] / (decided + right)[present]
        decisions = (decided + right).sum()
        return {
            "f1_macro": float(by_class.mean()) if present.any() else float("nan"),
            "f1_micro": float(2 * both.sum() / decisions) if decisions else float("nan"),
            "f1_classes": int(present.sum()),
        }
