"""A Vision Transformer rewritten, in place, into the form that is exported.

It computes the same logits, by operations that Paddle Inference and ONNX share, and can take pictures
of any size or hold its weights as float16.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from plsc.models.layers import Attention, Rotary, first_tokens
from plsc.models.resnet import StdConv2D, Stem, convolution_padding, pooling_padding
from plsc.models.spec import is_of_one_size

if TYPE_CHECKING:
    from plsc.models.vision_transformer import VisionTransformer

_LARGEST_HALF = 65504.0
_REACH = 2  # source positions on either side of a target that cubic convolution looks at


def simplify(network: "VisionTransformer", *, dynamic: bool, for_onnx: bool) -> None:
    """Rewrite a VisionTransformer.

    Attention takes its explicit path, for Paddle Inference with queries, keys and values apart; the last block makes
    the tokens that the head reads; rotary embeddings are computed once. A hybrid's kernels are standardised once and
    for all, and its convolutions and pooling pad by themselves.

    Args:
        dynamic: take pictures of any size, for a hybrid any multiple of its `size_unit`. Not of a model that
            `is_of_one_size`.
        for_onnx: write GELU's tanh form out, of which paddle2onnx 2.1 makes the exact one.
    """
    assert not (dynamic and is_of_one_size(vars(network.spec)))
    network.skip_unread()
    for block in network.blocks:
        block.attn.flash = False
        if not for_onnx:
            ApartAttention.of(block.attn)
    for parent in network.sublayers():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, StdConv2D):
                setattr(parent, name, FrozenConv(layer, dynamic))
            elif isinstance(layer, Stem):
                setattr(parent, name, FrozenStem(layer, dynamic))
            elif isinstance(layer, Rotary):
                layer.freeze()  # in the graph they make Paddle Inference 3.3 give other logits
            elif isinstance(layer, nn.GELU) and for_onnx and network.spec.act == "gelu_tanh":
                setattr(parent, name, TanhGelu())
    if dynamic:
        _fold_positions(network)


def store_half(network: nn.Layer) -> None:
    """Hold matrices and kernels as float16; they become float32 where they are used. Vectors stay float32.

    Raises:
        ValueError: a weight is outside float16; names it.
    """
    for prefix, layer in network.named_sublayers(include_self=True):
        names = [name for name, p in layer._parameters.items() if p is not None and p.ndim > 1]
        for name in names:
            whole = layer._parameters.pop(name)
            if float(whole.abs().max()) > _LARGEST_HALF:
                raise ValueError(f"{prefix}.{name}".lstrip("."))
            half = layer.create_parameter(
                whole.shape, dtype="float16", default_initializer=nn.initializer.Constant(0.0)
            )
            half.set_value(whole.astype("float16"))
            layer.add_parameter(_half(name), half)
        if names:
            layer.register_forward_pre_hook(_widen(names))


def _half(name: str) -> str:
    return f"{name}_half"


def _widen(names: list[str]) -> Callable[[nn.Layer, Any], Any]:
    """A hook that gives a layer its float32 weights before it runs."""

    def widen(layer: nn.Layer, inputs: Any) -> None:
        for name in names:
            # past the layer's own registration, which admits parameters only
            object.__setattr__(layer, name, getattr(layer, _half(name)).astype("float32"))

    return widen


def _sides(x: paddle.Tensor, unit: int, dynamic: bool) -> list[int]:
    """Height and width, for which padding is chosen; where they are free, those of pictures that a unit divides."""
    return [unit, unit] if dynamic else list(x.shape[2:])


class ApartAttention(Attention):
    """Attention whose queries, keys and values are products of their own.

    Taking them apart is a tenth of a ViT-Ti's time in Paddle Inference, on one thread.
    """

    q_weight: paddle.Tensor
    k_weight: paddle.Tensor
    v_weight: paddle.Tensor
    q_bias: Any
    k_bias: Any
    v_bias: Any

    @staticmethod
    def of(attention: Attention) -> None:
        """Change an Attention into one of these."""
        qkv, bias = attention.qkv, None
        if attention.separate_biases:
            q_bias, v_bias = attention.q_bias.numpy(), attention.v_bias.numpy()
            bias = np.concatenate([q_bias, np.zeros_like(q_bias), v_bias])
            del attention.q_bias, attention.v_bias
        elif qkv.bias is not None:
            bias = qkv.bias.numpy()
        del attention.qkv
        attention.__class__ = ApartAttention
        for name, weight in zip("qkv", np.split(qkv.weight.numpy(), 3, axis=1), strict=True):
            setattr(attention, f"{name}_weight", _parameter(attention, weight))
        for name, part in zip("qkv", [None] * 3 if bias is None else np.split(bias, 3), strict=True):
            setattr(attention, f"{name}_bias", None if part is None else _parameter(attention, part))

    def _heads(self, x: paddle.Tensor, rows: int | None) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        shape = [0, -1, self.num_heads, self.head_dim]
        return (
            F.linear(first_tokens(x, rows), self.q_weight, self.q_bias).reshape(shape),
            F.linear(x, self.k_weight, self.k_bias).reshape(shape),
            F.linear(x, self.v_weight, self.v_bias).reshape(shape),
        )


class FrozenConv(nn.Layer):
    """A StdConv2D that is not trained any more."""

    def __init__(self, conv: StdConv2D, dynamic: bool):
        super().__init__()
        self.weight = _parameter(self, conv.standardised().numpy())
        self.size, self.step, self.kind, self.dynamic = conv.size, conv.step, conv.kind, dynamic

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        sides = _sides(x, self.step * self.size, self.dynamic)
        rows, columns = (convolution_padding(side, self.size, self.step, self.kind) for side in sides)
        return F.conv2d(x, self.weight, stride=self.step, padding=[*rows, *columns])


class FrozenStem(nn.Layer):
    """A Stem with its convolution frozen."""

    def __init__(self, stem: Stem, dynamic: bool):
        super().__init__()
        self.conv, self.norm = FrozenConv(stem.conv, dynamic), stem.norm
        self.kind, self.dynamic = stem.kind, dynamic

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        rows, columns = (pooling_padding(side, self.kind) for side in _sides(x, 2 * 3, self.dynamic))
        return F.max_pool2d(x, 3, stride=2, padding=[*rows, *columns])


class TanhGelu(nn.Layer):
    """GELU by its tanh approximation (Hendrycks and Gimpel, 2016), in the form that onnxruntime fuses."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return 0.5 * x * (1.0 + paddle.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * paddle.pow(x, 3.0))))


