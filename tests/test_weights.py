"""Weights from files: what is taken, resized, left fresh or refused, and where a path leads."""

import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from safetensors.numpy import save_file

from plsc.errors import CheckpointError
from plsc.model_card import ModelCard
from plsc.models.spec import ViTSpec
from plsc.weights import Report, Source, adapt, read

RNG = np.random.default_rng(0)
WIDTH = 6


def drawn(*shape) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


def small(grid=(4, 4), prefix: int = 1, class_num: int = 5, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Arrays of a model, cut down to what adapt looks at."""
    return {
        "cls_token": drawn(1, 1, width),
        "pos_embed": drawn(1, prefix + grid[0] * grid[1], width),
        "blocks.0.attn.qkv.weight": drawn(width, 3 * width),
        "head0.weight": drawn(width, width),
        "head0.bias": drawn(width),
        "head.weight": drawn(width, class_num),
        "head.bias": drawn(class_num),
    }


def source(arrays, **spec) -> Source:
    return Source.of_arrays("weights.safetensors", arrays, ModelCard(model="VisionTransformer", spec=spec))


def shapes(arrays) -> dict[str, tuple]:
    return {name: a.shape for name, a in arrays.items()}


def fit(file: Source, model: dict, grid=(4, 4), prefix: int = 1, **options):
    """Fit a file to a model of patches of one pixel."""
    tokens = {"class_token": prefix > 0, "reg_tokens": max(0, prefix - 1), "pool": "token" if prefix else "avg"}
    spec = ViTSpec(img_size=grid, patch_size=1, embed_dim=WIDTH, num_heads=1, **tokens)
    return adapt(file, shapes(model), spec, **options)


def bicubic(position, prefix: int, old, new) -> np.ndarray:
    """The resized embedding by Paddle's interpolate on a [1, C, rows, columns] picture."""
    picture = position[:, prefix:].reshape(1, *old, -1).transpose(0, 3, 1, 2)
    resized = F.interpolate(
        paddle.to_tensor(picture), size=list(new), mode="bicubic", align_corners=False, data_format="NCHW"
    ).numpy()
    rows = resized.transpose(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)
    return np.concatenate([position[:, :prefix], rows], axis=1)


# -- adapting -----------------------------------------------------------------------------


def test_equal_models_load_exactly():
    arrays = small()
    taken, report = fit(source(arrays), small())
    assert report.exact
    assert sorted(report.loaded) == sorted(arrays)
    assert taken.keys() == arrays.keys()
    assert all(np.array_equal(taken[name], a) for name, a in arrays.items())


@pytest.mark.parametrize(
    ("old", "new"),
    [((4, 4), (6, 6)), ((14, 14), (24, 24)), ((6, 6), (4, 4)), ((7, 7), (2, 3)), ((2, 2), (7, 7)), ((1, 1), (3, 3))],
)
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_position_embedding_is_resized_bicubic(old, new, prefix):
    """As paddle's interpolate does with align_corners False; the rows of class and register tokens stay."""
    arrays = small(old, prefix)
    taken, report = fit(source(arrays), small(new, prefix), grid=new, prefix=prefix)
    expected = bicubic(arrays["pos_embed"], prefix, old, new)
    assert taken["pos_embed"].dtype == np.float32
    assert np.array_equal(taken["pos_embed"][:, :prefix], arrays["pos_embed"][:, :prefix])
    np.testing.assert_allclose(taken["pos_embed"], expected, rtol=1e-4, atol=1e-5)
    assert list(report.adapted) == ["pos_embed"]
    assert str(tuple(old)) in report.adapted["pos_embed"]
    assert str(tuple(new)) in report.adapted["pos_embed"]
    assert not report.exact


def test_resizing_to_one_patch_takes_the_middle():
    """The centre of one new patch is that of the middle old one (Paddle's interpolate has no scale for size 1)."""
    arrays = small((3, 3))
    taken, _ = fit(source(arrays), small((1, 1)), grid=(1, 1))
    np.testing.assert_allclose(taken["pos_embed"][0, 1], arrays["pos_embed"][0, 1 + 4], rtol=1e-6)


def test_half_precision_embedding_keeps_its_type():
    arrays = small()
    arrays["pos_embed"] = arrays["pos_embed"].astype("float16")
    taken, _ = fit(source(arrays), small((6, 6)), grid=(6, 6))
    assert taken["pos_embed"].dtype == np.float16


def test_grids_that_are_not_square():
    """The file's spec tells its grid: 24 x 8 pixels in patches of 4 x 2 are 6 rows of 4."""
    arrays = small((6, 4))
    taken, report = fit(source(arrays, img_size=[24, 8], patch_size=[4, 2]), small((5, 7)), grid=(5, 7))
    expected = bicubic(arrays["pos_embed"], 1, (6, 4), (5, 7))
    np.testing.assert_allclose(taken["pos_embed"], expected, rtol=1e-4, atol=1e-5)
    assert "(6, 4) → (5, 7)" in report.adapted["pos_embed"]


def test_another_grid_of_as_many_patches_is_resized():
    """8 x 2 and 4 x 4 are 16 rows each; taken as they are, all but one patch would stand in a wrong place."""
    arrays = small((8, 2))
    taken, report = fit(source(arrays, img_size=[32, 8], patch_size=4), small((4, 4)), grid=(4, 4))
    expected = bicubic(arrays["pos_embed"], 1, (8, 2), (4, 4))
    np.testing.assert_allclose(taken["pos_embed"], expected, rtol=1e-4, atol=1e-5)
    assert "pos_embed" in report.adapted


def test_unknown_grid_that_is_not_square_is_refused():
    with pytest.raises(CheckpointError, match="24 patch rows, not a square grid"):
        fit(source(small((6, 4))), small((5, 5)), grid=(5, 5))


def test_another_number_of_classes_leaves_a_fresh_head():
    """The head is of the model and reported with both shapes; pre-logits still fit and are taken."""
    arrays = small(class_num=1000)
    taken, report = fit(source(arrays), small(class_num=10))
    assert set(report.initialised) == {"head.weight", "head.bias"}
    assert "head.weight" not in taken
    assert "head.bias" not in taken
    assert "[6, 10]" in report.initialised["head.weight"]
    assert "[6, 1000]" in report.initialised["head.weight"]
    assert "head0.weight" in report.loaded
    assert not report.exact
    assert "head.weight" in str(report)


def test_a_head_is_taken_whole_or_not_at_all():
    """After another pre-logits width the head's weight does not fit: its bias alone must not be taken."""
    model = small()
    model["head0.weight"], model["head0.bias"] = drawn(WIDTH, 9), drawn(9)
    model["head.weight"] = drawn(9, 5)
    taken, report = fit(source(small()), model)
    assert {"head0.weight", "head0.bias", "head.weight"} <= set(report.initialised)
    assert "head.bias" not in taken
    assert "head.bias" in report.initialised


def test_reset_head_leaves_head_and_pre_logits_out():
    """As finetune asks, though they would fit."""
    taken, report = fit(source(small()), small(), reset_head=True)
    assert set(report.initialised) == {"head0.weight", "head0.bias", "head.weight", "head.bias"}
    assert set(taken) == {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"}
    assert not report.ignored


def test_a_model_without_pre_logits_ignores_the_files():
    model = {name: a for name, a in small().items() if not name.startswith("head0.")}
    taken, report = fit(source(small()), model)
    assert set(report.ignored) == {"head0.weight", "head0.bias"}
    assert "[6, 6]" in report.ignored["head0.weight"]
    assert set(taken) == set(model)


def test_what_the_file_lacks_is_initialised():
    model = {**small(), "blocks.1.norm1.weight": drawn(WIDTH)}
    with pytest.raises(CheckpointError, match=r"initialised +blocks\.\*\.norm1\.weight +\[6\], not in the file"):
        fit(source(small()), model)
    taken, report = fit(source(small()), model, allow=["blocks.1.*"])
    assert list(report.initialised) == ["blocks.1.norm1.weight"]
    assert "not in the file" in report.initialised["blocks.1.norm1.weight"]
    assert "blocks.1.norm1.weight" not in taken


def test_another_width_is_an_error():
    """Named with both shapes, for no part of such a model could be used."""
    with pytest.raises(CheckpointError, match=r"cls_token.*\[1, 1, 6\].*\[1, 1, 8\]"):
        fit(source(small()), small(width=8))


def test_another_shape_inside_a_block_is_an_error():
    model = small()
    model["blocks.0.attn.qkv.weight"] = drawn(3 * WIDTH, WIDTH)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.qkv\.weight"):
        fit(source(small()), model)


def test_a_position_embedding_of_another_width_is_an_error():
    model = small((6, 6))
    model["pos_embed"] = drawn(1, 37, 8)
    with pytest.raises(CheckpointError, match="pos_embed"):
        fit(source(small()), model, grid=(6, 6))


def test_a_file_that_has_nothing_for_the_model_is_an_error():
    with pytest.raises(CheckpointError, match="none of its 2 arrays"):
        fit(source({"conv1.weight": drawn(3), "fc.bias": drawn(2)}), small())


def test_strict_takes_what_fits_exactly():
    taken, report = fit(source(small()), small(), strict=True)
    assert report.exact
    assert len(taken) == 7


@pytest.mark.parametrize(
    ("file", "model", "grid", "listed"),
    [
        (small(), small((6, 6)), (6, 6), "pos_embed"),
        (small(class_num=10), small(), (4, 4), "head.bias"),
        ({**small(), "extra.weight": drawn(2)}, small(), (4, 4), "extra.weight"),
        (small(), {**small(), "norm.weight": drawn(2)}, (4, 4), "norm.weight"),
    ],
    ids=["adapted", "initialised", "ignored", "missing"],
)
def test_strict_lists_what_does_not_fit(file, model, grid, listed):
    """Evaluation takes nothing that is not wholly the file's."""
    with pytest.raises(CheckpointError, match=listed.replace(".", r"\.")) as error:
        fit(source(file), model, grid=grid, strict=True)
    assert "weights.safetensors" in str(error.value)


def test_report_as_text():
    report = Report(["a", "b"], {"pos_embed": "how"}, {"head.weight": "why"}, {"extra": "what"})
    text = str(report)
    assert "2 arrays" in text
    for title, name, how in (
        ("adapted", "pos_embed", "how"),
        ("initialised", "head.weight", "why"),
        ("ignored", "extra", "what"),
    ):
        (line,) = [line for line in text.splitlines() if name in line]
        assert title in line
        assert how in line


# -- reading ------------------------------------------------------------------------------

SPEC = {"img_size": 8, "patch_size": 4, "class_num": 2}
CLASSES = ["cat", "dog"]


def checkpoint(folder, value: float, ema: float | None = None):
    """A checkpoint folder whose weights all are `value`, its averages `ema`."""
    folder.mkdir(parents=True)
    metadata = {"format": "plsc", "model": "VisionTransformer", "spec": json.dumps(SPEC)}
    arrays = {"head.weight": np.full([3, 2], value, "float32"), "frozen": np.full([2], value, "float32")}
    save_file(arrays, folder / "model.safetensors", metadata=metadata)
    if ema is not None:
        averages = {"head.weight": np.full([3, 2], ema, "float32")}
        save_file(averages, folder / "ema.safetensors", metadata={"format": "plsc"})
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    (folder / "trainer.json").write_text("{}")
    return folder


@pytest.fixture
def run_directory(tmp_path):
    """A run with checkpoints of steps 10 (best, weights 1.0, averages 1.5) and 20 (latest, weights 2.0)."""
    folder = tmp_path / "run" / "checkpoints"
    checkpoint(folder / "step-00000010", 1.0, ema=1.5)
    checkpoint(folder / "step-00000020", 2.0)
    (folder / "best").write_text("step-00000010\n")
    (folder / "latest").write_text("step-00000020\n")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("checkpoints/step-00000020/model.safetensors", 2.0),
        ("checkpoints/step-00000020", 2.0),
        ("checkpoints/step-00000010", 1.0),
        ("checkpoints/latest", 2.0),
        ("checkpoints/best", 1.0),
        (".", 1.0),
    ],
)
def test_where_a_path_leads(run_directory, path, value):
    """A file, a checkpoint, latest, best, or a run directory, which means its best."""
    source = read(run_directory / path)
    assert set(source.arrays) == {"head.weight", "frozen"}
    assert (source.arrays["head.weight"] == value).all()
    assert source.arrays["head.weight"].dtype == np.float32
    assert source.card.spec == SPEC
    assert source.card.class_names == CLASSES
    assert source.path.name == "model.safetensors"


