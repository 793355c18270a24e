"""plsc.plan: what a run costs, before it is run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from plsc import build
from plsc.config import Config
from plsc.config.schema import Sharding
from plsc.devices import count_devices, select_device
from plsc.engine.sharding import degree_of
from plsc.engine.utilisation import device_peak, full_speed, training_flops
from plsc.errors import ConfigError, DataError
from plsc.models import known_flops
from plsc.optim import WithWarmup
from plsc.planning import advice
from plsc.planning.memory import Memory, device_memory, footprint, memory_of, share_of
from plsc.planning.text import plan_text

_POINTS = 2000  # of the schedule, among which the peak is looked for
_CLASSES = 1000  # where neither data nor configuration say
_HINT = "--samples N plans without the data"


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Attributes:
        model, device: by name. devices: how many, a process each. precision: float32, or as the section FP16 says.
        parameters, trained: of the model, and those of them that are not frozen.
        flops: operations of one image's forward pass, a multiply-add being two; None for a model without a count.
        update_flops: of one update of the global batch, forward and backward.
        memory: of one device. stages: the same by stage of DistributedStrategy.sharding, 0 being none; empty for one
            device.
        global_batch: images of an update. samples: of the training data. steps: updates of the run.
        steps_per_epoch, epochs: None, as steps and samples, where neither data nor their number are known.
        tflops: peak of one device, None where it is unknown. utilisation: the assumed share of it.
        hours: of the run at that utilisation, without reading data, evaluation and saving; None where it is unknown.
        checkpoint: bytes of a checkpoint's files by name. disk: of all that are kept at the same time.
        first_rate, peak_rate, last_rate: of the learning rate; peak_step: the update of the peak, from 0.
        warnings: what is likely to be wrong. notes: what is left out, and why.
    """

    model: str
    device: str
    devices: int
    precision: str
    parameters: int
    trained: int
    flops: int | None
    update_flops: float | None
    memory: Memory
    stages: Mapping[int, Memory]
    global_batch: int
    samples: int | None
    steps: int | None
    steps_per_epoch: int | None
    epochs: float | None
    tflops: float | None
    utilisation: float
    hours: float | None
    checkpoint: Mapping[str, int]
    disk: int
    first_rate: float | None
    peak_rate: float | None
    last_rate: float | None
    peak_step: int | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def device_hours(self) -> float | None:
        """Hours times devices."""
        return None if self.hours is None else self.hours * self.devices

    def text(self) -> str:
        """A table of all of it, with notes and warnings, as `plsc plan` prints it."""
        return plan_text(self)


def plan(
    config: Config,
    *,
    devices: int = 1,
    memory: int | None = None,
    tflops: float | None = None,
    utilisation: float = 0.4,
    samples: int | None = None,
) -> Plan:
    """What a run costs before it is run: operations, memory, time, disk, schedule, and warnings of known mistakes.

    A shallow copy of the model is built and run for one small batch on the CPU; the devices planned for need not be
    there.

    Args:
        config: see plsc.load_config; Global.device, FP16, recompute, accum_steps and EMA count as they will.
        devices: that the run is to have, a process each.
        memory: bytes of one device; by default of this machine's.
        tflops: peak of one device; by default Global.device_tflops, or what is known of this machine's. With one of the
            two, Global.device auto means a GPU, else what this machine has.
        utilisation: the share of the peak that training reaches, between 0 and 1; 0.3 to 0.5 are usual on GPUs.
        samples: of the training data, where the data are missing.

    Raises:
        ConfigError: the model cannot be built, or the batch is not divisible.

    Example:
        >>> plan = plsc.plan(plsc.load_config("digits"), tflops=0.05)
        >>> plan.parameters, plan.steps
        (136138, 1760)
    """
    if not 0.0 < utilisation <= 1.0:
        raise ConfigError(f"utilisation is {utilisation}; it is a share of the peak, above 0 and at most 1")
    notes: list[str] = []
    config, length, samples = _length(config, devices, samples, notes)
    if config.Model.arguments.get("class_num") == "auto":
        config = config.replace({"Model.class_num": _CLASSES})
        notes.append(
            f"Model.class_num is auto: planned for {_CLASSES:,} classes, without the data; -o Model.class_num=N plans "
            "for others"
        )
    device = _device(config, notes, another=memory is not None or tflops is not None)
    on_cpu = device == "cpu"
    local = build.local_batch_size(config, devices)
    counted = footprint(config, on_cpu=on_cpu)
    if counted.shallow:
        two, three = counted.shallow
        notes.append(
            f"memory is computed: models of {two} and {three} blocks were run on this machine's CPU, and not the whole "
            "one"
        )
    spec = _spec(config)
    available = memory or device_memory(device, devices)

    def memory_with(config: Config) -> Memory:
        return memory_of(
            config,
            counted,
            micro_batch=local // config.Global.accum_steps,
            devices=devices,
            on_cpu=on_cpu,
            available=available,
        )

    several = devices > 1
    stages = {stage: memory_with(_at_stage(config, stage, devices)) for stage in ((0, 1, 2, 3) if several else (0,))}
    sharding = config.DistributedStrategy.sharding
    needed = stages[sharding.stage if sharding is not None and devices > 1 else 0]
    if sharding is not None and devices == 1:
        notes.append("DistributedStrategy.sharding has no effect on one device; --devices N plans for several")
    elif sharding is not None:
        largest = f"{100 * share_of(config, counted, devices):.3g} % of the trained parameters"
        groups = f"groups of {degree_of(config, devices)} devices"
        notes.append(f"sharding, stage {sharding.stage}: {groups}, of which the one that owns most has {largest}")
    if needed.fits is False:
        more = (n for n in range(config.Global.accum_steps + 1, local + 1) if not local % n)
        parts = next((n for n in more if memory_with(config.replace({"Global.accum_steps": n})).fits), None)
        if parts is not None:
            notes.append(f"Global.accum_steps={parts} makes micro-batches of {local // parts}, which fit")
    trained = counted.trained / counted.parameters
    half = config.FP16 is not None and config.FP16.level != "O0" and not on_cpu
    tflops = tflops or config.Global.device_tflops or _known_peak(device, half)
    forward = known_flops(spec)
    if forward is None:
        notes.append(f"operations and hours are unknown: the family of {config.Model.name} has no count of them")
    if devices > 1 and config.Global.global_batch_size is None:
        notes.append(
            f"sampler.batch_size is of one process: {devices} make a global batch of {devices * local:,}; the learning "
            "rate does not follow their number"
        )
    speed = full_speed(spec, trained=trained, tflops=tflops, devices=devices)
    update = training_flops(spec, trained)
    if tflops is None:
        notes.append("hours are unknown, since the device's peak is: give it with --tflops")
    rates = _rates(config, length)
    hours = None
    if length is not None and speed:
        hours = length.steps * local * devices / (speed * utilisation) / 3600.0
    sizes = {"model": round(4 * counted.parameters), "optimizer": round(counted.optimizer)}
    sizes |= {"ema": round(4 * counted.trained)} if config.EMA else {}
    return Plan(
        model=config.Model.name,
        device=device,
        devices=devices,
        precision=f"{config.FP16.dtype} ({config.FP16.level})" if half and config.FP16 else "float32",
        parameters=round(counted.parameters),
        trained=round(counted.trained),
        flops=forward,
        update_flops=None if update is None else update * local * devices,
        memory=needed,
        stages=stages if devices > 1 else {},
        global_batch=local * devices,
        samples=samples,
        steps=length.steps if length else None,
        steps_per_epoch=length.steps_per_epoch if length else None,
        epochs=length.steps / length.steps_per_epoch if length else None,
        tflops=tflops,
        utilisation=utilisation,
        hours=hours,
        checkpoint=sizes,
        disk=sum(sizes.values()) * _kept(config, length),
        first_rate=rates[0],
        peak_rate=rates[1],
        last_rate=rates[2],
        peak_step=rates[3],
        warnings=tuple(advice.warnings(config, spec, length=length)),
        notes=tuple(notes),
    )


