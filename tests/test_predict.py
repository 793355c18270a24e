"""plsc predict and plsc benchmark: the same answers from every form of a model, and what becomes of odd input."""

import collections
import csv
import dataclasses
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.utils.extmath import softmax

import plsc as plsc_package
from plsc import export as exporting
from plsc import loading, predictions, predictor
from plsc.cli.main import main
from plsc.data.device import DeviceInput
from plsc.data.picture_files import natural_order
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.model_card import ModelCard
from plsc.weights import read, write
from tests.helpers import CHECKOUT, clean_environment, command, plsc, tiny_digits, write_config
from tests.test_export import write_model

NAMES = [f"kind {i}, other name" for i in range(10)]

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """One model as a weights file and as both exports."""
    folder = tmp_path_factory.mktemp("forms")
    path = write_model(folder / "model.safetensors", class_names=NAMES)
    for format in ("paddle", "onnx"):
        exporting.export(loading.load_model(path), folder / format, format=format)
    return {"checkpoint": str(path), "paddle": str(folder / "paddle"), "onnx": str(folder / "onnx")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures of different sizes and formats in nested folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(12):
        size = (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
        pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype("uint8")).resize(size))
        ending = ("jpg", "png", "webp")[i % 3]
        path = root / ("a" if i < 6 else "b/c") / f"{i}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def by_hand(weights: str, path) -> np.ndarray:
    """Probabilities by Pillow, NumPy, the rebuilt network and scikit-learn's softmax."""
    picture = Image.open(path).convert("RGB")
    factor = 36 / min(picture.size)
    picture = picture.resize([round(side * factor) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = (picture.width - 32) // 2, (picture.height - 32) // 2
    pixels = np.asarray(picture.crop((left, top, left + 32, top + 32)), "float64")
    image = ((pixels / 255 - 0.4) / 0.25).transpose(2, 0, 1)[np.newaxis].astype("float32")
    with paddle.no_grad():
        logits = loading.load_model(weights).network(paddle.to_tensor(image)).numpy()
    return softmax(logits.astype("float64"))[0]


def predicted(capsys, *arguments) -> list[dict]:
    assert main(["predict", *map(str, arguments), "--format", "jsonl"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- answers ------------------------------------------------------------------------------


def test_every_form_of_a_model_gives_the_same_list(forms, pictures, capsys):
    lists = {form: predicted(capsys, "--weights", path, "--topk", 10, pictures) for form, path in forms.items()}
    assert len(lists["checkpoint"]) == 12
    for records in lists.values():
        assert [r["image"] for r in records] == [r["image"] for r in lists["checkpoint"]]
        for record, reference in zip(records, lists["checkpoint"], strict=True):
            actual, expected = record["predictions"], reference["predictions"]
            assert [(p["class"], p["name"]) for p in actual] == [(p["class"], p["name"]) for p in expected]
            shares = [[p["probability"] for p in each] for each in (actual, expected)]
            np.testing.assert_allclose(*shares, atol=1.01e-4)  # of numbers rounded to four places


def test_probabilities_are_those_of_the_model(forms, pictures, capsys):
    for record in predicted(capsys, "--weights", forms["onnx"], "--topk", 10, pictures):
        expected = by_hand(forms["checkpoint"], record["image"])
        actual = record["predictions"]
        assert [p["class"] for p in actual] == np.argsort(-expected).tolist()
        np.testing.assert_allclose([p["probability"] for p in actual], np.sort(expected)[::-1], atol=1e-4)
        assert [p["name"] for p in actual] == [NAMES[p["class"]] for p in actual]


def test_sigmoid_gives_each_class_its_own_probability(forms, pictures, capsys):
    picture = pictures / "a" / "0.jpg"
    (record,) = predicted(capsys, "--weights", forms["onnx"], "--topk", 10, "--sigmoid", picture)
    logits = predictor.load_predictor(forms["checkpoint"]).logits([picture.read_bytes()])[0].astype("float64")
    expected = np.sort(1 / (1 + np.exp(-logits)))[::-1]
    np.testing.assert_allclose([p["probability"] for p in record["predictions"]], expected, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6), st.booleans())
def test_probabilities_stay_finite(logits, sigmoid):
    shares = predictor.probabilities(np.array([logits], "float32"), "sigmoid" if sigmoid else "softmax")
    assert np.isfinite(shares).all() and (shares >= 0).all() and (shares <= 1).all()
    if not sigmoid:
        assert abs(shares.sum() - 1) < 1e-9


def test_a_table_without_pictures_has_its_titles():
    assert list(predictions.as_csv([])) == ["image,rank,class,name,probability\n"]


@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_batch_size_changes_nothing(forms, pictures, capsys, size):
    (one, other) = (predicted(capsys, "--weights", forms["paddle"], "--batch-size", n, pictures) for n in (32, size))
    for a, b in zip(one, other, strict=True):
        assert a["image"] == b["image"]
        assert [p["class"] for p in a["predictions"]] == [p["class"] for p in b["predictions"]]


def test_a_run_directory_predicts_with_its_own_classes(picture_tree, capsys):
    """Trained, averaged, without a configuration; its pictures differ by their colour."""
    tree = tiny_digits()
    transforms = [
        {"DecodeImage": None},
        {"ResizeImage": {"resize_short": 18}},
        {"CenterCropImage": {"size": 16}},
        {"NormalizeImage": None},
        {"ToCHWImage": None},
    ]
    tree["Global"] |= {"output_dir": "run", "max_train_step": 40, "epochs": 40}
    tree["EMA"] = {"decay": 0.5}
    tree["Model"] |= {"img_size": 16, "in_chans": 3, "class_num": 4}
    for mode, split in (("Train", "train"), ("Eval", "val")):
        data = {"name": "ImageFolder", "root": str(picture_tree / split), "transform_ops": transforms}
        tree["DataLoader"][mode]["dataset"] = data
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 16
    tree["Metric"] = {}
    assert main(["train", "-c", str(write_config(Path("run.yaml"), tree))]) == 0
    capsys.readouterr()
    for options in ([], ["--ema"]):
        records = predicted(capsys, "--weights", "run", *options, "--topk", 1, picture_tree / "val")
        assert len(records) == 20
        right = [Path(r["image"]).parent.name == r["predictions"][0]["name"] for r in records]
        assert sum(right) >= 18


def test_another_resolution_resizes_positions_and_pictures(forms, pictures, capsys):
    picture = pictures / "a" / "1.png"
    (record,) = predicted(capsys, "--weights", forms["checkpoint"], "--resolution", 48, "--topk", 3, picture)
    loaded = loading.load_model(forms["checkpoint"], img_size=48)
    pixels = loaded.card.preprocess(picture.read_bytes())
    assert pixels.shape == (48, 48, 3)
    with paddle.no_grad():
        image = DeviceInput(loaded.card.preprocess).normalize(paddle.to_tensor(pixels[np.newaxis]))
        expected = np.argsort(-loaded.network(image).numpy()[0])[:3]
    assert [p["class"] for p in record["predictions"]] == expected.tolist()


@settings(max_examples=20, deadline=None)
@given(
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_pictures_are_normalised_as_in_training(mean, std, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 4, 5, 3)).astype("uint8")
    preprocess = Preprocess(mean=tuple(mean), std=tuple(std))
    expected = DeviceInput(preprocess).normalize(paddle.to_tensor(images)).numpy()
    np.testing.assert_array_equal(predictor.normalised(images, preprocess), expected)


# -- recipes and foreign weights ----------------------------------------------------------


def test_a_recipe_says_what_foreign_weights_do_not(tmp_path, capsys):
    """The model's heads and the preprocessing; without it nothing is guessed."""
    fields = dict(img_size=8, patch_size=4, in_chans=1, class_num=10, embed_dim=16, num_heads=4)
    path = write_model(tmp_path / "own.safetensors", **fields)
    assert main(["convert", str(path), "--to", "timm", "--output", "foreign.safetensors"]) == 0
    save_file(load_file("foreign.safetensors"), "foreign.safetensors")  # without plsc's card
    Image.fromarray(np.arange(64, dtype="uint8").reshape(8, 8) * 4).save("digit.png")
    assert main(["predict", "--weights", "foreign.safetensors", "digit.png"]) == 2
    assert "-c RECIPE" in capsys.readouterr().err
    tree = tiny_digits()
    tree["Model"]["num_heads"] = 4
    recipe = write_config(Path("recipe.yaml"), tree)
    (record,) = predicted(capsys, "--weights", "foreign.safetensors", "-c", recipe, "digit.png")
    network = loading.load_model(path).network
    pixels = np.asarray(Image.open("digit.png"), "float32")[np.newaxis, np.newaxis]
    with paddle.no_grad():
        expected = network(paddle.to_tensor((pixels / 255 - 0.5) / 0.5)).numpy()[0]
    assert [p["class"] for p in record["predictions"]] == np.argsort(-expected)[:5].tolist()
    override = f"Global.pretrained_model={path}"
    assert predicted(capsys, "-c", recipe, "-o", override, "digit.png")[0]["image"] == "digit.png"


def test_a_model_of_grey_pictures_refuses_colours(tmp_path, capsys):
    path = write_model(tmp_path / "grey.safetensors", in_chans=1)
    grey = np.random.default_rng(0).integers(0, 256, (40, 40)).astype("uint8")
    Image.fromarray(grey).save("grey.png")
    Image.fromarray(np.stack([grey, grey, 255 - grey], axis=2)).save("colours.png")
    assert main(["predict", "--weights", str(path), "grey.png", "colours.png"]) == 1
    printed = capsys.readouterr()
    assert "grey.png" in printed.out and "not read: colours.png: has colours" in printed.err


def test_pictures_of_another_size_than_the_models_are_reported(tmp_path, capsys):
    path = write_model(tmp_path / "model.safetensors", preprocess=Preprocess())
    Image.fromarray(np.zeros([40, 33, 3], "uint8")).save("wrong.png")
    Image.fromarray(np.zeros([32, 32, 3], "uint8")).save("right.png")
    assert main(["predict", "--weights", str(path), "wrong.png", "right.png"]) == 1
    assert "has 40x33 pixels after the preprocessing; the model takes 32x32" in capsys.readouterr().err


def test_class_names_come_from_a_file(forms, pictures, capsys):
    Path("names.txt").write_text("\n".join(f"n0000000{i} thing {i}" for i in range(10)) + "\n")
    options = ["--weights", forms["onnx"], "--class-names", "names.txt", pictures / "a" / "0.jpg"]
    (record,) = predicted(capsys, *options)
    assert all(p["name"] == f"thing {p['class']}" for p in record["predictions"])
    Path("names.txt").write_text("one\ntwo\n")
    assert main(["predict", *map(str, options)]) == 2
    assert "names.txt: has 2 class names, the model 10 classes" in capsys.readouterr().err


def test_notes_follow_what_can_fail(forms, pictures, capsys):
    """That softmax is assumed matters where there are predictions, not beside an error."""
    Path("broken.png").write_bytes(b"no picture")
    assert main(["predict", "--weights", forms["onnx"], "broken.png"]) == 2
    assert "note:" not in capsys.readouterr().err
    assert main(["predict", "--weights", forms["onnx"], str(pictures / "a" / "0.jpg")]) == 0
    assert "softmax is taken" in capsys.readouterr().err


def test_classes_without_names_are_numbers(tmp_path, pictures, capsys):
    path = write_model(tmp_path / "model.safetensors", class_names=["only", "two"])
    (record,) = predicted(capsys, "--weights", path, "--topk", 10, pictures / "a" / "0.jpg")
    assert {p["class"]: p["name"] for p in record["predictions"]} == {
        0: "only",
        1: "two",
        **{i: str(i) for i in range(2, 10)},
    }


# -- from Python --------------------------------------------------------------------------


def with_softmax(path) -> predictor.Predictor:
    """A predictor whose weights were trained with softmax."""
    model = plsc_package.load_predictor(path)
    model.card = dataclasses.replace(model.card, activation="softmax")
    return model


def test_predict_takes_pictures_of_every_kind(forms, pictures):
    """Paths, encoded bytes, pixels and pictures of PIL, one or several, give the same classes."""
    model = with_softmax(forms["onnx"])
    path = pictures / "b/c" / "7.png"
    pil = Image.open(path)
    pixels = np.asarray(pil.convert("RGB"))
    kinds = [path, str(path), path.read_bytes(), pixels, pil]
    [expected] = model.predict(path, topk=10)
    assert [p.index for p in expected] == np.argsort(-by_hand(forms["checkpoint"], path)).tolist()
    assert all(p.name == NAMES[p.index] and 0 < p.probability < 1 for p in expected)
    assert [model.predict(kind, topk=10) for kind in kinds] == [[expected]] * 5
    assert model.predict(kinds, topk=10, batch_size=2) == [expected] * 5
    assert model.predict(np.stack([pixels] * 3), topk=10) == [expected] * 3 and model.predict([]) == []
    Path("names.txt").write_text("".join(f"other {i}\n" for i in range(10)))
    [[first, *_]] = model.predict(path, activation="sigmoid", class_names="names.txt")
    assert first.name == f"other {first.index}" and first.probability == pytest.approx(
        1 / (1 + np.exp(-model.logits([path.read_bytes()]).max())), rel=1e-5
    )


def test_a_picture_that_cannot_be_predicted_is_named(forms, pictures):
    model = with_softmax(forms["onnx"])
    Path("text.jpg").write_text("no picture")
    for name, reason in (("text.jpg", "text.jpg: "), ("absent.jpg", "absent.jpg: No such file or directory")):
        with pytest.raises(DataError, match=reason):
            model.predict([pictures / "a" / "0.jpg", name])


def test_an_unknown_activation_is_asked_for(forms, pictures, caplog):
    model = plsc_package.load_predictor(forms["onnx"])
    model.card = dataclasses.replace(model.card, activation=None)
    with pytest.raises(ConfigError, match="give activation='softmax'"):
        model.predict(pictures / "a" / "0.jpg")
    [best] = model.predict(pictures / "a" / "0.jpg", topk=10, activation="softmax")
    assert sum(p.probability for p in best) == pytest.approx(1)


# -- which pictures -----------------------------------------------------------------------


def test_folders_are_read_in_natural_order(forms, pictures, capsys):
    (pictures / "a" / "notes.txt").write_text("no picture")
    records = predicted(capsys, "--weights", forms["onnx"], pictures)
    expected = [pictures / "a" / f"{i}.{e}" for i, e in zip(range(6), itertools.cycle(["jpg", "png", "webp"]))]
    expected += [pictures / "b/c" / f"{i}.{e}" for i, e in zip(range(6, 12), itertools.cycle(["jpg", "png", "webp"]))]
    assert [r["image"] for r in records] == [str(p) for p in expected]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="a1029²./", max_size=8), max_size=6), st.integers(0, 10**6))