class FreeSizeEmbed(nn.Layer):
    """Pictures of any size → patch tokens with position embedding [B, N, C], resized to their grid.

    Args:
        embed: PatchEmbed or HybridEmbed. table: [rows, columns, C], the patches' position embedding.
        unit: the network's size_unit; other sizes fail in the runtime.
    """

    def __init__(self, embed: nn.Layer, table: np.ndarray, unit: int):
        super().__init__()
        self.backbone = getattr(embed, "backbone", None)
        self.proj, self.unit = embed.proj, unit
        self.rows, self.columns, self.width = table.shape
        self.table = _parameter(self, table.reshape(self.rows, -1))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.backbone is not None:
            x = self.backbone(self._of_unit(x))
        x = self.proj(x)
        shape = paddle.shape(x)
        table = paddle.matmul(cubic_matrix(shape[2], self.rows), self.table)
        table = paddle.matmul(cubic_matrix(shape[3], self.columns), table.reshape([-1, self.columns, self.width]))
        return x.flatten(2).transpose([0, 2, 1]) + table.reshape([1, -1, self.width])

    def _of_unit(self, x: paddle.Tensor) -> paddle.Tensor:
        """The pictures as they are, through shapes that only multiples of the unit have."""
        shape = paddle.shape(x)
        x = x.reshape([0, 0, -1, self.unit, shape[3]]).flatten(2, 3)
        return x.reshape([0, 0, shape[2], -1, self.unit]).flatten(3, 4)


def cubic_matrix(new: paddle.Tensor, old: int) -> paddle.Tensor:
    """[new, old] weights of cubic convolution, `new` a tensor: plsc.weights.resample's matrix, in the graph."""
    a = -0.75
    centre = (paddle.arange(new).astype("float32") + 0.5) * (old / new.astype("float32")) - 0.5
    source = paddle.arange(-_REACH, old + _REACH).astype("float32")
    distance = (centre.unsqueeze(1) - source).abs().clip(max=float(_REACH))  # where the weight is 0
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = paddle.where(distance <= 1, near, far)
    edge = np.clip(np.arange(-_REACH, old + _REACH), 0, old - 1)  # positions outside the edge repeat it
    return paddle.matmul(weights, paddle.to_tensor(np.eye(old, dtype="float32")[edge]))


def _fold_positions(network: "VisionTransformer") -> None:
    """Move the position embedding into tokens and patch embedding, so that it follows the picture's size."""
    spec, positions = network.spec, network.pos_embed.numpy()[0]
    prefix, patches = positions[: spec.embedded_prefix], positions[spec.embedded_prefix :]
    if len(prefix) and spec.class_token:
        network.cls_token.set_value(network.cls_token + paddle.to_tensor(prefix[:1]))
    if len(prefix) and spec.reg_tokens:
        network.reg_token.set_value(network.reg_token + paddle.to_tensor(prefix[-spec.reg_tokens :]))
    table = patches.reshape(*spec.grid, spec.embed_dim)
    network.patch_embed = FreeSizeEmbed(network.patch_embed, table, network.size_unit)
    network.pos_embed = _parameter(network, np.zeros([1, 1, spec.embed_dim], "float32"))


def _parameter(layer: nn.Layer, array: np.ndarray) -> paddle.Tensor:
    return layer.create_parameter(array.shape, default_initializer=nn.initializer.Assign(array))
