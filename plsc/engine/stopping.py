"""Stopping at a step boundary when asked by a signal, on all processes at the same step."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import paddle

from plsc import environment
from plsc.engine.distributed import World

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 2.0
_MOST_TICKS = 20  # a loader may become slower than the pace so far


@contextlib.contextmanager
def handlers_restored() -> Iterator[None]:
    """Context after which SIGTERM and Ctrl-C have the handlers that they had before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a stop after the update in progress; a second Ctrl-C ends at once.

    Python gives signals to the main thread only: a run in another thread leaves them to the program.

    Only some processes may have got the signal, so they vote. The vote is a collective and reads
    from the device; it is held about every two seconds, at occasions that follow from the slowest
    process's pace, which is voted along.

    Attributes:
        signal: the signal that stops the run, the same on all processes, once they have agreed on it.
    """

    def __init__(self, world: World):
        self._world = world
        self.signal: int | None = None
        self._received: int | None = None
        self._tick, self._next_vote = 0, 1
        self._last_vote: tuple[int, float] | None = None

    def listen(self) -> None:
        """Set the handlers, inside handlers_restored. After Paddle's import, whose own handlers abort the process.

        They stay until the processes have left each other: a launcher asks three times, and the second time must
        not end what the first has begun.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        if self._world.size > 1:
            environment.restart_system_calls()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is None and self._world.is_first:
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            text = f"stopping after this update, then saving{again}"
            os.write(2, f"\n{text}\n".encode())
            environment.tell_launcher(text)
        self._received = number

    def agreed(self) -> bool:
        """Whether all processes stop now. Call after every update and evaluation batch, on every process alike."""
        if self._world.size == 1:
            self.signal = self._received
            return self.signal is not None
        self._tick += 1
        if self._tick < self._next_vote:
            return False
        now = time.monotonic()
        pace = 0.0 if self._last_vote is None else (now - self._last_vote[1]) / (self._tick - self._last_vote[0])
        self._last_vote = (self._tick, now)
        vote = self._world.all_reduce_max(paddle.to_tensor([float(self._received or 0), pace], dtype="float64"))
        number, pace = vote.numpy().tolist()
        interval = 1 if pace == 0.0 else max(1, min(_MOST_TICKS, math.floor(_POLL_SECONDS / pace)))
        self._next_vote = self._tick + interval
        if number:
            self.signal = int(number)
        return bool(number)
