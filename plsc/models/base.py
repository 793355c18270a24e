"""What a model offers: the required part, and abilities that some have. Imports no Paddle.

A model is a paddle.nn.Layer; its parameters' and buffers' names are those of its checkpoints. It is registered by a
factory whose arguments are the fields of its spec:

    @plsc.register_model()
    def TinyConv(class_num: int = 10, width: int = 16):
        return TinyConvNet(TinyConvSpec(class_num, width))

What is not offered is not needed until something asks for it; the message then names the missing ability.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    import paddle


class Spec(Protocol):
    """A dataclass whose fields are all that rebuilds a model: MODELS.get(name).factory(**fields).

    Fields called img_size (pixels, one number or height and width) and in_chans are optional. A model without img_size
    takes images of any size, and nothing is checked.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    class_num: int


@runtime_checkable
class Model(Protocol):
    """What every model offers, besides being a paddle.nn.Layer.

    The classifier's parameters are called head.*, unless the model's family says otherwise (plsc.weights.Family).

    Attributes:
        spec: a Spec, which follows reset_classifier.
    """

    spec: Any  # of the model's own class; a type checker would let Spec match no frozen dataclass

    def forward(self, x: "paddle.Tensor") -> "paddle.Tensor":
        """Images [B, C, H, W] float32, normalised → logits [B, class_num]: forward_head(forward_features(x))."""
        ...

    def forward_features(self, x: "paddle.Tensor") -> "paddle.Tensor":
        """Images → features: tokens [B, N, C] of a transformer, maps [B, C, H, W] of a convolutional network."""
        ...

    def forward_head(self, x: "paddle.Tensor", pre_logits: bool = False) -> "paddle.Tensor":
        """Features → logits [B, class_num], or with pre_logits what the classifier sees [B, C]."""
        ...

    def reset_classifier(self, class_num: int) -> None:
        """Put a new classifier in place; 0 leaves it out, so that forward gives what it would have seen."""
        ...

    def __call__(self, x: "paddle.Tensor") -> "paddle.Tensor":
        """As paddle.nn.Layer has it: forward, with what was hooked to it."""
        ...

    def parameters(self) -> "list[paddle.Tensor]":
        """As paddle.nn.Layer has it."""
        ...

    def named_parameters(self) -> "Iterable[tuple[str, paddle.Tensor]]":
        """As paddle.nn.Layer has it."""
        ...

    def state_dict(self) -> "dict[str, paddle.Tensor]":
        """As paddle.nn.Layer has it."""
        ...

    def eval(self) -> object:
        """As paddle.nn.Layer has it."""

    def train(self) -> object:
        """As paddle.nn.Layer has it."""


@runtime_checkable
class HasBlocks(Protocol):
    """A model of layers one after the other, which are recomputed and compiled one by one."""

    blocks: "Sequence[paddle.nn.Layer]"


@runtime_checkable
class LayerWise(Protocol):
    """A model whose parameters have a depth, for layer-wise learning rates."""

    def layer_id(self, name: str) -> int:
        """Depth of a parameter: 0 the embeddings, then the blocks from 1, one more for all after them."""
        ...


@runtime_checkable
class DecayExempt(Protocol):
    """A model with parameters that recipes without decay on embeddings leave out."""

    def no_weight_decay(self) -> set[str]:
        """Their names."""
        ...


@runtime_checkable
class AttentionMaps(Protocol):
    """A model whose attention can be drawn."""

    def attention_maps(self, x: "paddle.Tensor") -> "list[paddle.Tensor]":
        """Images → for each block the attention weights [B, heads, N, N], float32, without dropout."""
        ...


@runtime_checkable
class AttentionPool(Protocol):
    """A model whose head may see what a query reads of the tokens (pool: map in its spec)."""

    def pool_weights(self, x: "paddle.Tensor") -> "paddle.Tensor":
        """Tokens [B, N, C] → how the query weighs them [B, heads, N]; 0 for those that it does not see."""
        ...


@runtime_checkable
class Intermediates(Protocol):
    """A model whose blocks' outputs can be had."""

    def forward_intermediates(
        self, x: "paddle.Tensor", blocks: Iterable[int] | None = None, *, normalise: bool = True
    ) -> "list[paddle.Tensor]":
        """Images → tokens [B, N, C] after each of the blocks that are asked for."""
        ...


@runtime_checkable
class Deployable(Protocol):
    """A model that is rewritten before it is exported, or that has a fixed img_size and can be exported without one."""

    @property
    def size_unit(self) -> int:
        """What sides of images are multiples of where the size is free."""
        ...

    @property
    def other_size(self) -> tuple[int, int]:
        """A (height, width) other than its own, at which an export of any size is checked."""
        ...

    def simplify(self, *, dynamic: bool, for_onnx: bool) -> None:
        """Rewrite the model in place into operations that Paddle Inference and ONNX share; the logits stay the same.

        Args:
            dynamic: so that it takes images of any size.
            for_onnx: as paddle2onnx needs it.
        """
        ...


@runtime_checkable
class Randomness(Protocol):
    """A layer that says whether it draws random numbers in training, as dropout does."""

    random: bool
