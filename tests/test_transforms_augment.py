"""Augmentations: values against Pillow and formulas, laws of the draws, boxes inside pictures, YAML."""

import itertools
import math
import random
import re
from collections import Counter

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from plsc import build
from plsc.config import load
from plsc.data.transforms import (
    AutoAugment,
    BigVisionRandAugment,
    ColorJitter,
    Compose,
    GaussianBlur,
    InceptionCrop,
    MAERandCropImage,
    NormalizeImage,
    RandAugment,
    RandFlipImage,
    RandomAffine,
    RandomApply,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    RandShift,
    Solarize,
    ThreeAugment,
    TimmAutoAugment,
    ToTensor,
    TrivialAugmentWide,
    policies,
)
from plsc.data.transforms.base import DeviceTransform, InputStep
from plsc.errors import ConfigError, DataError
from tests.helpers import plsc, tiny_digits, write_config


def picture(height=24, width=32, channels=3, seed=0):
    """Smooth colours over most of the range, so that every operation shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels[..., :channels])


def outcomes(transform, image, seeds=range(300)) -> Counter:
    """Each picture that a transform makes of one → how often."""
    return Counter(transform(image, np.random.default_rng(seed)).tobytes() for seed in seeds)


def pil(image):
    return Image.fromarray(image)


def bytes_of(*pictures) -> set:
    return {np.asarray(p).tobytes() for p in pictures}


def within(count, total, probability, deviations=4.5) -> bool:
    """Whether a count is near its expectation, by standard deviations of the binomial law."""
    return abs(count - total * probability) <= deviations * math.sqrt(total * probability * (1 - probability)) + 1e-9


COLOURS = [
    lambda: ColorJitter(0.4, 0.4, 0.4, 0.1),
    lambda: RandomGrayscale(p=0.5),
    lambda: GaussianBlur(p=0.7),
    lambda: Solarize(p=0.5),
    lambda: ThreeAugment(),
    lambda: AutoAugment(),
    lambda: TrivialAugmentWide(interpolation="bilinear"),
    lambda: BigVisionRandAugment(2, 15),
    lambda: RandAugment(),
    lambda: RandomRotation(30, fill=128),
    lambda: RandomAffine((-20, 40), (0.2, 0.3), (0.7, 1.3), (-10, 10, -5, 5), interpolation="bilinear"),
    lambda: TimmAutoAugment("rand-m9-mstd0.5-inc1"),
    lambda: TimmAutoAugment("v0-mstd1", interpolation="random"),
    lambda: TimmAutoAugment("originalr"),
    lambda: TimmAutoAugment("3a-mstd2"),
    lambda: TimmAutoAugment("augmix-m5-w2"),
    lambda: RandomApply([RandFlipImage(), Solarize(p=0.5)], p=0.5),
    lambda: Compose([RandFlipImage(), RandomGrayscale(p=0.5)]),
]
CROPS = [
    lambda: RandomResizedCrop((7, 5), interpolation="random"),
    lambda: RandomResizedCrop(6, ratio=(2.0, 5.0), backend="cv2"),
    lambda: MAERandCropImage(6, scale=(0.2, 1.0)),
    lambda: InceptionCrop((5, 7)),
    lambda: InceptionCrop(6, scale=(0.9, 1.0), ratio=(0.3, 0.4), backend="pil"),
]


# -- what holds for all ---------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(COLOURS + CROPS),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([1, 3]),
    st.integers(0, 2**32),
)
def test_the_same_draws_make_the_same_picture_of_the_right_shape(make, size, channels, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    before, transform = image.copy(), make()
    global_state = random.getstate(), np.random.get_state()[1].tobytes()
    first, again = (transform(image, np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == np.uint8 and first.ndim == 3
    expected = (transform.height, transform.width) if make in CROPS else size
    assert first.shape == (*expected, channels)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == global_state


@pytest.mark.parametrize("make", COLOURS)
def test_a_flipped_view_and_its_copy_give_the_same_picture(make):
    """Transforms receive views with negative strides, as flips leave them."""
    image = picture()
    view = image[:, ::-1]
    for seed in range(5):
        got = make()(view, np.random.default_rng(seed))
        np.testing.assert_array_equal(got, make()(view.copy(), np.random.default_rng(seed)))


@pytest.mark.parametrize("make", COLOURS[:-2])
def test_another_number_of_channels_is_refused_by_name(make):
    transform = make()
    with pytest.raises(
        ConfigError, match=f"{type(transform).__name__} takes pictures of 1 or 3 channels, these have 4"
    ):
        for seed in range(20):  # some leave a part of the pictures alone
            transform(np.zeros((4, 4, 4), "uint8"), np.random.default_rng(seed))


# -- colours --------------------------------------------------------------------------------------


def test_grayscale_is_the_luma_of_itu_601_in_every_channel():
    image = picture()
    grey = RandomGrayscale(p=1.0)(image, np.random.default_rng(0))
    luma = image.astype(float) @ [0.299, 0.587, 0.114]
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(grey[..., 0], luma, atol=0.51)


def test_solarize_inverts_from_the_threshold_on():
    image = picture()
    solarized = Solarize(threshold=100)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(solarized, np.where(image < 100, image, 255 - image))


def test_blur_is_pillows_with_a_deviation_between_its_limits():
    image, fixed = picture(), GaussianBlur(sigma=(1.3, 1.3))
    expected = pil(image).filter(ImageFilter.GaussianBlur(1.3))
    np.testing.assert_array_equal(fixed(image, np.random.default_rng(0)), np.asarray(expected))
    rough = [GaussianBlur()(image, np.random.default_rng(seed)).std() for seed in range(200)]
    limits = [np.asarray(pil(image).filter(ImageFilter.GaussianBlur(s))).std() for s in (2.0, 0.1)]
    assert limits[0] - 1e-9 <= min(rough) and max(rough) <= limits[1] + 1e-9
    assert min(rough) < limits[0] + 0.1 * (limits[1] - limits[0]) and max(rough) > limits[1] - 0.1 * np.ptp(limits)


@pytest.mark.parametrize(
    ("name", "enhancement"), [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")]
)
def test_jitter_enhances_as_pillow_between_its_limits(name, enhancement):
    image = picture()
    expected = getattr(ImageEnhance, enhancement)(pil(image)).enhance(1.6)
    got = ColorJitter(**{name: (1.6, 1.6)})(image, np.random.default_rng(0))
    np.testing.assert_array_equal(got, np.asarray(expected))
    assert ColorJitter(**{name: 0.3}).limits[name] == (0.7, 1.3)
    assert ColorJitter(**{name: 1.5}).limits[name] == (0.0, 2.5)  # no factor below 0


@pytest.mark.parametrize("turn", [0.25, -0.1])
def test_jitter_turns_the_hue_and_keeps_the_rest(turn):
    """By hue, saturation and value of the standard library; Pillow keeps 8 bits of each, the turn has 255 steps."""
    import colorsys

    image = picture()
    turned = ColorJitter(hue=(turn, turn))(image, np.random.default_rng(0))
    for before, after in zip(image.reshape(-1, 3) / 255, turned.reshape(-1, 3) / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + int(turn * 255) / 256) % 1.0, saturation, value)
        np.testing.assert_allclose(after, expected, atol=0.04)


def test_jitter_takes_both_orders():
    """Contrast and brightness do not commute; each order comes about half the time."""
    image = picture()
    bright = ImageEnhance.Contrast(ImageEnhance.Brightness(pil(image)).enhance(1.5)).enhance(0.5)
    contrast = ImageEnhance.Brightness(ImageEnhance.Contrast(pil(image)).enhance(0.5)).enhance(1.5)
    actual = outcomes(ColorJitter(brightness=(1.5, 1.5), contrast=(0.5, 0.5)), image)
    assert set(actual) == bytes_of(bright, contrast)
    assert all(within(count, 300, 0.5) for count in actual.values())


def test_jitter_of_nothing_changes_nothing():
    image = picture()
    np.testing.assert_array_equal(ColorJitter()(image, np.random.default_rng(0)), image)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: RandomGrayscale(p=p),
        lambda p: GaussianBlur(sigma=(2.0, 2.0), p=p),
        lambda p: Solarize(p=p),
        lambda p: ColorJitter(brightness=(0.5, 0.5), p=p),
        lambda p: RandomApply([Solarize()], p=p),
        lambda p: TimmAutoAugment(f"rand-n1-p{p}-t3a"),
    ],
)
def test_probabilities_hold(make):
    image = picture()
    for p in (0.0, 0.3, 1.0):
        unchanged = outcomes(make(p), image, range(600))[image.tobytes()]
        assert within(unchanged, 600, 1 - p)


def test_a_single_channel_has_neither_hue_nor_saturation():
    """Grayscale, saturation and hue leave it alone; brightness does not."""
    image = picture(channels=1)
    for transform in (RandomGrayscale(p=1.0), ColorJitter(saturation=0.9, hue=0.5)):
        np.testing.assert_array_equal(transform(image, np.random.default_rng(1)), image)
    expected = np.asarray(ImageEnhance.Brightness(pil(image[..., 0])).enhance(0.5))
    got = ColorJitter(brightness=(0.5, 0.5))(image, np.random.default_rng(0))
    np.testing.assert_array_equal(got[..., 0], expected)


# -- places -----------------------------------------------------------------------------------------


def sampled(image, matrix, fill=0):
    """The nearest old pixel at the middle of each new one: [H, W, C] by a loop over all pixels."""
    height, width = image.shape[:2]
    out = np.full_like(image, fill)
    for y in range(height):
        for x in range(width):
            across, down = (math.floor(v) for v in matrix @ np.array([x + 0.5, y + 0.5, 1.0]))
            if 0 <= across < width and 0 <= down < height:
                out[y, x] = image[down, across]
    return out


def rotation_about_the_middle(width, height, degrees):
    """Counter-clockwise for the eye, y pointing down: the old place of a new point, [2, 3]."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    back, middle = np.array([[c, -s], [s, c]]), np.array([width / 2, height / 2])
    return np.column_stack([back, middle - back @ middle])


