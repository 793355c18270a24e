"""In which order samples come: a function of (seed, epoch) over the whole world.

A sampler holds no position. The batches from any point on follow from the number of updates
done, so a resumed run and its workers need nothing else.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from plsc.bounds import Positive
from plsc.errors import ConfigError
from plsc.registry import SAMPLERS


class Draw(NamedTuple):
    """One sample of one batch: the randomness of its augmentation is that of (seed, epoch, index, copy).

    Attributes:
        epoch: from 0. index: of the sample in the data set. copy: which of several of a sample in one epoch, from 0.
        valid: False of one that only fills a batch, in evaluation.
    """

    epoch: int
    index: int  # type: ignore[assignment] # a field of this name hides tuple.index, which nobody needs
    copy: int = 0
    valid: bool = True


class LaneOrder:
    """Order of one epoch over a data set in shards, computed where it is asked for.

    The shards, in an order drawn for the epoch, make one line, which is cut into `lanes` equal parts.
    Position p of the order is the next sample of lane p % lanes; within a shard the samples' order is
    drawn too. So a process that takes every world-th position reads whole lanes, one shard after the
    other, wherever `world` divides `lanes`; nothing is left out or doubled, however unequal the shards.

    Args:
        sizes: samples of each shard.
    """

    def __init__(self, sizes: np.ndarray, *, seed: int, epoch: int, lanes: int):
        self._seed, self._epoch, self._lanes = seed, epoch, lanes
        self._size = int(sizes.sum())
        begins = np.cumsum(sizes) - sizes
        self._shards = _generator(seed, epoch).permutation(len(sizes))
        self._begins, self._sizes = begins[self._shards], sizes[self._shards]
        self._ends = np.cumsum(self._sizes)
        self._within: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self):
        return self._size

    def __getitem__(self, p: int) -> int:
        return int(self.take(np.array([p]))[0])

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The samples at positions [n], int64."""
        place, lane = np.divmod(positions, self._lanes)
        whole, longer = divmod(self._size, self._lanes)
        at = lane * whole + np.minimum(lane, longer) + place  # the first `longer` lanes have one more
        owners = np.searchsorted(self._ends, at, side="right")
        within = at - self._ends[owners] + self._sizes[owners]
        samples = self._begins[owners]
        by_owner = np.argsort(owners, kind="stable")
        cuts = np.flatnonzero(np.diff(owners[by_owner])) + 1
        for rows in np.split(by_owner, cuts):
            samples[rows] += self._order_within(int(owners[rows[0]]))[within[rows]]
        return samples

    def _order_within(self, k: int) -> np.ndarray:
        if k in self._within:
            self._within.move_to_end(k)
        else:
            size = int(self._sizes[k])
            dtype = np.uint16 if size <= 1 << 16 else np.int32 if size < 1 << 31 else np.int64
            order = np.arange(size, dtype=dtype)
            _generator(self._seed, self._epoch, 1 + int(self._shards[k])).shuffle(order)
            self._within[k] = order
            if len(self._within) > 2 * self._lanes:
                self._within.popitem(last=False)
        return self._within[k]


