"""Paddle's devices: counted, set for the process, or for a while. Importing this imports no Paddle.

Devices are counted before Paddle is asked for one: where there is none, its GPU builds end the process with exit
code 255 and one line of C++.
"""

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

from plsc import drivers, environment
from plsc.drivers import Lack
from plsc.errors import DeviceError
from plsc.registry import nearest

log = logging.getLogger("plsc")

_BUILDS = ("paddlepaddle", "paddlepaddle-gpu", "paddlepaddle-xpu")  # packages that provide the module paddle
_OTHER_NAMES = {"cuda": "gpu", "nvidia": "gpu", "ascend": "npu", "kunlun": "xpu"}


@dataclass(frozen=True)
class Devices:
    """The devices of a kind that Paddle can use here.

    Attributes:
        kind: cpu, gpu, xpu, npu or another plug-in's name.
        count: how many.
        lack: why there are none; None where there are some.
    """

    kind: str
    count: int
    lack: Lack | None = None


def list_devices() -> list[Devices]:
    """The CPU, and every kind of accelerator: gpu, xpu, npu, and those of other plug-ins that are installed."""
    return [count_devices(kind) for kind in dict.fromkeys(["cpu", "gpu", "xpu", "npu", *_plug_ins()])]


def count_devices(kind: str) -> Devices:
    """How many devices of a kind Paddle can use, without asking it for one.

    Args:
        kind: cpu, gpu, xpu, npu or another plug-in's name.
    """
    import paddle

    if kind == "cpu":
        return Devices(kind, 1)
    if kind not in _built_for():
        return Devices(kind, 0, _of_wheel(kind))
    try:
        count = _count(kind)
    except (RuntimeError, OSError, ValueError):  # a driver that refuses; `lack` asks it why
        count = 0
    cuda = str(paddle.version.cuda()) if kind == "gpu" and not paddle.is_compiled_with_rocm() else None
    return Devices(kind, count, None if count else drivers.lack(kind, cuda=cuda))


def _count(kind: str) -> int:
    import paddle

    if kind in _plug_ins():
        return sum(name.split(":")[0] == kind for name in paddle.device.get_available_custom_device() or ())
    if kind == "gpu":
        return paddle.device.cuda.device_count()
    return paddle.device.xpu.device_count()


def _built_for() -> list[str]:
    """Kinds of devices that the installed Paddle has code for, the CPU and plug-ins included."""
    import paddle

    built = [("gpu", paddle.is_compiled_with_cuda()), ("xpu", paddle.is_compiled_with_xpu())]
    return ["cpu", *(kind for kind, there in built if there), *_plug_ins()]


def _plug_ins() -> list[str]:
    import paddle

    return list(paddle.device.get_all_custom_device_type() or [])


def installed_builds() -> dict[str, str]:
    """Package → version of those installed that provide the module paddle: one, where all is well."""
    builds = {}
    for package in _BUILDS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            builds[package] = importlib.metadata.version(package)
    return builds


def _of_wheel(kind: str) -> Lack:
    """Why the installed Paddle has no code for a kind, and whether the machine would have a device."""
    import paddle

    if kind in _OTHER_NAMES:
        return Lack("wheel", f"Paddle has no device of the name {kind}", f"write {_OTHER_NAMES[kind]}")
    builds = installed_builds()
    names = " and ".join(f"{package} {version}" for package, version in builds.items())
    names = names or f"Paddle {paddle.__version__}"
    if f"paddlepaddle-{kind}" in builds and len(builds) > 1:
        return Lack(
            "wheel",
            f"{names} are both installed, and the one for {kind} was overwritten by the other",
            f"pip uninstall -y {' '.join(builds)}, then install {environment.how_to_install(kind)}",
        )
    reason = f"the installed {names} has {', '.join(_built_for())} only"
    remedy = f"install {environment.how_to_install(kind)}"
    if kind in drivers.FAMILIES:
        machine = drivers.lack(kind)
        if machine.fault in ("machine", "container"):
            reason, remedy = f"{reason}, and {machine.reason}", f"{machine.remedy}; then {remedy}"
    elif (meant := nearest(kind, ["cpu", *drivers.FAMILIES])) is not None:
        remedy = f"write {meant} if that is meant, else {remedy}"
    return Lack("wheel", reason, remedy)


def select_device(name: str) -> str:
    """Set Paddle's device; returns its name.

    Args:
        name: auto (gpu where this Paddle has it and the machine too, else cpu), cpu, gpu, gpu:1, xpu, …

    Raises:
        DeviceError: there is no such device here; the message says what is at fault, and what to do.
    """
    import paddle

    if name == "auto":
        name = _automatic()
    if name == "cpu":
        environment.keep_freed_memory()
    else:
        _require(name)
    try:
        paddle.set_device(name)
    except Exception as error:  # Paddle raises ValueError, RuntimeError or OSError, by version and device
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DeviceError(_unusable(name, f"Paddle refuses it ({reason})", environment.how_to_install(name))) from error
    return name


def _automatic() -> str:
    """gpu or cpu. A build for GPUs that finds none is worth a warning: it was installed for one."""
    if "gpu" not in _built_for():
        return "cpu"
    gpus = count_devices("gpu")
    if gpus.lack is None:
        return "gpu"
    why = gpus.lack
    log.warning("Global.device is auto, which is the CPU here: %s; to change that: %s", why.reason, why.remedy)
    return "cpu"


def _require(name: str) -> None:
    """Raise DeviceError where the device that a name and the launcher choose is not there."""
    kind, colon, number = name.partition(":")
    if colon and not (number.isascii() and number.isdecimal()):
        raise DeviceError(f"Global.device is {name!r}: after the colon comes the number of a device, as in {kind}:0")
    devices = count_devices(kind)
    if devices.lack is not None:
        raise DeviceError(_unusable(name, devices.lack.reason, devices.lack.remedy))
    selected = _selected(kind)
    index = int(number) if colon else selected
    if index < devices.count:
        return
    known = f"the devices of the kind {kind} here are those of the numbers {drivers.numbers(devices.count)}"
    if not colon:
        raise DeviceError(
            f"the launcher gave this process {kind}:{index}, but {known}\n"
            "  what to do: no more processes than devices, see --devices and --nproc_per_node"
        )
    limits = drivers.FAMILIES[kind].variables if kind in drivers.FAMILIES else ()
    limit = next((f" ({variable} is {os.environ[variable]!r})" for variable in limits if variable in os.environ), "")
    raise DeviceError(f"Global.device is {name!r}, but {known}{limit}")


def _selected(kind: str) -> int:
    """The number of the device that the launcher chose for this process; 0 without one."""
    variable = f"FLAGS_selected_{kind}s"
    number = os.environ.get(variable, "0").split(",")[0].strip()
    if not number:
        os.environ[variable] = number = "0"  # Paddle reads a number from it too
    if not (number.isascii() and number.isdecimal()):
        raise DeviceError(
            f"the environment variable {variable} is {os.environ[variable]!r}, but begins with the number of a device\n"
            "  what to do: unset it, the launcher sets it itself; or write a number such as 0"
        )
    return int(number)


def _unusable(name: str, reason: str, remedy: str) -> str:
    lines = [f"Global.device is {name!r}, but {reason}", f"  what to do: {remedy}"]
    if name != "cpu":
        lines.append("  to compute on the CPU: -o Global.device=cpu, or --device cpu where the command has it")
    return "\n".join(lines)


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
