"""plsc doctor: a healthy machine passes, and each fault put into it is reported with its remedy."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import paddle
import paddle.nn.functional as F
import pytest

import plsc
from plsc import compat, environment
from plsc.cli import main
from plsc.devices import count_devices
from plsc.doctor import Finding, Site, checks, communication, diagnosis, hardware, rates, software, training
from plsc.optim.multi_tensor import MultiTensorAdamW
from tests.helpers import CHECKOUT, clean_environment

only_paddle_3 = pytest.mark.skipif(compat.IS_PADDLE_2, reason="Paddle 2 updates one parameter after the other")
TINY = "ViT_tiny_patch16_224"


@pytest.fixture
def site(tmp_path) -> Site:
    return Site("cpu", tmp_path / "runs", TINY)


@pytest.fixture
def registered(monkeypatch):
    """Checks that a test adds are gone after it."""
    monkeypatch.setattr(checks, "CHECKS", checks.CHECKS)
    kept = dict(checks.CHECKS)
    yield checks.CHECKS
    checks.CHECKS.clear()
    checks.CHECKS.update(kept)


@pytest.fixture
def shallow(monkeypatch):
    """The training step's model has one block."""
    made = training.recipe

    def recipe(*arguments):
        tree = made(*arguments)
        tree["Model"] |= {"depth": 1, "embed_dim": 48, "num_heads": 3}
        return tree

    monkeypatch.setattr(training, "recipe", recipe)


# -- the whole ----------------------------------------------------------------------------------


