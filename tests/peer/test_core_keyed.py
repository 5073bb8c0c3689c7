"""Keyed groups at one peer: one key, one member, in order; a key moves when it is drained."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.ids import Session
from meshq.messages import (
    ACK,
    KEYED,
    NACK,
    REJECT,
    RELEASE,
    HandOut,
    Produce,
    ProduceItem,
    TopicInfo,
    Unread,
)
from meshq.peer.core import events as e
from meshq.streams.groups import keyed
from tests.peer import test_core_consuming as queue
from tests.peer.single import Single
from tests.peer.test_core_consuming import ONE, TWO, got, settle
from tests.peer.test_core_groups_asked import group

Got = tuple[int, int, int, int]


def ready(*batches: str, **about: Any) -> tuple[Single, TopicInfo]:
    """A peer with a topic of batches whose records' keys these are; `-`: a record without a key."""
    peer, info = queue.ready(**about)
    for keys in batches:
        produce(peer, info, keys)
    peer.out.clear()
    return peer, info


def produce(peer: Single, info: TopicInfo, keys: str) -> None:
    records = [batch.RawRecord(None if k == "-" else k.encode(), b"%d" % i) for i, k in enumerate(keys)]
    payload = batch.frame(batch.seal(records, base_timestamp_ms=0), producer_id=batch.NO_PRODUCER, epoch=0)
    peer.send(Produce([ProduceItem(1, info.topic_id, 0, info.version)]), payload)


def join(peer: Single, info: TopicInfo, session: Session = ONE, **about: Any) -> list[Any]:
    return queue.join(peer, info, session, mode=KEYED, **about)


def held(records: list[Got]) -> dict[int, Got]:
    """One by one, by offset."""
    return {o: (o, o + 1, tries, lease) for first, end, tries, lease in records for o in range(first, end)}


def take(peer: Single, session: Session = ONE) -> dict[int, Got]:
    while any(isinstance(x, e.FetchBatches) for x in peer.out):
        peer.fetch()
    return held(got(peer, session))


def test_a_key_is_with_one_member_and_its_records_wait_until_they_are_done() -> None:
    peer, info = ready("aba")
    join(peer, info)
    first = take(peer)
    assert list(first) == [0, 1, 2]
    join(peer, info, TWO)
    produce(peer, info, "abc")
    assert (list(take(peer)), list(take(peer, TWO))) in (([5], []), ([], [5])), "a and b are busy"
    settle(peer, info, ACK, first[1])
    assert [*take(peer), *take(peer, TWO)] == [4]
    settle(peer, info, ACK, first[0])
    assert [*take(peer), *take(peer, TWO)] == [], "a is not drained"
    settle(peer, info, ACK, first[2])
    assert [*take(peer), *take(peer, TWO)] == [3]


def test_keys_are_shared_out_and_what_has_none_has_no_order() -> None:
    peer, info = ready()
    join(peer, info)
    join(peer, info, TWO)
    produce(peer, info, "aabbccdd------")
    one, two = take(peer), take(peer, TWO)
    assert len(one) == len(two) == 7
    keys = "aabbccdd"
    assert {keys[o] for o in one if o < 8}.isdisjoint({keys[o] for o in two if o < 8})
    session, unkeyed = (ONE, one[8]) if 8 in one else (TWO, two[8])
    settle(peer, info, NACK, unkeyed, session=session, delay=0)
    peer.tick(0.1)
    assert [*take(peer), *take(peer, TWO)] == [8], "alone"


def test_what_comes_back_takes_what_is_behind_it_along_and_comes_first_again() -> None:
    peer, info = ready("aaab")
    join(peer, info)
    records = take(peer)
    assert settle(peer, info, NACK, records[0], delay=1_000) == []
    assert settle(peer, info, ACK, records[1]) == [(1, 2)], "it was taken back"
    assert settle(peer, info, ACK, records[3]) == []
    peer.tick(0.5)
    assert take(peer) == {}
    peer.tick(0.6)
    peer.tick(0.1)
    again = take(peer)
    assert [(o, tries) for o, (_, _, tries, _) in again.items()] == [(0, 2), (1, 1), (2, 1)]


