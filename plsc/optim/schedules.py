"""Learning-rate schedules by name: pure functions of the update's number, 0 for the first.

Each factory takes the run's length from the engine (`total_steps`, `steps_per_epoch`).

`decay_unit` says what a schedule counts: step, or epoch, where the rate stays the same within
an epoch, as in PLSC. A run no longer than its warm-up stays in it.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from plsc.bounds import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from plsc.errors import ConfigError
from plsc.registry import SCHEDULERS

Unit = Literal["step", "epoch"]


@dataclass(frozen=True)
class Curve:
    """A schedule with a warm-up.

    Attributes:
        rate: update → learning rate.
        warmup: updates before the peak.
    """

    rate: Callable[[int], float]
    warmup: int

    def __call__(self, step: int) -> float:
        return self.rate(step)


def _require(condition: bool, text: str):
    if not condition:
        raise ConfigError(text)


def _length(name: str, steps: int, epochs: float, steps_per_epoch: int) -> int:
    """Updates of the warmup or cooldown, whichever of name_steps and name_epochs is given."""
    _require(not (steps and epochs), f"{name}_steps and {name}_epochs are both given; keep one")
    return steps or round(epochs * steps_per_epoch)


def _warmup_length(warmup_steps: int, warmup_epochs: float, steps_per_epoch: int) -> int:
    return _length("warmup", warmup_steps, warmup_epochs, steps_per_epoch)


def _warm(decay: Callable[[float], float], warmup: int, total: int, start: float, peak: float) -> Curve:
    """Linear from `start` to `peak` in `warmup` steps, then decay(progress), progress 0 → 1."""

    def rate(step: int) -> float:
        if step < warmup:
            return start + (peak - start) * step / warmup
        progress = (step - warmup) / (total - warmup) if total > warmup else 1.0
        return decay(min(1.0, progress))

    return Curve(rate, warmup)


@SCHEDULERS.register()
def Constant(
    learning_rate: NonNegativeFloat,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegativeFloat = 0.0,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """The same rate throughout, after a linear warm-up from 0."""
    warmup = _warmup_length(warmup_steps, warmup_epochs, steps_per_epoch)
    return _warm(lambda p: learning_rate, warmup, total_steps, 0.0, learning_rate)


@SCHEDULERS.register()
def Cosine(
    learning_rate: NonNegativeFloat,
    end_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_start_lr: NonNegativeFloat = 0.0,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """Linear warm-up, then half a cosine to end_lr at the run's end (Loshchilov and Hutter, 2017)."""
    warmup = _warmup_length(warmup_steps, warmup_epochs, steps_per_epoch)
    span = learning_rate - end_lr
    decay = lambda p: end_lr + 0.5 * span * (1.0 + math.cos(math.pi * p))  # noqa: E731
    return _warm(decay, warmup, total_steps, warmup_start_lr, learning_rate)


