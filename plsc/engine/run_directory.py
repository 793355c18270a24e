"""The folder of one run, and what a run starts from."""

import logging
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import paddle
import yaml

import plsc
from plsc import environment, files, places
from plsc.config import Config
from plsc.engine import checkpoint
from plsc.engine.checkpoint import Checkpoints, Saved
from plsc.engine.distributed import World
from plsc.engine.state import ProgressState
from plsc.engine.tracking import cannot_be_written
from plsc.errors import CheckpointError, ConfigError

log = logging.getLogger("plsc")

_SEEN_SECONDS = 10.0


def starting_checkpoint(config: Config, *, verify: bool = True) -> Saved | None:
    """The checkpoint to continue from: Global.checkpoint, else Global.resume, else none.

    With `resume: auto` beside Global.checkpoint the run's own newest checkpoint comes first, so that
    a job that is started again goes on where it was.

    Args:
        verify: compare its files with their checksums. `resume: auto` takes the newest checkpoint that passes.

    Raises:
        ConfigError: the run directory holds checkpoints, and neither resume nor checkpoint is given.
        CheckpointError: the checkpoint is missing or damaged.
    """
    g = config.Global
    own = Checkpoints(Path(g.output_dir) / places.CHECKPOINTS)
    own.wait_for_earlier_run()
    if own.folder.is_symlink() and not own.folder.exists():  # no checkpoint could be found there, nor written
        raise CheckpointError(f"{own.folder}: {files.absence(own.folder)}; remove it, or restore what it leads to")
    if g.checkpoint and not (g.resume == "auto" and own.steps()):
        try:
            path = checkpoint.locate(g.checkpoint)
        except CheckpointError as error:
            config.check_input(("Global", "checkpoint"), g.checkpoint)
            raise config.error(("Global", "checkpoint"), str(error)) from error
        if not own.steps() or path.resolve().is_relative_to(own.folder.resolve()):
            return checkpoint.read(path, verify=verify)
    elif g.resume == "auto":
        if not own.steps():
            _check_not_moved(config, own)
            log.info("Global.resume is auto, and %s holds no checkpoint: the run starts from the beginning", own.folder)
        return _newest_intact(own, verify)
    elif g.resume:
        chosen = own.find(g.resume)
        if chosen is None:
            steps = ", ".join(places.step_name(s) for s in own.steps())
            there = f"there are latest, best and {steps}" if steps else "it holds none; auto would begin at step 0"
            raise CheckpointError(f"Global.resume is {g.resume}, but {own.folder} holds no such checkpoint: {there}")
        return checkpoint.read(chosen, verify=verify)
    if own.steps():
        raise ConfigError(
            f"{g.output_dir} already holds a run (step {own.steps()[-1]}): continue it with -o Global.resume=auto, "
            f"or choose another folder, for instance -o Global.output_dir={g.output_dir.rstrip('/')}-2"
        )
    return None


def _check_not_moved(config: Config, own: Checkpoints) -> None:
    """Raise ConfigError where the recipe lies in the folder of a run that would not be the one continued."""
    file = config.source.origin(("Global", "output_dir")).file
    moved = places.run_directory(Path(file).parent) if file and Path(file).name == places.RECIPE else None
    if moved is not None and not moved.samefile(own.folder.parent):
        raise config.error(
            ("Global", "output_dir"),
            f"is {config.Global.output_dir}, which holds no checkpoint, but the file lies in the run {moved}; if that "
            f"run was moved, continue it with -o Global.output_dir={moved}",
        )


def _newest_intact(own: Checkpoints, verify: bool) -> Saved | None:
    """The newest checkpoint that can be read, None where there is none; what is skipped is logged as an error.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    damaged: dict[str, str] = {}  # name of a checkpoint → why it is skipped
    for path in own.newest_first():
        try:
            saved = checkpoint.read(path, verify=verify)
            saved.validated("progress", ProgressState)
        except CheckpointError as error:
            log.error("SKIPPED a damaged checkpoint: %s", error)
            damaged[path.name] = str(error)
            continue
        if damaged:
            log.error("Global.resume=auto goes back to %s; damaged: %s", path.name, ", ".join(damaged))
        return saved
    if damaged:
        raise CheckpointError(
            f"{own.folder}: no checkpoint is intact; copy one back from elsewhere, or start afresh with another "
            "Global.output_dir:\n  " + "\n  ".join(damaged.values())
        )
    return None


def check_shared(folder: Path, world: World) -> None:
    """Raise ConfigError where a process on another node does not see the first one's run directory."""
    if world.size == 1:
        return
    name = world.broadcast(f".seen-{uuid.uuid4().hex}" if world.is_first else None)
    path = Path(folder) / name
    if world.is_first:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise cannot_be_written(path, error) from error
    world.barrier()
    until = time.monotonic() + _SEEN_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)  # network file systems show new files late
    seen = path.exists()
    world.barrier()
    if world.is_first:
        path.unlink()
    if not seen:
        raise ConfigError(
            f"Global.output_dir: process {world.rank} does not see the first process's {folder}; "
            "on several nodes it must be on a file system that all of them share"
        )


def write_description(config: Config, world: World) -> None:
    """config.yaml (resolved, runnable) and environment.json."""
    folder = Path(config.Global.output_dir)
    description = {
        "plsc": plsc.__version__,
        "paddle": paddle.__version__,
        "python": sys.version.split()[0],
        "device": world.device,
        "world_size": world.size,
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
        "cores": environment.available_cores(),
        "command": sys.argv,
        "git_revision": _git_revision(),
    }
    path = folder / places.RECIPE
    try:
        files.write_text(path, config_text(config))
        path = folder / "environment.json"
        files.write_json(path, description)
    except OSError as error:
        raise cannot_be_written(path, error) from error


def config_text(config: Config) -> str:
    """The resolved run as YAML."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def _git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(plsc.__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
