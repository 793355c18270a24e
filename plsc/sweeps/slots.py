"""Where runs of a search are at work at the same time: devices, or shares of the machine's cores."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from plsc.errors import ConfigError


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time.

    Attributes:
        device: for Global.device; None leaves the recipe's.
        cores: numbers of the cores that the run may use; None for all. threads: of the run; None for one a core.
    """

    device: str | None = None
    cores: tuple[int, ...] | None = None
    threads: int | None = None

    def environment(self) -> dict[str, str]:
        """Variables of the run's process."""
        return {**os.environ, **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})}

    def enter(self) -> None:
        """Keep the calling process to the slot's cores."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)


def slots(jobs: int | None, devices: Sequence[str]) -> list[Slot]:
    """Places for runs: one on each device with an equal share of the threads, or `jobs` with one of the cores each.

    Raises:
        ConfigError: both are given, there are fewer cores than jobs, or a device is given twice.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if devices:
        if jobs is not None:
            raise ConfigError("--jobs shares out the cores of a CPU, --devices names devices for a run each; keep one")
        if len(set(devices)) < len(devices):
            raise ConfigError(f"--devices {','.join(devices)}: a device is given twice")
        threads = max(1, len(cores) // len(devices))
        return [Slot(device=device, threads=threads) for device in devices]
    if jobs in (None, 1):
        return [Slot()]
    if jobs > len(cores):
        there = "1 core" if len(cores) == 1 else f"{len(cores)} cores"
        raise ConfigError(f"--jobs {jobs}: this process has {there}; give no more jobs")
    share = len(cores) // jobs
    return [Slot(cores=tuple(cores[i * share : (i + 1) * share]), threads=share) for i in range(jobs)]
