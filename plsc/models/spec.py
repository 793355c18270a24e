"""The arguments of a Vision Transformer, with their bounds, and its size and cost. Imports no Paddle."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from plsc.errors import ConfigError
from plsc.signatures import holding_bounds

Size = Annotated[int, Field(gt=0)]
Sides = Size | tuple[Size, Size]  # one number, or (height, width)
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """All that rebuilds a Vision Transformer.

    Attributes:
        img_size, patch_size: pixels, one number or (height, width); in hybrids the patch is one of the
            ResNet's feature map, as in Google's configurations. Where the image is not a multiple
            of the patch, the right and lower rest is not seen (H/14 at 384 px sees 27 x 27 patches).
        class_num: outputs of the head; 0 leaves the head out.
        drop_rate: dropout after the position embedding, attention projection and MLP layers.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        representation_size: width of the tanh layer before the head (pre-logits); None leaves it out.
        pool: what the head sees: the class token, the average of the patch tokens, that of all tokens, both the first
            and the second side by side (token_avg; DINOv2's linear heads), or attention pooling.
        pool_prefix: whether attention pooling sees class and register tokens, too; timm's ViTs leave them out.
        pool_heads, pool_mlp_ratio: heads of attention pooling, and the width of its MLP; None: those of the blocks.
        fc_norm: normalise after average pooling instead of before. final_norm: False leaves both norms out.
        norm: of every layer: LayerNorm, or RMSNorm (Zhang and Sennrich, 2019).
        norm_pre: normalise before the first block, patch_bias: the patch projection has a bias (CLIP has the former and
            not the latter).
        pos_embed: what is added to the tokens: a learned embedding, a fixed one, or nothing.
        no_embed_class: class, distillation and register tokens get no position embedding (DINOv2 with registers).
        rope: rotary position embedding of queries and keys (Su et al., 2021). axial: by row and column (EVA-02,
            https://arxiv.org/abs/2303.11331); centred: by coordinates from -1 to 1 (DINOv3,
            https://arxiv.org/abs/2508.10104); mixed: by learned frequencies (Heo et al.,
            https://arxiv.org/abs/2403.13298). Class, distillation and register tokens are not rotated.
        rope_temperature: ratio of the longest to the shortest period. rope_reference: the grid's sides to which axial
            coordinates are scaled; None leaves them. rope_offset: what is added to coordinates. rope_order: which
            coordinate comes first.
        rel_pos_bias: each block adds a learned bias by relative position to its scores (BEiT,
            https://arxiv.org/abs/2106.08254); needs a class token and no registers.
        k_bias: False: with qkv_bias queries and values alone have biases (BEiT, EVA-02).
        qk_norm: norm of each head's queries and keys; None leaves it out. attn_norm: a norm before the projection of
            attention (EVA-02's CLIP).
        mlp: two layers with `act` between, or SwiGLU (Shazeer, 2020), whose gate stands before its values in one
            matrix; mlp_ratio is then of the values' width. mlp_norm: a norm before the MLP's last layer.
        block: where a block normalises: before attention and MLP, after each of them before the sum (post), or once
            before both, which run side by side (parallel; ViT-22B, https://arxiv.org/abs/2302.05442).
        layer_scale: initial value of LayerScale; None leaves it out.
        distillation: DeiT's second token (https://arxiv.org/abs/2012.12877). heads: with a head of its own, logits are
            the mean of both; token: the class token's head alone.
        drop_path_uniform: the same drop_path_rate in all blocks (DeiT III), instead of one that rises.
        resnet_norm: numerics of hybrids' ResNet: google's and timm's differ in their epsilons; jeonsworld's, of
            ViT-pytorch, pads and normalises otherwise, see plsc/models/resnet.py.
        resnet_layers: bottlenecks a stage of the ResNet before the patches, which makes a hybrid;
            () is its stem alone, None a plain ViT. resnet_width: times 64 channels.
        weight_init: see plsc.models.init. head_init: zeros, as weight_init's linear layers, or a number, the standard
            deviation of a truncated normal distribution (MAE: 2e-5, its linear probe 0.01).
        head_batch_norm: normalise the head's input by batch statistics, without scale and shift (MAE's linear probe,
            https://arxiv.org/abs/2111.06377).
    """

    img_size: Sides = 224
    patch_size: Sides = 16
    in_chans: Size = 3
    class_num: Annotated[int, Field(ge=0)] = 1000
    embed_dim: Size = 768
    depth: Size = 12
    num_heads: Size = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: Rate = 0.0
    attn_drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0
    epsilon: Annotated[float, Field(gt=0, le=1e-3)] = 1e-6
    representation_size: Size | None = None
    class_token: bool = True
    reg_tokens: Annotated[int, Field(ge=0)] = 0
    pool: Literal["token", "avg", "all", "token_avg", "map"] = "token"
    pool_prefix: bool = True
    pool_heads: Size | None = None
    pool_mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    fc_norm: bool = False
    final_norm: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_pre: bool = False
    patch_bias: bool = True
    pos_embed: Literal["learned", "sincos2d", "none"] = "learned"
    no_embed_class: bool = False
    rope: Literal["axial", "centred", "mixed"] | None = None
    rope_temperature: Annotated[float, Field(gt=1)] = 100.0
    rope_reference: Sides | None = None
    rope_offset: float = 0.0
    rope_order: Literal["yx", "xy"] = "yx"
    rel_pos_bias: bool = False
    k_bias: bool = True
    qk_norm: Literal["layernorm", "rmsnorm"] | None = None
    attn_norm: bool = False
    mlp: Literal["plain", "swiglu"] = "plain"
    mlp_norm: bool = False
    block: Literal["pre", "post", "parallel"] = "pre"
    layer_scale: float | None = None
    distillation: Literal["heads", "token"] | None = None
    drop_path_uniform: bool = False
    act: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    weight_init: Literal["jax", "plsc", "coyo", "timm", "torch"] = "jax"
    head_init: Literal["zeros", "scheme"] | Annotated[float, Field(gt=0, le=1)] = "zeros"
    head_bias: float = 0.0
    head_batch_norm: bool = False
    resnet_layers: tuple[Size, ...] | None = None
    resnet_width: Annotated[float, Field(gt=0)] = 1.0
    resnet_norm: Literal["google", "timm", "jeonsworld"] = "google"

    def __post_init__(self) -> None:
        """Raise ConfigError where fields contradict each other; the bounds of each stand at its type."""
        if min(self.grid) < 1:
            raise ConfigError(f"img_size {self.img_size} holds no patch of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.mlp_width < 1:
            raise ConfigError(f"mlp_ratio is {self.mlp_ratio}; the MLP must be at least 1 wide")
        if self.pool in ("token", "token_avg") and not self.class_token:
            raise ConfigError(f"pool {self.pool} needs class_token; without it choose pool avg or map")
        if self.fc_norm and self.pool not in ("avg", "all"):
            raise ConfigError("fc_norm goes with pool avg or all")
        if self.fc_norm and not self.final_norm:
            raise ConfigError("fc_norm is a norm at the end, which final_norm False leaves out")
        if self.distillation and (not self.class_token or self.pool != "token"):
            raise ConfigError("distillation needs class_token and pool token")
        if self.distillation and (self.representation_size or self.head_batch_norm):
            raise ConfigError("distillation goes without representation_size and head_batch_norm")
        if self.rope and (self.embed_dim // self.num_heads) % 4:
            raise ConfigError(f"rope needs heads of a width divisible by 4, not {self.embed_dim // self.num_heads}")
        if self.rel_pos_bias and (not self.class_token or self.prefix_tokens != 1):
            raise ConfigError("rel_pos_bias needs class_token, without registers and distillation")
        if self.block == "post" and self.layer_scale is not None:
            raise ConfigError("block post has no layer_scale; its norms' weights take its part")
        if self.pool_heads and self.embed_dim % self.pool_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} is not divisible by pool_heads {self.pool_heads}")
        odd = any(side % reduction(self.resnet_layers) for side in pair(self.img_size))
        if (
            self.resnet_norm == "jeonsworld"
            and self.resnet_layers is not None
            and (len(self.resnet_layers) != 3 or odd)
        ):
            raise ConfigError("resnet_norm jeonsworld needs three resnet_layers, and an img_size divisible by 16")
        if self.pos_embed == "sincos2d" and self.embed_dim % 4:
            raise ConfigError("pos_embed sincos2d needs an embed_dim divisible by 4")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        size, patch = pair(self.img_size), pair(self.patch_size)
        down, across = (reduced(side, self.resnet_layers) for side in size)
        return down // patch[0], across // patch[1]

    @property
    def pooled_width(self) -> int:
        """Channels after pooling."""
        return self.embed_dim * (2 if self.pool == "token_avg" else 1)

    @property
    def mlp_width(self) -> int:
        """Channels between an MLP's two layers."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def pool_mlp_width(self) -> int:
        """The same of attention pooling."""
        return self.mlp_width if self.pool_mlp_ratio is None else int(self.embed_dim * self.pool_mlp_ratio)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, then registers."""
        return int(self.class_token) + int(self.distillation is not None) + self.reg_tokens

    @property
    def read_tokens(self) -> int | None:
        """How many of the first tokens make the logits: class token, distillation token; None where all may do."""
        return None if self.pool != "token" else 2 if self.distillation == "heads" else 1

    @property
    def embedded_prefix(self) -> int:
        """Rows of the position embedding before the patches' rows."""
        return 0 if self.no_embed_class else self.prefix_tokens


holding_bounds(ViTSpec, "ViTSpec")


def pair(value: Any) -> tuple[int, int]:
    """An int or (height, width) as (height, width)."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def is_of_one_size(spec: Mapping[str, Any]) -> bool:
    """Whether a model with this spec can be exported for one image size alone: its attention knows the grid."""
    return bool(spec.get("rope") or spec.get("rel_pos_bias") or spec.get("pos_embed") == "none")


def reduction(layers: Sequence[int] | None) -> int:
    """What a hybrid's ResNet divides sides by: 2 in the stem, in its pooling and in each stage but the first.

    Args:
        layers: bottlenecks a stage; None is a plain ViT, whose pixels stay: 1.
    """
    return 1 if layers is None else 2 ** (2 + max(0, len(layers) - 1))


def reduced(size: int, layers: Sequence[int] | None) -> int:
    """Pixels of one side after a hybrid's ResNet; each halving rounds up."""
    return -(-size // reduction(layers))


# -- size and cost ------------------------------------------------------------------------------


@functools.singledispatch
def parameter_count(spec: Any) -> int:
    """The number of a model's parameters, from its spec alone.

    Raises:
        TypeError: the family of the spec has not registered a count (parameter_count.register).

    Example:
        >>> parameter_count(ViTSpec(embed_dim=192, num_heads=3))
        5717416
    """
    raise TypeError(f"the parameters of a {type(spec).__name__} cannot be counted")


@functools.singledispatch
def flops(spec: Any) -> int:
    """Floating-point operations of one image's forward pass, from the spec alone.

    A multiply-add counts as two operations, so that this is twice what papers call MACs and often FLOPs. Matrix
    products and convolutions are counted, attention's included; norms, activations, softmax and sums are not.

    Raises:
        TypeError: the family of the spec has not registered a count (flops.register).

    Example:
        >>> flops(ViTSpec(embed_dim=192, num_heads=3)) / 1e9
        2.5073664
    """
    raise TypeError(f"the operations of a {type(spec).__name__} cannot be counted")


def known_flops(spec: Any) -> int | None:
    """What `flops` counts; None where the spec's family has no count."""
    try:
        return flops(spec)
    except TypeError:
        return None


@parameter_count.register
def _(spec: ViTSpec) -> int:
    width, hidden = spec.embed_dim, spec.mlp_width
    patch, channels, patches = math.prod(pair(spec.patch_size)), spec.in_chans, spec.grid[0] * spec.grid[1]
    count = spec.depth * _block_parameters(spec)
    if spec.resnet_layers is not None:
        convolutions = list(_convolutions(spec))
        count += sum(kernel**2 * into * out + 2 * out for kernel, into, out, _ in convolutions)  # each with its norm
        channels = convolutions[-1][2]
    count += patch * channels * width + width * spec.patch_bias  # patch embedding
    count += spec.prefix_tokens * width
    count += 0 if spec.pos_embed == "none" else (patches + spec.embedded_prefix) * width
    count += _norm_parameters(spec, width) * (spec.norm_pre + spec.final_norm)  # the latter before or after pooling
    if spec.pool == "map":
        hidden = spec.pool_mlp_width
        mlp = width * hidden + hidden + hidden * width + width
        count += width + 4 * (width * width + width) + _norm_parameters(spec, width) + mlp
    features = spec.representation_size or spec.pooled_width
    count += spec.pooled_width * features + features if spec.representation_size else 0
    return count + (features + 1) * spec.class_num * (2 if spec.distillation == "heads" else 1)


def _norm_parameters(spec: ViTSpec, width: int, kind: str | None = None) -> int:
    return width if (kind or spec.norm) == "rmsnorm" else 2 * width


def _block_parameters(spec: ViTSpec) -> int:
    """Of one block."""
    width, hidden, head = spec.embed_dim, spec.mlp_width, spec.embed_dim // spec.num_heads
    gates = hidden if spec.mlp == "swiglu" else 0
    count = width * (hidden + gates) + hidden + gates + hidden * width + width
    count += _norm_parameters(spec, hidden) * spec.mlp_norm
    count += 3 * width * width + (3 if spec.k_bias else 2) * width * spec.qkv_bias + width * width + width
    count += _norm_parameters(spec, width) * spec.attn_norm
    count += 2 * _norm_parameters(spec, head, spec.qk_norm) if spec.qk_norm else 0
    count += width if spec.rope == "mixed" else 0
    if spec.rel_pos_bias:
        count += spec.num_heads * ((2 * spec.grid[0] - 1) * (2 * spec.grid[1] - 1) + 3)
    branches = 1 if spec.block == "parallel" else 2
    count += branches * _norm_parameters(spec, width)
    return count + (0 if spec.layer_scale is None else branches * width)


@flops.register
def _(spec: ViTSpec) -> int:
    width, hidden, patches = spec.embed_dim, spec.mlp_width, spec.grid[0] * spec.grid[1]
    tokens, channels = patches + spec.prefix_tokens, spec.in_chans
    linear = tokens * (4 * width * width + (3 if spec.mlp == "swiglu" else 2) * width * hidden)
    products = spec.depth * (linear + 2 * tokens * tokens * width)  # the latter: scores, and their sums of values
    if spec.resnet_layers is not None:
        convolutions = list(_convolutions(spec))
        for kernel, into, out, halvings in convolutions:
            products += math.prod(-(-side // 2**halvings) for side in pair(spec.img_size)) * kernel**2 * into * out
        channels = convolutions[-1][2]
    products += patches * math.prod(pair(spec.patch_size)) * channels * width
    if spec.pool == "map":
        seen = tokens if spec.pool_prefix else patches
        products += (1 + 2 * seen + 1) * width * width + 2 * seen * width + 2 * width * spec.pool_mlp_width
    features = spec.representation_size or spec.pooled_width
    products += spec.pooled_width * features if spec.representation_size else 0
    return 2 * (products + features * spec.class_num * (2 if spec.distillation == "heads" else 1))


def _convolutions(spec: ViTSpec) -> Iterator[tuple[int, int, int, int]]:
    """(kernel, channels in, channels out, halvings of the output) of each of a hybrid's convolutions, in order."""
    channels = int(64 * spec.resnet_width)
    yield 7, spec.in_chans, channels, 1
    for stage, count in enumerate(spec.resnet_layers or ()):
        width = int(64 * spec.resnet_width) * 2**stage
        for unit in range(count):
            if unit == 0:
                yield 1, channels, 4 * width, 2 + stage
            # the first convolution of a stage's first unit comes before its halving
            yield 1, channels, width, 2 + (stage if unit else max(0, stage - 1))
            yield 3, width, width, 2 + stage
            yield 1, width, 4 * width, 2 + stage
            channels = 4 * width
