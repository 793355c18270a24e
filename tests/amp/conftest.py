"""These tests run in a Paddle that has the pretend accelerator: `make test-amp`. Elsewhere they are left out."""

import logging
import os

import paddle
import pytest

from tests.accelerator.build import DEVICE, PROBLEM


@pytest.fixture(scope="session", autouse=True)
def accelerator():
    """Skips, with the reason, where the device cannot be built."""
    if PROBLEM in os.environ:
        pytest.skip(f"the pretend accelerator cannot be built: {os.environ[PROBLEM]}")
    import tests.amp.parts  # noqa: F401 - registers what recipes name, where these tests run only


@pytest.fixture(autouse=True)
def state(accelerator, process_state):
    """Paddle's device as it was, and a working directory of the test's own."""
    before = paddle.get_device()
    paddle.set_device(DEVICE)
    logging.getLogger("plsc").setLevel(logging.INFO)
    yield
    paddle.set_device(before)
