"""Checkpoints: complete or absent, kept as asked, found as named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import files
from plsc.config import load
from plsc.engine import checkpoint
from plsc.engine.assembly import assemble
from plsc.engine.checkpoint import Checkpoints, Description
from plsc.engine.distributed import World
from plsc.errors import CheckpointError
from plsc.tensors import to_numpy
from tests.helpers import CHECKOUT, Part, clean_environment, gone, plsc, summed_anew, tiny_digits, write_config


def save(checkpoints: Checkpoints, step: int, value: float = 0.0, size: int = 4):
    parts = {"model": Part(w=np.full([size], value, "float32")), "optimizer": Part(), "progress": Part(step=step)}
    path = checkpoints.save(step, parts, Description(texts={"config.yaml": "Global: {}\n"}))
    checkpoints.prune()
    return path


@pytest.mark.parametrize(("keep", "left"), [(0, [2, 5]), (2, [2, 4, 5]), (-1, [1, 2, 3, 4, 5])])
def test_retention_keeps_latest_best_and_as_many_as_asked(tmp_path, keep, left):
    """Several checkpoints within one second do not collide."""
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 6):
        save(checkpoints, step)
        if step == 2:
            checkpoints.point("best", 2)
    assert checkpoints.steps() == left
    assert checkpoints.find("best").name == "step-00000002"
    assert checkpoints.find("latest").name == "step-00000005"


def test_arrays_come_back_whatever_their_layout(tmp_path):
    """safetensors would write a transposed view wrongly; ours does not."""
    array = np.arange(12, dtype="float32").reshape(3, 4).T
    assert not array.flags.c_contiguous
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {"model": Part(w=array)}, Description())
    np.testing.assert_array_equal(checkpoint.read(path).parts["model"]["w"], array)
    path = checkpoints.save(2, {"model": Part(w=to_numpy(paddle.to_tensor(2.5)))}, Description())
    assert checkpoint.read(path).parts["model"]["w"].shape == (), "a scalar, such as a counter among the buffers"


def test_a_run_directory_a_folder_and_a_pointer_mean_the_same(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    path = save(checkpoints, 3)
    for given in (
        path,
        tmp_path / "run",
        tmp_path / "run" / "checkpoints",
        tmp_path / "run" / "checkpoints" / "latest",
    ):
        assert checkpoint.locate(given) == path
    (tmp_path / "run" / "checkpoints" / "latest").unlink()
    assert checkpoint.locate(tmp_path / "run") == path
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.locate(tmp_path / "absent")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
def test_a_damaged_file_is_named(tmp_path, file):
    checkpoints = Checkpoints(tmp_path)
    parts = {"model": Part(w=np.zeros(5, "float32")), "optimizer": Part(**{"w|m": np.zeros(5, "float32")})}
    path = checkpoints.save(1, parts, Description())
    data = (path / file).read_bytes()
    (path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=file):
        checkpoint.read(path)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    """An error while writing is reported, and the folder holds only complete checkpoints."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(checkpoints, 2)
    assert checkpoints.steps() == [1]
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("failing", ["rename", "sync"])
def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path, monkeypatch, failing):
    """The new one cannot take its place, or its folder cannot be synced: one of the two is there, whole."""
    checkpoints = Checkpoints(tmp_path)
    path, replace, sync = save(checkpoints, 1, 1.0), os.replace, files.sync

    def fail(source, target=None):
        if source == (path.with_name(f".writing-{path.name}") if target else tmp_path):
            raise OSError(5, "Input/output error")
        return replace(source, target) if target else sync(source)

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if failing == "rename" else (files, "sync")), fail)
        with pytest.raises(CheckpointError, match="Input/output error"):
            save(checkpoints, 1, 2.0)
    value = 1.0 if failing == "rename" else 2.0
    assert checkpoint.read(path).parts["model"]["w"].tolist() == [value] * 4
    assert not list(tmp_path.glob(".writing-*"))


