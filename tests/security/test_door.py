from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import Overloaded, RemoteProtocolError, SecurityError, UsageError
from meshq.ids import PeerId
from meshq.levels import BASE, LEVEL_KNOWN
from meshq.limits import DOOR_FRAME_BYTES_MAX, PEERS_MAX
from meshq.security import door, genesis
from meshq.security.authority import Authority
from meshq.security.certificates import BACKDATED_S, DAY_S, SignedCertificate, issue, verify
from meshq.security.door import JoinRequest, PendingJoin, Present
from meshq.security.identity import Identity
from meshq.security.tokens import Invite, Invites, Token

from .world import (
    AUTHORITY,
    FIRST,
    GENESIS,
    INVITE,
    JOINER,
    KEYRING,
    NOW,
    OTHER,
    PLACES,
    SECOND,
    SERIAL,
    STRANGER,
    TOKEN,
    certify,
    flip,
    make_genesis,
)

NONCE = b"n" * 16
REGISTERED = {"first": FIRST.peer_id, "second": SECOND.peer_id}
REQUEST = door.join_request(TOKEN, JOINER, NOW, nonce=NONCE)


class OneInvite(Invites):
    """The invitation of TOKEN, in memory: what a check needs."""

    def check(self, invite_id: bytes, now: float, joiner_key: bytes = b"") -> Invite:
        if invite_id != INVITE.invite_id:
            raise SecurityError("unknown")
        return INVITE


def check(
    data: bytes,
    *,
    invites: Invites | None = None,
    by: Authority = AUTHORITY,
    names: Mapping[str, PeerId] = REGISTERED,
    connection_key: bytes = JOINER.curve_public,
    now: float = NOW,
    level: int = BASE,
) -> PendingJoin:
    request = door.decode_request(data)
    assert isinstance(request, JoinRequest)
    return door.check_join(
        request,
        authority=by,
        invites=invites or OneInvite(Path()),
        existing_names=names,
        connection_key=connection_key,
        serial=SERIAL,
        now=now,
        level=level,
    )


def reply_to(data: bytes, **changes: Any) -> bytes:
    """What an issuer that has checked and claimed answers."""
    pending = check(data)
    arguments: dict[str, Any] = {
        "genesis": GENESIS,
        "keyring": KEYRING,
        "certificates": [certify(FIRST), certify(SECOND)],
    }
    return door.finish_join(door.ClaimedJoin(pending.signed, pending.certificate), **{**arguments, **changes})


def test_a_host_with_a_token_is_let_in(tmp_path: Path) -> None:
    invites = Invites(tmp_path / "invites")
    token = Token.new(
        invites.create(NOW), places=PLACES, mesh_id=AUTHORITY.mesh_id, inviter_key=FIRST.curve_public
    )
    pending = check(door.join_request(token, JOINER, NOW, nonce=NONCE), invites=invites)
    claimed = door.claim_join(pending, invites=invites, now=NOW)
    assert claimed.peer_id == JOINER.peer_id
    data = door.finish_join(claimed, genesis=GENESIS, keyring=KEYRING, certificates=[certify(FIRST)])
    joined = door.accept_reply(token, JOINER, data, NOW)
    own = verify(joined.certificate, AUTHORITY.key, NOW)
    assert (own.kind, own.name, own.peer_id, own.serial) == ("peer", "joiner", JOINER.peer_id, SERIAL)
    assert own.curve_key == JOINER.curve_public
    assert (joined.authority_key, joined.genesis, joined.keyring) == (AUTHORITY.key, GENESIS, KEYRING)
    assert joined.certificates == (certify(FIRST),)


def test_a_joiner_whose_reply_was_lost_asks_again_and_nobody_else_can(tmp_path: Path) -> None:
    invites = Invites(tmp_path / "invites")
    token = Token.new(
        invites.create(NOW), places=PLACES, mesh_id=AUTHORITY.mesh_id, inviter_key=FIRST.curve_public
    )
    data = door.join_request(token, JOINER, NOW, nonce=NONCE)
    rival = door.join_request(token, OTHER, NOW, nonce=NONCE)
    pending = check(data, invites=invites)
    second = check(rival, invites=invites, connection_key=OTHER.curve_public)
    door.claim_join(pending, invites=invites, now=NOW)
    registered = {**REGISTERED, "joiner": JOINER.peer_id}
    door.claim_join(check(data, invites=invites, names=registered), invites=invites, now=NOW + 1)
    with pytest.raises(SecurityError, match="used already"):
        door.claim_join(second, invites=invites, now=NOW)
    with pytest.raises(SecurityError, match="used already"):
        check(rival, invites=invites, connection_key=OTHER.curve_public)


def test_no_byte_of_the_secret_travels() -> None:
    for i in range(len(TOKEN.secret) - 3):
        assert TOKEN.secret[i : i + 4] not in REQUEST


