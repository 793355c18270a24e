"""What supplies training and evaluation with batches: data sets, transforms, loaders, the order of samples."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from plsc import environment
from plsc.build.components import component
from plsc.build.learning import class_num
from plsc.config import Component, Config, DataSection
from plsc.data.datasets.base import Dataset, check_labels, sample_of, shard_sizes
from plsc.data.datasets.combine import knows_labels, numbered_as
from plsc.data.device import DeviceInput
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader, measured_workers
from plsc.data.preprocess import Preprocess, split_transforms
from plsc.data.sampler import Sampler
from plsc.data.split import LabelTable
from plsc.data.transforms import Compose, DecodeImage, NormalizeImage, RandomApply
from plsc.data.transforms.base import DoesNotFit
from plsc.data.words import some
from plsc.errors import ConfigError, DataError
from plsc.model_card import ModelCard
from plsc.models.spec import pair
from plsc.registry import DATASETS, SAMPLERS, TRANSFORMS, missing_members

log = logging.getLogger("plsc")

_TRANSFORMS = "plsc.data.transforms"
_MOST_COMPARED = 2_000_000  # samples whose labels are looked at to compare slices


def resolve_class_num(config: Config, data: Dataset) -> Config:
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


def dataset(config: Config, mode: str, *, class_names: list[str] | None = None, owner: str = "") -> Dataset:
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
    if class_names is None:
        return data
    try:
        renumbered = numbered_as(data, class_names, owner)
    except DataError as error:
        raise DataError(f"DataLoader.{mode}.dataset: {section.dataset.name} {error}") from error
    if renumbered is not data:
        missing = sorted(set(class_names) - set(data.class_names or ()))
        lacking = f", and has no pictures of {some(missing)}" if missing else ""
        log.warning("DataLoader.%s.dataset: its classes are numbered as in %s%s", mode, owner, lacking)
    return renumbered


def _check_classes(config: Config, mode: str, data: Dataset) -> None:
    """Raise ConfigError where the data set has more classes than the model."""
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


def transforms(config: Config, section: DataSection) -> list[Callable]:
    """The transforms of single pictures."""
    return [component(config, TRANSFORMS, part) for part in section.transforms]


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


def feed(config: Config, mode: str, *, batch_size: int, data: Dataset | None = None) -> Feed:
    """The data set, loader and device input of DataLoader.Train or DataLoader.Eval.

    Args:
        data: the data set, where it is open already; see `dataset`.
    """
    section = config.DataLoader[mode]
    data = dataset(config, mode) if data is None else data
    _check_classes(config, mode, data)
    steps = _decoding(transforms(config, section), data, mode)
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
    _check_memory(config, mode, loader)
    return Feed(data, loader, DeviceInput(normalize, drawn), batch_size, normalize, preprocess)


def _decoding(steps: list[Callable], data: Dataset, mode: str) -> list[Callable]:
    """The transforms, with DecodeImage before them where pictures are encoded files and the first takes pixels.

    PLSC's ImageFolder decodes by itself, so that its recipes have no DecodeImage. Somebody else's transform may take
    the file.
    """
    first = steps[0] if steps else None
    takes_pixels = type(first).__module__.startswith(f"{_TRANSFORMS}.") and not isinstance(
        first, (DecodeImage, Compose, RandomApply)
    )
    if not takes_pixels or not isinstance(sample_of(data, 0).image, bytes):
        return steps
    log.info("%s: pictures are decoded first, as if DecodeImage began transform_ops", mode)
    return [DecodeImage(), *steps]


def _described(section: DataSection, data: Dataset) -> str:
    """ "1,437 samples of 10 classes (0, 1, 2, …) from Digits split=train" """
    names, arguments = data.class_names, section.dataset.arguments
    classes = ""
    if names is not None:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        classes = f" of {len(names)} classes ({some})"
    keys = ("root", "cls_label_path", "files", "split")
    place = next((f" {arguments[key]}" for key in keys if arguments.get(key)), "")
    return f"{len(data):,} samples{classes} from {section.dataset.name}{place}"


def _check_picture(config: Config, mode: str, fetcher: Fetcher, normalize: NormalizeImage | None) -> None:
    """Refuse pictures that the model does not take, before the first step."""
    try:
        height, width, channels = fetcher.fields()["image"].shape
    except DataError as error:
        misfit = _misfit(error)
        part = next((p for p in config.DataLoader[mode].transforms if misfit and p.name == misfit.transform), None)
        if part is None:
            raise
        raise config.error(part.path, str(error)) from error
    size, expected_channels = (config.Model.arguments.get(key) for key in ("img_size", "in_chans"))
    path = ("DataLoader", mode, "dataset", "transform_ops")
    if size is not None and (height, width) != pair(size):
        expected = "{}x{}".format(*pair(size))
        raise config.error(path, f"leave pictures of {height}x{width} pixels, but Model.img_size is {expected}")
    if expected_channels not in (None, channels):
        raise config.error(path, f"leave {channels} channels, but Model.in_chans is {expected_channels}")
    if normalize is not None and len(normalize.mean) not in (1, channels):
        raise config.error(path, f"NormalizeImage has {len(normalize.mean)} means for {channels} channels")


def _misfit(error: BaseException | None) -> DoesNotFit | None:
    """The transform's error that another one was raised from."""
    while error is not None and not isinstance(error, DoesNotFit):
        error = error.__cause__
    return error


