"""Every shipped recipe against a table of its source's values, and one update of each in small.

The table is typed from the sources (papers, READMEs, configurations and code of the projects that a recipe reproduces;
the header of each recipe names its own), not from the recipes: learning rates at given updates, the weights that do not
decay, losses of given logits, sizes, augmentation.
"""

import dataclasses
import io
import math

import numpy as np
import paddle
import pytest
from PIL import Image
from scipy.special import expit, log_softmax

from plsc import build
from plsc.build.components import component
from plsc.config import load
from plsc.config.recipes import shipped_recipes
from plsc.data.datasets import Dataset, Sample
from plsc.engine.assembly import assemble
from plsc.engine.distributed import World
from plsc.models import spec_of
from plsc.optim import parameter_groups
from plsc.registry import LOSSES
from plsc.targets import Targets

IN1K, CIFAR = 1_281_167, 50_000  # training pictures of ImageNet-1k and CIFAR
NOT_KERNELS = {"bias", "norm", "token", "position", "scale"}
TI, S, B, L, H = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16), (1280, 32, 16)  # width, depth, heads
WITHOUT_A_SOURCE = {
    "cifar10_vit",
    "cifar10_hybrid",
    "deit_tiny_cifar10_224_500_steps",
    "digits",
    "fashion_mnist_vit",
    "finetune_folder",
    "tootouch_in_small",
    "tootouch_in_small_augmented",
    "DeiT_tiny_patch16_224_eval",
}


@dataclasses.dataclass
class Row:
    """What a recipe's source says.

    Attributes:
        size: (width, depth, heads). image, patch: pixels. classes: None is auto.
        batch: over all processes. samples: pictures of an epoch; whole: whether its rest is dropped.
        epochs, steps: the length, in one of them. rates: update → learning rate; a float counts epochs.
        optimizer: name and what is not its default here. free: kinds of weights that do not decay. clip: of the norm.
        loss: see LOSSES_BY_HAND. path: drop path of the first and of the last block.
        train, evaluation: names of transforms, with the size where they have one.
        mix: (alpha of mixup, alpha of CutMix, smoothing) or nothing.
        scale: pattern of weights → what their weight decay is multiplied by.
        sharding: (stage, devices of a group) or nothing.
        model: further fields.
    """

    size: tuple[int, int, int]
    image: int
    patch: int
    classes: int | None
    batch: int
    samples: int
    rates: dict
    optimizer: tuple[str, dict]
    loss: str
    train: list[str]
    evaluation: list[str]
    epochs: int | None = None
    steps: int | None = None
    whole: bool = False
    free: frozenset | set = frozenset()
    clip: float | None = None
    path: tuple[float, float] = (0.0, 0.0)
    drop: float = 0.0
    mix: tuple = ()
    mean: float | None = 0.485
    seed: int = 0
    precision: tuple = ("O1", "float16")
    finetune: bool = False
    average: tuple = ()
    model: dict = dataclasses.field(default_factory=dict)
    repeats: bool = False
    layer_decay: float | None = None
    parts: int = 1
    scale: dict = dataclasses.field(default_factory=dict)
    sharding: tuple = ()


def epochs_of(row: Row) -> int:
    return row.samples // row.batch if row.whole else -(-row.samples // row.batch)


