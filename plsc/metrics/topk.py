"""Top-k accuracy."""

from typing import Annotated

import paddle
from pydantic import Field

from plsc.bounds import Positive
from plsc.metrics.base import Sums
from plsc.registry import METRICS
from plsc.targets import Targets


@METRICS.register()
class TopkAcc(Sums):
    """Share of samples with a right class among the k highest logits, for each k.

    With several labels a sample any of them is right. Where there are fewer than k classes,
    all of them count. The first k is the one that picks the best checkpoint.
    """

    def __init__(self, topk: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 5)):
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        self.names = [f"top{k}" for k in self.topk]
        super().__init__([len(self.topk) + 1])

    @paddle.no_grad()
    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        k = min(max(self.topk), logits.shape[-1])
        _, classes = paddle.topk(logits, k, axis=-1)
        right = targets.contains(classes)
        if valid is None:
            valid = paddle.ones([logits.shape[0]], dtype="bool")
        hits = [(right[:, : min(k, kk)].any(axis=1) & valid).astype("int64").sum() for kk in self.topk]
        self.add(paddle.stack([*hits, valid.astype("int64").sum()]))

    @property
    def samples(self) -> int:
        """How many counted."""
        return int(self._total[-1])

    def compute(self) -> dict[str, float]:
        *hits, count = self._total.numpy().tolist()
        return {name: (hit / count if count else float("nan")) for name, hit in zip(self.names, hits, strict=True)}
