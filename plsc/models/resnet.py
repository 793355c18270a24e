"""The ResNet before a hybrid Vision Transformer, with the numerics of Google's code, of timm's or of jeonsworld's.

Weight-standardised convolutions, GroupNorm of 32 groups, padding SAME as TensorFlow and JAX
compute it: at stride 2 the right and lower edge get one pixel more. Reference:
google-research/vision_transformer, vit_jax/models_resnet.py. Names follow timm.

| | kernels are divided by | epsilon of GroupNorm |
|---|---|---|
| google | deviation + 1e-5 | 1e-6 |
| timm | root of variance + 1e-8 | 1e-5 |
| jeonsworld | root of variance + 1e-5 | 1e-6 |

Logits of the first two differ by some 1e-4. The third is another model (ViT-pytorch, modeling_resnet.py): it pads
all sides alike, and none before the pooling; in a projection each channel is normalised by itself, epsilon 1e-5.
"""

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from plsc.models.layers import check_size
from plsc.models.spec import ViTSpec, pair

GROUPS = 32
EPSILON = {"google": 1e-6, "timm": 1e-5, "jeonsworld": 1e-6}  # of GroupNorm


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after one axis, for an output of ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def convolution_padding(size: int, kernel: int, stride: int, kind: str) -> tuple[int, int]:
    """Pixels before and after one axis of what a convolution takes."""
    return (kernel // 2, kernel // 2) if kind == "jeonsworld" else same_padding(size, kernel, stride)


def pooling_padding(size: int, kind: str) -> tuple[int, int]:
    """Pixels before and after one axis of what the stem's pooling takes."""
    return (0, 0) if kind == "jeonsworld" else same_padding(size, 3, 2)


def padded(x: paddle.Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> paddle.Tensor:
    """[B, C, H, W] padded with zeros; after a ReLU the same as -inf for max-pooling."""
    return F.pad(x, [*columns, *rows]) if any((*rows, *columns)) else x


class StdConv2D(nn.Conv2D):
    """A convolution whose kernel has mean 0 and deviation 1 an output channel (Qiao et al., 2019)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, kind: str = "google"):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias_attr=False)
        self.size, self.step, self.kind = kernel_size, stride, kind

    def standardised(self) -> paddle.Tensor:
        """The kernel as it is applied [out_channels, in_channels, H, W] float32."""
        weight = self.weight.astype("float32")
        weight = weight - weight.mean(axis=[1, 2, 3], keepdim=True)
        variance = (weight * weight).mean(axis=[1, 2, 3], keepdim=True)
        if self.kind == "google":
            return weight / (variance.sqrt() + 1e-5)
        return weight / (variance + (1e-8 if self.kind == "timm" else 1e-5)).sqrt()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        weight = self.standardised().astype(x.dtype)
        rows, columns = (convolution_padding(side, self.size, self.step, self.kind) for side in x.shape[2:])
        return F.conv2d(padded(x, rows, columns), weight, stride=self.step)


class Norm(nn.GroupNorm):
    """GroupNorm of 32 groups."""

    def __init__(self, channels: int, kind: str):
        super().__init__(GROUPS, channels, epsilon=EPSILON[kind])


class ChannelNorm(nn.Layer):
    """Each channel of each picture normalised by itself; of Paddle's own layers paddle2onnx loses the epsilon."""

    def __init__(self, channels: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([channels], default_initializer=nn.initializer.Constant(1.0))
        self.bias = self.create_parameter([channels], is_bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        centred = x.astype("float32") - x.astype("float32").mean(axis=[2, 3], keepdim=True)
        deviation = ((centred * centred).mean(axis=[2, 3], keepdim=True) + self.epsilon).sqrt()
        scaled = centred / deviation * self.weight.reshape([1, -1, 1, 1]) + self.bias.reshape([1, -1, 1, 1])
        return scaled.astype(x.dtype)


class Shortcut(nn.Layer):
    """The projection of a residual: 1x1 convolution and norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: str):
        super().__init__()
        self.conv = StdConv2D(in_channels, out_channels, 1, stride, kind)
        self.norm = ChannelNorm(out_channels, 1e-5) if kind == "jeonsworld" else Norm(out_channels, kind)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Layer):
    """1x1, 3x3 (with the stride), 1x1 to four times the width; ReLU after the sum."""

    def __init__(self, in_channels: int, width: int, stride: int, kind: str):
        super().__init__()
        out_channels = 4 * width
        self.downsample = None
        if in_channels != out_channels or stride != 1:
            self.downsample = Shortcut(in_channels, out_channels, stride, kind)
        self.conv1, self.norm1 = StdConv2D(in_channels, width, 1, 1, kind), Norm(width, kind)
        self.conv2, self.norm2 = StdConv2D(width, width, 3, stride, kind), Norm(width, kind)
        self.conv3, self.norm3 = StdConv2D(width, out_channels, 1, 1, kind), Norm(out_channels, kind)
        nn.initializer.Constant(0.0)(self.norm3.weight)  # each unit begins as the identity

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(shortcut + self.norm3(self.conv3(x)))


class Stem(nn.Layer):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max-pooling of stride 2."""

    def __init__(self, in_chans: int, width: int, kind: str):
        super().__init__()
        self.conv, self.norm, self.kind = StdConv2D(in_chans, width, 7, 2, kind), Norm(width, kind), kind

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        rows, columns = (pooling_padding(side, self.kind) for side in x.shape[2:])
        return F.max_pool2d(padded(x, rows, columns), 3, stride=2)


class Stage(nn.Layer):
    """Bottlenecks of one width, the first with the stride."""

    def __init__(self, in_channels: int, width: int, count: int, stride: int, kind: str):
        super().__init__()
        self.blocks = nn.LayerList(
            Bottleneck(in_channels if i == 0 else 4 * width, width, stride if i == 0 else 1, kind) for i in range(count)
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ResNet(nn.Layer):
    """Image [B, in_chans, H, W] → features [B, out_channels, H / reduction, W / reduction].

    Args:
        layers: bottlenecks of each stage; none leaves the stem alone.
        width_factor: times 64 channels.
        kind: of numerics, see the head of this file.
    """

    def __init__(self, in_chans: int, layers: Sequence[int], width_factor: float, kind: str):
        super().__init__()
        width = int(64 * width_factor)
        self.stem = Stem(in_chans, width, kind)
        channels, stages = width, []
        for i, count in enumerate(layers):
            stages.append(Stage(channels, width * 2**i, count, 1 if i == 0 else 2, kind))
            channels = 4 * width * 2**i
        self.stages = nn.LayerList(stages)
        self.out_channels = channels

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


class HybridEmbed(nn.Layer):
    """Image → ResNet features → patch tokens [B, N, C]."""

    def __init__(self, spec: ViTSpec):
        super().__init__()
        self.img_size, patch_size = pair(spec.img_size), pair(spec.patch_size)
        self.backbone = ResNet(spec.in_chans, spec.resnet_layers or (), spec.resnet_width, spec.resnet_norm)
        self.proj = nn.Conv2D(self.backbone.out_channels, spec.embed_dim, patch_size, stride=patch_size)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        check_size(x, self.img_size)
        return self.proj(self.backbone(x)).flatten(2).transpose([0, 2, 1])
