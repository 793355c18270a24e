"""Top-k accuracy."""

import paddle

from plsc.errors import ConfigError
from plsc.registry import METRICS
from plsc.targets import Targets


@METRICS.register()
class TopkAcc:
    """Share of samples with a right class among the k highest logits, for each k.

    With several labels a sample any of them is right. Where there are fewer than k classes,
    all of them count. The first k is the one that picks the best checkpoint.
    """

    def __init__(self, topk: int | list[int] = (1, 5)):
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        if not self.topk or min(self.topk) < 1:
            raise ConfigError(f"Metric: TopkAcc.topk is {topk}; give numbers from 1, for instance [1, 5]")
        self.names = [f"top{k}" for k in self.topk]
        self.reset()

    def reset(self):
        self._counts = paddle.zeros([len(self.topk) + 1], dtype="int64")

    @paddle.no_grad()
    def update(self, logits, targets: Targets, valid=None):
        """Add logits [B, C]; where `valid` [B] bool is given, only those it marks."""
        k = min(max(self.topk), logits.shape[-1])
        _, classes = paddle.topk(logits, k, axis=-1)
        right = targets.contains(classes)
        if valid is None:
            valid = paddle.ones([logits.shape[0]], dtype="bool")
        hits = [(right[:, : min(k, kk)].any(axis=1) & valid).astype("int64").sum() for kk in self.topk]
        self._counts = self._counts + paddle.stack([*hits, valid.astype("int64").sum()])

    def reduce(self, all_reduce):
        """Sum over processes; `all_reduce` maps a tensor to its sum."""
        self._counts = all_reduce(self._counts)

    @property
    def samples(self) -> int:
        """How many counted."""
        return int(self._counts[-1])

    def compute(self) -> dict[str, float]:
        *hits, count = self._counts.tolist()
        return {name: (hit / count if count else float("nan")) for name, hit in zip(self.names, hits, strict=True)}
