"""Gradients summed apart from Paddle, as float32 gradients of half-precision weights ask."""

import subprocess
import sys

import numpy as np
import paddle
import pytest

from plsc.engine.accumulation import GradientSums
from plsc.engine.distributed import World
from tests.helpers import CHECKOUT, clean_environment, tiny_digits, write_config

# a run whose precision policy is that of O2 with master_grad, in float32 since CPU has no other
SCRIPT = """
import sys
from plsc import environment
environment.prepare(cpu_threads=1)
environment.import_paddle()
from plsc.config import load
from plsc.engine.assembly import assemble
from plsc.engine.precision import Precision
from plsc.engine.run import joined

config = load(sys.argv[1], sys.argv[3:])

with joined(config) as world:
    for how in sys.argv[2].split(","):
        Precision.accumulates_apart = property(lambda self, apart=how == "apart": apart)
        trainer = assemble(config, world)
        batches = trainer.feed.loader.run(trainer.sampler.batches(0))
        trainer.model.train()
        norms = [float(trainer.advance(batches).item()) for _ in range(5)]
        if world.is_first:
            print("NORMS", *norms)
"""


def norms(tmp_path, hows: str, processes: int, *overrides) -> list[list[float]]:
    """The gradient norms of five updates, for each of the ways "apart" and "within" to sum."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    config = write_config(tmp_path / "c.yaml", tiny_digits())
    launch = [] if processes == 1 else ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    launch += ["--log_dir", str(tmp_path / "log")] if launch else []
    overrides = [f"Global.output_dir={tmp_path / 'out'}", "Global.accum_steps=4", *overrides]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(config), hows, *overrides],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [[float(x) for x in line.split()[1:]] for line in done.stdout.splitlines() if line.startswith("NORMS")]


@pytest.mark.distributed
def test_sums_apart_are_paddles_sums(tmp_path):
    """Five updates of four micro-batches have the same gradient norms, so the same weights.

    So they do in two processes, whose reducer sees no gradient.
    """
    apart, within = norms(tmp_path, "apart,within", 1)
    np.testing.assert_allclose(apart, within, rtol=1e-5)
    [two] = norms(tmp_path, "apart", 2, "DataLoader.Train.sampler.batch_size=16")
    np.testing.assert_allclose(two, within, rtol=1e-5)


def test_half_precision_gradients_are_summed_in_float32():
    """256 + 1 + … + 1 in bfloat16 would stay 256; the held sums are exact."""
    weight = paddle.create_parameter([1], "float32")
    sums = GradientSums([("w", weight)], World())
    for k in range(9):
        ((weight * (256.0 if k == 0 else 1.0)).sum()).backward()
        half = weight.grad.astype("bfloat16").astype("float32")
        assert half.item() == weight.grad.item()
        sums.take(last=k == 8)
    assert weight.grad.item() == 264.0