def test_a_kill_at_any_moment_leaves_a_complete_latest(tmp_path):
    """SIGKILL in the middle of saving, ten times: latest can always be read."""
    script = tmp_path / "saver.py"
    script.write_text(  # a process for each line that it reads, of a program that imports once
        "import itertools, os, signal, sys\n"
        "from tests.test_checkpoint import Checkpoints, save\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "for _ in sys.stdin:\n"
        "    if os.fork() == 0:\n"
        "        c = Checkpoints(sys.argv[1])\n"
        "        for step in itertools.count((c.steps() or [0])[-1] + 1):\n"
        "            save(c, step, float(step), 200_000)\n"
        "            print(os.getpid(), flush=True)\n"
    )
    folder, killed = tmp_path / "checkpoints", set()
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
    )
    for k in range(10):
        process.stdin.write(b"\n")
        process.stdin.flush()
        saver = next(pid for pid in map(int, process.stdout) if pid not in killed)
        time.sleep(0.01 + 0.013 * k)
        os.kill(saver, signal.SIGKILL)
        assert gone([saver])
        killed.add(saver)
        saved = checkpoint.read(Checkpoints(folder).find("latest"))
        assert set(saved.parts["model"]["w"].tolist()) == {float(saved.parts["progress"]["step"])}
    process.stdin.close()
    assert process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small finished run with evaluation and averaging."""
    folder = tmp_path_factory.mktemp("finished")
    tree = tiny_digits()
    tree["Global"] |= {"eval_during_train": True, "max_train_step": 6, "output_dir": str(folder / "run")}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    tree["FP16"] = {"level": "O2"}
    plsc("train", "-c", write_config(folder / "c.yaml", tree))
    return folder / "run"


def test_a_run_directory_holds_what_the_contract_says(run):
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "train.log", "environment.json", "checkpoints", "curves.png"} <= names
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    assert {p.name for p in latest.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "ema.safetensors",
        "trainer.json",
        "config.yaml",
        "preprocess.json",
        "classes.json",
        "checksums.json",
    }
    trainer = json.loads((latest / "trainer.json").read_text())
    assert trainer["format"] == 3 and trainer["files"] == ["model", "optimizer", "ema"]
    progress = trainer["parts"]["progress"]
    assert progress["step"] == 6 and progress["samples"] == 6 * 32
    assert json.loads((latest / "preprocess.json").read_text())["mean"] == [0.5]
    assert json.loads((latest / "classes.json").read_text()) == [str(d) for d in range(10)]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["world_size"] == 1 and environment["paddle"] and environment["command"]


def test_metrics_have_the_contracts_keys(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["kind"] == "train"]
    keys = {"step", "epoch", "loss", "top1", "top5", "lr", "images_per_second", "data_time_fraction", "grad_norm"}
    assert all(keys <= r.keys() for r in train)
    assert all(0.0 <= r["top1"] <= r["top5"] <= 1.0 and 0.0 <= r["data_time_fraction"] <= 1.0 for r in train)
    assert {r["weights"] for r in records if r["kind"] == "eval"} == {"raw", "ema"}


def test_half_precision_on_cpu_is_one_warning(run):
    log = (run / "train.log").read_text()
    assert log.count("FP16 asks for float16 O2") == 1 and "computes in float32" in log


@pytest.mark.smoke
@pytest.mark.parametrize("ema", [False, True])
def test_eval_repeats_the_evaluation_of_training(run, ema):
    """The command on the checkpoint gives the numbers of metrics.jsonl, as a table and as JSON."""
    done = plsc("eval", "--weights", run / "checkpoints" / "latest", *(["--ema"] if ema else []))
    written = json.loads((run / "evaluation.json").read_text())
    kind = "ema" if ema else "raw"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [r for r in records if r["kind"] == "eval" and r["weights"] == kind][-1]
    assert written["samples"] == 360
    for name in ("loss", "top1", "top5"):
        assert written[name] == pytest.approx(trained[name], rel=1e-6)
    assert f"{100 * written['top1']:.2f} %" in done.stdout


@pytest.mark.smoke
@pytest.mark.distributed
def test_eval_counts_every_sample_once_on_three_processes(run, tmp_path):
    """360 samples on 3 processes of batch 32 leave tails; loss and accuracy stay exact. For 2 see test_eval_cli.py."""
    plsc("eval", "--weights", run, "--output", tmp_path / "one.json")
    plsc("eval", "--weights", run, "--output", tmp_path / "many.json", processes=3, cwd=tmp_path)
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "many"))
    assert a["samples"] == b["samples"] == 360
    assert a["top1"] == b["top1"] and a["top5"] == b["top5"]
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)


def test_eval_without_weights_is_refused(tmp_path):
    """Random weights are never measured by mistake."""
    done = plsc("eval", "-c", write_config(tmp_path / "c.yaml", tiny_digits()), check=False)
    assert done.returncode == 2 and "no weights to evaluate are given" in done.stderr


def test_eval_refuses_weights_that_do_not_fit(run, tmp_path):
    """Another class count: an error, not chance accuracy."""
    tree = tiny_digits()
    tree["Model"]["class_num"] = 11
    config = write_config(tmp_path / "c.yaml", tree)
    done = plsc("eval", "-c", config, "--weights", run, check=False)
    assert done.returncode == 2 and "head.weight" in done.stderr and "Traceback" not in done.stderr


def test_finetune_resets_the_head_in_training_only(run, tmp_path):
    """Global.finetune trains a new head; evaluation with the same configuration keeps the trained one."""
    tree = tiny_digits()
    tree["Global"] |= {"finetune": True, "pretrained_model": str(run), "max_train_step": 3}
    tree["Global"]["output_dir"] = str(tmp_path / "tuned")
    config = write_config(tmp_path / "c.yaml", tree)
    done = plsc("train", "-c", config)
    assert "head.weight" in done.stdout and "trained from scratch" in done.stdout
    plsc("eval", "-c", config, "--weights", run, "--output", tmp_path / "e.json")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(r["top1"] for r in records if r["kind"] == "eval" and r["weights"] == "raw")
    assert json.loads((tmp_path / "e.json").read_text())["top1"] >= best - 1e-9


def test_resuming_another_model_is_refused(run, tmp_path):
    tree = tiny_digits()
    tree["Model"]["depth"] = 3
    tree["Global"] |= {"checkpoint": str(run), "output_dir": str(tmp_path / "out")}
    done = plsc("train", "-c", write_config(tmp_path / "c.yaml", tree), check=False)
    assert done.returncode == 2 and "another model" in done.stderr and "blocks.2" in done.stderr


OLD_RUN = Path(__file__).parent / "fixtures" / "run_of_plsc_3_0"


@pytest.mark.parametrize("by", ["resume", "checkpoint"])
def test_a_checkpoint_of_plsc_3_0_continues(tmp_path, by):
    """Written by plsc 3.0 at step 6 of 10, which went on as expected.jsonl and expected.safetensors say.

    Its dropout drew Paddle's random numbers, as the plain layers do.
    """
    out = tmp_path / "run"
    if by == "resume":
        shutil.copytree(OLD_RUN, out)
    start = "Global.resume=auto" if by == "resume" else f"Global.checkpoint={OLD_RUN}"
    options = ("-o", f"Global.output_dir={out}", "-o", start, "-o", "Global.cpu_forms=False")
    done = plsc("train", "-c", OLD_RUN / "config.yaml", *options)
    assert "after step 6" in done.stdout and "begins now" not in done.stdout and " W " not in done.stdout
    expected = [json.loads(line) for line in (OLD_RUN / "expected.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["step"] > 6]
    assert len(records) == len(expected) == 8
    for record, wanted in zip(records, expected, strict=True):
        record = {name: value for name, value in record.items() if not name.startswith("checkpoint_")}
        assert record.keys() == wanted.keys()
        for name in record.keys() - {"images_per_second", "data_time_fraction"}:
            text = isinstance(wanted[name], str)
            assert record[name] == (wanted[name] if text else pytest.approx(wanted[name], rel=1e-5))
    weights = load_file(out / "checkpoints" / "step-00000010" / "model.safetensors")
    for name, array in load_file(OLD_RUN / "expected.safetensors").items():
        ours = weights[name]
        if name.endswith("qkv.bias"):  # that of the keys has no gradient but rounding, which AdamW makes steps of
            ours, array = (np.delete(bias.reshape(3, -1), 1, axis=0) for bias in (ours, array))
        np.testing.assert_allclose(ours, array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(format=4), "format"),
        (lambda t: t.pop("files"), "files"),
        (lambda t: t.update(files=["../secret"]), "files"),
        (lambda t: t.update(files=["model", "optimizer", "ema", "teacher"]), "teacher.safetensors is missing"),
        (lambda t: t["parts"].update(progress=[]), "progress"),
        (lambda t: t["parts"]["progress"].pop("seed"), "progress: seed: Field required"),
        (lambda t: t["parts"]["progress"].pop("step"), "progress: step: Field required"),
        (lambda t: t["parts"]["ema"].clear(), "ema: KeyError"),
    ],
)
def test_a_damaged_trainer_json_is_named(run, tmp_path, change, message):
    """What a continued run needs and does not find is said, with the checkpoint's name, and no traceback."""
    copy = tmp_path / "copy"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    [step] = (copy / "checkpoints").glob("step-*")
    trainer = json.loads((step / "trainer.json").read_text())
    change(trainer)
    (step / "trainer.json").write_text(json.dumps(trainer))
    summed_anew(step)
    overrides = [f"Global.checkpoint={step}", f"Global.output_dir={tmp_path / 'out'}"]
    config = load(str(run / "config.yaml"), overrides)
    with pytest.raises(CheckpointError) as error:
        assemble(config, World())
    assert message in str(error.value) and str(step) in str(error.value)


def test_a_state_that_is_neither_arrays_nor_json_is_a_fault(tmp_path):
    """A part that returns a tensor is named, before anything is written."""
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="state of teacher: moments"):
        checkpoints.save(1, {"teacher": Part(moments={1, 2})}, Description())
    assert not list(tmp_path.iterdir())
