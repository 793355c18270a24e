"""Processes that notice when one of them no longer takes part.

Gloo ends a process that has waited for 30 seconds in a collective by an abort, which says nothing of the cause, and
its limit cannot be changed. NCCL waits for ever. So each process tells the first one every second how many collectives
it has entered and left; the first one answers. The one that is silent, or late, is named before gloo gives up.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from socket import socket

# gloo's 30 seconds, less what it takes to notice and to tell the others
GLOO_SECONDS = 25.0
_BEAT_SECONDS = 1.0


@dataclass
class _Peer:
    """Another process, as this one knows it.

    Attributes:
        count: collectives that it has entered and left. heard: when it was last heard of.
        moved: when its count last changed. overtaken: since when another process has been ahead of it, or None.
    """

    heard: float
    moved: float
    count: int = 0
    overtaken: float | None = None
    unread: bytes = b""


class Heartbeat:
    """The progress of all processes, watched by a thread.

    Args:
        rank, size: this process and how many there are.
        connections: from joining.wait_for_all: the first process's to all others, the others' to the first.
        run: its number, where several follow each other in these processes.
        timeout: seconds after which a process that gives no sign is given up.
        collective_timeout: the same while another one waits in a collective.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        connections: Mapping[int, socket] | None = None,
        *,
        run: int = 1,
        timeout: float = float("inf"),
        collective_timeout: float = float("inf"),
    ):
        self.rank, self.size = rank, size
        self._connections = dict(connections or {})
        self._timeout, self._collective_timeout = timeout, min(timeout, collective_timeout)
        self._interval = min(_BEAT_SECONDS, self._collective_timeout / 4)
        self._run, self._count, self._stopped = run, 0, threading.Event()
        now = time.monotonic()
        self._peers = {peer: _Peer(now, now) for peer in (self._connections if rank else range(size))}
        self._moved = now

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Context of something that ends only when all processes have reached it."""
        self._count, self._moved = self._count + 1, time.monotonic()
        try:
            yield
        finally:
            self._count, self._moved = self._count + 1, time.monotonic()

    @contextlib.contextmanager
    def watched(self, give_up: Callable[[str], None]) -> Iterator[None]:
        """Context in which `give_up` is called, in a thread, with a text that names the process which is missing."""
        if self.size == 1:
            yield
            return
        thread = threading.Thread(target=self._beat, args=(give_up,), name="plsc-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stop()
            thread.join()

    def stop(self) -> None:
        """No longer send, nor expect anything of the others, which may leave now."""
        self._stopped.set()

    def _beat(self, give_up: Callable[[str], None]) -> None:
        for connection in self._connections.values():
            connection.setblocking(False)
        while not self._stopped.wait(self._interval):
            self._send()
            self._receive()
            missing = self._missing(time.monotonic())
            if missing is not None and not self._stopped.is_set():
                give_up(missing)
                return

    def _send(self) -> None:
        line = f"{self._run} {self._count}\n".encode()
        for peer, connection in list(self._connections.items()):
            try:
                connection.send(line)
            except BlockingIOError:
                pass  # it has not read for hours
            except OSError:
                del self._connections[peer]

    def _receive(self) -> None:
        """Take in what has come. One that has ended is no longer watched: what it leaves undone fails by itself."""
        now = time.monotonic()
        for peer, connection in list(self._connections.items()):
            try:
                received = connection.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                received = b""
            if not received:
                del self._connections[peer]
                continue
            *lines, self._peers[peer].unread = (self._peers[peer].unread + received).split(b"\n")
            for line in lines:
                run, count = map(int, line.split())
                if run == self._run:
                    self._note(peer, count, now)
        if self.rank == 0:
            self._note(0, self._count, now)
            self._compare(now)

    def _note(self, peer: int, count: int, now: float) -> None:
        known = self._peers[peer]
        known.heard = now
        if count != known.count:
            known.count, known.moved, known.overtaken = count, now, None

    def _compare(self, now: float) -> None:
        """On the first process: whom others have overtaken."""
        # one that has left a collective may be waiting for its result on a device; gloo waits inside alone
        gloo = self._collective_timeout < self._timeout
        most = max((peer.count for peer in self._peers.values() if peer.count % 2 or not gloo), default=0)
        for peer in self._peers.values():
            if peer.count >= most:
                peer.overtaken = None
            elif peer.overtaken is None:
                peer.overtaken = now

    def _missing(self, now: float) -> str | None:
        """What to report of the first process that is silent or late for too long, or None."""
        watched = {rank: peer for rank, peer in self._peers.items() if rank in self._connections}
        for rank, peer in watched.items():
            silent = now - peer.heard
            limit = self._collective_timeout if self._someone_waits(rank, now) else self._timeout
            if silent >= limit:
                return self._text(rank, f"has given no sign for {silent:.0f} s", limit)
        limit = self._collective_timeout
        for rank, peer in self._peers.items():
            late = 0.0 if peer.overtaken is None else now - peer.overtaken
            if late >= limit and (rank in watched or rank == self.rank):
                return self._text(rank, f"has kept the others waiting in a collective for {late:.0f} s", limit)
        return None

    def _someone_waits(self, missing: int, now: float) -> bool:
        """Whether a process besides `missing` has been in a collective for so long that it must be reported."""
        waiting = [(self._count, self._moved)]
        waiting += [(peer.count, peer.moved) for rank, peer in self._peers.items() if rank not in (missing, self.rank)]
        return any(count % 2 == 1 and now - moved >= self._collective_timeout for count, moved in waiting)

    def _text(self, rank: int, what: str, limit: float) -> str:
        remedy = "DistributedStrategy.timeout is the limit"
        if limit < self._timeout:
            remedy = f"in a collective on CPU the limit is {limit:.0f} s, since gloo gives up after 30"
        return (
            f"process {rank} of {self.size} {what} (this is process {self.rank}).\n"
            "  It may be stopped, or waiting for a disk or network that hangs: look at its log and machine.\n"
            f"  {remedy[0].upper()}{remedy[1:]}."
        )