@pytest.mark.parametrize("degrees", [17.3, -61.0])
def test_a_rotation_moves_pixels_about_the_middle(degrees):
    image = picture(25, 33)
    actual = RandomRotation((degrees, degrees), fill=7)(image, np.random.default_rng(0))
    expected = sampled(image, rotation_about_the_middle(33, 25, degrees), fill=7)
    assert (actual != expected).any(axis=-1).mean() < 0.01  # Pillow counts in fixed point
    assert (actual == 7).all(axis=-1).any()


def test_a_rotation_by_less_than_a_pixel_changes_nothing():
    """TooTouch's 0.02 degrees: at the corner of 72 px that is 0.018 px."""
    image = picture(72, 72)
    for seed in range(5):
        np.testing.assert_array_equal(RandomRotation(0.02)(image, np.random.default_rng(seed)), image)


def test_an_affine_map_shears_scales_turns_and_moves_in_this_order():
    """Forwards from the definition; the transform reads backwards."""
    image, angle, scale, shear = picture(24, 32), 20.0, 1.25, (12.0, -7.0)
    transform = RandomAffine((angle, angle), (0.1, 0.2), (scale, scale), (*[shear[0]] * 2, *[shear[1]] * 2), fill=9)
    rng = np.random.default_rng(4)
    actual = transform(image, np.random.default_rng(4))
    rng.uniform()
    moved = [round(rng.uniform(-3.2, 3.2)), round(rng.uniform(-4.8, 4.8))]
    assert any(moved)
    t, (sx, sy) = math.radians(angle), (math.tan(math.radians(v)) for v in shear)
    shear_x, shear_y = (np.array(m) for m in ([[1, -sx], [0, 1]], [[1, 0], [-sy, 1]]))
    turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])  # clockwise, y pointing down
    forwards, middle = turn @ (scale * shear_y) @ shear_x, np.array([16.0, 12.0])
    back = np.linalg.inv(forwards)
    expected = sampled(image, np.column_stack([back, middle - back @ (middle + moved)]), fill=9)
    assert (actual != expected).any(axis=-1).mean() < 0.01


def test_affine_draws_stay_within_their_limits(monkeypatch):
    from plsc.data.transforms import affine

    seen = []
    monkeypatch.setattr(affine, "source_of", lambda *drawn: seen.append(drawn[2:]) or np.eye(2, 3))
    transform = RandomAffine(30, (0.1, 0.5), (0.8, 1.2), 15)
    for seed in range(400):
        transform(picture(10, 20), np.random.default_rng(seed))
    angles, moved, scales, shears = (np.array(values) for values in zip(*seen, strict=True))
    assert -30 <= angles.min() < -28 and 28 < angles.max() <= 30
    assert set(moved[:, 0]) == set(range(-2, 3)) and set(moved[:, 1]) == set(range(-5, 6))
    assert 0.8 <= scales.min() < 0.81 and 1.19 < scales.max() <= 1.2
    assert -15 <= shears[:, 0].min() < -14 and 14 < shears[:, 0].max() <= 15 and not shears[:, 1].any()


