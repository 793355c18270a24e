"""What several test files use: real processes and small runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED = CHECKOUT.parent / "shared"

# a ViT small enough that a training step takes milliseconds
TINY_MODEL = {
    "name": "VisionTransformer",
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "class_num": 10,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}


def tiny_digits() -> dict:
    """A complete configuration on digits: global batch 32, 10 updates; callers change what they test."""
    transforms = [{"NormalizeImage": {"mean": [0.5], "std": [0.5]}}, {"ToCHWImage": None}]
    return {
        "Global": {
            "device": "cpu",
            "seed": 7,
            "epochs": 1,
            "max_train_step": 10,
            "print_batch_step": 1,
            "eval_during_train": False,
            "save_interval": 0,
            "cpu_threads": 1,
        },
        "Model": dict(TINY_MODEL),
        "Loss": {"Train": [{"CELoss": {}}], "Eval": [{"CELoss": {}}]},
        "LRScheduler": {"name": "Cosine", "learning_rate": 0.002, "warmup_steps": 2},
        "Optimizer": {
            "name": "AdamW",
            "weight_decay": 0.05,
            "no_weight_decay": ["bias", "norm"],
            "grad_clip": {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0},
        },
        "DataLoader": {
            "Train": {
                "dataset": {"name": "Digits", "split": "train", "transform_ops": [{"RandShift": {}}, *transforms]},
                "sampler": {"name": "DistributedBatchSampler", "batch_size": 32, "drop_last": False, "shuffle": True},
                "loader": {"num_workers": 0},
            },
            "Eval": {
                "dataset": {"name": "Digits", "split": "test", "transform_ops": transforms},
                "sampler": {"name": "DistributedBatchSampler", "batch_size": 32},
                "loader": {"num_workers": 0},
            },
        },
        "Metric": {"Train": [{"TopkAcc": {"topk": [1, 5]}}], "Eval": [{"TopkAcc": {"topk": [1, 5]}}]},
    }


def write_config(path: Path, tree: dict) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def clean_environment(**extra) -> dict:
    """The environment without what a launcher or another test has left."""
    left_out = ("PADDLE_", "FLAGS_", "OMP_", "MKL_DEBUG")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return {**env, "PYTHONUNBUFFERED": "1", **extra}


def command(arguments, processes: int | None = None, log_dir: Path | None = None) -> list[str]:
    """`plsc …`, or with `processes` the same through paddle.distributed.launch and tools/."""
    name, *rest = [str(a) for a in arguments]
    if processes is None:
        return [sys.executable, "-m", "plsc", name, *rest]
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    return [*launch, "--log_dir", str(log_dir), str(CHECKOUT / "tools" / f"{name}.py"), *rest]


def plsc(*arguments, processes=None, cwd=None, timeout=180, check=True, log_dir=None, env=None):
    """Run plsc in processes of its own; returns the CompletedProcess with text output."""
    if processes is not None and log_dir is None:
        log_dir = Path(cwd or ".") / "launch_log"
    done = subprocess.run(
        command(arguments, processes, log_dir),
        cwd=cwd,
        env=clean_environment(**{"PYTHONPATH": str(CHECKOUT), **(env or {})}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode} of {arguments}:\n{done.stdout}\n{done.stderr}")
    return done


class Part:
    """A part of a checkpoint whose state is what it was given."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state) -> None:
        self.state = dict(state)


def metrics(run_directory, kind: str = "train") -> list[dict]:
    """The records of one kind in a run's metrics.jsonl."""
    lines = (Path(run_directory) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
