"""The log of a slot: nothing is committed before it is durable, and a copy takes only what continues it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.entries import GENESIS_CHAIN, Entry, EntryKind, follows
from meshq.errors import RemoteProtocolError
from meshq.ids import Slot
from meshq.replication.log import SlotLog


def make_log() -> SlotLog:
    return SlotLog(Slot(3))


def propose(log: SlotLog, body: bytes = b"x", wall_ms: int = 1_000) -> Entry:
    (entry,) = log.propose(EntryKind.PUBLISH, body, wall_ms=wall_ms).entries
    return entry


def some_entries(count: int) -> list[Entry]:
    log = make_log()
    return [propose(log, b"%d" % i) for i in range(count)]


def test_nothing_is_committed_before_the_disk_has_it() -> None:
    log = make_log()
    first, second = propose(log), propose(log)
    assert (log.last_index, log.commit_index) == (2, 0)
    assert log.on_appended(0).entries == ()
    assert log.on_appended(1).entries == (first,)
    assert log.commit_index == 1
    assert log.on_appended(2).entries == (second,)


def test_one_report_commits_everything_up_to_its_index_in_order_and_once() -> None:
    log = make_log()
    entries = tuple(propose(log) for _ in range(5))
    assert log.on_appended(4).entries == entries[:4]
    assert log.on_appended(4).entries == ()
    assert log.on_appended(9).entries == entries[4:]


def test_entries_are_a_chain_from_genesis() -> None:
    chain = GENESIS_CHAIN
    for index, entry in enumerate(some_entries(4), 1):
        assert entry.index == index
        assert follows(chain, entry)
        chain = entry.chain


def test_a_failed_append_ends_the_log_where_it_is_durable() -> None:
    log = make_log()
    kept = propose(log, b"kept", 1_000)
    log.on_appended(1)
    lost = (propose(log, b"a", 9_000), propose(log, b"b", 9_000))
    assert log.on_append_failed() == lost
    assert (log.last_index, log.commit_index, log.last_timestamp_ms) == (1, 1, 1_000)
    again = propose(log, b"c", 2_000)
    assert again.index == 2
    assert follows(kept.chain, again)
    assert log.on_append_failed() == (again,)
    assert log.on_append_failed() == ()


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_time_never_goes_back_whatever_the_clock_does(clock: list[int]) -> None:
    log = make_log()
    times = [propose(log, wall_ms=at).timestamp_ms for at in clock]
    assert times == sorted(times)
    assert all(time >= at for time, at in zip(times, clock, strict=True))


def test_time_goes_on_from_the_last_entry_after_a_restart() -> None:
    last = propose(make_log(), wall_ms=5_000)
    log = SlotLog(Slot(3), last=last)
    assert (log.last_index, log.commit_index) == (1, 1)
    entry = propose(log, wall_ms=10)
    assert (entry.index, entry.timestamp_ms) == (2, 5_000)
    assert follows(last.chain, entry)


def test_a_follower_takes_the_owners_entries_in_order() -> None:
    log = make_log()
    entries = some_entries(3)
    for entry in entries:
        append = log.receive(entry)
        assert append is not None
        assert append.entries == (entry,)
    assert log.commit_index == 0
    assert log.on_appended(3).entries == tuple(entries)
    assert propose(log).index == 4


def test_a_follower_passes_over_what_it_has() -> None:
    log = make_log()
    (entry,) = some_entries(1)
    assert log.receive(entry) is not None
    assert log.receive(entry) is None
    log.on_appended(1)
    assert log.receive(entry) is None


def test_a_follower_refuses_a_hole_and_stays_as_it_is() -> None:
    log = make_log()
    entries = some_entries(3)
    log.receive(entries[0])
    with pytest.raises(RemoteProtocolError, match="entry 3 does not continue"):
        log.receive(entries[2])
    assert log.last_index == 1
    assert log.receive(entries[1]) is not None


@pytest.mark.parametrize("changed", ["body", "timestamp_ms", "term", "chain"])
def test_a_follower_refuses_an_altered_entry_and_other_chains(changed: str) -> None:
    log = make_log()
    first, second = some_entries(2)
    log.receive(first)
    values = {"body": b"other", "timestamp_ms": 7, "term": 9, "chain": bytes(8)}
    with pytest.raises(RemoteProtocolError, match="does not continue"):
        log.receive(dataclasses.replace(second, **{changed: values[changed]}))
    assert log.last_index == 1


@given(st.lists(st.sampled_from(["propose", "append", "fail"]), max_size=40), st.data())
def test_what_was_committed_stays_whatever_fails_later(steps: list[str], data: st.DataObject) -> None:
    log = make_log()
    committed: list[Entry] = []
    chain = GENESIS_CHAIN
    for number, step in enumerate(steps):
        if step == "propose":
            propose(log, b"%d" % number, number)
        elif step == "append":
            committed += log.on_appended(data.draw(st.integers(0, log.last_index))).entries
        else:
            log.on_append_failed()
            assert log.last_index == log.commit_index
        assert log.commit_index == len(committed) <= log.last_index
    for index, entry in enumerate(committed, 1):
        assert entry.index == index
        assert follows(chain, entry)
        chain = entry.chain
