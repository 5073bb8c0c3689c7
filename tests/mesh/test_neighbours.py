"""The shell around membership: what it logs, and that what breaks in it stops the peer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshq.gossip.words import Member, MemberAlive, MemberSuspect, ReachChanged, State
from meshq.ids import PeerId
from meshq.peer.neighbours import Neighbours
from meshq.peer.settings import Settings
from meshq.security.directory import DataDirectory
from meshq.transport.sealed import Sealer
from meshq.transport.udp import Udp
from tests.mesh.conftest import free_base_port

DEADLINE_S = 20.0


@contextlib.contextmanager
def neighbours(directory: Path, on_fatal: Callable[[BaseException], None]) -> Iterator[Neighbours]:
    settings = Settings(port=free_base_port(), bind=["127.0.0.1"], mdns=False)
    one = Neighbours(
        DataDirectory(directory).load(),
        settings,
        directory / "peers",
        boot_epoch=1,
        boot_id=bytes(16),
        signing_key_of=lambda _: None,
        on_news=lambda _: None,
        on_fatal=on_fatal,
        probe_link=lambda *_: None,
    )
    try:
        yield one
    finally:
        one._stopping = True
        one._watch.close()
        one._udp.close()


async def test_a_machine_that_breaks_on_a_datagram_stops_the_peer(
    directories: Callable[[int], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = directories(2)
    loop = asyncio.get_running_loop()
    told: asyncio.Future[BaseException] = loop.create_future()
    with neighbours(here, told.set_result) as one:

        def breaks(*_: Any, **__: Any) -> None:
            raise RuntimeError("broken in the middle of an event")

        monkeypatch.setattr(one.members, "handle", breaks)
        other = DataDirectory(there).load()
        ring = other.keyring
        sealer = Sealer(ring.keys, ring.active, other.mesh_id, other.identity.peer_id, 1)
        udp = Udp.open(free_base_port(), bind=["127.0.0.1"], on_datagram=lambda *_: None)
        try:
            udp.send(sealer.seal(b"anything"), f"127.0.0.1:{one._settings.port}")
            error = await asyncio.wait_for(told, DEADLINE_S)
        finally:
            udp.close()
    assert "broken in the middle" in str(error)


async def test_one_timer_wakes_it_however_often_it_is_told_something(
    directories: Callable[[int], list[Path]],
) -> None:
    """One that was left ringing beside the next made two of them, for ever."""
    (here,) = directories(1)
    with neighbours(here, lambda _: None) as one:
        one.on_registered([])
        one._tick()  # as `start` does
        one.on_registered([])
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert sum(t._callback == one._tick and not t.cancelled() for t in timers) == 1


async def test_the_log_says_what_has_changed(
    directories: Callable[[int], list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads at INFO hears of a doubt when he hears of its end, and a way is not a state."""
    (here,) = directories(1)
    with neighbours(here, lambda _: None) as one, caplog.at_level(logging.INFO, "meshq.peer.neighbours"):
        member = _member()
        one._execute(MemberSuspect(member("suspect")))
        one._execute(MemberAlive(member("alive")))
        one._execute(ReachChanged(member("alive", reach="link"), "direct"))
    assert [r.getMessage() for r in caplog.records] == [
        "other is suspect",
        "other is alive",
        "other is reached only over the link now, directly before",
    ]


def _member() -> Callable[..., Any]:
    def made(state: str, reach: str = "direct") -> Member:
        where = ("127.0.0.1:7400",)
        return Member(
            PeerId(os.urandom(16)), State(state), "other", where, 1, bytes(16), 1, 0.0, None, "direct", None,
            None, reach,
        )  # fmt: skip

    return made
