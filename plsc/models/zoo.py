"""Every size by name, in PLSC's spelling. A factory takes any field of ViTSpec over its own.

Widths, depths and heads: ViT paper table 1; "Scaling Vision Transformers" (g, G); DeiT; "How to
train your ViT" (tiny, small). base and large at 224 px have PLSC's tanh pre-logits and its head
(xavier, bias -10); at 384 px, the resolution of fine-tuning, neither.
"""

import dataclasses
import inspect

from plsc.models.vision_transformer import VisionTransformer, ViTSpec
from plsc.registry import MODELS


def _factory(name: str, summary: str, *, aliases=(), **preset):
    """Register and return a function: fields of ViTSpec → VisionTransformer."""

    def build(**fields) -> VisionTransformer:
        return VisionTransformer(ViTSpec(**{**preset, **fields}))

    defaults = {f.name: preset.get(f.name, f.default) for f in dataclasses.fields(ViTSpec)}
    build.__name__ = build.__qualname__ = name
    build.__doc__ = summary
    build.__signature__ = inspect.Signature(
        [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=defaults[f.name], annotation=f.type)
            for f in dataclasses.fields(ViTSpec)
        ]
    )
    return MODELS.register(name, aliases=aliases)(build)


_TINY = dict(embed_dim=192, depth=12, num_heads=3)
_SMALL = dict(embed_dim=384, depth=12, num_heads=6)
_BASE = dict(embed_dim=768, depth=12, num_heads=12)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
_HUGE = dict(embed_dim=1280, depth=32, num_heads=16)
_g = dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=4.364)
_G = dict(embed_dim=1664, depth=48, num_heads=16, mlp_ratio=4.9231)
_6B = dict(embed_dim=2320, depth=80, num_heads=16, mlp_ratio=4.955)


def _plsc(size: dict, img_size: int) -> dict:
    """PLSC's two forms: pre-training at 224 px with pre-logits, fine-tuning at 384 px without."""
    preset = dict(size, img_size=img_size, weight_init="plsc")
    if img_size == 224:
        preset.update(representation_size=size["embed_dim"], head_init="scheme", head_bias=-10.0)
    return preset


_DEIT = dict(weight_init="timm", head_init="scheme")

ViT = _factory("VisionTransformer", "Any plain Vision Transformer, built from its fields.", aliases=["ViT"])

ViT_tiny_patch16_224 = _factory("ViT_tiny_patch16_224", "ViT-Ti/16 at 224 px.", **_TINY)
ViT_tiny_patch16_384 = _factory("ViT_tiny_patch16_384", "ViT-Ti/16 at 384 px.", **_TINY, img_size=384)
ViT_small_patch16_224 = _factory("ViT_small_patch16_224", "ViT-S/16 at 224 px.", **_SMALL)
ViT_small_patch16_384 = _factory("ViT_small_patch16_384", "ViT-S/16 at 384 px.", **_SMALL, img_size=384)
ViT_small_patch32_224 = _factory("ViT_small_patch32_224", "ViT-S/32 at 224 px.", **_SMALL, patch_size=32)
ViT_small_patch32_384 = _factory("ViT_small_patch32_384", "ViT-S/32 at 384 px.", **_SMALL, patch_size=32, img_size=384)

ViT_base_patch16_224 = _factory("ViT_base_patch16_224", "ViT-B/16 at 224 px, with pre-logits.", **_plsc(_BASE, 224))
ViT_base_patch16_384 = _factory("ViT_base_patch16_384", "ViT-B/16 at 384 px.", **_plsc(_BASE, 384))
ViT_base_patch32_224 = _factory(
    "ViT_base_patch32_224", "ViT-B/32 at 224 px, with pre-logits.", **_plsc(_BASE, 224), patch_size=32
)
ViT_base_patch32_384 = _factory("ViT_base_patch32_384", "ViT-B/32 at 384 px.", **_plsc(_BASE, 384), patch_size=32)
ViT_large_patch16_224 = _factory("ViT_large_patch16_224", "ViT-L/16 at 224 px, with pre-logits.", **_plsc(_LARGE, 224))
ViT_large_patch16_384 = _factory("ViT_large_patch16_384", "ViT-L/16 at 384 px.", **_plsc(_LARGE, 384))
ViT_large_patch32_224 = _factory(
    "ViT_large_patch32_224", "ViT-L/32 at 224 px, with pre-logits.", **_plsc(_LARGE, 224), patch_size=32
)
ViT_large_patch32_384 = _factory("ViT_large_patch32_384", "ViT-L/32 at 384 px.", **_plsc(_LARGE, 384), patch_size=32)
ViT_huge_patch14_224 = _factory(
    "ViT_huge_patch14_224", "ViT-H/14 at 224 px, with pre-logits.", **_plsc(_HUGE, 224), patch_size=14
)
ViT_huge_patch14_384 = _factory("ViT_huge_patch14_384", "ViT-H/14 at 384 px.", **_plsc(_HUGE, 384), patch_size=14)
ViT_g_patch14_224 = _factory(
    "ViT_g_patch14_224",
    "ViT-g/14 (giant) at 224 px, with pre-logits.",
    aliases=["ViT_giant_patch14_224"],
    **_plsc(_g, 224),
    patch_size=14,
)
ViT_G_patch14_224 = _factory(
    "ViT_G_patch14_224",
    "ViT-G/14 (gigantic) at 224 px, with pre-logits.",
    aliases=["ViT_gigantic_patch14_224"],
    **_plsc(_G, 224),
    patch_size=14,
)
ViT_6B_patch14_224 = _factory(
    "ViT_6B_patch14_224", "A ViT/14 of six thousand million weights at 224 px.", **_plsc(_6B, 224), patch_size=14
)

