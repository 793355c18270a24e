"""What differs between Paddle 2.6 and Paddle 3, and nothing else."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import paddle
from paddle.distributed.fleet.utils import recompute as _recompute

from plsc import environment

VERSION = tuple(int(part) for part in paddle.__version__.split(".")[:2] if part.isdigit())
IS_PADDLE_2 = VERSION < (3, 0) and VERSION != (0, 0)  # 0.0.0 is a development build of Paddle 3


def recompute(function: Callable, *inputs: Any, on_cpu: bool) -> paddle.Tensor:
    """Run `function(*inputs)` and compute it again in backward instead of keeping its activations.

    The reentrant form fails inside DataParallel. Paddle 2.6 cannot keep the random state on
    CPU; blocks that draw random numbers are refused there (see engine/blocks.py).
    """
    if IS_PADDLE_2 and on_cpu:
        return _recompute(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return _recompute(function, *inputs, use_reentrant=False)


def recompute_keeps_random_state(on_cpu: bool) -> bool:
    return not (IS_PADDLE_2 and on_cpu)


def to_static(layer: paddle.nn.Layer) -> None:
    """Compile a layer with Paddle's own executor; its default, CINN, is absent from CPU wheels."""
    # of Paddle's own code, at the first forward
    warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")
    paddle.jit.to_static(layer, backend=None, full_graph=True)
    if IS_PADDLE_2:
        return
    static: Any = layer.forward  # stays what Paddle made: it knows how to be copied, and saved
    record = static.get_concrete_program  # at shapes that it has not met

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with _nothing_kept_of_a_failed_recording():
            return record(*args, **kwargs)

    static.get_concrete_program = recorded


def save_graph(network: paddle.nn.Layer, path: str, shape: paddle.static.InputSpec) -> None:
    """`paddle.jit.save`, without what Paddle 3 keeps of a network that it cannot record."""
    with _nothing_kept_of_a_failed_recording():
        paddle.jit.save(network, path, input_spec=[shape])


@contextlib.contextmanager
def _nothing_kept_of_a_failed_recording() -> Iterator[None]:
    """Let Paddle 3 forget a program that could not be recorded.

    It keeps the parameters by the address of the failed program and forgets them only after a success. A later program
    at the same address would take them over, though they are freed: a crash, or another network's weights.
    """
    try:
        yield
    except BaseException:
        if not IS_PADDLE_2:
            from paddle.jit.dy2static import parameter_recorder as recorder

            recorder._global_parameter_recorder.params_dict.clear()
            recorder._global_parameter_recorder.tensor2value.clear()
            recorder._global_inplace_map.params_dict.clear()
        raise


def optimizer_accumulators_need_helper(optimizer: paddle.optimizer.Optimizer) -> None:
    """Paddle 2.6 creates this attribute only in the first step; restoring state needs it before."""
    if getattr(optimizer, "helper", None) is None:
        from paddle.base.layer_helper import LayerHelper

        optimizer.helper = LayerHelper(type(optimizer).__name__)


def peak_memory_bytes(device: str) -> int | None:
    """Most memory allocated on the device so far, or None where the device does not report it."""
    if device.startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated()
    if device == "cpu" or IS_PADDLE_2:
        return None
    return paddle.device.max_memory_allocated()


def reset_peak_memory(device: str) -> None:
    """Let `peak_memory_bytes` start over, where the device has that."""
    if device.startswith("gpu"):
        paddle.device.cuda.reset_max_memory_allocated()
    elif device != "cpu" and hasattr(paddle.device, "reset_peak_memory_stats"):
        paddle.device.reset_peak_memory_stats()


def init_parallel_env() -> None:
    """Join the processes that the launcher started, once, without Paddle's list of flags that differ from defaults."""
    if not paddle.distributed.is_initialized():
        with environment.stderr_without("Modified FLAGS detected", "FLAGS(name=", "=" * 71):
            paddle.distributed.init_parallel_env()


def global_tcp_store() -> Any:
    """The key-value store that paddle.distributed.init_parallel_env has opened."""
    return paddle.base.core.create_or_get_global_tcp_store()


def found_inf(scaler: paddle.amp.GradScaler) -> bool:
    """Whether the scaler's last step met a gradient that is not finite, and skipped the update."""
    cached = getattr(scaler, "_cache_found_inf", None)
    if cached is None:
        cached = getattr(scaler, "_cache_founf_inf", False)  # so spelt in Paddle 2.6
    return bool(cached)


def autocasted(x: paddle.Tensor) -> paddle.Tensor:
    """x in the type that the active auto_cast computes in, as it is without one.

    Under O1 adding a float32 bias makes float32 of a half-precision product, which flash attention does not take.
    """
    tracer = paddle.base.framework._dygraph_tracer()
    if tracer is None or tracer._amp_level == paddle.base.core.AmpLevel.O0 or x.dtype != paddle.float32:
        return x
    return x.astype(tracer._amp_dtype)


def truncated_normal(std: float, cut: float) -> paddle.nn.initializer.Initializer:
    """An initializer of N(0, std²) within ±cut. Paddle 2.6 knows only ±2 std."""
    if IS_PADDLE_2:
        return paddle.nn.initializer.TruncatedNormal(0.0, std)
    return paddle.nn.initializer.TruncatedNormal(0.0, std, -cut, cut)
