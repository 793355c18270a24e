"""What weights and exports say of themselves, and what becomes of a recipe that says something else."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.utils.extmath import softmax

from plsc import build, loading, predictor, runtimes
from plsc import export as exporting
from plsc.cli import main
from plsc.config import Component, load
from plsc.data.preprocess import Preprocess
from plsc.engine import evaluation
from plsc.engine.distributed import World
from plsc.engine.evaluation_plan import Row, at_resolution
from plsc.engine.evaluator import Evaluator
from plsc.errors import CheckpointError, ConfigError
from plsc.metrics import ECE
from plsc.models import VisionTransformer, ViTSpec
from plsc.targets import Targets
from plsc.visualize import position, subject
from plsc.weights import read, write
from plsc.weights.processor import from_processor
from tests.helpers import TINY_MODEL, metrics, plsc, tiny_digits, write_config
from tests.test_export import write_model

# the model of test_export.write_model, as a recipe says it
MODEL = {
    "name": "VisionTransformer", "img_size": 32, "patch_size": 8, "class_num": 10, "embed_dim": 16, "depth": 2,
    "num_heads": 2, "mlp_ratio": 2.0,
}  # fmt: skip
OTHER_PICTURES = [
    {"DecodeImage": {"to_rgb": False}},
    {"ResizeImage": {"resize_short": 60, "interpolation": "bicubic", "backend": "pil"}},
    {"CenterCropImage": {"size": 32}},
    {"NormalizeImage": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}},
    {"ToCHWImage": None},
]

pytestmark = pytest.mark.usefixtures("process_state")


def recipe_tree(*, transforms=OTHER_PICTURES, **model) -> dict:
    tree = tiny_digits()
    tree["Model"] = {**MODEL, **model}
    for section in tree["DataLoader"].values():
        section["dataset"] = {"name": "ImageFolder", "root": "nowhere", "transform_ops": transforms}
    return tree


def recipe(path="other.yaml", **changes):
    return load(str(write_config(Path(path), recipe_tree(**changes))))


def error_of(capsys, *arguments, code: int = 2) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().err


# -- the model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, {"num_heads": 4}),
        ({}, {"qk_scale": 0.1}),
        ({"act": "gelu_tanh"}, {"act": "gelu"}),
        ({}, {"epsilon": 1e-5}),
        ({}, {"pool": "avg"}),
    ],
    ids=str,
)
def test_a_recipe_of_another_model_is_refused(tmp_path, fields, asked):
    """Each loads silently, since no array's shape shows it, and computes something else."""
    path = write_model(tmp_path / "own.safetensors", **fields)
    [(name, value)] = asked.items()
    own = {**dataclasses.asdict(ViTSpec(num_heads=2)), **fields}[name]
    loading.load_model(path, config=recipe(**{name: own}))
    with pytest.raises(CheckpointError) as refused:
        loading.load_model(path, config=recipe(**asked))
    message = str(refused.value)
    assert "own.safetensors" in message and f"{name} {own!r}, the model has {value!r}" in message
    assert f"-o Model.{name}={json.dumps(own)}" in message
    changed = load("other.yaml", [f"Model.{name}={json.dumps(own)}"])
    assert getattr(loading.load_model(path, config=changed).network.spec, name) == own, "the remedy helps"


def test_another_model_only_warns_where_training_starts_from_it(tmp_path, caplog):
    path = write_model(tmp_path / "own.safetensors")
    network = VisionTransformer(ViTSpec(**{**read(path).card.spec, "num_heads": 4}))
    assert loading.load_pretrained(network, str(path)).exact
    assert "num_heads 2, the model has 4" in caplog.text
    caplog.clear()
    loading.load_pretrained(VisionTransformer(ViTSpec(**read(path).card.spec)), str(path))
    assert not caplog.text


def test_eval_refuses_a_wrong_number_of_heads(run, picture_tree, capsys):
    config = str(write_config(Path("wrong.yaml"), run_tree(picture_tree, "elsewhere", num_heads=4)))
    error = error_of(capsys, "eval", "-c", config, "--weights", run)
    assert "num_heads 2, the model has 4" in error and "-o Model.num_heads=2" in error
    assert "num_heads 2, the model has 4" in error_of(capsys, "eval", "-c", config, "--weights", run, "--ema")


