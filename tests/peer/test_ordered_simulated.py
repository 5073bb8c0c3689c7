"""Ordered groups over real cores: members come, go, die and pause, links break, peers crash; what was
promised holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import MeshqError
from meshq.ids import PartitionKey, TopicId
from meshq.limits import MIB
from meshq.messages import ACK, EARLIEST, ORDERED, RELEASE, TopicInfo
from meshq.streams.groups.intervals import OFFSETS_END
from meshq.streams.groups.ordered_state import OrderedState
from meshq.streams.groups.table import GroupKey
from tests.peer.world import Client, Host, World, committed, is_level

PARTITIONS = 4
TIMEOUT_MS = 1_000


@dataclass
class History:
    """What members saw, by partition. `wrong`: what was seen that must not be."""

    began: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))  # lease -> offset
    holder: dict[tuple[int, int], int] = field(default_factory=dict)  # partition, lease -> member
    counted: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))  # lease -> end
    said: Counter[int] = field(default_factory=Counter)  # highest end in any acknowledgement sent
    worked: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)

    def done(self, partition: int, *, before: int) -> int:
        """Records below were acknowledged under leases before that one, and the acknowledgement has
        returned."""
        counted = self.counted[partition]
        return max((end for lease, end in counted.items() if lease < before), default=0)


@dataclass(eq=False)
class Tenure:
    topic_id: bytes
    partition: int
    lease: int
    next: int  # of the next record to work on
    acked: int
    waiting: list[int] = field(default_factory=list)
    flying: int = 0
    working: bool = False
    revoked: bool = False
    over: bool = False


class Member(Client):
    """Works on what it has, one record a partition after another, and acknowledges some now and then."""

    def __init__(self, world: World, history: History, number: int) -> None:
        self.history, self.number = history, number
        self.tenures: dict[int, Tenure] = {}
        self.sub, self.joined, self.dead = 0, False, False
        self.paused: list[Any] | None = None
        super().__init__(world, seed_peer=number % len(world.hosts))

    # ----------------------------------------------------------------------------- what it goes through
    def take_part(self) -> None:
        if self.joined or self.dead or self.paused is not None:
            return
        self.sub, self.joined = self.sub + 1, True
        group = facts.Group("g", bytes([self.number, self.sub]) * 8, ORDERED, TIMEOUT_MS, 0)
        ticket = 1_000_000 + self.sub
        start = facts.Start(EARLIEST)
        self.tell(facts.SubscribeRequested(self.sub, "t", start, MIB, 1_000, ticket, (), group))

    def leave(self) -> None:
        if self.joined and self.paused is None:
            self.joined = False
            self.tenures.clear()
            self.tell(facts.Unsubscribed(self.sub))

    def die(self) -> None:
        self.dead, self.joined = True, False
        self.tenures.clear()
        for key in self.links():
            self.cut(key)

    def pause(self, seconds: float) -> None:
        """It stands still; what comes meanwhile it finds when it goes on."""
        if self.paused is None and not self.dead:
            self.paused = []
            self.world.at(seconds, self.go_on)

    def go_on(self) -> None:
        found, self.paused = self.paused or [], None
        for event in found:
            self.tell(event)
        for tenure in list(self.tenures.values()):
            self.work(tenure)

    def tell(self, event: Any) -> None:
        if self.dead:
            return
        if getattr(self, "paused", None) is not None:
            self.paused.append(event)
        else:
            super().tell(event)

    # -------------------------------------------------------------------------------- as the shell does it
    def _do(self, effect: Any) -> None:
        match effect:
            case facts.Grant():
                self.on_grant(effect)
            case facts.Revoke():
                self.on_revoke(effect)
            case _:
                super()._do(effect)

    def on_grant(self, grant: facts.Grant) -> None:
        h, p = self.history, grant.partition
        if h.holder.setdefault((p, grant.lease), self.number) != self.number:
            h.wrong.append(f"lease {grant.lease} of {p} is two members'")
        h.began[p].setdefault(grant.lease, grant.offset)
        if grant.offset > h.said[p]:
            h.wrong.append(f"lease {grant.lease} of {p} begins at {grant.offset}: nobody said that was done")
        done = h.done(p, before=grant.lease)
        if grant.offset < done:
            h.wrong.append(f"lease {grant.lease} of {p} begins at {grant.offset}: {done} was done")
        if not is_on_a_majority(self.world, grant.topic_id, p, grant.lease):
            h.wrong.append(f"lease {grant.lease} of {p} was told before it was on a majority of disks")
        self.tenures[p] = Tenure(grant.topic_id, p, grant.lease, grant.offset, grant.offset)

    def on_revoke(self, revoke: facts.Revoke) -> None:
        tenure = self.tenures.get(revoke.partition)
        if tenure is None or tenure.lease != revoke.lease:
            return
        tenure.revoked = True
        tenure.waiting.clear()
        if revoke.over:
            tenure.over = True
            del self.tenures[revoke.partition]
        self.give_back(tenure)

    def on_hand(self, hand: facts.Hand) -> None:
        done = facts.Consumed(hand.sub, hand.source, len(hand.payload), hand.records)
        self.world.at(0, lambda: self.tell(done))
        tenure = self.tenures.get(hand.partition)
        assert hand.leased is not None
        if tenure is None or tenure.lease != hand.leased.lease or tenure.revoked or hand.sub != self.sub:
            return
        end = hand.base_offset + batch.read_header(hand.payload).count
        expected = tenure.waiting[-1] + 1 if tenure.waiting else tenure.next + tenure.working
        if max(hand.first, hand.base_offset) != expected:
            self.history.wrong.append(f"{hand.partition}: {hand.first} came where {expected} was next")
        tenure.waiting += range(max(hand.first, hand.base_offset), end)
        self.work(tenure)

    def work(self, tenure: Tenure) -> None:
        if self.dead or self.paused is not None or tenure.working or not tenure.waiting:
            return
        offset = tenure.waiting.pop(0)
        done = self.history.done(tenure.partition, before=tenure.lease + 1)
        if offset < done:
            where = f"{tenure.partition}@{offset} (lease {tenure.lease} of {self.number})"
            self.history.wrong.append(f"{where} was done when it was worked on")
        self.history.worked[tenure.partition].append((self.world.now, offset))
        tenure.working = True
        self.world.at(self.world.rng.choice([0.0, 0.001, 0.03]), lambda: self.worked(tenure, offset))

    def worked(self, tenure: Tenure, offset: int) -> None:
        tenure.working, tenure.next = False, offset + 1
        if self.dead or not self.joined:
            return
        if self.world.rng.random() < 0.5 or not tenure.waiting:
            self.ack(tenure, offset + 1)
        self.work(tenure)
        self.give_back(tenure)

    def ack(self, tenure: Tenure, end: int) -> None:
        tenure.acked, tenure.flying = end, tenure.flying + 1
        self.history.said[tenure.partition] = max(self.history.said[tenure.partition], end)
        ticket = self.settle(tenure, ACK, 0, end)
        self.when(ticket, lambda result: self.on_acked(tenure, end, result))

    def on_acked(self, tenure: Tenure, end: int, result: Any) -> None:
        tenure.flying -= 1
        if not isinstance(result, MeshqError) and not result:
            counted = self.history.counted[tenure.partition]
            counted[tenure.lease] = max(end, counted.get(tenure.lease, 0))
        self.give_back(tenure)

    def give_back(self, tenure: Tenure) -> None:
        if tenure.revoked and not (tenure.over or tenure.working or tenure.flying) and self.joined:
            if tenure.acked < tenure.next:
                self.ack(tenure, tenure.next)
                return
            tenure.over = True
            self.tenures.pop(tenure.partition, None)
            self.settle(tenure, RELEASE, tenure.acked, OFFSETS_END - 1)

    def settle(self, tenure: Tenure, verdict: int, first: int, end: int) -> int:
        ranges, where = [(first, end, tenure.lease)], (tenure.topic_id, tenure.partition)
        return self.ask(
            lambda t, d: facts.RecordsSettled(t, self.sub, *where, verdict, ranges, None, d), timeout=5.0
        )

    def when(self, ticket: int, then: Callable[[Any], None]) -> None:
        if ticket in self.results:
            then(self.results[ticket])
        else:
            self.world.at(0.002, lambda: self.when(ticket, then))


def is_on_a_majority(world: World, topic_id: bytes, partition: int, index: int) -> bool:
    slot = world.hosts[0].core.ctx.slot_of(PartitionKey(TopicId(topic_id), partition))
    have = sum(max(h.disk.log[slot], default=0) >= index for h in world.hosts)
    return 2 * have > (3 if len(world.hosts) >= 3 else 1)  # two peers: a voter and a mirror


def leader_of(world: World, key: PartitionKey) -> Host | None:
    slot = world.hosts[0].core.ctx.slot_of(key)
    for host in world.hosts:
        if host.up and slot in host.core.slots.hosts and host.core.slots.hosts[slot].leads:
            return host
    return None


def state_of(world: World, info: TopicInfo, partition: int) -> tuple[OrderedState | None, int]:
    """As the leader has it, and the end of the partition."""
    key = PartitionKey(TopicId(info.topic_id), partition)
    host = leader_of(world, key)
    if host is None:
        return None, -1
    slot = host.core.ctx.slot_of(key)
    state = host.core.slots.hosts[slot].stream.groups.get(GroupKey(key, "g"))
    assert state is None or isinstance(state, OrderedState)
    return state, host.core.slots.partition(slot, key).end


def is_done(world: World, info: TopicInfo) -> bool:
    states = [state_of(world, info, p) for p in range(PARTITIONS)]
    return all(state is not None and state.floor == end for state, end in states)


def is_shared_out(members: list[Member]) -> bool:
    """Each partition is with one of those that take part, and their shares differ by one at most."""
    live = [m for m in members if m.joined]
    held = Counter(p for m in live for p, t in m.tenures.items() if not t.revoked)
    shares = [sum(not t.revoked for t in m.tenures.values()) for m in live]
    return set(held.values()) == {1} and len(held) == PARTITIONS and max(shares) - min(shares) <= 1


def begin(seed: int, peers: int, members: int) -> tuple[World, History, list[Member], Client, TopicInfo]:
    world, history = World(seed, peers=peers), History()
    writer = Client(world)
    made = {"topic": "t", "partitions": PARTITIONS}
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.create", made, d)))
    info = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    return world, history, [Member(world, history, n) for n in range(members)], writer, info


def publish(writer: Client, info: TopicInfo, number: int) -> None:
    records = [batch.RawRecord(None, b"%d.%d" % (number, i)) for i in range(1 + number % 5)]
    body = batch.seal(records, base_timestamp_ms=0)
    writer.ask(lambda t, d: facts.BatchSealed(t, 1, info, number % PARTITIONS, body, d, 8))


def play(seed: int) -> tuple[World, History, list[Member], TopicInfo]:
    world, history, members, writer, info = begin(seed, 1 + seed % 3, 4)
    rng = world.rng
    for number in range(80):
        world.at(number * 0.04, lambda n=number: publish(writer, info, n))  # type: ignore[misc]
    for n, member in enumerate(members):
        world.at(rng.uniform(0, 0.5) * n, member.take_part)
    for _ in range(rng.randrange(8)):
        client, at = rng.choice([writer, *members]), rng.uniform(0, 3)
        world.at(at, lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])  # type: ignore[misc]
    for _ in range(rng.randrange(3)):
        host, at = rng.choice(world.hosts), rng.uniform(0, 3)
        world.at(at, lambda h=host: h.up and h.crash())  # type: ignore[misc]
        world.at(at + rng.uniform(0.01, 0.5), lambda h=host: h.up or h.start())  # type: ignore[misc]
    for _ in range(rng.randrange(4)):
        member, at = rng.choice(members), rng.uniform(0.3, 3)
        world.at(at, member.leave)
        world.at(at + rng.uniform(0, 1), member.take_part)
    for _ in range(rng.randrange(3)):
        member, long = rng.choice(members), rng.uniform(0.1, 2.5)
        world.at(rng.uniform(0.3, 3), lambda m=member, s=long: m.pause(s))  # type: ignore[misc]
    if rng.random() < 0.6:
        world.at(rng.uniform(0.5, 3), members[rng.randrange(1, 4)].die)
    world.run_for(4.0)
    for host in world.hosts:
        if not host.up:
            host.start()
    for member in members:
        member.take_part()
    world.run(lambda: len(writer.results) >= 82, most_s=60)
    world.run(lambda: is_done(world, info), most_s=60)
    world.run(lambda: is_shared_out(members), most_s=60)
    return world, history, members, info


def check(history: History) -> None:
    assert history.wrong == []
    for partition, began in history.began.items():
        counted = history.counted[partition]
        for lease, offset in began.items():
            before = [end for other, end in counted.items() if other < lease]
            assert max(before, default=0) <= offset, (
                f"{partition}: another lease counted behind {lease}'s beginning"
            )


def check_seed(seed: int) -> None:
    world, history, _, info = play(seed)
    check(history)
    total = 0
    for partition in range(PARTITIONS):
        key = PartitionKey(TopicId(info.topic_id), partition)
        world.run(lambda k=key: is_level(world, k))  # type: ignore[misc]
        end = len(committed(world.hosts[0], key))
        total += end
        worked = {offset for _, offset in history.worked[partition]}
        assert worked == set(range(end)), f"{partition}: skipped {set(range(end)) - worked}"
    assert total >= 80
    slots = [h.core.slots.hosts for h in world.hosts]
    for slot in slots[0]:
        rows = [h[slot].stream.groups for h in slots if slot in h]
        states = [{k: s.encode() for k in table if (s := table.get(k)) is not None} for table in rows]
        assert all(s == states[0] for s in states), "the same on every replica"


@pytest.mark.parametrize("seed", range(12))
def test_partitions_are_one_members_at_a_time_and_done_in_order(seed: int) -> None:
    check_seed(seed)


# ------------------------------------------------------------------------------------ how long it takes
def settled(
    seed: int, peers: int = 3, members: int = 3
) -> tuple[World, History, list[Member], Client, TopicInfo]:
    world, history, those, writer, info = begin(seed, peers, members)
    for member in those:
        member.take_part()
    world.run(lambda: is_shared_out(those), most_s=20)
    world.run_for(3.0)  # past the time in which a new leader takes nothing back
    assert is_shared_out(those)
    return world, history, those, writer, info


def seconds_until(world: World, until: Callable[[], bool]) -> float:
    began = world.now
    world.run(until, most_s=30)
    return world.now - began


@pytest.mark.parametrize("seed", range(4))
def test_what_a_member_leaves_is_with_others_within_200_ms(seed: int) -> None:
    world, history, members, _, _ = settled(seed)
    members[0].leave()
    assert seconds_until(world, lambda: is_shared_out(members)) <= 0.2
    check(history)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_dead_member_had_is_with_others_within_its_timeout_and_a_second(seed: int) -> None:
    world, history, members, _, _ = settled(seed)
    members[0].die()
    took = seconds_until(world, lambda: is_shared_out(members))
    assert TIMEOUT_MS / 1000 * 0.7 <= took <= TIMEOUT_MS / 1000 + 1
    check(history)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_member_had_that_stands_still_is_with_others_in_the_same_time(seed: int) -> None:
    world, history, members, _, _ = settled(seed)
    members[0].pause(TIMEOUT_MS / 1000 + 2)

    def others_have_it() -> bool:
        held = {p for m in members[1:] for p, t in m.tenures.items() if not t.revoked}
        return held == set(range(PARTITIONS))

    assert seconds_until(world, others_have_it) <= TIMEOUT_MS / 1000 + 1
    world.run_for(3.0)
    assert seconds_until(world, lambda: is_shared_out(members)) <= 1.0, "it is one of them again"
    check(history)


@pytest.mark.parametrize("seed", range(4))
def test_partitions_led_by_a_peer_that_dies_are_worked_on_again_within_two_seconds(seed: int) -> None:
    world, history, members, writer, info = settled(seed)
    keys = [PartitionKey(TopicId(info.topic_id), p) for p in range(PARTITIONS)]
    leads = Counter(
        leader for k in keys if (leader := leader_of(world, k)) is not None and leader.identity.name != "p0"
    )
    victim = leads.most_common(1)[0][0]
    hit = [p for p, k in enumerate(keys) if leader_of(world, k) is victim]
    members = [m for m in members if m.key != victim.identity.curve_public]
    before = {p: len(history.worked[p]) for p in hit}
    victim.crash()
    for number in range(40):
        world.at(number * 0.05, lambda n=number: publish(writer, info, n))  # type: ignore[misc]
    assert seconds_until(world, lambda: all(len(history.worked[p]) > before[p] for p in hit)) <= 2.0
    check(history)
