"""`plsc visualize`: the mathematics against formulas written out anew, the sheets, and what is refused."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import cv2
import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.image import AxesImage
from matplotlib.text import Text
from paddle import nn
from PIL import Image
from safetensors.numpy import save_file
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine_similarity

from plsc import build, visualize
from plsc.cli import main
from plsc.cli.main import parser
from plsc.cli.visualize import _PICTURES as PICTURES
from plsc.config import load
from plsc.data.preprocess import Preprocess
from plsc.errors import ConfigError, DataError
from plsc.loading import load_model
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec
from plsc.runs.records import read_metrics
from plsc.visualize import (
    attention,
    curves,
    distance,
    filters,
    patches,
    pictures,
    position,
    rollout,
    sheet,
)
from plsc.visualize.subject import Subject, read_pictures, subject_of
from tests.helpers import CHECKOUT, SHARED, clean_environment, plsc, tiny_digits, write_config

SMALL = dict(img_size=32, patch_size=8, class_num=3, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0)
MODELS = {
    "plain": {},
    "registers": dict(reg_tokens=4),
    "registers outside the embedding": dict(reg_tokens=4, no_embed_class=True),
    "average": dict(pool="avg", fc_norm=True),
    "class token and average": dict(pool="token_avg"),
    "average without class token": dict(pool="avg", class_token=False),
    "attention pool": dict(pool="map", class_token=False),
    "attention pool with class token": dict(pool="map", reg_tokens=1),
    "hybrid": dict(img_size=64, patch_size=1, resnet_layers=(1, 1, 1), resnet_width=0.5),
    "stem": dict(img_size=64, patch_size=4, resnet_layers=(), resnet_width=0.5),
    "not square": dict(img_size=(32, 48), patch_size=(8, 16)),
    "patches that leave a rest": dict(img_size=36),
    "fixed embedding": dict(pos_embed="sincos2d"),
    "backbone": dict(class_num=0),
    "grey": dict(in_chans=1),
}
UNIT = dict(atol=1e-6, rtol=0)


def a_model(seed: int = 0, **fields) -> VisionTransformer:
    """A small model whose weights are larger than fresh ones, so that attention is far from even."""
    paddle.seed(seed)
    network = VisionTransformer(ViTSpec(**{**SMALL, **fields}))
    rng = np.random.default_rng(seed)
    for name, parameter in network.named_parameters():
        if not parameter.stop_gradient and "norm" not in name:
            noise = rng.normal(0, 0.5, parameter.shape).astype("float32")
            parameter.set_value(parameter.numpy() + noise)
    network.eval()
    return network


def images(spec: ViTSpec, count: int = 1, seed: int = 1):
    height, width = (spec.img_size, spec.img_size) if isinstance(spec.img_size, int) else spec.img_size
    rng = np.random.default_rng(seed)
    return paddle.to_tensor(rng.normal(size=[count, spec.in_chans, height, width]).astype("float32"))


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, [height, width, 3], dtype="uint8")


@pytest.fixture
def here(process_state):
    """A directory of its own, with two pictures."""
    Image.fromarray(pixels(50, 70)).save("red.png")
    Image.fromarray(pixels(60, 45, seed=1)).save("blue.jpg")
    return Path.cwd()


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved, while it is saved."""
    kept, save = [], sheet.save
    monkeypatch.setattr(sheet, "save", lambda figure, path: kept.append(figure) or save(figure, path))
    return kept


def preprocess_of(spec: ViTSpec) -> Preprocess:
    size = (spec.img_size, spec.img_size) if isinstance(spec.img_size, int) else tuple(spec.img_size)
    mean = (0.5,) * spec.in_chans
    return Preprocess(resize=round(1.1 * max(size)), crop=size, mean=mean, std=mean)


def write_weights(path, network, *, preprocess=True, classes=None):
    """A plsc weights file in one part, as `plsc convert --to safetensors` writes it."""
    notes = {"format": "plsc", "spec": json.dumps(dataclasses.asdict(network.spec))}
    if preprocess:
        notes["preprocess"] = json.dumps(preprocess_of(network.spec).to_dict())
    if classes:
        notes["classes"] = json.dumps(classes)
    arrays = {name: np.ascontiguousarray(p.numpy()) for name, p in network.named_parameters()}
    save_file(arrays, path, metadata=notes)
    return str(path)


def texts(figure) -> str:
    """All that is written on a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def opens(path) -> bool:
    if Path(path).suffix == ".svg":
        return ElementTree.parse(path).getroot().tag.endswith("svg")
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and np.asarray(picture).std() > 0


def refused(capsys, *arguments) -> str:
    """The message of a command that ends with exit code 2."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:  # argparse
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and "Traceback" not in err
    return err


# -- rollout ------------------------------------------------------------------------------


def rolled_out(layers) -> list[np.ndarray]:
    """Attention rollout, written out: (mean of heads + identity) / row sums, multiplied from the left."""
    count = layers[0].shape[-1]
    result = []
    joint = np.eye(count)
    for weights in layers:
        mean = sum(weights[h].astype("float64") for h in range(len(weights))) / len(weights)
        mixed = np.zeros([count, count])
        for i in range(count):
            row = mean[i].copy()
            row[i] += 1.0
            mixed[i] = row / row.sum()
        joint = np.array([[mixed[i] @ joint[:, j] for j in range(count)] for i in range(count)])
        result.append(joint)
    return result


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_rollout_is_what_numpy_computes_from_the_attention_weights(fields):
    network = a_model(**fields)
    layers = [layer.numpy()[0] for layer in network.attention_maps(images(network.spec))]
    np.testing.assert_allclose(layers[1].sum(axis=-1), 1.0, **UNIT)
    joint = rollout.rollout(layers)
    np.testing.assert_allclose(joint, rolled_out(layers), **UNIT)
    np.testing.assert_allclose(joint.sum(axis=-1), 1.0, **UNIT)
    assert np.abs(joint[-1] - 1.0 / joint.shape[-1]).max() > 0.01  # far from even, so that the test can fail


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_rollout_by_head_averages_to_the_layers_rollout(layer):
    layers = [weights.numpy()[0] for weights in a_model().attention_maps(images(ViTSpec(**SMALL)))]
    heads = rollout.head_rollout(layers, layer)
    assert heads.shape == layers[0].shape
    np.testing.assert_allclose(heads.sum(axis=-1), 1.0, **UNIT)
    np.testing.assert_allclose(heads.mean(axis=0), rolled_out(layers)[layer], **UNIT)
    before = rolled_out(layers)[layer - 1] if layer else np.eye(layers[0].shape[-1])
    np.testing.assert_allclose(heads[1], (layers[layer][1] + np.eye(len(before))) / 2 @ before, **UNIT)


