"""The parts of a Vision Transformer. Shapes: B batch, N tokens, C width, H heads, D = C / H."""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from plsc.models.spec import pair

MAX_FLASH_HEAD_DIM = 256


def check_size(x, img_size: tuple[int, int]) -> None:
    """Raise ValueError where images [B, C, height, width] are not of the model's size."""
    height, width = x.shape[-2:]
    if isinstance(height, int) and height > 0 and (height, width) != img_size:
        expected = "x".join(map(str, img_size))
        raise ValueError(f"the model takes images of {expected} pixels (height x width), not {height}x{width}")


def gelu(approximate: bool):
    return nn.GELU(approximate=approximate)


class Dropout(nn.Layer):
    """Dropout that leaves no operation in the graph at rate 0."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        return F.dropout(x, self.rate, training=True)


class DropPath(nn.Layer):
    """Stochastic depth: drop the whole residual branch of a sample (Huang et al., 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        keep = F.dropout(paddle.ones_like(x[:, :1, :1]), self.rate, training=True)  # 0 or 1 / (1 - rate)
        return x * keep


class LayerScale(nn.Layer):
    """A learned factor a channel on a residual branch (CaiT, Touvron et al., 2021)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = self.create_parameter([width], default_initializer=nn.initializer.Constant(initial))

    def forward(self, x):
        return x * self.gamma


class PatchEmbed(nn.Layer):
    """Image [B, in_chans, height, width] → patch tokens [B, N, C], row by row."""

    def __init__(self, img_size, patch_size, in_chans: int, embed_dim: int):
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), pair(patch_size)
        self.grid = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.proj = nn.Conv2D(in_chans, embed_dim, self.patch_size, stride=self.patch_size)

    def forward(self, x):
        check_size(x, self.img_size)
        return self.proj(x).flatten(2).transpose([0, 2, 1])


class Mlp(nn.Layer):
    """Two linear layers with GELU between: [B, N, C] → [B, N, C]."""

    def __init__(self, width: int, hidden: int, drop_rate: float, approximate_gelu: bool):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = gelu(approximate_gelu)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = Dropout(drop_rate)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Layer):
    """Multi-head self-attention: [B, N, C] → [B, N, C] (Vaswani et al., 2017).

    Runs Paddle's scaled_dot_product_attention, which is flash attention on GPUs in half
    precision. Its conditions: [B, N, H, D] layout, no `scale` argument, D a multiple of 8
    and at most 256. Other head widths take the explicit path, as do attention maps.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool, qk_scale, attn_drop_rate: float, drop_rate: float):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width, bias_attr=None if qkv_bias else False)
        self.proj = nn.Linear(width, width)
        self.proj_drop = Dropout(drop_rate)
        self.attn_drop_rate = attn_drop_rate
        # softmax(q·k·scale): where another scale than D^-1/2 is asked for, q carries the difference
        self.q_factor = None if qk_scale is None else qk_scale * math.sqrt(self.head_dim)
        self.flash = self.head_dim % 8 == 0 and self.head_dim <= MAX_FLASH_HEAD_DIM

    def _split(self, x):
        q, k, v = self.qkv(x).reshape([0, -1, 3, self.num_heads, self.head_dim]).unbind(axis=2)
        return (q if self.q_factor is None else q * self.q_factor), k, v

    def _weights(self, q, k):
        """Attention weights [B, H, N, N], float32, rows summing to one."""
        q = (q * self.head_dim**-0.5).transpose([0, 2, 1, 3])
        scores = paddle.matmul(q, k.transpose([0, 2, 1, 3]), transpose_y=True)
        return F.softmax(scores.astype("float32"), axis=-1)

    def _mix(self, weights, v):
        mixed = paddle.matmul(weights.astype(v.dtype), v.transpose([0, 2, 1, 3]))
        return mixed.transpose([0, 2, 1, 3])

    def _out(self, mixed):
        return self.proj_drop(self.proj(mixed.flatten(2)))

    def forward(self, x):
        q, k, v = self._split(x)
        rate = self.attn_drop_rate if self.training else 0.0
        if self.flash:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, training=self.training)
        else:
            weights = self._weights(q, k)
            mixed = self._mix(F.dropout(weights, rate) if rate else weights, v)
        return self._out(mixed)

    def forward_with_weights(self, x):
        """The output [B, N, C] and the attention weights [B, H, N, N] that made it."""
        q, k, v = self._split(x)
        weights = self._weights(q, k)
        return self._out(self._mix(weights, v)), weights


class Block(nn.Layer):
    """A pre-norm encoder block: attention, then MLP, each on a residual branch."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_hidden: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        epsilon: float = 1e-6,
        layer_scale: float | None = None,
        approximate_gelu: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, epsilon=epsilon)
        self.attn = Attention(width, num_heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(width, epsilon=epsilon)
        self.mlp = Mlp(width, mlp_hidden, drop_rate, approximate_gelu)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.random = max(drop_rate, attn_drop_rate, drop_path_rate) > 0.0

    def forward(self, x):
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def forward_with_weights(self, x):
        """The output [B, N, C] and the attention weights [B, H, N, N] of this block."""
        mixed, weights = self.attn.forward_with_weights(self.norm1(x))
        x = x + self.drop_path(self.ls1(mixed))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x)))), weights


class AttentionPool(nn.Layer):
    """Pool tokens [B, N, C] → [B, C] by one learned query and an MLP (MAP head, Zhai et al., 2022)."""

    def __init__(self, width: int, num_heads: int, mlp_hidden: int, epsilon: float, approximate_gelu: bool):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.latent = self.create_parameter([1, 1, width], default_initializer=nn.initializer.XavierUniform())
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, epsilon=epsilon)
        self.mlp = Mlp(width, mlp_hidden, 0.0, approximate_gelu)

    def _weights(self, x):
        """The attention weights [B, H, 1, N], float32, and the values [B, N, H, D] that they mix."""
        q = self.q(self.latent.expand([x.shape[0], -1, -1])).reshape([0, -1, self.num_heads, self.head_dim])
        k, v = self.kv(x).reshape([0, -1, 2, self.num_heads, self.head_dim]).unbind(axis=2)
        scores = paddle.matmul(
            (q * self.head_dim**-0.5).transpose([0, 2, 1, 3]), k.transpose([0, 2, 1, 3]), transpose_y=True
        )
        return F.softmax(scores.astype("float32"), axis=-1), v

    def attention_map(self, x):
        """Tokens [B, N, C] → how the query weighs them [B, H, N], float32, rows summing to one."""
        return self._weights(x)[0][:, :, 0]

    def forward(self, x):
        weights, v = self._weights(x)
        mixed = paddle.matmul(weights.astype(v.dtype), v.transpose([0, 2, 1, 3])).transpose([0, 2, 1, 3])
        x = self.proj(mixed.flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]
