"""A slot's stream: same entries, same state, same rows; and what is proposed is what will be applied."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.batch import NO_PRODUCER, BatchHeader
from meshq.entries import GENESIS_CHAIN, Entry, EntryKind, make_entry
from meshq.errors import InternalError, MeshqError, Overloaded, StoreCorrupt, UnknownProducer
from meshq.ids import PartitionKey, Ref, Slot, TopicId
from meshq.limits import PRODUCER_IDLE_MS
from meshq.streams import producers
from meshq.streams.applied import Dropped, Moved, Retained, Stored
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.table import GroupKey
from meshq.streams.groups.words import Bury, Grant, GroupBody, Op, Open, Settle, Verdict, encode_group
from meshq.streams.producers import BatchReceipt
from meshq.streams.publish import PublishBody, encode_publish
from meshq.streams.retention import RetainBody, encode_retain
from meshq.streams.rows import applied_index
from meshq.streams.slot import REFS_MAX, SlotStream

CLIENT = b"k" * 32
PAYLOAD = b"payload"


def topic(n: int) -> TopicId:
    return TopicId(n.to_bytes(16, "big"))


def at(n: int, partition: int = 0) -> PartitionKey:
    return PartitionKey(topic(n), partition)


def header(producer: int, first: int = 0, count: int = 1, *, epoch: int = 0, crc: int = 0) -> BatchHeader:
    """Of a producer's batch; producer 0 is none."""
    producer_id = producer.to_bytes(16, "big") if producer else NO_PRODUCER
    return BatchHeader(0, count, 0, producer_id, epoch, first, 10, crc)


def ref(n: int) -> Ref:
    return (("clients", b"s"), n)


def next_entry(last: Entry | None, kind: EntryKind, body: bytes, timestamp_ms: int) -> Entry:
    chain, index = (last.chain, last.index) if last else (GENESIS_CHAIN, 0)
    return make_entry(chain, index=index + 1, term=1, kind=kind, timestamp_ms=timestamp_ms, body=body)


class Rig:
    """A stream with its log and a disk that keeps what it is told to."""

    def __init__(self) -> None:
        self.last: Entry | None = None  # in the log
        self.stream = SlotStream(Slot(1))
        self.entries: list[Entry] = []  # durable
        self.waiting: list[Entry] = []
        self.rows: dict[bytes, bytes] = {}
        self.now = 1_000

    def time(self) -> int:
        return max(self.now, self.last.timestamp_ms if self.last else 0)

    def append(self, kind: EntryKind, body: bytes) -> Entry:
        self.last = next_entry(self.last, kind, body, self.time())
        return self.last

    def publish(self, partition: PartitionKey, head: BatchHeader, n: int = 0) -> Any:
        """The offset it will have, or what was said instead."""
        timestamp_ms = self.time()
        body = self.stream.judge(partition, head, CLIENT, ref(n), timestamp_ms=timestamp_ms)
        if not isinstance(body, PublishBody):
            return body
        data = encode_publish(body, PAYLOAD)
        entry = self.append(EntryKind.PUBLISH, data)
        self.stream.on_proposed(entry, body, ref(n))
        self.waiting.append(entry)
        return body.base_offset

    def drop(self, topic_id: TopicId) -> None:
        self.waiting.append(self.append(EntryKind.DROP_TOPIC, topic_id))

    def commit(self, count: int | None = None) -> list[Stored | Dropped]:
        done = self.waiting[: len(self.waiting) if count is None else count]
        self.waiting = self.waiting[len(done) :]
        self.entries += done
        if not done:
            return []
        return [self.stream.apply(e) for e in done]

    def fail(self) -> list[Ref]:
        self.waiting.clear()
        self.last = self.entries[-1] if self.entries else None
        return self.stream.on_append_failed()

    def checkpoint(self) -> None:
        for name, value in self.stream.take_rows():
            if value is None:
                self.rows.pop(name, None)
            else:
                self.rows[name] = value

    def rebuilt(self, *, more: list[Entry] | None = None) -> SlotStream:
        """What a restart finds: rows, and the entries behind them."""
        stream = SlotStream(Slot(1))
        stream.restore(self.rows.items())
        for entry in self.entries[applied_index(self.rows) :] + (more or []):
            stream.apply(entry)
        return stream


