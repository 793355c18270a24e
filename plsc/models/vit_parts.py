"""What the tables of names of Vision Transformers share: how values stand in files, and what formats cannot hold."""

import dataclasses
import re
from typing import Any

import numpy as np

from plsc.errors import CheckpointError
from plsc.weights.layouts import AS_IS, Lack, Rule, Spec, Tensors, Turn
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
ROWS = Turn(  # [rows, C] of our [1, rows, C]
    read=lambda tensor, _: tensor.reshaped(1, *tensor.shape),
    write=lambda tensor, _: tensor.reshaped(*tensor.shape[1:]),
    dimensions=2,
)
TOKEN = Turn(  # [C] of our [1, 1, C]
    read=lambda tensor, _: tensor.reshaped(1, 1, -1), write=lambda tensor, _: tensor.reshaped(-1), dimensions=1
)


def before_class_token(tensor: Tensor, names: Tensors) -> Tensor:
    """big_vision adds its position embedding before the class token, which so has a row of zeros."""
    zeros = Tensor.of(np.zeros((1, 1, tensor.shape[-1]), "float32"))
    return joined([zeros, tensor], axis=1) if "cls" in names else tensor


def layer(ours: str, theirs: str, weight: str, turn: Turn = AS_IS) -> tuple[Rule, Rule]:
    """Weight and bias of a layer of JAX or TensorFlow; `weight` is what these are called, bias where one is given."""
    weight, _, bias = weight.partition("/")
    return Rule(f"{ours}.weight", f"{theirs}/{weight}", turn), Rule(f"{ours}.bias", f"{theirs}/{bias or 'bias'}")


def qkv(ours: str, theirs: str, parts: tuple[str, ...], **options: Any) -> Rule:
    """query, key and value, that stand side by side in the model; {part} in `theirs` is each of the parts."""
    return Rule(ours, tuple(theirs.replace("{part}", part) for part in parts), **options)


# -- what layouts cannot hold -------------------------------------------------------------------


class OfHybrid(Lack):
    """Something that hybrids alone have."""

    def refuse(self, spec: Spec, format: str) -> None:
        """Raise CheckpointError where the model is a hybrid, and has it."""
        if spec.get("resnet_layers") is not None:
            super().refuse(spec, format)


_LACKS = {
    lack.field: lack
    for lack in (
        Lack("representation_size", "pre-logits; --backbone leaves them and the head out"),
        Lack("qk_scale", "another scale of attention"),
        Lack("pool", "another pooling than the class token", ("token",)),
        Lack(
            "pool_prefix",
            "attention pooling that leaves class and register tokens out",
            (True,),
            beside=(("pool", "map"),),
        ),
        Lack("pool_heads", "another number of heads in attention pooling", beside=(("pool", "map"),)),
        Lack("pool_mlp_ratio", "another width of attention pooling's MLP", beside=(("pool", "map"),)),
        Lack("fc_norm", "a norm after the pooling", (False,)),
        Lack("final_norm", "a model without a norm at its end", (True,)),
        Lack("norm", "RMSNorm", ("layernorm",)),
        Lack("norm_pre", "a norm before the blocks", (False,)),
        Lack("patch_bias", "a patch projection without bias", (True,)),
        Lack("class_token", "a model without class token", (True,)),
        Lack("reg_tokens", "register tokens", (0,)),
        Lack("distillation", "a distillation token"),
        Lack("pos_embed", "a model without position embedding", ("learned", "sincos2d")),
        Lack("no_embed_class", "a class token without position embedding", (False,)),
        Lack("rope", "rotary position embedding"),
        Lack("rel_pos_bias", "a bias by relative position", (False,)),
        Lack("qkv_bias", "attention without biases", (True,)),
        Lack("k_bias", "keys without bias", (True,), beside=(("qkv_bias", True),)),
        Lack("qk_norm", "norms of queries and keys"),
        Lack("attn_norm", "a norm before the projection of attention", (False,)),
        Lack("mlp", "SwiGLU", ("plain",)),
        Lack("mlp_norm", "a norm in the MLP", (False,)),
        Lack("block", "blocks with norms after or in parallel", ("pre",)),
        Lack("layer_scale", "LayerScale"),
        Lack("act", "another GELU than the exact one", ("gelu",)),
        Lack("epsilon", "another epsilon of LayerNorm than 1e-6", (1e-6,)),
        Lack("head_batch_norm", "batch normalisation before the head", (False,)),
        Lack("resnet_layers", "a ResNet before the patches"),
        OfHybrid("resnet_norm", "a ResNet that computes otherwise", ("google", "timm")),
    )
}