def test_one_process(tmp_path, shallow, capsys, process_state):
    """Nothing fails here, every row has what it measured, and nothing stays on the disk."""
    folder = tmp_path / "runs"
    arguments = ["doctor", "--device", "cpu", "--run-directory", str(folder), "--model", TINY, "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in content["rows"]}
    assert content["verdict"] in ("pass", "warn"), [row for row in rows.values() if row["verdict"] == "fail"]
    assert all(row["measured"] for row in rows.values())
    assert {"versions", "device", "disk", "float32 kernels", "matrix rate", "training step", "input"} <= {
        name for name, row in rows.items() if row["verdict"] != "skip"
    }
    assert rows["training step"]["data"]["images_per_second"] > 0
    assert rows["versions"]["data"]["plsc"] == plsc.__version__
    assert not folder.exists()
    assert paddle.get_device() == "cpu"


def test_what_the_table_shows():
    rows = (
        diagnosis.Row("fail", "1 MB/s", "a checkpoint in 60 s", "choose a faster file system", name="disk"),
        diagnosis.Row("pass", "cpu", name="device", figures={"0": 1.0}),
    )
    result = diagnosis.Diagnosis("cpu", 2, 3.0, rows)
    assert result.verdict == "fail"
    assert "FAIL  disk    1 MB/s" in result.text()
    assert "disk: choose a faster file system (expected: a checkpoint in 60 s)" in result.text()
    assert "2 x cpu: 1 pass, 0 warn, 1 fail, 0 skip" in result.text()
    content = json.loads(json.dumps(result.to_dict()))
    assert diagnosis.Diagnosis.of_dict(content) == result


def test_a_model_that_is_none(capsys):
    assert main(["doctor", "--model", "ViT_tyni_patch16_224"]) == 2
    assert "ViT_tiny_patch16_224" in capsys.readouterr().err


def only(registered, *names):
    for name in [name for name in registered if name not in names]:
        registered[name] = dataclasses.replace(registered[name], run=lambda site: checks.skip("left out"))


def test_a_device_that_is_not_there(tmp_path, registered, capsys):
    """The row has the reason and what to install; what needs a device is not tried; the exit code is 1."""
    only(registered, "device", "training step")
    assert main(["doctor", "--device", "xpu", "--run-directory", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  device" in printed and "xpu" in printed
    assert "not tried: device failed" in printed and count_devices("xpu").lack.remedy in printed


def test_a_check_that_hangs_ends_what_needs_the_device_and_nothing_else(tmp_path, registered):
    only(registered, "float32 kernels", "flash attention", "mine")
    ran = []
    hanging = dataclasses.replace(registered["float32 kernels"], run=lambda site: time.sleep(30), seconds=0.3)
    registered["float32 kernels"] = hanging

    @checks.check("mine", seconds=5, alone=True)
    def mine(site):
        ran.append(site.device)
        return Finding("pass", "fine")

    began = time.monotonic()
    result = plsc.diagnose(device="cpu", run_directory=tmp_path, model=TINY)
    assert time.monotonic() - began < 10
    assert result.row("float32 kernels").measured == "hangs: not done after 0 s"
    assert result.row("flash attention").measured == "not tried: float32 kernels failed"
    assert result.row("mine").verdict == "pass" and ran == ["cpu"]


def test_a_check_that_raises(tmp_path, registered):
    """Is a failure with the telling line of Paddle's text; the whole is in the JSON."""
    only(registered, "shared memory", "disk")

    def broken(site):
        raise RuntimeError("C++ traceback:\n0 paddle::run (at a.cc:3)\nNotFoundError: The kernel is not registered.")

    registered["disk"] = dataclasses.replace(registered["disk"], run=broken)
    row = plsc.diagnose(device="cpu", run_directory=tmp_path, model=TINY).row("disk")
    assert (row.verdict, row.measured) == ("fail", "RuntimeError: NotFoundError: The kernel is not registered.")
    assert "def broken" not in row.measured and "in broken" in row.data["traceback"]


@pytest.mark.parametrize("way", ["agrees", "fails"])
def test_pictures_stay_until_all_processes_have_ended_their_checks(tmp_path, registered, monkeypatch, way):
    """The first process gives and gets results, after the others have stopped to read, before it removes them."""
    only(registered, "mine")
    pictures, events = tmp_path / "runs" / ".doctor" / "pictures", []
    agreed = diagnosis._agreed

    @checks.check("mine", seconds=5, alone=True)
    def mine(site):
        site.scratch = pictures.parent
        pictures.mkdir(parents=True)
        loader = SimpleNamespace(close=lambda: events.append("closed"))
        site.trainer = SimpleNamespace(feed=SimpleNamespace(loader=loader))
        return Finding("pass", "fine")

    def meeting(site, *arguments):
        events.append("meets" if pictures.is_dir() else "meets after the pictures are gone")
        if way == "fails":
            raise ConnectionError("the store is gone")
        return agreed(site, *arguments)

    monkeypatch.setattr(diagnosis, "_agreed", meeting)
    with pytest.raises(ConnectionError) if way == "fails" else contextlib.nullcontext():
        result = plsc.diagnose(device="cpu", run_directory=tmp_path / "runs", model=TINY)
        assert result.row("mine").verdict == "pass"
    assert events == ["closed", "meets"]
    assert not (tmp_path / "runs").exists()


BUSY = """
import dataclasses, paddle
from plsc.doctor.checks import CHECKS, skip
for name, check in CHECKS.items():
    CHECKS[name] = dataclasses.replace(check, run=lambda site: skip("left out"))
def busy(site):
    site.run_directory.mkdir()
    a = paddle.ones([300, 300])
    while True:
        a = paddle.matmul(a, a) * 0.0
CHECKS["disk"] = dataclasses.replace(CHECKS["disk"], run=busy, seconds=SECONDS)
"""


@pytest.mark.parametrize(("seconds", "code"), [(600.0, 143), (0.5, 1)], ids=["stopped", "hangs"])
def test_the_end_while_a_check_is_in_paddle(tmp_path, seconds, code):
    """By SIGTERM, or after its time: the exit code is the usual one, not that of an abort."""
    (tmp_path / "busy.py").write_text(BUSY.replace("SECONDS", str(seconds)))
    words = ["doctor", "--device", "cpu", "--run-directory", "runs", "--import", "busy.py"]
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", *words],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if code == 143:
        until = time.monotonic() + 60
        while not (tmp_path / "runs").is_dir() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == code, printed
    assert ("terminated" if code == 143 else "FAIL  disk") in printed
    assert not (tmp_path / "runs").exists()


def test_a_signal_that_does_not_wake_the_main_thread():
    """As one that comes just before it waits: a hung check does not hold it back."""
    released = threading.Event()

    def check():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        released.wait(30)

    def stop(number, frame):
        raise environment.Terminated

    before, began = signal.signal(signal.SIGUSR1, stop), time.monotonic()
    try:
        with pytest.raises(environment.Terminated):
            diagnosis._Worker().call(check, 20.0)
        assert time.monotonic() - began < 10
    finally:
        released.set()
        signal.signal(signal.SIGUSR1, before)


# -- kernels --------------------------------------------------------------------------------------


def test_a_wrong_kernel(monkeypatch):
    right = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: right(x) * 1.001)
    finding = hardware._kernels("float32")
    assert finding.verdict == "fail" and finding.measured == "gelu is off by 0.1 % of its largest value"


def test_products_in_a_shorter_type(monkeypatch):
    right = paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda *a, **options: right(*a, **options) * 1.001)
    finding = hardware._kernels("float32")
    assert finding.verdict == "warn" and finding.measured.startswith(
        "TensorFloat-32 in products: matmul is off by 0.1 %"
    )


def test_products_of_a_gpu_in_a_shorter_type(monkeypatch):
    """Usual there: named, with a pass."""
    right = paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda *a, **options: right(*a, **options) * 1.001)
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(hardware, "on_device", lambda name: contextlib.nullcontext())
    finding = hardware._kernels("float32")
    assert finding.verdict == "pass" and finding.measured.startswith("TensorFloat-32 in products: matmul is off by")


