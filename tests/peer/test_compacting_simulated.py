"""Compaction over real cores: whatever breaks, replicas are equal, and the last of each key is there."""

from __future__ import annotations

from collections import defaultdict

import pytest

from meshq import batch
from meshq.client import facts
from meshq.ids import PartitionKey
from meshq.peer.core import retaining
from meshq.streams.applied import PartitionState
from tests.peer.keeping import (
    Place,
    Record,
    Run,
    SlowReader,
    begin,
    break_things,
    heal,
    join,
    publish,
    state_at,
)
from tests.peer.test_core_compacting import squeeze
from tests.peer.test_groups_simulated import state_of
from tests.peer.test_snapshots import counted
from tests.peer.test_snapshots import squeeze as little
from tests.peer.world import Client, World, is_level

PARTITIONS = 2
BATCHES = 90


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    squeeze(monkeypatch.setattr)
    monkeypatch.setattr(retaining, "LOOK_S", 0.05)


class Reader(SlowReader):
    def __init__(self, world: World, seed_peer: int) -> None:
        super().__init__(world, seed_peer)
        self.got: dict[Place, Record] = {}

    def on_record(self, partition: int, offset: int, record: Record) -> None:
        assert record[0] is not None
        self.got[partition, offset] = record

    def on_expired(self, told: facts.TellExpired) -> None:
        self.at[told.partition] = told.next


def play(seed: int, *, witness: bool = False) -> Run[Reader]:
    world = World(seed, peers=3 if witness else (3, 3, 1)[seed % 3], witness=witness)
    rng, writer = world.rng, Client(world)
    topic: dict[str, object] = {"topic": "t", "partitions": PARTITIONS, "compact": True}
    topic["tombstone_age_ms"] = 1_000
    if seed % 4 == 3:
        topic["retain_bytes"] = 1_500
    run = begin(world, writer, topic, Reader)
    for worker in run.workers:
        join(worker, 0, rng.uniform(0, 0.5))

    def make(number: int) -> list[Record]:
        return [
            (b"k%d" % rng.randrange(8), b"" if rng.random() < 0.15 else b"%d.%d" % (number, i))
            for i in range(1 + number % 5)
        ]

    sent = publish(run, writer, BATCHES, make)
    break_things(run, writer, crashes=6, within_s=2.2)
    for host in world.hosts:
        if rng.random() < 0.3:
            at = rng.uniform(0, 2.0)
            world.at(at, lambda h=host: setattr(h.disk, "full", True))  # type: ignore[misc]
            world.at(at + 0.2, lambda h=host: setattr(h.disk, "full", False))  # type: ignore[misc]
    world.run_for(3.0)
    heal(run, writer, sent)
    places = [run.key(p) for p in range(PARTITIONS)]
    world.run(lambda: all(is_level(world, p) and has_settled(run, p) for p in places))
    world.run_for(6)
    return run


def has_settled(run: Run[Reader], partition: PartitionKey) -> bool:
    hosts = run.world.hosts
    slot = hosts[0].core.ctx.slot_of(partition)
    states = {state_at(h, partition) for h in hosts}
    if len(states) > 1 or any(h.core.compacting._pass or h.core.compacting._waiting for h in hosts):
        return False
    group, end = state_of(run.world, run.info, partition.partition)
    here = [h.core.slots.hosts[slot] for h in hosts]
    written = not any(x.rewriting or x.stream.rewrites for x in here)
    return written and group is not None and group.floor == end and run.is_read(partition)


def check(seed: int, *, witness: bool = False) -> Run[Reader]:
    run = play(seed, witness=witness)
    for p in range(PARTITIONS):
        partition = run.key(p)
        state = state_at(run.world.hosts[0], partition)
        kept = on_disk(run, partition, state)
        last: dict[bytes | None, int] = {}
        for (number, offset), (k, _) in run.stored.items():
            if number == p:
                last[k] = max(last.get(k, 0), offset)
        for k, offset in last.items():
            if offset >= state.low and run.stored[p, offset][1]:
                assert offset in kept, f"the last record of {k!r} is there"
        before = [o for o in kept if o < state.clean]
        keys = [run.stored[p, o][0] for o in before]
        assert len(keys) == len(set(keys)), "before the clean end each key is there once"
        for reader in run.readers:
            for (number, offset), record in reader.got.items():
                assert run.stored[number, offset] == record
            unread = [o for o in kept if (p, o) not in reader.got]
            assert not unread or state.low > 0, "everybody has read what is kept"
    assert run.history.seen_again == []
    return run


def on_disk(run: Run[Reader], partition: PartitionKey, state: PartitionState) -> set[int]:
    """The offsets that have a record; the same bytes on all."""
    found, offsets = [], defaultdict(set)
    for n, host in enumerate(run.keepers()):
        here = sorted(host.disk.payloads[partition], key=lambda x: x.base_offset)
        at = here[0].base_offset if here else state.end
        assert at <= state.low
        for x in here:
            assert x.base_offset == at, "dense, and nothing twice"
            at += x.count
            for place, r in batch.read_placed(x.data):
                offset = x.base_offset + place
                assert run.stored[partition.partition, offset] == (r.key, r.value)
                if offset >= state.low:
                    offsets[n].add(offset)
        assert at == state.end
        assert sum(len(x.data) for x in here) == state.bytes
        found.append([(x.base_offset, x.count, x.timestamp_ms, bytes(x.data)) for x in here])
    assert all(x == found[0] for x in found)
    return offsets[0]


@pytest.mark.parametrize("seed", range(10))
def test_the_last_of_each_key_is_there_and_replicas_are_equal(seed: int) -> None:
    run = check(seed)
    assert counted(run.world)["slices_compacted"] > 0


@pytest.mark.parametrize("seed", [30, 31, 32])
def test_with_a_witness_it_is_the_same_and_nothing_stays_there(seed: int) -> None:
    run = check(seed, witness=True)
    assert counted(run.world)["slices_compacted"] > 0
    witness = run.world.hosts[-1]
    assert not any(p.data for stored in witness.disk.payloads.values() for p in stored)


@pytest.mark.parametrize("seed", range(20, 26))
def test_who_lacks_what_the_log_has_no_more_gets_what_is_left(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    little(monkeypatch.setattr)
    check(seed)
