"""The processes of a run: who am I, and what all of them agree on."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import socket
from typing import Any

import paddle
import paddle.distributed as dist

from plsc import compat, environment
from plsc.devices import select_device
from plsc.engine import joining
from plsc.engine.heartbeat import GLOO_SECONDS, Heartbeat
from plsc.errors import DeviceError

_LEAVE_SECONDS = 30.0
_connections: dict[int, socket] = {}  # to other processes, by rank; they live as long as Paddle's store
_runs = itertools.count(1)


class _Meeting:
    """A counter in the processes' key-value store. All processes make the same ones, in the same order.

    The store lives as long as the process, and so does the numbering: two runs one after the other share no counter.
    """

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self._key = f"plsc/meeting/{next(self._numbers)}"

    def arrive(self) -> None:
        compat.global_tcp_store().add(self._key, 1)

    def wait_for(self, count: int, seconds: float) -> int:
        """Until `count` processes have arrived, or `seconds` are over; returns how many have. Asks ever less often."""
        store, until, pause = compat.global_tcp_store(), time.monotonic() + seconds, 0.01
        while (arrived := store.add(self._key, 0)) < count and time.monotonic() < until:
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)
        return arrived


@dataclass
class World:
    """The processes of this run.

    Attributes:
        rank, size: this process and how many there are.
        device: Paddle's device name.
        heartbeat: what the processes know of each other's progress.
        timeout: seconds that one waits for others outside collectives.
    """

    device: str = "cpu"
    rank: int = 0
    size: int = 1
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    timeout: float = float("inf")

    @classmethod
    def start(cls, device: str, timeout: float) -> "World":
        """Select the device and join the processes that the launcher started.

        Args:
            timeout: seconds, as in DistributedStrategy.timeout.
        """
        if environment.world_size() > 1 and ":" in device:
            kind = device.split(":")[0]
            raise DeviceError(
                f"Global.device is {device!r}, but the launcher gives each process its own; write {kind!r}"
            )
        device = select_device(device)
        if environment.world_size() == 1:
            return cls(device)
        if device == "cpu":  # a launcher that saw a GPU build asks for NCCL, which CPU tensors cannot use
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        # so that Paddle's own watch over NCCL, where it is switched on, comes after ours
        os.environ.setdefault("PADDLE_PG_TIMEOUT", str(int(1000 * (timeout + _LEAVE_SECONDS))))
        if not dist.is_initialized():
            _connections.update(
                joining.wait_for_all(environment.master(), environment.rank(), environment.world_size())
            )
        environment.restart_system_calls()
        compat.init_parallel_env()
        rank, size = dist.get_rank(), dist.get_world_size()
        limit = GLOO_SECONDS if device == "cpu" else timeout
        heartbeat = Heartbeat(rank, size, _connections, run=next(_runs), timeout=timeout, collective_timeout=limit)
        return cls(device, rank, size, heartbeat, timeout)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def all_reduce(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """The tensor summed over processes, in place where there are several."""
        if self.size > 1:
            with self.heartbeat.collective():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """The tensor's largest over processes, in place where there are several."""
        if self.size > 1:
            with self.heartbeat.collective():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """The first process's `value` (any picklable object), on every process."""
        if self.size == 1:
            return value
        box = [value]
        with self.heartbeat.collective():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @paddle.no_grad()
    def average_statistics(self, model: paddle.nn.Layer) -> None:
        """Make the running means and variances of batch normalisation equal on all processes: their mean.

        Each process computes its own from its part of the batches; evaluations and checkpoints need one of them.
        """
        if self.size == 1:
            return
        for layer in model.sublayers():  # Paddle's layers and ours keep them under these names
            for statistic in (getattr(layer, name, None) for name in ("_mean", "_variance")):
                if not isinstance(statistic, paddle.Tensor):
                    continue
                mean = self.all_reduce(statistic.astype("float32")) / self.size
                paddle.assign(mean.astype(statistic.dtype), output=statistic)

    @contextlib.contextmanager
    def first_only(self) -> Iterator[bool]:
        """The first process runs the block, the others wait: `with world.first_only() as mine: if mine: …`.

        They wait outside any collective, which gloo would end after 30 seconds.

        Raises:
            TimeoutError: the first process has not ended the block in time; it still gives signs, so that the
                heartbeat cannot notice.
        """
        yield self.is_first
        if self.size == 1:
            return
        meeting = _Meeting()
        if self.is_first:
            meeting.arrive()
        elif not meeting.wait_for(1, self.timeout):
            raise TimeoutError(self._late(f"process 0 of {self.size} has"))

    def barrier(self) -> None:
        """Wait until all processes are here, without a collective. Raises TimeoutError where one is not, in time."""
        if self.size > 1:
            meeting = _Meeting()
            meeting.arrive()
            missing = self.size - meeting.wait_for(self.size, self.timeout)
            if missing:
                have = "has" if missing == 1 else "have"
                raise TimeoutError(self._late(f"{missing} of {self.size} processes {have}"))

    def _late(self, who: str) -> str:
        return (
            f"{who} kept the others waiting for {self.timeout:.0f} s (this is process {self.rank}).\n"
            "  It may be waiting for a disk or network that hangs, or for a callback: look at its log and machine.\n"
            "  DistributedStrategy.timeout is the limit."
        )

    def leave(self) -> None:
        """The last act of a run: the first process, which holds the store, waits for the others."""
        self.heartbeat.stop()
        if self.size > 1:
            meeting = _Meeting()
            meeting.arrive()
            if self.is_first:
                meeting.wait_for(self.size, _LEAVE_SECONDS)

    def parallel(self, model: paddle.nn.Layer) -> paddle.nn.Layer:
        """The model for data-parallel training: gradients are averaged while backward still runs."""
        if self.on_cpu:
            self.barrier()  # gloo would end the first broadcast after 30 seconds
        if self.size == 1:
            return model
        with self.heartbeat.collective():
            return paddle.DataParallel(model)

    def accumulating(self, network: paddle.nn.Layer) -> contextlib.AbstractContextManager:
        """Context in which gradients stay on this process."""
        return network.no_sync() if self.size > 1 else contextlib.nullcontext()

    def averaging(self) -> contextlib.AbstractContextManager:
        """Context of a backward that averages gradients over processes."""
        return self.heartbeat.collective() if self.size > 1 else contextlib.nullcontext()
