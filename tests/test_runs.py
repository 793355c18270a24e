"""Runs after they were done: plsc compare, and plsc report's page."""

import csv
import html.parser
import json

import numpy as np
import pytest

import plsc
from plsc.cli import main
from plsc.config import load
from plsc.config.yaml_tree import parse_file
from plsc.data.datasets.digits import Digits
from plsc.errors import ConfigError, DataError
from plsc.reporting import reporter
from plsc.reporting.analysis import analyse
from plsc.runs.records import run_folders
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


def test_curves_of_a_folder_of_runs(two, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("plsc.visualize.curves.draw_curves", lambda runs, output: drawn.append(runs) or output)
    assert main(["visualize", "curves", str(tmp_path), "--output", str(tmp_path / "curves.png")]) == 0
    assert drawn == [two]


def test_runs_that_were_evaluated_on_other_data_are_noted(two, tmp_path, capsys):
    assert plsc.compare(two).notes == []
    other = parse_file(two[0] / "config.yaml", "config.yaml")[0]
    other["DataLoader"]["Eval"]["dataset"] |= {"slice": "[:100]", "transform_ops": []}
    write_config(two[1] / "config.yaml", other)
    [note] = plsc.compare(two).notes
    assert "name different evaluation data (DataLoader.Eval.dataset.slice): " in note, "not their transforms"
    metrics = (two[1] / "metrics.jsonl").read_text()
    (two[1] / "metrics.jsonl").write_text(metrics.replace('"samples": 360', '"samples": 100'))
    assert main(["compare", *map(str, two), "--output", str(tmp_path / "compared.md")]) == 0
    count = "the runs were evaluated on different numbers of samples (360, 100): they do not compare"
    printed = capsys.readouterr().out
    assert f"\nnote: {count}\n" in printed and "best: " not in printed
    assert f"\nNote: {count}.\n" in (tmp_path / "compared.md").read_text()
    assert plsc.compare(two).csv().splitlines()[2].split(",")[8] == "100"
    text = plsc.report(two, tmp_path / "r.html").read_text()
    assert f'<p class="note">Note: {count}.</p>' in text


def test_runs_that_are_measured_otherwise_have_no_best(two):
    (two[1] / "checkpoints" / "best").write_text('step-00000010\n{"metric": "top5", "value": 0.9, "step": 10}\n')
    assert plsc.compare(two).best is None
    (two[1] / "checkpoints" / "best").unlink()
    comparison = plsc.compare(two)
    assert comparison.best.name == "a" and comparison.runs[1].best is None


# -- the report -----------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a page has: its texts, pictures and what is loaded from elsewhere; and that every element is closed."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.elsewhere, self.open, self.ids, self.targets = [], [], [], [], [], []
        self.labels = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            assert named["alt"]
            self.images.append(named["src"])
        if tag == "svg":
            self.labels.append(named["aria-label"])
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "a" and "href" in named:
            self.targets.append(named["href"].removeprefix("#"))
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith(("data:", "#")):
                self.elsewhere.append(value)
        assert tag != "script" and not any(name.startswith("on") for name in named)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "<run> & co"
    made = tiny_digits()
    made["Global"] |= {"output_dir": str(folder), "eval_during_train": True}
    plsc.train(load(made))
    return folder


def test_a_page_is_whole_by_itself_and_says_what_was_measured(trained, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", str(trained), "--output", str(output)]) == 0
    text = output.read_text()
    page = Page(text)
    assert page.headings == [
        "Results",
        "Curves",
        "Settings",
        "Accuracy by class",
        "Confusion",
        "Worst mistakes",
        "Samples after augmentation",
        "Environment",
    ]
    assert not page.elsewhere and set(page.targets) <= set(page.ids)
    assert len(page.images) == 24 + 24 and all(source.startswith("data:image/png;base64,") for source in page.images)
    assert "<title>Run &lt;run&gt; &amp; co</title>" in text and "default-src 'none'" in text
    assert [label.split(" over ")[0] for label in page.labels[:-1]] == [
        "Loss",
        "Accuracy",
        "Accuracy, top-5",
        "Learning rate",
        "Throughput, without evaluation and saving",
        "Gradient norm, before clipping",
    ]
    evaluation = plsc.evaluate(trained, metrics=["ConfusionMatrix"])
    analysis = analyse(trained, load(trained / "config.yaml"), averaged=False, samples=10**6, mistakes=5)
    np.testing.assert_array_equal(analysis.confusion, evaluation.confusion)
    assert f"top-1 {100 * evaluation['top1']:.2f} % of 360 samples" in text
    assert len(text) < 500_000


def test_mistakes_are_those_of_the_predictor(trained):
    """Class, prediction and probability of the worst ones, and that none is worse among the others."""
    analysis = analyse(trained, load(trained / "config.yaml"), averaged=False, samples=10**6, mistakes=5)
    data = Digits(split="test")
    predictor = plsc.load_predictor(trained)
    shares = predictor.predict([data[i].image for i in range(len(data))], topk=10)
    own = {}
    for i, answers in enumerate(shares):
        best = answers[0]
        if str(best.name) != str(data[i].label):
            own[i] = next(answer.probability for answer in answers if str(answer.name) == str(data[i].label))
    worst = sorted(own, key=lambda i: own[i])[:5]
    assert [mistake.index for mistake in analysis.mistakes] == worst
    first = analysis.mistakes[0]
    assert -first.wrongness == pytest.approx(own[worst[0]], rel=1e-4) and first.label == data[worst[0]].label
    np.testing.assert_array_equal(first.picture, data[worst[0]].image)


def test_a_part_of_the_samples_is_named_as_one(trained, tmp_path):
    text = plsc.report([trained], tmp_path / "r.html", samples=50).read_text()
    assert "of 50 samples of 360, spread over the data set" in text


def test_what_cannot_be_measured_is_named(two, tmp_path):
    text = plsc.report(two, tmp_path / "r.html").read_text()
    page = Page(text)
    assert "Not measured: " in text and "Classes and mistakes of b" in page.headings
    assert "LRScheduler.learning_rate" in text and "Best run: b." in text and len(page.labels) == 6
    assert len(page.images) == 24, "samples after augmentation need no weights"


def test_averaged_weights_are_measured_where_they_were_best(two):
    for name, raw, ema, expected in [("a", 0.5, 0.25, False), ("b", 0.25, 0.5, True)]:
        folder = next(run for run in two if run.name == name)
        lines = [
            {"kind": "eval", "step": 10, "epoch": 1, "weights": w, "loss": 1.0, "top1": v}
            for w, v in (("raw", raw), ("ema", ema))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert reporter._averaged(plsc.compare([folder]).runs[0]) is expected
