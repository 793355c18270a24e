"""Config → components: the one file that knows every room."""

import dataclasses
import inspect
import logging

import numpy as np
import paddle

from plsc.config import Component, Config, DataSection, thawed
from plsc.config.schema import DATASET_KEYS
from plsc.data.datasets.base import Dataset, check_labels, check_protocol, shard_sizes
from plsc.data.datasets.combine import Subset, knows_labels, numbered_as, sliced
from plsc.data.device import DeviceInput
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader, measured_workers
from plsc.data.preprocess import Preprocess, split_transforms
from plsc.data.sampler import Sampler
from plsc.data.split import LabelTable, split
from plsc.data.transforms import NormalizeImage
from plsc.data.words import some
from plsc.errors import ConfigError, DataError
from plsc.losses import Loss, WeightedSum
from plsc.metrics import Metric, WithActivation
from plsc.model_card import ModelCard
from plsc.models.base import Model
from plsc.models.spec import pair
from plsc.optim import GradientClip, Optimizer, Schedule, WithWarmup, parameter_groups
from plsc.registry import (
    BATCH_TRANSFORMS,
    DATASETS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULERS,
    TASKS,
    TRANSFORMS,
    Registry,
    missing_members,
)
from plsc.targets import Activation
from plsc.tasks import Task

log = logging.getLogger("plsc")

_MOST_COMPARED = 2_000_000  # samples whose labels are looked at to compare slices


def component(config: Config, registry: Registry, part: Component, **supplied):
    """Build one component; what its constructor refuses is an error with the key's place."""
    entry, arguments = registry.get(part.name), dict(part.arguments)
    for name, kind in entry.nested().items():
        arguments[name] = [component(config, kind, inner) for inner in arguments[name]]
    for name, mark in entry.inputs().items():
        config.check_input((*part.path, name), arguments.get(name), mark)
    keys = DATASET_KEYS.keys() - entry.parameters().keys() if registry is DATASETS else ()
    cut = {key: arguments.pop(key, None) for key in keys}
    try:
        built = entry.build(thawed(arguments, entry.parameters()), **supplied)
    except ConfigError as error:
        raise config.error(part.path, str(error)) from error
    return _part(config, part, built, **cut) if registry is DATASETS else built


def _part(config: Config, part: Component, data, slice=None, val_fraction=None, val_seed=None):
    """The part of a data set that its keys choose: of val_fraction what is held out in Eval, the rest in Train."""
    key: tuple = ()
    try:
        check_protocol(data)
        if slice is not None:
            key = ("slice",)
            data = sliced(data, slice)
        if val_fraction is not None:
            key = ("val_fraction",)
            kept, held = split(data, val_fraction, val_seed)
            data = Subset(data, held if part.path[1:2] == ("Eval",) else kept)
    except (ConfigError, DataError) as error:
        raise config.error((*part.path, *key), str(error)) from error
    return data


def check_members(config: Config, part: Component, built, protocol: type) -> None:
    """Raise ConfigError where a component lacks what its protocol, a `typing.Protocol` class, asks for."""
    missing = missing_members(built, protocol)
    if missing:
        kind = protocol.__name__
        raise config.error(
            part.path,
            f"{part.name} lacks {', '.join(missing)}, which a {kind.lower()} needs; "
            f"{protocol.__module__}.{kind} says what they are:\n{inspect.getdoc(protocol)}",
        )


def model(config: Config):
    """The model with fresh weights, drawn from Global.seed."""
    paddle.seed(config.Global.seed)
    network = component(config, MODELS, model_part(config))
    check_members(config, config.Model, network, Model)
    return network


def class_num(config: Config) -> int:
    """The model's classes. Raises ConfigError where they are `auto`; see resolve_class_num."""
    count = config.Model.arguments["class_num"]
    if count == "auto":
        raise config.error(("Model", "class_num"), "is auto, but neither data nor weights give it here; give a number")
    return count


def resolve_class_num(config: Config, data) -> Config:
    """The configuration with the classes of `data` where Model.class_num is `auto`, else as it is."""
    if config.Model.arguments.get("class_num") != "auto":
        return config
    count = LabelTable.of(data).classes if data.class_names is None else len(data.class_names)
    log.info("Model.class_num: auto, which is %d by the data set", count)
    return config.replace({"Model.class_num": count})


def with_class_num(config: Config, count: int | None) -> Config:
    """The configuration with the classes that weights state where Model.class_num is `auto`, else as it is."""
    if config.Model.arguments.get("class_num") != "auto" or not count:
        return config
    return config.replace({"Model.class_num": count})


