"""Producers' sequences, against a twin that keeps everything and searches it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import Fenced, MeshqError, OutOfOrderSequence, SequenceConflict, UnknownProducer
from meshq.ids import TopicId
from meshq.limits import OUTBOX_IDLE_MS, PRODUCER_IDLE_MS, PRODUCER_RECEIPTS_KEPT
from meshq.streams import producers
from meshq.streams.producers import (
    BatchReceipt,
    ProducerKey,
    ProducerState,
    ProducerTable,
    advance,
    is_expired,
    judge,
)

KEY = ProducerKey(bytes(32), bytes(16), TopicId(bytes(16)), 0)


@dataclass
class Twin:
    """Every batch ever appended, in order: (epoch, receipt)."""

    batches: list[tuple[int, BatchReceipt]] = field(default_factory=list)
    used_ms: int = 0

    def judge(self, epoch: int, first: int, count: int, crc: int, now: int) -> BatchReceipt | type | None:
        newest = max((e for e, _ in self.batches[-1:]), default=0)
        if now - self.used_ms > (OUTBOX_IDLE_MS if newest else PRODUCER_IDLE_MS):
            self.batches.clear()
        receipts = [r for _, r in self.batches]
        if not receipts:
            return UnknownProducer if first else None
        kept = receipts[-PRODUCER_RECEIPTS_KEPT:]
        for r in kept:
            if (r.epoch, r.first_sequence, r.count, r.crc) == (epoch, first, count, crc):
                return r
        if epoch < newest:
            return Fenced
        next_one = sum(r.count for r in receipts)
        if first >= next_one:
            return OutOfOrderSequence if first > next_one else None
        conflict = epoch > newest or first in {r.first_sequence for r in kept}
        return SequenceConflict if conflict else OutOfOrderSequence


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # epoch
            st.one_of(st.just(0), st.integers(-4, 2)),  # first sequence, from the next one on
            st.booleans(),  # from sequence 0 on instead
            st.integers(1, 3),
            st.integers(0, 1),
            st.sampled_from([0, 0, 0, 0, 1, PRODUCER_IDLE_MS, PRODUCER_IDLE_MS + 1, OUTBOX_IDLE_MS + 1]),
        ),
        max_size=60,
    )
)
def test_it_judges_as_a_twin_that_keeps_everything(
    batches: list[tuple[int, int, bool, int, int, int]],
) -> None:
    state: ProducerState | None = None
    twin = Twin()
    now, offset = 1, 0
    for index, (epoch, distance, from_zero, count, crc, later_ms) in enumerate(batches, 1):
        now += later_ms
        known = state if state is not None and not is_expired(state, now) else None
        first = 0 if from_zero else max(0, (known.next_sequence if known else 0) + distance)
        verdict = judge(known, epoch=epoch, first_sequence=first, count=count, crc=crc)
        expected = twin.judge(epoch, first, count, crc, now)
        if isinstance(verdict, MeshqError):
            assert type(verdict) is expected
        else:
            assert verdict == expected
        if verdict is None:
            receipt = BatchReceipt(first, count, crc, offset, index, epoch)
            state = advance(known, epoch=epoch, receipt=receipt, timestamp_ms=now)
            twin.batches.append((epoch, receipt))
            twin.used_ms = now
            offset += count


def after(batches: int, epoch: int = 0) -> ProducerState:
    state: ProducerState | None = None
    for i in range(batches):
        receipt = BatchReceipt(2 * i, 2, i, 100 + 2 * i, i + 1, epoch)
        state = advance(state, epoch=epoch, receipt=receipt, timestamp_ms=i)
    assert state is not None
    return state


def test_the_last_32_receipts_are_given_again_and_older_ones_are_not() -> None:
    state = after(50)
    assert len(state.receipts) == PRODUCER_RECEIPTS_KEPT == 32
    for i in range(50):
        verdict = judge(state, epoch=0, first_sequence=2 * i, count=2, crc=i)
        if i >= 18:
            assert isinstance(verdict, BatchReceipt)
            assert verdict.base_offset == 100 + 2 * i
        else:
            assert isinstance(verdict, OutOfOrderSequence)


@pytest.mark.parametrize(("count", "crc"), [(2, 99), (1, 3), (3, 3)])
def test_a_used_sequence_with_other_records_is_a_conflict(count: int, crc: int) -> None:
    assert isinstance(judge(after(5), epoch=0, first_sequence=6, count=count, crc=crc), SequenceConflict)


def test_a_batch_that_begins_inside_another_is_out_of_order() -> None:
    assert isinstance(judge(after(5), epoch=0, first_sequence=7, count=2, crc=3), OutOfOrderSequence)


def test_a_newer_epoch_goes_on_where_the_older_one_ended_and_fences_it() -> None:
    state = after(3, epoch=4)
    assert isinstance(judge(state, epoch=5, first_sequence=0, count=1, crc=9), SequenceConflict)
    assert isinstance(judge(state, epoch=5, first_sequence=7, count=1, crc=9), OutOfOrderSequence)
    assert judge(state, epoch=5, first_sequence=6, count=1, crc=9) is None
    newer = advance(state, epoch=5, receipt=BatchReceipt(6, 1, 9, 106, 4, 5), timestamp_ms=9)
    for first in (6, 7):
        assert isinstance(judge(newer, epoch=4, first_sequence=first, count=2, crc=0), Fenced)


def test_what_the_older_epoch_stored_is_still_known_to_a_repeat_of_it_and_taken_for_nothing_else() -> None:
    newer = advance(after(3, epoch=4), epoch=5, receipt=BatchReceipt(6, 1, 9, 106, 4, 5), timestamp_ms=9)
    repeat = judge(newer, epoch=4, first_sequence=4, count=2, crc=2)
    assert isinstance(repeat, BatchReceipt)
    assert repeat.base_offset == 104
    of_a_copy = judge(newer, epoch=5, first_sequence=4, count=2, crc=2)
    assert isinstance(of_a_copy, SequenceConflict), "the same bytes under another epoch are another record"


def test_a_producer_that_outlives_its_process_is_remembered_for_30_days() -> None:
    table, _ = make_table()
    table.put(key(1), used(0))
    table.put(key(2), used(0, epoch=7))
    table.expire(PRODUCER_IDLE_MS + 1)
    assert [table.row(key(n)) is None for n in (1, 2)] == [True, False]
    table.expire(OUTBOX_IDLE_MS)
    assert table.get(key(2), timestamp_ms=OUTBOX_IDLE_MS) is not None
    assert table.get(key(2), timestamp_ms=OUTBOX_IDLE_MS + 1) is None
    table.expire(OUTBOX_IDLE_MS + 1)
    assert len(table) == 0


def test_outboxes_do_not_shut_other_producers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_PER_SLOT_MAX", 3)
    monkeypatch.setattr(producers, "OUTBOXES_PER_SLOT_MAX", 2)
    table, _ = make_table()
    table.put(key(1), used(0, epoch=1))
    assert table.has_room({}, epoch=1, timestamp_ms=1)
    assert not table.has_room({key(9): used(0, epoch=1)}, epoch=1, timestamp_ms=1), "one is on its way"
    table.put(key(2), used(0, epoch=1))
    assert not table.has_room({}, epoch=1, timestamp_ms=1)
    assert table.has_room({}, epoch=0, timestamp_ms=1)
    table.put(key(3), used(0))
    assert not table.has_room({}, epoch=0, timestamp_ms=1)


def make_table() -> tuple[ProducerTable, list[ProducerKey]]:
    changed: list[ProducerKey] = []
    return ProducerTable(changed.append), changed


def key(n: int, topic: int = 0) -> ProducerKey:
    return KEY._replace(producer_id=n.to_bytes(16, "big"), topic_id=TopicId(topic.to_bytes(16, "big")))


def used(at: int, epoch: int = 0) -> ProducerState:
    return ProducerState(epoch, 1, (), at)


def test_the_table_forgets_by_the_logs_time_and_only_those_whose_time_is_over() -> None:
    table, changed = make_table()
    for n, at in enumerate([0, 5, 10]):
        table.put(key(n), used(at))
    table.put(key(0), used(20))
    changed.clear()
    table.expire(PRODUCER_IDLE_MS + 10)
    assert [table.row(key(n)) is None for n in range(3)] == [False, True, False]
    assert changed == [key(1)]
    assert table.get(key(2), timestamp_ms=PRODUCER_IDLE_MS + 10) is not None
    assert table.get(key(2), timestamp_ms=PRODUCER_IDLE_MS + 11) is None, "expired although still there"


def test_a_restored_table_forgets_in_the_same_order() -> None:
    table, _ = make_table()
    table.restore({key(0): used(30), key(1): used(10), key(2): used(20)})
    table.expire(PRODUCER_IDLE_MS + 21)
    assert [table.row(key(n)) is None for n in range(3)] == [False, True, True]


def test_a_topics_producers_go_with_it() -> None:
    table, changed = make_table()
    table.put(key(1, topic=1), used(0))
    table.put(key(1, topic=2), used(0))
    changed.clear()
    table.drop_topic(TopicId((1).to_bytes(16, "big")))
    assert changed == [key(1, topic=1)]
    assert len(table) == 1


def test_a_full_table_has_room_again_when_time_has_passed_over_idle_producers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_PER_SLOT_MAX", 3)
    table, _ = make_table()
    for n in range(3):
        table.put(key(n), used(n))
    assert not table.has_room({}, epoch=0, timestamp_ms=PRODUCER_IDLE_MS)
    assert table.has_room({}, epoch=0, timestamp_ms=PRODUCER_IDLE_MS + 1), (
        "one is idle for too long, none was removed"
    )
    assert not table.has_room({key(7): used(0)}, epoch=0, timestamp_ms=PRODUCER_IDLE_MS + 1), (
        "its place is taken by another new one"
    )
    assert table.has_room({key(7): used(0)}, epoch=0, timestamp_ms=PRODUCER_IDLE_MS + 2)


def test_a_known_producer_with_batches_on_their_way_does_not_count_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_PER_SLOT_MAX", 3)
    table, _ = make_table()
    table.put(key(0), used(0))
    table.put(key(1), used(0))
    assert table.has_room({key(0): used(0), key(1): used(0)}, epoch=0, timestamp_ms=1)
