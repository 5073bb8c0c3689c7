"""Invitations: the token somebody carries to a new host, and what the issuing peer keeps of it.

A token is all a joining host knows: where the door is, which key answers there, which mesh it must turn out
to be, and a secret that proves the invitation without ever being sent. It is one string without look-alike
letters and with a checksum, so that one copied badly is called that before anything is tried.

The issuer keeps one private file an invitation. An invitation is used by writing the joiner's hash into it,
durably, before the reply leaves: the same joiner may then ask again when the reply was lost, and nobody else
can.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from meshq.errors import SecurityError, StoreError, UsageError
from meshq.ids import MeshId, PeerId, peer_id_of
from meshq.limits import ADDRESSES_MAX, INVITES_MAX
from meshq.messages import Id16, Key32
from meshq.security.files import load_struct, make_private_dir, save_struct, sync_dir
from meshq.security.text import (
    TIME_MAX_S,
    decode_base32,
    encode_base32,
    join_address,
    show_time,
    split_address,
)

PREFIX: Final = "meshq1-"
INVITE_ID_BYTES: Final = 8
SECRET_BYTES: Final = 16
EXPIRES_S: Final = 600  # how long an invitation is good by default
EXPIRED_KEPT_S: Final = 86_400  # so that a late joiner hears "expired", not "unknown"
_CHECK_BYTES: Final = 4
_TEXT_MAX: Final = 4_000  # characters of a token; `UsageError`
InviteId = Annotated[bytes, Meta(min_length=INVITE_ID_BYTES, max_length=INVITE_ID_BYTES)]
Secret = Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class Place(NamedTuple):
    """Where the inviter is: HOST:PORT of its base port, and its door's port on the same host."""

    address: Annotated[str, Meta(max_length=255)]
    door_port: Annotated[int, Meta(ge=1, lt=1 << 16)]

    @property
    def door(self) -> str:
        return join_address(split_address(self.address)[0], self.door_port)


class Token(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an invitation's text says."""

    places: Annotated[tuple[Place, ...], Meta(min_length=1, max_length=ADDRESSES_MAX)]
    mesh_id: Id16  # the fingerprint of the authority's key
    inviter_key: Key32  # the CURVE key that answers at the door
    invite_id: InviteId
    secret: Secret

    def __repr__(self) -> str:
        return f"Token({self.invite_id.hex()}, {[p.address for p in self.places]})"

    @classmethod
    def new(cls, invite: Invite, *, places: Sequence[Place], mesh_id: MeshId, inviter_key: bytes) -> Token:
        """The token of an invitation this peer has made. Raises: UsageError without a usable address."""
        if not places:
            raise UsageError(
                "an invitation needs an address others can reach: give one with --advertise HOST:PORT"
            )
        for place in places:
            split_address(place.address)
        return cls(tuple(places[:ADDRESSES_MAX]), mesh_id, inviter_key, invite.invite_id, invite.secret)

    def show(self) -> str:
        body = msgspec.msgpack.encode(self)
        return PREFIX + encode_base32(body + _check(body))

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token of this text; white space in it (a wrapped line) is forgiven. Raises: UsageError."""
        text = "".join(text[:_TEXT_MAX].split())
        if text[: len(PREFIX)].lower() != PREFIX:
            raise UsageError(f"this is not a token of `meshq invite`: it does not begin with {PREFIX}")
        try:
            raw = decode_base32(text[len(PREFIX) :])
            body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
            if check != _check(body):
                raise ValueError("its check does not match")
            token = msgspec.msgpack.decode(body, type=cls)
            for place in token.places:
                split_address(place.address)
        except (msgspec.MsgspecError, RecursionError, ValueError) as e:
            raise UsageError(f"this token is damaged: {e} (copied incompletely?)") from None
        return token


class Invite(Struct, frozen=True, array_like=True):
    """An invitation as its issuer keeps it. `used_by`: the peer id of the joiner, empty while it is open."""

    invite_id: InviteId
    secret: Secret
    expires_s: Annotated[int, Meta(ge=0, le=TIME_MAX_S)]
    used_by: Annotated[bytes, Meta(max_length=16)] = b""

    def __repr__(self) -> str:
        return f"Invite({self.invite_id.hex()}, expires_s={self.expires_s}, used_by={self.used_by.hex()})"


def new_invite(now: float, valid_s: float) -> Invite:
    return Invite(os.urandom(INVITE_ID_BYTES), os.urandom(SECRET_BYTES), int(now + valid_s))


@dataclass(frozen=True, slots=True)
class Invites:
    """The invitations of one peer, one private file each, replaced whole: the running peer, which claims
    them, and `meshq invite`, which makes them, do so side by side. So the bound may be passed by one a
    process that makes them in the same moment.
    """

    directory: Path

    def create(self, now: float, expires_s: float = EXPIRES_S) -> Invite:
        """Make an invitation that is good for `expires_s` seconds; on disk before this returns.

        Raises: UsageError when INVITES_MAX are open, StoreError.
        """
        if expires_s < 1:
            raise UsageError("an invitation must be good for at least a second")
        make_private_dir(self.directory)
        self._remove_expired(now)
        if len(self._files()) >= INVITES_MAX:
            raise UsageError(
                f"{INVITES_MAX} invitations are open: wait until some expire, or ask for shorter ones"
            )
        invite = new_invite(now, expires_s)
        self._keep(invite)
        return invite

    def check(self, invite_id: bytes, now: float, joiner_key: bytes = b"") -> Invite:
        """The invitation, when it is good now and unused, or was used by this very joiner.

        Raises: SecurityError saying whether it is unknown, expired or used.
        """
        path = self._path(invite_id)
        if len(invite_id) != INVITE_ID_BYTES or not path.exists():
            raise SecurityError(
                "this token is unknown here: it was made by another peer, or expired long ago. "
                "Ask for a new one with `meshq invite`"
            )
        invite = load_struct(path, "invite", Invite)
        if now >= invite.expires_s:
            raise SecurityError(
                f"this token expired at {show_time(invite.expires_s)}: ask for a new one with `meshq invite`"
            )
        if invite.used_by and (not joiner_key or invite.used_by != peer_id_of(joiner_key)):
            raise SecurityError("this token was used already: ask for a new one with `meshq invite`")
        return invite

    def use(self, invite_id: bytes, joiner_key: bytes, now: float) -> PeerId:
        """Mark the invitation as used by the holder of this signing key, durably. Again by the same one: no
        change.

        Raises: SecurityError as `check`, StoreError.
        """
        invite = self.check(invite_id, now, joiner_key)
        joiner = peer_id_of(joiner_key)
        if not invite.used_by:
            self._keep(msgspec.structs.replace(invite, used_by=joiner))
        return joiner

    def _keep(self, invite: Invite) -> None:
        save_struct(self._path(invite.invite_id), "invite", invite)

    def _remove_expired(self, now: float) -> None:
        """Those that expired a day ago; every expired one when there is no room otherwise."""
        files = self._files()
        kept_s = 0 if len(files) >= INVITES_MAX else EXPIRED_KEPT_S
        for path in files:
            if load_struct(path, "invite", Invite).expires_s + kept_s <= now:
                _remove(path)

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("*.invite")) if self.directory.is_dir() else []

    def _path(self, invite_id: bytes) -> Path:
        return self.directory / f"{invite_id.hex()}.invite"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        sync_dir(path.parent)
    except OSError as e:
        raise StoreError(f"cannot remove {path}: {e.strerror}") from e


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECK_BYTES, person=b"meshq token").digest()
