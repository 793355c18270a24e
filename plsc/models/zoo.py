"""Every size by name, in PLSC's spelling. A factory takes any field of ViTSpec over its own. Imports no Paddle.

Widths, depths and heads: ViT paper table 1; "Scaling Vision Transformers" (g, G); DeiT; "How to
train your ViT" (tiny, small). base and large at 224 px have PLSC's tanh pre-logits and its head
(xavier, bias -10); at 384 px, the resolution of fine-tuning, neither.
"""

import dataclasses
import inspect
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
}
ALIASES = {
    "VisionTransformer": ("ViT",),
    "ViT_g_patch14_224": ("ViT_giant_patch14_224",),
    "ViT_G_patch14_224": ("ViT_gigantic_patch14_224",),
}


def _factory(name: str, summary: str, preset: dict[str, Any]):
    """A function: fields of ViTSpec → VisionTransformer."""

    def build(**fields: Any) -> "VisionTransformer":
        from plsc.models.vision_transformer import VisionTransformer

        return VisionTransformer(ViTSpec(**{**preset, **fields}))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = summary
    build.__signature__ = inspect.Signature(
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
    return build


for _name, (_summary, _preset) in PRESETS.items():
    MODELS.register(_name, aliases=ALIASES.get(_name, ()))(_factory(_name, _summary, _preset))