def without_card(path: Path, to: Path) -> Path:
    """The arrays alone, as their codebase itself writes them."""
    save_file(load_file(path), to, metadata={"format": "pt"})
    return to


def test_hugging_faces_config_states_and_timm_guesses(tmp_path):
    """Three heads of width 16 are nobody's guess."""
    path = write_model(tmp_path / "own.safetensors", embed_dim=48, num_heads=3)
    for to in ("huggingface", "timm"):
        write(read(path), to, tmp_path / to)
    without_card(tmp_path / "huggingface" / "model.safetensors", tmp_path / "huggingface" / "model.safetensors")
    bare = without_card(tmp_path / "timm", tmp_path / "bare.safetensors")
    folder = read(tmp_path / "huggingface")
    assert {"num_heads": 3, "epsilon": 1e-6, "act": "gelu", "img_size": 32}.items() <= folder.card.stated.items()
    assert "depth" not in folder.card.stated and "num_heads" not in read(bare).card.stated
    asked = recipe(embed_dim=48, num_heads=4)
    with pytest.raises(CheckpointError, match="num_heads 3, the model has 4"):
        loading.load_model(tmp_path / "huggingface", config=asked)
    assert loading.load_model(bare, config=asked).network.spec.num_heads == 4


def test_a_guess_does_not_become_a_statement_by_conversion(tmp_path):
    path = write_model(tmp_path / "own.safetensors", embed_dim=48, num_heads=3)
    write(read(path), "timm", tmp_path / "timm")
    bare = without_card(tmp_path / "timm", tmp_path / "bare.safetensors")
    write(read(bare), "safetensors", tmp_path / "back.safetensors")
    back = read(tmp_path / "back.safetensors")
    assert (
        "num_heads" in back.card.spec
        and "num_heads" not in back.card.stated
        and back.card.stated["class_token"] is True
    )
    assert back.card.assumed == {"num_heads", "act", "epsilon", "qk_scale", "pool", "img_size", "block"}
    with pytest.raises(CheckpointError, match="num_heads of its model is unknown"):
        loading.load_model(tmp_path / "back.safetensors")
    assert loading.load_model(tmp_path / "back.safetensors", config=recipe(embed_dim=48, num_heads=3)).network
    assert read(path).card.stated == read(path).card.spec


# -- preprocessing ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """One model as a weights file and as both exports."""
    folder = tmp_path_factory.mktemp("forms")
    path = write_model(folder / "model.safetensors")
    for format in ("paddle", "onnx"):
        exporting.export(loading.load_model(path), folder / format, format=format)
    return {"checkpoint": path, "paddle": folder / "paddle", "onnx": folder / "onnx"}


