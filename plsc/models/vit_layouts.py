"""What Google, coyo-vit, torchvision and two PyTorch projects call the arrays of Vision Transformers."""

import re
from typing import Any

from plsc.errors import CheckpointError
from plsc.models.vit_parts import (
    BACKBONE,
    GROUP_NORM,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    HWIO,
    POSITION,
    QUERY_KEY_VALUE,
    before_class_token,
    lacks,
    layer,
    qkv,
    stated,
)
from plsc.weights.layouts import Lack, Layout, Rule, Tensors, Turn, never
from plsc.weights.tensors import Tensor

# what the code of these has always
_FIXED = {"act": "gelu", "epsilon": 1e-6, "qk_scale": None, "pool": "token"}
_GOOGLE_FIXED = {"act": "gelu_tanh", "epsilon": 1e-6, "qk_scale": None}  # flax's gelu and LayerNorm as they are
_DEEPEST = 1000  # blocks of a stacked array

# -- Google: original ViT, flax linen, AugReg, big_vision ---------------------------------------

_GOOGLE_PREFIXES = ("opt/target/", "optimizer/target/", "params/img/", "params/", "img/")
_BLOCK = "Transformer/encoderblock_{i}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_<1|0>"  # linen counts sub-modules by kind
_POOL = "MAPHead_0/MultiHeadDotProductAttention_0"
_UNIT = f"{BACKBONE}.stages.{{s}}.blocks.{{u}}"


def _open_google(tensors: Tensors) -> dict[str, Tensor] | None:
    """Without the optimizer's prefixes, and with big_vision's scanned blocks one by one."""
    if not any(name.startswith(("Transformer/", "embedding/")) for name in tensors):
        prefix = next((p for p in _GOOGLE_PREFIXES if any(name.startswith(p) for name in tensors)), "")
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if "embedding/kernel" not in tensors:
        return None
    stack = "Transformer/encoderblock/"
    stacked = {name: tensor for name, tensor in tensors.items() if name.startswith(stack)}
    depths = {tensor.shape[0] if tensor.shape and all(tensor.shape) else 0 for tensor in stacked.values()}
    if depths and (len(depths) > 1 or not 0 < min(depths) <= _DEEPEST):
        raise CheckpointError(f"the stacked arrays of encoderblock/ are of depths {sorted(depths)}")
    out = {name: tensor for name, tensor in tensors.items() if name not in stacked}
    for name, tensor in stacked.items():
        for i in range(tensor.shape[0]):
            out[f"Transformer/encoderblock_{i}/{name.removeprefix(stack)}"] = tensor.at(i)
    return out


def _google_facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    pool = "map" if "attn_pool.latent" in ours else "token" if "cls_token" in ours else "avg"
    kernels = [tensor for name, tensor in theirs.items() if name.endswith("/query/kernel") and "MAPHead" not in name]
    heads = {tensor.shape[1] for tensor in kernels}
    return {"class_token": "cls_token" in ours, "pool": pool, "num_heads": heads.pop() if len(heads) == 1 else None}


GOOGLE = Layout(
    name="google",
    title="Google's npz",
    square=True,
    open=_open_google,
    linear="in_out",
    container="npz",
    facts=_google_facts,
    fixed=_GOOGLE_FIXED,
    lacks=(
        *lacks("representation_size", "class_token", "act", "epsilon", "resnet_layers", "pool"),
        Lack("pool", "attention pooling, or another mean than the patches'", ("token", "avg")),
        Lack("class_token", "a class token beside average pooling", (False,), beside=(("pool", "avg"),)),
    ),
    rules=(
        Rule("cls_token", "cls"),
        Rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
        Rule("pos_embed", "pos_embedding", Turn(read=before_class_token, dimensions=3), written=never),
        *layer("patch_embed.proj", "embedding", "kernel", HWIO),
        *layer("blocks.{i}.norm1", f"{_BLOCK}/LayerNorm_0", "scale"),
        *layer("blocks.{i}.norm2", f"{_BLOCK}/LayerNorm_<2|1>", "scale"),
        *layer("blocks.{i}.mlp.fc1", f"{_BLOCK}/MlpBlock_<3|0>/Dense_0", "kernel"),
        *layer("blocks.{i}.mlp.fc2", f"{_BLOCK}/MlpBlock_<3|0>/Dense_1", "kernel"),
        qkv("blocks.{i}.attn.qkv.weight", f"{_ATTENTION}/{{part}}/kernel", QUERY_KEY_VALUE, turn=HEADS_OUT),
        qkv("blocks.{i}.attn.qkv.bias", f"{_ATTENTION}/{{part}}/bias", QUERY_KEY_VALUE, turn=HEADS_BIAS),
        *layer("blocks.{i}.attn.proj", f"{_ATTENTION}/out", "kernel", HEADS_IN),
        *layer("norm", "Transformer/encoder_norm", "scale"),
        *layer("head0", "pre_logits", "kernel"),
        *layer("head", "head", "kernel"),
        Rule("attn_pool.latent", "MAPHead_0/probe"),
        Rule("attn_pool.q.weight", f"{_POOL}/query/kernel", HEADS_OUT),
        Rule("attn_pool.q.bias", f"{_POOL}/query/bias", HEADS_BIAS),
        qkv("attn_pool.kv.weight", f"{_POOL}/{{part}}/kernel", ("key", "value"), turn=HEADS_OUT),
        qkv("attn_pool.kv.bias", f"{_POOL}/{{part}}/bias", ("key", "value"), turn=HEADS_BIAS),
        *layer("attn_pool.proj", f"{_POOL}/out", "kernel", HEADS_IN),
        *layer("attn_pool.norm", "MAPHead_0/LayerNorm_0", "scale"),
        *layer("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0", "kernel"),
        *layer("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1", "kernel"),
        Rule(f"{BACKBONE}.stem.conv.weight", "conv_root/kernel", HWIO),
        Rule(f"{BACKBONE}.stem.norm.weight", "gn_root/scale", GROUP_NORM),
        Rule(f"{BACKBONE}.stem.norm.bias", "gn_root/bias", GROUP_NORM),
        Rule(f"{_UNIT}.conv{{n}}.weight", "block{s+1}/unit{u+1}/conv{n}/kernel", HWIO),
        Rule(f"{_UNIT}.norm{{n}}.weight", "block{s+1}/unit{u+1}/gn{n}/scale", GROUP_NORM),
        Rule(f"{_UNIT}.norm{{n}}.bias", "block{s+1}/unit{u+1}/gn{n}/bias", GROUP_NORM),
        Rule(f"{_UNIT}.downsample.conv.weight", "block{s+1}/unit{u+1}/conv_proj/kernel", HWIO),
        Rule(f"{_UNIT}.downsample.norm.weight", "block{s+1}/unit{u+1}/gn_proj/scale", GROUP_NORM),
        Rule(f"{_UNIT}.downsample.norm.bias", "block{s+1}/unit{u+1}/gn_proj/bias", GROUP_NORM),
    ),
)

