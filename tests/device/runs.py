"""Runs on the device and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import plsc
from plsc.cli import main
from tests.accelerator import build
from tests.device.target import DEVICE, PRETENDED
from tests.helpers import CHECKOUT, clean_environment, metrics, tiny_digits

# what a queue leaves of a machine that others use too: the launcher takes these for the pretend device's numbers
_SHARED_MACHINE = {f"{build.DEVICE.upper()}_VISIBLE_DEVICES": "4,5"}
RANDOM = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}


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


def stateful(steps: int = 16) -> dict:
    """Everything that holds state: dropout, accumulation, averaged weights."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["Global"] |= {"max_train_step": steps, "accum_steps": 2, "max_num_latest_checkpoint": -1}
    tree["EMA"] = {"decay": 0.9}
    return tree


def train(folder: Path, tree: dict, *, fp16: dict | None = None, device: str = DEVICE, **overrides) -> Path:
    """Train in this process; returns the run directory. `overrides` are sections, merged into the recipe's."""
    tree = {name: dict(section) for name, section in tree.items()}
    for name, section in overrides.items():
        tree[name] = {**tree.get(name, {}), **section}
    if fp16 is not None:
        tree["FP16"] = fp16
    tree["Global"] |= {"output_dir": str(folder), "device": device}
    plsc.train(plsc.load_config(_repeatable(tree)))
    return folder


def _repeatable(tree: dict) -> dict:
    """A recipe that computes the same twice on a GPU, where attention's gradient is otherwise summed in any order."""
    if not tree["Global"]["device"].startswith("gpu"):
        return tree
    return {**tree, "Global": {**tree["Global"], "flags": {"FLAGS_cudnn_deterministic": True}}}


def launched(folder: Path, jobs: list[dict], processes: int = 2) -> None:
    """The jobs of several.py one after the other in processes with a device each."""
    jobs = [{**job, "train": _repeatable(job["train"])} if "train" in job else job for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    # not --devices, whose numbers are those of CUDA_VISIBLE_DEVICES where that is set
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    launch += ["--log_dir", folder / "launch"]
    plug_in = build.settings(os.environ["CUSTOM_DEVICE_ROOT"]) | _SHARED_MACHINE if PRETENDED else {}
    done = subprocess.run(
        [*launch, CHECKOUT / "tests" / "device" / "several.py", folder / "jobs.json"],
        env=clean_environment(PYTHONPATH=str(CHECKOUT), **plug_in),
        capture_output=True,
        text=True,
        timeout=900,
    )
    logs = "".join(path.read_text()[-2000:] for path in sorted((folder / "launch").glob("workerlog.*")))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs


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


def assert_same(a: Path, b: Path, *, exact: bool, bound: float) -> None:
    """Two runs that compute the same: bit-equal where `exact`, else of losses that are near."""
    if not exact:
        np.testing.assert_allclose(losses(b), losses(a), rtol=bound)
        return
    assert losses(b).tolist() == losses(a).tolist()
    for part in ("model", "optimizer", "ema"):
        assert_bit_equal(weights(b, part), weights(a, part))