def _check_memory(config: Config, mode: str, loader: Loader) -> None:
    """Refuse batches that this machine has no memory for."""
    limit, needed = environment.memory_limit(), loader.memory
    if limit is not None and needed > limit // environment.local_size():
        batches = f"{loader.slots} batches" if loader.slots > 1 else "one batch"
        raise config.error(
            ("DataLoader", mode, "sampler", "batch_size"),
            f"{loader.batch_size:,} pictures a process: {batches} of them take {needed / 2**30:,.1f} GiB, but this "
            f"machine has {limit / 2**30:,.1f} GiB for {environment.local_size()} of the run's processes; a smaller "
            "batch, or a smaller loader.prefetch_batches",
        )


def compare_parts(config: Config, train: Dataset, evaluation: Dataset) -> None:
    """Warn where training and evaluation see the same pictures, or slices that do not have the same classes."""
    parts = {mode: config.DataLoader[mode].dataset for mode in ("Train", "Eval")}
    if parts["Train"] == parts["Eval"] and not _uses(parts["Eval"], "val_fraction"):
        log.warning("DataLoader.Train and DataLoader.Eval read the same pictures: the accuracy is not that on new ones")
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


def held_out(part: Component) -> dict[str, Any]:
    """val_fraction and val_seed of a data set, and of those that it is made of, by their keys below it."""
    fraction = part.arguments.get("val_fraction")
    kept = {} if fraction is None else {"val_fraction": fraction, "val_seed": part.arguments.get("val_seed", 0)}
    for name, value in part.arguments.items():
        for i, item in enumerate(value if isinstance(value, (list, tuple)) else ()):
            if isinstance(item, Component):
                kept |= {f"{name}.{i}.{item.name}.{key}": inner for key, inner in held_out(item).items()}
    return kept


def _uses(part: Component, key: str) -> bool:
    """Whether a data set, or one that it is made of, has a value for a key of all data sets."""
    inner = (item for value in part.arguments.values() if isinstance(value, (list, tuple)) for item in value)
    return part.arguments.get(key) is not None or any(isinstance(i, Component) and _uses(i, key) for i in inner)


def local_batch_size(config: Config, world_size: int) -> int:
    """Samples of one process's training batch. Raises ConfigError where processes or accum_steps do not divide it."""
    g, path = config.Global, ("Global", "global_batch_size")
    local = config.DataLoader["Train"].sampler.arguments["batch_size"]
    if g.global_batch_size is not None:
        if local is not None and local * world_size != g.global_batch_size:
            raise config.error(
                path,
                f"is {g.global_batch_size}, but {world_size} x sampler.batch_size is {local * world_size}; leave "
                f"sampler.batch_size out, or set -o Global.global_batch_size={local * world_size}",
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


def sampler(config: Config, data: Dataset, batch_size: int, rank: int, world_size: int) -> Sampler:
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
        raise config.error(part.path, f"{part.name} is not a sampler, since it lacks {', '.join(missing)}")
    return made


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
