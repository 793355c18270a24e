"""Weights in plsc's names → the formats of others. The inverse of layouts.py, array for array.

Every function takes arrays in plsc's names and orientation and the model's spec as a dict, and
raises CheckpointError for what the other format has no place for.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from plsc.errors import CheckpointError
from plsc.weights.adapt import HEAD
from plsc.weights.containers import save_safetensors
from plsc.weights.processor import to_processor
from plsc.weights.read import Source


def write(source: Source, to: str, output, *, backbone: bool = False) -> list[Path]:
    """Write a Source in another format.

    Args:
        to: one of FORMATS. output: a file, or a folder for huggingface.
        backbone: leave out head and pre-logits.

    Returns:
        The files written.
    """
    arrays = {name: source.read(name) for name in source.tensors if not (backbone and name.startswith(HEAD))}
    spec = dict(source.card.spec)
    if backbone:
        spec.update(class_num=0, representation_size=None)
    if spec.get("num_heads", 1) < 1 or spec.get("embed_dim", 1) % spec.get("num_heads", 1):
        raise CheckpointError(f"{spec['num_heads']} heads do not divide the width {spec.get('embed_dim')}")
    output = Path(output)
    try:
        return _WRITERS[to](arrays, spec, source, output)
    except KeyError as error:
        if to not in _WRITERS:
            raise CheckpointError(f"no format is called {to!r}; there are {', '.join(FORMATS)}") from None
        raise CheckpointError(f"{source.path}: the source does not tell {error}, which {to} needs") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{output}: could not be written: {error}") from error


def _replace(output: Path, write_to) -> list[Path]:
    """Write beside the output, then rename: what stood there stays until the new file is whole.

    The source may be that very file, mapped into memory.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        raise CheckpointError(f"{output}: is a folder; give --output a file")
    beside = output.with_name(f".writing-{output.name}")
    try:
        write_to(beside)
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)
    return [output]


def _write_safetensors(arrays, spec, source, output):
    names = source.card.class_names if "head.weight" in arrays else None
    card = dataclasses.replace(source.card, spec=spec, class_names=names)
    metadata = {"format": "plsc", **card.to_metadata()}
    return _replace(output, lambda path: save_safetensors(_contiguous(arrays), path, metadata))


def _write_timm(arrays, spec, source, output):
    named = _contiguous(to_timm(arrays, spec))
    return _replace(output, lambda path: save_safetensors(named, path, {"format": "pt"}))


def _write_google(arrays, spec, source, output):
    named = to_google(arrays, spec)

    def save(path):
        with open(path, "wb") as file:  # else NumPy appends an ending of its own
            np.savez(file, **named)

    return _replace(output, save)


def _write_pdparams(arrays, spec, source, output):
    import paddle

    tensors = {name: paddle.to_tensor(array) for name, array in arrays.items()}
    return _replace(output, lambda path: paddle.save(tensors, str(path)))


def _contiguous(arrays: dict) -> dict:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _refuse(spec: dict, format_name: str, **absent) -> None:
    """Raise where the spec uses what the format lacks: field=(harmless values, what it is)."""
    for field, (harmless, what) in absent.items():
        if spec.get(field, harmless[0]) not in harmless:
            raise CheckpointError(f"{format_name} has no place for {what} (the model's {field} is {spec[field]!r})")


_PRE_LOGITS = ((None,), "pre-logits; --backbone leaves them and the head out")
_SCALE = ((None,), "another scale of attention")
_PLAIN = {
    "qk_scale": _SCALE,
    "resnet_layers": ((None,), "a ResNet before the patches"),
    "layer_scale": ((None,), "LayerScale"),
    "reg_tokens": ((0,), "register tokens"),
    "fc_norm": ((False,), "a norm behind the pooling"),
}


def _is_linear(name: str, array) -> bool:
    return array.ndim == 2 and name.endswith(".weight")


def to_timm(arrays: dict, spec: dict) -> dict:
    """timm's names and [out, in]; opens with timm.create_model(…, checkpoint_path=…)."""
    _refuse(spec, "timm", representation_size=_PRE_LOGITS, qk_scale=_SCALE)
    out = {}
    for name, array in arrays.items():
        if spec.get("resnet_layers") in ((), []):
            name = name.replace("patch_embed.backbone.stem.", "patch_embed.backbone.")
        out[name] = array.T if _is_linear(name, array) else array
    return out


# -- Hugging Face -----------------------------------------------------------------------------

_HF_PLAIN = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_HF_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def to_huggingface(arrays: dict, spec: dict) -> dict:
    """transformers' ViT names: ViTForImageClassification with a head, ViTModel without."""
    _refuse(
        spec,
        "Hugging Face's ViT",
        representation_size=_PRE_LOGITS,
        pool=(("token",), "another pooling than the class token"),
        no_embed_class=((False,), "a class token without position embedding"),
        **_PLAIN,
    )
    prefix = "vit." if "head.weight" in arrays else ""
    out = {}
    for name, array in arrays.items():
        if _is_linear(name, array):
            array = array.T
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in _HF_PLAIN:
            out[prefix + _HF_PLAIN[name]] = array
        elif found and found[2] == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                out[f"{prefix}encoder.layer.{found[1]}.attention.attention.{part}.{found[3]}"] = piece
        elif found:
            out[f"{prefix}encoder.layer.{found[1]}.{_HF_BLOCK[found[2]]}.{found[3]}"] = array
        elif name.startswith("head."):
            out[name.replace("head.", "classifier.")] = array
        else:
            raise CheckpointError(f"Hugging Face's ViT has no place for {name}")
    return out


