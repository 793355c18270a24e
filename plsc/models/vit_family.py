"""The family of Vision Transformers: what its arrays tell of a model, and how they fit another size.

The tables of names, which plsc.weights reads in both directions, are in vit_layouts.py, vit_timm.py,
vit_huggingface.py and vit_towers.py; how to read them is in plsc/weights/layouts.py. docs/checkpoints.md shows the
most important names side by side. Imports no Paddle.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from plsc.errors import CheckpointError
from plsc.models.published import ARCHITECTURES
from plsc.models.spec import ViTSpec, pair, reduced, reduction
from plsc.models.vit_huggingface import LAYOUTS as HUGGINGFACE
from plsc.models.vit_layouts import COYO, GOOGLE, JEONSWORLD, LUKEMELAS, TORCHVISION
from plsc.models.vit_parts import BACKBONE
from plsc.models.vit_timm import TIMM
from plsc.models.vit_towers import LAYOUTS as TOWERS
from plsc.models.zoo import ALIASES, PRESETS
from plsc.weights import resample
from plsc.weights.families import Adapted, Family, Target, register_family
from plsc.weights.layouts import Spec
from plsc.weights.tensors import Tensor

if TYPE_CHECKING:
    from plsc.weights.read import Source

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
    if "dist_token" in shapes:
        spec["distillation"] = "heads" if "head_dist.weight" in shapes else "token"
    depths = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if m]
    spec["depth"] = max(depths, default=-1) + 1
    kernel = shapes.get("patch_embed.proj.weight")
    if kernel:
        spec["embed_dim"] = width = kernel[0]
        spec["patch_size"] = kernel[2] if kernel[2] == kernel[3] else tuple(kernel[2:])
        spec["in_chans"] = kernel[1]
        spec["num_heads"] = _HEADS.get(width, max(1, width // _USUAL_HEAD_WIDTH))
        fc1, fc2 = (shapes.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
        hidden = fc2[0] if fc2 else fc1[1] if fc1 else None
        if hidden:
            spec["mlp_ratio"] = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width
        if fc1 and hidden and fc1[1] == 2 * hidden:
            spec["mlp"] = "swiglu"
    stem = shapes.get(f"{BACKBONE}.stem.conv.weight")
    if stem:
        spec["in_chans"], spec["resnet_width"] = stem[1], stem[0] / 64
        spec["resnet_layers"] = _resnet_layers(shapes)
    spec["qkv_bias"] = "blocks.0.attn.qkv.bias" in shapes or "blocks.0.attn.q_bias" in shapes
    spec.update(_parts(shapes))
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
    elif kernel and "head.weight" in shapes and shapes["head.weight"][0] == 2 * kernel[0]:
        spec["pool"] = "token_avg"
    pool = shapes.get("attn_pool.mlp.fc1.weight")
    if kernel and pool and pool[1] != int(kernel[0] * spec.get("mlp_ratio", 4.0)):
        spec["pool_mlp_ratio"] = pool[1] / kernel[0]
    if "attn_pool.latent" in shapes and "norm_pre.weight" not in shapes and _has_prefix(spec):
        spec["pool_prefix"] = False  # as timm does, but for Perception Encoder
    spec.update(stated)
    table = shapes.get("blocks.0.attn.rel_pos_bias.table")
    if "img_size" in spec and "pos_embed" in shapes and kernel:
        sides = zip(pair(spec["img_size"]), pair(spec["patch_size"]), strict=True)
        rows, columns = (reduced(side, spec.get("resnet_layers")) // patch for side, patch in sides)
        spec.setdefault("no_embed_class", shapes["pos_embed"][1] == rows * columns and _has_prefix(spec))
    elif "img_size" not in spec and "pos_embed" in shapes and kernel:
        rows = shapes["pos_embed"][1]
        prefix = _position_prefix(rows, spec)
        side = round((rows - prefix) ** 0.5)
        spec["no_embed_class"] = prefix == 0 and _has_prefix(spec)
        if side * side == rows - prefix and kernel[2] == kernel[3]:
            spec["img_size"] = side * kernel[2] * reduction(spec.get("resnet_layers"))
    elif "img_size" not in spec and table and kernel and kernel[2] == kernel[3]:
        spec["img_size"] = (round(max(table[0] - 3, 0) ** 0.5) + 1) // 2 * kernel[2]
    return spec


def _parts(shapes: Mapping[str, tuple]) -> dict[str, Any]:
    """Fields that a plain Vision Transformer does not have, told by the presence of arrays."""
    spec: dict[str, Any] = {}
    if "blocks.0.norm1.weight" in shapes and "blocks.0.norm1.bias" not in shapes:
        spec["norm"] = "rmsnorm"
    if "blocks.0.attn.q_bias" in shapes:
        spec["k_bias"] = False
    if "blocks.0.attn.q_norm.weight" in shapes:
        spec["qk_norm"] = "layernorm" if "blocks.0.attn.q_norm.bias" in shapes else "rmsnorm"
    for field, name in (
        ("norm_pre", "norm_pre.weight"),
        ("attn_norm", "blocks.0.attn.norm.weight"),
        ("mlp_norm", "blocks.0.mlp.norm.weight"),
        ("rel_pos_bias", "blocks.0.attn.rel_pos_bias.table"),
    ):
        if name in shapes:
            spec[field] = True
    if "blocks.0.attn.rope.freqs" in shapes:
        spec["rope"] = "mixed"
    if "patch_embed.proj.weight" in shapes and "patch_embed.proj.bias" not in shapes:
        spec["patch_bias"] = False
    if "blocks.0.norm1.weight" in shapes and not {"norm.weight", "fc_norm.weight"} & shapes.keys():
        spec["final_norm"] = False
    if "blocks.0.norm1.weight" in shapes and "blocks.0.norm2.weight" not in shapes:
        spec["block"] = "parallel"
    if "pos_embed" not in shapes:
        spec["pos_embed"] = "none"
    return spec


def _has_prefix(spec: Spec) -> bool:
    return bool(spec.get("class_token", True) or spec.get("reg_tokens"))


def _position_prefix(rows: int, spec: Spec) -> int:
    """Rows of a position embedding before its patches, such that these are a square grid where possible."""
    tokens = int(spec.get("class_token", True)) + bool(spec.get("distillation")) + spec.get("reg_tokens", 0)
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


def _adapt(source: "Source", tensor: Tensor, target: Target) -> Adapted | None:
    """Position embedding, patch embedding and stem, fitted to another model."""
    name, shape = target.name, target.shape
    if name == "pos_embed":
        return _position(source, tensor, target)
    if tensor.shape == shape:
        return None
    if name.endswith(".rel_pos_bias.table") and len(tensor.shape) == 2 and tensor.shape[1] == shape[1]:
        return _bias_table(source, tensor, target)
    if name == "patch_embed.proj.weight" and tensor.shape[0] == shape[0] and len(tensor.shape) == 4:
        return Adapted("patch kernel resampled", lambda: _patch(source.read(name), shape))
    if name == f"{BACKBONE}.stem.conv.weight" and tensor.shape[2:] == shape[2:]:
        return Adapted("channels", lambda: resample.input_channels(source.read(name), shape[1]))
    return None


def _patch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape[1] != shape[1]:
        array = resample.input_channels(array, shape[1])
    return array if array.shape == shape else resample.patch_kernel(array, shape[2:])


def _position(source: "Source", tensor: Tensor, target: Target) -> Adapted | None:
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


def _bias_table(source: "Source", tensor: Tensor, target: Target) -> Adapted | None:
    """A bias by relative position for another grid; the last three rows are the class token's."""
    side = round(max(tensor.shape[0] - 3, 0) ** 0.5)
    if side * side != tensor.shape[0] - 3 or side % 2 == 0:
        return None
    rows, columns = (2 * count - 1 for count in target.spec.grid)

    def read() -> np.ndarray:
        array = source.read(target.name)
        body = resample.position_embedding(array[None, :-3], 0, (side, side), (rows, columns), target.position)
        return np.concatenate([body[0], array[-3:]])

    how = f"{target.position} {(side, side)} → {(rows, columns)} relative positions"
    return Adapted(how, read, by_size=True)


