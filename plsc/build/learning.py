"""What is trained and how: model, task, losses, metrics, schedule, optimizer."""

import dataclasses
import logging
from collections.abc import Callable, Collection
from typing import Any

import paddle

from plsc.build.components import check_members, component
from plsc.config import Component, Config
from plsc.config.rules import above_classes
from plsc.errors import ConfigError
from plsc.losses import Loss, WeightedSum
from plsc.metrics import Metric, WithActivation
from plsc.models.base import Model
from plsc.optim import GradientClip, Optimizer, Schedule, WithWarmup, groups_of, parameter_groups
from plsc.registry import BATCH_TRANSFORMS, LOSSES, METRICS, MODELS, OPTIMIZERS, SCHEDULERS, TASKS
from plsc.targets import Activation
from plsc.tasks import Task

log = logging.getLogger("plsc")

_WARMUP_KEYS = ("warmup_steps", "warmup_epochs", "warmup_epoch")  # of plsc's schedules


def model(config: Config) -> Any:
    """The model with fresh weights, drawn from Global.seed."""
    paddle.seed(config.Global.seed)
    network = component(config, MODELS, model_part(config))
    check_members(config, config.Model, network, Model)
    return network


def model_part(config: Config, img_size: int | None = None) -> Component:
    """The recipe's Model section, at another resolution where one is asked for. Raises ConfigError as class_num."""
    if "class_num" in config.Model.arguments:
        class_num(config)
    if img_size is None or "img_size" not in config.Model.arguments:
        return config.Model
    return dataclasses.replace(config.Model, arguments={**config.Model.arguments, "img_size": img_size})


def class_num(config: Config) -> int:
    """The model's classes. Raises ConfigError where they are `auto`; see resolve_class_num."""
    count = config.Model.arguments["class_num"]
    if count == "auto":
        raise config.error(("Model", "class_num"), "is auto, but neither data nor weights give it here; give a number")
    return count


def mixing(config: Config) -> list[Callable]:
    """Mixup and CutMix of the training batches."""
    return [component(config, BATCH_TRANSFORMS, part) for part in config.DataLoader["Train"].batch_transforms]


def task(config: Config, mode: str, class_num: int | None = None) -> Task:
    """What is learnt (mode Train) or measured (Eval), with the losses of that mode and, in training, the mixing.

    Args:
        class_num: outputs of the model; by default as the configuration has them.
    """
    part = _present(config, config.Task, "Task")
    made = component(
        config,
        TASKS,
        part,
        mode=mode,
        loss=losses(config, mode),
        mixing=mixing(config) if mode == "Train" else [],
        class_num=class_num or config.Model.arguments.get("class_num"),
    )
    check_members(config, part, made, Task)
    return made


def losses(config: Config, mode: str) -> WeightedSum | None:
    """The losses of one mode, where evaluation without any takes the training's; None where there are none.

    Raises:
        ConfigError: a loss lacks a member of the protocol plsc.losses.Loss.
    """
    parts = config.Loss[mode] or config.Loss["Train"]
    made = [component(config, LOSSES, part) for part in parts]
    for part, loss in zip(parts, made, strict=True):
        check_members(config, part, loss, Loss)
    return WeightedSum(made) if made else None


def activation(config: Config) -> Activation | None:
    """What the training loss makes of logits; None where it is None of the loss, or there is no loss."""
    loss = losses(config, "Train")
    return loss.activation if loss else None


