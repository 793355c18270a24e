"""The layers of a Vision Transformer by other kernels, which are quicker on CPU; results are equal to 1e-5.

Why they are here: of a training step of ViT-Ti/16 on one core, less than half went into matrix products. Paddle's CPU
kernels that sum over rows (the gradient of a bias, layer_norm's backward) and that exchange axes (heads and tokens)
took most of the rest. Here sums over rows are products with a vector of ones, heads are moved by copying whole rows
(gather), a bias is what its product is added to, and a layer norm's backward is batch normalisation's. Factors are
spread over rows and columns by products, and dropout's random numbers are NumPy's. A step takes less than half the
time (docs/performance.md).

`use` gives a model's layers these classes; parameters, names and states stay as they are. While a graph is built, and
for attention with more than a plain one has, the layers compute as before (calling the base class by its name, since
Paddle 2.6 compiles no super()). tests/test_cpu_forms.py holds logits and gradients of both forms against each other.

What they lack: Paddle's PyLayer, by which they have a backward of their own, takes no part in paddle.grad for some of
a graph's tensors (it raises "stopgradient is true"), nor in create_graph, and a second backward through a retained
graph ends in a segmentation fault, whatever the PyLayer saves. So models outside of training keep the plain layers, and
by default those of tasks that are not plsc's. Where a model's own forward needs gradients: `Global.cpu_forms: False`.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from plsc.models.layers import Attention, Dropout, DropPath, LayerScale, PatchEmbed, check_size, first_tokens
from plsc.models.vision_transformer import VisionTransformer


def use(model: nn.Layer) -> int:
    """Let the layers of a model that have a form in this file compute by it; returns how many do.

    A ViT's last block makes the tokens that its head reads.
    """
    count = 0
    if isinstance(model, VisionTransformer):
        model.skip_unread()
    for layer in model.sublayers(include_self=True):
        form = _FORMS.get(type(layer))
        if form is not None:
            layer.__class__ = form
            count += 1
    return count


class CpuLinear(nn.Linear):
    """nn.Linear whose bias gradient is a product."""

    def forward(self, input: paddle.Tensor) -> paddle.Tensor:
        if self.bias is None or not paddle.in_dynamic_mode():
            return nn.Linear.forward(self, input)
        return _Linear.apply(input, self.weight, self.bias)


class CpuLayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last axis, with another backward."""

    def forward(self, input: paddle.Tensor) -> paddle.Tensor:
        plain = self.weight is None or self.bias is None or len(self._normalized_shape) != 1
        single = self._normalized_shape[-1] == 1  # which Paddle's batch normalisation leaves as it is
        if plain or single or not paddle.in_dynamic_mode():
            return nn.LayerNorm.forward(self, input)
        return _LayerNorm.apply(input, self.weight, self.bias, self._epsilon)


class CpuAttention(Attention):
    """Attention by explicit products, heads moved by rows."""

    def forward(self, x: paddle.Tensor, rows: int | None = None) -> paddle.Tensor:
        more = self.qk_norm or self.rope is not None or self.rel_pos_bias is not None
        if more or not paddle.in_dynamic_mode():
            return Attention.forward(self, x, rows)
        heads, rate = self.num_heads, self.attn_drop_rate if self.training else 0.0
        q, k, v = _SplitHeads.apply(self._qkv(x), heads)
        scale = self.head_dim**-0.5 * (1.0 if self.q_factor is None else self.q_factor)
        weights = F.softmax(paddle.matmul(first_tokens(q, rows) * scale, k, transpose_y=True), axis=-1)
        if rate:
            weights = weights * _dropout_mask(weights, rate)
        return self._out(_MergeHeads.apply(paddle.matmul(weights, v), heads))


class CpuDropout(Dropout):
    """Dropout by random numbers of NumPy: Paddle draws each with a distribution's object, in seven times the time."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.rate == 0.0 or not self.training or not paddle.in_dynamic_mode():
            return Dropout.forward(self, x)
        return x * _dropout_mask(x, self.rate)


class CpuDropPath(DropPath):
    """Stochastic depth whose factors are spread by a product: broadcasting takes several times as long."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.rate == 0.0 or not self.training or not paddle.in_dynamic_mode():
            return DropPath.forward(self, x)
        row = _ones(1, math.prod(x.shape[1:]), x.dtype)
        return x * paddle.matmul(self.factors(x).reshape([-1, 1]), row).reshape(x.shape)


