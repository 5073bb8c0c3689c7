"""One small mesh in memory, made once: an authority, two peers and what they share."""

from __future__ import annotations

from meshq.ids import PeerId
from meshq.security import genesis
from meshq.security.authority import Authority
from meshq.security.certificates import SignedCertificate, issue
from meshq.security.identity import Identity
from meshq.security.keyring import Keyring
from meshq.security.tokens import Invite, Place, Token

NOW = 1_750_000_000.25
SERIAL = bytes(range(16))
AUTHORITY = Authority(b"a" * 32)
STRANGER = Authority(b"s" * 32)
FIRST = Identity("first", b"1" * 32, b"!" * 32)
SECOND = Identity("second", b"2" * 32, b'"' * 32)
JOINER = Identity("joiner", b"3" * 32, b"#" * 32)
OTHER = Identity("other", b"4" * 32, b"$" * 32)
KEYRING = Keyring({1: b"k" * 32}, 1)
INVITE = Invite(b"inviteid", b"the token secret", int(NOW) + 600)
PLACES = [Place("192.0.2.7:7700", 7704), Place("[fd00::7]:7700", 7704)]
TOKEN = Token.new(INVITE, places=PLACES, mesh_id=AUTHORITY.mesh_id, inviter_key=FIRST.curve_public)


def certify(who: Identity, *, by: Authority = AUTHORITY, now: float = NOW) -> SignedCertificate:
    return issue(
        by,
        kind="peer",
        name=who.name,
        signing_key=who.signing_key,
        curve_key=who.curve_public,
        serial=SERIAL,
        now=now,
    )


def make_genesis(by: Authority = AUTHORITY, registry_peer: PeerId = FIRST.peer_id) -> genesis.SignedGenesis:
    founders = [certify(FIRST, by=by), certify(SECOND, by=by)]
    return genesis.make(
        by,
        mesh_name="plant",
        slots=256,
        replicas=3,
        now=NOW,
        founders=founders,
        registry_peer=registry_peer,
    )


GENESIS = make_genesis()


def flip(data: bytes, bit: int) -> bytes:
    """These bytes with one bit inverted."""
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)
