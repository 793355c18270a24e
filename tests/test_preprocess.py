"""Where each transform runs, PLSC's torchvision names, and what the device does with samples' own draws."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import paddle
import paddle.vision.transforms.functional as F
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plsc import build
from plsc.config import load
from plsc.data.device import DeviceInput
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader
from plsc.data.preprocess import Preprocess, split_transforms
from plsc.data.sampler import Draw
from plsc.data.transforms import (
    CenterCrop,
    CenterCropImage,
    DecodeImage,
    Normalize,
    NormalizeImage,
    RandFlipImage,
    RandomErasing,
    Resize,
    ResizeImage,
    ToCHWImage,
    ToTensor,
)
from plsc.errors import ConfigError
from tests.helpers import plsc, tiny_digits, write_config

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def on_device(transforms, images):
    split = split_transforms(transforms)
    return DeviceInput(split.normalize, split.drawn)({"image": images})["image"].numpy()


@pytest.mark.parametrize("shape", [(2, 9, 7, 3), (1, 8, 8, 1)])
@pytest.mark.parametrize("values", [3, 1])
def test_a_batch_is_normalised_on_cpu_bit_for_bit_as_on_a_device(shape, values):
    """With a value a channel, one for all, or three for a grey picture, of which three channels come."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    input = DeviceInput(NormalizeImage(mean=[0.485, 0.456, 0.406][:values], std=[0.229, 0.224, 0.225][:values]))
    expected = input.normalize(paddle.to_tensor(images)).numpy()
    np.testing.assert_array_equal(input({"image": images})["image"].numpy(), expected)


@pytest.mark.parametrize(
    "transforms, expected",
    [
        ([], lambda x: x / 255),
        ([ToTensor()], lambda x: x / 255),
        ([NormalizeImage(mean=[0.5] * 3, std=[0.25] * 3)], lambda x: (x / 255 - 0.5) / 0.25),
        ([ToTensor(), Normalize(mean=[0.5] * 3, std=[0.25] * 3)], lambda x: (x / 255 - 0.5) / 0.25),
        ([Normalize(mean=[100.0] * 3, std=[50.0] * 3), ToCHWImage()], lambda x: (x - 100.0) / 50.0),
        ([NormalizeImage(scale=1.0, mean=[1.0], std=[2.0]), ToCHWImage()], lambda x: (x - 1.0) / 2.0),
    ],
)
def test_normalisation_by_each_of_its_names(transforms, expected):
    got = on_device(transforms, PICTURE[None])
    np.testing.assert_allclose(got[0], expected(PICTURE.astype("float64")).transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "transforms, message",
    [
        ([NormalizeImage(), RandFlipImage()], "RandFlipImage comes after NormalizeImage"),
        ([ToTensor(), RandFlipImage(), Normalize()], "RandFlipImage comes after ToTensor"),
        ([ToTensor(), NormalizeImage()], "ToTensor scales already"),
        ([NormalizeImage(), Normalize()], "Normalize is the second"),
        ([RandomErasing(), NormalizeImage()], "RandomErasing comes before NormalizeImage"),
        ([NormalizeImage(), RandomErasing(), RandomErasing()], "RandomErasing is there twice"),
    ],
)
def test_what_stands_in_the_wrong_place_is_refused(transforms, message):
    with pytest.raises(ConfigError, match=message):
        split_transforms(transforms)


def test_torchvision_names_take_the_short_side_and_height_before_width():
    assert Resize(15, backend="cv2")(PICTURE, None).shape == (15, 20, 3)
    assert Resize((15, 50), backend="cv2")(PICTURE, None).shape == (15, 50, 3)
    assert ResizeImage(size=(15, 50))(PICTURE, None).shape == (50, 15, 3)
    np.testing.assert_array_equal(CenterCrop((10, 20))(PICTURE, None), PICTURE[10:20, 10:30])
    np.testing.assert_array_equal(CenterCropImage((10, 20))(PICTURE, None), PICTURE[5:25, 15:25])


def test_the_saved_preprocessing_says_what_torchvision_names_mean():
    by_plsc = [
        DecodeImage(),
        ResizeImage(resize_short=20, interpolation="bicubic", backend="pil"),
        CenterCropImage(16),
        NormalizeImage(mean=[0.5] * 3, std=[0.25] * 3),
        ToCHWImage(),
    ]
    by_torchvision = [
        DecodeImage(),
        Resize(20, "bicubic"),
        CenterCrop(16),
        ToTensor(),
        Normalize(mean=[0.5] * 3, std=[0.25] * 3),
    ]
    by_torchvision = Preprocess.of(by_torchvision)
    assert dataclasses.replace(Preprocess.of(by_plsc), truncate=True, round_corner=True) == by_torchvision
    assert Preprocess.of([Resize((20, 24), backend="cv2")]) == Preprocess.of([ResizeImage((24, 20))])