def test_a_recipe_does_not_change_how_pictures_enter(forms, capsys, caplog):
    """Checkpoint and exports say it themselves; with and without -c all six lists are the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype("uint8")
    Image.fromarray(pixels).resize((72, 48)).save("picture.png")
    write_config(Path("other.yaml"), recipe_tree())
    lists = {}
    for form, path in forms.items():
        for options in ([], ["-c", "other.yaml"]):
            caplog.clear()
            capsys.readouterr()
            assert main(["predict", "--weights", str(path), *options, "--format", "jsonl", "picture.png"]) == 0
            lists[form, bool(options)] = json.loads(capsys.readouterr().out)["predictions"]
            warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
            assert len(warnings) == bool(options), (form, options)
            if options:
                assert "its own is used" in warnings[0] and "resize=36" in warnings[0] and "resize=60" in warnings[0]
    first = lists["checkpoint", False]
    for entry in lists.values():
        assert [p["class"] for p in entry] == [p["class"] for p in first]
        shares = [[p["probability"] for p in each] for each in (entry, first)]
        np.testing.assert_allclose(*shares, atol=1.01e-4)


def test_a_recipe_is_used_where_weights_say_nothing(forms, caplog):
    own = read(forms["checkpoint"]).with_card(preprocess=None)
    write(own, "safetensors", "bare.safetensors")
    loaded = loading.load_model("bare.safetensors", config=recipe())
    assert loaded.card.preprocess.resize == 60 and not loaded.card.preprocess.rgb and not caplog.text
    shutil.copytree(forms["onnx"], "export")
    Path("export/preprocess.json").unlink()
    exported = predictor.load_predictor("export", config=recipe())
    assert exported.card.preprocess == loaded.card.preprocess and not caplog.text


def test_the_same_preprocessing_is_no_warning_at_another_resolution(forms, caplog):
    """Both follow in proportion before they are compared."""
    transforms = [dict(step) for step in OTHER_PICTURES]
    transforms[0] = {"DecodeImage": None}
    transforms[1] = {"ResizeImage": {"resize_short": 36, "interpolation": "bicubic", "backend": "pil"}}
    transforms[3] = {"NormalizeImage": {"mean": [0.4] * 3, "std": [0.25] * 3}}
    loaded = loading.load_model(forms["checkpoint"], img_size=48, config=recipe(transforms=transforms))
    assert (loaded.card.preprocess.resize, loaded.card.preprocess.crop) == (54, (48, 48)) and not caplog.text
    exporting.export(loaded, "export", format="onnx")
    exported = predictor.load_predictor("export", config=recipe(transforms=transforms))
    assert exported.card.preprocess == loaded.card.preprocess
    assert not caplog.text


def run_tree(pictures, output, **model) -> dict:
    """Four classes of pictures in their file's order of channels, trained with a sigmoid a class."""
    tree = tiny_digits()
    transforms = [
        {"DecodeImage": {"to_rgb": False}},
        {"ResizeImage": {"resize_short": 20}},
        {"CenterCropImage": {"size": 16}},
        {"NormalizeImage": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.5]}},
        {"ToCHWImage": None},
    ]
    tree["Global"] |= {"output_dir": str(output), "max_train_step": 2, "position_embedding": "bilinear"}
    tree["Model"] = {**TINY_MODEL, "img_size": 16, "in_chans": 3, "class_num": 4, **model}
    tree["Loss"] = {"Train": [{"ViTCELoss": {"type": "sigmoid"}}]}
    tree["EMA"] = {"decay": 0.5}
    for mode, split in (("Train", "train"), ("Eval", "val")):
        data = {"name": "ImageFolder", "root": str(pictures / split), "transform_ops": transforms}
        tree["DataLoader"][mode]["dataset"] = data
    return tree


@pytest.fixture(scope="module")
def run(picture_tree, tmp_path_factory) -> Path:
    """A finished run that was never evaluated."""
    folder = tmp_path_factory.mktemp("run")
    plsc("train", "-c", write_config(folder / "c.yaml", run_tree(picture_tree, folder / "run")))
    return folder / "run"


OWN = Preprocess(
    resize=20,
    crop=(16, 16),
    interpolation="bilinear",
    backend="cv2",
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.5, 0.5),
    rgb=False,
)


def test_a_run_without_evaluation_keeps_the_recipes_preprocessing(run):
    assert loading.load_model(run).card.preprocess == OWN


def test_a_run_without_evaluation_data_keeps_the_size_and_channels_of_training(run, picture_tree):
    tree = run_tree(picture_tree, "alone")
    del tree["DataLoader"]["Eval"]
    assert main(["train", "-c", str(write_config(Path("c.yaml"), tree))]) == 0
    assert loading.load_model("alone").card.preprocess == dataclasses.replace(
        OWN, resize=(16, 16), crop=None, interpolation="bicubic", backend="pil"
    )


def test_evaluation_transforms_that_cannot_be_kept_end_a_run_before_it_trains(picture_tree, capsys):
    tree = run_tree(picture_tree, "never")
    tree["DataLoader"]["Eval"]["dataset"]["transform_ops"] = [{"DecodeImage": None}, {"RandFlipImage": None}]
    config = write_config(Path("c.yaml"), tree)
    assert "DataLoader.Eval.dataset.transform_ops" in error_of(capsys, "train", "-c", config)
    assert not Path("never/checkpoints").exists() and not Path("never/metrics.jsonl").exists()


