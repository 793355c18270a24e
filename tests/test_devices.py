"""Devices that are not there: which of wheel, driver, container or variable is at fault.

On folders with the files of many machines, and on this machine.
"""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import paddle
import pytest

from plsc import devices, drivers
from plsc.drivers import CudaDriver, Lack, lack
from plsc.errors import DeviceError
from tests.device import runs
from tests.helpers import CHECKOUT, clean_environment, log_texts, plsc, tiny_digits, write_config

WORKS = CudaDriver(0, 12040)


def machine(root: Path, *, gpus=0, module=False, container=False, bus=False, files=(), windows=False) -> Path:
    """A folder with the files that a machine of this kind has."""
    names = [f"dev/nvidia{number}" for number in range(gpus)] + list(files)
    names += ["proc/driver/nvidia/version"] if module else []
    names += [".dockerenv"] if container else []
    names += ["dev/dxg"] if windows else []
    if bus:
        for name, vendor, kind in (("0000:00:01.0", "0x10de", "0x040300"), ("0000:3b:00.0", "0x10de", "0x030200")):
            (root / "sys/bus/pci/devices" / name).mkdir(parents=True)
            (root / "sys/bus/pci/devices" / name / "vendor").write_text(f"{vendor}\n")
            (root / "sys/bus/pci/devices" / name / "class").write_text(f"{kind}\n")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


MACHINES = {
    "nothing": ({}, {}, None, "machine", ["shows no NVIDIA GPU", "/dev/nvidia0", "PCI"], ["driver"]),
    "no driver": ({"bus": True}, {}, None, "driver", ["0000:3b:00.0", "no driver"], ["install", "nvidia.com/drivers"]),
    "container without devices": (
        {"module": True, "container": True},
        {},
        None,
        "container",
        ["host has the driver", "started without"],
        ["--gpus all"],
    ),
    # the library of CUDA's folder `compat`, which images bring themselves
    "container with its own library": ({"module": True, "container": True}, {}, WORKS, "container", [], ["--gpus"]),
    "Kubernetes": (
        {"module": True},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        None,
        "container",
        ["started without"],
        ["nvidia.com/gpu"],
    ),
    "container of a machine that shows nothing": ({"container": True}, {}, None, "container", ["shows no"], ["--gpus"]),
    "no device files": ({"module": True}, {}, WORKS, "driver", ["/dev/nvidia0"], ["nvidia-smi"]),
    "no library": ({"gpus": 2, "module": True}, {}, None, "driver", ["libcuda.so.1"], ["LD_LIBRARY_PATH"]),
    "Windows without its library": ({"windows": True}, {}, None, "driver", ["/dev/nvidia0"], []),
    "empty variable": (
        {"gpus": 2, "module": True},
        {"CUDA_VISIBLE_DEVICES": ""},
        CudaDriver(100, 12040),
        "variable",
        ["CUDA_VISIBLE_DEVICES is empty"],
        ["unset CUDA_VISIBLE_DEVICES"],
    ),
    "absent device": (
        {"gpus": 8, "module": True},
        {"CUDA_VISIBLE_DEVICES": "8,0"},
        CudaDriver(100, 12040),
        "variable",
        ["CUDA_VISIBLE_DEVICES is '8,0'", "0 to 7", "nothing after"],
        ["CUDA_VISIBLE_DEVICES=0"],
    ),
    "minus one": (
        {"gpus": 1, "module": True},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        CudaDriver(100, 12040),
        "variable",
        ["'-1'", "the machine has 0"],
        ["unset"],
    ),
    "absent by its name": (
        {"gpus": 1, "module": True},
        {"CUDA_VISIBLE_DEVICES": "GPU-1234"},
        CudaDriver(100, 12040),
        "variable",
        ["'GPU-1234'"],
        ["nvidia-smi -L"],
    ),
    "a variable of Windows": (
        {"windows": True},
        {"CUDA_VISIBLE_DEVICES": ""},
        CudaDriver(100, 12040),
        "variable",
        ["is empty"],
        ["unset"],
    ),
    "old driver": ({"gpus": 1, "module": True}, {}, CudaDriver(35, 11080), "driver", ["11.8", "12.6"], ["CUDA 11"]),
    "switches without their manager": ({"gpus": 8}, {}, CudaDriver(802, 12040), "driver", [], ["nvidia-fabricmanager"]),
    "two versions": ({"gpus": 8}, {}, CudaDriver(803, 12040), "driver", ["different versions"], ["restart"]),
    "unknown error": ({"gpus": 8}, {}, CudaDriver(719, 12040), "driver", ["719"], ["nvidia-smi"]),
    "works, but not for Paddle": ({"gpus": 8}, {}, WORKS, "driver", ["CUDA 12.4", "works"], ["nvidia-smi"]),
}


