"""Peers of one mesh on one link find each other by mDNS, and tell nobody else who they are."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from meshq.gossip import discovery
from meshq.gossip.discovery import SERVICE, Discovery

LOOPBACK = ["127.0.0.1"]


def tag_of(mesh_key: bytes) -> Callable[[bytes], bytes]:
    return lambda instance: hmac.new(mesh_key, instance, hashlib.sha256).digest()[:16]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a socket has no event to wait for
            await asyncio.sleep(0.02)


def multicast_works() -> bool:
    """Whether a datagram to the mDNS group comes back on loopback."""
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(1)
            s.bind(("", 0))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            s.sendto(b"?", ("224.0.0.251", s.getsockname()[1]))
            return s.recv(16) == b"?"
    except OSError:
        return False


needs_multicast = pytest.mark.skipif(not multicast_works(), reason="no multicast on loopback here")


@needs_multicast
def test_two_of_a_mesh_find_each_other_and_a_third_of_another_mesh_is_counted() -> None:
    async def main() -> None:
        heard: dict[str, set[str]] = {"a": set(), "b": set(), "c": set()}
        a = Discovery(b"a" * 8, 7700, LOOPBACK, tag_of(b"ours"), heard["a"].add)
        b = Discovery(b"b" * 8, 7710, LOOPBACK, tag_of(b"ours"), heard["b"].add)
        c = Discovery(b"c" * 8, 7720, LOOPBACK, tag_of(b"theirs"), heard["c"].add)
        await asyncio.gather(a.start(), b.start(), c.start())
        try:
            await until(lambda: bool(heard["a"] and heard["b"]) and a.counts["wrong_tag"] > 0)
            assert heard == {"a": {"127.0.0.1:7710"}, "b": {"127.0.0.1:7700"}, "c": set()}
        finally:
            await asyncio.gather(a.stop(), b.stop(), c.stop())
        assert not (a.running or b.running or c.running)

    run(main)


@needs_multicast
def test_the_announcement_has_an_instance_a_tag_and_no_names() -> None:
    async def main() -> None:
        found = Discovery(b"n" * 8, 7700, LOOPBACK, tag_of(b"ours"), lambda address: None)
        await found.start()
        looker = AsyncZeroconf(interfaces=LOOPBACK)
        try:
            info = AsyncServiceInfo(SERVICE, f"{(b'n' * 8).hex()}.{SERVICE}")
            assert await info.async_request(looker.zeroconf, 10_000)
            assert info.properties == {b"t": tag_of(b"ours")(b"n" * 8), b"v": b"1"}
            assert info.server == f"{(b'n' * 8).hex()}.local."
            assert socket.gethostname() not in f"{info.name} {info.server}"
        finally:
            await looker.async_close()
            await found.stop()

    run(main)


@needs_multicast
def test_an_address_that_has_gone_does_not_keep_the_others_from_being_announced() -> None:
    async def main() -> None:
        heard: set[str] = set()
        a = Discovery(b"a" * 8, 7700, [*LOOPBACK, "198.51.100.7"], tag_of(b"ours"), lambda address: None)
        b = Discovery(b"b" * 8, 7710, ["198.51.100.7"], tag_of(b"ours"), heard.add)
        await asyncio.gather(a.start(), b.start())
        assert (a.running, b.running) == (True, False)
        await b.update(LOOPBACK)
        try:
            await until(lambda: bool(heard))
            assert heard == {"127.0.0.1:7700"}
        finally:
            await asyncio.gather(a.stop(), b.stop())

    run(main)


def test_where_it_cannot_start_it_says_so_and_the_peer_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for addresses in (["198.51.100.7"], ["fd00:0:0:9::9"], ["fe80::9%nowhere"], ["nonsense"], []):
            caplog.clear()
            found = Discovery(b"x" * 8, 7700, addresses, tag_of(b"ours"), lambda address: None)
            with caplog.at_level(logging.WARNING, logger="meshq"):
                await found.start()
            assert not found.running
            assert "mDNS is not available" in caplog.text
            await found.stop()

    run(main)


def test_a_flood_of_services_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        asked = []

        async def look_up(self: Discovery, zeroconf: object, name: str, instance: bytes) -> None:
            asked.append(name)
            self._lookups.pop(name)

        monkeypatch.setattr(Discovery, "_look_up", look_up)
        found = Discovery(b"x" * 8, 7700, LOOPBACK, tag_of(b"ours"), lambda address: None)
        names = [f"{n:016x}.{SERVICE}" for n in range(discovery._SEEN_MAX + 10)]
        zeroconf: Zeroconf = None  # type: ignore[assignment]
        for name in (f"no-hex.{SERVICE}", f"{(b'x' * 8).hex()}.{SERVICE}", *names):
            found._on_service(zeroconf, SERVICE, name, ServiceStateChange.Added)
            await asyncio.sleep(0)
        assert asked == names[: discovery._SEEN_MAX]
        assert found.counts["capped"] == 10
        found._on_service(zeroconf, SERVICE, names[0], ServiceStateChange.Removed)
        found._on_service(zeroconf, SERVICE, names[-1], ServiceStateChange.Added)
        await asyncio.sleep(0)
        assert asked[-1] == names[-1]

    run(main)
