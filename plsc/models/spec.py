"""The arguments of a Vision Transformer, with their bounds, and its size and cost. Imports no Paddle."""

import dataclasses
import functools
import math
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
        pool: what the head sees: the class token, the average of the patch tokens, or attention pooling.
        fc_norm: normalise after average pooling instead of before.
        no_embed_class: class and register tokens get no position embedding (DINOv2 with registers).
        layer_scale: initial value of LayerScale; None leaves it out.
        resnet_layers: bottlenecks a stage of the ResNet before the patches, which makes a hybrid;
            () is its stem alone, None a plain ViT. resnet_width: times 64 channels.
        weight_init: see plsc.models.init. head_init: zeros, or as weight_init's linear layers.
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
    pool: Literal["token", "avg", "map"] = "token"
    fc_norm: bool = False
    pos_embed: Literal["learned", "sincos2d"] = "learned"
    no_embed_class: bool = False
    layer_scale: float | None = None
    act: Literal["gelu", "gelu_tanh"] = "gelu"
    weight_init: Literal["jax", "plsc", "coyo", "timm"] = "jax"
    head_init: Literal["zeros", "scheme"] = "zeros"
    head_bias: float = 0.0
    resnet_layers: tuple[Size, ...] | None = None
    resnet_width: Annotated[float, Field(gt=0)] = 1.0

    def __post_init__(self) -> None:
        """Raise ConfigError where fields contradict each other; the bounds of each stand at its type."""
        if min(self.grid) < 1:
            raise ConfigError(f"img_size {self.img_size} holds no patch of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.mlp_width < 1:
            raise ConfigError(f"mlp_ratio is {self.mlp_ratio}; the MLP must be at least 1 wide")
        if self.pool == "token" and not self.class_token:
            raise ConfigError("pool token needs class_token; without it choose pool avg or map")
        if self.fc_norm and self.pool != "avg":
            raise ConfigError("fc_norm goes with pool avg")
        if self.pos_embed == "sincos2d" and self.embed_dim % 4:
            raise ConfigError("pos_embed sincos2d needs an embed_dim divisible by 4")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        size, patch = pair(self.img_size), pair(self.patch_size)
        down, across = (reduced(side, self.resnet_layers) for side in size)
        return down // patch[0], across // patch[1]

    @property
    def mlp_width(self) -> int:
        """Channels between an MLP's two layers."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token, then registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def embedded_prefix(self) -> int:
        """Rows of the position embedding before the patches' rows."""
        return 0 if self.no_embed_class else self.prefix_tokens


holding_bounds(ViTSpec, "ViTSpec")


def pair(value: Any) -> tuple[int, int]:
    """An int or (height, width) as (height, width)."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def reduction(layers) -> int:
    """What a hybrid's ResNet divides sides by: 2 in the stem, in its pooling and in each stage but the first.

    Args:
        layers: bottlenecks a stage; None is a plain ViT, whose pixels stay: 1.
    """
    return 1 if layers is None else 2 ** (2 + max(0, len(layers) - 1))


def reduced(size: int, layers) -> int:
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


@parameter_count.register
def _(spec: ViTSpec) -> int:
    width, hidden = spec.embed_dim, spec.mlp_width
    norm, mlp = 2 * width, width * hidden + hidden + hidden * width + width
    attention = 3 * width * width + 3 * width * spec.qkv_bias + width * width + width
    scales = 0 if spec.layer_scale is None else 2 * width
    patch, channels = math.prod(pair(spec.patch_size)), spec.in_chans
    count = spec.depth * (2 * norm + attention + mlp + scales)
    if spec.resnet_layers is not None:
        convolutions = list(_convolutions(spec))
        count += sum(kernel**2 * into * out + 2 * out for kernel, into, out, _ in convolutions)  # each with its norm
        channels = convolutions[-1][2]
    count += patch * channels * width + width  # patch embedding
    count += spec.prefix_tokens * width + (spec.grid[0] * spec.grid[1] + spec.embedded_prefix) * width
    count += norm  # before or after pooling
    if spec.pool == "map":
        count += width + 4 * (width * width + width) + norm + mlp
    features = spec.representation_size or width
    count += width * features + features if spec.representation_size else 0
    return count + (features + 1) * spec.class_num


@flops.register
def _(spec: ViTSpec) -> int:
    width, hidden, patches = spec.embed_dim, spec.mlp_width, spec.grid[0] * spec.grid[1]
    tokens, channels = patches + spec.prefix_tokens, spec.in_chans
    linear = tokens * (4 * width * width + 2 * width * hidden)
    products = spec.depth * (linear + 2 * tokens * tokens * width)  # the latter: scores, and their sums of values
    if spec.resnet_layers is not None:
        convolutions = list(_convolutions(spec))
        for kernel, into, out, halvings in convolutions:
            products += math.prod(-(-side // 2**halvings) for side in pair(spec.img_size)) * kernel**2 * into * out
        channels = convolutions[-1][2]
    products += patches * math.prod(pair(spec.patch_size)) * channels * width
    if spec.pool == "map":
        products += (1 + 2 * tokens + 1) * width * width + 2 * tokens * width + 2 * width * hidden
    features = spec.representation_size or width
    products += width * features if spec.representation_size else 0
    return 2 * (products + features * spec.class_num)


def _convolutions(spec: ViTSpec):
    """(kernel, channels in, channels out, halvings of the output) of each of a hybrid's convolutions, in order."""
    channels = int(64 * spec.resnet_width)
    yield 7, spec.in_chans, channels, 1
    for stage, count in enumerate(spec.resnet_layers):
        width = int(64 * spec.resnet_width) * 2**stage
        for unit in range(count):
            if unit == 0:
                yield 1, channels, 4 * width, 2 + stage
            # the first convolution of a stage's first unit comes before its halving
            yield 1, channels, width, 2 + (stage if unit else max(0, stage - 1))
            yield 3, width, width, 2 + stage
            yield 1, width, 4 * width, 2 + stage
            channels = 4 * width
