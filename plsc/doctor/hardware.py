"""The device: what it is, and whether its kernels are right."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import paddle
import paddle.nn.functional as F

from plsc import drivers, environment
from plsc.config.schema import FP16
from plsc.devices import count_devices, list_devices, on_device, select_device
from plsc.doctor.checks import Check, Finding, Half, Site, check, judge, reason, skip
from plsc.engine.precision import Precision
from plsc.errors import DeviceError
from plsc.models import spec_of
from plsc.optim.multi_tensor import MultiTensorAdamW, updated_by_numpy
from plsc.planning.memory import device_memory

_EPSILON: dict[str, float] = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# of the largest value, in steps of the type's precision: results are rounded once or a few times
_RIGHT = {"float32": 100.0, "float16": 8.0, "bfloat16": 8.0}
_RIGHT_UPDATE = 1e-3  # of the largest change, since masters are float32 in every type
_RATE, _DECAY, _BETAS = 0.01, 0.1, (0.9, 0.999)  # of those updates
_REDUCED = 8.0 * 2.0**-10  # of float32 products that take TensorFloat-32
_PRODUCTS = {"matmul", "linear", "conv2d", "attention"}
_SHARED_MEMORY = 2**30

Type = Literal["float32"] | Half
Function = Callable[..., paddle.Tensor]


@check("device", seconds=60)
def device(site: Site) -> Finding:
    """Select it; the later checks run on it."""
    automatic = site.device == "auto"
    try:
        site.device = select_device(site.device)
    except DeviceError as error:
        first, *rest = str(error).splitlines()
        remedy = "; ".join(line.strip().removeprefix("what to do: ") for line in rest)
        return Finding("fail", first, "Paddle can use it", remedy)
    local, cores, threads = environment.local_size(), environment.available_cores(), environment.thread_count()
    site.memory = device_memory(site.device, local)
    shown = f"{site.device}{'' if site.memory is None else f', {site.memory / 2**30:.1f} GiB'}"
    if site.device != "cpu":
        name = f", {paddle.device.cuda.get_device_name()}" if site.device.startswith("gpu") else ""
        return Finding("pass", f"{shown}{name}, {count_devices(site.device.split(':')[0]).count} here", "one a process")
    if automatic:
        lacks = [
            d.lack for d in list_devices() if d.lack and drivers.lack(d.kind).fault not in ("machine", "container")
        ]
        if lacks:
            return Finding("warn", f"cpu: {lacks[0].reason}", "accelerators are used", lacks[0].remedy)
    shown += f", {threads} of {cores} cores a process"
    remedy = f"unset OMP_NUM_THREADS, or set it to {max(1, cores // local)}"
    return judge(shown, "threads of all processes fit the cores", remedy, warn=threads * local > cores)


@check("shared memory", seconds=10, alone=True)
def shared_memory(site: Site) -> Finding:
    """NCCL and Paddle's own loader use /dev/shm; plsc's loader has anonymous memory, which it does not limit."""
    try:
        size = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return Finding("warn", f"/dev/shm: {error.strerror}", "1 GiB", "mount a tmpfs at /dev/shm")
    shown = f"/dev/shm has {size.free / 2**30:.2f} GiB free of {size.total / 2**30:.2f}"
    remedy = "start the container with --shm-size=8g or --ipc=host; plsc's own loader does without, NCCL does not"
    return judge(shown, "1 GiB free", remedy, warn=size.free < _SHARED_MEMORY)


# -- kernels ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """An operation of a ViT, and what it must give by a formula that uses none of the same kernels.

    Attributes:
        shapes: of its inputs. wide: how many of the last inputs stay float32, as in training.
    """

    run: Function
    formula: Function
    shapes: Sequence[Sequence[int]]
    wide: int = 0


def _softmax(x: paddle.Tensor) -> paddle.Tensor:
    powers = paddle.exp(x - x.max(axis=-1, keepdim=True))
    return powers / powers.sum(axis=-1, keepdim=True)


def _layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    centred = x - x.mean(axis=-1, keepdim=True)
    return centred / paddle.sqrt((centred * centred).mean(axis=-1, keepdim=True) + 1e-6) * weight + bias


def _product(a: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(axis=-2)


def _patches(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    b, c, height, width = x.shape
    cut = x.reshape([b, c, height // 8, 8, width // 8, 8]).transpose([0, 2, 4, 1, 3, 5]).flatten(3).flatten(1, 2)
    made = _product(cut, weight.flatten(1).transpose([1, 0])) + bias
    return made.transpose([0, 2, 1]).reshape([b, -1, height // 8, width // 8])


def _attention(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
    q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q, k, v))
    scores = _product(q, k.transpose([0, 1, 3, 2])) / math.sqrt(q.shape[-1])
    return _product(_softmax(scores), v).transpose([0, 2, 1, 3])


KERNELS = {
    "matmul": Kernel(lambda a, b: paddle.matmul(a, b), _product, [(3, 33, 40), (3, 40, 24)]),
    "linear": Kernel(
        lambda x, w, b: F.linear(x, w, b), lambda x, w, b: _product(x, w) + b, [(2, 17, 48), (48, 40), (40,)]
    ),
    "layer_norm": Kernel(
        lambda x, w, b: F.layer_norm(x, [48], w, b, 1e-6), _layer_norm, [(2, 17, 48), (48,), (48,)], wide=2
    ),
    "softmax": Kernel(lambda x: F.softmax(x, axis=-1), _softmax, [(2, 4, 17, 17)]),
    "gelu": Kernel(lambda x: F.gelu(x), lambda x: 0.5 * x * (1 + paddle.erf(x / math.sqrt(2.0))), [(2, 17, 48)]),
    "conv2d": Kernel(lambda x, w, b: F.conv2d(x, w, b, stride=8), _patches, [(2, 3, 16, 24), (20, 3, 8, 8), (20,)]),
    "attention": Kernel(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), _attention, [(2, 17, 3, 64)] * 3),
}


def kernel_error(kernel: Kernel, dtype: Type) -> float:
    """Largest error of result and gradients, as a share of the largest value; nan where one is not finite."""
    rng = np.random.default_rng(0)
    narrow = len(kernel.shapes) - kernel.wide
    inputs = [
        paddle.to_tensor(rng.standard_normal(shape, dtype="float32")).astype(dtype if i < narrow else "float32")
        for i, shape in enumerate(kernel.shapes)
    ]
    for tensor in inputs:
        tensor.stop_gradient = False
    result = kernel.run(*inputs)
    weights = paddle.to_tensor(rng.standard_normal(result.shape, dtype="float32")).astype(dtype)
    paddle.autograd.backward([result], [weights])
    made = [_values(tensor) for tensor in (result, *(tensor.grad for tensor in inputs))]
    with on_device("cpu"):
        exact = [paddle.to_tensor(_values(tensor), dtype="float64", stop_gradient=False) for tensor in inputs]
        reference = kernel.formula(*exact)
        paddle.autograd.backward([reference], [paddle.to_tensor(_values(weights), dtype="float64")])
        right = [_values(tensor) for tensor in (reference, *(tensor.grad for tensor in exact))]
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(made, right, strict=True)]))


def _values(tensor: paddle.Tensor | None) -> np.ndarray:
    assert tensor is not None, "every input has a gradient"
    return tensor.astype("float64" if tensor.place.is_cpu_place() else "float32").numpy().astype("float64")


def adamw_error(dtype: Type) -> float:
    """Largest error of three updates of the AdamW of runs, as a share of the largest change; masters are float32."""
    rng = np.random.default_rng(0)
    arrays = [paddle.to_tensor(rng.standard_normal((40, 24), dtype="float32")).astype(dtype) for _ in range(4)]
    first, *gradients = map(_values, arrays)
    with paddle.utils.unique_name.guard("plsc_doctor_"):
        start = paddle.nn.initializer.Assign(first.astype("float32"))
        weight = paddle.create_parameter([40, 24], dtype, default_initializer=start)
    group: Any = {"params": [weight], "learning_rate": 1.0, "weight_decay": _DECAY}
    optimizer = MultiTensorAdamW(
        _RATE, *_BETAS, 1e-8, parameters=[group], weight_decay=_DECAY, multi_precision=dtype != "float32"
    )
    for gradient in arrays[1:]:
        weight.grad = gradient
        optimizer.step()
    exact = updated_by_numpy(first, gradients, rate=_RATE, betas=_BETAS, epsilon=1e-8, decay=_DECAY)
    masters = getattr(optimizer, "_master_weights", None) or {}
    return float(np.abs(_values(masters.get(weight.name, weight)) - exact).max() / np.abs(exact - first).max())


def _kernels(dtype: Type) -> Finding:
    """Every kernel in one type."""
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in (*KERNELS, "adamw"):
        try:
            errors[name] = kernel_error(KERNELS[name], dtype) if name in KERNELS else adamw_error(dtype)
        except Exception as error:  # Paddle's have many types, and the others are still to be looked at
            missing[name] = reason(error)
    data = {name: error if math.isfinite(error) else None for name, error in errors.items()}  # JSON has no nan
    limit = _RIGHT[dtype] * _EPSILON[dtype]
    limits = {**dict.fromkeys(KERNELS, limit), "adamw": _RIGHT_UPDATE}
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    expected = f"errors of at most {limit:.1g}, forward and gradient"
    texts = [f"{name} is off by {100 * error:.2g} % of its largest value" for name, error in wrong.items()]
    texts += [f"{name} does not run: {why}" for name, why in missing.items()]
    if not texts:
        largest = max(KERNELS, key=lambda name: errors[name])
        shown = f"{', '.join(errors)} right; largest error {errors[largest]:.1g} ({largest})"
        return Finding("pass", shown, expected, data=data)
    if dtype == "float32" and not missing and all(n in _PRODUCTS and e <= _REDUCED for n, e in wrong.items()):
        shown, remedy = f"TensorFloat-32 in products: {'; '.join(texts)}", "NVIDIA_TF32_OVERRIDE=0 computes in float32"
        usual = paddle.get_device().startswith("gpu")  # since Ampere, unless it is switched off
        return judge(shown, expected, remedy, warn=not usual, data=data)
    remedy = f"install the Paddle that was built for this device and driver; until then train without {dtype}"
    return Finding("fail", "; ".join(texts), expected, remedy, data=data)


def _check_of(dtype: Type) -> Check:
    @check(f"{dtype} kernels", seconds=60)
    def run(site: Site) -> Finding:
        if dtype == "float32":
            return _kernels(dtype)
        if site.device == "cpu":
            return skip("on CPU Paddle computes in float32, whatever FP16 asks for")
        try:
            Precision(FP16.model_validate({"level": "O1", "dtype": dtype}), on_cpu=False)
        except DeviceError as error:
            return skip(str(error).splitlines()[0])
        finding = _kernels(dtype)
        if finding.verdict == "pass":
            site.half = site.half or dtype
        return finding

    return run


float32, float16, bfloat16 = _check_of("float32"), _check_of("float16"), _check_of("bfloat16")


@check("flash attention", seconds=60)
def flash_attention(site: Site) -> Finding:
    """Whether Paddle took it, by the operations that its gradient goes through."""
    if site.device == "cpu":
        return skip("only GPUs and XPUs have it; on CPU attention is matrix products")
    if site.half is None:
        return skip("it needs half precision, which this device lacks or computes wrongly")
    spec = spec_of(site.model)
    width = spec.embed_dim // spec.num_heads
    expected = f"taken for {site.model}'s heads of width {width}"
    q = paddle.randn([2, 197, spec.num_heads, width]).astype(site.half)
    q.stop_gradient = False
    operations = _operations(F.scaled_dot_product_attention(q, q, q).grad_fn)
    if any("flash" in name.lower() for name in operations):
        return Finding("pass", f"taken ({site.half})", expected)
    remedy = "attention takes memory and time for whole matrices; smaller micro-batches or recompute make room"
    if site.device.startswith("gpu"):
        capability = "{}.{}".format(*paddle.device.cuda.get_device_capability())
        why = f"compute capability {capability}, head width {width}"
        if any("efficient" in name.lower() for name in operations):  # Paddle's second choice
            remedy = "the memory-efficient kernel is taken, which needs no whole matrices either, but more time"
        remedy = f"flash attention needs capability 8.0 to 12.1, a width that 8 divides, at most 256; {remedy}"
    else:
        why = f"Paddle has none for {site.device}"
    return Finding("warn", f"not taken: {why}; backward goes through {', '.join(operations[:4])}", expected, remedy)


def _operations(node: Any) -> list[str]:
    """Names of the operations that a gradient goes through, the last first."""
    names: list[str] = []
    queue = [node]
    while queue and len(names) < 50:
        if (node := queue.pop(0)) is not None:
            names.append(str(node.name()))
            queue += node.next_functions
    return names