def dataset(config: Config, mode: str, *, class_names: list[str] | None = None, owner: str = ""):
    """The data set of DataLoader.Train or DataLoader.Eval.

    Args:
        class_names: number its classes as these, which are those of `owner`.

    Raises:
        ConfigError: there is no such DataLoader, or the data set's arguments do not fit.
        DataError: it holds no samples, or has classes that `owner` has not.
    """
    if mode not in config.DataLoader:
        raise ConfigError(f"DataLoader.{mode} is missing in the configuration")
    section = config.DataLoader[mode]
    data = component(config, DATASETS, section.dataset)
    if len(data) == 0:
        raise DataError(f"{section.dataset.name}: holds no samples")
    try:
        renumbered = numbered_as(data, class_names, owner)
    except DataError as error:
        raise DataError(f"DataLoader.{mode}.dataset: {section.dataset.name} {error}") from error
    if renumbered is not data:
        missing = sorted(set(class_names) - set(data.class_names))
        lacking = f", and has no pictures of {some(missing)}" if missing else ""
        log.warning("DataLoader.%s.dataset: its classes are numbered as in %s%s", mode, owner, lacking)
    return renumbered


def _check_classes(config: Config, mode: str, data) -> None:
    """Raises ConfigError where the data set has more classes than the model."""
    names, wanted, owner = data.class_names, class_num(config), config.DataLoader[mode].dataset.name
    check_labels(data, wanted)
    if names is None or len(names) == wanted:
        return
    if len(names) > wanted:
        raise config.error(
            ("Model", "class_num"),
            f"is {wanted}, but {owner} has {len(names)} classes; -o Model.class_num={len(names)}",
        )
    log.warning(
        "Model.class_num is %d, but %s has %d classes; -o Model.class_num=%d", wanted, owner, len(names), len(names)
    )


def transforms(config: Config, section: DataSection) -> list:
    return [component(config, TRANSFORMS, part) for part in section.transforms]


def mixing(config: Config) -> list:
    """Mixup and CutMix of the training batches."""
    return [component(config, BATCH_TRANSFORMS, part) for part in config.DataLoader["Train"].batch_transforms]


def task(config: Config, mode: str, class_num: int | None = None) -> Task:
    """What is learnt (mode Train) or measured (Eval), with the losses of that mode and, in training, the mixing.

    Args:
        class_num: outputs of the model; by default as the configuration has them.
    """
    if config.Task is None:
        raise config.error(("Task",), "is missing: it was left out, since its module was not imported")
    made = component(
        config,
        TASKS,
        config.Task,
        mode=mode,
        loss=losses(config, mode),
        mixing=mixing(config) if mode == "Train" else [],
        class_num=class_num or config.Model.arguments.get("class_num"),
    )
    check_members(config, config.Task, made, Task)
    return made


def compare_parts(config: Config, train, evaluation) -> None:
    """Warn where training and evaluation see the same pictures, or slices that do not have the same classes."""
    parts = {mode: config.DataLoader[mode].dataset for mode in ("Train", "Eval")}
    if parts["Train"] == parts["Eval"] and not _uses(parts["Eval"], "val_fraction"):
        log.warning(
            "DataLoader.Train and DataLoader.Eval read the same pictures: the accuracy says nothing of new ones"
        )
    if parts["Train"] != parts["Eval"] and all(_uses(part, "val_fraction") for part in parts.values()):
        log.warning(
            "DataLoader.Train.dataset and DataLoader.Eval.dataset both have val_fraction, but are not alike: what one "
            "holds out may be among what the other keeps"
        )
    if not any(_uses(part, "slice") for part in parts.values()):
        return
    sides = {"Train": train, "Eval": evaluation}
    if any(len(data) > _MOST_COMPARED or not knows_labels(data) for data in sides.values()):
        return
    present = {mode: set(np.flatnonzero(LabelTable.of(data).class_counts()).tolist()) for mode, data in sides.items()}
    for mode, other in (("Train", "Eval"), ("Eval", "Train")):
        missing = sorted(present[other] - present[mode])
        if missing:
            names = train.class_names
            log.warning(
                "DataLoader.%s.dataset.slice leaves no sample of some classes of DataLoader.%s: %s; val_fraction "
                "holds out a part of every class instead",
                mode,
                other,
                some([names[k] if names and k < len(names) else k for k in missing]),
            )


def _uses(part: Component, key: str) -> bool:
    """Whether a data set, or one that it is made of, has a value for a key of all data sets."""
    inner = (item for value in part.arguments.values() if isinstance(value, (list, tuple)) for item in value)
    return part.arguments.get(key) is not None or any(isinstance(i, Component) and _uses(i, key) for i in inner)