def test_a_vertical_flip():
    image = picture()
    actual = outcomes(RandomVerticalFlip(0.3), image)
    assert set(actual) == {image.tobytes(), np.ascontiguousarray(image[::-1]).tobytes()}
    assert within(actual[image.tobytes()], 300, 0.7)


@pytest.mark.parametrize(("mode", "border"), [("constant", 9), ("edge", 0), ("reflect", 1), ("symmetric", 0)])
def test_a_random_crop_of_a_padded_picture(mode, border):
    """Every place with the same probability; what is outside comes from the mode."""
    row = np.arange(3, dtype="uint8")
    image = np.broadcast_to(row[None, :, None], (3, 3, 1)).copy()
    crop = RandomCrop(3, padding=(1, 0), fill=9, padding_mode=mode)
    last = {"constant": 9, "edge": 2, "reflect": 1, "symmetric": 2}[mode]
    places = [[border, 0, 1], [0, 1, 2], [1, 2, last]]
    actual = Counter(tuple(crop(image, np.random.default_rng(s))[0, :, 0]) for s in range(600))
    assert set(actual) == {tuple(place) for place in places}
    assert all(within(count, 600, 1 / 3) for count in actual.values())


def test_a_random_crop_pads_what_is_too_short_or_says_so():
    image = np.full((4, 10, 3), 5, "uint8")
    with pytest.raises(DataError, match=r"10x4 pixels are too few for a random crop of 6x8.*pad_if_needed"):
        RandomCrop((8, 6))(image, np.random.default_rng(0))
    for seed in range(10):
        actual = RandomCrop((8, 6), pad_if_needed=True)(image, np.random.default_rng(seed))
        assert actual.shape == (8, 6, 3)
        assert ((actual == 5).all(axis=(1, 2)).sum(), (actual == 0).all(axis=(1, 2)).sum()) == (4, 4)


# -- composition ----------------------------------------------------------------------------------


def test_compose_applies_in_order_with_one_stream_of_draws():
    image, steps = picture(), [RandShift(3), RandomHorizontalFlip(0.5), Solarize(p=0.5)]
    for seed in range(20):
        rng, expected = np.random.default_rng(seed), image
        for step in steps:
            expected = step(expected, rng)
        np.testing.assert_array_equal(Compose(steps)(image, np.random.default_rng(seed)), expected)


def test_random_apply_is_all_or_nothing():
    image = picture()
    both = np.where(image < 128, image, 255 - image)[:, ::-1]
    actual = outcomes(RandomApply([Solarize(), RandomHorizontalFlip(1.0)], p=0.5), image)
    assert set(actual) == {image.tobytes(), np.ascontiguousarray(both).tobytes()}


# -- crops ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CROPS), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32))
def test_no_crop_leaves_its_picture(make, height, width, seed):
    """The box lies inside, has pixels, and a white picture stays white."""
    crop, rng = make(), np.random.default_rng(seed)
    top, left, tall, wide = crop.box(height, width, rng)
    assert min(top, left) >= 0 and min(tall, wide) >= 1
    assert top + tall <= height and left + wide <= width
    assert (crop(np.full((height, width, 3), 255, "uint8"), rng) == 255).all()


def boxes(crop, height, width, count=4000):
    rng = np.random.default_rng(5)
    return np.array([crop.box(height, width, rng) for _ in range(count)], dtype=float).T


def test_the_crop_of_torchvision_has_uniform_area_and_log_ratio():
    """On a picture so large that every box fits: means and deviations of the uniform laws."""
    _, _, tall, wide = boxes(RandomResizedCrop(8, scale=(0.2, 0.4), ratio=(0.5, 2.0)), 4000, 4000)
    area, ratio = tall * wide / 4000**2, np.log(wide / tall)
    assert area.min() >= 0.199 and area.max() <= 0.401 and abs(ratio).max() <= math.log(2) + 0.002
    assert abs(area.mean() - 0.3) < 4 * 0.2 / math.sqrt(12 * 4000)
    assert abs(ratio.mean()) < 4 * 2 * math.log(2) / math.sqrt(12 * 4000)
    assert area.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)
    assert ratio.std() == pytest.approx(2 * math.log(2) / math.sqrt(12), rel=0.05)


def test_the_crop_of_torchvision_reaches_every_position():
    """Also the last row and column, and none after them: PLSC's reached one further."""
    crop = RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    top, left, tall, wide = boxes(crop, 6, 6)
    assert (tall == 3).all() and (wide == 3).all()
    assert set(top) == set(left) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(4, 100, (0, 47, 4, 5)), (90, 6, (41, 0, 8, 6)), (10, 10, (0, 0, 10, 10))],
)
def test_what_never_fits_falls_back_to_the_largest_centred_box(height, width, expected):
    """4:3 of a wide picture, 3:4 of a high one; the whole where its own ratio is allowed."""
    crop = RandomResizedCrop(8, scale=(1.0, 1.0))
    if height == width:
        crop.scale = (2.0, 2.0)  # so that no try fits
    assert crop.box(height, width, np.random.default_rng(0)) == expected


def test_the_crop_of_mae_cuts_sides_that_are_too_long():
    """Every box of a square has ratio 2 or 1/2 before the cut, so one side is the picture's."""
    crop = MAERandCropImage(8, scale=(0.9, 0.9), ratio=(2.0, 2.0))
    top, left, tall, wide = boxes(crop, 100, 100, 200)
    assert (wide == 100).all() and (left == 0).all()
    assert (tall == round(math.sqrt(9000 / 2))).all() and top.max() == 100 - tall[0]


def test_the_inception_crop_draws_heights_uniformly():
    """At ratio 1 between the sides of the least and largest area; no box at the last position."""
    crop = InceptionCrop(8, scale=(0.25, 1.0), ratio=(1.0, 1.0))
    top, left, tall, wide = boxes(crop, 20, 20)
    counts = Counter(tall)
    assert (tall == wide).all() and set(counts) == set(range(10, 21))
    assert all(within(count, 4000, 1 / 11) for count in counts.values())
    assert all(top[tall == side].max() == max(0, 20 - side - 1) for side in range(10, 20))
    assert (left[tall == 20] == 0).all()