_R50_16, _R50_32, _R26_32 = (3, 4, 9), (3, 4, 6, 3), (2, 2, 2, 2)


def _hybrid(size: dict, layers: tuple, img_size: int, patch_size: int = 1) -> dict:
    """A ResNet before the transformer; the patch is one of the feature map."""
    return dict(size, resnet_layers=layers, img_size=img_size, patch_size=patch_size)


R_ViT_tiny_patch16_224 = _factory(
    "R_ViT_tiny_patch16_224",
    "R+Ti/16 of AugReg at 224 px: ResNet stem, 8 x 8 patches of its features.",
    **_hybrid(_TINY, (), 224, 8),
)
R_ViT_tiny_patch16_384 = _factory("R_ViT_tiny_patch16_384", "R+Ti/16 at 384 px.", **_hybrid(_TINY, (), 384, 8))
R_ViT_small_patch16_224 = _factory("R_ViT_small_patch16_224", "R+S/16 at 224 px.", **_hybrid(_SMALL, (), 224, 8))
R26_ViT_small_patch32_224 = _factory(
    "R26_ViT_small_patch32_224", "R26+S/32 at 224 px.", **_hybrid(_SMALL, _R26_32, 224)
)
R26_ViT_small_patch32_384 = _factory(
    "R26_ViT_small_patch32_384", "R26+S/32 at 384 px.", **_hybrid(_SMALL, _R26_32, 384)
)
R26_ViT_base_patch32_224 = _factory("R26_ViT_base_patch32_224", "R26+B/32 at 224 px.", **_hybrid(_BASE, _R26_32, 224))
R26_ViT_large_patch32_224 = _factory(
    "R26_ViT_large_patch32_224", "R26+L/32 at 224 px.", **_hybrid(_LARGE, _R26_32, 224)
)
R26_ViT_large_patch32_384 = _factory(
    "R26_ViT_large_patch32_384", "R26+L/32 at 384 px.", **_hybrid(_LARGE, _R26_32, 384)
)
R50_ViT_base_patch16_224 = _factory("R50_ViT_base_patch16_224", "R50+B/16 at 224 px.", **_hybrid(_BASE, _R50_16, 224))
R50_ViT_base_patch16_384 = _factory("R50_ViT_base_patch16_384", "R50+B/16 at 384 px.", **_hybrid(_BASE, _R50_16, 384))
R50_ViT_large_patch32_224 = _factory(
    "R50_ViT_large_patch32_224", "R50+L/32 at 224 px.", **_hybrid(_LARGE, _R50_32, 224)
)
R50_ViT_large_patch32_384 = _factory(
    "R50_ViT_large_patch32_384", "R50+L/32 at 384 px.", **_hybrid(_LARGE, _R50_32, 384)
)

DeiT_tiny_patch16_224 = _factory("DeiT_tiny_patch16_224", "DeiT-Ti/16 at 224 px.", **_TINY, **_DEIT)
DeiT_small_patch16_224 = _factory("DeiT_small_patch16_224", "DeiT-S/16 at 224 px.", **_SMALL, **_DEIT)
DeiT_base_patch16_224 = _factory("DeiT_base_patch16_224", "DeiT-B/16 at 224 px.", **_BASE, **_DEIT)
DeiT_base_patch16_384 = _factory("DeiT_base_patch16_384", "DeiT-B/16 at 384 px.", **_BASE, **_DEIT, img_size=384)