@dataclasses.dataclass
class Feed:
    """What supplies one mode with batches.

    Attributes:
        data: the data set. loader: see plsc.data.loader. input: DeviceInput. batch_size: of one process.
    """

    data: Dataset
    loader: Loader
    input: DeviceInput
    batch_size: int
    normalize: NormalizeImage | None = None
    preprocess: Preprocess | None = None


def feed(config: Config, mode: str, *, batch_size: int, data=None) -> Feed:
    """The data set, loader and device input of DataLoader.Train or DataLoader.Eval.

    Args:
        data: the data set, where it is open already; see `dataset`.
    """
    section = config.DataLoader[mode]
    data = dataset(config, mode) if data is None else data
    _check_classes(config, mode, data)
    steps = transforms(config, section)
    preprocess = None
    try:
        host, normalize, drawn = split_transforms(steps)
        if mode == "Eval":
            preprocess = Preprocess.of(steps)
    except ConfigError as error:
        raise config.error((*section.path, "dataset", "transform_ops"), str(error)) from error
    log.info("%s: %s", mode, _described(section, data))
    fetcher = Fetcher(
        data,
        host,
        seed=config.Global.seed,
        class_num=class_num(config),
        damaged=section.loader.damaged_images,
        drawn=drawn,
    )
    _check_picture(config, mode, fetcher, normalize)
    workers = section.loader.num_workers
    if workers == "auto":
        workers, why = measured_workers(fetcher, batch_size, on_cpu=paddle.get_device() == "cpu")
        log.info("DataLoader.%s: %d worker process%s: %s", mode, workers, "" if workers == 1 else "es", why)
    loader = Loader(
        fetcher,
        batch_size=batch_size,
        num_workers=workers,
        prefetch_batches=section.loader.prefetch_batches,
        on_skip=lambda message: log.warning("skipped: %s", message),
        on_wait=lambda message: log.warning("%s", message),
    )
    return Feed(data, loader, DeviceInput(normalize, drawn), batch_size, normalize, preprocess)


def _described(section: DataSection, data) -> str:
    """ "1,437 samples of 10 classes (0, 1, 2, …) from Digits split=train" """
    names, arguments = data.class_names, section.dataset.arguments
    classes = ""
    if names is not None:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        classes = f" of {len(names)} classes ({some})"
    keys = ("root", "cls_label_path", "files", "split")
    place = next((f" {arguments[key]}" for key in keys if arguments.get(key)), "")
    return f"{len(data):,} samples{classes} from {section.dataset.name}{place}"


def _check_picture(config: Config, mode: str, fetcher: Fetcher, normalize) -> None:
    """Refuse pictures that the model does not take, before the first step."""
    height, width, channels = fetcher.fields()["image"].shape
    size, expected_channels = (config.Model.arguments.get(key) for key in ("img_size", "in_chans"))
    path = ("DataLoader", mode, "dataset", "transform_ops")
    if size is not None and (height, width) != pair(size):
        expected = "{}x{}".format(*pair(size))
        raise config.error(path, f"leave pictures of {height}x{width} pixels, but Model.img_size is {expected}")
    if expected_channels not in (None, channels):
        raise config.error(path, f"leave {channels} channels, but Model.in_chans is {expected_channels}")
    if normalize is not None and len(normalize.mean) not in (1, channels):
        raise config.error(path, f"NormalizeImage has {len(normalize.mean)} means for {channels} channels")


def local_batch_size(config: Config, world_size: int) -> int:
    """Samples of one process's training batch. Raises ConfigError where what the configuration says does not divide."""
    g, path = config.Global, ("DataLoader", "Train", "sampler", "batch_size")
    local = config.DataLoader["Train"].sampler.arguments["batch_size"]
    if g.global_batch_size is not None:
        path = ("Global", "global_batch_size")
        if local is not None and local * world_size != g.global_batch_size:
            raise config.error(
                path, f"is {g.global_batch_size}, but {world_size} x sampler.batch_size is {local * world_size}"
            )
        local, rest = divmod(g.global_batch_size, world_size)
        if rest:
            raise config.error(
                path, f"the global batch of {g.global_batch_size} is not divisible by {world_size} processes"
            )
    if local % g.accum_steps:
        raise config.error(
            ("Global", "accum_steps"), f"{g.accum_steps} does not divide the batch of {local} of one process"
        )
    return local


