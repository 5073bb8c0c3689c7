"""The mesh's authority: the one key that is trusted, and the secret that brings it back.

Whoever holds this key can let anyone in, and whoever lost it can let nobody in. So it is a file of its own
that can be moved off line, and `meshq init` prints a recovery secret once: the key's seed and a checksum, in
groups short enough to copy onto paper.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

from msgspec import Struct

from meshq.errors import SecurityError
from meshq.ids import MeshId, mesh_id_of
from meshq.messages import Key32
from meshq.security.files import load_struct, save_struct
from meshq.security.signing import public_key_of, sign_exact
from meshq.security.text import KEY_BYTES, decode_base32, encode_base32

_CHECK_BYTES: Final = 3  # 32 + 3 bytes are 56 characters: 14 groups of four, nothing over
_CHARACTERS: Final = (KEY_BYTES + _CHECK_BYTES) * 8 // 5
_GROUP: Final = 4


@dataclass(frozen=True, slots=True)
class Authority:
    """The signing authority of one mesh. `key` is public and makes the mesh id."""

    seed: bytes = field(repr=False)
    key: bytes = field(init=False)
    mesh_id: MeshId = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", public_key_of(self.seed))
        object.__setattr__(self, "mesh_id", mesh_id_of(self.key))

    @classmethod
    def generate(cls) -> Authority:
        return cls(os.urandom(KEY_BYTES))

    def sign(self, domain: bytes, body: bytes) -> bytes:
        return sign_exact(self.seed, domain, body)

    def save(self, path: Path) -> None:
        """Raises: StoreError."""
        save_struct(path, "authority", _Kept(self.seed))

    @classmethod
    def load(cls, path: Path) -> Authority:
        """Raises: SecurityError (others can read it), StoreError (missing), StoreCorrupt."""
        return cls(load_struct(path, "authority", _Kept).seed)

    def recovery_secret(self) -> str:
        """The text that `from_recovery` makes this authority of again. To be shown once and kept off line."""
        text = encode_base32(self.seed + _check(self.seed))
        return "-".join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))

    @classmethod
    def from_recovery(cls, text: str) -> Authority:
        """Raises: SecurityError when the text was not copied right; the text is not repeated in it."""
        body = "".join(text.split()).replace("-", "")
        if len(body) != _CHARACTERS:
            raise SecurityError(
                f"this is not a recovery secret: it has {len(body)} letters and digits, a whole one has "
                f"{_CHARACTERS} in groups of {_GROUP}. Is a group missing or written twice?"
            )
        try:
            raw = decode_base32(body)
        except ValueError as e:
            raise SecurityError(f"this is not a recovery secret: {e}. Compare it with the paper") from None
        seed, check = raw[:KEY_BYTES], raw[KEY_BYTES:]
        if check != _check(seed):
            raise SecurityError(
                "this recovery secret's check does not match: a character was copied wrongly. "
                "Compare it with the paper group by group"
            )
        return cls(seed)


def _check(seed: bytes) -> bytes:
    return blake2b(seed, digest_size=_CHECK_BYTES, person=b"meshq recovery").digest()


class _Kept(Struct, frozen=True, array_like=True):
    seed: Key32
