"""A third peer joins while clients write: it takes only what was never written to, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import DiskFull, MeshqError, OutcomeUnknown
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.messages import Accepted, Answer, ProposeRegistry, ReleaseSlots, SlotsReleased, TopicInfo, Welcome
from meshq.peer.core import events as e
from meshq.peer.core.placing import TAKE_BACK_S
from meshq.peer.core.publishing import owned_slot
from meshq.registry import commands
from meshq.ring import owners
from tests.peer.single import AUTHORITY, Single, certificate, identity
from tests.peer.single import SLOTS as FEW
from tests.peer.world import Client, Host, World

PARTITIONS = 12
SLOTS = 16
B = identity("b")
MEMBER = (e.PEERS, b"m")


def accepting(world: World, topic_id: bytes) -> dict[int, list[Host]]:
    """By partition: the peers that would take a batch for it now."""
    found: dict[int, list[Host]] = {}
    for p in range(PARTITIONS):
        for host in world.hosts:
            if host.up:
                try:
                    owned_slot(host.core.ctx, host.core.slots, PartitionKey(TopicId(topic_id), p))
                except MeshqError:
                    continue
                found.setdefault(p, []).append(host)
    return found


def play(seed: int) -> tuple[World, Client, TopicInfo, dict[int, tuple[int, bytes]]]:
    """Publishing goes on while a peer joins; links break and peers crash in between."""
    world = World(seed, peers=2, slots=SLOTS)
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

    for n in range(60):
        partition = rng.randrange(PARTITIONS)
        world.at(0.05 * n, lambda p=partition, n=n: publish(p, b"%d" % n))
    joined = rng.uniform(0, 2)
    world.at(joined, lambda: world.join("p2"))
    for _ in range(rng.randrange(4)):
        at, which = rng.uniform(joined - 0.1, joined + 0.5), rng.randrange(3)
        world.at(at, lambda w=which: w < len(world.hosts) and world.hosts[w].up and world.hosts[w].crash())
        world.at(
            at + 0.3, lambda w=which: w < len(world.hosts) and (world.hosts[w].up or world.hosts[w].start())
        )
    watch(world, info.topic_id)
    world.run_for(4.0)
    for host in world.hosts:
        if not host.up:
            host.start()
    world.run(lambda: all(t in client.results for t in sent))
    return world, client, info, sent


def watch(world: World, topic_id: bytes) -> None:
    """At every moment, at most one peer takes batches for a slot."""
    for partition, hosts in accepting(world, topic_id).items():
        assert len(hosts) <= 1, f"{[h.identity.name for h in hosts]} both take partition {partition}"
    world.at(0.002, lambda: watch(world, topic_id))


@pytest.mark.parametrize("seed", range(12))
def test_a_join_loses_nothing_and_no_slot_has_two_owners(seed: int) -> None:
    world, client, info, sent = play(seed)
    for ticket, (partition, value) in sent.items():
        result = client.results[ticket]
        if not isinstance(result, Accepted):
            assert isinstance(result, OutcomeUnknown)
            continue
        key = PartitionKey(TopicId(info.topic_id), partition)
        holding = [h for h in world.hosts if h.disk.payloads.get(key)]
        assert len(holding) == 1, "a written partition is at one peer"
        registry = world.hosts[0].core.ctx.registry
        assert registry.owners[holding[0].core.ctx.slot_of(key)].peer == holding[0].identity.peer_id
        stored = {p.base_offset: p for p in holding[0].disk.payloads[key]}
        (record,) = batch.read_records(stored[result.base_offset].data)
        assert record.value == value


@pytest.mark.parametrize("seed", range(4))
def test_a_join_ends_with_every_unwritten_slot_where_the_ring_wants_it(seed: int) -> None:
    world, client, info, _ = play(seed)
    registry = world.hosts[0].core.ctx.registry
    wanted = [o[0] for o in owners(registry.ring_peers(), slots=SLOTS, replicas=3)]
    written = {s for h in world.hosts for s, host in h.core.slots.hosts.items() if host.log.last_index}

    def settled() -> bool:
        at_home = all(own.peer == wanted[s] for s, own in enumerate(registry.owners) if s not in written)
        same = all(h.core.ctx.registry.owners == registry.owners for h in world.hosts)
        return at_home and same and len(accepting(world, info.topic_id)) == PARTITIONS

    world.run(settled)
    ticket = client.ask(lambda t, d: facts.TopicWanted(t, "new", d))
    assert client.wait(ticket).name == "new"


def test_a_peer_that_joins_an_unwritten_mesh_gets_its_share() -> None:
    world = World(1, peers=2, slots=64)
    world.run_for(1.0)
    joined = world.join("p2").identity.peer_id
    registry = world.hosts[0].core.ctx.registry
    world.run(lambda: sum(own.peer == joined for own in registry.owners) > 10)
    wanted = [o[0] for o in owners(registry.ring_peers(), slots=64, replicas=3)]
    world.run(lambda: all([own.peer for own in h.core.ctx.registry.owners] == wanted for h in world.hosts))


# -------------------------------------------------------------------- one owner alone
def with_b() -> Single:
    """a holds the registry and owns all slots; b was registered later and asks to be given some."""
    peer = Single()
    peer.hello()
    peer.propose(commands.RegisterPeer(certificate("b")))
    return peer


def release(peer: Single, *slots: tuple[int, int], request: int = 1) -> list[Any]:
    return peer.send(ReleaseSlots(request, list(slots)), session=MEMBER, key=identity("a").curve_public)


def owner() -> Single:
    """b, a founder, asked by a, which holds the registry."""
    peer = Single("b", founders=("a", "b"))
    peer.hello(session=MEMBER, key=identity("a").curve_public)
    return peer


def slot_of_b(peer: Single) -> Slot:
    return next(Slot(s) for s, own in enumerate(peer.core.ctx.registry.owners) if own.peer == B.peer_id)


def test_a_slot_is_fenced_at_once_and_let_go_once_that_is_durable() -> None:
    peer = owner()
    slot = slot_of_b(peer)
    peer.hold = True
    assert release(peer, (slot, 0)) == []
    assert peer.core.slots.is_fenced(slot, 0)
    before = len(peer.out)
    peer.write()
    assert peer.heard(MEMBER, before) == [SlotsReleased(1, [(slot, 0)])]
    peer.start()
    assert peer.core.slots.is_fenced(slot, 0), "also after a restart"
    assert not peer.core.slots.is_fenced(slot, 1), "under that epoch only"


def test_a_fence_that_the_disk_refused_is_taken_back() -> None:
    peer = owner()
    slot = slot_of_b(peer)
    peer.hold = True
    release(peer, (slot, 0))
    release(peer, (slot, 0), request=2)
    before = len(peer.out)
    peer.refuse(DiskFull("no"))
    assert peer.heard(MEMBER, before) == [SlotsReleased(1, []), SlotsReleased(2, [])]
    assert not peer.core.slots.is_fenced(slot, 0)
    peer.hold = False
    assert release(peer, (slot, 0)) == [SlotsReleased(1, [(slot, 0)])]


def test_a_slot_this_mesh_does_not_have_is_refused() -> None:
    (answer,) = release(owner(), (FEW, 0))
    assert answer.name == "RemoteProtocolError"


def test_a_slot_with_a_batch_on_its_way_to_disk_is_not_let_go_and_one_whose_batch_was_refused_is() -> None:
    peer = with_b()
    info = peer.make_topic()
    slot = peer.core.ctx.slot_of(PartitionKey(TopicId(info.topic_id), 0))
    freed: list[Any] = []
    peer.hold = True
    peer.produce(info)
    peer.core.slots.release([(slot, 0)], freed.append)
    assert freed == [[]]
    peer.refuse(DiskFull("no"))
    peer.core.slots.release([(slot, 0)], freed.append)
    peer.tell(e.RoomMeasured(peer.room))
    peer.write()
    assert freed == [[], [(slot, 0)]]
    (refused,) = peer.produce(info)
    assert refused.name == "NotOwner"


def test_a_fenced_slot_that_nobody_took_is_used_again_under_a_new_epoch() -> None:
    peer = owner()
    slot = slot_of_b(peer)
    release(peer, (slot, 0))
    a = identity("a").peer_id
    peer.tell(e.MemberSeen(a, ("192.0.2.1:7700",), True))
    peer.tick()
    peer.tell(e.LinkUp(a))
    peer.tell(e.LinkMessage(a, Welcome(1, AUTHORITY.mesh_id, a, bytes(16), 0)))
    proposed: list[Any] = []
    for _ in range(int(2 * TAKE_BACK_S)):
        peer.tell(e.LinkMessage(a, Answer(0, None)))
        peer.tick(1.0)
        proposed += [
            commands.decode(x.message.command)
            for x in peer.take(e.SendPeer)
            if isinstance(x.message, ProposeRegistry)
        ]
    assert proposed[0] == commands.AssignSlots([(slot, 0, B.peer_id)])
