"""Registry commands: the bodies of the system slot's entries.

Each is applied the same way on every peer, in log order, and either changes the registry or is refused (a
topic of that name exists); the refusal is part of applying, so every peer refuses
the same ones.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from meshq.errors import RemoteProtocolError
from meshq.levels import LEVELS
from meshq.limits import PARTITIONS_MAX, RECORD_BYTES_CEILING, RETAIN_AGE_MS_MAX
from meshq.messages import Retain

Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Partitions = Annotated[int, Meta(ge=1, le=PARTITIONS_MAX)]
CopiesMin = Annotated[int, Meta(ge=1, le=255)]
AgeMs = Annotated[int, Meta(ge=0, le=RETAIN_AGE_MS_MAX)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
RecordBytes = Annotated[int, Meta(ge=1, le=RECORD_BYTES_CEILING)]
Blob = Annotated[bytes, Meta(max_length=64 * 1024)]  # a signed certificate


class Command(Struct, frozen=True, array_like=True):
    pass


class RegisterPeer(Command, frozen=True, tag=1):
    """A signed certificate, as exact bytes; it replaces an earlier one of the same key."""

    certificate: Blob


class RegisterClient(Command, frozen=True, tag=2):
    certificate: Blob


class CreateTopic(Command, frozen=True, tag=3):
    name: Name
    topic_id: Id16
    partitions: Partitions
    record_bytes_max: RecordBytes
    copies_min: CopiesMin = 1
    retain: Retain = Retain()


class SetTopic(Command, frozen=True, tag=4):
    """New settings of a topic; partitions can only grow. None leaves a setting as it is.

    `change`: drawn by who proposes it, so that a repeated proposal does not take back what was set in between
    (feature level 2; empty: applied as often as it comes).
    """

    topic_id: Id16
    partitions: Partitions | None = None
    record_bytes_max: RecordBytes | None = None
    copies_min: CopiesMin | None = None
    change: Annotated[bytes, Meta(max_length=16)] = b""
    retain_age_ms: AgeMs | None = None  # of these 0 is no limit
    retain_bytes: Count | None = None
    retain_records: Count | None = None
    compact: bool | None = None
    tombstone_age_ms: AgeMs | None = None


class DeleteTopic(Command, frozen=True, tag=5):
    topic_id: Id16


MEMBER, LEAVING, LEFT = 0, 1, 2


class SetStanding(Command, frozen=True, tag=6):
    """Whether a peer belongs: MEMBER; LEAVING, while its slots walk to others; LEFT, when nothing is there.
    Who has left does not come back: a host joins anew, with new keys.

    `since`: with LEFT, the index of the LEAVING that it ends, so that one which comes late does not end
    another; 0 ends any (entries of before there was this field).
    """

    peer: Id16
    standing: Annotated[int, Meta(ge=MEMBER, le=LEFT)]
    since: Annotated[int, Meta(ge=0)] = 0


class PlacePeer(Command, frozen=True, tag=7):
    """Where a peer stands on the ring, as its newest member record says; before what its certificate says.
    Feature level 2."""

    peer: Id16
    weight: Annotated[float, Meta(ge=0, le=1_000)]
    zone: Annotated[str, Meta(max_length=63)] = ""


class SetLevel(Command, frozen=True, tag=8):
    """The mesh's feature level from here on; it only rises. Whose software does not know it stops."""

    level: Annotated[int, Meta(ge=1, lt=LEVELS)]


AnyCommand = (
    RegisterPeer | RegisterClient | CreateTopic | SetTopic | DeleteTopic | SetStanding | PlacePeer | SetLevel
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)


def encode(command: AnyCommand) -> bytes:
    return _encoder.encode(command)


def decode(data: bytes) -> AnyCommand:
    """Raises: RemoteProtocolError."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"a registry command that cannot be read: {e}") from None
