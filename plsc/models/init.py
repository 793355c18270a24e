"""How weights begin: named schemes, applied to a built Vision Transformer in place.

    jax    Google's vision_transformer: xavier-uniform with q, k and v as matrices of their own,
           LeCun-normal patch embedding, MLP biases N(0, 1e-6), position embedding N(0, 0.02).
    plsc   PLSC's: as jax, but xavier over the fused qkv matrix (a 1.4 times smaller bound there)
           and Paddle's own default for the patch embedding.
    coyo   COYO-ViT's: glorot-normal q, k, v and first MLP layer, glorot-uniform elsewhere.
    timm   DeiT's and timm's: truncated normal 0.02 everywhere, biases 0.
    torch  PyTorch's own, as code has it that draws nothing itself (TooTouch's, Pytorch-VIT): weights and biases
           uniform within 1 / sqrt(inputs), tokens and position embedding N(0, 1).

The head is drawn by `init_head`: zeros, as the scheme's other linear layers, or truncated normal of a given
deviation; its bias is constant, but that of the scheme torch is drawn where no other is given.
"""

import contextlib
import math
import threading
from collections.abc import Iterator

import paddle
from paddle import nn

from plsc import compat

SCHEMES = ("jax", "plsc", "coyo", "timm", "torch")
_thread = threading.local()


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Let matrices of Vision Transformers that this thread builds begin at zero, since all is loaded next.

    Drawing those of a ViT-L takes five seconds.
    """
    before, _thread.undrawn = _is_undrawn(), True
    try:
        yield
    finally:
        _thread.undrawn = before


def _is_undrawn() -> bool:
    return getattr(_thread, "undrawn", False)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """nn.Linear, which draws its matrix by Paddle's default, or none within `undrawn`."""
    drawn = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0)) if _is_undrawn() else None
    return nn.Linear(inputs, outputs, weight_attr=drawn, bias_attr=None if bias else False)


def _uniform(parameter: paddle.Tensor, fan_in: int, fan_out: int) -> None:
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    nn.initializer.Uniform(-bound, bound)(parameter)


def _normal(parameter: paddle.Tensor, std: float) -> None:
    nn.initializer.Normal(0.0, std)(parameter)


def _truncated(parameter: paddle.Tensor, std: float, cut: float = 2.0) -> None:
    """Normal within ±cut, an absolute bound as in timm."""
    compat.truncated_normal(std, cut)(parameter)


def _constant(parameter: paddle.Tensor | None, value: float = 0.0) -> None:
    if parameter is not None:
        nn.initializer.Constant(value)(parameter)


def _linear(layer: nn.Linear, scheme: str, role: str) -> None:
    """One linear layer; `role` is its name's last part (qkv, proj, fc1, fc2, …)."""
    fan_in, fan_out = layer.weight.shape
    if scheme == "timm":
        _truncated(layer.weight, 0.02)
        _constant(layer.bias)
        return
    if scheme == "torch":
        _torch_uniform(layer, fan_in)
        return
    parts = {"qkv": 3, "kv": 2}.get(role, 1)
    if scheme == "plsc":
        parts = 1
    if scheme == "coyo" and role in ("qkv", "q", "kv", "fc1"):
        _normal(layer.weight, math.sqrt(2.0 / (fan_in + fan_out // parts)))
    else:
        _uniform(layer.weight, fan_in, fan_out // parts)
    if role in ("fc1", "fc2"):
        _normal(layer.bias, 1e-6)
    else:
        _constant(layer.bias)


def _torch_uniform(layer: nn.Linear | nn.Conv2D, fan_in: int) -> None:
    """PyTorch's default of Linear and Conv2d: Kaiming-uniform with a = sqrt(5), which is this bound."""
    bound = 1.0 / math.sqrt(fan_in)
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            nn.initializer.Uniform(-bound, bound)(parameter)


def _patch_embedding(conv: nn.Conv2D, scheme: str) -> None:
    out_channels, in_channels, height, width = conv.weight.shape
    fan_in, fan_out = in_channels * height * width, out_channels * height * width
    if scheme == "torch":
        _torch_uniform(conv, fan_in)
        return
    if scheme == "jax":
        # flax's LeCun-normal: truncated at two standard deviations, corrected for the lost variance
        std = math.sqrt(1.0 / fan_in) / 0.87962566103423978
        _truncated(conv.weight, std, cut=2.0 * std)
    elif scheme == "plsc":
        _normal(conv.weight, math.sqrt(2.0 / fan_in))
    elif scheme == "coyo":
        _uniform(conv.weight, fan_in, fan_out)
    else:
        bound = math.sqrt(1.0 / fan_in)
        nn.initializer.Uniform(-bound, bound)(conv.weight)
    _constant(conv.bias)


def init_weights(model: nn.Layer, scheme: str) -> None:
    """Draw every weight of a VisionTransformer but its head's, from Paddle's generator."""
    if _is_undrawn():
        return
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.Linear) and name not in ("head", "head_dist"):
            _linear(layer, scheme, name.rsplit(".", 1)[-1])
        elif isinstance(layer, nn.Conv2D):
            _patch_embedding(layer, scheme)
    for name in ("pos_embed", "cls_token", "dist_token", "reg_token"):
        parameter = getattr(model, name, None)
        if parameter is None or parameter.stop_gradient:
            continue
        if scheme == "torch":
            _normal(parameter, 1.0)
        elif name == "cls_token":
            _constant(parameter)
        elif scheme == "timm":
            _truncated(parameter, 0.02)
        else:
            _normal(parameter, 0.02)


def init_head(head: nn.Linear, scheme: str, head_init: str | float, head_bias: float) -> None:
    """Draw the classifier: head_init is zeros, scheme, or a standard deviation."""
    if _is_undrawn():
        return
    if head_init == "zeros":
        _constant(head.weight)
    elif isinstance(head_init, str):
        _linear(head, scheme, "head")
    else:
        _truncated(head.weight, head_init)
    if not (scheme == "torch" and head_init == "scheme" and head_bias == 0.0):
        _constant(head.bias, head_bias)
