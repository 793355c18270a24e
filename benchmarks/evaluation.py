"""What `plsc eval` takes by Paddle Inference's graph and in dygraph, whole commands side by side on this machine.

    python benchmarks/evaluation.py --rounds 5 -c DeiT_tiny_patch16_224_eval --weights deit.npz [what plsc eval takes]

Both sides take turns, and medians of processor time (of all processes) and elapsed time are printed with their
ratio. On a busy machine only processor time means much. --other CHECKOUT takes its `plsc eval` for the second side.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Run(NamedTuple):
    """One command: seconds of all its processors and of the clock, and its figures."""

    processor: float
    elapsed: float
    figures: dict


def evaluated(checkout: Path, arguments: list[str]) -> Run:
    """One `plsc eval` of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        # not -m plsc, which takes the working folder's plsc before PYTHONPATH
        command = [sys.executable, str(checkout / "tools" / "eval.py"), *arguments, "--output", str(output)]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False
        )
        elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"plsc eval failed:\n{done.stdout}\n{done.stderr}")
        processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return Run(processor, elapsed, json.loads(output.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default: %(default)s)")
    parser.add_argument("--other", type=Path, metavar="CHECKOUT", help="instead of dygraph, another version of plsc")
    arguments, rest = parser.parse_known_args()
    other = ROOT if arguments.other is None else arguments.other.resolve()
    plain = ["-o", "Global.inference=dygraph"] if arguments.other is None else []
    now, before = [], []
    for _ in range(arguments.rounds):
        now.append(evaluated(ROOT, rest))
        before.append(evaluated(other, [*rest, *plain]))
    name = "dygraph" if arguments.other is None else str(arguments.other)
    for what in ("processor", "elapsed"):
        one, two = (statistics.median(getattr(run, what) for run in runs) for runs in (now, before))
        print(f"{what:<10} now {one:.2f} s, {name} {two:.2f} s, ratio {two / one:.2f}")
    first, second = now[0].figures, before[0].figures
    differ = [f"{key} {value} {second.get(key)}" for key, value in first.items() if value != second.get(key)]
    print(f"figures that differ: {', '.join(differ) or 'none'}")


if __name__ == "__main__":
    main()
