"""What a model offers, and what it may offer besides.

Any paddle.nn.Layer that is a Model trains, is evaluated, predicts and is exported. The other protocols are optional:
what needs a missing one says so.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import paddle


@runtime_checkable
class Model(Protocol):
    """A network for pictures.

    Attributes:
        spec: a dataclass of all that rebuilds it, with at least class_num; img_size (pixels, or height and width) and
            in_chans where pictures of one size or number of channels are taken.
    """

    spec: Any

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Pictures [B, C, H, W] float32 → outputs, in classification logits [B, class_num]."""
        ...

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """Pictures → what forward_head takes."""
        ...

    def forward_head(self, x: paddle.Tensor, pre_logits: bool = False) -> paddle.Tensor:
        """Features → outputs; with pre_logits what the last layer takes, [B, width]."""
        ...

    def reset_classifier(self, class_num: int) -> None:
        """Replace the last layer by a fresh one for another number of classes."""
        ...


@runtime_checkable
class HasBlocks(Protocol):
    """A model made of blocks that run one after the other: recompute and to_static take each by itself."""

    blocks: Sequence[paddle.nn.Layer]


@runtime_checkable
class LayerWise(Protocol):
    """A model whose parameters belong to layers: layer decay."""

    def layer_id(self, name: str) -> int:
        """The layer of a parameter, from 0 at the input."""
        ...


@runtime_checkable
class DecayExempt(Protocol):
    """A model that knows which parameters are tokens and positions: Optimizer.no_weight_decay token, position."""

    def no_weight_decay(self) -> set[str]:
        """Names of these parameters."""
        ...


@runtime_checkable
class AttentionMaps(Protocol):
    """A model with attention to look at: `plsc visualize attention`."""

    def attention_maps(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """The attention weights of each block, [B, heads, N, N]."""
        ...


@runtime_checkable
class Randomness(Protocol):
    """A layer that says whether it draws random numbers in training, as dropout does."""

    random: bool
