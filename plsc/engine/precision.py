"""Mixed precision: what the FP16 section asks of paddle.amp, in one place."""

import contextlib
import logging
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import paddle
from paddle.amp.auto_cast import amp_global_state

from plsc import compat
from plsc.config import Config
from plsc.config.schema import FP16, LossScaling
from plsc.engine.distributed import World
from plsc.errors import DeviceError, TrainingError
from plsc.optim import Optimizer

log = logging.getLogger("plsc")


class LossScale:
    """The number by which a float16 loss is multiplied: lowered after overflows, raised after updates without any.

    Kept here and not by Paddle's GradScaler, which knows no upper bound, and which calls float() on a tensor of shape
    [1] when it lowers the scale, a TypeError with NumPy 2.4.

    Attributes:
        value: the present scale. good, bad: updates in a row without and with an overflow, since the last change.
    """

    def __init__(self, settings: LossScaling):
        self._settings = settings
        self.value = min(settings.init_loss_scaling, settings.max_loss_scaling)
        self.good = self.bad = 0

    def update(self, overflowed: bool) -> None:
        """Count one update, and change the value where its time has come."""
        s = self._settings
        if not s.use_dynamic_loss_scaling:
            return
        if overflowed:
            self.good, self.bad = 0, self.bad + 1
            if self.bad >= s.decr_every_n_nan_or_inf:
                self.value, self.bad = self.value * s.decr_ratio, 0
        else:
            self.good, self.bad = self.good + 1, 0
            if self.good >= s.incr_every_n_steps:
                self.value, self.good = min(self.value * s.incr_ratio, s.max_loss_scaling), 0

    def state_dict(self) -> dict:
        return {"scale": [self.value], "incr_count": self.good, "decr_count": self.bad}

    def load_state_dict(self, state: dict) -> None:
        (self.value,) = state["scale"]
        self.good, self.bad = state["incr_count"], state["decr_count"]


class _AgreedScaler(paddle.amp.GradScaler):
    """Paddle's scaler with a fixed scale, which takes an overflow on one process for one on all.

    Args:
        agree: whether a bool tensor is true on any process.
    """

    def __init__(self, agree: Callable[[paddle.Tensor], paddle.Tensor], scale: float):
        super().__init__(enable=True, init_loss_scaling=scale, use_dynamic_loss_scaling=False)
        self._agree = agree

    def unscale_(self, optimizer: paddle.optimizer.Optimizer) -> None:
        """As Paddle's."""
        super().unscale_(optimizer)
        self._found_inf = self._agree(self._found_inf)


