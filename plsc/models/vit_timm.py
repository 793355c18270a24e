"""What timm calls the arrays of Vision Transformers; PLSC, whose matrices are [in, out], has the same names.

So do Meta's DeiT, DeiT III, DINO, DINOv2, DINOv3 and MAE, Microsoft's BEiT and BAAI's EVA, but for what is said below.
timm has three classes, of which the same part has other names: `vit` (vision_transformer.py, deit.py), `eva`, `beit`.
"""

import re
from typing import Any, Literal

from plsc.errors import CheckpointError
from plsc.models.vit_parts import (
    BACKBONE,
    POSITION,
    depth_of,
    fold_class_position,
    lacks,
    qkv,
    size_of_none,
    stated,
    zeros,
)
from plsc.weights.layouts import Layout, Rule, Setting, Spec, Tensors, Timm, never, unwrapped
from plsc.weights.tensors import Tensor, joined

_TOWERS = ("visual.trunk.", "visual.")  # of open_clip, whose other arrays are the text's
# what is of training alone, or follows from the rest
_LEFT_OUT = re.compile(
    r"mask_token|decoder_.+|lm_head\..+|local_cls_norm\..+|projectors\..+|rope_embed\.periods|rope\.(periods|bands|freqs_.+)"
    r"|.+\.rope\.freqs_.+|.+\.relative_position_index|.+\.k_bias"
)


def _is_stem_alone(spec: Spec) -> bool:
    return spec.get("resnet_layers") in ((), [])


# -- theirs → ours --------------------------------------------------------------------------------


def _open(tensors: Tensors) -> dict[str, Tensor] | None:
    """Without wrappers and what is of training alone, each block's arrays by themselves."""
    out = unwrapped(tensors, "patch_embed.proj.weight", _TOWERS)
    if out is None:
        return None
    out = _tower(tensors, out)
    out = {name: tensor for name, tensor in out.items() if not _LEFT_OUT.fullmatch(name)}
    out = fold_class_position(out, "cls_token", "pos_embed", "register_tokens")
    _split_frequencies(out)
    for i in range(depth_of(out, r"blocks\.(\d+)\.")):
        _separate_biases(out, f"blocks.{i}.attn")
        _split_parallel(out, f"blocks.{i}")
    return out


