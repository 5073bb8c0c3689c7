"""Signatures over exact bytes, one domain for each kind of thing that is signed.

What is signed is the byte string as it travels and is kept; nobody re-encodes before verifying, so two
encoders that differ in one byte cannot disagree about a signature. The domain goes in front
(`meshq:certificate`, a NUL), so that bytes signed as one kind of thing never pass as another. Ed25519, by
libsodium.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta, Struct
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from meshq.errors import RemoteProtocolError, SecurityError

SIGNED_BYTES_MAX: Final = 256 * 1024  # one signed body; each kind has its own, smaller bounds inside
SIGNATURE_BYTES: Final = 64


class Signed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Exact bytes and the signature over them. Nothing in `body` may be believed before it is verified."""

    body: Annotated[bytes, Meta(max_length=SIGNED_BYTES_MAX)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Self:
        """Raises: RemoteProtocolError."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError, ValueError) as e:
            raise RemoteProtocolError(f"signed bytes that cannot be read: {e}") from None


def public_key_of(seed: bytes) -> bytes:
    return bytes(SigningKey(seed).verify_key)


def sign_exact(seed: bytes, domain: bytes, body: bytes) -> bytes:
    """The 64-byte signature of these bytes as a thing of this domain."""
    return SigningKey(seed).sign(_framed(domain, body)).signature


def is_signed_by(key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(key).verify(_framed(domain, body), signature)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


def verify_exact(key: bytes, domain: bytes, body: bytes, signature: bytes) -> None:
    """Raises: SecurityError when `key` did not sign these bytes as a thing of this domain."""
    if not is_signed_by(key, domain, body, signature):
        raise SecurityError(
            f"bad signature: this {domain.decode()} was altered, damaged or signed by another key"
        )


def _framed(domain: bytes, body: bytes) -> bytes:
    assert domain and b"\x00" not in domain  # else two domains could frame the same bytes
    return b"meshq:" + domain + b"\x00" + body