def _length(
    config: Config, devices: int, samples: int | None, notes: list[str]
) -> tuple[Config, build.Length | None, int | None]:
    """The configuration with the data's classes, how long the run is, and its samples; None where data are missing."""
    if "Train" not in config.DataLoader:
        raise ConfigError("DataLoader.Train is missing: there is nothing to train on")
    data = None
    if samples is None:
        try:
            data = build.dataset(config, "Train")
        except (ConfigError, DataError) as error:
            notes.append(f"updates and hours are unknown without the training data ({error}); {_HINT}")
            return config, None, None
        config, samples = build.resolve_class_num(config, data), len(data)
    return config, build.length_of(config, samples=samples, data=data, processes=devices), samples


def _at_stage(config: Config, stage: int, devices: int) -> Config:
    """The configuration with its optimizer's state, gradients and weights spread at that stage; 0: not."""
    if stage == 0:
        return config.replace({"DistributedStrategy.sharding": None})
    sharding = Sharding.model_validate({"stage": stage, "degree": degree_of(config, devices)})
    return config.replace({"DistributedStrategy.sharding": sharding})


def _device(config: Config, notes: list[str], *, another: bool) -> str:
    """The kind of device that is planned for; it need not be there.

    Args:
        another: whether memory or peak of a device are given, so that not this machine's is meant.
    """
    name = config.Global.device
    if name != "auto":
        return name
    if another:
        notes.append("Global.device is auto: planned for a GPU, whose memory or peak is given")
        return "gpu"
    before = paddle.get_device()
    name = select_device("auto")
    paddle.set_device(before)
    if name == "cpu":
        notes.append("Global.device is auto, which is cpu on this machine; -o Global.device=gpu plans for a GPU")
    return name


def _spec(config: Config) -> Any:
    """Of the whole model, from a shallow one."""
    depth = config.Model.arguments.get("depth")
    if not isinstance(depth, int):
        return build.model(config).spec
    return dataclasses.replace(build.model(config.replace({"Model.depth": 1})).spec, depth=depth)


def _known_peak(device: str, half: bool) -> float | None:
    if device.startswith("gpu") and count_devices("gpu").count:
        return device_peak(device, half=half)
    return None


def _rates(config: Config, length: build.Length | None) -> tuple[float | None, float | None, float | None, int | None]:
    """First, peak and last learning rate, and the update of the peak."""
    if length is None:
        return None, None, None, None
    schedule = build.schedule(config, length.schedule_steps, length.steps_per_epoch)
    points = np.linspace(0, length.steps - 1, min(length.steps, _POINTS)).round().astype(int).tolist()
    if isinstance(schedule, WithWarmup):
        points.append(min(schedule.warmup, length.steps - 1))  # the peak itself
    peak = max(sorted(points), key=schedule)
    return schedule(0), schedule(peak), schedule(length.steps - 1), peak


def _kept(config: Config, length: build.Length | None) -> int:
    """Checkpoints that are there at the same time, at most: latest, best and those that are kept besides."""
    g = config.Global
    if g.max_num_latest_checkpoint >= 0 or length is None or not g.save_interval:
        return 2 + max(0, g.max_num_latest_checkpoint)
    every = g.save_interval * (length.steps_per_epoch if g.save_unit == "epoch" else 1)
    return -(-length.steps // every) + 1
