"""The sections of a run: names, types and defaults of every key that is not a factory's.

The comment after a key says what it means. What PLSC's files have besides is in plsc_dialect.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from plsc.bounds import InsideUnit, NonNegative, Positive, PositiveFloat, Workers
from plsc.config.frozen import frozen
from plsc.registry import InputPath


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Component:
    """A registered factory's name with its checked arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    path: tuple = field(default=(), compare=False)

    def __post_init__(self):
        object.__setattr__(self, "arguments", frozen(self.arguments))


class Global(Section):
    imports: tuple[str, ...] = ()  # modules and files (beside the recipe) that register components
    output_dir: str = "./output"  # the run directory
    device: str = "auto"  # auto, cpu, gpu, xpu, npu or a custom device; auto is gpu where Paddle has it
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    epochs: Positive | None = None  # the length of the schedule
    max_train_step: Positive | None = None  # ends (and saves) there; the length where epochs is not given
    global_batch_size: Positive | None = None  # over all processes; instead of sampler.batch_size
    accum_steps: Positive = 1  # micro-batches that one local batch is split into
    checkpoint: Annotated[str, InputPath()] | None = None  # continue from this checkpoint
    resume: str | None = None  # auto: continue from this output_dir's latest, if there is one; or best, or step-…
    pretrained_model: Annotated[str, InputPath()] | None = None  # start from these weights
    position_embedding: Literal["bicubic", "bilinear"] = (
        "bicubic"  # how pretrained_model's is resized; Google's is bilinear
    )
    pretrained_allow: tuple[
        str, ...
    ] = ()  # patterns of arrays that the start from pretrained_model may leave out or draw
    finetune: bool = False  # of pretrained_model keep the backbone, initialise the head
    eval_during_train: bool | None = None  # default: whether DataLoader.Eval is there
    eval_interval: Positive = 1
    eval_unit: Literal["epoch", "step"] = "epoch"
    save_interval: NonNegative = 1  # 0: only at the end
    save_unit: Literal["epoch", "step"] = "epoch"
    max_num_latest_checkpoint: int = 0  # besides latest and best: 0 none, N the last N, -1 all
    print_batch_step: Positive = 10  # updates between two log lines
    loggers: tuple[Literal["visualdl", "tensorboard", "wandb"], ...] = ()  # besides metrics.jsonl
    profiler_options: str | None = None  # "batch_range=[10,20];sorted_key=total", see docs/training.md
    to_static: bool = False  # compile each transformer block
    cpu_forms: bool | None = None  # on CPU: layers by quicker kernels, see docs/training.md; default: for plsc's tasks
    inference: Literal["auto", "graph", "dygraph"] = "auto"  # of evaluation on CPU: Paddle Inference where it pays
    cpu_threads: Annotated[int, Field(ge=1, le=4096)] | None = None  # per process; default: cores ÷ local processes
    device_tflops: PositiveFloat | None = None  # peak of one device, for MFU; default: known of GPUs in half precision
    flags: dict[str, int | float | bool | str] = Field(default_factory=dict)  # paddle.set_flags


class Recompute(Section):
    layerlist_interval: Positive = 1  # every n-th block
    names: tuple[str, ...] = ()  # more blocks, by name


class Sharding(Section):
    stage: Literal[1, 2, 3] = 1  # 1 spreads optimizer state, masters and averages, 2 gradients too, 3 weights too
    degree: Annotated[int, Field(ge=2)] | None = None  # processes that share one copy; default: all of the run


class DistributedStrategy(Section):
    data_parallel: bool = True
    sharding: Sharding | None = None  # see docs/sharding.md
    recompute: Recompute | None = None
    timeout: PositiveFloat = 1800.0  # seconds until a process that gives no sign, or is late, ends the run


class LossScaling(Section):
    init_loss_scaling: PositiveFloat = 65536.0
    max_loss_scaling: PositiveFloat = 2.0**32
    incr_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    decr_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    incr_every_n_steps: Positive = 1000
    decr_every_n_nan_or_inf: Positive = 2
    use_dynamic_loss_scaling: bool = True
    no_unscale_list: tuple[str, ...] = ()  # parameters whose gradients keep the loss scale
    max_skipped_updates: Positive = 100  # in a row, before the run stops


class FP16(Section):
    level: Literal["O0", "O1", "O2"] = "O2"
    dtype: Literal["float16", "bfloat16"] = "float16"
    master_weight: bool = True
    master_grad: bool = True
    fp16_custom_white_list: tuple[str, ...] = ()
    fp16_custom_black_list: tuple[str, ...] = ()
    GradScaler: LossScaling = Field(default_factory=LossScaling)


class EMA(Section):
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    thres_steps: bool = True  # decay at update t is min(decay, (1 + t) / (10 + t))
    ema_eval: bool = False  # evaluate the averaged weights too
    eval_start_epoch: NonNegative = 0


class GradClip(Section):
    name: Literal["ClipGradByGlobalNorm"] = "ClipGradByGlobalNorm"
    clip_norm: PositiveFloat = 1.0
    clip_norm_max: PositiveFloat | None = None  # bound of the factor that gradients are multiplied by
    always_clip: bool = False  # scale to clip_norm also where the norm is smaller
    no_clip_list: tuple[str, ...] = ()  # parts of names left out of norm and clipping


class OptimizerOptions(Section):
    """Keys of the Optimizer section that hold for every optimizer."""

    grad_clip: GradClip | None = None
    no_weight_decay: tuple[Literal["bias", "norm", "token", "position", "1d"], ...] = ()
    no_weight_decay_name: tuple[str, ...] = ()  # parts of names
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    lr_scale: dict[str, PositiveFloat] = Field(default_factory=dict)  # {head.*: 10.0}, times the schedule's rate
    weight_decay_scale: dict[str, PositiveFloat] = Field(default_factory=dict)  # {head.weight: 100.0}
    freeze: tuple[str, ...] = ()  # patterns such as blocks.0.* or patch_embed.*


class Loader(Section):
    num_workers: Workers | Literal["auto"] = "auto"  # processes that prepare pictures; auto measures
    prefetch_batches: Positive = 2  # batches made ahead of the one in use
    damaged_images: Literal["raise", "skip"] = "raise"


def _slice_text(value):
    """A slice as text. Without quotes YAML makes a list or a mapping of [:5] and [-5:]."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(text, dict) and list(text.values()) == [None]:
        text = f"{next(iter(text))}:"
    if text is None or (isinstance(text, str) and re.fullmatch(r"\[?\s*(-?\d+)?\s*:\s*(-?\d+)?\s*\]?", text)):
        return text
    raise ValueError("write it in quotes as in Python, for instance '[1000:2000]' or '[-50:]'")


DATASET_KEYS = {  # of every data set besides its own: annotation and default
    "slice": (Annotated[str | None, BeforeValidator(_slice_text)], None),  # a part as in Python, "[:50000]"
    "val_fraction": (InsideUnit | None, None),  # of each class Eval takes this, Train the rest
    "val_seed": (NonNegative, 0),  # draws what Eval takes
}


@dataclass(frozen=True)
class DataSection:
    """DataLoader.Train or DataLoader.Eval."""

    dataset: Component
    transforms: tuple[Component, ...]
    batch_transforms: tuple[Component, ...]
    sampler: Component
    loader: Loader
    path: tuple = ()

    def __post_init__(self):
        for name in ("transforms", "batch_transforms"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


class Export(Section):
    export_type: Literal["paddle", "onnx"] = "paddle"
    input_shape: tuple[int | None, ...] | None = None  # batch, channels, height, width, None free; default: the model's
