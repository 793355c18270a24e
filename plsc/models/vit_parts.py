"""What the tables of names of Vision Transformers share: how values stand in files, and what formats cannot hold."""

from typing import Any

import numpy as np

from plsc.weights.layouts import AS_IS, Lack, Rule, Tensors, Turn
from plsc.weights.tensors import Tensor, joined

BACKBONE = "patch_embed.backbone"
QUERY_KEY_VALUE = ("query", "key", "value")

# -- how values stand in files ------------------------------------------------------------------

HWIO = Turn(  # convolution kernels of JAX and TensorFlow
    read=lambda tensor, _: tensor.transposed(3, 2, 0, 1),
    write=lambda tensor, _: tensor.transposed(2, 3, 1, 0),
    dimensions=4,
)
HEADS_OUT = Turn(  # of query, key and value: [C, heads, C / heads]
    read=lambda tensor, _: tensor.reshaped(tensor.shape[0], -1),
    write=lambda tensor, spec: tensor.reshaped(tensor.shape[0], spec["num_heads"], -1),
    dimensions=3,
)
HEADS_BIAS = Turn(
    read=lambda tensor, _: tensor.reshaped(-1),
    write=lambda tensor, spec: tensor.reshaped(spec["num_heads"], -1),
    dimensions=2,
)
HEADS_IN = Turn(  # of the projection: [heads, C / heads, C]
    read=lambda tensor, _: tensor.reshaped(-1, tensor.shape[-1]),
    write=lambda tensor, spec: tensor.reshaped(spec["num_heads"], -1, tensor.shape[-1]),
    dimensions=3,
)
GROUP_NORM = Turn(  # [C], or [1, 1, 1, C] as in older files
    read=lambda tensor, _: tensor.reshaped(-1), write=lambda tensor, _: tensor.reshaped(1, 1, 1, -1)
)
POSITION = Turn(read=lambda tensor, _: tensor.reshaped(1, *tensor.shape) if len(tensor.shape) == 2 else tensor)


def before_class_token(tensor: Tensor, names: Tensors) -> Tensor:
    """big_vision adds its position embedding before the class token, which so has a row of zeros."""
    zeros = Tensor.of(np.zeros((1, 1, tensor.shape[-1]), "float32"))
    return joined([zeros, tensor], axis=1) if "cls" in names else tensor


def layer(ours: str, theirs: str, weight: str, turn: Turn = AS_IS) -> tuple[Rule, Rule]:
    """Weight and bias of a layer of JAX or TensorFlow; `weight` is what these are called, bias where one is given."""
    weight, _, bias = weight.partition("/")
    return Rule(f"{ours}.weight", f"{theirs}/{weight}", turn), Rule(f"{ours}.bias", f"{theirs}/{bias or 'bias'}")


def qkv(ours: str, theirs: str, parts: tuple[str, ...], **options) -> Rule:
    """query, key and value, that stand side by side in the model; {part} in `theirs` is each of the parts."""
    return Rule(ours, tuple(theirs.replace("{part}", part) for part in parts), **options)


# -- what layouts cannot hold -------------------------------------------------------------------

NO_PRE_LOGITS = Lack("representation_size", "pre-logits; --backbone leaves them and the head out")
NO_SCALE = Lack("qk_scale", "another scale of attention")
NO_POOLING = Lack("pool", "another pooling than the class token", ("token",))
PLAIN = (
    NO_SCALE,
    Lack("layer_scale", "LayerScale"),
    Lack("reg_tokens", "register tokens", (0,)),
    Lack("fc_norm", "a norm after the pooling", (False,)),
    Lack("no_embed_class", "a class token without position embedding", (False,)),
)
NO_RESNET = Lack("resnet_layers", "a ResNet before the patches")
FIXED = (  # in code that has no such argument
    Lack("act", "GELU's tanh form", ("gelu",)),
    Lack("epsilon", "another epsilon of LayerNorm than 1e-6", (1e-6,)),
)


def stated(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    """What the presence of arrays says of a model."""
    facts: dict[str, Any] = {"class_token": "cls_token" in ours}
    if "reg_token" in ours:
        facts["reg_tokens"] = ours["reg_token"].shape[1]
    if "attn_pool.latent" in ours:
        facts["pool"] = "map"
    elif "fc_norm.weight" in ours or "cls_token" not in ours:
        facts["pool"] = "avg"
    return facts