def test_eval_measures_the_recipes_pictures_and_says_where_the_checkpoints_were_others(run, picture_tree, capsys):
    tree = run_tree(picture_tree, "elsewhere")
    tree["DataLoader"]["Eval"]["dataset"]["transform_ops"][1] = {"ResizeImage": {"resize_short": 16}}
    config = str(write_config(Path("c.yaml"), tree))
    assert main(["eval", "-c", config, "--weights", str(run), "--output", "other.json"]) == 0
    out = capsys.readouterr().out
    assert out.count("prepared otherwise than DataLoader.Eval") == 1
    assert "the recipe's is measured" in out and "resize=20" in out and "resize=16" in out
    assert main(["eval", "--weights", str(run), "--output", "own.json"]) == 0
    assert "prepared otherwise" not in capsys.readouterr().out
    own, other = (json.loads(Path(name).read_text())["loss"] for name in ("own.json", "other.json"))
    assert own != other
    assert main(["eval", "--weights", str(run), "--resolution", "24", "--output", "larger.json"]) == 0
    assert "prepared otherwise" not in capsys.readouterr().out


# -- preprocessing that does not fit ------------------------------------------------------


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (Preprocess(resize=54, crop=(48, 48)), "makes pictures of 48x48 pixels; the model takes 32x32"),
        (Preprocess(resize=(32, 40)), "makes pictures of 32x40 pixels"),
        (Preprocess(resize=24, crop=(32, 32)), "refuses every picture: 24x24 pixels are too few"),
        (Preprocess(crop=(600, 600)), "makes pictures of 600x600"),
    ],
    ids=str,
)
def test_a_preprocessing_that_does_not_fit_is_not_exported(tmp_path, capsys, preprocess, message):
    path = write_model(tmp_path / "own.safetensors", preprocess=preprocess)
    error = error_of(capsys, "export", "--weights", path, "--output", "out")
    assert message in error and "own.safetensors" in error and "correct resize or crop" in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("fields", "preprocess"),
    [
        ({"img_size": 448, "patch_size": 64}, Preprocess(crop=(448, 448))),  # larger than the sample pictures
        ({"img_size": (32, 64)}, Preprocess(resize=32, crop=(32, 64))),
        ({}, Preprocess(resize=32)),  # square pictures fit
        ({}, Preprocess()),  # whoever sends pictures sees to their size
    ],
    ids=str,
)
def test_a_preprocessing_that_fits_some_pictures_is_exported(tmp_path, fields, preprocess):
    path = write_model(tmp_path / "own.safetensors", preprocess=preprocess, **fields)
    exporting.export(loading.load_model(path), "out", format="paddle", batch=1)
    assert predictor.load_predictor("out").card.preprocess == preprocess