def state_of(stream: SlotStream) -> Any:
    return (
        stream.applied_index,
        stream.partitions,
        {**stream.producers._brief, **stream.producers._lasting},
        stream.dropping,
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.integers(0, 2),  # topic
            st.integers(0, 1),  # partition
            st.integers(0, 3),  # producer
            st.integers(-3, 1),  # distance from its next sequence
            st.integers(1, 3),  # count
            st.integers(0, 1),  # epoch
        ),
        st.tuples(st.just("commit"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([1, 1_000, PRODUCER_IDLE_MS, PRODUCER_IDLE_MS + 1])),
        st.just(("fail",)),
        st.tuples(st.just("drop"), st.integers(0, 2)),
        st.just(("checkpoint",)),
    ),
    max_size=40,
)


def play(rig: Rig, steps: list[Any]) -> None:
    next_sequence: dict[tuple[Any, ...], int] = {}
    gone: dict[int, int] = {}  # a deleted topic of this number is followed by another of the same number
    for number, step in enumerate(steps):
        match step:
            case ("publish", t, p, producer, distance, count, epoch):
                where = at(t + 10 * gone.get(t, 0), p)
                lane = (where, producer, epoch)
                first = max(0, next_sequence.get(lane, 0) + distance)
                if isinstance(rig.publish(where, header(producer, first, count, epoch=epoch), number), int):
                    next_sequence[lane] = first + count
            case ("commit", count):
                rig.commit(count)
            case ("wait", ms):
                rig.now += ms
            case ("fail",):
                rig.fail()
            case ("drop", t):
                rig.drop(topic(t + 10 * gone.get(t, 0)))
                gone[t] = gone.get(t, 0) + 1
            case ("checkpoint",):
                rig.checkpoint()


@given(STEPS)
def test_rows_and_the_logs_tail_give_the_live_state_again(steps: list[Any]) -> None:
    check_rebuilt(steps)


def check_rebuilt(steps: list[Any]) -> None:
    rig = Rig()
    play(rig, steps)
    rig.commit()
    assert state_of(rig.rebuilt()) == state_of(rig.stream)
    rig.checkpoint()
    assert state_of(rig.rebuilt()) == state_of(rig.stream)
    replica = SlotStream(Slot(1))
    for entry in rig.entries:
        replica.apply(entry)
    assert state_of(replica) == state_of(rig.stream), "from the log alone"


def probes(rig: Rig, stream: SlotStream) -> list[Any]:
    """What it says to every batch that might come next."""
    answers: list[Any] = []
    now = rig.time()
    for where in [at(t + 10 * g, p) for t in range(3) for g in range(2) for p in range(2)]:
        for producer in range(4):
            for first in range(8 if producer else 1):
                head = header(producer, first, epoch=first % 2)
                answer = stream.judge(where, head, CLIENT, ref(-1), timestamp_ms=now)
                # A repeat of what waits gets its receipt later; one of what was applied gets it at once.
                known = isinstance(answer, int | BatchReceipt)
                answers.append(
                    "repeat" if known else type(answer) if isinstance(answer, MeshqError) else answer
                )
    return answers


@given(STEPS)
def test_what_is_proposed_is_what_will_be_applied(steps: list[Any]) -> None:
    check_proposed(steps)


def check_proposed(steps: list[Any]) -> None:
    rig = Rig()
    play(rig, [s for s in steps if s[0] != "drop"])
    assert probes(rig, rig.stream) == probes(rig, rig.rebuilt(more=rig.waiting))
    rig.commit()
    assert probes(rig, rig.stream) == probes(rig, rig.rebuilt())
    assert not (rig.stream._ahead_end or rig.stream._ahead_producers or rig.stream._waiting)


def test_nothing_of_the_proposed_view_stays_behind_while_batches_keep_coming() -> None:
    rig = Rig()
    rig.publish(at(0), header(1))
    for n in range(2, 50):
        rig.publish(at(n), header(n))
        rig.commit(1)
        assert len(rig.stream._ahead_end) == len(rig.stream._ahead_producers) == 1


def test_offsets_are_dense_and_start_at_0() -> None:
    rig = Rig()
    assert [rig.publish(at(1), header(0, count=c)) for c in (3, 1, 2)] == [0, 3, 4]
    assert [rig.publish(at(1, 1), header(0)), rig.publish(at(2), header(0))] == [0, 0]
    rig.commit()
    assert rig.publish(at(1), header(0)) == 6
    assert rig.stream.partitions[at(1)].end == 6
    assert rig.stream.partitions[at(1)].bytes == 3 * len(PAYLOAD)


