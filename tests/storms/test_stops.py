"""One run, stopped a hundred times: of one, two and four processes, while it starts, learns, saves and evaluates.

The figures are printed; docs/training.md has those of one storm. PLSC_STORM_STOPS sets another number of stops,
PLSC_STORM_SEED other moments.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers import CHECKOUT, children, clean_environment, command, metrics, write_config
from tests.storms.common import restless_run, start_ranks

STOPS = int(os.environ.get("PLSC_STORM_STOPS", 100))
SEED = int(os.environ.get("PLSC_STORM_SEED", 1))
LONGEST_SECONDS = 10.0
START_SECONDS = 300.0
# of a launched run the launcher is asked, which returns the bare number of the signal
ENDS = {"launched": int(signal.SIGTERM), "alone": 128 + signal.SIGTERM}


class Try:
    """One start of the run and one stop."""

    def __init__(self, folder: Path, number: int):
        rng = random.Random(f"{SEED}/{number}")
        self.folder, self.run, self.rng = folder, folder / "run", rng
        self.processes = (1, 2, 1, 4, 1, 2)[number % 6]
        self.stage = ("step", "save", "evaluation", "start-up")[number // 6 % 4]
        # by the launcher, which asks each rank three times; else asked as the launcher, at once, or one rank alone
        ways = ["launched", "in turn", "at once", "one"]
        if self.stage == "start-up":  # the others wait for the one that has ended; only a launcher knows of it
            ways.remove("one")
        self.how = rng.choice(ways) if self.processes > 1 else "in turn"
        self.name = f"{number}: {self.processes} processes, {self.stage}, {self.how}"

    def start(self) -> None:
        self.step = last_step(self.run)
        tree = restless_run(self.processes)
        if self.stage == "evaluation":  # most of the time
            tree["Global"]["eval_interval"] = 2
            tree["DataLoader"]["Eval"]["sampler"]["batch_size"] = 4
        config = write_config(self.folder / "run.yaml", tree)
        options = ["-o", f"Global.output_dir={self.run}", "-o", "Global.resume=auto"]
        arguments = ["train", "-c", config, *options]
        if self.how == "launched":
            with open(self.folder / "launcher.log", "a") as log:
                launcher = subprocess.Popen(
                    command(arguments, self.processes, self.folder / "launch"),
                    cwd=self.folder,
                    env=clean_environment(PYTHONPATH=str(CHECKOUT)),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.asked = [launcher]
        else:
            self.asked = start_ranks(arguments, self.processes, self.folder)

    def wait(self) -> None:
        """Until the moment of the stop."""
        if self.stage == "start-up":
            time.sleep(self.rng.uniform(0.5, 20.0))
            return
        until = time.monotonic() + START_SECONDS
        while last_step(self.run) <= self.step + 2:
            self._check(until)
            time.sleep(0.02)
        if self.stage == "save":
            while not list(self.run.glob("checkpoints/.*")):
                self._check(until)
        else:
            time.sleep(self.rng.uniform(0.0, 2.0))

    def _check(self, until: float) -> None:
        assert all(process.poll() is None for process in self.asked), f"{self.name}: ended by itself"
        assert time.monotonic() < until, f"{self.name}: does not begin"

    def stop(self) -> float:
        """Ask for the end; returns how many seconds it took."""
        everyone = [*(p.pid for p in self.asked), *(pid for p in self.asked for pid in children(p.pid))]
        started = time.monotonic()
        if self.how in ("launched", "one"):
            self.rng.choice(self.asked).send_signal(signal.SIGTERM)
        elif self.how == "in turn":
            for process in self.asked:
                for _ in range(3):
                    if process.poll() is None:
                        process.send_signal(signal.SIGTERM)
                        time.sleep(0.2)
        else:
            for _ in range(3):
                for process in self.asked:
                    if process.poll() is None:
                        process.send_signal(signal.SIGTERM)
        for process in self.asked:
            process.wait(timeout=120)
        while any(os.path.exists(f"/proc/{pid}") for pid in everyone):
            assert time.monotonic() - started < 120, f"{self.name}: processes are left"
            time.sleep(0.01)
        return time.monotonic() - started

    def problems(self, before_first_line: bool) -> list[str]:
        """What is not as it should be after the stop."""
        wrong = []
        expected = ENDS.get(self.how, ENDS["alone"])
        codes = [process.returncode for process in self.asked]
        # Python itself has not begun: the system ends it, which a shell shows as 143
        allowed = {expected, -signal.SIGTERM} if before_first_line else {expected}
        if not set(codes) <= allowed:
            wrong.append(f"exit codes {codes}")
        wrong += [f"{path.name}: {path.read_text()[:300]}" for path in self.run.glob("errors/rank-*.txt")
                  if "ended by SIGTERM" not in path.read_text()]  # fmt: skip
        last = last_step(self.run)
        if self.stage != "start-up" or last > self.step:
            latest = (self.run / "checkpoints" / "latest").read_text().strip()
            if latest != f"step-{last:08d}":
                wrong.append(f"step {last} was the last, saved is {latest}")
        return wrong


def last_step(run: Path) -> int:
    try:
        return max((record["step"] for record in metrics(run)), default=0)
    except (OSError, json.JSONDecodeError):
        return 0


@pytest.mark.storm
@pytest.mark.distributed
def test_every_stop_is_saved_and_soon_over(tmp_path):
    tries, seconds, wrong = defaultdict(int), defaultdict(list), []
    for number in range(STOPS):
        one = Try(tmp_path, number)
        one.start()
        try:
            one.wait()
            took = one.stop()
        finally:
            for process in one.asked:
                process.kill()
        problems = one.problems(before_first_line=one.stage == "start-up")
        if took > LONGEST_SECONDS:
            problems.append(f"took {took:.1f} s")
        print(f"{one.name}: {took:.1f} s, step {last_step(one.run)}{': ' if problems else ''}{'; '.join(problems)}",
              flush=True)  # fmt: skip
        tries[one.processes, one.stage] += 1
        seconds[one.processes, one.stage].append(took)
        wrong += [f"{one.name}: {problem}" for problem in problems]
    for (processes, stage), count in sorted(tries.items()):
        times = sorted(seconds[processes, stage])
        print(f"{processes} processes, {stage}: {count} stops, median {times[len(times) // 2]:.1f} s, "
              f"longest {times[-1]:.1f} s")  # fmt: skip
    steps = [record["step"] for record in metrics(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1)), "a step is missing, or stands twice"
    assert not wrong, "\n".join(wrong)