def test_the_inception_crop_keeps_areas_and_ratios():
    """The ratio is uniform: its mean is 1.5, where that of a uniform logarithm would be 1.44."""
    crop = InceptionCrop(8, scale=(0.05, 0.3), ratio=(1.0, 2.0))
    _, _, tall, wide = boxes(crop, 2000, 2000)
    ratio = wide / tall
    area = tall * wide / 2000**2
    assert area.min() >= 0.05 and area.max() <= 0.3
    assert ratio.min() >= 0.99 and ratio.max() <= 2.01
    assert abs(ratio.mean() - 1.5) < 4 / math.sqrt(12 * 4000)


def test_the_inception_crop_falls_back_to_the_whole_picture():
    """No box of ratio 3 covers nine tenths of a square."""
    crop = InceptionCrop(8, scale=(0.9, 1.0), ratio=(3.0, 3.0), attempts=5)
    assert crop.box(30, 30, np.random.default_rng(0)) == (0, 0, 30, 30)


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_a_crop_is_the_box_resized(backend):
    import cv2

    image, crop = picture(40, 50), RandomResizedCrop((6, 9), interpolation="bilinear", backend=backend)
    for seed in range(5):
        top, left, tall, wide = crop.box(40, 50, np.random.default_rng(seed))
        part = np.ascontiguousarray(image[top : top + tall, left : left + wide])
        if backend == "pil":
            expected = np.asarray(pil(part).resize((6, 9), Image.Resampling.BILINEAR))
        else:
            expected = cv2.resize(part, (6, 9), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(crop(image, np.random.default_rng(seed)), expected)


def test_random_interpolation_is_bilinear_or_bicubic():
    image = picture(40, 50)
    crop = RandomResizedCrop(16, scale=(1.0, 1.0), ratio=(1.25, 1.25), interpolation="random")
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    actual = outcomes(crop, image)
    assert set(actual) == bytes_of(*(pil(image).resize((16, 16), f) for f in filters))
    assert all(within(count, 300, 0.5) for count in actual.values())


# -- timm's policies ------------------------------------------------------------------------------

FILL = (124, 116, 104)  # 255 x ImageNet's mean
BICUBIC = Image.Resampling.BICUBIC


def moved(image, matrix, resample=BICUBIC, fill=FILL):
    return pil(image).transform(pil(image).size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)


def posterized(image, bits):
    step = 2 ** (8 - bits)
    return (image.astype(int) // step * step).astype("uint8")


def geometric(image, degrees, shear, across, down, resample=BICUBIC, fill=FILL):
    """Both directions of rotation, shears and translations, `across` and `down` in pixels."""
    for sign in (1, -1):
        yield pil(image).rotate(sign * degrees, resample=resample, fillcolor=fill)
        yield moved(image, (1, sign * shear, 0, 0, 1, 0), resample, fill)
        yield moved(image, (1, 0, 0, sign * shear, 1, 0), resample, fill)
        yield moved(image, (1, 0, sign * across, 0, 1, 0), resample, fill)
        yield moved(image, (1, 0, 0, 0, 1, sign * down), resample, fill)


def enhanced(image, factors):
    for kind in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness):
        yield from (kind(pil(image)).enhance(factor) for factor in factors)


def plain(image):
    return ImageOps.autocontrast(pil(image)), ImageOps.equalize(pil(image)), ImageOps.invert(pil(image))


def solarized(image, threshold):
    return np.where(image < threshold, image, 255 - image).astype("uint8")


def brightened(image, amount):
    return np.where(image < 128, np.minimum(255, image.astype(int) + amount), image).astype("uint8")


def test_rand_augment_makes_what_its_level_says():
    """Every operation at level 7, by hand: nothing else comes out, and all of it does."""
    image = picture()
    shared = [
        *plain(image),
        *geometric(image, 21.0, 0.21, 0.315 * 32, 0.315 * 24),
        brightened(image, 77),
    ]
    increasing = [posterized(image, 2), solarized(image, 256 - 179), *enhanced(image, (1.63, 0.37))]
    actual = outcomes(TimmAutoAugment("rand-m7-n1-p1-inc1"), image, range(800))
    assert set(actual) == bytes_of(*shared, *increasing)
    decreasing = [posterized(image, 2), solarized(image, 179), *enhanced(image, (1.36,))]
    assert set(outcomes(TimmAutoAugment("rand-m7-n1-p1"), image, range(800))) == bytes_of(*shared, *decreasing)


def test_rand_augment_at_level_0_leaves_what_can_be_left():
    """Of the increasing kinds only AutoContrast, Equalize and Invert, and Posterize to 4 bits, change anything."""
    image = picture()
    expected = bytes_of(*plain(image), posterized(image, 4), image)
    assert set(outcomes(TimmAutoAugment("rand-m0-n1-p1-inc1"), image)) == expected


def test_the_strongest_posterize_is_black():
    """0 bits are left at level 10; ImageOps.posterize of recent Pillow refuses that."""
    image = picture()
    actual = outcomes(TimmAutoAugment("rand-m10-n1-p1-inc1"), image, range(200))
    assert np.zeros_like(image).tobytes() in actual


def test_rand_augment_weighs_as_plsc_does():
    """w0: Invert and Posterize never, Rotate three times of ten."""
    image = picture()
    actual = outcomes(TimmAutoAugment("rand-m7-n1-p1-w0"), image, range(1500))
    assert not set(actual) & bytes_of(ImageOps.invert(pil(image)), posterized(image, 2))
    rotated = sum(actual[b] for b in bytes_of(*(pil(image).rotate(s, BICUBIC, fillcolor=FILL) for s in (21, -21))))
    assert within(rotated, 1500, 0.3)


def test_rand_augment_applies_its_layers_one_after_another():
    """On one grey value, 100: alone the operations of level 5 make 155 or 64, two of them 128, 191 or 119."""
    image = np.full((2, 2, 1), 100, "uint8")

    def values(text):
        actual = [np.frombuffer(b, "uint8") for b in outcomes(TimmAutoAugment(text, mean=[0.5]), image, range(1500))]
        return {f[0] for f in actual if (f == f[0]).all()}

    assert values("rand-m5-n1-p1") == {100, 155, 64}
    # inverted and posterized: 128; posterized and inverted: 191; posterized and brighter by 55: 119
    assert values("rand-m5-n2-p1") == {100, 155, 64, 128, 191, 119}


def test_levels_spread_and_are_cut():
    """mstd is a standard deviation; above 100 levels are uniform below the given one; mmax cuts."""
    rng = np.random.default_rng(0)

    def levels(text, level):
        style = TimmAutoAugment(text).augment.style
        return np.array([style.drawn_level(level, rng) for _ in range(4000)])

    drawn = levels("rand-m5-mstd1", 5.0)
    assert abs(drawn.mean() - 5.0) < 4 / math.sqrt(4000) and drawn.std() == pytest.approx(1.0, rel=0.05)
    for text in ("rand-mstd101", "augmix"):
        drawn = levels(text, 6.0)
        assert drawn.min() >= 0 and drawn.max() <= 6.0 and abs(drawn.mean() - 3.0) < 4 * 6 / math.sqrt(12 * 4000)
    assert levels("v0", 4.0).std() == 0.0
    assert levels("rand-mstd5", 10.0).max() == 10.0 and levels("rand-mstd5-mmax15", 14.0).max() == 15.0
    assert levels("rand-mstd5", 1.0).min() == 0.0


def test_auto_augment_of_timm_draws_one_pair():
    """3a has one operation a row: threshold 128, grey, blur; each a third of the time."""
    image = picture()
    actual = outcomes(TimmAutoAugment("3a"), image)
    sol, grey = solarized(image, 128).tobytes(), np.asarray(pil(image).convert("L").convert("RGB")).tobytes()
    assert within(actual[sol], 300, 1 / 3) and within(actual[grey], 300, 1 / 3)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("v0", [("Posterize", 0.8, 2), ("Solarize", 0.6, 10)]),
        ("v0r", [("PosterizeIncreasing", 0.8, 2), ("Solarize", 0.6, 10)]),
        ("original", [("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)]),
        ("originalr", [("PosterizeIncreasing", 0.6, 7), ("PosterizeIncreasing", 0.6, 6)]),
    ],
)
def test_policies_of_timm_have_25_pairs_and_a_posterize_of_their_own(name, row):
    table = TimmAutoAugment(name).augment.table
    assert len(table) == 25 and row in [[tuple(entry) for entry in pair] for pair in table]


def test_aug_mix_blends_chains():
    """One chain of one operation with weight 1 and a blend that is certain: Pillow's blend with each operation."""
    image = picture()
    transform = TimmAutoAugment("augmix-m6-w1-d1-mstd0")
    operations = [
        ImageOps.autocontrast(pil(image)),
        ImageOps.equalize(pil(image)),
        *geometric(image, 18.0, 0.18, 0.18 * 32, 0.18 * 24),
        pil(posterized(image, 2)),
        pil(solarized(image, 256 - 153)),
        *enhanced(image, (1.54, 0.46)),
    ]
    for seed in range(40):
        got = transform(image, np.random.default_rng(seed)).astype(int)
        # the share is what brings one of the operations to the picture found, within rounding
        distances = []
        for other in operations:
            step = np.asarray(other).astype(float) - image
            share = np.clip((step * (got - image)).sum() / (step**2).sum(), 0, 1)
            distances.append(abs(image + share * step - got).max())
        assert min(distances) <= 1.5


def test_aug_mix_of_a_picture_without_variation_stays_near_its_range():
    """Chains of different lengths keep the shape also of pictures that are not square."""
    image = picture(10, 30)
    actual = [TimmAutoAugment("augmix")(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(f.shape == image.shape for f in actual)
    assert len({f.tobytes() for f in actual}) > 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randm9", "begins with one of rand, augmix, v0"),
        ("auto", "begins with"),
        ("rand-x3", "'x3' is not a part of rand; it takes m<number>, n<whole number>"),
        ("rand-m", "'m' is not a part"),
        ("rand-n1.5", "'n1.5' is not a part"),
        ("rand-tweight", "tweights"),
        ("rand-w1", "w1"),
        ("rand-n0", "n0"),
        ("rand-w0-n14", "n14"),
        ("rand-p1.5", "p1.5: a probability is at most 1"),
        ("v0-m5", "'m5' is not a part of v0"),
        ("augmix-w0", "w0"),
    ],
)
def test_a_wrong_string_of_timm_is_reported_with_its_part(text, message):
    with pytest.raises(ConfigError, match=r"TimmAutoAugment\.config_str") as caught:
        TimmAutoAugment(text)
    assert message in str(caught.value)


# -- torchvision's, DeiT III's and big_vision's policies ------------------------------------------


def test_trivial_augment_draws_from_the_whole_range():
    """With 4 strengths, 0, 1/3, 2/3 and 1 of the strongest, by hand; black comes in, nearest pixels."""
    image, parts = picture(), (0, 1 / 3, 2 / 3, 1)
    nearest = dict(resample=Image.Resampling.NEAREST, fill=None)
    expected = [image, ImageOps.autocontrast(pil(image)), ImageOps.equalize(pil(image))]
    for part in parts:
        across = int(32 * part)
        expected += geometric(image, 135 * part, 0.99 * part, across, across, **nearest)
        expected += enhanced(image, (1 + 0.99 * part, 1 - 0.99 * part))
        expected += [posterized(image, 8 - round(6 * part)), solarized(image, 255 * (1 - part))]
    actual = outcomes(TrivialAugmentWide(num_magnitude_bins=4), image, range(3000))
    assert set(actual) <= bytes_of(*expected)
    assert len(actual) > 0.9 * len(bytes_of(*expected))
    assert within(actual[ImageOps.equalize(pil(image)).tobytes()], 3000, 1 / 14)


@pytest.mark.parametrize(("magnitude", "bins"), [(9, 31), (3, 4)])
def test_torchvisions_rand_augment(magnitude, bins):
    """One of 14 operations at a fixed strength, by hand; two of them in a row for the default."""
    image, part = picture(), magnitude / (bins - 1)
    nearest = dict(resample=Image.Resampling.NEAREST, fill=None)
    across, down = (int(150 / 331 * side * part) for side in (32, 24))
    expected = [image, ImageOps.autocontrast(pil(image)), ImageOps.equalize(pil(image))]
    expected += geometric(image, 30 * part, 0.3 * part, across, down, **nearest)
    expected += enhanced(image, (1 + 0.9 * part, 1 - 0.9 * part))
    expected += [posterized(image, 8 - round(4 * part)), solarized(image, 255 * (1 - part))]
    actual = outcomes(RandAugment(1, magnitude, bins), image, range(700))
    assert set(actual) == bytes_of(*expected)
    assert within(actual[ImageOps.equalize(pil(image)).tobytes()], 700, 1 / 14)
    twice = outcomes(RandAugment(2, magnitude, bins), image, range(700))
    assert bytes_of(ImageOps.equalize(ImageOps.autocontrast(pil(image)))) <= set(twice) and len(twice) > 2 * len(actual)


def torchvision_results(image: Image.Image, name: str, level: int) -> list:
    """What an operation of the policy can make at a level of 0 … 9 in torchvision's ranges."""
    part, pixels = level / 9, np.asarray(image)
    if name in ("AutoContrast", "Equalize", "Invert"):
        return [getattr(ImageOps, name.lower())(image)]
    if name == "Posterize":
        return [pil(posterized(pixels, round(8 - 4 * part)))]
    if name == "Solarize":
        return [pil(solarized(pixels, 255 * (1 - part)))]
    if name == "Rotate":
        return [image.rotate(degrees) for degrees in (30 * part, -30 * part)]
    if name == "ShearX":
        return [moved(pixels, (1, f, 0, 0, 1, 0), Image.Resampling.NEAREST, None) for f in (0.3 * part, -0.3 * part)]
    return [getattr(ImageEnhance, name)(image).enhance(1 + sign * 0.9 * part) for sign in (1, -1)]


def test_auto_augment_of_torchvision_applies_pairs_of_the_policy():
    """Each outcome is as frequent as its row, its two probabilities and its signs make it."""
    image, law = picture(12, 16), Counter()
    for (first, p, level), (second, q, other) in policies.IMAGENET:
        for begun, share in [(pil(image), 1 - p), *each(torchvision_results(pil(image), first, level), p)]:
            for done, part in [(begun, 1 - q), *each(torchvision_results(begun, second, other), q)]:
                law[np.asarray(done).tobytes()] += share * part / 25
    actual = outcomes(AutoAugment(), image, range(2000))
    assert all(within(actual[result], 2000, min(1.0, share)) for result, share in law.items())
    assert set(actual) <= set(law)


def each(results: list, probability: float) -> list:
    return [(result, probability / len(results)) for result in results]


def test_three_augment_is_one_of_three():
    image = picture()
    actual = outcomes(ThreeAugment(), image, range(600))
    sol, grey = solarized(image, 128).tobytes(), np.asarray(pil(image).convert("L").convert("RGB")).tobytes()
    assert within(actual.pop(sol), 600, 1 / 3) and within(actual.pop(grey), 600, 1 / 3)
    for blurred in actual:  # smoother than the picture, by less than 2 pixels
        rough = np.frombuffer(blurred, "uint8").std()
        assert np.asarray(pil(image).filter(ImageFilter.GaussianBlur(2.0))).std() - 0.01 <= rough <= image.std() + 0.01


def test_the_rand_augment_of_big_vision_at_level_10():
    """By hand: threshold 256 wraps to 0, the contrast's grey is 24 * 32 / 256, 100 pixels leave only grey."""
    image = picture()
    blank = np.full_like(image, 128)
    expected = [
        *plain(image),
        *geometric(image, 30.0, 0.3, 100, 100, Image.Resampling.NEAREST, (128,) * 3),
        posterized(image, 4),
        255 - image,
        brightened(image, 110),
        *(kind(pil(image)).enhance(1.9) for kind in (ImageEnhance.Color, ImageEnhance.Brightness)),
        ImageEnhance.Sharpness(pil(image)).enhance(1.9),
        np.clip(3 + 1.9 * (image.astype(float) - 3), 0, 255).astype("uint8"),
        blank,  # Cutout of 80 x 80 pixels
    ]
    actual = outcomes(BigVisionRandAugment(num_layers=1, magnitude=10), image, range(800))
    assert set(actual) == bytes_of(*expected)
    assert within(actual[blank.tobytes()], 800, 3 / 16)  # and both translations
    assert within(actual[(255 - image).tobytes()], 800, 2 / 16)  # Invert and Solarize


def test_the_rand_augment_of_big_vision_at_level_15():
    """Above 10: threshold 384 wraps to 128, factors reach 2.8, 6 bits are kept."""
    image = picture()
    actual = outcomes(BigVisionRandAugment(1, 15), image, range(500))
    expected = [solarized(image, 128), posterized(image, 6), brightened(image, 165)]
    expected += [ImageEnhance.Brightness(pil(image)).enhance(2.8), pil(image).rotate(45, fillcolor=(128,) * 3)]
    assert bytes_of(*expected) <= set(actual)


def test_cutout_of_big_vision_is_a_square_about_any_pixel():
    """On white, magnitude 2 leaves squares of 16 x 16; wholly inside for 185 of 200 centres on either axis."""
    image, whole = np.full((200, 200, 1), 255, "uint8"), 0
    for seed in range(1500):
        grey = BigVisionRandAugment(1, 2)(image, np.random.default_rng(seed))[..., 0] == 128
        rows, columns = np.flatnonzero(grey.any(axis=1)), np.flatnonzero(grey.any(axis=0))
        whole += len(rows) == len(columns) == 16 and grey.sum() == 256
    assert within(whole, 1500, (185 / 200) ** 2 / 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColorJitter(brightness=-0.1), "ColorJitter.brightness"),
        (lambda: ColorJitter(hue=0.6), "ColorJitter.hue"),
        (lambda: ColorJitter(contrast=(1.2, 0.8)), "ColorJitter.contrast"),
        (lambda: ColorJitter(p=2.0), "ColorJitter.p"),
        (lambda: RandomGrayscale(p=-0.1), "RandomGrayscale.p"),
        (lambda: GaussianBlur(sigma=(2.0, 1.0)), "GaussianBlur.sigma"),
        (lambda: Solarize(threshold=300), "Solarize.threshold"),
        (lambda: Compose([]), "Compose.transforms is empty"),
        (lambda: Compose([NormalizeImage()]), "put it after Compose"),
        (lambda: RandomApply([Solarize()], p=1.5), "RandomApply.p"),
        (lambda: RandomApply([ToTensor()]), "put it after RandomApply"),
        (lambda: RandomResizedCrop(0), "RandomResizedCrop.size"),
        (lambda: RandomResizedCrop(8, scale=(0.0, 1.0)), "RandomResizedCrop.scale"),
        (lambda: RandomResizedCrop(8, ratio=(2.0, 1.0)), "RandomResizedCrop.ratio"),
        (lambda: RandomResizedCrop(8, interpolation="area"), "area"),
        (lambda: MAERandCropImage(8, scale=(0.5, 1.5)), "MAERandCropImage.scale"),
        (lambda: InceptionCrop(8, attempts=0), "InceptionCrop.attempts"),
        (lambda: TimmAutoAugment(mean=[0.5, 0.5]), "TimmAutoAugment.mean"),
        (lambda: TimmAutoAugment(mean=[124.0, 116.0, 104.0]), "TimmAutoAugment.mean"),
        (lambda: TrivialAugmentWide(num_magnitude_bins=1), "num_magnitude_bins"),
        (lambda: RandAugment(magnitude=31), "magnitude is 31; with num_magnitude_bins 31 it is at most 30"),
        (lambda: RandomAffine(0, shear=90), "shear"),
        (lambda: RandomRotation((10, -10)), "degrees"),
        (lambda: RandomCrop(0), "size"),
        (lambda: BigVisionRandAugment(num_layers=0), "num_layers"),
        (lambda: BigVisionRandAugment(magnitude=31), "magnitude"),
        (lambda: RandomErasing(EPSILON=1.2), "RandomErasing.EPSILON"),
        (lambda: RandomErasing(sl=0.5, sh=0.4), "RandomErasing.sl is 0.5, which is above sh"),
        (lambda: RandomErasing(r1=0.0), "RandomErasing.r1"),
        (lambda: RandomErasing(r1=3.0), "RandomErasing.r1"),
        (lambda: RandomErasing(attempt=0), "RandomErasing.attempt"),
        (lambda: RandomErasing(count=0), "RandomErasing.count"),
        (lambda: RandomErasing(mean=[0.0, 0.0]).fields(8, 8, 3), "RandomErasing.mean has 2 values"),
    ],
)
def test_wrong_arguments_are_refused_by_their_key(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


# -- random erasing -------------------------------------------------------------------------------


def drawn(erasing, size=8, height=12, width=16, channels=3, seed=0) -> dict:
    """The arrays of a batch, each sample with draws of its own, in the shapes that `fields` announces."""
    samples = [erasing.draw(np.random.default_rng([seed, i]), height, width, channels) for i in range(size)]
    fields = erasing.fields(height, width, channels)
    assert all(set(s) == set(fields) for s in samples)
    for name, (shape, dtype) in fields.items():
        assert all(s[name].shape == shape and s[name].dtype == dtype for s in samples)
    return {name: np.stack([s[name] for s in samples]) for name in fields}


def applied(erasing, image: np.ndarray, arrays: dict) -> np.ndarray:
    return erasing.apply(paddle.to_tensor(image), {k: paddle.to_tensor(v) for k, v in arrays.items()}).numpy()


def normal_batch(size=8, height=12, width=16, channels=3) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((size, channels, height, width)).astype("float32")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["const", "rand", "pixel"]),
    st.integers(1, 3),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])),
    st.integers(0, 2**32),
)
def test_erasing_writes_in_its_boxes_and_nowhere_else(mode, count, size, seed):
    """Against a loop over samples, boxes and pixels' slices; boxes lie inside and do not reach across."""
    erasing = RandomErasing(EPSILON=0.8, mode=mode, mean=[1.5], count=count, attempt=10)
    arrays, image = drawn(erasing, 4, *size, seed=seed), normal_batch(4, *size)
    got, expected = applied(erasing, image, arrays), image.copy()
    for row in range(4):
        for k, (top, left, tall, wide) in enumerate(arrays["erase_boxes"][row]):
            assert min(top, left) >= 0 and top + tall <= size[0] and left + wide <= size[1]
            assert not tall or (tall < size[0] and wide < size[1])
            part = expected[row, :, top : top + tall, left : left + wide]
            if mode == "const":
                part[:] = 1.5
            elif mode == "rand":
                part[:] = arrays["erase_values"][row, k][:, None, None]
            else:
                part[:] = np.nan
    kept = ~np.isnan(expected)
    np.testing.assert_array_equal(got[kept], expected[kept])
    assert np.isfinite(got).all()


