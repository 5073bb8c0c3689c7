"""A peer that something unexpected happened to stops as a whole; and what hostile or hasty clients ask of one
that runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
import zmq

import meshq
from meshq import messages
from meshq.limits import INGEST_BUFFER_BYTES
from meshq.peer.core.events import LOCAL, MessageArrived, SessionClosed
from meshq.peer.plain import Plain
from meshq.peer.settings import DOOR
from meshq.security.authorization import Principal
from tests.mesh.conftest import add_client, running

Directories = Callable[[int], list[Path]]


def _boom(*_: Any, **__: Any) -> Any:
    raise OSError(5, "Input/output error")


async def _has_stopped(peer: meshq.Peer, eventually: Any) -> None:
    """It says why, its ports are free, and nothing of it goes on."""
    shell = peer._running()
    with pytest.raises(OSError, match="Input/output"):
        await asyncio.wait_for(peer.wait_failed(), 10)
    await eventually(lambda: shell._stopping is not None and shell._stopping.done())
    address = peer.addresses[0].rpartition(":")
    for offset in range(6):
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection(address[0], int(address[2]) + offset)
    assert shell._timer is not None and (shell._timer.cancelled() or shell._timer.when() < shell._now())
    with pytest.raises(meshq.MeshqError):
        await peer.publish("t", b"x", timeout=1)
    with pytest.raises(meshq.Unavailable):
        await shell.propose(b"")


@pytest.mark.deadline(60)
@pytest.mark.parametrize("where", ["tick", "after a write", "gossip", "reading"])
async def test_an_exception_nobody_expected_stops_the_peer_as_a_whole(
    directories: Directories, eventually: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(directories(1), disk_reserve_bytes=0) as peers:
        peer, shell = peers[0], peers[0]._running()
        await peer.publish("t", b"x")
        if where == "tick":
            monkeypatch.setattr(shell.store, "room", _boom)
        elif where == "after a write":
            monkeypatch.setattr(shell.disk, "_done", _boom)
            asyncio.ensure_future(peer.publish("t", b"x", timeout=5)).add_done_callback(
                lambda f: f.cancelled() or f.exception()
            )
        elif where == "gossip":
            monkeypatch.setattr(shell.neighbours, "handle", _boom)
        else:
            monkeypatch.setattr(shell.store, "read_batches", _boom)
            with pytest.raises(meshq.MeshqError):
                async with peer.subscribe("t", start="earliest") as records:
                    await anext(records)
        await _has_stopped(peer, eventually)
        monkeypatch.undo()


@pytest.mark.deadline(60)
async def test_what_the_disk_cannot_read_now_is_read_later(
    directories: Directories, monkeypatch: Any
) -> None:
    failed: list[int] = []
    async with running(directories(1), disk_reserve_bytes=0) as peers:
        peer, shell = peers[0], peers[0]._running()
        await peer.publish("t", b"x")
        real = shell.store.read_batches

        def fails_once(*args: Any, **options: Any) -> Any:
            if not failed:
                failed.append(1)
                raise lmdb.Error("MDB_READERS_FULL")
            return real(*args, **options)

        monkeypatch.setattr(shell.store, "read_batches", fails_once)
        async with peer.subscribe("t", start="earliest") as records:
            assert (await anext(records)).value == b"x"
        assert failed and not shell.failed.done()


@pytest.mark.deadline(60)
async def test_reads_take_turns_with_everything_else(
    directories: Directories, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    sought: list[int] = []

    def slow(_partition: Any, timestamp_ms: int, *, end: int) -> int:
        sought.append(timestamp_ms)
        until = time.monotonic() + 0.002
        while time.monotonic() < until:
            pass
        return end

    async with running(directories(1), disk_reserve_bytes=0) as peers:
        shell = peers[0]._running()
        await peers[0].publish("t", b"x")
        info = shell.core.ctx.registry.topic("t")
        assert info is not None
        monkeypatch.setattr(shell.store, "offset_at", slow)
        key, session = shell.papers.identity.curve_public, (LOCAL, b"test")
        shell.tell(MessageArrived(session, key, messages.Hello(1, 1)))
        for number in range(1, 61):
            item = messages.ReadItem(info.topic_id, 0, info.version, messages.TIMESTAMP, number)
            shell.tell(MessageArrived(session, key, messages.Read(number, [item])))
        seen = []
        while len(sought) < 60:
            seen.append(len(sought))
            await asyncio.sleep(0)
        assert sought == list(range(1, 61))
        assert max(b - a for a, b in pairwise(seen)) <= 4
        # Nobody waits for these any more when their turn comes.
        for number in range(61, 101):
            item = messages.ReadItem(info.topic_id, 0, info.version, messages.TIMESTAMP, number)
            shell.tell(MessageArrived(session, key, messages.Read(number, [item])))
        shell.tell(SessionClosed(session))
        await eventually(lambda: not shell.disk._reads)
        assert len(sought) == 60


@pytest.mark.deadline(60)
async def test_a_local_link_that_closes_takes_its_session_with_it(
    directories: Directories, eventually: Any
) -> None:
    async with running(directories(1), disk_reserve_bytes=0) as peers:
        peer, shell = peers[0], peers[0]._running()
        await peer.publish("t", b"x")
        sessions = shell.core.ctx.sessions.states
        (before,) = [s for s in sessions if s[0] == LOCAL]
        shell.local_links._local[before[1]].close()
        assert before not in sessions
        assert shell.local_links._local == {}


@pytest.mark.deadline(60)
async def test_only_an_administrator_makes_topics_of_meshqs_own_kind(
    directories: Directories, plain: Callable[..., zmq.Socket[bytes]]
) -> None:
    paths = directories(1)
    async with running(paths, disk_reserve_bytes=0) as peers:
        client = await add_client(paths[0], peers, "app", ("publish", "#"), ("publish", "_sys.#"))
        keys = client.peers[0].server_key, client.public_key, client.secret_key
        req = plain(zmq.REQ, client.peers[0].requests, *keys)

        async def put() -> list[bytes]:
            req.send_multipart([b"PUB", b"_sys.x", b"", b"value"])
            assert await asyncio.to_thread(req.poll, 10_000)
            return req.recv_multipart()

        assert (await put())[1] == b"UnknownTopic"
        await peers[0].publish("_sys.x", b"by an administrator")
        assert (await put())[0] == b"200"


@pytest.mark.deadline(60)
async def test_what_the_parts_count_is_in_the_status(
    directories: Directories, plain: Callable[..., zmq.Socket[bytes]], eventually: Any
) -> None:
    async with running(directories(1), disk_reserve_bytes=0) as peers:
        await peers[0].publish("t", b"x")
        identity = peers[0]._running().papers.identity
        host, _, port = peers[0].addresses[0].rpartition(":")
        public, secret = zmq.curve_keypair()
        plain(zmq.DEALER, f"tcp://{host}:{port}", identity.curve_public, public, secret)
        door = plain(zmq.DEALER, f"tcp://{host}:{int(port) + DOOR}", identity.curve_public, public, secret)
        door.send_multipart([b"one", b"too many"])

        async def counted() -> bool:
            counters = (await peers[0].ask("status"))["counters"]
            return all(
                counters.get(name, 0) > 0
                for name in ("refused_clients_key", "store_commits", "door_too_many_frames")
            )

        await eventually(counted)


# ------------------------------------------------------------------------- what waits to be published
class _Gateway:
    """Stores nothing until it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def publish_directly(self, *_: Any, **__: Any) -> Any:
        await self.open.wait()
        return meshq.Receipt("t", 0, 0, 1)


