"""Compaction over real cores: whatever breaks, replicas are equal, and the last of each key is there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from meshq import batch
from meshq.client import facts
from meshq.ids import PartitionKey, TopicId
from meshq.messages import EARLIEST, QUEUE, Accepted, TopicInfo
from meshq.peer.core import retaining
from meshq.streams.slot import PartitionState
from tests.peer.test_core_compacting import squeeze
from tests.peer.test_groups_simulated import ACK_WAIT_MS, History, Worker, state_of
from tests.peer.test_retaining_simulated import keepers, stay_at_work
from tests.peer.test_snapshots import counted
from tests.peer.test_snapshots import squeeze as little
from tests.peer.world import Client, Host, World, is_level

PARTITIONS = 2
BATCHES = 90
Place = tuple[int, int]  # partition, offset
Record = tuple[bytes, bytes]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    squeeze(monkeypatch.setattr)
    monkeypatch.setattr(retaining, "LOOK_S", 0.05)


class Reader(Client):
    """Reads slowly, each partition in order."""

    def __init__(self, world: World, seed_peer: int) -> None:
        super().__init__(world, seed_peer=seed_peer)
        self.at: dict[int, int] = {}
        self.got: dict[Place, Record] = {}
        self.pause_s = 0.3

    def on_hand(self, hand: facts.Hand) -> None:
        at = self.at.setdefault(hand.partition, hand.first)
        assert hand.first == at, f"{hand.partition}: at {at}, and {hand.first} came"
        for place, r in batch.read_placed(hand.payload):
            offset = hand.base_offset + place
            if offset >= hand.first:
                assert r.key is not None
                self.got[hand.partition, offset] = (r.key, r.value)
        self.at[hand.partition] = hand.base_offset + batch.read_header(hand.payload).count
        done = facts.Consumed(hand.sub, hand.source, len(hand.payload), hand.records)
        self.world.at(self.world.rng.uniform(0, self.pause_s), lambda: self.tell(done))

    def on_expired(self, told: facts.TellExpired) -> None:
        self.at[told.partition] = told.next


@dataclass
class Run:
    world: World
    info: TopicInfo
    readers: list[Reader]
    workers: list[Worker]
    history: History
    stored: dict[Place, Record] = field(default_factory=dict)


def play(seed: int, *, witness: bool = False) -> Run:
    world = World(seed, peers=3 if witness else (3, 3, 1)[seed % 3], witness=witness)
    rng, writer, history = world.rng, Client(world), History()
    made = {"topic": "t", "partitions": PARTITIONS, "compact": True, "tombstone_age_ms": 1_000}
    if seed % 4 == 3:
        made["retain_bytes"] = 1_500
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.create", made, d)))
    info = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    readers = [Reader(world, seed_peer=i % len(world.hosts)) for i in range(2)]
    for n, reader in enumerate(readers):
        event = facts.SubscribeRequested(1, "t", facts.Start(EARLIEST), 400, 10, 1_000_001)
        world.at(n * rng.uniform(0, 1.0), lambda r=reader, x=event: r.tell(x))  # type: ignore[misc]
    workers = [Worker(world, history, n) for n in range(2)]
    for worker in workers:
        group = facts.Group("g", worker.member, QUEUE, ACK_WAIT_MS, 0)
        join = facts.SubscribeRequested(1, "t", facts.Start(EARLIEST), 500, 5, 1_000_001, (), group)
        world.at(rng.uniform(0, 0.5), lambda w=worker, x=join: w.tell(x))  # type: ignore[misc]
        stay_at_work(worker)
    run = Run(world, info, readers, workers, history)
    sent: dict[int, tuple[int, list[Record]]] = {}

    def publish(number: int) -> None:
        records = [
            (b"k%d" % rng.randrange(8), b"" if rng.random() < 0.15 else b"%d.%d" % (number, i))
            for i in range(1 + number % 5)
        ]
        body = batch.seal([batch.RawRecord(k, v) for k, v in records], base_timestamp_ms=0)
        partition = number % PARTITIONS
        ticket = writer.ask(lambda t, d: facts.BatchSealed(t, 1, info, partition, body, d, 8))
        sent[ticket] = partition, records

    for number in range(BATCHES):
        world.at(number * 0.025, lambda n=number: publish(n))  # type: ignore[misc]
    for _ in range(rng.randrange(8)):
        client, at = rng.choice([writer, *readers, *workers]), rng.uniform(0, 2.2)
        world.at(at, lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])  # type: ignore[misc]
    for _ in range(rng.randrange(6)):
        host, at = rng.choice(world.hosts), rng.uniform(0, 2.2)
        world.at(at, lambda h=host: h.up and h.crash())  # type: ignore[misc]
        world.at(at + rng.uniform(0.01, 0.6), lambda h=host: h.up or h.start())  # type: ignore[misc]
    for host in world.hosts:
        if rng.random() < 0.3:
            at = rng.uniform(0, 2.0)
            world.at(at, lambda h=host: setattr(h.disk, "full", True))  # type: ignore[misc]
            world.at(at + 0.2, lambda h=host: setattr(h.disk, "full", False))  # type: ignore[misc]
    world.run_for(3.0)
    for host in world.hosts:
        if not host.up:
            host.start()
    for reader in readers:
        reader.pause_s = 0.01
    for worker in workers:
        worker.good = True
    world.run(lambda: all(t in writer.results for t in sent))
    for ticket, (partition, records) in sent.items():
        receipt = writer.results[ticket]
        assert isinstance(receipt, Accepted), receipt
        assert receipt.base_offset is not None
        run.stored |= {(partition, receipt.base_offset + i): r for i, r in enumerate(records)}
    world.run_for(4.0)
    places = [key(run, p) for p in range(PARTITIONS)]
    world.run(lambda: all(is_level(world, p) and has_settled(run, p) for p in places))
    world.run_for(6)
    return run


def key(run: Run, partition: int) -> PartitionKey:
    return PartitionKey(TopicId(run.info.topic_id), partition)


def state_at(host: Host, partition: PartitionKey) -> PartitionState:
    return host.core.slots.partition(host.core.ctx.slot_of(partition), partition)


def has_settled(run: Run, partition: PartitionKey) -> bool:
    slot = run.world.hosts[0].core.ctx.slot_of(partition)
    states = {state_at(h, partition) for h in run.world.hosts}
    if len(states) > 1 or any(h.core.compacting._pass or h.core.compacting._waiting for h in run.world.hosts):
        return False
    (state,) = states
    group, end = state_of(run.world, run.info, partition.partition)
    written = not any(
        h.core.slots.hosts[slot].rewriting or h.core.slots.hosts[slot].stream.rewrites
        for h in run.world.hosts
    )
    kept = all(b + n > state.low for h in keepers(run.world) for b, n in h.records(partition))
    through = group is not None and group.floor == end
    return (
        written and kept and through and all(r.at.get(partition.partition) == state.end for r in run.readers)
    )


def check(seed: int, *, witness: bool = False) -> Run:
    run = play(seed, witness=witness)
    for p in range(PARTITIONS):
        partition = key(run, p)
        state = state_at(run.world.hosts[0], partition)
        kept = on_disk(run, partition, state)
        last: dict[bytes, int] = {}
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


def on_disk(run: Run, partition: PartitionKey, state: PartitionState) -> set[int]:
    """The offsets that have a record; the same bytes on all."""
    found, offsets = [], defaultdict(set)
    for n, host in enumerate(keepers(run.world)):
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