def test_one_mean_for_three_channels_is_exported(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype("uint8")
    source, logits = read(write_model(tmp_path / "own.safetensors")), []
    for count in (1, 3):
        preprocess = Preprocess(resize=36, crop=(32, 32), mean=(0.4,) * count, std=(0.3,) * count)
        write(source.with_card(preprocess=preprocess), "safetensors", f"{count}.safetensors")
        exporting.export(loading.load_model(f"{count}.safetensors"), f"out{count}", format="paddle")
        logits.append(predictor.load_predictor(f"out{count}").logits([picture]))
    np.testing.assert_array_equal(*logits)


# -- sizes --------------------------------------------------------------------------------


@settings(deadline=None)
@given(pixels=st.integers(1, 900), new=st.integers(1, 900), old=st.integers(1, 900))
def test_every_way_to_another_resolution_rounds_alike(pixels, new, old):
    steps = [
        Component("ResizeImage", {"size": None, "resize_short": pixels, "keep_above": None}),
        Component("CenterCropImage", {"size": (pixels, old)}),
    ]
    config = recipe().replace({"Model.img_size": old, "DataLoader.Eval.dataset.transform_ops": steps})
    by_plan = [part.arguments for part in at_resolution(config, new).DataLoader["Eval"].transforms]
    actual = Preprocess(resize=pixels, crop=(pixels, old)).enlarged(new, old)
    assert by_plan[0] == {"size": None, "resize_short": actual.resize, "keep_above": actual.keep_above}
    assert by_plan[1]["size"] == actual.crop == (actual.resize, new)
    assert abs(actual.resize - pixels * new / old) <= 0.5


def test_a_pair_of_equal_sides_is_square(tmp_path):
    """In weights, recipes and exports."""
    preprocess = Preprocess(resize=36, crop=(32, 32))
    path = write_model(tmp_path / "own.safetensors", img_size=(32, 32), preprocess=preprocess)
    larger = Preprocess(resize=54, crop=(48, 48))
    assert loading.load_model(path, img_size=48).card.preprocess == larger
    asked = recipe(img_size=[32, 32])
    assert build.recipe_preprocess(asked, 32).resize == 60 and build.recipe_preprocess(asked, 48).resize == 90
    asked = at_resolution(asked, 48)
    assert asked.Model.arguments["img_size"] == 48
    assert build.recipe_preprocess(asked).resize == 90 and build.recipe_preprocess(asked).crop == (48, 48)
    exporting.export(loading.load_model(path), "free", format="onnx", dynamic=True)
    assert predictor.load_predictor("free", img_size=48).card.preprocess == larger


def test_different_sides_have_no_other_resolution(tmp_path):
    preprocess = Preprocess(resize=(32, 48))
    path = write_model(tmp_path / "own.safetensors", img_size=(32, 48), preprocess=preprocess)
    assert loading.load_model(path).card.preprocess == preprocess
    with pytest.raises(CheckpointError, match="32x48 pixels; another resolution needs a square one"):
        loading.load_model(path, img_size=64)
    exporting.export(loading.load_model(path), "free", format="onnx", dynamic=True)
    with pytest.raises(CheckpointError, match="32x48 pixels; another resolution needs a square one"):
        predictor.load_predictor("free", img_size=64)
    asked = recipe(img_size=[32, 48])
    for fails in (lambda: build.recipe_preprocess(asked, 64), lambda: at_resolution(asked, 64)):
        with pytest.raises(ConfigError, match=r"\[32, 48\]"):
            fails()


# -- probabilities ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([{"CELoss": None}], "softmax"),
        ([{"ViTCELoss": None}], "sigmoid"),
        ([{"ViTCELoss": {"type": "softmax"}}], "softmax"),
        ([{"BCELoss": None}], "sigmoid"),
        ([{"CELoss": {"weight": 0.1}}, {"BCELoss": {"weight": 0.9}}], "sigmoid"),
        ([{"CELoss": None}, {"BCELoss": {"weight": 0.0}}], "softmax"),
    ],
    ids=str,
)
def test_the_training_loss_tells_the_activation(losses, expected):
    tree = recipe_tree() | {
        "Loss": {"Train": losses},
        "Metric": {"Eval": ["ECE", "F1", {"ECE": {"activation": "softmax"}}]},
    }
    config = load(str(write_config(Path("c.yaml"), tree)))
    assert build.activation(config) == expected
    ece, f1, own = build.metrics(config, "Eval")
    assert (ece.activation, f1.activation, own.activation) == (expected, expected, "softmax")
    other = {"softmax": "sigmoid", "sigmoid": "softmax"}[expected]
    ece, f1, own = build.metrics(config, "Eval", weights_activation=other)
    assert (ece.activation, f1.activation, own.activation) == (other, other, "softmax")


def test_without_a_recipe_metrics_take_softmax():
    rng = np.random.default_rng(0)
    logits = paddle.to_tensor(rng.standard_normal([64, 5]).astype("float32"))
    targets = Targets(label=paddle.to_tensor(rng.integers(0, 5, [64])))
    figures = []
    for metric in (ECE(), ECE(activation="softmax"), ECE(activation="sigmoid")):
        metric.update(logits, targets)
        figures.append(metric.compute()["ece"])
    assert figures[0] == figures[1] != figures[2]