class Precision:
    """The policy of one run.

    O1 casts inside operations, O2 stores weights in half precision with float32 masters. Losses,
    softmax of the loss and normalisation of the input stay float32; the gradients of O2 are cast
    to float32 (master_grad) before they are accumulated, measured and clipped. float16 has a
    dynamic loss scale; bfloat16 needs none. On CPU Paddle has no such kernels and everything runs
    in float32.

    Args:
        fp16: the section, or None for float32.
        on_cpu: whether the device is the CPU.
        warn: whether a CPU's float32 is warned of; not where the device is what the machine has (`auto`).

    Raises:
        DeviceError: Paddle would compute in float32 on this device, another than the CPU.
    """

    def __init__(self, fp16: FP16 | None, on_cpu: bool, *, warn: bool = True):
        asked = fp16 if fp16 is not None and fp16.level != "O0" else None
        self.active = asked is not None and not on_cpu
        self.fp16 = asked if asked is not None and self.active else FP16(level="O0")
        if asked is not None and on_cpu and warn:
            log.warning(
                "FP16 asks for %s %s, which Paddle does not have on CPU: this run computes in float32",
                asked.dtype,
                asked.level,
            )
        missing = _missing(self.fp16.dtype) if self.active else None
        if missing:
            raise DeviceError(
                f"FP16.dtype is {self.fp16.dtype}, which Paddle does not have on {paddle.get_device()}: {missing}\n"
                "  another FP16.dtype may be there; FP16.level=O0 computes in float32"
            )
        if self.fp16.level == "O2" and not self.fp16.master_weight:
            log.warning(
                "weights are updated in %s without float32 masters, as the configuration asks; "
                "small updates are lost (FP16.master_weight: True keeps them)",
                self.fp16.dtype,
            )
        self._scale = LossScale(self.fp16.GradScaler)
        self.scaler: paddle.amp.GradScaler | None = None
        self.skipped = self.skipped_in_a_row = 0
        if self.active and self.fp16.dtype == "float16":
            self.scaler = paddle.amp.GradScaler(
                enable=True, init_loss_scaling=self._scale.value, use_dynamic_loss_scaling=False
            )

    @classmethod
    def of(cls, config: Config, world: World) -> "Precision":
        """As the section FP16 of a configuration asks."""
        return cls(config.FP16, world.on_cpu, warn=config.Global.device != "auto")

    def agree_by(self, agree: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        """Take an overflow on one process for one on all, where each process has gradients of its own.

        Args:
            agree: whether a bool tensor is true on any process.
        """
        if self.scaler is not None:
            self.scaler = _AgreedScaler(agree, self._scale.value)

    def __str__(self) -> str:
        return f"{self.fp16.dtype} ({self.fp16.level})" if self.active else "float32"

    @property
    def keeps_masters(self) -> bool:
        """Whether the optimizer keeps float32 masters of half-precision weights."""
        return self.fp16.level == "O2" and self.fp16.master_weight

    @property
    def accumulates_apart(self) -> bool:
        """Whether gradients of micro-batches are summed outside Paddle.

        After each backward master_grad turns a half-precision weight's gradient into float32. Neither
        the next micro-batch's half-precision gradient nor DataParallel's reducer can add to that.
        """
        return self.fp16.level == "O2" and self.fp16.master_grad

    def decorate(
        self, model: paddle.nn.Layer, paddle_optimizer: paddle.optimizer.Optimizer | None = None
    ) -> tuple[paddle.nn.Layer, paddle.optimizer.Optimizer | None]:
        """Cast the model for O2, and tell the optimizer; returns both."""
        if self.fp16.level != "O2":
            return model, paddle_optimizer
        if paddle_optimizer is None:
            return paddle.amp.decorate(models=model, level="O2", dtype=self.fp16.dtype), None
        if self.fp16.master_grad:
            _release_with(model)
        return paddle.amp.decorate(
            models=model,
            optimizers=paddle_optimizer,
            level="O2",
            dtype=self.fp16.dtype,
            master_weight=self.fp16.master_weight,
            master_grad=self.fp16.master_grad,
        )

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context of the model's forward."""
        if not self.active:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(
            enable=True,
            custom_white_list=self.fp16.fp16_custom_white_list or None,
            custom_black_list=self.fp16.fp16_custom_black_list or None,
            level=self.fp16.level,
            dtype=self.fp16.dtype,
        )

    def forward(self, network: Callable) -> Callable[[paddle.Tensor], paddle.Tensor]:
        """The network's forward in this precision: what a task calls. What it computes besides stays float32."""

        def run(images: paddle.Tensor) -> paddle.Tensor:
            with self.autocast():
                return network(images)

        return run

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    @paddle.no_grad()
    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the loss scale, once per update and before clipping."""
        if self.scaler is None:
            return
        self.scaler.unscale_(optimizer.paddle_optimizer)
        kept = self.fp16.GradScaler.no_unscale_list
        for name, parameter in optimizer.named if kept else ():
            if parameter.grad is not None and any(part in name for part in kept):
                parameter.grad.scale_(self._scale.value)

    def step(self, optimizer: Optimizer) -> None:
        """Update the weights, or skip where the scaled gradients overflowed.

        Raises:
            TrainingError: max_skipped_updates in a row were skipped.
        """
        if self.scaler is None:
            optimizer.paddle_optimizer.step()
            return
        self.scaler.step(optimizer.paddle_optimizer)
        overflowed = compat.found_inf(self.scaler)
        before = self._scale.value
        self._scale.update(overflowed)
        if self._scale.value != before:
            self._set_scale()
        if not overflowed:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        most = self.fp16.GradScaler.max_skipped_updates
        if self.skipped_in_a_row >= most:
            raise TrainingError(
                f"{most} updates in a row had gradients that are not finite, down to a loss scale of "
                f"{self._scale.value:g}. A lower LRScheduler.learning_rate, Optimizer.grad_clip or "
                "FP16.dtype: bfloat16 may help"
            )

    def _set_scale(self) -> None:
        """Tell Paddle's scaler, which takes any number, though its types ask for int."""
        if self.scaler is not None:
            self.scaler.set_init_loss_scaling(self._scale.value)  # type: ignore[arg-type]

    @property
    def loss_scale(self) -> float | None:
        """The present loss scale, or None without one."""
        return None if self.scaler is None else self._scale.value

    def state_dict(self) -> dict[str, Any]:
        if self.scaler is None:
            return {}
        return {
            "scaler": self._scale.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's scale and counts; how they change is the configuration's."""
        if self.scaler is None or not state:
            return
        self._scale.load_state_dict(state["scaler"])
        self._set_scale()
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]


def _missing(dtype: Literal["float16", "bfloat16"]) -> str | None:
    """Why Paddle computes in float32 on the present device where `dtype` is asked for; None where it does not.

    Paddle itself only warns, and goes on.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with paddle.amp.auto_cast(dtype=dtype):
                product = paddle.matmul(paddle.ones([1, 1]), paddle.ones([1, 1]))
        except RuntimeError as error:  # the device lacks the kernel
            return str(error).strip().splitlines()[0]
    if product.dtype == getattr(paddle, dtype):
        return None
    return "; ".join(str(warning.message) for warning in caught) or "Paddle does not say why"


def _release_with(model: paddle.nn.Layer) -> None:
    """Let the weights of a model that is decorated with master_grad be freed with it. Call before decorate.

    Paddle otherwise holds them for the life of the process, and those of every later run.
    """
    state = amp_global_state()
    state.model_parameters = []
    weakref.finalize(model, state.model_parameters.clear)