def test_erasing_is_as_likely_as_asked():
    for probability in (0.0, 0.25, 1.0):
        boxes = drawn(RandomErasing(EPSILON=probability), 1000, 64, 64)["erase_boxes"][:, 0]
        assert within(np.count_nonzero(boxes[:, 2]), 1000, probability)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_erased_areas_and_aspects_follow_their_laws(logarithmic):
    """The area is uniform between sl and sh, height / width, or its logarithm, between r1 and 1 / r1."""
    erasing = RandomErasing(EPSILON=1.0, sl=0.02, sh=0.1, r1=0.3, use_log_aspect=logarithmic)
    rng = np.random.default_rng(3)
    boxes = np.stack([erasing.draw(rng, 2000, 2000, 3)["erase_boxes"][0] for _ in range(3000)]).astype(float)
    area, aspect = boxes[:, 2] * boxes[:, 3] / 2000**2, boxes[:, 2] / boxes[:, 3]
    assert area.min() > 0.0195 and area.max() < 0.1005
    assert abs(area.mean() - 0.06) < 4 * 0.08 / math.sqrt(12 * 3000)
    low, high = 0.3, 1 / 0.3
    if logarithmic:
        aspect, low, high = np.log(aspect), math.log(low), math.log(high)
    assert aspect.min() > low - 0.01 and aspect.max() < high + 0.01
    assert abs(aspect.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 3000)
    assert set(boxes[:, 0] % 2) == set(boxes[:, 1] % 2) == {0, 1}  # anywhere


