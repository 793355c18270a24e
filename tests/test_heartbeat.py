"""A process that no longer takes part is named by the others, before gloo would abort them."""

import os
import signal
import socket
import threading
import time

import pytest

from plsc import compat
from plsc.config import load
from plsc.engine import distributed
from plsc.engine.assembly import assemble
from plsc.engine.distributed import World
from plsc.engine.heartbeat import Heartbeat
from tests.helpers import children, gone, rank_of, start, tiny_digits, wait_for_step, write_config


def heartbeats(size: int, **limits) -> list[Heartbeat]:
    """Those of `size` processes, in this one."""
    pairs = [socket.socketpair() for _ in range(size - 1)]
    made = [Heartbeat(0, size, {i + 1: ours for i, (ours, _) in enumerate(pairs)}, **limits)]
    made += [Heartbeat(i + 1, size, {0: theirs}, **limits) for i, (_, theirs) in enumerate(pairs)]
    return made


def beat(made: list[Heartbeat], silent: int | None = None) -> None:
    for each in made:
        for connection in each._connections.values():
            connection.setblocking(False)
    for each in made:
        if each.rank != silent:
            each._send()
    for each in made:
        if each.rank != silent:
            each._receive()


def missing(heartbeat: Heartbeat, after: float, silent: int | None = None) -> str | None:
    """What it tells so much later, when all but `silent` have given another sign."""
    later = time.monotonic() + after
    for rank, peer in heartbeat._peers.items():
        if rank != silent:
            peer.heard = later
    return heartbeat._missing(later)


def test_nobody_is_missing_while_all_learn_or_all_wait():
    made = heartbeats(3, timeout=1800.0, collective_timeout=25.0)
    for _ in range(3):
        with made[0].collective(), made[1].collective(), made[2].collective():
            beat(made)
            assert all(missing(each, 24.0) is None for each in made), "a step that takes long on all is not a silence"
    beat(made)
    assert all(missing(each, 1799.0) is None for each in made), "outside a collective the wait may be long"


@pytest.mark.parametrize("silent", [0, 2])
def test_a_silent_process_is_named(silent):
    """In a collective soon, else later, by the first process, or by the others where it is the first that is silent."""
    made = heartbeats(3, timeout=1800.0, collective_timeout=25.0)
    beat(made)
    with made[1].collective(), made[0 if silent else 2].collective():
        beat(made, silent)
        witness = made[0] if silent else made[1]
        assert missing(witness, 24.0, silent) is None
        text = missing(witness, 26.0, silent)
        assert f"process {silent} of 3 has given no sign for 26 s" in text
        assert "the limit is 25 s, since gloo gives up after 30" in text
    if silent == 0:
        text = missing(made[1], 1801.0, silent)
        assert "no sign for 1801 s" in text and "DistributedStrategy.timeout is the limit" in text


@pytest.mark.parametrize("late", [0, 2])
def test_a_process_that_comes_late_is_named_though_it_gives_signs(late):
    made = heartbeats(3, timeout=1800.0, collective_timeout=25.0)
    beat(made)
    waiting = [each for each in made if each.rank != late]
    with waiting[0].collective(), waiting[1].collective():
        beat(made)
        assert missing(made[0], 24.0) is None
        assert f"process {late} of 3 has kept the others waiting in a collective for 26 s" in missing(made[0], 26.0)
    with made[late].collective():
        pass
    beat(made)
    assert all(peer.overtaken is None for peer in made[0]._peers.values()), "it has caught up"


@pytest.mark.parametrize(("limit", "late"), [(25.0, False), (1800.0, True)], ids=["gloo", "NCCL"])
def test_the_root_of_a_broadcast_that_has_gone_on_waits_for_nobody(limit, late):
    """Not on CPU; on a device it may be waiting for what it has only asked for."""
    made = heartbeats(2, timeout=1800.0, collective_timeout=limit)
    with made[0].collective():
        pass
    beat(made)
    assert (missing(made[0], 1801.0) is not None) == late


def test_forward_is_not_taken_for_a_wait(tmp_path, monkeypatch):
    """A process that hangs in it, at a disk or debugger, is late; only the last micro-batch's backward waits."""
    monkeypatch.setattr(World, "averaging", lambda world: world.heartbeat.collective())
    tree = tiny_digits()
    tree["Global"] |= {"accum_steps": 2, "output_dir": str(tmp_path / "run")}
    trainer = assemble(load(str(write_config(tmp_path / "c.yaml", tree))), World())
    seen, forward = [], trainer.forward

    def note(what: str) -> None:
        seen.append(f"{what} waits" if trainer.world.heartbeat._count % 2 else what)

    def noted(images):
        note("forward")
        output = forward(images)
        output.register_hook(lambda gradient: note("backward"))
        return output

    trainer.forward = noted
    trainer.model.train()
    batches = trainer.feed.loader.run(trainer.sampler.batches(0))
    trainer.advance(batches)
    trainer.feed.loader.close()
    assert seen == ["forward", "backward", "forward", "backward waits"]