def test_a_run_without_evaluation_means_its_latest(run_directory):
    (run_directory / "checkpoints" / "best").unlink()
    assert (read(run_directory).arrays["head.weight"] == 2.0).all()


def test_a_path_may_be_text(run_directory):
    assert (read(str(run_directory)).arrays["head.weight"] == 1.0).all()


@pytest.mark.parametrize("path", [".", "checkpoints/best", "checkpoints/step-00000010"])
def test_averaged_weights(run_directory, path):
    """The averages, and of the model's own file what is not averaged."""
    source = read(run_directory / path, weights="ema")
    assert (source.arrays["head.weight"] == 1.5).all()
    assert (source.arrays["frozen"] == 1.0).all()
    assert source.card.spec == SPEC


def test_averaged_weights_that_are_not_there(run_directory):
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read(run_directory / "checkpoints" / "latest", weights="ema")


def test_raw_weights_never_pass_for_averaged_ones(run_directory):
    """model.safetensors named itself: its folder's averages, or an error, but not the raw weights."""
    path = run_directory / "checkpoints" / "step-00000010" / "model.safetensors"
    try:
        source = read(path, weights="ema")
    except CheckpointError:
        return
    assert (source.arrays["head.weight"] == 1.5).all()


def test_a_plsc_file_by_itself(tmp_path):
    """Without classes.json and spec."""
    save_file({"a": np.ones([2], "float32")}, tmp_path / "mine.safetensors", metadata={"format": "plsc"})
    source = read(tmp_path / "mine.safetensors")
    assert source.arrays["a"].tolist() == [1.0, 1.0]
    assert source.card.spec == {}
    assert source.card.class_names is None


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_no_vision_transformer_are_refused(tmp_path, metadata):
    """Their names say nothing; some of them are shown."""
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones([2], "float32")}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*no known model.*: a"):
        read(path)


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_files_are_refused(run_directory, kept):
    """Empty, cut in the header's length, in the header, and by the last byte."""
    path = run_directory / "checkpoints" / "step-00000010" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        read(run_directory)


def test_other_kinds_of_files_are_refused(tmp_path):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"\x80\x02}q")
    with pytest.raises(CheckpointError, match=r"model\.pdparams"):
        read(path)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"neither a checkpoint nor a run directory"):
        read(tmp_path)


def test_a_run_that_ended_before_its_first_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("Global: {}\n")
    with pytest.raises(CheckpointError, match=r"has not saved a checkpoint yet.*config\.yaml -o Global\.resume=auto"):
        read(tmp_path)


def test_a_pointer_to_a_removed_checkpoint(run_directory):
    (run_directory / "checkpoints" / "best").write_text("step-00000099\n")
    with pytest.raises(CheckpointError, match="step-00000099"):
        read(run_directory / "checkpoints" / "best")
    assert (read(run_directory).arrays["head.weight"] == 2.0).all()  # a run directory still has its latest
