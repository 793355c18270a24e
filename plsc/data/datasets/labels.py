"""Labels with probabilities, as COYO-Labeled-300M has them, → what a loss learns from."""

from typing import Literal, NamedTuple

import numpy as np

from plsc.errors import ConfigError

LabelMode = Literal["class", "multi_hot", "soft"]


class Labels(NamedTuple):
    """Classes of one picture, and their probabilities where the data set has them."""

    ids: tuple[int, ...]
    probs: tuple[float, ...] | None = None


class LabelPolicy:
    """Which of a picture's labels count, and how much.

    Args:
        mode: class takes the most probable one (the first where there are no probabilities) as a plain
            class, multi_hot each with weight 1, soft each with its probability as weight.
        threshold: labels below this probability are left out.
        normalize: the weights of a picture are divided by their sum.
        drop_empty: pictures that no label is left of are left out; else no class is right for them.
        most: labels of a picture that are kept at most, the most probable ones.
    """

    def __init__(
        self, *, mode: LabelMode, threshold: float | None, normalize: bool, drop_empty: bool, most: int, owner: str
    ):
        if mode == "class" and not drop_empty:
            raise ConfigError(f"{owner}: label_mode class needs a class for every picture; drop_empty cannot be False")
        # float32 as in the files and the index: 0.7 is at a threshold of 0.7, in whatever precision
        self.threshold = None if threshold is None else float(np.float32(threshold))
        self.mode, self.normalize, self.drop_empty, self._most = mode, normalize, drop_empty, most
        # one label would mean a plain class, which has no weight and cannot be missing
        self.max_labels = 1 if mode == "class" else max(2, most)

    @property
    def identity(self) -> list:
        """What decides which pictures are part of the data set."""
        return [self.drop_empty, self.threshold]

    @property
    def label_identity(self) -> list:
        """What decides which labels a picture has."""
        return [*self.identity, self.mode == "class", self._most]

    def best(self, labels: Labels) -> float:
        """The probability of the most probable label: 1 where there are no probabilities, -1 without labels."""
        if not labels.ids:
            return -1.0
        return 1.0 if labels.probs is None else max(labels.probs)

    def keeps(self, best: np.ndarray) -> np.ndarray:
        """Which pictures are part of the data set, by the probabilities of their most probable labels."""
        if not self.drop_empty:
            return np.ones(len(best), dtype=bool)
        return best >= max(self.threshold or 0.0, 0.0)

    def __call__(self, labels: Labels) -> tuple[int | tuple[int, ...], tuple[float, ...] | None]:
        """(label, weights) of a Sample."""
        ids, probs = labels
        weights = (1.0,) * len(ids) if probs is None else probs
        order = sorted(range(len(ids)), key=lambda k: -weights[k])
        if self.threshold is not None:
            order = [k for k in order if np.float32(weights[k]) >= self.threshold]
        if self.mode == "class":
            return ids[order[0]], None
        best: dict[int, float] = {}
        for k in order:
            best.setdefault(ids[k], weights[k])  # of a label named twice the more probable
        chosen = dict(list(best.items())[: self._most])
        if self.mode == "multi_hot":
            chosen = dict.fromkeys(chosen, 1.0)
        total = sum(chosen.values())
        if self.normalize and total > 0:
            chosen = {label: weight / total for label, weight in chosen.items()}
        return tuple(chosen), tuple(chosen.values())
