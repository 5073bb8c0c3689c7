from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import RemoteProtocolError, SecurityError, UsageError
from meshq.security.certificates import (
    BACKDATED_S,
    DAY_S,
    DOMAIN,
    Capability,
    Certificate,
    SignedCertificate,
    issue,
    new_serial,
    verify,
    verify_signature,
)

from .world import AUTHORITY, FIRST, NOW, SERIAL, STRANGER, certify, flip


def client(**changes: Any) -> SignedCertificate:
    arguments: dict[str, Any] = {
        "kind": "client",
        "name": "app",
        "curve_key": FIRST.curve_public,
        "serial": SERIAL,
        "now": NOW,
        "capabilities": [("publish", "plant.#"), ("subscribe", "plant.*.temp")],
    }
    return issue(AUTHORITY, **{**arguments, **changes})


def signed(certificate: Certificate) -> SignedCertificate:
    """Signed by the authority as it stands, without the checks of `issue`."""
    body = msgspec.msgpack.encode(certificate)
    return SignedCertificate(body, AUTHORITY.sign(DOMAIN, body))


def test_a_certificate_says_what_was_issued() -> None:
    certificate = verify(client(roles=["billing"], weight=2, zone="rack1"), AUTHORITY.key, NOW)
    assert certificate == Certificate(
        kind="client",
        name="app",
        signing_key=b"",
        curve_key=FIRST.curve_public,
        roles=("billing",),
        capabilities=(Capability("publish", "plant.#"), Capability("subscribe", "plant.*.temp")),
        not_before_s=int(NOW) - BACKDATED_S,
        not_after_s=int(NOW) + 365 * DAY_S,
        serial=SERIAL,
        issuer=AUTHORITY.key,
        weight=2.0,
        zone="rack1",
    )


def test_peers_are_certified_for_90_days() -> None:
    certificate = verify(certify(FIRST), AUTHORITY.key, NOW)
    assert certificate.not_after_s == int(NOW) + 90 * DAY_S
    assert certificate.peer_id == FIRST.peer_id


def test_serials_differ() -> None:
    assert len(new_serial()) == 16 and new_serial() != new_serial()


def test_a_certificate_comes_back_from_its_bytes() -> None:
    assert SignedCertificate.decode(client().encode()) == client()


def test_an_expired_certificate_is_refused_with_both_times() -> None:
    end = int(NOW) + 100
    verify(client(valid_s=100), AUTHORITY.key, end - 0.01)
    with pytest.raises(
        SecurityError, match=r"'app' expired at .* UTC \(the clock here says .*make a new one"
    ):
        verify(client(valid_s=100), AUTHORITY.key, end)
    with pytest.raises(SecurityError, match="join again with a new token"):
        verify(certify(FIRST), AUTHORITY.key, NOW + 91 * DAY_S)
    assert verify_signature(client(valid_s=100), AUTHORITY.key).not_after_s == end


def test_a_clock_a_little_behind_is_forgiven_and_one_far_behind_is_named() -> None:
    verify(client(), AUTHORITY.key, NOW - BACKDATED_S)
    with pytest.raises(SecurityError, match=r"not yet valid.*Set the clock"):
        verify(client(), AUTHORITY.key, NOW - BACKDATED_S - 2)


def test_a_certificate_of_another_mesh_is_called_foreign() -> None:
    with pytest.raises(SecurityError, match="foreign authority: the certificate of peer 'first' is of mesh"):
        verify(certify(FIRST, by=STRANGER), AUTHORITY.key, NOW)


def test_a_certificate_that_names_an_authority_that_did_not_sign_it_is_refused() -> None:
    body = msgspec.msgpack.encode(
        msgspec.structs.replace(verify(client(), AUTHORITY.key, NOW), issuer=STRANGER.key)
    )
    with pytest.raises(SecurityError, match="foreign authority"):
        verify(SignedCertificate(body, AUTHORITY.sign(DOMAIN, body)), AUTHORITY.key, NOW)
    with pytest.raises(SecurityError, match="bad signature"):
        verify(SignedCertificate(body, AUTHORITY.sign(DOMAIN, body)), STRANGER.key, NOW)


def test_a_signature_made_for_another_kind_of_thing_is_no_certificate() -> None:
    body = client().body
    with pytest.raises(SecurityError, match="bad signature"):
        verify(SignedCertificate(body, AUTHORITY.sign(b"genesis", body)), AUTHORITY.key, NOW)


ENCODED = client().encode()


def test_every_single_bit_flip_is_refused() -> None:
    for bit in range(len(ENCODED) * 8):
        with pytest.raises((SecurityError, RemoteProtocolError)):
            verify(SignedCertificate.decode(flip(ENCODED, bit)), AUTHORITY.key, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_certificate_or_a_protocol_error(data: bytes) -> None:
    with pytest.raises((SecurityError, RemoteProtocolError)):
        verify(SignedCertificate.decode(data), AUTHORITY.key, NOW)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "a b"}, "not a client's name"),
        ({"capabilities": [("publish", "a..b")]}, "not a pattern"),
        ({"capabilities": [("steal", "a")]}, "Invalid enum value 'steal'"),
        ({"capabilities": [("publish", "a")] * 65}, "length <= 64"),
        ({"roles": ["r"] * 17}, "length <= 16"),
        ({"curve_key": b"short"}, "length >= 32"),
        ({"signing_key": b"short"}, "signing key has 5 bytes"),
        ({"kind": "peer"}, "signing key has 0 bytes"),
        ({"kind": "king"}, "Invalid enum value 'king'"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": -1.0}, "weight -1.0"),
        ({"valid_s": 0}, "end after it begins"),
        ({"valid_s": 30 * 365 * DAY_S}, "at most 7300 days"),
        ({"zone": "z" * 64}, "length <= 63"),
    ],
)
def test_nothing_over_a_limit_is_issued(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        client(**changes)


def test_a_signed_certificate_over_a_limit_is_refused_too() -> None:
    good = verify(client(), AUTHORITY.key, NOW)
    for changed in (
        msgspec.structs.replace(good, capabilities=(Capability("publish", "a..b"),)),
        msgspec.structs.replace(good, weight=float("inf")),
        msgspec.structs.replace(good, zone="z" * 50_000),
        msgspec.structs.replace(good, not_after_s=good.not_before_s),
    ):
        with pytest.raises(SecurityError, match="over limits"):
            verify(signed(changed), AUTHORITY.key, NOW)
