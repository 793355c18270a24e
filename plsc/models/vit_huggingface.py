"""What Hugging Face's transformers calls the arrays of Vision Transformers, a layout for each kind of its models.

A model is written as the first of them that can hold it. CLIP and SigLIP are in vit_towers.py.
"""

from collections.abc import Mapping
from typing import Any

from plsc.errors import CheckpointError
from plsc.models.vit_parts import (
    POSITION,
    QUERY_KEY_VALUE,
    Need,
    PreLogits,
    depth_of,
    fold_class_position,
    lacks,
    qkv,
    size_of_none,
    stated,
    unfold_class_position,
    zeros,
)
from plsc.weights.layouts import HuggingFace, Lack, Layout, Rule, Setting, Spec, Tensors, never, unwrapped
from plsc.weights.tensors import Tensor

# -- config.json ----------------------------------------------------------------------------------

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_HEADS = Setting("num_attention_heads", "num_heads", stated=True)
_QKV_BIAS = Setting("qkv_bias", "qkv_bias", default=True)


def settings(epsilon: float, *others: Setting, activations: Mapping[str, str] = _ACTIVATIONS) -> tuple[Setting, ...]:
    """What config.json says of all of these models; epsilon is that of a model which does not say its own."""
    return (
        Setting("hidden_size", "embed_dim"),
        Setting("num_hidden_layers", "depth"),
        _HEADS,
        Setting("hidden_act", "act", activations, stated=True, default="gelu"),
        Setting("layer_norm_eps", "epsilon", stated=True, default=epsilon),
        Setting("image_size", "img_size", stated=True),
        Setting("patch_size", "patch_size"),
        Setting("num_channels", "in_chans"),
        *others,
    )


def width_of_mlp(spec: Spec) -> dict[str, Any]:
    """What config.json says of a model's MLP, where it is the width itself."""
    return {"intermediate_size": int(spec["embed_dim"] * spec.get("mlp_ratio", 4.0))}


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dtype": "float32"}

# -- ViT and those that share its names: I-JEPA, ViT-MAE; DeiT, DINOv2, BEiT, Data2Vec ------------

_PROBE = "embeddings.patch_embeddings.projection.weight"
_PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.", "beit.", "data2vec_vision.", "ijepa.")
_TABLE = "attention.attention.relative_position_bias.relative_position_bias_table"


def _opened(tensors: Tensors, kind: str) -> dict[str, Tensor] | None:
    """A file's arrays, without those of training alone, where they are of this kind of model."""
    out = unwrapped(tensors, _PROBE, _PREFIXES)
    if out is None or _kind(out) != kind:
        return None
    left_out = ("decoder.", "lm_head.", "embeddings.mask_token")
    return {k: t for k, t in out.items() if not k.startswith(left_out) and not k.endswith("relative_position_index")}


def _kind(tensors: Tensors) -> str:
    first = {name.removeprefix("encoder.layer.0.") for name in tensors}
    if "embeddings.distillation_token" in tensors:
        return "deit"
    if "layer_scale1.lambda1" in first:
        return "dinov2"
    no_key = "attention.attention.query.bias" in first and "attention.attention.key.bias" not in first
    if no_key or "lambda_1" in first or _TABLE in first:
        return "beit"
    return "vit"


