"""Retention over real cores: whatever breaks, replicas keep the same, and what is missed is told."""

from __future__ import annotations

from collections import defaultdict

import pytest

from meshq import batch
from meshq.client import facts
from meshq.ids import PartitionKey
from meshq.peer.core import retaining
from meshq.streams.applied import PartitionState
from meshq.streams.groups.table import GroupKey
from tests.peer.keeping import Record, Run, SlowReader, begin, break_things, heal, join, publish, state_at
from tests.peer.test_groups_simulated import MAX_DELIVER, PARTITIONS, letters_of, state_of
from tests.peer.test_snapshots import squeeze
from tests.peer.world import Client, World, is_level

BATCHES = 80
LIMITS = ({"retain_records": 30}, {"retain_bytes": 1_000}, {"retain_age_ms": 1_000})
SKEW_MS = 400  # what clocks may differ


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retaining, "LOOK_S", 0.05)
    monkeypatch.setattr(retaining, "SURVEY_COUNT", 4)


class Reader(SlowReader):
    """What it gets and what it is told to have missed have to fit without a gap."""

    def __init__(self, world: World, seed_peer: int) -> None:
        super().__init__(world, seed_peer)
        self.missed: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.got: dict[int, dict[int, Record]] = defaultdict(dict)

    def on_record(self, partition: int, offset: int, record: Record) -> None:
        self.got[partition][offset] = record

    def on_expired(self, told: facts.TellExpired) -> None:
        at = self.at.setdefault(told.partition, told.next - told.count)
        assert told.next - told.count == at, f"{told.partition}: at {at}, and it was told {told}"
        self.missed[told.partition].append((at, told.next))
        self.at[told.partition] = told.next


def play(seed: int, *, witness: bool = False) -> Run[Reader]:
    world = World(seed, peers=3 if witness else (3, 3, 2, 1)[seed % 4], witness=witness)
    writer = Client(world)
    for host in world.hosts:
        host.clock_ms = world.rng.randrange(-SKEW_MS, SKEW_MS)
    run = begin(world, writer, {"topic": "t", "partitions": PARTITIONS, **LIMITS[seed % 3]}, Reader)
    for worker in run.workers:
        join(worker, MAX_DELIVER, 0)
    world.run(lambda: 1_000_001 in run.workers[0].results)  # the group begins before anything expires
    sent = publish(run, writer, BATCHES, lambda n: [(None, b"%d.%d" % (n, i)) for i in range(1 + n % 5)])
    break_things(run, writer, crashes=5, within_s=2.0)
    world.run_for(3.0)
    heal(run, writer, sent)
    places = [run.key(p) for p in range(PARTITIONS)]
    world.run(lambda: all(is_level(world, place) and has_settled(run, place) for place in places))
    world.run_for(6)  # whatever was said of records is answered
    return run


def has_settled(run: Run[Reader], partition: PartitionKey) -> bool:
    """All that has expired is gone, and everybody has come to the end."""
    if len({state_at(h, partition) for h in run.world.hosts}) > 1:
        return False
    group, end = state_of(run.world, run.info, partition.partition)
    through = group is not None and group.floor == end and group.told == group.expired
    return through and run.is_read(partition)


def check(seed: int, *, witness: bool = False) -> Run[Reader]:
    run = play(seed, witness=witness)
    through = run.history.done | run.history.unknown | set(letters_of(run.world, run.info)[1])
    for p in range(PARTITIONS):
        partition = run.key(p)
        state = state_at(run.world.hosts[0], partition)
        check_disks(run, partition, state)
        check_limits(run, state, seed)
        for reader in run.readers:
            for first, end in reader.missed[p]:
                assert end <= state.low, "only what has expired is told to be missed"
                assert not any(first <= offset < end for offset in reader.got[p])
            for offset, value in reader.got[p].items():
                assert run.stored[p, offset] == value
        lost = [o for o in range(state.end) if (p, o) not in through]
        group, _ = state_of(run.world, run.info, p)
        assert group is not None
        assert all(offset < state.low for offset in lost), "the group was not handed what is kept"
        assert len(lost) <= group.expired, "the group was not told of all it missed"
        told = [t for w in run.workers for t in w.expired if t.partition == p]
        assert bool(told) or group.expired == 0
    assert run.history.seen_again == []
    return run


def check_disks(run: Run[Reader], partition: PartitionKey, state: PartitionState) -> None:
    """The same on all of them, dense, and what the receipts said."""
    found = []
    for host in run.keepers():
        here = sorted(host.disk.payloads[partition], key=lambda x: x.base_offset)
        values = {x.base_offset + i: (r.key, r.value) for x in here for i, r in batch.read_placed(x.data)}
        assert all(o in values for o in range(state.low, state.end)), "what is kept is there"
        assert sum(len(x.data) for x in here) == state.bytes
        found.append([(x.base_offset, bytes(x.data)) for x in here])
        for offset, value in values.items():
            assert run.stored[partition.partition, offset] == value
    assert all(x == found[0] for x in found)


def check_limits(run: Run[Reader], state: PartitionState, seed: int) -> None:
    limit = LIMITS[seed % 3]
    if "retain_records" in limit:
        assert state.end - state.low == min(limit["retain_records"], state.end)
    elif "retain_bytes" in limit:
        assert 0 < state.bytes <= limit["retain_bytes"]
    else:
        assert state.low == state.end, "it is a while since anything was published"
    assert state.low > 0, "this world lets something expire"


@pytest.mark.parametrize("seed", range(12))
def test_what_is_kept_is_the_same_everywhere_and_what_is_missed_is_told(seed: int) -> None:
    check(seed)


@pytest.mark.parametrize("seed", range(12, 20))
def test_who_lacks_what_the_log_has_no_more_gets_what_is_kept(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeeze(monkeypatch.setattr)
    check(seed)


@pytest.mark.parametrize("seed", [30, 31, 32])
def test_with_a_witness_it_is_the_same_and_nothing_stays_there(seed: int) -> None:
    run = check(seed, witness=True)
    witness = run.world.hosts[-1]
    assert not any(p.data for stored in witness.disk.payloads.values() for p in stored)


def test_groups_of_every_replica_know_the_same() -> None:
    run = check(0)
    for p in range(PARTITIONS):
        partition = run.key(p)
        slot = run.world.hosts[0].core.ctx.slot_of(partition)
        tables = [h.core.slots.hosts[slot].stream.groups for h in run.world.hosts]
        states = [t.get(GroupKey(partition, "g")) for t in tables]
        assert len({s.encode() for s in states if s is not None}) == 1
