"""Every size by name, in PLSC's spelling. A factory takes any field of ViTSpec over its own. Imports no Paddle.

Widths, depths and heads: ViT paper table 1; "Scaling Vision Transformers" (g, G); DeiT; "How to
train your ViT" (tiny, small); the others by their published weights, at the size of these. base and large of ViT at
224 px have PLSC's tanh pre-logits and its head (xavier, bias -10); at 384 px, the resolution of fine-tuning, neither.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plsc.models.spec import ViTSpec
from plsc.registry import MODELS

if TYPE_CHECKING:
    from plsc.models.vision_transformer import VisionTransformer

_TINY = dict(embed_dim=192, depth=12, num_heads=3)
_SMALL = dict(embed_dim=384, depth=12, num_heads=6)
_BASE = dict(embed_dim=768, depth=12, num_heads=12)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
_HUGE = dict(embed_dim=1280, depth=32, num_heads=16)
_GIANT = dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=4.364)
_GIGANTIC = dict(embed_dim=1664, depth=48, num_heads=16, mlp_ratio=4.9231)
_6B = dict(embed_dim=2320, depth=80, num_heads=16, mlp_ratio=4.955)
_DEIT = dict(weight_init="timm", head_init="scheme")
_DISTILLED = dict(_DEIT, distillation="heads")
_DEIT3 = dict(_DEIT, layer_scale=1e-6, no_embed_class=True, drop_path_uniform=True)
_MEDIUM = dict(embed_dim=512, depth=12, num_heads=8)
_SWIGLU = dict(mlp="swiglu", mlp_ratio=8 / 3)
_DINOV2 = dict(_DEIT, img_size=518, patch_size=14, layer_scale=1e-5)
_DINOV2_GIANT = dict(embed_dim=1536, depth=40, num_heads=24, **_SWIGLU)
_REGISTERS = dict(reg_tokens=4, no_embed_class=True)
_DINOV3 = dict(
    _DEIT, layer_scale=1e-5, reg_tokens=4, pos_embed="none", rope="centred", rope_temperature=100.0, k_bias=False,
    epsilon=1e-5,
)  # fmt: skip
_HUGE_PLUS = dict(embed_dim=1280, depth=32, num_heads=20, mlp="swiglu")
_7B = dict(embed_dim=4096, depth=40, num_heads=32, mlp="swiglu", mlp_ratio=2.0)
_SO400M = dict(embed_dim=1152, depth=27, num_heads=16, mlp_ratio=4304 / 1152)
_SIGLIP = dict(class_token=False, pool="map", act="gelu_tanh")
_CLIP = dict(norm_pre=True, patch_bias=False, epsilon=1e-5)
_OPENAI = dict(_CLIP, act="quick_gelu")
_EVA02 = dict(
    _DEIT, patch_size=14, rope="axial", rope_temperature=10000.0, rope_reference=16, k_bias=False, pool="avg",
    fc_norm=True, **_SWIGLU,
)  # fmt: skip
_EVA02_NORM = dict(_EVA02, mlp_norm=True)
_BEIT = dict(_DEIT, pos_embed="none", rel_pos_bias=True, k_bias=False, pool="avg", fc_norm=True, layer_scale=0.1)
_BEIT_LARGE = dict(_LARGE | _BEIT, layer_scale=1e-5)
_STEM, _R26_32, _R50_16, _R50_32 = (), (2, 2, 2, 2), (3, 4, 9), (3, 4, 6, 3)


def _plsc(size: dict, img_size: int, patch_size: int = 16) -> dict[str, Any]:
    """PLSC's two forms: pre-training at 224 px with pre-logits, fine-tuning at 384 px without."""
    preset = dict(size, img_size=img_size, patch_size=patch_size, weight_init="plsc")
    if img_size == 224:
        preset.update(representation_size=size["embed_dim"], head_init="scheme", head_bias=-10.0)
    return preset


def _hybrid(size: dict, layers: tuple, img_size: int, patch_size: int = 1) -> dict[str, Any]:
    """A ResNet before the transformer; the patch is one of the feature map."""
    return dict(size, resnet_layers=layers, img_size=img_size, patch_size=patch_size)