def test_an_entry_out_of_order_or_at_another_offset_stops_the_peer() -> None:
    rig = Rig()
    rig.publish(at(1), header(0))
    rig.publish(at(1), header(0))
    first, second = rig.waiting
    with pytest.raises(InternalError, match="entry 2 after 0"):
        SlotStream(Slot(1)).apply(second)
    rig.stream.apply(first)
    with pytest.raises(InternalError, match="entry 1 after 1"):
        rig.stream.apply(first)
    twice = next_entry(first, EntryKind.PUBLISH, first.body, 0)
    with pytest.raises(InternalError, match="offsets are dense"):
        rig.stream.apply(twice)


def test_after_a_failed_append_the_next_batches_get_the_same_offsets_and_sequences() -> None:
    rig = Rig()
    assert rig.publish(at(1), header(1, 0, 2), 1) == 0
    rig.commit()
    assert [rig.publish(at(1), header(1, s, 2), s) for s in (2, 4)] == [2, 4]
    assert rig.fail() == [ref(2), ref(4)]
    assert isinstance(rig.publish(at(1), header(1, 4, 2)), MeshqError), "its predecessor is not there"
    assert [rig.publish(at(1), header(1, s, 2), s) for s in (2, 4)] == [2, 4]
    stored = rig.commit()
    assert [x.base_offset for x in stored if isinstance(x, Stored)] == [2, 4]
    assert [e.index for e in rig.entries] == [1, 2, 3]


def test_a_repeat_of_a_batch_on_its_way_waits_for_the_same_receipt() -> None:
    rig = Rig()
    assert rig.publish(at(1), header(1), 1) == 0
    assert rig.publish(at(1), header(1), 2) == 1
    assert rig.publish(at(1), header(1), 2) == 1, "the same request once more is no further waiter"
    (stored,) = rig.commit()
    assert isinstance(stored, Stored)
    assert stored.refs == (ref(1), ref(2))
    again = rig.publish(at(1), header(1), 3)
    assert isinstance(again, BatchReceipt)
    assert again.base_offset == 0


def test_repeats_of_a_batch_on_its_way_are_bounded() -> None:
    rig = Rig()
    rig.publish(at(1), header(1), 0)
    for n in range(1, REFS_MAX):
        assert rig.publish(at(1), header(1), n) == 1
    assert isinstance(rig.publish(at(1), header(1), REFS_MAX), Overloaded)


def test_without_a_producer_nothing_is_remembered_and_every_batch_is_new() -> None:
    rig = Rig()
    assert [rig.publish(at(1), header(0)) for _ in range(2)] == [0, 1]
    rig.commit()
    assert len(rig.stream.producers) == 0


def test_another_clients_producer_of_the_same_id_is_another_producer() -> None:
    rig = Rig()
    rig.publish(at(1), header(1))
    rig.commit()
    body = rig.stream.judge(at(1), header(1), b"o" * 32, ref(1), timestamp_ms=rig.now)
    assert isinstance(body, PublishBody)


def test_a_producers_state_expires_by_the_logs_time_also_while_it_waits_for_the_disk() -> None:
    rig = Rig()
    rig.publish(at(1), header(1))
    rig.now += PRODUCER_IDLE_MS + 1
    assert isinstance(rig.publish(at(1), header(1, 1)), UnknownProducer)
    rig.commit()
    assert isinstance(rig.publish(at(1), header(1, 1)), UnknownProducer)
    assert rig.publish(at(1), header(1, 0)) == 1


def test_a_full_table_refuses_new_producers_and_serves_those_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_PER_SLOT_MAX", 2)
    rig = Rig()
    rig.publish(at(1), header(1))
    rig.commit()
    rig.publish(at(1), header(2))
    assert isinstance(rig.publish(at(1), header(3)), Overloaded), "one is remembered, one on its way to disk"
    rig.commit()
    assert isinstance(rig.publish(at(1), header(3)), Overloaded)
    assert [rig.publish(at(1), header(n, 1)) for n in (1, 2)] == [2, 3]
    assert rig.publish(at(1), header(0)) == 4


def test_a_table_full_of_idle_producers_takes_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_PER_SLOT_MAX", 2)
    rig = Rig()
    for n in (1, 2):
        rig.publish(at(1), header(n))
    rig.commit()
    rig.now += PRODUCER_IDLE_MS + 1
    assert [rig.publish(at(1), header(n)) for n in (3, 4)] == [2, 3]
    assert isinstance(rig.publish(at(1), header(5)), Overloaded)
    rig.commit()
    assert len(rig.stream.producers) == 2


