"""Replicas' messages on the wire: many slots' in one, payloads in frames of their own.

A `Replicate` carries a list of these structs; the payloads of all entries in it follow as frames, in the
order of the entries, each as the producer made it. An entry says itself whether it has a payload.
`docs/protocol.md` is the specification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from meshq.batch import Buffer
from meshq.entries import Entry, decode_entry
from meshq.errors import RemoteProtocolError, StoreCorrupt
from meshq.ids import PeerId, Slot
from meshq.messages import U16, U63, Id16, Replicate
from meshq.replication.quorum import LEARNERS_MAX, VOTERS_MAX, Config, Node
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

ENTRIES_MAX = 4_096  # in one message; more: `RemoteProtocolError`
Chain = Annotated[bytes, Meta(max_length=8)]


class SlotMessage(Struct, frozen=True, array_like=True):
    """To and from which disks of the two peers, because a wiped one is another node."""

    slot: U16
    from_disk: Id16
    to_disk: Id16
    what: msgspec.Raw


class _Append(Struct, frozen=True, array_like=True, tag=3):
    term: U63
    prev: tuple[U63, U63, Chain]
    entries: Annotated[list[tuple[U63, bytes]], Meta(max_length=ENTRIES_MAX)]
    commit: U63
    round: U63
    everywhere: U63 = 0  # entries up to this index have no payload frames


class _Snapshot(Struct, frozen=True, array_like=True, tag=5):
    term: U63
    last: tuple[U63, U63, Chain]
    voters: Annotated[list[tuple[Id16, Id16]], Meta(max_length=VOTERS_MAX)]
    outgoing: Annotated[list[tuple[Id16, Id16]], Meta(max_length=VOTERS_MAX)]
    learners: Annotated[list[tuple[Id16, Id16]], Meta(max_length=LEARNERS_MAX)]
    timestamp_ms: U63
    position: U63
    data: bytes
    done: bool
    witnesses: Annotated[list[tuple[Id16, Id16]], Meta(max_length=2 * VOTERS_MAX)] = []


_Wire = RequestVote | VoteReply | _Append | AppendReply | _Snapshot | SnapshotReply | TimeoutNow
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Wire] = msgspec.msgpack.Decoder(_Wire)
_outer = msgspec.msgpack.Decoder(SlotMessage)


def encode(slot: Slot, frm: Node, to: Node, message: Message) -> tuple[msgspec.Raw, list[Buffer]]:
    """One message of a Replicate, and its payload frames."""
    payloads: list[Buffer] = []
    what: Any = message
    if isinstance(message, AppendEntries):
        m = message
        entries = [(i.entry.index, i.entry.encode()) for i in m.items]
        payloads = [i.payload for i in m.items if has_payload(i.entry) and i.entry.index > m.everywhere]
        prev = (m.prev.index, m.prev.term, m.prev.chain)
        what = _Append(m.term, prev, entries, m.commit, m.round, m.everywhere)
    elif isinstance(message, InstallSnapshot):
        config, last = message.meta.config, message.meta.last
        what = _Snapshot(
            message.term,
            (last.index, last.term, last.chain),
            _plain(config.voters),
            _plain(config.outgoing),
            _plain(config.learners),
            message.meta.timestamp_ms,
            message.position,
            bytes(message.data),
            message.done,
            _plain(config.witnesses),
        )
    raw = msgspec.Raw(_encoder.encode(what))
    return msgspec.Raw(_encoder.encode(SlotMessage(slot, frm.disk, to.disk, raw))), payloads


def decode(
    message: Replicate, payloads: Sequence[Buffer], *, check: Callable[[Entry, Buffer], None]
) -> list[tuple[SlotMessage, Message]]:
    """What a peer sent, all of it or nothing. `check` raises when a payload is not the entry's.

    Raises: RemoteProtocolError.
    """
    frames = iter(payloads)
    try:
        found = []
        for raw in message.messages:
            outer = _outer.decode(raw)
            found.append((outer, _inner(_decoder.decode(outer.what), frames, check)))
    except (msgspec.MsgspecError, StoreCorrupt, ValueError, StopIteration) as e:
        raise RemoteProtocolError(f"replication that cannot be read: {e}") from None
    if next(frames, None) is not None:
        raise RemoteProtocolError("more payload frames than entries that have one")
    return found


def _plain(nodes: Sequence[Node]) -> list[tuple[bytes, bytes]]:
    return [(n.peer, n.disk) for n in nodes]


def has_payload(entry: Entry) -> bool:
    return entry.kind.has_payload


def _inner(wire: _Wire, frames: Any, check: Callable[[Entry, Buffer], None]) -> Message:
    if isinstance(wire, _Append):
        items = []
        for index, data in wire.entries:
            entry = decode_entry(index, data)
            payload: Buffer = b""
            if has_payload(entry) and index > wire.everywhere:
                payload = next(frames)
                check(entry, payload)
            items.append(Item(entry, payload))
        _check_dense(wire.prev[0], items)
        prev = Position(*wire.prev)
        return AppendEntries(wire.term, prev, tuple(items), wire.commit, wire.round, wire.everywhere)
    if isinstance(wire, _Snapshot):
        members = (wire.voters, wire.outgoing, wire.learners, wire.witnesses)
        config = Config(*(tuple(Node(PeerId(p), d) for p, d in x) for x in members))
        meta = SnapshotMeta(Position(*wire.last), config, wire.timestamp_ms)
        return InstallSnapshot(wire.term, meta, wire.position, wire.data, wire.done)
    return wire


def _check_dense(before: int, items: Sequence[Item]) -> None:
    for i, item in enumerate(items, before + 1):
        if item.entry.index != i:
            raise ValueError(f"entry {item.entry.index} where {i} should be")
