"""While DNS is silent, only what needs that one name waits, and not for ever."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshq.transport import names
from meshq.transport.names import LOOKUPS_MAX, Lookup


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """DNS that does not answer while the test runs; how many questions it has."""
    release, asked = threading.Event(), []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kw: Any) -> Any:
        if not host.endswith(".lan"):
            return real(host, *args, **kw)
        asked.append(host)
        release.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield lambda: len(asked)
    release.set()
    end = time.monotonic() + 5
    while names._running and time.monotonic() < end:
        time.sleep(0.001)
    assert not names._running


def test_a_link_to_a_silent_name_goes_down_in_its_time_and_others_go_on(run, silent):
    async def scenario(world):
        server = world.router(lambda session, _k, frames: server.send(session, frames))
        stuck, healthy = [], []
        port = server.bound[0].rpartition(":")[2]
        world.link(f"tcp://peer2.lan:{port}", world.admit("requests"), stuck, connect_timeout=0.3)
        link = world.link(server.bound[0], world.admit("requests"), healthy)
        await world.until(lambda: healthy)
        began = time.monotonic()
        assert link.send([b"still here"])
        await world.until(lambda: len(healthy) == 2)
        assert time.monotonic() - began < 0.2, "neither the loop nor the I/O thread stood still"
        await world.until(lambda: stuck)
        assert silent() == 1, "it was asked here, not by libzmq"
        assert stuck == [("down", "no answer within 0.3 s")]

    run(scenario)


def test_a_link_finds_its_peer_by_name(run):
    async def scenario(world):
        server = world.router(lambda session, _k, frames: server.send(session, frames))
        log = []
        world.link("tcp://localhost:" + server.bound[0].rpartition(":")[2], world.admit("requests"), log)
        await world.until(lambda: log)
        assert log == ["up"]
        gone = []
        world.link("tcp://nobody.invalid:1", world.admit("requests"), gone)
        await world.until(lambda: gone)
        assert "host name is not found" in gone[0][1]

    run(scenario)


def test_a_loop_ends_though_a_look_up_does_not(silent: Callable[[], int], eventually: Any) -> None:
    async def ask() -> None:
        Lookup("a.lan", lambda found: None)
        await eventually(silent)

    began = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - began < 2


async def test_who_asks_for_the_same_name_shares_a_thread_and_too_many_are_told(
    silent: Callable[[], int], eventually: Any
) -> None:
    heard: list[Any] = []
    for i in range(LOOKUPS_MAX):
        Lookup(f"host{i}.lan", heard.append)
        Lookup(f"host{i}.lan", heard.append)
    await eventually(lambda: silent() == LOOKUPS_MAX)
    Lookup("one-more.lan", heard.append)
    assert not heard, "never from inside the call"
    await eventually(lambda: heard)
    assert isinstance(heard[0], OSError) and silent() == LOOKUPS_MAX


async def test_what_is_cancelled_is_not_heard(eventually: Any) -> None:
    heard: list[Any] = []
    Lookup("localhost", lambda found: heard.append("cancelled")).cancel()
    Lookup("localhost", heard.append)
    await eventually(lambda: heard)
    assert heard[0] != "cancelled" and len(heard) == 1
