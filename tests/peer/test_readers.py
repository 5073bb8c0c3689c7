"""Promise P2 over real cores: whatever breaks, a subscriber gets every record once, in order, by offset."""

from __future__ import annotations

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import TopicGone
from meshq.ids import PartitionKey, TopicId
from meshq.limits import SESSION_IDLE_MS
from meshq.messages import EARLIEST, TopicInfo
from tests.peer.world import Client, World, committed, is_level

PARTITIONS = 3
Log = list[tuple[int, bytes]]


def play(seed: int) -> tuple[World, list[Client], TopicInfo, Client]:
    """One client publishes, two read from the beginning with little credit; links break and peers crash."""
    world = World(seed, peers=2 + seed % 2)
    writer, rng = Client(world), world.rng
    made = {"topic": "t", "partitions": PARTITIONS}
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.create", made, d)))
    info = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    readers = [Client(world, seed_peer=i) for i in range(2)]
    for n, reader in enumerate(readers):
        start = facts.Start(EARLIEST)
        begin = facts.SubscribeRequested(1, "t", start, rng.choice([1_000, 100_000]), 50, 1_000_000)
        world.at(rng.uniform(0, 1) * n, lambda r=reader, b=begin: r.tell(b))

    def publish(number: int) -> None:
        records = [batch.RawRecord(None, b"%d.%d" % (number, i)) for i in range(1 + number % 3)]
        body = batch.seal(records, base_timestamp_ms=0)
        writer.ask(lambda t, d: facts.BatchSealed(t, 1, info, number % PARTITIONS, body, d, 8))

    for number in range(60):
        world.at(number * 0.02, lambda n=number: publish(n))
    for _ in range(rng.randrange(12)):
        client = rng.choice([writer, *readers])
        world.at(rng.uniform(0, 1.5), lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])
    for _ in range(rng.randrange(4)):
        host, at = rng.choice(world.hosts), rng.uniform(0, 1.5)
        world.at(at, lambda h=host: h.up and h.crash())
        world.at(at + rng.uniform(0.01, 0.5), lambda h=host: h.up or h.start())
    world.run_for(2.5)
    for host in world.hosts:
        if not host.up:
            host.start()
    world.run(lambda: len(writer.results) >= 62)
    return world, readers, info, writer


def log_of(world: World, info: TopicInfo, partition: int) -> Log:
    key = PartitionKey(TopicId(info.topic_id), partition)
    world.run(lambda: is_level(world, key))
    logs = [committed(host, key) for host in world.hosts]
    assert len({len(log) for log in logs}) == 1, "every replica has all of it"
    return list(enumerate(logs[0]))


def check_seed(seed: int) -> None:
    world, readers, info, _ = play(seed)
    logs = {("t", p): log_of(world, info, p) for p in range(PARTITIONS)}
    assert sum(len(log) for log in logs.values()) > 60
    for reader in readers:
        world.run(lambda r=reader: all(len(r.read[key]) >= len(log) for key, log in logs.items()))
        world.run_for(0.5)
        for key, log in logs.items():
            assert reader.read[key] == log
        assert reader.ended == []


@pytest.mark.parametrize("seed", range(25))
def test_a_subscriber_gets_every_record_once_in_order_whatever_breaks(seed: int) -> None:
    check_seed(seed)


def test_a_subscriber_that_goes_leaves_nothing_at_the_peers() -> None:
    world, readers, _, _ = play(3)
    for reader in readers:
        reader.tell(facts.Unsubscribed(1))
    world.run_for(SESSION_IDLE_MS / 1000 + 1)  # a connection that broke unnoticed ends by its silence
    for host in world.hosts:
        assert [n for n, value in vars(host.core.ctx.deliveries).items() if value] == []
        assert all(s.readers == 0 and not s.seeks for s in host.core.ctx.sessions.states.values())


def test_a_topic_deleted_while_it_is_read_goes_from_the_disk_and_its_successor_begins_at_0() -> None:
    world, readers, info, writer = play(5)
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.delete", {"topic": "t"}, d)))
    keys = [PartitionKey(TopicId(info.topic_id), p) for p in range(PARTITIONS)]
    world.run(lambda: not any(h.disk.payloads.get(k) for h in world.hosts for k in keys))
    world.run(lambda: not any(h.core.ctx.deliveries.count() for h in world.hosts))
    for reader in readers:
        reader.read.clear()
    body = batch.seal([batch.RawRecord(None, b"new")], base_timestamp_ms=0)
    late = writer.wait(writer.ask(lambda t, d: facts.BatchSealed(t, 1, info, 0, body, d, 8)))
    assert isinstance(late, TopicGone)
    again = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    assert again.topic_id != info.topic_id
    receipt = writer.wait(writer.ask(lambda t, d: facts.BatchSealed(t, 1, again, 0, body, d, 8)))
    assert receipt.base_offset == 0
    world.run(lambda: all(r.read.get(("t", 0)) == [(0, b"new")] for r in readers))
