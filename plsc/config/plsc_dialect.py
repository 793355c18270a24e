"""PLSC's words, and those of the libraries it took its own from: names, spellings, keys without effect, keys refused.

Tables only. What is written here is accepted or refused while a configuration is checked; no other part of plsc
knows of it. `_` in a table of names stands for every component of its kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Words:
    """What one section or component understands besides its own keys.

    Attributes:
        aliases: another spelling → the key.
        inert: key accepted without effect, which a note says → reason.
        refused: key that is not offered → reason.
        harmless: the value at which a refused key is accepted, where there is one besides null.
        remarks: key → (value at which there is nothing to say, what differs from PLSC).
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    harmless: Mapping[str, Any] = field(default_factory=dict)
    remarks: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def __or__(self, other: "Words") -> "Words":
        """The words of both."""
        return Words(**{f.name: {**getattr(self, f.name), **getattr(other, f.name)} for f in fields(self)})


SECTION_ALIASES = {"AMP": "FP16"}

# PLSC's switches → (the key that they set, its value by theirs); what they set in an absent FP16 has no effect
SWITCHES: dict[tuple[str, str], tuple[tuple[str, str], dict[bool, Any]]] = {
    ("Global", "use_visualdl"): (("Global", "loggers"), {True: ["visualdl"], False: []}),
    ("Optimizer", "use_master_param"): (("FP16", "master_weight"), {True: True, False: False}),
    ("DistributedStrategy", "data_sharding"): (("DistributedStrategy", "sharding"), {True: {"stage": 1}, False: None}),
}

# key path, * for Train and Eval → its words
SECTIONS: dict[tuple[str, ...], Words] = {
    ("Global",): Words(
        inert={
            "train_epoch_func": "there is one training loop",
            "eval_func": "there is one evaluation loop",
            "distributed": "read from the launcher",
            "rank": "read from the launcher",
            "world_size": "read from the launcher",
        },
        refused={
            "use_dali": "DALI is not used; decoding runs in loader.num_workers processes",
            "task_type": "plsc does classification only; other tasks are components of the section Task",
        },
        harmless={"use_dali": False, "task_type": "classification"},
    ),
    ("Optimizer",): Words(refused={"lr_func": "YAML holds no functions; layer_decay, lr_scale and freeze set rates"}),
    ("DataLoader", "*", "dataset"): Words(
        aliases={"transform": "transform_ops", "batch_transform": "batch_transform_ops"}
    ),
    ("DataLoader", "*", "loader"): Words(
        inert={
            "use_shared_memory": "workers always hand batches over in shared memory",
            "collate_fn": "batches have one layout",
        }
    ),
}

# PLSC's and other libraries' names of components → plsc's
NAMES: dict[str, dict[str, str]] = {
    "dataset": {"Cifar10": "CIFAR10", "Cifar100": "CIFAR100", "FashionMnist": "FashionMNIST"},
    "transform": {"RandomResizedCropAndInterpolation": "RandomResizedCrop"},
    "batch transform": {"CutMix": "Cutmix"},
    "sampler": {"BatchSampler": "DistributedBatchSampler"},
    "optimizer": {"LAMB": "Lamb", "MomentumLARS": "LARS"},
    "scheduler": {"Polynomial": "Poly"},
}

_FACE = "face recognition is not offered"
_PLAIN = "only plain Vision Transformers are offered"
_SELF_SUPERVISED = "it serves self-supervised training, which is not offered"

# names of components that plsc does not have → reason
REFUSED_NAMES: dict[str, dict[str, str]] = {
    "dataset": dict.fromkeys(("FaceIdentificationDataset", "FaceVerificationDataset", "FaceRandomDataset"), _FACE),
    "transform": dict.fromkeys(
        ("TwoViewsTransform", "RandomResizedCropWithTwoImages", "SimCLRGaussianBlur", "BYOLSolarize"), _SELF_SUPERVISED
    ),
    "loss": {"MarginLoss": _FACE},
    "metric": {"LFWAcc": _FACE},
}
# the same by how names begin, in any case
REFUSED_PREFIXES: dict[str, dict[str, str]] = {
    "model": {
        "convnext": "only Vision Transformers are offered",
        **dict.fromkeys(("swin_", "cait_", "mae_", "convmae_", "cae_"), _PLAIN),
        **dict.fromkeys(("iresnet", "mobilefacenet", "facevit"), _FACE),
    },
}

