"""The registry outlives any of its peers: a majority makes topics, and everybody has a copy."""

from __future__ import annotations

import pytest

from meshq import batch
from meshq.client import facts
from meshq.entries import EntryKind
from meshq.errors import (
    DiskFull,
    MeshqError,
    NotOwner,
    RegistryUnavailable,
    StoreCorrupt,
    TopicExists,
    TopicGone,
    Unavailable,
)
from meshq.ids import SYSTEM_SLOT, PartitionKey, TopicId
from meshq.messages import Accepted, Hello, ProposeRegistry
from meshq.peer.core import events as e
from meshq.peer.core import registrar
from meshq.registry import commands
from meshq.replication.words import SupportGot
from tests.peer.single import Single, elect, identity
from tests.peer.world import Client, Host, World

MEMBER = (e.PEERS, b"m")


def create(n: int, name: str = "") -> commands.CreateTopic:
    return commands.CreateTopic(name or f"t{n}", n.to_bytes(16, "big"), 1, 1_000)


class Outcome:
    """A command proposed at a host, and what became of it."""

    def __init__(self, host: Host, command: commands.AnyCommand) -> None:
        self.result: int | MeshqError | None = None
        self.at = host.world.now
        self._world = host.world
        host.core.registrar.propose(command, self._done)
        host.tell(e.Ticked())

    def _done(self, result: int | MeshqError) -> None:
        self.result, self.at = result, self._world.now

    def wait(self) -> int | MeshqError:
        self._world.run(lambda: self.result is not None)
        assert self.result is not None
        return self.result


def leader(world: World) -> Host | None:
    found = [h for h in world.hosts if h.up and h.core.slots.hosts[SYSTEM_SLOT].leads]
    return found[-1] if found else None


def voters(host: Host) -> set[str]:
    """None while they change: until that is decided, those who voted before are needed too."""
    replica = host.core.slots.hosts[SYSTEM_SLOT].replica
    changing = replica.config.is_joint or replica.commit_index < replica.last.index
    return set() if changing else set(host.core.registrar.voter_names())


def up(world: World) -> list[Host]:
    return [h for h in world.hosts if h.up]


def know(world: World, name: str) -> bool:
    return all(h.core.ctx.registry.topic(name) is not None for h in up(world))


# ------------------------------------------------------------------------------------------ several peers
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("killed", range(3))
def test_of_three_founders_any_one_may_be_lost(seed: int, killed: int) -> None:
    world = World(seed, peers=3)
    assert isinstance(Outcome(world.hosts[0], create(1)).wait(), int)
    world.hosts[killed].crash()
    outcomes = [Outcome(host, create(10 + i)) for i, host in enumerate(up(world))]
    assert all(isinstance(x.wait(), int) for x in outcomes)
    world.run(lambda: know(world, "t10") and know(world, "t11"))
    world.hosts[killed].start()
    world.run(lambda: know(world, "t1") and know(world, "t10") and know(world, "t11"))


@pytest.mark.parametrize("seed", range(4))
def test_a_mesh_that_one_peer_founded_lives_on_without_it(seed: int) -> None:
    world = World(seed, peers=1)
    assert isinstance(Outcome(world.hosts[0], create(1)).wait(), int)
    second = world.join("second")
    world.run(lambda: know(world, "t1"))
    assert voters(world.hosts[0]) == {"p0"}
    third = world.join("third")
    world.run(lambda: all(voters(h) == {"p0", "second", "third"} for h in world.hosts))
    world.hosts[0].crash()
    assert isinstance(Outcome(third, create(2)).wait(), int)
    world.run(lambda: know(world, "t2"))
    # Somebody whose genesis names only the peer that is gone comes in by the others.
    fourth = world.join("fourth", at=second)
    world.run(lambda: know(world, "t2") and fourth.core.ctx.registry.version > 0)
    assert isinstance(Outcome(fourth, create(3)).wait(), int)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_majority_nothing_is_registered_and_publishing_goes_on(seed: int) -> None:
    world = World(seed, peers=5, slots=16)
    client = Client(world)
    made = client.ask(lambda t, d: facts.AskRequested(t, "topic.create", {"topic": "t", "partitions": 16}, d))
    client.wait(made)
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    world.run(lambda: know(world, "t"))  # who is left could not learn of it any more
    for host in world.hosts[2:]:
        host.crash()
    outcome = Outcome(world.hosts[1], create(5))
    result = outcome.wait()
    assert isinstance(result, RegistryUnavailable) and result.retry_after_ms
    assert outcome.at - world.now <= registrar.PROPOSAL_S
    alive = {h.identity.peer_id for h in up(world)}
    registry = world.hosts[0].core.ctx.registry

    def survives(partition: int) -> bool:
        slot = world.hosts[0].core.ctx.slot_of(PartitionKey(TopicId(info.topic_id), partition))
        return len(alive & set(registry.genesis_owners[slot])) == 2

    kept = [p for p in range(16) if survives(p)]
    assert kept
    body = batch.seal([batch.RawRecord(None, b"x")], base_timestamp_ms=0)
    sent = client.ask(lambda t, d: facts.BatchSealed(t, 1, info, kept[0], body, d, 8))
    assert isinstance(client.wait(sent), Accepted)
    world.hosts[2].start()
    world.run(lambda: leader(world) is not None)
    assert isinstance(Outcome(world.hosts[1], create(6)).wait(), int)


