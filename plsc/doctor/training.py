"""A training step as runs do it, and what it asks of processors and network."""

import logging
import math
import time
import uuid
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle

from plsc import compat, environment
from plsc.api import load_config
from plsc.data.sampler import Draw
from plsc.doctor.checks import Finding, Site, check, judge, skip
from plsc.engine.assembly import assemble
from plsc.engine.utilisation import device_peak, full_speed, training_flops
from plsc.models import parameter_count, spec_of

log = logging.getLogger("plsc")

_PICTURES, _CLASSES = 32, 1000
_LARGEST_BATCH, _STEP_SECONDS, _ASSUMED_SHARE = 128, 0.5, 0.4  # of the rate of products
_ARRAYS, _BYTES_A_PARAMETER = 17, 18  # of a block, kept for backward; of weights, masters, moments and gradients
_STEPS, _UNTIMED = 3, 2
_LOW_SHARE = {"data sheet": 0.25, "matrix rate above": 0.2}
_MOST_WAITING, _MOST_REDUCTION = 0.1, 0.15  # of a step
_DECODING_SECONDS = 0.5


def recipe(site: Site, folder: Path, batch_size: int) -> dict[str, Any]:
    """A run on the pictures of `folder`, as the shipped recipes train."""
    size = getattr(spec_of(site.model), "img_size", 224)
    transforms = [
        {"DecodeImage": {"to_rgb": True, "channel_first": False}},
        {"RandCropImage": {"size": size}},
        {"RandFlipImage": {"flip_code": 1}},
        {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}},
        {"ToCHWImage": None},
    ]
    tree: dict[str, Any] = {
        "Global": {
            "device": site.device.split(":")[0],
            "max_train_step": 1000,
            "output_dir": str(folder / "run"),
            "eval_during_train": False,
            "save_interval": 0,
        },
        "Model": {"name": site.model, "class_num": _CLASSES},
        "Loss": {"Train": [{"CELoss": {}}]},
        "LRScheduler": {"name": "Constant", "learning_rate": 1e-4},
        "Optimizer": {"name": "AdamW", "weight_decay": 0.05, "grad_clip": {"clip_norm": 1.0}},
        "DataLoader": {
            "Train": {
                "dataset": {"name": "ImageFolder", "root": str(folder / "pictures"), "transform_ops": transforms},
                "sampler": {"batch_size": batch_size, "shuffle": True, "drop_last": False},
            }
        },
    }
    if site.half:
        tree["FP16"] = {"level": "O2", "dtype": site.half}
    return tree


