"""Why a machine or container shows no accelerator: device files, driver, and the variables that hide devices.

Only looked at where Paddle counts none. Imports no Paddle.
"""

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Fault = Literal["wheel", "driver", "container", "variable", "machine"]


@dataclass(frozen=True)
class Lack:
    """Why there is no device of a kind.

    Attributes:
        fault: what is at fault: the installed Paddle (wheel), the driver, the options of the container, an environment
            variable that hides the devices, or the machine, which has none.
        reason: half a sentence, for people.
        remedy: what to do.
    """

    fault: Fault
    reason: str
    remedy: str


@dataclass(frozen=True)
class Family:
    """What the driver of a kind of accelerator leaves on a machine.

    Attributes:
        name: for people.
        files: pattern of its devices' names in /dev.
        driver: paths below /, of which one exists where the kernel has its driver.
        vendors: numbers of its makers on the PCI bus.
        variables: those that choose among devices. Only the first one that is set counts.
        container: how a container gets its devices.
        driver_page: where its driver comes from. tool: shows the state of its devices, and where it runs as root it
            makes their files.
    """

    name: str
    files: str
    driver: tuple[str, ...]
    vendors: frozenset[str]
    variables: tuple[str, ...]
    container: str
    driver_page: str
    tool: str


FAMILIES = {
    "gpu": Family(
        name="NVIDIA GPU",
        files=r"nvidia\d+",
        driver=("proc/driver/nvidia/version", "dev/dxg"),  # dxg is Windows' own, in WSL
        vendors=frozenset({"0x10de"}),
        variables=("CUDA_VISIBLE_DEVICES",),
        container="docker run --gpus all (the host needs NVIDIA's container toolkit), in Kubernetes the resource "
        "nvidia.com/gpu",
        driver_page="https://www.nvidia.com/drivers",
        tool="nvidia-smi",
    ),
    "xpu": Family(
        name="Kunlun XPU",
        files=r"xpu\d+",
        driver=("proc/kunlun", "sys/module/kunlun"),
        vendors=frozenset({"0x1d22"}),
        variables=("XPULINK_VISIBLE_DEVICES", "XPU_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
        container="docker run --device=/dev/xpuctrl --device=/dev/xpu0 …",
        driver_page="its vendor",
        tool="xpu-smi",
    ),
    "npu": Family(
        name="Ascend NPU",
        files=r"davinci\d+",
        driver=("proc/driver/ascend", "sys/module/drv_davinci_intf_host", "dev/davinci_manager"),
        vendors=frozenset({"0x19e5"}),
        variables=("ASCEND_RT_VISIBLE_DEVICES",),
        container="docker run --device=/dev/davinci_manager --device=/dev/davinci0 …, or Ascend's container runtime",
        driver_page="its vendor",
        tool="npu-smi",
    ),
}

_ACCELERATORS = ("0x03", "0x12")  # classes on the PCI bus: display controllers and processing accelerators

# what cuInit answers, from the reference of CUDA's driver interface, and the remedy
_CUDA_NO_DEVICE = 100
_CUDA_ERRORS: dict[int, tuple[str, str]] = {
    34: ("libcuda.so.1 is the stub of a CUDA toolkit", "take the toolkit's folder `stubs` out of LD_LIBRARY_PATH"),
    46: ("the GPU is in use by another process alone", "end that process, see nvidia-smi"),
    304: ("the driver's device files cannot be opened", "look at the rights of /dev/nvidia*"),
    802: (
        "the driver has not finished its start: machines with NVSwitch need nvidia-fabricmanager",
        "systemctl start nvidia-fabricmanager on the host, of the driver's version",
    ),
    803: (
        "libcuda.so.1 and the driver in the kernel are of different versions",
        "restart the machine after an update of the driver; in a container take the folder `compat` of CUDA out of "
        "LD_LIBRARY_PATH",
    ),
    804: (
        "the container's libcuda.so.1 is newer than the host's driver, which these GPUs do not support",
        "a newer driver on the host, or take the folder `compat` of CUDA out of LD_LIBRARY_PATH",
    ),
    999: (
        "the driver fails without a reason",
        "load its module nvidia_uvm again, or restart the machine; `dmesg` has its messages",
    ),
}


@dataclass(frozen=True)
class CudaDriver:
    """NVIDIA's driver library, as it answers.

    Attributes:
        code: of cuInit: 0 where it works.
        version: the newest CUDA that it supports, as 12040 for 12.4; 0 where it does not say.
    """

    code: int
    version: int = 0


def cuda_driver() -> CudaDriver | None:
    """Ask NVIDIA's driver library; None where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int(0)
        library.cuDriverGetVersion(ctypes.byref(version))
        return CudaDriver(int(library.cuInit(0)), version.value)
    except (OSError, AttributeError):  # no such file, or one of another kind
        return None


def lack(
    kind: str,
    *,
    cuda: str | None = None,
    root: Path = Path("/"),
    variables: Mapping[str, str] = os.environ,
    ask: Callable[[], CudaDriver | None] = cuda_driver,
) -> Lack:
    """Why this machine shows no device of a kind that the installed Paddle was built for.

    Args:
        kind: gpu, xpu, npu or another plug-in's name.
        cuda: the CUDA version of the installed Paddle, such as 12.6; None where it has none.
        root: where dev, proc and sys are. variables: of the environment. ask: how NVIDIA's driver library is asked.
    """
    family = FAMILIES.get(kind)
    if family is None:
        hidden = _hidden((f"{kind.upper()}_VISIBLE_DEVICES",), None, variables)
        return hidden or Lack("driver", f"its plug-in finds no {kind}", f"look at the driver of the {kind}")
    files = _names(root / "dev", family.files)
    driver = ask() if kind == "gpu" else None
    windows = (root / "dev" / "dxg").exists()
    if not files and not (windows and driver):
        return _without_files(family, root, variables)
    if kind == "gpu" and driver is None:
        return Lack(
            "driver",
            "libcuda.so.1, the driver's library, is not found",
            "install the libraries of the driver's version (Debian, Ubuntu: libnvidia-compute-…), or add their folder "
            "to LD_LIBRARY_PATH",
        )
    hidden = _hidden(family.variables, len(files) or None, variables)
    if hidden is not None:
        return hidden
    if driver is not None:
        return _of_cuda(driver, cuda, family, variables)
    return Lack("driver", f"its driver offers none of {', '.join(files)}", f"look at the driver with {family.tool}")


def _names(folder: Path, pattern: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted((n for n in names if re.fullmatch(pattern, n)), key=lambda n: int(re.findall(r"\d+", n)[-1]))


def _without_files(family: Family, root: Path, variables: Mapping[str, str]) -> Lack:
    """A machine without device files: of the driver, the container or the machine is the fault."""
    container = in_container(root, variables)
    if any((root / path).exists() for path in family.driver):
        if container:
            return Lack(
                "container",
                f"the host has the driver for {family.name}s, but this container was started without them",
                family.container,
            )
        return Lack(
            "driver",
            f"the driver for {family.name}s is loaded, but there is no device file /dev/{_example(family)}",
            f"run {family.tool} as root, which makes the files, or start the driver's service",
        )
    bus = _on_bus(family, root)
    if bus:
        where = "on the host " if container else ""
        return Lack(
            "driver",
            f"the {family.name} at {bus} on the PCI bus has no driver that is loaded",
            f"install the driver {where}from {family.driver_page}, and restart",
        )
    if container:
        return Lack(
            "container",
            f"this container shows no {family.name}: no driver, no device file /dev/{_example(family)}",
            f"where the host has one: {family.container}",
        )
    return Lack(
        "machine",
        f"this machine shows no {family.name}: no driver, no device file /dev/{_example(family)}, none on the PCI bus",
        f"take a machine that has one; where it has, its driver is missing: {family.driver_page}",
    )


def _example(family: Family) -> str:
    return family.files.replace(r"\d+", "0")


def in_container(root: Path = Path("/"), variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this looks like the inside of Docker, Podman or Kubernetes."""
    marks = (root / ".dockerenv", root / "run" / ".containerenv")
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in variables


def _on_bus(family: Family, root: Path) -> str | None:
    """The address of the first accelerator of a family on the PCI bus."""
    for device in sorted((root / "sys" / "bus" / "pci" / "devices").glob("*")):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor in family.vendors and kind.startswith(_ACCELERATORS):
            return device.name
    return None


def _hidden(names: tuple[str, ...], count: int | None, variables: Mapping[str, str]) -> Lack | None:
    """The variable that hides all of `count` devices, if one does; a count of None is unknown."""
    name = next((name for name in names if name in variables), None)
    if name is None:
        return None
    value = variables[name]
    there = "" if count is None else f"; the machine has {numbers(count)}"
    first = value.split(",")[0].strip().strip("'\"")
    if not first:
        reason = f"{name} is empty, which hides every device"
    elif re.fullmatch(r"-?\d+", first) and count is not None and not 0 <= int(first) < count:
        after = ", and nothing after an absent one counts" if "," in value else ""
        reason = f"{name} is {value!r}, whose first device is absent{after}{there}"
    elif first in ("-1", "NoDevFiles", "none", "void"):
        reason = f"{name} is {value!r}, which hides every device"
    else:
        return None
    return Lack("variable", reason, f"unset {name}, or {name}=0")


def numbers(count: int) -> str:
    """The numbers of so many devices, for people: 0, or 0 to 7."""
    return "0" if count == 1 else f"0 to {count - 1}"


def _of_cuda(driver: CudaDriver, cuda: str | None, family: Family, variables: Mapping[str, str]) -> Lack:
    """What NVIDIA's driver says of GPUs whose device files are there."""
    if driver.code in _CUDA_ERRORS:
        reason, remedy = _CUDA_ERRORS[driver.code]
        return Lack("driver", reason, remedy)
    offered = f"{driver.version // 1000}.{driver.version % 1000 // 10}"
    if cuda and driver.version and int(cuda.split(".")[0]) > driver.version // 1000:
        return Lack(
            "driver",
            f"the driver supports CUDA up to {offered}, and the installed Paddle is built for {cuda}",
            f"a newer driver ({family.driver_page}), or the Paddle for CUDA {driver.version // 1000}",
        )
    chosen = variables.get("CUDA_VISIBLE_DEVICES")
    if driver.code == _CUDA_NO_DEVICE and chosen is not None:
        return Lack(
            "variable",
            f"CUDA_VISIBLE_DEVICES is {chosen!r}, of which no GPU is there",
            "unset CUDA_VISIBLE_DEVICES, or name devices as `nvidia-smi -L` lists them",
        )
    answer = "works" if driver.code == 0 else f"answers cuInit with error {driver.code}"
    return Lack(
        "driver",
        f"the driver (CUDA {offered}) {answer}, but offers no GPU to Paddle",
        "nvidia-smi shows the state of the GPUs; a process that ended badly may need the machine restarted",
    )