@pytest.mark.parametrize("name", MACHINES)
def test_gpu(tmp_path, name):
    files, variables, driver, fault, reason, remedy = MACHINES[name]
    answer = lack("gpu", cuda="12.6", root=machine(tmp_path, **files), variables=variables, ask=lambda: driver)
    assert answer.fault == fault
    assert [word for word in reason if word not in answer.reason] == [], answer.reason
    assert [word for word in remedy if word not in answer.remedy] == [], answer.remedy


@pytest.mark.parametrize(
    ("kind", "files", "variables", "fault", "word"),
    [
        ("xpu", [], {}, "machine", "Kunlun XPU"),
        ("xpu", ["sys/module/kunlun", ".dockerenv"], {}, "container", "--device=/dev/xpu0"),
        ("xpu", ["dev/xpu0", "dev/xpu1"], {"XPU_VISIBLE_DEVICES": "2"}, "variable", "XPU_VISIBLE_DEVICES"),
        ("npu", ["dev/davinci0"], {"ASCEND_RT_VISIBLE_DEVICES": ""}, "variable", "ASCEND_RT_VISIBLE_DEVICES"),
        ("npu", ["dev/davinci10", "dev/davinci9"], {}, "driver", "davinci9, davinci10"),
        ("npu", ["dev/davinci_manager", ".dockerenv"], {}, "container", "--device=/dev/davinci0"),
        ("mine", [], {}, "driver", "mine"),
        ("mine", [], {"MINE_VISIBLE_DEVICES": ""}, "variable", "MINE_VISIBLE_DEVICES"),
    ],
)
def test_other_devices(tmp_path, kind, files, variables, fault, word):
    answer = lack(kind, root=machine(tmp_path, files=files), variables=variables, ask=lambda: pytest.fail("of NVIDIA"))
    assert answer.fault == fault
    assert word in answer.reason + answer.remedy


def test_nvidias_library_answers_or_is_not_there():
    """The call itself, whatever this machine has."""
    answer = drivers.cuda_driver()
    assert answer is None or answer.version >= 0


# -- what Paddle counts --------------------------------------------------------------------


@pytest.fixture
def cpu_build():
    if paddle.is_compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")


@pytest.fixture
def gpu_build(monkeypatch):
    """Paddle as if it were built for GPUs; returns what sets how many it counts, or what it raises."""
    counted = types.SimpleNamespace(answer=0)

    def device_count() -> int:
        if isinstance(counted.answer, Exception):
            raise counted.answer
        return counted.answer

    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", device_count)
    monkeypatch.setattr(paddle.version, "cuda", lambda: "12.6")
    monkeypatch.setattr(paddle, "set_device", lambda name: pytest.fail(f"Paddle is asked for {name}"))
    monkeypatch.setattr(drivers, "lack", lambda kind, cuda=None: Lack("driver", f"{kind} of {cuda} broke", "repair it"))
    return counted


def test_every_kind_has_devices_or_a_reason(cpu_build):
    listed = {d.kind: d for d in devices.list_devices()}
    assert {"cpu", "gpu", "xpu", "npu"} <= set(listed)
    assert listed["cpu"].count == 1 and listed["cpu"].lack is None
    for kind in ("gpu", "xpu"):
        assert listed[kind].count == 0
        assert listed[kind].lack.fault == "wheel"
        assert f"paddlepaddle {paddle.__version__} has cpu" in listed[kind].lack.reason
        assert f"paddlepaddle-{kind}" in listed[kind].lack.remedy


