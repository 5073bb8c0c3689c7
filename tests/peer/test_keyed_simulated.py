"""Keyed groups over real cores: what holds of any group holds, and one key is worked on in order, by one at a
time."""

from __future__ import annotations

from collections import defaultdict

import pytest

from meshq.batch import read_records
from meshq.client import facts
from meshq.ids import TopicId
from meshq.messages import ACK, EXTEND, KEYED, NACK, REJECT, RELEASE
from tests.peer.test_groups_simulated import (
    ACK_WAIT_MS,
    History,
    Place,
    Worker,
    check_seed,
    letters_of,
    state_of,
)
from tests.peer.world import World

KEYS = 5
FORGOTTEN = 0xFF
Waiting = tuple[int, facts.Leased, Place, float]  # until when
MARGIN_S = 0.1  # a push may be that long on its way, and the time that a record is out begins before it


class KeyedWorker(Worker):
    """One record of a key after another; what comes back, or is too late, takes what waits behind it
    along."""

    mode = KEYED

    @staticmethod
    def key(number: int, place: int) -> bytes | None:
        chosen = (number * 7 + place * 3) % (KEYS + 1)
        return b"k%d" % chosen if chosen else None

    def __init__(self, world: World, history: History, number: int) -> None:
        super().__init__(world, history, number)
        self.order: list[tuple[str, Place]] = ORDER.setdefault(id(history), [])
        self.waiting: dict[tuple[int, bytes], list[Waiting]] = {}

    def on_hand(self, hand: facts.Hand) -> None:
        assert hand.leased is not None
        keys = [r.key for r in read_records(hand.payload)]
        for first, end, _ in hand.leased.ranges:
            for offset in range(first, end):
                KEY_OF[id(self.history)][hand.partition, offset] = keys[offset - hand.base_offset]
        self.check_holders(hand)
        super().on_hand(hand)

    def check_holders(self, hand: facts.Hand) -> None:
        """By the leader's state: a key is with one member."""
        assert hand.leased is not None
        info = self.world.hosts[0].core.ctx.registry.topics.get(TopicId(hand.leased.topic_id))
        state, _ = state_of(self.world, info, hand.partition) if info is not None else (None, 0)
        holders: dict[bytes, set[bytes]] = defaultdict(set)
        for first, end, lease in state.leased.runs() if state is not None else ():
            for offset in range(first, end):
                key = KEY_OF[id(self.history)].get((hand.partition, offset))
                if key is not None:
                    holders[key].add(lease.member)
        assert all(len(members) == 1 for members in holders.values()), "a key is with one member at a time"

    def work(self, sub: int, leased: facts.Leased, place: Place) -> None:
        key = KEY_OF[id(self.history)][place]
        if key is None:
            super().work(sub, leased, place)
            return
        queue = self.waiting.setdefault((place[0], key), [])
        queue.append((sub, leased, place, self.world.now + ACK_WAIT_MS / 1000 - MARGIN_S))
        if len(queue) == 1:
            self.begin(place[0], key)

    def begin(self, partition: int, key: bytes) -> None:
        queue = self.waiting.get((partition, key), [])
        if not queue:
            return
        _, _, place, until = queue[0]
        if self.world.now >= until:
            del self.waiting[partition, key]  # and all behind it
            return
        self.order.append(("work", place))
        rng = self.world.rng
        verdict = (
            ACK if self.good else rng.choice([ACK] * 10 + [FORGOTTEN, EXTEND, NACK, NACK, RELEASE, REJECT])
        )
        slow = rng.choice([0, rng.uniform(0, 0.05), rng.uniform(0, 0.6)])
        if verdict == FORGOTTEN:
            self.world.at(until - self.world.now, lambda: self.forget(partition, key, queue))
        else:
            wait = rng.uniform(0, 0.02) if self.good else slow
            self.world.at(wait, lambda: self.end(partition, key, queue, verdict))

    def forget(self, partition: int, key: bytes, queue: list[Waiting]) -> None:
        if self.waiting.get((partition, key)) is queue:
            del self.waiting[partition, key]

    def end(self, partition: int, key: bytes, queue: list[Waiting], verdict: int) -> None:
        sub, leased, place, until = queue[0]
        self.settle(sub, leased, place, verdict)
        if verdict == EXTEND:
            self.world.at(0.1, lambda: self.end(partition, key, queue, ACK))
            return
        if verdict in (ACK, REJECT):
            self.order.append(("said", place))
        if self.waiting.get((partition, key)) is not queue:
            return
        if verdict in (ACK, REJECT) and self.world.now < until:
            queue.pop(0)
            if not queue:
                del self.waiting[partition, key]
            self.begin(partition, key)
        else:
            del self.waiting[partition, key]


ORDER: dict[int, list[tuple[str, Place]]] = {}
KEY_OF: dict[int, dict[Place, bytes | None]] = defaultdict(dict)


def check(seed: int) -> None:
    ORDER.clear()
    KEY_OF.clear()
    world, history, info = check_seed(seed, KeyedWorker)
    letters = {place for places in letters_of(world, info) for place in places}
    keys = {place: key for place, key in all_keys(world, info.topic_id).items() if key is not None}
    behind: dict[tuple[int, bytes], list[Place]] = defaultdict(list)
    for place in sorted(keys):
        behind[place[0], keys[place]].append(place)
    said: set[Place] = set()
    for what, place in ORDER[id(history)]:
        if what == "said":
            said.add(place)
            continue
        before = [x for x in behind[place[0], keys[place]] if x < place]
        missing = [x for x in before if x not in said and x not in letters]
        assert not missing, f"{place} was worked on before {missing} of its key was done"


def all_keys(world: World, topic_id: bytes) -> dict[Place, bytes | None]:
    return {
        (key.partition, stored.base_offset + i): record.key
        for host in world.hosts
        for key, payloads in host.disk.payloads.items()
        if key.topic_id == topic_id
        for stored in payloads
        for i, record in enumerate(read_records(stored.data))
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_key_is_worked_on_in_order_and_by_one_at_a_time(seed: int) -> None:
    check(seed)
