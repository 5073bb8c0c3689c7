"""Two peers that keep records and a witness: either may be lost, whole peers simulated."""

from __future__ import annotations

from collections import Counter

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import DiskFull, MeshqError
from meshq.ids import SYSTEM_SLOT, PartitionKey, Slot, TopicId
from meshq.messages import Accepted, TopicInfo
from meshq.peer.core import events as e
from meshq.peer.core.context import CoreSettings
from meshq.registry import commands
from tests.peer.world import ROOM, Client, Host, World, committed

PARTITIONS = 6
SLOTS = 8


class Story:
    """A topic, a client that publishes, and what became of each record."""

    def __init__(
        self,
        seed: int,
        *,
        peers: int = 3,
        witness: bool = True,
        at: int = 2,
        settings: CoreSettings | None = None,
    ) -> None:
        self.world = World(seed, peers=peers, slots=SLOTS, witness=witness, settings=settings)
        self.client = Client(self.world, seed_peer=at)
        made = self.client.ask(
            lambda t, d: facts.AskRequested(t, "topic.create", {"topic": "t", "partitions": PARTITIONS}, d)
        )
        self.client.wait(made)
        self.info: TopicInfo = self.client.wait(self.client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
        self.sent: dict[int, tuple[int, bytes]] = {}

    def publish(self, timeout: float = 30.0) -> int:
        n = len(self.sent)
        body = batch.seal([batch.RawRecord(None, b"%d" % n)], base_timestamp_ms=0)
        partition = n % PARTITIONS
        ticket = self.client.ask(
            lambda t, d: facts.BatchSealed(t, 1, self.info, partition, body, d, 8), timeout
        )
        self.sent[ticket] = partition, b"%d" % n
        return ticket

    def publish_for(self, seconds: float, *, every: float = 0.05) -> list[int]:
        """Tickets of what was published then, all of it answered."""
        tickets: list[int] = []
        for n in range(int(seconds / every)):
            self.world.at(n * every, lambda: tickets.append(self.publish()))
        self.world.run_for(seconds)
        self.world.run(lambda: all(t in self.client.results for t in tickets))
        return tickets

    def accepted(self, tickets: list[int]) -> list[Accepted]:
        results = [self.client.results[t] for t in tickets]
        assert all(isinstance(r, Accepted) for r in results), Counter(map(repr, results))
        return results

    def check(self, host: Host) -> None:
        """This peer has all that was acknowledged, where it was said to be."""
        for partition in range(PARTITIONS):
            log = committed(host, PartitionKey(TopicId(self.info.topic_id), partition))
            for ticket, (p, value) in self.sent.items():
                result = self.client.results[ticket]
                if p == partition and isinstance(result, Accepted):
                    assert log[result.base_offset] == value

    def is_level(self, *hosts: Host) -> bool:
        """Each of these has, of every slot, all that is decided."""
        ends = []
        for slot in range(SLOTS):
            copies = [h.core.slots.hosts.get(Slot(slot)) for h in hosts]
            replicas = [c.replica for c in copies if c is not None]
            same = len(replicas) == len(hosts) and len({r.commit_index for r in replicas}) == 1
            ends.append(same and sum(r.serves for r in replicas) == 1)
        return all(ends)


def stored(host: Host) -> int:
    return sum(len(x) for x in host.disk.payloads.values())


def members(host: Host) -> set[tuple[int, int, int]]:
    """(voters, learners, witnesses) of the data slots that this peer leads."""
    configs = [h.replica.config for h in host.core.slots.led() if h.slot != SYSTEM_SLOT]
    return {(len(c.voters) + 10 * len(c.outgoing), len(c.learners), len(c.witnesses)) for c in configs}


@pytest.mark.parametrize("first", [0, 1])
def test_either_may_be_away_and_then_the_other_one_lost_for_good(first: int) -> None:
    story = Story(first)
    world = story.world
    away, other, witness = world.hosts[first], world.hosts[1 - first], world.hosts[2]
    both = story.accepted(story.publish_for(2.0))
    assert max(r.copies for r in both) == 2
    away.crash()
    began = world.now
    alone = story.accepted(story.publish_for(3.0))
    assert {r.copies for r in alone[30:]} == {1}, "a witness is not a copy"
    assert world.now - began < 3.0 + 1.5, "publishing went on"
    assert stored(witness) >= len(alone) - 30
    other.crash()
    other.wipe()  # nobody but the witness has what was published meanwhile
    away.start()
    story.accepted(story.publish_for(2.0))
    story.check(away)
    # The lost one is replaced. When it has everything, the witness lets go of the rest.
    other.start()
    world.run(lambda: story.is_level(*world.hosts) and members(away) | members(other) == {(3, 0, 1)})
    story.check(other)
    story.accepted(story.publish_for(1.0))
    world.run(lambda: stored(witness) == 0, most_s=30.0)
    assert all(len(witness.disk.log[Slot(slot)]) < 20 for slot in range(SLOTS))


def test_the_witness_may_be_away_and_needs_nothing_of_what_all_have() -> None:
    story = Story(2, at=0)
    world, witness = story.world, story.world.hosts[2]
    witness.crash()
    story.accepted(story.publish_for(3.0))
    witness.start()
    world.run(lambda: story.is_level(*world.hosts))
    assert stored(witness) == 0
    # It is there: one of the others may go, and after a restart it still knows what it has and what not.
    world.run_for(2.0)
    witness.crash()
    witness.start()
    world.hosts[0].crash()
    client = Client(world, seed_peer=1)
    story.client = client
    before = len(story.sent)
    story.accepted(story.publish_for(2.0))
    assert len(story.sent) > before
    assert witness.core.slots.damaged == 0


def test_two_peers_take_a_witness_in_and_a_third_keeper_lets_it_go() -> None:
    story = Story(3, peers=2, witness=False, at=0)
    world = story.world
    story.accepted(story.publish_for(1.0))
    witness = world.join("w", witness=True)
    world.run(lambda: members(world.hosts[0]) | members(world.hosts[1]) == {(3, 0, 1)})
    assert all(not h.leads for h in witness.core.slots.hosts.values() if h.slot != SYSTEM_SLOT)
    story.accepted(story.publish_for(1.0))
    third = world.join("p2")
    keepers = [*world.hosts[:2], third]
    world.run(lambda: set().union(*map(members, keepers)) == {(3, 0, 0)})
    world.run(lambda: story.is_level(*keepers))
    for host in keepers:
        story.check(host)
    world.run(lambda: stored(witness) == 0)
    # One of them leaves: it is taken in again.
    leave = commands.SetStanding(third.identity.peer_id, commands.LEAVING)
    world.hosts[0].tell(e.ProposalMade(0, commands.encode(leave)))
    world.run(lambda: members(world.hosts[0]) | members(world.hosts[1]) == {(3, 0, 1)})
    world.run(lambda: third.has_left)


def test_who_is_away_stays_a_member_as_long_as_nobody_can_take_its_place() -> None:
    story = Story(4, settings=CoreSettings(evacuate_after_s=2.0))
    world = story.world
    away = world.hosts[1]
    away.crash()
    away.bury()
    story.accepted(story.publish_for(6.0))
    assert members(world.hosts[0]) == {(3, 0, 1)}
    # With a witness that is away it is as if there were none.
    away.start()
    world.run(lambda: story.is_level(*world.hosts))
    world.hosts[2].crash()
    world.hosts[2].bury()
    world.run(lambda: members(world.hosts[0]) | members(world.hosts[1]) == {(1, 1, 0)})


def test_a_full_witness_takes_no_more_and_publishing_says_so() -> None:
    story = Story(5, at=0)
    world, witness = story.world, story.world.hosts[2]
    witness.disk.room = 0
    story.accepted(story.publish_for(1.0))
    world.hosts[1].crash()
    world.run_for(2.0)
    refused = story.publish(timeout=3.0)
    world.run(lambda: refused in story.client.results)
    assert isinstance(story.client.results[refused], DiskFull), story.client.results[refused]
    world.hosts[1].start()
    world.run_for(2.0)
    story.accepted(story.publish_for(1.0))


def test_a_full_witness_still_votes() -> None:
    """What it could not store, nobody was told of, so that it keeps no vote from the disk."""
    story = Story(6, at=2)
    world, witness = story.world, story.world.hosts[2]
    world.hosts[1].crash()
    story.accepted(story.publish_for(1.0))
    witness.disk.room = 0
    tickets = [story.publish(timeout=2.0) for _ in range(PARTITIONS)]
    world.run_for(1.0)
    world.hosts[0].crash()
    world.hosts[1].start()
    slots = world.hosts[1].core.slots
    world.run(lambda: sum(h.leads for h in slots.led()) >= SLOTS, most_s=20.0)
    witness.disk.room = ROOM
    world.run(lambda: all(t in story.client.results for t in tickets))
    story.accepted(story.publish_for(1.0))
    story.check(world.hosts[1])


def test_nothing_is_recovered_from_a_witness_but_the_registry() -> None:
    story = Story(7)
    world = story.world
    story.accepted(story.publish_for(0.5))
    for host in world.hosts[:2]:
        host.crash()
        host.bury()
    world.run_for(3.0)
    ask = story.client.ask(lambda t, d: facts.AskRequested(t, "recover.plan", {"gone": ["p0", "p1"]}, d))
    plan = story.client.wait(ask)
    assert not isinstance(plan, MeshqError), plan
    assert [s["slot"] for s in plan["slots"]] == ["registry"]
    assert len(plan["without_a_copy"]) == SLOTS


def test_who_keeps_records_is_not_the_last_to_leave() -> None:
    story = Story(8)
    registry = story.world.hosts[0].core.ctx.registry
    one, two, witness = (h.identity.peer_id for h in story.world.hosts)
    assert registry.refusal(commands.SetStanding(witness, commands.LEAVING)) is None
    assert registry.refusal(commands.SetStanding(one, commands.LEAVING)) is None
    registry.leaving[one] = 1
    assert "keeps records" in str(registry.refusal(commands.SetStanding(two, commands.LEAVING)))