# -- kakaobrain/coyo-vit: the attributes of its Keras model -------------------------------------

_COYO = "<backbone/|layer_with_weights-0/|>"  # in save_weights' files the backbone is a layer, or is alone
_COYO_TRAINING = re.compile(r"optimizer/.+|save_counter|ckpt_saved_iterations|(model/)?keras_api/.+")
_COYO_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # its code has these four models, and no other width


def _open_coyo(tensors: Tensors) -> dict[str, Tensor] | None:
    """Without what training keeps beside the weights."""
    if not any(prefix + "class_emb" in tensors for prefix in ("backbone/", "layer_with_weights-0/", "")):
        return None
    return {name: tensor for name, tensor in tensors.items() if not _COYO_TRAINING.fullmatch(name)}


def _coyo_facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    heads = _COYO_HEADS.get(ours["cls_token"].shape[-1])
    return {**stated(theirs, ours), "num_heads": heads, "pool": "token", "act": "gelu_tanh", "epsilon": 1e-6}


COYO = Layout(
    name="coyo",
    title="coyo-vit's checkpoint",
    square=True,
    open=_open_coyo,
    linear="in_out",
    container=None,
    facts=_coyo_facts,
    rules=(
        Rule("cls_token", f"{_COYO}class_emb"),
        Rule("pos_embed", f"{_COYO}pos_emb"),
        *layer("patch_embed.proj", f"{_COYO}embedding", "kernel", HWIO),
        *layer("blocks.{i}.norm{n}", f"{_COYO}enc_layers/{{i}}/layernorm{{n}}", "gamma/beta"),
        *(
            qkv(
                f"blocks.{{i}}.attn.qkv.{ours}",
                f"{_COYO}enc_layers/{{i}}/att/{{part}}_dense/{theirs}",
                QUERY_KEY_VALUE,
            )
            for ours, theirs in (("weight", "kernel"), ("bias", "bias"))
        ),
        *layer("blocks.{i}.attn.proj", f"{_COYO}enc_layers/{{i}}/att/combine_heads", "kernel"),
        *layer("blocks.{i}.mlp.fc1", f"{_COYO}enc_layers/{{i}}/mlp/layer_with_weights-0", "kernel"),
        *layer("blocks.{i}.mlp.fc2", f"{_COYO}enc_layers/{{i}}/mlp/layer_with_weights-1", "kernel"),
        *layer("norm", f"{_COYO}norm", "gamma/beta"),
        *layer("head0", f"{_COYO}representation", "kernel"),
        *layer("head", "<model/|>layer_with_weights-1", "kernel"),
    ),
)

# -- PyTorch's -----------------------------------------------------------------------------------

