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

    With several labels a sample any of them is right. A k that is no less than the number of classes is left out, since
    it would always be right; but not the first one, which picks the best checkpoint.
    """

    def __init__(self, topk: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 5)):
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        self.names = [f"top{k}" for k in self.topk]
        self._classes: int | None = None
        super().__init__([len(self.topk) + 1])

    @paddle.no_grad()
    def update(self, logits: paddle.Tensor, targets: Targets, valid: paddle.Tensor | None = None) -> None:
        self._classes = logits.shape[-1]
        k = min(max(self.topk), self._classes)
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
        return {
            name: hit / count if count else float("nan")
            for k, name, hit in zip(self.topk, self.names, hits, strict=True)
            if k == self.topk[0] or self._classes is None or k < self._classes
        }