class Need(Lack):
    """Something without which a format has no model."""

    def refuse(self, spec: Spec, format: str) -> None:
        """Raise CheckpointError where the model does not have it."""
        if spec.get(self.field) in (None, 0):
            raise CheckpointError(f"{format} has no place for a model without {self.what}")


class PreLogits(Lack):
    """A layer after pooling, which a model without a head may have: ViTModel's pooler."""

    def refuse(self, spec: Spec, format: str) -> None:
        """Raise CheckpointError where a head comes after it."""
        if spec.get("class_num"):
            super().refuse(spec, format)


def lacks(*held: str, **harmless: tuple) -> tuple[Lack, ...]:
    """What a format cannot hold of a ViTSpec: all but a plain Vision Transformer's, `held`, and `harmless` values."""
    unknown = {*held, *harmless} - _LACKS.keys()
    assert not unknown, unknown
    return tuple(
        dataclasses.replace(lack, harmless=harmless[field]) if field in harmless else lack
        for field, lack in _LACKS.items()
        if field not in held
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


def size_of_none(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    """A guess of the image size, where no array is of one size."""
    return {} if "pos_embed" in ours or "blocks.0.attn.rel_pos_bias.table" in ours else {"img_size": 224}


def depth_of(tensors: Tensors, pattern: str) -> int:
    """How many blocks arrays are of: one more than the largest number in names that begin with a pattern."""
    numbers = [int(match[1]) for match in (re.match(pattern, name) for name in tensors) if match]
    return max(numbers, default=-1) + 1


def zeros(*shape: int) -> Tensor:
    """An array of zeros, in float32."""
    return Tensor(shape, lambda: np.zeros(shape, "float32"))


def without_zeros(tensors: dict[str, Tensor], name: str, why: str) -> None:
    """Take an array out that a format has no place for. Raises CheckpointError where it is not zero."""
    tensor = tensors.pop(name, None)
    if tensor is not None and np.any(tensor.read()):
        raise CheckpointError(f"the format has no place for {name} ({why}), which is not zero")


# -- registers that get no position, beside a class token that does -------------------------------


def fold_class_position(tensors: dict[str, Tensor], cls: str, position: str, registers: str) -> dict[str, Tensor]:
    """DINOv2's registers are put in after positions were added; the class token's goes into that token itself."""
    if not all(name in tensors for name in (cls, position, registers)):
        return tensors
    whole, token = tensors[position], tensors[cls]
    side = round(max(whole.shape[1] - 1, 0) ** 0.5) if len(whole.shape) == 3 else 0
    if not side or side * side != whole.shape[1] - 1:
        return tensors
    body = whole.transposed(1, 0, 2)
    first = body.rows(0, 1)
    with_position = Tensor(token.shape, lambda: np.asarray(token.read(), "float32") + first.read())
    return {**tensors, cls: with_position, position: body.rows(1).transposed(1, 0, 2)}


def unfold_class_position(tensors: dict[str, Tensor], position: str) -> dict[str, Tensor]:
    """fold_class_position the other way: the class token's position is zero."""
    whole = tensors[position]
    return {**tensors, position: joined([zeros(1, 1, whole.shape[-1]), whole], axis=1)}