# name → (what it is, fields of ViTSpec)
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "VisionTransformer": ("Any Vision Transformer, built from its fields.", {}),
    "ViT_tiny_patch16_224": ("ViT-Ti/16 at 224 px.", _TINY),
    "ViT_tiny_patch16_384": ("ViT-Ti/16 at 384 px.", dict(_TINY, img_size=384)),
    "ViT_small_patch16_224": ("ViT-S/16 at 224 px.", _SMALL),
    "ViT_small_patch16_384": ("ViT-S/16 at 384 px.", dict(_SMALL, img_size=384)),
    "ViT_small_patch32_224": ("ViT-S/32 at 224 px.", dict(_SMALL, patch_size=32)),
    "ViT_small_patch32_384": ("ViT-S/32 at 384 px.", dict(_SMALL, patch_size=32, img_size=384)),
    "ViT_base_patch16_224": ("ViT-B/16 at 224 px, with pre-logits.", _plsc(_BASE, 224)),
    "ViT_base_patch16_384": ("ViT-B/16 at 384 px.", _plsc(_BASE, 384)),
    "ViT_base_patch32_224": ("ViT-B/32 at 224 px, with pre-logits.", _plsc(_BASE, 224, 32)),
    "ViT_base_patch32_384": ("ViT-B/32 at 384 px.", _plsc(_BASE, 384, 32)),
    "ViT_large_patch16_224": ("ViT-L/16 at 224 px, with pre-logits.", _plsc(_LARGE, 224)),
    "ViT_large_patch16_384": ("ViT-L/16 at 384 px.", _plsc(_LARGE, 384)),
    "ViT_large_patch32_224": ("ViT-L/32 at 224 px, with pre-logits.", _plsc(_LARGE, 224, 32)),
    "ViT_large_patch32_384": ("ViT-L/32 at 384 px.", _plsc(_LARGE, 384, 32)),
    "ViT_huge_patch14_224": ("ViT-H/14 at 224 px, with pre-logits.", _plsc(_HUGE, 224, 14)),
    "ViT_huge_patch14_384": ("ViT-H/14 at 384 px.", _plsc(_HUGE, 384, 14)),
    "ViT_g_patch14_224": ("ViT-g/14 (giant) at 224 px, with pre-logits.", _plsc(_GIANT, 224, 14)),
    "ViT_G_patch14_224": ("ViT-G/14 (gigantic) at 224 px, with pre-logits.", _plsc(_GIGANTIC, 224, 14)),
    "ViT_6B_patch14_224": ("ViT-6B/14, of 6 billion parameters, at 224 px, with pre-logits.", _plsc(_6B, 224, 14)),
    "R_ViT_tiny_patch16_224": (
        "R+Ti/16 of AugReg at 224 px: ResNet stem, 8 x 8 patches of its features.",
        _hybrid(_TINY, _STEM, 224, 8),
    ),
    "R_ViT_tiny_patch16_384": ("R+Ti/16 at 384 px.", _hybrid(_TINY, _STEM, 384, 8)),
    "R_ViT_small_patch16_224": ("R+S/16 at 224 px.", _hybrid(_SMALL, _STEM, 224, 8)),
    "R26_ViT_small_patch32_224": ("R26+S/32 at 224 px.", _hybrid(_SMALL, _R26_32, 224)),
    "R26_ViT_small_patch32_384": ("R26+S/32 at 384 px.", _hybrid(_SMALL, _R26_32, 384)),
    "R26_ViT_base_patch32_224": ("R26+B/32 at 224 px.", _hybrid(_BASE, _R26_32, 224)),
    "R26_ViT_large_patch32_224": ("R26+L/32 at 224 px.", _hybrid(_LARGE, _R26_32, 224)),
    "R26_ViT_large_patch32_384": ("R26+L/32 at 384 px.", _hybrid(_LARGE, _R26_32, 384)),
    "R50_ViT_base_patch16_224": ("R50+B/16 at 224 px.", _hybrid(_BASE, _R50_16, 224)),
    "R50_ViT_base_patch16_384": ("R50+B/16 at 384 px.", _hybrid(_BASE, _R50_16, 384)),
    "R50_ViT_large_patch32_224": ("R50+L/32 at 224 px.", _hybrid(_LARGE, _R50_32, 224)),
    "R50_ViT_large_patch32_384": ("R50+L/32 at 384 px.", _hybrid(_LARGE, _R50_32, 384)),
    "DeiT_tiny_patch16_224": ("DeiT-Ti/16 at 224 px.", _TINY | _DEIT),
    "DeiT_small_patch16_224": ("DeiT-S/16 at 224 px.", _SMALL | _DEIT),
    "DeiT_base_patch16_224": ("DeiT-B/16 at 224 px.", _BASE | _DEIT),
    "DeiT_base_patch16_384": ("DeiT-B/16 at 384 px.", dict(_BASE | _DEIT, img_size=384)),
    "DeiT_tiny_distilled_patch16_224": ("DeiT-Ti/16 with distillation token, at 224 px.", _TINY | _DISTILLED),
    "DeiT_small_distilled_patch16_224": ("DeiT-S/16 with distillation token, at 224 px.", _SMALL | _DISTILLED),
    "DeiT_base_distilled_patch16_224": ("DeiT-B/16 with distillation token, at 224 px.", _BASE | _DISTILLED),
    "DeiT_base_distilled_patch16_384": (
        "DeiT-B/16 with distillation token, at 384 px.",
        dict(_BASE | _DISTILLED, img_size=384),
    ),
    "DeiT3_small_patch16_224": ("DeiT III-S/16 at 224 px.", _SMALL | _DEIT3),
    "DeiT3_small_patch16_384": ("DeiT III-S/16 at 384 px.", dict(_SMALL | _DEIT3, img_size=384)),
    "DeiT3_medium_patch16_224": ("DeiT III-M/16 at 224 px.", _MEDIUM | _DEIT3),
    "DeiT3_base_patch16_224": ("DeiT III-B/16 at 224 px.", _BASE | _DEIT3),
    "DeiT3_base_patch16_384": ("DeiT III-B/16 at 384 px.", dict(_BASE | _DEIT3, img_size=384)),
    "DeiT3_large_patch16_224": ("DeiT III-L/16 at 224 px.", _LARGE | _DEIT3),
    "DeiT3_large_patch16_384": ("DeiT III-L/16 at 384 px.", dict(_LARGE | _DEIT3, img_size=384)),
    "DeiT3_huge_patch14_224": ("DeiT III-H/14 at 224 px.", dict(_HUGE | _DEIT3, patch_size=14)),
    "DINOv2_small_patch14_518": ("DINOv2-S/14 at 518 px.", _SMALL | _DINOV2),
    "DINOv2_base_patch14_518": ("DINOv2-B/14 at 518 px.", _BASE | _DINOV2),
    "DINOv2_large_patch14_518": ("DINOv2-L/14 at 518 px.", _LARGE | _DINOV2),
    "DINOv2_giant_patch14_518": ("DINOv2-g/14 at 518 px, with SwiGLU.", _DINOV2_GIANT | _DINOV2),
    "DINOv2_small_patch14_reg4_518": ("DINOv2-S/14 with 4 registers, at 518 px.", _SMALL | _DINOV2 | _REGISTERS),
    "DINOv2_base_patch14_reg4_518": ("DINOv2-B/14 with 4 registers, at 518 px.", _BASE | _DINOV2 | _REGISTERS),
    "DINOv2_large_patch14_reg4_518": ("DINOv2-L/14 with 4 registers, at 518 px.", _LARGE | _DINOV2 | _REGISTERS),
    "DINOv2_giant_patch14_reg4_518": (
        "DINOv2-g/14 with 4 registers, at 518 px, with SwiGLU.",
        _DINOV2_GIANT | _DINOV2 | _REGISTERS,
    ),
    "DINOv3_small_patch16_224": ("DINOv3-S/16 at 224 px.", _SMALL | _DINOV3),
    "DINOv3_small_plus_patch16_224": ("DINOv3-S+/16 at 224 px, with SwiGLU.", dict(_SMALL | _DINOV3, mlp="swiglu")),
    "DINOv3_base_patch16_224": ("DINOv3-B/16 at 224 px.", _BASE | _DINOV3),
    "DINOv3_large_patch16_224": ("DINOv3-L/16 at 224 px.", _LARGE | _DINOV3),
    "DINOv3_huge_plus_patch16_224": ("DINOv3-H+/16 at 224 px, with SwiGLU.", _HUGE_PLUS | _DINOV3),
    "DINOv3_7B_patch16_224": ("DINOv3-7B/16 at 224 px, with SwiGLU.", _7B | _DINOV3),
    "SigLIP_base_patch16_224": ("SigLIP-B/16 at 224 px, with attention pooling.", _BASE | _SIGLIP),
    "SigLIP_large_patch16_256": ("SigLIP-L/16 at 256 px.", dict(_LARGE | _SIGLIP, img_size=256)),
    "SigLIP_so400m_patch14_224": ("SigLIP-So400m/14 at 224 px.", dict(_SO400M | _SIGLIP, patch_size=14)),
    "SigLIP_so400m_patch14_384": ("SigLIP-So400m/14 at 384 px.", dict(_SO400M | _SIGLIP, patch_size=14, img_size=384)),
    "SigLIP_so400m_patch16_256": ("SigLIP 2-So400m/16 at 256 px.", dict(_SO400M | _SIGLIP, img_size=256)),
    "SigLIP_so400m_patch16_384": ("SigLIP 2-So400m/16 at 384 px.", dict(_SO400M | _SIGLIP, img_size=384)),
    "SigLIP_so400m_patch16_512": ("SigLIP 2-So400m/16 at 512 px.", dict(_SO400M | _SIGLIP, img_size=512)),
    "CLIP_base_patch32_224": ("CLIP's ViT-B/32 of OpenAI at 224 px.", dict(_BASE | _OPENAI, patch_size=32)),
    "CLIP_base_patch16_224": ("CLIP's ViT-B/16 of OpenAI at 224 px.", _BASE | _OPENAI),
    "CLIP_large_patch14_224": ("CLIP's ViT-L/14 of OpenAI at 224 px.", dict(_LARGE | _OPENAI, patch_size=14)),
    "CLIP_large_patch14_336": (
        "CLIP's ViT-L/14 of OpenAI at 336 px.",
        dict(_LARGE | _OPENAI, patch_size=14, img_size=336),
    ),
    "CLIP_huge_patch14_224": ("OpenCLIP's ViT-H/14 at 224 px, with exact GELU.", dict(_HUGE | _CLIP, patch_size=14)),
    "EVA02_tiny_patch14_336": ("EVA-02-Ti/14 at 336 px.", dict(_TINY | _EVA02, img_size=336)),
    "EVA02_small_patch14_336": ("EVA-02-S/14 at 336 px.", dict(_SMALL | _EVA02, img_size=336)),
    "EVA02_base_patch14_448": ("EVA-02-B/14 at 448 px.", dict(_BASE | _EVA02_NORM, img_size=448)),
    "EVA02_large_patch14_448": ("EVA-02-L/14 at 448 px.", dict(_LARGE | _EVA02_NORM, img_size=448)),
    "BEiT_base_patch16_224": ("BEiT-B/16 at 224 px.", _BASE | _BEIT),
    "BEiT_base_patch16_384": ("BEiT-B/16 at 384 px.", dict(_BASE | _BEIT, img_size=384)),
    "BEiT_large_patch16_224": ("BEiT-L/16 at 224 px.", _BEIT_LARGE),
    "BEiT_large_patch16_384": ("BEiT-L/16 at 384 px.", dict(_BEIT_LARGE, img_size=384)),
    "BEiT_large_patch16_512": ("BEiT-L/16 at 512 px.", dict(_BEIT_LARGE, img_size=512)),
}
ALIASES = {
    "VisionTransformer": ("ViT",),
    "ViT_g_patch14_224": ("ViT_giant_patch14_224",),
    "ViT_G_patch14_224": ("ViT_gigantic_patch14_224",),
}


def _factory(name: str, summary: str, preset: dict[str, Any]) -> Callable[..., "VisionTransformer"]:
    """A function: fields of ViTSpec → VisionTransformer."""

    def build(**fields: Any) -> "VisionTransformer":
        from plsc.models.vision_transformer import VisionTransformer

        return VisionTransformer(ViTSpec(**{**preset, **fields}))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = summary
    signature = inspect.Signature(
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=preset.get(field.name, field.default),
                annotation=field.type,
            )
            for field in dataclasses.fields(ViTSpec)
        ]
    )
    setattr(build, "__signature__", signature)  # noqa: B010 a function type has no such attribute
    return build


for _name, (_summary, _preset) in PRESETS.items():
    MODELS.register(_name, aliases=ALIASES.get(_name, ()))(_factory(_name, _summary, _preset))
