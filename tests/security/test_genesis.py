from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import RemoteProtocolError, SecurityError, UsageError
from meshq.ids import PeerId, mesh_id_of
from meshq.security import genesis
from meshq.security.genesis import SignedGenesis, read_founders

from .world import AUTHORITY, FIRST, GENESIS, NOW, SECOND, STRANGER, certify, flip, make_genesis


def make(**changes: Any) -> SignedGenesis:
    arguments: dict[str, Any] = {
        "mesh_name": "plant",
        "slots": 256,
        "replicas": 3,
        "now": NOW,
        "founders": [certify(FIRST), certify(SECOND)],
        "registry_peer": FIRST.peer_id,
    }
    return genesis.make(AUTHORITY, **{**arguments, **changes})


def test_a_genesis_says_what_the_mesh_was_made_of() -> None:
    read = genesis.verify(SignedGenesis.decode(GENESIS.encode()), AUTHORITY.key)
    assert (read.mesh_name, read.slots, read.replicas) == ("plant", 256, 3)
    assert read.created_ms == int(NOW * 1000)
    assert read.registry_peer == FIRST.peer_id
    assert read.mesh_id == mesh_id_of(AUTHORITY.key)
    assert [f.name for f in read_founders(read)] == ["first", "second"]
    assert genesis.peek_authority(GENESIS) == AUTHORITY.key


def test_the_same_mesh_is_the_same_bytes() -> None:
    assert make_genesis().encode() == GENESIS.encode()


def test_another_authority_did_not_make_it() -> None:
    with pytest.raises(SecurityError, match="bad signature: this genesis"):
        genesis.verify(GENESIS, STRANGER.key)


def test_a_genesis_that_names_another_authority_than_its_signer_is_refused() -> None:
    body = make_genesis(STRANGER).body
    with pytest.raises(SecurityError, match="another authority"):
        genesis.verify(SignedGenesis(body, AUTHORITY.sign(genesis.DOMAIN, body)), AUTHORITY.key)


def test_every_single_bit_flip_is_refused() -> None:
    encoded = GENESIS.encode()
    for bit in range(len(encoded) * 8):
        with pytest.raises((SecurityError, RemoteProtocolError)):
            genesis.verify(SignedGenesis.decode(flip(encoded, bit)), AUTHORITY.key)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_genesis_or_an_error_of_theirs(data: bytes) -> None:
    with pytest.raises((SecurityError, RemoteProtocolError)):
        genesis.verify(SignedGenesis.decode(data), AUTHORITY.key)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"mesh_name": "a b"}, "not a mesh's name"),
        ({"slots": 0}, ">= 1"),
        ({"slots": 0xFFFF}, "<= 65534"),
        ({"replicas": 0}, ">= 1"),
        ({"replicas": 8}, "<= 7"),
        ({"founders": []}, "length >= 1"),
        ({"founders": [certify(FIRST)] * 65}, "length <= 64"),
        ({"founders": [certify(FIRST)] * 2}, "two founders of the same name"),
        ({"founders": [certify(FIRST, by=STRANGER)]}, "foreign authority"),
        ({"registry_peer": PeerId(bytes(16))}, "not one of its founders"),
    ],
)
def test_a_genesis_that_does_not_agree_with_itself_is_not_made(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        make(**changes)


def test_a_signed_genesis_that_does_not_agree_with_itself_is_refused() -> None:
    good = genesis.verify(GENESIS, AUTHORITY.key)
    body = msgspec.msgpack.encode(msgspec.structs.replace(good, registry_peer=bytes(16)))
    with pytest.raises(SecurityError, match="not one of its founders"):
        genesis.verify(SignedGenesis(body, AUTHORITY.sign(genesis.DOMAIN, body)), AUTHORITY.key)
    with pytest.raises(SecurityError, match="over limits"):
        genesis.verify(SignedGenesis(b"x", AUTHORITY.sign(genesis.DOMAIN, b"x")), AUTHORITY.key)
