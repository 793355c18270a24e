"""Paddle's device: set for the process, or for a while. Importing this imports no Paddle."""

import contextlib
from collections.abc import Iterator

from plsc import environment
from plsc.errors import DeviceError


def select_device(name: str) -> str:
    """Set Paddle's device; returns its name.

    Args:
        name: auto (gpu where this Paddle has it and the machine too, else cpu), cpu, gpu, gpu:1, xpu, …

    Raises:
        DeviceError: this Paddle or machine lacks the device; the message names what to install.
    """
    import paddle

    if name == "auto":
        has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
        name = "gpu" if has_gpu else "cpu"
    if name == "cpu":
        environment.keep_freed_memory()
    try:
        paddle.set_device(name)
    except Exception as error:  # Paddle raises ValueError, RuntimeError or OSError, by version and device
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        custom = list(paddle.device.get_all_custom_device_type() or [])
        devices = ["cpu", *(["gpu"] if paddle.is_compiled_with_cuda() else []), *custom]
        lines = [
            f"Global.device is {name!r}, which the installed Paddle {paddle.__version__} cannot use ({reason}).",
            f"  it offers: {', '.join(devices)}",
            f"  for {name}: {environment.how_to_install(name)}",
        ]
        if name != "cpu":
            lines.append("  to compute on the CPU: -o Global.device=cpu, or --device cpu where the command has it")
        raise DeviceError("\n".join(lines)) from error
    return name


@contextlib.contextmanager
def on_device(name: str) -> Iterator[str]:
    """Context in which Paddle's device is another one; yields its name. Errors as of `select_device`."""
    import paddle

    before = paddle.get_device()
    if name == before:
        yield name
        return
    try:
        yield select_device(name)
    finally:
        paddle.set_device(before)
