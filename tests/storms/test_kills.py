"""Runs that are killed and stopped at random moments end as one that was left alone, see tools/kill_storm.py.

PLSC_STORM_KILLS sets another number of kills and stops, PLSC_STORM_SEED other moments; docs/training.md has the figures
of longer storms.
"""

import os
import subprocess
import sys

import pytest

from tests.helpers import CHECKOUT, clean_environment

KILLS = os.environ.get("PLSC_STORM_KILLS", "25")
SEED = os.environ.get("PLSC_STORM_SEED", "1")


@pytest.mark.storm
@pytest.mark.parametrize(
    ("processes", "stage"), [(1, None), *(pytest.param(2, n, marks=pytest.mark.distributed) for n in (None, 1, 3))]
)
def test_killed_and_stopped_runs_end_bit_equal(tmp_path, processes, stage):
    script = [sys.executable, str(CHECKOUT / "tools" / "kill_storm.py"), "--folder", str(tmp_path / "storm")]
    options = ["--kills", KILLS, "--processes", str(processes), "--seed", SEED]
    options += ["--stage", str(stage)] if stage else []
    done = subprocess.run([*script, *options], env=clean_environment(), capture_output=True, text=True, timeout=3000)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended bit-equal after" in done.stdout