@pytest.mark.parametrize("backend", ["pil", "cv2"])
@given(height=st.integers(8, 60), width=st.integers(8, 60), short=st.integers(8, 40), crop=st.integers(3, 8))
@settings(max_examples=60, deadline=None)
def test_resize_and_crop_are_torchvisions(backend, height, width, short, crop):
    """Bit-equal to paddle.vision's, which are torchvision's; so is the preprocessing that is saved."""
    picture = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = F.resize(Image.fromarray(picture) if backend == "pil" else picture, short, "bicubic")
    ours = Resize(short, "bicubic", backend)
    np.testing.assert_array_equal(ours(picture, None), np.asarray(theirs))
    cut = CenterCrop((crop, crop + 1 if crop < 8 else crop))
    theirs = np.asarray(F.center_crop(theirs, (cut.height, cut.width)))
    np.testing.assert_array_equal(cut(ours(picture, None), None), theirs)
    saved = json.loads(json.dumps(Preprocess.of([ours, cut]).to_dict()))
    np.testing.assert_array_equal(Preprocess.from_dict(saved)(picture), theirs)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 1024))
@settings(max_examples=300, deadline=None)
def test_both_rules_of_fractions_of_pixels(height, width, short):
    """torchvision cuts the long side's fraction off and rounds a corner's half to the even one; PLSC the reverse."""
    low, long = sorted((height, width))
    for truncate in (True, False):
        transform = ResizeImage(resize_short=short, truncate=truncate)
        new_short, new_long = (transform._scaled(side, low, short) for side in (low, long))
        exact = Fraction(short * long, low)
        assert new_short == short
        assert new_long == math.floor(exact) if truncate else abs(new_long - exact) <= 0.5 + 1e-9
        left_over = new_long - min(short, new_long)
        corner = CenterCropImage(short, round_corner=truncate)._middle(left_over)
        assert corner == (round(Fraction(left_over, 2)) if truncate else left_over // 2)


@pytest.mark.parametrize(
    ("recipe", "torchvisions"),
    [
        ("DeiT_tiny_patch16_224_eval", True),
        ("mae_b16_in1k_ft", True),
        ("pytorch_vit_b16_in1k", True),
        ("DeiT_base_patch16_224_in1k_1n8c_dp_fp16o2", False),
        ("ViT_base_patch16_224_in1k_1n8c_dp_fp16o2", False),
        ("ViT_base_patch16_224_coyo_in1k", False),
    ],
)
def test_each_recipe_has_the_rule_of_its_source(recipe, torchvisions):
    """DeiT, MAE and torchvision by the latter's transforms; PLSC, and big_vision's and COYO's TensorFlow, by theirs."""
    preprocess = build.recipe_preprocess(load(recipe))
    assert (preprocess.truncate, preprocess.round_corner) == (torchvisions, torchvisions)


def test_a_preprocessing_saved_before_it_stated_how_pixels_are_rounded_means_plscs():
    saved = Preprocess.of([ResizeImage(resize_short=11, backend="pil"), CenterCropImage(8)]).to_dict()
    old = {key: value for key, value in saved.items() if key not in ("truncate", "round_corner")}
    assert len(old) == len(saved) - 2
    pixels = Preprocess.from_dict(old)(PICTURE)  # 30 x 40, so 11 x 14.67
    resized = np.asarray(Image.fromarray(PICTURE).resize((15, 11), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels, resized[1:9, 3:11])


def test_evaluation_refuses_random_erasing():
    with pytest.raises(ConfigError, match="RandomErasing"):
        Preprocess.of([DecodeImage(), NormalizeImage(), RandomErasing()])


class Pictures:
    max_labels, class_names = 1, None

    def __len__(self):
        return 12

    def __getitem__(self, index):
        from plsc.data.datasets import Sample

        return Sample(np.full((8, 8, 3), 10 * index, np.uint8), index, f"picture {index}")


def erased_batch(draws, workers: int):
    """Which pixels of each sample are erased."""
    split = split_transforms([NormalizeImage(mean=[0.0] * 3, std=[1.0] * 3), RandomErasing(EPSILON=0.7, mean=[9.0])])
    fetcher = Fetcher(Pictures(), split.host, seed=3, class_num=None, drawn=split.drawn)
    loader = Loader(fetcher, batch_size=len(draws), num_workers=workers)
    (arrays,) = list(loader.run([draws]))
    image = DeviceInput(split.normalize, split.drawn)(arrays)["image"].numpy()
    loader.close()
    return image == 9.0


@pytest.mark.parametrize("workers", [0, 2])
def test_erasing_belongs_to_the_sample_and_not_to_its_place_in_a_batch(workers):
    draws = [Draw(epoch, index) for epoch in (0, 1) for index in range(12)]
    erased = erased_batch(draws, workers)
    backwards = erased_batch(draws[::-1], 0)[::-1]
    np.testing.assert_array_equal(erased, backwards)
    some = erased.any(axis=(1, 2, 3))
    assert 8 < some.sum() < 24
    assert not np.array_equal(erased[:12], erased[12:])  # another epoch, other boxes
    for rectangle in erased[some][:, 0]:
        rows, columns = np.flatnonzero(rectangle.any(1)), np.flatnonzero(rectangle.any(0))
        assert rectangle[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_a_run_with_erasing_and_a_policy_learns(tmp_path):
    tree = tiny_digits()
    tree["Global"]["output_dir"] = str(tmp_path / "run")
    ops = tree["DataLoader"]["Train"]["dataset"]["transform_ops"]
    ops.insert(1, {"RandomApply": {"p": 0.5, "transforms": [{"ColorJitter": {"brightness": 0.3}}]}})
    ops.append({"RandomErasing": {"EPSILON": 0.25, "mode": "pixel"}})
    plsc("train", "-c", write_config(tmp_path / "c.yaml", tree))
    # what was resolved is itself a recipe
    plsc("config", "-c", tmp_path / "run" / "config.yaml")
