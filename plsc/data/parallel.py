"""Work on a whole data set in processes, with a count of what is done and an orderly end."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from plsc import environment
from plsc.errors import ConfigError, DataError

_REPORT_SECONDS = 0.2


class Stopped(Exception):
    """Raised in a task whose results nobody waits for any more; it cleans up and passes it on."""


def each(
    function: Callable,
    tasks: Iterable,
    *,
    workers: int | None,
    progress: Callable[[int], object] = lambda count: None,
) -> Generator[Any, None, None]:
    """Results of `function(task, tick)` for each task, in the order they are finished.

    Args:
        function: handed to forked processes as it is, so it may hold the data set. It calls `tick(count)`,
            by default 1, for pictures it is done with, which raises Stopped when the whole is broken off.
        tasks: small values; only as many as the processes need are taken at a time.
        workers: processes; 0 works in this one, None takes one for each core.
        progress: called with the number of pictures done since it was last called.

    Raises:
        DataError: a process was killed. What `function` raises comes through.
    """
    if workers is None:
        workers = environment.available_cores()
    if workers < 0:
        raise ConfigError(f"{workers} worker processes cannot be started; 0 works in this one")
    if workers == 0:
        for task in tasks:
            yield function(task, lambda count=1: progress(count))
        return
    context = multiprocessing.get_context("fork")
    done, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(), function, done, stop))
    tasks, reported = iter(tasks), 0
    try:
        pending = {executor.submit(_run, task) for task in itertools.islice(tasks, 2 * workers)}
        while pending:
            finished, pending = wait(pending, timeout=_REPORT_SECONDS, return_when=FIRST_COMPLETED)
            pending |= {executor.submit(_run, task) for task in itertools.islice(tasks, len(finished))}
            # without the lock, which a killed process may hold
            reported, before = done.get_obj().value, reported
            progress(reported - before)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process was killed, as the system does when memory runs out; fewer workers need less"
        ) from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


_worker: Any = None  # of a worker's process: function, count of what is done, event that stops it


def _begin(parent: int, function: Callable, done: Any, stop: Any) -> None:
    global _worker
    _worker = function, done, stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to stop
    environment.die_with_parent(parent)
    cv2.setNumThreads(0)


def _run(task: Any) -> Any:
    function, _, _ = _worker
    return function(task, _tick)


def _tick(count: int = 1) -> None:
    _, done, stop = _worker
    if stop.is_set():
        raise Stopped
    with done.get_lock():
        done.value += count
