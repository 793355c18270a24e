"""What every family of Vision Transformers goes through: others' weights are read, trained, evaluated, exported and
written back. tests/test_family_lives.py has files in the families' layouts, tests/parity/test_family_lives.py those
of the libraries themselves.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

import plsc
from plsc import loading
from plsc.engine import run
from tests.helpers import tiny_digits

CLASSES = 10  # of the handwritten digits
STEPS = 3


def recipe(fields: dict[str, Any], run_directory: Path, weights: Path, **options: Any) -> plsc.Config:
    """Digits, resized to a model's pictures, that start from weights."""
    tree = tiny_digits()
    size = fields["img_size"]
    for part in ("Train", "Eval"):
        dataset = tree["DataLoader"][part]["dataset"]
        dataset["transform_ops"] = [{"ResizeImage": {"size": size}}, *dataset["transform_ops"][-2:]]
        tree["DataLoader"][part]["sampler"]["batch_size"] = 8 if part == "Train" else 64
    tree["Model"] = {"name": "VisionTransformer", **{k: v for k, v in fields.items() if v is not None}}
    tree["Global"] |= {"max_train_step": STEPS, "output_dir": str(run_directory), "pretrained_model": str(weights)}
    tree["Global"] |= options
    return plsc.load_config(tree)


def pictures(fields: dict[str, Any], count: int = 2) -> np.ndarray:
    size = fields["img_size"]
    return np.random.default_rng(3).standard_normal((count, fields["in_chans"], size, size)).astype("float32")


@paddle.no_grad()
def logits(network: Any, batch: np.ndarray) -> np.ndarray:
    return network(paddle.to_tensor(batch)).numpy()


def live(
    weights: Path,
    to: str,
    folder: Path,
    fields: dict[str, Any],
    expected: Callable[[np.ndarray], np.ndarray],
    *,
    keeps_new_head: bool = True,
    tolerance: float = 1e-4,
) -> Path:
    """Go through it all, with a recipe whose Model states what the file does not.

    Args:
        weights: a file or folder of somebody else's. to: the format that it is of.
        fields: of the model, all of them. expected: pictures → what the file's own code makes of them.
        keeps_new_head: whether the format has a place for a head of ten classes on this model.

    Returns:
        The trained weights in the file's format.
    """
    batch = pictures(fields)
    as_written = recipe(fields, folder / "none", weights)
    # reads
    loaded = loading.load_model(weights, config=as_written)
    np.testing.assert_allclose(logits(loaded.network, batch), expected(batch), atol=tolerance, rtol=0)
    # trains
    config = recipe({**fields, "class_num": CLASSES}, folder / "run", weights)
    result = run.train(config)  # plsc.train also draws curves
    trained = loading.load_model(result.run_directory)
    assert result.step == STEPS and result.finished
    name = "blocks.0.attn.qkv.weight"
    before, after = loaded.source.arrays[name], trained.source.arrays[name]
    assert 0 < np.abs(after - before).max() < 0.1, "it started elsewhere, or stood still"
    # evaluates
    for path in (result.run_directory, weights) if fields["class_num"] == CLASSES else (result.run_directory,):
        measured = plsc.evaluate(path, config)
        assert measured["samples"] > 300 and 0 <= measured["top1"] <= 1 and math.isfinite(measured["loss"])
    # exports, each with the self-check
    for format in ("paddle", "onnx"):
        made = plsc.export_model(result.run_directory, folder / format, format=format)
        assert made.checks and all(check.difference <= check.tolerance for check in made.checks)
    # goes back to its own format: what was read, and what was trained
    back = plsc.convert_weights(weights, to, folder / "back" / _file(to), config=as_written).written[0]
    again = loading.load_model(back, config=as_written)
    np.testing.assert_array_equal(logits(again.network, batch), logits(loaded.network, batch))
    new = folder / "trained_back" / _file(to)
    written = plsc.convert_weights(result.run_directory, to, new, backbone=not keeps_new_head).written[0]
    theirs = loading.load_model(written)
    if keeps_new_head:
        np.testing.assert_array_equal(logits(theirs.network, batch), logits(trained.network, batch))
    else:
        with paddle.no_grad():
            tokens = [n.forward_features(paddle.to_tensor(batch)).numpy() for n in (theirs.network, trained.network)]
        np.testing.assert_array_equal(*tokens)
    return written


def _file(to: str) -> str:
    return {"google": "model.npz"}.get(to, "model.safetensors")


def fields_of(spec: Any) -> dict[str, Any]:
    """A spec as a recipe's Model."""
    height, width = spec.img_size if isinstance(spec.img_size, (list, tuple)) else (spec.img_size, spec.img_size)
    values = dataclasses.asdict(spec) | {"img_size": height if height == width else [height, width]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
