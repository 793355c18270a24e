"""The device that the tests of this folder run on, and what is asked of it in each precision.

PLSC_TEST_DEVICE is cpu, gpu, xpu, npu or another plug-in's name, or `pretend` for the accelerator of tests/accelerator:

    PLSC_TEST_DEVICE=gpu make test-device
"""

import functools
import os
from dataclasses import dataclass
from typing import Any

import paddle

from plsc.devices import count_devices
from tests.accelerator import build

VARIABLE, PRETEND = "PLSC_TEST_DEVICE", "pretend"
ASKED = os.environ.get(VARIABLE) or None
DEVICE = build.DEVICE if ASKED in (PRETEND, None) else ASKED
ON_CPU, PRETENDED = DEVICE == "cpu", ASKED in (PRETEND, None)

POLICIES: dict[str, dict[str, Any]] = {
    "O1": {"level": "O1"},
    "O2": {"level": "O2"},
    "O2-half-gradients": {"level": "O2", "master_grad": False},
    "O2-no-masters": {"level": "O2", "master_weight": False, "master_grad": False},
}
NO_OVERFLOW = {"init_loss_scaling": 1024.0}


@dataclass(frozen=True)
class Bounds:
    """How far results on the device may be from others, in one precision.

    Attributes:
        logits: of a network with stored weights, from those that others computed in float32, as a share of the largest.
        early, late: losses of training, from those of float32 on the CPU: over ten updates, and over forty.
        relative: losses of short runs of other kinds, from those on the CPU.
        norm: of the first gradient, from that on the CPU, relative.
        again: losses of a run that computes the same in another way (compiled, over two devices), relative.
        export: the loss of an evaluation by an export, from that of the run itself.
    """

    logits: float
    early: float
    late: float
    relative: float
    norm: float
    again: float
    export: float


BOUNDS = {
    "float32": Bounds(logits=1e-4, early=2e-4, late=3e-3, relative=2e-4, norm=1e-4, again=1e-4, export=1e-4),
    "float16": Bounds(logits=5e-3, early=0.002, late=0.015, relative=2e-3, norm=0.001, again=1e-3, export=2e-3),
    "bfloat16": Bounds(logits=5e-2, early=0.012, late=0.04, relative=1.5e-2, norm=0.005, again=1e-2, export=2e-2),
}


@dataclass(frozen=True)
class Precision:
    """A type, and for half precision the policy."""

    dtype: str
    policy: str = ""

    def __str__(self) -> str:
        return f"{self.dtype} {self.policy}".rstrip()

    @property
    def bounds(self) -> Bounds:
        return BOUNDS[self.dtype]

    def fp16(self, **scaling: Any) -> dict[str, Any] | None:
        """The section FP16 of a recipe, at a loss scale without overflows unless another is given."""
        return half(self.policy, self.dtype, **scaling) if self.policy else None

    @property
    def missing(self) -> str | None:
        """Why the device lacks it; None where it does not."""
        return _missing(self.dtype) if self.policy else None


def half(policy: str, dtype: str = "float16", **scaling: Any) -> dict[str, Any]:
    return {"dtype": dtype, **POLICIES[policy], "GradScaler": {**NO_OVERFLOW, **scaling}}


FLOAT32 = Precision("float32")
HALVES = [Precision(dtype, policy) for dtype in ("float16", "bfloat16") for policy in POLICIES]
PRECISIONS = [FLOAT32, *HALVES]
MAIN = [FLOAT32, Precision("float16", "O1"), Precision("float16", "O2"), Precision("bfloat16", "O2")]


@functools.cache
def _missing(dtype: str) -> str | None:
    if ON_CPU:
        return "Paddle has no half precision on CPU"
    try:
        with paddle.amp.auto_cast(dtype=dtype):
            product = paddle.matmul(paddle.ones([2, 2]), paddle.ones([2, 2]))
    except RuntimeError as error:
        return f"no {dtype} on {DEVICE}: {str(error).strip().splitlines()[0]}"
    return None if product.dtype == getattr(paddle, dtype) else f"Paddle does not compute in {dtype} on {DEVICE}"


def problem() -> str | None:
    """Why these tests cannot run; None where they can."""
    lack = count_devices(DEVICE).lack
    return None if lack is None else f"{VARIABLE}={ASKED}: {lack.reason}; {lack.remedy}"
