"""Runs on the pretend accelerator and what they leave."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import plsc
from plsc.cli import main
from tests.accelerator import build
from tests.accelerator.build import DEVICE
from tests.helpers import CHECKOUT, clean_environment, metrics, tiny_digits

POLICIES = {
    "O1": {"level": "O1"},
    "O2": {"level": "O2"},
    "O2-half-gradients": {"level": "O2", "master_grad": False},
    "O2-no-masters": {"level": "O2", "master_weight": False, "master_grad": False},
}


RANDOM = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}
NO_OVERFLOW = {"init_loss_scaling": 1024.0}


def half(policy: str, dtype: str = "float16", **scaling) -> dict:
    return {"dtype": dtype, **POLICIES[policy], "GradScaler": {**NO_OVERFLOW, **scaling}}


def digits(steps: int = 40) -> dict:
    """Learns smoothly: float32 rounding of another order changes its losses by less than 1e-4."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": steps, "epochs": 4}
    tree["Model"] |= {"embed_dim": 64, "patch_size": 2}
    tree["LRScheduler"] |= {"learning_rate": 0.001, "warmup_steps": 5}
    train_data = tree["DataLoader"]["Train"]
    train_data["sampler"]["batch_size"] = 64
    train_data["dataset"]["transform_ops"] = train_data["dataset"]["transform_ops"][1:]  # no random shift
    return tree


def train(folder: Path, tree: dict, *, fp16: dict | None = None, device: str = DEVICE, **overrides) -> Path:
    """Train in this process; returns the run directory. `overrides` are sections, merged into the recipe's."""
    tree = {name: dict(section) for name, section in tree.items()}
    for name, section in overrides.items():
        tree[name] = {**tree.get(name, {}), **section}
    if fp16 is not None:
        tree["FP16"] = fp16
    tree["Global"] |= {"output_dir": str(folder), "device": device}
    plsc.train(plsc.load_config(tree))
    return folder


def launched(folder: Path, jobs: list[dict], processes: int = 2) -> None:
    """The jobs of several.py one after the other in processes with a device each."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    env = clean_environment(PYTHONPATH=str(CHECKOUT), **build.settings(os.environ["CUSTOM_DEVICE_ROOT"]))
    done = subprocess.run(
        [*launch, "--log_dir", folder / "launch", CHECKOUT / "tests" / "amp" / "several.py", folder / "jobs.json"],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def command(*arguments) -> None:
    """Run a command of plsc in this process."""
    assert main([str(argument) for argument in arguments]) == 0


def losses(run: Path) -> np.ndarray:
    return np.array([record["loss"] for record in metrics(run)])


def column(run: Path, name: str) -> list:
    """A figure of every update, None where the log has none."""
    return [record.get(name) for record in metrics(run)]


def weights(run: Path, part: str = "model", step: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint, the latest unless a step is given."""
    folder = run / "checkpoints"
    name = (folder / "latest").read_text().strip() if step is None else f"step-{step:08d}"
    files = sorted((folder / name).glob(f"{part}*.safetensors"))  # one, or a share of each process
    return {name: array for file in files for name, array in load_file(file).items()}


def assert_bit_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()]
    assert not different


def kernels() -> dict[str, int]:
    """How often each kernel ran on the device since the last call, by name and type: {"matmul float16": 12, …}.

    Copies between host and device are counted with them, and how often the host waited.
    """
    lines = (line.split(" ", 1) for line in _lines_of("pretend_counts"))
    return {what: int(count) for count, what in lines}


def events() -> list[str]:
    """What the host asked of the device since the last call, in order: "kernel matmul float16", "copy to host", …"""
    return _lines_of("pretend_notes")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(os.environ["CUSTOM_DEVICE_ROOT"]) / "libpretend.so"))


def _lines_of(function: str) -> list[str]:
    called = getattr(_library(), function)
    called.restype = ctypes.c_char_p
    return called().decode().splitlines()


@contextlib.contextmanager
def watched_waits() -> Iterator[dict[str, int]]:
    """Context that fills {"copy to host at plsc/engine/guard.py:26 watch": 1, …}: where the host waits, how often."""
    seen: dict[str, int] = {}

    def tell(what: bytes) -> None:
        ours = [frame for frame in traceback.extract_stack()[:-1] if Path(frame.filename).is_relative_to(CHECKOUT)]
        place = ours[-1]
        where = f"{Path(place.filename).relative_to(CHECKOUT)}:{place.lineno} {place.name}"
        seen[f"{what.decode()} at {where}"] = seen.get(f"{what.decode()} at {where}", 0) + 1

    called = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(tell)
    _library().pretend_on_wait(called)
    try:
        yield seen
    finally:
        _library().pretend_on_wait(None)