def test_what_two_leaders_say_of_the_same_records_counts_once() -> None:
    rig, where = Rig(), at(1)
    for _ in range(4):
        rig.publish(where, header(0))
    rig.commit()
    size = rig.stream.partitions[where].bytes
    said = [encode_retain(RetainBody(*where, 0, low, size // 4 * low)) for low in (1, 2)]
    rig.waiting += [rig.append(EntryKind.RETAIN, body) for body in (*said, said[0])]
    assert rig.commit() == [Retained(where, 0, 1), None, None]
    state = rig.stream.partitions[where]
    assert (state.low, state.end, state.bytes) == (1, 4, size // 4 * 3)
    rig.checkpoint()
    again = rig.rebuilt()
    assert (again.partitions, again.expired) == (rig.stream.partitions, {where: 1})


def test_a_deleted_topic_takes_its_partitions_and_producers_along() -> None:
    rig = Rig()
    for where in (at(1), at(1, 1), at(2)):
        rig.publish(where, header(1))
    rig.commit()
    rig.checkpoint()
    rig.drop(topic(1))
    (dropped,) = rig.commit()
    assert dropped == Dropped((at(1), at(1, 1)))
    assert list(rig.stream.partitions) == [at(2)]
    assert len(rig.stream.producers) == 1
    assert rig.stream.dropping == {at(1), at(1, 1)}
    assert not rig.stream.holds(topic(1))
    rig.checkpoint()
    assert rig.rebuilt().dropping == {at(1), at(1, 1)}, "a restart knows what is still to be deleted"
    for where in (at(1), at(1, 1)):
        rig.stream.on_payloads_deleted(where, None)
    rig.checkpoint()
    assert {row[:1] for row in rig.rows} == {b"A", b"P", b"Q"}
    assert len(rig.rows) == 3


def test_dropping_what_is_not_here_changes_nothing() -> None:
    rig = Rig()
    rig.drop(topic(7))
    assert rig.commit() == [Dropped(())]
    assert rig.stream.applied_index == 1


def test_rows_that_did_not_reach_the_disk_are_said_again() -> None:
    rig = Rig()
    rig.publish(at(1), header(1))
    rig.commit()
    lost = rig.stream.take_rows()
    assert not rig.stream.dirty
    rig.stream.mark_again(name for name, _ in lost)
    assert rig.stream.dirty
    assert dict(rig.stream.take_rows()) == dict(lost)


def test_only_what_changed_is_said() -> None:
    rig = Rig()
    rig.publish(at(1), header(1))
    rig.publish(at(2), header(0))
    rig.commit()
    assert len(rig.stream.take_rows()) == 4
    rig.publish(at(2), header(0))
    rig.commit()
    assert [name[:1] for name, _ in rig.stream.take_rows()] == [b"A", b"P"]


def test_a_row_that_cannot_be_read_is_corruption() -> None:
    with pytest.raises(StoreCorrupt, match="slot 1"):
        SlotStream(Slot(1)).restore([(b"P" + bytes(20), b"\xc1")])


def test_an_entry_that_buries_what_is_not_dying_stops_nobody() -> None:
    """Proposed twice: both have their place in the partition, and what comes behind them is dense."""
    rig = Rig()
    key, graves = at(1), at(2)

    def group(*ops: Op) -> GroupBody:
        return GroupBody(*key, "g", ops)

    for ops in (
        (Open(1, 1_000, 0, 0), Grant(b"m", ((0, 2),))),
        (Settle(Verdict.REJECT, b"m", ((0, 1, 1),)),),
    ):
        rig.stream.apply(rig.append(EntryKind.GROUP, encode_group(group(*ops))))
    found = []
    for _ in range(2):
        body = rig.stream.letters(graves, 1, 0, group(Bury(((0, 1),))))
        entry = rig.append(EntryKind.DEAD_LETTER, encode_publish(body, PAYLOAD))
        rig.stream.on_proposed(entry, body, None)
        found.append(entry)
    applied = [rig.stream.apply(entry) for entry in found]
    assert [x.group.refused for x in applied if isinstance(x, Moved)] == [((),), (((0, 1),),)]
    assert rig.stream.partitions[graves].end == 2
    assert rig.stream.letters(graves, 1, 0, group()).base_offset == 2
    state = rig.stream.groups.get(GroupKey(key, "g"))
    assert isinstance(state, GroupState) and (state.buried, state.pending) == (1, 1)
