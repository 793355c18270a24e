"""`plsc eval` and plsc.evaluate: several weights, resolutions and data sets, its files, its errors, its processes."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score

from plsc import loading, places, predictor
from plsc.cli import main
from plsc.config import load
from plsc.engine import evaluation
from plsc.engine.distributed import World
from plsc.engine.evaluation import Evaluation, evaluate, evaluate_all
from plsc.engine.evaluation_files import columns, confusion_text, write_table
from plsc.engine.evaluator import Evaluator
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.export import export_model
from tests.helpers import SHARED, TINY_MODEL, metrics, plsc, tiny_digits, write_config

pytestmark = pytest.mark.usefixtures("process_state")

TRANSFORMS = [
    {"DecodeImage": None},
    {"ResizeImage": {"resize_short": 20}},
    {"CenterCropImage": {"size": 16}},
    {"NormalizeImage": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.5]}},
    {"ToCHWImage": None},
]


def pictures_config(tree: Path, output: Path) -> dict:
    """A run on the four classes of `picture_tree`, evaluated on its 20 validation pictures."""
    config = tiny_digits()
    config["Global"] |= {"output_dir": str(output), "max_train_step": 4, "eval_during_train": True}
    config["EMA"] = {"decay": 0.5, "ema_eval": True}
    config["Model"] = {**TINY_MODEL, "img_size": 16, "in_chans": 3, "class_num": 4}
    for mode, split in (("Train", "train"), ("Eval", "val")):
        config["DataLoader"][mode]["dataset"] = {
            "name": "ImageFolder",
            "root": str(tree / split),
            "transform_ops": TRANSFORMS,
        }
    config["DataLoader"]["Eval"]["sampler"]["batch_size"] = 8
    return config


@pytest.fixture(scope="module")
def run(picture_tree, tmp_path_factory) -> Path:
    """A finished run with averaged weights."""
    folder = tmp_path_factory.mktemp("run")
    plsc("train", "-c", write_config(folder / "c.yaml", pictures_config(picture_tree, folder / "run")))
    return folder / "run"


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Path:
    """The run's averaged weights, as a file of their own with the configuration beside."""
    folder = tmp_path_factory.mktemp("other")
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    shutil.copy(latest / "config.yaml", folder)
    plsc("convert", run, "--ema", "--to", "safetensors", "--output", folder / "averaged.safetensors")
    return folder / "averaged.safetensors"


def evaluated(*arguments, code: int = 0) -> dict:
    """Run the command in this process; the JSON that it wrote."""
    assert main(["eval", *map(str, arguments), "--output", "result.json"]) == code
    return json.loads(Path("result.json").read_text())


def refused(capsys, *arguments) -> str:
    """The message of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(["eval", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert "error: " in err and "Traceback" not in err
    return err


def ours(weights: Path, folder: Path, pixels: int = 16):
    """(logits, labels) of a folder's pictures, the long way round: one picture at a time, no configuration."""
    loaded = loading.load_model(weights, img_size=pixels)
    logits, labels = [], []
    for label, name in enumerate(sorted(entry.name for entry in folder.iterdir())):
        for path in sorted((folder / name).iterdir()):
            image = loaded.card.preprocess(path.read_bytes()).astype("float32") / 255.0
            image = (image - np.array(loaded.card.preprocess.mean)) / np.array(loaded.card.preprocess.std)
            batch = paddle.to_tensor(image.transpose(2, 0, 1)[np.newaxis].astype("float32"))
            logits.append(loaded.network(batch).numpy()[0])
            labels.append(label)
    return np.array(logits), np.array(labels)


def figures_of(logits, labels) -> dict:
    """Loss and accuracy by NumPy."""
    shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return {"loss": loss.mean(), "top1": (logits.argmax(axis=1) == labels).mean(), "samples": len(labels)}


def assert_figures(row: dict, expected: dict):
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5), name


# -- rows ---------------------------------------------------------------------------------


def test_one_row_is_a_plain_object(run, picture_tree, capsys):
    """As readers know it: the figures stand at the top; the console shows a line a figure."""
    report = evaluated("--weights", run)
    assert_figures(report, figures_of(*ours(run, picture_tree / "val")))
    assert report["weights"] == str(run) and report["ema"] is False and report["config"] == str(run / "config.yaml")
    assert report["data"] == "ImageFolder" and report["resolution"] == 16 and "top5" not in report
    out = capsys.readouterr().out
    assert re.search(rf"^top1 +{100 * report['top1']:.2f} %$", out, re.MULTILINE)
    assert re.search(r"^samples +20$", out, re.MULTILINE) and "written to result.json" in out