def test_several_boxes_share_the_area():
    """1 to 3 boxes, each number as often; each has its part of a fixed area."""
    erasing = RandomErasing(EPSILON=1.0, sl=0.3, sh=0.3, r1=1.0, count=3)
    rng = np.random.default_rng(3)
    boxes = np.stack([erasing.draw(rng, 600, 600, 3)["erase_boxes"] for _ in range(600)])
    numbers = np.count_nonzero(boxes[:, :, 2], axis=1)
    assert all(within((numbers == n).sum(), 600, 1 / 3) for n in (1, 2, 3))
    for number, sample in zip(numbers, boxes, strict=True):
        assert set(sample[:number, 2]) == {round(600 * math.sqrt(0.3 / number))}


def test_noise_is_normal_and_belongs_to_the_sample():
    """Its place in the batch, and its neighbours there, change nothing; another sample has other noise."""
    erasing = RandomErasing(EPSILON=1.0, sl=0.8, sh=0.8, r1=1.0, mode="pixel")
    arrays, image = drawn(erasing, 6, 48, 40), np.full((6, 3, 48, 40), 50.0, "float32")
    together = applied(erasing, image, arrays)
    alone = applied(erasing, image[3:4], {k: v[3:4] for k, v in arrays.items()})
    np.testing.assert_array_equal(together[3:4], alone)
    again = applied(RandomErasing(EPSILON=1.0, sl=0.8, sh=0.8, r1=1.0, mode="pixel"), image, arrays)
    np.testing.assert_array_equal(together, again)
    noise = [sample[sample != 50.0] for sample in together]
    assert all(abs(n.mean()) < 0.06 and n.std() == pytest.approx(1.0, abs=0.04) for n in noise)
    assert len({n.tobytes() for n in noise}) == 6
    erased = together[0] != 50.0
    red, green = (together[0][channel][erased[0]] for channel in (0, 1))
    assert abs(np.corrcoef(red, green)[0, 1]) < 0.1


