"""UDP on real loopback sockets, and how addresses are written."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from meshq.errors import UsageError
from meshq.limits import DATAGRAM_BYTES_MAX
from meshq.transport.interfaces import format_address, host_addresses, parse_address
from meshq.transport.udp import Udp


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 20))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so; the deadline is `run`'s."""
    while not condition():  # noqa: ASYNC110 - a socket has no event to wait for
        await asyncio.sleep(0.005)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.bind(("::1", 0))
    except OSError:
        return False
    return True


def pair(scenario: Callable[[Udp, Udp, list[tuple[bytes, str]]], Awaitable[None]], *bind: str) -> None:
    """Two endpoints, and what the second one receives."""

    async def main() -> None:
        got: list[tuple[bytes, str]] = []
        a = Udp.open(0, bind=bind, on_datagram=lambda data, address: None)
        b = Udp.open(0, bind=bind, on_datagram=lambda data, address: got.append((data, address)))
        try:
            await scenario(a, b, got)
        finally:
            a.close()
            b.close()

    run(main)


def test_a_datagram_arrives_over_ipv4_with_an_address_to_answer_to() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        a.send(b"hello", f"127.0.0.1:{b.port}")
        await until(lambda: bool(got))
        assert got == [(b"hello", f"127.0.0.1:{a.port}")]

    pair(scenario)
    pair(scenario, "127.0.0.1")


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_a_datagram_arrives_over_ipv6_on_the_same_port() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        a.send(b"six", f"[::1]:{b.port}")
        await until(lambda: bool(got))
        assert got == [(b"six", f"[::1]:{a.port}")]

    pair(scenario)
    pair(scenario, "127.0.0.1", "[::1]")


def test_a_name_is_resolved_on_the_way_and_remembered() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        a.send(b"one", f"localhost:{b.port}")
        assert not got  # nothing waited for the resolver
        await until(lambda: bool(got))
        a.send(b"two", f"localhost:{b.port}")
        assert a.counts["busy"] == 0
        await until(lambda: b"two" in [data for data, _ in got])

    pair(scenario)


def test_a_name_that_does_not_resolve_is_counted() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        a.send(b"x", "no-such-host.invalid:7700")
        a.send(b"x", "no-such-host.invalid:7700")
        await until(lambda: a.counts["unresolved"] == 1)
        assert a.counts["busy"] == 1

    pair(scenario)


def test_nonsense_and_unreachable_addresses_are_counted_not_raised() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        for address in ("", "nowhere", "10.0.0.300:1", "h:99999", "[::1:5", "a b:7700"):
            a.send(b"x", address)
        assert a.counts["bad_address"] == 6
        a.send(b"x", "255.255.255.255:7700")  # not permitted without SO_BROADCAST
        a.send(b"x", "127.0.0.1:0")
        assert a.counts["unreachable"] == 1
        assert a.counts["bad_address"] == 7

    pair(scenario)


def test_what_is_larger_than_a_datagram_may_be_is_neither_sent_nor_delivered() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        a.send(b"x" * (DATAGRAM_BYTES_MAX + 1), f"127.0.0.1:{b.port}")
        assert a.counts["oversized"] == 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            raw.sendto(b"x" * (DATAGRAM_BYTES_MAX + 1), ("127.0.0.1", b.port))
            raw.sendto(b"x" * DATAGRAM_BYTES_MAX, ("127.0.0.1", b.port))
            await until(lambda: bool(got))
        assert b.counts["oversized"] == 1
        assert len(got[0][0]) == DATAGRAM_BYTES_MAX

    pair(scenario)


def test_a_flood_is_taken_in_batches_so_that_others_get_their_turn() -> None:
    async def scenario(a: Udp, b: Udp, got: list[tuple[bytes, str]]) -> None:
        for n in range(300):
            a.send(b"%d" % n, f"127.0.0.1:{b.port}")
        most = 0
        while len(got) < 300:
            before = len(got)
            await asyncio.sleep(0)
            most = max(most, len(got) - before)
        assert most <= 64

    pair(scenario, "127.0.0.1")


