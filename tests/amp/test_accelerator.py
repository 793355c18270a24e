"""The pretend accelerator itself: what the other tests build on."""

import json
import os
import subprocess
import sys

import numpy as np
import paddle
import paddle.distributed as dist
import pytest

from tests.accelerator import build
from tests.amp.line import ROUNDINGS
from tests.amp.runs import kernels
from tests.helpers import CHECKOUT, clean_environment

HALF = ["float16", "bfloat16"]


def values(tensor) -> np.ndarray:
    return tensor.astype("float32").numpy()


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_stored_in_16_bits(dtype):
    """Every number is rounded to nearest, half to even; too large ones become infinite."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=20_000) * 10.0 ** rng.integers(-9, 6, 20_000)).astype("float32")
    x = np.concatenate([x, np.array([1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, 1e-8, np.inf, -np.inf], "float32")])
    tensor = paddle.to_tensor(x).astype(dtype)
    assert tensor.element_size() == 2
    assert str(tensor.place) == f"Place({build.DEVICE}:0)"
    np.testing.assert_array_equal(values(tensor), ROUNDINGS[dtype](x))
    assert np.isnan(values(paddle.to_tensor([np.nan]).astype(dtype))).all()


@pytest.mark.parametrize("dtype", HALF)
def test_products_are_summed_in_float32_and_rounded_once(dtype):
    rng = np.random.default_rng(1)
    a, b = (ROUNDINGS[dtype](rng.normal(size=shape).astype("float32")) for shape in ((7, 300), (300, 5)))
    product = values(paddle.matmul(paddle.to_tensor(a).astype(dtype), paddle.to_tensor(b).astype(dtype)))
    exact = a.astype("float64") @ b.astype("float64")
    ulp = 2.0**-10 if dtype == "float16" else 2.0**-7
    assert (np.abs(product - exact) <= 0.51 * ulp * np.maximum(np.abs(exact), 1.0)).all()
    np.testing.assert_array_equal(product, ROUNDINGS[dtype](product))


@pytest.mark.parametrize("dtype", HALF)
def test_gradients(dtype):
    """Of a matrix product, by hand."""
    rng = np.random.default_rng(2)
    a, b = (ROUNDINGS[dtype](rng.normal(size=shape).astype("float32")) for shape in ((6, 4), (4, 3)))
    x, y = (paddle.to_tensor(array).astype(dtype) for array in (a, b))
    x.stop_gradient = y.stop_gradient = False
    paddle.matmul(x, y).sum().backward()
    assert x.grad.dtype == x.dtype
    np.testing.assert_array_equal(values(y.grad), ROUNDINGS[dtype](np.repeat(a.sum(axis=0)[:, None], 3, axis=1)))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["AdamW", "Adam", "Momentum", "SGD", "Lamb"])
def test_optimizers_update_float32_masters(name, dtype):
    """The masters move as float32 weights with the same gradients; the weights are their rounding."""
    rng = np.random.default_rng(3)
    start = ROUNDINGS[dtype](rng.normal(size=(40, 3)).astype("float32"))
    gradients = [ROUNDINGS[dtype](1e-3 * rng.normal(size=start.shape).astype("float32")) for _ in range(3)]
    results = []
    for kind in ("float32", dtype):
        layer = paddle.nn.Linear(*start.shape, bias_attr=False)
        weight = layer.to(dtype=kind).weight
        paddle.assign(paddle.to_tensor(start).astype(kind), output=weight)
        optimizer = getattr(paddle.optimizer, name)(0.001, parameters=[weight], multi_precision=True)
        for gradient in gradients:
            weight.grad = paddle.to_tensor(gradient).astype(kind)
            optimizer.step()
        results.append(weight if kind == "float32" else optimizer._master_weights[weight.name])
    exact, master = (tensor.numpy() for tensor in results)
    assert 0 < np.abs(exact - start).max() < 0.01
    np.testing.assert_allclose(master, exact, rtol=2e-7)  # SGD's kernel on the CPU sums in another order at times
    np.testing.assert_array_equal(values(weight), ROUNDINGS[dtype](master))


def test_random_numbers_are_the_cpus_and_their_state_is_kept():
    drawn = {}
    for device in ("cpu", build.DEVICE):
        paddle.set_device(device)
        paddle.seed(11)
        drawn[device] = [paddle.rand([5]).numpy() for _ in range(3)]
    assert np.array_equal(drawn["cpu"], drawn[build.DEVICE])
    state = paddle.get_rng_state()
    first = paddle.nn.functional.dropout(paddle.ones([100])).numpy()
    paddle.set_rng_state(state)
    assert np.array_equal(paddle.nn.functional.dropout(paddle.ones([100])).numpy(), first)


def test_kernels_are_counted():
    kernels()
    x = paddle.ones([2, 2]).astype("float16")
    paddle.matmul(x, x).numpy()
    counted = kernels()
    assert counted["matmul float16"] == 1
    assert counted["copy to host"] == 1
    assert kernels() == {}


def test_another_name():
    """As PRETEND_NAME says, and with as many devices as PRETEND_DEVICES."""
    env = build.settings(os.environ["CUSTOM_DEVICE_ROOT"]) | {"PRETEND_NAME": "mine", "PRETEND_DEVICES": "3"}
    code = "import paddle; print(paddle.device.get_available_custom_device())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(**env), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['mine:0', 'mine:1', 'mine:2']"


# -- collectives: this file is also the program of their processes ------------------------

WORLD = 3
SIZES = {"float32": 1_500_000, "float16": 5000, "bfloat16": 5000, "int64": 700_000, "float64": 10}  # over one slot, too


def shares(dtype: str) -> list[np.ndarray]:
    """What each rank brings."""
    rng = np.random.default_rng(4)
    if dtype == "int64":
        return [rng.integers(-1000, 1000, SIZES[dtype]) for _ in range(WORLD)]
    numbers = [rng.normal(size=SIZES[dtype]).astype("float64") for _ in range(WORLD)]
    return numbers if dtype == "float64" else [ROUNDINGS[dtype](n.astype("float32")) for n in numbers]


def of_process() -> None:
    """Every collective on every type; says which results are wrong."""
    paddle.set_device(build.DEVICE)
    dist.init_parallel_env()
    rank, wrong = dist.get_rank(), []

    def compare(name: str, tensor, expected: np.ndarray) -> None:
        got = tensor.numpy() if tensor.dtype != paddle.bfloat16 else values(tensor)
        if not np.array_equal(got.astype(expected.dtype), expected):
            wrong.append(name)

    for dtype in SIZES:
        brought = shares(dtype)
        rounded = ROUNDINGS.get(dtype, lambda x: x)
        total = rounded(brought[0] + brought[1] + brought[2])

        def mine(dtype=dtype, brought=brought):
            return paddle.to_tensor(brought[rank]).astype(dtype)

        for op, expected in (("SUM", total), ("MAX", np.max(brought, axis=0)), ("MIN", np.min(brought, axis=0))):
            tensor = mine()
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
            compare(f"all_reduce {op} {dtype}", tensor, expected)
        tensor = mine()
        dist.broadcast(tensor, src=1)
        compare(f"broadcast {dtype}", tensor, brought[1])
        tensor = mine()
        dist.reduce(tensor, dst=2)
        compare(f"reduce {dtype}", tensor, total if rank == 2 else brought[rank])
        gathered = []
        dist.all_gather(gathered, mine())
        compare(
            f"all_gather {dtype}",
            paddle.concat([t.astype("float64") for t in gathered]),
            np.concatenate(brought).astype("float64"),
        )
        part = SIZES[dtype] // WORLD
        tensor = paddle.zeros([part], dtype=dtype)
        dist.reduce_scatter(tensor, mine()[: part * WORLD])
        compare(f"reduce_scatter {dtype}", tensor, total[rank * part : (rank + 1) * part])
    objects = [{"rank": rank}]
    dist.broadcast_object_list(objects, src=0)
    wrong += [] if objects == [{"rank": 0}] else ["broadcast_object_list"]
    print(json.dumps({"rank": rank, "wrong": wrong}), flush=True)


@pytest.mark.distributed
def test_collectives(tmp_path):
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(WORLD)]
    env = build.settings(os.environ["CUSTOM_DEVICE_ROOT"]) | {"PRETEND_DEVICES": str(WORLD)}
    done = subprocess.run(
        [*launch, "--log_dir", tmp_path, __file__],
        env=clean_environment(PYTHONPATH=str(CHECKOUT), **env),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = "".join(path.read_text() for path in tmp_path.glob("workerlog.*")).splitlines()
    reports = [json.loads(line) for line in lines if line.startswith('{"rank"')]
    assert sorted(report["rank"] for report in reports) == list(range(WORLD))
    assert [report["wrong"] for report in reports] == [[]] * WORLD


if __name__ == "__main__":
    of_process()
