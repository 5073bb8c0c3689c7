"""Names of things that cross hosts: mesh, peers, topics, partitions.

A peer's id is the hash of its public signing key, so it cannot be chosen, and people compare it aloud: it is
shown in groups of base32 with two check digits (ISO 7064 MOD 97-10 over the bytes), so that a misheard id is
refused.
"""

from __future__ import annotations

import base64
from hashlib import blake2b
from typing import NamedTuple, NewType

from meshq.errors import UsageError

MeshId = NewType("MeshId", bytes)  # 16 bytes: hash of the authority's public key
PeerId = NewType("PeerId", bytes)  # 16 bytes: hash of the peer's public signing key
TopicId = NewType("TopicId", bytes)  # 16 random bytes, drawn when the topic is created
Slot = NewType("Slot", int)

ID_BYTES = 16
SYSTEM_SLOT = Slot(0xFFFF)  # the slot that holds the registry; data slots count up from 0
LOCAL_SLOT = Slot(0xFFFE)  # no slot: rows that this peer keeps for itself alone


Session = tuple[str, bytes]  # a connection at this peer: which door it came through, its id there
Ref = tuple[Session, int]  # who waits for an answer, under which request number


class PartitionKey(NamedTuple):
    """One ordered log: a topic's id and the partition's number in it."""

    topic_id: TopicId
    partition: int


def mesh_id_of(authority_key: bytes) -> MeshId:
    return MeshId(blake2b(authority_key, digest_size=ID_BYTES, person=b"meshq mesh id").digest())


def peer_id_of(signing_key: bytes) -> PeerId:
    return PeerId(blake2b(signing_key, digest_size=ID_BYTES, person=b"meshq peer id").digest())


def show_id(raw: bytes) -> str:
    """Sixteen bytes as `abcd-efgh-...-42`: base32 in groups of four (the last of two), then check digits."""
    text = base64.b32encode(raw).decode().rstrip("=").lower()
    groups = [text[i : i + 4] for i in range(0, len(text), 4)]
    return "-".join([*groups, _check_digits(raw)])


def parse_id(text: str) -> bytes:
    """The bytes of an id as `show_id` wrote it.

    Raises: UsageError when it is not base32 or its check digits do not match.
    """
    *groups, check = text.strip().lower().split("-")
    body = "".join(groups).upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError as e:
        raise UsageError(f"{text!r} is not an id: {e}") from None
    # Written again and compared: the last letter of base32 has spare bits, so several texts mean one id.
    if len(raw) != ID_BYTES or show_id(raw).replace("-", "") != "".join([*groups, check]):
        raise UsageError(f"{text!r} is not an id: its check digits do not match (copied wrongly?)")
    return raw


def _check_digits(raw: bytes) -> str:
    return f"{98 - int.from_bytes(raw, 'big') * 100 % 97:02d}"
