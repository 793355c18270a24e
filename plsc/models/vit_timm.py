"""What timm calls the arrays of Vision Transformers; PLSC, whose matrices are [in, out], has the same names."""

from plsc.models.vit_parts import BACKBONE, NO_PRE_LOGITS, NO_SCALE, POSITION, qkv, stated
from plsc.weights.layouts import Layout, Rule, Spec, never


def _is_stem_alone(spec: Spec) -> bool:
    return spec.get("resnet_layers") in ((), [])


TIMM = Layout(  # and PLSC's, whose matrices are [in, out]
    name="timm",
    title="timm",
    probe="patch_embed.proj.weight",
    own_names=True,
    facts=stated,
    lacks=(NO_PRE_LOGITS, NO_SCALE),
    rules=(
        Rule("pos_embed", "pos_embed", POSITION),
        Rule(f"{BACKBONE}.stem.conv.weight", f"{BACKBONE}.conv.weight", written=_is_stem_alone),
        Rule(f"{BACKBONE}.stem.norm.{{p}}", f"{BACKBONE}.norm.{{p}}", written=_is_stem_alone),
        Rule("head0.{p}", "pre_logits.<fc.|>{p}", written=never),
        Rule("reg_token", "<storage_tokens|register_tokens>", written=never),
        qkv("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.{part}.{p}", ("q", "k", "v"), written=never),
    ),
)
