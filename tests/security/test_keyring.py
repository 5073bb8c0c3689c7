from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import RemoteProtocolError, SecurityError, UsageError
from meshq.security.keyring import KEYS_MAX, Keyring, mdns_tag

from .world import KEYRING


def ring(*numbers: int) -> Keyring:
    return Keyring({n: bytes([n]) * 32 for n in numbers}, numbers[0])


def test_a_keyring_comes_back_from_its_file_and_its_bytes(tmp_path: Path) -> None:
    made = Keyring.generate().merge(ring(2))
    made.save(tmp_path / "keyring.key")
    assert Keyring.load(tmp_path / "keyring.key") == Keyring.decode(made.encode()) == made
    (tmp_path / "keyring.key").chmod(0o640)
    with pytest.raises(SecurityError, match="chmod 600"):
        Keyring.load(tmp_path / "keyring.key")


def test_two_meshes_have_different_keys() -> None:
    assert Keyring.generate().active_key != Keyring.generate().active_key


@given(st.lists(st.integers(1, 12), min_size=1, max_size=KEYS_MAX, unique=True),
       st.lists(st.integers(1, 12), min_size=1, max_size=KEYS_MAX, unique=True))  # fmt: skip
def test_keyrings_merge_to_the_same_whichever_way_round(a: list[int], b: list[int]) -> None:
    merged = ring(*a).merge(ring(*b))
    assert merged == ring(*b).merge(ring(*a))
    assert merged.active == max(a[0], b[0])
    assert len(merged.keys) <= KEYS_MAX
    assert merged.merge(ring(*a)) == merged


def test_a_merge_beyond_the_bound_drops_the_oldest() -> None:
    merged = ring(*range(1, 9)).merge(ring(9))
    assert sorted(merged.keys) == list(range(2, 10)) and merged.active == 9


def test_keyrings_that_disagree_about_a_key_do_not_merge() -> None:
    with pytest.raises(SecurityError, match="disagree about key 1"):
        KEYRING.merge(ring(1))


def test_an_active_key_it_does_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="and the active one"):
        Keyring({1: b"k" * 32}, 2)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_keyring_or_a_protocol_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="keyring that cannot be read"):
        Keyring.decode(data)


def test_a_member_knows_the_tag_of_another_and_nobody_else_does() -> None:
    tag = KEYRING.mdns_tag(b"instance")
    assert tag == mdns_tag(b"k" * 32, b"instance") and len(tag) == 16
    assert KEYRING.merge(ring(2)).knows_tag(tag, b"instance")
    assert not KEYRING.knows_tag(tag, b"another instance")
    assert not ring(1).knows_tag(tag, b"instance")
    assert tag != KEYRING.mdns_tag(b"another instance")


def test_no_key_shows_in_a_repr() -> None:
    assert "kkk" not in repr(KEYRING)
