"""The device: what it is, whether its kernels are right, and how fast it multiplies."""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import paddle
import paddle.nn.functional as F

from plsc import drivers, environment
from plsc.config.schema import FP16
from plsc.devices import count_devices, list_devices, on_device, select_device
from plsc.doctor.checks import Finding, Half, Site, check, reason, skip
from plsc.engine.precision import Precision
from plsc.engine.utilisation import device_peak
from plsc.errors import DeviceError
from plsc.models import spec_of
from plsc.optim.multi_tensor import MultiTensorAdamW
from plsc.planning.memory import device_memory

_EPSILON: dict[str, float] = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# of the largest value, in steps of the type's precision: results are rounded once or a few times
_RIGHT = {"float32": 100.0, "float16": 8.0, "bfloat16": 8.0}
_RIGHT_UPDATE = 1e-3  # of the largest change, since masters are float32 in every type
_REDUCED = 8.0 * 2.0**-10  # of float32 products that take TensorFloat-32
_PRODUCTS = {"matmul", "linear", "conv2d", "attention"}
_SLOW, _VERY_SLOW = 0.5, 0.25  # of the data sheet's rate
_SHARED_MEMORY = 2**30

Type = Literal["float32", "float16", "bfloat16"]
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
    if automatic and site.device == "cpu":
        idle = [d.lack for d in list_devices() if d.lack and drivers.lack(d.kind).fault not in ("machine", "container")]
        if idle:
            return Finding("warn", f"cpu: {idle[0].reason}", "accelerators are used", idle[0].remedy)
    local, cores = environment.local_size(), environment.available_cores()
    memory = device_memory(site.device, local)
    if site.device == "cpu" and (limit := environment.memory_limit()) is not None:
        memory = limit // local
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or cores
    shown = f"{site.device}{'' if memory is None else f', {memory / 2**30:.1f} GiB'}"
    if site.device != "cpu":
        name = f", {paddle.device.cuda.get_device_name()}" if site.device.startswith("gpu") else ""
        return Finding("pass", f"{shown}{name}, {count_devices(site.device.split(':')[0]).count} here", "one a process")
    shown += f", {threads} of {cores} cores a process"
    if threads * local > cores:
        remedy = f"unset OMP_NUM_THREADS, or set it to {max(1, cores // local)}"
        return Finding("warn", shown, "threads of all processes fit the cores", remedy)
    return Finding("pass", shown, "threads of all processes fit the cores")


@check("shared memory", seconds=10, alone=True)
def shared_memory(site: Site) -> Finding:
    """NCCL and Paddle's own loader use /dev/shm; plsc's loader has anonymous memory, which it does not limit."""
    try:
        size = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return Finding("warn", f"/dev/shm: {error.strerror}", "1 GiB", "mount a tmpfs at /dev/shm")
    shown = f"/dev/shm has {size.free / 2**30:.2f} GiB free of {size.total / 2**30:.2f}"
    if size.free >= _SHARED_MEMORY:
        return Finding("pass", shown, "1 GiB free")
    remedy = "start the container with --shm-size=8g or --ipc=host; plsc's own loader does without, NCCL does not"
    return Finding("warn", shown, "1 GiB free", remedy)


