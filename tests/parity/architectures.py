"""Every architecture of timm's and transformers' Vision Transformers, with random weights: does it open, how exactly?

Weights are drawn so that no parameter is without effect, written by the library itself, and opened by what the file and
config.json tell. Blocks after the second are left out, and pictures are small: what is compared is each operation.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from plsc.errors import PlscError
from plsc.loading import load_pretrained
from plsc.models import vit_family
from plsc.models.published import ARCHITECTURES
from plsc.models.vision_transformer import VisionTransformer, ViTSpec
from plsc.weights import Source, read, write
from plsc.weights.containers import Container
from plsc.weights.read import foreign
from plsc.weights.tensors import Tensor

DEPTH = 2
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
HEAD_WIDTH = 16
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "GELUQuick": "quick_gelu", "QuickGELU": "quick_gelu"}


@dataclasses.dataclass
class Outcome:
    """What became of an architecture: `error` is the largest difference of logits, `refused` the message instead."""

    name: str
    error: float | None = None
    refused: str | None = None

    def __str__(self) -> str:
        if self.refused is not None:
            return f"refused: {self.refused}"
        return f"opens, {self.error:.0e}"


def drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that leave no parameter without effect: activations and logits of deviation about 1."""
    noise = rng.standard_normal(shape).astype("float32")
    if (name.endswith("weight") and len(shape) == 1) or len(shape) == 0:
        return 1 + 0.2 * noise
    if len(shape) == 1:
        return 0.2 * noise
    if "backbone" in name:
        return noise
    if "freqs" in name:
        return noise
    fan_in = {2: shape[-1], 4: math.prod(shape[1:])}.get(len(shape), 4)
    return noise / np.float32(math.sqrt(fan_in))


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """A torch model with every parameter drawn anew, in evaluation mode."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.asarray(drawn(name, tuple(parameter.shape), rng))))
    return model.eval()


def of_torch(run: Callable[[torch.Tensor], Any], batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = run(torch.from_numpy(batch))
    return out.numpy()


def of_plsc(model: VisionTransformer, batch: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(batch)).numpy()


def pictures(size: int | tuple[int, int], channels: int = 3) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(7).standard_normal((1, channels, height, width)).astype("float32")


def opened(source: Source, **given: Any) -> VisionTransformer:
    """The model that weights tell, with all of them."""
    fields = {**source.card.spec, **given}
    model = VisionTransformer(ViTSpec(**fields))
    load_pretrained(model, source.with_card(spec=fields), strict=True)
    model.eval()
    return model


# -- timm -----------------------------------------------------------------------------------------


def timm_names() -> list[str]:
    return [name for module in MODULES for name in timm.list_models(module=module)]


def timm_options(name: str) -> dict[str, Any]:
    """Two blocks, a head, pictures of few patches, and heads of 16 channels."""
    config = timm.get_pretrained_cfg(name)
    size = config.input_size[-1] if config else 224
    with torch.device("meta"):
        model = timm.create_model(name, **({} if "sapiens2" in name else {"depth": 1}))
    patch = model.patch_embed.patch_size
    few = 4 * (patch[0] if isinstance(patch, tuple) else patch)
    small = 128 if hasattr(model.patch_embed, "backbone") else few
    heads = heads_of(model)
    options: dict[str, Any] = {
        "depth": DEPTH,
        **({"num_kv_heads": heads // 2} if "sapiens2" in name else {}),
        "num_classes": 7,
        "embed_dim": HEAD_WIDTH * heads,
    }
    return options if name.startswith("vit_pe_") else {**options, "img_size": min(size, small)}


def heads_of(model: torch.nn.Module) -> int:
    """Of the first block."""
    return next(module.num_heads for module in model.blocks[0].modules() if hasattr(module, "num_heads"))


def write_timm(model: torch.nn.Module, name: str, folder: Path) -> Path:
    """As timm's hub has it."""
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 7}))
    return folder / "model.safetensors"


def fields_of_name(name: str, source: Source) -> dict[str, Any]:
    """What its name states, and its arrays do not, where the whole depth is there: here it is not."""
    row = ARCHITECTURES.get(name, {})
    return {field: value for field, value in row.items() if field in set(vit_family.UNSEEN) - source.card.stated.keys()}


