"""Certificates: what the authority says about a peer or a client, in bytes anyone of the mesh can check.

A certificate binds a name to keys, says what the holder may do, and ends: a peer that is cut off from the
news of a revocation honours one no longer than this. It is signed over its exact bytes, and the signature is
checked before the bytes are read for anything but a better error message.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from meshq.errors import SecurityError, UsageError
from meshq.ids import PeerId, mesh_id_of, peer_id_of, show_id
from meshq.limits import CAPABILITIES_MAX, TOPIC_BYTES_MAX
from meshq.messages import Id16, Key32
from meshq.security.authority import Authority
from meshq.security.signing import Signed, is_signed_by
from meshq.security.text import KEY_BYTES, TIME_MAX_S, check_name, show_time
from meshq.topics import check_pattern

DOMAIN: Final = b"certificate"
DAY_S: Final = 86_400
PEER_VALID_S: Final = 90 * DAY_S
CLIENT_VALID_S: Final = 365 * DAY_S
VALID_S_MAX: Final = 20 * 365 * DAY_S  # `UsageError`
# A certificate holds from a little before it is made, for hosts whose clocks are behind the issuer's.
BACKDATED_S: Final = 600
WITNESS: Final = "witness"  # a role
ROLES_MAX: Final = 16  # `UsageError`
WEIGHT_MAX: Final = 1_000.0  # `UsageError`
CERTIFICATE_BYTES_MAX: Final = 32 * 1024  # above what CAPABILITIES_MAX patterns of full length take

Kind = Literal["peer", "client"]
Verb = Literal["publish", "subscribe", "consume", "admin"]
Word = Annotated[str, Meta(max_length=63)]
Seconds = Annotated[int, Meta(ge=0, le=TIME_MAX_S)]


class Capability(NamedTuple):
    verb: Verb
    pattern: Annotated[str, Meta(max_length=TOPIC_BYTES_MAX)]


class Certificate(Struct, frozen=True, array_like=True):
    """What is certified. Times in seconds since 1970, the end exclusive; all keys raw."""

    kind: Kind
    name: Word
    signing_key: Annotated[bytes, Meta(max_length=KEY_BYTES)]  # a client may have none
    curve_key: Key32
    roles: Annotated[tuple[Word, ...], Meta(max_length=ROLES_MAX)]
    capabilities: Annotated[tuple[Capability, ...], Meta(max_length=CAPABILITIES_MAX)]
    not_before_s: Seconds
    not_after_s: Seconds
    serial: Id16
    issuer: Key32
    weight: float = 1.0
    zone: Word = ""

    @property
    def peer_id(self) -> PeerId:
        """Of the signing key; means something for peers only."""
        return peer_id_of(self.signing_key)

    @property
    def witness(self) -> bool:
        """Whether this peer votes and keeps no records; for life."""
        return WITNESS in self.roles

    def check_time(self, now: float) -> None:
        """Raises: SecurityError when it does not hold at this time."""
        whose = f"the certificate of {self.kind} {self.name!r}"
        if now >= self.not_after_s:
            again = "join again with a new token" if self.kind == "peer" else "make a new one"
            raise SecurityError(
                f"{whose} expired at {show_time(self.not_after_s)} (the clock here says {show_time(now)}): "
                f"{again}, or set the clock"
            )
        if now < self.not_before_s:
            raise SecurityError(
                f"{whose} is not yet valid: it begins at {show_time(self.not_before_s)} and the clock here "
                f"says {show_time(now)}. Set the clock"
            )


class SignedCertificate(Signed, frozen=True):
    """A certificate as it travels and is kept."""


def new_serial() -> bytes:
    return os.urandom(16)


def issue(
    authority: Authority,
    *,
    kind: Kind,
    name: str,
    curve_key: bytes,
    serial: bytes,
    now: float,
    signing_key: bytes = b"",
    roles: Iterable[str] = (),
    capabilities: Iterable[tuple[Verb, str]] = (),
    valid_s: int | None = None,
    weight: float = 1.0,
    zone: str = "",
) -> SignedCertificate:
    """Certify these keys, by default for 90 days (peers) or 365 (clients). Raises: UsageError over a
    limit."""
    check_name(name, f"a {kind}'s name")
    valid_s = valid_s if valid_s is not None else PEER_VALID_S if kind == "peer" else CLIENT_VALID_S
    if valid_s <= 0:
        raise UsageError(f"a certificate that is valid for {valid_s} s: it must end after it begins")
    certificate = Certificate(
        kind, name, signing_key, curve_key, tuple(roles), tuple(Capability(*c) for c in capabilities),
        max(0, int(now) - BACKDATED_S), int(now) + valid_s, serial, authority.key, float(weight), zone,
    )  # fmt: skip
    body = msgspec.msgpack.encode(certificate)
    try:
        _read(body)
    except SecurityError as e:
        raise UsageError(str(e)) from None
    return SignedCertificate(body, authority.sign(DOMAIN, body))


def verify(signed: SignedCertificate, authority_key: bytes, now: float) -> Certificate:
    """The certificate, when this authority signed it and it holds now.

    Raises: SecurityError saying whether it is of a foreign authority, altered, over a limit, expired or not
    yet valid.
    """
    certificate = verify_signature(signed, authority_key)
    certificate.check_time(now)
    return certificate


def verify_signature(signed: SignedCertificate, authority_key: bytes) -> Certificate:
    """As `verify`, at whatever time: for what is kept longer than it holds."""
    if not is_signed_by(authority_key, DOMAIN, signed.body, signed.signature):
        raise SecurityError(_why_not(signed, authority_key))
    certificate = _read(signed.body)
    if certificate.issuer != authority_key:
        raise SecurityError(_foreign(certificate, authority_key))
    return certificate


def _why_not(signed: SignedCertificate, authority_key: bytes) -> str:
    """What to say about a signature that does not match: whether it is another mesh's, or nobody's."""
    try:
        certificate = _read(signed.body)
    except SecurityError:
        certificate = None
    if certificate and certificate.issuer != authority_key:
        return _foreign(certificate, authority_key)
    return "bad signature: the certificate was altered or damaged on its way. Fetch it again from its issuer"


def _foreign(certificate: Certificate, authority_key: bytes) -> str:
    return (
        f"foreign authority: the certificate of {certificate.kind} {certificate.name!r} is of mesh "
        f"{show_id(mesh_id_of(certificate.issuer))}, this is {show_id(mesh_id_of(authority_key))}"
    )


def _read(body: bytes) -> Certificate:
    """Raises: SecurityError when the body is no certificate or over a limit."""
    if len(body) > CERTIFICATE_BYTES_MAX:
        raise SecurityError(f"a certificate over limits: {len(body)} bytes, at most {CERTIFICATE_BYTES_MAX}")
    try:
        certificate = msgspec.msgpack.decode(body, type=Certificate)
        check_name(certificate.name, f"a {certificate.kind}'s name")
        for capability in certificate.capabilities:
            check_pattern(capability.pattern)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise SecurityError(f"a certificate over limits: {e}") from None
    if reason := _over_limits(certificate):
        raise SecurityError(f"the certificate of {certificate.name!r} is over limits: {reason}")
    return certificate


def _over_limits(certificate: Certificate) -> str:
    if len(certificate.signing_key) != KEY_BYTES and (certificate.signing_key or certificate.kind == "peer"):
        return f"its signing key has {len(certificate.signing_key)} bytes"
    if not 0 < certificate.not_after_s - certificate.not_before_s <= VALID_S_MAX + BACKDATED_S:
        return f"its validity must be longer than 0 and at most {VALID_S_MAX // DAY_S} days"
    if not math.isfinite(certificate.weight) or not 0 <= certificate.weight <= WEIGHT_MAX:
        return f"its weight {certificate.weight} is not between 0 and {WEIGHT_MAX:.0f}"
    return ""