def _plain(gateway: Any) -> tuple[Plain, Callable[..., list[bytes]]]:
    principal = Principal(name="app", kind="client", key=b"k", admin=True)
    made = Plain(gateway, lambda _key: principal, list, lambda _topic: True)

    def ask(key: bytes, *frames: bytes) -> list[bytes]:
        answers: list[list[Any]] = []
        made.on_request(key, list(frames), answers.append)
        return [bytes(f) for f in answers[0]] if answers else []

    return made, ask


async def test_everything_of_a_request_counts_and_no_key_takes_all_the_room() -> None:
    gateway = _Gateway()
    made, ask = _plain(gateway)
    headers = msgspec.msgpack.encode({"h": bytes(500_000)})
    request = b"", b"PUB", b"t", bytes(500_000), b"", headers
    accepted = 0
    while not ask(b"greedy", *request):
        accepted += 1
    assert 3 <= accepted <= 4  # of a megabyte each: a quarter of the room
    assert ask(b"greedy", *request)[1:3] == [b"429", b"Overloaded"]
    assert ask(b"other", *request) == []
    large = b"", b"PUB", b"t", b"", bytes(INGEST_BUFFER_BYTES // 4)
    assert ask(b"large", *large) == []  # a first one always may
    gateway.open.set()
    await asyncio.gather(*made._tasks)
    await asyncio.sleep(0)
    assert (made._bytes, made._bytes_of, made._tasks) == (0, {}, set())


async def test_an_envelope_has_bounds() -> None:
    _, ask = _plain(_Gateway())
    verb = b"PUB", b"t", b"", b"x"
    assert ask(b"k", *[b"id"] * 7, b"", *verb) == []
    assert ask(b"k", *[b"id"] * 8, b"", *verb)[0] == b"400"
    assert ask(b"k", bytes(1_025), b"", *verb)[0] == b"400"