def test_everything_restarted_has_everything() -> None:
    world = World(1, peers=3)
    results = [Outcome(world.hosts[n % 3], create(n)) for n in range(1, 30)]
    assert all(isinstance(x.wait(), int) for x in results)
    world.run_for(1.5)  # some of it is saved as applied, what follows is not
    results = [Outcome(world.hosts[n % 3], create(n)) for n in range(30, 40)]
    assert all(isinstance(x.wait(), int) for x in results)
    for host in world.hosts:
        host.crash()
    for host in world.hosts:
        host.start()
        kept = host.core.slots.hosts[SYSTEM_SLOT].replica.log.items
        assert len(kept) < 30, "what was applied is not held in memory again"
        assert len(host.core.ctx.registry.topics) >= 29
    world.run(lambda: all(len(h.core.ctx.registry.topics) == 39 for h in world.hosts))


@pytest.mark.parametrize("seed", range(6))
def test_a_proposal_survives_the_loss_of_the_leader(seed: int) -> None:
    world = World(seed, peers=3)
    world.run(lambda: leader(world) is not None and all(len(h.links) == 2 for h in world.hosts))
    world.run_for(0.5)
    lost = leader(world)
    assert lost is not None
    others = [h for h in world.hosts if h is not lost]
    outcomes = [Outcome(others[n % 2], create(n)) for n in range(1, 9)]
    world.run_for(world.rng.uniform(0, 0.05))
    lost.crash()
    assert all(isinstance(x.wait(), int) for x in outcomes), [x.result for x in outcomes]
    world.run(lambda: all(know(world, f"t{n}") for n in range(1, 9)))


# ----------------------------------------------------------------------------------------------- one peer
def proposed(peer: Single, command: commands.AnyCommand) -> int | MeshqError | None:
    peer.take(e.Settle)
    peer.propose(command)
    found = peer.take(e.Settle)
    return found[0].result if found else None


def entries(peer: Single) -> int:
    return sum(x.kind is EntryKind.REGISTRY for x in peer.entries[SYSTEM_SLOT])


def test_a_topic_proposed_twice_is_made_once() -> None:
    peer = Single()
    first = proposed(peer, create(1))
    assert first == proposed(peer, create(1)) == peer.core.ctx.registry.version
    assert entries(peer) == 1
    assert isinstance(proposed(peer, create(2, "t1")), TopicExists)
    assert isinstance(proposed(peer, commands.DeleteTopic(create(1).topic_id)), int)
    assert isinstance(proposed(peer, create(1)), TopicGone), "a late repeat does not bring it back"


def test_what_the_disk_refused_was_not_made() -> None:
    peer = Single()
    peer.hold = True
    peer.propose(create(1))
    peer.refuse(DiskFull("no"))
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, DiskFull)
    peer.hold = False
    assert isinstance(proposed(peer, create(1)), int)


def test_proposals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "PROPOSALS_MAX", 3)
    peer = Single()
    peer.hold = True
    for n in range(1, 5):
        peer.propose(create(n))
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, Unavailable) and settled.result.retry_after_ms > 0


def test_a_command_that_cannot_be_read_never_enters_the_log() -> None:
    peer = Single("a", founders=("a", "b"))
    key = identity("b").curve_public
    peer.send(Hello(1, 1), session=MEMBER, key=key)
    (answer,) = peer.send(ProposeRegistry(3, b"junk"), session=MEMBER, key=key)
    assert (answer.request, answer.name) == (3, "RemoteProtocolError")
    assert entries(peer) == 0


def test_a_peer_that_does_not_lead_says_so_at_once() -> None:
    peer = Single("b", founders=("a", "b"))
    key = identity("a").curve_public
    peer.send(Hello(1, 1), session=MEMBER, key=key)
    command = commands.encode(create(1))
    (answer,) = peer.send(ProposeRegistry(3, command), session=MEMBER, key=key)
    assert answer.name == NotOwner.__name__


def test_without_a_leader_a_proposal_waits_as_long_as_a_fail_over_takes() -> None:
    peer = Single("b", founders=("a", "b"))
    peer.propose(create(1))
    peer.tick(registrar.LEADERLESS_S - 0.2)
    assert not peer.take(e.Settle)
    peer.tick(0.3)
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, RegistryUnavailable)
    assert "majority of a" in str(settled.result)


def test_a_leader_that_loses_its_majority_does_not_say_that_it_is_done() -> None:
    peer = Single(founders=("a", "b", "c"))
    elect(peer)
    peer.propose(create(1))
    assert entries(peer) == 1
    assert not peer.take(e.Settle)
    for other in ("b", "c"):
        peer.core.slots.on_supported(SupportGot(identity(other).peer_id, False))
    for _ in range(50):
        peer.tick(0.1)
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, RegistryUnavailable) and "may or may not" in str(settled.result)
    assert peer.core.ctx.registry.topic("t1") is None


def test_a_log_with_a_hole_is_not_taken_for_the_registry() -> None:
    peer = Single()
    for n in range(1, 4):
        proposed(peer, create(n))
    del peer.entries[SYSTEM_SLOT][1]
    with pytest.raises(StoreCorrupt):
        peer.start()
