"""Ids: derived, shown, read back; a misheard one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import UsageError
from meshq.ids import ID_BYTES, mesh_id_of, parse_id, peer_id_of, show_id

LETTERS = "abcdefghijklmnopqrstuvwxyz234567"

ids = st.binary(min_size=ID_BYTES, max_size=ID_BYTES)


@given(ids)
def test_an_id_reads_back_as_it_was_shown(raw: bytes) -> None:
    shown = show_id(raw)
    assert parse_id(shown) == raw
    assert parse_id(f"  {shown.upper()}\n") == raw
    assert [len(group) for group in shown.split("-")] == [4, 4, 4, 4, 4, 4, 2, 2]


@given(ids, st.integers(0, 25), st.sampled_from(LETTERS))
def test_one_misheard_letter_is_refused(raw: bytes, place: int, letter: str) -> None:
    shown = show_id(raw)
    place += place // 4  # over the hyphens
    heard = shown[:place] + letter + shown[place + 1 :]
    if heard != shown:
        with pytest.raises(UsageError, match="is not an id"):
            parse_id(heard)


@given(ids, st.integers(0, 24))
def test_two_neighbours_swapped_are_refused(raw: bytes, place: int) -> None:
    body, check = show_id(raw).replace("-", "")[:26], show_id(raw)[-2:]
    heard = body[:place] + body[place + 1] + body[place] + body[place + 2 :]
    if heard != body:
        with pytest.raises(UsageError, match="is not an id"):
            parse_id(f"{heard}-{check}")


@given(ids)
def test_other_check_digits_are_refused(raw: bytes) -> None:
    shown = show_id(raw)
    for wrong in range(100):
        heard = f"{shown[:-2]}{wrong:02d}"
        if heard != shown:
            with pytest.raises(UsageError, match="check digits"):
                parse_id(heard)


@given(st.text(max_size=45))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        assert len(parse_id(text)) == ID_BYTES
    except UsageError as e:
        assert "is not an id" in e.text


def test_the_same_key_makes_another_id_for_another_use() -> None:
    key = bytes(32)
    assert mesh_id_of(key) == mesh_id_of(key)
    assert mesh_id_of(key) != peer_id_of(key)
    assert peer_id_of(key) != peer_id_of(b"\x01" + key[1:])
    assert len(mesh_id_of(key)) == len(peer_id_of(key)) == ID_BYTES