def test_every_combination_is_a_row(run, other, picture_tree, capsys):
    """Weights by data by resolution; each row as if it were measured alone, and as a second way computes it."""
    report = evaluated(
        *("--weights", run, "--weights", other),
        *("--data", f"seen={picture_tree / 'train'}", "--data", picture_tree / "val_list.txt"),
        *("--resolution", "16,24"),
    )
    assert list(report) == ["rows"]
    facts = [(row["weights"], row["data"], row["resolution"]) for row in report["rows"]]
    data = ["seen", str(picture_tree / "val_list.txt")]
    assert facts == [(str(w), d, p) for w in (run, other) for d in data for p in (16, 24)]
    for row, (weights, name, pixels) in zip(report["rows"], facts, strict=True):
        folder = picture_tree / ("train" if name == "seen" else "val")
        assert_figures(row, figures_of(*ours(Path(weights), folder, pixels)))
    assert len({row["loss"] for row in report["rows"]}) == 8
    out = capsys.readouterr().out
    header, *lines = out[out.index("\nweights ") + 1 :].splitlines()
    assert header.split() == ["weights", "data", "resolution", "loss", "top1", "samples"]
    for line, row in zip(lines, report["rows"], strict=False):
        shown = [row["weights"], row["data"], str(row["resolution"]), f"{row['loss']:.6g}"]
        assert line.split()[:4] == shown and f"{100 * row['top1']:.2f} %" in line


def test_averaged_weights(run, other, capsys):
    """--ema measures them for every checkpoint; without it, a run whose best was one of them says so."""
    raw, averaged = evaluated("--weights", run), evaluated("--weights", run, "--ema")
    assert averaged["ema"] is True and averaged["loss"] != raw["loss"]
    assert_figures(averaged, {key: evaluated("--weights", other)[key] for key in ("loss", "top1")})
    copy = Path(shutil.copytree(run, "copy"))
    best = copy / "checkpoints" / "best"
    best.write_text(best.read_text().replace('"raw"', '"ema"'))
    capsys.readouterr()
    evaluated("--weights", copy)
    assert "--ema takes them" in capsys.readouterr().out
    evaluated("--weights", copy, "--ema")
    assert "--ema takes them" not in capsys.readouterr().out


def test_a_recipe_as_data_brings_its_own_preparation(run, picture_tree):
    """Its whole DataLoader.Eval is used: data set, transforms and batch size."""
    config = pictures_config(picture_tree, Path("elsewhere"))
    section = config["DataLoader"]["Eval"]
    section["dataset"] = {**section["dataset"], "root": str(picture_tree / "train")}
    section["dataset"]["transform_ops"] = [{"DecodeImage": None}, {"ResizeImage": {"size": 16}}, *TRANSFORMS[3:]]
    write_config(Path("squeezed.yaml"), config)
    report = evaluated("--weights", run, "--data", "squeezed.yaml")
    write_config(Path("same.yaml"), config)
    assert report["data"] == "squeezed.yaml" and report["samples"] == 48
    alone = evaluated("-c", "same.yaml", "--weights", run)
    assert (report["loss"], report["top1"]) == (alone["loss"], alone["top1"])
    assert report["loss"] != evaluated("--weights", run, "--data", picture_tree / "train")["loss"]


def test_a_path_with_an_equals_sign_is_a_path(run, picture_tree):
    shutil.copytree(picture_tree / "val", "a=b")
    assert evaluated("--weights", run, "--data", "a=b")["data"] == "a=b"


def test_a_list_is_read_like_the_recipes(run, picture_tree):
    """Several labels a picture, where the recipe's own list has them."""
    listed = {"name": "ImageNetDataset", "image_root": str(picture_tree), "multi_label": True, "slice": "[:3]"}
    listed |= {"cls_label_path": str(picture_tree / "multi_list.txt"), "transform_ops": TRANSFORMS}
    config = pictures_config(picture_tree, Path("elsewhere"))
    config["DataLoader"]["Eval"]["dataset"] = listed
    config["Loss"] = {"Train": [{"BCELoss": None}]}
    config["Metric"]["Eval"] = ["TopkAcc", {"F1": {"activation": "sigmoid"}}]
    report = evaluated(
        *("-c", write_config(Path("c.yaml"), config), "--weights", run),
        *("--data", picture_tree / "multi_list.txt", "--metrics", "mAP,AUC,F1,PrecisionAt1"),
    )
    logits, labels = ours(run, picture_tree / "train")
    right = np.eye(4, dtype=bool)[labels] | np.eye(4, dtype=bool)[(labels + 1) % 4]
    powers = np.exp(logits.astype("float64"))
    probabilities = powers / powers.sum(axis=1, keepdims=True)  # the weights come from a softmax loss
    assert_figures(
        report,
        {
            "samples": 48,
            "mAP": average_precision_score(right, probabilities, average="macro"),
            "mAP_classes": 4,
            "auc": roc_auc_score(right, probabilities, average="macro"),
            "f1_macro": f1_score(right, logits > 0, average="macro"),
            "f1_micro": f1_score(right, logits > 0, average="micro"),
            "precision_at_1": right[np.arange(48), logits.argmax(axis=1)].mean(),
        },
    )