# ----------------------------------------------------------------------------------------- the issuer refuses
def test_a_request_that_does_not_know_the_secret_is_refused() -> None:
    guessed = msgspec.structs.replace(TOKEN, secret=b"another secret!!")
    with pytest.raises(SecurityError, match="does not prove the token's secret"):
        check(door.join_request(guessed, JOINER, NOW, nonce=NONCE))


def test_a_request_for_another_mesh_is_refused() -> None:
    with pytest.raises(SecurityError, match=r"this token is for mesh .*, this peer is of mesh"):
        check(REQUEST, by=STRANGER)


def test_a_key_that_is_not_the_joiners_own_is_refused() -> None:
    """An invitation certifies the keys of whoever uses it, not somebody else's signing or CURVE key."""
    request = door.decode_request(REQUEST)
    assert isinstance(request, JoinRequest)
    forged = msgspec.structs.replace(request, signature=OTHER.sign(door.DOMAIN, request.body + request.proof))
    with pytest.raises(SecurityError, match="not signed by the key it wants certified"):
        check(msgspec.msgpack.encode(forged))
    with pytest.raises(SecurityError, match="another CURVE key"):
        check(REQUEST, connection_key=OTHER.curve_public)


def test_a_name_that_another_peer_has_is_refused() -> None:
    with pytest.raises(UsageError, match="'joiner' is taken by another peer: choose one with --name"):
        check(REQUEST, names={"joiner": OTHER.peer_id})
    with pytest.raises(UsageError, match="registered as 'oldname' already: join with --name oldname"):
        check(REQUEST, names={"oldname": JOINER.peer_id})


def test_a_name_that_is_not_one_is_refused() -> None:
    nameless = Identity("x", JOINER.signing_seed, JOINER.curve_secret)
    object.__setattr__(nameless, "name", "a b")
    with pytest.raises(UsageError, match="not a peer's name"):
        check(door.join_request(TOKEN, nameless, NOW, nonce=NONCE))


def test_a_full_mesh_takes_nobody_new() -> None:
    full = {f"p{i}": PeerId(i.to_bytes(16, "big")) for i in range(PEERS_MAX)}
    with pytest.raises(UsageError, match="has 1000 peers"):
        check(REQUEST, names=full)


@pytest.mark.parametrize("wrong_s", [-BACKDATED_S - 5, 91 * DAY_S])
def test_a_joiner_whose_clock_is_wrong_is_told_before_anything_is_used(wrong_s: float) -> None:
    with pytest.raises(SecurityError, match=r"joining host's clock says .* Set the clock"):
        check(door.join_request(TOKEN, JOINER, NOW + wrong_s, nonce=NONCE))


def test_every_single_bit_flip_of_a_request_is_refused() -> None:
    for bit in range(len(REQUEST) * 8):
        with pytest.raises((SecurityError, RemoteProtocolError)):
            check(flip(REQUEST, bit))


@given(st.binary(max_size=300))
def test_any_bytes_at_the_door_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        door.decode_request(data)
    with pytest.raises(RemoteProtocolError):
        door.accept_reply(TOKEN, JOINER, data, NOW)


def test_a_frame_over_the_bound_is_not_read() -> None:
    with pytest.raises(RemoteProtocolError, match="at the door: at most"):
        door.decode_request(bytes(DOOR_FRAME_BYTES_MAX + 1))
    with pytest.raises(RemoteProtocolError, match="reply of"):
        door.decode_reply(bytes(door.JOIN_REPLY_BYTES_MAX + 1))


def test_a_signed_body_that_is_no_join_is_refused() -> None:
    body = msgspec.msgpack.encode(["what"])
    request = JoinRequest(body, bytes(32), JOINER.sign(door.DOMAIN, body + bytes(32)))
    with pytest.raises(RemoteProtocolError, match="join request that cannot be read"):
        check(msgspec.msgpack.encode(request))


# ----------------------------------------------------------------------------------------- the joiner refuses
def test_a_refusal_is_raised_as_the_same_error_at_the_joiner() -> None:
    with pytest.raises(SecurityError, match="used already"):
        door.accept_reply(TOKEN, JOINER, door.refused(SecurityError("used already")), NOW)
    with pytest.raises(Overloaded, match="full") as e:
        door.accept_reply(TOKEN, JOINER, door.refused(Overloaded("full", retry_after_ms=500)), NOW)
    assert e.value.retry_after_ms == 500


def test_a_reply_for_another_mesh_is_refused() -> None:
    signed = certify(JOINER, by=STRANGER)
    claimed = door.ClaimedJoin(signed, verify(signed, STRANGER.key, NOW))
    data = door.finish_join(claimed, genesis=make_genesis(STRANGER), keyring=KEYRING, certificates=[])
    with pytest.raises(SecurityError, match=r"door answered for mesh .*, the token is for"):
        door.accept_reply(TOKEN, JOINER, data, NOW)


