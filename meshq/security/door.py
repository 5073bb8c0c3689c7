"""The door: how a host that is no member yet becomes one, and how a member nobody has heard of yet is let in.

*Join.* The joiner holds a token. It sends its public keys and name, a hash of them keyed with the token's
secret (so it was invited, and the secret never travels), and a signature by its signing key (so the key is
its own; that the CURVE key is its own is shown by the connection). The issuer answers in steps, because
registering takes a while:

    check_join       everything is in order (nothing has changed yet)
    claim_join       the invitation is this joiner's, durably; here is the certificate to register
    (the caller commits the certificate to the registry)
    finish_join      here is the reply

The invitation is claimed before the certificate is registered, so that two hosts that hold the same token at
the same moment are not both registered. A registration that fails costs nothing: the same joiner may ask
again.

A joiner whose reply was lost asks again with the same key and gets the same answer. The joiner believes
nothing of the reply but what leads back to the fingerprint in its token.

*Present.* A peer whose certificate has not reached another peer yet is denied at that one's socket. It shows
the certificate at its door instead: the authority's signature is all the news there is to wait for.

The door's socket is CURVE with any client key, so `connection_key` is proved; frames are bounded by
DOOR_FRAME_BYTES_MAX coming in, and by JOIN_REPLY_BYTES_MAX going out.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from meshq.errors import MeshqError, RemoteProtocolError, SecurityError, UsageError, from_wire
from meshq.ids import PeerId, mesh_id_of, peer_id_of, show_id
from meshq.levels import BASE, LEVEL_KNOWN, LEVELS, WITNESSES, check_understood
from meshq.limits import DOOR_FRAME_BYTES_MAX, PEERS_MAX
from meshq.messages import U16, U32, Id16, Key32, Name, Text
from meshq.security import genesis as genesis_
from meshq.security.authority import Authority
from meshq.security.certificates import WITNESS, Certificate, Seconds, SignedCertificate, issue, verify
from meshq.security.genesis import SignedGenesis
from meshq.security.identity import Identity
from meshq.security.keyring import Keyring
from meshq.security.signing import SIGNATURE_BYTES, is_signed_by
from meshq.security.text import check_name, show_time
from meshq.security.tokens import InviteId, Invites, Token

DOMAIN: Final = b"join"
JOIN_REPLY_BYTES_MAX: Final = 1 << 20  # the connection is closed, the join fails
NONCE_BYTES: Final = 16


class JoinRequest(Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """`proof`: hash of `body` keyed with the token's secret; `signature`: by the joiner, over body and
    proof."""

    body: Annotated[bytes, Meta(max_length=1_000)]
    proof: Key32
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class JoinBody(Struct, frozen=True, array_like=True):
    mesh_id: Id16
    invite_id: InviteId
    name: Name
    signing_key: Key32
    curve_key: Key32
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    sent_s: Seconds  # the joiner's clock, so that a wrong one is named before a certificate seems invalid
    level: Annotated[int, Meta(ge=1, lt=LEVELS)] = BASE  # the highest feature level that it knows
    witness: bool = False  # it wants to vote and keep no records


class JoinAccepted(Struct, frozen=True, array_like=True, tag=2):
    authority_key: Key32
    certificate: SignedCertificate
    genesis: SignedGenesis
    keyring: bytes
    certificates: Annotated[tuple[SignedCertificate, ...], Meta(max_length=PEERS_MAX)]


class Refusal(Struct, frozen=True, array_like=True, tag=3):
    """No, and why: an error as it crosses the wire."""

    status: U16
    name: Name
    text: Text
    retry_after_ms: U32 = 0


class Present(Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True):
    certificate: SignedCertificate


class Admitted(Struct, frozen=True, array_like=True, tag=5):
    """The certificate is good; its CURVE key is let in from now on."""


_requests: msgspec.msgpack.Decoder[JoinRequest | Present] = msgspec.msgpack.Decoder(JoinRequest | Present)
_replies: msgspec.msgpack.Decoder[JoinAccepted | Refusal | Admitted] = msgspec.msgpack.Decoder(
    JoinAccepted | Refusal | Admitted
)


def decode_request(data: bytes | memoryview) -> JoinRequest | Present:
    """What may be said at a door. Raises: RemoteProtocolError."""
    if len(data) > DOOR_FRAME_BYTES_MAX:
        raise RemoteProtocolError(f"{len(data)} bytes at the door: at most {DOOR_FRAME_BYTES_MAX}")
    try:
        return _requests.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"a request at the door that cannot be read: {e}") from None


def decode_reply(data: bytes | memoryview) -> JoinAccepted | Refusal | Admitted:
    """What a door answers. Raises: RemoteProtocolError."""
    if len(data) > JOIN_REPLY_BYTES_MAX:
        raise RemoteProtocolError(f"a door's reply of {len(data)} bytes: at most {JOIN_REPLY_BYTES_MAX}")
    try:
        return _replies.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"a door's reply that cannot be read: {e}") from None


def refused(error: MeshqError) -> bytes:
    """The reply that carries this error to the other side, where it is raised again."""
    text = str(error)[:2_000]
    return msgspec.msgpack.encode(Refusal(error.status, type(error).__name__, text, error.retry_after_ms))


# --------------------------------------------------------------------------------------------- the joiner
def new_nonce() -> bytes:
    return os.urandom(NONCE_BYTES)


def join_request(
    token: Token, identity: Identity, now: float, *, nonce: bytes, witness: bool = False
) -> bytes:
    """What to say at the inviter's door, over a CURVE connection made with this identity's CURVE key."""
    body = msgspec.msgpack.encode(
        JoinBody(
            token.mesh_id, token.invite_id, identity.name, identity.signing_key, identity.curve_public, nonce,
            max(0, int(now)), LEVEL_KNOWN, witness,
        )
    )  # fmt: skip
    proof = _proof(token.secret, body)
    return msgspec.msgpack.encode(JoinRequest(body, proof, identity.sign(DOMAIN, body + proof)))


@dataclass(frozen=True, slots=True)
class Joined:
    """What a joiner has of its mesh, every part verified."""

    authority_key: bytes
    certificate: SignedCertificate
    genesis: SignedGenesis
    keyring: Keyring
    certificates: tuple[SignedCertificate, ...]  # of other peers, as far as they hold now


def accept_reply(
    token: Token, identity: Identity, data: bytes | memoryview, now: float, *, witness: bool = False
) -> Joined:
    """The mesh this reply lets the joiner into.

    Raises: what the issuer refused with; SecurityError when the reply does not lead back to the token's mesh
    or is not about this identity; RemoteProtocolError.
    """
    match decode_reply(data):
        case Refusal() as r:
            raise from_wire(r.status, r.name, r.text, r.retry_after_ms)
        case Admitted():
            raise RemoteProtocolError("the door answered a join as if it were a certificate shown")
        case JoinAccepted() as reply:
            pass
    key = reply.authority_key
    if mesh_id_of(key) != token.mesh_id:
        raise SecurityError(
            f"the door answered for mesh {show_id(mesh_id_of(key))}, the token is for "
            f"{show_id(token.mesh_id)}: do not join there, and ask for a new token"
        )
    check_understood(genesis_.verify(reply.genesis, key).level)
    own = verify(reply.certificate, key, now)
    expected = ("peer", identity.name, identity.signing_key, identity.curve_public)
    if (own.kind, own.name, own.signing_key, own.curve_key) != expected:
        raise SecurityError("the door answered with a certificate that is not this peer's: join again")
    if own.witness != witness:
        raise SecurityError(
            "the door's peer did not certify this one as it asked, as a witness or none: a newer meshq does"
        )
    others = tuple(c for c in reply.certificates if _holds(c, key, now))
    return Joined(key, reply.certificate, reply.genesis, Keyring.decode(reply.keyring), others)


# --------------------------------------------------------------------------------------------- the issuer
@dataclass(frozen=True, slots=True)
class PendingJoin:
    """A join in which everything is in order. `claim_join` goes on with it."""

    signed: SignedCertificate
    certificate: Certificate
    invite_id: bytes


@dataclass(frozen=True, slots=True)
class ClaimedJoin:
    """A join whose invitation is taken: `signed` is to be registered, then `finish_join` makes the reply."""

    signed: SignedCertificate
    certificate: Certificate

    @property
    def peer_id(self) -> PeerId:
        return self.certificate.peer_id


def check_join(
    request: JoinRequest,
    *,
    authority: Authority,
    invites: Invites,
    existing_names: Mapping[str, PeerId],
    connection_key: bytes,
    serial: bytes,
    now: float,
    level: int = BASE,
) -> PendingJoin:
    """Whether this join may go ahead, and the certificate for it. Changes nothing.

    `existing_names` are the registered peers; `connection_key` is the CURVE key the request came by; `level`
    is the mesh's.
    Raises: SecurityError or UsageError with the reason, to be sent back with `refused`; RemoteProtocolError.
    """
    body = _read_join(request)
    if body.mesh_id != authority.mesh_id:
        raise SecurityError(
            f"this token is for mesh {show_id(body.mesh_id)}, this peer is of mesh "
            f"{show_id(authority.mesh_id)}: join at a peer of that mesh"
        )
    invite = invites.check(body.invite_id, now, body.signing_key)
    if not compare_digest(_proof(invite.secret, request.body), request.proof):
        raise SecurityError("this request does not prove the token's secret: join with the whole token")
    if not is_signed_by(body.signing_key, DOMAIN, request.body + request.proof, request.signature):
        raise SecurityError("this request is not signed by the key it wants certified")
    if body.curve_key != connection_key:
        raise SecurityError("this request came by another CURVE key than the one it wants certified")
    _check_unique(body, existing_names)
    check_understood(level, body.level)
    if body.witness and level < WITNESSES:
        raise UsageError(
            f"a witness needs feature level {WITNESSES}, the mesh has {level}: `meshq upgrade` raises it"
        )
    signed = issue(
        authority, kind="peer", name=body.name, signing_key=body.signing_key, curve_key=body.curve_key,
        serial=serial, now=now, roles=(WITNESS,) if body.witness else (),
    )  # fmt: skip
    certificate = verify(signed, authority.key, now)
    _check_clock(certificate, body.sent_s, now)
    return PendingJoin(signed, certificate, body.invite_id)


def claim_join(pending: PendingJoin, *, invites: Invites, now: float) -> ClaimedJoin:
    """Make the invitation this joiner's, on disk before this returns; again for the same joiner: no change.

    Raises: SecurityError when it expired or somebody else used it in between, StoreError.
    """
    invites.use(pending.invite_id, pending.certificate.signing_key, now)
    return ClaimedJoin(pending.signed, pending.certificate)


def finish_join(
    claimed: ClaimedJoin,
    *,
    genesis: SignedGenesis,
    keyring: Keyring,
    certificates: Iterable[SignedCertificate],
) -> bytes:
    """The reply that lets the joiner in. Its certificate must be registered by now."""
    return msgspec.msgpack.encode(
        JoinAccepted(
            claimed.certificate.issuer, claimed.signed, genesis, keyring.encode(), tuple(certificates)
        )
    )


# ----------------------------------------------------------------------------------- showing a certificate
def present(certificate: SignedCertificate) -> bytes:
    """What a peer says at the door of one that denied its key."""
    return msgspec.msgpack.encode(Present(certificate))


def check_present(
    request: Present,
    *,
    authority_key: bytes,
    connection_key: bytes,
    now: float,
    revoked: Container[bytes] = frozenset(),
) -> Certificate:
    """The certificate shown, when its holder may be let in. `revoked` are serials.

    Raises: SecurityError.
    """
    certificate = verify(request.certificate, authority_key, now)
    if certificate.kind != "peer":
        raise SecurityError(
            "only a peer shows its certificate at the door; a client's must be registered first"
        )
    if certificate.serial in revoked:
        raise SecurityError(
            f"the certificate of {certificate.name!r} is revoked: join again with a new token"
        )
    if certificate.curve_key != connection_key:
        raise SecurityError("this certificate was shown by another key than the one it certifies")
    return certificate


def admitted() -> bytes:
    return msgspec.msgpack.encode(Admitted())


def accept_admission(data: bytes | memoryview) -> None:
    """Returns when the door admitted the certificate. Raises: what it refused with, RemoteProtocolError."""
    match decode_reply(data):
        case Refusal() as r:
            raise from_wire(r.status, r.name, r.text, r.retry_after_ms)
        case JoinAccepted():
            raise RemoteProtocolError("the door answered a certificate shown as if it were a join")
        case Admitted():
            return


# ------------------------------------------------------------------------------------------------ leaves
def _proof(secret: bytes, body: bytes) -> bytes:
    return blake2b(body, digest_size=32, key=secret, person=b"meshq join").digest()


def _read_join(request: JoinRequest) -> JoinBody:
    try:
        return msgspec.msgpack.decode(request.body, type=JoinBody)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"a join request that cannot be read: {e}") from None


def _check_unique(body: JoinBody, existing: Mapping[str, PeerId]) -> None:
    """A name is one peer's and a peer has one name; asking again as the same one is fine."""
    check_name(body.name, "a peer's name")
    joiner = peer_id_of(body.signing_key)
    if existing.get(body.name, joiner) != joiner:
        raise UsageError(f"the name {body.name!r} is taken by another peer: choose one with --name")
    for name, peer in existing.items():
        if peer == joiner and name != body.name:
            raise UsageError(f"this peer is registered as {name!r} already: join with --name {name}")
    if body.name not in existing and len(existing) >= PEERS_MAX:
        raise UsageError(f"this mesh has {PEERS_MAX} peers, the most it can: remove one first")


def _check_clock(certificate: Certificate, sent_s: int, now: float) -> None:
    try:
        certificate.check_time(sent_s)
    except SecurityError:
        raise SecurityError(
            f"the joining host's clock says {show_time(sent_s)}, this peer's {show_time(now)}: the "
            "certificate would not be valid there. Set the clock and join again with the same token"
        ) from None


def _holds(signed: SignedCertificate, authority_key: bytes, now: float) -> bool:
    try:
        verify(signed, authority_key, now)
    except SecurityError:
        return False
    return True
