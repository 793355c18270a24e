"""Each family from a file in its own layout: read, trained, evaluated, exported, written back."""

import re

import pytest
from safetensors.numpy import load_file, save_file

from plsc.weights import write
from tests import jeonsworld
from tests.family_life import CLASSES, fields_of, live, logits
from tests.test_hostile_checkpoints import FakeTensor, torch_zip
from tests.test_vit_families import BEIT, CLIP, DINOV2, DINOV3, EVA02, MAP, SWIGLU, build, source_of, without_card

HYBRID = dict(img_size=32, patch_size=1, resnet_layers=(1, 1), resnet_width=0.5)
# name → (format, fields, whether the format holds a head of ten classes on this model)
FAMILIES: dict[str, tuple[str, dict, bool]] = {
    "plain ViT, Google": ("google", dict(act="gelu_tanh"), True),
    "plain ViT, timm": ("timm", {}, True),
    "plain ViT, Hugging Face": ("huggingface", {}, True),
    "plain ViT, torchvision": ("torchvision", {}, True),
    "ViT-MAE, encoder": ("huggingface", dict(class_num=0), True),
    "I-JEPA": ("huggingface", dict(class_token=False, pool="avg"), True),
    "DeiT, distilled": ("huggingface", dict(distillation="heads"), True),
    "DeiT, distilled, Meta": ("timm", dict(distillation="heads"), True),
    "DeiT III": ("timm", dict(layer_scale=1e-5, no_embed_class=True), True),
    "DINOv2 with registers": (
        "huggingface",
        DINOV2 | dict(pool="token_avg", reg_tokens=2, no_embed_class=True, mlp_ratio=2),
        True,
    ),
    "DINOv2 giant": ("timm", DINOV2 | SWIGLU, True),
    "DINOv3": ("huggingface", DINOV3 | dict(class_num=0), False),
    "DINOv3, timm": ("timm", DINOV3 | dict(pool="avg"), True),
    "SigLIP": ("huggingface", MAP | dict(class_num=0), False),
    "SigLIP 2, timm": ("timm", MAP, True),
    "CLIP": ("huggingface", CLIP | dict(act="quick_gelu", class_num=0), False),
    "CLIP with a classifier": ("huggingface", CLIP | dict(pool="avg", final_norm=False), True),
    "CLIP, timm": ("timm", CLIP, True),
    "BEiT": ("huggingface", BEIT, True),
    "BEiT, timm": ("timm", BEIT, True),
    "Data2Vec": ("huggingface", BEIT, True),
    "EVA-02": ("timm", EVA02 | dict(mlp_norm=True), True),
    "hybrid, Google": ("google", HYBRID | dict(act="gelu_tanh"), True),
    "hybrid, timm": ("timm", HYBRID | dict(resnet_norm="timm"), True),
    "QK norm": ("timm", dict(qk_norm="layernorm"), True),
    "parallel blocks": ("timm", dict(block="parallel", qk_norm="layernorm"), True),
    "norms after": ("timm", dict(block="post"), True),
    "learned frequencies": (
        "timm",
        dict(rope="mixed", rope_temperature=10.0, rope_order="xy", pos_embed="none", layer_scale=1e-5),
        True,
    ),
}


def as_published(family, path):
    """The last difference between what is written and what others publish: names, and no card of plsc's."""
    if path.suffix == ".npz":
        return
    without_card(path)
    if family == "Data2Vec":
        file = path / "model.safetensors"
        arrays = {re.sub(r"^beit\.", "data2vec_vision.", name): array for name, array in load_file(file).items()}
        save_file(arrays, file, metadata={"format": "pt"})


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family, tmp_path):
    to, fields, keeps_new_head = FAMILIES[family]
    model = build(**{"in_chans": 1, "class_num": CLASSES, **fields})
    path = tmp_path / {"huggingface": "folder", "google": "file.npz"}.get(to, "file.safetensors")
    write(source_of(model), to, path)
    as_published(family, path)
    live(
        path,
        to,
        tmp_path,
        fields_of(model.spec),
        lambda batch: logits(model, batch),
        keeps_new_head=keeps_new_head,
    )


@pytest.mark.long
def test_the_hybrid_of_vit_pytorch(tmp_path):
    """In its own .bin, with a stem of one channel."""
    arrays = jeonsworld.arrays()
    stem = "transformer.embeddings.hybrid_model.root.conv.weight"
    arrays[stem] = arrays[stem][:, :1]
    arrays["head.weight"], arrays["head.bias"] = arrays["head.weight"].repeat(2, 0), arrays["head.bias"].repeat(2, 0)
    path = torch_zip(tmp_path / "checkpoint.bin", {name: FakeTensor(array) for name, array in arrays.items()})
    fields = dict(
        img_size=jeonsworld.SIZE,
        patch_size=1,
        in_chans=1,
        class_num=CLASSES,
        embed_dim=jeonsworld.WIDTH,
        depth=jeonsworld.DEPTH,
        num_heads=jeonsworld.HEADS,
        mlp_ratio=jeonsworld.MLP / jeonsworld.WIDTH,
        resnet_layers=jeonsworld.LAYERS,
        resnet_width=jeonsworld.CHANNELS / 64,
        resnet_norm="jeonsworld",
    )
    from plsc.loading import load_model
    from plsc.models import ViTSpec
    from tests.family_life import recipe

    fields = fields_of(ViTSpec(**fields))
    own = load_model(path, config=recipe(fields, tmp_path / "own", path)).network
    live(path, "jeonsworld", tmp_path, fields, lambda batch: logits(own, batch))
