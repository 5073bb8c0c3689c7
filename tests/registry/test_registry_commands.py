"""Registry commands: what is written is what is read, and nothing else is."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import RemoteProtocolError
from meshq.limits import PARTITIONS_MAX, RECORD_BYTES_CEILING
from meshq.registry.commands import (
    LEFT,
    CreateTopic,
    DeleteTopic,
    RegisterClient,
    RegisterPeer,
    SetStanding,
    SetTopic,
    decode,
    encode,
)

ID = bytes(16)
ALL = [
    RegisterPeer(b"certificate"),
    RegisterClient(b"certificate"),
    CreateTopic("orders", ID, 8, 1_000),
    SetTopic(ID, 9),
    SetTopic(ID, record_bytes_max=5),
    DeleteTopic(ID),
    SetStanding(ID, LEFT, 12),
]


@pytest.mark.parametrize("command", ALL, ids=lambda c: type(c).__name__)
def test_a_command_reads_as_it_was_written(command: object) -> None:
    assert decode(encode(command)) == command  # type: ignore[arg-type]


def test_a_standing_of_before_it_said_since_when_is_read() -> None:
    assert decode(msgspec.msgpack.encode([6, ID, LEFT])) == SetStanding(ID, LEFT, 0)


@pytest.mark.parametrize(
    "command",
    [
        CreateTopic("", ID, 1, 1),
        CreateTopic("x" * 256, ID, 1, 1),
        CreateTopic("x", ID[:-1], 1, 1),
        CreateTopic("x", ID, 0, 1),
        CreateTopic("x", ID, PARTITIONS_MAX + 1, 1),
        CreateTopic("x", ID, 1, 0),
        CreateTopic("x", ID, 1, RECORD_BYTES_CEILING + 1),
        SetTopic(ID, 0),
        DeleteTopic(ID + ID),
        RegisterPeer(bytes(64 * 1024 + 1)),
    ],
    ids=repr,
)
def test_a_command_over_its_limits_is_refused(command: object) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be read"):
        decode(encode(command))  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_whatever_comes_it_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(data)
