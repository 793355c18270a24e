"""Elastic training on one machine: of two nodes one is killed and comes back, and the job goes on by itself.

    python tools/elastic_demo.py

Starts etcd in a temporary folder and, as two nodes, two launchers of one process each. One node is killed: the
other goes on alone, from the last checkpoint. The node is started again: both go on together, to the end. A
table says what happened when, and then this is checked: every step stands once in metrics.jsonl, checkpoints
were written by 2, then 1, then 2 processes, the global batch stayed, and the losses are those of an
uninterrupted run of one process. It takes about two minutes.

Needs etcd (Debian, Ubuntu: apt-get install etcd-server) and its client (pip install 'plsc[elastic]').
Exit code: 0 as it should be, 1 something else happened, 2 etcd or its client is missing.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
# the first: etcd3's generated code is older than what compiled protobuf 4 and later take
ENVIRONMENT = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "PYTHONPATH": str(CHECKOUT)}

NAMES = ("first", "second")
GLOBAL_BATCH = 64
STEPS = 160
SAVE_INTERVAL = 20
# seconds that a picture costs: the run must still be at work when the node is back
FAST, STEADY, SLOW = 0.0, 0.003, 0.015
# largest relative difference of a loss from the uninterrupted run's: another number of processes adds float32 numbers
# in another order, which grows to 2e-5 over the updates; other pictures in a batch change its loss by some per cent
TOLERANCE = 1e-3

RECIPE = """\
_base_: digits
Global:
  imports: [./pace.py]
  output_dir: {run}
  global_batch_size: {global_batch}
  max_train_step: {steps}
  print_batch_step: 1
  save_interval: {save_interval}
  save_unit: step
  eval_interval: 1000
  eval_unit: step
  max_num_latest_checkpoint: -1
  cpu_threads: 1
LRScheduler:
  learning_rate: 2e-4
DataLoader:
  Train:
    dataset:
      transform_ops:
        - Pace: {{file: {pace}}}
        - RandShift: {{pixels: 1}}
        - NormalizeImage: {{mean: [0.5], std: [0.5]}}
        - ToCHWImage:
