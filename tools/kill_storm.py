"""Kill and stop a small run at random moments, again and again, and compare its end with an uninterrupted one.

    python tools/kill_storm.py [--kills 100] [--processes 2] [--stage 2] [--seed 0] [--steps 60] [--folder FOLDER]

A ViT of 5,018 parameters learns digits; it saves every 3 updates and evaluates raw and averaged weights every 5. It
is started with Global.resume=auto until it has done all updates; at a random moment of each life, or when the next
checkpoint is being written after it, one of its processes or all of them get SIGKILL or SIGTERM. Then weights,
optimizer state, averages, what trainer.json holds, `best`, and every line of metrics.jsonl but for its times must be
those of the uninterrupted run, bit by bit. Runs follow one another until there were as many kills as asked for.

Processes are forked from one that has imported Paddle, so that a start takes a moment. The exit code is 1 where an end
differs or a process does not end; the run's folder is then kept.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plsc import environment  # noqa: E402 - the checkout comes first
from tests.helpers import write_config  # noqa: E402
from tests.storms.common import restless_run, variables_of_ranks  # noqa: E402

_TIMES = {"images_per_second", "data_time_fraction", "mfu", "checkpoint_copy_seconds", "checkpoint_write_seconds"}
_LONGEST_SECONDS = 120.0  # until all processes of a killed or finished run have ended
_PATIENCE_SECONDS = 20.0  # of the launcher, for processes of which another one has ended
_STOPPED = 128 + signal.SIGTERM


def recipe(folder: Path, processes: int, steps: int, stage: int | None) -> Path:
    tree = restless_run(processes)
    if stage:
        tree["DistributedStrategy"] = {"sharding": {"stage": stage}}
    tree["Global"] |= {"max_train_step": steps, "epochs": 10, "output_dir": str(folder / "run"), "resume": "auto"}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    folder.mkdir(parents=True)
    return write_config(folder / "recipe.yaml", tree)


class Life:
    """The processes of one start of a run."""

    def __init__(self, config: Path, processes: int):
        self.codes: dict[int, int | None] = {}
        for rank, variables in enumerate(variables_of_ranks(processes)):
            self.codes[_forked(config, variables, config.with_name(f"rank-{rank}.log"))] = None

    def wait(self, seconds: float) -> bool:
        """Whether all processes have ended after at most `seconds`."""
        until = time.monotonic() + seconds
        while any(code is None for code in self.codes.values()) and time.monotonic() < until:
            for pid, code in self.codes.items():
                if code is None:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    self.codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.002)
        return None not in self.codes.values()

    def some_ended(self) -> bool:
        return any(code is not None for code in self.codes.values())

    def send(self, number: int, pids: list[int]) -> None:
        for pid in (pid for pid in pids if self.codes[pid] is None):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _forked(config: Path, env: dict[str, str], log: Path) -> int:
    """A process that trains; its output is added to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(env)
        from plsc.cli.main import main

        code = main(["train", "-c", str(config)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome(run: Path) -> dict[str, object]:
    """What must be the same at the end, by name."""
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    end: dict[str, object] = {f"{checkpoint.name}/{p.name}": p.read_bytes() for p in checkpoint.glob("*.safetensors")}
    end["trainer.json"] = json.loads((checkpoint / "trainer.json").read_text())
    end["best"] = (run / "checkpoints" / "best").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, record in enumerate(records):
        end[f"metrics.jsonl, line {number + 1}"] = {k: v for k, v in record.items() if k not in _TIMES}
    return end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills and stops in all")
    parser.add_argument("--processes", type=int, default=1, help="of the run")
    parser.add_argument("--stage", type=int, help="of DistributedStrategy.sharding; by default nothing is sharded")
    parser.add_argument("--steps", type=int, default=60, help="updates of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--folder", type=Path, help="where the runs go; by default a temporary folder")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    environment.import_paddle()
    import plsc.engine.assembly
    import plsc.training  # noqa: F401

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill-storm-"))
    processes, rng = arguments.processes, random.Random(arguments.seed)
    started = time.monotonic()
    straight = Life(recipe(folder / "straight", processes, arguments.steps, arguments.stage), processes)
    if not straight.wait(10 * _LONGEST_SECONDS) or any(straight.codes.values()):
        print(f"the uninterrupted run failed, see {folder}/straight")
        return 1
    length = time.monotonic() - started
    expected, counts = outcome(folder / "straight" / "run"), Counter[str]()
    print(f"uninterrupted: {arguments.steps} updates on {processes} process(es) in {length:.1f} s", flush=True)
    for number in itertools.count(1):
        if counts["SIGKILL"] + counts["SIGTERM"] >= arguments.kills:
            break
        place = folder / f"run-{number}"
        config = recipe(place, processes, arguments.steps, arguments.stage)
        problem = storm(config, processes, arguments.steps, length, rng, counts)
        if problem is None:
            end = outcome(place / "run")
            differing = [name for name in expected.keys() | end.keys() if expected.get(name) != end.get(name)]
            problem = f"differs in {', '.join(sorted(differing)[:5])}" if differing else None
        if problem is not None:
            print(f"FAILED: run {number}: {problem}; see {place}")
            return 1
        counts["runs"] += 1
        print(f"run {number} ended bit-equal; so far {dict(counts)}, {time.monotonic() - started:.0f} s", flush=True)
        shutil.rmtree(place)
    if arguments.folder is None:
        shutil.rmtree(folder)
    print(
        f"all {counts['runs']} runs ended bit-equal after {counts['SIGKILL']} kills and {counts['SIGTERM']} stops, of"
    )
    print(f"which {counts['during a write']} left a checkpoint half written")
    return 0


def storm(
    config: Path, processes: int, steps: int, length: float, rng: random.Random, counts: Counter[str]
) -> str | None:
    """One run, started until it has done all updates. Returns what went wrong, or None."""
    folder = config.parent
    for _ in range(10 * steps):
        life = Life(config, processes)
        ended = life.wait(rng.uniform(0.0, length / 2))
        if not ended and rng.random() < 0.5:
            ended = _wait_for_a_write(life, folder / "run" / "checkpoints", length)
        if ended:
            if any(life.codes.values()):
                return f"a process ended by itself with exit codes {list(life.codes.values())}"
            return None
        number = signal.SIGKILL if rng.random() < 0.6 else signal.SIGTERM
        everyone = list(life.codes)
        life.send(number, everyone if rng.random() < 0.5 else [rng.choice(everyone)])
        if not life.wait(_PATIENCE_SECONDS) and life.some_ended():
            life.send(signal.SIGTERM, everyone)  # as the launcher does with what is left
            if not life.wait(_PATIENCE_SECONDS):
                life.send(signal.SIGKILL, everyone)
                counts["the rest killed"] += 1
        if not life.wait(_LONGEST_SECONDS):
            life.send(signal.SIGKILL, everyone)
            return f"no process ended within {_LONGEST_SECONDS:.0f} s of {number.name}"
        counts[number.name] += 1
        codes = set(life.codes.values())
        if number == signal.SIGTERM and processes == 1 and not codes <= {0, _STOPPED, -signal.SIGTERM}:
            return f"after SIGTERM the exit codes are {list(life.codes.values())}"
        if list((folder / "run" / "checkpoints").glob(".writing-*")):
            counts["during a write"] += 1
    return f"not done after {10 * steps} starts"


def _wait_for_a_write(life: Life, checkpoints: Path, seconds: float) -> bool:
    """Until a checkpoint is being written, or `seconds` are over; returns whether all processes have ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not life.wait(0.001):
        with contextlib.suppress(FileNotFoundError):
            if any(name.startswith(".writing-step") for name in os.listdir(checkpoints)):
                break
    return life.wait(0.0)


if __name__ == "__main__":
    sys.exit(main())
