"""What a batch says the answer is, in the compact form it arrived in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import paddle
import paddle.nn.functional as F

Activation = Literal["softmax", "sigmoid"]  # what turns logits into probabilities


@dataclass
class Targets:
    """Targets of one batch; one of the three forms is given.

    Attributes:
        label: [B] int64, one class a sample; with `dense`, what it was before mixing.
        label_ids, label_weights: [B, K] int32 padded with -1 and [B, K] float32, several classes a sample.
        dense: [B, C] float32, as mixing leaves them.
        index: [B] int64, the samples' places in the data set.
    """

    label: paddle.Tensor | None = None
    label_ids: paddle.Tensor | None = None
    label_weights: paddle.Tensor | None = None
    dense: paddle.Tensor | None = None
    index: paddle.Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, paddle.Tensor]) -> "Targets":
        """The targets among a batch's device tensors."""
        names = ("label", "label_ids", "label_weights", "target", "index")
        return cls(*(batch.get(name) for name in names))

    def to_dense(self, class_num: int) -> paddle.Tensor:
        """[B, C] float32: one-hot, multi-hot or the soft targets."""
        if self.dense is not None:
            return self.dense
        if self.label is not None:
            return F.one_hot(self.label, class_num).astype("float32")
        label_ids, label_weights = self.several()
        rows, labels = label_ids.shape
        ids = paddle.clip(label_ids, min=0).astype("int64")  # padding has weight 0
        weights = paddle.where(label_ids >= 0, label_weights, paddle.zeros_like(label_weights))
        row = paddle.arange(rows, dtype="int64").unsqueeze(1).expand([rows, labels])
        index = paddle.stack([row.flatten(), ids.flatten()], axis=1)
        return paddle.scatter_nd(index, weights.flatten(), [rows, class_num])

    def contains(self, classes: paddle.Tensor) -> paddle.Tensor:
        """Whether each of `classes` [B, k] int64 is right: [B, k] bool."""
        if self.dense is not None:  # mixed targets: right is the class with most weight
            return classes == self.dense.argmax(axis=1, keepdim=True)
        if self.label is not None:
            return classes == self.label.unsqueeze(1)
        label_ids, label_weights = self.several()
        ids = label_ids.astype("int64").unsqueeze(1)  # [B, 1, K]
        hit = (classes.unsqueeze(2) == ids) & (label_weights.unsqueeze(1) > 0)
        return hit.any(axis=2)

    def several(self) -> tuple[paddle.Tensor, paddle.Tensor]:
        """label_ids and label_weights of a batch that has neither `label` nor `dense`."""
        assert self.label_ids is not None and self.label_weights is not None, "a batch without targets"
        return self.label_ids, self.label_weights