def check_timm(name: str) -> Outcome:
    if "_mci_" in name:  # whose backbone has one width
        model = randomised(timm.create_model(name, depth=DEPTH, num_classes=7, img_size=64))
    else:
        model = randomised(timm.create_model(name, **timm_options(name)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write_timm(model, name, Path(folder))
            size = tuple(model.patch_embed.img_size) if getattr(model.patch_embed, "img_size", None) else 224
            source = read(path)
            ours = opened(source, img_size=size, **fields_of_name(name, source))
        except (PlscError, TypeError) as error:
            return Outcome(name, refused=str(error).replace(folder, "").lstrip("/").split("\n")[0])
        batch = pictures(size)
        difference = float(np.abs(of_plsc(ours, batch) - of_torch(model, batch)).max())
        return Outcome(name, difference)


def wrong_fields(name: str) -> dict[str, tuple[Any, Any]]:
    """Field → (value read, timm's) where a file of timm's, by arrays and name, is read as another model than it is."""
    with torch.device("meta"):
        model = timm.create_model(name)
    tensors = {key: Tensor(tuple(value.shape), lambda: np.empty(0)) for key, value in model.state_dict().items()}
    spec = foreign(Container(Path("/weights") / f"{name}.safetensors", "safetensors", tensors)).card.spec
    block = model.blocks[0]
    activation = next((module for module in block.modules() if type(module).__name__ in ACTIVATIONS), None)
    norm = next(module for module in block.modules() if "Norm" in type(module).__name__ and hasattr(module, "eps"))
    expected: dict[str, Any] = {
        "num_heads": heads_of(model),
        "depth": len(model.blocks),
        "epsilon": norm.eps,
        "block": {"ResPostBlock": "post", "EvaBlockPostNorm": "post", "ParallelScalingBlock": "parallel"}.get(
            type(block).__name__, "pre"
        ),
        "class_num": model.num_classes,
    }
    if model.global_pool != "" and (model.num_classes or not name.startswith("vit_pe_")):
        expected["pool"] = model.global_pool
    if activation is not None and spec.get("mlp") != "swiglu":
        expected["act"] = ACTIVATIONS[type(activation).__name__]
        if expected["act"] == "gelu" and getattr(activation, "approximate", "none") == "tanh":
            expected["act"] = "gelu_tanh"
    actual = {**dataclasses.asdict(ViTSpec()), **spec}
    return {field: (actual[field], value) for field, value in expected.items() if actual[field] != value}


def back_to_timm(name: str) -> list[str]:
    """Names of arrays that are not the same bits after a model of timm's went through plsc and back."""
    model = randomised(timm.create_model(name, **timm_options(name)))
    first = dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        source = read(write_timm(model, name, Path(folder)))
        source = source.with_card(spec={**source.card.spec, **fields_of_name(name, source)})
        write(source, "timm", Path(folder) / "back.safetensors")
        second = load_file(Path(folder) / "back.safetensors")
    return [
        key
        for key in first.keys() | second.keys()
        if not (key in first and key in second and torch.equal(first[key], second[key]))
    ]


# -- transformers ---------------------------------------------------------------------------------

_SMALL = dict(
    hidden_size=64,
    num_hidden_layers=DEPTH,
    num_attention_heads=2,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
)
_LABELS = {"id2label": {0: "cat", 1: "dog", 2: "größe"}, "label2id": {"cat": 0, "dog": 1, "größe": 2}}
_TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)


def _logits(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: model(x).logits


def _pooled(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: model(pixel_values=x).pooler_output


def _first(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: model(pixel_values=x).last_hidden_state[:, 0]


def _mean(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: model(pixel_values=x).last_hidden_state.mean(dim=1)


def _embeds(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: model(pixel_values=x).image_embeds


def _of_tower(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: model.vision_model(pixel_values=x).pooler_output


# name → (transformers' class, its configuration, arguments, what is compared)
HUGGINGFACE: dict[str, tuple[str, str, dict[str, Any], Callable]] = {
    "ViTForImageClassification": ("ViTForImageClassification", "ViTConfig", _LABELS, _logits),
    "ViTModel": ("ViTModel", "ViTConfig", {}, _pooled),
    "DeiTForImageClassification": ("DeiTForImageClassification", "DeiTConfig", _LABELS, _logits),
    "DeiTForImageClassificationWithTeacher": (
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        _LABELS,
        _logits,
    ),
    "Dinov2ForImageClassification": ("Dinov2ForImageClassification", "Dinov2Config", _LABELS, _logits),
    "Dinov2Model": ("Dinov2Model", "Dinov2Config", {}, _pooled),
    "Dinov2Model, SwiGLU": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}, _pooled),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        _LABELS,
        _logits,
    ),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, _pooled),
    "DINOv3ViTModel": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}, _pooled),
    "DINOv3ViTModel, SwiGLU": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        _pooled,
    ),
    "DINOv3ViTModel, gated GELU": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"num_register_tokens": 4, "use_gated_mlp": True},
        _pooled,
    ),
    "CLIPVisionModel": ("CLIPVisionModel", "CLIPVisionConfig", {}, _pooled),
    "CLIPVisionModelWithProjection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {}, _embeds),
    "CLIPVisionModel, GELU": ("CLIPVisionModel", "CLIPVisionConfig", {"hidden_act": "gelu"}, _pooled),
    "CLIPForImageClassification": ("CLIPForImageClassification", "CLIPConfig", _LABELS, _logits),
    "SiglipVisionModel": ("SiglipVisionModel", "SiglipVisionConfig", {}, _pooled),
    "SiglipForImageClassification": ("SiglipForImageClassification", "SiglipConfig", _LABELS, _logits),
    "SiglipModel": ("SiglipModel", "SiglipConfig", {}, _of_tower),
    "Siglip2VisionModel": ("Siglip2VisionModel", "Siglip2VisionConfig", {}, _pooled),
    "BeitForImageClassification": ("BeitForImageClassification", "BeitConfig", _LABELS, _logits),
    "BeitForImageClassification, relative positions": (
        "BeitForImageClassification",
        "BeitConfig",
        {**_LABELS, "use_relative_position_bias": True},
        _logits,
    ),
    "BeitForImageClassification, shared positions": (
        "BeitForImageClassification",
        "BeitConfig",
        {**_LABELS, "use_shared_relative_position_bias": True},
        _logits,
    ),
    "BeitForImageClassification, class token": (
        "BeitForImageClassification",
        "BeitConfig",
        {**_LABELS, "use_mean_pooling": False, "use_absolute_position_embeddings": True},
        _logits,
    ),
    "Data2VecVisionForImageClassification": (
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        {**_LABELS, "use_relative_position_bias": True},
        _logits,
    ),
    "ViTMAEModel": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}, _first),
    "IJepaForImageClassification": ("IJepaForImageClassification", "IJepaConfig", _LABELS, _logits),
    "IJepaModel": ("IJepaModel", "IJepaConfig", {}, _mean),
}


