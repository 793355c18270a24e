"""Evaluation, prediction and export of runs on the device."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

import plsc
from tests.device.runs import command, digits, losses, train, weights
from tests.device.target import BOUNDS, DEVICE, MAIN, ON_CPU, Precision
from tests.helpers import metrics

CPU = {"Global.device": "cpu"}


@pytest.fixture(scope="module", params=[MAIN[0], MAIN[2], MAIN[3]], ids=str)
def learned(request, tmp_path_factory):
    """Precision, and the folder of a run in it: with averaged weights, evaluated while it trained."""
    precision = request.param
    if precision.missing:
        pytest.skip(precision.missing)
    tree = digits(60)
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 60, "eval_unit": "step"}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    tree["LRScheduler"]["learning_rate"] = 0.003
    folder = tmp_path_factory.mktemp("learned") / "run"
    before = paddle.get_device()
    train(folder, tree, fp16=precision.fp16())
    paddle.set_device(before)
    return precision, folder


@pytest.mark.parametrize("ema", [False, True])
def test_evaluation(learned, repeats, ema):
    """On the device the figures of training; on the CPU, in float32, the same within the precision."""
    precision, run = learned
    (logged,) = [r for r in metrics(run, "eval") if r["weights"] == ("ema" if ema else "raw")]
    assert logged["top1"] > 0.4
    here = plsc.evaluate(run, ema=ema)
    assert here["samples"] == logged["samples"] == 360
    if repeats and not ON_CPU:
        assert (here["loss"], here["top1"]) == (logged["loss"], logged["top1"])
    assert here["loss"] == pytest.approx(logged["loss"], rel=1e-5 if precision.dtype == "float32" else 1e-3)
    there = plsc.evaluate(run, ema=ema, overrides=CPU)
    assert here["loss"] == pytest.approx(there["loss"], abs=precision.bounds.export)
    assert abs(here["top1"] - there["top1"]) <= (2 if precision.dtype == "float32" else 4) / 360


@pytest.mark.parametrize("numbers", ["fp32", "fp16"])
@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_export(learned, tmp_path, format, numbers):
    """The float32 weights of a run are exported, and measure as it does; Paddle's export runs on the device too."""
    _, run = learned
    bound = BOUNDS["float32" if numbers == "fp32" else "float16"].export
    out = tmp_path / "export"
    command("export", "--weights", run, "--output", out, "--format", format, "--precision", numbers)
    there = plsc.evaluate(run, overrides=CPU)
    for device in ["cpu"] if format == "onnx" or numbers == "fp16" else ["cpu", DEVICE]:
        here = plsc.evaluate(out, str(run / "config.yaml"), overrides={"Global.device": device})
        assert here["samples"] == 360
        assert here["loss"] == pytest.approx(there["loss"], abs=bound), device


@pytest.mark.parametrize("precision", [Precision("float16", "O2-no-masters")], ids=str)
def test_weights_that_are_half_precision(tmp_path, precision):
    """Without masters a checkpoint holds float16; it is evaluated, exported and trained on like any other."""
    tree = digits(5)
    run = train(tmp_path / "run", tree, fp16=precision.fp16())
    assert "float16" in {array.dtype.name for array in weights(run).values()}
    command("export", "--weights", run, "--output", tmp_path / "export")
    device, cpu = (plsc.evaluate(run, overrides={"Global.device": name}) for name in (DEVICE, "cpu"))
    export = plsc.evaluate(tmp_path / "export", str(run / "config.yaml"), overrides=CPU)
    assert device["loss"] == pytest.approx(cpu["loss"], abs=1e-3)
    assert export["loss"] == pytest.approx(cpu["loss"], abs=1e-5)
    tuned = train(tmp_path / "tuned", tree, device="cpu", Global={"pretrained_model": str(run)})
    assert losses(tuned)[0] < losses(run)[0] - 0.01


@pytest.mark.parametrize("export", [False, True])
def test_prediction(learned, tmp_path, export):
    """The same classes as on the CPU, from weights and from an export in Paddle Inference."""
    _, path = learned
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype="uint8")).save(pictures / f"{i}.png")
    if export:
        command("export", "--weights", path, "--output", tmp_path / "export")
        path = tmp_path / "export"
    rows = {}
    for device in dict.fromkeys((DEVICE, DEVICE if ON_CPU else f"{DEVICE}:0", "cpu")):
        output = tmp_path / "rows.jsonl"
        command("predict", pictures, "--weights", path, "--device", device, "--output", output)
        rows[device] = [json.loads(line) for line in output.read_text().splitlines()]
    for a, b in zip(rows[DEVICE], rows["cpu"], strict=True):
        assert [c["class"] for c in a["predictions"]] == [c["class"] for c in b["predictions"]]
