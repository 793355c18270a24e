"""Global.device: names, what is refused, and several runs in one process."""

import gc
import json
import os

import paddle
import pytest

import plsc
from plsc.errors import DeviceError
from tests.accelerator import build
from tests.amp.runs import column, half, train
from tests.helpers import plsc as plsc_command
from tests.helpers import tiny_digits, write_config


def short() -> dict:
    tree = tiny_digits()
    tree["Global"]["max_train_step"] = 2
    return tree


@pytest.mark.parametrize("name", [build.DEVICE, f"{build.DEVICE}:1"])
def test_a_run_is_on_the_device_it_names(tmp_path, name):
    number = int(name.partition(":")[2] or 0)
    paddle.device.reset_max_memory_allocated(f"{build.DEVICE}:{number}")
    run = train(tmp_path / "run", short(), fp16=half("O2"), device=name)
    assert f"on 1 x {name} in float16 (O2);" in (run / "train.log").read_text()
    assert column(run, "memory_bytes")[-1] > 10_000
    assert paddle.device.max_memory_allocated(f"{build.DEVICE}:{number}") > 10_000
    assert json.loads((run / "environment.json").read_text())["device"] == name
    assert paddle.get_device() == f"{build.DEVICE}:0", "the process's own device is as before"


@pytest.mark.parametrize("name", [f"{build.DEVICE}:2", "gpu", "xpu", "mine"])
def test_a_device_that_is_not_there(tmp_path, name):
    with pytest.raises(DeviceError, match=rf"Global\.device is '{name}'(?s:.*)npu"):
        train(tmp_path / "run", short(), device=name)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_half_precision_that_paddle_leaves_out_is_refused(tmp_path, level):
    """Paddle would only warn, and train in float32: it knows bfloat16 for devices of a few names."""
    tree = {**short(), "FP16": {"level": level, "dtype": "bfloat16"}}
    tree["Global"] |= {"device": "mine", "output_dir": str(tmp_path / "run")}
    config = write_config(tmp_path / "run.yaml", tree)
    env = build.settings(os.environ["CUSTOM_DEVICE_ROOT"]) | {"PRETEND_NAME": "mine"}
    done = plsc_command("train", "-c", config, env=env, check=False)
    assert done.returncode == 2
    assert "FP16.dtype is bfloat16, which Paddle does not have on mine:0" in done.stderr
    assert "FP16.level=O0" in done.stderr
    plsc_command("train", "-c", config, "-o", "FP16.dtype=float16", env=env)


def test_runs_one_after_the_other_leave_no_memory(tmp_path):
    """Paddle's list of weights with float32 gradients would keep every model of the process."""
    used = []
    for number in range(4):
        train(tmp_path / str(number), short(), fp16=half("O2"))
        gc.collect()
        used.append(paddle.device.memory_allocated(build.DEVICE))
    assert used[3] <= used[1]


def test_precisions_one_after_the_other(tmp_path):
    """Each run computes what it computes alone, whatever ran before it in the process."""
    policies = {"O2": half("O2"), "half": half("O2-half-gradients"), "O1": half("O1", "bfloat16"), "float32": None}
    first = {name: column(train(tmp_path / name, short(), fp16=fp16), "loss") for name, fp16 in policies.items()}
    for name in reversed(policies):
        again = train(tmp_path / f"{name} again", short(), fp16=policies[name])
        assert column(again, "loss") == first[name]


def test_auto_is_not_a_plug_in(tmp_path):
    """auto takes a GPU or the CPU; a plug-in device is asked for by name."""
    run = train(tmp_path / "run", short(), device="auto")
    assert "on 1 x cpu in float32;" in (run / "train.log").read_text()
    assert isinstance(plsc.evaluate(run)["loss"], float)
