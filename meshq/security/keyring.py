"""The keyring: the shared keys under which members seal their gossip.

A rotation installs a key everywhere, then uses it, then removes the old one, so for a while there are
several; a datagram names its key by number. Numbers only grow, and the newest one that both sides hold is the
one in use, so two keyrings merge to the same result whichever way round.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta, Struct

from meshq.errors import RemoteProtocolError, SecurityError, StoreCorrupt, UsageError
from meshq.messages import U32, Key32
from meshq.security.files import load_struct, save_struct
from meshq.security.text import KEY_BYTES

KEYS_MAX: Final = 8  # more than one rotation in flight is a peer that was away; beyond this the oldest go
TAG_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Keyring:
    """Gossip keys by number and the number of the one to seal with. Immutable: `merge` makes a new one."""

    keys: Mapping[int, bytes] = field(repr=False)
    active: int

    def __post_init__(self) -> None:
        if self.active not in self.keys or len(self.keys) > KEYS_MAX:
            raise UsageError(f"a keyring holds 1 to {KEYS_MAX} keys, and the active one")
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))

    @classmethod
    def generate(cls) -> Keyring:
        return cls({1: os.urandom(KEY_BYTES)}, 1)

    @property
    def active_key(self) -> bytes:
        return self.keys[self.active]

    def merge(self, other: Keyring) -> Keyring:
        """What both hold, sealing with the newer of the two active keys.

        Raises: SecurityError when they hold different keys under one number.
        """
        for number in self.keys.keys() & other.keys.keys():
            if not compare_digest(self.keys[number], other.keys[number]):
                raise SecurityError(
                    f"two keyrings of this mesh disagree about key {number}: join this peer again"
                )
        both = {**self.keys, **other.keys}
        active = max(self.active, other.active)
        kept = sorted(both, key=lambda n: (n == active, n))[-KEYS_MAX:]
        return Keyring({n: both[n] for n in kept}, active)

    def encode(self) -> bytes:
        """For the reply to a join. It is secret: it travels inside CURVE only."""
        return msgspec.msgpack.encode(_Kept.of(self))

    @classmethod
    def decode(cls, data: bytes) -> Keyring:
        """Raises: RemoteProtocolError."""
        try:
            return msgspec.msgpack.decode(data, type=_Kept).keyring()
        except (msgspec.MsgspecError, RecursionError, ValueError) as e:
            raise RemoteProtocolError(f"a keyring that cannot be read: {e}") from None

    def save(self, path: Path) -> None:
        """Raises: StoreError."""
        save_struct(path, "keyring", _Kept.of(self))

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Raises: SecurityError (others can read it), StoreError (missing), StoreCorrupt."""
        try:
            return load_struct(path, "keyring", _Kept).keyring()
        except UsageError as e:
            raise StoreCorrupt(f"{path} is damaged: {e}") from None

    def mdns_tag(self, instance: bytes) -> bytes:
        return mdns_tag(self.active_key, instance)

    def knows_tag(self, tag: bytes, instance: bytes) -> bool:
        """Whether a holder of one of these keys announced this instance."""
        return any(compare_digest(mdns_tag(key, instance), tag) for key in self.keys.values())


def mdns_tag(key: bytes, instance: bytes) -> bytes:
    """16 bytes by which members know each other's announcements, and which tell nobody else anything.

    `instance` is what the announcement says anyway and differs for each (the instance's random name); without
    the key the tag is noise, so two peers of one mesh cannot even be told to be of the same one.
    """
    return blake2b(instance, digest_size=TAG_BYTES, key=key, person=b"meshq mdns").digest()


class _Kept(Struct, frozen=True, array_like=True):
    active: U32
    keys: Annotated[dict[U32, Key32], Meta(min_length=1, max_length=KEYS_MAX)]

    @classmethod
    def of(cls, ring: Keyring) -> Self:
        return cls(ring.active, dict(sorted(ring.keys.items())))

    def keyring(self) -> Keyring:
        return Keyring(self.keys, self.active)
