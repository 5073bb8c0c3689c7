"""Whole peers under all that can strike them at once: producers, readers and groups get what is promised.

Two clients publish, two read, three share a group; faults.py strikes. When it has ended everybody comes to
have everything, as the promises say: a receipt's records are there once, at their offsets, in order (P1 to
P3); whoever reads gets all of them, none twice, none damaged; the group works through all of them (P4).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import MeshqError, OutcomeUnknown
from meshq.ids import PartitionKey, TopicId
from meshq.messages import EARLIEST, Accepted, TopicInfo
from tests.peer.faults import Nemesis
from tests.peer.test_groups_simulated import History, Worker, is_done
from tests.peer.test_snapshots import counted, squeeze
from tests.peer.world import Client, World, committed, is_level

PARTITIONS = 3
BATCHES = 50
SECONDS = 2.0


@dataclass
class Played:
    world: World
    nemesis: Nemesis
    info: TopicInfo
    writers: list[Client]
    readers: list[Client]
    history: History
    sent: list[dict[int, tuple[int, bytes]]] = field(default_factory=lambda: [{}, {}])  # partition and value

    def partitions(self) -> list[PartitionKey]:
        return [PartitionKey(TopicId(self.info.topic_id), p) for p in range(PARTITIONS)]


def play(seed: int) -> Played:
    world = World(seed, peers=(3, 3, 2, 1)[seed % 4])
    rng, count = world.rng, len(world.hosts)
    writers = [Client(world, seed_peer=n % count) for n in range(2)]
    made = {"topic": "t", "partitions": PARTITIONS}
    writers[0].wait(writers[0].ask(lambda t, d: facts.AskRequested(t, "topic.create", made, d)))
    info = writers[0].wait(writers[0].ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    nemesis = Nemesis(world, seconds=SECONDS)
    readers = [Client(world, seed_peer=n % count) for n in range(2)]
    played = Played(world, nemesis, info, writers, readers, History())
    for reader in readers:
        start, credit = facts.Start(EARLIEST), rng.choice([1_000, 100_000])
        begin = facts.SubscribeRequested(1, "t", start, credit, 50, 1_000_000)
        world.at(rng.uniform(0, 1), lambda r=reader, b=begin: r.tell(b))  # type: ignore[misc]
    workers = [Worker(world, played.history, n) for n in range(3)]
    for worker in workers:
        world.at(rng.uniform(0, 0.5), worker.take_part)

    def publish(which: int, number: int) -> None:
        value, partition = b"%d.%d" % (which, number), rng.randrange(PARTITIONS)
        body = batch.seal([batch.RawRecord(None, value)], base_timestamp_ms=0)
        timeout = rng.choice([0.05, 30.0, 30.0])
        ticket = writers[which].ask(
            lambda t, d: facts.BatchSealed(t, partition, info, partition, body, d, 8), timeout=timeout
        )
        played.sent[which][ticket] = (partition, value)

    for number in range(BATCHES):
        for which in range(2):
            at = number * SECONDS / BATCHES
            world.at(at, lambda w=which, n=number: publish(w, n))  # type: ignore[misc]
    for _ in range(rng.randrange(6)):
        client = rng.choice([*writers, *readers, *workers])
        at = rng.uniform(0, SECONDS)
        world.at(at, lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])  # type: ignore[misc]
    world.run_for(SECONDS + rng.uniform(0.0, 1.0))
    nemesis.heal()
    for worker in workers:
        worker.good = True
    world.run(lambda: all(t in c.results for c, s in zip(writers, played.sent, strict=True) for t in s))
    for key in played.partitions():
        world.run(lambda k=key: is_level(world, k))  # type: ignore[misc]
    world.run(lambda: is_done(world, info))
    return played


def check_seed(seed: int) -> None:
    check(play(seed))


def check(played: Played) -> None:
    world, keys = played.world, played.partitions()
    played.nemesis.mend(keys)
    logs = [[committed(host, key) for host in world.hosts] for key in keys]
    for copies in logs:
        assert all(copy == copies[0] for copy in copies), "every replica has the same"
        assert len(set(copies[0])) == len(copies[0]), "no record twice"
    check_receipts(played, [copies[0] for copies in logs])
    for reader in played.readers:
        for partition, copies in enumerate(logs):
            want = list(enumerate(copies[0]))
            world.run(lambda r=reader, p=partition, w=want: len(r.read["t", p]) >= len(w))  # type: ignore[misc]
            assert reader.read["t", partition] == want
        assert reader.ended == []
    assert played.history.seen_again == [], "handed out after its acknowledgement had returned"
    for partition, copies in enumerate(logs):
        for offset in range(len(copies[0])):
            assert (partition, offset) in played.history.handed, "skipped"


def check_receipts(played: Played, logs: list[list[bytes]]) -> None:
    for client, tickets in zip(played.writers, played.sent, strict=True):
        accepted: list[list[tuple[int, int]]] = [[] for _ in range(PARTITIONS)]
        for ticket, (partition, value) in tickets.items():
            result = client.results[ticket]
            if isinstance(result, Accepted):
                assert logs[partition][result.base_offset] == value
                accepted[partition].append((ticket, result.base_offset))
            elif not isinstance(result, OutcomeUnknown):
                assert isinstance(result, MeshqError)
                assert value not in logs[partition], f"refused with {result!r}, yet stored"
        for found in accepted:
            offsets = [offset for _, offset in sorted(found)]
            assert offsets == sorted(offsets), "one producer's order is kept"


@pytest.mark.parametrize("seed", range(12))
def test_all_promises_hold_under_all_faults(seed: int) -> None:
    check_seed(seed)


@pytest.mark.parametrize("seed", range(12, 20))
def test_and_with_snapshots_in_nearly_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    squeeze(monkeypatch.setattr)
    check_seed(seed)


def test_every_fault_strikes_and_most_records_get_through() -> None:
    struck: Counter[str] = Counter()
    accepted = total = mended = 0
    for seed in range(0, 40, 4):
        played = play(seed)
        played.nemesis.mend(played.partitions())
        struck.update(played.nemesis.struck)
        results = [c.results[t] for c, s in zip(played.writers, played.sent, strict=True) for t in s]
        total += len(results)
        accepted += sum(isinstance(r, Accepted) for r in results)
        mended += counted(played.world)["batches_mended"]
    assert accepted > 0.5 * total
    assert mended > 0
    assert len(struck) >= 9, struck
