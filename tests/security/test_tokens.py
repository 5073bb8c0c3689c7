from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import SecurityError, UsageError
from meshq.limits import INVITES_MAX
from meshq.security import tokens
from meshq.security.tokens import EXPIRED_KEPT_S, Invites, Place, Token

from .world import AUTHORITY, FIRST, INVITE, JOINER, NOW, OTHER, PLACES, TOKEN, flip


@pytest.fixture
def invites(tmp_path: Path) -> Invites:
    return Invites(tmp_path / "invites")


# --------------------------------------------------------------------------------------------------- the text
def test_a_token_comes_back_from_its_text() -> None:
    token = Token.parse(TOKEN.show())
    assert token == TOKEN
    assert [p.address for p in token.places] == ["192.0.2.7:7700", "[fd00::7]:7700"]
    assert [p.door for p in token.places] == ["192.0.2.7:7704", "[fd00::7]:7704"]
    assert token.mesh_id == AUTHORITY.mesh_id and token.inviter_key == FIRST.curve_public


def test_a_token_survives_being_wrapped_and_capitalized() -> None:
    text = TOKEN.show()
    assert Token.parse(f" {text[:50]}\n  {text[50:]}\n") == TOKEN
    assert Token.parse(text.upper()) == TOKEN
    assert text.startswith("meshq1-") and not set(text[7:]) & set("ilou+/=_-")


@given(st.integers(1, len(TOKEN.show()) - 8))
def test_a_token_that_lacks_its_end_is_called_incomplete(missing: int) -> None:
    with pytest.raises(UsageError, match="copied incompletely"):
        Token.parse(TOKEN.show()[:-missing])


def test_every_single_bit_flip_is_refused_or_means_the_same_token() -> None:
    """The same: another case, or a letter that looks like the digit it replaces."""
    for bit in range(len(TOKEN.show()) * 8):
        text = flip(TOKEN.show().encode(), bit).decode("latin-1")
        try:
            assert Token.parse(text) == TOKEN
        except UsageError:
            assert text.lower() != TOKEN.show()
        else:
            same = text.lower().translate(str.maketrans("oil", "011"))
            assert same == TOKEN.show().translate(str.maketrans("oil", "011"))


@given(st.text(max_size=100))
def test_any_text_is_a_token_or_a_usage_error(text: str) -> None:
    for candidate in (text, "meshq1-" + text):
        with pytest.raises(UsageError, match="token"):
            Token.parse(candidate)


def test_a_token_needs_addresses_and_carries_eight_at_most() -> None:
    def make(places: list[Place]) -> Token:
        return Token.new(INVITE, places=places, mesh_id=AUTHORITY.mesh_id, inviter_key=FIRST.curve_public)

    assert Token.parse(make(PLACES * 10).show()).places == tuple(PLACES * 4)
    with pytest.raises(UsageError, match="--advertise"):
        make([])
    with pytest.raises(UsageError, match="HOST:PORT is expected"):
        make([Place("nowhere", 1)])


def test_no_secret_shows_in_a_repr() -> None:
    assert "the token secret" not in repr(TOKEN) + repr(INVITE)


# ----------------------------------------------------------------------------------------- what is kept of it
def test_an_invitation_is_kept_in_a_private_file_and_good_until_it_expires(invites: Invites) -> None:
    invite = invites.create(NOW, 60)
    assert Invites(invites.directory).check(invite.invite_id, NOW + 59) == invite
    (file,) = invites.directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(
        SecurityError, match=r"expired at 2025-06-15 15:07:40 UTC: ask for a new one with `meshq"
    ):
        invites.check(invite.invite_id, NOW + 60)
    with pytest.raises(SecurityError, match="expired at"):
        invites.use(invite.invite_id, JOINER.signing_key, NOW + 60)


def test_invitations_differ(invites: Invites) -> None:
    a, b = invites.create(NOW), invites.create(NOW)
    assert a.invite_id != b.invite_id and a.secret != b.secret


def test_an_unknown_invitation_is_refused(invites: Invites) -> None:
    for unknown in (b"unknown!", b"", b"../../etc"):
        with pytest.raises(SecurityError, match="unknown here: it was made by another peer"):
            invites.check(unknown, NOW)


def test_an_invitation_is_used_once_and_stays_so_across_a_restart(invites: Invites) -> None:
    invite_id = invites.create(NOW).invite_id
    assert invites.use(invite_id, JOINER.signing_key, NOW) == JOINER.peer_id
    again = Invites(invites.directory)
    with pytest.raises(SecurityError, match="used already: ask for a new one with `meshq invite`"):
        again.use(invite_id, OTHER.signing_key, NOW)
    with pytest.raises(SecurityError, match="used already"):
        again.check(invite_id, NOW)
    assert again.check(invite_id, NOW, JOINER.signing_key).used_by == JOINER.peer_id


def test_the_joiner_that_used_it_may_repeat(invites: Invites, monkeypatch: pytest.MonkeyPatch) -> None:
    invite_id = invites.create(NOW).invite_id
    invites.use(invite_id, JOINER.signing_key, NOW)
    monkeypatch.setattr(tokens, "save_struct", None)  # nothing is written the second time
    assert invites.use(invite_id, JOINER.signing_key, NOW + 1) == JOINER.peer_id


def test_expired_invitations_are_removed_after_a_day(invites: Invites) -> None:
    old = invites.create(NOW, 60).invite_id
    invites.create(NOW + EXPIRED_KEPT_S, 60)
    with pytest.raises(SecurityError, match="expired at"):
        invites.check(old, NOW + EXPIRED_KEPT_S)
    invites.create(NOW + EXPIRED_KEPT_S + 60, 60)
    with pytest.raises(SecurityError, match="unknown here"):
        invites.check(old, NOW + EXPIRED_KEPT_S + 60)


def test_open_invitations_are_bounded_and_expired_ones_make_room(
    invites: Invites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "INVITES_MAX", 3)
    for _ in range(3):
        invites.create(NOW, 60)
    with pytest.raises(UsageError, match="3 invitations are open"):
        invites.create(NOW + 59, 60)
    invites.create(NOW + 60, 60)
    assert len(list(invites.directory.iterdir())) == 1
    assert INVITES_MAX == 256


def test_an_invitation_shorter_than_a_second_is_refused(invites: Invites) -> None:
    with pytest.raises(UsageError, match="at least a second"):
        invites.create(NOW, 0)
