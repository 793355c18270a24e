"""Metrics that rank all samples by one class's probability: mean average precision, area under the ROC curve."""

from collections.abc import Callable, Sized
from dataclasses import dataclass

import numpy as np
import paddle

from plsc.bounds import PositiveFloat
from plsc.errors import ConfigError
from plsc.metrics.base import AllReduce
from plsc.registry import METRICS
from plsc.targets import Activation, Targets

_CHUNK_BYTES = 16 * 2**20


@dataclass
class _Rows:
    """What is kept of each sample, by its index.

    Attributes:
        scores: [N, C] float32. seen: [N, 1] int32, 1 where the sample was measured.
        labels: [N, K] int32, class + 1: a sum with the others' zeros keeps it.
    """

    scores: np.ndarray
    labels: np.ndarray
    seen: np.ndarray


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
        self.activation = activation
        self._size: int | None = None
        self.reset()

    def attach(self, data: Sized) -> None:
        self._size = len(data)

    def reset(self) -> None:
        self._rows: _Rows | None = None

    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        if self._size is None:
            raise ConfigError(
                f"Metric: {self._registered} ranks the samples of a whole data set; it belongs in Metric.Eval"
            )
        labels = _labels(targets)
        if self._rows is None:
            self._rows = self._allocate(self._size, logits.shape[1], labels.shape[1])
        assert targets.index is not None
        kept = np.ones(len(labels), bool) if valid is None else valid.numpy()
        index = targets.index.numpy()[kept]
        if self.activation != "sigmoid":  # not F.log_softmax, which on CPU cuts at -64
            logits = logits - paddle.logsumexp(logits, axis=1, keepdim=True)
        self._rows.scores[index] = logits.numpy()[kept]
        self._rows.labels[index] = labels[kept] + 1
        self._rows.seen[index] = 1

    def _allocate(self, samples: int, classes: int, labels: int) -> _Rows:
        gib = 4 * samples * classes / 2**30
        if gib > self._max_gib:
            raise ConfigError(
                f"Metric: {self._registered} would keep the scores of {samples:,} samples and {classes:,} classes, "
                f"{gib:.1f} GiB on each process, and {self._registered}.max_gib is {self._max_gib:g}; raise it, or "
                "measure a part of the data set (slice)"
            )
        return _Rows(
            np.zeros([samples, classes], "float32"),
            np.zeros([samples, labels], "int32"),
            np.zeros([samples, 1], "int32"),
        )

    def reduce(self, all_reduce: AllReduce) -> None:
        """Join the processes' rows, 16 MB at a time."""
        assert self._rows is not None, "no batch has been added"
        for array in (self._rows.scores, self._rows.labels, self._rows.seen):
            rows = max(1, _CHUNK_BYTES // array[:1].nbytes)
            for start in range(0, len(array), rows):
                part = slice(start, start + rows)
                array[part] = all_reduce(paddle.to_tensor(array[part])).numpy()
        assert self._rows.seen.max() <= 1, "a sample was measured twice"

    def compute(self) -> dict[str, float]:
        [name] = self.names
        figures = [] if self._rows is None else self._by_class(self._rows)
        return {name: sum(figures) / len(figures) if figures else float("nan"), f"{name}_classes": len(figures)}

    def _by_class(self, rows: _Rows) -> list[float]:
        """The figure of each class that has samples and of which it is defined."""
        kept = rows.seen[:, 0] > 0
        scores, labels = rows.scores[kept], rows.labels[kept]
        samples, places = np.nonzero(labels)
        classes = labels[samples, places] - 1
        figures: list[float | None] = []
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
    label_ids, label_weights = targets.several()
    return np.where(label_weights.numpy() > 0, label_ids.numpy(), -1)


def _average_precision(right: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return average_precision_score(right, scores)


def _area_under_curve(right: np.ndarray, scores: np.ndarray) -> float | None:
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
