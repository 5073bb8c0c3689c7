"""Bad input gets a clear error and loses nothing: what a peer is sent, and what it is started with."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from zmq.utils import z85

import meshq
from meshq import batch, messages
from tests.greedy import MIB, rss, start_greedy
from tests.mesh.conftest import add_client, free_base_port, make_directories, running

Plain = Callable[..., zmq.Socket[bytes]]


def _answers(socket: zmq.Socket[bytes], frames: list[bytes]) -> messages.ServerMessage:
    """The first answer to this message that is not a push."""
    socket.send_multipart(frames)
    while True:
        assert socket.poll(10_000), "no answer"
        answer = messages.decode_answer(socket.recv_multipart()[1])
        if not isinstance(answer, messages.Welcome | messages.Routes):
            return answer


def _garbage() -> list[list[bytes]]:
    mq = messages.VERB
    return [
        [mq],
        [mq, b""],
        [mq, b"\xc1"],
        [mq, b"\x91" * 100_000],
        [mq, b"\xdd\xff\xff\xff\xff"],
        [mq, msgspec.msgpack.encode([250, 1])],
        [mq, msgspec.msgpack.encode([10, "not a number", 5, False])],
        [mq, msgspec.msgpack.encode([20, [[1, b"short", 0, 0]]])],
        [mq, msgspec.msgpack.encode([40, 1, "x", {"a": [{}] * 20_000}])],
        [mq, msgspec.msgpack.encode([31, 1, []])],
        [mq, messages.encode(messages.Produce([messages.ProduceItem(1, bytes(16), 0, 0)]))],
    ]


@pytest.mark.deadline(60)
async def test_a_message_without_an_end_is_cut_on_every_socket_of_clients(
    directories: Callable[[int], list[Path]], eventually: Any
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "app", ("publish", "#"), ("subscribe", "#"))
        server = client.peers[0]
        keys = (server.server_key, client.public_key, client.secret_key)
        before = rss()
        for kind, endpoint, frame_bytes, door in (
            (zmq.DEALER, server.requests, MIB, "clients"),
            (zmq.XPUB, server.ingest, MIB, "ingest"),
            (zmq.XSUB, server.feed, 4_000, "feed"),
        ):
            how = {"kind": kind, "frame_bytes": frame_bytes, "total": 200 * MIB}
            started = await start_greedy(endpoint, *keys, **how)

            async def is_cut(door: str = door) -> bool:
                return (await peers[0].ask("status"))["counters"].get(f"{door}_cut_greedy") == 1

            try:
                await eventually(is_cut)
            finally:
                if started.returncode is None:
                    started.kill()
                await started.wait()
            assert rss() - before < 200 * MIB


@pytest.mark.deadline(60)
async def test_who_is_refused_is_counted_by_the_reason(
    directories: Callable[[int], list[Path]], plain: Plain, eventually: Any
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        papers = peers[0]._running().papers
        host, port = peers[0].addresses[0].split(":")
        ports = {"clients": 0, "feed": 1, "ingest": 2, "door": 4, "peers": 5}
        for offset in ports.values():
            with socket.create_connection((host, int(port) + offset)) as tcp:
                tcp.sendall(b"GET / HTTP/1.1\r\n\r\n")
        keys = tuple(z85.decode(key) for key in zmq.curve_keypair())
        for offset in (0, 4):
            endpoint = f"tcp://{host}:{int(port) + offset}"
            plain(zmq.DEALER, endpoint, papers.identity.curve_public, *keys).send(b"let me in")

        async def told() -> bool:
            counters = (await peers[0].ask("status"))["counters"]
            wanted = [f"{door}_handshake_foreign" for door in ports]
            wanted += ["refused_clients_key", "door_refused_RemoteProtocolError"]
            assert not [name for name in wanted if not counters.get(name)], counters
            return True

        await eventually(told)


@pytest.mark.deadline(60)
async def test_garbage_is_answered_and_the_peer_serves_on(
    directories: Callable[[int], list[Path]], plain: Plain
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "app", ("publish", "#"), ("subscribe", "#"))
        server = client.peers[0]
        keys = (server.server_key, client.public_key, client.secret_key)
        socket = plain(zmq.DEALER, server.requests, *keys)
        hello = messages.encode(messages.Hello(1, 1))
        before = await asyncio.to_thread(_answers, socket, [messages.VERB, messages.encode(messages.Ping(1))])
        assert isinstance(before, messages.Failure) and "Hello" in before.text
        socket.send_multipart([messages.VERB, hello])
        for frames in _garbage():
            answer = await asyncio.to_thread(_answers, socket, frames)
            assert isinstance(answer, messages.Failure) and answer.status == 400, (frames, answer)
        info = await peers[0].mesh._driver.ask(
            lambda t, d: meshq.client.facts.TopicWanted(t, "topic", d), timeout=10
        )
        good = batch.frame(batch.seal([batch.RawRecord(b"k", b"v")], base_timestamp_ms=0))
        for payload in (
            b"",
            os.urandom(200),
            good[:-1],
            good[:-1] + b"\x07",
            good + b"x",
            b"MB" + bytes(100),
        ):
            item = messages.ProduceItem(7, info.topic_id, 0, info.version)
            answer = await asyncio.to_thread(
                _answers, socket, [messages.VERB, messages.encode(messages.Produce([item])), payload]
            )
            assert isinstance(answer, messages.Failure) and (answer.request, answer.status) == (7, 400), (
                answer
            )
        assert (await peers[0].publish("topic", b"still here")).offset == 0


@pytest.mark.deadline(60)
async def test_a_version_from_the_future_and_another_mesh_are_told_so(
    directories: Callable[[int], list[Path]], plain: Plain
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "app", ("publish", "#"))
        server = client.peers[0]
        socket = plain(zmq.DEALER, server.requests, server.server_key, client.public_key, client.secret_key)
        for hello, text in (
            (messages.Hello(9, 9), "upgrade"),
            (messages.Hello(1, 1, bytes(16)), "another mesh"),
        ):
            answer = await asyncio.to_thread(_answers, socket, [messages.VERB, messages.encode(hello)])
            assert isinstance(answer, messages.Failure) and text in answer.text


@pytest.mark.deadline(60)
async def test_records_and_topics_that_may_not_be(directories: Callable[[int], list[Path]]) -> None:
    paths = directories(1)
    async with running(paths, auto_create=False) as peers:
        peer = peers[0]
        with pytest.raises(meshq.UnknownTopic, match="topic create"):
            await peer.publish("nowhere", b"x")
        created = await peer.ask("topic.create", {"topic": "small", "record_bytes_max": 100})
        assert created["partitions"] == 8
        assert (await peer.publish("small", b"x" * 100)).copies == 1
        with pytest.raises(meshq.TooLarge, match="100"):
            await peer.publish("small", b"x" * 101)
        with pytest.raises(meshq.TopicExists):
            await peer.ask("topic.create", {"topic": "small"})
        with pytest.raises(meshq.UsageError, match="grow"):
            await peer.ask("topic.set", {"topic": "small", "partitions": 4})
        for key, value, headers in (
            ("k", b"v", None),
            (b"k", "v", None),
            (b"k", b"v", {"h": "text"}),
            (b"k", 5, None),
        ):
            with pytest.raises(meshq.UsageError, match="bytes"):
                await peer.publish("small", value, key=key, headers=headers)  # type: ignore[arg-type]
        for name in ("", "a b", "a..b", "ä", "x" * 256, "a.*"):
            with pytest.raises(meshq.UsageError):
                await peer.publish(name, b"x")
        await peer.ask("topic.delete", {"topic": "small"})
        with pytest.raises(meshq.UnknownTopic):
            await peer.publish("small", b"x")


@pytest.mark.deadline(60)
async def test_a_directory_or_port_that_is_taken_or_wrong(tmp_path: Path) -> None:
    ours, other = make_directories(tmp_path, 1)[0], tmp_path / "other"
    make_directories(other, 1)
    async with running([ours]) as peers:
        port = int(peers[0].addresses[0].rpartition(":")[2])
        await peers[0].publish("kept", b"1")
        with pytest.raises(meshq.StoreError, match="in use by process"):
            await meshq.Peer(ours, port=free_base_port(), bind=["127.0.0.1"], mdns=False).start()
        with pytest.raises(meshq.UsageError, match="--port"):
            await meshq.Peer(other / "peer1", port=port, bind=["127.0.0.1"], mdns=False).start()
        with pytest.raises(meshq.UsageError, match="not a setting"):
            await meshq.Peer(other / "peer1", port=port, colour="red").start()
    shutil.rmtree(other / "peer1" / "store", ignore_errors=True)
    shutil.copytree(ours / "store", other / "peer1" / "store")
    with pytest.raises(meshq.errors.WrongMesh):
        await meshq.Peer(other / "peer1", port=free_base_port(), bind=["127.0.0.1"], mdns=False).start()
    (ours / "identity.key").chmod(0o644)
    with pytest.raises(meshq.SecurityError, match="chmod 600"):
        await meshq.Peer(ours, port=free_base_port(), mdns=False).start()
    (ours / "identity.key").chmod(0o600)
    with pytest.raises(meshq.UsageError, match="meshq init"):
        await meshq.Peer(tmp_path / "nothing", mdns=False).start()
    async with running([ours]) as peers:
        assert (await peers[0].publish("kept", b"2")).offset == 1


@pytest.mark.deadline(60)
async def test_a_topic_deleted_and_made_again_is_another_topic(
    directories: Callable[[int], list[Path]], eventually: Any
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        peer = peers[0]
        for number in range(10):
            await peer.publish("again", b"old%d" % number)
        async with peer.subscribe("again", start="earliest") as records:
            assert (await anext(records)).value == b"old0"
            await peer.ask("topic.delete", {"topic": "again"})
            assert (await peer.publish("again", b"new")).offset == 0
            while (record := await anext(records)).value != b"new":
                assert record.value.startswith(b"old")
            assert record.offset == 0
        store = peer._running().store
        await eventually(lambda: store.counters.dropped_batches == 10)
