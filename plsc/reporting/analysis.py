"""What a trained run makes of its evaluation data: which classes it takes for which, and its worst mistakes."""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from plsc import build
from plsc.config import Config
from plsc.data.sampler import Draw
from plsc.errors import ConfigError
from plsc.loading import load_model
from plsc.predictor import probabilities
from plsc.tensors import to_numpy
from plsc.visualize.contact_sheet import displayable


@dataclass(frozen=True, order=True)
class Mistake:
    """A sample of which another class was predicted; ordered by how wrong.

    Attributes:
        wrongness: less the probability of its own class. index: in the data set.
        label, prediction: classes. probability: of the prediction, certainty that it got wrong.
        picture: as the model saw it, [H, W, C] uint8, RGB or grey.
    """

    wrongness: float
    index: int
    label: int = field(compare=False)
    prediction: int = field(compare=False)
    probability: float = field(compare=False)
    picture: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True)
class Analysis:
    """What came of it.

    Attributes:
        weights: path of the checkpoint. averaged: whether its averaged weights were measured.
        confusion: [C, C] counts, a row a true class. samples, total: measured, and all there are.
        class_names: of the classes. mistakes: the worst first.
    """

    weights: Path
    averaged: bool
    confusion: np.ndarray
    samples: int
    total: int
    class_names: Sequence[str]
    mistakes: Sequence[Mistake]

    @property
    def accuracy(self) -> float:
        """Top-1."""
        return float(np.trace(self.confusion)) / max(1, self.samples)


def analyse(run: Path, config: Config, *, averaged: bool, samples: int, mistakes: int) -> Analysis:
    """Measure a run's best checkpoint on its evaluation data.

    Args:
        config: the run's. averaged: take the averaged weights.
        samples: at most so many, spread over the data set. mistakes: how many to keep.

    Raises:
        PlscError: weights or data cannot be read, or samples have several labels.
    """
    loaded = load_model(run, weights="ema" if averaged else "model", config=config)
    network, card = loaded.network, loaded.card
    if not card.activation:
        raise ConfigError(f"{run}: it is unknown what makes probabilities of the logits of its loss")
    data = build.dataset(config, "Eval", class_names=card.class_names, owner="the weights")
    config = build.resolve_class_num(config, data)
    classes = build.class_num(config)
    batch_size = config.DataLoader["Eval"].sampler.arguments["batch_size"]
    feed = build.feed(config, "Eval", batch_size=batch_size, data=data)
    bgr = any(not part.arguments.get("to_rgb", True) for part in config.DataLoader["Eval"].transforms)
    confusion = np.zeros([classes, classes], dtype="int64")
    worst: list[Mistake] = []
    indices = np.linspace(0, len(data) - 1, min(samples, len(data))).astype(int).tolist()
    try:
        batches = _batches(indices, batch_size)
        for places, arrays in zip(_batches(indices, batch_size), feed.loader.run(_draws(batches)), strict=True):
            batch = feed.input(arrays)
            if "label" not in batch:
                raise ConfigError(f"{run}: samples have several labels, of which there is no confusion")
            with paddle.no_grad():
                shares = probabilities(to_numpy(network(batch["image"])), card.activation)
            shares = shares[: len(places)]  # a last batch that is not full keeps rows of the one before
            labels, predicted = batch["label"].numpy()[: len(places)], shares.argmax(axis=1)
            np.add.at(confusion, (labels, predicted), 1)
            wrong = np.flatnonzero(labels != predicted)
            pictures = displayable(batch["image"].numpy()[wrong], feed.normalize, bgr)
            for row, picture in zip(wrong.tolist(), pictures, strict=True):
                label, prediction = int(labels[row]), int(predicted[row])
                share = float(shares[row, prediction])
                made = Mistake(-float(shares[row, label]), places[row], label, prediction, share, picture)
                (heapq.heappush if len(worst) < mistakes else heapq.heappushpop)(worst, made)
    finally:
        feed.loader.close()
    names = [_name(feed.data.class_names or card.class_names, c) for c in range(classes)]
    return Analysis(
        weights=Path(loaded.source.path),
        averaged=averaged,
        confusion=confusion,
        samples=len(indices),
        total=len(data),
        class_names=names,
        mistakes=sorted(worst, reverse=True),
    )


def _batches(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    places = iter(indices)
    while batch := list(itertools.islice(places, size)):
        yield batch


def _draws(batches: Iterator[list[int]]) -> Iterator[list[Draw]]:
    for batch in batches:
        yield [Draw(0, index) for index in batch]


def _name(names: Any, c: int) -> str:
    return names[c] if names and c < len(names) else f"class {c}"
