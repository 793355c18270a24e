"""What several test files use: real processes and small runs."""

import atexit
import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
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


@functools.cache
def _forked() -> str:
    """The program `plsc` whose processes are forks of one that has imported Paddle, see tests/plsc_server.py."""
    from tests.plsc_server import Commands

    folder = tempfile.TemporaryDirectory(prefix="plsc-commands-")
    commands = Commands(Path(folder.name) / "bin", {"train": []})
    atexit.register(folder.cleanup)
    atexit.register(commands.close)
    return str(Path(folder.name) / "bin" / "plsc")


def plsc(*arguments, processes=None, cwd=None, timeout=180, check=True, log_dir=None, env=None):
    """Run plsc in processes of its own; returns the CompletedProcess with text output.

    One process in the usual environment is a fork, which spares the seconds that importing Paddle takes; any `env`,
    if empty, makes a fresh process.
    """
    if processes is None and env is None:
        words = [_forked(), *map(str, arguments)]
    else:
        words = command(arguments, processes, log_dir or Path(cwd or ".") / "launch_log")
    done = subprocess.run(
        words,
        cwd=cwd,
        env=clean_environment(**{"PYTHONPATH": str(CHECKOUT), **(env or {})}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode} of {arguments}:\n{done.stdout}\n{done.stderr}")
    return done


def launched(folder: Path, jobs: list[tuple[str, dict]], processes: int) -> None:
    """Train recipes one after the other in the same processes; each run's folder has the job's name."""
    for name, tree in jobs:
        tree["Global"] = {"resume": "auto", **tree["Global"], "output_dir": str(folder / name)}
    file = folder / f"jobs-{processes}.json"
    file.write_text(json.dumps([{"train": tree} for _, tree in jobs]))
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*launch, "--log_dir", folder / f"launch-{processes}", CHECKOUT / "tests" / "device" / "several.py", file],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def stopped(tree: dict, step: int) -> dict:
    return {**tree, "Global": {**tree["Global"], "max_train_step": step}}


@contextlib.contextmanager
def log_texts(level: int):
    """Context in which the texts of plsc's log lines from a level on are collected, however its logger is set up."""
    texts: list[str] = []
    handler = logging.Handler(level)
    handler.addFilter(lambda record: texts.append(record.getMessage()) or False)
    logger = logging.getLogger("plsc")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level, before or level))
    yield texts
    logger.removeHandler(handler)
    logger.setLevel(before)


class Part:
    """A part of a checkpoint whose state is what it was given."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state) -> None:
        self.state = dict(state)


def summed_anew(checkpoint: Path) -> None:
    """Write a checkpoint's checksums.json anew, of its files as a test has changed them."""
    from plsc import checksums

    folder = checksums.SummedFolder(checkpoint)
    for file in sorted(checkpoint.iterdir()):
        if file.name != checksums.FILE:
            content = file.read_bytes()
            with folder.open(file.name) as summed:
                summed.write(content)
    folder.finish(int(checkpoint.name.split("-")[1]))


def metrics(run_directory, kind: str = "train") -> list[dict]:
    """The records of one kind in a run's metrics.jsonl."""
    lines = (Path(run_directory) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# -- runs in the background ----------------------------------------------------------------


def start(tmp_path, tree, *overrides, processes=None):
    """A run in the background; returns (Popen, run directory). Its output goes to output.txt."""
    config = write_config(tmp_path / "run.yaml", tree)
    out = tmp_path / "run"
    arguments = ["train", "-c", config, "-o", f"Global.output_dir={out}"]
    for override in overrides:
        arguments += ["-o", override]
    with open(tmp_path / "output.txt", "w") as file:
        started = subprocess.Popen(
            command(arguments, processes, tmp_path / "log"),
            cwd=tmp_path,
            env=clean_environment(PYTHONPATH=str(CHECKOUT)),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return started, out


def wait_for_step(run, step, timeout=60):
    """Until metrics.jsonl of a run directory has a step at or after `step`."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            if metrics(run)[-1]["step"] >= step:
                return
        except (OSError, IndexError, json.JSONDecodeError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach step {step}")


def children(pid: int) -> list[int]:
    """Processes below `pid`, at any depth."""
    collected, queue = [], [pid]
    while queue:
        parent = queue.pop()
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as file:
                        if int(file.read().rsplit(")", 1)[1].split()[1]) == parent:
                            collected.append(int(entry))
                            queue.append(int(entry))
                except OSError:
                    continue
    return collected


def gone(pids, timeout=15) -> bool:
    """Whether all these processes have ended, at most `timeout` seconds later."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.1)
    return False


def rank_of(pid: int) -> str | None:
    """The rank of a process that runs tools/train.py under the launcher; None for any other."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"train.py" not in file.read():
                return None
    except OSError:
        return None
    return variables.get(b"PADDLE_TRAINER_ID", b"").decode() or None


class TooSlow(BaseException):
    """Of `within`; no except clause for errors catches it."""


@contextmanager
def within(seconds: float):
    """Context that ends with TooSlow where its block takes longer, also where it waits."""

    def stop(*_):
        raise TooSlow(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
