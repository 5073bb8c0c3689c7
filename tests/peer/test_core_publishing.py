"""Publishing at one peer: what is checked, what is refused, and that a receipt comes after the disk."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.errors import DiskFull
from meshq.ids import Slot
from meshq.limits import PRODUCER_RECEIPTS_KEPT
from meshq.messages import Failure, Produce, Produced, ProduceItem
from meshq.peer.core import events as e
from meshq.peer.core import room, saving
from meshq.peer.core.core import LONE_TICK_S
from meshq.registry import commands
from meshq.ring import slot_of
from tests.peer.single import SLOTS, Single, identity, key_of, make_batch

PRODUCER = b"p" * 16


def outcomes(answers: list[Any]) -> list[Any]:
    """By request: the offset, or the error's name."""
    found: list[tuple[int, Any]] = []
    for a in answers:
        if isinstance(a, Produced):
            found += [(r.request, r.base_offset) for r in a.receipts]
        elif isinstance(a, Failure):
            found.append((a.request, a.name))
    return found


def ready(**about: Any) -> Single:
    peer = Single(**about)
    peer.hello()
    return peer


def test_a_receipt_comes_when_the_disk_has_the_batch_and_not_before() -> None:
    peer = ready()
    info = peer.make_topic()
    peer.hold = True
    before = len(peer.out)
    assert peer.produce(info, b"a", b"b") == []
    assert peer.produce(info, b"c", request=2) == []
    peer.write()
    assert outcomes(peer.heard(since=before)) == [(1, 0), (2, 2)]
    assert all(r.copies == 1 for m in peer.heard(since=before) if isinstance(m, Produced) for r in m.receipts)


def test_each_batch_of_a_message_is_answered_on_its_own() -> None:
    peer = ready()
    info, small = peer.make_topic("t"), peer.make_topic("small", size=10)
    v = max(info.version, small.version)
    items = [
        ProduceItem(1, info.topic_id, 0, v),
        ProduceItem(2, b"?" * 16, 0, v),
        ProduceItem(3, info.topic_id, 1, v),
        ProduceItem(4, info.topic_id, 0, v + 9),
        ProduceItem(5, small.topic_id, 0, v),
        ProduceItem(6, info.topic_id, 0, v),
        ProduceItem(7, info.topic_id, 0, v),
    ]
    good = make_batch(b"0123456789a")
    payloads = [good] * 5 + [good[:-1], good]
    assert sorted(outcomes(peer.send(Produce(items), *payloads))) == [
        (1, 0),
        (2, "TopicGone"),
        (3, "RemoteProtocolError"),
        (4, "Unavailable"),
        (5, "TooLarge"),
        (6, "RemoteProtocolError"),
        (7, 1),
    ]


@pytest.mark.parametrize("payloads", [[], [make_batch(), make_batch()]])
def test_batches_and_payload_frames_must_pair_up(payloads: list[bytes]) -> None:
    peer = ready()
    info = peer.make_topic()
    (answer,) = peer.send(Produce([ProduceItem(1, info.topic_id, 0, info.version)]), *payloads)
    assert answer.name == "RemoteProtocolError"
    assert not peer.payloads


def damaged() -> list[bytes]:
    good = make_batch(b"value", b"other")
    three = batch.seal([batch.RawRecord(None, b"x")] * 3, base_timestamp_ms=0)
    return [
        b"",
        b"MB",
        good[:40],
        bytes([good[0] ^ 1]) + good[1:],
        good[:-1] + bytes([good[-1] ^ 1]),
        good + b"more",
        batch.frame(three._replace(count=2)),
        batch.frame(three._replace(codec=2)),
        batch.frame(three._replace(data=b"\xc1" * len(three.data))),
    ]


@pytest.mark.parametrize("payload", damaged(), ids=range(len(damaged())))
def test_a_malformed_batch_is_refused_and_changes_nothing(payload: bytes) -> None:
    peer = ready()
    info = peer.make_topic()
    (answer,) = peer.send(Produce([ProduceItem(1, info.topic_id, 0, info.version)]), payload)
    assert (answer.request, answer.name) == (1, "RemoteProtocolError")
    assert outcomes(peer.produce(info)) == [(1, 0)]


