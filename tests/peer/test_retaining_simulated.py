"""Retention over real cores: whatever breaks, replicas keep the same, and what is missed is told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from meshq import batch
from meshq.client import facts
from meshq.ids import PartitionKey, TopicId
from meshq.messages import EARLIEST, QUEUE, Accepted, TopicInfo
from meshq.peer.core import retaining
from meshq.streams.groups.table import GroupKey
from meshq.streams.slot import PartitionState
from tests.peer.test_groups_simulated import (
    ACK_WAIT_MS,
    MAX_DELIVER,
    PARTITIONS,
    History,
    Worker,
    letters_of,
    state_of,
)
from tests.peer.test_snapshots import squeeze
from tests.peer.world import Client, Host, World, is_level

BATCHES = 80
LIMITS = ({"retain_records": 30}, {"retain_bytes": 1_000}, {"retain_age_ms": 1_000})
SKEW_MS = 400  # what clocks may differ


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retaining, "LOOK_S", 0.05)
    monkeypatch.setattr(retaining, "SURVEY_COUNT", 4)


class Reader(Client):
    """Reads slowly. What it gets and what it is told to have missed have to fit without a gap."""

    def __init__(self, world: World, seed_peer: int) -> None:
        super().__init__(world, seed_peer=seed_peer)
        self.at: dict[int, int] = {}
        self.missed: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.got: dict[int, dict[int, bytes]] = defaultdict(dict)
        self.pause_s = 0.3

    def on_hand(self, hand: facts.Hand) -> None:
        at = self.at.setdefault(hand.partition, hand.first)
        assert hand.first == at, f"{hand.partition}: at {at}, and {hand.first} came"
        for offset, r in enumerate(batch.read_records(hand.payload), hand.base_offset):
            if offset >= hand.first:
                self.got[hand.partition][offset] = r.value
                self.at[hand.partition] = offset + 1
        done = facts.Consumed(hand.sub, hand.source, len(hand.payload), hand.records)
        self.world.at(self.world.rng.uniform(0, self.pause_s), lambda: self.tell(done))

    def on_expired(self, told: facts.TellExpired) -> None:
        at = self.at.setdefault(told.partition, told.next - told.count)
        assert told.next - told.count == at, f"{told.partition}: at {at}, and it was told {told}"
        self.missed[told.partition].append((at, told.next))
        self.at[told.partition] = told.next


def stay_at_work(worker: Worker) -> None:
    """What its application does keeps it from being taken for stuck."""
    worker.tell(facts.AtWork(1))
    worker.world.at(ACK_WAIT_MS / 4000, lambda: stay_at_work(worker))


@dataclass
class Run:
    world: World
    info: TopicInfo
    readers: list[Reader]
    workers: list[Worker]
    history: History
    stored: dict[tuple[int, int], bytes] = field(default_factory=dict)  # partition, offset


def play(seed: int, *, witness: bool = False) -> Run:
    world = World(seed, peers=3 if witness else (3, 3, 2, 1)[seed % 4], witness=witness)
    rng, writer, history = world.rng, Client(world), History()
    for host in world.hosts:
        host.clock_ms = rng.randrange(-SKEW_MS, SKEW_MS)
    made = {"topic": "t", "partitions": PARTITIONS, **LIMITS[seed % 3]}
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.create", made, d)))
    info = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    readers = [Reader(world, seed_peer=i % len(world.hosts)) for i in range(2)]
    for n, reader in enumerate(readers):
        start = facts.Start(EARLIEST)
        event = facts.SubscribeRequested(1, "t", start, 400, 10, 1_000_001)
        world.at(n * rng.uniform(0, 1.0), lambda r=reader, x=event: r.tell(x))  # type: ignore[misc]
    workers = [Worker(world, history, n) for n in range(2)]
    for worker in workers:
        group = facts.Group("g", worker.member, QUEUE, ACK_WAIT_MS, MAX_DELIVER)
        join = facts.SubscribeRequested(1, "t", facts.Start(EARLIEST), 500, 5, 1_000_001, (), group)
        world.at(0, lambda w=worker, x=join: w.tell(x))  # type: ignore[misc]
        stay_at_work(worker)
    world.run(lambda: 1_000_001 in workers[0].results)  # the group begins before anything expires
    run = Run(world, info, readers, workers, history)
    sent: dict[int, tuple[int, list[bytes]]] = {}

    def publish(number: int) -> None:
        values = [b"%d.%d" % (number, i) for i in range(1 + number % 5)]
        body = batch.seal([batch.RawRecord(None, v) for v in values], base_timestamp_ms=0)
        partition = number % PARTITIONS
        ticket = writer.ask(lambda t, d: facts.BatchSealed(t, 1, info, partition, body, d, 8))
        sent[ticket] = partition, values

    for number in range(BATCHES):
        world.at(number * 0.025, lambda n=number: publish(n))  # type: ignore[misc]
    for _ in range(rng.randrange(8)):
        client, at = rng.choice([writer, *readers, *workers]), rng.uniform(0, 2.0)
        world.at(at, lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])  # type: ignore[misc]
    for _ in range(rng.randrange(5)):
        host, at = rng.choice(world.hosts), rng.uniform(0, 2.0)
        world.at(at, lambda h=host: h.up and h.crash())  # type: ignore[misc]
        world.at(at + rng.uniform(0.01, 0.6), lambda h=host: h.up or h.start())  # type: ignore[misc]
    world.run_for(3.0)
    for host in world.hosts:
        if not host.up:
            host.start()
    for reader in readers:
        reader.pause_s = 0.01
    for worker in workers:
        worker.good = True
    world.run(lambda: all(t in writer.results for t in sent))
    for ticket, (partition, values) in sent.items():
        receipt = writer.results[ticket]
        assert isinstance(receipt, Accepted), receipt
        assert receipt.base_offset is not None
        run.stored |= {(partition, receipt.base_offset + i): v for i, v in enumerate(values)}
    world.run_for(4.0)
    places = [key(run, p) for p in range(PARTITIONS)]
    world.run(lambda: all(is_level(world, place) and has_settled(run, place) for place in places))
    world.run_for(6)  # whatever was said of records is answered
    return run


def key(run: Run, partition: int) -> PartitionKey:
    return PartitionKey(TopicId(run.info.topic_id), partition)


def state_at(host: Host, partition: PartitionKey) -> PartitionState:
    return host.core.slots.partition(host.core.ctx.slot_of(partition), partition)


def has_settled(run: Run, partition: PartitionKey) -> bool:
    """All that has expired is gone from every disk, and everybody has come to the end."""
    states = {state_at(h, partition) for h in run.world.hosts}
    if len(states) > 1:
        return False
    (state,) = states
    group, end = state_of(run.world, run.info, partition.partition)
    kept = all(b + n > state.low for h in keepers(run.world) for b, n in h.records(partition))
    through = group is not None and group.floor == end and group.told == group.expired
    return kept and through and all(r.at.get(partition.partition) == state.end for r in run.readers)


def keepers(world: World) -> list[Host]:
    """All but a witness, which has of records what it has."""
    registry = world.hosts[0].core.ctx.registry
    return [h for h in world.hosts if not registry.is_witness(h.identity.peer_id)]


def check(seed: int, *, witness: bool = False) -> Run:
    run = play(seed, witness=witness)
    through = run.history.done | run.history.unknown | set(letters_of(run.world, run.info)[1])
    for p in range(PARTITIONS):
        partition = key(run, p)
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


def check_disks(run: Run, partition: PartitionKey, state: PartitionState) -> None:
    """The same on all of them, dense, and what the receipts said."""
    found = []
    for host in keepers(run.world):
        here = sorted(host.disk.payloads[partition], key=lambda x: x.base_offset)
        values = {x.base_offset + i: r.value for x in here for i, r in enumerate(batch.read_records(x.data))}
        assert all(o in values for o in range(state.low, state.end)), "what is kept is there"
        assert sum(len(x.data) for x in here) == state.bytes
        found.append([(x.base_offset, bytes(x.data)) for x in here])
        for offset, value in values.items():
            assert run.stored[partition.partition, offset] == value
    assert all(x == found[0] for x in found)


def check_limits(run: Run, state: PartitionState, seed: int) -> None:
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
        partition = key(run, p)
        slot = run.world.hosts[0].core.ctx.slot_of(partition)
        tables = [h.core.slots.hosts[slot].stream.groups for h in run.world.hosts]
        states = [t.get(GroupKey(partition, "g")) for t in tables]
        assert len({s.encode() for s in states if s is not None}) == 1