def cosine(peak: float, warm: int, total: int, end: float = 0.0) -> dict:
    """Half-way up, at the peak, half-way down and at the end."""
    return {0: 0.0, warm // 2: peak * (warm // 2) / warm, warm: peak, (warm + total) / 2: (peak + end) / 2, total: end}


def by_epoch(peak: float, least: float, epochs: int, warm: int = 5, start: float = 1e-6) -> dict:
    """timm's: linear from 1e-6 in 5 epochs, in whose place the cosine of all epochs has lost its beginning."""
    after = least + (peak - least) * (1 + math.cos(math.pi * warm / epochs)) / 2
    middle = {float(epochs // 2): (peak + least) / 2}
    return {0.0: start, 1.0: start + (peak - start) / warm, float(warm): after, **middle}


def names_of(text: str) -> list[str]:
    return text.split()


def shown(parts) -> list[str]:
    """Names of transforms, with the size of those that have one."""
    sized = []
    for part in parts:
        size = part.arguments.get("size") or part.arguments.get("resize_short")
        size = size[0] if isinstance(size, tuple) else size
        sized.append(f"{part.name}:{size}" if size else part.name)
    return sized


# -- the table ----------------------------------------------------------------------------------

HALF = 0.5
TABLE: dict[str, Row] = {}


def vit_pytorch(name, size, image, classes, steps=10_000, warm=500, patch=16, **model):
    TABLE[f"vit_pytorch_{name}"] = Row(
        size, image, patch, classes, 512, CIFAR, cosine(0.03, warm, steps), ("Momentum", dict(momentum=0.9)), "ce",
        names_of(f"RandomResizedCrop:{image} ToTensor Normalize"), names_of(f"Resize:{image} ToTensor Normalize"),
        steps=steps, clip=1.0, drop=0.1, mean=HALF, seed=42, precision=("O2", "float16"), finetune=True,
        model=dict(head_init="zeros", act="gelu", representation_size=None, **model),
    )  # fmt: skip


HYBRID = dict(patch=1, resnet_layers=(3, 4, 9))
for image in (224, 384):
    for classes in (10, 100):
        vit_pytorch(f"b16_cifar{classes}_{image}", B, image, classes)
        vit_pytorch(f"r50_b16_cifar{classes}_{image}", B, image, classes, **HYBRID)
for classes in (10, 100):
    vit_pytorch(f"l32_cifar{classes}_224", L, 224, classes, patch=32)
    vit_pytorch(f"b16_in1k_cifar{classes}_224", B, 224, classes)
    vit_pytorch(f"l32_in1k_cifar{classes}_224", L, 224, classes, patch=32)
    vit_pytorch(f"b16_cifar{classes}_224_500_steps", B, 224, classes, 500, 100)
    vit_pytorch(f"b16_cifar{classes}_224_1000_steps", B, 224, classes, 1000, 100)
vit_pytorch("h14_cifar100_224", H, 224, 100, patch=14)

PLAIN = "DecodeImage RandomResizedCrop:224 RandomHorizontalFlip NormalizeImage ToCHWImage"
CENTRE = names_of("DecodeImage Resize:256 CenterCrop:224 NormalizeImage ToCHWImage")
TABLE["pytorch_vit_b16_in1k"] = Row(
    B, 224, 16, 1000, 1024, IN1K, cosine(1e-3, 10_000, 300 * 1252),
    ("AdamW", dict(betas=(0.9, 0.999), weight_decay=0.3)), "ce", names_of(PLAIN), CENTRE, epochs=300, clip=1.0, seed=1,
    model=dict(pool="all", fc_norm=True, weight_init="torch", head_init="scheme"),
)  # fmt: skip
TABLE["pytorch_vit_b16_in1k_as_run"] = dataclasses.replace(
    TABLE["pytorch_vit_b16_in1k"],
    size=(768, 12, 8),
    rates={0: 1e-3, 40_000: 5e-4, 80_000: 0.0, 160_000: 1e-3, 200_000: 5e-4, 320_000: 1e-3},
)

TABLE["tootouch_b6_cifar100_72"] = Row(
    B, 72, 6, 100, 256, CIFAR, {0: 1e-3, 19_599: 1e-3}, ("Adam", dict(betas=(0.9, 0.999), epsilon=1e-8)), "ce",
    names_of("Resize:72 RandomHorizontalFlip RandomRotation RandomResizedCrop:72 ToTensor"),
    names_of("Resize:72 ToTensor"),
    epochs=100, drop=0.1, mean=None, seed=223, precision=(), parts=16,
    model=dict(qkv_bias=False, epsilon=1e-5, weight_init="torch", head_init="scheme", mlp_ratio=4.0),
)  # fmt: skip
TABLE["tootouch_b16_cifar100_384"] = Row(
    B, 384, 16, 100, 512, CIFAR, {0: 1e-3, 2939: 1e-3}, ("SGD", {}), "ce",
    names_of("Resize:384 RandomHorizontalFlip RandomRotation RandomResizedCrop:384 ToTensor"),
    names_of("Resize:384 ToTensor"),
    epochs=30, drop=0.1, mean=None, seed=223, precision=(), finetune=True, parts=64,
    model=dict(qkv_bias=True, epsilon=1e-6),
)  # fmt: skip


def coyo_train(image):
    return names_of(f"DecodeImage InceptionCrop:{image} RandFlipImage NormalizeImage ToCHWImage")


COYO = dict(weight_init="coyo", act="gelu_tanh", head_init="zeros")
SHORT_SIDE = names_of("DecodeImage ResizeImage:256 CenterCropImage:224 NormalizeImage ToCHWImage")
TABLE["ViT_large_patch16_384_coyo_ft_in1k"] = Row(
    L, 384, 16, 1000, 512, IN1K, cosine(0.06, 500, 20_016), ("Momentum", dict(momentum=0.9)), "ce",
    coyo_train(384), names_of("DecodeImage ResizeImage:384 NormalizeImage ToCHWImage"), epochs=8, whole=True, clip=1.0,
    mean=HALF, seed=2021, precision=("O1", "bfloat16"), finetune=True, model=dict(representation_size=None, **COYO),
)  # fmt: skip
TABLE["ViT_large_patch16_512_coyo_ft_in1k_ema"] = dataclasses.replace(
    TABLE["ViT_large_patch16_384_coyo_ft_in1k"], image=512, average=(0.9999, True), train=coyo_train(512),
    evaluation=names_of("DecodeImage ResizeImage:512 NormalizeImage ToCHWImage"),
)  # fmt: skip
TABLE["ViT_base_patch16_224_coyo_in1k"] = Row(
    B, 224, 16, 1000, 4096, IN1K, cosine(3e-3, 10_000, 93_600),
    ("AdamW", dict(betas=(0.9, 0.999), epsilon=1e-7, weight_decay=0.3)), "sigmoid towards half 1e-4", coyo_train(224),
    SHORT_SIDE, epochs=300, whole=True, clip=1.0, drop=0.1, mean=HALF, seed=2021, precision=("O1", "bfloat16"),
    model=dict(representation_size=768, head_bias=-10.0, **COYO),
)  # fmt: skip
COYO_PICTURES = 300_000_000
COYO_STEPS = 7 * (COYO_PICTURES // 4096)
TABLE["ViT_large_patch16_224_coyo300m"] = Row(
    L, 224, 16, 21_841, 4096, COYO_PICTURES, cosine(6e-4, 10_000, COYO_STEPS, end=1e-5),
    ("AdamW", dict(betas=(0.9, 0.999), epsilon=1e-7, weight_decay=0.1)), "sigmoid", coyo_train(224), SHORT_SIDE,
    epochs=7, whole=True, clip=1.0, mean=HALF, seed=2021, precision=("O1", "bfloat16"),
    model=dict(representation_size=1024, head_bias=-10.0, **COYO),
)  # fmt: skip

PLSC_CROP = "DecodeImage RandCropImage:{} RandFlipImage NormalizeImage ToCHWImage"
PLSC = dict(weight_init="plsc", act="gelu")
TABLE["ViT_base_patch16_224_in1k_1n8c_dp_fp16o2"] = Row(
    B, 224, 16, 1000, 4096, IN1K, cosine(3e-3, 10_000, 300 * 313),
    ("AdamW", dict(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.3)), "sigmoid towards one 1e-4",
    names_of(PLSC_CROP.format(224)), SHORT_SIDE, epochs=300, clip=1.0, drop=0.1, mean=HALF, seed=2021, parts=2,
    precision=("O2", "float16"), model=dict(representation_size=768, head_bias=-10.0, **PLSC),
)  # fmt: skip
TABLE["ViT_base_patch16_384_ft_in1k_1n8c_dp_fp16o2"] = Row(
    B, 384, 16, 1000, 512, IN1K, cosine(3e-3, 500, 20_016), ("Momentum", dict(momentum=0.9, weight_decay=1e-4)), "ce",
    names_of(PLSC_CROP.format(384)), names_of("DecodeImage ResizeImage:384 NormalizeImage ToCHWImage"), epochs=8,
    whole=True, clip=0.5, drop=0.1, mean=HALF, seed=2021, parts=2, precision=("O2", "float16"), finetune=True,
    model=PLSC,
)  # fmt: skip
TABLE["ViT_large_patch16_384_in1k_ft_4n32c_dp_fp16o2"] = dataclasses.replace(
    TABLE["ViT_base_patch16_384_ft_in1k_1n8c_dp_fp16o2"], size=L, clip=1.5, parts=1, rates=cosine(0.015, 500, 20_016)
)
IN21K = 13_153_500
TABLE["ViT_large_patch16_224_in21k_4n32c_dp_fp16o2"] = Row(
    L, 224, 16, 21_841, 4096, IN21K, cosine(1e-3, 10_000, 90 * 3211, end=1e-5),
    ("AdamW", dict(betas=(0.9, 0.999), epsilon=1e-6, weight_decay=0.15)), "sigmoid towards one 1e-4",
    names_of(PLSC_CROP.format(224)), SHORT_SIDE, epochs=90, whole=True, drop=0.1, mean=HALF, seed=2021,
    precision=("O2", "float16"), model=dict(representation_size=1024, head_bias=-10.0, **PLSC),
)  # fmt: skip

DEIT = "TimmAutoAugment NormalizeImage RandomErasing ToCHWImage"
DEIT_MIX = (0.8, 1.0, 0.1)
ADAMW = ("AdamW", dict(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05))
PLSC_DEIT = Row(
    B, 224, 16, 1000, 1024, IN1K, by_epoch(1e-3, 1e-5, 300), ADAMW, "ce",
    names_of(f"DecodeImage RandCropImage:224 RandFlipImage {DEIT}"), SHORT_SIDE, epochs=300, path=(0.0, 0.1),
    mix=DEIT_MIX, seed=2021, precision=("O2", "float16"), free={"norm", "token", "position"}, repeats=True,
    model=dict(weight_init="timm", head_init="scheme"),
)  # fmt: skip
TABLE["DeiT_base_patch16_224_in1k_1n8c_dp_fp16o2"] = dataclasses.replace(PLSC_DEIT, seed=42, free=NOT_KERNELS)
TABLE["DeiT_base_patch16_224_in1k_1n8c_dp_fp32"] = dataclasses.replace(PLSC_DEIT, precision=("O0", "float16"), parts=2)
TABLE["DeiT_base_patch16_224_in1k_2n16c_dp_fp16o2"] = PLSC_DEIT
DEIT_TRAIN = names_of(f"DecodeImage RandomResizedCrop:224 RandomHorizontalFlip {DEIT}")
TABLE["DeiT_base_patch16_224_in1k_1n8c_dp_fp16o1"] = dataclasses.replace(
    PLSC_DEIT, epochs=150, seed=2022, precision=("O1", "float16"), free=NOT_KERNELS, train=DEIT_TRAIN,
    evaluation=CENTRE, rates=by_epoch(1e-3, 1e-5, 150),
)  # fmt: skip
for word, size in (("tiny", TI), ("small", S), ("base", B)):
    TABLE[f"deit_{word}_in1k"] = dataclasses.replace(
        PLSC_DEIT, size=size, seed=0, precision=("O1", "float16"), free=NOT_KERNELS, train=DEIT_TRAIN, evaluation=CENTRE
    )


NORMAL = "NormalizeImage ToCHWImage"


def lamb(decay):
    return "Lamb", dict(betas=(0.9, 0.999), epsilon=1e-6, weight_decay=decay)


def deit3_train(crop):
    return names_of(f"DecodeImage {crop} RandomHorizontalFlip ThreeAugment ColorJitter {NORMAL}")


def deit3_evaluation(image):
    return names_of(f"DecodeImage Resize:{image} CenterCrop:{image} NormalizeImage ToCHWImage")


def deit3(word, size, image, lr, path, patch=16):
    TABLE[f"deit3_{word}_in1k"] = Row(
        size, image, patch, 1000, 2048, IN1K, by_epoch(lr, 1e-5, 800), lamb(0.05), "bce above 0",
        deit3_train(f"RandomResizedCrop:{image}"), deit3_evaluation(image), epochs=800, clip=1.0, path=(path, path),
        mix=(0.8, 1.0, 0.0), free=NOT_KERNELS, repeats=True, model=dict(layer_scale=1e-4, no_embed_class=True),
    )  # fmt: skip


def deit3_higher(word, size, image, path, patch=16):
    """Peak and least rate are both 1e-5."""
    TABLE[f"deit3_{word}_in1k_{image}"] = Row(
        size, image, patch, 1000, 512, IN1K, {0.0: 1e-6, 1.0: 2.8e-6, 5.0: 1e-5, 19.0: 1e-5},
        ("AdamW", dict(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.1)), "ce",
        names_of(f"DecodeImage RandomResizedCrop:{image} RandomHorizontalFlip TimmAutoAugment {NORMAL}"),
        deit3_evaluation(image), epochs=20, path=(path, path), mix=DEIT_MIX, free=NOT_KERNELS,
        model=dict(layer_scale=1e-4, no_embed_class=True),
    )  # fmt: skip


def deit3_in21k(word, size, image, epochs, paths, patch=16):
    simple = deit3_train(f"Resize:{image} RandomCrop:{image}")
    first = Row(
        size, image, patch, None, 2048, IN21K, by_epoch(1e-3, 1e-5, epochs), lamb(0.02), "ce", simple,
        deit3_evaluation(image), epochs=epochs, clip=1.0, path=(paths[0], paths[0]), mix=(None, 1.0, 0.1),
        free=NOT_KERNELS, model=dict(layer_scale=1e-4, no_embed_class=True),
    )  # fmt: skip
    TABLE[f"deit3_{word}_in21k"] = first
    TABLE[f"deit3_{word}_in21k_in1k"] = dataclasses.replace(
        first, image=224, classes=1000, samples=IN1K, epochs=50, path=(paths[1], paths[1]), finetune=True,
        rates=by_epoch(3e-4, 1e-5, 50), train=deit3_train("Resize:224 RandomCrop:224"),
        evaluation=deit3_evaluation(224),
    )  # fmt: skip


deit3("small", S, 224, 4e-3, 0.05)
deit3("base", B, 192, 3e-3, 0.2)
deit3("large", L, 192, 3e-3, 0.45)
deit3("huge", H, 160, 3e-3, 0.6, patch=14)
for word, size, image, path in (("base", B, 224, 0.2), ("large", L, 224, 0.45), ("small", S, 384, 0.0)):
    deit3_higher(word, size, image, path)
deit3_higher("huge", H, 224, 0.55, patch=14)
deit3_higher("base", B, 384, 0.15)
deit3_higher("large", L, 384, 0.4)
deit3_in21k("small", S, 224, 240, (0.05, 0.05))
deit3_in21k("base", B, 224, 240, (0.1, 0.15))
deit3_in21k("large", L, 224, 240, (0.3, 0.4))
deit3_in21k("huge", H, 128, 90, (0.5, 0.45), patch=14)

MAE = Row(
    B, 224, 16, 1000, 1024, IN1K, cosine(2e-3, 5 * 1252, 100 * 1252, end=1e-6),
    ("AdamW", dict(betas=(0.9, 0.999), weight_decay=0.05)), "ce", DEIT_TRAIN, CENTRE, epochs=100, path=(0.0, 0.1),
    mix=DEIT_MIX, free=NOT_KERNELS, finetune=True, layer_decay=0.65,
    model=dict(pool="avg", fc_norm=True, weight_init="timm", head_init=2e-5),
)  # fmt: skip
TABLE["mae_b16_in1k_ft"] = MAE
for name, size, patch, path in (("l16", L, 16, 0.2), ("h14", H, 14, 0.3)):
    TABLE[f"mae_{name}_in1k_ft"] = dataclasses.replace(
        MAE, size=size, patch=patch, epochs=50, path=(0.0, path), layer_decay=0.75,
        rates=cosine(4e-3, 5 * 1252, 50 * 1252, end=1e-6),
    )  # fmt: skip
TABLE["mae_b16_in1k_linear_probe"] = Row(
    B, 224, 16, 1000, 16_384, IN1K, cosine(0.1 * 16_384 / 256, 10 * 79, 90 * 79),
    ("LARS", dict(momentum=0.9, weight_decay=0.0, trust_coefficient=0.001)), "ce", names_of(PLAIN), CENTRE, epochs=90,
    finetune=True, free={"bias"}, model=dict(pool="token", head_batch_norm=True, head_init=0.01),
)  # fmt: skip
TABLE["torchvision_vit_b_16_in1k"] = Row(
    B, 224, 16, 1000, 4096, IN1K,
    {0.0: 0.033 * 3e-3, 15.0: (1 + 0.033) / 2 * 3e-3, 30.0: 3e-3, 165.0: 1.5e-3, 300.0: 0.0},
    ("AdamW", dict(betas=(0.9, 0.999), weight_decay=0.3)), "ce 0.11",
    names_of("DecodeImage RandomResizedCrop:224 RandomHorizontalFlip RandAugment NormalizeImage ToCHWImage"), CENTRE,
    epochs=300, clip=1.0, mix=(0.2, 1.0, 0.0), repeats=True,
    average=((1 - 2e-5 * 4096 * 32 / 300) ** (1 / 32), False),
)  # fmt: skip


def big_vision(name, size, randaugment, mixup, patch=16, batch=4096, epochs=300, classes=1000, samples=IN1K, **model):
    augmented = "" if randaugment is None else "BigVisionRandAugment"
    total = epochs * -(-samples // batch)
    TABLE[name] = Row(
        size, 224, patch, classes, batch, samples, cosine(1e-3, 10_000, total),
        ("AdamW", dict(betas=(0.9, 0.999), weight_decay=0.1)), model.pop("loss", "sigmoid"),
        names_of(f"DecodeImage InceptionCrop:224 RandFlipImage {augmented} NormalizeImage ToCHWImage"), SHORT_SIDE,
        epochs=epochs, clip=1.0, mix=(mixup, None, 0.0) if mixup else (), mean=HALF, precision=("O1", "bfloat16"),
        free=NOT_KERNELS, model=dict(act="gelu_tanh", weight_init="jax", head_init="zeros", **model),
    )  # fmt: skip


PLAIN_VIT = dict(class_token=False, pool="avg", pos_embed="sincos2d", representation_size=384, loss="ce", batch=1024)
big_vision("better_plain_vit_s16_90ep", S, 10, 0.2, epochs=90, **PLAIN_VIT)
big_vision("better_plain_vit_s16_300ep", S, 10, 0.2, **PLAIN_VIT)
for name, size, patch, in1k, in21k in (
    ("ti16", TI, 16, (0, None), (None, None)),
    ("s32", S, 32, (15, 0.2), (None, None)),
    ("s16", S, 16, (15, 0.5), (0, None)),
    ("b16", B, 16, (15, 0.5), (10, 0.2)),
    ("l16", L, 16, (15, 0.5), (15, 0.5)),
):
    options = dict(representation_size=size[0], head_bias=-6.9, pool="token", class_token=True, pos_embed="learned")
    big_vision(f"augreg_{name}_in1k", size, *in1k, patch=patch, **options)
    options |= dict(representation_size=None, head_bias=-10.0, pool="avg", class_token=False)
    big_vision(f"augreg_{name}_in21k", size, *in21k, patch=patch, classes=21_843, samples=IN21K, **options)
for name, classes, lr, steps, warm, crop, samples in (
    ("in1k", 1000, 0.03, 20_000, 500, "InceptionCrop:384", IN1K),
    ("cifar10", 10, 0.003, 10_000, 500, "ResizeImage:448 RandomCrop:384", CIFAR),
    ("cifar100", 100, 0.01, 10_000, 500, "ResizeImage:448 RandomCrop:384", CIFAR),
    ("pets", 37, 0.003, 500, 100, "InceptionCrop:384", 3680),
    ("flowers", 102, 0.003, 500, 100, "InceptionCrop:384", 1020),
):
    decoded = "" if "cifar" in name else "DecodeImage "
    TABLE[f"augreg_b32_{name}_transfer"] = Row(
        B, 384, 32, classes, 512, samples, cosine(lr, warm, steps), ("Momentum", dict(momentum=0.9)), "ce",
        names_of(f"{decoded}{crop} RandFlipImage NormalizeImage ToCHWImage"),
        names_of(f"{decoded}ResizeImage:448 CenterCropImage:384 NormalizeImage ToCHWImage"), steps=steps, clip=1.0,
        mean=HALF, precision=("O1", "bfloat16"), finetune=True,
        model=dict(act="gelu_tanh", head_init="zeros", representation_size=None),
    )  # fmt: skip

GIANT = Row(
    (1408, 40, 16), 224, 14, 21_841, 16_384, COYO_PICTURES,
    {0: 0.0, 5000: 4e-4, 10_000: 8e-4, 40_000: 4e-4, 160_000: 2e-4, 975_000: 0.5 * 8e-4 / 97.5**0.5, 1_000_000: 0.0},
    ("Adafactor", dict(betas=0.9, beta2_cap=0.999, clip_threshold=None, decay_rate=-0.8, epsilon=1e-30,
                       scale_parameter=False, weight_decay=0.03)),
    "sigmoid", coyo_train(224), SHORT_SIDE, steps=1_000_000, clip=1.0, mean=HALF, precision=("O2", "bfloat16"),
    free=NOT_KERNELS, scale={"head.weight": 100.0}, sharding=(1, 8),
    model=dict(mlp_width=6144, class_token=False, pool="map", representation_size=None, act="gelu_tanh",
               weight_init="jax", head_init="zeros", head_bias=-10.0),
)  # fmt: skip
for name, size, width, sharding, parts in (
    ("scaling_vit_giant_coyo300m", (1408, 40, 16), 6144, (1, 8), 4),
    ("scaling_vit_gigantic_coyo300m", (1664, 48, 16), 8192, (1, 8), 4),
    ("ViT_6B_patch14_224_coyo300m", (2320, 80, 16), 11_495, (2, 8), 1),
):
    TABLE[name] = dataclasses.replace(
        GIANT, size=size, sharding=sharding, parts=parts, model=GIANT.model | dict(mlp_width=width)
    )

PLSC_MOCO = """
Global: {device: cpu, output_dir: run, max_train_step: 1, epochs: 1, cpu_threads: 1}
Model: {name: DeiT_base_patch16_224, img_size: 32, embed_dim: 16, depth: 1, num_heads: 2, class_num: 2}
Loss:
  Train:
    - CELoss:
LRScheduler: {learning_rate: 1e-3}
Optimizer: {name: AdamW}
DataLoader:
  Train:
    dataset:
      name: ImageFolder
      root: pictures
      transform:
        - RandomResizedCrop:
            size: 32
        - RandomHorizontalFlip:
        - NormalizeImage:
        - ToCHWImage:
    sampler: {batch_size: 2}
    loader: {num_workers: 0}
  Eval:
    dataset:
      name: ImageFolder
      root: pictures
      transform:
        - Resize:
            size: [32, 32]
        - NormalizeImage:
        - ToCHWImage:
    sampler: {batch_size: 2}
    loader: {num_workers: 0}
"""

# -- losses of given logits, in NumPy -------------------------------------------------------------

LOGITS = np.array([[1.0, -2.0, 0.5, 3.0], [0.0, 0.1, -1.0, -3.0]], "float32")
SOFT = np.array([[0.3, 0.0, 0.7, 0.0], [0.0, 1.0, 0.0, 0.0]], "float32")


def softmax_loss(y):
    return -(y * log_softmax(LOGITS.astype("float64"), axis=1)).sum(axis=1)


def sigmoid_loss(y):
    p = expit(LOGITS.astype("float64"))
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


LOSSES_BY_HAND = {
    "ce": softmax_loss(SOFT),
    "ce 0.11": softmax_loss(0.89 * SOFT + 0.11 / 4),
    "sigmoid": sigmoid_loss(SOFT).sum(axis=1),
    "sigmoid towards half 1e-4": sigmoid_loss(SOFT * (1 - 1e-4) + 0.5e-4).sum(axis=1),
    "sigmoid towards one 1e-4": sigmoid_loss(SOFT * (1 - 1e-4) + 1e-4).sum(axis=1),
    "bce above 0": sigmoid_loss((SOFT > 0).astype("float64")).mean(axis=1),
}

# -- the tests ------------------------------------------------------------------------------------


def test_the_table_has_every_recipe_of_a_source():
    assert set(TABLE) == set(shipped_recipes()) - WITHOUT_A_SOURCE


@pytest.fixture(params=TABLE)
def case(request):
    return request.param, TABLE[request.param], load(request.param)


def test_a_recipe_has_its_sources_values(case):
    """Sizes, schedule, optimizer, loss, transforms, mixing, precision; nothing is built but schedule and loss."""
    name, row, config = case
    g, options = config.Global, config.optimizer_options
    arguments = dict(config.Model.arguments)
    assert arguments["class_num"] == ("auto" if row.classes is None else row.classes)
    spec = spec_of(config.Model.name, **{**arguments, "class_num": row.classes or 1000})
    assert (spec.embed_dim, spec.depth, spec.num_heads) == row.size
    assert (spec.img_size, spec.patch_size) == (row.image, row.patch)
    assert spec.mlp_width == row.model.get("mlp_width", 4 * spec.embed_dim)
    assert (spec.drop_rate, spec.attn_drop_rate) == (row.drop, 0.0)
    assert (0.0 if not spec.drop_path_uniform else spec.drop_path_rate, spec.drop_path_rate) == row.path
    assert {key: getattr(spec, key) for key in row.model} == row.model

    batch = g.global_batch_size or config.DataLoader["Train"].sampler.arguments["batch_size"] * processes(name)
    assert (batch, g.epochs, g.accum_steps, g.seed) == (row.batch, row.epochs, row.parts, row.seed)
    assert row.epochs or g.max_train_step == row.steps
    sampler = config.DataLoader["Train"].sampler
    assert (sampler.name == "RepeatedAugSampler") == row.repeats and sampler.arguments["shuffle"]
    assert row.steps or sampler.arguments["drop_last"] == row.whole
    total = row.steps or row.epochs * epochs_of(row)
    schedule = build.schedule(config, total, epochs_of(row))
    for at, rate in row.rates.items():  # of an epoch all updates have the same
        by_step = isinstance(at, int) or (row.steps or max(row.rates) > 1000)
        for step in (round(at),) if by_step else (int(at) * epochs_of(row), int(at) * epochs_of(row) + 7):
            assert schedule(step) == pytest.approx(rate, rel=1e-3 if by_step else 1e-6, abs=1e-12), at

    sharding = config.DistributedStrategy.sharding
    assert ((sharding.stage, sharding.degree) if sharding else ()) == row.sharding
    optimizer, known = row.optimizer
    assert options.weight_decay_scale == row.scale
    assert config.Optimizer.name == optimizer
    assert {key: config.Optimizer.arguments[key] for key in known} == known
    assert config.Optimizer.arguments["weight_decay"] == known.get("weight_decay", 0.0)
    assert (options.grad_clip and options.grad_clip.clip_norm) == row.clip and options.layer_decay == row.layer_decay
    loss = sum(component(config, LOSSES, part)(paddle.to_tensor(LOGITS), Targets(dense=paddle.to_tensor(SOFT)))
                for part in config.Loss["Train"])  # fmt: skip
    np.testing.assert_allclose(loss.numpy(), LOSSES_BY_HAND[row.loss], rtol=1e-5)

    train, evaluation = config.DataLoader["Train"], config.DataLoader["Eval"]
    assert (shown(train.transforms), shown(evaluation.transforms)) == (row.train, row.evaluation)
    for part in (*train.transforms, *evaluation.transforms):
        if part.name in ("Normalize", "NormalizeImage"):
            assert part.arguments["mean"][0] == row.mean
    assert mixing_of(train.batch_transforms) == row.mix
    precision = (config.FP16.level, config.FP16.dtype) if config.FP16 else ()
    assert precision == row.precision and bool(g.finetune) == row.finetune
    average = (config.EMA.decay, config.EMA.thres_steps) if config.EMA else ()
    assert average == pytest.approx(row.average, rel=1e-6) and (not average or config.EMA.ema_eval)


def processes(name: str) -> int:
    """Of a name such as 4n32c, 32."""
    return int(next(word for word in name.split("_") if word[0].isdigit() and word.endswith("c"))[2:-1])


def mixing_of(parts) -> tuple:
    """(alpha of mixup, alpha of CutMix, smoothing), each half of the time where there are both; nothing without."""
    if not parts:
        return ()
    (part,) = parts
    if part.name == "TransformOpSampler":
        mixup, cutmix = part.arguments["Mixup"], part.arguments["Cutmix"]
        assert mixup["prob"] == cutmix["prob"] == 0.5
        assert mixup.get("epsilon", 0.0) == cutmix.get("epsilon", 0.0)
        return mixup["alpha"], cutmix["alpha"], mixup.get("epsilon", 0.0)
    assert part.arguments["prob"] == 1.0
    alphas = {part.name: part.arguments["alpha"]}
    return alphas.get("Mixup"), alphas.get("Cutmix"), part.arguments["epsilon"]


@pytest.mark.parametrize("lr", [0.06, 0.03, 0.01])
@pytest.mark.parametrize(("epochs", "steps"), [(8, 20_016), (16, 40_032)])
def test_the_six_points_of_coyos_search(lr, epochs, steps):
    """20,000 and 40,000 updates there; 2502 make an epoch."""
    overrides = [f"LRScheduler.learning_rate={lr}", f"Global.epochs={epochs}"]
    config = load("ViT_large_patch16_384_coyo_ft_in1k", overrides)
    schedule = build.schedule(config, config.Global.epochs * 2502, 2502)
    assert [schedule(step) for step in (0, 500, steps)] == pytest.approx([0, lr, 0])
    assert schedule((500 + steps) // 2) == pytest.approx(lr / 2)


class Pictures(Dataset):
    """Eight small pictures, encoded where the recipe decodes."""

    def __init__(self, encoded: bool, several: bool, classes: int):
        self.pixels = np.random.default_rng(0).integers(0, 256, [8, 40, 48, 3]).astype("uint8")
        if not encoded:
            self.pixels = self.pixels[:, :32, :32]
        self.encoded, self.max_labels, self.classes = encoded, 2 if several else 1, classes

    def __len__(self):
        return 8

    def __getitem__(self, index):
        label = index % self.classes
        image = self.pixels[index]
        if self.encoded:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG")
            image = file.getvalue()
        return Sample(image, (label, (label + 1) % self.classes) if self.max_labels > 1 else label)


def kind_of(name: str) -> str:
    """What a parameter is, by its name."""
    owner, _, last = name.rpartition(".")
    if name in ("cls_token", "attn_pool.latent", "pos_embed"):
        return "position" if name == "pos_embed" else "token"
    if "norm" in owner.rpartition(".")[2]:
        return "norm"
    return {"bias": "bias", "gamma": "scale"}.get(last, "kernel")


def small(row: Row, name: str, folder) -> dict:
    """Overrides that keep what a recipe does, on a model of a few thousand weights."""
    changes = {
        "Model.embed_dim": 16, "Model.depth": 2, "Model.num_heads": 2, "Model.mlp_ratio": 2.0,
        "Model.class_num": 10, "Global.device": "cpu", "Global.output_dir": str(folder),
        "Global.pretrained_model": None, "Global.finetune": False, "Global.accum_steps": 1,
        "Global.global_batch_size": 2, "Global.eval_during_train": False, "Global.cpu_threads": 1,
        "DataLoader.Train.sampler.batch_size": None, "DataLoader.Train.loader.num_workers": 0,
    }  # fmt: skip
    if row.model.get("representation_size"):
        changes["Model.representation_size"] = 16
    if "resnet_layers" in row.model:
        changes |= {"Model.resnet_layers": [1, 1, 1], "Model.resnet_width": 0.5}
    return changes


def test_a_recipe_learns_from_a_batch(case, tmp_path, monkeypatch):
    """Its transforms, model, groups, mixing, loss and optimizer in small: the weights move, and only those that may."""
    name, row, config = case
    encoded = config.DataLoader["Train"].transforms[0].name == "DecodeImage"
    several = "coyo300m" in name or config.DataLoader["Train"].dataset.arguments.get("multi_label", False)
    monkeypatch.setattr(build, "dataset", lambda *_, **__: Pictures(encoded, several, 10))
    trainer = assemble(load(name, small(row, name, tmp_path / "run")), World())
    options = config.optimizer_options
    groups = parameter_groups(
        trainer.model,
        no_decay=options.no_weight_decay,
        no_decay_names=options.no_weight_decay_name,
        layer_decay=options.layer_decay,
        lr_scale=options.lr_scale,
    )
    before = {n: p.numpy() for n, p in trainer.model.named_parameters()}
    trained = dict(trainer.optimizer.named)
    exempt = {n for group in groups if not group.decay for n in group.names}
    assert exempt == {n for n in trained if kind_of(n) in row.free}
    if row.layer_decay:  # two blocks: the embeddings are three layers below the head
        scales = {n: group.lr_scale for group in groups for n in group.names}
        assert (scales["head.weight"], scales["pos_embed"]) == pytest.approx((1.0, row.layer_decay**3))
    trainer.schedule = lambda step: 0.01  # the first update of a warm-up may have none
    norm = trainer.advance(trainer.feed.loader.run(trainer.sampler.batches(0)))
    trainer.feed.loader.close()
    assert math.isfinite(norm.item()) and norm.item() > 0
    moved = {n for n, p in trainer.model.named_parameters() if not np.array_equal(p.numpy(), before[n])}
    head = {n for n in trained if n.startswith("head.")}
    assert head and head <= moved <= set(trained)


def test_plscs_folders_decode_by_themselves(tmp_path, monkeypatch):
    """PLSC's recipe for MoCo v3 has no DecodeImage: its ImageFolder gives pixels. It runs as it is."""
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("RGB", (40, 48), "red" if label == "a" else "blue").save(tmp_path / "pictures" / label / "1.png")
    (tmp_path / "recipe.yaml").write_text(PLSC_MOCO)
    trainer = assemble(load("recipe.yaml"), World())
    batch = next(trainer.feed.loader.run(trainer.sampler.batches(0)))
    assert sorted(map(tuple, batch["image"][:, 0, 0].tolist())) == [(0, 0, 255), (255, 0, 0)]  # red, green, blue
    assert trainer.evaluator.run(trainer.model)["samples"] == 2
