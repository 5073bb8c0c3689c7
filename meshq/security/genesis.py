"""The genesis: what a mesh was made of, in bytes that never change.

Every directory of `meshq init --peers N` and every peer that joins keeps the same bytes, signed by the
authority. It names the founding peers and the one that holds the registry, so that which peer may create the
registry is settled before any peer runs: nobody ever has to guess it from whom it happens to see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from meshq.errors import SecurityError, UsageError
from meshq.ids import SYSTEM_SLOT, MeshId, PeerId, mesh_id_of
from meshq.levels import BASE, LEVEL_KNOWN, LEVELS
from meshq.messages import U63, Id16, Key32
from meshq.security.authority import Authority
from meshq.security.certificates import Certificate, SignedCertificate, Word
from meshq.security.certificates import verify as verify_certificate
from meshq.security.signing import Signed, verify_exact
from meshq.security.text import check_name

DOMAIN: Final = b"genesis"
FOUNDERS_MAX: Final = 64  # peers that `init --peers` makes at once; `UsageError`
REPLICAS_MAX: Final = 7  # `UsageError`


class Genesis(Struct, frozen=True, array_like=True):
    """`founders` are the certificates of the first peers; `registry_peer` is the first
    voter of the system slot."""

    mesh_name: Word
    slots: Annotated[int, Meta(ge=1, lt=int(SYSTEM_SLOT))]
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)]
    created_ms: U63
    founders: Annotated[tuple[SignedCertificate, ...], Meta(min_length=1, max_length=FOUNDERS_MAX)]
    registry_peer: Id16
    authority_key: Key32
    level: Annotated[int, Meta(ge=1, lt=LEVELS)] = BASE  # the feature level that the mesh was made with

    @property
    def mesh_id(self) -> MeshId:
        return mesh_id_of(self.authority_key)


class SignedGenesis(Signed, frozen=True):
    """A genesis as it travels and is kept."""


def make(
    authority: Authority,
    *,
    mesh_name: str,
    slots: int,
    replicas: int,
    now: float,
    founders: Iterable[SignedCertificate],
    registry_peer: PeerId,
) -> SignedGenesis:
    """Raises: UsageError when it would not verify."""
    genesis = Genesis(
        mesh_name,
        slots,
        replicas,
        int(now * 1000),
        tuple(founders),
        registry_peer,
        authority.key,
        LEVEL_KNOWN,
    )
    body = msgspec.msgpack.encode(genesis)
    try:
        read_founders(_read(body))
    except SecurityError as e:
        raise UsageError(str(e)) from None
    return SignedGenesis(body, authority.sign(DOMAIN, body))


def verify(signed: SignedGenesis, authority_key: bytes) -> Genesis:
    """The genesis, when this authority signed it and it agrees with itself. Raises: SecurityError."""
    verify_exact(authority_key, DOMAIN, signed.body, signed.signature)
    genesis = _read(signed.body)
    if genesis.authority_key != authority_key:
        raise SecurityError("a genesis that names another authority than the one that signed it")
    read_founders(genesis)
    return genesis


def peek_authority(signed: SignedGenesis) -> bytes:
    """The authority key a genesis claims. It is worth something only once compared with what is trusted."""
    return _read(signed.body).authority_key


def read_founders(genesis: Genesis) -> list[Certificate]:
    """The founders' certificates, as they held when the mesh was made: a genesis outlives them.

    Raises: SecurityError.
    """
    made_s = genesis.created_ms / 1000
    founders = [verify_certificate(f, genesis.authority_key, made_s) for f in genesis.founders]
    if any(f.kind != "peer" for f in founders):
        raise SecurityError("a genesis with a founder that is not a peer")
    if all(f.witness for f in founders):
        raise SecurityError("a genesis whose founders are all witnesses: nobody would keep records")
    for what, values in (
        ("name", [f.name for f in founders]),
        ("signing key", [f.signing_key for f in founders]),
        ("CURVE key", [f.curve_key for f in founders]),
    ):
        if len(set(values)) != len(values):
            raise SecurityError(f"a genesis with two founders of the same {what}")
    if genesis.registry_peer not in [f.peer_id for f in founders]:
        raise SecurityError("a genesis whose registry peer is not one of its founders")
    return founders


def _read(body: bytes) -> Genesis:
    try:
        genesis = msgspec.msgpack.decode(body, type=Genesis)
        check_name(genesis.mesh_name, "a mesh's name")
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise SecurityError(f"a genesis over limits: {e}") from None
    return genesis
