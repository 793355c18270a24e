"""Mixed precision: what the FP16 section asks of paddle.amp, in one place."""

import contextlib
import logging

import numpy as np
import paddle

from plsc import compat
from plsc.config.schema import FP16
from plsc.errors import TrainingError

log = logging.getLogger("plsc")


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
    """

    def __init__(self, fp16: FP16 | None, on_cpu: bool):
        self.fp16 = fp16
        wanted = fp16 is not None and fp16.level != "O0"
        self.active = wanted and not on_cpu
        if wanted and on_cpu:
            log.warning(
                "FP16 asks for %s %s, which Paddle does not have on CPU: this run computes in float32",
                fp16.dtype,
                fp16.level,
            )
        if self.active and fp16.level == "O2" and not fp16.master_weight:
            log.warning(
                "weights are updated in %s without float32 masters, as the configuration asks; "
                "small updates are lost (FP16.master_weight or Optimizer.use_master_param: True keeps them)",
                fp16.dtype,
            )
        self.scaler = None
        self.skipped = self.skipped_in_a_row = 0
        if self.active and fp16.dtype == "float16":
            s = fp16.GradScaler
            self.scaler = paddle.amp.GradScaler(
                enable=True,
                init_loss_scaling=s.init_loss_scaling,
                incr_ratio=s.incr_ratio,
                decr_ratio=s.decr_ratio,
                incr_every_n_steps=s.incr_every_n_steps,
                decr_every_n_nan_or_inf=s.decr_every_n_nan_or_inf,
                use_dynamic_loss_scaling=s.use_dynamic_loss_scaling,
            )

    @property
    def keeps_masters(self) -> bool:
        """Whether the optimizer keeps float32 masters of half-precision weights."""
        return self.active and self.fp16.level == "O2" and self.fp16.master_weight

    @property
    def accumulates_apart(self) -> bool:
        """Whether gradients of micro-batches are summed outside Paddle.

        After each backward master_grad turns a half-precision weight's gradient into float32. Neither
        the next micro-batch's half-precision gradient nor DataParallel's reducer can add to that.
        """
        return self.active and self.fp16.level == "O2" and self.fp16.master_grad

    def decorate(self, model, paddle_optimizer=None):
        """Cast the model for O2, and tell the optimizer; returns both."""
        if not self.active or self.fp16.level != "O2":
            return model, paddle_optimizer
        if paddle_optimizer is None:
            return paddle.amp.decorate(models=model, level="O2", dtype=self.fp16.dtype), None
        return paddle.amp.decorate(
            models=model,
            optimizers=paddle_optimizer,
            level="O2",
            dtype=self.fp16.dtype,
            master_weight=self.fp16.master_weight,
            master_grad=self.fp16.master_grad,
        )

    def autocast(self):
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

    def scale(self, loss):
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer) -> None:
        """Divide the gradients by the loss scale, once per update and before clipping."""
        if self.scaler is None:
            return
        self.scaler.unscale_(optimizer.paddle_optimizer)
        kept = self.fp16.GradScaler.no_unscale_list
        for name, parameter in optimizer.named if kept else ():
            if parameter.grad is not None and any(part in name for part in kept):
                parameter.grad.multiply_(self.scaler._scale.astype(parameter.grad.dtype))

    def step(self, optimizer) -> None:
        """Update the weights, or skip where the scaled gradients overflowed.

        Raises:
            TrainingError: max_skipped_updates in a row were skipped.
        """
        if self.scaler is None:
            optimizer.paddle_optimizer.step()
            return
        self.scaler.step(optimizer.paddle_optimizer)
        self.scaler.update()
        if not compat.found_inf(self.scaler):
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        most = self.fp16.GradScaler.max_skipped_updates
        if self.skipped_in_a_row >= most:
            raise TrainingError(
                f"{most} updates in a row had gradients that are not finite, down to a loss scale of "
                f"{self.loss_scale:g}. A lower LRScheduler.learning_rate, Optimizer.grad_clip or FP16.dtype: bfloat16 "
                "may help"
            )

    def limit_loss_scale(self) -> None:
        """Keep the scale below max_loss_scaling, which Paddle's scaler does not know. Called at log steps."""
        if self.scaler is not None and self.loss_scale > self.fp16.GradScaler.max_loss_scaling:
            self.scaler.set_init_loss_scaling(self.fp16.GradScaler.max_loss_scaling)

    @property
    def loss_scale(self) -> float | None:
        """The present loss scale, or None without one. Reads from the device."""
        return None if self.scaler is None else float(self.scaler.state_dict()["scale"].item())

    def state_dict(self) -> dict:
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        state["scale"] = [float(state["scale"].item())]
        return {"scaler": state, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict) -> None:
        if self.scaler is None or not state:
            return
        # what the configuration says of the scaler holds; the checkpoint adds where it stood
        kept = {name: state["scaler"][name] for name in ("incr_count", "decr_count")}
        scale = np.asarray(state["scaler"]["scale"], dtype="float32")
        self.scaler.load_state_dict({**self.scaler.state_dict(), **kept, "scale": scale})
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
