"""plsc doctor on the device: its kernels are right, and a training step runs."""

import plsc
from tests.device import target
from tests.test_doctor import TINY, shallow  # noqa: F401 - a fixture


def test_nothing_fails(tmp_path, shallow):  # noqa: F811
    diagnosis = plsc.diagnose(device=target.DEVICE, run_directory=tmp_path / "runs", model=TINY)
    assert [row for row in diagnosis.rows if row.verdict == "fail"] == [], diagnosis.text()
    # in products too: the other tests compare float32 with the CPU's
    assert "right" in diagnosis.row("float32 kernels").measured, diagnosis.text()
    assert diagnosis.row("training step").data["images_per_second"] > 0
    if not target.ON_CPU:
        assert "pass" in {diagnosis.row(f"{dtype} kernels").verdict for dtype in ("float16", "bfloat16")}
