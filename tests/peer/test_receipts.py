"""When a receipt leaves, and what it promises: acks, `copies_min`, and the mirror of a mesh of two."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import NotEnoughCopies, OutcomeUnknown, Overloaded, UsageError
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.messages import ACKS_LEADER, ACKS_NONE, ACKS_QUORUM, Accepted, TopicInfo
from meshq.peer.core import receipts
from meshq.replication.mirrors import PATIENCE_S
from meshq.replication.placement import LEVEL_COUNT
from tests.peer.world import Client, Host, World, is_level


class Bench:
    """A topic of one partition in a settled mesh, its leader, and a client beside it."""

    def __init__(self, seed: int, peers: int, **settings: Any) -> None:
        self.world = World(seed, peers=peers, slots=8)
        self.client = Client(self.world)
        self.info: TopicInfo = self.make("t", **settings)
        self.key = PartitionKey(TopicId(self.info.topic_id), 0)
        self.slot: Slot = self.world.hosts[0].core.ctx.slot_of(self.key)
        assert isinstance(self.send(), Accepted)
        self.world.run(lambda: is_level(self.world, self.key))
        self.world.run_for(5.0)

    def make(self, name: str, **settings: Any) -> Any:
        arguments = {"topic": name, "partitions": 1, **settings}
        self.client.wait(self.client.ask(lambda t, d: facts.AskRequested(t, "topic.create", arguments, d)))
        return self.client.wait(self.client.ask(lambda t, d: facts.TopicWanted(t, name, d)))

    def begin(self, acks: int = ACKS_QUORUM, *, timeout: float = 30.0) -> int:
        body = batch.seal([batch.RawRecord(None, b"x")], base_timestamp_ms=0)
        return self.client.ask(
            lambda t, d: facts.BatchSealed(t, 1, self.info, 0, body, d, 8, acks), timeout=timeout
        )

    def begin_on(self, lane: int) -> int:
        """By a producer of its own, so that it waits for no other batch."""
        body = batch.seal([batch.RawRecord(None, b"x")], base_timestamp_ms=0)
        return self.client.ask(lambda t, d: facts.BatchSealed(t, 100 + lane, self.info, 0, body, d, 8))

    def send(self, acks: int = ACKS_QUORUM, *, timeout: float = 30.0) -> Any:
        return self.client.wait(self.begin(acks, timeout=timeout))

    @property
    def leader(self) -> Host:
        (found,) = [h for h in self.world.hosts if h.up and self.replica(h) and self.replica(h).serves]
        return found

    @property
    def others(self) -> list[Host]:
        return [h for h in self.world.hosts if h is not self.leader]

    def replica(self, host: Host) -> Any:
        hosted = host.core.slots.hosts.get(self.slot)
        return hosted.replica if hosted else None


@pytest.mark.parametrize("seed", range(3))
def test_a_receipt_of_the_leader_alone_has_no_offset_and_does_not_wait_for_others(seed: int) -> None:
    bench = Bench(seed, 3)
    leader = bench.leader
    for other in bench.others:
        other.crash()
    receipt = bench.send(ACKS_LEADER)
    assert (receipt.base_offset, receipt.copies) == (None, 1)
    assert leader.core.slots.hosts[bench.slot].replica.log.durable > 0
    assert leader.disk.log[bench.slot], "on its disk"
    ticket = bench.begin(ACKS_QUORUM, timeout=5.0)
    bench.world.run_for(4.0)
    assert ticket not in bench.client.results, "that one waits for a majority"


def test_a_receipt_of_the_leader_waits_for_its_disk() -> None:
    bench = Bench(1, 3)
    leader = bench.leader
    held, leader.disk.sync = [], lambda: held.append(1) or []  # type: ignore[method-assign,func-returns-value]
    one, none = bench.begin(ACKS_LEADER), bench.begin(ACKS_NONE)
    bench.world.run(lambda: none in bench.client.results, most_s=0.3)
    assert (bench.client.results[none].base_offset, bench.client.results[none].copies) == (None, 0)
    assert one not in bench.client.results


def test_a_repeat_at_the_leader_is_stored_once() -> None:
    bench = Bench(2, 3)
    ticket = bench.begin(ACKS_LEADER)
    for key in bench.client.links():
        bench.world.at(0.0015, lambda key=key: bench.client.cut(key))
    assert bench.client.wait(ticket).base_offset is None
    assert bench.send().base_offset == 2


def test_fewer_copies_than_the_topic_asks_for_are_refused_before_anything_is_stored() -> None:
    bench = Bench(3, 3, copies_min=3)
    assert bench.send().copies == 3
    end = bench.leader.core.slots.partition(bench.slot, bench.key).end
    bench.others[0].crash()
    bench.world.run_for(3.0)
    error = bench.send(timeout=2.0)
    assert isinstance(error, NotEnoughCopies), error
    assert "3 copies" in str(error) and error.retriable
    assert bench.leader.core.slots.partition(bench.slot, bench.key).end == end
    for host in bench.world.hosts:
        if not host.up:
            host.start()
    assert bench.send().copies == 3, "and goes on by itself when the peer is back"


@pytest.mark.parametrize("peers", [1, 2])
def test_more_copies_than_there_are_peers_is_said_with_the_command_that_mends_it(peers: int) -> None:
    bench = Bench(peers, peers)
    bench.info = bench.make("wide", copies_min=3)
    error = bench.send(timeout=2.0)
    assert isinstance(error, NotEnoughCopies)
    assert f"the mesh has {peers} peer" in str(error) and "`copies_min`" in str(error)
    assert f"`meshq topic set wide --copies-min {peers}`" in str(error)


def test_a_peer_without_room_is_no_copy_to_count_on() -> None:
    bench = Bench(6, 3, copies_min=3)
    other = bench.others[0]
    other.disk.full = True
    bench.world.run(lambda: other.identity.peer_id in bench.leader.core.slots.full)
    end = bench.leader.core.slots.partition(bench.slot, bench.key).end
    assert isinstance(bench.send(timeout=2.0), NotEnoughCopies)
    assert bench.leader.core.slots.partition(bench.slot, bench.key).end == end
    other.disk.full = False
    assert bench.send().copies == 3


def test_a_copy_that_does_not_come_leaves_the_outcome_open() -> None:
    bench = Bench(4, 3, copies_min=3)
    ticket = bench.begin(timeout=60.0)
    victim = bench.others[0]
    victim.disk.sync = list  # type: ignore[method-assign]  # its disk does not come to an end
    bench.world.run(lambda: ticket in bench.client.results or ticket in bench.client.doubts, most_s=60.0)
    said = bench.client.results.get(ticket) or bench.client.doubts.get(ticket)
    assert isinstance(said, OutcomeUnknown), said


def test_no_more_copies_may_be_asked_for_than_the_mesh_keeps() -> None:
    bench = Bench(5, 3)
    more = {"topic": "u", "copies_min": 4}
    said = bench.client.wait(bench.client.ask(lambda t, d: facts.AskRequested(t, "topic.create", more, d)))
    assert isinstance(said, UsageError)
    change = {"topic": "t", "copies_min": 2}
    said = bench.client.wait(bench.client.ask(lambda t, d: facts.AskRequested(t, "topic.set", change, d)))
    assert said["copies_min"] == 2


@pytest.mark.parametrize("seed", range(3))
def test_the_mirror_of_two_is_waited_for_while_it_is_there(seed: int) -> None:
    bench = Bench(seed, 2)
    assert [bench.send().copies for _ in range(5)] == [2] * 5
    (mirror,) = bench.others
    stored = len(mirror.disk.payloads[bench.key])
    assert stored == 6, "what was acknowledged is on both"
    mirror.crash()
    assert bench.send(timeout=10.0).copies == 1
    mirror.start()
    bench.world.run(lambda: is_level(bench.world, bench.key) and bench.send().copies == 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_mirror_that_is_cut_off_is_waited_for_no_longer_than_it_is_supported(seed: int) -> None:
    bench = Bench(seed, 2)
    sync = bench.others[0].disk.sync
    bench.others[0].disk.sync = list  # type: ignore[method-assign]
    begun = bench.world.now
    assert bench.send().copies == 1
    assert bench.world.now - begun < 3.0
    assert sync is not None


def test_a_mirror_whose_disk_is_full_does_not_hold_up_receipts_for_long() -> None:
    bench = Bench(1, 2)
    (mirror,) = bench.others
    mirror.disk.full = True
    begun = bench.world.now
    assert bench.send().copies == 1
    assert bench.world.now - begun < PATIENCE_S + 0.5
    begun = bench.world.now
    assert bench.send().copies == 1
    assert bench.world.now - begun < 0.5, "the next ones know"
    mirror.disk.full = False
    bench.world.run(lambda: bench.send().copies == 2)


def test_a_mirror_that_lags_is_waited_for() -> None:
    """More than it may be behind to begin with."""
    bench = Bench(2, 2)
    (mirror,) = bench.others
    sync = mirror.disk.sync
    mirror.disk.sync = list  # type: ignore[method-assign]
    tickets = [bench.begin_on(lane) for lane in range(LEVEL_COUNT + 50)]
    stored = lambda: bench.leader.core.slots.partition(bench.slot, bench.key).end  # noqa: E731
    bench.world.run(lambda: stored() > LEVEL_COUNT + 40, most_s=0.5)
    assert not any(t in bench.client.results for t in tickets)
    mirror.disk.sync = sync  # type: ignore[method-assign]
    assert {bench.client.wait(t).copies for t in tickets} == {2}


def test_what_waits_for_copies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "RECEIPTS_WAITING_MAX", 5)
    bench = Bench(6, 3, copies_min=3)
    leader, victim = bench.leader, bench.others[0]
    victim.disk.sync = list  # type: ignore[method-assign]  # its disk does not come to an end
    for _ in range(5):
        bench.begin(timeout=60.0)
    bench.world.run(lambda: leader.core.publishing.receipts._count >= 5, most_s=2.0)
    with pytest.raises(Overloaded):
        leader.core.publishing.receipts.check(bench.slot, bench.info)
    bench.world.run_for(40.0)
    assert leader.core.publishing.receipts._count == 0, "and ends"