def test_rollout_by_hand():
    """Two tokens, two layers: the first swaps, the second keeps."""
    swap, keep = np.array([[[0.0, 1.0], [1.0, 0.0]]]), np.array([[[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(rollout.rollout([swap, keep]), [[[0.5, 0.5], [0.5, 0.5]]] * 2)
    np.testing.assert_allclose(rollout.rollout([keep, swap])[0], np.eye(2))


def pool_weights_by_hand(network, tokens) -> np.ndarray:
    """[H, N]: softmax(q·k / sqrt(D)) of the attention pool, from its parameters."""
    pool, heads = network.attn_pool, network.spec.num_heads
    q = pool.latent.numpy()[0, 0] @ pool.q.weight.numpy() + pool.q.bias.numpy()
    k = (tokens @ pool.kv.weight.numpy() + pool.kv.bias.numpy())[:, : len(q)]
    size = len(q) // heads
    result = []
    for h in range(heads):
        scores = k[:, h * size : (h + 1) * size] @ q[h * size : (h + 1) * size] / math.sqrt(size)
        shares = np.exp(scores - scores.max())
        result.append(shares / shares.sum())
    return np.array(result)


@pytest.mark.parametrize("pool", get_args(get_type_hints(ViTSpec)["pool"]))
def test_attention_is_drawn_whatever_the_head_sees(pool):
    network = a_model(pool=pool)
    assert Subject("model", network.spec, network).attentive() is network
    assert ": what the " in attention.View(network.spec).title


@pytest.mark.parametrize("name", MODELS)
def test_map_is_what_the_head_reads_of_the_patches(name):
    """Class token, mean of patches or attention pool; registers left out after the rollout; the model's own grid."""
    network = a_model(**MODELS[name])
    spec = network.spec
    height, width = (spec.img_size,) * 2 if isinstance(spec.img_size, int) else spec.img_size
    seen_pixels = pixels(height, width, seed=3)[..., : spec.in_chans]
    picture = pictures.Picture("", (height, width), seen_pixels, (0, 0, height, width), seen_pixels, True)
    preprocess = preprocess_of(spec)

    seen = attention.look(network, preprocess, picture, "softmax")
    image = paddle.to_tensor(((picture.pixels / 255.0 - 0.5) / 0.5).astype("float32").transpose(2, 0, 1)[None])
    joint = rolled_out([layer.numpy()[0] for layer in network.attention_maps(image)])[-1]
    tokens = network.forward_features(image).numpy()[0]
    if spec.pool == "token":
        row = joint[0]
    elif spec.pool == "avg":
        row = joint[spec.prefix_tokens :].mean(axis=0)
    elif spec.pool == "token_avg":
        row = (joint[0] + joint[spec.prefix_tokens :].mean(axis=0)) / 2
    else:
        row = pool_weights_by_hand(network, tokens).mean(axis=0) @ joint
    patch_shares = row[-spec.grid[0] * spec.grid[1] :]
    expected = (patch_shares / patch_shares.sum() * patch_shares.size).reshape(spec.grid)

    np.testing.assert_allclose(seen.reading.sum(), 1.0, **UNIT)
    assert ": what the " in attention.View(spec).title
    np.testing.assert_allclose(attention.View(spec).maps(seen), expected[None], atol=1e-4)
    by_layer = attention.View(spec, by="layer").maps(seen)
    by_head = attention.View(spec, by="head").maps(seen)
    assert by_layer.shape == (spec.depth, *spec.grid) and by_head.shape == (spec.num_heads, *spec.grid)
    np.testing.assert_allclose(by_layer[-1], expected, atol=1e-4)
    logits = network(image).numpy()
    assert seen.prediction == (int(logits.argmax()) if spec.class_num else None)
    if spec.class_num:
        shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
        assert seen.probability == pytest.approx(shares.max(), rel=1e-5)
        assert attention.look(network, preprocess, picture).probability is None, "what makes probabilities is unknown"


def test_raw_maps_are_the_attention_weights_themselves():
    network = a_model(reg_tokens=2)
    spec = network.spec
    layers = [layer.numpy()[0] for layer in network.attention_maps(images(spec))]
    seen = attention.Seen(layers, rollout.reading("token", 19, 3), None)

    def scaled(row):
        return (row[3:] / row[3:].mean()).reshape(spec.grid)

    heads = attention.View(spec, by="head", layer=2, raw=True).maps(seen)
    np.testing.assert_allclose(heads, [scaled(layers[1][h, 0].astype("float64")) for h in range(2)], atol=1e-6)
    by_layer = attention.View(spec, by="layer", raw=True).maps(seen)
    np.testing.assert_allclose(by_layer, [scaled(w.astype("float64").mean(axis=0)[0]) for w in layers], atol=1e-5)


# -- attention distance -------------------------------------------------------------------

grids = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    grid=grids, stride=st.tuples(st.integers(1, 32), st.integers(1, 32)), prefix=st.integers(0, 3), seed=st.integers(0)
)
@settings(max_examples=40, deadline=None)
def test_attention_distance_is_the_weighted_mean_of_distances(grid, stride, prefix, seed):
    count = grid[0] * grid[1]
    weights = np.random.default_rng(seed).random([2, prefix + count, prefix + count]) + 1e-3
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = []
    for head in weights:
        of_patches = []
        for i in range(count):
            total = shares = 0.0
            for j in range(count):
                down = (i // grid[1] - j // grid[1]) * stride[0]
                across = (i % grid[1] - j % grid[1]) * stride[1]
                share = head[prefix + i, prefix + j]
                total, shares = total + share * math.sqrt(down**2 + across**2), shares + share
            of_patches.append(total / shares)
        expected.append(sum(of_patches) / count)
    actual = distance.attention_distance(weights, prefix, grid, stride)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_attention_distance_of_plain_cases():
    """A patch that sees only itself looks 0 pixels far; its right neighbour is a patch away; even attention is even."""
    grid, stride = (3, 4), (16, 8)
    itself = np.eye(12)[None]
    assert distance.attention_distance(itself, 0, grid, stride) == pytest.approx([0.0])
    neighbour = np.zeros([1, 12, 12])
    for i in range(12):
        neighbour[0, i, i + 1 if i % 4 < 3 else i - 1] = 1.0
    assert distance.attention_distance(neighbour, 0, grid, stride) == pytest.approx([8.0])
    even = np.full([1, 14, 14], 1 / 14)
    assert distance.attention_distance(even, 2, grid, stride) == pytest.approx([distance.even_distance(grid, stride)])


def test_measured_distance_is_the_mean_over_pictures():
    network = a_model(reg_tokens=2)
    preprocess, spec = preprocess_of(network.spec), network.spec
    seen = [pictures.Picture("", (4, 4), pixels(4, 4), (0, 0, 4, 4), pixels(32, 32, seed), True) for seed in range(3)]
    together = distance.measure(network, preprocess, seen)
    apart = [distance.measure(network, preprocess, [picture]) for picture in seen]
    assert together.shape == (spec.depth, spec.num_heads) and np.ptp(apart, axis=0).max() > 1e-3
    np.testing.assert_allclose(together, np.mean(apart, axis=0), rtol=1e-9)


# -- position embedding and filters -------------------------------------------------------


def test_cosine_similarity_is_scikit_learns():
    rows = np.random.default_rng(0).normal(size=[10, 7])
    rows[4] = 0.0
    np.testing.assert_allclose(position.cosine_similarity(rows), sklearn_cosine_similarity(rows), atol=1e-12)


def test_similarity_tiles_hold_each_patchs_map_in_its_place():
    rows, grid, gap = np.random.default_rng(0).normal(size=[6, 5]), (2, 3), 1
    tiles = position.similarity_tiles(rows, grid, gap)
    assert tiles.shape == (2 * 2 + 1, 3 * 3 + 2)
    expected = sklearn_cosine_similarity(rows)
    np.testing.assert_allclose(tiles[3:5, 4:7], expected[4].reshape(2, 3))  # patch (1, 1)
    assert np.isnan(tiles[2]).all() and np.isnan(tiles[:, 3]).all()


def test_large_grids_show_some_tiles_with_both_ends():
    assert position.chosen(5).tolist() == [0, 1, 2, 3, 4]
    shown = position.chosen(40)
    assert len(shown) == position.MOST_TILES and shown[0] == 0 and shown[-1] == 39


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_sinusoidal_is_the_transformers_formula(positions, width):
    table = position.sinusoidal(positions, width)
    for p in range(positions):
        for column in range(width):
            angle = p / 10000 ** (2 * (column // 2) / width)
            assert table[p, column] == pytest.approx(math.cos(angle) if column % 2 else math.sin(angle))


@pytest.mark.parametrize("shape", [(40, 3, 4, 4), (6, 1, 4, 4), (5, 4, 2, 2)])
def test_principal_components_are_scikit_learns(shape):
    kernels = np.random.default_rng(0).normal(size=shape).astype("float32")
    count = 4
    components, shares = filters.principal_components(kernels, count)
    expected = PCA().fit(kernels.reshape(len(kernels), -1).astype("float64"))
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, atol=1e-9)
    for actual, theirs in zip(components.reshape(count, -1), expected.components_, strict=False):
        assert abs(actual @ theirs) == pytest.approx(1.0)
        assert np.abs(actual).max() == actual.max()


def test_no_more_components_than_there_are():
    components, shares = filters.principal_components(np.random.default_rng(0).normal(size=[3, 1, 2, 2]), 28)
    assert len(components) == len(shares) == 3
    assert np.isfinite(filters.principal_components(np.ones([3, 1, 2, 2]), 28)[1]).all()


def test_filters_of_a_hybrid_are_the_standardised_first_convolution():
    network = a_model(**MODELS["stem"])
    kernels, whose = filters.pixel_filters(network)
    assert kernels.shape == (32, 3, 7, 7) and "ResNet" in whose
    np.testing.assert_allclose(kernels.mean(axis=(1, 2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(kernels.std(axis=(1, 2, 3)), 1.0, atol=1e-3)


def test_components_as_pictures_keep_zero_grey():
    shown = filters.as_pictures(np.array([[[[0.0, 2.0]], [[-1.0, 0.0]], [[0.0, 0.0]]]]))
    np.testing.assert_allclose(shown, [[[[0.5, 0.25, 0.5], [1.0, 0.5, 0.5]]]])


# -- pictures and patches -----------------------------------------------------------------


def test_patches_are_the_tokens_in_their_order():
    """Each patch times the kernel is the token that the model's own patch embedding makes."""
    network = a_model(**MODELS["patches that leave a rest"])
    spec = network.spec
    image = pixels(36, 36)
    cut = patches.cut(image, spec)
    assert cut.shape == (4, 4, 8, 8, 3)
    kernel, bias = (p.numpy() for p in (network.patch_embed.proj.weight, network.patch_embed.proj.bias))
    tokens = np.einsum("ijhwc,ochw->ijo", cut / 255.0, kernel) + bias
    own = network.patch_embed(paddle.to_tensor((image / 255.0).astype("float32").transpose(2, 0, 1)[None]))
    np.testing.assert_allclose(tokens.reshape(16, -1), own.numpy()[0], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_patches_cover_the_picture_but_for_a_rest(name):
    spec = ViTSpec(**{**SMALL, **MODELS[name]})
    stride, covered = pictures.patch_stride(spec), pictures.covered(spec)
    size = (spec.img_size, spec.img_size) if isinstance(spec.img_size, int) else spec.img_size
    for side, count, step, seen in zip(size, spec.grid, stride, covered, strict=True):
        assert seen == count * step <= side < seen + step


def gradient(height: int, width: int) -> bytes:
    """A PNG whose red says how far across and whose green says how far down a pixel is."""
    red = np.tile((np.arange(width) + 0.5) / width * 255, (height, 1))
    green = np.tile(((np.arange(height) + 0.5) / height * 255)[:, None], (1, width))
    image = np.stack([red, green, np.zeros_like(red)], axis=2).round().astype("uint8")
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize(("resize", "crop"), [(40, (32, 32)), (64, (32, 48)), ((32, 48), None), ((50, 60), (32, 48))])
def test_box_is_the_part_of_the_file_that_the_model_sees(tmp_path, resize, crop, rgb):
    """Position is colour: the corners of the model's input have the colours of the box's corners."""
    height, width = 90, 150
    data = gradient(height, width)
    (tmp_path / "gradient.png").write_bytes(data)
    preprocess = Preprocess(resize=resize, crop=crop, rgb=rgb)
    spec = ViTSpec(**{**SMALL, "img_size": crop or resize})
    picture = pictures.read_picture(tmp_path / "gradient.png", preprocess, spec)
    assert picture.original.shape == (90, 150, 3) and picture.pixels.shape == (*(crop or resize), 3)
    np.testing.assert_array_equal(picture.pixels, preprocess(data))
    top, left, box_height, box_width = picture.box
    shown = picture.shown.astype("float64")
    rows, columns = shown.shape[:2]
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        across = (left + (column + 0.5) / columns * box_width) / width * 255
        down = (top + (row + 0.5) / rows * box_height) / height * 255
        np.testing.assert_allclose(shown[row, column], [across, down, 0.0], atol=3.0)


def test_a_large_photograph_is_kept_small_but_entered_whole(tmp_path):
    Image.fromarray(pixels(1100, 2200)).save(tmp_path / "large.jpg")
    preprocess = Preprocess(resize=36, crop=(32, 32))
    picture = pictures.read_picture(tmp_path / "large.jpg", preprocess, ViTSpec(**SMALL))
    assert picture.size == (1100, 2200) and picture.original.shape == (512, 1024, 3)
    assert picture.box == pytest.approx((1100 / 18, 2200 * 20 / 72, 1100 * 32 / 36, 2200 * 32 / 72))
    np.testing.assert_array_equal(picture.pixels, preprocess((tmp_path / "large.jpg").read_bytes()))


def test_grey_pictures_enter_grey_models_and_coloured_ones_do_not(tmp_path):
    spec = ViTSpec(**{**SMALL, "in_chans": 1, "img_size": 8, "patch_size": 4})
    grey = pixels(8, 8)[..., :1]
    Image.fromarray(grey[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels(8, 8)).save(tmp_path / "coloured.png")
    preprocess = Preprocess(mean=(0.5,), std=(0.5,))
    picture = pictures.read_picture(tmp_path / "grey.png", preprocess, spec)
    np.testing.assert_array_equal(picture.pixels, grey)
    np.testing.assert_array_equal(picture.shown, np.repeat(grey, 3, axis=2))
    with pytest.raises(DataError, match=r"coloured\.png: has colours; the model takes grey"):
        pictures.read_picture(tmp_path / "coloured.png", preprocess, spec)


# -- sheets -------------------------------------------------------------------------------


@pytest.mark.parametrize(("items", "per_item"), [(1, 2), (2, 2), (9, 2), (100, 2), (1, 13), (4, 25), (3, 8), (2, 4)])
def test_items_of_a_sheet_have_room(items, per_item):
    side_by_side, columns, lines = sheet.arrange(items, per_item)
    assert columns * lines >= per_item and columns * (lines - 1) < per_item
    assert 1 <= side_by_side <= items and side_by_side * columns <= (8 if items == 1 or per_item <= 8 else 13)


@pytest.mark.parametrize(
    ("name", "by"),
    [*((name, "rollout") for name in MODELS), ("registers", "layer"), ("hybrid", "layer"), ("attention pool", "head")],
)
def test_attention_of_every_kind_of_model(here, figures, name, by):
    network = a_model(**MODELS[name])
    weights = write_weights(
        "model.safetensors", network, classes=["ant", "bee, honeybee", "cat"][: network.spec.class_num]
    )
    files = ["red.png", "blue.jpg"]
    if network.spec.in_chans == 1:
        files = ["grey.png"]
        Image.fromarray(pixels(50, 70)[..., 0]).save("grey.png")
    ending = "svg" if by == "layer" else "png"
    arguments = ["visualize", "attention", "--weights", weights, *files, "--by", by, "--output", f"sheets/a.{ending}"]
    assert main(arguments) == 0
    assert opens(f"sheets/a.{ending}")
    shown = texts(figures[0])
    assert all(file in shown for file in files) and "× the mean" in shown and "attention to the patch" in shown
    assert ("→" in shown) == bool(network.spec.class_num)
    if network.spec.class_num:
        assert re.search("→ (ant|bee|cat)\n", shown + "\n")
    count = {"rollout": 1, "layer": network.spec.depth, "head": network.spec.num_heads}[by]
    assert len(figures[0].findobj(AxesImage)) == len(files) * (1 + count)


def test_the_map_lies_where_the_patches_are(here, figures):
    """36 pixels hold 4 patches of 8: the rest stays grey, the centre of the highest patch has the highest colour."""
    grey = np.full([36, 36], 200, "uint8")
    values = np.ones([4, 4])
    values[1, 2] = 3.0
    drawn = attention.overlaid(grey, values, (32, 32))
    assert (drawn[32:] == 200 / 255).all() and (drawn[:, 32:] == 200 / 255).all()
    # the four pixels around its centre are half a pixel away from it, of the 8 to the next patch's
    nearly, lowest = (np.array(colormaps["inferno"](v)[:3]) for v in ((1 - 0.5 / 8) ** 2, 0.0))
    highest = np.broadcast_to(0.4 * 200 / 255 + 0.6 * nearly, [2, 2, 3])
    np.testing.assert_allclose(drawn[11:13, 19:21], highest, atol=0.01)
    np.testing.assert_allclose(drawn[28:32, :12], np.broadcast_to(0.4 * 200 / 255 + 0.6 * lowest, [4, 12, 3]))
    even = attention.overlaid(grey, np.ones([4, 4]), (32, 32))
    np.testing.assert_allclose(even[:32, :32], np.broadcast_to(0.4 * 200 / 255 + 0.6 * lowest, [32, 32, 3]))

    weights = write_weights("model.safetensors", a_model(**MODELS["patches that leave a rest"]))
    main(["visualize", "attention", "--weights", weights, "red.png"])
    shown = figures[0].axes[1].images[0].get_array()
    assert shown.shape == (36, 36, 3)
    coloured = np.ptp(shown, axis=2) > 1e-6
    assert coloured[:32, :32].mean() > 0.99 and not coloured[32:].any() and not coloured[:, 32:].any()


def test_attention_shows_how_sure_the_prediction_is(here, figures):
    write_weights("model.safetensors", a_model())
    model = load_model("model.safetensors")
    model.card = dataclasses.replace(model.card, activation="softmax")
    visualize.draw_attention(model, ["red.png"], "sure.png")
    assert re.search(r"→ class \d+, \d{1,3}\.\d %$", texts(figures[0]), re.MULTILINE)


def test_attention_names_classes_of_a_file_and_shows_dollars_as_they_are(here, figures):
    Path("red.png").rename("$red_{$.png")
    weights = write_weights("model.safetensors", a_model())
    Path("names.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n\nthird\n", encoding="utf-8")
    arguments = ["visualize", "attention", "--weights", weights, "$red_{$.png", "--class-names", "names.txt"]
    assert main(arguments) == 0 and opens("attention.png")
    shown = texts(figures[0])
    assert "$red_{$.png" in shown and re.search("→ (tench|goldfish|third)$", shown, re.MULTILINE)


def test_titles_in_scripts_without_a_font_are_one_warning(here, capsys, caplog):
    """Such as Chinese on a system without a font for it; where there is one, there is no warning."""
    Path("red.png").rename("图片.png")
    weights = write_weights("model.safetensors", a_model(), classes=["猫", "狗", "鸟"])
    assert main(["visualize", "attention", "--weights", weights, "图片.png"]) == 0 and opens("attention.png")
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == (0 if len(sheet._fonts()) > 1 else 1) and all("fonts-noto-cjk" in text for text in warned)


def test_resolution_and_recipe(here, figures):
    """A recipe says model and preprocessing of weights that do not; both follow another resolution."""
    weights = write_weights("model.safetensors", a_model(), preprocess=False)
    tree = tiny_digits()
    tree["Model"] = {"name": "VisionTransformer", **SMALL}
    tree["DataLoader"]["Eval"]["dataset"]["transform_ops"] = [
        {"DecodeImage": None},
        {"ResizeImage": {"resize_short": 36}},
        {"CenterCropImage": {"size": 32}},
        {"NormalizeImage": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}},
        {"ToCHWImage": None},
    ]
    write_config(here / "recipe.yaml", tree)
    arguments = ["visualize", "attention", "--weights", weights, "-c", "recipe.yaml", "red.png"]
    assert main(arguments) == 0
    assert main([*arguments, "--resolution", "48"]) == 0
    for k in (0, 1):  # picture and map
        assert [figure.axes[k].images[0].get_array().shape for figure in figures] == [(32, 32, 3), (48, 48, 3)]


def test_averaged_weights_of_a_run(here, figures):
    tree = tiny_digits()
    tree["EMA"] = {"decay": 0.5}
    tree["Global"].update(max_train_step=3, output_dir="run", save_interval=1)
    write_config(here / "run.yaml", tree)
    assert main(["train", "-c", "run.yaml"]) == 0
    assert main(["visualize", "filters", "--weights", "run"]) == 0
    assert main(["visualize", "filters", "--weights", "run", "--ema"]) == 0
    raw, averaged = (figure.axes[0].images[0].get_array() for figure in figures[1:])  # after the run's curves
    assert raw.shape == averaged.shape == (4, 4, 3) and not np.array_equal(raw, averaged)
    Image.fromarray(pixels(8, 8)[..., 0]).save("digit.png")
    assert main(["visualize", "attention", "--weights", "run", "digit.png"]) == 0
    assert main(["visualize", "curves", "run"]) == 0
    assert opens("attention.png") and opens("curves.png") and opens("run/curves.png")


@pytest.mark.parametrize(
    ("name", "with_pictures"),
    [("registers", True), ("hybrid", True), ("not square", False), ("fixed embedding", False), ("grey", True)],
)
def test_position_of_every_kind_of_model(here, figures, capsys, name, with_pictures):
    network = a_model(**MODELS[name])
    weights = write_weights("model.safetensors", network)
    Image.fromarray(pixels(50, 70)[..., 0]).save("grey.png")
    ending = "png" if with_pictures else "svg"
    arguments = ["visualize", "position", "--weights", weights, "--output", f"position.{ending}"]
    assert main([*arguments, "grey.png", "grey.png"] if with_pictures else arguments) == 0
    assert opens(f"position.{ending}")
    assert ("name picture files" in capsys.readouterr().out) != with_pictures
    shown = texts(figures[0])
    wanted = "mean attention distance (pixels)" if with_pictures else "variance explained (%)"
    for text in (wanted, "cosine similarity", "patch row", "patch column", "sine and cosine", "principal"):
        assert text in shown
    rows, columns = network.spec.grid
    assert f"{rows} × {columns} patches" in shown and ("learned" in shown) == (name != "fixed embedding")


def test_weights_that_the_recipe_names_are_drawn(here, figures):
    """Global.pretrained_model stands for --weights, as in other commands; the recipe says the model."""
    tree = tiny_digits()
    tree["Model"] |= SMALL | {"in_chans": 3}
    tree["Global"]["pretrained_model"] = write_weights("model.safetensors", a_model())
    write_config(here / "recipe.yaml", tree)
    for name in ("position", "filters"):
        assert main(["visualize", name, "-c", "recipe.yaml"]) == 0 and opens(f"{name}.png")
        assert texts(figures[-1]).split(": ")[0].endswith("model.safetensors")


def test_pictures_are_drawn_from_python(here, figures):
    """Of a path, of a loaded model at another size, of a configuration without weights; as the commands draw them."""
    network = a_model()
    weights = write_weights("model.safetensors", network)
    assert visualize.draw_attention(weights, ["red.png"], "a.png", by="head", layer=2) == Path("a.png")
    assert main(["visualize", "attention", "--weights", weights, "red.png", "--by", "head", "--layer", "2"]) == 0
    assert opens("a.png") and Path("a.png").read_bytes() == Path("attention.png").read_bytes()
    assert opens(visualize.draw_position(weights, "deep/er/p.svg", img_size=48, pictures=["red.png", "blue.jpg"]))
    assert opens(visualize.draw_filters(load_model(weights, img_size=48), "f.png", count=5))
    tree = tiny_digits()
    write_config(here / "recipe.yaml", tree)
    assert opens(visualize.draw_schedule(load("recipe.yaml"), "s.png", steps=20))
    assert "recipe.yaml: learning rate" in texts(figures[-1])
    with pytest.raises(ConfigError, match="--raw goes with"):
        visualize.draw_attention(weights, ["red.png"], "b.png", raw=True)
    assert sorted(visualize.__all__) == sorted(name for name in dir(visualize) if name.startswith("draw_"))


class OwnTransformer(nn.Layer):
    """Somebody's transformer with a spec of their own: what the drawings of attention ask for, and nothing else."""

    @dataclasses.dataclass(frozen=True)
    class Spec:
        img_size: int = 32
        in_chans: int = 3
        patch_size: int = 16
        grid: tuple = (2, 2)
        prefix_tokens: int = 0
        pool: str = "avg"
        depth: int = 2
        num_heads: int = 1
        class_num: int = 0

    def __init__(self):
        super().__init__()
        self.spec = self.Spec()

    def forward_features(self, x):
        return paddle.zeros([len(x), 4, 8])

    def attention_maps(self, x):
        """Every patch reads the third one only."""
        return [paddle.to_tensor([[[[0.0, 0.0, 1.0, 0.0]] * 4]])] * 2


def test_a_strangers_attention_is_drawn_and_what_is_missing_is_named(here, figures):
    card = ModelCard(model="Own", preprocess=Preprocess(resize=35, crop=(32, 32)))
    own = OwnTransformer()
    visualize.draw_attention(Subject("own", own.spec, own, card), ["red.png"], "own.png")
    assert "0.25 to 3.2 × the mean" in texts(figures[-1]), "3/4 of the third patch and 1/4 of their own, over 2 layers"
    network = nn.Linear(2, 2)
    subject = Subject("else", SimpleNamespace(class_num=2), network, ModelCard(model="SmallConvNet"))
    with pytest.raises(ConfigError, match=r"else: SmallConvNet has no attention_maps\(\), spec\.img_size"):
        visualize.draw_attention(subject, ["red.png"], "else.png")
    for draw in (visualize.draw_position, visualize.draw_filters):
        with pytest.raises(ConfigError, match="SmallConvNet is not a Vision Transformer and has no"):
            draw(subject, "else.png")
    assert not Path("else.png").exists()


def test_importing_the_drawings_imports_no_paddle():
    program = "import sys, plsc.visualize; sys.exit('paddle' in sys.modules or 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=clean_environment(PYTHONPATH=str(CHECKOUT)))
    assert done.returncode == 0


def test_position_embedding_is_resized_as_when_it_is_loaded(here, figures):
    network = a_model()
    weights = write_weights("model.safetensors", network)
    assert main(["visualize", "position", "--weights", weights, "--resolution", "48"]) == 0
    loaded = load_model(weights, img_size=48).network.pos_embed.numpy()[0, 1:]
    drawn = figures[0].subfigs[0].axes[1].images[0].get_array()
    expected = sklearn_cosine_similarity(loaded).reshape(6, 6, 6, 6)
    np.testing.assert_allclose(np.asarray(drawn)[7:13, 14:20], expected[1, 2], atol=1e-5)  # tile (1, 2), gaps of 1
    assert "6 × 6 patches" in texts(figures[0])


@pytest.mark.parametrize(("name", "count"), [("plain", 28), ("hybrid", 5), ("grey", 100)])
def test_filters(here, figures, name, count):
    weights = write_weights("model.safetensors", a_model(**MODELS[name]))
    assert main(["visualize", "filters", "--weights", weights, "--components", str(count), "--output", "f.svg"]) == 0
    assert opens("f.svg")
    shown = texts(figures[0])
    assert "variance explained (%)" in shown and re.search(r"^1:  \d+", shown, re.MULTILINE)
    most = {"plain": 16, "hybrid": 32, "grey": 16}[name]  # filters
    assert len(figures[0].findobj(AxesImage)) == min(count, most)


def test_patches_of_weights_and_of_a_recipe(here, figures):
    weights = write_weights("model.safetensors", a_model(reg_tokens=2))
    assert main(["visualize", "patches", "--weights", weights, "red.png", "blue.jpg"]) == 0 and opens("patches.png")
    shown = texts(figures[0])
    assert "4 × 4 patches of 8 × 8 px" in shown and "class token + 2 registers + 16 patches" in shown
    assert "70 × 50 px" in shown and "red.png" in shown and "patch column" in shown
    recipe = ["-c", "DeiT_tiny_patch16_224_eval", "-o", "Model.patch_size=32", "--resolution", "192"]
    assert main(["visualize", "patches", *recipe, "red.png", "--output", "patches.svg"]) == 0 and opens("patches.svg")
    assert "6 × 6 patches of 32 × 32 px" in texts(figures[1])


# -- curves and schedules -----------------------------------------------------------------


def write_run(folder, steps: int = 40, scale: float = 1.0, weights=("raw",)) -> list[dict]:
    """A run directory with the metrics of so many updates."""
    records = []
    for step in range(10, steps + 1, 10):
        train = {"loss": scale * 2.0 / step, "top1": step / 100, "lr": 0.1 / step, "images_per_second": 100.0 + step}
        records.append({"kind": "train", "step": step, "epoch": 1, **train})
        records += [
            {"kind": "eval", "step": step, "weights": w, "loss": scale * 3.0 / step, "top1": step / 200}
            for w in weights
        ]
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return records


def lines_of(axis) -> list[tuple]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def test_curves_hold_what_was_logged(here, figures):
    write_run(here / "run", weights=("raw", "ema"))
    assert main(["visualize", "curves", "run", "--output", "c.svg"]) == 0 and opens("c.svg")
    loss, accuracy, rate, throughput = figures[0].axes
    steps = [10, 20, 30, 40]
    averaged = (steps, [3.0 / s for s in steps])
    assert lines_of(loss) == [(steps, [2.0 / s for s in steps]), averaged, averaged]
    assert lines_of(accuracy)[0] == (steps, pytest.approx(steps))
    assert lines_of(rate) == [(steps, [0.1 / s for s in steps])]
    assert lines_of(throughput) == [(steps, [100.0 + s for s in steps])]
    labels = [axis.get_ylabel() for axis in figures[0].axes]
    assert labels == ["loss", "top-1 (%)", "learning rate", "images / s"]
    assert {axis.get_xlabel() for axis in figures[0].axes} == {"update"}
    assert "averaged weights" in texts(figures[0])


def test_curves_of_many_runs_have_a_colour_and_a_name_each(here, figures):
    folders = [here / f"{k:02d}" / "run" for k in range(13)]
    for k, folder in enumerate(folders):
        write_run(folder, scale=1.0 + k)
    assert main(["visualize", "curves", *map(str, folders), str(folders[0])]) == 0 and opens("curves.png")
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == [f"{k:02d}/run" for k in range(13)]
    drawn = figures[0].axes[0].lines
    assert len(drawn) == 2 * 13 and len({str(line.get_color()) for line in drawn}) == 13


def write_records(folder, *records) -> None:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.mark.parametrize(
    ("logged", "name", "title", "label", "factor"),
    [
        ({"mAP": 0.25, "mAP_classes": 4, "f1_macro": 0.5}, "mAP", "Mean average precision", "mAP (%)", 100),
        ({"auc": 0.75, "precision_at_1": 0.5}, "precision_at_1", "Precision at 1", "precision at 1 (%)", 100),
        ({"auc": 0.75, "auc_classes": 4}, "auc", "Area under the ROC curve", "AUC (%)", 100),
        ({"f1_macro": 0.5, "f1_micro": 0.25}, "f1_macro", "F1, mean over classes", "F1 (%)", 100),
        ({"top5": 0.5, "top10": 0.75}, "top5", "Accuracy", "top-5 (%)", 100),
        ({"top5": 0.5, "mAP": 0.25, "top1": 0.125}, "top1", "Accuracy", "top-1 (%)", 100),
    ],
)
def test_the_second_panel_is_the_accuracy_that_was_logged(here, figures, logged, name, title, label, factor):
    """Of several labels there is no top-1; what any run of them has is drawn."""
    write_records(here / "loss", *({"kind": "train", "step": s, "loss": 2.0} for s in (5, 10)))
    write_records(
        here / "run", *({"kind": "eval", "step": s, "weights": "raw", "loss": 1.0, **logged} for s in (5, 10))
    )
    assert main(["visualize", "curves", "loss", "run"]) == 0
    panel = figures[0].axes[1]
    assert (panel.get_title(), panel.get_ylabel()) == (title, label)
    assert lines_of(panel) == [([5, 10], [factor * logged[name]] * 2)]


def test_a_run_without_accuracy_says_so(here, figures):
    write_records(here / "run", {"kind": "train", "step": 5, "loss": 2.0, "lr": 0.1})
    assert main(["visualize", "curves", "run"]) == 0
    panel = figures[0].axes[1]
    assert (
        "no accuracy was logged" in texts(panel) and not panel.lines and "no accuracy" not in texts(figures[0].axes[0])
    )


@pytest.mark.parametrize(("steps", "mark"), [(40, "."), (400, "None")])
def test_the_legend_shows_lines_as_they_are_drawn(here, figures, steps, mark):
    """Four updates have a point each, forty none; evaluations have marks of their own."""
    write_run(here / "run", steps=steps)
    assert main(["visualize", "curves", "run"]) == 0
    for panel in figures[0].axes:
        training = panel.get_legend().get_lines()[0]
        assert training.get_marker() == panel.lines[0].get_marker() == mark
        assert training.get_linestyle() == panel.lines[0].get_linestyle() == "-"


def test_evaluations_have_marks_of_their_own_and_top5_and_norms_panels(here, figures):
    step = {"kind": "train", "loss": 2.0, "top1": 0.25, "top5": 0.5, "grad_norm": 1.5, "lr": 0.1}
    evaluated = [
        {"kind": "eval", "step": 5, "weights": w, "loss": 1.0, "top1": 0.5, "top5": 0.75} for w in ("raw", "ema")
    ]
    write_records(here / "run", {**step, "step": 5}, *evaluated)
    assert main(["visualize", "curves", "run"]) == 0
    panels = {axis.get_ylabel(): axis for axis in figures[0].axes if axis.get_ylabel()}
    assert list(panels) == ["loss", "top-1 (%)", "top-5 (%)", "learning rate", "images / s", "norm"]
    assert lines_of(panels["top-5 (%)"]) == [([5], [50.0]), ([5], [75.0]), ([5], [75.0])]
    assert lines_of(panels["norm"]) == [([5], [1.5])]
    assert len({line.get_marker() for line in panels["loss"].lines}) == 3


def test_long_names_of_runs_stay_on_the_sheet(here, figures):
    for k in range(6):
        write_run(here / f"{k}-learning_rate=0.00{k}-weight_decay=0.0{k}-seed={k}")
    assert main(["visualize", "curves", *(str(path) for path in sorted(here.glob("?-*")))]) == 0
    [legend], figure = figures[0].legends, figures[0]
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_a_line_cut_short_and_a_line_of_something_else_are_left_out(here):
    records = write_run(here / "run")
    with open(here / "run" / "metrics.jsonl", "a") as file:
        file.write('7\n"text"\n{"step": 3}\n{"kind": "train", "st')
    assert read_metrics(here / "run") == records


def test_nothing_to_draw_is_none(here):
    """`plsc train` asks for the curves of a run that may have logged nothing."""
    (here / "empty").mkdir()
    assert curves.draw_curves([here / "empty"], here / "curves.png") is None
    assert not (here / "curves.png").exists()


def test_a_schedule_before_it_is_run(here, figures):
    """A warm-up of 20 updates to 0.5, then a cosine to 0.1, written out."""
    tree = tiny_digits()
    tree["Global"] = {"epochs": 10, "device": "cpu"}
    tree["LRScheduler"] = {"name": "Cosine", "learning_rate": 0.5, "end_lr": 0.1, "warmup_steps": 20}
    write_config(here / "recipe.yaml", tree)
    assert main(["visualize", "curves", "-c", "recipe.yaml", "--steps", "120", "--output", "s.svg"]) == 0 and opens(
        "s.svg"
    )
    axis = figures[0].axes[0]
    steps, rates = lines_of(axis)[0]
    assert steps == list(range(120))
    expected = [
        0.5 * s / 20 if s < 20 else 0.1 + 0.4 * (1 + math.cos(math.pi * (s - 20) / 100)) / 2 for s in range(120)
    ]
    np.testing.assert_allclose(rates, expected, atol=1e-12)
    shown = texts(figures[0])
    assert "peak 0.5 at update 20" in shown and "warm-up, 20 updates" in shown and "epoch (of 12 updates)" in shown
    assert "learning rate" in shown and "update (of 120)" in shown


def test_a_long_schedule_shows_its_peak(here, figures):
    assert main(["visualize", "curves", "-c", "ViT_base_patch16_224_in1k_1n8c_dp_fp16o2", "--steps", "93900"]) == 0
    steps, rates = lines_of(figures[0].axes[0])[0]
    assert len(steps) <= 2001 and 10000 in steps and max(rates) == pytest.approx(3e-3)
    assert "peak 0.003 at update 10,000" in texts(figures[0])


@pytest.mark.parametrize(("processes", "per_epoch"), [(1, 45), (2, 23)])
def test_length_of_a_run_is_counted_as_the_trainer_counts(here, processes, per_epoch):
    """1437 digits in batches of 32 a process, the last one completed; max_train_step cuts the run short."""
    write_config(here / "recipe.yaml", tiny_digits())
    length = build.length_of(load("recipe.yaml"), processes=processes)
    assert length == build.Length(steps=10, schedule_steps=per_epoch, steps_per_epoch=per_epoch)


def test_a_stated_global_batch_gives_the_same_length_on_any_number_of_processes(here):
    tree = tiny_digits()
    tree["Global"]["global_batch_size"] = 64
    del tree["DataLoader"]["Train"]["sampler"]["batch_size"]
    write_config(here / "recipe.yaml", tree)
    for processes in (1, 2, 4):
        assert build.length_of(load("recipe.yaml"), processes=processes).steps_per_epoch == 23


# -- what is refused ----------------------------------------------------------------------


def test_wrong_uses_are_reported(here, capsys):
    weights = write_weights("model.safetensors", a_model())
    silent = write_weights("silent.safetensors", a_model(), preprocess=False)
    Path("text.jpg").write_text("no picture")
    Path("two.txt").write_text("a\nb\n")
    Path("latin.txt").write_bytes(b"\xe9t\xe9\n")
    (here / "folder").mkdir()
    tree = tiny_digits()
    del tree["DataLoader"]["Eval"]
    write_config(here / "no_eval.yaml", tree)
    odd = tiny_digits()
    odd["Model"]["in_chans"], odd["Model"]["img_size"] = 3, 32
    write_config(here / "odd.yaml", odd)
    draw = ["visualize", "attention", "--weights", weights]
    cases = [
        ([*draw, "red.png", "--output", "sheet.jpg"], "--output sheet.jpg: is written as .png, .svg; end the name so"),
        ([*draw, "red.png", "--output", "sheet"], "is written as .png, .svg"),
        ([*draw], "the following arguments are required: IMAGE"),
        ([*draw, "none.png"], "none.png: cannot be read: No such file"),
        ([*draw, "folder"], "folder: is a folder; name the pictures in it"),
        ([*draw, "red.png", "text.jpg"], "text.jpg: not a readable picture"),
        ([*draw, "red.png", "--by", "depth"], "'depth' is unknown; the choices are rollout, layer, head"),
        ([*draw, "red.png", "--layer", "2"], "--layer goes with --by head"),
        ([*draw, "red.png", "--by", "head", "--layer", "4"], "--layer 4: the model has the layers 1 to 3"),
        ([*draw, "red.png", "--by", "head", "--layer", "0"], "'0' is not a whole number above 0"),
        ([*draw, "red.png", "--resolution", "²"], "'²' is not a whole number above 0"),
        ([*draw, "red.png", "--raw"], "--raw goes with --by layer or --by head"),
        ([*draw, "red.png", "--resolution", "big"], "'big' is not a whole number above 0"),
        ([*draw, "red.png", "--resolution", "4"], "img_size 4 holds no patch of patch_size 8"),
        ([*draw, "red.png", "--ema"], "holds no averaged weights"),
        ([*draw, "red.png", "-o", "Model.depth=2"], "-o changes a recipe; give one with -c RECIPE"),
        ([*draw, "red.png", "-c", "no_eval.yaml"], "does not fit the model as it is"),
        ([*draw, "red.png", "--class-names", "two.txt"], "two.txt: has 2 class names, the model 3 classes"),
        ([*draw, "red.png", "--class-names", "three.txt"], "three.txt: cannot be read"),
        ([*draw, "red.png", "--class-names", "latin.txt"], "latin.txt: is not text in UTF-8"),
        ([*draw, *["red.png"] * 121], "242 panels do not fit on one sheet"),
        (["visualize", "attention", "--weights", silent, "red.png"], "give -c RECIPE, whose DataLoader.Eval does"),
        (["visualize", "attention", "--weights", "none", "red.png"], "none: no such file or folder"),
        (["visualize", "attention", "--weights", "text.jpg", "red.png"], "text.jpg"),
        (["visualize", "attention", "red.png"], "no weights to draw are given: name them with --weights PATH"),
        (["visualize", "position", "-c", "digits"], "no weights to draw are given: name them with --weights PATH"),
        (["visualize", "filters", "-o", "Model.depth=2"], "-o changes a recipe; give one with -c RECIPE"),
        (["visualize", "attentoin"], "'attentoin' is unknown; did you mean attention?"),
        (["visualize", "position", "--weights", silent, "red.png"], "does not state how pictures enter the model"),
        (["visualize", "position", "--weights", weights, "--resolution", "7"], "holds no patch"),
        (["visualize", "filters", "--weights", weights, "--components", "0"], "'0' is not a whole number above 0"),
        (["visualize", "filters", "--weights", weights, "red.png"], "unrecognized arguments: red.png"),
        (["visualize", "patches", "red.png"], "give --weights PATH or -c RECIPE"),
        (["visualize", "patches", "-c", "digits", "--ema", "red.png"], "--ema goes with --weights"),
        (["visualize", "patches", "-c", "no_eval.yaml", "red.png"], "has no DataLoader.Eval"),
        (["visualize", "patches", "-c", "odd.yaml", "red.png"], "red.png: has 50x70 pixels (height x width) after"),
        (["visualize", "patches", "-c", "digits", "--resolution", "1", "red.png"], "holds no patch"),
        (["visualize", "curves"], "give either run directories"),
        (["visualize", "curves", "folder", "-c", "digits"], "give either run directories"),
        (["visualize", "curves", "none"], "none: no such run directory"),
        (["visualize", "curves", "folder"], "folder: there is no metrics.jsonl in it"),
        (["visualize", "curves", "folder", "--steps", "3"], "--steps goes with -c RECIPE"),
        (["visualize", "curves", "folder", "-o", "Global.epochs=3"], "--override goes with -c RECIPE"),
        (["visualize", "curves", "-c", "digits", "--steps", "3", "--processes", "2"], "keep one"),
        (["visualize", "curves", "-c", "DeiT_tiny_patch16_224_eval"], "DataLoader.Train is missing"),
        (
            ["visualize", "curves", "-c", "ViT_base_patch16_224_in1k_1n8c_dp_fp16o2"],
            "--steps N draws the schedule of a run of N updates without the data",
        ),
    ]
    for arguments, expected in cases:
        assert expected in refused(capsys, *arguments), arguments
    assert not list(here.glob("attention.*"))


def test_an_empty_run_and_an_output_that_cannot_be_written_are_reported(here, capsys):
    write_run(here / "run")
    (here / "run" / "sheet.png").mkdir()
    assert "is a folder; name a file in it" in refused(
        capsys, "visualize", "curves", "run", "--output", "run/sheet.png"
    )
    place = "run/metrics.jsonl/sheet.png"
    assert f"{place}: cannot be written" in refused(capsys, "visualize", "curves", "run", "--output", place)
    (here / "run" / "metrics.jsonl").write_text("")
    assert "holds no records" in refused(capsys, "visualize", "curves", "run")


# -- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_help_of_each_picture_shows_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["visualize", name, "--help"])
    assert caught.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2]
    lines = [line.split() for line in examples.splitlines() if line.strip()]
    assert len(lines) >= 2
    for words in lines:
        assert words[:3] == ["plsc", "visualize", name]
        assert parser().parse_args(words[1:]).picture == name


def test_a_run_whose_best_weights_are_averaged_says_so(here, capsys):
    folder = here / "run" / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", a_model())
    (folder / "trainer.json").write_text("{}")
    for weights, hinted in (("ema", True), ("raw", False)):
        record = {"metric": "top1", "value": 0.5, "step": 5, "weights": weights}
        (folder.parent / "best").write_text(f"{folder.name}\n{json.dumps(record)}\n")
        assert main(["visualize", "filters", "--weights", "run"]) == 0
        assert ("--ema takes them" in capsys.readouterr().out) == hinted


@pytest.mark.parametrize("picture", ["attention", "position", "filters"])
def test_the_recipes_device_is_taken(here, capsys, picture):
    weights = write_weights("model.safetensors", a_model())
    pictures_ = ["red.png"] if picture == "attention" else []
    arguments = ["visualize", picture, "--weights", weights, *pictures_, "-c", "digits", "-o", "Global.device=npu"]
    assert "Global.device is 'npu', but the installed paddlepaddle" in refused(capsys, *arguments)


def test_the_pictures_of_the_guide_can_be_drawn_from_a_checkout(here):
    """The script finds plsc beside itself, installed or not."""
    script = [sys.executable, "-I", str(CHECKOUT / "tools" / "draw_docs_pictures.py"), "--help"]
    done = subprocess.run(script, env=clean_environment(), cwd=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--class-names" in done.stdout, done.stderr


def test_in_a_process_of_its_own(here):
    weights = write_weights("model.safetensors", a_model())
    done = plsc("visualize", "filters", "--weights", weights, "--output", "f.png", cwd=here, env={})
    assert done.stdout == "written to f.png\n" and done.stderr == "" and opens(here / "f.png")


# -- on real pictures ---------------------------------------------------------------------

# the object's box (left, top, right, bottom) in pixels of 224, drawn by eye before any map was looked at: the first two
# validation pictures of each class, without those that the object fills
OBJECTS = {
    "n01440764_10470": (32, 128, 140, 180),
    "n01440764_11170": (40, 76, 152, 176),
    "n02102040_1022": (32, 44, 208, 224),
    "n02102040_1081": (24, 48, 176, 176),
    "n02979186_10751": (72, 4, 204, 204),
    "n02979186_11122": (60, 48, 224, 144),
    "n03000684_1011": (100, 112, 136, 168),
    "n03000684_10132": (100, 128, 150, 184),
    "n03394916_11030": (48, 32, 212, 184),
    "n03394916_12292": (40, 0, 212, 184),
    "n03417042_10300": (32, 60, 164, 184),
    "n03417042_1031": (20, 48, 188, 140),
    "n03445777_10030": (40, 16, 180, 200),
    "n03445777_101": (68, 160, 120, 196),
    "n03888257_10661": (56, 16, 148, 204),
    "n03888257_11042": (100, 92, 156, 164),
}


@pytest.mark.shared
def test_rollout_of_a_trained_model_falls_on_the_object():
    """DeiT-Tiny gives the object's box more than an even share, and more than it gives the boxes of other pictures."""
    weights = SHARED / "weights" / "deit_tiny_patch16_224" / "timm.safetensors"
    subject = subject_of(load_model(weights, config=load("DeiT_tiny_patch16_224_eval")))
    folder = SHARED / "data" / "imagenette" / "val"
    files = [folder / name.split("_")[0] / f"{name}.JPEG" for name in OBJECTS]
    gains = []
    for picture in read_pictures(subject, files):
        (patch_map,) = attention.View(subject.spec).maps(
            attention.look(subject.network, subject.card.preprocess, picture)
        )
        of_pixels = np.kron(patch_map, np.ones([16, 16]))
        gains.append([of_pixels[top:bottom, left:right].mean() for left, top, right, bottom in OBJECTS.values()])
    gains = np.array(gains)  # [picture, box], a multiple of the mean
    own = np.diag(gains)
    others = gains[~np.eye(len(gains), dtype=bool)]
    assert (own > 1.0).sum() >= 13
    assert own.mean() > 1.2 and own.mean() > others.mean() + 0.15