@pytest.mark.parametrize("answer", [0, RuntimeError("CUDA error(35)"), OSError("CUDA error(100)")])
def test_a_build_for_gpus_without_one(gpu_build, answer):
    """Paddle is not asked for a device: it would end the process."""
    gpu_build.answer = answer
    with pytest.raises(DeviceError, match=r"Global\.device is 'gpu', but gpu of 12\.6 broke\n  what to do: repair it"):
        devices.select_device("gpu")


def test_auto_says_why_it_is_the_cpu(gpu_build, monkeypatch):
    chosen = []
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    with log_texts(30) as texts:
        assert devices.select_device("auto") == "cpu"
    assert texts == ["Global.device is auto, which is the CPU here: gpu of 12.6 broke; to change that: repair it"]
    gpu_build.answer = 2
    with log_texts(30) as texts:
        assert devices.select_device("auto") == "gpu"
    assert texts == []
    assert chosen == ["cpu", "gpu"]


@pytest.mark.parametrize(
    ("name", "count", "variables", "words"),
    [
        ("gpu:2", 2, {}, ["'gpu:2'", "0 to 1"]),
        ("gpu:1", 1, {"CUDA_VISIBLE_DEVICES": "3"}, ["'gpu:1'", "numbers 0", "CUDA_VISIBLE_DEVICES is '3'"]),
        ("gpu", 2, {"FLAGS_selected_gpus": "2"}, ["launcher", "gpu:2", "--nproc_per_node"]),
        ("gpu", 2, {"FLAGS_selected_gpus": "one"}, ["variable FLAGS_selected_gpus is 'one'", "unset it"]),
        ("gpu:1", 2, {"FLAGS_selected_gpus": "-1,0"}, ["variable FLAGS_selected_gpus is '-1,0'", "unset it"]),
        ("gpu:one", 2, {}, ["'gpu:one'", "gpu:0"]),
        ("gpu:-1", 2, {}, ["'gpu:-1'", "gpu:0"]),
    ],
)
def test_a_number_that_is_not_there(gpu_build, monkeypatch, name, count, variables, words):
    gpu_build.answer = count
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(DeviceError) as caught:
        devices.select_device(name)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_a_device_that_is_there_is_set(gpu_build, monkeypatch):
    gpu_build.answer = 2
    chosen = []
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    assert devices.select_device("gpu:1") == "gpu:1"
    monkeypatch.setenv("FLAGS_selected_gpus", "1")
    assert devices.select_device("gpu") == "gpu"
    assert chosen == ["gpu:1", "gpu"]


@pytest.mark.parametrize("value", ["", " ", ","])
def test_an_empty_variable_of_the_launcher_is_the_first_device(gpu_build, monkeypatch, value):
    """For Paddle too, which reads a number from it."""
    gpu_build.answer = 1
    variable, numbers = "FLAGS_selected_gpus", []
    monkeypatch.setattr(paddle, "set_device", lambda name: numbers.append(int(os.environ[variable])))
    monkeypatch.setenv(variable, value)
    assert devices.select_device("gpu") == "gpu"
    assert numbers == [0]


def test_two_builds_that_overwrite_each_other(cpu_build, monkeypatch):
    installed = {"paddlepaddle": "3.3.1", "paddlepaddle-gpu": "3.3.1"}
    monkeypatch.setattr(devices, "installed_builds", lambda: installed)
    missing = devices.count_devices("gpu").lack
    assert missing.fault == "wheel"
    assert "paddlepaddle 3.3.1 and paddlepaddle-gpu 3.3.1 are both installed" in missing.reason
    assert "pip uninstall -y paddlepaddle paddlepaddle-gpu" in missing.remedy


def test_names_of_other_frameworks(cpu_build):
    with pytest.raises(DeviceError, match="write gpu"):
        devices.select_device("cuda:0")