def test_real_labels(run, picture_tree):
    """Pictures of a list by the numbers in their names; its figures stand beside those of the original labels."""
    folder = Path("pictures")
    folder.mkdir()
    logits, labels = ours(run, picture_tree / "val")
    predicted = logits.argmax(axis=1)
    real = [[]] * 30
    lines = []
    for k, path in enumerate(sorted((picture_tree / "val").rglob("*.jpg"))):
        number = 30 - k
        shutil.copy(path, folder / f"ILSVRC2012_val_{number:08d}.JPEG")
        lines.append(f"ILSVRC2012_val_{number:08d}.JPEG {labels[k]}\n")
        # of four pictures one is skipped, two are right, one is wrong
        real[number - 1] = ([], [int(predicted[k])], [int(predicted[k]), 3], [int(predicted[k] + 1) % 4])[k % 4]
    (folder / "list.txt").write_text("".join(lines))
    Path("real.json").write_text(json.dumps(real))
    report = evaluated("--weights", run, "--data", folder / "list.txt", "--real", "real.json")
    assert_figures(
        report, {"real_top1": 10 / 15, "real_samples": 15, "top1": (predicted == labels).mean(), "samples": 20}
    )


def test_results_go_to_the_runs_they_are_of(run, other, picture_tree, capsys):
    """Several runs get their own rows each; weights of no run are printed only, Global.output_dir has no say."""
    first, second = (Path(shutil.copytree(run, name)) for name in ("first", "second"))
    config = pictures_config(picture_tree, Path("another_run"))
    arguments = ["-c", write_config(Path("c.yaml"), config), "--resolution", "16,24"]
    weights = [first, second / "checkpoints" / "latest", other]
    assert main(["eval", *map(str, arguments), *(f"--weights={path}" for path in weights)]) == 0
    out = capsys.readouterr().out
    for folder, path in ((first, weights[0]), (second, weights[1])):
        rows = json.loads((folder / "evaluation.json").read_text())["rows"]
        assert [(row["weights"], row["resolution"]) for row in rows] == [(str(path), 16), (str(path), 24)]
        assert f"written to {folder / 'evaluation.json'}" in out
    assert main(["eval", *map(str, arguments[:2]), "--weights", str(other)]) == 0
    assert "written to" not in capsys.readouterr().out
    assert not Path("another_run").exists() and not (other.parent / "evaluation.json").exists()