def test_a_run_says_its_activation_and_all_forms_of_it_keep_it(run, picture_tree, capsys):
    """Also the averaged weights; predict shows a sigmoid a class, and --softmax the other."""
    for weights in ("model", "ema"):
        assert (read(run, weights).card.activation, read(run, weights).card.position) == ("sigmoid", "bilinear")
    assert main(["convert", str(run), "--to", "safetensors", "--output", "one.safetensors"]) == 0
    assert main(["export", "--weights", str(run), "--format", "onnx", "--output", "onnx"]) == 0
    assert json.loads(Path("onnx/export.json").read_text())["activation"] == "sigmoid"
    picture = next((picture_tree / "val").rglob("*.jpg"))
    logits = predictor.load_predictor(run).logits([picture.read_bytes()]).astype("float64")
    expected = {"sigmoid": 1 / (1 + np.exp(-logits[0])), "softmax": softmax(logits)[0]}
    assert abs(expected["sigmoid"].sum() - 1) > 0.1
    for path in (run, "one.safetensors", "onnx"):
        assert predictor.load_predictor(path).card.activation == "sigmoid"
        for option, kind in (([], "sigmoid"), (["--softmax"], "softmax"), (["--sigmoid"], "sigmoid")):
            capsys.readouterr()
            assert main(["predict", "--weights", str(path), *option, "--format", "jsonl", str(picture)]) == 0
            shares = [p["probability"] for p in json.loads(capsys.readouterr().out)["predictions"]]
            np.testing.assert_allclose(shares, np.sort(expected[kind])[::-1], atol=1e-4)
    with pytest.raises(SystemExit):
        main(["predict", "--weights", str(run), "--softmax", "--sigmoid", str(picture)])


def test_weights_that_do_not_say_it_take_the_recipes(tmp_path):
    path = write_model(tmp_path / "own.safetensors")
    assert predictor.load_predictor(path).card.activation is None
    tree = recipe_tree() | {"Loss": {"Train": [{"BCELoss": None}]}}
    config = load(str(write_config(Path("c.yaml"), tree)))
    assert predictor.load_predictor(path, config=config).card.activation == "sigmoid"


def test_eval_goes_by_the_weights_activation(run, picture_tree, monkeypatch):
    """Though the recipe's loss is another."""
    tree = run_tree(picture_tree, "elsewhere") | {"Loss": {"Train": [{"CELoss": None}]}}
    tree["Metric"]["Eval"] = ["TopkAcc", "ECE", "F1"]
    seen = []
    monkeypatch.setattr(Evaluator, "run", lambda self, network: seen.append(self.metrics) or {"samples": 1})
    config = str(write_config(Path("c.yaml"), tree))
    assert main(["eval", "-c", config, "--weights", str(run), "--output", "result.json"]) == 0
    assert main(["export", "--weights", str(run), "--output", "exported"]) == 0
    assert main(["eval", "-c", config, "--weights", "exported", "--output", "result.json"]) == 0
    assert [metric.activation for entry in seen for metric in entry[1:]] == ["sigmoid"] * 4


def test_training_fills_in_the_activation(picture_tree):
    """The figures of a recipe that leaves it open are those of one that says it."""
    for name, metric in (
        ("open", {"F1": None}),
        ("said", {"F1": {"activation": "sigmoid"}}),
        ("other", {"F1": {"activation": "softmax"}}),
    ):
        tree = run_tree(picture_tree, name)
        tree["Global"]["eval_during_train"] = True
        tree["Metric"]["Eval"] = ["TopkAcc", metric]
        assert main(["train", "-c", str(write_config(Path(f"{name}.yaml"), tree))]) == 0
    open_, stated, other = (metrics(name, "eval")[-1]["f1_micro"] for name in ("open", "said", "other"))
    assert open_ == stated != other


@pytest.mark.parametrize("note", ["activation", "position"])
def test_notes_of_another_value_are_damage(tmp_path, note):
    path = write_model(tmp_path / "own.safetensors")
    write(read(path).with_card(**{note: "cubic"}), "safetensors", path)
    with pytest.raises(CheckpointError, match=f"damaged: {note} is 'cubic'"):
        read(path)