@pytest.mark.parametrize(("name", "words"), [("gpuu", "write gpu if that is meant, else install"), ("mlu", "install")])
def test_a_name_that_may_be_a_mistake_or_a_plug_in(cpu_build, name, words):
    with pytest.raises(DeviceError, match=f"what to do: {words} the plug-in paddle-custom-{name}"):
        devices.select_device(name)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("container", "docker run --gpus all; then install paddlepaddle-gpu"), ("variable", "install paddlepaddle-gpu")],
)
def test_a_wheel_for_cpus_in_a_container_without_gpus(cpu_build, monkeypatch, fault, words):
    """Both are named at once, with both remedies; a variable cannot be judged before Paddle counts devices."""
    monkeypatch.setattr(drivers, "lack", lambda kind: Lack(fault, "there is none here", "docker run --gpus all"))
    missing = devices.count_devices("gpu").lack
    assert missing.fault == "wheel" and missing.remedy.startswith(words)
    assert ("there is none here" in missing.reason) == (fault == "container")


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [None, 2])
def test_one_message_alone_and_under_the_launcher(cpu_build, tmp_path, processes):
    tree = tiny_digits()
    tree["Global"] |= {"device": "gpu", "output_dir": str(tmp_path / "run")}
    config = write_config(tmp_path / "run.yaml", tree)
    done = plsc("train", "-c", config, processes=processes, cwd=tmp_path, check=False)
    logs = "".join(path.read_text() for path in (tmp_path / "launch_log").glob("workerlog.*"))
    text = logs if processes else done.stderr
    assert done.returncode == 2
    assert text.count("error: Global.device is 'gpu', but the installed paddlepaddle") == (processes or 1)
    assert "Traceback" not in text
    assert "install paddlepaddle-gpu" in text


def test_what_plsc_asks_of_paddle_for_gpus_is_there():
    """Names that no run on a CPU meets: a build without CUDA has them too, and refuses only the call."""
    sources = [path.read_text() for path in (CHECKOUT / "plsc").rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"\bpaddle\.device\.cuda\.(\w+)\(", source)}
    assert {"device_count", "get_device_name", "get_device_properties", "max_memory_allocated"} <= names
    assert [name for name in sorted(names) if not callable(getattr(paddle.device.cuda, name, None))] == []
    assert callable(paddle.CUDAPinnedPlace)


def test_devices_of_the_launcher_are_named_as_the_variable_names_them(monkeypatch):
    """As docs/faq.md says: all that CUDA_VISIBLE_DEVICES leaves, or some of these by its own names."""
    from paddle.distributed.launch.context.device import Device

    for variable in ("XPULINK_VISIBLE_DEVICES", "XPU_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8932f937")
    device = Device.parse_device()
    assert (device.count, device.get_selected_devices()) == (2, ["0", "1"])
    assert device.get_selected_devices("GPU-8932f937") == ["1"]
    with pytest.raises(ValueError, match="'0' is not in list"):
        device.get_selected_devices("0,1")


# where Paddle would be imported: what CUDA's libraries, which come with it, read of the environment
AT_THE_IMPORT = """
import importlib.abc, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "paddle":
            print(os.environ.get("NVIDIA_TF32_OVERRIDE"))
            os._exit(0 if not sys.stdout.flush() else 1)
sys.meta_path.insert(0, Finder())
import tests.conftest
"""


@pytest.mark.parametrize(("asked", "override"), [({"PLSC_TEST_DEVICE": "gpu"}, "0"), ({}, "None")])
def test_tests_on_a_gpu_are_in_float32_before_paddle_is_there(asked, override):
    env = {k: v for k, v in clean_environment().items() if k not in ("PLSC_TEST_DEVICE", "NVIDIA_TF32_OVERRIDE")}
    run = subprocess.run(
        [sys.executable, "-c", AT_THE_IMPORT], cwd=CHECKOUT, env={**env, **asked}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout.strip()) == (0, override), run.stderr


@pytest.mark.parametrize("device", ["gpu", "xpu"])
def test_how_tests_start_two_processes_on_a_device(tmp_path, monkeypatch, device):
    """On whatever devices are left to them; on GPUs with attention whose gradient is the same each time."""
    commands = []

    def ran(command, **options):
        commands.append([str(part) for part in command])
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(runs, "subprocess", types.SimpleNamespace(run=ran))
    monkeypatch.setattr(runs, "PRETENDED", False)
    runs.launched(tmp_path, [{"train": {"Global": {"device": device}}}, {"evaluate": "run", "into": "file"}])
    [command] = commands
    assert command[command.index("--nproc_per_node") + 1] == "2" and "--devices" not in command
    trained, evaluated = json.loads(Path(command[-1]).read_text())
    assert trained["train"]["Global"].get("flags") == ({"FLAGS_cudnn_deterministic": True} if device == "gpu" else None)
    assert evaluated == {"evaluate": "run", "into": "file"}
