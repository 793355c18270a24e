"""A training step of plsc beside timm's in PyTorch and PLSC's own, on this machine's CPU, in one alternating run.

    python benchmarks/against_peers.py --peer-python /path/to/venv/bin/python
        [--models Ti S B] [--rounds 5] [--steps 3] [--markdown table.md]

Every side is a process of its own with the same model (class token, dropout 0), batch, picture size, float32, AdamW
with weight decay, and clipping by global norm; only one of them computes at a time. The peers' environment has torch
and timm (`pip install torch timm`); without it that side is left out. PLSC cannot be installed beside a present Paddle,
so its step is written out here as its sources have it (commit 041f27a and around): see `plsc_own`.

Each figure is a median over rounds. The ratios are of elapsed time; those of processor time, which other users of the
machine disturb less, stand beside them. Pin the whole run to compare on one core: `taskset -c 0 python …`.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"Ti": "tiny", "S": "small", "B": "base"}
SHAPES = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}  # width, heads
SIZE, CLASSES, WEIGHT_DECAY, CLIP = 224, 1000, 0.05, 1.0
REST = 0.3  # seconds between turns: OpenMP's threads of the side before keep a core busy for 0.2 s after their work
SIDES = {
    "plsc": "plsc, as `plsc train` runs it",
    "plsc_plain": "plsc, `Global.cpu_forms: False`",
    "timm": "timm, PyTorch eager",
    "plsc_own": "PLSC's own step",
}


# -- the sides: each returns a function of one step ------------------------------------------------


def plsc(model: str, batch: int, folder: Path, **changes: object) -> Callable[[], object]:
    """One update of plsc's engine, fetching the batch and watching the loss included."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import train_step  # type: ignore[import-not-found]

    from plsc import environment

    environment.import_paddle()
    environment.keep_freed_memory()
    trainer, batches = train_step.trainer(
        folder / "run", model=f"ViT_{NAMES[model]}_patch16_224", batch_size=batch, **changes
    )
    return lambda: trainer.advance(batches)