@pytest.mark.parametrize("name", ["softmax", "linear", "layer_norm", "conv2d", "scaled_dot_product_attention"])
def test_a_wrong_gradient_of_a_right_result(monkeypatch, name):
    right = getattr(F, name)

    def half_gradient(*arguments, **options):
        result = right(*arguments, **options)
        return 0.5 * (result + result.detach())

    monkeypatch.setattr(F, name, half_gradient)
    finding = hardware._kernels("float32")
    short = "attention" if "attention" in name else name
    assert finding.verdict == "fail" and f"{short} is off by 50 %" in finding.measured
    wrong = {text.split(" is off by")[0] for text in finding.measured.split("; ")}
    assert wrong - {"attention"} <= {short}, "attention has a softmax, too"


def test_a_result_that_is_not_finite(monkeypatch):
    right = paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda *a, **options: right(*a, **options) * float("nan"))
    finding = hardware._kernels("float32")
    assert finding.verdict == "fail" and "matmul is off by nan" in finding.measured
    assert finding.data["matmul"] is None


def test_a_gradient_that_is_not_finite(monkeypatch):
    right = F.gelu

    def gelu(x):
        result = right(x)
        result.register_hook(lambda gradient: gradient * float("nan"))
        return result

    monkeypatch.setattr(F, "gelu", gelu)
    finding = hardware._kernels("float32")
    assert finding.verdict == "fail" and "gelu is off by nan" in finding.measured


@pytest.mark.parametrize("at_once", [False, pytest.param(True, marks=only_paddle_3)])
def test_a_wrong_update(monkeypatch, at_once):
    """Of what runs update by: all parameters in one call, or one after the other where that is not possible."""
    place, name = (paddle._C_ops, "fused_adam_") if at_once else (paddle.optimizer.AdamW, "step")
    right = getattr(place, name)

    def twice(*arguments):
        right(*arguments)
        right(*arguments)

    monkeypatch.setattr(MultiTensorAdamW, "_at_once", lambda self: at_once)
    assert hardware._kernels("float32").verdict == "pass"
    monkeypatch.setattr(place, name, twice)
    finding = hardware._kernels("float32")
    assert finding.verdict == "fail" and "adamw is off by" in finding.measured


def test_kernels_that_are_missing():
    """Paddle has no products of half precision on CPU."""
    finding = hardware._kernels("float16")
    assert finding.verdict == "fail"
    assert "matmul does not run" in finding.measured and "is not registered" in finding.measured


# -- GPUs -----------------------------------------------------------------------------------------


@pytest.fixture
def gpu(site, monkeypatch):
    """A function: a GPU's name and compute capability → the site on it, as far as Paddle's interface says."""

    def on(name: str, capability: tuple[int, int]) -> Site:
        # as paddle.device.cuda has them: without an argument, of the present device
        properties = SimpleNamespace(name=name, major=capability[0], minor=capability[1], total_memory=80 * 2**30)
        cuda = paddle.device.cuda
        monkeypatch.setattr(cuda, "device_count", lambda: 8)
        monkeypatch.setattr(cuda, "get_device_properties", lambda device=None: properties)
        monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(hardware, "select_device", lambda name: name)
        site.device, site.half = "gpu", "float16"
        return site

    return on


