"""Metrics that rank all samples by one class's probability: mean average precision, area under the ROC curve."""

from collections.abc import Callable

import numpy as np
import paddle

from plsc.bounds import PositiveFloat
from plsc.errors import ConfigError
from plsc.metrics.base import AllReduce
from plsc.registry import METRICS
from plsc.targets import Activation, Targets

_CHUNK_BYTES = 16 * 2**20


class Ranking:
    """The mean over classes of a figure of (right [N] bool, scores [N]).

    Scores order samples as the probabilities of a class do: logits for sigmoid, their log-softmax for softmax.
    Keeps those of the whole data set in host memory, by sample index: samples x classes x 4 bytes, which is
    0.2 GB for ImageNet's 50,000 validation pictures and 4.4 GB for as many of 21,841 classes. After `reduce` every
    process has all of them; before it, the system gives each process memory only for the rows that it wrote.
    Each batch is copied from the device.

    Args:
        name: of the figure. registered: the metric's name, for messages.
        figure: (right, scores) → number, or None where it is not defined; such classes are left out.
        activation: softmax or sigmoid.
        max_gib: what would take more is refused before anything is kept.
    """

    def __init__(
        self,
        name: str,
        figure: Callable[[np.ndarray, np.ndarray], float | None],
        *,
        registered: str,
        max_gib: float,
        activation: Activation | None,
    ):
        self.names = [name]
        self._figure, self._registered, self._max_gib = figure, registered, max_gib
        self._size, self.activation = None, activation
        self.reset()

    def attach(self, data) -> None:
        self._size = len(data)

    def reset(self) -> None:
        self._scores = self._labels = self._seen = None

    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        if self._size is None:
            raise ConfigError(
                f"Metric: {self._registered} ranks the samples of a whole data set; it belongs in Metric.Eval"
            )
        labels = _labels(targets)
        if self._seen is None:
            self._allocate(logits.shape[1], labels.shape[1])
        kept = np.ones(len(labels), bool) if valid is None else valid.numpy()
        index = targets.index.numpy()[kept]
        if self.activation != "sigmoid":  # not F.log_softmax, which on CPU cuts at -64
            logits = logits - paddle.logsumexp(logits, axis=1, keepdim=True)
        self._scores[index] = logits.numpy()[kept]
        self._labels[index] = labels[kept] + 1
        self._seen[index] = 1

    def _allocate(self, classes: int, labels: int):
        gib = 4 * self._size * classes / 2**30
        if gib > self._max_gib:
            raise ConfigError(
                f"Metric: {self._registered} would keep the scores of {self._size:,} samples and {classes:,} classes, "
                f"{gib:.1f} GiB on each process, and {self._registered}.max_gib is {self._max_gib:g}; raise it, or "
                "measure a part of the data set (slice)"
            )
        self._scores = np.zeros([self._size, classes], "float32")
        self._labels = np.zeros([self._size, labels], "int32")  # class + 1: a sum with the others' zeros keeps it
        self._seen = np.zeros([self._size, 1], "int32")

    def reduce(self, all_reduce: AllReduce) -> None:
        """Join the processes' rows, 16 MB at a time."""
        for array in (self._scores, self._labels, self._seen):
            rows = max(1, _CHUNK_BYTES // array[:1].nbytes)
            for start in range(0, len(array), rows):
                part = slice(start, start + rows)
                array[part] = all_reduce(paddle.to_tensor(array[part])).numpy()
        assert self._seen.max() <= 1, "a sample was measured twice"

    def compute(self) -> dict[str, float]:
        [name] = self.names
        figures = [] if self._seen is None else self._by_class()
        return {name: sum(figures) / len(figures) if figures else float("nan"), f"{name}_classes": len(figures)}

    def _by_class(self) -> list[float]:
        """The figure of each class that has samples and of which it is defined."""
        kept = self._seen[:, 0] > 0
        scores, labels = self._scores[kept], self._labels[kept]
        samples, places = np.nonzero(labels)
        classes = labels[samples, places] - 1
        figures = []
        for c in np.unique(classes):
            right = np.zeros(len(scores), bool)
            right[samples[classes == c]] = True
            defined = np.isfinite(scores[:, c]).all()
            figures.append(self._figure(right, scores[:, c]) if defined else float("nan"))
        return [float(value) for value in figures if value is not None]


def _labels(targets: Targets) -> np.ndarray:
    """[B, K] int32, filled up with -1; labels of weight 0 are none."""
    if targets.label is not None:
        return targets.label.unsqueeze(1).numpy().astype("int32")
    return np.where(targets.label_weights.numpy() > 0, targets.label_ids.numpy(), -1)


def _average_precision(right, scores):
    from sklearn.metrics import average_precision_score

    return average_precision_score(right, scores)


def _area_under_curve(right, scores):
    from sklearn.metrics import roc_auc_score

    return None if right.all() else roc_auc_score(right, scores)


@METRICS.register()
def mAP(max_gib: PositiveFloat = 8.0, activation: Activation | None = None) -> Ranking:
    """Mean over classes of the average precision (scikit-learn's average_precision_score).

    Classes without samples are left out; `mAP_classes` remain.

    Args:
        max_gib: most host memory for the scores of all samples, see Ranking.
        activation: as in ECE.
    """
    return Ranking("mAP", _average_precision, registered="mAP", max_gib=max_gib, activation=activation)


@METRICS.register()
def AUC(max_gib: PositiveFloat = 8.0, activation: Activation | None = None) -> Ranking:
    """Mean over classes of the area under the ROC curve (scikit-learn's roc_auc_score).

    Classes that no sample has, or every sample, are left out; `auc_classes` remain.

    Args:
        max_gib: most host memory for the scores of all samples, see Ranking.
        activation: as in ECE.
    """
    return Ranking("auc", _area_under_curve, registered="AUC", max_gib=max_gib, activation=activation)