def test_a_genesis_of_another_mesh_in_the_reply_is_refused() -> None:
    with pytest.raises(SecurityError, match="bad signature: this genesis"):
        door.accept_reply(TOKEN, JOINER, reply_to(REQUEST, genesis=make_genesis(STRANGER)), NOW)


def test_a_certificate_for_other_keys_in_the_reply_is_refused() -> None:
    signed = certify(OTHER)
    claimed = door.ClaimedJoin(signed, verify(signed, AUTHORITY.key, NOW))
    data = door.finish_join(claimed, genesis=GENESIS, keyring=KEYRING, certificates=[])
    with pytest.raises(SecurityError, match="not this peer's"):
        door.accept_reply(TOKEN, JOINER, data, NOW)


def test_certificates_that_do_not_hold_are_left_out_of_what_was_joined() -> None:
    expired, foreign = certify(SECOND, now=NOW - 200 * DAY_S), certify(OTHER, by=STRANGER)
    data = reply_to(REQUEST, certificates=[expired, certify(FIRST), foreign])
    assert door.accept_reply(TOKEN, JOINER, data, NOW).certificates == (certify(FIRST),)


REPLY = reply_to(REQUEST, certificates=[])


@given(st.integers(0, len(REPLY) * 8 - 1))
def test_a_bit_flip_in_a_reply_never_changes_whom_the_joiner_trusts(bit: int) -> None:
    """The keyring is not signed (CURVE protects it on its way); everything else is."""
    try:
        joined = door.accept_reply(TOKEN, JOINER, flip(REPLY, bit), NOW)
    except (SecurityError, RemoteProtocolError):
        return
    assert (joined.authority_key, joined.genesis) == (AUTHORITY.key, GENESIS)
    assert genesis.verify(joined.genesis, AUTHORITY.key)
    assert verify(joined.certificate, AUTHORITY.key, NOW).peer_id == JOINER.peer_id


# -------------------------------------------------------------------------------------- showing a certificate
def show(signed: SignedCertificate, connection_key: bytes = JOINER.curve_public, **arguments: Any) -> PeerId:
    request = door.decode_request(door.present(signed))
    assert isinstance(request, Present)
    return door.check_present(
        request, authority_key=AUTHORITY.key, connection_key=connection_key, now=NOW, **arguments
    ).peer_id


def test_a_peer_not_heard_of_yet_is_admitted_by_its_certificate() -> None:
    assert show(certify(JOINER)) == JOINER.peer_id
    door.accept_admission(door.admitted())


def test_a_certificate_shown_is_refused_when_it_does_not_hold() -> None:
    with pytest.raises(SecurityError, match="foreign authority"):
        show(certify(JOINER, by=STRANGER))
    with pytest.raises(SecurityError, match="expired"):
        show(certify(JOINER, now=NOW - 91 * DAY_S))
    with pytest.raises(SecurityError, match="'joiner' is revoked: join again"):
        show(certify(JOINER), revoked={SERIAL})
    with pytest.raises(SecurityError, match="shown by another key"):
        show(certify(JOINER), OTHER.curve_public)
    client = issue(
        AUTHORITY, kind="client", name="app", curve_key=JOINER.curve_public, serial=SERIAL, now=NOW
    )
    with pytest.raises(SecurityError, match="only a peer shows"):
        show(client)


def test_an_answer_to_another_question_is_a_protocol_error() -> None:
    with pytest.raises(RemoteProtocolError, match="as if it were a join"):
        door.accept_admission(REPLY)
    with pytest.raises(RemoteProtocolError, match="as if it were a certificate shown"):
        door.accept_reply(TOKEN, JOINER, door.admitted(), NOW)
    with pytest.raises(SecurityError, match="no"):
        door.accept_admission(door.refused(SecurityError("no")))


def test_nonces_differ() -> None:
    assert len(door.new_nonce()) == 16 and door.new_nonce() != door.new_nonce()


def test_software_that_is_too_old_for_the_mesh_is_not_let_in() -> None:
    assert check(REQUEST, level=LEVEL_KNOWN)
    with pytest.raises(UsageError, match="install a newer meshq"):
        check(REQUEST, level=LEVEL_KNOWN + 1)


def test_a_mesh_that_newer_software_made_is_not_joined() -> None:
    made = msgspec.msgpack.decode(GENESIS.body, type=genesis.Genesis)
    newer = msgspec.structs.replace(made, level=LEVEL_KNOWN + 1)
    body = msgspec.msgpack.encode(newer)
    reply = reply_to(REQUEST, genesis=genesis.SignedGenesis(body, AUTHORITY.sign(genesis.DOMAIN, body)))
    with pytest.raises(UsageError, match="install a newer meshq"):
        door.accept_reply(TOKEN, JOINER, reply, NOW)
