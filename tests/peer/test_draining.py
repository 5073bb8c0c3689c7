"""Peers come and go for good while clients write: every record stays, and every slot goes where it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.entries import EntryKind
from meshq.errors import OutcomeUnknown, Refused, UsageError
from meshq.ids import SYSTEM_SLOT, PartitionKey, TopicId
from meshq.messages import Accepted, TopicInfo
from meshq.peer.core import events as e
from meshq.peer.core.context import CoreSettings
from meshq.peer.core.draining import Survey
from meshq.registry import commands
from meshq.replication.placement import genesis_config
from meshq.replication.quorum import Node
from meshq.ring import owners
from meshq.security.certificates import Verb, issue
from tests.peer.world import WALL_MS, Client, Host, World, committed

PARTITIONS, SLOTS = 12, 16
EVACUATE_S = 20.0


class Writing:
    """A client that goes on publishing until it is told to stop, and what became of it."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, Client(world)
        self.client.key = register(world)  # a peer's own would be refused when that peer has left
        made = self.client.ask(
            lambda t, d: facts.AskRequested(t, "topic.create", {"topic": "t", "partitions": PARTITIONS}, d)
        )
        self.client.wait(made)
        self.info: TopicInfo = self.client.wait(self.client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
        self.sent: dict[int, tuple[int, bytes]] = {}
        self.answered: list[float] = []  # when a receipt was first seen, looked at every beat
        self._seen = 0
        self._on = True
        self._beat()

    def _beat(self) -> None:
        if not self._on:
            return
        world, n = self.world, len(self.sent)
        got = sum(isinstance(self.client.results.get(t), Accepted) for t in self.sent)
        if got > self._seen:
            self._seen = got
            self.answered.append(world.now)
        partition, value = world.rng.randrange(PARTITIONS), b"%d" % n
        body = batch.seal([batch.RawRecord(None, value)], base_timestamp_ms=0)
        ticket = self.client.ask(
            lambda t, d: facts.BatchSealed(t, 1, self.info, partition, body, d, 8), timeout=60.0
        )
        self.sent[ticket] = (partition, value)
        world.at(0.1, self._beat)

    def pause(self) -> float:
        """The longest time without a receipt."""
        return max((b - a for a, b in zip(self.answered, self.answered[1:], strict=False)), default=0.0)

    def check(self) -> None:
        """Stop, and hold what was promised against what is on the disks of who is up."""
        self._on = False
        self.world.run(lambda: all(t in self.client.results for t in self.sent))
        self.world.run(lambda: is_settled(self.world))
        hosts = [h for h in self.world.hosts if h.up]
        for partition in range(PARTITIONS):
            key = PartitionKey(TopicId(self.info.topic_id), partition)
            logs = [committed(host, key) for host in hosts]
            log = max(logs, key=len)
            assert all(x == log[: len(x)] for x in logs)
            assert len(set(log)) == len(log)
            for ticket, (p, value) in self.sent.items():
                result = self.client.results[ticket]
                if p == partition and isinstance(result, Accepted):
                    assert log[result.base_offset] == value
                elif p == partition and not isinstance(result, OutcomeUnknown):
                    assert value not in log


def register(world: World) -> bytes:
    """An application's key, with all rights."""
    key = world.rng.randbytes(32)
    rights: list[tuple[Verb, str]] = [("publish", "#"), ("subscribe", "#"), ("admin", "#")]
    certificate = issue(
        world.authority, kind="client", name="app", curve_key=key, serial=bytes(16), now=WALL_MS / 1000,
        capabilities=rights,
    )  # fmt: skip
    command = commands.encode(commands.RegisterClient(certificate.encode()))
    world.run(lambda: any(h.core.registrar.leads() for h in world.hosts))
    next(h for h in world.hosts if h.core.registrar.leads()).tell(e.ProposalMade(0, command))
    world.run(lambda: all(key in h.core.ctx.registry.clients for h in world.hosts if h.up))
    return key


def is_settled(world: World) -> bool:
    """Every slot has the members that the ring wants of those who are up."""
    hosts = {h.identity.peer_id: h for h in world.hosts if h.up and not h.has_left}
    registry = next(iter(hosts.values())).core.ctx.registry
    peers = [p for p in registry.ring_peers() if p.peer in hosts]
    if len(peers) < len(hosts):
        return False
    wanted = owners(peers, slots=world.slots, replicas=3)
    for slot in range(world.slots):
        target = genesis_config([Node(peer, hosts[peer].disk.id) for peer in wanted[slot]])
        found = [hosts[p].core.slots.hosts.get(slot) for p in wanted[slot]]  # type: ignore[call-overload]
        replicas = [h.replica for h in found if h is not None]
        if len(replicas) < len(wanted[slot]) or any(r.config != target for r in replicas):
            return False
        if len({r.commit_index for r in replicas}) > 1 or sum(r.serves for r in replicas) != 1:
            return False
    return True


def ask(world: World, host: int, what: str, **args: Any) -> Any:
    """One administrative request, as a program on that host makes it."""
    client = Client(world, seed_peer=host)
    return client.wait(client.ask(lambda t, d: facts.AskRequested(t, what, args, d)))


def leave(world: World, name: str, *, at: int = 0) -> None:
    """As `meshq leave` does it, to its end."""
    host = next(h for h in world.hosts if h.identity.name == name)
    answer = ask(world, at, "peer.leave", peer=name)
    assert isinstance(answer, dict), answer
    world.run(lambda: host.has_left and not host.up)


def system_voters(host: Host) -> set[str]:
    registry = host.core.ctx.registry
    config = host.core.slots.hosts[SYSTEM_SLOT].replica.config
    return {registry.peers[n.peer].facts.name for n in config.voters}


@pytest.mark.parametrize("seed", range(4))
def test_peers_join_and_leave_down_to_one_and_nothing_is_lost(seed: int) -> None:
    """1 -> 2 -> 3 -> 4 -> 3 -> 2 -> 1, the founder among those who go, without a stop in publishing."""
    world = World(seed, peers=1, slots=SLOTS)
    writing = Writing(world)
    for name in ("p1", "p2", "p3"):
        world.join(name)
        world.run(lambda: is_settled(world))
    for name in ("p0", "p2", "p1"):
        leave(world, name, at=3)
        assert ask(world, 3, "peer.leaving", peer=name)["standing"] == "left"
    writing.check()
    assert system_voters(world.hosts[3]) == {"p3"}
    assert writing.pause() < 2.0


def test_the_last_peer_does_not_leave() -> None:
    world = World(1, peers=1, slots=4)
    world.run(world.hosts[0].core.registrar.leads)
    answer = ask(world, 0, "peer.leave", peer="p0")
    assert isinstance(answer, Refused)
    assert "last peer" in str(answer) and "meshq invite" in str(answer)
    assert isinstance(ask(world, 0, "peer.leave", peer="nobody"), UsageError)


def test_of_two_the_one_that_stays_must_be_there() -> None:
    world = World(1, peers=2, slots=4)
    world.run(lambda: is_settled(world) and len(world.hosts[0].core.links.reachable()) == 2)
    world.hosts[1].crash()
    world.hosts[1].bury()
    world.run_for(3.0)
    answer = ask(world, 0, "peer.leave", peer="p0")
    assert isinstance(answer, Refused), answer


def test_leaving_is_taken_back() -> None:
    world = World(2, peers=3, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    ask(world, 0, "peer.leave", peer="p1")
    world.run_for(0.3)
    ask(world, 0, "peer.stay", peer="p1")
    world.run(lambda: is_settled(world))
    assert ask(world, 0, "peer.leaving", peer="p1")["standing"] == "member"
    writing.check()


def test_what_comes_late_of_a_leaving_that_was_taken_back_does_not_end_the_next_one() -> None:
    """Neither a survey of it, nor a LEFT that was proposed twice."""
    world = World(5, peers=3, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    leader = next(h for h in world.hosts if h.core.registrar.leads())
    name, peer = next((h.identity.name, h.identity.peer_id) for h in world.hosts if h is not leader)
    asker = next(i for i, h in enumerate(world.hosts) if h is not leader)
    surveys: list[Callable[[Survey], None]] = []
    survey = leader.core.draining.survey
    leader.core.draining.survey = lambda _, done: surveys.append(done)  # type: ignore[method-assign]
    ask(world, asker, "peer.leave", peer=name)
    world.run(lambda: bool(surveys))
    since = leader.core.ctx.registry.leaving[peer]
    ask(world, asker, "peer.stay", peer=name)
    ask(world, asker, "peer.leave", peer=name)
    surveys[0](Survey(SLOTS, 0, SLOTS, 3))
    late = commands.encode(commands.SetStanding(peer, commands.LEFT, since))
    leader.tell(e.ProposalMade(0, late))
    world.run_for(2.0)
    assert leader.core.ctx.registry.standing(peer) == "leaving"
    again = leader.core.ctx.registry.leaving[peer]
    leader.core.draining.survey = survey  # type: ignore[method-assign]
    world.run(lambda: leader.core.ctx.registry.standing(peer) == "left")
    entries = [x for x in leader.disk.log[SYSTEM_SLOT].values() if x.kind is EntryKind.REGISTRY]
    standings = [c for x in entries if isinstance(c := commands.decode(x.body), commands.SetStanding)]
    assert {c.since for c in standings if c.standing == commands.LEFT} == {again}
    writing.check()


def test_who_left_is_not_registered_again_with_the_same_keys() -> None:
    world = World(6, peers=3, slots=4)
    world.run(lambda: is_settled(world))
    gone = world.hosts[2]
    leave(world, gone.identity.name)
    again = commands.encode(commands.RegisterPeer(world.certify(gone.identity)))
    next(h for h in world.hosts if h.up and h.core.registrar.leads()).tell(e.ProposalMade(0, again))
    world.run_for(1.0)
    for host in world.hosts[:2]:
        assert host.core.ctx.registry.standing(gone.identity.peer_id) == "left"


@pytest.mark.parametrize("seed", range(3))
def test_who_is_gone_for_good_is_let_go_by_another(seed: int) -> None:
    world = World(seed, peers=3, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    gone = world.hosts[seed]
    gone.crash()
    gone.bury()
    at = (seed + 1) % 3
    world.run(lambda: sum(h.core.registrar.leads() for h in world.hosts if h.up) == 1)
    world.run(lambda: isinstance(ask(world, at, "peer.leave", peer=gone.identity.name), dict))
    world.run(lambda: gone.identity.peer_id in world.hosts[at].core.ctx.registry.left)
    writing.check()


@pytest.mark.parametrize("seed", range(3))
def test_a_peer_that_crashes_while_it_leaves_leaves_all_the_same(seed: int) -> None:
    world = World(10 + seed, peers=4, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    leaving, other = world.hosts[1], world.hosts[2 + seed % 2]
    ask(world, 0, "peer.leave", peer="p1")
    for host, after in ((leaving, 0.5), (other, 1.0)):
        world.at(after, lambda h=host: h.up and h.crash())
        world.at(after + 1.0, lambda h=host: h.up or h.has_left or h.start())
    world.run(lambda: leaving.identity.peer_id in world.hosts[0].core.ctx.registry.left)
    world.run(lambda: leaving.has_left or not leaving.up)
    leaving.up and leaving.crash()
    writing.check()


@pytest.mark.parametrize("seed", range(3))
def test_a_dead_peer_is_replaced_and_gets_its_place_back(seed: int) -> None:
    world = World(seed, peers=4, slots=SLOTS, settings=CoreSettings(evacuate_after_s=EVACUATE_S))
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    dead = world.hosts[seed]
    before = sum(h.core.placing.moves for h in world.hosts)
    dead.crash()
    dead.bury()
    world.run_for(EVACUATE_S - 3.0)
    assert sum(h.core.placing.moves for h in world.hosts if h.up) <= before, "nobody is replaced in a hurry"
    world.run(lambda: is_settled(world))
    dead.start()
    for other in world.hosts:
        other.tell(seen(dead))
    world.run(lambda: is_settled(world))
    writing.check()


def seen(host: Host) -> e.MemberSeen:
    return e.MemberSeen(host.identity.peer_id, (f"{host.identity.name}:7700",), True)


def test_a_founder_that_never_came_is_replaced() -> None:
    world = World(3, peers=4, slots=SLOTS, settings=CoreSettings(evacuate_after_s=EVACUATE_S))
    world.hosts[2].crash()
    world.hosts[2].disk.log.clear()
    for host in world.hosts:
        host.core.links.states.pop(world.hosts[2].identity.peer_id, None)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    writing.check()


def test_a_wall_clock_that_jumps_evacuates_nobody() -> None:
    world = World(4, peers=4, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    world.hosts[3].crash()
    world.hosts[3].bury()
    world.wall_offset_ms = 3_600_000
    world.run_for(5.0)
    members = [h.core.slots.hosts[s].replica.config for h in world.hosts[:3] for s in h.core.slots.hosts]
    gone = world.hosts[3].identity.peer_id
    assert any(n.peer == gone for c in members for n in c.nodes())
    world.hosts[3].start()
    for other in world.hosts:
        other.tell(seen(world.hosts[3]))
    writing.check()
