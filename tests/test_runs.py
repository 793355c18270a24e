"""Runs after they were done: plsc compare, and plsc report's page."""

import csv
import json

import pytest

import plsc
from plsc.cli import main
from plsc.errors import ConfigError, DataError
from plsc.runs.compare import run_folders
from tests.helpers import tiny_digits, write_config


def write_run(folder, *, top1=0.5, rate=0.1, transforms=None, ema=False):
    """A run directory with two evaluations, the first of which was the better one."""
    made = tiny_digits()
    made["Global"]["output_dir"] = str(folder)
    made["LRScheduler"]["learning_rate"] = rate
    if transforms is not None:
        made["DataLoader"]["Train"]["dataset"]["transform_ops"] = transforms
    (folder / "checkpoints").mkdir(parents=True)
    write_config(folder / "config.yaml", made)
    records = []
    for step, share in ((10, 1.0), (20, 0.5)):
        train = {"loss": 2.0 / step, "top1": share, "lr": rate, "images_per_second": 100.0 + step, "grad_norm": 1.0}
        records.append({"kind": "train", "step": step, "epoch": 1, **train})
        for weights in ("raw", *(["ema"] if ema else [])):
            figures = {"loss": 1.25, "top1": top1 * share, "top5": 0.9, "samples": 360}
            records.append({"kind": "eval", "step": step, "epoch": 1, "weights": weights, **figures})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "checkpoints" / "best").write_text('step-00000010\n{"metric": "top1", "value": 0.5, "step": 10}\n')
    (folder / "environment.json").write_text(json.dumps({"plsc": "3", "device": "cpu", "threads": 2}))
    return folder


@pytest.fixture
def two(tmp_path):
    return [write_run(tmp_path / "a"), write_run(tmp_path / "b", top1=0.75, rate=0.2, ema=True)]


def test_figures_and_differences(two):
    comparison = plsc.compare(two)
    first, second = comparison.runs
    assert (first.name, first.step, first.metric, first.best, first.best_step) == ("a", 20, "top1", 0.5, 10)
    assert first.final == {"loss": 1.25, "top1": 0.25, "top5": 0.9}
    assert second.final["ema_top1"] == 0.375 and second.images_per_second == 115.0
    assert comparison.differences == {"LRScheduler.learning_rate": [0.1, 0.2]}, "not the output_dir"
    assert comparison.best is second and second.environment["device"] == "cpu"


def test_a_list_of_transforms_differs_where_it_differs(tmp_path):
    other = [{"NormalizeImage": {"mean": [0.25], "std": [0.5]}}, {"ToCHWImage": None}]
    comparison = plsc.compare([write_run(tmp_path / "a"), write_run(tmp_path / "b", transforms=other)])
    key = "DataLoader.Train.dataset.transform_ops"
    assert comparison.differences[f"{key}.0.NormalizeImage.mean"] == [None, [0.25]]
    assert comparison.differences[f"{key}.1.NormalizeImage.mean"] == [[0.5], None]


def test_tables(two, tmp_path, capsys):
    output = tmp_path / "out" / "compared.md"
    assert main(["compare", *map(str, two), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "25.00 %" in printed and "LRScheduler.learning_rate  0.1  0.2" in printed and "\nbest: b\n" in printed
    assert output.read_text().splitlines()[:2] == [
        "| run | updates | loss | top1 | top5 | ema_loss | ema_top1 | ema_top5 | best top1 | at update | images/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    plsc.compare(two).write(tmp_path / "compared.csv")
    with open(tmp_path / "compared.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a", "b"] and rows[0]["ema_top1"] == ""
    assert float(rows[1]["best"]) == 0.75 and float(rows[1]["LRScheduler.learning_rate"]) == 0.2
    with pytest.raises(ConfigError, match=r"is written as \.md, \.csv"):
        plsc.compare(two).write(tmp_path / "compared.txt")


def test_a_folder_of_runs_stands_for_them(two, tmp_path):
    assert run_folders([tmp_path]) == two and [run.name for run in plsc.compare([tmp_path]).runs] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no metrics\.jsonl in it"):
        plsc.compare([tmp_path / "empty"])


def test_runs_that_are_measured_otherwise_have_no_best(two):
    (two[1] / "checkpoints" / "best").write_text('step-00000010\n{"metric": "top5", "value": 0.9, "step": 10}\n')
    assert plsc.compare(two).best is None
    (two[1] / "checkpoints" / "best").unlink()
    comparison = plsc.compare(two)
    assert comparison.best.name == "a" and comparison.runs[1].best is None
