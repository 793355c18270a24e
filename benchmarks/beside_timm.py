"""A whole run of plsc beside timm's model in PyTorch: equal weights, equal batches, curves over each other.

    python benchmarks/beside_timm.py [--seeds 0 1 2] [-o Global.epochs=30] [--output beside_timm]

The recipe is digits with AdamW. Both sides begin with the same weights and learn from the same batches, after the same
augmentation, at the same rates; timm's forward and backward, PyTorch's AdamW and its clipping are their own. Each
figure of evaluation is over the whole test set. `--output NAME` writes NAME.json and NAME.png.
It takes about a minute a seed on a core, in an environment with torch and timm: `make .venv-parity/ready`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the model is small, and a second thread costs more than it gains
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import plsc  # noqa: E402 - the checkout comes first
from plsc import environment  # noqa: E402

RECIPE = {"Optimizer.name": "AdamW", "Optimizer.betas": [0.9, 0.999], "LRScheduler.learning_rate": 2e-3}
FIRST = 100  # updates after which two runs are still the same run; rounding parts them later


class Peer:
    """timm's VisionTransformer with the weights of a plsc run, learning in PyTorch's own words."""

    def __init__(self, config: Any, weights: Path):
        import torch  # type: ignore[import-not-found]
        from safetensors.torch import load_file
        from timm.models.vision_transformer import VisionTransformer  # type: ignore[import-not-found]

        model, optimizer = config.Model.arguments, config.Optimizer.arguments
        self.torch, self.clip = torch, config.optimizer_options.grad_clip.clip_norm
        torch.set_num_threads(1)
        self.network = VisionTransformer(
            img_size=model["img_size"],
            patch_size=model["patch_size"],
            in_chans=model["in_chans"],
            num_classes=config.Model.arguments["class_num"],
            embed_dim=model["embed_dim"],
            depth=model["depth"],
            num_heads=model["num_heads"],
            mlp_ratio=model["mlp_ratio"],
        )
        self.network.load_state_dict(load_file(weights), strict=True)
        decayed: list[Any] = []
        others: list[Any] = []
        for name, parameter in self.network.named_parameters():
            kept = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
            (others if kept else decayed).append(parameter)
        decay = optimizer["weight_decay"]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
            betas=optimizer["betas"],
            eps=optimizer["epsilon"],
        )

    def learn(self, images: Any, labels: Any, rate: float, smoothing: float) -> float:
        """One update from a batch [B, C, H, W] float32 and labels [B]; returns the mean loss before it."""
        torch = self.torch
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits = self.network.train()(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()

    def logits(self, images: Any) -> Any:
        """[B, C, H, W] → [B, classes], both NumPy arrays."""
        with self.torch.no_grad():
            return self.network.eval()(self.torch.from_numpy(images)).numpy()


def run(seed: int, overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train both from one seed. Returns losses per update, and [update, plsc's top-1, timm's] of the evaluations."""
    import paddle

    from plsc.engine.assembly import assemble
    from plsc.engine.distributed import World
    from plsc.engine.evaluator import ExportedNetwork

    config = plsc.load_config(
        "digits", overrides={**RECIPE, "Global.output_dir": str(folder), "Global.seed": seed, **overrides}
    )
    trainer = assemble(config, World.start("cpu", timeout=1800.0))
    folder.mkdir(parents=True, exist_ok=True)
    paddle.save(trainer.model.state_dict(), str(folder / "start.pdparams"))
    plsc.convert_weights(folder / "start.pdparams", "timm", folder / "start.safetensors", config=config)
    peer = Peer(config, folder / "start.safetensors")
    smoothing = config.Loss["Train"][0].arguments["epsilon"]
    losses: dict[str, list[float]] = {"plsc": [], "timm": []}
    evaluations: list[list[float]] = []
    learn = trainer.learn

    def both(batch):
        rate = trainer.schedule(trainer.progress.step)
        losses["timm"].append(peer.learn(batch["image"].numpy(), batch["label"].flatten().numpy(), rate, smoothing))
        loss = learn(batch)
        losses["plsc"].append(float(loss))
        return loss

    trainer.learn = both  # type: ignore[method-assign]
    evaluator, progress = trainer.evaluator, trainer.progress
    assert evaluator is not None
    trainer.model.train()
    batches = trainer.feed.loader.run(trainer.sampler.batches(0))
    while not progress.finished:
        trainer.advance(batches)
        if progress.finished or progress.due(config.Global.eval_interval, config.Global.eval_unit):
            mine = evaluator.run(trainer.model)
            theirs = evaluator.run(ExportedNetwork(peer.logits))
            assert mine is not None and theirs is not None
            evaluations.append([progress.step, mine["top1"], theirs["top1"]])
            figures = f"plsc {mine['top1']:.4f}  timm {theirs['top1']:.4f}"
            print(f"seed {seed}  update {progress.step}  {figures}", flush=True)
    return {"seed": seed, "losses": losses, "evaluations": evaluations}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Losses of the first seed over each other, and top-1 of all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    window = np.ones(20) / 20
    for side, colour, width in (("plsc", "C0", 3.0), ("timm", "C1", 1.2)):
        left.plot(np.convolve(runs[0]["losses"][side], window, "valid"), color=colour, linewidth=width, label=side)
    left.set(xlabel="update", ylabel="training loss, mean of 20 updates", title=f"seed {runs[0]['seed']}", yscale="log")
    left.legend()
    for one in runs:
        steps, mine, theirs = zip(*one["evaluations"], strict=True)
        first = one is runs[0]
        right.plot(steps, mine, color="C0", linewidth=2, label="plsc" if first else None)
        right.plot(steps, theirs, color="C1", linestyle="--", linewidth=1.2, label="timm" if first else None)
    right.set(xlabel="update", ylabel="test top-1", title=f"{len(runs)} seeds")
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--output", type=Path, help="write NAME.json and NAME.png", metavar="NAME")
    args = parser.parse_args()
    environment.import_paddle()
    overrides = dict(item.split("=", 1) for item in args.overrides)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, overrides, Path(folder) / str(seed)) for seed in args.seeds]
    finals = {"plsc": [one["evaluations"][-1][1] for one in runs], "timm": [one["evaluations"][-1][2] for one in runs]}
    for one in runs:
        pairs = list(zip(one["losses"]["plsc"], one["losses"]["timm"], strict=True))
        apart = max(abs(a - b) for a, b in pairs[:FIRST])
        print(f"seed {one['seed']}: losses of the first {min(FIRST, len(pairs))} updates differ by {apart:.1e} at most")
    for side, values in finals.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{side}: final top-1 {statistics.mean(values):.4f}{spread} over {len(values)} seeds")
    if args.output is not None:
        args.output.with_suffix(".json").write_text(json.dumps(runs))
        draw(runs, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
