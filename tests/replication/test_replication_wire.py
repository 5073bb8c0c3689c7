"""Replicas' messages on the wire: what goes in comes out, and whatever comes in is a result or an error."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshq import batch
from meshq.batch import Buffer
from meshq.entries import GENESIS_CHAIN, Entry, EntryKind, make_entry
from meshq.errors import RemoteProtocolError
from meshq.ids import PeerId, Slot
from meshq.messages import Replicate, decode_request, encode
from meshq.replication import wire
from meshq.replication.quorum import Node, config_of
from meshq.replication.words import (
    AppendEntries,
    AppendReply,
    InstallSnapshot,
    Item,
    Message,
    Position,
    RequestVote,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
)
from meshq.streams.publish import PublishBody, check_payload, encode_publish

ME, YOU = (Node(PeerId(name * 16), name * 16) for name in (b"m", b"y"))
SLOT = Slot(3)


def published(values: list[bytes], index: int = 1, chain: bytes = GENESIS_CHAIN) -> Item:
    data = batch.frame(batch.seal([batch.RawRecord(None, v) for v in values], base_timestamp_ms=0))
    header = batch.read_header(data)
    body = PublishBody(b"t" * 16, 0, 0, header.count, b"k" * 32, header.producer_id, 0, 0, header.body_crc, 0)
    entry = make_entry(
        chain, index=index, term=2, kind=EntryKind.PUBLISH, timestamp_ms=5, body=encode_publish(body, data)
    )
    return Item(entry, data)


FIRST = published([b"a", b"b"])
SECOND = Item(make_entry(FIRST.entry.chain, index=2, term=2, kind=EntryKind.NOOP, timestamp_ms=6, body=b""))
THIRD = published([b"c"], 3, SECOND.entry.chain)
META = SnapshotMeta(Position(9, 2, b"c" * 8), config_of([ME, YOU]), 77)
MESSAGES: list[Message] = [
    RequestVote(3, 9, 2, True, False),
    VoteReply(3, True, True),
    AppendEntries(2, Position(0, 0, GENESIS_CHAIN), (FIRST, SECOND, THIRD), 1, 4),
    AppendEntries(2, Position(7, 2, b""), (), 7),
    AppendReply(2, False, 5, 1, 3),
    InstallSnapshot(2, META, 4_096, b"piece", True),
    SnapshotReply(2, 9, 4_101),
    TimeoutNow(2),
]


def over(*messages: Message) -> tuple[Replicate, list[Buffer]]:
    """As it arrives at the other side."""
    raws, payloads = [], []
    for message in messages:
        raw, frames = wire.encode(SLOT, ME, YOU, message)
        raws.append(raw)
        payloads += frames
    arrived = decode_request(encode(Replicate(raws)))
    assert isinstance(arrived, Replicate)
    return arrived, payloads


def decode(message: Replicate, payloads: list[Buffer]) -> list[Any]:
    return wire.decode(message, payloads, check=check_payload)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    ((outer, inner),) = decode(*over(message))
    assert (outer.slot, outer.from_disk, outer.to_disk) == (SLOT, ME.disk, YOU.disk)
    assert inner == message


def test_many_slots_messages_travel_in_one_and_payloads_as_the_producer_made_them() -> None:
    replicate, payloads = over(*MESSAGES)
    assert [inner for _, inner in decode(replicate, payloads)] == MESSAGES
    assert payloads == [FIRST.payload, THIRD.payload]
    assert payloads[0] is FIRST.payload, "not copied"


@pytest.mark.parametrize(
    "payloads",
    [
        [],
        [FIRST.payload],
        [THIRD.payload, FIRST.payload],
        [FIRST.payload, THIRD.payload, b"one more"],
        [bytes(FIRST.payload)[:-1], THIRD.payload],
    ],
    ids=range(5),
)
def test_a_payload_that_is_not_the_entrys_refuses_all_of_it(payloads: list[Buffer]) -> None:
    replicate, _ = over(MESSAGES[2])
    with pytest.raises(RemoteProtocolError):
        decode(replicate, payloads)


def test_entries_that_leave_a_hole_are_refused() -> None:
    replicate, payloads = over(AppendEntries(2, Position(0, 0, GENESIS_CHAIN), (FIRST, THIRD), 0))
    with pytest.raises(RemoteProtocolError, match="entry 3 where 2 should be"):
        decode(replicate, payloads)


@settings(max_examples=400)
@given(st.data())
def test_whatever_arrives_is_a_result_or_an_error(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(MESSAGES))
    raw, payloads = wire.encode(SLOT, ME, YOU, message)
    mangled = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mangled) - 1))
        mangled[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(mangled)))
    for body in (bytes(mangled), bytes(raw)[:cut], data.draw(st.binary(max_size=60))):
        try:
            arrived = decode_request(msgspec.msgpack.encode([56, [msgspec.Raw(body)]]))
            decode(arrived, payloads)  # type: ignore[arg-type]
        except RemoteProtocolError:
            pass


def test_an_entry_says_itself_whether_it_has_a_payload() -> None:
    entries: list[Entry] = [FIRST.entry, SECOND.entry]
    assert [wire.has_payload(e) for e in entries] == [True, False]


def test_a_payload_that_had_expired_comes_empty() -> None:
    replicate, _ = over(MESSAGES[2])
    ((_, inner),) = decode(replicate, [b"", THIRD.payload])
    assert [bytes(item.payload) for item in inner.items if item.entry.kind.has_payload] == [
        b"",
        THIRD.payload,
    ]