def write_pictures(folder: Path) -> None:
    """JPEGs of 500 x 375 pixels, about as large as ImageNet's."""
    rng = np.random.default_rng(0)
    (folder / "one").mkdir(parents=True)
    for k in range(_PICTURES):
        coarse = cv2.resize(rng.uniform(0, 255, (24, 32, 3)), (500, 375), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(coarse + rng.normal(0, 17, coarse.shape), 0, 255).astype("uint8")
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        (folder / "one" / f"{k:02d}.jpg").write_bytes(encoded.tobytes())


def _batch_size(site: Site) -> int:
    """Images of a process's step that takes about _STEP_SECONDS, and half of the memory: a power of two."""
    spec = spec_of(site.model)
    images = (site.tflops or 0.0) * 1e12 * _ASSUMED_SHARE * _STEP_SECONDS / (training_flops(spec) or math.inf)
    if site.memory is not None:
        tokens = math.prod(spec.grid) + spec.prefix_tokens
        of_image = _ARRAYS * tokens * spec.embed_dim * spec.depth * (2 if site.half else 4)
        images = min(images, max(0.0, site.memory - _BYTES_A_PARAMETER * parameter_count(spec)) / 2 / of_image)
    return min(_LARGEST_BATCH, 1 << max(0, int(images).bit_length() - 1))


@check("training step", seconds=180)
def training_step(site: Site) -> Finding:
    """Updates from pictures on the disk, by the engine's own trainer."""
    world = site.world
    assert world is not None
    if not site.shared:
        return skip("the processes do not share the run directory")
    batch_size, name = world.broadcast((site.batch_size or _batch_size(site), f".doctor-{uuid.uuid4().hex}"))
    site.scratch = site.run_directory / name
    with world.first_only() as mine:
        if mine:
            write_pictures(site.scratch / "pictures")
    level = log.level
    log.setLevel(logging.ERROR)  # what is warned of a real run's data
    try:
        trainer = assemble(load_config(recipe(site, site.scratch, batch_size)), world)
    finally:
        log.setLevel(level)
    site.trainer = trainer
    trainer.model.train()
    site.batches = batches = trainer.feed.loader.run(trainer.sampler.batches(0))
    for _ in range(_UNTIMED):
        trainer.advance(batches).item()
    trainer.meter.read()
    for _ in range(_STEPS):
        trainer.advance(batches).item()
    record = trainer.meter.read()
    of_one = record["images_per_second"] / world.size
    site.waiting = record["data_time_fraction"]
    site.images_per_second = of_one / max(1e-9, 1.0 - site.waiting)
    memory = compat.peak_memory_bytes(site.device)
    held = f", {memory / 2**30:.1f} GiB at most" if memory else ""
    shown = f"{of_one:.3g} images/s a process, batches of {batch_size} in {trainer.precision}{held}"
    peak, source = device_peak(site.device, half=trainer.precision.active), "data sheet"
    if peak is None:
        peak, source = site.tflops, "matrix rate above"
    fastest = full_speed(trainer.model.spec, trained=1.0, tflops=peak, devices=1)
    data = {**record, "batch_size": batch_size, "images_per_second_without_input": site.images_per_second}
    if fastest is None:
        return Finding("pass", shown, data=data)
    share, low = site.images_per_second / fastest, _LOW_SHARE[source]
    shown += f"; without input {100 * share:.0f} % of the {source}"
    expected = f"{site.model}: at least {100 * low:.0f} % of the {source}"
    remedy = "look at the rows above: flash attention, kernels, matrix rate; profile with plsc train -p"
    return judge(shown, expected, remedy, warn=share < low, data=data)


@check("input", seconds=60)
def input_rate(site: Site) -> Finding:
    """Whether a process waits for pictures, and how many of its cores its device asks for."""
    trainer = site.trainer
    if trainer is None or site.images_per_second is None:
        return skip("there was no training step")
    rate = decoding_rate(trainer)
    cores = environment.available_cores() / environment.local_size()
    needed = site.images_per_second / rate
    shown = f"one core prepares {rate:,.0f} pictures/s, the device asks for {needed:.2g} of {cores:g} cores; waiting "
    shown += f"took {100 * site.waiting:.1f} % of the steps"
    expected = f"fewer cores than a process has, waiting at most {100 * _MOST_WAITING:.0f} %"
    remedy = "more cores a device, smaller pictures on disk, or shards; docs/data.md has what each costs"
    return judge(shown, expected, remedy, warn=needed > 0.8 * cores or site.waiting > _MOST_WAITING, figure=rate)


def decoding_rate(trainer: Any) -> float:
    """Pictures a second that this thread reads, decodes, crops and flips."""
    fetcher = trainer.feed.loader.fetcher
    row = {name: np.empty((1, *field.shape), field.dtype) for name, field in fetcher.fields().items()}
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _DECODING_SECONDS:
        fetcher.store(row, 0, Draw(0, count % len(trainer.feed.data)))
        count += 1
    return count / (time.perf_counter() - began)


@check("gradient reduction", seconds=120, several=True)
def gradient_reduction(site: Site) -> Finding:
    """What averaging gradients adds to backward, with which it overlaps."""
    trainer = site.trainer
    missing = site.anywhere("no trainer", trainer is None)
    if missing or trainer is None or site.batches is None or site.bytes_per_second is None:
        return skip("there was no training step")
    feed = trainer.feed.input
    batch = feed.finish() if feed.started else feed(next(site.batches))
    trainer.accumulation.count = 2  # the first micro-batch's gradients stay here, the second's are averaged
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(_STEPS):
        for i, taken in times.items():
            began = time.perf_counter()
            with trainer.accumulation.micro_batch(i):
                loss = trainer.task(trainer.forward, batch).mean_loss()
                trainer.accumulation.backward(i, trainer.precision.scale(loss))
            loss.item()  # which waits for the device, as the next line for the gradients
            paddle.add_n([p.grad.flatten()[0] for _, p in trainer.optimizer.named if p.grad is not None]).item()
            taken.append(time.perf_counter() - began)
            trainer.optimizer.clear_gradients()
    alone, averaged = (min(taken) for taken in times.values())
    size = sum(parameter.element_size() * parameter.size for _, parameter in trainer.optimizer.named)
    by_itself = size / site.bytes_per_second
    added = max(0.0, averaged - alone)
    hidden = max(0.0, 1.0 - added / by_itself)
    shown = (
        f"{size / 1e6:,.0f} MB take {1e3 * by_itself:,.0f} ms by themselves and add {1e3 * added:,.0f} ms to "
        f"{1e3 * alone:,.0f} ms of forward and backward: {100 * hidden:.0f} % overlap"
    )
    data = {"bytes": size, "seconds_alone": alone, "seconds_averaged": averaged, "overlap": hidden}
    expected = f"adds at most {100 * _MOST_REDUCTION:.0f} %"
    remedy = "larger local batches or Global.accum_steps; look at the rows pairs and all_reduce rate"
    return judge(shown, expected, remedy, warn=added > _MOST_REDUCTION * averaged, data=data)