_EPSILON = {"eps": "epsilon"}
_MOMENTS = {"exp_avg_force_fp32": "moments are float32 anyway"}
_CLASSES = {"class_num": "the number of classes is Model.class_num"}

# kind of component → name → its words
COMPONENTS: dict[str, dict[str, Words]] = {
    "model": {
        "_": Words(
            inert={"norm_layer": "the norm is LayerNorm"},
            refused={
                "num_classes": "the number of classes is class_num",
                "num_labels": "the number of classes is class_num",
                "image_size": "the size of images is img_size",
                "in_channels": "the channels of images are in_chans",
                "num_channels": "the channels of images are in_chans",
                "hidden_dim": "the width is embed_dim",
                "hidden_size": "the width is embed_dim",
                "dim": "the width is embed_dim",
                "num_layers": "the number of blocks is depth",
                "num_hidden_layers": "the number of blocks is depth",
                "num_attention_heads": "the number of heads is num_heads",
                "mlp_dim": "the MLP's width is mlp_ratio times embed_dim",
                "intermediate_size": "the MLP's width is mlp_ratio times embed_dim",
                "dropout": "the rate is drop_rate",
                "attention_dropout": "the rate is attn_drop_rate",
                "global_pool": "the pooling is pool: token, avg or map",
                "init_values": "LayerScale's initial value is layer_scale",
                "checkpoint_path": "weights are given as Global.pretrained_model; from Python as pretrained",
            },
        ),
    },
    "transform": {
        "DecodeImage": Words(
            refused={"channel_first": "pictures stay [H, W, C] until ToCHWImage"}, harmless={"channel_first": False}
        ),
        "NormalizeImage": Words(
            inert={
                "order": "mean and std are a value a channel in either order",
                "output_fp16": "normalisation is float32; FP16 decides the model's precision",
                "channel_num": "the number of channels is Model.in_chans",
            }
        ),
        "Normalize": Words(inert={"inplace": "it always works on a new tensor"}),
        "ToTensor": Words(inert={"data_format": "the model's input is [C, H, W]"}),
        "RandomErasing": Words(
            aliases={"probability": "EPSILON", "min_area": "sl", "max_area": "sh", "min_aspect": "r1"}
        ),
        "RandomResizedCrop": Words(
            inert={"antialias": "Pillow always smooths where it shrinks; backend: cv2 does not"}
        ),
        "TimmAutoAugment": Words(inert={"img_size": "translations are parts of the picture's own side, as in timm"}),
    },
    "batch transform": {"Mixup": Words(inert=_CLASSES), "Cutmix": Words(inert=_CLASSES)},
    "optimizer": {
        "AdamW": Words(
            aliases=_EPSILON,
            inert=_MOMENTS,
            remarks={"epsilon": (1e-8, "is used here; PLSC itself drops this key and runs at 1e-8")},
        ),
        "Adam": Words(aliases=_EPSILON, inert=_MOMENTS),
        "Lamb": Words(aliases=_EPSILON),
        "Adafactor": Words(
            aliases=_EPSILON,
            refused={
                "one_dim_param_no_weight_decay": "write no_weight_decay: [1d]",
                "warmup_init": "give LRScheduler a warm-up",
            },
            harmless={"one_dim_param_no_weight_decay": False, "warmup_init": False},
        ),
    },
    "scheduler": {"TimmCosine": Words(aliases={"warmup_epochs": "warmup_epoch"})},
}

_NOTHING = Words()


def section(path: tuple) -> Words:
    """The words of the section at a key path."""
    for pattern, words in SECTIONS.items():
        if len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True)):
            return words
    return _NOTHING


def component(kind: str, name: str) -> Words:
    """The words of a registered component."""
    words = COMPONENTS.get(kind, {})
    return words.get("_", _NOTHING) | words.get(name, _NOTHING)


def name_of(kind: str, name: str) -> str:
    """plsc's name of a component; a name that is none of the dialect's stays as it is."""
    return NAMES.get(kind, {}).get(name, name)


def aliases_of(kind: str, name: str) -> list[str]:
    """The dialect's names of a component."""
    return sorted(alias for alias, own in NAMES.get(kind, {}).items() if own == name)


def reason_against(kind: str, name: str) -> str | None:
    """Why plsc does not have a component that PLSC has; None for any other name."""
    if name in REFUSED_NAMES.get(kind, {}):
        return REFUSED_NAMES[kind][name]
    prefixes = REFUSED_PREFIXES.get(kind, {})
    return next((reason for prefix, reason in prefixes.items() if name.lower().startswith(prefix)), None)
