"""These tests run where PLSC_TEST_DEVICE names a device, by `make test-device` or `make test-amp`; see target.py."""

import json
import logging
import os

import paddle
import pytest

from tests.accelerator.build import PROBLEM
from tests.device import target
from tests.device.runs import stateful, train, weights


@pytest.fixture(scope="session", autouse=True)
def accelerator():
    """Ends the session, with the reason, where the device is not there; skips where the pretend one cannot be built."""
    if target.PRETENDED and PROBLEM in os.environ:
        pytest.skip(f"the pretend accelerator cannot be built: {os.environ[PROBLEM]}")
    if target.problem():
        pytest.exit(target.problem(), returncode=2)
    import tests.amp.parts  # noqa: F401 - registers what recipes name, where these tests run only


@pytest.fixture(autouse=True)
def state(accelerator, process_state, request):
    """Paddle's device as it was, and a working directory of the test's own. Skips a precision that the device lacks."""
    before = paddle.get_device()
    paddle.set_device(target.DEVICE)
    logging.getLogger("plsc").setLevel(logging.INFO)
    precision = getattr(request.node, "callspec", None) and request.node.callspec.params.get("precision")
    if precision is not None and precision.missing:
        pytest.skip(precision.missing)
    yield
    paddle.set_device(before)


@pytest.fixture(scope="session")
def repeats(accelerator, tmp_path_factory) -> bool:
    """Whether the device computes the same twice, bit for bit: then what resumes or recomputes must too.

    Looked at in float32 and in half precision, whose attention is another kernel.
    """
    if target.ON_CPU or target.PRETENDED:
        return True
    folder = tmp_path_factory.mktemp("twice")
    same = []
    for precision in (p for p in target.MAIN if not p.missing):
        runs = [train(folder / f"{precision} {k}", stateful(), fp16=precision.fp16()) for k in range(2)]
        once, again = map(weights, runs)
        same += [once[name].tobytes() == again[name].tobytes() for name in once]
    return all(same)


@pytest.fixture(scope="session")
def reference(accelerator, tmp_path_factory):
    """A function: recipe → the run directory of it in float32 on the CPU, made once."""
    runs = {}

    def run(tree: dict):
        key = json.dumps(tree, sort_keys=True)
        if key not in runs:
            runs[key] = train(tmp_path_factory.mktemp("reference") / "run", tree, device="cpu")
        return runs[key]

    return run