def test_a_topics_record_limit_holds_as_it_is_set_now() -> None:
    peer = ready()
    info = peer.make_topic(size=100)
    assert outcomes(peer.produce(info, bytes(101))) == [(1, "TooLarge")]
    assert outcomes(peer.produce(info, bytes(100), bytes(100))) == [(1, 0)], "each record, not the batch"
    peer.propose(commands.SetTopic(info.topic_id, record_bytes_max=50))
    assert outcomes(peer.produce(info, bytes(100))) == [(1, "TooLarge")]


def test_who_does_not_lead_the_slot_says_so() -> None:
    peer = ready(founders=("a", "b"))
    b = identity("b").peer_id
    owners = peer.core.ctx.registry.genesis_owners
    info = peer.make_topic(partitions=SLOTS)
    theirs = next(p for p in range(SLOTS) if owners[slot_of(info.topic_id, p, SLOTS)][0] == b)  # type: ignore[arg-type]
    (answer,) = peer.produce(info, partition=theirs)
    assert (answer.name, answer.status) == ("NotOwner", 503)
    assert peer.read(info, partition=theirs)[0].name == "NotOwner"


def test_a_repeat_gets_its_first_receipt_again_before_and_after_a_restart() -> None:
    peer = ready()
    info = peer.make_topic()
    for n in range(40):
        assert outcomes(peer.produce(info, b"%d" % n, producer=PRODUCER, sequence=n)) == [(1, n)]
    for _ in range(2):
        for n in range(40 - PRODUCER_RECEIPTS_KEPT, 40):
            assert outcomes(peer.produce(info, b"%d" % n, producer=PRODUCER, sequence=n)) == [(1, n)]
        assert outcomes(peer.produce(info, b"0", producer=PRODUCER)) == [(1, "OutOfOrderSequence")]
        assert outcomes(peer.produce(info, b"?", producer=PRODUCER, sequence=39)) == [(1, "SequenceConflict")]
        assert outcomes(peer.produce(info, b"?", producer=PRODUCER, sequence=41)) == [
            (1, "OutOfOrderSequence")
        ]
        peer.start()
        peer.hello()
    assert len(peer.payloads[key_of(info)]) == 40


# -------------------------------------------------------------------------------------------------- full disk
def test_a_full_disk_refuses_publishing_while_reading_and_repeats_go_on() -> None:
    peer = ready()
    info = peer.make_topic()
    peer.produce(info, b"a", producer=PRODUCER)
    peer.tell(e.RoomMeasured(0))
    (answer,) = peer.produce(info, b"b", producer=PRODUCER, sequence=1)
    assert (answer.status, answer.name) == (507, "DiskFull")
    assert answer.retry_after_ms > 0
    assert outcomes(peer.produce(info, b"a", producer=PRODUCER)) == [(1, 0)], "what is stored is stored"
    assert peer.read(info)[0].items[0].end == 1
    assert not isinstance(peer.ask("topic.delete", topic="t"), Failure), "the way to make room stays open"
    peer.tell(e.RoomMeasured(1 << 30))
    other = peer.make_topic("other")
    assert outcomes(peer.produce(other)) == [(1, 0)]


def test_room_counts_what_is_on_its_way_to_disk() -> None:
    peer = ready()
    info = peer.make_topic()
    size = len(make_batch(b"x"))
    peer.hold = True
    peer.tell(e.RoomMeasured(2 * size))
    for n in (1, 2):
        assert peer.produce(info, b"x", request=n) == []
    assert outcomes(peer.produce(info, b"x", request=3)) == [(3, "DiskFull")]


def test_what_waits_for_the_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = ready()
    info = peer.make_topic()
    size = len(make_batch(b"x"))
    monkeypatch.setattr(room, "PENDING_BYTES_MAX", 3 * size)
    peer.hold = True
    for n in range(3):
        assert peer.produce(info, b"x", request=n) == []
    (answer,) = peer.produce(info, b"x", request=9)
    assert (answer.status, answer.name) == (429, "Overloaded")
    assert answer.retry_after_ms > 0
    before = len(peer.out)
    peer.write()
    assert outcomes(peer.heard(since=before)) == [(0, 0), (1, 1), (2, 2)]
    assert peer.core.ctx.disk.pending_bytes == 0
    assert peer.produce(info, b"x", request=9) == []


