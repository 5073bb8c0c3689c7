"""A peer's own keys: Ed25519 to sign with, and a separate X25519 key for CURVE connections.

They are two keys so that each has one use: the CURVE key can be replaced by a new certificate while the
signing key, whose hash is the peer's id, stays for the peer's life.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct
from nacl.bindings import crypto_scalarmult_base

from meshq.errors import StoreCorrupt, UsageError
from meshq.ids import PeerId, peer_id_of
from meshq.messages import Key32
from meshq.security.files import load_struct, save_struct
from meshq.security.signing import public_key_of, sign_exact
from meshq.security.text import KEY_BYTES, check_name


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this peer is. All keys are raw 32 bytes; the secrets stay out of its repr."""

    name: str
    signing_seed: bytes = field(repr=False)
    curve_secret: bytes = field(repr=False)
    signing_key: bytes = field(init=False)
    curve_public: bytes = field(init=False)
    peer_id: PeerId = field(init=False)

    def __post_init__(self) -> None:
        check_name(self.name, "a peer's name")
        object.__setattr__(self, "signing_key", public_key_of(self.signing_seed))
        object.__setattr__(self, "curve_public", crypto_scalarmult_base(self.curve_secret))
        object.__setattr__(self, "peer_id", peer_id_of(self.signing_key))

    @classmethod
    def generate(cls, name: str) -> Identity:
        """New keys under this name. Raises: UsageError."""
        return cls(name, os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """The signature of these exact bytes as a thing of this domain (`signing.verify_exact` checks it)."""
        return sign_exact(self.signing_seed, domain, body)

    def save(self, path: Path) -> None:
        """Raises: StoreError."""
        save_struct(path, "identity", _Kept(self.name, self.signing_seed, self.curve_secret))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Raises: SecurityError (others can read it), StoreError (missing), StoreCorrupt."""
        kept = load_struct(path, "identity", _Kept)
        try:
            return cls(kept.name, kept.signing_seed, kept.curve_secret)
        except UsageError as e:
            raise StoreCorrupt(f"{path} is damaged: {e}") from None


class _Kept(Struct, frozen=True, array_like=True):
    name: str
    signing_seed: Key32
    curve_secret: Key32
