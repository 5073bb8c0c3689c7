"""What gossip says to gossip: one datagram form, decoded at one place.

A datagram (inside its seal) carries any of: a question ("are you there?", a token) and an answer (the token
come back), the same by way of a helper, signed member records, claims (who accuses whom), digests (which
record of whom is held, to compare notes) and ids whose records are wanted. A record is signed over its exact
bytes by the peer it describes, so it may travel by way of anybody; a claim is not signed, names its accuser,
and is void as soon as the accused signs a newer record.

`decode` and `read_record` return a typed struct or raise RemoteProtocolError, whatever arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from meshq.errors import RemoteProtocolError, UsageError
from meshq.ids import PeerId
from meshq.limits import ADDRESSES_MAX, DATAGRAM_BYTES_MAX

# What sealing a datagram adds (`transport.sealed.OVERHEAD_BYTES`; a test holds the two together).
SEAL_BYTES = 80
PAYLOAD_BYTES_MAX = DATAGRAM_BYTES_MAX - SEAL_BYTES
NAME_BYTES_MAX = 255
# One signed record and one claim fit a payload with room to spare.
RECORD_BYTES_MAX = 1_024
_ITEMS_MAX = 128  # of a kind in one datagram; more than fit
EMPTY_BYTES = 96  # a Gossip with nothing in it: list heads of 3 bytes, tokens of 9, an id

ADDRESS_PATTERN = r"^(\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9_.-]{1,32})?\]|[A-Za-z0-9_.-]{1,253}):[0-9]{1,5}\Z"

Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
U16 = Annotated[int, Meta(ge=0, lt=1 << 16)]
_T = TypeVar("_T")

U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Address = Annotated[str, Meta(max_length=260, pattern=ADDRESS_PATTERN)]


class MemberRecord(Struct, frozen=True, array_like=True, tag=1):
    """A peer about itself. The higher (boot_epoch, version) is the newer one.

    `addresses` are of its base port: gossip on UDP and requests on TCP have the same number. `level`: the
    highest feature level that its software knows; `weight` and `zone` are where it wants to stand on the ring
    (no weight: it does not say).
    """

    peer: Id16
    boot_epoch: U63
    boot_id: Id16
    name: Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
    addresses: Annotated[list[Address], Meta(max_length=ADDRESSES_MAX)]
    version: U63
    left: bool = False
    level: U16 = 1
    weight: Annotated[float, Meta(ge=0, le=1_000)] | None = None
    zone: Annotated[str, Meta(max_length=63)] = ""

    @property
    def order(self) -> tuple[int, int]:
        return (self.boot_epoch, self.version)


class Signed(Struct, frozen=True, array_like=True):
    record: Annotated[bytes, Meta(max_length=RECORD_BYTES_MAX)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Claim(Struct, frozen=True, array_like=True):
    """That a member of exactly this incarnation (boot epoch, version) is suspect or dead."""

    peer: Id16
    boot_epoch: U63
    version: U63
    dead: bool  # else suspect
    accuser: Id16

    @property
    def order(self) -> tuple[int, int]:
        return (self.boot_epoch, self.version)


class Digest(Struct, frozen=True, array_like=True):
    """Which record of a member is held; 0, 0: none."""

    peer: Id16
    boot_epoch: U63
    version: U63

    @property
    def order(self) -> tuple[int, int]:
        return (self.boot_epoch, self.version)


class Gossip(Struct, frozen=True, array_like=True, tag=2):
    ask: U63 = 0  # not 0: answer with this token
    answered: U63 = 0
    helping: U63 = 0  # with `whom`: ask that one for us, and send this token as vouched or refused
    whom: Annotated[bytes, Meta(max_length=16)] = b""
    vouched: U63 = 0  # who was asked for has answered the helper
    refused: U63 = 0  # it has not (yet)
    hearsay: bool = False  # notes, maybe old: a death told here is a suspicion
    records: Annotated[list[Signed], Meta(max_length=_ITEMS_MAX)] = []
    claims: Annotated[list[Claim], Meta(max_length=_ITEMS_MAX)] = []
    digests: Annotated[list[Digest], Meta(max_length=_ITEMS_MAX)] = []
    wants: Annotated[list[Id16], Meta(max_length=_ITEMS_MAX)] = []


_encoder = msgspec.msgpack.Encoder()
_gossip: msgspec.msgpack.Decoder[Gossip] = msgspec.msgpack.Decoder(Gossip)
_record: msgspec.msgpack.Decoder[MemberRecord] = msgspec.msgpack.Decoder(MemberRecord)
_SIGNED_AS = b"meshq member record 1\x00"


def decode(payload: bytes) -> Gossip:
    """The datagram. Raises: RemoteProtocolError for anything that is not one."""
    return _read(_gossip, payload, "a gossip datagram")


def read_record(signed: Signed) -> MemberRecord:
    """What the record says, not yet known to be signed by anybody. Raises: RemoteProtocolError."""
    return _read(_record, signed.record, "a member record")


def is_signed(record: MemberRecord, signed: Signed, verify: Callable[[PeerId, bytes, bytes], bool]) -> bool:
    """Whether the peer it describes has signed it."""
    return verify(PeerId(record.peer), _SIGNED_AS + signed.record, signed.signature)


def sign_record(record: MemberRecord, sign: Callable[[bytes], bytes]) -> Signed:
    """Raises: UsageError when others would not accept it."""
    data = _encoder.encode(record)
    if len(data) > RECORD_BYTES_MAX:
        raise UsageError(
            f"the member record has {len(data)} bytes, at most {RECORD_BYTES_MAX}: shorten the name"
        )
    try:
        _read(_record, data, "the member record of this peer")
    except RemoteProtocolError as e:
        raise UsageError(f"{e}; mend its name or addresses ({record.name!r}, {record.addresses})") from None
    return Signed(data, sign(_SIGNED_AS + data))


def fitting(record: MemberRecord) -> MemberRecord:
    """The record with as many of its addresses, first ones first, as the limits allow."""
    addresses = record.addresses[:ADDRESSES_MAX]
    while addresses and len(_encoder.encode(_with_addresses(record, addresses))) > RECORD_BYTES_MAX:
        addresses = addresses[:-1]
    return _with_addresses(record, addresses)


def size_of(item: Signed | Claim | Digest | bytes) -> int:
    return len(_encoder.encode(item))


def encode(gossip: Gossip) -> bytes:
    return _encoder.encode(gossip)


def pack(
    head: Gossip | None = None,
    *,
    records: Collection[Signed] = (),
    claims: Collection[Claim] = (),
    digests: Collection[Digest] = (),
    wants: Collection[PeerId] = (),
) -> list[bytes]:
    """As many payloads as it takes, at least one, none too large. Tokens are in the first; all are hearsay if
    `head` is.
    """
    head = head or Gossip()
    if not (records or claims or digests or wants):
        return [_encoder.encode(head)]
    parts = [_Part()]
    for signed in records:
        _part_with_room(parts, signed).records.append(signed)
    for claim in claims:
        _part_with_room(parts, claim).claims.append(claim)
    for digest in digests:
        _part_with_room(parts, digest).digests.append(digest)
    for peer in wants:
        _part_with_room(parts, peer).wants.append(peer)
    heads = [head] + [Gossip(hearsay=head.hearsay)] * (len(parts) - 1)
    return [
        _encoder.encode(
            msgspec.structs.replace(h, records=x.records, claims=x.claims, digests=x.digests, wants=x.wants)
        )
        for h, x in zip(heads, parts, strict=True)
    ]


@dataclass(slots=True)
class _Part:
    """One datagram being filled."""

    records: list[Signed] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    wants: list[bytes] = field(default_factory=list)
    room: int = PAYLOAD_BYTES_MAX - EMPTY_BYTES
    items: int = 0


def _part_with_room(parts: list[_Part], item: Signed | Claim | Digest | bytes) -> _Part:
    size = size_of(item)
    if parts[-1].room < size or parts[-1].items >= _ITEMS_MAX:
        parts.append(_Part())
    parts[-1].room -= size
    parts[-1].items += 1
    return parts[-1]


def _with_addresses(record: MemberRecord, addresses: list[str]) -> MemberRecord:
    return msgspec.structs.replace(record, addresses=addresses)


def _read(decoder: msgspec.msgpack.Decoder[_T], data: bytes, what: str) -> _T:
    if len(data) > PAYLOAD_BYTES_MAX:
        raise RemoteProtocolError(f"{what} of {len(data)} bytes, at most {PAYLOAD_BYTES_MAX}")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"{what} that cannot be read: {e}") from None