def test_a_mean_a_channel_is_written():
    erasing = RandomErasing(EPSILON=1.0, mean=[1.0, 2.0, 3.0], sl=0.2)
    arrays, image = drawn(erasing, 2), np.zeros((2, 3, 12, 16), "float32")
    got = applied(erasing, image, arrays)
    assert [set(np.unique(got[:, c])) for c in range(3)] == [{0.0, 1.0}, {0.0, 2.0}, {0.0, 3.0}]


def test_erasing_leaves_no_gradient():
    erasing = RandomErasing(EPSILON=1.0)
    image = paddle.to_tensor(normal_batch(2), stop_gradient=False)
    assert erasing.apply(image, {k: paddle.to_tensor(v) for k, v in drawn(erasing, 2).items()}).stop_gradient


# -- YAML and the command line --------------------------------------------------------------------

EVERY_NAME = [
    {"Compose": {"transforms": [{"RandShift": {"pixels": 2}}, {"RandomApply": {"transforms": ["RandFlipImage"]}}]}},
    {"RandomApply": {"transforms": [{"ColorJitter": {"brightness": 0.4}}], "p": 0.8}},
    {"RandomResizedCrop": {"size": 8, "scale": [0.5, 1.0], "interpolation": "bicubic", "antialias": True}},
    {"RandomResizedCropAndInterpolation": {"size": 8, "interpolation": "random"}},
    {"MAERandCropImage": {"size": 8, "scale": "(0.2, 1.0)", "interpolation": "bicubic", "backend": "pil"}},
    {"InceptionCrop": {"size": 8}},
    {"ColorJitter": {"brightness": 0.4, "contrast": [0.8, 1.2], "saturation": "2/5", "hue": 0.1}},
    {"RandomGrayscale": {"p": 0.2}},
    {"GaussianBlur": {"sigma": [0.1, 2.0], "p": 0.1}},
    {"Solarize": {"p": 0.2}},
    {"TimmAutoAugment": {"config_str": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic", "img_size": 224}},
    {"TimmAutoAugment": {"config_str": "augmix-m3", "mean": [0.5, 0.5, 0.5]}},
    "AutoAugment",
    {"TrivialAugmentWide": None},
    {"ThreeAugment": None},
    {"BigVisionRandAugment": {"num_layers": 2, "magnitude": 15}},
    {"ToTensor": None},
    {"RandomErasing": {"EPSILON": 0.25, "sl": 0.02, "sh": "1.0/3.0", "r1": 0.3, "attempt": 10, "mode": "pixel"}},
    {"RandomErasing": {"probability": 0.25, "min_area": 0.02, "max_area": 0.33, "min_aspect": 0.3, "count": 2}},
]


def load_with(tmp_path, transforms: list):
    tree = tiny_digits()
    tree["DataLoader"]["Train"]["dataset"]["transform_ops"] = transforms
    return load(str(write_config(tmp_path / "run.yaml", tree)))


@pytest.mark.parametrize("item", EVERY_NAME, ids=lambda item: item if isinstance(item, str) else next(iter(item)))
def test_every_name_builds_from_yaml_and_from_what_was_resolved(item, tmp_path):
    config = load_with(tmp_path, [item])
    [built] = build.transforms(config, config.DataLoader["Train"])
    if not isinstance(built, (DeviceTransform, InputStep)):
        assert built(picture(9, 9, channels=1), np.random.default_rng(0)).dtype == np.uint8
    again = load(str(write_config(tmp_path / "again.yaml", config.to_dict())))
    assert again.to_dict() == config.to_dict()


def test_keys_of_plsc_and_timm_name_the_same_erasing(tmp_path):
    config = load_with(tmp_path, EVERY_NAME[-2:])
    plsc_one, timm_one = build.transforms(config, config.DataLoader["Train"])
    assert plsc_one.area == (0.02, 1 / 3) and timm_one.area == (0.02, 0.33)
    assert plsc_one.probability == timm_one.probability == 0.25 and timm_one.count == 2


def test_what_a_nested_transform_is_given_wrongly_is_reported_with_its_place(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, [{"Compose": {"transforms": [{"Solarize": {"treshold": 3}}]}}])
    assert "transform_ops.0.Compose.transforms.0.Solarize.treshold" in str(caught.value)
    assert "did you mean threshold?" in str(caught.value)
    with pytest.raises(ConfigError) as caught:  # bounds too, all of them together
        load_with(
            tmp_path, [{"Compose": {"transforms": [{"Solarize": {"p": 3}}, {"GaussianBlur": {"sigma": [2, 1]}}]}}]
        )
    assert re.search(r"run\.yaml:\d+: .*Compose\.transforms\.0\.Solarize\.p: got 3", str(caught.value))
    assert re.search(r"run\.yaml:\d+: .*GaussianBlur\.sigma: got .*the first of the pair", str(caught.value))


def test_what_changes_nothing_is_noted(tmp_path):
    config = load_with(tmp_path, [EVERY_NAME[2], EVERY_NAME[10]])
    assert [note.split(": ", 1)[1].split(":")[0].split(".")[-1] for note in config.notes] == ["antialias", "img_size"]


@pytest.mark.parametrize("name", ["SimCLRGaussianBlur", "BYOLSolarize", "TwoViewsTransform"])
def test_self_supervised_transforms_stay_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="self-supervised"):
        load_with(tmp_path, [name])


def test_the_command_line_lists_every_transform_with_a_line():
    lines = plsc("list", "transforms", "-v").stdout.splitlines()
    listed = {
        word.strip(",)") for line in lines if not line.startswith(" ") for word in line.replace("(also", "").split()
    }
    names = {item if isinstance(item, str) else next(iter(item)) for item in EVERY_NAME}
    assert names <= listed
    summaries = [after for line, after in itertools.pairwise(lines) if not line.startswith(" ")]
    assert all(line.startswith("    ") and line.rstrip().endswith((".", ")")) for line in summaries)