@SCHEDULERS.register()
def Linear(
    learning_rate: NonNegativeFloat,
    end_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_start_lr: NonNegativeFloat = 0.0,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """Linear warm-up, then a straight line to end_lr at the run's end."""
    warmup = _warmup_length(warmup_steps, warmup_epochs, steps_per_epoch)
    decay = lambda p: end_lr + (learning_rate - end_lr) * (1.0 - p)  # noqa: E731
    return _warm(decay, warmup, total_steps, warmup_start_lr, learning_rate)


@SCHEDULERS.register()
def PeriodicCosine(
    learning_rate: NonNegativeFloat,
    half_period: Positive,
    end_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_start_lr: NonNegativeFloat = 0.0,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """A cosine that falls to end_lr in half_period updates, rises again in as many, and so on.

    This is PyTorch's CosineAnnealingLR, stepped each update, with T_max = half_period; the run's length changes
    nothing.
    """
    warmup = _warmup_length(warmup_steps, warmup_epochs, steps_per_epoch)
    span = learning_rate - end_lr

    def rate(step: int) -> float:
        if step < warmup:
            return warmup_start_lr + (learning_rate - warmup_start_lr) * step / warmup
        return end_lr + 0.5 * span * (1.0 + math.cos(math.pi * (step - warmup) / half_period))

    return Curve(rate, warmup)


@SCHEDULERS.register()
def RSqrt(
    learning_rate: NonNegativeFloat,
    timescale: Positive = 10_000,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegativeFloat = 0.0,
    cooldown_steps: NonNegative = 0,
    cooldown_epochs: NonNegativeFloat = 0.0,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """Reciprocal square root with a linear warm-up from 0 and a linear cooldown to 0 at the run's end.

    learning_rate / sqrt(1 + t / timescale), t counted from the end of the warm-up: "Scaling Vision Transformers"
    (Zhai et al., 2022), in the form of big_vision's `rsqrt`. Until the cooldown it does not depend on the run's length.
    """
    warmup = _warmup_length(warmup_steps, warmup_epochs, steps_per_epoch)
    cooldown = _length("cooldown", cooldown_steps, cooldown_epochs, steps_per_epoch)

    def rate(step: int) -> float:
        warm = min(1.0, step / warmup) if warmup else 1.0
        left = min(1.0, max(0.0, (total_steps - step) / cooldown)) if cooldown else 1.0
        return learning_rate * warm * left / math.sqrt(1.0 + max(0, step - warmup) / timescale)

    return Curve(rate, warmup)


@SCHEDULERS.register()
def WarmupStableDecay(
    learning_rate: NonNegativeFloat,
    end_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegativeFloat = 0.0,
    cooldown_steps: NonNegative = 0,
    cooldown_epochs: NonNegativeFloat = 0.0,
    cooldown: Literal["linear", "sqrt"] = "linear",
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """Linear warm-up from 0, a constant rate, and a cooldown to end_lr at the run's end (WSD; Hu et al., 2024).

    The cooldown is a straight line, or 1 - sqrt(progress), which Hägele et al. (2024) found better. A run can be
    continued with more epochs from a checkpoint before its cooldown, since the rate until there is the same.
    """
    warmup = _warmup_length(warmup_steps, warmup_epochs, steps_per_epoch)
    length = _length("cooldown", cooldown_steps, cooldown_epochs, steps_per_epoch)
    _require(length > 0, "WarmupStableDecay needs cooldown_steps or cooldown_epochs; without one take Constant")
    first = max(warmup, total_steps - length)  # update of the cooldown

    def rate(step: int) -> float:
        if step < warmup:
            return learning_rate * step / warmup
        progress = min(1.0, max(0.0, (step - first) / (total_steps - first))) if total_steps > first else 1.0
        left = 1.0 - (math.sqrt(progress) if cooldown == "sqrt" else progress)
        return end_lr + (learning_rate - end_lr) * left

    return Curve(rate, warmup)


@SCHEDULERS.register()
def ViTLRScheduler(
    learning_rate: NonNegativeFloat,
    decay_type: Literal["cosine", "linear"] = "cosine",
    linear_end: NonNegativeFloat = 1e-5,
    warmup_steps: NonNegative = 0,
    decay_unit: Literal["step"] = "step",
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """PLSC's and Google's ViT schedule: linear warm-up from 0, then cosine to 0 or linear to linear_end.

    While warming up PLSC multiplies the decay's start by step / warmup_steps; so does this.
    """
    end = linear_end if decay_type == "linear" else 0.0
    make = Linear if decay_type == "linear" else Cosine
    return make(learning_rate, end, warmup_steps, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


@SCHEDULERS.register()
def TimmCosine(
    learning_rate: NonNegativeFloat,
    eta_min: NonNegativeFloat = 0.0,
    warmup_epoch: NonNegativeFloat = 0,
    warmup_start_lr: NonNegativeFloat = 0.0,
    warmup_prefix: bool = False,
    decay_unit: Unit = "epoch",
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """timm's cosine: without warmup_prefix the cosine runs from step 0 and warm-up covers its beginning."""
    if decay_unit == "epoch":
        length, warmup, scale = math.ceil(total_steps / steps_per_epoch), warmup_epoch, steps_per_epoch
    else:
        length, warmup, scale = total_steps, round(warmup_epoch * steps_per_epoch), 1

    def rate(step: int) -> float:
        t = step // scale
        if t < warmup:
            return warmup_start_lr + (learning_rate - warmup_start_lr) * t / warmup
        done, span = (t - warmup, length - warmup) if warmup_prefix else (t, length)
        progress = min(1.0, done / span) if span > 0 else 1.0
        return eta_min + 0.5 * (learning_rate - eta_min) * (1.0 + math.cos(math.pi * progress))

    return Curve(rate, round(warmup_epoch * steps_per_epoch))


@SCHEDULERS.register()
def Step(
    boundaries: list[NonNegative],
    values: list[NonNegativeFloat],
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegative = 0,
    warmup_start_lr: NonNegativeFloat = 0.0,
    warmup_end_lr: NonNegativeFloat | None = None,
    decay_unit: Unit = "epoch",
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """values[i] until boundaries[i], the last value after them. warmup_end_lr defaults to values[0]."""
    _require(len(values) == len(boundaries) + 1, f"{len(boundaries)} boundaries need {len(boundaries) + 1} values")
    _require(list(boundaries) == sorted(boundaries), "boundaries must rise")
    scale = steps_per_epoch if decay_unit == "epoch" else 1
    warmup = _plsc_warmup(warmup_steps, warmup_epochs, decay_unit, steps_per_epoch)
    end = values[0] if warmup_end_lr is None else warmup_end_lr

    def rate(step: int) -> float:
        t = step // scale
        if t < warmup:
            return warmup_start_lr + (end - warmup_start_lr) * t / warmup
        return float(values[bisect.bisect_right(boundaries, t)])

    return Curve(rate, warmup * scale)


@SCHEDULERS.register()
def Poly(
    learning_rate: NonNegativeFloat,
    power: PositiveFloat = 2.0,
    end_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegative = 0,
    warmup_epochs: NonNegative = 0,
    warmup_start_lr: NonNegativeFloat = 0.0,
    warmup_end_lr: NonNegativeFloat | None = None,
    decay_unit: Unit = "epoch",
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Curve:
    """Polynomial decay to end_lr, (1 - progress) ** power. warmup_end_lr defaults to learning_rate."""
    scale = steps_per_epoch if decay_unit == "epoch" else 1
    length = math.ceil(total_steps / scale)
    warmup = _plsc_warmup(warmup_steps, warmup_epochs, decay_unit, steps_per_epoch)
    end = learning_rate if warmup_end_lr is None else warmup_end_lr

    def rate(step: int) -> float:
        t = step // scale
        if t < warmup:
            return warmup_start_lr + (end - warmup_start_lr) * t / warmup
        progress = min(1.0, (t - warmup) / (length - warmup)) if length > warmup else 1.0
        return end_lr + (learning_rate - end_lr) * (1.0 - progress) ** power

    return Curve(rate, warmup * scale)


def _plsc_warmup(warmup_steps: int, warmup_epochs: int, decay_unit: Unit, steps_per_epoch: int) -> int:
    """Warm-up in the unit that Step and Poly count in."""
    _require(not (warmup_steps and warmup_epochs), "warmup_steps and warmup_epochs are both given; keep one")
    if decay_unit == "epoch":
        _require(not warmup_steps, "warmup_steps needs decay_unit: step; with decay_unit: epoch give warmup_epochs")
        return warmup_epochs
    return warmup_steps or warmup_epochs * steps_per_epoch