def test_a_gpu(gpu):
    finding = hardware.device.run(gpu("NVIDIA A100-SXM4-80GB", (8, 0)))
    assert (finding.verdict, finding.measured) == ("pass", "gpu, 80.0 GiB, NVIDIA A100-SXM4-80GB, 8 here")


@pytest.mark.parametrize(("tflops", "verdict"), [(250.0, "pass"), (120.0, "warn"), (50.0, "fail")])
def test_products_against_the_data_sheet(gpu, monkeypatch, tflops, verdict):
    monkeypatch.setattr(rates, "product_rate", lambda dtype: 1e12 * tflops)
    finding = rates.matrix_rate.run(gpu("NVIDIA A100-SXM4-80GB", (8, 0)))
    assert finding.verdict == verdict
    assert finding.measured == f"{tflops:.3g} TFLOPS in float16, {100 * tflops / 312:.0f} % of the data sheet"
    assert bool(finding.remedy) == (verdict != "pass") and finding.expected == "312 TFLOPS"


def test_flash_attention_of_a_gpu(gpu, monkeypatch):
    """Taken or not, by the names of what backward goes through; of an old GPU the reason is named."""
    monkeypatch.setattr(paddle.Tensor, "astype", lambda self, dtype: self)  # no half precision here
    site = gpu("Tesla V100-SXM2-32GB", (7, 0))
    finding = hardware.flash_attention.run(site)
    assert finding.verdict == "warn"
    assert "not taken: compute capability 7.0, head width 64" in finding.measured
    assert "8.0 to 12.1" in finding.remedy and "whole matrices; smaller" in finding.remedy
    monkeypatch.setattr(hardware, "_operations", lambda node: ["MemoryEfficientAttentionGradNode"])
    finding = hardware.flash_attention.run(site)
    assert finding.verdict == "warn" and finding.measured.endswith("goes through MemoryEfficientAttentionGradNode")
    assert "needs no whole matrices" in finding.remedy
    monkeypatch.setattr(hardware, "_operations", lambda node: ["FlashAttnGradNode"])
    assert hardware.flash_attention.run(site).measured == "taken (float16)"


# -- disk and memory --------------------------------------------------------------------------------


def test_a_slow_disk(site, monkeypatch):
    monkeypatch.setattr(rates, "_DISK_SECONDS", 0.1)
    monkeypatch.setattr(os, "fsync", lambda file: time.sleep(0.6))
    site.model = "ViT_large_patch16_224"
    finding = rates.disk.run(site)
    assert finding.verdict == "warn" and "save less often" in finding.remedy
    monkeypatch.setattr(rates, "_VERY_LONG_SECONDS", 65.0)
    assert rates.disk.run(site).verdict == "fail"
    assert not list(site.run_directory.iterdir())


