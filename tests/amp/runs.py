"""Runs on the pretend accelerator: which of its kernels they take, and where the host waits for it."""

import contextlib
import ctypes
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.device.runs import (  # noqa: F401 - what the tests of this folder take from here
    RANDOM,
    assert_bit_equal,
    column,
    command,
    digits,
    launched,
    losses,
    train,
    weights,
)
from tests.device.target import NO_OVERFLOW, POLICIES, half  # noqa: F401
from tests.helpers import CHECKOUT


def kernels() -> dict[str, int]:
    """How often each kernel ran on the device since the last call, by name and type: {"matmul float16": 12, …}.

    Copies between host and device are counted with them, and how often the host waited.
    """
    lines = (line.split(" ", 1) for line in _lines_of("pretend_counts"))
    return {what: int(count) for count, what in lines}


def events() -> list[str]:
    """What the host asked of the device since the last call, in order: "kernel matmul float16", "copy to host", …"""
    return _lines_of("pretend_notes")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(os.environ["CUSTOM_DEVICE_ROOT"]) / "libpretend.so"))


def _lines_of(function: str) -> list[str]:
    called = getattr(_library(), function)
    called.restype = ctypes.c_char_p
    return called().decode().splitlines()


@contextlib.contextmanager
def watched_waits() -> Iterator[dict[str, int]]:
    """Context that fills {"copy to host at plsc/engine/guard.py:26 watch": 1, …}: where the host waits, how often."""
    seen: dict[str, int] = {}

    def tell(what: bytes) -> None:
        files = [(Path(frame.filename), frame) for frame in traceback.extract_stack()[:-1]]
        ours = [  # the environment with Paddle may stand in the checkout
            (path, frame)
            for path, frame in files
            if path.is_relative_to(CHECKOUT) and "site-packages" not in path.parts
        ]
        path, frame = ours[-1]
        where = f"{path.relative_to(CHECKOUT)}:{frame.lineno} {frame.name}"
        seen[f"{what.decode()} at {where}"] = seen.get(f"{what.decode()} at {where}", 0) + 1

    called = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(tell)
    _library().pretend_on_wait(called)
    try:
        yield seen
    finally:
        _library().pretend_on_wait(None)
