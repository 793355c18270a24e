"""Names and orientations of others → plsc's.

A layout recognises a container by its names and maps every array to plsc's name, with Linear
weights as [in, out]. Mapping is lazy: shapes are known at once, values are turned when read.
What a layout does not know keeps its name and is reported as ignored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from plsc.errors import CheckpointError
from plsc.weights.containers import Container, Tensor


@dataclass
class Mapped:
    """A container in plsc's names.

    Attributes:
        layout: whose names they were.
        unknown: arrays without a counterpart, by the file's name.
        facts: fields of ViTSpec that the arrays or metadata tell.
    """

    layout: str
    tensors: dict[str, Tensor]
    unknown: dict[str, Tensor] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


def _turned(tensor: Tensor) -> Tensor:
    """[out, in] → [in, out]."""
    return Tensor(tensor.shape[::-1], lambda: tensor.read().T)


def _reshaped(tensor: Tensor, shape) -> Tensor:
    return Tensor(tuple(shape), lambda: tensor.read().reshape(shape))


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """q, k, v [in, out] each → [in, 3 out]; biases [out] → [3 out]."""
    shape = (*tensors[0].shape[:-1], sum(t.shape[-1] for t in tensors))
    return Tensor(shape, lambda: np.concatenate([t.read() for t in tensors], axis=-1))


def _conv_from_hwio(tensor: Tensor) -> Tensor:
    h, w, i, o = tensor.shape
    return Tensor((o, i, h, w), lambda: tensor.read().transpose(3, 2, 0, 1))


def _without_prefix(tensors: dict[str, Tensor], prefixes) -> dict[str, Tensor]:
    """Names without a prefix that all, or all that matter, begin with; the rest is dropped."""
    for prefix in prefixes:
        found = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    return tensors


# -- Google: original ViT, flax linen, AugReg, big_vision -------------------------------------

_DEEPEST = 1000  # blocks

_GOOGLE_PREFIXES = ("opt/target/", "optimizer/target/", "params/img/", "params/", "img/")
_FLAX_NORMS = {"scale": "weight", "bias": "bias"}


def _google(container: Container) -> Mapped | None:
    tensors = {name.replace("Transformer/", "", 1): t for name, t in _google_names(container).items()}
    if "embedding/kernel" not in tensors:
        return None
    tensors = _unstacked(tensors)
    out, unknown = {}, {}
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.match(r"encoderblock_(\d+)/(.+)", name)
        if found:
            blocks.setdefault(int(found[1]), {})[found[2]] = tensor
            continue
        target = _GOOGLE_PLAIN.get(name)
        if name == "embedding/kernel":
            out["patch_embed.proj.weight"] = _conv_from_hwio(tensor)
        elif name in ("posembed_input/pos_embedding", "pos_embedding"):
            out["pos_embed"] = _google_position(name, tensor, "cls" in tensors)
        elif target:
            out[target] = tensor
        elif name.startswith("MAPHead_0/"):
            continue
        else:
            converted = _google_resnet(name, tensor)
            if converted:
                out[converted[0]] = converted[1]
            else:
                unknown[name] = tensor
    for i, block in blocks.items():
        try:
            known = _google_block(block, f"blocks.{i}")
        except KeyError as error:
            raise CheckpointError(f"encoderblock_{i} has no {error.args[0]}") from error
        out.update(known[0])
        unknown.update({f"encoderblock_{i}/{name}": block[name] for name in known[1]})
    pool = {name[len("MAPHead_0/") :]: t for name, t in tensors.items() if name.startswith("MAPHead_0/")}
    if pool:
        out.update(_google_map_head(pool))
    facts = {"class_token": "cls" in tensors}
    facts["pool"] = "map" if pool else ("token" if "cls" in tensors else "avg")
    heads = {t.shape[1] for name, t in tensors.items() if name.endswith("/query/kernel") and "MAPHead" not in name}
    if len(heads) == 1:
        facts["num_heads"] = heads.pop()
    return Mapped("google", out, unknown, facts)


_GOOGLE_PLAIN = {
    "cls": "cls_token",
    "embedding/bias": "patch_embed.proj.bias",
    "encoder_norm/scale": "norm.weight",
    "encoder_norm/bias": "norm.bias",
    "pre_logits/kernel": "head0.weight",
    "pre_logits/bias": "head0.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}


def _google_names(container: Container) -> dict[str, Tensor]:
    if any(name.startswith(("Transformer/", "embedding/")) for name in container.tensors):
        return container.tensors
    return _without_prefix(container.tensors, _GOOGLE_PREFIXES)


def _unstacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """big_vision's scanned blocks, one array of all depths, → one array a block."""
    stacked = [t for name, t in tensors.items() if name.startswith("encoderblock/")]
    depths = {t.shape[0] if t.shape and all(t.shape) else 0 for t in stacked}
    if depths and (len(depths) > 1 or not 0 < min(depths) <= _DEEPEST):
        raise CheckpointError(f"the stacked arrays of encoderblock/ are of depths {sorted(depths)}")
    out = {}
    for name, tensor in tensors.items():
        if name.startswith("encoderblock/"):
            for i in range(tensor.shape[0]):
                out[f"encoderblock_{i}/{name[len('encoderblock/') :]}"] = Tensor(
                    tensor.shape[1:], lambda t=tensor, k=i: t.read()[k]
                )
        else:
            out[name] = tensor
    return out


