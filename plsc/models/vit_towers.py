"""What Hugging Face's transformers calls the arrays of vision towers, the Vision Transformers of CLIP and SigLIP.

Only the tower of pictures is read; the text's is left out.
"""

from typing import Any

import numpy as np

from plsc.models.vit_huggingface import settings, width_of_mlp
from plsc.models.vit_parts import ROWS, TOKEN, Need, lacks, qkv, stated, without_zeros, zeros
from plsc.weights.layouts import HuggingFace, Lack, Layout, Rule, Spec, Tensors, never, unwrapped
from plsc.weights.tensors import Tensor, joined

# -- both -----------------------------------------------------------------------------------------

_TOWER_PREFIXES = ("vision_model.", "model.vision_model.")


def _open_tower(tensors: Tensors, *, clip: bool) -> dict[str, Tensor] | None:
    """The arrays of the tower of pictures alone; its projection is a head without bias."""
    out = unwrapped(tensors, "embeddings.patch_embedding.weight", _TOWER_PREFIXES)
    if out is None or ("embeddings.class_embedding" in out) != clip:
        return None
    others = ("text_model.", "text_projection.", "logit_scale", "logit_bias", "embeddings.position_ids")
    out = {name: tensor for name, tensor in out.items() if not name.startswith(others)}
    if "visual_projection.weight" in out:
        out["visual_projection.bias"] = zeros(out["visual_projection.weight"].shape[0])
    if "classifier.weight" in out:  # a head on the mean of patches, past what else could pool them
        unused = ("post_layernorm.", "visual_projection.") if clip else ("head.",)
        out = {name: tensor for name, tensor in out.items() if not name.startswith(unused)}
    return out


_TOWER = (
    Rule("pos_embed", "embeddings.position_embedding.weight", ROWS),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    Rule("blocks.{i}.norm{n}.{p}", "encoder.layers.{i}.layer_norm{n}.{p}"),
    qkv("blocks.{i}.attn.qkv.{p}", "encoder.layers.{i}.self_attn.{part}_proj.{p}", ("q", "k", "v")),
    Rule("blocks.{i}.attn.proj.{p}", "encoder.layers.{i}.self_attn.out_proj.{p}"),
    Rule("blocks.{i}.mlp.fc{n}.{p}", "encoder.layers.{i}.mlp.fc{n}.{p}"),
    Rule("norm.{p}", "post_layernorm.{p}"),
)

# -- CLIP -----------------------------------------------------------------------------------------


def _clip_facts(theirs: Tensors, ours: Tensors) -> dict[str, Any]:
    facts = {**stated(theirs, ours), "epsilon": 1e-5}
    return facts | {"pool": "avg" if "classifier.weight" in theirs else "token"}