_TORCHVISION_BLOCK = "encoder.layers.encoder_layer_{i}"
TORCHVISION = Layout(
    name="torchvision",
    title="torchvision's ViT",
    square=True,
    probe="conv_proj.weight",
    facts=stated,
    fixed=_FIXED,
    lacks=lacks("representation_size"),
    rules=(
        Rule("cls_token", "class_token"),
        Rule("pos_embed", "encoder.pos_embedding", POSITION),
        Rule("patch_embed.proj.{p}", "conv_proj.{p}"),
        Rule("blocks.{i}.norm{n}.{p}", f"{_TORCHVISION_BLOCK}.ln_{{n}}.{{p}}"),
        Rule("blocks.{i}.attn.qkv.{p}", f"{_TORCHVISION_BLOCK}.self_attention.in_proj_{{p}}"),
        Rule("blocks.{i}.attn.proj.{p}", f"{_TORCHVISION_BLOCK}.self_attention.out_proj.{{p}}"),
        Rule("blocks.{i}.mlp.fc1.{p}", f"{_TORCHVISION_BLOCK}.mlp.<0|linear_1>.{{p}}"),
        Rule("blocks.{i}.mlp.fc2.{p}", f"{_TORCHVISION_BLOCK}.mlp.<3|linear_2>.{{p}}"),
        Rule("norm.{p}", "encoder.ln.{p}"),
        Rule("head0.{p}", "heads.pre_logits.{p}"),
        Rule("head.{p}", "heads.head.{p}"),
    ),
)

LUKEMELAS = Layout(
    name="lukemelas",
    title="PyTorch-Pretrained-ViT",
    probe="patch_embedding.weight",
    facts=stated,
    fixed=_FIXED,
    lacks=lacks("representation_size"),
    rules=(
        Rule("cls_token", "class_token"),
        Rule("pos_embed", "positional_embedding.pos_embedding", POSITION),
        Rule("patch_embed.proj.{p}", "patch_embedding.{p}"),
        Rule("blocks.{i}.norm{n}.{p}", "transformer.blocks.{i}.norm{n}.{p}"),
        qkv("blocks.{i}.attn.qkv.{p}", "transformer.blocks.{i}.attn.proj_{part}.{p}", ("q", "k", "v")),
        Rule("blocks.{i}.attn.proj.{p}", "transformer.blocks.{i}.proj.{p}"),
        Rule("blocks.{i}.mlp.fc{n}.{p}", "transformer.blocks.{i}.pwff.fc{n}.{p}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head0.{p}", "pre_logits.{p}"),
        Rule("head.{p}", "fc.{p}"),
    ),
)


def _jeonsworld_facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    is_hybrid = any(name.startswith(BACKBONE) for name in ours)
    return {**stated(theirs, ours), **({"resnet_norm": "jeonsworld"} if is_hybrid else {})}


_JEONSWORLD_RESNET = "transformer.embeddings.hybrid_model"
_JEONSWORLD_UNIT = f"{_JEONSWORLD_RESNET}.body.block{{s+1}}.unit{{u+1}}"
_JEONSWORLD_BLOCK = "transformer.encoder.layer.{i}"
JEONSWORLD = Layout(
    name="jeonsworld",
    title="ViT-pytorch",
    probe="transformer.embeddings.patch_embeddings.weight",
    facts=_jeonsworld_facts,
    fixed=_FIXED,
    lacks=lacks("resnet_layers", resnet_norm=("jeonsworld",)),
    rules=(
        Rule("cls_token", "transformer.embeddings.cls_token"),
        Rule("pos_embed", "transformer.embeddings.position_embeddings", POSITION),
        Rule("patch_embed.proj.{p}", "transformer.embeddings.patch_embeddings.{p}"),
        Rule("blocks.{i}.norm1.{p}", f"{_JEONSWORLD_BLOCK}.attention_norm.{{p}}"),
        Rule("blocks.{i}.norm2.{p}", f"{_JEONSWORLD_BLOCK}.ffn_norm.{{p}}"),
        qkv("blocks.{i}.attn.qkv.{p}", f"{_JEONSWORLD_BLOCK}.attn.{{part}}.{{p}}", QUERY_KEY_VALUE),
        Rule("blocks.{i}.attn.proj.{p}", f"{_JEONSWORLD_BLOCK}.attn.out.{{p}}"),
        Rule("blocks.{i}.mlp.fc{n}.{p}", f"{_JEONSWORLD_BLOCK}.ffn.fc{{n}}.{{p}}"),
        Rule("norm.{p}", "transformer.encoder.encoder_norm.{p}"),
        Rule("head.{p}", "head.{p}"),
        Rule(f"{BACKBONE}.stem.conv.weight", f"{_JEONSWORLD_RESNET}.root.conv.weight"),
        Rule(f"{BACKBONE}.stem.norm.{{p}}", f"{_JEONSWORLD_RESNET}.root.gn.{{p}}"),
        Rule(f"{_UNIT}.conv{{n}}.weight", f"{_JEONSWORLD_UNIT}.conv{{n}}.weight"),
        Rule(f"{_UNIT}.norm{{n}}.{{p}}", f"{_JEONSWORLD_UNIT}.gn{{n}}.{{p}}"),
        Rule(f"{_UNIT}.downsample.conv.weight", f"{_JEONSWORLD_UNIT}.downsample.weight"),
        Rule(f"{_UNIT}.downsample.norm.{{p}}", f"{_JEONSWORLD_UNIT}.gn_proj.{{p}}"),
    ),
)
