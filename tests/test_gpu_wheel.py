"""paddlepaddle-gpu on a machine without a GPU, by `make test-gpu-wheel`: it trains on the CPU, and says why there."""

import paddle
import pytest

from plsc import devices
from tests.helpers import metrics, plsc, tiny_digits, write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not paddle.is_compiled_with_cuda() or paddle.device.cuda.device_count() > 0,
        reason="needs paddlepaddle-gpu on a machine without a GPU, see make test-gpu-wheel",
    ),
]

FAULTS = {"machine", "container", "driver", "variable"}


@pytest.fixture
def run(tmp_path):
    """A function: device, processes, environment → the process of ten updates, its output, the run directory."""

    def start(device: str, processes: int | None = None, **environment):
        tree = tiny_digits()
        tree["Global"] |= {"device": device, "output_dir": str(tmp_path / "run")}
        config = write_config(tmp_path / "run.yaml", tree)
        done = plsc("train", "-c", config, processes=processes, cwd=tmp_path, check=False, env=environment)
        logs = [path.read_text() for path in (tmp_path / "launch_log").glob("workerlog.*")]
        return done, "".join(logs) if processes else done.stderr, tmp_path / "run"  # the launcher's words are Paddle's

    return start


def test_what_it_offers():
    assert list(devices.installed_builds()) == ["paddlepaddle-gpu"]
    listed = {d.kind: d for d in devices.list_devices()}
    assert listed["cpu"].count == 1
    assert listed["gpu"].count == 0
    assert listed["gpu"].lack.fault in FAULTS
    assert listed["xpu"].lack.fault == "wheel"


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize("device", ["gpu", "gpu:0"])
def test_no_gpu_is_one_message(run, device, processes):
    """Paddle itself would end with exit code 255 and one line of C++."""
    done, output, _ = run(device, processes)
    assert done.returncode == 2
    assert f"error: Global.device is '{device}', but " in output
    assert "what to do: " in output or (processes and ":" in device)
    assert "Traceback" not in output
    assert "place.cc" not in output


def test_a_device_of_another_kind_names_the_package(run):
    done, output, _ = run("xpu")
    assert done.returncode == 2
    assert "the installed paddlepaddle-gpu" in output
    assert "install paddlepaddle-xpu" in output


@pytest.mark.parametrize(("device", "processes"), [("auto", None), ("cpu", None), ("cpu", 2)])
def test_it_trains_on_the_cpu(run, device, processes):
    done, output, folder = run(device, processes)
    assert done.returncode == 0, output
    assert len(metrics(folder)) == 10
    log = (folder / "train.log").read_text()
    assert f"on {processes or 1} x cpu in float32" in log
    assert ("Global.device is auto, which is the CPU here: " in log) == (device == "auto")
    assert "CUDA device is not set properly" not in output
