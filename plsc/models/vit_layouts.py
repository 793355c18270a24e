"""What Vision Transformers' arrays are called by those who publish them, and what arrays tell of a model.

The tables are read in both directions by plsc.weights; how to read them stands in plsc/weights/layouts.py.
docs/checkpoints.md shows the most important names side by side. Imports no Paddle.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from plsc.errors import CheckpointError
from plsc.models.spec import ViTSpec, pair, reduced, reduction
from plsc.models.zoo import ALIASES, PRESETS
from plsc.weights import resample
from plsc.weights.families import Adapted, Family, Target, register_family
from plsc.weights.layouts import AS_IS, HuggingFace, Lack, Layout, Rule, Setting, Spec, Tensors, Turn, never
from plsc.weights.tensors import Tensor, joined

_DEEPEST = 1000  # blocks of a stacked array

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


def _before_class_token(tensor: Tensor, names: Tensors) -> Tensor:
    """big_vision adds its position embedding before the class token, which so has a row of zeros."""
    zeros = Tensor.of(np.zeros((1, 1, tensor.shape[-1]), "float32"))
    return joined([zeros, tensor], axis=1) if "cls" in names else tensor


def _layer(ours: str, theirs: str, weight: str, turn: Turn = AS_IS) -> tuple[Rule, Rule]:
    """Weight and bias of a layer of JAX or TensorFlow; `weight` is what these are called, bias where one is given."""
    weight, _, bias = weight.partition("/")
    return Rule(f"{ours}.weight", f"{theirs}/{weight}", turn), Rule(f"{ours}.bias", f"{theirs}/{bias or 'bias'}")


def _qkv(ours: str, theirs: str, parts: tuple[str, ...], **options) -> Rule:
    """query, key and value, that stand side by side in the model; {part} in `theirs` is each of the parts."""
    return Rule(ours, tuple(theirs.replace("{part}", part) for part in parts), **options)


# -- what layouts cannot hold -------------------------------------------------------------------

_NO_PRE_LOGITS = Lack("representation_size", "pre-logits; --backbone leaves them and the head out")
_NO_SCALE = Lack("qk_scale", "another scale of attention")
_NO_POOLING = Lack("pool", "another pooling than the class token", ("token",))
_PLAIN = (
    _NO_SCALE,
    Lack("layer_scale", "LayerScale"),
    Lack("reg_tokens", "register tokens", (0,)),
    Lack("fc_norm", "a norm after the pooling", (False,)),
    Lack("no_embed_class", "a class token without position embedding", (False,)),
)
_NO_RESNET = Lack("resnet_layers", "a ResNet before the patches")
_FIXED = (  # in code that has no such argument
    Lack("act", "GELU's tanh form", ("gelu",)),
    Lack("epsilon", "another epsilon of LayerNorm than 1e-6", (1e-6,)),
)


def _stated(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    """What the presence of arrays says of a model."""
    facts: dict[str, Any] = {"class_token": "cls_token" in ours}
    if "reg_token" in ours:
        facts["reg_tokens"] = ours["reg_token"].shape[1]
    if "attn_pool.latent" in ours:
        facts["pool"] = "map"
    elif "fc_norm.weight" in ours or "cls_token" not in ours:
        facts["pool"] = "avg"
    return facts


# -- Google: original ViT, flax linen, AugReg, big_vision ---------------------------------------

_GOOGLE_PREFIXES = ("opt/target/", "optimizer/target/", "params/img/", "params/", "img/")
_BLOCK = "Transformer/encoderblock_{i}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_<1|0>"  # linen counts sub-modules by kind
_POOL = "MAPHead_0/MultiHeadDotProductAttention_0"
_BACKBONE, _UNIT = "patch_embed.backbone", "patch_embed.backbone.stages.{s}.blocks.{u}"
_QUERY_KEY_VALUE = ("query", "key", "value")


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
    open=_open_google,
    linear="in_out",
    container="npz",
    facts=_google_facts,
    lacks=(
        *_PLAIN,
        Lack("pool", "attention pooling", ("token", "avg")),
        Lack("qkv_bias", "attention without biases", (True,)),
        Lack("class_token", "a class token beside average pooling", (False,), beside=(("pool", "avg"),)),
    ),
    rules=(
        Rule("cls_token", "cls"),
        Rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
        Rule("pos_embed", "pos_embedding", Turn(read=_before_class_token, dimensions=3), written=never),
        *_layer("patch_embed.proj", "embedding", "kernel", HWIO),
        *_layer("blocks.{i}.norm1", f"{_BLOCK}/LayerNorm_0", "scale"),
        *_layer("blocks.{i}.norm2", f"{_BLOCK}/LayerNorm_<2|1>", "scale"),
        *_layer("blocks.{i}.mlp.fc1", f"{_BLOCK}/MlpBlock_<3|0>/Dense_0", "kernel"),
        *_layer("blocks.{i}.mlp.fc2", f"{_BLOCK}/MlpBlock_<3|0>/Dense_1", "kernel"),
        _qkv("blocks.{i}.attn.qkv.weight", f"{_ATTENTION}/{{part}}/kernel", _QUERY_KEY_VALUE, turn=HEADS_OUT),
        _qkv("blocks.{i}.attn.qkv.bias", f"{_ATTENTION}/{{part}}/bias", _QUERY_KEY_VALUE, turn=HEADS_BIAS),
        *_layer("blocks.{i}.attn.proj", f"{_ATTENTION}/out", "kernel", HEADS_IN),
        *_layer("norm", "Transformer/encoder_norm", "scale"),
        *_layer("head0", "pre_logits", "kernel"),
        *_layer("head", "head", "kernel"),
        Rule("attn_pool.latent", "MAPHead_0/probe"),
        Rule("attn_pool.q.weight", f"{_POOL}/query/kernel", HEADS_OUT),
        Rule("attn_pool.q.bias", f"{_POOL}/query/bias", HEADS_BIAS),
        _qkv("attn_pool.kv.weight", f"{_POOL}/{{part}}/kernel", ("key", "value"), turn=HEADS_OUT),
        _qkv("attn_pool.kv.bias", f"{_POOL}/{{part}}/bias", ("key", "value"), turn=HEADS_BIAS),
        *_layer("attn_pool.proj", f"{_POOL}/out", "kernel", HEADS_IN),
        *_layer("attn_pool.norm", "MAPHead_0/LayerNorm_0", "scale"),
        *_layer("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0", "kernel"),
        *_layer("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1", "kernel"),
        Rule(f"{_BACKBONE}.stem.conv.weight", "conv_root/kernel", HWIO),
        Rule(f"{_BACKBONE}.stem.norm.weight", "gn_root/scale", GROUP_NORM),
        Rule(f"{_BACKBONE}.stem.norm.bias", "gn_root/bias", GROUP_NORM),
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
    return {**_stated(theirs, ours), "num_heads": heads, "pool": "token", "act": "gelu_tanh", "epsilon": 1e-6}


COYO = Layout(
    name="coyo",
    title="coyo-vit's checkpoint",
    open=_open_coyo,
    linear="in_out",
    container=None,
    facts=_coyo_facts,
    rules=(
        Rule("cls_token", f"{_COYO}class_emb"),
        Rule("pos_embed", f"{_COYO}pos_emb"),
        *_layer("patch_embed.proj", f"{_COYO}embedding", "kernel", HWIO),
        *_layer("blocks.{i}.norm{n}", f"{_COYO}enc_layers/{{i}}/layernorm{{n}}", "gamma/beta"),
        *(
            _qkv(
                f"blocks.{{i}}.attn.qkv.{ours}",
                f"{_COYO}enc_layers/{{i}}/att/{{part}}_dense/{theirs}",
                _QUERY_KEY_VALUE,
            )
            for ours, theirs in (("weight", "kernel"), ("bias", "bias"))
        ),
        *_layer("blocks.{i}.attn.proj", f"{_COYO}enc_layers/{{i}}/att/combine_heads", "kernel"),
        *_layer("blocks.{i}.mlp.fc1", f"{_COYO}enc_layers/{{i}}/mlp/layer_with_weights-0", "kernel"),
        *_layer("blocks.{i}.mlp.fc2", f"{_COYO}enc_layers/{{i}}/mlp/layer_with_weights-1", "kernel"),
        *_layer("norm", f"{_COYO}norm", "gamma/beta"),
        *_layer("head0", f"{_COYO}representation", "kernel"),
        *_layer("head", "<model/|>layer_with_weights-1", "kernel"),
    ),
)

# -- PyTorch's -----------------------------------------------------------------------------------

HUGGINGFACE = Layout(
    name="huggingface",
    title="Hugging Face's ViT",
    probe="embeddings.patch_embeddings.projection.weight",
    prefix="vit.",
    container="folder",
    facts=_stated,
    lacks=(_NO_PRE_LOGITS, _NO_POOLING, *_PLAIN, _NO_RESNET),
    rules=(
        Rule("cls_token", "embeddings.cls_token"),
        Rule("pos_embed", "embeddings.position_embeddings", POSITION),
        Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Rule("blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
        Rule("blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
        _qkv("blocks.{i}.attn.qkv.{p}", "encoder.layer.{i}.attention.attention.{part}.{p}", _QUERY_KEY_VALUE),
        Rule("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
        Rule("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
        Rule("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
        # transformers 5
        Rule("blocks.{i}.norm1.{p}", "layers.{i}.layernorm_before.{p}", written=never),
        Rule("blocks.{i}.norm2.{p}", "layers.{i}.layernorm_after.{p}", written=never),
        _qkv("blocks.{i}.attn.qkv.{p}", "layers.{i}.attention.{part}_proj.{p}", ("q", "k", "v"), written=never),
        Rule("blocks.{i}.attn.proj.{p}", "layers.{i}.attention.o_proj.{p}", written=never),
        Rule("blocks.{i}.mlp.fc{n}.{p}", "layers.{i}.mlp.fc{n}.{p}", written=never),
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("head0.{p}", "pooler.dense.{p}"),
        Rule("head.{p}", "classifier.{p}"),
    ),
    huggingface=HuggingFace(
        architectures=("ViTForImageClassification", "ViTModel"),
        constants={
            "model_type": "vit",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "dtype": "float32",
        },
        derived=lambda spec: {"intermediate_size": int(spec["embed_dim"] * spec.get("mlp_ratio", 4.0))},
        settings=(
            Setting("hidden_size", "embed_dim"),
            Setting("num_hidden_layers", "depth"),
            Setting("num_attention_heads", "num_heads", stated=True),
            Setting(
                "hidden_act",
                "act",
                {
                    "gelu": "gelu",
                    "gelu_pytorch_tanh": "gelu_tanh",
                    "gelu_new": "gelu_tanh",
                    "gelu_fast": "gelu_tanh",
                },
                stated=True,
                default="gelu",
            ),
            Setting("layer_norm_eps", "epsilon", stated=True, default=1e-6),
            Setting("image_size", "img_size", stated=True),
            Setting("patch_size", "patch_size"),
            Setting("num_channels", "in_chans"),
            Setting("qkv_bias", "qkv_bias", default=True),
        ),
    ),
)

_TORCHVISION_BLOCK = "encoder.layers.encoder_layer_{i}"
TORCHVISION = Layout(
    name="torchvision",
    title="torchvision's ViT",
    probe="conv_proj.weight",
    facts=_stated,
    lacks=(_NO_POOLING, *_PLAIN, _NO_RESNET, *_FIXED),
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
    facts=_stated,
    lacks=(_NO_POOLING, *_PLAIN, _NO_RESNET, *_FIXED),
    rules=(
        Rule("cls_token", "class_token"),
        Rule("pos_embed", "positional_embedding.pos_embedding", POSITION),
        Rule("patch_embed.proj.{p}", "patch_embedding.{p}"),
        Rule("blocks.{i}.norm{n}.{p}", "transformer.blocks.{i}.norm{n}.{p}"),
        _qkv("blocks.{i}.attn.qkv.{p}", "transformer.blocks.{i}.attn.proj_{part}.{p}", ("q", "k", "v")),
        Rule("blocks.{i}.attn.proj.{p}", "transformer.blocks.{i}.proj.{p}"),
        Rule("blocks.{i}.mlp.fc{n}.{p}", "transformer.blocks.{i}.pwff.fc{n}.{p}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head0.{p}", "pre_logits.{p}"),
        Rule("head.{p}", "fc.{p}"),
    ),
)

_JEONSWORLD_BLOCK = "transformer.encoder.layer.{i}"
JEONSWORLD = Layout(
    name="jeonsworld",
    title="ViT-pytorch",
    probe="transformer.embeddings.patch_embeddings.weight",
    facts=_stated,
    lacks=(_NO_PRE_LOGITS, _NO_POOLING, *_PLAIN, _NO_RESNET, *_FIXED),
    rules=(
        Rule("cls_token", "transformer.embeddings.cls_token"),
        Rule("pos_embed", "transformer.embeddings.position_embeddings", POSITION),
        Rule("patch_embed.proj.{p}", "transformer.embeddings.patch_embeddings.{p}"),
        Rule("blocks.{i}.norm1.{p}", f"{_JEONSWORLD_BLOCK}.attention_norm.{{p}}"),
        Rule("blocks.{i}.norm2.{p}", f"{_JEONSWORLD_BLOCK}.ffn_norm.{{p}}"),
        _qkv("blocks.{i}.attn.qkv.{p}", f"{_JEONSWORLD_BLOCK}.attn.{{part}}.{{p}}", _QUERY_KEY_VALUE),
        Rule("blocks.{i}.attn.proj.{p}", f"{_JEONSWORLD_BLOCK}.attn.out.{{p}}"),
        Rule("blocks.{i}.mlp.fc{n}.{p}", f"{_JEONSWORLD_BLOCK}.ffn.fc{{n}}.{{p}}"),
        Rule("norm.{p}", "transformer.encoder.encoder_norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)


def _is_stem_alone(spec: Spec) -> bool:
    return spec.get("resnet_layers") in ((), [])


TIMM = Layout(  # and PLSC's, whose matrices are [in, out]
    name="timm",
    title="timm",
    probe="patch_embed.proj.weight",
    own_names=True,
    facts=_stated,
    lacks=(_NO_PRE_LOGITS, _NO_SCALE),
    rules=(
        Rule("pos_embed", "pos_embed", POSITION),
        Rule(f"{_BACKBONE}.stem.conv.weight", f"{_BACKBONE}.conv.weight", written=_is_stem_alone),
        Rule(f"{_BACKBONE}.stem.norm.{{p}}", f"{_BACKBONE}.norm.{{p}}", written=_is_stem_alone),
        Rule("head0.{p}", "pre_logits.<fc.|>{p}", written=never),
        Rule("reg_token", "<storage_tokens|register_tokens>", written=never),
        _qkv("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.{part}.{p}", ("q", "k", "v"), written=never),
    ),
)

# -- what arrays tell ----------------------------------------------------------------------------

_USUAL_HEAD_WIDTH = 64  # of every published ViT but the giants
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1536: 16, 1664: 16, 2320: 16}


def infer_spec(shapes: Mapping[str, tuple], stated: Mapping[str, Any]) -> dict[str, Any]:
    """ViTSpec's fields as far as shapes and what files state tell them.

    The image is taken to be square. num_heads is a guess where it is not stated.
    """
    spec: dict[str, Any] = {"class_token": "cls_token" in shapes}
    if "reg_token" in shapes:
        spec["reg_tokens"] = shapes["reg_token"][1]
    depths = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if m]
    spec["depth"] = max(depths, default=-1) + 1
    kernel = shapes.get("patch_embed.proj.weight")
    if kernel:
        spec["embed_dim"] = width = kernel[0]
        spec["patch_size"] = kernel[2] if kernel[2] == kernel[3] else tuple(kernel[2:])
        spec["in_chans"] = kernel[1]
        spec["num_heads"] = _HEADS.get(width, max(1, width // _USUAL_HEAD_WIDTH))
        fc1 = shapes.get("blocks.0.mlp.fc1.weight")
        if fc1:
            ratio = fc1[1] / width
            spec["mlp_ratio"] = ratio if int(width * ratio) == fc1[1] else (fc1[1] + 0.5) / width
    stem = shapes.get(f"{_BACKBONE}.stem.conv.weight")
    if stem:
        spec["in_chans"], spec["resnet_width"] = stem[1], stem[0] / 64
        spec["resnet_layers"] = _resnet_layers(shapes)
    spec["qkv_bias"] = "blocks.0.attn.qkv.bias" in shapes
    spec["class_num"] = shapes["head.weight"][1] if "head.weight" in shapes else 0
    spec["representation_size"] = shapes["head0.weight"][1] if "head0.weight" in shapes else None
    if "blocks.0.ls1.gamma" in shapes:
        spec["layer_scale"] = 1e-5
    if "attn_pool.latent" in shapes:
        spec["pool"] = "map"
    elif "fc_norm.weight" in shapes:
        spec["pool"], spec["fc_norm"] = "avg", True
    elif not spec["class_token"]:
        spec["pool"] = "avg"
    spec.update(stated)
    if "img_size" not in spec and "pos_embed" in shapes and kernel:
        rows = shapes["pos_embed"][1]
        prefix = _position_prefix(rows, spec)
        side = round((rows - prefix) ** 0.5)
        spec["no_embed_class"] = prefix == 0 and (spec["class_token"] or bool(spec.get("reg_tokens")))
        if side * side == rows - prefix and kernel[2] == kernel[3]:
            spec["img_size"] = side * kernel[2] * reduction(spec.get("resnet_layers"))
    return spec


def _position_prefix(rows: int, spec: Spec) -> int:
    """Rows of a position embedding before its patches, such that these are a square grid where possible."""
    tokens = int(spec.get("class_token", True)) + spec.get("reg_tokens", 0)
    if spec.get("no_embed_class"):
        return 0
    for prefix in dict.fromkeys((tokens, int(spec.get("class_token", True)), 0)):
        side = round(max(rows - prefix, 0) ** 0.5)
        if side and side * side == rows - prefix:
            return prefix
    return tokens


def _resnet_layers(shapes: Mapping[str, tuple]) -> tuple[int, ...]:
    counts: dict[int, int] = {}
    for name in shapes:
        unit = re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", name)
        if unit:
            stage = int(unit[1])
            counts[stage] = max(counts.get(stage, 0), int(unit[2]) + 1)
    return tuple(counts[stage] for stage in sorted(counts))


# -- weights of another size ---------------------------------------------------------------------


def _adapt(source, tensor: Tensor, target: Target) -> Adapted | None:
    """Position embedding, patch embedding and stem, fitted to another model."""
    name, shape = target.name, target.shape
    if name == "pos_embed":
        return _position(source, tensor, target)
    if tensor.shape == shape:
        return None
    if name == "patch_embed.proj.weight" and tensor.shape[0] == shape[0] and len(tensor.shape) == 4:
        return Adapted("patch kernel resampled", lambda: _patch(source.read(name), shape))
    if name == f"{_BACKBONE}.stem.conv.weight" and tensor.shape[2:] == shape[2:]:
        return Adapted("channels", lambda: resample.input_channels(source.read(name), shape[1]))
    return None


def _patch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape[1] != shape[1]:
        array = resample.input_channels(array, shape[1])
    return array if array.shape == shape else resample.patch_kernel(array, shape[2:])


def _position(source, tensor: Tensor, target: Target) -> Adapted | None:
    """A position embedding of another grid, which as many rows can hide, or of other tokens before the patches."""
    prefix, grid, shape = target.spec.embedded_prefix, target.spec.grid, target.shape
    if len(tensor.shape) != 3 or tensor.shape[0] != 1 or tensor.shape[2] != shape[2]:
        return None
    if tensor.shape == shape and not source.card.spec.get("img_size"):
        return None
    old_prefix, old_grid = _grid_of(source, tensor, prefix)
    if tensor.shape == shape and (old_prefix, old_grid) == (prefix, grid):
        return None
    how = [] if old_grid == grid else [f"{target.position} {old_grid} → {grid}"]
    how += [] if old_prefix == prefix else [f"{old_prefix} rows before the patches → {prefix}"]

    def read() -> np.ndarray:
        array = source.read("pos_embed")
        if old_prefix != prefix:  # rows of tokens the file has not begin at zero
            rows = np.zeros([1, prefix, array.shape[2]], array.dtype)
            rows[:, : min(prefix, old_prefix)] = array[:, : min(prefix, old_prefix)]
            array = np.concatenate([rows, array[:, old_prefix:]], axis=1)
        if old_grid == grid:
            return array
        return resample.position_embedding(array, prefix, old_grid, grid, target.position)

    return Adapted(", ".join(how), read, by_size=True)


def _grid_of(source, tensor: Tensor, prefix: int) -> tuple[int, tuple[int, int]]:
    """(rows before the patches, (rows, columns) of patches) of a file's position embedding."""
    spec, rows = source.card.spec, tensor.shape[1]
    old_prefix = _position_prefix(rows, spec) if "class_token" in spec else prefix
    patches = rows - old_prefix
    if spec.get("img_size") and spec.get("patch_size"):
        sides = zip(pair(spec["img_size"]), pair(spec["patch_size"]), strict=True)
        grid = tuple(reduced(side, spec.get("resnet_layers")) // patch for side, patch in sides)
        for candidate in dict.fromkeys((old_prefix, prefix)):
            if grid[0] * grid[1] == rows - candidate:
                return candidate, grid
    side = round(max(patches, 0) ** 0.5)
    if side * side != patches or patches == 0:
        raise CheckpointError(f"{source.path}: its position embedding has {patches} patch rows, not a square grid")
    return old_prefix, (side, side)


register_family(
    Family(
        model="VisionTransformer",
        models=frozenset([*PRESETS, *(alias for aliases in ALIASES.values() for alias in aliases)]),
        spec=ViTSpec,
        layouts=(COYO, GOOGLE, HUGGINGFACE, TORCHVISION, LUKEMELAS, JEONSWORLD, TIMM),
        names=r"(cls_token|pos_embed|reg_token|patch_embed\..+|blocks\.\d+\..+|attn_pool\..+"
        r"|(norm|fc_norm|head0?)\.(weight|bias))",
        infer=infer_spec,
        unseen=("num_heads", "qk_scale", "act", "epsilon", "pool", "no_embed_class"),
        matrices={"attn.qkv.weight": "wide", "mlp.fc1.weight": "wide", "mlp.fc2.weight": "tall"},
        dimensions=(
            (r"cls_token|pos_embed|reg_token|attn_pool\.latent", 3),
            (r"(patch_embed\.proj|.*\.conv\d?)\.weight", 4),
            (r"(.*\.)?(attn\.qkv|attn\.proj|mlp\.fc[12]|head0?|attn_pool\.(q|kv|proj))\.weight", 2),
            (r".*(norm\d?\.weight|\.gamma|\.bias)", 1),
        ),
        block=r"blocks\.\d+\.",
        head=("head.", "head0."),
        without_head={"class_num": 0, "representation_size": None},
        adapt=_adapt,
    )
)