def _close_clip(tensors: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    without_zeros(tensors, "visual_projection.bias", "CLIP's projection has no bias")
    return {k if k.startswith("visual_projection.") else f"vision_model.{k}": t for k, t in tensors.items()}


def _clip_config(spec: Spec) -> dict[str, Any]:
    vision = {**width_of_mlp(spec), "projection_dim": spec["class_num"] or 512}
    return vision | {"architectures": ["CLIPVisionModelWithProjection" if spec["class_num"] else "CLIPVisionModel"]}


_CLIP_RULES = (
    Rule("cls_token", "embeddings.class_embedding", TOKEN),
    Rule("norm_pre.{p}", "pre_layrnorm.{p}"),
    *_TOWER,
)

CLIP = Layout(
    name="huggingface",
    title="Hugging Face's CLIP",
    open=lambda tensors: _open_tower(tensors, clip=True),
    close=_close_clip,
    container="folder",
    facts=_clip_facts,
    fixed={"qk_scale": None},
    lacks=lacks("act", "epsilon", norm_pre=(True,), patch_bias=(False,)),
    rules=(
        *_CLIP_RULES,
        Rule("head.{p}", "visual_projection.{p}"),
        Rule("head.{p}", "classifier.{p}", written=never),
    ),
    huggingface=HuggingFace(
        architectures=("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        constants={"model_type": "clip_vision_model", "attention_dropout": 0.0, "dtype": "float32"},
        derived=_clip_config,
        settings=settings(1e-5),
    ),
)


def _close_clip_classifier(tensors: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    """The tower's last norm is there, though nothing that this class computes goes through it."""
    width = spec["embed_dim"]
    unused = {"post_layernorm.weight": Tensor.of(np.ones(width, "float32")), "post_layernorm.bias": zeros(width)}
    return {k if k.startswith("classifier.") else f"vision_model.{k}": t for k, t in {**tensors, **unused}.items()}


CLIP_CLASSIFIER = Layout(
    name="huggingface",
    title="Hugging Face's CLIP for classification",
    open=lambda tensors: None,  # read as a CLIP
    close=_close_clip_classifier,
    container="folder",
    lacks=(
        *lacks("act", "epsilon", norm_pre=(True,), patch_bias=(False,), pool=("avg",), final_norm=(False,)),
        Need("class_num", "a classifier"),
    ),
    rules=(*_CLIP_RULES, Rule("head.{p}", "classifier.{p}")),
    huggingface=HuggingFace(
        architectures=("CLIPForImageClassification", "CLIPForImageClassification"),
        constants={"model_type": "clip", "dtype": "float32"},
        derived=width_of_mlp,
        settings=settings(1e-5),
        tower="vision_config",
    ),
)

# -- SigLIP ---------------------------------------------------------------------------------------


def _open_siglip(tensors: Tensors) -> dict[str, Tensor] | None:
    """torch's attention has query, key and value in one matrix; pooling has the query by itself."""
    out = _open_tower(tensors, clip=False)
    if out is None:
        return None
    for kind in ("weight", "bias"):
        whole = out.pop(f"head.attention.in_proj_{kind}", None)
        if whole is not None:
            width = whole.shape[0] // 3
            out[f"head.attention.q.{kind}"], out[f"head.attention.kv.{kind}"] = whole.rows(0, width), whole.rows(width)
    return out


def _is_naflex(theirs: Tensors) -> str | None:
    if len(theirs["embeddings.patch_embedding.weight"].shape) == 2:
        return "is a SigLIP 2 of any grid (NaFlex), whose patches come as a sequence; those of a fixed size open"
    return None


def _close_siglip(tensors: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    out = dict(tensors)
    for kind in ("weight", "bias"):
        parts = [out.pop(f"head.attention.{part}.{kind}") for part in ("q", "kv")]
        out[f"head.attention.in_proj_{kind}"] = joined(parts, axis=0)
    return out


SIGLIP = Layout(  # and SigLIP 2 of fixed size
    name="huggingface",
    title="Hugging Face's SigLIP",
    open=_open_siglip,
    refuse=_is_naflex,
    close=_close_siglip,
    container="folder",
    facts=stated,
    fixed={"qk_scale": None},
    lacks=(
        *lacks("act", "epsilon", class_token=(False,), pool=("map",)),
        Lack("class_num", "a classifier after attention pooling (--backbone leaves it out)", (0,)),
    ),
    rules=(
        *_TOWER,
        Rule("attn_pool.latent", "head.probe"),
        Rule("attn_pool.q.{p}", "head.attention.q.{p}"),
        Rule("attn_pool.kv.{p}", "head.attention.kv.{p}"),
        Rule("attn_pool.proj.{p}", "head.attention.out_proj.{p}"),
        Rule("attn_pool.norm.{p}", "head.layernorm.{p}"),
        Rule("attn_pool.mlp.fc{n}.{p}", "head.mlp.fc{n}.{p}"),
        Rule("head.{p}", "classifier.{p}", written=never),
    ),
    huggingface=HuggingFace(
        architectures=("SiglipVisionModel", "SiglipVisionModel"),
        constants={"model_type": "siglip_vision_model", "attention_dropout": 0.0, "dtype": "float32"},
        derived=width_of_mlp,
        settings=settings(1e-6),
    ),
)

LAYOUTS = (CLIP, CLIP_CLASSIFIER, SIGLIP)