def test_a_run_directory_that_cannot_be_written_is_no_reason_to_stop(run, capsys):
    copy = Path(shutil.copytree(run, "copy"))
    (copy / "evaluation.json").mkdir()
    assert main(["eval", "--weights", "copy"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^samples +20$", out, re.MULTILINE) and "not written: copy/evaluation.json: cannot be" in out


# -- from Python --------------------------------------------------------------------------


def test_a_result_is_a_mapping_of_its_figures(run, picture_tree):
    """Nothing is written, and logging stays as it was."""
    before, files = list(logging.getLogger("plsc").handlers), set(run.rglob("*"))
    result = evaluate(run, metrics=["PerClassAccuracy", "ConfusionMatrix"])
    logits, labels = ours(run, picture_tree / "val")
    assert_figures(result, figures_of(logits, labels))
    assert list(result) == ["loss", "top1", "mean_class_top1", "classes", "samples"] and len(result) == 5
    assert result.about | dict(result) == result.to_dict() and result.error is None
    assert result.confusion.tolist() == confusion_matrix(labels, logits.argmax(axis=1), labels=range(4)).tolist()
    assert result.classes.samples.tolist() == [5] * 4
    assert result.class_names == [f"class_{c}" for c in range(4)]
    assert list(logging.getLogger("plsc").handlers) == before and set(run.rglob("*")) == files


def test_a_configuration_of_any_kind(run, picture_tree):
    """A dict with overrides, or a checked one, at another resolution and on other data."""
    tree = pictures_config(picture_tree, Path("none"))
    of_dict = evaluate(run, tree, overrides={"DataLoader.Eval.sampler.batch_size": 3}, data=picture_tree / "train")
    assert_figures(of_dict, figures_of(*ours(run, picture_tree / "train")))
    config = load(tree)
    assert_figures(evaluate(run, config, resolution=24), figures_of(*ours(run, picture_tree / "val", 24)))
    assert config.Model.arguments["img_size"] == 16, "the caller's configuration stays as it was"
    with pytest.raises(ConfigError, match="go with a recipe"):
        evaluate(run, config, overrides=["Global.seed=1"])


def test_an_open_number_of_classes_is_that_of_the_weights(run, picture_tree):
    """Model.class_num: auto, for weights and for an export."""
    tree = pictures_config(picture_tree, Path("none"))
    tree["Model"]["class_num"] = "auto"
    expected = figures_of(*ours(run, picture_tree / "val"))
    assert_figures(evaluate(run, tree), expected)
    export_model(run, "export")
    assert_figures(evaluate("export", tree), expected)


def test_a_single_failure_is_raised_and_one_of_several_is_in_its_row(run):
    with pytest.raises(CheckpointError, match="gone: no such file"):
        evaluate("gone")
    seen = []
    rows = evaluate_all(["gone", run], on_row=lambda rows: seen.append(len(rows)))
    assert "gone: no such file" in rows[0].error and rows[1].error is None and seen == [1, 2]


def test_missing_weights_are_reported_before_data_is_read(run, picture_tree, monkeypatch):
    """Of every row, before the first is measured."""
    monkeypatch.setattr("plsc.build.data.component", lambda *_, **__: pytest.fail("a data set was opened"))
    with pytest.raises(CheckpointError, match="gone: no such file"):
        evaluate("gone", pictures_config(picture_tree, Path("none")))
    damaged = Path("damaged.safetensors")
    damaged.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(damaged, pictures_config(picture_tree, Path("none")))


# -- what fails ---------------------------------------------------------------------------


def test_one_failing_among_several(run, other, picture_tree, capsys):
    """Missing, damaged, of another model: each is reported in its row, the rest are measured, exit code 1."""
    Path("damaged").mkdir()
    shutil.copy(run / "config.yaml", "damaged")
    Path("damaged/model.safetensors").write_bytes(b"no weights")
    report = evaluated(
        *("--weights", "gone", "--weights", "damaged", "--weights", run, "--weights", other, "--resolution", "16"),
        code=1,
    )["rows"]
    assert [row["weights"] for row in report] == ["gone", "damaged", str(run), str(other)]
    assert "gone: no such file or folder" in report[0]["error"] and "damaged" in report[1]["error"]
    for row, weights in ((report[2], run), (report[3], other)):
        assert "error" not in row
        assert_figures(row, figures_of(*ours(weights, picture_tree / "val")))
    out, err = capsys.readouterr()
    assert re.search(r"^gone +gone: no such file", out, re.MULTILINE) and "Traceback" not in out + err


def test_a_failing_data_set_among_several(run, picture_tree):
    """A picture that cannot be read ends its own row."""
    shutil.copytree(picture_tree / "val", "broken")
    Path("broken/class_2/003.jpg").write_bytes(b"no picture")
    report = evaluated("--weights", run, "--data", "broken", "--data", picture_tree / "val", code=1)["rows"]
    assert "class_2/003.jpg" in report[0]["error"] and "loss" not in report[0]
    assert report[1]["samples"] == 20 and "error" not in report[1]


def test_a_single_failing_checkpoint_is_exit_code_2(capsys):
    assert "gone: no such file or folder" in refused(capsys, "--weights", "gone")
    assert not Path("output").exists()


def test_all_failing_is_exit_code_2(capsys):
    text = refused(capsys, "--weights", "gone", "--weights", "lost")
    assert "gone: no such" in text and "lost: no such" in text


def test_all_failing_at_the_data_is_exit_code_2(run, picture_tree):
    """Rows that could begin, and failed all the same."""
    shutil.copytree(picture_tree / "val", "broken")
    Path("broken/class_2/003.jpg").write_bytes(b"no picture")
    report = evaluated("--weights", run, "--data", "broken", "--data", "again=broken", code=2)["rows"]
    assert all("class_2/003.jpg" in row["error"] for row in report)


def test_what_was_measured_is_kept_when_a_later_row_crashes(run, other, monkeypatch, capsys):
    """A fault of the program in the second row: its traceback, exit code 1, and the first row on disk."""
    measure, calls = Evaluator.run, []

    def failing(self, model, *arguments):
        calls.append(model)
        if len(calls) == 2:
            raise RuntimeError("a fault of the program")
        return measure(self, model, *arguments)

    monkeypatch.setattr(Evaluator, "run", failing)
    assert main(["eval", "--weights", str(run), "--weights", str(other), "--output", "result.json"]) == 1
    assert "a fault of the program" in capsys.readouterr().err
    [kept] = json.loads(Path("result.json").read_text())["rows"]
    assert kept["weights"] == str(run) and kept["samples"] == 20


WRONG = {
    "ending of the table": (["--output", "r.txt"], "--output r.txt: is written as .json, .csv, .md"),
    "ending of the classes": (["--per-class", "c.json"], "--per-class c.json: is written as .csv"),
    "ending of the confusion": (["--confusion", "c.pdf"], "--confusion c.pdf: is written as .csv, .png, .svg"),
    "folder as output": (["--output", "folder.json"], "--output folder.json: is a folder"),
    "metric": (["--metrics", "ECEE"], "no metric is called 'ECEE'; did you mean ECE?"),
    "RealAcc without labels": (["--metrics", "RealAcc"], "metric RealAcc: needs labels; give real (--real FILE)"),
    "real.json": (["--real", "gone.json"], "gone.json: no such file"),
    "data": (["--data", "gone"], "gone: no such folder, list file or recipe"),
    "named data": (["--data", "x=gone"], "gone: no such folder"),
    "recipe as data": (["--data", "gone.yaml"], "gone.yaml: neither a file nor a shipped recipe"),
    "recipe without Eval": (["--data", "train_only.yaml"], "the recipe has no DataLoader.Eval"),
    "class names": (["--per-class", "c.csv", "--class-names", "gone.txt"], "gone.txt: cannot be read"),
    "order of metrics": (["-o", "Metric.Eval=[ECE, TopkAcc]"], "ECE cannot be the first metric"),
    "recipe": (["-c", "gone.yaml"], "gone.yaml: neither a file nor a shipped recipe"),
}


@pytest.mark.parametrize(("arguments", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_reported(arguments, expected, run, picture_tree, capsys):
    Path("folder.json").mkdir()
    config = pictures_config(picture_tree, Path("elsewhere"))
    del config["DataLoader"]["Eval"]
    config["Global"]["eval_during_train"] = config["EMA"]["ema_eval"] = False
    write_config(Path("train_only.yaml"), config)
    assert expected in refused(capsys, "--weights", run, *arguments)


@pytest.mark.parametrize("text", ["0", "abc", "224,", "224;384", "-1", "1.5", "²"])
def test_a_resolution_that_is_none(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["eval", "--weights", "x", f"--resolution={text}"])
    assert caught.value.code == 2 and "is not a whole number above 0" in capsys.readouterr().err


def test_a_recipe_without_eval(run, picture_tree, capsys):
    config = pictures_config(picture_tree, Path("elsewhere"))
    del config["DataLoader"]["Eval"]
    config["Global"]["eval_during_train"] = config["EMA"]["ema_eval"] = False
    write_config(Path("c.yaml"), config)
    text = refused(capsys, "-c", "c.yaml", "--weights", run, "--resolution", "24")
    assert "DataLoader.Eval is missing" in text
    assert "by which pictures are prepared" in refused(capsys, "-c", "c.yaml", "--weights", run, "--data", picture_tree)


def test_a_resolution_of_oblong_pictures(run, picture_tree, capsys):
    config = pictures_config(picture_tree, Path("elsewhere"))
    config["Model"]["img_size"] = [16, 24]
    text = refused(capsys, "-c", write_config(Path("c.yaml"), config), "--weights", run, "--resolution", "24")
    assert "Model.img_size: is [16, 24]; another resolution needs a square one" in text


def test_averaged_weights_that_are_not_there(other, capsys):
    assert "holds no averaged weights" in refused(capsys, "--weights", other, "--ema")


# -- files --------------------------------------------------------------------------------


def test_csv_and_markdown_say_the_same(run, other):
    arguments = ["--weights", str(run), "--weights", "gone", "--weights", str(other), "--metrics", "ECE"]
    expected = evaluated(*arguments, code=1)["rows"]
    for name in ("r.csv", "r.md"):
        assert main(["eval", *arguments, "--output", name]) == 1
    with open("r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["weights"] for row in rows] == [str(run), "gone", str(other)]
    assert list(rows[0])[-1] == "error" and "no such file" in rows[1]["error"] and rows[1]["loss"] == ""
    for row, wanted in ((rows[0], expected[0]), (rows[2], expected[2])):
        assert float(row["loss"]) == wanted["loss"] and float(row["ece"]) == wanted["ece"] and row["error"] == ""
    header, rule, *lines = Path("r.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines)]
    assert cells[0] == ["weights", "loss", "top1", "ece", "samples", "error"]
    assert set(rule) <= set("|-: ") and cells[1][2] == f"{100 * expected[0]['top1']:.2f} %"
    assert cells[2][0] == "gone" and cells[2][-1].startswith("gone: no such file")


def test_what_no_number_is_becomes_null(capsys):
    """JSON has no NaN; the table shows it."""
    figures = {"top1": float("nan"), "loss": 1.0}
    row = Evaluation("a|b", False, None, None, 8, figures=figures, fractions=frozenset({"top1"}))
    write_table([row], "r.json", alone=True)
    assert json.loads(Path("r.json").read_text()) == {**row.about, "top1": None, "loss": 1.0}
    write_table([row], "r.md")
    assert "| a\\|b | nan % | 1 |" in Path("r.md").read_text()
    assert columns([row, row]) == [["weights", "top1", "loss"], *[["a|b", "nan %", "1"]] * 2]


def test_accuracy_class_by_class(run, picture_tree, capsys):
    logits, labels = ours(run, picture_tree / "val")
    evaluated("--weights", run, "--per-class", "sub/classes.csv")
    with open("sub/classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    right = np.bincount(labels[logits.argmax(axis=1) == labels], minlength=4)
    assert [row["name"] for row in rows] == [f"class_{c}" for c in range(4)]
    assert [(row["class"], row["samples"], row["right"]) for row in rows] == [
        (str(c), "5", str(right[c])) for c in range(4)
    ]
    assert [float(row["top1"]) for row in rows] == (right / 5).tolist()
    names = ["--per-class", "named.csv", "--class-names", "names.txt"]
    Path("names.txt").write_text("n00000001 apple\npear, green\nplum\n")
    assert "names.txt: has 3 class names, the model 4 classes" in refused(capsys, "--weights", run, *names)
    assert not Path("named.csv").exists()
    with open("names.txt", "a") as file:
        file.write("quince\n")
    evaluated("--weights", run, *names)
    with open("named.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["apple", "pear, green", "plum", "quince"]


def test_confusion_as_table_and_picture(run, other, picture_tree, capsys):
    """One file for each of several rows; printed where no file is asked for."""
    arguments = ["--weights", run, "--weights", other]
    evaluated(*arguments, "--confusion", "c.csv")
    for number, weights in ((1, run), (2, other)):
        logits, labels = ours(weights, picture_tree / "val")
        expected = confusion_matrix(labels, logits.argmax(axis=1), labels=range(4))
        with open(f"c-{number}.csv", newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["class", "name", "0", "1", "2", "3"]
        assert [[int(cell) for cell in row[2:]] for row in rows] == expected.tolist()
        assert [row[1] for row in rows] == [f"class_{c}" for c in range(4)]
    evaluated("--weights", run, "--confusion", "c.svg")
    drawn = Path("c.svg").read_text()
    assert drawn.count("<!-- class_0 -->") == 2 and "<!-- predicted class -->" in drawn, "named on both axes"
    capsys.readouterr()
    evaluated("--weights", run, "--metrics", "ConfusionMatrix")
    logits, labels = ours(run, picture_tree / "val")
    out = capsys.readouterr().out
    for c, row in enumerate(confusion_matrix(labels, logits.argmax(axis=1), labels=range(4))):
        if row.any():
            shown = re.search(rf"^{c} class_{c} +(.+)$", out, re.MULTILINE)[1].split()
            assert sum(int(cell) for cell in shown if cell != ".") == row.sum() == 5


def test_a_matrix_too_large_to_print_says_how_to_get_it():
    few = np.zeros([1000, 1000], int)
    few[[3, 700], [700, 700]] = [2, 5]
    header, *rows = confusion_text(few, None).splitlines()[1:]
    assert header.split() == ["3", "700"]
    assert [row.split() for row in rows] == [["3", ".", "2"], ["700", ".", "5"]]
    assert "--confusion FILE" in confusion_text(np.eye(51, dtype=int), None)


def test_an_output_that_cannot_be_written(run, monkeypatch, capsys):
    """Told before anything is measured."""
    monkeypatch.setattr(Evaluator, "run", None)
    Path("file").write_text("")
    for option, name in (("--output", "r.json"), ("--per-class", "c.csv"), ("--confusion", "c.png")):
        text = refused(capsys, "--weights", run, option, f"file/{name}")
        assert f"{option} file/{name}: cannot be written: file is not a folder" in text


@pytest.mark.parametrize(
    "weights", ["", "checkpoints/latest", "checkpoints/STEP", "checkpoints/STEP/model.safetensors"]
)
def test_a_run_that_was_moved_keeps_its_results(picture_tree, weights, monkeypatch, capsys):
    """Its config.yaml names the old place, relative to the directory that it was trained in."""
    write_config(Path("c.yaml"), pictures_config(picture_tree, Path("old") / "run"))
    assert main(["train", "-c", "c.yaml"]) == 0
    moved = Path.cwd() / "a: 'moved' run"
    Path("old/run").rename(moved)
    Path("old").rmdir()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    weights = moved / weights.replace("STEP", (moved / "checkpoints" / "latest").read_text().split()[0])
    assert main(["eval", "--weights", str(weights)]) == 0
    assert json.loads((moved / "evaluation.json").read_text())["samples"] == 20
    monkeypatch.setattr(Evaluator, "run", lambda *_: 1 / 0)
    assert main(["eval", "--weights", str(weights)]) == 1
    assert "ZeroDivisionError" in (moved / "errors" / "rank-0.txt").read_text()
    assert list(Path.cwd().iterdir()) == [], "nothing is written where the command runs"
    monkeypatch.undo()
    monkeypatch.chdir(moved.parent / "elsewhere")
    assert main(["eval", "--weights", str(weights), "-o", "Global.output_dir=asked"]) == 0
    assert list(Path.cwd().iterdir()) == [], "a folder for training has no say here"


# -- exports ------------------------------------------------------------------------------


def exported_as(monkeypatch, loaded):
    """Make the path `export.onnx` mean an export of this predictor."""
    monkeypatch.setattr(places, "exported_model", lambda path: loaded.path if str(path) == "export.onnx" else None)
    monkeypatch.setattr(predictor, "load_predictor", lambda path, **options: loaded)


def as_predictor(run, **changes):
    made = predictor.of_network(loading.load_model(run))
    for name, value in changes.items():
        if name in {field.name for field in dataclasses.fields(made)}:
            setattr(made, name, value)
        else:
            made.card = dataclasses.replace(made.card, **{name: value})
    return made


def test_an_export_is_measured_like_its_checkpoint(run, monkeypatch, capsys):
    expected = evaluated("--weights", run, "--metrics", "ECE")
    exported_as(monkeypatch, as_predictor(run))
    report = evaluated("-c", run / "config.yaml", "--weights", "export.onnx", "--metrics", "ECE")
    assert_figures(report, {name: expected[name] for name in ("loss", "top1", "ece", "samples")})
    assert "prepared otherwise" not in capsys.readouterr().out


def test_an_export_of_other_pictures_is_warned_of(run, monkeypatch, capsys):
    made = as_predictor(run)
    exported_as(monkeypatch, as_predictor(run, preprocess=made.card.preprocess.enlarged(32, 16)))
    evaluated("-c", run / "config.yaml", "--weights", "export.onnx")
    assert "prepared otherwise than DataLoader.Eval" in capsys.readouterr().out


def test_an_export_in_another_order_of_classes_is_measured_by_their_names(run, monkeypatch):
    order = [1, 0, 2, 3]
    made = as_predictor(run, class_names=[f"class_{c}" for c in order])
    forward = made.forward
    made.forward = lambda images: forward(images)[:, order]
    exported_as(monkeypatch, made)
    expected = evaluated("--weights", run)
    assert_figures(evaluated("-c", run / "config.yaml", "--weights", "export.onnx"), {"top1": expected["top1"]})


def test_an_export_of_other_classes_is_refused(run, monkeypatch, capsys):
    arguments = ("-c", run / "config.yaml", "--weights", "export.onnx")
    exported_as(monkeypatch, as_predictor(run, class_names=["class_0", "class_2", "rose", "tulip"]))
    text = refused(capsys, *arguments)
    assert "has classes that the weights do not have: class_1, class_3; they have class_0, class_2, rose, tulip" in text
    exported_as(monkeypatch, as_predictor(run, class_names=None, forward=lambda x: np.zeros([len(x), 5], "float32")))
    assert "has 5 classes, Model.class_num is 4" in refused(capsys, *arguments)


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory) -> list[Path]:
    """The run for Paddle Inference and, where its libraries are there, for onnxruntime."""
    folder = tmp_path_factory.mktemp("exports")
    formats = ["paddle", *["onnx"] * all(map(importlib.util.find_spec, ("paddle2onnx", "onnxruntime")))]
    for format in formats:
        plsc("export", "--weights", run, "--format", format, "--output", folder / format)
    return [folder / format for format in formats]


@pytest.mark.slow
def test_real_exports(run, exports):
    """Beside their checkpoint in one table."""
    weights = [argument for path in (run, *exports) for argument in ("--weights", path)]
    raw, *others = evaluated("-c", run / "config.yaml", *weights)["rows"]
    for exported in others:
        assert exported["loss"] == pytest.approx(raw["loss"], rel=1e-4) and exported["samples"] == raw["samples"] == 20


# -- in training --------------------------------------------------------------------------


def test_training_evaluates_with_every_metric():
    """Their figures stand in metrics.jsonl; the first one picks the best checkpoint."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 2, "eval_during_train": True, "output_dir": "trained"}
    tree["Metric"]["Eval"] = ["mAP", "PerClassAccuracy", "ECE", "ConfusionMatrix", "TopkAcc"]
    assert main(["train", "-c", str(write_config(Path("c.yaml"), tree))]) == 0
    [record] = metrics("trained", "eval")
    report = evaluated("--weights", "trained")
    names = {"mAP", "mAP_classes", "mean_class_top1", "classes", "ece", "top1", "top5"}
    assert names <= record.keys()
    assert {name: record[name] for name in names} == pytest.approx({name: report[name] for name in names}, rel=1e-6)
    assert '"metric": "mAP"' in Path("trained/checkpoints/best").read_text()


def test_what_ranks_a_whole_data_set_is_refused_in_training(capsys):
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 2, "output_dir": "trained"}
    tree["Metric"]["Train"] = ["TopkAcc", "mAP"]
    assert main(["train", "-c", str(write_config(Path("c.yaml"), tree))]) == 2
    assert "mAP ranks the samples of a whole data set; it belongs in Metric.Eval" in capsys.readouterr().err


# -- processes ----------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_processes_measure_the_same(run, other, exports, tmp_path):
    """Every metric, over data that two processes of batch 3 do not divide, with a failing row between the others."""
    weights = [run, "gone", other, *exports]
    arguments = [argument for path in weights for argument in ("--weights", path)]
    arguments += ["--metrics", "ECE,mAP,AUC,F1,PrecisionAt1"]
    arguments += ["-c", run / "config.yaml", "-o", "DataLoader.Eval.sampler.batch_size=3"]
    for name, processes in (("one", None), ("two", 2)):
        files = ["--output", f"{name}.json", "--per-class", f"{name}.csv", "--confusion", f"{name}-confusion.csv"]
        done = plsc("eval", *arguments, *files, processes=processes, cwd=tmp_path, check=False)
        assert done.returncode == 1 or processes, "the launcher's own exit code is its own affair"
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("one", "two"))
    assert len(one) == len(two) == len(weights) and "error" in one[1] and one[1] == two[1]
    measured = [number for number in range(len(weights)) if number != 1]
    for a, b in ((one[number], two[number]) for number in measured):
        assert a["samples"] == 20 and a.keys() == b.keys() >= {"ece", "mAP", "auc", "f1_macro", "mean_class_top1"}
        assert {k: v for k, v in b.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in a.items() if isinstance(v, float)}, rel=1e-5
        )
        assert [v for v in a.values() if not isinstance(v, float)] == [
            v for v in b.values() if not isinstance(v, float)
        ]
    for number in measured:
        for ending in (f"-{number + 1}.csv", f"-confusion-{number + 1}.csv"):
            assert (tmp_path / f"one{ending}").read_text() == (tmp_path / f"two{ending}").read_text()


class TwoProcesses(World):
    """A process of two, of which the other one has failed or not."""

    def __init__(self, other_failed: bool):
        super().__init__(size=2)
        self.other_failed = other_failed

    def barrier(self):
        pass

    def all_reduce_max(self, tensor):
        return paddle.maximum(tensor, paddle.to_tensor([int(self.other_failed)]))


def test_processes_give_up_a_row_together():
    common = evaluation._common_failure
    assert common(TwoProcesses(False), None) is None
    assert common(TwoProcesses(True), "mine") == "mine" == common(TwoProcesses(False), "mine")
    assert "another process" in common(TwoProcesses(True), None)


def test_a_failing_picture_ends_all_processes(run, monkeypatch):
    """During a row others may be waiting: the error is not noted, but ends the run."""

    def unreadable(*_):
        raise DataError("a picture of this process")

    monkeypatch.setattr(Evaluator, "run", unreadable)
    assert [row.error for row in evaluate_all([run, run])] == ["a picture of this process"] * 2
    monkeypatch.setattr(evaluation, "joined", lambda config: contextlib.nullcontext(TwoProcesses(False)))
    with pytest.raises(DataError):
        evaluate_all([run, run])


# -- real weights and pictures ------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.long
def test_deit_tiny_on_imagenet(tmp_path):
    """The figures of the shared data's README: top-1 68.4, top-5 91.2, ReaL 74.9 of the 475 with labels."""
    data = SHARED / "data" / "imagenet_val500"
    plsc(
        *("eval", "-c", "DeiT_tiny_patch16_224_eval", "-o", "Global.device=cpu"),
        *("--weights", SHARED / "weights" / "deit_tiny_patch16_224" / "google.npz"),
        *(
            "--data",
            f"imagenet={data / 'val_list.txt'}",
            "--real",
            data / "real.json",
            "--metrics",
            "ECE,PerClassAccuracy",
        ),
        *("--output", tmp_path / "deit.json"),
        cwd=tmp_path,
        timeout=900,
    )
    report = json.loads((tmp_path / "deit.json").read_text())
    assert report["data"] == "imagenet" and report["samples"] == 500 and report["real_samples"] == 475
    assert 100 * report["top1"] == pytest.approx(68.4, abs=0.5)
    assert 100 * report["top5"] == pytest.approx(91.2, abs=0.5)
    assert 100 * report["real_top1"] == pytest.approx(74.9, abs=0.5)
    assert report["mean_class_top1"] == pytest.approx(report["top1"]), "ten classes of fifty pictures each"
