"""A model, data set, transform, loss and metric of one's own; recipe.yaml names this file in Global.imports.

Each is registered under its class's name. The signature of its constructor is its schema: the recipe may set just
these arguments, with these types and bounds, and `plsc config -c recipe.yaml` reports what does not fit.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from pydantic import Field
from sklearn.datasets import load_digits

import plsc


@plsc.register_dataset()
class EvenOrOdd:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 px, told apart as even and odd."""

    class_names = ["even", "odd"]
    max_labels = 1

    def __init__(self, split: str = "train"):
        digits = load_digits()
        part = slice(None, 1437) if split == "train" else slice(1437, None)
        self._images = (digits.images[part] * 255 / 16).astype("uint8")[..., np.newaxis]
        self._labels = digits.target[part] % 2

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> plsc.Sample:
        return plsc.Sample(self._images[index], int(self._labels[index]), f"digit {index}")


@plsc.register_transform()
class Invert:
    """Black for white, with probability p."""

    def __init__(self, p: Annotated[float, Field(ge=0, le=1)] = 0.5):
        self.p = p

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return 255 - image if rng.random() < self.p else image


@plsc.register_loss()
class FocalLoss:
    """Cross entropy in which well classified samples count less (Lin et al., 2017)."""

    activation = "softmax"  # what turns this model's outputs into probabilities

    def __init__(self, gamma: Annotated[float, Field(ge=0)] = 2.0, weight: Annotated[float, Field(gt=0)] = 1.0):
        self.gamma, self.weight = gamma, weight

    def __call__(self, outputs: paddle.Tensor, targets: plsc.Targets) -> paddle.Tensor:
        cross_entropy = F.cross_entropy(outputs, targets.label, reduction="none").reshape([-1])
        return (1.0 - paddle.exp(-cross_entropy)) ** self.gamma * cross_entropy


@plsc.register_metric()
class Recall:
    """Share of the samples of one class that the model finds."""

    def __init__(self, of: Annotated[int, Field(ge=0)] = 1):
        self.of = of
        self.names = [f"recall_{of}"]
        self.reset()

    def reset(self) -> None:
        self._counts = paddle.zeros([2], dtype="int64")

    @paddle.no_grad()
    def update(self, outputs: paddle.Tensor, targets: plsc.Targets, valid: paddle.Tensor | None = None) -> None:
        chosen = targets.label == self.of
        if valid is not None:
            chosen = chosen & valid
        right = chosen & (outputs.argmax(axis=1) == self.of)
        self._counts = self._counts + paddle.stack([right.astype("int64").sum(), chosen.astype("int64").sum()])

    def reduce(self, all_reduce) -> None:
        self._counts = all_reduce(self._counts)

    def compute(self) -> dict[str, float]:
        right, samples = self._counts.tolist()
        return {self.names[0]: right / samples if samples else float("nan")}


@dataclass(frozen=True)
class ConvNetSpec:
    """All that rebuilds a SmallConvNet."""

    class_num: int
    in_chans: int
    width: int


@plsc.register_model()
class SmallConvNet(nn.Layer):
    """Two convolutions, the mean over the picture, a linear head. Takes pictures of any size."""

    def __init__(
        self,
        class_num: Annotated[int, Field(ge=0)] = 10,
        in_chans: Annotated[int, Field(ge=1)] = 3,
        width: Annotated[int, Field(ge=1)] = 16,
    ):
        super().__init__()
        self.spec = ConvNetSpec(class_num, in_chans, width)
        self.body = nn.Sequential(
            nn.Conv2D(in_chans, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2D(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.reset_classifier(class_num)

    def reset_classifier(self, class_num: int) -> None:
        self.spec = ConvNetSpec(class_num, self.spec.in_chans, self.spec.width)
        self.head = nn.Linear(2 * self.spec.width, class_num) if class_num else nn.Identity()

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.body(x)

    def forward_head(self, x: paddle.Tensor, pre_logits: bool = False) -> paddle.Tensor:
        x = x.mean(axis=[2, 3])
        return x if pre_logits else self.head(x)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.forward_head(self.forward_features(x))
