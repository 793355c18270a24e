"""Optimizer state, gradients and weights spread over processes (ZeRO, Rajbhandari et al., 2020).

Every trained parameter has one owner among the processes of a sharding group. Stage 1: the owner alone keeps its
optimizer state, float32 master and average, updates it, and sends the new weights to the others. Stage 2: its
gradient, too, is summed into the owner and forgotten elsewhere, block by block while backward runs. Stage 3: the
weights of a block, too, are only with their owners between uses; a block gathers them before its forward and again
before its backward. A group smaller than the run is a hybrid: groups hold copies, and gradients are averaged over all
processes.

Whole parameters are dealt out, not slices of them, so that optimizers that need a parameter's norm or its matrix
(LARS, LAMB, Adafactor, Muon) compute what they compute alone, and a checkpoint's arrays stay the model's own.

This uses paddle.distributed's collectives and not Paddle's wrappers (3.3), which cannot hold what a run here
has: DygraphShardingOptimizer (fleet, stage 1) refuses parameter groups, by which weight decay and layer decay are set;
GroupShardedStage2 and 3 scale gradients inside the optimizer's step, after our one global norm is measured, and add
micro-batches in half precision; group_sharded_parallel refuses the CPU; and what they save holds one process's share
of the moments.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import paddle
import paddle.distributed as dist
from paddle.autograd import PyLayer

from plsc.compat import IS_PADDLE_2
from plsc.config import Config
from plsc.engine.blocks import blocks_of
from plsc.engine.distributed import World
from plsc.errors import ConfigError, TrainingError
from plsc.models.base import HasBlocks
from plsc.optim import GradientClip, Optimizer
from plsc.tensors import named_tensors

log = logging.getLogger("plsc")

IN_FLIGHT = 2  # units whose gradients travel while backward goes on
_PATH = ("DistributedStrategy", "sharding")


def owners(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Name → which of `count` processes owns it: the largest first, each to the process that has least.

    The same on every process. No process is left without, where there are as many names.
    """
    loads, owner = [0] * count, {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        least = min(range(count), key=lambda i: loads[i])
        owner[name] = least
        loads[least] += max(1, sizes[name])
    return owner


def largest_share(sizes: Mapping[str, int], count: int) -> int:
    """What the process that owns most owns, in numbers."""
    loads = [0] * count
    for name, owner in owners(sizes, count).items():
        loads[owner] += sizes[name]
    return max(loads)


def check_sharding(config: Config, world: World) -> None:
    """Raise ConfigError where a run of these processes cannot be sharded as the configuration asks."""
    if config.DistributedStrategy.sharding is None:
        return
    if world.size == 1:
        log.info("%s has no effect, since there is one process", ".".join(_PATH))
        return
    if IS_PADDLE_2:
        raise config.error(_PATH, f"needs Paddle 3, and this is Paddle {paddle.__version__}; leave it out")
    degree_of(config, world.size)


def degree_of(config: Config, processes: int) -> int:
    """Processes of a group, of all those of a run. Raises ConfigError where they cannot be divided into groups."""
    wanted = config.DistributedStrategy.sharding
    degree = processes if wanted is None or wanted.degree is None else wanted.degree
    if processes % degree:
        raise config.error(
            (*_PATH, "degree"),
            f"{degree} does not divide the run's {processes} processes into groups; leave it out, which takes all of "
            "them, or give a divisor",
        )
    return degree


def _new_groups(world: World, members: Sequence[Sequence[int]]) -> list[Any]:
    """A group of processes for each list of ranks; on all processes.

    One after the other: gloo's groups that are made at the same time connect to each other's addresses.
    """
    groups = []
    for ranks in members:
        groups.append(dist.new_group(list(ranks)))
        world.barrier()
    return groups


@dataclass
class _Bucket:
    """Parameters of one owner and one type, which travel as one array."""

    owner: int
    parameters: list[paddle.Tensor]

    @property
    def alone(self) -> bool:
        return len(self.parameters) == 1

    def joined(self, tensors: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """The tensors as one; a single one is taken as it is, without a copy."""
        return tensors[0] if self.alone else paddle.concat([tensor.flatten() for tensor in tensors])

    def parts(self, whole: paddle.Tensor) -> list[tuple[paddle.Tensor, paddle.Tensor]]:
        """(parameter, its part of the array) of each."""
        if self.alone:
            return [(self.parameters[0], whole)]
        pieces = paddle.split(whole, [p.size for p in self.parameters])
        return [(p, piece.reshape(p.shape)) for p, piece in zip(self.parameters, pieces, strict=True)]

    def empty(self) -> paddle.Tensor:
        """Room for the array."""
        first = self.parameters[0]
        return paddle.empty(first.shape if self.alone else [sum(p.size for p in self.parameters)], dtype=first.dtype)


@dataclass
class _Unit:
    """What is sent together: the trained parameters of a block, or those outside all blocks.

    Attributes:
        whole: whether this process has all its weights at the moment.
        waiting: names whose gradient has not come yet in this backward.
    """

    named: list[tuple[str, paddle.Tensor]]
    buckets: list[_Bucket]
    layer: paddle.nn.Layer | None = None
    whole: bool = True
    waiting: set[str] = field(default_factory=set)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Context of copies that neither the gradient nor the precision of a forward pass is to see."""
    with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
        yield


class Sharding:
    """Who owns what in one run, and how it travels. Made alike on all processes, in the same order.

    Args:
        stage, degree: as in DistributedStrategy.sharding; degree divides the number of processes.
        model: before its precision is set.

    Attributes:
        index: of this process in its group. owned: names of the parameters that it updates.
        members: ranks of its group. group: Paddle's; None where it is all processes.
        replicas: Paddle's group of the processes that own the same in all groups; None where there is one.

    Raises:
        ConfigError: there are fewer trained parameters than processes in a group.
    """

    def __init__(self, stage: int, degree: int, model: paddle.nn.Layer, world: World):
        self.stage, self.degree, self._model, self._world = stage, degree, model, world
        self.index = world.rank % degree
        trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
        if len(trained) < degree:
            raise ConfigError(
                f"{'.'.join(_PATH)}: {len(trained)} trained parameters cannot be spread over {degree} processes; give "
                "a smaller degree"
            )
        self._owner = owners({name: p.size for name, p in trained.items()}, degree)
        self.owned = frozenset(name for name, owner in self._owner.items() if owner == self.index)
        self.members = [world.rank - self.index + i for i in range(degree)]
        self.group = self.replicas = None
        if degree < world.size:
            copies = range(self.copies)
            groups = _new_groups(world, [[k * degree + i for i in range(degree)] for k in copies])
            across = _new_groups(world, [[k * degree + i for k in copies] for i in range(degree)])
            self.group, self.replicas = groups[world.rank // degree], across[self.index]
        self._units: list[_Unit] = []

    @classmethod
    def of(cls, config: Config, model: paddle.nn.Layer, world: World) -> "Sharding | None":
        """As a configuration that `check_sharding` has passed asks; None where nothing is sharded."""
        wanted = config.DistributedStrategy.sharding
        if wanted is None or world.size == 1:
            return None
        return cls(wanted.stage, degree_of(config, world.size), model, world)

    def __str__(self) -> str:
        copies = f", {self.copies} copies" if self.copies > 1 else ""
        return f"stage {self.stage} over {self.degree} processes{copies}"

    # -- what is exchanged once per update ------------------------------------------------

    def total(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """A float tensor summed over the group, in place.

        Taken over all processes: sums of each group for itself may differ in their last bits, and then the copies of
        the weights, which nothing makes equal again.
        """
        return self._world.all_reduce(tensor).scale_(1.0 / self.copies)

    def any(self, flag: paddle.Tensor) -> paddle.Tensor:
        """Whether a bool tensor is true on any process of the group."""
        number = flag.astype("int32")
        with self._world.heartbeat.collective():
            dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.group)
        return number.astype("bool")

    def send_weights(self) -> None:
        """Give every process the weights that their owners have changed; released ones are gathered when used."""
        with _plainly():
            for unit in self._units:
                if unit.whole:
                    self._broadcast(unit)

    # -- weights --------------------------------------------------------------------------

    def prepare(self, model: paddle.nn.Layer) -> paddle.nn.Layer:
        """The network that forward goes through. Call when the model has its precision and its blocks are prepared."""
        self._units = self._made_units(model)
        if self.stage == 1:
            return self._world.parallel(model)
        if self._world.on_cpu:
            self._world.barrier()  # gloo would end the first broadcast after 30 seconds
        with self._world.heartbeat.collective(), _plainly():
            for tensor in named_tensors(model).values():
                dist.broadcast(tensor, src=0)
        if self.stage == 3:
            for unit in self._units:
                if unit.layer is not None:
                    setattr(unit.layer, "forward", self._gathering(unit, unit.layer.forward))  # noqa: B010 - mypy
        return model

    def start(self) -> None:
        """Release what this process need not keep, when the run's state is restored."""
        for unit in self._units:
            self.release(unit)

    def _made_units(self, model: paddle.nn.Layer) -> list[_Unit]:
        """Units in the order in which backward ends with them: the last block first, what is outside blocks last."""
        trained = {id(p): (name, p) for name, p in model.named_parameters() if name in self._owner}
        layers = blocks_of(model) if isinstance(model, HasBlocks) else []
        within = [[id(p) for p in layer.parameters() if id(p) in trained] for layer in layers]
        counts: dict[int, int] = {}
        for key in (key for keys in within for key in keys):
            counts[key] = counts.get(key, 0) + 1
        units = []
        for layer, keys in zip(layers, within, strict=True):
            alone = [trained[key] for key in keys if counts[key] == 1]  # shared by blocks: outside them
            units.append(_Unit(alone, self._buckets(alone), layer))
        rest = [pair for key, pair in trained.items() if counts.get(key) != 1]
        return [*(unit for unit in reversed(units) if unit.named), _Unit(rest, self._buckets(rest))]

    def _buckets(self, named: list[tuple[str, paddle.Tensor]]) -> list[_Bucket]:
        buckets: dict[tuple[int, Any], list[paddle.Tensor]] = {}
        for name, parameter in named:
            buckets.setdefault((self._owner[name], parameter.dtype), []).append(parameter)
        return [_Bucket(owner, parameters) for (owner, _), parameters in buckets.items()]

    def _broadcast(self, unit: _Unit) -> None:
        """A unit's weights from their owners; those that were released get memory again."""
        travelling = []
        with self._world.heartbeat.collective():
            for bucket in unit.buckets:
                mine = bucket.owner == self.index
                if mine or (bucket.alone and unit.whole):
                    whole = bucket.joined(bucket.parameters)
                else:
                    whole = bucket.empty()
                task = dist.broadcast(whole, src=self.members[bucket.owner], group=self.group, sync_op=False)
                travelling.append((bucket, mine, whole, task))
            for bucket, mine, whole, task in travelling:
                task.wait()
                if mine or (bucket.alone and unit.whole):
                    continue
                for parameter, part in bucket.parts(whole):
                    if unit.whole:
                        paddle.assign(part, output=parameter)
                    else:
                        part._share_buffer_to(parameter)
        unit.whole = True

    def gather(self, unit: _Unit) -> None:
        """Make a unit's weights whole on this process."""
        if not unit.whole:
            with _plainly():
                self._broadcast(unit)

    def release(self, unit: _Unit) -> None:
        """In stage 3 free a block's weights of other owners; shapes and types stay."""
        if self.stage < 3 or unit.layer is None or not unit.whole:
            return
        for bucket in unit.buckets:
            if bucket.owner != self.index:
                for parameter in bucket.parameters:
                    parameter._clear_data()
        unit.whole = False

    def _gathering(self, unit: _Unit, forward: Callable) -> Callable:
        """A block's forward that has the block's weights for its own length, and again when backward comes to it."""

        def run(*arguments: Any) -> paddle.Tensor:
            self.gather(unit)
            out = forward(*arguments)
            if not out.stop_gradient:
                out = _BeforeBackward.apply(out, partial(self.gather, unit))
            self.release(unit)
            return out

        return run

    # -- parts of a run ------------------------------------------------------------------------

    def optimizer(self, optimizer: Optimizer) -> "ShardedOptimizer":
        """An optimizer of this process's parameters that agrees with the others on norm and weights."""
        return ShardedOptimizer(optimizer, self, self._model)

    def accumulation(self, optimizer: Optimizer, *, count: int, apart: bool) -> "ShardedAccumulation":
        """For stages 2 and 3; arguments as of plsc.engine.accumulation.Accumulation."""
        return ShardedAccumulation(self, optimizer.named, self._units, self._world, count=count, apart=apart)

    def saves(self, name: str) -> bool:
        """Whether this process saves an array of the model: its own, and the first one what is not trained, too."""
        return name in self.owned or (self.index == 0 and name not in self._owner)

    @property
    def copies(self) -> int:
        """How many groups there are, each with a copy of everything."""
        return self._world.size // self.degree

    @property
    def copy(self) -> int:
        """Which of the groups this process is in; the first one writes checkpoints."""
        return self._world.rank // self.degree


class _BeforeBackward(PyLayer):
    """The identity; its backward calls a function first."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, act: Callable[[], None]) -> paddle.Tensor:
        ctx.act = act
        return x

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        ctx.act()
        return gradient


@dataclass(frozen=True)
class _ShardedClip(GradientClip):
    """Over the gradients of all processes of a group, each of which has its own."""

    sharding: Sharding | None = None

    def total(self, gradients: list[paddle.Tensor]) -> paddle.Tensor:
        assert self.sharding is not None
        return self.sharding.total(super().total(gradients).reshape([1])).reshape([])


class ShardedOptimizer(Optimizer):
    """Updates the parameters that this process owns."""

    def __init__(self, optimizer: Optimizer, sharding: Sharding, model: paddle.nn.Layer):
        clip = optimizer.clip
        sharded = _ShardedClip(
            clip.clip_norm, clip.clip_norm_max, clip.always_clip, clip.no_clip_list, sharding=sharding
        )
        super().__init__(optimizer.paddle_optimizer, model, sharded, sharding.owned)
        self._sharding = sharding

    def clear_gradients(self) -> None:
        """Of all parameters: in stage 1 every process has them."""
        for _, parameter in self.trained:
            parameter.clear_gradient(False)

    def end_update(self) -> None:
        """As Optimizer, and all processes get the new weights."""
        super().end_update()
        self._sharding.send_weights()


class ShardedAccumulation:
    """Micro-batches of an update whose gradients are summed into the owners of their parameters (stages 2 and 3).

    As plsc.engine.accumulation.Accumulation, but each micro-batch's gradients travel, so that no process ever holds all
    of them: a unit's as soon as backward has come through it, in the same order on all processes. Sums over
    micro-batches are float32 where `apart`, else of the gradients' type.

    Args:
        named: (name, parameter) of each that this process owns.
        units: of all parameters, in the order of backward.
        count, apart: as of Accumulation.
    """

    def __init__(
        self,
        sharding: Sharding,
        named: Sequence[tuple[str, paddle.Tensor]],
        units: Sequence[_Unit],
        world: World,
        *,
        count: int,
        apart: bool,
    ):
        self._sharding, self._named, self._units, self._world = sharding, list(named), list(units), world
        self.count, self._apart = count, apart
        self._sums: dict[str, paddle.Tensor] = {}
        self._next = 0  # unit whose gradients are sent next
        self._travelling: deque[list[tuple[_Bucket, paddle.Tensor, Any]]] = deque()
        self._used: frozenset[str] | None = None
        for unit in self._units:
            unit.waiting = {name for name, _ in unit.named}
            for name, parameter in unit.named:
                parameter._register_backward_hook(partial(self._arrived, unit, name))

    def split(self, batch: dict[str, paddle.Tensor]) -> Iterator[dict[str, paddle.Tensor]]:
        """The micro-batches of a local batch, in order."""
        rows = batch["image"].shape[0] // self.count
        for i in range(self.count):
            yield {name: tensor[i * rows : (i + 1) * rows] for name, tensor in batch.items()}

    @contextlib.contextmanager
    def micro_batch(self, i: int) -> Iterator[None]:
        """Context of forward and backward of micro-batch `i`; after the last the gradients are the update's."""
        yield
        with _plainly():
            self._finish()
            if self.count > 1:
                self._take(last=i == self.count - 1)

    def backward(self, i: int, loss: paddle.Tensor) -> None:
        """Backward of micro-batch `i`, inside its context."""
        loss.backward()

    def _arrived(self, unit: _Unit, name: str, *_: Any) -> None:
        """A parameter's gradient is complete. Called by Paddle during backward."""
        unit.waiting.discard(name)
        if unit.waiting:
            return
        with _plainly():
            self._sharding.release(unit)
            while self._next < len(self._units) and not self._units[self._next].waiting:
                self._send(self._units[self._next])

    def _send(self, unit: _Unit) -> None:
        """Begin to sum a unit's gradients into their owners."""
        self._next += 1
        sharding, sent = self._sharding, []
        with self._world.heartbeat.collective():
            for bucket in unit.buckets:
                whole = bucket.joined([self._gradient(parameter) for parameter in bucket.parameters])
                if not bucket.alone:  # else the gradient itself travels
                    self._clear(bucket)
                # divided first, as DataParallel does: a sum in half precision may overflow
                whole.scale_(1.0 / self._world.size)
                owner = sharding.members[bucket.owner]
                task = dist.reduce(whole, dst=owner, group=sharding.group, sync_op=False)
                sent.append((bucket, whole, task))
        self._travelling.append(sent)
        if len(self._travelling) > IN_FLIGHT:
            self._receive(self._travelling.popleft())

    @staticmethod
    def _gradient(parameter: paddle.Tensor) -> paddle.Tensor:
        """A parameter's gradient in the parameter's type; zeros where there is none."""
        if parameter.grad is None:
            return paddle.zeros(parameter.shape, dtype=parameter.dtype)
        gradient = parameter.grad.detach()
        return gradient if gradient.dtype == parameter.dtype else gradient.astype(parameter.dtype)

    @staticmethod
    def _clear(bucket: _Bucket) -> None:
        for parameter in bucket.parameters:
            parameter.clear_gradient(False)

    def _receive(self, sent: list[tuple[_Bucket, paddle.Tensor, Any]]) -> None:
        """Wait for a unit's sums; owners keep them as gradients, and nobody else has any."""
        with self._world.heartbeat.collective():
            for bucket, whole, task in sent:
                task.wait()
                if bucket.owner != self._sharding.index:
                    self._clear(bucket)
                    continue
                if self._sharding.replicas is not None:
                    dist.all_reduce(whole, group=self._sharding.replicas)
                for parameter, part in bucket.parts(whole):
                    self._keep(parameter, part)

    def _keep(self, parameter: paddle.Tensor, gradient: paddle.Tensor) -> None:
        """Give a parameter its summed gradient, which is of the parameter's type.

        Without a copy: assigning to parameter.grad makes one, for which the host waits.
        """
        parameter._copy_gradient_from(gradient)
        if self._apart:
            paddle.base.core.eager.set_master_grads([parameter])

    def _finish(self) -> None:
        """When a backward is over: send what has waited for a gradient that never came, and receive all."""
        for unit in self._units:
            self._sharding.release(unit)
        seen = frozenset(name for unit in self._units for name, _ in unit.named if name not in unit.waiting)
        while self._next < len(self._units):
            self._send(self._units[self._next])
        while self._travelling:
            self._receive(self._travelling.popleft())
        self._next = 0
        for unit in self._units:
            unit.waiting = {name for name, _ in unit.named}
        self._forget_unused(seen)

    def _forget_unused(self, seen: frozenset[str]) -> None:
        """Take the gradient from parameters that no process uses, which an optimizer then leaves as they are.

        Raises:
            TrainingError: one is used that none used in the first backward.
        """
        if self._used is None:  # once: reading it waits for the device
            names = [name for unit in self._units for name, _ in unit.named]
            flags = self._world.all_reduce_max(paddle.to_tensor([int(name in seen) for name in names], dtype="int32"))
            self._used = frozenset(name for name, used in zip(names, flags.numpy().tolist(), strict=True) if used)
        elif not seen <= self._used:
            name = min(seen - self._used)
            raise TrainingError(
                f"{name} has a gradient, which it had in no process's first micro-batch; stages 2 and 3 of "
                f"{'.'.join(_PATH)} need the same parameters to be used in all updates: stage 1 does not"
            )
        for name, parameter in self._named:
            if name not in self._used:
                parameter.clear_gradient(False)

    def _take(self, last: bool) -> None:
        """Add a micro-batch's gradients to the sums; the last one's become the update's."""
        for name, parameter in self._named:
            if parameter.grad is None:
                continue
            if last:
                parameter.grad.add_(self._sums.pop(name))
            elif name in self._sums:
                self._sums[name].add_(parameter.grad)
            else:
                self._sums[name] = parameter.grad.clone()
            if not last:
                parameter.clear_gradient(False)
