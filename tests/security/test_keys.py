"""Identity, authority, signatures and how keys are written."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from meshq.errors import SecurityError, StoreError, UsageError
from meshq.ids import peer_id_of
from meshq.security.authority import Authority
from meshq.security.identity import Identity
from meshq.security.signing import is_signed_by, sign_exact, verify_exact
from meshq.security.text import (
    check_name,
    decode_base32,
    encode_base32,
    join_address,
    parse_key,
    show_key,
    show_time,
    split_address,
)

from .world import AUTHORITY, FIRST


def test_an_identity_comes_back_from_its_private_file(tmp_path: Path) -> None:
    identity = Identity.generate("peer1")
    identity.save(tmp_path / "identity.key")
    assert Identity.load(tmp_path / "identity.key") == identity
    assert stat.S_IMODE((tmp_path / "identity.key").stat().st_mode) == 0o600
    assert identity.peer_id == peer_id_of(identity.signing_key)


def test_two_identities_of_one_name_are_two_peers() -> None:
    assert Identity.generate("x").peer_id != Identity.generate("x").peer_id


def test_the_curve_keys_are_a_pair_as_zeromq_makes_them() -> None:
    assert zmq.curve_public(z85.encode(FIRST.curve_secret)) == z85.encode(FIRST.curve_public)


def test_no_secret_shows_in_a_repr() -> None:
    assert "1111" not in repr(FIRST) and "aaaa" not in repr(AUTHORITY)


def test_an_identity_that_others_can_read_is_not_loaded(tmp_path: Path) -> None:
    FIRST.save(tmp_path / "identity.key")
    (tmp_path / "identity.key").chmod(0o644)
    with pytest.raises(SecurityError, match="chmod 600"):
        Identity.load(tmp_path / "identity.key")


def test_an_authority_file_is_not_an_identity(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path / "authority.key")
    assert Authority.load(tmp_path / "authority.key") == AUTHORITY
    with pytest.raises(StoreError, match="kind 'identity'"):
        Identity.load(tmp_path / "authority.key")


@pytest.mark.parametrize("name", ["", "a b", "a.b", "ä", "x" * 64, "a\n"])
def test_a_name_that_is_not_one_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="1 to 63 letters"):
        check_name(name)


def test_a_signature_holds_for_these_bytes_this_domain_and_this_key_only() -> None:
    signature = sign_exact(b"1" * 32, b"thing", b"body")
    verify_exact(FIRST.signing_key, b"thing", b"body", signature)
    assert signature == FIRST.sign(b"thing", b"body")
    for key, domain, body in (
        (AUTHORITY.key, b"thing", b"body"),
        (FIRST.signing_key, b"other", b"body"),
        (FIRST.signing_key, b"thing", b"Body"),
        (b"short", b"thing", b"body"),
        (bytes(32), b"thing", b"body"),
    ):
        with pytest.raises(SecurityError, match="bad signature"):
            verify_exact(key, domain, body, signature)
    assert not is_signed_by(FIRST.signing_key, b"thing", b"body", b"")


def test_a_recovery_secret_brings_the_same_authority_back() -> None:
    authority = Authority.generate()
    text = authority.recovery_secret()
    assert [len(g) for g in text.split("-")] == [4] * 14
    assert Authority.from_recovery(text) == authority
    assert Authority.from_recovery(f"  {text.upper().replace('-', ' ')}\n") == authority
    assert Authority.from_recovery(text.replace("0", "O").replace("1", "l")) == authority


def test_a_recovery_secret_copied_wrongly_is_refused_and_not_repeated() -> None:
    text = AUTHORITY.recovery_secret()
    with pytest.raises(SecurityError, match=r"has 52 letters .* whole one has 56"):
        Authority.from_recovery(text[5:])
    with pytest.raises(SecurityError, match="never written"):
        Authority.from_recovery("u" + text[1:])
    with pytest.raises(SecurityError, match="check does not match") as e:
        Authority.from_recovery(("a" if text[0] != "a" else "b") + text[1:])
    assert text[5:9] not in e.value.text


@given(st.integers(0, 55), st.sampled_from("0123456789abcdefghjkmnpqrstvwxyz"))
def test_any_one_wrong_character_of_a_recovery_secret_is_noticed(place: int, character: str) -> None:
    text = AUTHORITY.recovery_secret().replace("-", "")
    changed = text[:place] + character + text[place + 1 :]
    if changed != text:
        with pytest.raises(SecurityError, match="check does not match"):
            Authority.from_recovery(changed)


@given(st.binary(max_size=60))
def test_base32_comes_back_and_has_no_lookalikes(raw: bytes) -> None:
    text = encode_base32(raw)
    assert decode_base32(text) == decode_base32(text.upper()) == raw
    assert not set(text) & set("ilou")


@given(st.binary(min_size=32, max_size=32))
def test_a_z85_key_comes_back(raw: bytes) -> None:
    assert parse_key(show_key(raw)) == raw
    assert show_key(raw) == z85.encode(raw).decode()


@pytest.mark.parametrize("text", ["", "a", "a" * 39, "a" * 41, "a" * 45, "~" * 40, "ä" * 40, "#" * 40])
def test_what_is_no_key_is_refused_by_its_name_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match=r"\[client\] secret_key is not a key") as e:
        parse_key(text, "[client] secret_key")
    assert not text or len(text) < 3 or text not in e.value.text


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("h:1", "h", 1), ("10.0.0.1:65535", "10.0.0.1", 65535), ("[fe80::1%eth0]:7700", "fe80::1%eth0", 7700)],
)
def test_an_address_is_taken_apart_and_put_together(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize(
    "address", ["", "h", "h:", ":1", "h:0", "h:65536", "fe80::1:7700", "h:1 ", "a b:1", "h:x"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT is expected"):
        split_address(address)


def test_times_are_shown_in_utc_and_bounded() -> None:
    assert show_time(0) == "1970-01-01 00:00:00 UTC"
    assert show_time(1e30) == "9999-12-31 23:59:59 UTC"