def _generator(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    """Independent draws for each (seed, epoch, stream)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]))


@runtime_checkable
class Sampler(Protocol):
    """In which order one process among several trains on the samples: what a recipe's `sampler` has to be.

    Its factory gets from the engine those of `size`, `seed`, `rank`, `world` and `shard_sizes` that it has parameters
    for; see EpochSampler.

    Attributes:
        batch_size: samples of each batch of this process. global_batch: of all processes together.
        steps_per_epoch: batches of an epoch.
    """

    batch_size: int
    global_batch: int
    steps_per_epoch: int

    def identity(self) -> dict:
        """Plain values that the order depends on beside the seed; a continued run compares them."""

    def batches(self, step: int) -> Iterator[list[Draw]]:
        """This process's batches of update `step`, counted from 0 over the whole run, and all that follow."""


class EpochSampler:
    """Every sample once an epoch, in batches of one process among `world`.

    Args:
        batch_size: of this process. size: samples of the data set.
        drop_last: leave out the epoch's last, incomplete batch; else complete it from the head of
            the epoch's order.
        repeats: how often an epoch's order names each sample in a row.
        shard_sizes: of a data set in shards, whose order then keeps reads together; see LaneOrder.
        lanes: part of that order's identity.
    """

    def __init__(
        self, *, size, batch_size, drop_last, shuffle, seed, rank, world, repeats=1, shard_sizes=None, lanes=64
    ):
        self.size, self.batch_size, self.drop_last, self.shuffle = size, batch_size, drop_last, shuffle
        self.seed, self.rank, self.world, self.repeats = seed, rank, world, repeats
        self.shard_sizes, self.lanes = shard_sizes, lanes
        self.global_batch = batch_size * world
        if drop_last and size < self.global_batch:
            raise ConfigError(
                f"drop_last leaves nothing: {size} samples are fewer than one global batch "
                f"of {self.global_batch} ({world} x {batch_size}); lower Global.global_batch_size or "
                "sampler.batch_size, or set drop_last to False"
            )
        whole, rest = divmod(size, self.global_batch)
        self.steps_per_epoch = whole if drop_last or not rest else whole + 1
        self._order: tuple[int | None, Any] = (None, None)

    def identity(self) -> dict:
        """See Sampler."""
        shards = (
            None
            if self.shard_sizes is None
            else hashlib.sha256(np.asarray(self.shard_sizes, "<i8").tobytes()).hexdigest()
        )
        return {
            "samples": self.size,
            "shards": shards,
            "lanes": self.lanes,
            "repeats": self.repeats,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def order(self, epoch: int):
        """The samples' indices in the order of an epoch, before repeats: a sequence."""
        if self._order[0] != epoch:
            self._order = (epoch, self._drawn(epoch))
        return self._order[1]

    def _drawn(self, epoch: int):
        if not self.shuffle:
            return range(self.size)
        if self.shard_sizes is not None:
            return LaneOrder(self.shard_sizes, seed=self.seed, epoch=epoch, lanes=self.lanes)
        indices = np.arange(self.size, dtype=np.int32 if self.size < 2**31 else np.int64)
        _generator(self.seed, epoch).shuffle(indices)
        return indices

    def batch(self, step: int) -> list[Draw]:
        """This process's share of update `step`, counted from 0 over the whole run."""
        epoch, k = divmod(step, self.steps_per_epoch)
        order, start = self.order(epoch), k * self.global_batch
        # every world-th: copies of one sample go to different processes. An epoch is as long with
        # repeats as without; what is left over at its end is taken from its head
        places = np.arange(start + self.rank, start + self.global_batch, self.world) % self.size
        positions, copies = np.divmod(places, self.repeats)
        if isinstance(order, range):
            samples = positions
        else:
            samples = order.take(positions)
        return [Draw(epoch, *pair) for pair in zip(samples.tolist(), copies.tolist(), strict=True)]

    def batches(self, step: int) -> Iterator[list[Draw]]:
        """See Sampler; without end."""
        while True:
            yield self.batch(step)
            step += 1


def evaluation_batches(size: int, batch_size: int, rank: int, world: int) -> Iterator[list[Draw]]:
    """Every sample once over the world, in order; equally many batches of equal size on every process.

    What fills the last batches up is marked not valid.
    """
    for start in range(0, size, batch_size * world):
        positions = range(start + rank, start + batch_size * world, world)
        yield [Draw(0, p if p < size else size - 1, 0, p < size) for p in positions]


@SAMPLERS.register()
def DistributedBatchSampler(
    batch_size: Positive | None = None,
    drop_last: bool = False,
    shuffle: bool = False,
    lanes: Positive = 64,
    *,
    size,
    seed,
    rank,
    world,
    shard_sizes=None,
) -> EpochSampler:
    """Each sample once an epoch, dealt over the processes. batch_size is one process's; lanes are for shards."""
    return EpochSampler(
        size=size,
        batch_size=batch_size,
        drop_last=drop_last,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world=world,
        shard_sizes=shard_sizes,
        lanes=lanes,
    )


@SAMPLERS.register()
def RepeatedAugSampler(
    batch_size: Positive | None = None,
    drop_last: bool = False,
    shuffle: bool = True,
    num_repeats: Positive = 3,
    lanes: Positive = 64,
    *,
    size,
    seed,
    rank,
    world,
    shard_sizes=None,
) -> EpochSampler:
    """Repeated augmentation (Hoffer et al., 2020; DeiT): each drawn sample num_repeats times, augmented independently.

    An epoch has as many samples as the data set, so it sees a third of it at 3 repeats.
    """
    return EpochSampler(
        size=size,
        batch_size=batch_size,
        drop_last=drop_last,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world=world,
        repeats=num_repeats,
        shard_sizes=shard_sizes,
        lanes=lanes,
    )