class CpuLayerScale(LayerScale):
    """A factor a channel, spread by a product, too; its gradient is a product with ones."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not paddle.in_dynamic_mode() or 0 in x.shape:  # an empty product has no backward
            return LayerScale.forward(self, x)
        column = _ones(math.prod(x.shape[:-1]), 1, self.gamma.dtype)
        return x * paddle.matmul(column, self.gamma.unsqueeze(0)).reshape(x.shape)


class CpuPatchEmbed(PatchEmbed):
    """Patches by rows, and one product for all pictures instead of a convolution."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.proj.bias is None or not x.stop_gradient or not paddle.in_dynamic_mode():
            return PatchEmbed.forward(self, x)
        check_size(x, self.img_size)
        covered = [self.grid[i] * self.patch_size[i] for i in (0, 1)]  # Paddle 2.6 compiles no zip(strict=True)
        if x.shape[2:] != covered:  # a convolution leaves a rest at the right and bottom out, too
            x = x[:, :, : covered[0], : covered[1]]
        order = _patch_order(x.shape[0], x.shape[1], *self.grid, self.patch_size[0])
        rows = paddle.gather(x.reshape([-1, self.patch_size[1]]), order)
        weight = self.proj.weight.flatten(1)
        patches = rows.reshape([x.shape[0], self.grid[0] * self.grid[1], weight.shape[1]])
        return _Linear.apply(patches, weight.t(), self.proj.bias)


_FORMS: dict[type[nn.Layer], type[nn.Layer]] = {
    nn.Linear: CpuLinear,
    nn.LayerNorm: CpuLayerNorm,
    Attention: CpuAttention,
    Dropout: CpuDropout,
    DropPath: CpuDropPath,
    LayerScale: CpuLayerScale,
    PatchEmbed: CpuPatchEmbed,
}


# What a PyLayer saves is contiguous: of a view, such as the first tokens or a transposed matrix, recomputation would
# give backward the values in the order of memory.