# -- position embedding -------------------------------------------------------------------


def bilinear(table: np.ndarray, new: int) -> np.ndarray:
    """[rows, columns, C] with corners on corners, by NumPy's own interpolation."""
    for axis in (0, 1):
        at = np.linspace(0, table.shape[axis] - 1, new)
        table = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, table)
    return table


def test_a_position_embedding_is_resized_as_its_run_says(run, picture_tree):
    """With the run's own configuration, without any, and with a recipe that does not say it."""
    own = read(run).read("pos_embed")[0]
    expected = bilinear(own[1:].reshape(4, 4, -1), 6).reshape(36, -1)
    tree = run_tree(picture_tree, "elsewhere")
    del tree["Global"]["position_embedding"]
    silent = load(str(write_config(Path("silent.yaml"), tree)))
    for config in (None, silent, load(str(run / "config.yaml"))):
        loaded = loading.load_model(run, img_size=24, config=config)
        assert loaded.card.position == "bilinear"
        np.testing.assert_allclose(loaded.network.pos_embed.numpy()[0, 1:], expected, atol=1e-5)
    silent = load("silent.yaml", ["Global.position_embedding=bicubic"])
    loaded = loading.load_model(run, img_size=24, config=silent)
    assert loaded.card.position == "bicubic"
    assert np.abs(loaded.network.pos_embed.numpy()[0, 1:] - expected).max() > 1e-3


def test_a_bilinear_embedding_is_drawn_and_called_so(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(position.sheet, "save", lambda figure, output: drawn.append(figure) or output)
    assert main(["visualize", "position", "--weights", str(run), "--resolution", "24"]) == 0
    axis = drawn[0].subfigs[0].axes[1]
    assert axis.get_title().startswith("The same, resized (bilinear)")
    rows = bilinear(read(run).read("pos_embed")[0, 1:].reshape(4, 4, -1), 6).reshape(36, -1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.asarray(axis.images[0].get_array())[:6, :6], (unit @ unit[0]).reshape(6, 6), atol=1e-4
    )
    assert subject.subject_of(str(run)).card.position == "bilinear"


def test_a_dynamic_export_of_a_bilinear_embedding_is_refused(run, capsys):
    error = error_of(capsys, "export", "--weights", run, "--resolution", "dynamic", "--output", "out")
    assert "resized bilinear" in error and "--resolution PIXELS" in error and not Path("out").exists()
    assert main(["export", "--weights", str(run), "--resolution", "24", "--output", "out"]) == 0


# -- devices ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_cpu", "own", "expected"), [(True, "cpu", "cpu"), (False, "gpu:1", "auto:1"), (False, "gpu", "auto:0")]
)
def test_each_process_runs_an_onnx_export_on_its_own_device(monkeypatch, on_cpu, own, expected):
    asked = []

    class Asked(Exception):
        pass

    def load_export(path, **options):
        asked.append(options["device"])
        raise Asked

    monkeypatch.setattr(predictor, "load_predictor", load_export)
    monkeypatch.setattr(paddle, "get_device", lambda: own)
    row = Row("model.onnx", None, None, 224, resized=None)
    with pytest.raises(Asked):
        evaluation._exported(row, recipe(), "model", World(device="cpu" if on_cpu else "gpu"))
    assert asked == [expected]


@pytest.mark.parametrize(("device", "number"), [("auto:1", 1), ("auto", 0), ("gpu:3", 3), ("cpu", None)])
def test_onnxruntime_is_given_the_devices_number(monkeypatch, device, number):
    given_ = []

    def session(path, options, providers):
        given_.extend(providers)
        return SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="image", shape=[None, 3, 8, 8])])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runtimes.in_onnxruntime(Path("model.onnx"), device)
    cuda = [("CUDAExecutionProvider", {"device_id": number})] if number is not None else []
    assert given_ == [*cuda, "CPUExecutionProvider"]