def timm(model: str, batch: int, folder: Path) -> Callable[[], object]:
    """timm's model and PyTorch's own optimizer and clipping, eager, at PyTorch's own settings."""
    import timm as peer  # type: ignore[import-not-found]
    import torch  # type: ignore[import-not-found]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = peer.create_model(f"vit_{NAMES[model]}_patch16_224", num_classes=CLASSES).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=WEIGHT_DECAY)
    images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.arange(batch)

    def step() -> None:
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plsc_own(model: str, batch: int, folder: Path) -> Callable[[], object]:
    """What PLSC does in a step, at the process settings it leaves alone.

    Its model (plsc/models/vision_transformer.py): queries, keys and values by a transpose of five dimensions, explicit
    attention. Its loop (plsc/engine/classification/train.py): a slice of the batch, backward, the norm read by the host
    to decide about clipping (plsc/core/grad_clip.py), an update parameter by parameter with three tensors made for each
    (plsc/optimizer/adamw.py), and the loss and two accuracies read by the host.
    """
    import numpy as np
    import paddle
    import paddle.nn.functional as F
    from paddle import nn

    width, heads = SHAPES[model]

    class Block(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, epsilon=1e-6) for _ in range(2))
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            tokens = x.shape[1]
            qkv = self.qkv(self.norm1(x)).reshape((-1, tokens, 3, heads, width // heads)).transpose((2, 0, 3, 1, 4))
            q, k, v = qkv[0], qkv[1], qkv[2]
            weights = F.softmax(q.matmul(k.transpose((0, 1, 3, 2))) * (width // heads) ** -0.5, axis=-1)
            mixed = weights.matmul(v).transpose((0, 2, 1, 3)).reshape((-1, tokens, width))
            x = x + self.proj(mixed)
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Model(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2D(3, width, 16, stride=16)
            self.cls_token = self.create_parameter((1, 1, width))
            self.pos_embed = self.create_parameter((1, (SIZE // 16) ** 2 + 1, width))
            self.blocks = nn.LayerList([Block() for _ in range(12)])
            self.norm, self.head = nn.LayerNorm(width, epsilon=1e-6), nn.Linear(width, CLASSES)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose((0, 2, 1))
            x = paddle.concat((self.cls_token.expand((x.shape[0], -1, -1)), x), axis=1) + self.pos_embed
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    network = Model()
    parameters: list[Any] = network.parameters()
    adamw: Any = paddle._C_ops.adamw_
    state = {p.name: (paddle.zeros_like(p), paddle.zeros_like(p)) for p in parameters}
    pixels = np.random.default_rng(0).normal(size=(batch, 3, SIZE, SIZE)).astype("float32")
    images, labels = paddle.to_tensor(pixels), paddle.arange(batch)
    counted = [0]

    def clip():
        squares = [paddle._C_ops.squared_l2_norm(p.grad) for p in parameters]
        norm = paddle.add_n(squares).sqrt()
        if norm <= CLIP:
            return
        for p in parameters:
            p.grad.multiply_(CLIP / (norm + 1e-6))

    def update():
        counted[0] += 1
        for p in parameters:
            first, second = state[p.name]
            rate, power1, power2 = (
                paddle.to_tensor(value, dtype="float32") for value in (1e-3, 0.9 ** counted[0], 0.999 ** counted[0])
            )
            adamw(
                *(p, p.grad, rate, first, second, None, power1, power2, None, None),
                *(0.9, 0.999, 1e-8, 1.0, WEIGHT_DECAY, True, False, 1000, False, False, False),
            )

    def step():
        logits = network(images[0:batch])
        loss = F.cross_entropy(logits, labels).mean()
        loss.backward()
        with paddle.no_grad():
            clip()
            update()
        network.clear_gradients()
        for k in (1, 5):
            paddle.metric.accuracy(F.softmax(logits), labels.unsqueeze(1), k=k).item()
        loss.item()

    return step


# -- the measurement -------------------------------------------------------------------------------


def serve(side: str, model: str, batch: int, folder: Path) -> None:
    """A side's process: a number of steps on each line of stdin, seconds elapsed and of processor a step on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    if side == "plsc_plain":
        step = plsc(model, batch, folder, cpu_forms=False)
    else:
        step = {"plsc": plsc, "timm": timm, "plsc_own": plsc_own}[side](model, batch, folder)
    for _ in range(2):
        step()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        count = int(line)
        elapsed, used = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        elapsed, used = time.perf_counter() - elapsed, time.process_time() - used
        print(json.dumps([elapsed / count, used / count]), file=answers, flush=True)


class Side:
    """A process of one side."""

    def __init__(self, name: str, python: str, model: str, batch: int, folder: Path):
        command = [python, str(Path(__file__).resolve()), "--serve", name, "--models", model, "--batch", str(batch)]
        self.name, self.log = name, folder / f"{name}.log"
        self.times: list[tuple[float, float]] = []
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--folder", str(folder / name)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._answer()

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended with {self._process.wait()}:\n{self.log.read_text()}")
        return line

    def measure(self, steps: int) -> None:
        time.sleep(REST)
        self._requests.write(f"{steps}\n")
        self._requests.flush()
        self.times.append(tuple(json.loads(self._answer())))

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    @property
    def elapsed(self) -> float:
        return statistics.median(elapsed for elapsed, _ in self.times)

    @property
    def used(self) -> float:
        return statistics.median(used for _, used in self.times)


def compared(sides: dict[str, str], model: str, arguments: argparse.Namespace) -> list[Side]:
    """The sides' processes after their measurement; the order turns round by round."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        running = []
        for which, python in sides.items():
            running.append(Side(which, python, model, arguments.batch, Path(name)))
            stack.callback(running[-1].close)
        for k in range(arguments.rounds):
            for side in running if k % 2 == 0 else reversed(running):
                side.measure(arguments.steps)
    return running


def has_timm(python: str) -> bool:
    done = subprocess.run([python, "-c", "import torch, timm"], capture_output=True, text=True)
    if done.returncode:
        print(f"{python} has no torch and timm, so timm is left out: {done.stderr.strip().splitlines()[-1]}")
    return done.returncode == 0


def rows(model: str, batch: int, measured: list[Side]) -> list[str]:
    """Lines of the Markdown table."""
    ours = measured[0]
    return [
        f"| ViT-{model}/16 | {SIDES[side.name]} | {1e3 * side.elapsed:.0f} | {batch / side.elapsed:.1f} "
        f"| {side.elapsed / ours.elapsed:.2f} | {side.used / ours.used:.2f} |"
        for side in measured
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with torch and timm; default: left out")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES), help="sizes of ViT, patch 16")
    parser.add_argument("--batch", type=int, default=8, help="pictures of an update")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="updates in one turn")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="plsc always takes part")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        arguments.folder.mkdir()
        serve(arguments.serve, arguments.models[0], arguments.batch, arguments.folder)
        return
    sides = {"plsc": sys.executable} | {side: sys.executable for side in SIDES if side in arguments.sides}
    if "timm" in sides:
        if arguments.peer_python is None:
            print("no --peer-python, so timm is left out")
            del sides["timm"]
        elif has_timm(arguments.peer_python):
            sides["timm"] = arguments.peer_python
        else:
            del sides["timm"]
    lines = [
        "| model | side | ms / step | images/s | time / plsc's | processor time / plsc's |",
        "|---|---|---|---|---|---|",
    ]
    print(f"batch {arguments.batch}, {SIZE} px, float32, {len(os.sched_getaffinity(0))} cores\n")
    print("\n".join(lines), flush=True)
    for model in arguments.models:
        lines += rows(model, arguments.batch, compared(sides, model, arguments))
        print("\n".join(lines[-len(sides) :]), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
