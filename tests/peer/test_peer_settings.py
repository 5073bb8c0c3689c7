"""A peer's settings, where it says it can be found, and what it listens on."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import zmq

from meshq import limits
from meshq.errors import UsageError
from meshq.peer import endpoints
from meshq.peer.endpoints import advertised, hosts, listen, local_host, tcp, with_default_port
from meshq.peer.settings import DOOR, FEED, INGEST, PEERS, PORT, Settings, load_settings
from meshq.transport.context import bind_all
from meshq.transport.udp import Udp
from tests.peers import free_base_port


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
        ("MESHQ_BIND", "192.0.2.1 [::1]", "bind", ["192.0.2.1", "::1"]),
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


@pytest.mark.parametrize(
    ("bind", "told", "listens", "locally"),
    [
        ([], ["198.51.100.1", "fd00::7"], ["*"], "127.0.0.1"),
        (["0.0.0.0"], ["198.51.100.1"], ["0.0.0.0"], "127.0.0.1"),
        (["::"], ["198.51.100.1", "fd00::7"], ["*"], "127.0.0.1"),
        (["*", "192.0.2.1"], ["198.51.100.1", "fd00::7"], ["*"], "127.0.0.1"),
        (["0.0.0.0", "fd00::9"], ["198.51.100.1", "fd00::9"], ["0.0.0.0", "[fd00::9]"], "fd00::9"),
        (["[::1]"], ["::1"], ["[::1]"], "::1"),
    ],
)
def test_it_tells_only_what_it_listens_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bind: list[str],
    told: list[str],
    listens: list[str],
    locally: str,
) -> None:
    monkeypatch.setattr(endpoints, "host_addresses", lambda: ["198.51.100.1", "fd00::7"])
    settings = load(tmp_path, bind=bind)
    assert hosts(settings) == told
    assert listen(settings, 0) == [f"tcp://{host}:7700" for host in listens]
    assert local_host(settings) == locally
    assert len(advertised(settings)) == len(told)


@pytest.mark.parametrize("bind", [["0.0.0.0"], ["::"], ["[::1]"]])
async def test_what_is_bound_is_the_same_for_tcp_and_udp(tmp_path: Path, bind: list[str]) -> None:
    """Datagrams and connections get in by the same families, so that what is told is all true."""
    settings = load(tmp_path, bind=bind, port=free_base_port())
    udp = Udp.open(settings.port, bind=settings.bind, on_datagram=lambda *_: None)
    context = zmq.Context()
    tcp = context.socket(zmq.ROUTER)
    try:
        bind_all(tcp, listen(settings, 0))
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_STREAM) as caller:
                answers = caller.connect_ex((host, settings.port)) == 0
            hears = any(s.family == family for s in udp._sockets)
            assert answers == hears, (host, bind)
    finally:
        udp.close()
        tcp.close(linger=0)
        context.term()


@pytest.mark.parametrize(
    ("name", "value"),
    [("bind", "eth0"), ("bind", "localhost"), ("advertise", "1.2.3.4.5"), ("seed", "a:b:c:d")],
)
def test_an_address_that_is_none_is_named_with_where_it_was_said(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(UsageError, match=rf"{name}.*{value}.*meshq\.toml"):
        load(tmp_path, f'{name} = ["{value}"]')
    (tmp_path / "meshq.toml").unlink()
    with pytest.raises(UsageError, match=f"MESHQ_{name.upper()}.*{value}.*environment"):
        load(tmp_path, environment={f"MESHQ_{name.upper()}": value})
    with pytest.raises(UsageError, match=f"{name}.*{value}.*flags"):
        load(tmp_path, **{name: [value]})


def test_a_wrong_setting_is_said_in_words_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, 'port = "x"')
    assert "port" in str(caught.value) and "meshq.toml" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        load(tmp_path, "port = 7700", {"MESHQ_PORT": "70000"})
    assert "MESHQ_PORT" in str(caught.value) and "65530" in str(caught.value)
    assert "$" not in str(caught.value) and "meshq.toml" not in str(caught.value)
    (tmp_path / "meshq.toml").unlink()
    with pytest.raises(UsageError, match=r"prot.*not a setting.*port"):
        load(tmp_path, prot=1)