def _grid_of(source: "Source", tensor: Tensor, prefix: int) -> tuple[int, tuple[int, int]]:
    """(rows before the patches, (rows, columns) of patches) of a file's position embedding."""
    spec, rows = source.card.spec, tensor.shape[1]
    old_prefix = _position_prefix(rows, spec) if "class_token" in spec else prefix
    patches = rows - old_prefix
    if spec.get("img_size") and spec.get("patch_size"):
        sides = zip(pair(spec["img_size"]), pair(spec["patch_size"]), strict=True)
        rows_of, columns_of = (reduced(side, spec.get("resnet_layers")) // patch for side, patch in sides)
        grid = (rows_of, columns_of)
        for candidate in dict.fromkeys((old_prefix, prefix)):
            if grid[0] * grid[1] == rows - candidate:
                return candidate, grid
    side = round(max(patches, 0) ** 0.5)
    if side * side != patches or patches == 0:
        raise CheckpointError(f"{source.path}: its position embedding has {patches} patch rows, not a square grid")
    return old_prefix, (side, side)


UNSEEN = (  # fields that no array shows
    "num_heads",
    "qk_scale",
    "act",
    "epsilon",
    "pool",
    "pool_prefix",
    "pool_heads",
    "no_embed_class",
    "block",
    "rope",
    "rope_temperature",
    "rope_reference",
    "rope_offset",
    "rope_order",
    "resnet_norm",
)

_BODY = (  # not of decoders, predictors, teachers and towers of text, which files may hold besides
    r"(?:(?:Transformer|encoder|vision_model|vit|visual|trunk)[./])*"
    r"(?:(?:blocks|layers?|encoder_layer_\d+|encoderblock\w*|resblocks|patch_embed\w*|embeddings?(?![./]mask_token)|norm\w*|fc_norm"
    r"|layernorm\w*|ln_\w+|rope\w*|rel_pos\w*)[./].+"
    r"|(?:cls|class|reg|register|storage|dist|distillation)_tokens?|pos(?:ition)?_embed\w*)"
)

register_family(
    Family(
        model="VisionTransformer",
        models=frozenset([*PRESETS, *(alias for aliases in ALIASES.values() for alias in aliases)]),
        spec=ViTSpec,
        layouts=(COYO, GOOGLE, *HUGGINGFACE, *TOWERS, TORCHVISION, LUKEMELAS, JEONSWORLD, TIMM),
        names=r"(cls_token|dist_token|pos_embed|reg_token|patch_embed\..+|blocks\.\d+\..+|attn_pool\..+"
        r"|(norm|norm_pre|fc_norm|head0?|head_dist)\.(weight|bias)"
        r"|head_norm\.(_mean|_variance))",
        infer=infer_spec,
        unseen=UNSEEN,
        usual={"act": "gelu", "epsilon": 1e-6, "qk_scale": None, "pool": "token"},
        needed=("num_heads",),
        architectures=ARCHITECTURES,
        matrices={"attn.qkv.weight": "wide", "mlp.fc1.weight": "wide", "mlp.fc2.weight": "tall"},
        dimensions=(
            (r"cls_token|dist_token|pos_embed|reg_token|attn_pool\.latent", 3),
            (r"(patch_embed\.proj|.*\.conv\d?)\.weight", 4),
            (r"(.*\.)?(attn\.qkv|attn\.proj|mlp\.fc[12]|head0?|head_dist|attn_pool\.(q|kv|proj))\.weight", 2),
            (r".*\.rel_pos_bias\.table", 2),
            (r".*(norm\d?\.weight|norm_pre\.weight|\.gamma|\.bias|[qv]_bias)", 1),
        ),
        block=r"blocks\.\d+\.",
        head=("head.", "head_dist.", "head0.", "head_norm."),
        classifiers=("head.", "head_dist."),
        body=_BODY,
        parts=("rope", "block"),
        computed=lambda spec: frozenset(["pos_embed"] if spec.pos_embed == "sincos2d" else []),
        without_head={"class_num": 0, "representation_size": None, "head_batch_norm": False},
        adapt=_adapt,
    )
)
