"""Published Vision Transformers by name: what no array's shape shows of them.

A file that has the name of one of these, or stands in a folder of that name, is read as it. The values are those of
timm 1.0.31 (modules vision_transformer, deit, vision_transformer_hybrid, eva, beit) and of the configurations with
which the weights of transformers, Meta and torchvision are published. Imports no Paddle.
"""

from collections.abc import Mapping
from typing import Any

from plsc.models.zoo import PRESETS

_HUGGINGFACE = 1e-12  # the epsilon of transformers' ViTConfig, with which its ViTs were published


def _rows(size: tuple[int, int, int], names: str, **other: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and fields of ViTSpec of each of `names`, which spaces separate; `size` is width, depth and heads."""
    width, depth, heads = size
    usual = {"act": "gelu", "epsilon": 1e-6, "qk_scale": None, "pool": "token"}  # shapes show other pooling
    fields = {"embed_dim": width, "depth": depth, "num_heads": heads, **usual, **other}
    return [(name, fields) for name in names.split()]


_ROPE_TIMM += [  # parallel blocks, BEiT-3, RADIO, InternViT
    *_rows((256, 16, 4), "vit_pwee_patch16_reg1_gap_256"),
    *_rows((768, 12, 12), "vit_base_patch16_xp_224 vit_base_patch16_radio_v3"),
    *_rows((768, 12, 12), "beit3_base_patch16_224", epsilon=1e-5),
    *_rows((1024, 24, 16), "vit_large_patch14_xp_224 vit_large_patch16_radio_v3 vit_intern300m_patch14_448"),
    *_rows((1024, 24, 16), "beit3_large_patch16_224", epsilon=1e-5),
    *_rows((1152, 27, 16), "vit_so400m_patch16_radio_v4"),
    *_rows((1280, 32, 16), "vit_huge_patch14_xp_224 vit_huge_patch16_radio_v3 vit_huge_patch16_radio_v4"),
    *_rows((1408, 40, 16), "beit3_giant_patch14_224 beit3_giant_patch14_336", epsilon=1e-5),
    *_rows((1536, 40, 24), "vit_giant_patch16_radio_v3"),
    # DINOv3, and those of its kind
    *_rows((192, 12, 3), "vit_tiny_patch16_dinov3_qkvb", epsilon=1e-5, pool="avg"),
    *_rows(
        (384, 12, 6),
        "vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb vit_small_plus_patch16_dinov3 "
        "vit_small_plus_patch16_dinov3_qkvb",
        epsilon=1e-5,
        pool="avg",
    ),
    *_rows((768, 12, 12), "vit_base_patch16_dinov3 vit_base_patch16_dinov3_qkvb", epsilon=1e-5, pool="avg"),
    *_rows((1024, 24, 16), "vit_large_patch16_dinov3 vit_large_patch16_dinov3_qkvb", epsilon=1e-5, pool="avg"),
    *_rows((1280, 32, 20), "vit_huge_plus_patch16_dinov3 vit_huge_plus_patch16_dinov3_qkvb", epsilon=1e-5, pool="avg"),
    *_rows((4096, 40, 32), "vit_7b_patch16_dinov3", epsilon=1e-5, pool="avg"),
    *_rows((384, 12, 6), "vit_small_patch16_lingbot", epsilon=1e-5),
    *_rows((768, 12, 12), "vit_base_patch16_lingbot", epsilon=1e-5),
    *_rows((1024, 24, 16), "vit_large_patch16_lingbot", epsilon=1e-5),
    *_rows((1536, 40, 24), "vit_giant_patch16_lingbot", epsilon=1e-5),
]

_OTHERS = [
    # Hugging Face
    *_rows((192, 12, 3), "deit-tiny-patch16-224 vit-tiny-patch16-224", epsilon=_HUGGINGFACE),
    *_rows(
        (384, 12, 6),
        "deit-small-patch16-224 vit-small-patch16-224 dino-vits16 dino-vits8",
        epsilon=_HUGGINGFACE,
    ),
    *_rows(
        (768, 12, 12),
        "vit-base-patch16-224 vit-base-patch16-384 vit-base-patch32-224 vit-base-patch32-384 deit-base-patch16-224 "
        "deit-base-patch16-384 dino-vitb16 dino-vitb8 vit-mae-base",
        epsilon=_HUGGINGFACE,
    ),
    *_rows(
        (1024, 24, 16),
        "vit-large-patch16-224 vit-large-patch16-384 vit-large-patch32-224 vit-large-patch32-384 vit-mae-large",
        epsilon=_HUGGINGFACE,
    ),
    *_rows((1280, 32, 16), "vit-huge-patch14-224 vit-mae-huge", epsilon=_HUGGINGFACE),
    # Meta: DINO, DINOv2, MAE, DeiT III
    *_rows(
        (384, 12, 6),
        "dino_deitsmall16_pretrain dino_deitsmall8_pretrain dino_deitsmall8_300ep_pretrain dinov2_vits14_pretrain "
        "dinov2_vits14_reg4_pretrain deit_3_small_224_1k deit_3_small_224_21k deit_3_small_384_1k deit_3_small_384_21k",
    ),
    *_rows((512, 12, 8), "deit_3_medium_224_1k deit_3_medium_224_21k"),
    *_rows((1536, 40, 24), "dinov2_vitg14_pretrain dinov2_vitg14_reg4_pretrain"),
    *_rows((384, 12, 6), "dinov3_vits16_pretrain_lvd1689m dinov3_vits16plus_pretrain_lvd1689m", epsilon=1e-5),
    *_rows((768, 12, 12), "dinov3_vitb16_pretrain_lvd1689m", epsilon=1e-5),
    *_rows((1024, 24, 16), "dinov3_vitl16_pretrain_lvd1689m dinov3_vitl16_pretrain_sat493m", epsilon=1e-5),
    *_rows((1280, 32, 20), "dinov3_vith16plus_pretrain_lvd1689m", epsilon=1e-5),
    *_rows((4096, 40, 32), "dinov3_vit7b16_pretrain_lvd1689m dinov3_vit7b16_pretrain_sat493m", epsilon=1e-5),
    *_rows(
        (768, 12, 12),
        "dino_vitbase16_pretrain dino_vitbase8_pretrain dinov2_vitb14_pretrain dinov2_vitb14_reg4_pretrain "
        "mae_pretrain_vit_base mae_finetuned_vit_base deit_3_base_224_1k deit_3_base_224_21k deit_3_base_384_1k "
        "deit_3_base_384_21k jx_vit_base_p16_224 jx_vit_base_p16_384 jx_vit_base_p32_384 jx_vit_base_patch16_224_in21k",
    ),
    *_rows(
        (1024, 24, 16),
        "dinov2_vitl14_pretrain dinov2_vitl14_reg4_pretrain mae_pretrain_vit_large mae_finetuned_vit_large "
        "deit_3_large_224_1k deit_3_large_224_21k deit_3_large_384_1k deit_3_large_384_21k jx_vit_large_p16_224 "
        "jx_vit_large_p16_384 jx_vit_large_p32_384",
    ),
    *_rows(
        (1280, 32, 16),
        "mae_pretrain_vit_huge mae_finetuned_vit_huge deit_3_huge_224_1k deit_3_huge_224_21k",
    ),
    # torchvision, and PyTorch-Pretrained-ViT
    *_rows((768, 12, 12), "vit_b_16 vit_b_32 B_16 B_32 B_16_imagenet1k B_32_imagenet1k"),
    *_rows((1024, 24, 16), "vit_l_16 vit_l_32 L_16 L_32 L_16_imagenet1k L_32_imagenet1k"),
    *_rows((1280, 32, 16), "vit_h_14"),
]

ARCHITECTURES: dict[str, Mapping[str, Any]] = {
    **dict(_OTHERS),
    **dict(_TIMM),
    **dict(  # PLSC's; the only preset without fields is of no architecture
        row
        for name, (_, preset) in PRESETS.items()
        if preset
        for row in _rows((preset["embed_dim"], preset["depth"], preset["num_heads"]), name)
    ),
}