# -- Hugging Face -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize=36, crop=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), truncate=True),
        Preprocess(resize=(40, 48), crop=(32, 32), interpolation="bilinear"),
        Preprocess(resize=(32, 32), interpolation="lanczos", scale=1.0, mean=(120.0,) * 3, std=(60.0,) * 3),
        Preprocess(resize=40, truncate=True),
        Preprocess(crop=(32, 32)),
        Preprocess(),
    ],
    ids=str,
)
def test_an_image_processor_comes_back_as_it_was(tmp_path, preprocess):
    write(read(write_model(tmp_path / "own.safetensors", preprocess=preprocess)), "huggingface", "folder")
    assert loading.load_model("folder").card.preprocess == preprocess


GOOGLES = {  # as google/vit-base-patch16-224 has it
    "do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "resample": 2, "size": {"height": 224, "width": 224}, "image_processor_type": "ViTImageProcessor",
}  # fmt: skip


def test_what_an_image_processor_leaves_open_is_its_default():
    expected = Preprocess(resize=(224, 224), interpolation="bilinear")
    assert Preprocess.from_dict(from_processor(GOOGLES)) == expected
    crop = {"do_center_crop": True, "crop_size": {"height": 200, "width": 200}, "size": {"shortest_edge": 256}}
    cropped = from_processor({**GOOGLES, **crop, "image_processor_type": "BitImageProcessor"})
    assert Preprocess.from_dict(cropped) == dataclasses.replace(expected, resize=256, crop=(200, 200), truncate=True)
    plain = from_processor({**GOOGLES, "do_normalize": False, "do_rescale": False})
    picture = np.arange(48, dtype="uint8").reshape(1, 4, 4, 3)
    np.testing.assert_array_equal(
        predictor.normalised(picture, Preprocess.from_dict(plain)), picture.transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "ConvNextImageProcessor"},
        {"image_processor_type": None},
        {"size": {"longest_edge": 224}},
        {"size": 224},
        {"size": None},
        {"resample": 9},
        {"resample": None},
        {"do_resize": None},
        {"do_center_crop": True},
        {"image_processor_type": "CLIPImageProcessor"},  # whether it crops is not said
        {"image_mean": None},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": "half"},
        {"do_pad": True},
        {"rescale_factor": -1.0},
    ],
    ids=str,
)
def test_an_image_processor_that_is_not_understood_is_none(changes):
    assert from_processor({**GOOGLES, **changes}) is None


# -- exports in the place of weights ------------------------------------------------------


def test_an_export_in_the_place_of_weights_names_its_checkpoint(forms, capsys, picture_tree):
    tree = run_tree(picture_tree, "never")
    config = write_config(Path("c.yaml"), tree)
    commands = [
        ["visualize", "filters", "--weights"],
        ["convert", "--to", "timm", "--output", "out", "--weights"],
        ["train", "-c", config, "-o"],
    ]
    paths = [forms["paddle"], forms["onnx"], forms["onnx"] / "model.onnx", forms["paddle"] / "inference"]
    paths += [forms["paddle"] / f"inference.{ending}" for ending in ("json", "pdiparams")]
    for path in paths:
        for command in commands:
            given_ = f"Global.pretrained_model={path}" if command[0] == "train" else path
            arguments = [*command, given_] if command[0] != "convert" else [*command[:-1], given_]
            error = error_of(capsys, *arguments)
            assert "is an export" in error and f"made of, {forms['checkpoint']}" in error, (command, path)
    shutil.copy(forms["onnx"] / "model.onnx", "alone.onnx")
    assert "made of a checkpoint; name that" in error_of(capsys, "visualize", "filters", "--weights", "alone.onnx")


def test_weights_beside_an_export_are_weights(forms):
    """As in folders from the hub that hold both."""
    Path("both").mkdir()
    shutil.copy(forms["checkpoint"], "both/model.safetensors")
    shutil.copy(forms["onnx"] / "model.onnx", "both")
    assert read("both").path == Path("both/model.safetensors")


def test_a_checkpoints_metadata_is_readable_without_plsc(run):
    with safe_open(read(run).path, framework="np") as file:
        notes = file.metadata()
    assert (notes["activation"], notes["position"]) == ("sigmoid", "bilinear")
