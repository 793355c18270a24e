"""What a loss offers."""

from typing import Protocol, runtime_checkable

import paddle

from plsc.targets import Activation, Targets


@runtime_checkable
class Loss(Protocol):
    """A loss: a model's outputs and the targets → one value for each sample.

    Attributes:
        weight: what its values are multiplied by in the sum of a section's losses.
        activation: what it makes of the outputs, "softmax" or "sigmoid", and so what turns them into probabilities
            in prediction and in metrics; None where neither does.
    """

    weight: float
    activation: Activation | None

    def __call__(self, outputs: paddle.Tensor, targets: Targets, /) -> paddle.Tensor:
        """The loss of each sample, not yet times `weight`.

        Args:
            outputs: of the model, float32; logits [B, C] in classification.

        Returns:
            [B] float32.
        """
        ...
