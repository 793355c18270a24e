"""Worker processes that fill batches in shared memory, in order, for the whole run.

Why not paddle.io.DataLoader: it hangs on an error without workers, hides its cause with them,
and leaves workers running when the parent is killed (Paddle 2.6 and 3.3).

A ring of slots, each one batch of arrays, lies in anonymous shared memory that workers inherit by
fork: no names in /dev/shm, nothing to clean up after a kill. A batch is cut into chunks that are
dealt to the workers in turn; a slot is handed out when all its chunks are filled.
"""

import gc
import itertools
import math
import mmap
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import NoReturn

import cv2
import numpy as np

from plsc import environment
from plsc.data.datasets.base import FetchesAhead, fetches_ahead, reads_groups, shard_sizes
from plsc.data.fetch import Fetcher, Field
from plsc.data.read_ahead import ReadAhead
from plsc.data.sampler import Draw
from plsc.errors import DataError, PlscError

_CHUNK = 16
_IN_FLIGHT = 64  # chunks that a worker owes at most: replies wait in a pipe while tasks are being sent
_MOST_MESSAGES = 20  # of a chunk's skipped samples, for the same reason
_REPORT_AFTER_SECONDS = 60.0
_ALIGN = 64
_GROUPS_A_WORKER = 4
_MEASURED_SAMPLES, _MEASURED_SECONDS = 64, 0.5
_WORTH_A_PROCESS_SECONDS = 0.005
_MOST_WORKERS = 32


class LoaderFault(Exception):
    """A fault of the program in a worker, with the worker's traceback."""