def _write_huggingface(arrays: dict, spec: dict, source: Source, folder: Path) -> list[Path]:
    weights = _contiguous(to_huggingface(arrays, spec))
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; huggingface writes a folder")
    folder.mkdir(parents=True, exist_ok=True)
    processor = to_processor(source.card.preprocess.to_dict(), spec) if source.card.preprocess else None
    names = source.card.class_names or [f"LABEL_{i}" for i in range(spec["class_num"])]
    head = "head.weight" in arrays
    config = {
        "architectures": ["ViTForImageClassification" if head else "ViTModel"],
        "model_type": "vit",
        "hidden_size": spec["embed_dim"],
        "num_hidden_layers": spec["depth"],
        "num_attention_heads": spec["num_heads"],
        "intermediate_size": int(arrays["blocks.0.mlp.fc1.weight"].shape[1]),
        "hidden_act": "gelu_pytorch_tanh" if spec.get("act") == "gelu_tanh" else "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": spec.get("epsilon", 1e-6),
        "image_size": spec["img_size"],
        "patch_size": spec["patch_size"],
        "num_channels": spec["in_chans"],
        "qkv_bias": spec.get("qkv_bias", True),
        "dtype": "float32",
    }
    if head:
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    written = [folder / "model.safetensors", folder / "config.json"]
    _replace(written[0], lambda path: save_safetensors(weights, path, {"format": "pt"}))
    written[1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if processor:
        written.append(folder / "preprocessor_config.json")
        written[-1].write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    return written


# -- Google -----------------------------------------------------------------------------------

_GOOGLE_PLAIN = {
    "cls_token": "cls",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed.proj.bias": "embedding/bias",
    "norm.weight": "Transformer/encoder_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
    "head0.weight": "pre_logits/kernel",
    "head0.bias": "pre_logits/bias",
    "head.weight": "head/kernel",
    "head.bias": "head/bias",
}
_GOOGLE_BLOCK = {
    "norm1.weight": "LayerNorm_0/scale",
    "norm1.bias": "LayerNorm_0/bias",
    "norm2.weight": "LayerNorm_2/scale",
    "norm2.bias": "LayerNorm_2/bias",
    "mlp.fc1.weight": "MlpBlock_3/Dense_0/kernel",
    "mlp.fc1.bias": "MlpBlock_3/Dense_0/bias",
    "mlp.fc2.weight": "MlpBlock_3/Dense_1/kernel",
    "mlp.fc2.bias": "MlpBlock_3/Dense_1/bias",
    "attn.proj.bias": "MultiHeadDotProductAttention_1/out/bias",
}


def _hwio(array):
    return array.transpose(2, 3, 1, 0)


def to_google(arrays: dict, spec: dict) -> dict:
    """The names of Google's original npz files, hybrids and pre-logits included."""
    plain = {k: v for k, v in _PLAIN.items() if k != "resnet_layers"}
    _refuse(
        spec,
        "Google's npz",
        pool=(("token", "avg"), "attention pooling"),
        no_embed_class=((False,), "a class token without position embedding"),
        qkv_bias=((True,), "attention without biases"),
        **plain,
    )
    if spec.get("pool") == "avg" and "cls_token" in arrays:
        raise CheckpointError("Google's npz has no place for a class token beside average pooling")
    heads, out = spec["num_heads"], {}
    for name, array in arrays.items():
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if name in _GOOGLE_PLAIN:
            out[_GOOGLE_PLAIN[name]] = array
        elif name == "patch_embed.proj.weight":
            out["embedding/kernel"] = _hwio(array)
        elif name.startswith("patch_embed.backbone."):
            key, value = _google_resnet(name, array)
            out[key] = value
        elif found:
            block = f"Transformer/encoderblock_{found[1]}"
            attention = f"{block}/MultiHeadDotProductAttention_1"
            if found[2].startswith("attn.qkv."):
                kind = "kernel" if found[2].endswith("weight") else "bias"
                for part, piece in zip(("query", "key", "value"), np.split(array, 3, axis=-1), strict=True):
                    out[f"{attention}/{part}/{kind}"] = piece.reshape(*piece.shape[:-1], heads, -1)
            elif found[2] == "attn.proj.weight":
                out[f"{attention}/out/kernel"] = array.reshape(heads, -1, array.shape[1])
            elif found[2] in _GOOGLE_BLOCK:
                out[f"{block}/{_GOOGLE_BLOCK[found[2]]}"] = array
            else:
                raise CheckpointError(f"Google's npz has no place for {name}")
        else:
            raise CheckpointError(f"Google's npz has no place for {name}")
    return _contiguous(out)


def _google_resnet(name: str, array):
    kinds = {"weight": "scale", "bias": "bias"}
    flat = array.reshape(1, 1, 1, -1)
    if name.endswith("stem.conv.weight"):
        return "conv_root/kernel", _hwio(array)
    found = re.fullmatch(r"patch_embed\.backbone\.stem\.norm\.(weight|bias)", name)
    if found:
        return f"gn_root/{kinds[found[1]]}", flat
    found = re.fullmatch(
        r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(downsample\.)?(conv|norm)(\d?)\.(weight|bias)", name
    )
    stage, unit, shortcut, layer, number, kind = found.groups()
    where = f"block{int(stage) + 1}/unit{int(unit) + 1}"
    which = "_proj" if shortcut else number
    if layer == "conv":
        return f"{where}/conv{which}/kernel", _hwio(array)
    return f"{where}/gn{which}/{kinds[kind]}", flat


_WRITERS = {
    "safetensors": _write_safetensors,
    "timm": _write_timm,
    "huggingface": _write_huggingface,
    "google": _write_google,
    "pdparams": _write_pdparams,
}
FORMATS = tuple(_WRITERS)