def huggingface_model(name: str) -> torch.nn.Module:
    kind, config, options, _ = HUGGINGFACE[name]
    if config in ("CLIPConfig", "SiglipConfig"):
        made = getattr(transformers, config)(vision_config=dict(_SMALL), text_config=dict(_TEXT), **options)
    else:
        made = getattr(transformers, config)(**{**_SMALL, **options})
    return randomised(getattr(transformers, kind)(made))


def check_huggingface(name: str) -> Outcome:
    model = huggingface_model(name)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            ours = opened(read(folder))
        except (PlscError, TypeError) as error:
            return Outcome(name, refused=str(error).replace(folder, "").lstrip("/").split("\n")[0])
        batch = pictures(32)
        difference = float(np.abs(of_plsc(ours, batch) - of_torch(HUGGINGFACE[name][3](model), batch)).max())
        return Outcome(name, difference)


def written_back(name: str) -> float:
    """The largest difference of logits after a model of transformers went through plsc and back, in the class of its
    new config.json: Data2Vec becomes the BEiT that it is, SigLIP's classifier I-JEPA's."""
    model, batch = huggingface_model(name), pictures(32)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "first")
        second = Path(folder) / "second"
        write(read(Path(folder) / "first"), "huggingface", second)
        kind = json.loads((second / "config.json").read_text())["architectures"][0]
        back, info = getattr(transformers, kind).from_pretrained(second, output_loading_info=True)
        left = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
        without_pooler = kind == "ViTModel" and name != "ViTModel"  # which is not a part of what was compared
        assert not left or without_pooler, left
    run = HUGGINGFACE[name][3]
    return float(np.abs(of_torch(run(back.eval()), batch) - of_torch(run(model), batch)).max())


# -- the table ------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- architectures: written by make test-parity -->", "<!-- architectures end -->"


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Markdown: a row for each architecture, in groups by where they come from."""
    lines = [
        "",
        f"With timm {timm.__version__}, transformers {transformers.__version__} and torch {torch.__version__}: "
        f"each with {DEPTH} blocks and random weights, every parameter drawn; the largest difference of logits.",
        "",
    ]
    for title, rows in outcomes.items():
        refused = sum(row.refused is not None for row in rows)
        lines += ["<details>", f"<summary>{title}: {len(rows) - refused} open, {refused} are refused</summary>", ""]
        lines += ["| architecture | |", "|---|---|", *(f"| {row.name} | {row} |" for row in rows), "", "</details>", ""]
    return "\n".join(lines)


def write_table(outcomes: dict[str, list[Outcome]]) -> None:
    """Put it between its marks in docs/checkpoints.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{after}", encoding="utf-8")
