"""The parts of a Vision Transformer. Shapes: B batch, N tokens, C width, H heads, D = C / H."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from plsc import compat
from plsc.models.init import linear
from plsc.models.spec import Sides, ViTSpec, pair

MAX_FLASH_HEAD_DIM = 256


def check_size(x: paddle.Tensor, img_size: tuple[int, int]) -> None:
    """Raise ValueError where images [B, C, height, width] are not of the model's size."""
    height, width = x.shape[-2:]
    if isinstance(height, int) and height > 0 and (height, width) != img_size:
        expected = "x".join(map(str, img_size))
        raise ValueError(f"the model takes images of {expected} pixels (height x width), not {height}x{width}")


def first_tokens(x: paddle.Tensor, rows: int | None) -> paddle.Tensor:
    """The first of x [B, N, …] along N; all where rows is None."""
    return x if rows is None else x[:, :rows]


def activation(act: str) -> nn.Layer:
    """The layer of an activation by its name in ViTSpec.act."""
    return QuickGelu() if act == "quick_gelu" else nn.GELU(approximate=act == "gelu_tanh")


class QuickGelu(nn.Layer):
    """GELU by a sigmoid (Hendrycks and Gimpel, 2016), as OpenAI's CLIP has it."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x * F.sigmoid(1.702 * x)


class RMSNorm(nn.Layer):
    """Divide by the root of the mean square along the last axis (Zhang and Sennrich, 2019), in float32."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))
        self.epsilon = epsilon

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        wide = x.astype("float32")
        return (wide * paddle.rsqrt((wide * wide).mean(axis=-1, keepdim=True) + self.epsilon)).astype(x.dtype) * (
            self.weight.astype(x.dtype)
        )


class FeatureNorm(nn.Layer):
    """Batch normalisation of features [B, C] without scale and shift (Ioffe and Szegedy, 2015), by plain operations.

    Paddle Inference crashes on its own layer where that has neither. The running variance is the unbiased one, as in
    PyTorch.

    Args:
        momentum: share of a batch's statistics in the running ones.
    """

    _mean: paddle.Tensor
    _variance: paddle.Tensor

    def __init__(self, width: int, epsilon: float = 1e-6, momentum: float = 0.1):
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.register_buffer("_mean", paddle.zeros([width]))
        self.register_buffer("_variance", paddle.ones([width]))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        wide = x.astype("float32")
        mean, variance = self._mean.astype("float32"), self._variance.astype("float32")
        if self.training:
            mean = wide.mean(axis=0)
            variance = ((wide - mean) ** 2).mean(axis=0)
            self._keep(mean, variance * (x.shape[0] / max(1, x.shape[0] - 1)))
        return ((wide - mean) * (variance + self.epsilon).rsqrt()).astype(x.dtype)

    @paddle.no_grad()
    def _keep(self, mean: paddle.Tensor, variance: paddle.Tensor) -> None:
        for running, new in ((self._mean, mean), (self._variance, variance)):
            mixed = running.astype("float32") * (1.0 - self.momentum) + new * self.momentum
            paddle.assign(mixed.astype(running.dtype), output=running)


def norm_layer(kind: str, width: int, epsilon: float) -> nn.Layer:
    """A norm by its name in ViTSpec.norm."""
    return RMSNorm(width, epsilon) if kind == "rmsnorm" else nn.LayerNorm(width, epsilon=epsilon)


