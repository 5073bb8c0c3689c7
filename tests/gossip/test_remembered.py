"""Remembered addresses survive a restart, and a damaged file is only an empty one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshq.gossip import remembered
from meshq.ids import PeerId, show_id
from meshq.limits import ADDRESSES_MAX, PEERS_MAX

A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    remembered.save(path, {A: ["10.0.0.1:7700"], B: ["[fd00::1]:7700", "b.lan:7710"]})
    assert remembered.load(path) == {A: ("10.0.0.1:7700",), B: ("[fd00::1]:7700", "b.lan:7710")}
    remembered.save(path, {A: ["10.0.0.2:7700"]})
    assert remembered.load(path) == {A: ("10.0.0.2:7700",)}
    assert [x.name for x in tmp_path.iterdir()] == ["peers.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_file_is_empty_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert remembered.load(tmp_path / "peers.json") == {}
    assert not caplog.text


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b"7", b"{}" + b" " * (5 << 20)]
)
def test_a_damaged_file_is_empty_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(data)
    assert remembered.load(path) == {}
    assert "starting without remembered addresses" in caplog.text


def test_entries_that_are_not_readable_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "peers.json"
    path.write_text(
        json.dumps(
            {"not-an-id": ["h:1"], show_id(A): ["10.0.0.1:7700", 7, "no port", "h:1\n"], show_id(B): "h:1"}
        )
    )
    assert remembered.load(path) == {A: ("10.0.0.1:7700",)}
    assert "2 of 3 entries" in caplog.text


def test_peers_and_addresses_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    longest = ["x" * 250 + f":{n}" for n in range(ADDRESSES_MAX + 1)]
    remembered.save(path, {PeerId(n.to_bytes(16, "big")): longest for n in range(PEERS_MAX + 1)})
    found = remembered.load(path)
    assert len(found) == PEERS_MAX
    assert set(found.values()) == {tuple(longest[:ADDRESSES_MAX])}
