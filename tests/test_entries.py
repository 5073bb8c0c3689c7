"""Log entries: each is checked by itself, and the chain holds them in their order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from meshq.entries import (
    GENESIS_CHAIN,
    Entry,
    EntryKind,
    Payload,
    Write,
    decode_entry,
    follows,
    make_entry,
)
from meshq.errors import StoreCorrupt
from meshq.ids import PartitionKey, Slot, TopicId

U63 = st.integers(0, (1 << 63) - 1)


def log_of(bodies: list[bytes]) -> list[Entry]:
    log: list[Entry] = []
    chain = GENESIS_CHAIN
    for index, body in enumerate(bodies, 1):
        log.append(
            make_entry(
                chain, index=index, term=1, kind=EntryKind.PUBLISH, timestamp_ms=1_000 + index // 3, body=body
            )
        )
        chain = log[-1].chain
    return log


def verifies(log: list[Entry], chain: bytes = GENESIS_CHAIN) -> bool:
    for entry in log:
        if not follows(chain, entry):
            return False
        chain = entry.chain
    return True


@given(st.integers(1, (1 << 63) - 1), U63, st.sampled_from(EntryKind), U63, st.binary(max_size=300))
def test_an_entry_reads_back_as_it_was_written(
    index: int, term: int, kind: EntryKind, timestamp_ms: int, body: bytes
) -> None:
    entry = make_entry(GENESIS_CHAIN, index=index, term=term, kind=kind, timestamp_ms=timestamp_ms, body=body)
    assert decode_entry(index, entry.encode()) == entry
    assert decode_entry(index, memoryview(entry.encode())) == entry
    assert follows(GENESIS_CHAIN, entry)


def test_every_single_bit_counts() -> None:
    data = log_of([b"the body of an entry"])[0].encode()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreCorrupt, match="entry 1"):
            decode_entry(1, flipped)


def test_an_entry_cut_short_is_corrupt() -> None:
    data = log_of([b"body"])[0].encode()
    for size in range(len(data)):
        with pytest.raises(StoreCorrupt):
            decode_entry(1, data[:size])


def test_a_kind_from_a_later_version_is_not_guessed_at() -> None:
    entry = log_of([b"body"])[0]
    later = replace(entry, kind=200)  # type: ignore[arg-type]
    with pytest.raises(StoreCorrupt, match="kind 200, which this version does not know"):
        decode_entry(1, later.encode())


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_a_log_as_it_was_made_verifies(bodies: list[bytes]) -> None:
    log = log_of(bodies)
    assert verifies(log)
    for start in range(1, len(log)):
        assert verifies(log[start:], log[start - 1].chain)


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=8), st.data())
def test_a_log_in_another_order_does_not_verify(bodies: list[bytes], data: st.DataObject) -> None:
    log = log_of(bodies)
    other = data.draw(st.permutations(log))
    assert verifies(other) == (other == log)


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=8), st.data())
def test_a_log_with_an_entry_missing_does_not_verify(bodies: list[bytes], data: st.DataObject) -> None:
    log = log_of(bodies)
    gone = data.draw(st.integers(0, len(log) - 2))
    assert not verifies(log[:gone] + log[gone + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        {"index": 9},
        {"term": 2},
        {"kind": EntryKind.DROP_TOPIC},
        {"timestamp_ms": 999},
        {"body": b"another"},
        {"chain": bytes(8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_altered_entry_breaks_the_chain_even_under_a_right_checksum(change: dict[str, object]) -> None:
    log = log_of([b"one", b"two", b"three"])
    log[1] = replace(log[1], **change)  # type: ignore[arg-type]
    assert decode_entry(log[1].index, log[1].encode()) == log[1]
    assert not verifies(log)


def test_an_entry_that_was_moved_does_not_verify_at_its_new_index() -> None:
    first, second = log_of([b"same", b"same"])
    assert not follows(first.chain, decode_entry(1, second.encode()))


def test_a_history_that_was_made_again_differs_from_there_on() -> None:
    ours, theirs = log_of([b"a", b"b", b"c"]), log_of([b"a", b"x", b"c"])
    assert [o.chain == t.chain for o, t in zip(ours, theirs, strict=True)] == [True, False, False]


def test_a_write_counts_its_payloads() -> None:
    key = PartitionKey(TopicId(bytes(16)), 0)
    payloads = tuple(Payload(key, offset, 1, 0, bytes(100)) for offset in range(3))
    assert Write(1, Slot(0)).payload_bytes() == 0
    assert Write(1, Slot(0), payloads=payloads).payload_bytes() == 300