def _google_position(name: str, tensor: Tensor, has_cls: bool) -> Tensor:
    """big_vision adds its root pos_embedding before the class token, which so has a row of zeros."""
    if name == "posembed_input/pos_embedding" or not has_cls:
        return tensor
    rows = (1, tensor.shape[1] + 1, tensor.shape[2])
    return Tensor(rows, lambda: np.concatenate([np.zeros((1, 1, rows[2]), "float32"), tensor.read()], axis=1))


def _google_attention(block: dict[str, Tensor], attention: str) -> dict[str, Tensor]:
    """qkv and proj of one MultiHeadDotProductAttention: kernels [C, H, D] and [H, D, C]."""
    out, parts = {}, [f"{attention}/{part}" for part in ("query", "key", "value")]
    width = block[f"{parts[0]}/kernel"].shape[0]
    flat = [_reshaped(block[f"{part}/kernel"], (width, -1)) for part in parts]
    flat = [Tensor((width, _count(block[f"{p}/kernel"]) // width), t.read) for p, t in zip(parts, flat, strict=True)]
    out["qkv.weight"] = _side_by_side(flat)
    if f"{parts[0]}/bias" in block:
        biases = [block[f"{part}/bias"] for part in parts]
        out["qkv.bias"] = _side_by_side([_reshaped(b, (_count(b),)) for b in biases])
    kernel = block[f"{attention}/out/kernel"]
    out["proj.weight"] = _reshaped(kernel, (kernel.shape[0] * kernel.shape[1], kernel.shape[2]))
    if f"{attention}/out/bias" in block:
        out["proj.bias"] = block[f"{attention}/out/bias"]
    return out


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _google_block(block: dict[str, Tensor], target: str) -> tuple[dict, list[str]]:
    """One encoder block, with the original's sub-names (1, 2, 3) or flax linen's (0, 1, 0)."""
    out, used = {}, set()
    attention = next((n.split("/")[0] for n in block if n.startswith("MultiHeadDotProductAttention")), None)
    if attention:
        out.update({f"{target}.attn.{k}": t for k, t in _google_attention(block, attention).items()})
        used |= {n for n in block if n.startswith(attention)}
    norms = sorted({n.split("/")[0] for n in block if n.startswith("LayerNorm_")})
    for norm, ours in zip(norms, ("norm1", "norm2"), strict=False):
        for theirs, kind in _FLAX_NORMS.items():
            out[f"{target}.{ours}.{kind}"] = block[f"{norm}/{theirs}"]
            used.add(f"{norm}/{theirs}")
    mlp = next((n.split("/")[0] for n in block if n.startswith("MlpBlock")), None)
    for dense, ours in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        for theirs, kind in (("kernel", "weight"), ("bias", "bias")):
            name = f"{mlp}/{dense}/{theirs}"
            if name in block:
                out[f"{target}.mlp.{ours}.{kind}"] = block[name]
                used.add(name)
    return out, [name for name in block if name not in used]


def _google_map_head(pool: dict[str, Tensor]) -> dict[str, Tensor]:
    """big_vision's attention pooling: probe, attention, norm and MLP."""
    attention = next(n.split("/")[0] for n in pool if n.startswith("MultiHeadDotProductAttention"))
    out = {"attn_pool.latent": pool["probe"]}
    width = pool[f"{attention}/query/kernel"].shape[0]

    def kernel(part):
        tensor = pool[f"{attention}/{part}/kernel"]
        return _reshaped(tensor, (width, _count(tensor) // width))

    def bias(part):
        tensor = pool[f"{attention}/{part}/bias"]
        return _reshaped(tensor, (_count(tensor),))

    out["attn_pool.q.weight"], out["attn_pool.q.bias"] = kernel("query"), bias("query")
    out["attn_pool.kv.weight"] = _side_by_side([kernel("key"), kernel("value")])
    out["attn_pool.kv.bias"] = _side_by_side([bias("key"), bias("value")])
    projection = pool[f"{attention}/out/kernel"]
    out["attn_pool.proj.weight"] = _reshaped(
        projection, (projection.shape[0] * projection.shape[1], projection.shape[2])
    )
    out["attn_pool.proj.bias"] = pool[f"{attention}/out/bias"]
    rest, _ = _google_block({n: t for n, t in pool.items() if n.startswith(("LayerNorm", "MlpBlock"))}, "attn_pool")
    out.update({name.replace(".norm1.", ".norm."): t for name, t in rest.items()})
    return out


def _google_resnet(name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
    """The convolutional part of hybrids; GroupNorm's parameters are [1, 1, 1, C] in older files."""
    backbone = "patch_embed.backbone"
    if name == "conv_root/kernel":
        return f"{backbone}.stem.conv.weight", _conv_from_hwio(tensor)
    found = re.match(r"gn_root/(scale|bias)$", name)
    if found:
        return f"{backbone}.stem.norm.{_FLAX_NORMS[found[1]]}", _reshaped(tensor, (_count(tensor),))
    found = re.match(r"block(\d+)/unit(\d+)/(conv|gn)(\d|_proj)/(kernel|scale|bias)$", name)
    if not found:
        return None
    stage, unit, kind, which, part = found.groups()
    unit_name = f"{backbone}.stages.{int(stage) - 1}.blocks.{int(unit) - 1}"
    if which == "_proj":
        layer = f"{unit_name}.downsample.{'conv' if kind == 'conv' else 'norm'}"
    else:
        layer = f"{unit_name}.{'conv' if kind == 'conv' else 'norm'}{which}"
    if part == "kernel":
        return f"{layer}.weight", _conv_from_hwio(tensor)
    return f"{layer}.{_FLAX_NORMS[part]}", _reshaped(tensor, (_count(tensor),))


# -- layouts of PyTorch and Paddle, by renaming -----------------------------------------------

Rule = tuple[str, str]

_TIMM: list[Rule] = [
    (r"pre_logits\.fc\.(weight|bias)", r"head0.\1"),
    (r"pre_logits\.(weight|bias)", r"head0.\1"),
    (r"(storage_tokens|register_tokens)", "reg_token"),
    (r"patch_embed\.backbone\.(conv|norm)\.(.+)", r"patch_embed.backbone.stem.\1.\2"),  # a stem without stages
]
_TORCHVISION: list[Rule] = [
    (r"conv_proj\.(.+)", r"patch_embed.proj.\1"),
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.(.+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_2\.(.+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(.+)", r"norm.\1"),
    (r"heads\.pre_logits\.(.+)", r"head0.\1"),
    (r"heads\.head\.(.+)", r"head.\1"),
]
_LUKEMELAS: list[Rule] = [
    (r"patch_embedding\.(.+)", r"patch_embed.proj.\1"),
    (r"class_token", "cls_token"),
    (r"positional_embedding\.pos_embedding", "pos_embed"),
    (r"transformer\.blocks\.(\d+)\.attn\.proj_(q|k|v)\.(.+)", r"blocks.\1.attn.\2.\3"),
    (r"transformer\.blocks\.(\d+)\.proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.blocks\.(\d+)\.(norm1|norm2)\.(.+)", r"blocks.\1.\2.\3"),
    (r"transformer\.blocks\.(\d+)\.pwff\.(fc1|fc2)\.(.+)", r"blocks.\1.mlp.\2.\3"),
    (r"norm\.(.+)", r"norm.\1"),
    (r"pre_logits\.(.+)", r"head0.\1"),
    (r"fc\.(.+)", r"head.\1"),
]
_JEONSWORLD: list[Rule] = [
    (r"transformer\.embeddings\.patch_embeddings\.(.+)", r"patch_embed.proj.\1"),
    (r"transformer\.embeddings\.cls_token", "cls_token"),
    (r"transformer\.embeddings\.position_embeddings", "pos_embed"),
    (r"transformer\.encoder\.layer\.(\d+)\.attention_norm\.(.+)", r"blocks.\1.norm1.\2"),
    (r"transformer\.encoder\.layer\.(\d+)\.ffn_norm\.(.+)", r"blocks.\1.norm2.\2"),
    (r"transformer\.encoder\.layer\.(\d+)\.ffn\.(fc1|fc2)\.(.+)", r"blocks.\1.mlp.\2.\3"),
    (r"transformer\.encoder\.layer\.(\d+)\.attn\.query\.(.+)", r"blocks.\1.attn.q.\2"),
    (r"transformer\.encoder\.layer\.(\d+)\.attn\.key\.(.+)", r"blocks.\1.attn.k.\2"),
    (r"transformer\.encoder\.layer\.(\d+)\.attn\.value\.(.+)", r"blocks.\1.attn.v.\2"),
    (r"transformer\.encoder\.layer\.(\d+)\.attn\.out\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.encoder\.encoder_norm\.(.+)", r"norm.\1"),
    (r"head\.(.+)", r"head.\1"),
]
_HUGGINGFACE: list[Rule] = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(.+)", r"blocks.\1.attn.q.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.key\.(.+)", r"blocks.\1.attn.k.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.value\.(.+)", r"blocks.\1.attn.v.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+)\.layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),  # transformers 5
    (r"layers\.(\d+)\.layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    (r"layers\.(\d+)\.attention\.([qkv])_proj\.(.+)", r"blocks.\1.attn.\2.\3"),
    (r"layers\.(\d+)\.attention\.o_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.mlp\.(fc1|fc2)\.(.+)", r"blocks.\1.mlp.\2.\3"),
    (r"layernorm\.(.+)", r"norm.\1"),
    (r"pooler\.dense\.(.+)", r"head0.\1"),
    (r"classifier\.(.+)", r"head.\1"),
]

# kakaobrain/coyo-vit: the attributes of its Keras model; in save_weights' files the backbone is a layer, or is alone
_COYO_BACKBONE = r"(?:backbone/|layer_with_weights-0/|)"
_COYO: list[Rule] = [
    (_COYO_BACKBONE + r"class_emb", "cls_token"),
    (_COYO_BACKBONE + r"pos_emb", "pos_embed"),
    (_COYO_BACKBONE + r"embedding/(.+)", r"patch_embed.proj.\1"),
    (_COYO_BACKBONE + r"enc_layers/(\d+)/layernorm([12])/(.+)", r"blocks.\1.norm\2.\3"),
    (_COYO_BACKBONE + r"enc_layers/(\d+)/att/([qkv])(?:uery|ey|alue)_dense/(.+)", r"blocks.\1.attn.\2.\3"),
    (_COYO_BACKBONE + r"enc_layers/(\d+)/att/combine_heads/(.+)", r"blocks.\1.attn.proj.\2"),
    (_COYO_BACKBONE + r"enc_layers/(\d+)/mlp/layer_with_weights-0/(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_COYO_BACKBONE + r"enc_layers/(\d+)/mlp/layer_with_weights-1/(.+)", r"blocks.\1.mlp.fc2.\2"),
    (_COYO_BACKBONE + r"norm/(.+)", r"norm.\1"),
    (_COYO_BACKBONE + r"representation/(.+)", r"head0.\1"),
    (r"(?:model/)?layer_with_weights-1/(.+)", r"head.\1"),
]
_KERAS_KINDS = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
_COYO_TRAINING = re.compile(r"optimizer/.+|save_counter|ckpt_saved_iterations|(model/)?keras_api/.+")
_COYO_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # its code has these four models, and no other width


def _coyo(container: Container) -> Mapped | None:
    if not any(re.fullmatch(_COYO_BACKBONE + "class_emb", name) for name in container.tensors):
        return None
    tensors = {name: t for name, t in container.tensors.items() if not _COYO_TRAINING.fullmatch(name)}
    renamed, unknown = _renamed(tensors, _COYO)
    known = {}
    for name, tensor in renamed.items():
        layer, dot, kind = name.rpartition(".")
        known[f"{layer}{dot}{_KERAS_KINDS.get(kind, kind)}"] = tensor
    if "patch_embed.proj.weight" in known:
        known["patch_embed.proj.weight"] = _conv_from_hwio(known["patch_embed.proj.weight"])
    heads = _COYO_HEADS.get(known["cls_token"].shape[-1])
    return Mapped("coyo", _fused(known), unknown, {**_facts(known), "num_heads": heads, **_COYO_FACTS})


_COYO_FACTS = {"pool": "token", "act": "gelu_tanh", "epsilon": 1e-6}

_OURS = re.compile(
    r"(cls_token|pos_embed|reg_token|patch_embed\..+|blocks\.\d+\..+|norm\.(weight|bias)|fc_norm\.(weight|bias)"
    r"|head0?\.(weight|bias)|attn_pool\..+)$"
)
_WRAPPING = ("module.", "model.", "backbone.", "vit.", "encoder.", "teacher.", "student.", "_layers.", "_orig_mod.")


def _renamed(tensors: dict[str, Tensor], rules: list[Rule]) -> tuple[dict, dict]:
    """Names by the first rule that fits whole; (known, unknown)."""
    known, unknown = {}, {}
    compiled = [(re.compile(pattern), target) for pattern, target in rules]
    for name, tensor in tensors.items():
        for pattern, target in compiled:
            found = pattern.fullmatch(name)
            if found:
                known[found.expand(target) if "\\" in target else target] = tensor
                break
        else:
            (known if _OURS.match(name) else unknown)[name] = tensor
    return known, unknown


def _unwrapped(tensors: dict[str, Tensor], probe: str) -> dict[str, Tensor] | None:
    """Names without wrappers such as `module.` or `backbone.`, such that one of them is `probe`."""
    for _ in range(4):
        if probe in tensors:
            return tensors
        prefix = next((p for p in _WRAPPING if any(n.startswith(p) and n.endswith(probe) for n in tensors)), None)
        if prefix is None:
            return None
        tensors = {n[len(prefix) :] if n.startswith(prefix) else n: t for n, t in tensors.items()}
    return tensors if probe in tensors else None


def _is_linear(name: str, tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and name.endswith(".weight")


def _is_torch_oriented(container: Container, tensors: dict[str, Tensor]) -> bool:
    """Whether Linear weights are [out, in]: decided once, from the shapes of qkv and fc1.

    A square matrix fits either way, so no tensor is asked alone.
    """
    votes = set()
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and tensor.shape[0] != tensor.shape[1]:
            if name.endswith(("attn.qkv.weight", "mlp.fc1.weight")):
                votes.add(tensor.shape[0] > tensor.shape[1])
            elif name.endswith("mlp.fc2.weight"):
                votes.add(tensor.shape[0] < tensor.shape[1])
    if len(votes) > 1:
        raise CheckpointError(f"{container.path}: the shapes of qkv, fc1 and fc2 contradict each other")
    if not votes:
        raise CheckpointError(
            f"{container.path}: neither qkv nor fc1 tells whether matrices are [in, out] or [out, in]; it is not loaded"
        )
    return votes.pop()


def _oriented(container: Container, known: dict[str, Tensor]) -> dict[str, Tensor]:
    if not _is_torch_oriented(container, known):
        return known
    return {name: _turned(t) if _is_linear(name, t) else t for name, t in known.items()}


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """blocks.N.attn.q, k, v → blocks.N.attn.qkv. Raises CheckpointError where only some of the three are there."""
    out = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", name)
        if not found:
            out[name] = tensor
        else:
            parts = [tensors.get(f"{found[1]}{part}.{found[3]}") for part in "qkv"]
            if not all(parts):
                raise CheckpointError(f"{found[1][:-1]} has not all of query, key and value ({found[3]})")
            out[f"{found[1]}qkv.{found[3]}"] = _side_by_side(parts)
    return out


def _by_rules(layout: str, probe: str, rules: list[Rule]) -> Callable[[Container], Mapped | None]:
    def recognise(container: Container) -> Mapped | None:
        tensors = _unwrapped(container.tensors, probe)
        if tensors is None:
            return None
        known, unknown = _renamed(tensors, rules)
        known = _fused(_oriented(container, known))
        return Mapped(layout, _with_right_position(known), unknown, _facts(known))

    return recognise


def _with_right_position(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some store the position embedding as [N, C]."""
    position = tensors.get("pos_embed")
    if position is not None and len(position.shape) == 2:
        tensors["pos_embed"] = _reshaped(position, (1, *position.shape))
    return tensors


def _facts(tensors: dict[str, Tensor]) -> dict:
    facts = {"class_token": "cls_token" in tensors}
    if "reg_token" in tensors:
        facts["reg_tokens"] = tensors["reg_token"].shape[1]
    if "attn_pool.latent" in tensors:
        facts["pool"] = "map"
    elif "fc_norm.weight" in tensors or "cls_token" not in tensors:
        facts["pool"] = "avg"
    return facts


_LAYOUTS = (
    _coyo,  # whose backbone alone has an embedding/kernel, too
    _google,
    _by_rules("huggingface", "embeddings.patch_embeddings.projection.weight", _HUGGINGFACE),
    _by_rules("torchvision", "conv_proj.weight", _TORCHVISION),
    _by_rules("lukemelas", "patch_embedding.weight", _LUKEMELAS),
    _by_rules("jeonsworld", "transformer.embeddings.patch_embeddings.weight", _JEONSWORLD),
    _by_rules("timm", "patch_embed.proj.weight", _TIMM),
)


def _recognise(container: Container) -> Mapped | None:
    if container.notes.get("format") == "plsc":
        return Mapped("plsc", dict(container.tensors))
    for layout in _LAYOUTS:
        mapped = layout(container)
        if mapped is not None:
            if mapped.layout == "timm" and container.kind == "paddle":
                mapped.layout = "paddle"
            return mapped
    return None


_RANKS = (
    (re.compile(r"(cls_token|pos_embed|reg_token|attn_pool\.latent)"), 3),
    (re.compile(r"(patch_embed\.proj|.*\.conv\d?)\.weight"), 4),
    (re.compile(r"(.*\.)?(attn\.qkv|attn\.proj|mlp\.fc[12]|head0?|attn_pool\.(q|kv|proj))\.weight"), 2),
    (re.compile(r".*(norm\d?\.weight|\.gamma|\.bias)"), 1),
)


def _check_ranks(path, tensors: dict[str, Tensor]) -> None:
    """Refuse arrays of another number of dimensions than their name asks, and empty ones."""
    for name, tensor in tensors.items():
        rank = next((r for pattern, r in _RANKS if pattern.fullmatch(name)), len(tensor.shape))
        if len(tensor.shape) != rank or not all(tensor.shape):
            raise CheckpointError(f"{path}: {name} has shape {list(tensor.shape)}; it needs {rank} dimensions, none 0")
        if rank == 3 and tensor.shape[0] != 1:
            raise CheckpointError(f"{path}: {name} has shape {list(tensor.shape)}; its first dimension must be 1")


def recognise(container: Container) -> Mapped:
    """The container in plsc's names. Raises CheckpointError with some of its names where none fits."""
    try:
        mapped = _recognise(container)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(str(container.path)) else f"{container.path}: {text}") from None
    except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError, StopIteration) as error:
        raise CheckpointError(
            f"{container.path}: its arrays are not those of a Vision Transformer, or some are missing: {error!r}"
        ) from error
    if mapped is not None:
        _check_ranks(container.path, mapped.tensors)
        return mapped
    names = ", ".join(list(container.tensors)[:5])
    raise CheckpointError(
        f"{container.path}: the names of its arrays are of no known Vision Transformer: {names or 'there are none'}, …"
    )
