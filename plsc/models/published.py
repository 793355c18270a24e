"""Published Vision Transformers by name: what no array's shape shows of them.

A file that has the name of one of these, or is in a folder of that name, is read as it. The values are those of
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


_ROPE_APE = {"rope": "axial", "rope_temperature": 100.0, "rope_order": "xy"}  # beside a position embedding

_TIMM = [
    *_rows((64, 6, 2), "test_vit"),
    *_rows((64, 8, 2), "test_vit2"),
    *_rows((96, 9, 3), "test_vit3", pool_prefix=True),
    *_rows((96, 9, 3), "test_vit4"),
    *_rows(
        (192, 12, 3),
        "deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 vit_tiny_patch16_224 vit_tiny_patch16_384 "
        "vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384",
    ),
    *_rows((256, 10, 4), "vit_xsmall_patch16_clip_224", epsilon=1e-5),
    *_rows((256, 14, 4), "vit_wee_patch16_reg1_gap_256"),
    *_rows((320, 14, 5), "vit_little_patch16_reg1_gap_256 vit_little_patch16_reg4_gap_256"),
    *_rows(
        (384, 12, 6),
        "deit3_small_patch16_224 deit3_small_patch16_384 deit_small_distilled_patch16_224 deit_small_patch16_224 "
        "flexivit_small vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_small_patch16_224 "
        "vit_small_patch16_384 vit_small_patch32_224 vit_small_patch32_384 vit_small_patch8_224 vit_small_r26_s32_224 "
        "vit_small_r26_s32_384",
    ),
    *_rows((384, 36, 6), "vit_small_patch16_36x1_224"),
    *_rows(
        (512, 12, 8),
        "deit3_medium_patch16_224 vit_medium_patch16_gap_240 vit_medium_patch16_gap_256 vit_medium_patch16_gap_384 "
        "vit_medium_patch16_reg1_gap_256 vit_medium_patch16_reg4_gap_256",
    ),
    *_rows((512, 12, 8), "vit_medium_patch16_clip_224 vit_medium_patch32_clip_224", epsilon=1e-5),
    *_rows((512, 20, 8), "vit_mediumd_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_384"),
    *_rows(
        (640, 12, 10),
        "vit_betwixt_patch16_gap_256 vit_betwixt_patch16_reg1_gap_256 vit_betwixt_patch16_reg4_gap_256 "
        "vit_betwixt_patch16_reg4_gap_384",
    ),
    *_rows((640, 12, 10), "vit_betwixt_patch32_clip_224", epsilon=1e-5),
    *_rows(
        (768, 12, 12),
        "deit3_base_patch16_224 deit3_base_patch16_384 deit_base_distilled_patch16_224 "
        "deit_base_distilled_patch16_384 deit_base_patch16_224 deit_base_patch16_384 flexivit_base "
        "vit_base_patch14_dinov2 vit_base_patch14_reg1_tipsv2 vit_base_patch14_reg4_dinov2 vit_base_patch16_224 "
        "vit_base_patch16_224_miil vit_base_patch16_384 vit_base_patch16_reg4_gap_256 vit_base_patch16_siglip_224 "
        "vit_base_patch16_siglip_256 vit_base_patch16_siglip_384 vit_base_patch16_siglip_512 "
        "vit_base_patch16_siglip_gap_224 vit_base_patch16_siglip_gap_256 vit_base_patch16_siglip_gap_384 "
        "vit_base_patch16_siglip_gap_512 vit_base_patch32_224 vit_base_patch32_384 vit_base_patch8_224 "
        "vit_base_r26_s32_224 vit_base_r50_s16_224 vit_base_r50_s16_384",
    ),
    *_rows((768, 12, 12), "vit_base_patch16_rpn_224", block="post"),
    *_rows(
        (768, 12, 12),
        "vit_base_patch16_clip_224 vit_base_patch16_clip_384 vit_base_patch32_clip_224 vit_base_patch32_clip_256 "
        "vit_base_patch32_clip_384 vit_base_patch32_clip_448",
        epsilon=1e-5,
    ),
    *_rows((768, 12, 12), "vit_base_patch32_siglip_256 vit_base_patch32_siglip_gap_256", act="gelu_tanh"),
    *_rows(
        (768, 12, 12),
        "vit_base_patch16_clip_quickgelu_224 vit_base_patch32_clip_quickgelu_224",
        act="quick_gelu",
        epsilon=1e-5,
    ),
    *_rows((768, 12, 16), "vit_base_patch16_gap_224"),
    *_rows(
        (832, 21, 13),
        "vit_so150m2_patch16_reg1_gap_256 vit_so150m2_patch16_reg1_gap_384 vit_so150m2_patch16_reg1_gap_448",
    ),
    *_rows((896, 12, 14), "vit_base_patch16_plus_240 vit_base_patch32_plus_256"),
    *_rows((896, 12, 14), "vit_base_patch16_plus_clip_240", epsilon=1e-5),
    *_rows(
        (896, 18, 14),
        "vit_so150m_patch16_reg4_gap_256 vit_so150m_patch16_reg4_gap_384 vit_so150m_patch16_reg4_map_256",
    ),
    *_rows(
        (1024, 24, 16),
        "deit3_large_patch16_224 deit3_large_patch16_384 eva_large_patch14_196 eva_large_patch14_336 flexivit_large "
        "vit_large_patch14_224 vit_large_patch14_dinov2 vit_large_patch14_reg1_tipsv2 vit_large_patch14_reg4_dinov2 "
        "vit_large_patch16_224 vit_large_patch16_384 vit_large_patch16_siglip_256 vit_large_patch16_siglip_384 "
        "vit_large_patch16_siglip_gap_256 vit_large_patch16_siglip_gap_384 vit_large_patch32_224 "
        "vit_large_patch32_384 vit_large_r50_s32_224 vit_large_r50_s32_384",
    ),
    *_rows((1024, 24, 16), "vit_large_patch14_clip_224 vit_large_patch14_clip_336", epsilon=1e-5),
    *_rows((1024, 24, 16), "vit_large_patch16_siglip_512 vit_large_patch16_siglip_gap_512", act="gelu_tanh"),
    *_rows(
        (1024, 24, 16),
        "vit_large_patch14_clip_quickgelu_224 vit_large_patch14_clip_quickgelu_336",
        act="quick_gelu",
        epsilon=1e-5,
    ),
    *_rows(
        (1152, 27, 16),
        "vit_so400m_patch14_reg1_tipsv2 vit_so400m_patch14_siglip_224 vit_so400m_patch14_siglip_378 "
        "vit_so400m_patch14_siglip_384 vit_so400m_patch14_siglip_gap_224 vit_so400m_patch14_siglip_gap_378 "
        "vit_so400m_patch14_siglip_gap_384 vit_so400m_patch14_siglip_gap_448 vit_so400m_patch14_siglip_gap_896",
    ),
    *_rows(
        (1152, 27, 16),
        "vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384 vit_so400m_patch16_siglip_512 "
        "vit_so400m_patch16_siglip_gap_256 vit_so400m_patch16_siglip_gap_384 vit_so400m_patch16_siglip_gap_512",
        act="gelu_tanh",
    ),
    *_rows(
        (1280, 32, 16),
        "deit3_huge_patch14_224 vit_huge_patch14_224 vit_huge_patch14_gap_224 vit_huge_patch16_gap_448",
    ),
    *_rows(
        (1280, 32, 16), "vit_huge_patch14_clip_224 vit_huge_patch14_clip_336 vit_huge_patch14_clip_378", epsilon=1e-5
    ),
    *_rows(
        (1280, 32, 16),
        "vit_huge_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_378",
        act="quick_gelu",
        epsilon=1e-5,
    ),
    *_rows((1408, 40, 16), "vit_giant_patch14_224 vit_giant_patch16_gap_224"),
    *_rows((1408, 40, 16), "vit_giant_patch14_clip_224", epsilon=1e-5),
    *_rows(
        (1536, 40, 16),
        "vit_giantopt_patch16_siglip_256 vit_giantopt_patch16_siglip_384 vit_giantopt_patch16_siglip_gap_256 "
        "vit_giantopt_patch16_siglip_gap_384",
        act="gelu_tanh",
    ),
    *_rows((1664, 48, 16), "vit_gigantic_patch14_224"),
    *_rows((1664, 48, 16), "vit_gigantic_patch14_clip_224 vit_gigantic_patch14_clip_378", epsilon=1e-5),
    *_rows((1664, 48, 16), "vit_gigantic_patch14_clip_quickgelu_224", act="quick_gelu", epsilon=1e-5),
    # modules eva and beit; arrays show which of them have rotary or relative positions, but for rope_ape
    *_rows((192, 12, 3), "eva02_tiny_patch14_224 eva02_tiny_patch14_336"),
    *_rows(
        (192, 12, 3),
        "vit_pe_core_tiny_patch16_384 vit_pe_spatial_tiny_patch16_512",
        epsilon=1e-5,
    ),
    *_rows(
        (384, 12, 6),
        "eva02_small_patch14_224 eva02_small_patch14_336 vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_224 "
        "vit_small_patch16_rope_mixed_ape_224",
    ),
    *_rows((384, 12, 6), "vit_small_patch16_rope_ape_224", **_ROPE_APE),
    *_rows(
        (384, 12, 6),
        "vit_pe_core_small_patch16_384 vit_pe_spatial_small_patch16_512",
        epsilon=1e-5,
    ),
    *_rows((512, 12, 8), "vit_medium_patch16_rope_reg1_gap_256"),
    *_rows((512, 20, 8), "vit_mediumd_patch16_rope_reg1_gap_256"),
    *_rows((640, 12, 10), "vit_betwixt_patch16_rope_reg4_gap_256"),
    *_rows(
        (768, 12, 12),
        "beit_base_patch16_224 beit_base_patch16_384 beitv2_base_patch16_224 eva02_base_patch14_224 "
        "eva02_base_patch14_448 eva02_base_patch16_clip_224 vit_base_patch16_rope_224 vit_base_patch16_rope_mixed_224 "
        "vit_base_patch16_rope_mixed_ape_224 vit_base_patch16_rope_reg1_gap_256",
    ),
    *_rows((768, 12, 12), "vit_base_patch16_rope_ape_224", **_ROPE_APE),
    *_rows(
        (768, 12, 12),
        "vit_pe_core_base_patch16_224 vit_pe_spatial_base_patch16_512",
        epsilon=1e-5,
    ),
    *_rows((1024, 23, 16), "vit_pe_lang_large_patch14_448", epsilon=1e-5),
    *_rows(
        (1024, 24, 16),
        "beit_large_patch16_224 beit_large_patch16_384 beit_large_patch16_512 beitv2_large_patch16_224 "
        "eva02_large_patch14_224 eva02_large_patch14_448 eva02_large_patch14_clip_224 eva02_large_patch14_clip_336 "
        "vit_large_patch16_rope_224 vit_large_patch16_rope_mixed_224 vit_large_patch16_rope_mixed_ape_224",
    ),
    *_rows((1024, 24, 16), "vit_large_patch16_rope_ape_224", **_ROPE_APE),
    *_rows(
        (1024, 24, 16),
        "vit_pe_core_large_patch14_336 vit_pe_spatial_large_patch14_448",
        epsilon=1e-5,
    ),
    *_rows(
        (1408, 40, 16), "eva_giant_patch14_224 eva_giant_patch14_336 eva_giant_patch14_560 eva_giant_patch14_clip_224"
    ),
    *_rows((1536, 47, 16), "vit_pe_lang_gigantic_patch14_448", epsilon=1e-5),
    *_rows((1536, 50, 16), "vit_pe_core_gigantic_patch14_448 vit_pe_spatial_gigantic_patch14_448", epsilon=1e-5),
    *_rows((1792, 64, 16), "eva02_enormous_patch14_clip_224", block="post"),
    *_rows((1536, 40, 24), "vit_giant_patch14_dinov2 vit_giant_patch14_reg1_tipsv2 vit_giant_patch14_reg4_dinov2"),
]

_TIMM += [  # parallel blocks, BEiT-3, RADIO, InternViT
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
