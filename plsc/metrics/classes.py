"""Accuracy class by class, and which class is taken for which."""

import numpy as np
import paddle

from plsc.errors import ConfigError
from plsc.metrics.base import Sums
from plsc.registry import METRICS
from plsc.targets import Targets

_MOST_CLASSES = 5000  # a confusion matrix of 200 MB


def _single(targets: Targets, metric: str) -> paddle.Tensor:
    """Labels [B] int64. Raises ConfigError where a sample has several."""
    if targets.label is None:
        raise ConfigError(f"Metric: {metric} needs one label a sample, but the data set has several; F1 and mAP do not")
    return targets.label


def _counts(valid: paddle.Tensor | None, rows: int) -> paddle.Tensor:
    """[B] int64: 1 for rows that count."""
    return paddle.ones([rows], dtype="int64") if valid is None else valid.astype("int64")


@METRICS.register()
class PerClassAccuracy(Sums):
    """Top-1 accuracy of each class, and its mean over the classes that have samples.

    With data of which some classes have more samples than others, the mean is not the accuracy of all samples.

    Attributes:
        samples, right: [C] int64 after reduce: how many samples a class has, and how many of them are right.
    """

    def __init__(self) -> None:
        self.names = ["mean_class_top1"]
        super().__init__()

    @paddle.no_grad()
    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        label = _single(targets, "PerClassAccuracy")
        counts = _counts(valid, len(label))
        right = (logits.argmax(axis=1) == label).astype("int64") * counts
        self.add(paddle.scatter_nd(label.unsqueeze(1), paddle.stack([counts, right], axis=1), [logits.shape[1], 2]))

    @property
    def samples(self) -> np.ndarray:
        return self._total[:, 0].numpy()

    @property
    def right(self) -> np.ndarray:
        return self._total[:, 1].numpy()

    def compute(self) -> dict[str, float]:
        present = self.samples > 0
        shares = self.right[present] / self.samples[present]
        return {
            "mean_class_top1": float(shares.mean()) if len(shares) else float("nan"),
            "classes": int(present.sum()),
        }


@METRICS.register()
class ConfusionMatrix(Sums):
    """How often each class is taken for each.

    The matrix takes 8 bytes x classes² on the device; more than 5,000 classes are refused.

    Attributes:
        matrix: [C, C] int64 after reduce; a row is a sample's class, a column the model's answer.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        super().__init__()

    @paddle.no_grad()
    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        classes = logits.shape[1]
        if classes > _MOST_CLASSES:
            raise ConfigError(
                f"Metric: ConfusionMatrix takes at most {_MOST_CLASSES:,} classes, the model has {classes:,}; "
                "PerClassAccuracy shows which classes fail"
            )
        label = _single(targets, "ConfusionMatrix")
        place = paddle.stack([label, logits.argmax(axis=1)], axis=1)
        counts = _counts(valid, len(label))
        if self._sums is None:
            self._sums = paddle.zeros([classes, classes], dtype="int64")
        self._sums = paddle.scatter_nd_add(self._sums, place, counts)

    @property
    def matrix(self) -> np.ndarray:
        return self._total.numpy()

    def compute(self) -> dict[str, float]:
        return {}
