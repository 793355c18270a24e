"""Imports point one way: cli → engine, predictor, export, visualize → loading, build → the rooms → what all share."""

import ast
from pathlib import Path

import plsc

PACKAGE = Path(plsc.__file__).parent
SHARED = {
    "errors",
    "files",
    "checksums",
    "places",
    "registry",
    "signatures",
    "bounds",
    "environment",
    "compat",
    "devices",
    "drivers",
    "tensors",
    "targets",
    "pickles",
    "remote",
}
ROOMS = {"models", "weights", "data", "optim", "losses", "metrics", "tasks", "config"}
# what a module of each place may import of plsc, beside its own place
ALLOWED = {
    **dict.fromkeys(SHARED, SHARED),
    **dict.fromkeys(ROOMS, SHARED),
    "optim": SHARED | {"models"},  # protocols of models/base.py
    "model_card": SHARED | {"data"},  # holds a Preprocess
    "models": SHARED | {"weights"},  # which their tables of names are for
    "weights": SHARED | {"model_card", "data", "components"},  # finds the families of models
    "components": SHARED | ROOMS - {"config"},  # registers what the rooms offer
    "config": SHARED | {"components"},  # a configuration is checked against what is registered
    "api": SHARED | {"config"},
    "hub": SHARED | {"data", "model_card", "runs"},
    "convert": SHARED | {"model_card", "weights", "loading", "config", "hub"},
    "datatools": SHARED | ROOMS | {"build"},
    "build": SHARED | ROOMS | {"model_card"},
    "loading": SHARED | ROOMS | {"build", "components", "model_card"},
    "runtimes": SHARED,
    "inference": SHARED | {"models", "runtimes"},  # protocols of models/base.py
    "predictor": SHARED | ROOMS | {"build", "model_card", "loading", "inference", "runtimes"},
    "predictions": SHARED | {"predictor", "runs"},
    "export": SHARED | ROOMS | {"build", "model_card", "loading", "runtimes", "predictor"},
    "engine": SHARED
    | ROOMS
    | {"api", "build", "model_card", "inference", "loading", "predictor", "runs"},  # evaluation runs exports, too
    "timing": SHARED
    | {"build", "config", "engine", "loading", "model_card", "predictor", "runs", "runtimes", "weights"},
    "step_timing": SHARED | ROOMS | {"api", "build", "engine"},
    "planning": SHARED | ROOMS | {"build", "engine", "runs"},
    "doctor": SHARED | {"api", "config", "data", "engine", "models", "optim", "planning", "runs"},
    "training": SHARED | {"config", "engine", "visualize"},
    "runs": SHARED | {"config"},
    "reporting": SHARED | ROOMS | {"api", "build", "loading", "predictor", "runs", "visualize"},
    "sweeps": SHARED | {"api", "config", "engine", "runs", "training"},
    "visualize": SHARED | ROOMS | {"runs", "build", "model_card", "loading", "runtimes", "predictor"},
}


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path):
    """Places of plsc that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "plsc":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [name.name for name in node.names]
        elif isinstance(node, ast.Import):
            yield from (n.name.split(".")[1] for n in node.names if n.name.startswith("plsc."))


def test_imports_point_one_way():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = place(path)
        if here not in ALLOWED:  # the command line may import all
            continue
        for there in set(imported(path)) - {here} - ALLOWED[here]:
            wrong.append(f"{path.relative_to(PACKAGE)} imports plsc.{there}")
    assert not wrong, "\n".join(wrong)
