"""A peer joins while clients write: slots move to where the ring wants them, and nothing is lost."""

from __future__ import annotations

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import OutcomeUnknown
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.messages import Accepted, TopicInfo
from meshq.replication.placement import genesis_config
from meshq.replication.quorum import Node
from meshq.ring import owners
from tests.peer.world import Client, World, committed

PARTITIONS = 12
SLOTS = 16


def play(seed: int) -> tuple[World, Client, TopicInfo, dict[int, tuple[int, bytes]]]:
    """Publishing goes on while a peer joins; links break and peers crash in between."""
    world = World(seed, peers=1 + seed % 3, slots=SLOTS)
    client, rng = Client(world), world.rng
    made = client.ask(
        lambda t, d: facts.AskRequested(t, "topic.create", {"topic": "t", "partitions": PARTITIONS}, d)
    )
    client.wait(made)
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    sent: dict[int, tuple[int, bytes]] = {}

    def publish(partition: int, value: bytes) -> None:
        body = batch.seal([batch.RawRecord(None, value)], base_timestamp_ms=0)
        ticket = client.ask(lambda t, d: facts.BatchSealed(t, 1, info, partition, body, d, 8))
        sent[ticket] = (partition, value)

    for n in range(80):
        partition = rng.randrange(PARTITIONS)
        world.at(0.1 * n, lambda p=partition, n=n: publish(p, b"%d" % n))
    joined = rng.uniform(0, 2)
    world.at(joined, lambda: world.join("new"))
    for _ in range(rng.randrange(4)):
        at, which = rng.uniform(joined - 0.1, joined + 5), rng.randrange(4)
        world.at(at, lambda w=which: w < len(world.hosts) and world.hosts[w].up and world.hosts[w].crash())
        world.at(
            at + 0.3, lambda w=which: w < len(world.hosts) and (world.hosts[w].up or world.hosts[w].start())
        )
    world.run_for(9.0)
    for host in world.hosts:
        if not host.up:
            host.start()
    world.run(lambda: all(t in client.results for t in sent))
    return world, client, info, sent


def is_settled(world: World) -> bool:
    """Every slot has the members the ring wants, and all of them have all that is committed."""
    registry = world.hosts[0].core.ctx.registry
    wanted = owners(registry.ring_peers(), slots=SLOTS, replicas=3)
    for slot in range(SLOTS):
        target = genesis_config([Node(peer, bytes(16)) for peer in wanted[slot]])
        members = [h for h in world.hosts if h.identity.peer_id in wanted[slot]]
        replicas = [h.core.slots.hosts[slot].replica for h in members if slot in h.core.slots.hosts]  # type: ignore[index]
        if len(replicas) < len(members) or any(r.config != target for r in replicas):
            return False
        if len({r.commit_index for r in replicas}) > 1 or sum(r.serves for r in replicas) != 1:
            return False
    return True


@pytest.mark.parametrize("seed", range(12))
def test_a_join_loses_nothing_and_ends_where_the_ring_wants_it(seed: int) -> None:
    world, client, info, sent = play(seed)
    world.run(lambda: is_settled(world))
    for partition in range(PARTITIONS):
        key = PartitionKey(TopicId(info.topic_id), partition)
        logs = [committed(host, key) for host in world.hosts]
        log = max(logs, key=len)
        assert all(x == log[: len(x)] for x in logs)
        assert len(set(log)) == len(log)
        for ticket, (p, value) in sent.items():
            result = client.results[ticket]
            if p == partition and isinstance(result, Accepted):
                assert log[result.base_offset] == value
            elif p == partition and not isinstance(result, OutcomeUnknown):
                assert value not in log


@pytest.mark.parametrize("peers", [2, 3])
def test_once_the_slots_have_moved_nobody_doubts_a_leader(peers: int) -> None:
    """What peers tell each other of who leads has to follow the members, or idle slots lose their leaders."""
    world = World(peers, peers=peers, slots=SLOTS)
    world.run_for(5.0)
    world.join("new")
    world.run(lambda: is_settled(world))
    world.run_for(10.0)  # leadership goes where the ring wants it, a few slots at a time
    changes: list[Slot] = []
    for host in world.hosts:
        told = host.core.reactions.on_role
        host.core.reactions.on_role = lambda h, told=told: (changes.append(h.slot), told(h))  # type: ignore[assignment,method-assign,misc]
    world.run_for(5.0)
    assert changes == []
    for host in world.hosts:
        for copy in host.core.slots.hosts.values():
            assert copy.replica.leader is not None or host.core.slots.me not in copy.replica.config.nodes()