def test_natural_order_takes_any_name(names, number):
    assert collections.Counter(sorted(names, key=natural_order)) == collections.Counter(names)
    assert natural_order(f"x{number}.jpg") < natural_order(f"x{number + 1}.jpg")


def test_patterns_files_and_folders_may_be_mixed(forms, pictures, capsys):
    arguments = [pictures / "b/c/11.webp", pictures / "**" / "*.png", pictures / "a"]
    records = predicted(capsys, "--weights", forms["onnx"], *arguments)
    assert [Path(r["image"]).name for r in records] == [
        "11.webp",
        *("1.png", "4.png", "7.png", "10.png"),
        *("0.jpg", "1.png", "2.webp", "3.jpg", "4.png", "5.webp"),
    ]


def test_paths_are_read_from_standard_input(forms, pictures):
    paths = [pictures / "a" / "3.jpg", pictures / "a" / "0.jpg"]
    arguments = command(["predict", "--weights", forms["onnx"], "--format", "csv", "--topk", 1, "--softmax", "-"])
    done = subprocess.run(
        arguments,
        input="\n".join(map(str, [*paths, "", pictures / "absent.jpg"])),
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert done.stderr.splitlines() == [
        f"not read: {pictures / 'absent.jpg'}: No such file or directory",
        "1 of 3 pictures could not be read",
    ]


def test_reading_stays_near_the_batch_in_hand(forms, pictures):
    """An endless list of paths is predicted batch by batch."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield str(pictures / "a" / "0.jpg")

    model = with_softmax(forms["onnx"])
    batches = model.stream(endless(), batch_size=4)
    for count, batch in enumerate(itertools.islice(batches, 5), start=1):
        assert len(batch) == 4 and all(len(predictions) == 5 for _, predictions in batch)
        assert taken <= 4 * count + 2 * 4
    batches.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), max_size=14), st.integers(1, 5), st.integers(1, 4))
def test_order_and_number_survive_damage(readable, batch_size, workers):
    """Each readable picture once, in order; each damaged one told once, in order."""
    whole = {}

    def prepare(picture: str):
        data = Path(picture).read_bytes()
        if data.startswith(b"bad"):
            raise DataError("damaged")
        return np.full([1, 1, 1], int(data), "uint8")

    for i, good in enumerate(readable):
        whole[f"{i}.jpg"] = good
        Path(f"{i}.jpg").write_bytes(str(i).encode() if good else b"bad")
    card = ModelCard(preprocess=Preprocess(scale=1.0), activation="softmax")
    # the class nearest to the pixel
    model = predictor.Predictor("onnx", Path("model"), lambda x: -abs(x[:, 0, 0] / 2 + 0.5 - np.arange(14)), card=card)
    model.prepare = prepare
    messages, seen = [], []
    options = dict(batch_size=batch_size, workers=workers, on_damaged=lambda path, error: messages.append(path))
    for batch in model.stream(iter(whole), **options):
        assert 1 <= len(batch) <= batch_size
        seen += [path for path, _ in batch]
        assert [predictions[0].index for _, predictions in batch] == [int(path[:-4]) for path, _ in batch]
    assert seen == [path for path, good in whole.items() if good]
    assert messages == [path for path, good in whole.items() if not good]


# -- what is written ----------------------------------------------------------------------


def test_formats_say_the_same(forms, pictures, capsys):
    picture = pictures / "a" / "2.webp"
    options = ["--weights", forms["onnx"], "--topk", 2, picture]
    (record,) = predicted(capsys, *options)
    assert main(["predict", *map(str, options), "--output", "new/found.csv"]) == 0
    assert main(["predict", *map(str, options), "--output", "found.JSONL"]) == 0
    assert main(["predict", *map(str, options), "--output", "found.txt"]) == 0
    assert main(["predict", *map(str, options), "--format", "csv", "--output", "comma.txt"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(Path("found.JSONL").read_text()) == record
    assert Path("new/found.csv").read_text() == Path("comma.txt").read_text()
    rows = list(csv.DictReader(Path("new/found.csv").read_text(encoding="utf-8").splitlines()))
    best = record["predictions"]
    assert [(int(r["rank"]), int(r["class"]), r["name"], float(r["probability"])) for r in rows] == [
        (k, p["class"], p["name"], p["probability"]) for k, p in enumerate(best, start=1)
    ]
    assert main(["predict", *map(str, options)]) == 0
    line = capsys.readouterr().out
    assert Path("found.txt").read_text() == line
    cells = re.split(r"\s{2,}", line.strip())
    assert cells[0] == str(picture)
    for cell, p in zip(cells[1:], best, strict=True):
        assert re.fullmatch(rf"kind {p['class']} [\d.]+%", cell)  # the first of its names
        assert abs(float(cell.split()[-1][:-1]) / 100 - p["probability"]) < 1.1e-4


def test_an_earlier_output_stays_where_nothing_can_be_predicted(forms, pictures, capsys):
    Path("found.csv").write_text("of yesterday")
    Path("damaged.jpg").write_bytes(b"no picture")
    Path("names.txt").write_text("one\n")
    good = str(pictures / "a" / "0.jpg")
    for wrong in (["damaged.jpg"], ["absent.jpg"], [good, "--class-names", "names.txt"], [good, "--format", "jsonl"]):
        assert main(["predict", "--weights", forms["onnx"], "--output", "found.csv", *wrong]) == 2
        assert Path("found.csv").read_text() == "of yesterday", wrong
    assert main(["predict", "--weights", forms["onnx"], "--output", "found.csv", "damaged.jpg", good]) == 1
    assert Path("found.csv").read_text().startswith("image,rank,class,name,probability\n")


def test_a_run_whose_best_weights_are_averaged_says_so_beside_the_answers(forms, pictures, capsys):
    folder = Path("run/checkpoints/step-00000005")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(Path(forms["checkpoint"]).read_bytes())
    (folder / "trainer.json").write_text("{}")
    for weights, hinted in (("ema", True), ("raw", False)):
        record = {"metric": "top1", "value": 0.5, "step": 5, "weights": weights}
        (folder.parent / "best").write_text(f"{folder.name}\n{json.dumps(record)}\n")
        for path in ("run", folder, folder / "model.safetensors", folder.parent / "best"):
            assert main(["predict", "--weights", str(path), str(pictures / "a" / "0.jpg")]) == 0
            printed = capsys.readouterr()
            assert ("--ema takes them" in printed.err) == hinted and "note" not in printed.out


def test_a_damaged_picture_is_reported_and_the_rest_goes_on(forms, pictures, capsys):
    good = (pictures / "a" / "0.jpg").read_bytes()
    for name, data in (("1.jpg", good), ("2.jpg", good[: len(good) // 2]), ("3.jpg", b""), ("4.jpg", good)):
        Path(name).write_bytes(data)
    assert main(["predict", "--weights", forms["paddle"], "--format", "csv", "--topk", "1", "--softmax", "."]) == 1
    printed = capsys.readouterr()
    assert [row["image"] for row in csv.DictReader(io.StringIO(printed.out))] == ["./1.jpg", "./4.jpg"]
    lines = printed.err.splitlines()
    assert [line.split(": ")[:2] for line in lines[:2]] == [["not read", "./2.jpg"], ["not read", "./3.jpg"]]
    assert lines[2] == "2 of 4 pictures could not be read"
    assert main(["predict", "--weights", forms["onnx"], "2.jpg", "3.jpg"]) == 2
    assert "none of 2 pictures could be read" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_written_all_the_same(forms, pictures, capsys):
    name = b"caf\xe9.jpg"
    Path("odd").mkdir()
    with open(b"odd/" + name, "wb") as file:
        file.write((pictures / "a" / "0.jpg").read_bytes())
    assert main(["predict", "--weights", forms["onnx"], "odd"]) == 0
    assert "caf\ufffd.jpg" in capsys.readouterr().out
    (record,) = predicted(capsys, "--weights", forms["onnx"], "odd")
    assert record["image"].encode("utf-8", "surrogateescape") == b"odd/" + name


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["picture.png"], "--weights PATH"),
        (["--weights", "MODEL", "absent.jpg"], "absent.jpg: no such file or folder"),
        (["--weights", "MODEL", "*.tiff"], "no file has such a name"),
        (["--weights", "MODEL", "empty"], "there are no pictures in it"),
        (["--weights", "absent", "picture.png"], "absent: no such file or folder"),
        (["--weights", "MODEL", "-o", "Global.seed=1", "picture.png"], "-c RECIPE"),
        (["--weights", "MODEL", "--ema", "picture.png"], "one set of weights"),
        (["--weights", "MODEL", "--resolution", "64", "picture.png"], "--resolution 64"),
        (["--weights", "MODEL", "--output", "picture.png/found.csv", "picture.png"], "picture.png is not a folder"),
        (["--weights", "MODEL", "--output", "empty", "picture.png"], "--output empty: is a folder"),
        (["--weights", "MODEL", "--output", "a.csv", "--format", "jsonl", "picture.png"], "contradict each other"),
        (["--weights", "MODEL", "--output", "a.jsonl", "--format", "table", "picture.png"], "contradict each other"),
        (["--weights", "MODEL", "--class-names", "absent.txt", "picture.png"], "absent.txt: cannot be read"),
    ],
)
def test_wrong_uses_are_reported(forms, capsys, arguments, message):
    Path("empty").mkdir()
    Image.fromarray(np.zeros([40, 40, 3], "uint8")).save("picture.png")
    assert main(["predict", *(forms["onnx"] if a == "MODEL" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--topk", "--batch-size", "--resolution"])
@pytest.mark.parametrize("value", ["0", "-3", "many", "²", "٣"])
def test_wrong_numbers_are_reported(capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--weights", "x", option, value, "picture.png"])
    assert stopped.value.code == 2 and option in capsys.readouterr().err


def test_nothing_on_standard_input_is_reported(forms, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["predict", "--weights", forms["onnx"], "-"]) == 2
    assert "no pictures were given" in capsys.readouterr().err


def test_a_model_without_a_head_does_not_predict(forms, tmp_path):
    write(read(forms["checkpoint"]), "safetensors", tmp_path / "backbone.safetensors", backbone=True)
    with pytest.raises(CheckpointError, match="has no head"):
        predictor.load_predictor(tmp_path / "backbone.safetensors")


def test_the_python_interface_takes_bytes_and_pixels(forms, pictures):
    data = (pictures / "a" / "1.png").read_bytes()
    model = predictor.load_predictor(forms["paddle"])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    logits = model.logits([data, pixels])
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    prepared = predictor.normalised(model.prepare(data)[np.newaxis], model.card.preprocess)
    np.testing.assert_allclose(model.run(prepared), logits[:1], atol=1e-5)
    assert logits.dtype == np.float32 and (model.kind, model.size) == ("paddle", (32, 32))
    model.card = ModelCard()
    with pytest.raises(ConfigError, match="-c RECIPE"):
        model.logits([data])


@pytest.mark.parametrize("name", ["predict", "export", "benchmark"])
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and f"examples:\n  plsc {name} " in text


# -- benchmark ----------------------------------------------------------------------------


def test_benchmark_times_every_form(forms, capsys):
    options = ["--batch-sizes", "1,3", "--seconds", "0.05", "--output", "speed.json"]
    assert main(["benchmark", *forms.values(), *options]) == 0
    written = json.loads(Path("speed.json").read_text())
    rows = written["rows"]
    runtimes = ["dygraph", "to_static", "graph", "Paddle Inference", "onnxruntime"]
    assert [(row["runtime"], row["batch"]) for row in rows] == [(r, b) for b in (1, 3) for r in runtimes]
    for row in rows:
        assert (row["height"], row["width"]) == (32, 32) and row["runs"] >= 5
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        # the mean of runs is no shorter than half the median
        assert row["images_per_second"] <= 2 * 1000 * row["batch"] / row["p50_ms"]
    assert written["images"] == "random" and "random images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--batch-sizes", text] for text in ("1,0", "1,", "²")),
        *(["--seconds", text] for text in ("0", "nan", "inf", "long")),
        *(["--threads", text] for text in ("0", "²")),
    ],
)
def test_wrong_numbers_for_the_benchmark_are_reported(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "x", *arguments])
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"), [("speed.csv", "is written as .json"), ("file/speed.json", "file is not a folder")]
)
def test_an_output_that_a_benchmark_cannot_write_is_reported_before_it_runs(
    forms, monkeypatch, capsys, output, message
):
    monkeypatch.setattr(predictor, "load_predictor", None)
    Path("file").write_text("")
    assert main(["benchmark", forms["onnx"], "--output", output]) == 2
    assert f"--output {output}: " in (text := capsys.readouterr().err) and message in text


def test_a_benchmark_makes_the_folder_of_its_output(forms):
    options = ["--batch-sizes", "1", "--seconds", "0.01", "--output", "deep/er/speed.json"]
    assert main(["benchmark", forms["onnx"], *options]) == 0
    assert len(json.loads(Path("deep/er/speed.json").read_text())["rows"]) == 1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose data are missing."""
    tree = tiny_digits()
    tree["DataLoader"]["Train"]["dataset"] |= {"name": "ImageFolder", "root": "absent"}
    tree["DataLoader"]["Train"]["dataset"].pop("split")
    tree["Global"] |= {"accum_steps": 2, "pretrained_model": "absent.safetensors", "device_tflops": 0.1}
    tree["Model"]["class_num"] = "auto"
    return write_config(tmp_path_factory.mktemp("recipe") / "small.yaml", tree)


def test_a_benchmark_of_a_recipe_without_weights(recipe):
    done = plsc("benchmark", "-c", recipe, "--batch-sizes", 3, "--seconds", 0.05, "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["runtime"] for row in rows] == ["dygraph", "to_static", "graph"]
    assert {(row["path"], row["batch"], row["height"], row["width"]) for row in rows} == {("small", 3, 8, 8)}


def test_a_benchmark_of_training(recipe, tmp_path):
    """The recipe's own updates: its batch, micro-batches and transforms of the device; only the table is written."""
    options = ["--train", "--seconds", 0.05, "--output", "steps.json"]
    done = plsc("benchmark", "-c", recipe, *options, cwd=tmp_path)
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert [row["runtime"] for row in rows] == ["dygraph", "to_static"]
    for row in rows:
        assert (row["batch"], row["accum_steps"], row["height"], row["precision"]) == (32, 2, 8, "float32")
        assert row["images_per_second"] == pytest.approx(1000 * 32 / row["ms"], rel=0.01)
        assert row["updates"] >= 5 and row["memory_bytes"] > 0 and 0.0 < row["mfu"] < 1.0
    assert "32 in 2 parts" in done.stdout and "memory MiB" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["steps.json"]


def test_a_benchmark_of_training_at_another_size(recipe, tmp_path):
    options = ["--train", "--seconds", 0.01, "--batch-sizes", "4,6", "--resolution", 16, "--json"]
    done = plsc("benchmark", "-c", recipe, *options, cwd=tmp_path)
    rows = json.loads(done.stdout)["rows"]
    assert [(row["batch"], row["height"]) for row in rows] == [(4, 16), (4, 16), (6, 16), (6, 16)]


def test_what_a_benchmark_of_training_cannot_time(recipe):
    for words in (["--train"], ["--train", "-c", recipe, "output/mine"]):
        done = plsc("benchmark", *words, check=False)
        assert done.returncode == 2 and "--train times the updates of a recipe: give -c RECIPE" in done.stderr
    done = plsc("benchmark", check=False)
    assert done.returncode == 2 and "nothing to time is given" in done.stderr
    done = plsc("benchmark", "-c", recipe, "--train", "--batch-sizes", 3, check=False)
    assert done.returncode == 2 and "2 does not divide the batch of 3" in done.stderr


def test_a_benchmark_of_nothing_is_reported():
    done = plsc("benchmark", "absent", check=False)
    assert done.returncode == 2 and "absent: no such file or folder" in done.stderr
