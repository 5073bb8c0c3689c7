"""A peer's settings, where it says it can be found, and what it listens on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshq import limits
from meshq.errors import UsageError
from meshq.peer import endpoints
from meshq.peer.endpoints import advertised, listen, tcp, with_default_port
from meshq.peer.settings import DOOR, FEED, INGEST, PEERS, PORT, Settings, load_settings


def load(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, **given: Any) -> Settings:
    file = tmp_path / "meshq.toml"
    if text:
        file.write_text(text)
    return load_settings(file, given, environment or {})


def test_without_anything_said_the_defaults_hold(tmp_path: Path) -> None:
    assert load(tmp_path) == Settings()
    assert Settings().port == PORT == 7700
    assert Settings().record_bytes_max == limits.RECORD_BYTES_MAX


def test_file_then_environment_then_what_the_caller_says(tmp_path: Path) -> None:
    text = 'port = 1000\nseed = ["a"]\nmdns = false\n'
    found = load(tmp_path, text, {"MESHQ_PORT": "2000", "MESHQ_SEED": "b:1, c", "OTHER": "x"}, port=3000)
    assert (found.port, found.seed, found.mdns) == (3000, ["b:1", "c"], False)
    assert load(tmp_path, text, {"MESHQ_PORT": "2000"}).port == 2000
    assert load(tmp_path, text).port == 1000


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("MESHQ_MDNS", "false", "mdns", False),
        ("MESHQ_AUTO_CREATE", "0", "auto_create", False),
        ("MESHQ_BIND", "192.0.2.1 [::1]", "bind", ["192.0.2.1", "[::1]"]),
        ("MESHQ_STORE_BYTES_MAX", "16777216", "store_bytes_max", 1 << 24),
    ],
)
def test_the_environments_texts_become_what_a_setting_is(
    tmp_path: Path, variable: str, text: str, name: str, value: Any
) -> None:
    assert getattr(load(tmp_path, environment={variable: text}), name) == value


@pytest.mark.parametrize(
    "text",
    [
        "port = 0",
        "port = 65531",
        'port = "x"',
        "prot = 7",
        "record_bytes_max = 99999999",
        "store_bytes_max = 1",
    ],
)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=text.split()[0]):
        load(tmp_path, text)


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"[["])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meshq.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"meshq\.toml cannot be read"):
        load(tmp_path)


def test_every_socket_counts_up_from_the_base_port() -> None:
    assert tcp("192.0.2.1:8000") == "tcp://192.0.2.1:8000"
    offsets = [tcp("[fd00::7]:8000", o) for o in (FEED, INGEST, DOOR, PEERS)]
    assert offsets == [f"tcp://[fd00::7]:{8000 + o}" for o in (1, 2, 4, 5)]
    assert tcp("host") == "tcp://host:7700"
    assert with_default_port(["host", "host:1"]) == ["host:7700", "host:1"]


def test_it_listens_everywhere_unless_told() -> None:
    assert listen(Settings(), DOOR) == ["tcp://*:7704"]
    bound = Settings(bind=["192.0.2.1", "fd00::7"], port=8000)
    assert listen(bound, 0) == ["tcp://192.0.2.1:8000", "tcp://[fd00::7]:8000"]


def test_it_says_what_it_was_told_to_say_or_where_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "host_addresses", lambda: ["198.51.100.1"])
    assert advertised(Settings(advertise=["outside", "outside:9"], bind=["192.0.2.1"], port=8000)) == (
        "outside:8000",
        "outside:9",
    )
    assert advertised(Settings(bind=["192.0.2.1", "*"])) == ("192.0.2.1:7700",)
    assert advertised(Settings(bind=["0.0.0.0"])) == ("198.51.100.1:7700",)
