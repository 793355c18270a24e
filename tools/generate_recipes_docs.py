"""Write docs/recipes.md from the recipes' comments; with --check only compare, exit code 1 where they differ."""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from generated_page import main  # noqa: E402

from plsc.config.recipes import SHIPPED, header, shipped_recipes  # noqa: E402

PAGE = CHECKOUT / "docs" / "recipes.md"

_HEAD = """\
<!-- Written by tools/generate_recipes_docs.py from the comments of plsc/configs/; change these instead. -->

# Recipes

`plsc list recipes` shows this in a terminal, `plsc list recipe NAME` a recipe's whole comment with its command, and
`plsc config -c NAME` what it resolves to. A recipe's name is enough for `-c`. Files and folders whose name begins with
`_` are parts that recipes share through `_base_`.

A figure is its source's, unless it says that plsc measured it: **nobody has repeated the others with plsc yet.** What a
source trains with is held to a table of its values by tests/test_recipes.py (rates at given updates, weights without
decay, losses of given logits, augmentation), and every recipe learns from a batch there, in small. Batches are global
ones: `Global.accum_steps` splits a process's part where it does not fit.

What the projects call their schedules, here: ViT-pytorch's WarmupCosineSchedule, Google's and big_vision's cosine are
`Cosine` and `ViTLRScheduler`, which give the same rates; coyo-vit's warm-up with polynomial decay is `ViTLRScheduler`
with `decay_type: linear`; timm's, DeiT's and PLSC's DeiT's is `TimmCosine`; torchvision's linear warm-up before
CosineAnnealingLR is `TimmCosine` with `warmup_prefix: True`; Pytorch-VIT's CosineAnnealingLR, stepped each update, is
`PeriodicCosine`; big_vision's rsqrt is `RSqrt`, and a constant rate with a cooldown `WarmupStableDecay`.
"""

_FOLDERS = {
    "digits": "To begin with",
    "cifar10": None,
    "fashion_mnist": None,
    "finetune": None,
    "VisionTransformer": "ViT of PLSC",
    "COYO": "coyo-vit",
    "ViT-pytorch": "ViT-pytorch",
    "Pytorch-VIT": "Pytorch-VIT",
    "TooTouch": "TooTouch's Vision-Transformer",
    "DeiT": "DeiT",
    "MoCoV3": "MoCo v3",
    "DeiT3": "DeiT III",
    "MAE": "MAE",
    "big_vision": "Better plain ViT and AugReg (big_vision)",
    "torchvision": "torchvision",
}  # folder → heading; None goes on under the one before

_COLUMNS = "| recipe | data | hardware | time | figure | source |\n|---|---|---|---|---|---|\n"


def page() -> str:
    """The whole text."""
    folders: dict[str, list[str]] = {}
    for name, path in shipped_recipes().items():
        folders.setdefault(path.relative_to(SHIPPED).parts[0], []).append(name)
    unknown = folders.keys() - _FOLDERS.keys()
    if unknown:
        raise SystemExit(f"{Path(__file__).name}: give the folder {sorted(unknown)[0]} a heading in _FOLDERS")
    parts = [_HEAD]
    for folder, heading in _FOLDERS.items():
        if heading:
            parts.append(f"\n## {heading}\n\n{_COLUMNS}")
        parts += [_row(name) for name in folders.get(folder, [])]
    return "".join(parts)


def _row(name: str) -> str:
    head = header(shipped_recipes()[name])
    what = head[""].rstrip(".")
    cells = [f"`{name}`<br>{what}", *(head[key] for key in ("Data", "Hardware", "Time", "Figure", "Source"))]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(__doc__, page, PAGE))
