"""What the processes exchange without collectives, so that a hung one can be reported: through Paddle's store."""

import json
import time
from collections.abc import Mapping
from typing import Any

from plsc import compat

_PAUSE_SECONDS = 0.02  # an answer of the store takes about as long


class Meetings:
    """Counters and texts in the store of the run's processes.

    Args:
        rank, size: this process and how many there are. name: of this diagnosis, where several follow each other.
    """

    def __init__(self, rank: int, size: int, name: str):
        self.rank, self.size, self._name = rank, size, f"plsc/doctor/{name}"
        self._store = compat.global_tcp_store()

    def _count(self, what: str, more: int = 0) -> int:
        return self._store.add(f"{self._name}/{what}", more)

    def meet(self, what: str, seconds: float) -> str | None:
        """Wait for all. Returns None where all have come, else why this process need not wait any longer."""
        self._count(what, 1)
        until = time.monotonic() + seconds
        while (here := self._count(what)) < self.size:
            if self._count("given up"):
                return "another process has given up"
            if time.monotonic() > until:
                return f"{self.size - here} of {self.size} processes did not arrive within {seconds:.0f} s"
            time.sleep(_PAUSE_SECONDS)
        return None

    def any(self, what: str, here: bool, seconds: float) -> bool:
        """Whether something is so on any process; the same answer on all."""
        self._count(f"{what} is so", int(here))
        return self.meet(what, seconds) is not None or self._count(f"{what} is so") > 0

    def give_up(self) -> None:
        """Let the others wait no more: this process is stuck."""
        self._count("given up", 1)

    def send(self, what: str, content: Any) -> None:
        """Leave JSON for others."""
        self._store.set(f"{self._name}/{what}/{self.rank}", json.dumps(content))
        self._count(f"{what}/{self.rank}/sent", 1)

    def receive(self, what: str, ranks: range, seconds: float) -> Mapping[int, Any]:
        """What each of `ranks` has left, without those that have not within `seconds`."""
        until, contents = time.monotonic() + seconds, {}
        for rank in ranks:
            while not (sent := self._count(f"{what}/{rank}/sent")) and time.monotonic() < until:
                time.sleep(_PAUSE_SECONDS)
            if sent:
                contents[rank] = json.loads(self._store.get(f"{self._name}/{what}/{rank}"))
        return contents