def _slot_bytes(fields: dict[str, Field], batch_size: int) -> int:
    return sum(-(-_field_bytes(f, batch_size) // _ALIGN) * _ALIGN for f in fields.values())


def _field_bytes(field: Field, batch_size: int) -> int:
    return math.prod((batch_size, *field.shape)) * np.dtype(field.dtype).itemsize


def _arrays(buffer, fields: dict[str, Field], batch_size: int) -> dict[str, np.ndarray]:
    """A slot's arrays as views of its memory."""
    arrays, offset = {}, 0
    for name, field in fields.items():
        shape = (batch_size, *field.shape)
        arrays[name] = np.frombuffer(buffer, field.dtype, int(np.prod(shape)), offset).reshape(shape)
        offset += -(-_field_bytes(field, batch_size) // _ALIGN) * _ALIGN
    return arrays


def measured_workers(fetcher: Fetcher, batch_size: int, *, on_cpu: bool) -> tuple[int, str]:
    """How many worker processes a loader should have, and why, from the time that some samples take here.

    Args:
        on_cpu: the model computes on the same cores; a worker more takes from it what it gives.
    """
    fields = fetcher.fields()
    row = _arrays(bytearray(_slot_bytes(fields, 1)), fields, 1)
    size = len(fetcher.dataset)
    started, count = time.perf_counter(), 0
    while count < _MEASURED_SAMPLES and time.perf_counter() - started < _MEASURED_SECONDS:
        fetcher.store(row, 0, Draw(0, count * 7919 % size))  # spread over the data set
        count += 1
    seconds = (time.perf_counter() - started) / count
    cores = max(1, environment.available_cores() // environment.local_size())
    speed = f"one core prepares {1.0 / seconds:,.0f} pictures a second"
    if seconds * batch_size < _WORTH_A_PROCESS_SECONDS:
        return 0, f"{speed}, a batch of {batch_size} in {1000 * seconds * batch_size:.1f} ms"
    if on_cpu:
        return max(1, cores // 4), f"{speed}, and the model computes on the same {cores} cores"
    return min(_MOST_WORKERS, max(1, cores - 1)), f"{speed}, and the process has {cores} cores"


class Loader:
    """Batches of arrays from batches of draws.

    The arrays of a batch are valid until the next batch is asked for.

    Args:
        batch_size: rows of every batch.
        num_workers: processes; 0 fetches in this one.
        prefetch_batches: batches in the making ahead of the one handed out.
        on_skip: called with a message for each sample skipped as damaged.
        on_wait: called with a message when workers have been silent for a minute.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        batch_size: int,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        on_skip=lambda message: None,
        on_wait=lambda message: None,
    ):
        self.fetcher, self.batch_size, self.num_workers = fetcher, batch_size, num_workers
        self.slots = prefetch_batches + 1 if num_workers else 1
        self._on_skip, self._on_wait = on_skip, on_wait
        data = fetcher.dataset
        sizes = shard_sizes(data) if reads_groups(data) else None
        self._group_ends = None if sizes is None else np.cumsum(sizes)
        self._slots: list[dict[str, np.ndarray]] = []
        self._workers: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._tickets = itertools.count()
        self._open: dict[int, list[int]] = {}  # ticket → (slot, chunks still missing)
        self._ahead: ReadAhead | None = None
        self.skipped = 0

    @property
    def memory(self) -> int:
        """Bytes of the batches that are in memory at the same time."""
        return self.slots * _slot_bytes(self.fetcher.fields(), self.batch_size)

    @property
    def starts_workers(self) -> bool:
        """Whether the next `run` forks this process, with whatever is in its memory and whatever files it has open."""
        return self.num_workers > 0 and not self._workers

    def run(
        self, batches: Iterable[list[Draw]], ahead: Iterable[list[Draw]] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches of arrays, in the order of `batches`.

        Args:
            ahead: the same batches once more, for a process that fetches remote shards before they are needed.
        """
        self._end_ahead()
        data = self.fetcher.dataset
        if ahead is not None and isinstance(data, FetchesAhead) and fetches_ahead(data):
            self._ahead = ReadAhead(data, ahead)
        if not self._slots:
            self._start()
        return self._run_workers(batches) if self.num_workers else self._run_here(batches)

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _reached(self, batch: int) -> None:
        if self._ahead is not None:
            self._ahead.reached(batch)

    def _run_here(self, batches):
        arrays = self._slots[0]
        for number, draws in enumerate(batches):
            self._reached(number)
            for row, draw in enumerate(draws):
                messages = self.fetcher.store(arrays, row, draw)
                self._note_skipped(messages, len(messages))
            yield arrays

    # -- with workers ---------------------------------------------------------------------

    def _start(self):
        fields = self.fetcher.fields()
        size = _slot_bytes(fields, self.batch_size)
        try:
            memory = [mmap.mmap(-1, max(size, 1)) for _ in range(self.slots)]
        except (OSError, OverflowError) as error:
            raise DataError(
                f"there is no memory for {self.slots} x {self.batch_size} pictures ({self.memory / 2**30:,.1f} GiB): "
                "a smaller sampler.batch_size, or a smaller loader.prefetch_batches"
            ) from error
        self._slots = [_arrays(buffer, fields, self.batch_size) for buffer in memory]
        context = multiprocessing.get_context("fork")
        for number in range(self.num_workers):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_work,
                args=(os.getpid(), theirs, [*self._pipes, ours], self.fetcher, self._slots),
                name=f"plsc-loader-{number}",
                daemon=True,
            )
            with warnings.catch_warnings():
                # Python 3.12 warns of fork beside threads; workers use none of Paddle's
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    worker.start()
                except OSError as error:
                    raise DataError(
                        f"worker process {number + 1} of {self.num_workers} cannot be started: {error.strerror}; a "
                        "smaller loader.num_workers"
                    ) from error
            theirs.close()
            self._workers.append(worker)
            self._pipes.append(ours)
        # before multiprocessing itself would wait at exit for workers that take no SIGTERM
        Finalize(self, _end, args=(self._workers,), exitpriority=10)

    def _run_workers(self, batches):
        while self._open:  # what an iteration left unfinished still writes to its slots
            self._receive()
        batches = enumerate(batches)
        free: deque[int] = deque(range(len(self._slots)))
        ready: deque[tuple[int, int]] = deque()
        while True:
            while free:
                number, draws = next(batches, (0, None))
                if draws is None:
                    break
                self._reached(number)
                ready.append(self._send(free.popleft(), draws))
            if not ready:
                return
            ticket, slot = ready.popleft()
            while ticket in self._open:
                self._receive()
            yield self._slots[slot]
            free.append(slot)

    def _send(self, slot: int, draws: list[Draw]) -> tuple[int, int]:
        """Deal a batch's chunks to the workers; returns its ticket and slot."""
        ticket = next(self._tickets)
        chunks = self._dealt(draws, ticket)
        self._open[ticket] = [slot, len(chunks)]
        for worker, rows in chunks:
            try:
                self._pipes[worker].send((ticket, slot, rows, [draws[row] for row in rows]))
            except (BrokenPipeError, ConnectionResetError):
                self._fail(self._workers[worker])
        return ticket, slot

    def _dealt(self, draws: list[Draw], ticket: int) -> list[tuple[int, list[int]]]:
        """(worker, rows) of each chunk of a batch."""
        most = max(1, _IN_FLIGHT // self.slots)  # of one worker
        by_worker = self._by_group(draws)
        if by_worker is not None:
            return [
                (worker, part)
                for worker, rows in enumerate(by_worker)
                for part in _parts(rows, max(_CHUNK, -(-len(rows) // most)))
            ]
        size = min(_CHUNK, -(-len(draws) // self.num_workers))
        chunks = _parts(list(range(len(draws))), max(size, -(-len(draws) // (most * self.num_workers))))
        first = ticket if len(chunks) < self.num_workers else 0
        return [((first + k) % self.num_workers, rows) for k, rows in enumerate(chunks)]

    def _by_group(self, draws: list[Draw]) -> list[list[int]] | None:
        """Rows of each worker where what lies together is read together (Parquet) and there is enough for all."""
        if self._group_ends is None:
            return None
        groups = np.searchsorted(self._group_ends, [draw.index for draw in draws], side="right")
        if len(np.unique(groups)) < _GROUPS_A_WORKER * self.num_workers:
            return None
        return [np.flatnonzero(groups % self.num_workers == worker).tolist() for worker in range(self.num_workers)]

    def _receive(self):
        """Take in one or more finished chunks."""
        started = time.monotonic()
        while True:
            sentinels = [worker.sentinel for worker in self._workers]
            ready = wait([*self._pipes, *sentinels], timeout=_REPORT_AFTER_SECONDS)
            if ready:
                break
            waited = time.monotonic() - started
            self._on_wait(f"waiting for input for {waited:.0f} s; is the storage of the data set slow or gone?")
        pipes = [pipe for pipe in self._pipes if pipe in ready]
        for pipe in pipes:
            try:
                ticket, messages, skipped, error = pipe.recv()
            except (EOFError, ConnectionResetError):
                self._fail(self._workers[self._pipes.index(pipe)])
            if error is not None:
                self.close()
                kind, text = error
                raise (kind(text) if issubclass(kind, PlscError) else LoaderFault(text))
            self._note_skipped(messages, skipped)
            self._open[ticket][1] -= 1
            if self._open[ticket][1] == 0:
                del self._open[ticket]
        if not pipes:
            self._fail(next(worker for worker in self._workers if worker.sentinel in ready))

    def _fail(self, worker: BaseProcess) -> NoReturn:
        """Raise DataError of a worker that ended by itself, and how."""
        worker.join(timeout=1.0)
        code = worker.exitcode
        if code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
            if -code == signal.SIGKILL:
                how += (
                    ", as the system does when memory runs out; fewer loader.num_workers or prefetch_batches need less"
                )
        else:
            how = f"ended with exit code {code}"
        self.close()
        raise DataError(f"the data loader's process {worker.name} {how}")

    def _note_skipped(self, messages: list[str], count: int):
        self.skipped += count
        for message in messages:
            self._on_skip(message)
        if count > len(messages):
            self._on_skip(f"{count - len(messages)} more")

    def close(self):
        """End the workers; the loader can be used again and starts new ones."""
        self._end_ahead()
        for pipe in self._pipes:
            pipe.close()
        _end(self._workers)
        self._workers, self._pipes, self._slots, self._open = [], [], [], {}


def _end(workers: list[BaseProcess]) -> None:
    """Kill workers, which leave nothing to clean up, and wait for their end."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=5.0)  # not for ever: one may be stuck in a read of storage that is gone


def _parts(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _work(parent: int, pipe, inherited, fetcher: Fetcher, slots):
    """A worker's life: fill chunks until the parent closes the pipe."""
    os.setpgid(0, 0)  # out of reach of signals to the launcher's and terminal's process group
    # Slurm and systemd ask every process of a job to end, but the update in progress still needs its batch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment.die_with_parent(parent)
    for other in inherited:
        other.close()  # else the pipes stay open when the parent is gone
    cv2.setNumThreads(0)
    environment.keep_freed_memory()
    gc.freeze()  # a search for garbage would copy the pages of all objects that it shares with its parent
    while True:
        try:
            ticket, slot, rows, draws = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        skipped: list[str] = []
        error: tuple[type[Exception], str] | None = None
        try:
            for row, draw in zip(rows, draws, strict=True):
                skipped += fetcher.store(slots[slot], row, draw)
        except PlscError as problem:
            error = (DataError if isinstance(problem, DataError) else type(problem), str(problem))
        except Exception:
            error = (LoaderFault, f"in a data loader's process:\n{traceback.format_exc()}")
        try:
            pipe.send((ticket, skipped[:_MOST_MESSAGES], len(skipped), error))
        except OSError:
            os._exit(0)