def test_what_the_disk_refused_is_refused_to_everyone_who_waited_and_can_be_sent_again() -> None:
    peer = ready()
    info = peer.make_topic()
    assert outcomes(peer.produce(info, b"a", producer=PRODUCER)) == [(1, 0)]
    peer.hold = True
    for n in (1, 2):
        peer.produce(info, b"%d" % n, producer=PRODUCER, sequence=n, request=10 + n)
    peer.produce(info, b"2", producer=PRODUCER, sequence=2, request=20)
    before = len(peer.out)
    effects = peer.refuse(DiskFull("no"))
    assert any(isinstance(x, e.ResumeWrites) for x in effects)
    assert sorted(outcomes(peer.heard(since=before))) == [
        (11, "DiskFull"),
        (12, "DiskFull"),
        (20, "DiskFull"),
    ]
    assert peer.core.ctx.disk.pending_bytes == 0
    peer.hold = False
    assert outcomes(peer.produce(info, b"2", producer=PRODUCER, sequence=2)) == [(1, "OutOfOrderSequence")]
    for n in (1, 2):
        assert outcomes(peer.produce(info, b"%d" % n, producer=PRODUCER, sequence=n)) == [(1, n)]


def test_a_deletion_that_the_disk_refused_is_done_later() -> None:
    peer = ready()
    info = peer.make_topic()
    peer.produce(info)
    peer.hold = True
    peer.propose(commands.DeleteTopic(info.topic_id))
    waiting, peer.waiting = peer.waiting, []
    peer.tell(e.WritesDone([waiting[0].write.token], peer.room))  # the registry has it
    assert [w.write.slot for w in peer.waiting] == [key_slot(info)]
    peer.refuse(DiskFull("no"))
    peer.hold = False
    assert not peer.take(e.DeletePayloads)
    peer.tick(2.0)
    peer.tick(LONE_TICK_S)
    assert [x.partition for x in peer.take(e.DeletePayloads)] == [key_of(info)]


def key_slot(info: Any) -> Slot:
    return slot_of(info.topic_id, 0, SLOTS)


# ------------------------------------------------------------ state and restart
def test_a_restart_at_any_moment_gives_the_same_offsets_and_answers() -> None:
    peer = ready()
    infos = [peer.make_topic(name) for name in ("t", "u")]
    ends = [0, 0]
    for step in range(60):
        which = step % 2
        said = outcomes(peer.produce(infos[which], b"%d" % step, producer=PRODUCER, sequence=ends[which]))
        assert said == [(1, ends[which])]
        ends[which] += 1
        if step % 7 == 0:
            peer.tick(1.1)  # state rows are written
        if step % 5 == 0:
            peer.start()
            peer.hello()


def test_state_rows_follow_within_a_second_and_are_said_again_when_the_disk_refused_them() -> None:
    peer = ready()
    info = peer.make_topic()
    slot = key_slot(info)
    peer.tick()
    peer.produce(info)
    before = dict(peer.rows[slot])
    peer.hold = True
    peer.tick(1.1)
    peer.refuse(DiskFull("no"))
    peer.hold = False
    assert peer.rows[slot] == before
    peer.tick(1.1)
    assert {name[:1] for name in peer.rows[slot]} == {b"A", b"H", b"P", b"R"}


def test_the_log_is_trimmed_behind_the_state_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LOG_ENTRIES_KEPT", 3)
    monkeypatch.setattr(saving, "CHECKPOINT_ENTRIES", 5)
    peer = ready()
    info = peer.make_topic()
    peer.take(e.Persist)
    for _ in range(11):
        peer.produce(info)
    trims = [x.write.trim_below for x in peer.take(e.Persist) if x.write.rows]
    assert trims == [3, 8]
