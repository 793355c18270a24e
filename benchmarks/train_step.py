"""What the engine costs, what compilation and processes gain, measured side by side on this machine.

    python benchmarks/train_step.py [--rounds 5] [--steps 4]

Each comparison alternates its sides in one run and prints medians and their ratio; single figures
of a shared machine mean little. The model is ViT-Ti/16 at 224 px, batch 8, float32, dropout 0.
It takes about four minutes on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plsc import environment  # noqa: E402 - the checkout comes first

MODEL, BATCH, SIZE, CLASSES = "ViT_tiny_patch16_224", 8, 224, 1000


def recipe(folder: Path, *, model: str = MODEL, batch_size: int = BATCH, steps: int = 1000) -> dict:
    """A run on noise held in memory, so that reading files plays no part."""
    transforms = [{"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}, {"ToCHWImage": None}]
    return {
        "Global": {
            "device": "cpu",
            "max_train_step": steps,
            "output_dir": str(folder),
            "save_interval": 0,
            "print_batch_step": 4,
        },
        "Model": {"name": model, "img_size": SIZE, "class_num": CLASSES},
        "Loss": {"Train": [{"CELoss": {}}]},
        "LRScheduler": {"learning_rate": 1e-3},
        "Optimizer": {"name": "AdamW", "weight_decay": 0.05, "grad_clip": {"clip_norm": 1.0}},
        "DataLoader": {
            "Train": {
                "dataset": {
                    "name": "RandomPixels",
                    "height": SIZE,
                    "width": SIZE,
                    "classes": CLASSES,
                    "transform_ops": transforms,
                },
                "sampler": {"batch_size": batch_size, "shuffle": True, "drop_last": True},
            }
        },
    }


def trainer(folder: Path, *, model: str = MODEL, batch_size: int = BATCH, **changes):
    """A Trainer ready to advance, and its batches."""
    import yaml

    from plsc.config import load
    from plsc.engine.assembly import assemble
    from plsc.engine.distributed import World

    tree = recipe(folder, model=model, batch_size=batch_size)
    tree["Global"].update(changes)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    made = assemble(load(str(folder / "recipe.yaml")), World.start("cpu", timeout=1800.0))
    made.model.train()
    return made, made.feed.loader.run(made.sampler.batches(0))


def bare_loop():
    """The same model, loss, optimizer and clipping in Paddle's own words; returns a function of one step."""
    import numpy as np
    import paddle

    from plsc.loading import create_model

    model = create_model(MODEL, img_size=SIZE, class_num=CLASSES)
    optimizer = paddle.optimizer.AdamW(
        1e-3, parameters=model.parameters(), weight_decay=0.05, grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)
    )
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(size=(BATCH, 3, SIZE, SIZE)).astype("float32"))
    labels = paddle.to_tensor(rng.integers(0, CLASSES, BATCH))

    def step():
        loss = paddle.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss.item()

    return step


def seconds(function, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        function()
    return (time.perf_counter() - start) / steps


def alternate(sides: dict, rounds: int, steps: int) -> dict[str, float]:
    """Median seconds a step of each side; the order of sides turns round by round."""
    for function in sides.values():
        seconds(function, 2)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds):
        names = list(sides)
        for name in names if k % 2 == 0 else reversed(names):
            times[name].append(seconds(sides[name], steps))
    return {name: statistics.median(values) for name, values in times.items()}


def gemm_rate() -> float:
    """Best float32 rate of a 2048³ product on this machine's threads, FLOP/s."""
    import paddle

    a = paddle.randn([2048, 2048])
    paddle.matmul(a, a)
    best = min(seconds(lambda: paddle.matmul(a, a), 1) for _ in range(10))
    return 2 * 2048**3 / best


def flops_per_image(width: int = 192, depth: int = 12, tokens: int = 197, patch: int = 16) -> float:
    """Multiply-adds x 2 of ViT-Ti/16 forward, x 3 for forward and backward."""
    block = tokens * 12 * width * width + 2 * tokens * tokens * width
    return 3 * 2 * (depth * block + (tokens - 1) * patch * patch * 3 * width + width * CLASSES)


def launched(folder: Path, processes: int, static: bool) -> float:
    """Images a second of a run through the launcher (0: plain, with all threads), median of its log."""
    script = Path(__file__).resolve()
    worker = [str(script), "--worker", str(folder), "--worker-batch", str(BATCH // max(1, processes))]
    worker += ["--worker-static"] if static else []
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(folder) + ".log"]
    done = subprocess.run(
        [sys.executable, *(launch if processes else []), *worker], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(f"the benchmark's run failed:\n{done.stdout}\n{done.stderr}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(r["images_per_second"] for r in records[1:])


def work(folder: Path, batch_size: int, static: bool) -> None:
    """One process of a launched run."""
    environment.import_paddle()
    from plsc.config import load
    from plsc.engine import run

    tree = recipe(folder, batch_size=batch_size, steps=20)
    tree["Global"]["to_static"] = static
    run.train(load(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="alternations of each comparison")
    parser.add_argument("--steps", type=int, default=4, help="updates of one side in one round")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker-batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker-static", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.worker_batch, arguments.worker_static)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cores = environment.available_cores()
        measured: dict[tuple[int, bool], list[float]] = {}
        for k in range(3):
            for static in (False, True):
                for processes in (0, cores):
                    rate = launched(folder / f"run{k}{static:d}{processes}", processes, static)
                    measured.setdefault((processes, static), []).append(rate)
        rates = {key: statistics.median(values) for key, values in measured.items()}

        environment.import_paddle()
        quick, quick_batches = trainer(folder / "quick")
        plain, plain_batches = trainer(folder / "plain", cpu_forms=False)
        static, static_batches = trainer(folder / "static", to_static=True)
        sides = {
            "bare Paddle loop": bare_loop(),
            "engine, plain layers": lambda: plain.advance(plain_batches),
            "engine, to_static": lambda: static.advance(static_batches),
            "engine": lambda: quick.advance(quick_batches),
        }
        times = alternate(sides, arguments.rounds, arguments.steps)
        gemm = gemm_rate()

    print(f"\nViT-Ti/16, 224 px, batch {BATCH}, float32, {cores} cores; float32 GEMM {gemm / 1e9:.0f} GFLOP/s")
    print(f"{'':<30}{'ms/step':>9}{'images/s':>10}{'of GEMM':>9}")
    for label, step in times.items():
        share = flops_per_image() * BATCH / step / gemm
        print(f"{label:<30}{1e3 * step:>9.1f}{BATCH / step:>10.2f}{100 * share:>8.0f} %")
    for (processes, static), rate in sorted(rates.items()):
        label = ("a process a core" if processes else "one process") + (", to_static" if static else "")
        print(f"{label:<30}{1e3 * BATCH / rate:>9.1f}{rate:>10.2f}{100 * flops_per_image() * rate / gemm:>8.0f} %")
    plain_time = times["engine, plain layers"]
    print(f"\nplain layers / bare loop    {plain_time / times['bare Paddle loop']:.3f}   (goal: at most 1.03)")
    print(f"plain layers / to_static    {plain_time / times['engine, to_static']:.2f}    (goal: at least 1.3)")
    print(f"plain layers / engine       {plain_time / times['engine']:.2f}    (goal: at least 1.5)")
    print(f"a process a core / one      {rates[cores, False] / rates[0, False]:.2f}")
    print(f"the same, both to_static    {rates[cores, True] / rates[0, True]:.2f}")


if __name__ == "__main__":
    main()
