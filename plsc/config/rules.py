"""What a configuration must hold to across several keys."""

from plsc.config.checker import Checker
from plsc.config.config import Config
from plsc.config.schema import Component
from plsc.registry import METRICS, TASKS


def check_rules(c: Checker, config: Config) -> None:
    """Note a problem for each rule that a configuration, whose keys are right one by one, breaks."""
    _check_lengths(c, config)
    for mode in config.DataLoader:
        _check_data(c, config, mode)
    _check_val_fraction(c, config)
    _check_losses(c, config)
    _check_topk(c, config)
    _check_precision(c, config)
    _check_sharding(c, config)
    if config.Global.to_static and config.DistributedStrategy.recompute:
        c.problem(
            ("Global", "to_static"),
            "is given with DistributedStrategy.recompute, which saves no memory in Paddle's compiled blocks; keep one",
        )


def _check_sharding(c: Checker, config: Config) -> None:
    sharding = config.DistributedStrategy.sharding
    if sharding is None:
        return
    if not config.DistributedStrategy.data_parallel:
        c.problem(
            ("DistributedStrategy", "data_parallel"), "is False, but sharding is data-parallel training; keep one"
        )
    if sharding.stage == 3 and config.Global.to_static:
        c.problem(
            ("Global", "to_static"),
            "is given with stage 3 of DistributedStrategy.sharding, whose blocks release their weights; keep one, or "
            "take stage 2",
        )


def takes_losses(task: Component) -> bool:
    """Whether a task learns by the losses of the section Loss."""
    return "loss" in TASKS.get(task.name).supplied_parameters()


def _check_lengths(c: Checker, config: Config) -> None:
    g = config.Global
    if not c.for_training:
        return
    if config.Task and not config.Loss["Train"] and takes_losses(config.Task):
        c.problem(("Loss", "Train"), "is missing; it lists the losses to train with")
    if not config.DataLoader:
        c.problem(("DataLoader",), "has neither Train nor Eval")
    if g.epochs is None and g.max_train_step is None and "Train" in config.DataLoader:
        c.problem(("Global", "epochs"), "is missing; give epochs or max_train_step, the length of the run")
    if "Eval" not in config.DataLoader:
        if g.eval_during_train:
            c.problem(("Global", "eval_during_train"), "is True, but there is no DataLoader.Eval")
        if config.EMA and config.EMA.ema_eval:
            c.problem(("EMA", "ema_eval"), "is True, but there is no DataLoader.Eval")


def _check_data(c: Checker, config: Config, mode: str) -> None:
    g, section = config.Global, config.DataLoader[mode]
    path = ("DataLoader", mode, "sampler", "batch_size")
    arguments = section.sampler.arguments
    size = arguments.get("batch_size")
    if mode == "Eval":
        if section.batch_transforms:
            c.problem(section.batch_transforms[0].path, "mixes pictures, which evaluation does not")
        if arguments.get("drop_last") or arguments.get("shuffle"):
            c.note(path[:-1], "drop_last and shuffle are without effect: evaluation takes every sample once, in order")
    if "batch_size" not in arguments:
        c.problem(
            path[:-1], f"{section.sampler.name} has no argument batch_size, which the samples of one process need"
        )
    elif size is None and (mode == "Eval" or g.global_batch_size is None):
        c.problem(path, "is missing; it is the batch of one process")
    elif mode == "Train" and size is not None and size % g.accum_steps:
        c.problem(path, f"{size} is not divisible by Global.accum_steps = {g.accum_steps}")


def _check_losses(c: Checker, config: Config) -> None:
    for parts in config.Loss.values():
        weights = [part.arguments.get("weight") for part in parts]
        if weights and all(weight == 0 for weight in weights):
            text = "is 0, as that of every loss of this list, so that nothing is learnt"
            c.problem((*parts[0].path, "weight"), text)


def _check_topk(c: Checker, config: Config) -> None:
    for part in (part for parts in config.Metric.values() for part in parts):
        text = above_classes(part, config.Model.arguments.get("class_num"))
        if text:
            c.problem((*part.path, "topk"), text)


def above_classes(metric: Component, class_num) -> str | None:
    """What is wrong with a metric's topk, of which all classes are less; None where nothing is, or they are `auto`.

    The default, top-1 and top-5, is every recipe's: with fewer than five classes all of them count.
    """
    topk = metric.arguments.get("topk")
    if not isinstance(class_num, int) or topk is None or topk == METRICS.get(metric.name).parameters()["topk"].default:
        return None
    most = max((k for k in (topk if isinstance(topk, tuple) else (topk,)) if isinstance(k, int)), default=0)
    if most <= class_num:
        return None
    return f"{most} is more than the {class_num} classes of the model, all of which would count as right"


def _check_val_fraction(c: Checker, config: Config) -> None:
    """One data set is divided in one way for training and evaluation, else they see the same pictures."""
    parts = [section.dataset for section in config.DataLoader.values()]
    if len(parts) == 2 and parts[0] != parts[1] and _undivided(parts[0]) == _undivided(parts[1]):
        c.problem(
            ("DataLoader", "Eval", "dataset", "val_fraction"),
            "DataLoader.Train names the same data set; give both the same val_fraction and val_seed, so that they take "
            "different pictures of it",
        )


def _undivided(value):
    """A data set, and those that it is made of, without val_fraction and val_seed."""
    if isinstance(value, (list, tuple)):
        return [_undivided(item) for item in value]
    if not isinstance(value, Component):
        return value
    kept = {k: _undivided(v) for k, v in value.arguments.items() if k not in ("val_fraction", "val_seed")}
    return Component(value.name, kept)


def _check_precision(c: Checker, config: Config) -> None:
    if config.FP16:
        scaler = config.FP16.GradScaler
        if scaler.init_loss_scaling > scaler.max_loss_scaling:
            c.problem(("FP16", "GradScaler", "init_loss_scaling"), "is larger than max_loss_scaling")