"""
PACE = '''\
"""A transform that takes as long as a file says."""

import time
from pathlib import Path

import plsc


@plsc.register_transform()
class Pace:
    """Leaves the picture as it is, after as many seconds as `file` says."""

    def __init__(self, file: str):
        self.file = Path(file)

    def __call__(self, image, rng):
        time.sleep(float(self.file.read_text() or 0))
        return image
'''


class Failed(Exception):
    """The job did not do what it should."""


# -- processes ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, at any depth. Sessions and process groups do not matter."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below, queue = [], [pid]
    while queue:
        parent = queue.pop()
        children = [child for child, of in parents.items() if of == parent]
        below += children
        queue += children
    return below


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for a process and all below it, as if the machine had gone."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_until(what: str, reached: Callable[[], bool], seconds: float, alive: list[subprocess.Popen]) -> None:
    """Return when `reached` says so.

    Raises:
        Failed: it took longer than `seconds`, or one of the processes `alive` ended before.
    """
    until = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > until:
            raise Failed(f"after {seconds:.0f} s still waiting for: {what}")
        for process in alive:
            if process.poll() is not None:
                raise Failed(f"waiting for: {what}; but {process.args[0]} ended with exit code {process.returncode}")
        time.sleep(0.1)


@contextlib.contextmanager
def etcd(folder: Path, seconds: float) -> Iterator[str]:
    """An etcd server for the length of the block, its data in `folder`; yields its address, host:port."""
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = ["etcd", "--name", "one", "--data-dir", str(folder / "etcd")]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"]
    with open(folder / "etcd.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until("etcd to answer", lambda: _healthy(client), seconds, [server])
        yield client.removeprefix("http://")
    finally:
        server.terminate()
        server.wait()


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=1) as answer:
            return json.load(answer)["health"] == "true"
    except (OSError, ValueError, urllib.error.URLError):
        return False


# -- the job --------------------------------------------------------------------------------


@dataclass
class Job:
    """The folder of a demonstration: recipe, run directory, logs of nodes."""

    folder: Path
    elastic_timeout: int = 10

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def write(self) -> None:
        (self.folder / "pace.py").write_text(PACE)
        self.pace(STEADY)
        (self.folder / "recipe.yaml").write_text(
            RECIPE.format(
                run=self.run,
                pace=self.folder / "pace.txt",
                global_batch=GLOBAL_BATCH,
                steps=STEPS,
                save_interval=SAVE_INTERVAL,
            )
        )

    def pace(self, seconds: float) -> None:
        """What a picture costs from now on."""
        beside = self.folder / "pace.writing"
        beside.write_text(str(seconds))
        beside.rename(self.folder / "pace.txt")

    def start_node(self, name: str, etcd_address: str) -> subprocess.Popen:
        """A launcher of one process, started again by tools/restart.py where it gives up."""
        command = [sys.executable, str(CHECKOUT / "tools" / "restart.py"), "--pause", "1"]
        command += ["--restart_on", "requested lease not found"]  # a launcher that was silent never registers again
        command += [sys.executable, "-m", "paddle.distributed.launch"]
        command += [
            "--master",
            f"etcd://{etcd_address}",
            "--job_id",
            "demo",
            "--nnodes",
            "1:2",
            "--nproc_per_node",
            "1",
        ]
        command += ["--elastic_level", "1", "--elastic_timeout", str(self.elastic_timeout), "--max_restart", "100"]
        command += ["--log_dir", str(self.folder / name)]
        command += [str(CHECKOUT / "tools" / "train.py"), "-c", str(self.folder / "recipe.yaml")]
        command += ["-o", "Global.resume=auto"]
        with open(self.folder / f"{name}.log", "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment(), cwd=self.folder)

    def world_size(self) -> int:
        """Processes of the run as it is at work now; 0 before the first start."""
        try:
            return json.loads((self.run / "environment.json").read_text())["world_size"]
        except (OSError, ValueError):
            return 0

    def steps(self) -> list[int]:
        return [record["step"] for record in records(self.run, "train")]

    def step(self) -> int:
        return max(self.steps(), default=0)

    def checkpoints(self) -> list[dict]:
        """The progress that all checkpoints state, in the order of their steps."""
        paths = sorted((self.run / "checkpoints").glob("step-*/trainer.json"))
        return [json.loads(path.read_text())["parts"]["progress"] for path in paths]

    def rank(self, name: str) -> int:
        """The rank that the launcher of a node gave its process last."""
        ranks = re.findall(r"^PADDLE_TRAINER_ID=(\d+)$", (self.folder / name / "envlog.0").read_text(), re.MULTILINE)
        return int(ranks[-1])

    def restarts(self, name: str) -> int:
        """How often the launcher of a node gave up, and tools/restart.py started it again."""
        return len(re.findall(r"restart.py: .*starting again", (self.folder / f"{name}.log").read_text()))


def environment() -> dict[str, str]:
    """This process's, without what a launcher around it would have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "FLAGS_", "OMP_"))}
    return {**kept, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"}


def records(run: Path, kind: str) -> list[dict]:
    """The whole lines of one kind in metrics.jsonl."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# -- what happens ---------------------------------------------------------------------------


@dataclass
class Event:
    what: str
    seconds: float
    step: int
    processes: int


class Diary:
    """What happened when. Every entry is printed at once."""

    def __init__(self, job: Job):
        self._job, self._start = job, time.monotonic()
        self.events: list[Event] = []

    def note(self, what: str) -> None:
        event = Event(what, time.monotonic() - self._start, self._job.step(), self._job.world_size())
        before = self.events[-1].seconds if self.events else 0.0
        self.events.append(event)
        took = f"{event.seconds:7.1f} {event.seconds - before:7.1f}"
        print(f"{took}  {event.step:4d}  {event.processes:9d}  {what}", flush=True)

    @staticmethod
    def head() -> None:
        print("  after    took  step  processes  what\n      s       s", flush=True)


def rehearse(job: Job, patience: float, *, rank: int, how: str) -> Diary:
    """Two nodes, one lost, one started again, the end.

    Args:
        patience: seconds that each phase may take.
        rank: of the process whose node is lost.
        how: kill (SIGKILL for all its processes) or terminate (SIGTERM, as from a scheduler that takes the machine).

    Raises:
        Failed: a phase took longer, or a node gave up.
    """
    job.write()
    diary, nodes = Diary(job), {}
    diary.head()
    try:
        with etcd(job.folder, patience) as address:
            diary.note("etcd answers; two nodes are started")
            nodes = {name: job.start_node(name, address) for name in NAMES}
            both = list(nodes.values())
            wait_until("two processes", lambda: job.world_size() == 2, patience, both)
            diary.note("two processes are at work")
            wait_until("a checkpoint and more", lambda: job.step() >= SAVE_INTERVAL + 5, patience, both)

            lost = next(name for name in NAMES if job.rank(name) == rank)
            (other,) = (nodes[name] for name in NAMES if name != lost)
            if how == "kill":
                kill(nodes[lost])
                diary.note(f"{lost} node, rank {rank}: killed, launcher and process")
            else:
                nodes[lost].terminate()
                code = nodes[lost].wait(patience)
                diary.note(f"{lost} node, rank {rank}: SIGTERM, ended with exit code {code}")
                if code != 128 + signal.SIGTERM:
                    raise Failed(f"{lost} node: exit code {code} after SIGTERM instead of {128 + signal.SIGTERM}")
            lost_at = job.step()
            wait_until("one process", lambda: job.world_size() == 1, patience, [other])
            diary.note("one process is at work, from the last checkpoint")
            wait_until("more steps alone", lambda: job.step() >= lost_at + SAVE_INTERVAL, patience, [other])

            job.pace(SLOW)
            nodes[lost] = job.start_node(lost, address)
            diary.note(f"{lost} node: started again")
            both = list(nodes.values())
            wait_until("two processes again", lambda: job.world_size() == 2, patience, both)
            diary.note("two processes are at work again")
            job.pace(FAST)
            wait_until("the end", lambda: all(node.poll() is not None for node in both), patience, [])
            codes = [node.returncode for node in both]
            diary.note(f"both nodes have ended, with exit codes {codes[0]} and {codes[1]}")
            if any(codes):
                raise Failed("a node ended with another exit code than 0")
    finally:
        for node in nodes.values():
            kill(node)
    return diary


def uninterrupted(job: Job, patience: float) -> Path:
    """The same recipe in one process, from the beginning to the end; returns its run directory."""
    run = job.folder / "uninterrupted"
    command = [sys.executable, "-m", "plsc", "train", "-c", str(job.folder / "recipe.yaml")]
    command += ["-o", f"Global.output_dir={run}"]
    with open(job.folder / "uninterrupted.log", "w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment(), check=True, timeout=patience)
    return run


def check(job: Job, straight: Path) -> list[str]:
    """What was found, one line each.

    Raises:
        Failed: names what is not as it should be.
    """
    steps = job.steps()
    if steps != list(range(1, STEPS + 1)):
        twice = sorted({step for step in steps if steps.count(step) > 1})
        missing = sorted(set(range(1, STEPS + 1)) - set(steps))
        raise Failed(f"metrics.jsonl: steps {missing} are missing, {twice} stand twice or more")
    evaluations = [record["step"] for record in records(job.run, "eval")]
    if evaluations != [STEPS]:
        raise Failed(f"metrics.jsonl: evaluations of the steps {evaluations} instead of one of step {STEPS}")

    checkpoints = job.checkpoints()
    if not checkpoints or checkpoints[-1]["step"] != STEPS:
        raise Failed(f"there is no checkpoint of step {STEPS}")
    sizes = [size for size, _ in groupby(checkpoint["world_size"] for checkpoint in checkpoints)]
    if not re.search("2,1,2$", ",".join(map(str, sizes))):
        raise Failed(f"checkpoints were written by {sizes} processes, not by 2, then 1, then 2")
    batches = {checkpoint["global_batch"] for checkpoint in checkpoints}
    if batches != {GLOBAL_BATCH}:
        raise Failed(f"checkpoints have the global batches {sorted(batches)}, not {GLOBAL_BATCH} alone")

    # an update on other samples, or of another number of them, has another loss
    straight_losses = {record["step"]: record["loss"] for record in records(straight, "train")}
    differences = [
        abs(record["loss"] - straight_losses[record["step"]]) / straight_losses[record["step"]]
        for record in records(job.run, "train")
    ]
    if max(differences) > TOLERANCE:
        step = differences.index(max(differences)) + 1
        raise Failed(f"the loss of step {step} differs by {max(differences):.1e} from the uninterrupted run's")

    accuracy, other = (records(run, "eval")[-1]["top1"] for run in (job.run, straight))
    return [
        f"every step from 1 to {STEPS} stands once in metrics.jsonl, and one evaluation",
        f"{len(checkpoints)} checkpoints, written by {', then '.join(map(str, sizes))} processes; global batch "
        f"{GLOBAL_BATCH} in all of them",
        f"losses of all steps agree with an uninterrupted run of one process to {max(differences):.1e}",
        f"top-1 {100 * accuracy:.2f} %, uninterrupted {100 * other:.2f} %",
        "launchers that gave up and were started again by tools/restart.py: "
        + ", ".join(f"{name} node {job.restarts(name)}" for name in NAMES),
    ]


def missing() -> str | None:
    """What has to be installed before this can run, or None."""
    if shutil.which("etcd") is None:
        return "etcd is missing: apt-get install etcd-server"
    done = subprocess.run([sys.executable, "-c", "import etcd3"], env=environment(), capture_output=True, text=True)
    if done.returncode:
        return f"etcd's client is missing: pip install 'plsc[elastic]' ({done.stderr.strip().splitlines()[-1]})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where all is written, and kept (default: a temporary folder)")
    parser.add_argument("--rank", type=int, choices=(0, 1), default=0, help="whose node is lost (default 0)")
    parser.add_argument("--how", choices=("kill", "terminate"), default="kill", help="by SIGKILL or by SIGTERM")
    parser.add_argument("--elastic_timeout", type=int, default=10, help="seconds to wait for a node (default 10)")
    parser.add_argument("--patience", type=float, default=240, help="seconds that a phase may take (default 240)")
    arguments = parser.parse_args()
    reason = missing()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="plsc-elastic-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(folder, arguments.elastic_timeout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        rehearse(job, arguments.patience, rank=arguments.rank, how=arguments.how)
        lines = check(job, uninterrupted(job, arguments.patience))
    except (Failed, subprocess.SubprocessError) as error:
        print(f"error: {error}\n  logs: {folder}", file=sys.stderr)
        return 1
    print("\n" + "\n".join(textwrap.fill(line, 110, initial_indent="- ", subsequent_indent="  ") for line in lines))
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