_EMBEDDINGS = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings", POSITION),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
)
_BLOCKS = (
    Rule("blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
    Rule("blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
    qkv("blocks.{i}.attn.qkv.{p}", "encoder.layer.{i}.attention.attention.{part}.{p}", QUERY_KEY_VALUE),
    Rule("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    Rule("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
    Rule("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
)


def _pooler(spec: Spec) -> dict[str, Any]:
    width = spec.get("representation_size")
    return {} if width is None else {"pooler_output_size": width, "pooler_act": "tanh"}


def _of_class_token(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    """Facts of a codebase that pools by the class token where it has one, and no norm after pooling."""
    facts = stated(theirs, ours)
    return facts if "pool" in facts else {**facts, "pool": "token"}


HUGGINGFACE = Layout(
    name="huggingface",
    title="Hugging Face's ViT",
    open=lambda tensors: _opened(tensors, "vit"),
    prefix="vit.",
    container="folder",
    facts=_of_class_token,
    fixed={"qk_scale": None},
    lacks=(
        *(lack for lack in lacks("qkv_bias", "act", "epsilon") if lack.field != "representation_size"),
        PreLogits("representation_size", "pre-logits before a head; --backbone leaves both out"),
    ),
    rules=(
        *_EMBEDDINGS,
        *_BLOCKS,
        # transformers 5
        Rule("blocks.{i}.norm1.{p}", "layers.{i}.layernorm_before.{p}", written=never),
        Rule("blocks.{i}.norm2.{p}", "layers.{i}.layernorm_after.{p}", written=never),
        qkv("blocks.{i}.attn.qkv.{p}", "layers.{i}.attention.{part}_proj.{p}", ("q", "k", "v"), written=never),
        Rule("blocks.{i}.attn.proj.{p}", "layers.{i}.attention.o_proj.{p}", written=never),
        Rule("blocks.{i}.mlp.fc{n}.{p}", "layers.{i}.mlp.fc{n}.{p}", written=never),
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("head0.{p}", "pooler.dense.{p}"),
        Rule("head.{p}", "classifier.{p}"),
    ),
    huggingface=HuggingFace(
        architectures=("ViTForImageClassification", "ViTModel"),
        constants={"model_type": "vit", **_NO_DROPOUT},
        derived=lambda spec: {**width_of_mlp(spec), **_pooler(spec)},
        required={"pooler_act": "tanh"},
        settings=settings(1e-6, _QKV_BIAS),
    ),
)

IJEPA = Layout(
    name="huggingface",
    title="Hugging Face's I-JEPA",
    open=lambda tensors: None,  # read as a ViT without class token
    prefix="ijepa.",
    container="folder",
    lacks=lacks("qkv_bias", "act", "epsilon", class_token=(False,), pool=("avg",)),
    rules=(*_EMBEDDINGS, *_BLOCKS, Rule("norm.{p}", "layernorm.{p}"), Rule("head.{p}", "classifier.{p}")),
    huggingface=HuggingFace(
        architectures=("IJepaForImageClassification", "IJepaModel"),
        constants={"model_type": "ijepa", **_NO_DROPOUT},
        derived=width_of_mlp,
        settings=settings(1e-6, _QKV_BIAS),
    ),
)


def _has_two_heads(spec: Spec) -> bool:
    return spec.get("distillation") == "heads"


DEIT = Layout(
    name="huggingface",
    title="Hugging Face's DeiT",
    open=lambda tensors: _opened(tensors, "deit"),
    prefix="deit.",
    container="folder",
    facts=stated,
    fixed={"qk_scale": None, "pool": "token"},
    lacks=lacks("qkv_bias", "act", "epsilon", distillation=("heads", "token")),
    rules=(
        *_EMBEDDINGS,
        Rule("dist_token", "embeddings.distillation_token"),
        *_BLOCKS,
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("head.{p}", "cls_classifier.{p}", written=_has_two_heads),
        Rule("head_dist.{p}", "distillation_classifier.{p}"),
        Rule("head.{p}", "classifier.{p}"),
    ),
    huggingface=HuggingFace(
        architectures=("DeiTForImageClassificationWithTeacher", "DeiTModel"),
        constants={"model_type": "deit", **_NO_DROPOUT},
        derived=lambda spec: {
            **width_of_mlp(spec),
            **({} if _has_two_heads(spec) else {"architectures": ["DeiTForImageClassification"]}),
        },
        settings=settings(1e-6, _QKV_BIAS),
    ),
)


def _open_dinov2(tensors: Tensors, *, registers: bool) -> dict[str, Tensor] | None:
    out = _opened(tensors, "dinov2")
    if out is None or ("embeddings.register_tokens" in out) != registers:
        return None
    names = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.register_tokens")
    return fold_class_position(out, *names)


def _close_registers(tensors: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    out = unfold_class_position(tensors, "embeddings.position_embeddings")
    return {**out, "embeddings.mask_token": zeros(1, spec["embed_dim"])}  # of training alone


def _dinov2_facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    return {**stated(theirs, ours), "pool": "token_avg" if "head.weight" in ours else "token"}


def _is_gated(spec: Spec) -> bool:
    return spec.get("mlp") == "swiglu"


def _dinov2_config(spec: Spec) -> dict[str, Any]:
    """The ratio of widths is a whole number there; SwiGLU has two thirds of that width, rounded up to eights."""
    width, hidden = spec["embed_dim"], int(spec["embed_dim"] * spec.get("mlp_ratio", 4.0))
    for ratio in range(1, 100):
        if hidden == ((int(ratio * width * 2 / 3) + 7) // 8 * 8 if _is_gated(spec) else ratio * width):
            return {"mlp_ratio": ratio, "use_swiglu_ffn": _is_gated(spec), "layerscale_value": 1.0}
    raise CheckpointError(
        f"Hugging Face's DINOv2 has no place for an MLP of {hidden} channels where others are {width}"
    )


def _dinov2_layout(*, registers: bool) -> Layout:
    """Without register tokens and with them."""
    held = ("qkv_bias", "act", "epsilon", "mlp", "layer_scale")
    pools = ("token_avg", "token")
    if registers:
        lacking = (*lacks(*held, "reg_tokens", pool=pools, no_embed_class=(True,)), Need("reg_tokens", "registers"))
    else:
        lacking = lacks(*held, pool=pools)
    name, kind = ("Dinov2WithRegisters", "dinov2_with_registers") if registers else ("Dinov2", "dinov2")
    return Layout(
        name="huggingface",
        title="Hugging Face's DINOv2",
        open=lambda tensors: _open_dinov2(tensors, registers=registers),
        close=_close_registers if registers else lambda tensors, _: tensors,
        prefix=f"{kind}.",
        container="folder",
        facts=_dinov2_facts,
        fixed={"qk_scale": None},
        lacks=(
            *lacking,
            Need("layer_scale", "LayerScale"),
            Lack("class_num", "a head on the class token alone", (0,), beside=(("pool", "token"),)),
        ),
        rules=(
            *_EMBEDDINGS,
            Rule("reg_token", "embeddings.register_tokens"),
            Rule("blocks.{i}.norm{n}.{p}", "encoder.layer.{i}.norm{n}.{p}"),
            Rule("blocks.{i}.ls{n}.gamma", "encoder.layer.{i}.layer_scale{n}.lambda1"),
            Rule("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.mlp.weights_in.{p}", written=_is_gated),
            Rule("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.mlp.weights_out.{p}", written=_is_gated),
            Rule("blocks.{i}.mlp.fc{n}.{p}", "encoder.layer.{i}.mlp.fc{n}.{p}"),
            *_BLOCKS[2:4],
            Rule("norm.{p}", "layernorm.{p}"),
            Rule("head.{p}", "classifier.{p}"),
        ),
        huggingface=HuggingFace(
            architectures=(f"{name}ForImageClassification", f"{name}Model"),
            constants={"model_type": kind, **_NO_DROPOUT, **({} if registers else {"use_mask_token": False})},
            derived=lambda spec: {
                **_dinov2_config(spec),
                **({"num_register_tokens": spec["reg_tokens"]} if registers else {}),
            },
            settings=settings(1e-6, _QKV_BIAS),
        ),
    )


DINOV2, DINOV2_REGISTERS = _dinov2_layout(registers=False), _dinov2_layout(registers=True)


def _open_beit(tensors: Tensors) -> dict[str, Tensor] | None:
    """A bias that all blocks share becomes one of each."""
    out = _opened(tensors, "beit")
    if out is None:
        return None
    shared = out.pop("encoder.relative_position_bias.relative_position_bias_table", None)
    if shared is None:
        return out
    return out | {f"encoder.layer.{i}.{_TABLE}": shared for i in range(depth_of(out, r"encoder\.layer\.(\d+)\."))}


def _beit_config(spec: Spec) -> dict[str, Any]:
    return {
        **width_of_mlp(spec),
        "use_relative_position_bias": bool(spec.get("rel_pos_bias")),
        "use_absolute_position_embeddings": spec.get("pos_embed") != "none",
        "use_mean_pooling": bool(spec.get("fc_norm")),
        "layer_scale_init_value": 0.1 if spec.get("layer_scale") is not None else 0,
    }


BEIT = Layout(  # and Data2Vec
    name="huggingface",
    title="Hugging Face's BEiT",
    open=_open_beit,
    prefix="beit.",
    container="folder",
    facts=_of_class_token,
    guesses=size_of_none,
    fixed={"qk_scale": None},
    lacks=(
        *lacks(
            "act",
            "epsilon",
            "fc_norm",
            "layer_scale",
            "rel_pos_bias",
            "pos_embed",
            k_bias=(False,),
            pool=("avg", "token"),
        ),
        Lack("fc_norm", "average pooling after a norm", (True,), beside=(("pool", "avg"),)),
    ),
    rules=(
        *_EMBEDDINGS,
        Rule("blocks.{i}.attn.q_bias", "encoder.layer.{i}.attention.attention.query.bias"),
        Rule("blocks.{i}.attn.v_bias", "encoder.layer.{i}.attention.attention.value.bias"),
        Rule("blocks.{i}.attn.rel_pos_bias.table", f"encoder.layer.{{i}}.{_TABLE}"),
        Rule("blocks.{i}.ls{n}.gamma", "encoder.layer.{i}.lambda_{n}"),
        *_BLOCKS,
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("fc_norm.{p}", "pooler.layernorm.{p}"),
        Rule("head.{p}", "classifier.{p}"),
    ),
    huggingface=HuggingFace(
        architectures=("BeitForImageClassification", "BeitModel"),
        constants={"model_type": "beit", "use_mask_token": False, **_NO_DROPOUT},
        derived=_beit_config,
        settings=settings(1e-12),
    ),
)

# -- DINOv3 ---------------------------------------------------------------------------------------


def _open_dinov3(tensors: Tensors, *, gated: bool) -> dict[str, Tensor] | None:
    out = unwrapped(tensors, "embeddings.patch_embeddings.weight", ("dinov3_vit.",))
    if out is None or "embeddings.register_tokens" not in out:
        return None
    if any(name.endswith(".mlp.gate_proj.weight") for name in out) != gated:
        return None
    return {name.removeprefix("model."): tensor for name, tensor in out.items() if name != "embeddings.mask_token"}


def _dinov3_facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    return {**stated(theirs, ours), "rope": "centred", "pool": "token_avg" if "head.weight" in ours else "token"}


_DINOV3_RULES = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("reg_token", "embeddings.register_tokens"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.{p}"),
    Rule("blocks.{i}.norm{n}.{p}", "layer.{i}.norm{n}.{p}"),
    Rule("blocks.{i}.ls{n}.gamma", "layer.{i}.layer_scale{n}.lambda1"),
    Rule("blocks.{i}.attn.q_bias", "layer.{i}.attention.q_proj.bias"),
    Rule("blocks.{i}.attn.v_bias", "layer.{i}.attention.v_proj.bias"),
    qkv("blocks.{i}.attn.qkv.{p}", "layer.{i}.attention.{part}_proj.{p}", ("q", "k", "v")),
    Rule("blocks.{i}.attn.proj.{p}", "layer.{i}.attention.o_proj.{p}"),
    Rule("blocks.{i}.mlp.fc2.{p}", "layer.{i}.mlp.down_proj.{p}"),
    Rule("norm.{p}", "norm.{p}"),
)
_DINOV3_LACKS = (
    *lacks(
        "epsilon",
        "reg_tokens",
        "no_embed_class",
        "layer_scale",
        "mlp",
        "act",
        pos_embed=("none",),
        rope=("centred",),
        k_bias=(False,),
    ),
    Need("layer_scale", "LayerScale"),
    Lack("class_num", "a classifier (--backbone leaves it out)", (0,)),
)


def _dinov3_layout(*, gated: bool) -> Layout:
    """With an MLP or with SwiGLU."""
    return Layout(
        name="huggingface",
        title="Hugging Face's DINOv3",
        open=lambda tensors: _open_dinov3(tensors, gated=gated),
        close=lambda tensors, spec: {**tensors, "embeddings.mask_token": zeros(1, 1, spec["embed_dim"])},
        container="folder",
        facts=_dinov3_facts,
        guesses=size_of_none,
        fixed={"qk_scale": None},
        lacks=(*_DINOV3_LACKS, Lack("mlp", "this kind of MLP", ("swiglu",) if gated else ("plain",))),
        rules=(
            *_DINOV3_RULES,
            Rule(
                "blocks.{i}.mlp.fc1.{p}",
                ("layer.{i}.mlp.gate_proj.{p}", "layer.{i}.mlp.up_proj.{p}") if gated else "layer.{i}.mlp.up_proj.{p}",
            ),
        ),
        huggingface=HuggingFace(
            architectures=("DINOv3ViTModel", "DINOv3ViTModel"),
            constants={
                "model_type": "dinov3_vit",
                "query_bias": True,
                "key_bias": False,
                "value_bias": True,
                "use_gated_mlp": gated,
                "dtype": "float32",
            },
            derived=lambda spec: {**width_of_mlp(spec), "num_register_tokens": spec.get("reg_tokens", 0)},
            settings=settings(
                1e-5,
                Setting("rope_theta", "rope_temperature", stated=True, default=100.0),
                activations={"silu": "gelu"} if gated else _ACTIVATIONS,
            ),
        ),
    )


DINOV3, DINOV3_GATED = _dinov3_layout(gated=False), _dinov3_layout(gated=True)

LAYOUTS = (HUGGINGFACE, IJEPA, DEIT, DINOV2, DINOV2_REGISTERS, BEIT, DINOV3, DINOV3_GATED)
