"""The mean of one value a sample, exact over every process."""

import paddle

from plsc.metrics.base import Sums


class Mean(Sums):
    """Sum and count in float64 on the device."""

    def __init__(self, name: str = "loss"):
        self.name = name
        super().__init__([2], "float64")

    @paddle.no_grad()
    def update(self, values: paddle.Tensor, valid: paddle.Tensor | None = None) -> None:
        """Add `values` [B]; where `valid` [B] bool is given, only those it marks."""
        values = values.astype("float64")
        count = paddle.ones_like(values) if valid is None else valid.astype("float64")
        # where, not a product: a padded sample's value may be anything
        values = values if valid is None else paddle.where(valid, values, paddle.zeros_like(values))
        self.add(paddle.stack([values.sum(), count.sum()]))

    @property
    def samples(self) -> int:
        """How many values have been added; of all processes once they are reduced."""
        return int(self._total[1])

    def compute(self) -> dict[str, float]:
        total, count = self._total.numpy().tolist()
        return {self.name: total / count if count else float("nan")}
