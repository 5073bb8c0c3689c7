"""Gossip on the wire: everything fits, and whatever arrives is a datagram or a protocol error."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.errors import RemoteProtocolError, UsageError
from meshq.gossip import wire
from meshq.gossip.wire import Digest, Gossip, Signed
from meshq.gossip.words import (
    DatagramReceived,
    Tick,
)
from meshq.transport import sealed
from tests.gossip.scripts import claim, knowing, record, signed
from tests.gossip.simulation import address_of, member, peer_id, sign_as, verify

TREES = st.recursive(
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=20)
    | st.text(max_size=20)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


def test_payloads_fit_a_sealed_datagram_and_nothing_is_lost_in_packing() -> None:
    assert wire.SEAL_BYTES == sealed.OVERHEAD_BYTES
    claims = [claim(n, n + 1, boot=2**62, version=2**62) for n in range(1, 301)]
    digests = [Digest(peer_id(n), 2**62, n) for n in range(1, 301)]
    records = [signed(n, boot=2**60) for n in range(1, 60)]
    wants = [peer_id(n) for n in range(300)]
    head = Gossip(2**62, 2**62, 2**62, peer_id(1), 2**62, 2**62, True)
    payloads = wire.pack(head, records=records, claims=claims, digests=digests, wants=wants)
    assert max(map(len, payloads)) <= sealed.PAYLOAD_BYTES_MAX
    parts = [wire.decode(x) for x in payloads]
    assert [x for p in parts for x in p.claims] == claims
    assert [x for p in parts for x in p.digests] == digests
    assert [x for p in parts for x in p.records] == records
    assert [x for p in parts for x in p.wants] == wants
    assert [p.ask for p in parts] == [2**62] + [0] * (len(parts) - 1)
    assert all(p.hearsay for p in parts)


def test_the_largest_record_fits() -> None:
    m = member(1, addresses=["x" * 250 + f":{n}" for n in range(8)])
    own = wire.sign_record(m.own, sign_as(peer_id(1)))
    (payload,) = wire.pack(Gossip(ask=2**62), records=[own], claims=[claim(1, 2)])
    assert len(payload) <= sealed.PAYLOAD_BYTES_MAX


def test_a_name_that_is_too_long_is_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match="name"):
        wire.sign_record(msgspec.structs.replace(record(1), name="n" * 256), sign_as(peer_id(1)))


@pytest.mark.parametrize(
    "address", ["", "h", "h:", "h:x", "h:1\n", "a b:1", "tcp://h:1", "[x]:1", "h:123456"]
)
def test_a_record_with_an_address_that_is_none_is_malformed(address: str) -> None:
    data = msgspec.msgpack.encode(msgspec.structs.replace(record(2), addresses=[address]))
    with pytest.raises(RemoteProtocolError):
        wire.read_record(Signed(data, sign_as(peer_id(2))(data)))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_decoding_anything_gives_a_datagram_or_a_protocol_error(data: bytes) -> None:
    for decode in (wire.decode, lambda x: wire.read_record(Signed(x, b"s" * 64))):
        with contextlib.suppress(RemoteProtocolError):
            decode(data)


@settings(max_examples=500, deadline=None)
@given(st.lists(TREES, max_size=6))
def test_any_msgpack_leaves_the_machine_standing(tree: list[object]) -> None:
    m = knowing(2, 3)
    for payload in (msgspec.msgpack.encode([2, *tree]), msgspec.msgpack.encode(tree)):
        m.handle(DatagramReceived(payload, peer_id(2), address_of(2)), now=0.0)
    m.handle(Tick(), now=0.5)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_datagram_never_changes_what_others_signed(data: st.DataObject) -> None:
    m = knowing(2)
    (payload,) = wire.pack(Gossip(ask=1), records=[signed(3)], claims=[claim(3, 2)])
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    m.handle(DatagramReceived(bytes(changed), peer_id(2), address_of(2)), now=0.0)
    third = m.member(peer_id(3))
    assert third is not None
    assert third.name in ("", "peer3")
    assert verify(peer_id(3), b"", sign_as(peer_id(3))(b""))