def metrics(config: Config, mode: str, *, weights_activation: Activation | None = None) -> list[Metric]:
    """The metrics of one mode; evaluation without any gets TopkAcc.

    Args:
        weights_activation: of the weights' card. A metric's `activation` that the recipe leaves open is this, else
            that of the training loss.
    """
    parts = list(config.Metric[mode])
    if not parts and mode == "Eval":
        parts = [Component("TopkAcc", {}, ("Metric", "Eval"))]
    made = [component(config, METRICS, part) for part in parts]
    for part, metric in zip(parts, made, strict=True):
        check_members(config, part, metric, Metric)
        wrong = above_classes(part, config.Model.arguments.get("class_num"))
        if wrong:
            raise config.error((*part.path, "topk"), wrong)
        if isinstance(metric, WithActivation) and metric.activation is None:
            metric.activation = weights_activation or activation(config)
            if metric.activation is None:
                raise config.error(
                    (*part.path, "activation"),
                    f"neither the weights nor Loss.Train define how logits become probabilities; give {part.name} "
                    "softmax or sigmoid",
                )
    return made


def _present(config: Config, part: Component | None, section: str) -> Component:
    """What training needs and other commands do without. Raises ConfigError where a configuration lacks it."""
    if part is None:
        raise config.error((section,), "is missing, or was left out since its module was not imported")
    return part


def schedule(config: Config, total_steps: int, steps_per_epoch: int) -> Schedule:
    """update → learning rate."""
    part = _present(config, config.LRScheduler, "LRScheduler")
    made = component(config, SCHEDULERS, part, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    check_members(config, part, made, Schedule)
    problem = warmup_problem(config, made, total_steps, steps_per_epoch)
    if problem is not None:
        log.warning("%s", problem)
    return made


def warmup_problem(config: Config, made: Schedule, total_steps: int, steps_per_epoch: int) -> str | None:
    """That a run ends within its warm-up, with the key and a value that would do; None where it does not."""
    if not isinstance(made, WithWarmup) or made.warmup < total_steps:
        return None
    text = (
        f"the run of {total_steps:,} updates is no longer than the warm-up of {made.warmup:,}: the learning rate ends "
        f"at {made(total_steps - 1):.3g} and never reaches its peak"
    )
    arguments = config.LRScheduler.arguments if config.LRScheduler else {}
    key = next((key for key in _WARMUP_KEYS if arguments.get(key)), None)
    if key is None:  # of somebody else's schedule
        return config.source.located(("LRScheduler",), f"{text}; shorten its warm-up")
    length = total_steps if key == "warmup_steps" else total_steps // steps_per_epoch
    shorter = length // 20 or int(length > 1)
    return config.source.located(
        ("LRScheduler", key), f"is {arguments[key]}, but {text}; set it to {shorter}, for instance"
    )


def optimizer(
    config: Config, network: paddle.nn.Layer, multi_precision: bool, owned: Collection[str] | None = None
) -> Optimizer:
    """The optimizer over the model's trainable parameters, in groups, with clipping.

    Args:
        owned: names of the parameters that this process updates; None for all.
    """
    options = config.optimizer_options
    try:
        groups = parameter_groups(
            network,
            no_decay=options.no_weight_decay,
            no_decay_names=options.no_weight_decay_name,
            layer_decay=options.layer_decay,
            lr_scale=options.lr_scale,
            weight_decay_scale=options.weight_decay_scale,
        )
    except ConfigError as error:
        raise config.error(("Optimizer",), str(error)) from error
    if owned is not None:
        groups = groups_of(groups, owned)
    part = _present(config, config.Optimizer, "Optimizer")
    paddle_optimizer = component(config, OPTIMIZERS, part, groups=groups, multi_precision=multi_precision)
    if not isinstance(paddle_optimizer, paddle.optimizer.Optimizer):
        raise config.error(
            ("Optimizer", "name"),
            f"{part.name} makes {type(paddle_optimizer).__name__}, not a paddle.optimizer.Optimizer; see "
            "plsc.optim.OptimizerFactory",
        )
    clip = options.grad_clip
    clipping = (
        GradientClip(clip.clip_norm, clip.clip_norm_max, clip.always_clip, tuple(clip.no_clip_list))
        if clip
        else GradientClip()
    )
    return Optimizer(paddle_optimizer, network, clipping, owned)
