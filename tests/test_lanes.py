"""The order over shards: every sample once, whole lanes for each process, next to no memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.config import load
from plsc.data import sampler as sampler_module
from plsc.data.sampler import DistributedBatchSampler, LaneOrder, RepeatedAugSampler
from plsc.errors import ConfigError
from tests.helpers import tiny_digits, write_config
from tests.test_shards import write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No cache of the user is touched."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))


SIZES = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 40)), min_size=1, max_size=30).filter(any)
LANES = st.sampled_from([1, 2, 3, 4, 6, 8, 64])


def lane_order(sizes, seed=3, epoch=0, lanes=8) -> list[int]:
    order = LaneOrder(np.array(sizes), seed=seed, epoch=epoch, lanes=lanes)
    assert len(order) == sum(sizes)
    return [order[p] for p in range(len(order))]


def owners(sizes, indices) -> np.ndarray:
    """The shard of each sample."""
    return np.repeat(np.arange(len(sizes)), sizes)[list(indices)]


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000), lanes=LANES)
def test_every_sample_comes_once(sizes, seed, epoch, lanes):
    """Whatever the sizes of shards, empty ones and such of a single sample among them."""
    assert sorted(lane_order(sizes, seed, epoch, lanes)) == list(range(sum(sizes)))


@settings(deadline=None)
@given(sizes=SIZES, lanes=LANES, places=st.lists(st.integers(0, 10**6), max_size=40))
def test_the_order_does_not_depend_on_how_it_is_asked(sizes, lanes, places):
    """At random positions, again and again, and by another object: the same samples."""
    whole = lane_order(sizes, lanes=lanes)
    order = LaneOrder(np.array(sizes), seed=3, epoch=0, lanes=lanes)
    for place in places:
        assert order[place % len(whole)] == whole[place % len(whole)]


@settings(deadline=None)
@given(sizes=SIZES, lanes=LANES)
def test_a_lane_reads_its_shards_one_after_the_other(sizes, lanes):
    """In one run each; and over all lanes no shard is cut more often than lanes are."""
    order = lane_order(sizes, lanes=lanes)
    visits = 0
    for lane in range(lanes):
        shards = owners(sizes, order[lane::lanes])
        runs = 1 + np.count_nonzero(np.diff(shards)) if len(shards) else 0
        assert runs == len(set(shards.tolist()))
        visits += runs
    assert visits <= np.count_nonzero(sizes) + lanes - 1


def world_of(sizes, size_of_world, batch, lanes, factory=DistributedBatchSampler, **kwargs):
    common = dict(size=sum(sizes), seed=3, world=size_of_world, shard_sizes=np.array(sizes), lanes=lanes, **kwargs)
    return [factory(batch, shuffle=True, rank=rank, **common) for rank in range(size_of_world)]


@settings(deadline=None)
@given(
    sizes=SIZES,
    divided=st.sampled_from([(1, 1), (4, 2), (4, 4), (6, 3), (8, 2), (64, 8), (64, 64)]),
    batch=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_a_process_reads_whole_lanes(sizes, divided, batch, epoch):
    """Rank r sees exactly the lanes l ≡ r modulo the world size; only what completes an epoch comes from its head."""
    lanes, world = divided
    order = lane_order(sizes, epoch=epoch, lanes=lanes)
    samplers = world_of(sizes, world, batch, lanes)
    steps = samplers[0].steps_per_epoch
    for rank, sampler in enumerate(samplers):
        seen = [draw.index for k in range(steps) for draw in sampler.batch(epoch * steps + k)]
        mine = [order[p] for p in range(len(order)) if p % lanes % world == rank]
        assert seen[: len(mine)] == mine
        assert len(seen) == steps * batch  # equal on every rank
        assert set(seen[len(mine) :]) <= set(order)


@settings(deadline=None)
@given(
    sizes=SIZES,
    batch=st.sampled_from([4, 8, 12]),
    world=st.sampled_from([1, 2, 3, 4]),
    lanes=LANES,
    step=st.integers(0, 60),
    repeated=st.booleans(),
)
def test_global_batches_do_not_depend_on_the_world(sizes, batch, world, lanes, step, repeated):
    """Also where the world size does not divide the lanes: there only reads are scattered."""
    if batch % world:
        return
    factory = RepeatedAugSampler if repeated else DistributedBatchSampler
    [whole] = world_of(sizes, 1, batch, lanes, factory)
    parts = [sampler.batch(step) for sampler in world_of(sizes, world, batch // world, lanes, factory)]
    assert all(len(part) == batch // world for part in parts)
    assert [draw for group in zip(*parts, strict=True) for draw in group] == whole.batch(step)


def test_only_seed_epoch_and_lanes_decide():
    """Another epoch, seed or number of lanes, another order; order of shards and within shards alike."""
    sizes = [20] * 30
    first = lane_order(sizes)
    assert first == lane_order(sizes)
    others = [lane_order(sizes, epoch=1), lane_order(sizes, seed=4), lane_order(sizes, lanes=4)]
    for k, other in enumerate(others):
        assert other != first
        shards = [owners(sizes, order)[:: 4 if k == 2 else 8].tolist() for order in (first, other)]
        assert k == 2 or shards[0] != shards[1]
    within = [[i % 20 for i in order if i // 20 == 7] for order in (first, others[0])]
    assert within[0] != within[1] and sorted(within[0]) == sorted(within[1]) == list(range(20))
    assert within[0] != [i % 20 for i in first if i // 20 == 8]


def test_shards_and_samples_within_are_drawn_evenly():
    """Chi-squared over 400 epochs: which shard comes first, and which sample of a shard."""
    sizes, epochs = [8] * 10, 400
    first_shard, first_sample = np.zeros(10), np.zeros(8)
    for epoch in range(epochs):
        order = LaneOrder(np.array(sizes), seed=11, epoch=epoch, lanes=2)
        shard, sample = divmod(order[0], 8)
        first_shard[shard] += 1
        first_sample[sample] += 1
    for counts in (first_shard, first_sample):
        expected = epochs / len(counts)
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < 30  # p < 0.001 for 9 degrees of freedom: 27.9


def test_the_memory_of_an_order_stays_flat():
    """10,000 shards of 10,000 samples, a hundred million: some megabytes, over any number of positions."""
    sizes = np.full(10_000, 10_000)
    sampler = DistributedBatchSampler(
        256, shuffle=True, size=10**8, seed=1, rank=3, world=8, shard_sizes=sizes, lanes=64
    )
    tracemalloc.start()
    try:
        peaks = []
        for part in range(3):
            tracemalloc.reset_peak()
            for step in range(part * 15_000, part * 15_000 + 15_000, 300):  # through 48 shards a lane
                assert len(sampler.batch(step)) == 256
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert max(peaks) < 8_000_000
    assert peaks[2] < 1.1 * peaks[1]


def test_a_shard_is_not_drawn_again_and_again(monkeypatch):
    """Going through all lanes in turn draws each shard's order once, also while lanes pass on to the next."""
    drawn, original = [], sampler_module._generator
    monkeypatch.setattr(sampler_module, "_generator", lambda *key: drawn.append(key) or original(*key))
    order = LaneOrder(np.full(320, 50), seed=1, epoch=0, lanes=64)
    assert len({order[p] for p in range(len(order))}) == 16_000
    assert len(drawn) == len(set(drawn)) == 1 + 320


