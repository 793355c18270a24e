"""Augmentations against timm's and torchvision's own."""

import random

import numpy as np
import pytest
from PIL import ImageOps

from plsc.data.transforms import (
    ColorJitter,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomRotation,
    TimmAutoAugment,
    auto_augment,
    policies,
    timm_auto_augment,
)
from tests.test_transforms_augment import FILL, bytes_of, picture, pil, posterized


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_timms_own_operations_make_the_same_pictures(interpolation, monkeypatch):
    reference = pytest.importorskip("timm.data.auto_augment")
    monkeypatch.setattr(ImageOps, "posterize", lambda image, bits: pil(posterized(np.asarray(image), max(0, bits))))
    image = picture(50, 60)
    style = TimmAutoAugment("rand-mmax30", interpolation=interpolation).augment.style
    settings = dict(img_mean=FILL, interpolation=style.resample[0], magnitude_max=30)
    for kind in {*timm_auto_augment._KINDS} - {"GaussianBlurRand"}:  # which draws its strength
        name = f"{kind}Rel" if kind.startswith("Translate") else kind
        for level in (0, 1, 3.3, 7, 9, 10, 20, 30):
            operation, expected, collected = reference.AugmentOp(name, 1.0, level, settings), set(), set()
            for seed in range(12):  # both directions
                random.seed(seed)
                expected |= bytes_of(operation(pil(image)))
                collected |= bytes_of(style.apply(pil(image), kind, level, np.random.default_rng(seed)))
            assert collected == expected, (kind, level)


def test_timms_own_strings_mean_the_same():
    reference = pytest.importorskip("timm.data.auto_augment")

    def bare(operations):
        return [(o.name.removesuffix("Rel"), o.prob, o.magnitude) for o in operations]

    for text in ("v0", "v0r", "original", "originalr", "3a"):
        theirs = reference.auto_augment_transform(text, dict(img_mean=FILL)).policy
        assert [[tuple(o) for o in row] for row in TimmAutoAugment(text).augment.table] == [bare(r) for r in theirs]
    for text in ("rand-m9-mstd0.5-inc1", "rand-m5-n3-tweights", "rand-t3aw-p0.3", "rand-t3a-mstd101-mmax15"):
        ours, theirs = TimmAutoAugment(text).augment, reference.rand_augment_transform(text, dict(img_mean=FILL))
        assert [(kind, ours.probability, ours.level) for kind in ours.kinds] == bare(theirs.ops)
        assert ours.layers == theirs.num_layers and ours.style.highest_level == (theirs.ops[0].magnitude_max or 10)
        assert (ours.weights is None) == (theirs.choice_weights is None)
        assert ours.weights is None or np.allclose(ours.weights, theirs.choice_weights)
    text = "augmix-m5-w4-d2"
    ours, theirs = TimmAutoAugment(text).augment, reference.augment_and_mix_transform(text, dict(img_mean=FILL))
    assert [(kind, 1.0, ours.level) for kind in policies.AUGMIX] == bare(theirs.ops)
    assert (ours.width, ours.depth, ours.alpha) == (theirs.width, theirs.depth, theirs.alpha)


def test_torchvisions_own_policy_is_the_same():
    reference = pytest.importorskip("torchvision.transforms.v2")
    theirs = reference.AutoAugment()._policies
    assert len(theirs) == len(policies.IMAGENET)
    for ours, row in zip(policies.IMAGENET, theirs, strict=True):
        assert [o[:2] for o in ours] == [o[:2] for o in row]
        assert all(level is None or level == mine[2] for mine, (_, _, level) in zip(ours, row, strict=True))


def test_torchvisions_own_turn_of_the_hue_is_the_same():
    reference = pytest.importorskip("torchvision.transforms.functional")
    image = picture()
    for turn in np.linspace(-0.5, 0.5, 20):  # 0 is left out by both
        got = ColorJitter(hue=(turn, turn))(image, np.random.default_rng(0))
        np.testing.assert_array_equal(got, np.asarray(reference.adjust_hue(pil(image), float(turn))))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_torchvisions_own_rand_augment_makes_the_same_pictures(monkeypatch, magnitude, interpolation):
    reference = pytest.importorskip("torchvision.transforms.autoaugment")
    image = picture(50, 60)
    mode = reference.InterpolationMode(interpolation)
    space = reference.RandAugment()._augmentation_space(31, (50, 60))
    assert set(space) == set(auto_augment._RANDOM_OPERATIONS)
    for name, (magnitudes, signed) in space.items():
        value = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
        values = (value, -value) if signed else (value,)
        expected = [np.asarray(reference._apply_op(pil(image), name, v, mode, None)).astype(int) for v in values]
        monkeypatch.setattr(auto_augment, "_RANDOM_OPERATIONS", (name,))
        transform = RandAugment(1, magnitude, interpolation=interpolation)
        pictures = [transform(image, np.random.default_rng(seed)) for seed in range(12)]
        # a shear of tan(atan(x)) is x but for its last bit, which tips a value between two pixels
        most = 1 if name.startswith("Shear") and interpolation == "bilinear" else 0
        nearest = [np.argmin([abs(picture - other).max() for other in expected]) for picture in pictures]
        assert all(abs(p - expected[k]).max() <= most for p, k in zip(pictures, nearest, strict=True)), name
        assert magnitude == 0 or {*nearest} == {*range(len(values))}, name


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_torchvisions_own_rotations_and_affine_maps(interpolation):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    mode = functional.InterpolationMode(interpolation)
    image = picture(50, 60)
    for angle in (-170.0, -30.5, 0.0, 12.0, 90.0):
        expected = functional.rotate(pil(image), angle, interpolation=mode, fill=7)
        rotated = RandomRotation((angle, angle), interpolation=interpolation, fill=7)(image, np.random.default_rng(0))
        np.testing.assert_array_equal(rotated, np.asarray(expected))
    for angle, scale, x, y in ((0.0, 1.0, 20.0, 0.0), (25.0, 0.8, -10.0, 5.0), (-60.0, 1.4, 0.0, -30.0)):
        transform = RandomAffine((angle, angle), (0.2, 0.3), (scale, scale), (x, x, y, y), interpolation, fill=9)
        for seed in range(4):
            rng = np.random.default_rng(seed)
            rng.uniform()
            moved = [round(rng.uniform(-most, most)) for most in (12.0, 15.0)]
            expected = functional.affine(
                pil(image), angle=angle, translate=moved, scale=scale, shear=[x, y], interpolation=mode, fill=9
            )
            mapped = transform(image, np.random.default_rng(seed))
            assert (mapped != np.asarray(expected)).mean() < 0.002  # edges, by the last bit of the matrix


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_torchvisions_own_padding(mode):
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = picture(20, 30)
    expected = np.asarray(functional.pad(pil(image), [3, 5], fill=9, padding_mode=mode))
    crop = RandomCrop((30, 36), padding=(3, 5), fill=9, padding_mode=mode)
    np.testing.assert_array_equal(crop(image, np.random.default_rng(0)), expected)
