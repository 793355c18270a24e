"""Programs beside the package keep up with it: what they import of it exists, and the benchmarks run."""

import ast
import importlib
import importlib.util
import subprocess
import sys

import pytest

from plsc.registry import DATASETS
from tests.conftest import write_pictures
from tests.helpers import CHECKOUT, clean_environment, plsc, tiny_digits, write_config

PROGRAMS = [path for name in ("benchmarks", "tools", "examples") for path in sorted((CHECKOUT / name).rglob("*.py"))]


def resolved(module: str, name: str):
    """What `from module import name` gives."""
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_what_a_program_imports_of_plsc_exists(path):
    """Also inside functions, with the names that it takes from modules and classes that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "plsc":
            imported |= {alias.asname or alias.name: resolved(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "plsc":
                    imported["plsc"] = importlib.import_module(alias.name.split(".")[0])
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in assigned:
            owner = imported.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), f"line {node.lineno}: {node.value.id}.{node.attr}"


def benchmark(name: str):
    """The module of a benchmark."""
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_large_data_sets_runs():
    script = [sys.executable, str(CHECKOUT / "benchmarks" / "data_scale.py"), "--lines", "9000", "--shards", "30"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, env=clean_environment())
    assert done.returncode == 0, done.stderr
    for line in ("list: 9,000 samples", "list: an epoch of 8,192 lines", "shards: 512 samples through the loader"):
        assert line in done.stdout


def test_an_epoch_at_the_scale_of_coyo_goes_on_with_half_of_the_processes(tmp_path, monkeypatch):
    """As benchmarks/coyo_scale.py counts it, here with fewer samples: each once, a shard by one process or two."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))
    module = benchmark("coyo_scale")
    module.write_list(tmp_path / "manifest.json", module.shard_counts(50_000, 64))
    data, batch = module.opened(tmp_path / "manifest.json"), 64
    steps = len(data) // batch
    middle = steps // 2
    counted = module.walk(data, [(16, 0, middle), (8, middle, steps)], lanes=16, global_batch=batch)
    assert (counted["read"], counted["twice"], counted["lost"]) == (steps * batch, 0, 0)
    assert counted["left out by drop_last"] == 50_000 - steps * batch
    assert counted["batches compared with the sampler's"] == 2 * (16 + 8)
    assert counted["processes that read a shard"].endswith(", 2 at most")
    overlapping = module.walk(data, [(16, 0, middle + 1), (8, middle, steps - 1)], lanes=16, global_batch=batch)
    assert (overlapping["twice"], overlapping["lost"]) == (batch, batch)


def test_the_benchmark_of_the_input_pipeline_runs(tmp_path, monkeypatch, capsys):
    module = benchmark("input_pipeline")
    write_pictures(tmp_path / "pictures", 2, 3)
    monkeypatch.setattr(sys, "argv", ["input_pipeline.py", str(tmp_path / "pictures"), "--rounds", "1"])
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))  # which the benchmark sets for itself
    module.main()
    printed = capsys.readouterr().out
    assert "6 pictures" in printed and "| plsc, shards |" in printed and "the loader with" in printed


def test_the_benchmark_of_a_training_step_runs(monkeypatch, capsys, process_state):
    """On small pictures, its launched processes in this one."""
    module = benchmark("train_step")
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    ran = []

    def launched(folder, processes, static):
        if not ran:
            module.work(folder, module.BATCH, static)
        ran.append((processes, static))
        return 1.0 + len(ran)

    for name, value in {"SIZE": 32, "launched": launched, "gemm_rate": lambda: 1e9}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--rounds", "1", "--steps", "1"])
    module.main()
    printed = capsys.readouterr().out
    assert len(set(ran)) == 4 and "bare Paddle loop" in printed and "plain layers / bare loop" in printed


def test_the_benchmark_of_checkpoints_runs(tmp_path, monkeypatch, capsys, process_state):
    """On a small model and small pictures."""
    module = benchmark("checkpointing")
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    monkeypatch.setattr(module.train_step, "SIZE", 32)
    options = ["--rounds", "2", "--steps", "2", "--batch", "2", "--model", "ViT_tiny_patch16_224"]
    monkeypatch.setattr(sys, "argv", ["checkpointing.py", *options, "--folder", str(tmp_path)])
    module.main()
    printed = capsys.readouterr().out
    assert printed.count("with    a checkpoint:") == printed.count("without a checkpoint:") == 2
    assert "a checkpoint of 0.07 GB every 2 updates" in printed and "with / without" in printed


@pytest.mark.long
def test_the_benchmark_of_evaluations_runs(tmp_path, monkeypatch, capsys):
    """On an untrained model of digits."""
    tree = tiny_digits()
    tree["Global"]["max_train_step"] = 1
    recipe = write_config(tmp_path / "small.yaml", tree)
    plsc("train", "-c", recipe, "-o", f"Global.output_dir={tmp_path / 'run'}")
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--rounds", "1", "--weights", str(tmp_path / "run")])
    benchmark("evaluation").main()
    printed = capsys.readouterr().out
    assert (
        "processor  now" in printed and "elapsed    now" in printed and printed.endswith("figures that differ: none\n")
    )
