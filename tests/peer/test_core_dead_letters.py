"""Dead letters at one peer: what ends there, with what said of it, and exactly once."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.errors import DiskFull, StoreError
from meshq.ids import PartitionKey, TopicId
from meshq.messages import (
    ACK,
    EARLIEST,
    NACK,
    REJECT,
    RELEASE,
    Failure,
    Join,
    Produce,
    ProduceItem,
    ReadEnded,
    ReadItem,
    Settle,
    SettleItem,
    TopicInfo,
    Unread,
)
from meshq.peer.core import events as e
from meshq.peer.core.desks import GROUPS
from meshq.registry import commands, topics
from meshq.ring import slot_of
from meshq.streams.groups.state import Dying, GroupState, decode_state
from tests.peer.single import SLOTS, Single, key_of
from tests.peer.test_core_consuming import ONE, TWO, got, join, ready, settle

NAME = "_dead.g.t"


def letters(peer: Single, name: str = NAME, partition: int = 0) -> list[tuple[bytes, dict[str, bytes]]]:
    """Committed ones: value and headers."""
    info = peer.core.ctx.registry.topic(name)
    if info is None:
        return []
    key = PartitionKey(TopicId(info.topic_id), partition)
    slot = peer.core.ctx.slot_of(key)
    end = peer.core.slots.partition(slot, key).end
    found: list[tuple[bytes, dict[str, bytes]]] = []
    for payload in sorted(peer.payloads.get(key, []), key=lambda p: p.base_offset):
        assert payload.base_offset == len(found), "dense"
        found += [(r.value, r.headers or {}) for r in batch.read_records(payload.data)]
    assert len(found) == end
    return found


def state_of(peer: Single, group: str = "g") -> GroupState:
    hosts = peer.core.slots.hosts.values()
    (state,) = [h.stream.groups.get(k) for h in hosts for k in h.stream.groups if k.group == group]
    assert state is not None
    return state


def origins(found: list[tuple[bytes, dict[str, bytes]]]) -> list[str]:
    return [headers["meshq-origin"].decode() for _, headers in found]


def test_a_rejected_record_is_moved_to_the_dead_letters_with_what_was_said_of_it() -> None:
    peer, info = ready(3)
    join(peer, info)
    (record,) = got(peer)
    assert settle(peer, info, REJECT, (1, 2, 1, record[3]), reason="no such customer") == []
    peer.fetch()
    assert letters(peer) == [
        (
            b"1",
            {
                "meshq-reason": b"no such customer",
                "meshq-attempts": b"1",
                "meshq-origin": b"t/0@1",
                "meshq-group": b"g",
            },
        )
    ]
    assert settle(peer, info, ACK, (1, 2, 1, record[3])) == [(1, 2)], "it is a dead letter, and not done"
    peer.tick(10.1)
    peer.tick(1)
    assert [(first, end) for first, end, *_ in got(peer)] == [(0, 1), (2, 3)]
    assert (state_of(peer).buried, len(state_of(peer).dying)) == (1, 0)


def test_a_record_is_handed_out_max_deliver_times_and_then_it_is_a_dead_letter() -> None:
    peer, info = ready(1)
    join(peer, info, max_deliver=3)
    seen = []
    for _ in range(3):
        (record,) = got(peer)
        seen.append(record[2])
        settle(peer, info, NACK, record, delay=0)
    assert seen == [1, 2, 3]
    assert got(peer) == []
    ((value, headers),) = letters(peer)
    assert (value, headers["meshq-reason"], headers["meshq-attempts"]) == (b"0", b"max_deliver", b"3")


def test_a_consumer_that_dies_each_time_does_not_keep_a_record_for_ever() -> None:
    peer, info = ready(1)
    for attempts in (1, 2):
        peer.hello()
        join(peer, info, max_deliver=2)
        peer.tick(1)
        (record,) = got(peer)
        assert record[2] == attempts
        peer.tell(e.SessionClosed(ONE))
        peer.tick(10.1)
        peer.tick(1)
    peer.fetch()
    assert origins(letters(peer)) == ["t/0@0"], "although nobody is there any more"
    peer.tick(1)
    assert not peer.core.consuming.desks.parts


def test_what_nobody_looked_at_does_not_count_as_an_attempt() -> None:
    peer, info = ready(1)
    join(peer, info, max_deliver=1)
    for _ in range(3):
        (record,) = got(peer)
        settle(peer, info, RELEASE, record)
    (record,) = got(peer)
    settle(peer, info, NACK, record)
    peer.fetch()
    assert len(letters(peer)) == 1


def test_fewer_deliveries_from_now_on_count_for_what_came_back_before() -> None:
    peer, info = ready(2)
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, NACK, record, delay=5_000)
    join(peer, info, TWO, max_deliver=1)
    peer.fetch()
    assert origins(letters(peer)) == ["t/0@0", "t/0@1"]
    peer.tick(6)
    assert got(peer) == got(peer, TWO) == []


def test_its_partitions_are_in_the_slots_of_the_source_and_grow_with_it() -> None:
    peer = Single()
    peer.hello()
    info = peer.make_topic(partitions=3)
    peer.produce(info, b"x", partition=2)
    item = [(0, 1)]
    join_all(peer, info, 3)
    reject(peer, info, 2, item)
    dead = peer.core.ctx.registry.topic(NAME)
    assert dead is not None and dead.partitions == 3
    for p in range(8):
        assert slot_of(TopicId(dead.topic_id), p, SLOTS) == slot_of(TopicId(info.topic_id), p, SLOTS)
    peer.propose(commands.SetTopic(info.topic_id, 8))
    grown = peer.core.ctx.registry.topic("t")
    assert grown is not None
    peer.produce(grown, b"y", partition=7)
    join_all(peer, grown, 8)
    reject(peer, grown, 7, item)
    assert [v for v, _ in letters(peer, partition=7)] == [b"y"]


def join_all(peer: Single, info: TopicInfo, partitions: int) -> None:
    items = [ReadItem(info.topic_id, p, info.version, EARLIEST) for p in range(partitions)]
    peer.send(Join(1, "g", bytes(16), 1, 10_000, 0, 100, 1 << 20, items))
    peer.fetch()


def reject(peer: Single, info: TopicInfo, partition: int, ranges: list[tuple[int, int]]) -> None:
    key = key_of(info, partition)
    for host in peer.core.slots.hosts.values():
        for k in host.stream.groups:
            state = host.stream.groups.get(k)
            if k.partition == key and state is not None:
                leased = [(s, e_, x.lease) for s, e_, x in state.leased.runs()]
                assert [(s, e_) for s, e_, _ in leased] == ranges
                peer.send(Settle(1, [SettleItem(1, info.topic_id, partition, REJECT, leased)]))
    peer.fetch()


def test_a_crash_in_between_moves_it_exactly_once() -> None:
    """The entry is on disk and its receipt is not; then before the entry."""
    for held in (True, False):
        peer, info = ready(2)
        join(peer, info)
        (record,) = got(peer)
        peer.hold = True
        item = SettleItem(7, info.topic_id, 0, REJECT, [(0, 1, record[3])])
        peer.send(Settle(1, [item]))
        peer.write()  # it is dying
        peer.write()  # its topic is there
        peer.fetch()  # the entry is on its way to disk
        if held:
            peer.waiting, kept = [], peer.waiting
            for effect in kept:
                peer.entries[effect.write.slot] += effect.write.entries
                for p in effect.write.payloads:
                    peer.payloads.setdefault(p.partition, []).append(p)
        peer.hold = False
        peer.start()
        peer.tick(1)
        peer.fetch()
        peer.tick(1)
        assert origins(letters(peer)) == ["t/0@0"]
        assert state_of(peer).buried == 1
        peer.tick(20)
        peer.tick(1)
        assert not peer.core.consuming.desks.parts, "nothing is left to do"


def test_what_the_disk_refuses_is_moved_later() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, REJECT, record)
    peer.hold = True
    peer.fetch()
    peer.refuse(DiskFull("full"))
    peer.hold = False
    assert letters(peer) == []
    peer.tick(1.1)
    peer.fetch()
    assert origins(letters(peer)) == ["t/0@0"]


def test_what_is_on_its_way_is_not_moved_again_when_its_desk_ends() -> None:
    """The disk is slow and a read for the desk fails: who joins again finds the record still dying."""
    peer, info = ready(3)
    join(peer, info, in_flight=1)
    (record,) = got(peer)
    peer.send(Settle(1, [SettleItem(7, info.topic_id, 0, REJECT, [(0, 1, record[3])])]))
    peer.hold = True
    peer.fetch()  # the letter is on its way to disk
    assert state_of(peer).dying
    peer.send(Unread(1, []))
    peer.out.clear()
    peer.send(Join(1, "g", bytes(15) + b"1", 1, 10_000, 0, 100, 1 << 20, [item_of(info)]))
    (read,) = [x for x in peer.take(e.FetchBatches) if x.fetch.sub[0][0] == GROUPS]
    peer.tell(e.BatchesFetched(read.fetch, StoreError("the disk cannot be read")))
    assert [m.name for m in peer.heard() if isinstance(m, ReadEnded)] == ["StoreError"]
    for _ in range(2):
        join(peer, info)
        peer.tick(1.1)
    peer.hold = False
    peer.write()
    for _ in range(3):
        peer.fetch()
        peer.tick(1.1)
    assert origins(letters(peer)) == ["t/0@0"]
    peer.start()
    assert state_of(peer).buried == 1


def test_what_is_dying_is_moved_although_its_desk_ended_and_nobody_joins_again() -> None:
    peer, info = ready(3)
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, REJECT, record)
    (part,) = peer.core.consuming.desks.parts.values()
    peer.out.clear()  # what was read for it is lost
    peer.core.consuming.desks.on_failed(part, StoreError("the disk cannot be read"))
    peer.tick(1.1)
    for _ in range(3):
        peer.fetch()
    assert origins(letters(peer)) == [f"t/0@{n}" for n in range(3)]


def item_of(info: TopicInfo) -> ReadItem:
    return ReadItem(info.topic_id, 0, info.version, EARLIEST)


def test_many_go_in_pieces_and_others_records_stay_where_they_are() -> None:
    peer, info = ready(300, 300)
    join(peer, info, in_flight=600)
    for first, end, _, lease in got(peer):
        assert settle(peer, info, REJECT, (first, end, 1, lease), reason=f"from {first}") == []
    for _ in range(5):
        peer.fetch()
    found = letters(peer)
    assert origins(found) == [f"t/0@{n}" for n in range(600)]
    assert found[10][1]["meshq-reason"] == b"from 0"
    join(peer, info, TWO, group="other")
    assert sum(end - first for first, end, *_ in got(peer, TWO)) == 100


def test_a_topic_has_dead_letters_of_so_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "DEAD_LETTER_TOPICS_MAX", 2)
    peer, info = ready(1)
    for sub, group in enumerate(("a", "b", "c")):
        join(peer, info, sub=sub, group=group, max_deliver=1)
        (record,) = got(peer)
        item = SettleItem(7, info.topic_id, 0, REJECT, [(0, 1, record[3])])
        answers = peer.send(Settle(sub, [item]))
        peer.fetch()
        failed = [m for m in answers if isinstance(m, Failure)]
        assert bool(failed) == (group == "c")
    (refused,) = failed
    assert (refused.name, "'t' have dead letters" in refused.text) == ("Overloaded", True)
    assert state_of(peer, "c").leased.count == 1, "it is settled otherwise"
    item = SettleItem(7, info.topic_id, 0, NACK, [(0, 1, record[3])])
    peer.send(Settle(2, [item]))
    for _ in range(10):
        peer.tick(1)
        peer.fetch()
    assert runs(state_of(peer, "c")) == [(0, 1, Dying(1, "max_deliver"))]
    assert peer.core.ctx.counters["burials_Overloaded"] == 1, "once a minute"
    assert [len(letters(peer, f"_dead.{g}.t")) for g in "abc"] == [1, 1, 0]
    graves = peer.core.ctx.registry.topic("_dead.a.t")
    assert graves is not None
    peer.propose(commands.DeleteTopic(graves.topic_id))
    peer.tick(60)
    for _ in range(3):
        peer.tick(1)
        peer.fetch()
    assert [len(letters(peer, f"_dead.{g}.t")) for g in "abc"] == [0, 1, 1]


def test_letters_wait_for_as_many_copies_as_their_source_wants() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    peer.propose(commands.SetTopic(info.topic_id, copies_min=2))
    settle(peer, info, REJECT, record)
    for _ in range(3):
        peer.tick(1.1)
        peer.fetch()
    assert (letters(peer), state_of(peer).dying.count) == ([], 1)
    peer.propose(commands.SetTopic(info.topic_id, copies_min=1))
    peer.tick(1.1)
    peer.fetch()
    assert origins(letters(peer)) == ["t/0@0"]


def test_only_the_mesh_makes_dead_letter_topics_and_writes_them() -> None:
    peer, info = ready(1)
    refused = peer.ask("topic.create", topic=NAME)
    assert isinstance(refused, Failure) and "the mesh makes it" in refused.text
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, REJECT, record)
    peer.fetch()
    dead = peer.core.ctx.registry.topic(NAME)
    assert dead is not None
    (answer,) = peer.produce(dead, b"forged")
    assert answer.name == "Forbidden"


def test_a_topic_is_deleted_with_the_dead_letters_of_its_groups() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, REJECT, record)
    peer.fetch()
    assert letters(peer)
    for name in ("_dead", "_dead-x", "_dead.g.t2x"):  # its neighbours
        peer.propose(commands.CreateTopic(name, name.encode().ljust(16, b"x"), 1, 1 << 20))
    peer.propose(commands.DeleteTopic(info.topic_id))
    assert peer.core.ctx.registry.topic(NAME) is None
    assert not any(h.stream.topics() for h in peer.core.slots.hosts.values())


def test_a_name_too_long_for_its_dead_letters_is_refused_at_the_door() -> None:
    peer = Single()
    peer.hello()
    info = peer.make_topic("t" * 200)
    (ended,) = join(peer, info, group="g" * 60)
    assert (ended.name, "longer than the 255 bytes" in ended.text) == ("UsageError", True)


@pytest.mark.parametrize("headers", [0, 64])
def test_a_letter_keeps_key_and_headers(headers: int) -> None:
    peer, info = ready()
    own = {f"h{n}": b"%d" % n for n in range(headers)}
    body = batch.seal([batch.RawRecord(b"k", b"v", own)], base_timestamp_ms=0)
    peer.send(Produce([ProduceItem(1, info.topic_id, 0, info.version)]), batch.frame(body))
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, REJECT, record)
    peer.fetch()
    ((value, found),) = letters(peer)
    assert value == b"v"
    assert {**found, **own} == found and len(found) == headers + 4


def runs(state: GroupState) -> list[Any]:
    return list(state.dying.runs())


def test_the_state_survives_its_row() -> None:
    peer, info = ready(4)
    join(peer, info)
    (record,) = got(peer)
    for n in range(3):
        settle(peer, info, REJECT, (n, n + 1, 1, record[3]), reason="a" if n else "b")
    state = state_of(peer)
    assert len(runs(state)) == 2
    again = decode_state(state.encode())
    assert runs(again) == runs(state)
    assert (again.buried, again.floor, again.pending) == (0, 0, 4)
