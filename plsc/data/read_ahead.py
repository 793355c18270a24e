"""Remote shards, fetched in the order of the batches to come by a process beside the workers that read them."""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from plsc import environment
from plsc.data.datasets.base import FetchesAhead
from plsc.data.sampler import Draw
from plsc.errors import DataError

_AT_ONCE = 2  # shards that are being fetched: the next begins before the last blocks of this one are there
_LEAST = 2  # shards ahead of those that are being read
_FARTHEST, _FORGOTTEN_AFTER = 4096, 256  # batches
_PAUSE_SECONDS = 0.02


class ReadAhead:
    """Fetches what batches need before they need it, but only so far ahead that a disk of some shards holds it.

    As many shards ahead as a batch has at most, since those may all end at once, and at least two.

    Args:
        data: whose shards are fetched.
        batches: the same that are read, from the first on.
    """

    def __init__(self, data: FetchesAhead, batches: Iterable[list[Draw]]):
        context = multiprocessing.get_context("fork")
        self._reached: Any = context.Value("q", -1, lock=False)
        self._process: BaseProcess = context.Process(
            target=_work, args=(os.getpid(), data, batches, self._reached), name="plsc-read-ahead", daemon=True
        )
        with warnings.catch_warnings():  # Python 3.12 warns of fork beside threads, see loader.py
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()

    def reached(self, batch: int) -> None:
        """Tell that batch number `batch`, from 0, is being read."""
        self._reached.value = batch

    def close(self) -> None:
        self._process.kill()
        self._process.join(timeout=5.0)


def _work(parent: int, data: FetchesAhead, batches: Iterable[list[Draw]], reached: Any) -> None:
    """The process's life."""
    os.setpgid(0, 0)  # out of reach of signals to the launcher's and terminal's process group
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment.die_with_parent(parent)
    try:
        _fetch_in_order(data, batches, reached)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _fetch_in_order(data: FetchesAhead, batches: Iterable[list[Draw]], reached: Any) -> None:
    needed: dict[Hashable, int] = {}  # the last batch that needs a shard, of those seen lately
    waiting: deque[tuple[int, Future]] = deque()  # batch that needs it first, and its fetching
    ahead = _LEAST
    with ThreadPoolExecutor(_AT_ONCE, "plsc-read-ahead") as pool:
        for number, draws in enumerate(batches):
            while number > reached.value + _FARTHEST:
                time.sleep(_PAUSE_SECONDS)
            shards = data.shards_of(np.array([draw.index for draw in draws]))
            ahead = max(ahead, len(shards))
            for shard in shards:
                known = shard in needed
                needed[shard] = number
                if known:
                    continue
                while len(waiting) >= ahead:
                    if waiting[0][0] <= reached.value and waiting[0][1].done():
                        waiting.popleft()
                    else:
                        time.sleep(_PAUSE_SECONDS)
                waiting.append((number, pool.submit(_fetch, data, shard)))
            if number % _FORGOTTEN_AFTER == 0:  # their copies may have been removed by the time they are needed again
                needed = {shard: last for shard, last in needed.items() if last > number - _FORGOTTEN_AFTER}


def _fetch(data: FetchesAhead, shard: Hashable) -> None:
    with contextlib.suppress(DataError):  # the worker that needs it fetches it itself, and its error is to be seen
        data.fetch_shard(shard)
