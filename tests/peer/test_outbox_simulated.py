"""P3 with an outbox and P7: what its disk has arrives once and in order, whatever ends in the middle."""

from __future__ import annotations

from collections import defaultdict

import pytest

from meshq.client import facts
from meshq.ids import PartitionKey, TopicId
from meshq.messages import TopicInfo
from tests.peer.outboxes import SimOutbox
from tests.peer.world import Client, World, committed, is_level

RECORDS = 80
PARTITIONS = 3
KEYS = [None, b"a", b"b", b"c"]


def make_topic(client: Client, name: str, partitions: int) -> TopicInfo:
    made = client.ask(
        lambda t, d: facts.AskRequested(t, "topic.create", {"name": name, "partitions": partitions}, d)
    )
    client.wait(made)
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, name, d)))
    assert isinstance(info, TopicInfo)
    return info


def arrived(world: World, info: TopicInfo) -> dict[int, list[bytes]]:
    """By partition: what is committed, as the peer has it that has most."""
    logs = {}
    for p in range(info.partitions):
        where = PartitionKey(TopicId(info.topic_id), p)
        world.run(lambda w=where: is_level(world, w))
        logs[p] = max((committed(h, where) for h in world.hosts), key=len)
    return logs


def check(world: World, outbox: SimOutbox, info: TopicInfo) -> None:
    """Everything queued is there once; what was not told may be, once; each key's records are in order."""
    logs = arrived(world, info)
    every = [v for log in logs.values() for v in log]
    assert len(set(every)) == len(every), "no record twice"
    missing = {v for _, v in outbox.queued.values()} - set(every)
    assert not missing, f"queued, and never there: {sorted(missing)[:5]}"
    for number, (partition, offset) in outbox.committed.items():
        if number in outbox.queued:  # else it was on disk when its run ended, and nobody was told
            assert logs[partition][offset] == outbox.queued[number][1], "a receipt names its own record"
    for log in logs.values():
        by_key = defaultdict(list)
        for value in log:
            key, _, count = value.partition(b":")
            by_key[key].append(int(count))
        for key, counts in by_key.items():
            if key != b"-":
                assert counts == sorted(counts), f"key {key!r} out of order"
    assert not outbox.parked
    assert outbox.machine.queued_records == outbox.machine.bound_records == 0
    assert outbox.machine.bytes_used == 0


def run(seed: int) -> tuple[World, SimOutbox, TopicInfo]:
    """One outbox publishes while it, the peers, links and disks fail; then all is well."""
    world = World(seed, peers=(3, 1, 2)[seed % 3])
    rng = world.rng
    admin = Client(world)
    before = rng.random() < 0.3  # there is such a topic already
    if before:
        info = make_topic(admin, "orders", PARTITIONS)
    outbox = SimOutbox(world, "a", seed_peer=rng.randrange(len(world.hosts)))
    if not before:  # the first records come while nobody knows the topic
        world.at(rng.uniform(0, 1.0), lambda: admin.ask(lambda t, d: facts.AskRequested(
            t, "topic.create", {"name": "orders", "partitions": PARTITIONS}, d)))  # fmt: skip
    for n in range(RECORDS):
        key = rng.choice(KEYS)
        value = b"%s:%d" % (key or b"-", n)
        world.at(n * 0.02, lambda v=value, k=key: outbox.publish("orders", v, k))
    outbox.crash_at = {rng.randrange(1, 200) for _ in range(rng.randrange(8))}
    for _ in range(rng.randrange(8)):
        at = rng.uniform(0, 2.0)
        world.at(at, lambda: outbox.up and [outbox.client.cut(k) for k in outbox.client.links()])
    for _ in range(rng.randrange(4)):
        host, at = rng.choice(world.hosts), rng.uniform(0, 2.0)
        world.at(at, lambda h=host: h.up and h.crash())
        world.at(at + rng.uniform(0.01, 1.0), lambda h=host: h.up or h.start())
    if rng.random() < 0.3:
        host, at = rng.choice(world.hosts), rng.uniform(0, 2.0)
        world.at(at, lambda: setattr(host.disk, "full", True))
        world.at(at + 0.5, lambda: setattr(host.disk, "full", False))
    world.run_for(3.5)
    outbox.crash_at = set()
    for host in world.hosts:
        host.disk.full = False
        if not host.up:
            host.start()
    if not outbox.up:
        outbox.start()
    world.run(lambda: outbox.up and not outbox.machine.queued_records + outbox.machine.bound_records)
    world.run_for(0.5)  # what was told last is on its disk
    info = admin.wait(admin.ask(lambda t, d: facts.TopicWanted(t, "orders", d)))
    return world, outbox, info


@pytest.mark.parametrize("seed", range(60))
def test_what_is_queued_arrives_once_and_in_order(seed: int) -> None:
    check(*run(seed))
