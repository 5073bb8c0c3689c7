"""Two peers that keep records and a witness: either may be lost, whole peers simulated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from meshq import batch
from meshq.client import facts
from meshq.errors import DiskFull, MeshqError
from meshq.ids import SYSTEM_SLOT, PartitionKey, Slot, TopicId
from meshq.messages import Accepted, TopicInfo
from meshq.peer.core import events as e
from meshq.peer.core.context import CoreSettings
from meshq.registry import commands
from meshq.streams.applied import PartitionState
from meshq.streams.publish import payload_key_of
from tests.peer.test_core_compacting import squeeze
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
        topic: dict[str, Any] | None = None,
    ) -> None:
        self.world = World(seed, peers=peers, slots=SLOTS, witness=witness, settings=settings)
        self.client = Client(self.world, seed_peer=at)
        made = self.client.ask(
            lambda t, d: facts.AskRequested(
                t, "topic.create", {"topic": "t", "partitions": PARTITIONS, **(topic or {})}, d
            )
        )
        self.client.wait(made)
        self.info: TopicInfo = self.client.wait(self.client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
        self.sent: dict[int, tuple[int, bytes]] = {}

    def publish(self, timeout: float = 30.0, *, key: bytes | None = None) -> int:
        n = len(self.sent)
        body = batch.seal([batch.RawRecord(key, b"%d" % n)], base_timestamp_ms=0)
        partition = n % PARTITIONS
        ticket = self.client.ask(
            lambda t, d: facts.BatchSealed(t, 1, self.info, partition, body, d, 8), timeout
        )
        self.sent[ticket] = partition, b"%d" % n
        return ticket

    def publish_for(self, seconds: float, *, every: float = 0.05, key: bytes | None = None) -> list[int]:
        """Tickets of what was published then, all of it answered."""
        tickets: list[int] = []
        for n in range(int(seconds / every)):
            self.world.at(n * every, lambda: tickets.append(self.publish(key=key)))
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


@pytest.mark.parametrize(
    "settings", [{"retain_records": 3}, {"compact": True}], ids=["retained", "compacted"]
)
def test_a_keeper_gets_what_expired_or_was_compacted_from_the_witness_alone(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is away while records expire, or are compacted, and then the one that did that is lost."""
    squeeze(monkeypatch.setattr)
    story = Story(9, topic=settings)
    world = story.world
    away, other = world.hosts[:2]
    story.accepted(story.publish_for(1.0, key=b"k"))
    away.crash()
    story.accepted(story.publish_for(4.0, key=b"k"))
    world.run_for(2.0)
    counters = other.core.ctx.counters
    assert counters.get("retain_entries", 0) + counters.get("slices_compacted", 0) > 0
    places = [PartitionKey(TopicId(story.info.topic_id), p) for p in range(PARTITIONS)]
    before = [state_of(other, p) for p in places]
    other.crash()
    other.wipe()
    away.start()
    world.run(lambda: [state_of(away, p) for p in places] == before)
    for place in places:
        copy = away.core.slots.hosts[slot_of(away, place)]
        world.run(lambda at=copy: at.leads)  # type: ignore[misc]
        here = sorted(away.disk.payloads[place], key=lambda x: x.base_offset)
        state = state_of(away, place)
        values = {x.base_offset + at: r.value for x in here for at, r in batch.read_placed(x.data)}
        sent = {
            r.base_offset: value
            for t, (p, value) in story.sent.items()
            if p == place.partition and isinstance(r := story.client.results[t], Accepted)
        }
        assert values.items() <= sent.items()
        assert max(sent) in values, "the last record of the key"
        if "compact" not in settings:
            assert all(offset in values for offset in range(state.low, state.end))
    story.accepted(story.publish_for(1.0, key=b"k"))


def state_of(host: Host, partition: PartitionKey) -> PartitionState:
    return host.core.slots.partition(slot_of(host, partition), partition)


def slot_of(host: Host, partition: PartitionKey) -> Slot:
    return host.core.ctx.slot_of(partition)


def test_a_witness_gets_what_is_damaged_in_its_own_log_from_a_keeper() -> None:
    """Entries that it applied, and the payload of one: only it and one keeper have them."""
    story = Story(10)
    world = story.world
    away, other, witness = world.hosts
    story.accepted(story.publish_for(1.0))
    away.crash()
    story.accepted(story.publish_for(3.0))
    world.run_for(2.0)  # it is applied, and saved
    rotten = {}
    for slot in range(SLOTS):
        copy = witness.core.slots.hosts[Slot(slot)]
        held = range(copy.replica.everywhere + 1, copy.checkpointed + 1)
        if len(held) > 4:
            rotten[copy.slot] = held
    assert len(rotten) > 2
    witness.crash()
    for slot, held in rotten.items():
        witness.disk.damaged |= {(slot, held[1]), (slot, held[3])}
    slot, held = next(iter(rotten.items()))
    key = next(k for i in held if (k := payload_key_of(witness.disk.log[slot][i])) is not None)
    stored = witness.disk.payloads[key.partition]
    place = next(i for i, p in enumerate(stored) if p.base_offset == key.base_offset)
    whole = stored[place]
    stored[place] = replace(whole, data=bytes(whole.data)[:-1])
    assert not witness.disk.is_whole()
    witness.start()
    world.run(lambda: not witness.disk.damaged and witness.disk.is_whole(), most_s=20.0)
    assert witness.core.ctx.counters["log_entries_mended"] >= 2 * len(rotten)
    other.crash()
    other.wipe()
    away.start()
    story.accepted(story.publish_for(2.0))
    story.check(away)


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