def test_the_handler_may_close_the_endpoint() -> None:
    async def main() -> None:
        got: list[bytes] = []

        def on_datagram(data: bytes, address: str) -> None:
            got.append(data)
            b.close()

        b = Udp.open(0, bind=["127.0.0.1"], on_datagram=on_datagram)
        a = Udp.open(0, bind=["127.0.0.1"], on_datagram=lambda data, address: None)
        a.send(b"1", f"127.0.0.1:{b.port}")
        a.send(b"2", f"127.0.0.1:{b.port}")
        await until(lambda: bool(got))
        assert got == [b"1"]
        a.close()
        a.send(b"3", "127.0.0.1:7700")
        assert a.counts["unreachable"] == 1

    run(main)


def test_a_taken_port_and_a_foreign_address_say_what_mends_it() -> None:
    async def main() -> None:
        a = Udp.open(0, bind=["127.0.0.1"], on_datagram=lambda data, address: None)
        with pytest.raises(UsageError, match="--port"):
            Udp.open(a.port, bind=["127.0.0.1"], on_datagram=lambda data, address: None)
        with pytest.raises(UsageError, match="--bind"):
            Udp.open(0, bind=["198.51.100.7"], on_datagram=lambda data, address: None)
        with pytest.raises(UsageError, match="IP address"):
            Udp.open(0, bind=["peer1.lan"], on_datagram=lambda data, address: None)
        a.close()

    run(main)


# -------------------------------------------------------------------------------------------- addresses
@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.7:7710", ("10.0.0.7", 7710)),
        ("10.0.0.7", ("10.0.0.7", 7700)),
        ("peer1.lan:1", ("peer1.lan", 1)),
        ("peer_1", ("peer_1", 7700)),
        ("[fd00::7]:7710", ("fd00::7", 7710)),
        ("[fd00::7]", ("fd00::7", 7700)),
        ("fd00::7", ("fd00::7", 7700)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, 7700) == address
    assert parse_address(format_address(*address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":7700", "h:", "h:0", "h:65536", "h:x", "h:+1", "h:١", "10.0.0.300", "1.2.3", "[fd00::7",
     "[fd00::7]x", "[h]:1", "a b", "h/x:1", "10.0.0.1%eth0", "fe80::1%", "fe80::1%eth0:1", "-h", "x" * 300],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text, 7700)


def test_a_port_is_needed_where_there_is_no_default() -> None:
    with pytest.raises(UsageError, match="names no port"):
        parse_address("10.0.0.7")


class Adapter:
    def __init__(self, name: str, *addresses: str) -> None:
        self.name = name
        self.ips = [type("IP", (), {"ip": (a, 0, 2) if ":" in a else a}) for a in addresses]


def adapters(monkeypatch: pytest.MonkeyPatch, *found: Adapter) -> None:
    monkeypatch.setattr("meshq.transport.interfaces.ifaddr.get_adapters", lambda: found)


LO = Adapter("lo", "127.0.0.1", "::1")


def test_ipv4_comes_first_then_routable_ipv6_and_no_link_local(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters(monkeypatch, LO, Adapter("eth0", "fe80::2", "fd00::2", "10.0.0.2"), Adapter("eth1", "fd01::2"))
    assert host_addresses() == ["10.0.0.2", "fd00::2", "fd01::2"]
    assert host_addresses(loopback=True)[-2:] == ["127.0.0.1", "::1"]


def test_link_local_has_its_scope_and_stands_in_when_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapters(monkeypatch, LO, Adapter("eth0", "fe80::2"))
    assert host_addresses() == ["fe80::2%eth0"]
    adapters(monkeypatch, LO)
    assert host_addresses() == ["127.0.0.1", "::1"]


def test_this_host_has_an_address() -> None:
    assert all(parse_address(format_address(host, 7700)) == (host, 7700) for host in host_addresses())
    assert host_addresses()
