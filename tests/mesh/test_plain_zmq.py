"""The plain ZeroMQ table of the design: stock pyzmq sockets against real peers, welcome and unwelcome."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

import meshq
from meshq.peer import plain as plain_endpoints
from meshq.security.credentials import Credentials
from tests.mesh.conftest import add_client, all_linked, running, unpack

Plain = Callable[..., zmq.Socket[bytes]]


def _keys(c: Credentials, peer: int = 0) -> tuple[bytes, bytes, bytes]:
    return c.peers[peer].server_key, c.public_key, c.secret_key


async def _call(socket: zmq.Socket[bytes], frames: list[bytes], timeout: float = 10.0) -> list[bytes]:
    socket.send_multipart(frames)
    return await _receive(socket, timeout)


async def _receive(socket: zmq.Socket[bytes], timeout: float = 10.0) -> list[bytes]:
    return await asyncio.to_thread(_blocking_receive, socket, timeout)


def _blocking_receive(socket: zmq.Socket[bytes], timeout: float) -> list[bytes]:
    if not socket.poll(int(timeout * 1000)):
        raise TimeoutError("nothing came")
    return socket.recv_multipart()


async def _silent(socket: zmq.Socket[bytes], seconds: float = 0.5) -> bool:
    try:
        await _receive(socket, seconds)
    except TimeoutError:
        return True
    return False


async def _subscribed(feed: zmq.Socket[bytes], peer: meshq.Peer, topic: str) -> None:
    """Publish probes until one arrives: a subscription has no other sign of life. Then drain them."""
    for number in range(100):
        await peer.publish(topic, b"probe%d" % number)
        if not await _silent(feed, 0.1):
            break
    else:
        raise AssertionError("the subscription never got anything")
    while not await _silent(feed, 0.3):
        pass


@pytest.mark.deadline(60)
async def test_req_dealer_pub_and_sub_reach_any_topic_at_any_peer(
    directories: Callable[[int], list[Path]], plain: Plain, eventually: Any
) -> None:
    paths = directories(2)
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))
        everything = [("publish", "#"), ("subscribe", "#")]
        client = await add_client(paths[0], peers, "app", *everything)
        await eventually(lambda: _registered(peers, client))
        for number, peer in enumerate(client.peers):
            req = plain(zmq.REQ, peer.requests, *_keys(client, number))
            for topic in ("plant.a", "plant.b", "plant.c", "plant.d"):
                status, body = await _call(req, [b"PUB", topic.encode(), b"k", b"by req"])
                assert status == b"200", body
                receipt = unpack(body)
                assert (receipt["topic"], receipt["partition"]) == (topic, 0)
                assert receipt["copies"] in (1, 2), "the other peer copies along"
                assert receipt["offset"] == number
        dealer = plain(zmq.DEALER, client.peers[1].requests, *_keys(client, 1))
        headers = msgspec.msgpack.encode({"trace": b"\x00\x01"})
        answer = await _call(dealer, [b"id7", b"", b"PUB", b"plant.a", b"", b"by dealer", headers])
        assert answer[:3] == [b"id7", b"", b"200"] and unpack(answer[3])["offset"] == 2

        feed = plain(zmq.SUB, client.peers[0].feed, *_keys(client), subscribe=b"plant.")
        framed = plain(zmq.SUB, client.peers[0].feed, *_keys(client), subscribe=b"\x01plant.a\x00")
        everything_feed = plain(zmq.SUB, client.peers[1].feed, *_keys(client, 1), subscribe=b"")
        for socket in (feed, framed, everything_feed):
            await _subscribed(socket, peers[0], "plant.a")
        for socket in (feed, framed, everything_feed):
            while not await _silent(socket, 0.2):
                pass
        ingest = plain(zmq.PUB, client.peers[1].ingest, *_keys(client, 1))
        async with peers[0].subscribe("plant.a", start="latest") as records:
            await records.ready()
            got: list[meshq.Record] = []

            async def published() -> bool:
                # A PUB socket drops what it sends before it is connected: send until one came through.
                ingest.send_multipart([b"plant.a", headers, b"by pub"])
                try:
                    got.append(await asyncio.wait_for(anext(records), 0.1))
                except TimeoutError:
                    return False
                return True

            await eventually(published)
        assert got[0].value == b"by pub" and got[0].headers == {"trace": b"\x00\x01"}
        assert await _receive(feed) == [b"plant.a", b"by pub"]
        assert await _receive(everything_feed) == [b"plant.a", b"by pub"]
        name, meta, value = await _receive(framed)
        assert name == b"\x01plant.a\x00" and value == b"by pub"
        found = unpack(meta)
        assert found["partition"] == 0 and found["key"] is None and found["headers"] == {"trace": b"\x00\x01"}
        assert found["offset"] == got[0].offset and found["timestamp"] == got[0].timestamp

        req = plain(zmq.REQ, client.peers[0].requests, *_keys(client))
        status, body = await _call(req, [b"PEERS"])
        assert status == b"200" and {p["name"] for p in unpack(body)} == {"peer1", "peer2"}
        for frames, expected in (
            ([b"PUB", b"plant.a", b"k"], b"400"),
            ([b"PUB", b"not a topic!", b"", b"x"], b"400"),
            ([b"PUB", b"plant.a", b"", b"x", b"\xc1"], b"400"),
            ([b"NOVERB"], b"400"),
            ([b"PUB", b"plant.a", b"", b"x" * ((1 << 20) + 1)], b"413"),
        ):
            answer = await _call(req, frames)
            assert answer[0] == expected, (frames[:2], answer)


@pytest.mark.deadline(60)
async def test_statuses_tell_what_was_not_found_not_there_and_not_known(
    directories: Callable[[int], list[Path]], plain: Plain, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = directories(2)
    async with running(paths, auto_create=False) as peers:
        await eventually(lambda: all_linked(peers))
        client = await add_client(paths[0], peers, "app", ("publish", "#"))
        dealer = plain(zmq.DEALER, client.peers[0].requests, *_keys(client))
        assert (await _call(dealer, [b"PUB", b"nowhere", b"", b"x"]))[:2] == [b"404", b"UnknownTopic"]
        await peers[0].ask("topic.create", {"topic": "t", "partitions": 16})
        keys: dict[int, bytes] = {}
        for number in range(200):
            keys.setdefault(zlib.crc32(b"%d" % number) % 16, b"%d" % number)
        for key in keys.values():  # without an envelope; over both peers
            answer = await _call(dealer, [b"PUB", b"t", key, b"x"])
            assert answer[0] == b"200" and unpack(answer[1])["offset"] == 0
        monkeypatch.setattr(plain_endpoints, "TIMEOUT_S", 0.5)
        await peers[1].close()
        with pytest.raises(meshq.UsageError):
            peers[1].mesh  # noqa: B018  # the whole peer has stopped, not its connection alone
        statuses = {}
        for key in list(keys.values())[:4]:
            answer = await _call(dealer, [b"PUB", b"t", key, b"x"])
            statuses[answer[0]] = answer[1]
        assert statuses.keys() <= {b"200", b"503", b"504"} and len(statuses) > 1, statuses

        async def lost(*args: Any, **more: Any) -> None:
            raise meshq.OutcomeUnknown("sent, and not answered")

        monkeypatch.setattr(peers[0]._running().gateway, "publish_directly", lost)
        answer = await _call(dealer, [b"id", b"", b"PUB", b"t", b"", b"x"])
        assert answer[:4] == [b"id", b"", b"504", b"OutcomeUnknown"]


async def _registered(peers: list[meshq.Peer], client: Credentials) -> bool:
    return all(client.public_key in p._running().core.ctx.registry.clients for p in peers)


@pytest.mark.deadline(60)
async def test_strangers_get_nothing_and_publish_nothing(
    directories: Callable[[int], list[Path]], plain: Plain
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "app", ("publish", "#"), ("subscribe", "#"))
        server = client.peers[0]
        await peers[0].publish("plant.a", b"before")
        public, secret = zmq.curve_keypair()
        strangers: list[tuple[bytes | None, bytes, bytes]] = [
            (server.server_key, public, secret),
            (None, b"", b""),
        ]
        for keys in strangers:
            feed = plain(zmq.SUB, server.feed, *keys, subscribe=b"")
            req = plain(zmq.DEALER, server.requests, *keys)
            ingest = plain(zmq.PUB, server.ingest, *keys)
            for _ in range(20):
                ingest.send_multipart([b"plant.a", b"evil"])
                req.send_multipart([b"", b"PUB", b"plant.a", b"", b"evil"])
            await peers[0].publish("plant.a", b"secret")
            assert await _silent(feed, 0.7) and await _silent(req, 0.1)
        shown = await peers[0].ask("topic.show", {"topic": "plant.a"})
        assert shown["partition"][0]["end"] == 1 + len(strangers), "only our own records are there"
        async with peers[0].subscribe("plant.a", start="earliest") as records:
            values = [(await anext(records)).value for _ in range(3)]
        assert b"evil" not in values


@pytest.mark.deadline(60)
async def test_a_capability_reaches_as_far_as_it_says_and_no_further(
    directories: Callable[[int], list[Path]], plain: Plain
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "narrow", ("publish", "a.#"), ("subscribe", "a.#"))
        server, keys = client.peers[0], _keys(client)
        req = plain(zmq.REQ, server.requests, *keys)
        assert (await _call(req, [b"PUB", b"a.x", b"", b"1"]))[0] == b"200"
        assert (await _call(req, [b"PUB", b"b", b"", b"1"]))[:2] == [b"403", b"Forbidden"]
        assert (await _call(req, [b"PUB", b"_dead.g.a.x", b"", b"1"]))[:2] == [b"403", b"Forbidden"]
        for prefix in (b"", b"a", b"b", b"\x01", b"\x01b\x00", b"_"):
            feed = plain(zmq.SUB, server.feed, *keys, subscribe=prefix)
            for number in range(3):
                await peers[0].publish("b", b"not for you %d" % number)
                await peers[0].publish("ab", b"nor this %d" % number)
                await peers[0].publish("a.x", b"prefix too wide %d" % number)
            assert await _silent(feed, 0.5), prefix
        allowed = plain(zmq.SUB, server.feed, *keys, subscribe=b"a.")
        await _subscribed(allowed, peers[0], "a.x")
        await peers[0].publish("b", b"no")
        await peers[0].publish("a.x", b"yes")
        assert await _receive(allowed) == [b"a.x", b"yes"]
        async with meshq.connect(credentials=client) as mesh:
            with pytest.raises(meshq.Forbidden):
                await mesh.publish("b", b"x")
            with pytest.raises(meshq.Forbidden):
                async with mesh.subscribe("#") as records:
                    await anext(records)
            with pytest.raises(meshq.Forbidden):
                await mesh.ask("status")
            assert (await mesh.publish("a.y", b"x")).offset == 0
