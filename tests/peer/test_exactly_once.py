"""Promises P2 and P3 over real cores: whatever breaks, a receipt's records are there once, at its offsets, in
order.
"""

from __future__ import annotations

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import MeshqError, OutcomeUnknown
from meshq.ids import PartitionKey, TopicId
from meshq.messages import Accepted
from tests.peer.world import Client, World, committed, is_level

BATCHES = 60


def _value(client: int, number: int) -> bytes:
    return b"%d:%d" % (client, number)


def _run(seed: int) -> tuple[World, list[Client], list[dict[int, int]], PartitionKey]:
    """Two producers publish to one partition while links break, peers crash and disks fill up."""
    peers = (2, 3, 1)[seed % 3]
    world = World(seed, peers=peers)
    clients = [Client(world, seed_peer=i % peers) for i in range(2)]
    info = clients[0].wait(clients[0].ask(lambda t, d: facts.TopicWanted(t, "orders", d)))
    sent: list[dict[int, int]] = [{}, {}]
    rng = world.rng

    def publish(which: int, number: int) -> None:
        records = [batch.RawRecord(None, _value(which, number))]
        body = batch.seal(records, base_timestamp_ms=0)
        ticket = clients[which].ask(
            lambda t, d: facts.BatchSealed(t, 1, info, 0, body, d, 8), timeout=rng.choice([0.05, 30.0, 30.0])
        )
        sent[which][ticket] = number

    for number in range(BATCHES):
        for which in range(2):
            world.at(number * 0.02, lambda w=which, n=number: publish(w, n))
    for _ in range(rng.randrange(12)):
        client = rng.choice(clients)
        world.at(rng.uniform(0, 1.5), lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])
    for _ in range(rng.randrange(4)):
        host = rng.choice(world.hosts)
        at = rng.uniform(0, 1.5)
        world.at(at, lambda h=host: h.up and h.crash())
        world.at(at + rng.uniform(0.01, 0.5), lambda h=host: h.up or h.start())
    for host in world.hosts:
        at = rng.uniform(0, 1.5)
        if rng.random() < 0.4:
            world.at(at, lambda h=host: setattr(h.disk, "full", True))
            world.at(at + 0.2, lambda h=host: setattr(h.disk, "full", False))
    world.run_for(2.5)
    for host in world.hosts:
        host.disk.full = False
        if not host.up:
            host.start()
    world.run(lambda: all(t in c.results for c, s in zip(clients, sent, strict=True) for t in s))
    partition = PartitionKey(TopicId(info.topic_id), 0)
    world.run(lambda: is_level(world, partition))
    return world, clients, sent, partition


def _log(world: World, partition: PartitionKey) -> list[bytes]:
    """What is committed: the same on every peer, as far as each has come."""
    logs = [committed(host, partition) for host in world.hosts]
    longest = max(logs, key=len)
    assert all(log == longest[: len(log)] for log in logs), "every reader sees the same record at an offset"
    return longest


@pytest.mark.parametrize("seed", range(60))
def test_a_receipt_means_once_at_its_offset_and_a_refusal_means_never(seed: int) -> None:
    world, clients, sent, partition = _run(seed)
    log = _log(world, partition)
    assert len(set(log)) == len(log), "no record twice"
    for which, (client, tickets) in enumerate(zip(clients, sent, strict=True)):
        accepted = []
        for ticket, number in tickets.items():
            result = client.results[ticket]
            if isinstance(result, Accepted):
                assert log[result.base_offset] == _value(which, number)
                accepted.append((number, result.base_offset))
            elif not isinstance(result, OutcomeUnknown):
                assert isinstance(result, MeshqError)
                assert _value(which, number) not in log, f"refused with {result!r}, yet stored"
        offsets = [offset for _, offset in sorted(accepted)]
        assert offsets == sorted(offsets), "one producer's order is kept"


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (_run(7) for _ in range(2))
    assert _log(first[0], first[3]) == _log(second[0], second[3])


def test_most_records_get_through() -> None:
    results = [r for seed in range(10) for c in _run(seed)[1] for r in c.results.values()]
    accepted = sum(isinstance(r, Accepted) for r in results)
    assert accepted > 0.8 * len(results)
