"""Fixtures, and the process settings that must precede Paddle's import."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test workers share the cores
DEVICE_TESTS = "PLSC_TEST_DEVICE"  # the device of tests/device, see target.py there
if DEVICE_TESTS in os.environ:
    # float32 products of Ampere and later are otherwise of TF32, which keeps 10 of 23 bits; CUDA reads it once
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

from plsc import environment

environment.import_paddle()

import logging
import signal

import numpy as np
import paddle
import pytest
from PIL import Image

from tests.accelerator.build import DEVICE, PROBLEM
from tests.helpers import CHECKOUT, SHARED


def pytest_report_header() -> list[str]:
    device = os.environ.get(DEVICE_TESTS)
    amp = [] if _accelerated() else ["tests/amp: left out without the pretend accelerator, see make test-amp"]
    left_out = f"left out without {DEVICE_TESTS}, see make test-device"
    return [*amp, f"tests/device: {f'on {device}' if device else left_out}"]


def _accelerated() -> bool:
    """Whether tests/amp can run, or is asked for and must say why it cannot."""
    return DEVICE in paddle.device.get_all_custom_device_type() or PROBLEM in os.environ


def pytest_collection_modifyitems(config, items):
    """Tests of tests/amp and tests/device are left out, tests marked `shared` skip, where what they need is absent."""
    for folder, runs in (("amp", _accelerated()), ("device", DEVICE_TESTS in os.environ)):
        inside = [item for item in items if CHECKOUT / "tests" / folder in item.path.parents]
        for item in inside:
            item.add_marker(getattr(pytest.mark, folder))
        if inside and not runs:
            config.hook.pytest_deselected(items=inside)
            items[:] = [item for item in items if item not in set(inside)]
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs the data and weights of {SHARED.name}/ beside the checkout")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


def write_pictures(root, classes: int, per_class: int, size=(40, 48), seed: int = 0) -> list[tuple[str, int]]:
    """JPEGs in root/class_N/ whose mean colour tells the class; returns (relative path, label)."""
    rng = np.random.default_rng(seed)
    listed = []
    for label in range(classes):
        (root / f"class_{label}").mkdir(parents=True, exist_ok=True)
        colour = 40 + 170 * np.array([label % 2, label // 2 % 2, label // 4 % 2])
        for i in range(per_class):
            noise = rng.normal(0, 25, (*size, 3))
            pixels = np.clip(colour + noise, 0, 255).astype("uint8")
            name = f"class_{label}/{i:03d}.jpg"
            Image.fromarray(pixels).save(root / name, quality=90)
            listed.append((name, label))
    return listed


@pytest.fixture(scope="session")
def picture_tree(tmp_path_factory):
    """An ImageNet-style tree: pictures in class folders, train_list.txt, val_list.txt, multi_list.txt."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count, seed in (("train", 12, 0), ("val", 5, 1)):
        listed = write_pictures(root / split, 4, count, seed=seed)
        lines = "".join(f"{split}/{name} {label}\n" for name, label in listed)
        (root / f"{split}_list.txt").write_text(lines)
    multi = "".join(
        f"train/{name} {label},{(label + 1) % 4}\n" for name, label in write_pictures(root / "train", 4, 12, seed=0)
    )
    (root / "multi_list.txt").write_text(multi)
    return root


@pytest.fixture
def process_state(tmp_path, monkeypatch):
    """A working directory of its own; afterwards the logger and the signal handlers as before."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("plsc")
    kept = list(logger.handlers), logger.level, logger.propagate
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for handler in logger.handlers:
        if handler not in kept[0]:
            handler.close()
    logger.handlers[:], logger.level, logger.propagate = kept
    for number, handler in signals.items():
        signal.signal(number, handler)
