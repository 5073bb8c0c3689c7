"""Groups over real cores: whatever breaks, a record is handed out until it is acknowledged, and no more."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import MeshqError, OutcomeUnknown
from meshq.ids import PartitionKey, TopicId
from meshq.messages import ACK, EARLIEST, EXTEND, NACK, QUEUE, REJECT, RELEASE, TopicInfo
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.table import GroupKey
from tests.peer import test_snapshots as snapshots
from tests.peer.world import Client, World, committed, committed_records, is_level

PARTITIONS = 3
ACK_WAIT_MS = 400
MAX_DELIVER = 4
Place = tuple[int, int]  # partition, offset


@dataclass
class History:
    handed: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))  # attempts
    leases: dict[Place, set[int]] = field(default_factory=lambda: defaultdict(set))
    done: set[Place] = field(default_factory=set)  # the acknowledgement has returned
    under: dict[Place, int] = field(default_factory=dict)  # ... for a record held under this lease
    unknown: set[Place] = field(default_factory=set)
    seen_again: list[Place] = field(default_factory=list)
    era: int = 0  # what was said in another one may count or not: the group was reset
    resets: int = 0  # under way: each waits until nothing is dying, and what is said meanwhile may be undone

    def reset(self) -> None:
        self.era += 1
        self.unknown |= self.done
        self.done.clear()
        self.under.clear()


class Worker(Client):
    """Works on what it is handed: most of it well, some of it badly, some of it never."""

    mode = QUEUE

    @staticmethod
    def key(number: int, place: int) -> bytes | None:
        """Of a record in batch `number`."""
        return None

    def __init__(self, world: World, history: History, number: int) -> None:
        super().__init__(world, seed_peer=number % len(world.hosts))
        self.history, self.good = history, False
        self.member = bytes([number]) * 16

    def take_part(self, sub: int = 1) -> None:
        group = facts.Group("g", self.member, self.mode, ACK_WAIT_MS, MAX_DELIVER)
        start = facts.Start(EARLIEST)
        self.tell(facts.SubscribeRequested(sub, "t", start, 100_000, 30, 1_000_000 + sub, (), group))

    def on_hand(self, hand: facts.Hand) -> None:
        assert hand.leased is not None
        for first, end, attempts in hand.leased.ranges:
            for offset in range(first, end):
                place = (hand.partition, offset)
                # One that was handed out before and comes later was held up on its way.
                if place in self.history.done and hand.leased.lease > self.history.under[place]:
                    self.history.seen_again.append(place)
                self.history.handed[place].append(attempts)
                self.history.leases[place].add(hand.leased.lease)
                self.work(hand.sub, hand.leased, place)

    def work(self, sub: int, leased: facts.Leased, place: Place) -> None:
        rng = self.world.rng
        verdict = (
            ACK if self.good else rng.choice([ACK] * 8 + [NACK, NACK, NACK, RELEASE, EXTEND, REJECT, None])
        )
        wait = (
            rng.uniform(0, 0.02) if self.good else rng.choice([0, rng.uniform(0, 0.05), rng.uniform(0, 0.6)])
        )
        if verdict is not None:
            self.world.at(wait, lambda: self.settle(sub, leased, place, verdict))
        if verdict == EXTEND:
            self.world.at(wait + 0.3, lambda: self.settle(sub, leased, place, ACK))

    def settle(self, sub: int, leased: facts.Leased, place: Place, verdict: int) -> None:
        partition, offset = place
        ranges, delay = [(offset, offset + 1, leased.lease)], None if self.world.rng.random() < 0.5 else 20
        event = facts.RecordsSettled(0, sub, leased.topic_id, partition, verdict, ranges, delay, 0)
        ticket = self.ask(lambda t, d: facts.RecordsSettled(t, *_rest(event), d), 5.0)  # type: ignore[arg-type]
        if verdict == ACK:
            self.on_result(ticket, place, leased.lease, self.history.era)

    def on_result(self, ticket: int, place: Place, lease: int, era: int) -> None:
        if ticket not in self.results:
            self.world.at(0.005, lambda: self.on_result(ticket, place, lease, era))
            return
        result = self.results[ticket]
        if isinstance(result, MeshqError) or era != self.history.era or self.history.resets:
            self.history.unknown.add(place)
        elif not result:
            self.history.done.add(place)
            self.history.under.setdefault(place, lease)


def _rest(event: facts.RecordsSettled) -> tuple[object, ...]:
    e = event
    return e.sub, e.topic_id, e.partition, e.verdict, e.ranges, e.delay_ms


def state_of(world: World, info: TopicInfo, partition: int) -> tuple[GroupState | None, int]:
    """As the leader has it, and the end of the partition."""
    key = PartitionKey(TopicId(info.topic_id), partition)
    slot = world.hosts[0].core.ctx.slot_of(key)
    for host in world.hosts:
        if host.up and slot in host.core.slots.hosts and host.core.slots.hosts[slot].leads:
            stream = host.core.slots.hosts[slot].stream
            return stream.groups.get(GroupKey(key, "g")), host.core.slots.partition(slot, key).end
    return None, -1


def is_done(world: World, info: TopicInfo) -> bool:
    states = [state_of(world, info, p) for p in range(PARTITIONS)]
    return all(state is not None and state.floor == end for state, end in states)


def letters_of(world: World, info: TopicInfo) -> tuple[list[Place], list[Place]]:
    """Where the dead letters are from that were put back, and those that were not."""
    dead = world.hosts[0].core.ctx.registry.topic("_dead.g.t")
    back: list[Place] = []
    found: list[Place] = []
    for partition in range(PARTITIONS if dead is not None else 0):
        assert dead is not None
        key = PartitionKey(TopicId(dead.topic_id), partition)
        world.run(lambda k=key: is_level(world, k))  # type: ignore[misc]
        state, _ = state_of(world, info, partition)
        assert state is not None
        for number, record in enumerate(committed_records(world.hosts[0], key)):
            origin = (record.headers or {})["meshq-origin"].decode()
            assert origin.startswith(f"t/{partition}@")
            place = partition, int(origin.partition("@")[2])
            (back if number < state.redriven else found).append(place)
    return back, found


def play(seed: int, kind: type[Worker], resets: int = 0) -> tuple[World, History, TopicInfo]:
    world = World(seed, peers=1 + seed % 3)
    writer, rng, history = Client(world), world.rng, History()
    made = {"topic": "t", "partitions": PARTITIONS}
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.create", made, d)))
    info = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    workers = [kind(world, history, n) for n in range(3)]
    for n, worker in enumerate(workers):
        world.at(rng.uniform(0, 0.5) * n, worker.take_part)

    def publish(number: int) -> None:
        records = [
            batch.RawRecord(kind.key(number, i), b"%d.%d" % (number, i)) for i in range(1 + number % 7)
        ]
        body = batch.seal(records, base_timestamp_ms=0)
        writer.ask(lambda t, d: facts.BatchSealed(t, 1, info, number % PARTITIONS, body, d, 8))

    for number in range(60):
        world.at(number * 0.02, lambda n=number: publish(n))  # type: ignore[misc]
    for _ in range(rng.randrange(12)):
        client, at = rng.choice([writer, *workers]), rng.uniform(0, 1.5)
        world.at(at, lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])  # type: ignore[misc]
    for _ in range(rng.randrange(4)):
        host, at = rng.choice(world.hosts), rng.uniform(0, 1.5)
        world.at(at, lambda h=host: h.up and h.crash())  # type: ignore[misc]
        world.at(at + rng.uniform(0.01, 0.5), lambda h=host: h.up or h.start())  # type: ignore[misc]
    if rng.random() < 0.5:
        leaver, at = rng.choice(workers), rng.uniform(0.3, 1.5)
        world.at(at, lambda: leaver.tell(facts.Unsubscribed(1)))
        world.at(at + rng.uniform(0, 0.5), lambda: leaver.take_part(2))
    for _ in range(rng.randrange(4)):
        args = {"topic": "t", "group": "g", "limit": rng.choice([1, 3, 100])}
        world.at(rng.uniform(0.5, 2.5), lambda a=args: redrive(rng.choice(workers), a))  # type: ignore[misc]
    for _ in range(resets):
        world.at(rng.uniform(0.5, 2.4), lambda: reset(rng.choice(workers), history))
    world.run_for(2.5)
    for host in world.hosts:
        if not host.up:
            host.start()
    for worker in workers:
        worker.good = True
    world.run(lambda: len(writer.results) >= 62)
    world.run(lambda: is_done(world, info))
    world.run_for(6)  # whatever was said of records is answered
    return world, history, info


def redrive(client: Client, args: dict[str, object]) -> None:
    client.ask(lambda t, d: facts.AskRequested(t, "group.redrive", args, d), 5.0)


def reset(client: Client, history: History) -> None:
    """From its beginning; whatever was said until this is answered may have come before it, or behind."""
    history.reset()
    history.resets += 1
    args = {"topic": "t", "group": "g", "to": "earliest"}
    ticket = client.ask(lambda t, d: facts.AskRequested(t, "group.reset", args, d), 12.0)

    def answered() -> None:
        if ticket in client.results:
            if not isinstance(client.results[ticket], OutcomeUnknown):  # else it may still be to come
                history.resets -= 1
            history.reset()
        else:
            client.world.at(0.005, answered)

    answered()


def check_seed(
    seed: int, kind: type[Worker] = Worker, *, resets: int = 0
) -> tuple[World, History, TopicInfo]:
    world, history, info = play(seed, kind, resets)
    total, (redriven, letters) = 0, letters_of(world, info)
    if not resets:  # else a record may die in each life
        assert len(set(letters)) == len(letters), "each letter once, and then not before it was put back"
        assert not history.done & set(letters), "what was acknowledged is no dead letter"
    assert set(redriven) <= history.done | history.unknown | set(letters), "what was put back was handed out"
    for partition in range(PARTITIONS):
        key = PartitionKey(TopicId(info.topic_id), partition)
        world.run(lambda k=key: is_level(world, k))  # type: ignore[misc]
        end = len(committed(world.hosts[0], key))
        total += end
        for offset in range(end):
            place = (partition, offset)
            assert place in history.done | history.unknown | set(letters), f"{place} was skipped"
    assert total >= 60
    assert history.seen_again == [], "handed out after its acknowledgement had returned"
    for place, attempts in history.handed.items():
        assert max(attempts) <= MAX_DELIVER, f"{place} was handed out more often than it may be"
        assert len(history.leases[place]) == len(attempts), f"{place} was handed out twice under one lease"
    slots = [h.core.slots.hosts for h in world.hosts]
    for slot in slots[0]:
        rows = [h[slot].stream.groups for h in slots if slot in h]
        states = [{k: s.encode() for k in table if (s := table.get(k)) is not None} for table in rows]
        assert all(s == states[0] for s in states), "the same on every replica"
    return world, history, info


@pytest.mark.parametrize("seed", [20, 21, 25, 30])  # 25 and 30: letters from before a reset, put back
def test_a_reset_under_way_skips_nothing_and_ends_all_leases(seed: int) -> None:
    check_seed(seed, resets=2)


def test_dead_letters_travel_in_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots.squeeze(monkeypatch.setattr)
    check_seed(5)


@pytest.mark.parametrize("seed", range(12))
def test_each_record_is_handed_out_until_it_is_acknowledged_and_no_more(seed: int) -> None:
    check_seed(seed)
