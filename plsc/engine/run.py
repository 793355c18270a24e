"""The life of a run: its folder and lock, its processes, logging, failures and end. Importing it imports no Paddle."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from plsc import environment
from plsc.errors import ConfigError

if TYPE_CHECKING:
    from plsc.config import Config
    from plsc.engine.callbacks import Callback
    from plsc.engine.distributed import World
    from plsc.engine.trainer import Trainer

log = logging.getLogger("plsc")

# a job that is started again may find the run before it, or a node that was cut off, still at its end
_PREDECESSOR_SECONDS = 300.0


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        run_directory: Global.output_dir, with checkpoints, metrics.jsonl and train.log.
        finished: whether the last update was done; False after a signal or a profile that ends the run.
        step: updates done.
        last: figures of the last evaluation, of averaged weights with the prefix ema_; empty without any.
        best: metric, value, step and weights (raw or ema) of the best evaluation so far; None without any.
        signal: the signal that stopped the run, or None.
    """

    run_directory: Path
    finished: bool
    step: int
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of a command: 0, or 128 + the signal that stopped the run."""
        return 0 if self.signal is None else 128 + self.signal


def train(config: "Config", callbacks: Sequence["Callback"] = (), *, verify: bool = True) -> TrainResult:
    """Train, fine-tune or continue the run that a configuration describes.

    Works in a notebook, in any thread, and several times in one process; under paddle.distributed.launch every
    process calls it alike. SIGTERM and Ctrl-C end the run after the update in progress, with a checkpoint.

    Args:
        callbacks: see plsc.engine.callbacks.
        verify: compare the files of the checkpoint that the run begins with with their checksums.

    Raises:
        PlscError: what the user can correct. One process raises it; of several, the one that fails prints it, writes it
            to errors/rank-N.txt in the run directory, and all end with exit code 2.
    """
    g = config.Global
    environment.import_paddle(cpu_threads=g.cpu_threads)
    from plsc.engine import profiling, stopping, tracking
    from plsc.engine.assembly import assemble
    from plsc.engine.callbacks import Callbacks
    from plsc.engine.loggers import loggers

    if g.profiler_options:
        profiling.parse(g.profiler_options)
    first = environment.rank() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping.handlers_restored())  # the last to be left
        folder = Path(g.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if first:
                stack.enter_context(locked(folder, _PREDECESSOR_SECONDS if g.resume == "auto" else 0.0))
            stack.enter_context(tracking.logging_to(folder / "train.log" if first else None, verbose=first))
        except OSError as error:
            raise config.error(("Global", "output_dir"), f"{folder} cannot be written: {error.strerror}") from error
        threads = os.environ.get("OMP_NUM_THREADS")
        if g.cpu_threads and threads != str(g.cpu_threads):
            text = (
                f"has no effect: Paddle was imported before, and computes with {threads or 'its own number of'} threads"
            )
            log.warning("%s", config.source.located(("Global", "cpu_threads"), text))
        world = stack.enter_context(joined(config))
        for note in config.notes:
            log.info("%s", note)
        called = Callbacks([*loggers(config), *callbacks], is_first=first)
        try:
            trainer = assemble(config, world, called, verify=verify)
            trainer.stop.listen()
            trainer.fit()
            result = _result(folder, trainer)
            # the others wait: the launcher ends all processes soon after the first of them has left
            with world.first_only() as mine:
                called.end(result)
                if mine:
                    _summarise(result, trainer.progress.total_steps)
        except BaseException as error:
            called.failure(error)
            raise
        return result


def _result(folder: Path, trainer: "Trainer") -> TrainResult:
    progress = trainer.progress
    return TrainResult(folder, progress.finished, progress.step, trainer.last, trainer.best.record, trainer.stop.signal)


@contextlib.contextmanager
def joined(config: "Config") -> Iterator["World"]:
    """The processes of a run for the length of the block: device, Paddle's flags, and failing together.

    Errors of the block end in errors/rank-N.txt of Global.output_dir; of several processes all end with the same
    exit code. Afterwards device and flags are as they were before.
    """
    import paddle

    from plsc.engine.distributed import World
    from plsc.engine.failures import Failures

    failures = Failures(config.Global.output_dir, environment.rank(), environment.world_size())
    device = paddle.get_device()
    try:
        world = World.start(config.Global.device, config.DistributedStrategy.timeout)
        with _flags(config), failures.watched(), world.heartbeat.watched(failures.give_up):
            yield world
            world.leave()
    except (Exception, KeyboardInterrupt, environment.Terminated) as error:
        failures.record(error)
        raise
    finally:
        paddle.set_device(device)


@contextlib.contextmanager
def _flags(config: "Config") -> Iterator[None]:
    """Paddle's flags as Global.flags sets them. One that this build of Paddle does not know is a warning."""
    import paddle

    before: dict[str, Any] = {}
    try:
        for name in environment.EXECUTOR_FLAGS:
            if name not in os.environ:  # Paddle was imported before plsc could set it
                before |= paddle.get_flags(name)
                paddle.set_flags({name: True})
        for key, value in config.Global.flags.items():
            name = key if key.startswith("FLAGS_") else f"FLAGS_{key}"
            try:
                before |= {} if name in before else paddle.get_flags(name)
                paddle.set_flags({name: value})
            except RuntimeError as error:
                raise config.error(("Global", "flags", key), f"Paddle refuses the value {value!r}") from error
            except ValueError:
                log.warning("Global.flags: this build of Paddle %s does not know %s", paddle.__version__, name)
        yield
    finally:
        paddle.set_flags(before)


@contextlib.contextmanager
def locked(folder: Path, patience: float, holder: str = "Global.output_dir: another run") -> Iterator[None]:
    """Hold the run directory's lock: a second run in the same folder would destroy the first.

    Args:
        patience: seconds to wait for the run that holds it. holder: what the error calls that.

    Raises:
        ConfigError: another run still holds it.
    """
    with open(folder / ".lock", "w") as file:
        until, waiting = time.monotonic() + patience, False
        while not _lock(file):
            if time.monotonic() > until:
                raise ConfigError(f"{holder} is at work in {folder}; choose another folder")
            if not waiting:
                log.warning("another run is at work in %s; waiting up to %.0f s for its end", folder, patience)
            waiting = True
            time.sleep(0.5)
        yield


def _lock(file: TextIO) -> bool:
    """Whether no other process holds the file's lock, which this one then has, where the file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _start() -> str:
    """The words that start training as this process was started."""
    if not environment.launched():
        return "plsc train"
    local = environment.local_size()
    nodes = "" if local == environment.world_size() else " [the options of the nodes]"
    return f"python -m paddle.distributed.launch{nodes} --nproc_per_node {local} tools/train.py"


def _summarise(result: TrainResult, total_steps: int) -> None:
    """The last lines of a run: accuracy, run directory, how to continue."""
    which = "final" if result.finished else "last"
    for prefix, of in (("", ""), ("ema_", " of the averaged weights")):
        accuracies = {k.removeprefix(prefix): v for k, v in result.last.items() if k.startswith(f"{prefix}top")}
        if accuracies:
            shown = ", ".join(f"{name} {100 * value:.2f} %" for name, value in accuracies.items())
            log.info("%s evaluation%s: %s", which, of, shown)
    log.info("run directory: %s", result.run_directory)
    if not result.finished:
        again = f"-c {result.run_directory / 'config.yaml'} -o Global.resume=auto"
        again = f"{_start()} {again}"
        last = f"stopped at step {result.step} of {total_steps}; continue with: {again}"
        log.info("%s", last)
        environment.tell_launcher(last)