@pytest.mark.parametrize("size", [1, 2**16, 2**16 + 1])
def test_large_shards(size):
    """On both sides of what 16 bits can count."""
    order = LaneOrder(np.array([5, size, 5]), seed=0, epoch=0, lanes=4)
    assert sorted(order[p] for p in range(size + 10)) == list(range(size + 10))


def test_wrong_lanes_are_refused():
    for factory in (DistributedBatchSampler, RepeatedAugSampler):
        with pytest.raises(ConfigError, match=r"lanes: got 0; it should be greater than or equal to 1"):
            world_of([5, 5], 1, 2, 0, factory)


def test_processes_that_do_not_divide_the_lanes_are_warned(tmp_path, caplog):
    """And told which number of lanes would suit; nothing is said of data without shards."""
    from plsc import build

    files = [write_shard("WebDataset", tmp_path / f"{k}.tar", range(10 * k, 10 * k + 10)) for k in range(3)]
    tree = tiny_digits()
    config = load(str(write_config(tmp_path / "digits.yaml", tree)))
    data = build.dataset(config, "Train")
    build.sampler(config, data, batch_size=2, rank=0, world_size=5)
    assert not caplog.records
    tree["DataLoader"]["Train"]["dataset"] = {"name": "WebDataset", "files": files, "transform_ops": []}
    config = load(str(write_config(tmp_path / "shards.yaml", tree)))
    data = build.dataset(config, "Train")
    sampler = build.sampler(config, data, batch_size=2, rank=1, world_size=4)
    assert isinstance(sampler.order(0), LaneOrder) and not caplog.records
    build.sampler(config, data, batch_size=2, rank=0, world_size=5)
    assert "5 processes do not divide the 64 lanes" in caplog.text and "sampler.lanes=65" in caplog.text


def test_without_shuffling_shards_come_in_their_order():
    sampler = DistributedBatchSampler(
        4, shuffle=False, size=12, seed=0, rank=0, world=1, shard_sizes=np.array([5, 7]), lanes=8
    )
    assert [draw.index for k in range(3) for draw in sampler.batch(k)] == list(range(12))