class _Linear(PyLayer):
    """x [..., C] · weight [C, D] + bias [D]."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        rows, weight = x.reshape([-1, weight.shape[0]]).contiguous(), weight.contiguous()
        ctx.save_for_backward(rows, weight)
        ctx.shape, ctx.wanted = x.shape, [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return paddle.addmm(bias, rows, weight).reshape([*x.shape[:-1], weight.shape[1]])

    @staticmethod
    def backward(ctx: Any, dy: paddle.Tensor) -> Any:  # None where nothing is wanted, which Paddle's types omit
        rows, weight = ctx.saved_tensor()
        of_x, of_weight, of_bias = ctx.wanted
        dy = dy.reshape([-1, weight.shape[1]])
        return (
            paddle.matmul(dy, weight, transpose_y=True).reshape(ctx.shape) if of_x else None,
            paddle.matmul(rows, dy, transpose_x=True) if of_weight else None,
            _sum_of_rows(dy) if of_bias else None,
        )


class _LayerNorm(PyLayer):
    """n · weight + bias over the last axis, where n = (x - mean) / (variance + epsilon)^1/2.

    The gradient of x is that of batch normalisation for dy · weight, where a row of features is a channel: Paddle's
    kernel for channels takes a fortieth of the time of its kernel for layer norms.
    """

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
    ) -> paddle.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.wanted = epsilon, [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return F.layer_norm(x, [x.shape[-1]], weight, bias, epsilon)

    @staticmethod
    def backward(ctx: Any, dy: paddle.Tensor) -> Any:  # None where nothing is wanted, which Paddle's types omit
        x, weight = ctx.saved_tensor()
        width = x.shape[-1]
        of_x, of_weight, of_bias = ctx.wanted
        shape, dy = x.shape, dy.reshape([-1, width])
        rows = dy.shape[0]
        x = x.detach().reshape([1, rows, width])
        x.stop_gradient = not of_x
        # running averages, which it writes to, are not kept: a row of nan would stay in them
        average, variance, zeros = (paddle.zeros([rows], x.dtype) for _ in range(3))
        ones = _ones(1, rows, x.dtype).reshape([-1])
        with paddle.enable_grad():
            n = F.batch_norm(x, average, variance, ones, zeros, training=True, epsilon=ctx.epsilon)
        if of_x:
            # a row spread by a product takes half as long as by broadcasting
            u = paddle.matmul(_ones(rows, 1, x.dtype), weight.unsqueeze(0)).multiply_(dy)
            paddle.autograd.backward([n], [u.reshape(n.shape)])
        dy_n = n.detach().reshape_(dy.shape).multiply_(dy) if of_weight else None
        return (
            x.grad.reshape(shape) if of_x else None,
            None if dy_n is None else _sum_of_rows(dy_n),
            _sum_of_rows(dy) if of_bias else None,
        )


class _SplitHeads(PyLayer):
    """Queries, keys and values side by side [B, N, 3 H D] → each of them [B H, N, D]."""

    @staticmethod
    def forward(ctx: Any, qkv: paddle.Tensor, heads: int) -> tuple[paddle.Tensor, ...]:
        batch, tokens, width = qkv.shape
        ctx.key, head = (batch, tokens, heads), width // 3 // heads
        rows = paddle.gather(qkv.reshape([-1, head]), _split_order(*ctx.key)[0])
        return tuple(rows.reshape([3, batch * heads, tokens, head]).unbind(0))

    @staticmethod
    def backward(ctx: Any, *gradients: paddle.Tensor) -> paddle.Tensor:
        batch, tokens, _ = ctx.key
        rows = paddle.concat(gradients).reshape([-1, gradients[0].shape[-1]])
        return paddle.gather(rows, _split_order(*ctx.key)[1]).reshape([batch, tokens, -1])


class _MergeHeads(PyLayer):
    """Heads apart [B H, N, D] → side by side [B, N, H, D]."""

    @staticmethod
    def forward(ctx: Any, mixed: paddle.Tensor, heads: int) -> paddle.Tensor:
        rows, tokens, head = mixed.shape
        ctx.key = (rows // heads, tokens, heads)
        merged = paddle.gather(mixed.reshape([-1, head]), _merge_order(*ctx.key)[0])
        return merged.reshape([rows // heads, tokens, heads, head])

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        batch, tokens, heads = ctx.key
        head = gradient.shape[-1]
        rows = paddle.gather(gradient.reshape([-1, head]), _merge_order(*ctx.key)[1])
        return rows.reshape([batch * heads, tokens, head])


@paddle.jit.not_to_static  # Paddle 2.6 rewrites a saved model's code for good, and leaves out numpy()
def _dropout_mask(x: paddle.Tensor, rate: float) -> paddle.Tensor:
    """0 with a probability of rate, to the nearest of 65,536 parts, else what keeps the mean of x.

    The seed is drawn by Paddle's generator, so that paddle.seed and recomputation repeat it.
    """
    generator = np.random.Generator(np.random.SFC64(paddle.randint(0, 2**31 - 1, [1], "int64").numpy()))
    parts = generator.integers(0, 2**64, -(-x.size // 4), dtype="uint64").view("uint16")[: x.size]
    dropped = round(rate * 2**16)
    mask = np.multiply(parts >= dropped, 2**16 / max(1, 2**16 - dropped), dtype="float32")
    return paddle.to_tensor(mask.reshape(x.shape)).astype(x.dtype)


# what depends on shapes and types alone is kept; batches of a run have one or two


@lru_cache(maxsize=64)
def _ones(rows: int, columns: int, dtype: paddle.dtype) -> paddle.Tensor:
    return paddle.ones([rows, columns], dtype)


def _sum_of_rows(x: paddle.Tensor) -> paddle.Tensor:
    return paddle.matmul(_ones(1, x.shape[0], x.dtype), x).reshape([-1])


def _order(places: np.ndarray) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The rows to take, and those that bring them back."""
    order = places.reshape(-1)
    return paddle.to_tensor(order), paddle.to_tensor(np.argsort(order))


@lru_cache(maxsize=8)
def _split_order(batch: int, tokens: int, heads: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    rows = np.arange(batch * tokens * 3 * heads, dtype="int64").reshape(batch, tokens, 3, heads)
    return _order(rows.transpose(2, 0, 3, 1))


@lru_cache(maxsize=16)
def _merge_order(batch: int, tokens: int, heads: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    return _order(np.arange(batch * heads * tokens, dtype="int64").reshape(batch, heads, tokens).transpose(0, 2, 1))


@lru_cache(maxsize=8)
def _patch_order(batch: int, channels: int, down: int, across: int, height: int) -> paddle.Tensor:
    rows = np.arange(batch * channels * down * height * across, dtype="int64")
    return _order(rows.reshape(batch, channels, down, height, across).transpose(0, 2, 4, 1, 3))[0]
