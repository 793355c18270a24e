"""Known mistakes in recipes, as far as they show before a run."""

import math
from collections.abc import Callable
from typing import Any

from plsc import build
from plsc.config import Config
from plsc.optim import Schedule, WithWarmup

_DECOUPLED = ("AdamW", "Lion", "Muon", "Adafactor")  # optimizers that decay by rate * weight_decay * weight
_POINTS = 1000  # of a schedule, for its mean


def warnings(config: Config, spec: Any, *, length: build.Length | None) -> list[str]:
    """What is likely to be wrong, each with a remedy.

    Args:
        spec: of the model. length: of the run, where it is known.
    """
    problems = [_rate_and_batch(config), _head_bias(config, spec)]
    if length is not None:
        schedule = build.schedule(config, length.schedule_steps, length.steps_per_epoch)
        problems += [_warm_up(config, schedule, length), _decay(config, schedule, length), _average(config, length)]
    return [problem for problem in problems if problem]


def _rate_and_batch(config: Config) -> str | None:
    """A batch that was overridden, beside a rate that was not."""
    origin = config.source.origin
    size, rate = ("DataLoader", "Train", "sampler", "batch_size"), ("LRScheduler", "learning_rate")
    total = ("Global", "global_batch_size")
    if origin(rate).override:
        return None
    keys = (key for key in (total, size) if config.source.value(key) is not None)
    changed = next((key for key in keys if origin(key).override), None)
    if changed is None:
        return None
    return (
        f"{'.'.join(changed)} is overridden, but the learning rate is as the recipe has it; scale "
        "LRScheduler.learning_rate with the batch (in proportion, Goyal et al., 2017; for Adam often by its root)"
    )


def _warm_up(config: Config, schedule: Schedule, length: build.Length) -> str | None:
    warmup = schedule.warmup if isinstance(schedule, WithWarmup) else 0
    problem = build.warmup_problem(config, schedule, length.steps, length.steps_per_epoch)
    if problem is None and warmup > length.steps / 2:
        return f"the warm-up takes {warmup:,} of {length.steps:,} updates, over half of the run; 3 to 10 % are usual"
    return problem


def _decay(config: Config, schedule: Callable[[int], float], length: build.Length) -> str | None:
    """A weight decay that, times the learning rate, hardly acts or leaves little of the weights."""
    optimizer = config.Optimizer
    decay = optimizer.arguments.get("weight_decay") if optimizer else None
    if optimizer is None or not decay or optimizer.name not in _DECOUPLED:
        return None
    points = range(0, length.steps, max(1, length.steps // _POINTS))
    mean = sum(map(schedule, points)) / len(points)
    most = max(map(schedule, points)) * decay
    if most > 0.02:
        return (
            f"Optimizer.weight_decay {decay:g} times the learning rate takes {100 * most:.2g} % off the weights "
            f"in each update: {optimizer.name} multiplies the two; a decay of {0.001 * decay / most:.2g} takes 0.1 %"
        )
    total = 1.0 - math.exp(-mean * decay * length.steps)
    if total < 0.02 and length.steps >= 1000 and not (config.Global.pretrained_model or config.Global.checkpoint):
        return (
            f"Optimizer.weight_decay {decay:g} times the learning rate takes {100 * total:.2g} % off the weights "
            f"in the whole run, so that it hardly acts: {optimizer.name} multiplies the two; to mean a recipe of a "
            "library that does not, such as big_vision's 1e-4, divide it by the rate"
        )
    return None


def _head_bias(config: Config, spec: Any) -> str | None:
    """A bias for sigmoid outputs under a softmax, which does not see what all classes share."""
    bias = getattr(spec, "head_bias", 0.0)
    if not bias or not config.Loss["Train"] or build.activation(config) != "softmax":
        return None
    return (
        f"Model.head_bias is {bias:g}, which starts sigmoid outputs near 0; the loss here is a softmax, which does not "
        "see what all classes have in common: it has no effect; set it to 0"
    )


def _average(config: Config, length: build.Length) -> str | None:
    if config.EMA is None:
        return None
    memory = 1.0 / (1.0 - config.EMA.decay)
    if memory <= length.steps / 2:
        return None
    return (
        f"EMA.decay {config.EMA.decay:g} averages over about {memory:,.0f} updates, and the run has {length.steps:,}: "
        f"the average holds much of its beginning; {1.0 - 10.0 / length.steps:.4g} averages over its last tenth"
    )