def test_what_is_done_in_another_order_is_done_and_what_waits_waits_for_all_of_it() -> None:
    peer, info = ready("aaa")
    join(peer, info, in_flight=2)
    records = take(peer)
    assert list(records) == [0, 1]
    assert settle(peer, info, ACK, records[1]) == []
    assert take(peer) == {}
    assert settle(peer, info, NACK, records[0], delay=0) == []
    peer.tick(0.1)
    assert list(take(peer)) == [0, 2], "together, in order"


def test_a_rejected_record_holds_up_nobody() -> None:
    peer, info = ready("aa")
    join(peer, info, in_flight=1)
    (record,) = take(peer).values()
    assert settle(peer, info, REJECT, record) == []
    assert list(take(peer)) == [1]


def test_a_key_goes_to_another_member_when_its_own_has_left_in_order() -> None:
    peer, info = ready("aba")
    join(peer, info)
    take(peer)
    join(peer, info, TWO)
    produce(peer, info, "a")
    assert take(peer, TWO) == {}
    peer.send(Unread(1))
    peer.tick(0.1)
    assert list(take(peer, TWO)) == [0, 1, 2, 3]


def test_what_is_passed_by_is_bounded_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "WAITING_MAX", 4)
    peer, info = ready("aaaaaaaab")
    join(peer, info, in_flight=1)
    seen = []
    join(peer, info, TWO, in_flight=1)
    for _ in range(12):
        for session in (ONE, TWO):
            for offset, record in take(peer, session).items():
                seen.append(offset)
                settle(peer, info, ACK, record, session=session)
    assert [offset for offset in seen if offset < 8] == list(range(8))
    assert seen.index(8) >= 4, "b was too far behind the a that wait"


def test_a_new_leader_reads_the_keys_of_what_is_out_before_it_hands_out_anything() -> None:
    peer, info = ready("aba")
    join(peer, info, in_flight=2)
    assert list(take(peer)) == [0, 1]
    peer.start()
    for session in (ONE, TWO):
        peer.hello(session=session)
    join(peer, info, TWO)
    produce(peer, info, "ac")
    assert list(take(peer, TWO)) == [4], "a and b are with who held them"
    peer.tick(10.1)
    peer.tick(1)
    again = take(peer, TWO)
    assert list(again) == [0, 1, 2, 4]
    settle(peer, info, ACK, again[0], again[2], session=TWO)
    assert list(take(peer, TWO)) == [3], "it was in another batch"


def test_a_record_given_back_unseen_takes_those_behind_it_along() -> None:
    peer, info = ready("aab")
    join(peer, info)
    records = take(peer)
    assert settle(peer, info, RELEASE, records[0]) == []
    peer.tick(0.1)
    assert [(o, t) for o, (_, _, t, _) in take(peer).items()] == [(0, 1), (1, 1)]


def test_nothing_is_handed_out_before_the_grant_is_on_disk() -> None:
    peer, info = ready("ab")
    join(peer, info, in_flight=0)
    peer.hold = True
    join(peer, info)
    assert take(peer) == {}
    peer.write()
    assert list(take(peer)) == [0, 1]
    assert [m for m in peer.heard() if isinstance(m, HandOut)] == []


def test_other_keys_are_looked_for_behind_what_waits() -> None:
    peer, info = ready()
    join(peer, info, in_flight=1)
    for key, size in ((b"a", 900_000), (b"a", 900_000), (b"a", 900_000), (b"b", 1)):
        payload = batch.frame(
            batch.seal([batch.RawRecord(key, b"x" * size)], base_timestamp_ms=0),
            producer_id=batch.NO_PRODUCER,
            epoch=0,
        )
        peer.send(Produce([ProduceItem(1, info.topic_id, 0, info.version)]), payload)
    assert list(take(peer)) == [0]
    join(peer, info, TWO, in_flight=1)
    assert list(take(peer, TWO)) == [3]


def test_dead_letters_that_are_put_back_wait_for_their_keys_and_a_reset_begins_anew() -> None:
    peer, info = ready("aab")
    join(peer, info)
    records = take(peer)
    settle(peer, info, REJECT, records[0])
    for _ in range(3):
        peer.fetch()
    assert group("redrive", peer)["partitions"][0]["redriven"] == 1
    assert take(peer) == {}, "the second a is with a member"
    settle(peer, info, ACK, records[1])
    assert list(take(peer)) == [0]
    group("reset", peer, to="earliest")
    assert list(take(peer)) == [0, 1, 2]