class Store:
    """Paddle's key-value store, of one process."""

    def __init__(self):
        self.counts = {}

    def add(self, key: str, amount: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


def test_the_first_process_is_not_waited_for_without_end(monkeypatch):
    """It may hang at a disk and give signs all the while; one that has done its part is waited for no longer."""
    store = Store()
    monkeypatch.setattr(compat, "global_tcp_store", lambda: store)
    world, started = World(rank=1, size=3, timeout=0.2), time.monotonic()
    with pytest.raises(TimeoutError, match=r"^process 0 of 3 has kept the others waiting for 0 s"), world.first_only():
        pass
    with pytest.raises(TimeoutError, match=r"^2 of 3 processes have kept the others waiting"):
        world.barrier()
    assert 0.4 <= time.monotonic() - started < 5.0
    monkeypatch.setattr(distributed._Meeting, "arrive", lambda meeting: store.add(meeting._key, 3))
    world.barrier()
    World(rank=0, size=3, timeout=0.2).barrier()
    with World(rank=0, size=3, timeout=0.2).first_only() as mine:
        assert mine


def test_a_process_that_has_ended_is_left_to_others():
    made = heartbeats(2, timeout=1800.0, collective_timeout=25.0)
    for connection in made[1]._connections.values():
        connection.close()
    beat(made[:1])
    with made[0].collective():
        assert missing(made[0], 5000.0, silent=1) is None


def test_the_signs_of_an_earlier_run_do_not_count():
    made = heartbeats(2, timeout=1800.0, collective_timeout=25.0)
    made[1]._run += 1
    made[1]._count = 99
    beat(made)
    assert made[0]._peers[1].count == 0


def test_the_thread_gives_up_once_and_ends():
    texts, made = [], heartbeats(2, timeout=0.4)
    with made[0].collective(), made[0].watched(texts.append):
        time.sleep(1.0)
    assert len(texts) == 1 and "process 1 of 2" in texts[0]
    assert not any(thread.name == "plsc-heartbeat" for thread in threading.enumerate())


@pytest.mark.distributed
@pytest.mark.parametrize("silent", [1, pytest.param(0, marks=pytest.mark.long)])
def test_the_others_end_when_a_process_is_stopped(tmp_path, silent):
    """SIGSTOP of one of two: the other names it, writes its record and ends, long before gloo's abort."""
    tree = tiny_digits()
    tree["Global"] |= {"epochs": 1000, "max_train_step": None}
    tree["DistributedStrategy"] = {"timeout": 4}
    process, run = start(tmp_path, tree, processes=2)
    wait_for_step(run, 3)
    everyone = children(process.pid)
    os.kill(next(pid for pid in everyone if rank_of(pid) == str(silent)), signal.SIGSTOP)
    stopped = time.monotonic()
    # the launcher kills the silent one, and returns the first rank's exit code
    code, output = process.wait(timeout=60), (tmp_path / "output.txt").read_text()
    assert code == (1 if silent else 256 - signal.SIGKILL), output
    assert time.monotonic() - stopped < 29, output
    record = (run / "errors" / f"rank-{1 - silent}.txt").read_text()
    assert f"process {silent} of 2 has given no sign for" in record and "DistributedStrategy.timeout" in record
    assert gone(everyone)


@pytest.mark.long
@pytest.mark.distributed
def test_a_process_that_waits_for_its_disk_is_named_before_gloo_aborts(tmp_path):
    """With the default timeout: the others wait 25 of gloo's 30 seconds, and nothing ends by an abort."""
    (tmp_path / "hangs.py").write_text(
        "import os, time\n"
        "import plsc\n"
        "from plsc.data.datasets.digits import Digits\n\n\n"
        "@plsc.register_dataset()\n"
        "class Hanging(Digits):\n"
        "    def __getitem__(self, index):\n"
        "        if os.environ['PADDLE_TRAINER_ID'] == '1' and os.path.exists('hang'):\n"
        "            time.sleep(100)\n"
        "        return super().__getitem__(index)\n"
    )
    tree = tiny_digits()
    tree["Global"] |= {"epochs": 1000, "max_train_step": None, "imports": ["./hangs.py"]}
    tree["DataLoader"]["Train"]["dataset"]["name"] = "Hanging"
    process, run = start(tmp_path, tree, processes=2)
    wait_for_step(run, 3)
    (tmp_path / "hang").touch()
    began = time.monotonic()
    try:
        code, output = process.wait(timeout=90), (tmp_path / "output.txt").read_text()
    finally:
        process.terminate()
    assert 24 < time.monotonic() - began < 45, output
    record = (run / "errors" / "rank-0.txt").read_text()
    assert code == 1 and "process 1 of 2 has kept the others waiting in a collective for 25 s" in record
    assert "TIMEOUT" not in output and "Aborted" not in output