def test_a_full_disk(site, monkeypatch):
    usage = rates.shutil.disk_usage(site.run_directory.parent)
    monkeypatch.setattr(rates.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    finding = rates.disk.run(site)
    assert finding.verdict == "fail" and "make room" in finding.remedy
    assert hardware.shared_memory.run(site).verdict == "warn"


def test_the_batch_of_the_step_follows_speed_and_memory(site):
    def batch(tflops, memory):
        site.model, site.half, site.tflops, site.memory = "ViT_base_patch16_224", "float16", tflops, memory
        return training._batch_size(site)

    assert [batch(tflops, None) for tflops in (0.05, 10.0, 300.0)] == [1, 16, 128]
    assert [batch(300.0, gigabytes * 2**30) for gigabytes in (80, 8, 1)] == [128, 32, 1]


def test_too_many_threads(site, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    finding = hardware.device.run(site)
    assert finding.verdict == "warn" and "OMP_NUM_THREADS" in finding.remedy


# -- versions ------------------------------------------------------------------------------------------

GOOD = {"plsc": "3.0.0", "Python": "3.11.7", "paddlepaddle": "3.3.1", "numpy": "2.3.0", "protobuf": "6.31.0"}


@pytest.mark.parametrize(
    ("changes", "verdict", "text"),
    [
        ({"paddlepaddle": "2.6.2", "protobuf": "3.20.3"}, "fail", "NumPy 1"),
        ({"paddlepaddle": "2.6.2", "numpy": "1.26.4"}, "fail", "fleet"),
        ({"paddlepaddle-gpu": "2.6.2"}, "fail", "over each other"),
        ({"paddlepaddle": "2.6.2", "paddle2onnx": "2.1.0"}, "warn", "ONNX"),
        ({"numpy": "2.4.6"}, "pass", "GradScaler"),
        ({"etcd3": "0.12.0"}, "warn", "elastic"),
        ({"opencv-python": "4.8.0", "opencv-python-headless": "4.11.0"}, "warn", "OpenCV"),
        ({"Python": "3.13.1"}, "warn", "3.13.1"),
    ],
)
def test_known_conflicts(changes, verdict, text):
    assert not list(software.conflicts(GOOD, scaled=True))
    known = [c for c in software.conflicts({**GOOD, **changes}, scaled=True) if text in c.measured]
    assert [c.verdict for c in known] == [verdict] and bool(known[0].remedy) == (verdict != "pass")


def test_numpy_and_the_loss_scale_concern_accelerators_alone():
    assert not list(software.conflicts({**GOOD, "numpy": "2.4.6"}, scaled=False))


# -- what is made of several processes ---------------------------------------------------------------


def test_the_worst_of_all_is_shown_with_its_process():
    fine, broken = Finding("pass", "cpu"), Finding("fail", "no driver", remedy="install it")
    row = checks.worst({0: fine, 1: fine, 2: broken})
    assert (row.verdict, row.measured, row.remedy) == ("fail", "no driver (process 2)", "install it")
    assert checks.worst({0: Finding("pass", "10 MB/s"), 1: checks.skip("not its task")}).measured == "10 MB/s"


def test_a_slow_process_is_named():
    rates = {rank: Finding("pass", f"{rate} TFLOPS", figure=rate) for rank, rate in enumerate([100.0, 99.0, 60.0])}
    row = checks.worst(rates)
    assert row.verdict == "warn" and row.measured == "60.0 TFLOPS (process 2, the slowest)"
    assert row.expected == "at least 70 % of the median of all processes"
    assert checks.worst({0: rates[0], 1: rates[1]}).verdict == "pass"


def test_a_slow_pair_is_named():
    """Of three nodes of two devices: the pairs of each kind are compared among themselves."""

    def rate(a, b):
        return 200.0 if a // 2 == b // 2 else (2.0 if {a, b} == {1, 4} else 10.0)

    findings = {
        a: Finding("pass", "", data={"rates": {str(b): rate(a, b) for b in range(6) if b != a}, "machine": a // 2})
        for a in range(6)
    }
    row = rates._evenness(findings)
    assert row.verdict == "warn" and "1-4 (2 GB/s)" in row.remedy and "0-1" not in row.remedy
    findings[1].data["rates"]["4"] = 9.0
    assert rates._evenness(findings).verdict == "pass"


@pytest.mark.parametrize(("skew", "verdict"), [(0.2, "pass"), (-4.0, "warn"), (300.0, "fail")])
def test_clocks(skew, verdict):
    times = {0: [10.0, 11.0, 12.0], 1: [10.01, 11.3, 12.0], 2: [10.0 + skew, 11.0 + skew, 12.0 + skew]}
    row = communication._skew({rank: Finding("pass", "", data=data) for rank, data in times.items()})
    assert row.verdict == verdict
    assert verdict == "pass" or ("process 2" in row.measured and "chrony" in row.remedy)


# -- launched -----------------------------------------------------------------------------------------

SMALL = """
from plsc.doctor import training
made = training.recipe
def recipe(*arguments):
    tree = made(*arguments)
    tree["Model"] |= {"depth": 1, "embed_dim": 48, "num_heads": 3}
    return tree
training.recipe = recipe
"""
# what may be wrong with one node of two, on process 1
FAULTS = """
import dataclasses, importlib.metadata, os, time
import paddle.distributed as dist
from plsc.doctor.checks import CHECKS
CHECKS["pairs"] = dataclasses.replace(CHECKS["pairs"], seconds=3.0)
if dist.get_rank() == 1:
    os.makedirs("another", exist_ok=True)
    os.chdir("another")  # the same path leads to another folder
    clock, version = time.time, importlib.metadata.version
    time.time = lambda: clock() + 300.0
    importlib.metadata.version = lambda name: "1.2.3" if name == "simplejpeg" else version(name)
    right = dist.all_reduce
    def all_reduce(tensor, *arguments, **options):
        right(tensor, *arguments, **options)
        tensor.scale_(0.5)
    dist.all_reduce = all_reduce
    reduce = dist.reduce
    def wrong(tensor, *arguments, **options):
        reduce(tensor, *arguments, **options)
        tensor[7] = 0
    dist.reduce = wrong
    dist.send = lambda *arguments, **options: time.sleep(1000)
"""


def launched(tmp_path, plug_in: str, *, device: str = "cpu", **variables) -> tuple[int, dict]:
    """The exit code and the rows of two processes that import a file."""
    (tmp_path / "plug_in.py").write_text(plug_in)
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", tmp_path / "log"]
    arguments = ["--device", device, "--run-directory", "runs", "--model", TINY, "--import", "plug_in.py", "--json"]
    done = subprocess.run(
        [*launch, CHECKOUT / "tools" / "doctor.py", *arguments],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(CHECKOUT), **variables),
        capture_output=True,
        text=True,
        timeout=240,
    )
    log = (tmp_path / "log" / "workerlog.0").read_text()
    assert "\n{" in log, log + done.stderr
    content, _ = json.JSONDecoder().raw_decode(log[log.index("\n{") + 1 :])
    assert content["processes"] == 2
    return done.returncode, {row["name"]: row for row in content["rows"]}


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(tmp_path):
    code, rows = launched(tmp_path, SMALL)
    assert code == 0, rows
    assert all(row["verdict"] in ("pass", "warn") for row in rows.values() if row["verdict"] != "skip")
    collectives = ("barrier", "broadcast", "all_reduce", "reduce", "all_gather")
    for name in ("clocks", *collectives, "run directory", "all_reduce rate"):
        assert rows[name]["verdict"] == "pass", rows[name]
    assert rows["pairs"]["data"]["on one machine"]["0-1"] > 0
    assert rows["gradient reduction"]["data"]["seconds_averaged"] > 0
    assert list(rows["matrix rate"]["figures"]) == ["0", "1"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.distributed
@pytest.mark.slow
def test_faults_of_one_node(tmp_path):
    code, rows = launched(tmp_path, FAULTS)
    assert code == 1
    assert rows["all_reduce"]["verdict"] == "fail"
    assert "the sum of float32 gives 1.5 for 3" in rows["all_reduce"]["measured"]
    assert rows["reduce"]["verdict"] == "fail"
    assert rows["reduce"]["measured"].startswith("the last process's sum of float32 gives 0 for 3; ")
    assert rows["broadcast"]["verdict"] == rows["all_gather"]["verdict"] == "pass"
    assert rows["clocks"]["verdict"] == "fail" and "process 1 is 300" in rows["clocks"]["measured"]
    assert rows["versions"]["measured"].startswith("process 1 has simplejpeg 1.2.3 for ")
    assert rows["run directory"]["verdict"] == "fail" and "process 1" in rows["run directory"]["measured"]
    assert (rows["pairs"]["verdict"], rows["pairs"]["measured"]) == ("fail", "hangs: not done after 3 s")
    rate = rows["matrix rate"]  # still measured on both, and warned of where other programs slow one of them
    assert rate["verdict"] in ("pass", "warn") and list(rate["figures"]) == ["0", "1"]
    assert rows["training step"]["measured"].startswith("not tried: ")


CRASH = """
import os
import paddle.distributed as dist
if dist.get_rank() == 1:
    dist.broadcast = lambda *arguments, **options: os.abort()
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_a_process_that_crashes(tmp_path):
    """The first process still prints its table, which names the check."""
    code, rows = launched(tmp_path, CRASH)
    assert code != 0
    assert rows["barrier"]["verdict"] == "pass"
    failed = [name for name, row in rows.items() if row["verdict"] == "fail"]
    assert failed[0] == "broadcast" and failed[-1] == "answers"
    assert "another process has ended" in " ".join(row["measured"] for row in rows.values())
    assert rows["pairs"]["measured"].startswith("not tried: ")