# -- kernels ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
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
    wide: list[Type] = ["float32"] * kernel.wide
    types = [dtype] * (len(kernel.shapes) - kernel.wide) + wide
    inputs = [
        paddle.to_tensor(rng.standard_normal(shape, dtype="float32")).astype(t)
        for shape, t in zip(kernel.shapes, types, strict=True)
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
    first = _values(paddle.to_tensor(rng.standard_normal((40, 24), dtype="float32")).astype(dtype))
    with paddle.utils.unique_name.guard("plsc_doctor_"):
        weight = paddle.create_parameter(
            [40, 24], dtype, default_initializer=paddle.nn.initializer.Assign(first.astype("float32"))
        )
    rate, decay, beta1, beta2, epsilon = 0.01, 0.1, 0.9, 0.999, 1e-8
    group: Any = {"params": [weight], "learning_rate": 1.0, "weight_decay": decay}
    optimizer = MultiTensorAdamW(
        rate, beta1, beta2, epsilon, parameters=[group], weight_decay=decay, multi_precision=dtype != "float32"
    )
    exact, moment1, moment2 = first, np.zeros_like(first), np.zeros_like(first)
    for step in (1, 2, 3):
        gradient = paddle.to_tensor(rng.standard_normal((40, 24), dtype="float32")).astype(dtype)
        weight.grad = gradient
        optimizer.step()
        g = _values(gradient)
        moment1, moment2 = beta1 * moment1 + (1 - beta1) * g, beta2 * moment2 + (1 - beta2) * g * g
        change = moment1 / (1 - beta1**step) / (np.sqrt(moment2 / (1 - beta2**step)) + epsilon)
        exact = exact * (1 - rate * decay) - rate * change
    masters = getattr(optimizer, "_master_weights", None) or {}
    updated, moved = _values(masters.get(weight.name, weight)), np.abs(exact - first).max()
    return float(np.abs(updated - exact).max() / moved)


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
    reduced = {name for name in _PRODUCTS & wrong.keys() if dtype == "float32" and wrong[name] <= _REDUCED}
    expected = f"errors of at most {limit:.1g}, forward and gradient"
    texts = [f"{name} is off by {100 * error:.2g} % of its largest value" for name, error in wrong.items()]
    texts += [f"{name} does not run: {why}" for name, why in missing.items()]
    if missing or wrong.keys() - reduced:
        remedy = f"install the Paddle that was built for this device and driver; until then train without {dtype}"
        return Finding("fail", "; ".join(texts), expected, remedy, data=data)
    if reduced:
        shown, remedy = f"TensorFloat-32 in products: {'; '.join(texts)}", "NVIDIA_TF32_OVERRIDE=0 computes in float32"
        usual = paddle.get_device().startswith("gpu")  # since Ampere, unless it is switched off
        return Finding("pass" if usual else "warn", shown, expected, remedy, data=data)
    largest = max(KERNELS, key=lambda name: errors[name])
    shown = f"{', '.join(errors)} right; largest error {errors[largest]:.1g} ({largest})"
    return Finding("pass", shown, expected, data=data)


@check("float32 kernels", seconds=60)
def float32(site: Site) -> Finding:
    return _kernels("float32")


def _half_kernels(site: Site, dtype: Half) -> Finding:
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


@check("float16 kernels", seconds=60)
def float16(site: Site) -> Finding:
    return _half_kernels(site, "float16")


@check("bfloat16 kernels", seconds=60)
def bfloat16(site: Site) -> Finding:
    return _half_kernels(site, "bfloat16")


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
        remedy = f"flash attention needs capability 8.0 to 12.1, a width that 8 divides, at most 256; {remedy}"
    else:
        why = f"Paddle has none for {site.device}"
    return Finding("warn", f"not taken: {why}; backward goes through {', '.join(operations[:4])}", expected, remedy)


def _operations(node: Any) -> list[str]:
    """Names of the operations that a gradient goes through, the last first."""
    names: list[str] = []
    queue = [node]
    while queue and len(names) < 50:
        node = queue.pop(0)
        if node is not None:
            names.append(str(node.name()))
            queue += list(node.next_functions)
    return names


# -- speed ----------------------------------------------------------------------------------------


@check("matrix rate", seconds=60)
def matrix_rate(site: Site) -> Finding:
    dtype = site.half or "float32"
    site.tflops = product_rate(dtype) / 1e12
    half = site.half is not None
    shown = (
        f"{site.tflops:,.3g} TFLOPS in {dtype}" if site.tflops >= 1 else f"{1e3 * site.tflops:.0f} GFLOPS in {dtype}"
    )
    peak = device_peak(site.device, half=half)
    if peak is None:
        return Finding("pass", shown, "no data sheet is known of it", figure=site.tflops)
    share = site.tflops / peak
    finding = Finding("pass", f"{shown}, {100 * share:.0f} % of the data sheet", f"{peak:g} TFLOPS", figure=site.tflops)
    if share >= _SLOW:
        return finding
    remedy = "look for other programs on the device, its power limit and temperature (nvidia-smi -q -d PERFORMANCE)"
    return dataclasses.replace(finding, verdict="warn" if share >= _VERY_SLOW else "fail", remedy=remedy)


def product_rate(dtype: Type) -> float:
    """Best rate of square matrix products, operations a second; so large that one takes 20 ms."""
    size, seconds = 512, 0.0
    while True:
        a = paddle.randn([size, size]).astype(dtype)
        seconds = min(_product_seconds(a) for _ in range(4))
        if seconds > 0.02 or size >= 8192:
            return 2.0 * size**3 / seconds
        size *= 2


def _product_seconds(a: paddle.Tensor) -> float:
    start = time.perf_counter()
    paddle.matmul(a, a)[0, 0].item()  # which waits for it
    return time.perf_counter() - start