def sampler(config: Config, data, batch_size: int, rank: int, world_size: int) -> Sampler:
    """The training order over a data set."""
    part = config.DataLoader["Train"].sampler
    part = dataclasses.replace(part, arguments={**part.arguments, "batch_size": batch_size})
    sizes, lanes = shard_sizes(data), part.arguments.get("lanes")
    if sizes is not None and lanes and lanes % world_size:
        log.warning(
            "%d processes do not divide the %d lanes of shards: each process reads parts of all; "
            "-o DataLoader.Train.sampler.lanes=%d, for a new run",
            world_size,
            lanes,
            -(-lanes // world_size) * world_size,
        )
    made = component(
        config,
        SAMPLERS,
        part,
        size=len(data),
        seed=config.Global.seed,
        rank=rank,
        world=world_size,
        shard_sizes=sizes,
    )
    missing = missing_members(made, Sampler)
    if missing:
        raise config.error(part.path, f"{part.name} is no sampler, since it lacks {', '.join(missing)}")
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
    """What the training loss makes of logits; None where it says so, or the configuration has none."""
    loss = losses(config, "Train")
    return loss.activation if loss else None


def metrics(config: Config, mode: str, *, weights_activation: str | None = None) -> list:
    """The metrics of one mode; evaluation without any gets TopkAcc.

    Args:
        weights_activation: what the weights say of themselves. A metric's `activation` that the recipe leaves open
            is this, else that of the training loss.
    """
    parts = config.Metric[mode]
    if not parts and mode == "Eval":
        parts = [Component("TopkAcc", {}, ("Metric", "Eval"))]
    made = [component(config, METRICS, part) for part in parts]
    for part, metric in zip(parts, made, strict=True):
        check_members(config, part, metric, Metric)
        if isinstance(metric, WithActivation) and metric.activation is None:
            metric.activation = weights_activation or activation(config)
            if metric.activation is None:
                raise config.error(
                    (*part.path, "activation"),
                    f"neither the weights nor Loss.Train say how logits become probabilities; give {part.name} "
                    "softmax or sigmoid",
                )
    return made


def schedule(config: Config, total_steps: int, steps_per_epoch: int) -> Schedule:
    """update → learning rate."""
    made = component(config, SCHEDULERS, config.LRScheduler, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    check_members(config, config.LRScheduler, made, Schedule)
    if isinstance(made, WithWarmup) and made.warmup >= total_steps:
        log.warning(
            "the run of %d updates is no longer than the warm-up of %d: the learning rate ends at %.3g, below its peak",
            total_steps,
            made.warmup,
            made(total_steps - 1),
        )
    return made


def optimizer(config: Config, network, multi_precision: bool):
    """The optimizer over the model's trainable parameters, in groups, with clipping."""
    options = config.optimizer_options
    try:
        groups = parameter_groups(
            network,
            no_decay=options.no_weight_decay,
            no_decay_names=options.no_weight_decay_name,
            layer_decay=options.layer_decay,
        )
    except ConfigError as error:
        raise config.error(("Optimizer", "layer_decay"), str(error)) from error
    paddle_optimizer = component(config, OPTIMIZERS, config.Optimizer, groups=groups, multi_precision=multi_precision)
    if not isinstance(paddle_optimizer, paddle.optimizer.Optimizer):
        raise config.error(
            ("Optimizer", "name"),
            f"{config.Optimizer.name} makes {type(paddle_optimizer).__name__}, not a paddle.optimizer.Optimizer; see "
            "plsc.optim.OptimizerFactory",
        )
    clip = options.grad_clip
    clipping = (
        GradientClip(clip.clip_norm, clip.clip_norm_max, clip.always_clip, tuple(clip.no_clip_list))
        if clip
        else GradientClip()
    )
    return Optimizer(paddle_optimizer, network, clipping)


def model_part(config: Config, img_size: int | None = None) -> Component:
    """The recipe's Model section, at another resolution where one is asked for. Raises ConfigError as class_num."""
    if "class_num" in config.Model.arguments:
        class_num(config)
    if img_size is None or "img_size" not in config.Model.arguments:
        return config.Model
    return dataclasses.replace(config.Model, arguments={**config.Model.arguments, "img_size": img_size})


def recipe_preprocess(config: Config, img_size: int | None = None) -> Preprocess | None:
    """How a recipe's evaluation prepares pictures, at another resolution in proportion; None where it has none."""
    if "Eval" not in config.DataLoader:
        return None
    section = config.DataLoader["Eval"]
    try:
        preprocess = Preprocess.of(transforms(config, section))
    except ConfigError as error:
        raise config.error((*section.path, "dataset", "transform_ops"), str(error)) from error
    size = ModelCard(spec=config.Model.arguments, preprocess=preprocess).img_size
    if img_size is None or size == (img_size, img_size):
        return preprocess
    if size is None or size[0] != size[1]:
        shown = "open" if size is None else list(size)
        raise config.error(("Model", "img_size"), f"is {shown}; another resolution needs a square one")
    return preprocess.enlarged(img_size, size[0])