def _tower(tensors: Tensors, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of open_clip's visual tower alone, its projection as the head."""
    prefix = next((p for p in _TOWERS if f"{p}patch_embed.proj.weight" in tensors), None)
    if prefix is None:
        return out
    within = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    projection = tensors.get("visual.head.proj.weight")
    if projection is not None:
        within = {name: t for name, t in within.items() if not name.startswith("head.")}
        within |= {"head.weight": projection, "head.bias": zeros(projection.shape[0])}
    return within


def _separate_biases(out: dict[str, Tensor], attn: str) -> None:
    """Biases of queries and values alone, where keys have none."""
    if f"{attn}.q_proj.bias" in out and f"{attn}.k_proj.bias" not in out:
        out[f"{attn}.q_bias"], out[f"{attn}.v_bias"] = out.pop(f"{attn}.q_proj.bias"), out.pop(f"{attn}.v_proj.bias")
    if out.pop(f"{attn}.qkv.bias_mask", None) is not None:  # DINOv3 masks the keys'
        q, _, v = out.pop(f"{attn}.qkv.bias").split(3)
        out[f"{attn}.q_bias"], out[f"{attn}.v_bias"] = q, v


def _split_parallel(out: dict[str, Tensor], block: str) -> None:
    """timm's ParallelScalingBlock has the MLP's first layer and qkv in one matrix."""
    for kind in ("weight", "bias"):
        whole, tall = out.pop(f"{block}.in_proj.{kind}", None), out.get(f"{block}.mlp_out_proj.weight")
        if whole is not None and tall is not None:
            hidden = tall.shape[-1]
            out[f"{block}.mlp.fc1.{kind}"], out[f"{block}.attn.qkv.{kind}"] = whole.rows(0, hidden), whole.rows(hidden)


def _split_frequencies(out: dict[str, Tensor]) -> None:
    """Learned frequencies of rotary embedding [2, depth, ...] → of each block."""
    whole = out.pop("rope.freqs", None)
    if whole is None:
        return
    if len(whole.shape) != 4:
        raise CheckpointError(f"rope.freqs has shape {list(whole.shape)}; it needs 4 dimensions")
    turned = whole.transposed(1, 0, 2, 3)
    out |= {f"blocks.{i}.attn.rope.freqs": turned.at(i) for i in range(turned.shape[0])}


def _facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    """What presence and names of arrays say of a model, with what published ones of these names have besides."""
    facts = stated(theirs, ours)
    cls, registers, position = "cls_token" in ours, "reg_token" in ours, "pos_embed" in ours
    gated = "blocks.0.mlp.fc1.weight" in ours and _is_gated(ours)
    if "dist_token" in ours:
        facts["distillation"] = "heads"
    if "blocks.0.in_norm.weight" in theirs:
        facts["block"] = "parallel"
    if any(name.startswith(BACKBONE) for name in ours):
        facts["resnet_norm"] = "timm"
    if "blocks.0.attn.rel_pos_bias.table" in ours:
        return facts
    if "blocks.0.attn.rope.freqs" in ours:
        facts |= {"rope": "mixed", "rope_order": "xy", "rope_temperature": 10.0}
    elif not position and cls and registers:  # DINOv3
        facts |= {"rope": "centred", "rope_temperature": 100.0, "epsilon": 1e-5}
        if "storage_tokens" in theirs:  # Meta's own, whose users take the class token
            facts["pool"] = "token"
    elif not position and registers:
        facts |= {"rope": "axial", "rope_temperature": 10000.0, "rope_reference": 16}
    elif not position and cls and "blocks.0.gamma_1" in theirs:
        facts |= {"rope": "axial", "rope_temperature": 100.0, "rope_order": "xy"}
    elif "blocks.0.attn.q_bias" in ours and gated:  # EVA-02
        facts |= {"rope": "axial", "rope_temperature": 10000.0, "rope_reference": 16}
    elif "norm_pre.weight" in ours and (
        "attn_pool.latent" in ours or not {"norm.weight", "fc_norm.weight"} & ours.keys()
    ):  # Perception Encoder
        facts |= {"rope": "axial", "rope_temperature": 10000.0, "rope_order": "xy", "rope_offset": float(cls)}
        facts |= {"rope_reference": _grid(ours, int(cls))}
        facts |= {"pool_heads": 8} if "attn_pool.latent" in ours else {"pool": "avg"}
    if "norm_pre.weight" in ours and "norm_pre.bias" in ours:
        facts["epsilon"] = 1e-5
    return facts


def _guesses(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    """What a model of these names may have otherwise, without an array that shows it."""
    guesses = size_of_none(theirs, ours)
    if "attn_pool.latent" not in ours and ("fc_norm.weight" in ours or "cls_token" not in ours):
        guesses["pool"] = "avg"  # or the maximum, or of all tokens
    dinov3 = "pos_embed" not in ours and {"cls_token", "reg_token"} <= ours.keys() and "attn_pool.latent" not in ours
    if dinov3 and "storage_tokens" not in theirs:
        guesses["pool"] = "avg"  # as timm pools it, whose names these are
    others = ("blocks.0.attn.rope.freqs", "blocks.0.attn.rel_pos_bias.table", "blocks.0.attn.q_bias")
    if "pos_embed" in ours and "blocks.0.gamma_1" in theirs and not any(name in ours for name in others):
        guesses["rope"] = None  # Meta's DeiT III; timm's rope_ape has the same arrays
    if "blocks.0.norm2.weight" in ours and "blocks.0.ls1.gamma" not in ours:
        guesses["block"] = "pre"  # timm's rpn has the same arrays for norms after attention and MLP
    return guesses


def _is_gated(ours: Tensors) -> bool:
    """Whether an MLP's first layer is twice as wide as its second takes, whichever way both stand."""
    first, second = (ours[f"blocks.0.mlp.{name}.weight"].shape for name in ("fc1", "fc2"))
    return len(first) == len(second) == 2 and first[1] == 2 * second[0]


def _grid(ours: Tensors, prefix: int) -> int | None:
    """Side of the grid of which a position embedding is, where it is a square."""
    if "pos_embed" not in ours:
        return None
    rows = ours["pos_embed"].shape[1] - prefix
    side = round(max(rows, 0) ** 0.5)
    return side if side and side * side == rows else None


def _refusal(theirs: Tensors) -> str | None:
    """Why arrays with timm's names are of a model that is none of ours, though most of them fit."""
    for ending, what in (
        ("attns.0.norm.weight", "several attentions and MLPs side by side (timm's ParallelThingsBlock)"),
        ("attn.lambda_q1", "differential attention (timm's DiffAttention)"),
        ("lambda_q1", "differential attention (timm's DiffParallelScalingBlock)"),
        ("out_proj.weight", "one projection for attention and MLP (timm's fuse_out_proj)"),
        ("attn.gate.weight", "gated attention"),
    ):
        if f"blocks.0.{ending}" in theirs:
            return f"its blocks have {what}: {f'blocks.0.{ending}'}; a VisionTransformer has none"
    if "patch_embed.norm.weight" in theirs:
        return "its patches are normalised by themselves (patch_embed.norm), as AIMv2's; a VisionTransformer's are not"
    batch = next((name for name in theirs if name.endswith(".running_mean")), None)
    if batch:
        return f"it has batch normalisation ({batch}); a VisionTransformer's ResNet normalises groups of channels"
    shapes = {
        name: theirs[name].shape for name in theirs if re.fullmatch(r"blocks\.\d+\.attn\.[qk]_proj\.weight", name)
    }
    for name, shape in shapes.items():
        if shape[:1] < shapes.get(name.replace(".k_proj", ".q_proj"), shape)[:1]:
            return f"its attention has fewer keys than queries ({name}), which a VisionTransformer has not"
    if "blocks.0.gamma_1" in theirs and "blocks.0.gamma_2" not in theirs:
        return "its blocks scale attention alone (gamma_1 without gamma_2), which a VisionTransformer does not"
    return None


# -- ours → theirs --------------------------------------------------------------------------------


def timm_class(spec: Spec) -> Literal["vit", "eva", "beit"]:
    """Which of timm's classes rebuilds a model."""
    if spec.get("rel_pos_bias"):
        return "beit"
    separate = spec.get("qkv_bias", True) and not spec.get("k_bias", True)
    return "eva" if spec.get("rope") or separate or spec.get("attn_norm") else "vit"


def _of_eva_or_beit(spec: Spec) -> bool:
    return timm_class(spec) != "vit"


def _has_split_gate(spec: Spec) -> bool:
    aligned = spec.get("rope") == "centred"
    return timm_class(spec) == "eva" and spec.get("mlp") == "swiglu" and (aligned or bool(spec.get("mlp_norm")))


def _has_split_attention(spec: Spec) -> bool:
    return timm_class(spec) == "eva" and bool(spec.get("mlp_norm"))  # EVA-02 base and large


def _is_parallel(spec: Spec) -> bool:
    return spec.get("block") == "parallel"


def _close(tensors: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    """_open the other way."""
    depth, out = depth_of(tensors, r"blocks\.(\d+)\."), dict(tensors)
    if "blocks.0.attn.rope.freqs" in out:
        parts = [out.pop(f"blocks.{i}.attn.rope.freqs") for i in range(depth)]
        out["rope.freqs"] = joined([part.reshaped(2, 1, *part.shape[1:]) for part in parts], axis=1)
    for i in range(depth):
        attn = f"blocks.{i}.attn"
        if _has_split_attention(spec) and f"{attn}.q_bias" in out:
            out[f"{attn}.q_proj.bias"], out[f"{attn}.v_proj.bias"] = (
                out.pop(f"{attn}.q_bias"),
                out.pop(f"{attn}.v_bias"),
            )
        if _is_parallel(spec):
            _join_parallel(out, f"blocks.{i}")
    return out


def _join_parallel(out: dict[str, Tensor], block: str) -> None:
    out[f"{block}.in_proj.weight"] = joined(
        [out.pop(f"{block}.mlp.fc1.weight"), out.pop(f"{block}.attn.qkv.weight")], axis=0
    )
    bias = out.pop(f"{block}.mlp.fc1.bias")
    if f"{block}.attn.qkv.bias" in out:
        out[f"{block}.in_proj.bias"] = joined([bias, out.pop(f"{block}.attn.qkv.bias")], axis=0)
    else:
        out[f"{block}.mlp_bias"] = bias


# -- config.json ----------------------------------------------------------------------------------

_HYBRIDS = {  # resnet_layers → an architecture whose other fields model_args change
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
_NO_ARGUMENT = {  # fields for which timm has classes, and no argument that JSON could hold
    "norm": "layernorm",
    "qk_norm": None,
    "mlp": "plain",
    "mlp_norm": False,
    "pool_heads": None,
    "pool_mlp_ratio": None,
    "pos_embed": "learned",
    "resnet_width": 1.0,
}


def _architecture(spec: Spec) -> str | None:
    """The architecture of timm's that rebuilds a model, given model_args; None where none does."""
    if spec.get("patch_bias", True) == bool(spec.get("norm_pre")):  # one goes with the other in timm
        return None
    if timm_class(spec) != "vit" or any(spec.get(name, plain) != plain for name, plain in _NO_ARGUMENT.items()):
        return None
    layers, block = spec.get("resnet_layers"), spec.get("block", "pre")
    if block != "pre":
        return "vit_base_patch16_rpn_224" if block == "post" and layers is None else None
    if spec.get("distillation"):
        return "deit_base_distilled_patch16_224" if layers is None else None
    if layers is not None:
        return _HYBRIDS.get(tuple(layers))
    of_clip = spec.get("epsilon", 1e-6) > 3e-6  # 1e-5, which no argument of timm's states, and not 1e-6
    return "vit_base_patch16_clip_224" if of_clip else "vit_base_patch16_224"


def _stated(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as ViTSpec has them: pool_include_prefix says of an average that it is one of all tokens."""
    if "rope" in fields and fields.pop("rope") is False:
        fields["rope"] = None
    if fields.get("pool") == "map":
        return fields
    whole = fields.pop("pool_prefix", False)
    return {**fields, "pool": "all"} if whole and fields.get("pool") == "avg" else fields


# arguments of timm's that arrays show, or that change no logit
_SEEN = """
    num_classes weight_init fix_init dynamic_img_size dynamic_img_pad strict_img_size qk_norm scale_attn_norm
    scale_mlp_norm proj_bias pos_embed norm_layer embed_norm_layer drop_rate pos_drop_rate patch_drop_rate
    proj_drop_rate attn_drop_rate drop_path_rate swiglu_mlp scale_mlp scale_attn_inner qkv_fused use_abs_pos_emb
    use_rel_pos_bias use_fc_norm use_pre_transformer_norm head_init_scale num_reg_tokens cache_rope_embed
"""


CONFIG = Timm(
    architecture=_architecture,
    stated=_stated,
    seen=frozenset(_SEEN.split()),
    read_only=(
        Setting("use_rot_pos_emb", "rope", stated=True),
        Setting("rope_temperature", "rope_temperature", stated=True),
        Setting("ref_feat_shape", "rope_reference", stated=True),
    ),
    derived=lambda spec: {"pool_include_prefix": spec["pool"] == "map" and spec.get("pool_prefix", True)},
    settings=(
        Setting("img_size", "img_size", stated=True),
        Setting("patch_size", "patch_size"),
        Setting("in_chans", "in_chans"),
        Setting("embed_dim", "embed_dim"),
        Setting("depth", "depth"),
        Setting("num_heads", "num_heads", stated=True),
        Setting("mlp_ratio", "mlp_ratio"),
        Setting("qkv_bias", "qkv_bias"),
        Setting("init_values", "layer_scale"),
        Setting("class_token", "class_token"),
        Setting("reg_tokens", "reg_tokens"),
        Setting("no_embed_class", "no_embed_class", stated=True),
        Setting("global_pool", "pool", {"token": "token", "avg": "avg", "map": "map"}, stated=True),
        Setting("pool_include_prefix", "pool_prefix", stated=True),
        Setting("pre_norm", "norm_pre"),
        Setting("fc_norm", "fc_norm"),
        Setting("final_norm", "final_norm"),
        Setting(
            "act_layer",
            "act",
            {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"},
            stated=True,
        ),
    ),
)

TIMM = Layout(
    name="timm",
    title="timm",
    open=_open,
    close=_close,
    own_names=True,
    facts=_facts,
    guesses=_guesses,
    refuse=_refusal,
    timm=CONFIG,
    lacks=lacks(
        "pool_prefix",
        "pool_heads",
        "pool_mlp_ratio",
        "fc_norm",
        "final_norm",
        "norm",
        "norm_pre",
        "patch_bias",
        "class_token",
        "reg_tokens",
        "pos_embed",
        "no_embed_class",
        "rope",
        "rel_pos_bias",
        "qkv_bias",
        "k_bias",
        "qk_norm",
        "attn_norm",
        "mlp",
        "mlp_norm",
        "block",
        "layer_scale",
        "act",
        "epsilon",
        "resnet_layers",
        pool=("token", "avg", "map"),
        distillation=(None, "heads"),
    ),
    rules=(
        Rule("pos_embed", "pos_embed", POSITION),
        Rule(f"{BACKBONE}.stem.conv.weight", f"{BACKBONE}.conv.weight", written=_is_stem_alone),
        Rule(f"{BACKBONE}.stem.norm.{{p}}", f"{BACKBONE}.norm.{{p}}", written=_is_stem_alone),
        Rule("head0.{p}", "pre_logits.<fc.|>{p}", written=never),
        Rule("reg_token", "<storage_tokens|register_tokens>", written=never),
        qkv("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.{part}.{p}", ("q", "k", "v"), written=never),
        qkv(
            "blocks.{i}.attn.qkv.{p}",
            "blocks.{i}.attn.{part}_proj.{p}",
            ("q", "k", "v"),
            written=_has_split_attention,
        ),
        Rule("blocks.{i}.attn.norm.{p}", "blocks.{i}.attn.inner_attn_ln.{p}", written=never),
        Rule("blocks.{i}.attn.rel_pos_bias.table", "blocks.{i}.attn.relative_position_bias_table"),
        Rule("blocks.{i}.ls{n}.gamma", "blocks.{i}.gamma_{n}", written=_of_eva_or_beit),
        # SwiGLU of EVA in two matrices, of DINOv2 in one
        Rule(
            "blocks.{i}.mlp.fc1.{p}",
            ("blocks.{i}.mlp.<fc1_g|w1>.{p}", "blocks.{i}.mlp.<fc1_x|w2>.{p}"),
            written=_has_split_gate,
        ),
        Rule("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.w12.{p}", written=never),
        Rule("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.w3.{p}", written=never),
        Rule("blocks.{i}.mlp.norm.{p}", "blocks.{i}.mlp.ffn_ln.{p}", written=never),
        # ParallelScalingBlock
        Rule("blocks.{i}.norm1.{p}", "blocks.{i}.in_norm.{p}", written=_is_parallel),
        Rule("blocks.{i}.attn.q_norm.{p}", "blocks.{i}.q_norm.{p}", written=_is_parallel),
        Rule("blocks.{i}.attn.k_norm.{p}", "blocks.{i}.k_norm.{p}", written=_is_parallel),
        Rule("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn_out_proj.{p}", written=_is_parallel),
        Rule("blocks.{i}.mlp.fc1.bias", "blocks.{i}.mlp_bias", written=never),
        Rule("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp_out_proj.{p}", written=_is_parallel),
        Rule("blocks.{i}.ls1.gamma", "blocks.{i}.ls.gamma", written=_is_parallel),
    ),
)