class Dropout(nn.Layer):
    """Dropout that leaves no operation in the graph at rate 0."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return F.dropout(x, self.rate, training=True)


class DropPath(nn.Layer):
    """Stochastic depth: drop the whole residual branch of a sample (Huang et al., 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return x * self.factors(x)

    def factors(self, x: paddle.Tensor) -> paddle.Tensor:
        """Of each sample 0 or 1 / (1 - rate), [B, 1, 1] or with as many axes as x has."""
        axes = x.ndim - 1
        first = paddle.slice(x, list(range(1, axes + 1)), [0] * axes, [1] * axes)
        return F.dropout(paddle.ones_like(first), self.rate, training=True)


class LayerScale(nn.Layer):
    """A learned factor a channel on a residual branch (CaiT, Touvron et al., 2021)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = self.create_parameter([width], default_initializer=nn.initializer.Constant(initial))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x * self.gamma


class PatchEmbed(nn.Layer):
    """Image [B, in_chans, height, width] → patch tokens [B, N, C], row by row."""

    def __init__(self, img_size: Sides, patch_size: Sides, in_chans: int, embed_dim: int, bias: bool = True):
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), pair(patch_size)
        self.grid = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.proj = nn.Conv2D(
            in_chans, embed_dim, self.patch_size, stride=self.patch_size, bias_attr=None if bias else False
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        check_size(x, self.img_size)
        return self.proj(x).flatten(2).transpose([0, 2, 1])


class Mlp(nn.Layer):
    """Two linear layers with an activation between: [B, N, C] → [B, N, C]."""

    def __init__(self, width: int, hidden: int, drop_rate: float, act: str, norm: nn.Layer | None = None):
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.act = activation(act)
        self.norm = nn.Identity() if norm is None else norm
        self.fc2 = linear(hidden, width)
        self.drop = Dropout(drop_rate)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.drop(self.fc2(self.norm(self.drop(self.act(self.fc1(x))))))


class SwiGlu(nn.Layer):
    """silu(gate) · value, both of one linear layer, and another linear layer (Shazeer, 2020): [B, N, C] → [B, N, C]."""

    def __init__(self, width: int, hidden: int, drop_rate: float, norm: nn.Layer | None = None):
        super().__init__()
        self.fc1 = linear(width, 2 * hidden)
        self.norm = nn.Identity() if norm is None else norm
        self.fc2 = linear(hidden, width)
        self.drop = Dropout(drop_rate)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        gate, value = self.fc1(x).chunk(2, axis=-1)
        return self.drop(self.fc2(self.norm(self.drop(F.silu(gate) * value))))


class Rotary(nn.Layer):
    """Rotate pairs of channels of queries and keys [B, N, H, D] by angles of their positions (Su et al., 2021).

    The channels come out in another order, the same for both, which their products do not see.

    Args:
        spec: whose `rope` is not None.
    """

    def __init__(self, spec: ViTSpec):
        super().__init__()
        width = spec.embed_dim // spec.num_heads
        self.halves = spec.rope == "centred"  # which channels are a pair: the halves' at one place, or neighbours
        places = np.zeros([spec.prefix_tokens + math.prod(spec.grid), 2], "float32")  # other tokens stay as they are
        places[spec.prefix_tokens :] = rope_coordinates(spec)
        if spec.rope == "mixed":
            # each head begins with axes of its own, turned by a random angle
            turn = 2 * math.pi * paddle.rand([spec.num_heads, 1]).numpy() + np.repeat([0.0, math.pi / 2], width // 4)
            periods = np.tile(_frequencies(width // 4, spec.rope_temperature), 2)
            frequencies = np.stack([periods * np.cos(turn), periods * np.sin(turn)]).astype("float32")
            self.freqs = self.create_parameter(
                [2, spec.num_heads, width // 2], default_initializer=nn.initializer.Assign(frequencies)
            )
            self.register_buffer("places", paddle.to_tensor(places[:, None, None]), persistable=False)
        else:
            frequencies = _frequencies(width // 4, spec.rope_temperature)
            angles = (places[:, :, None] * frequencies).reshape([1, len(places), 1, width // 2])
            self.register_buffer("cos", paddle.to_tensor(np.cos(angles)), persistable=False)
            self.register_buffer("sin", paddle.to_tensor(np.sin(angles)), persistable=False)

    def tables(self) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Cosines and sines [1, N, H or 1, D / 2]."""
        if not hasattr(self, "freqs"):
            return self.cos, self.sin
        down, across = self.freqs.astype("float32").unbind(axis=0)
        angles = self.places[:, :, :, 0] * down + self.places[:, :, :, 1] * across
        return paddle.cos(angles).unsqueeze(0), paddle.sin(angles).unsqueeze(0)

    def freeze(self) -> None:
        """Keep the tables instead of the frequencies that make them."""
        if hasattr(self, "freqs"):
            cos, sin = (table.detach() for table in self.tables())
            del self.freqs
            self.register_buffer("cos", cos, persistable=False)
            self.register_buffer("sin", sin, persistable=False)

    def _rotated(self, x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
        wide = x.astype(cos.dtype)
        if self.halves:
            first, second = wide.chunk(2, axis=-1)
        else:
            first, second = wide.reshape([0, 0, 0, -1, 2]).unbind(axis=-1)
        return paddle.concat([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

    def forward(
        self, q: paddle.Tensor, k: paddle.Tensor, rows: int | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Queries, of the first `rows` tokens or all, and keys of all → both rotated."""
        cos, sin = self.tables()
        return self._rotated(q, first_tokens(cos, rows), first_tokens(sin, rows)), self._rotated(k, cos, sin)


def _frequencies(count: int, temperature: float) -> np.ndarray:
    return (1.0 / temperature ** (np.arange(count, dtype="float32") / count)).astype("float32")


def rope_coordinates(spec: ViTSpec) -> np.ndarray:
    """Where patches stand [rows x columns, 2], row by row, as the spec's rope measures it."""
    axes = []
    for axis, side in enumerate(spec.grid):
        places = np.arange(side, dtype="float32") + np.float32(spec.rope_offset)
        if spec.rope == "centred":
            places = (2.0 * ((places + 0.5) / side) - 1.0) * 2.0 * math.pi
        elif spec.rope_reference is not None:
            places = places / side * pair(spec.rope_reference)[axis]
        axes.append(places.astype("float32"))
    down, across = np.meshgrid(*axes, indexing="ij")
    return np.stack([down, across] if spec.rope_order == "yx" else [across, down], axis=-1).reshape(-1, 2)


class RelativePositionBias(nn.Layer):
    """A learned bias [1, H, N, N] of attention scores, by how far apart two patches are (BEiT, Bao et al., 2021).

    The last three rows of its table are for the class token: as query, as key, and with itself.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int):
        super().__init__()
        rows, columns = grid
        count = (2 * rows - 1) * (2 * columns - 1)
        self.table = self.create_parameter([count + 3, num_heads], default_initializer=nn.initializer.Constant(0.0))
        down, across = (axis.reshape(-1) for axis in np.mgrid[:rows, :columns])
        index = np.empty([rows * columns + 1] * 2, "int64")
        index[1:, 1:] = (down[:, None] - down + rows - 1) * (2 * columns - 1) + across[:, None] - across + columns - 1
        index[0, :], index[:, 0], index[0, 0] = count, count + 1, count + 2
        self.tokens, self.num_heads = len(index), num_heads
        self.register_buffer("index", paddle.to_tensor(index.reshape(-1)), persistable=False)

    def forward(self) -> paddle.Tensor:
        bias = paddle.gather(self.table, self.index).reshape([self.tokens, self.tokens, self.num_heads])
        return bias.transpose([2, 0, 1]).unsqueeze(0)


class Attention(nn.Layer):
    """Multi-head self-attention: [B, N, C] → [B, N, C] (Vaswani et al., 2017).

    Runs Paddle's scaled_dot_product_attention, which is flash attention on GPUs in half
    precision. Its conditions: [B, N, H, D] layout, half precision, no `scale` argument, D a
    multiple of 8 and at most 256. Other head widths take the explicit path, as do attention maps,
    a bias by position, and outputs of the first tokens alone.
    """

    def __init__(self, spec: ViTSpec):
        super().__init__()
        width, self.num_heads = spec.embed_dim, spec.num_heads
        self.head_dim = width // self.num_heads
        fused = spec.qkv_bias and spec.k_bias
        self.qkv = linear(width, 3 * width, bias=fused)
        self.proj = linear(width, width)
        self.proj_drop = Dropout(spec.drop_rate)
        self.attn_drop_rate = spec.attn_drop_rate
        # softmax(q·k·scale): where another scale than D^-1/2 is asked for, q carries the difference
        self.q_factor = None if spec.qk_scale is None else spec.qk_scale * math.sqrt(self.head_dim)
        self.flash = self.head_dim % 8 == 0 and self.head_dim <= MAX_FLASH_HEAD_DIM and not spec.rel_pos_bias
        # what a plain Vision Transformer does not have
        self.separate_biases, self.qk_norm = spec.qkv_bias and not spec.k_bias, spec.qk_norm is not None
        if self.separate_biases:
            self.q_bias = self.create_parameter([width], is_bias=True)
            self.v_bias = self.create_parameter([width], is_bias=True)
        if spec.qk_norm is not None:
            self.q_norm = norm_layer(spec.qk_norm, self.head_dim, spec.epsilon)
            self.k_norm = norm_layer(spec.qk_norm, self.head_dim, spec.epsilon)
        self.norm = norm_layer(spec.norm, width, spec.epsilon) if spec.attn_norm else None
        self.rope = None if spec.rope is None else Rotary(spec)
        self.rel_pos_bias = RelativePositionBias(spec.grid, spec.num_heads) if spec.rel_pos_bias else None

    def _qkv(self, x: paddle.Tensor) -> paddle.Tensor:
        """Tokens → queries, keys and values side by side [B, N, 3 C]."""
        qkv = self.qkv(x)
        if self.separate_biases:
            qkv = qkv + paddle.concat([self.q_bias, paddle.zeros_like(self.q_bias), self.v_bias])
        return qkv

    def _heads(self, x: paddle.Tensor, rows: int | None) -> Sequence[paddle.Tensor]:
        """Tokens → queries of the first `rows` tokens, keys and values [B, N, H, D], as the linear layer makes them."""
        qkv = compat.autocasted(self._qkv(x))
        q, k, v = qkv.reshape([0, -1, 3, self.num_heads, self.head_dim]).unbind(axis=2)
        return first_tokens(q, rows), k, v

    def _split(self, x: paddle.Tensor, rows: int | None = None) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Tokens → queries of the first `rows` tokens, keys and values [B, N, H, D]."""
        q, k, v = self._heads(x, rows)
        if self.qk_norm:
            q, k = compat.autocasted(self.q_norm(q)), compat.autocasted(self.k_norm(k))
        if self.rope is not None:
            q, k = self.rope(q, k) if rows is None else self.rope(q, k, rows)
        return (q if self.q_factor is None else q * self.q_factor), k, v

    def _weights(self, q: paddle.Tensor, k: paddle.Tensor, rows: int | None = None) -> paddle.Tensor:
        """Attention weights [B, H, rows or N, N], float32, each row's sum one."""
        q = (q * self.head_dim**-0.5).transpose([0, 2, 1, 3])
        scores = paddle.matmul(q, k.transpose([0, 2, 1, 3]), transpose_y=True)
        if self.rel_pos_bias is not None:
            bias = self.rel_pos_bias()
            scores = scores + (bias if rows is None else bias[:, :, :rows]).astype(scores.dtype)
        return F.softmax(scores.astype("float32"), axis=-1)

    def _mix(self, weights: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        mixed = paddle.matmul(weights.astype(v.dtype), v.transpose([0, 2, 1, 3]))
        return mixed.transpose([0, 2, 1, 3])

    def _out(self, mixed: paddle.Tensor) -> paddle.Tensor:
        mixed = mixed.flatten(2)
        return self.proj_drop(self.proj(mixed if self.norm is None else self.norm(mixed)))

    def forward(self, x: paddle.Tensor, rows: int | None = None) -> paddle.Tensor:
        """Tokens [B, N, C] → what they read of each other [B, N, C], or that of the first `rows` tokens."""
        q, k, v = self._split(x, rows)
        rate = self.attn_drop_rate if self.training else 0.0
        if self.flash and rows is None:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, training=self.training)
        else:
            weights = self._weights(q, k, rows)
            mixed = self._mix(F.dropout(weights, rate) if rate else weights, v)
        return self._out(mixed)

    def forward_with_weights(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The output [B, N, C] and the attention weights [B, H, N, N] that made it."""
        q, k, v = self._split(x)
        weights = self._weights(q, k)
        return self._out(self._mix(weights, v)), weights


class Block(nn.Layer):
    """A transformer block: attention and MLP, each added to its input [B, N, C].

    Args:
        spec: of the model.
        drop_path_rate: of this block.
    """

    def __init__(self, spec: ViTSpec, drop_path_rate: float = 0.0):
        super().__init__()
        width, scale = spec.embed_dim, spec.layer_scale
        self.order = spec.block
        self.norm1 = norm_layer(spec.norm, width, spec.epsilon)
        self.attn = Attention(spec)
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.drop_path = DropPath(drop_path_rate)
        if spec.block != "parallel":
            self.norm2 = norm_layer(spec.norm, width, spec.epsilon)
        inner = norm_layer(spec.norm, spec.mlp_width, spec.epsilon) if spec.mlp_norm else None
        self.mlp: nn.Layer
        if spec.mlp == "swiglu":
            self.mlp = SwiGlu(width, spec.mlp_width, spec.drop_rate, inner)
        else:
            self.mlp = Mlp(width, spec.mlp_width, spec.drop_rate, spec.act, inner)
        if spec.block != "parallel":
            self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.random = max(spec.drop_rate, spec.attn_drop_rate, drop_path_rate) > 0.0

    def forward(self, x: paddle.Tensor, rows: int | None = None) -> paddle.Tensor:
        """Tokens [B, N, C] → all of the block's, or the first `rows` of them [B, rows, C], as if it had made all."""
        if rows is None:
            return self._through(x, self.attn)
        return self._through(x, lambda tokens: self.attn(tokens, rows), rows)

    def forward_with_weights(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The output [B, N, C] and the attention weights [B, H, N, N] of this block."""
        kept = []

        def attend(tokens: paddle.Tensor) -> paddle.Tensor:
            mixed, weights = self.attn.forward_with_weights(tokens)
            kept.append(weights)
            return mixed

        return self._through(x, attend), kept[0]

    def _through(
        self, x: paddle.Tensor, attend: Callable[[paddle.Tensor], paddle.Tensor], rows: int | None = None
    ) -> paddle.Tensor:
        kept = first_tokens(x, rows)
        if self.order == "parallel":
            normed = self.norm1(x)
            return kept + self.drop_path(self.ls1(attend(normed) + self.mlp(first_tokens(normed, rows))))
        if self.order == "post":
            x = kept + self.drop_path(self.norm1(attend(x)))
            return x + self.drop_path(self.norm2(self.mlp(x)))
        x = kept + self.drop_path(self.ls1(attend(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class AttentionPool(nn.Layer):
    """Pool tokens [B, N, C] → [B, C] by one learned query and an MLP (MAP head, Zhai et al., 2022)."""

    def __init__(self, spec: ViTSpec):
        super().__init__()
        width, self.num_heads = spec.embed_dim, spec.pool_heads or spec.num_heads
        self.head_dim = width // self.num_heads
        self.latent = self.create_parameter([1, 1, width], default_initializer=nn.initializer.XavierUniform())
        self.q = linear(width, width)
        self.kv = linear(width, 2 * width)
        self.proj = linear(width, width)
        self.norm = norm_layer(spec.norm, width, spec.epsilon)
        self.mlp = Mlp(width, spec.pool_mlp_width, 0.0, spec.act)

    def _weights(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The attention weights [B, H, 1, N], float32, and the values [B, N, H, D] that they mix."""
        q = self.q(self.latent.expand([x.shape[0], -1, -1])).reshape([0, -1, self.num_heads, self.head_dim])
        k, v = self.kv(x).reshape([0, -1, 2, self.num_heads, self.head_dim]).unbind(axis=2)
        scores = paddle.matmul(
            (q * self.head_dim**-0.5).transpose([0, 2, 1, 3]), k.transpose([0, 2, 1, 3]), transpose_y=True
        )
        return F.softmax(scores.astype("float32"), axis=-1), v

    def attention_map(self, x: paddle.Tensor) -> paddle.Tensor:
        """Tokens [B, N, C] → how the query weighs them [B, H, N], float32, rows summing to one."""
        return self._weights(x)[0][:, :, 0]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        weights, v = self._weights(x)
        mixed = paddle.matmul(weights.astype(v.dtype), v.transpose([0, 2, 1, 3])).transpose([0, 2, 1, 3])
        x = self.proj(mixed.flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]
