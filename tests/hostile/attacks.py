"""Attacks: what somebody does who means harm, each as a program that goes on until it is ended.

    python -m tests.hostile.attacks NAME '{"peers": [{"host": ..., "port": ..., "server_key": ...}], ...}'

Strangers have no key of the mesh. Insiders have a client's key, which may publish and read below `mallory.`
and nothing else. All of them run when nobody else wants the processor (SCHED_IDLE): attackers have hosts of
their own, and what is measured is what they cost the peers, not what they take from this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

from meshq import batch, messages
from meshq.limits import CREDIT_BYTES_MAX

MIB: Final = 1024 * 1024
REQUESTS, FEED, INGEST, DOOR, PEERS = 0, 1, 2, 4, 5  # offsets from a peer's base port
GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
TOPIC: Final = "mallory.own"


@dataclass(frozen=True)
class Target:
    """One peer, and the keys of a client that it admits."""

    host: str
    port: int
    server_key: bytes
    public: bytes
    secret: bytes
    topic: tuple[bytes, int]  # id and version of TOPIC

    def socket(
        self, context: zmq.Context[Any], kind: int, offset: int, *, own: bool = True, **options: Any
    ) -> Any:
        """A stock socket connected there; `own`: with the client's keys, otherwise with new ones."""
        s = context.socket(kind)
        s.linger = 0
        s.curve_serverkey = self.server_key
        s.curve_publickey, s.curve_secretkey = (self.public, self.secret) if own else zmq.curve_keypair()
        port = options.pop("port", self.port + offset)
        for name, value in options.items():
            setattr(s, name, value)
        s.connect(f"tcp://{self.host}:{port}")
        return s


Attack = Callable[[list[Target]], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


def _of_each(targets: list[Target], ports: tuple[int, ...], count: int) -> list[tuple[Target, int]]:
    return [(t, p) for _ in range(count) for t in targets for p in ports]


async def _all(calls: list[Awaitable[None]]) -> None:
    await asyncio.gather(*calls)


async def _raw(target: Target, offset: int, talk: Callable[..., Awaitable[None]]) -> None:
    """Connect, talk, and again, for ever."""
    while True:
        writer = None
        try:
            reader, writer = await asyncio.open_connection(target.host, target.port + offset)
            await talk(reader, writer)
        except OSError:
            await asyncio.sleep(0.05)
        finally:
            if writer is not None:
                writer.close()


# ------------------------------------------------------------------------------------------- strangers
@attack
async def half_open(targets: list[Target]) -> None:
    """Connections that say nothing, one byte, or half a greeting, and stay as long as they may."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(random.choice((b"", b"\xff", GREETING[:20], GREETING)))
        await reader.read()

    await _all([_raw(t, p, talk) for t, p in _of_each(targets, (REQUESTS, FEED, INGEST, DOOR, PEERS), 100)])


@attack
async def junk(targets: list[Target]) -> None:
    """Bytes that mean nothing, before and after a greeting."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            random.choice((b"GET / HTTP/1.1\r\n\r\n", os.urandom(2_000), GREETING + os.urandom(2_000)))
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read()

    await _all([_raw(t, p, talk) for t, p in _of_each(targets, (REQUESTS, FEED, INGEST, DOOR, PEERS), 4)])


@attack
async def handshakes_that_claim_much(targets: list[Target]) -> None:
    """The first command of a handshake, as large as a frame may be, all but its last byte."""
    size = 6 * MIB - 1

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + b"\x06" + size.to_bytes(8, "big") + b"\x05HELLO")
        for _ in range(size // MIB):
            writer.write(bytes(MIB))
            await writer.drain()
        writer.write(bytes(MIB - 20))
        await reader.read()

    await _all([_raw(t, p, talk) for t, p in _of_each(targets, (REQUESTS, INGEST, PEERS), 50)])


@attack
async def wrong_keys(targets: list[Target]) -> None:
    """Handshakes done well, with keys that nobody registered."""
    context = zmq.asyncio.Context()

    async def knock(target: Target, offset: int) -> None:
        kind = {FEED: zmq.SUB, INGEST: zmq.PUB}.get(offset, zmq.DEALER)
        while True:
            s = target.socket(context, kind, offset, own=False)
            await asyncio.sleep(0.05)
            s.close()

    await _all([knock(t, p) for t, p in _of_each(targets, (REQUESTS, FEED, INGEST, PEERS), 2)])


@attack
async def replayed_connections(targets: list[Target]) -> None:
    """What a good client sent, handshake and publish, once more: it was sealed for that connection alone."""
    overheard = [(t, await _overheard(t)) for t in targets]

    def talking(sent: bytes) -> Callable[..., Awaitable[None]]:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(sent)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await reader.read()

        return talk

    await _all([_raw(t, REQUESTS, talking(sent)) for t, sent in overheard for _ in range(10)])


async def _overheard(target: Target) -> bytes:
    """Everything a client sends while it publishes one record."""
    async with _Between(target, REQUESTS) as between:
        context = zmq.asyncio.Context()
        s = target.socket(context, zmq.REQ, REQUESTS, port=between.port)
        await s.send_multipart([b"PUB", b"mallory.replayed", b"", b"once"])
        await s.recv_multipart()
        context.destroy(linger=0)
        return bytes(between.sent)


@attack
async def datagrams(targets: list[Target]) -> None:
    """Noise, oversized ones, and what the peers told each other, again and again."""
    out = socket.socket(type=socket.SOCK_DGRAM)
    heard: list[tuple[int, bytes]] = []
    ports = {t.port for t in targets}
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sniffer.setblocking(False)
    asyncio.get_running_loop().add_reader(sniffer.fileno(), _hear, sniffer, ports, heard)
    while True:
        for t in targets:
            noise = [os.urandom(300), b"MQG\x01" + os.urandom(300), b"", os.urandom(9_000)]
            for data in noise:
                out.sendto(data, (t.host, t.port))
        for port, data in list(heard)[-50:]:
            out.sendto(data, (targets[0].host, port))
        await asyncio.sleep(0.002)


def _hear(sniffer: socket.socket, ports: set[int], heard: list[tuple[int, bytes]]) -> None:
    packet = sniffer.recv(2_000)
    start = (packet[0] & 15) * 4
    port = int.from_bytes(packet[start + 2 : start + 4], "big")
    if packet[9] == socket.IPPROTO_UDP and port in ports and packet[start + 8 : start + 12] == b"MQG\x01":
        heard.append((port, packet[start + 8 :]))
        del heard[:-500]


@attack
async def door(targets: list[Target]) -> None:
    """Any key may knock: with nonsense, with far too much of it, and again at once."""
    context = zmq.asyncio.Context()

    async def knock(target: Target) -> None:
        while True:
            s = target.socket(context, zmq.DEALER, DOOR, own=False, reconnect_ivl=-1)
            for data in (
                b"",
                b"\xc1",
                os.urandom(100),
                msgspec.msgpack.encode([1] * 100),
                *[bytes(8_000)] * 20,
            ):
                await s.send(data)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await s.recv()
            s.close()

    await _all([knock(t) for t in targets for _ in range(20)])


# -------------------------------------------------------------------------------------------- insiders
@attack
async def endless_messages(targets: list[Target]) -> None:
    """Messages of frames without an end, on every socket of clients."""
    context = zmq.asyncio.Context()

    async def pour(target: Target, kind: int, offset: int, frame_bytes: int) -> None:
        while True:
            s = target.socket(context, kind, offset, reconnect_ivl=-1, sndhwm=0)
            monitor = s.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            if kind == zmq.XPUB and await s.poll(2_000):
                await s.recv()  # it takes everything: from here on what is published is sent
            for _ in range(64 * MIB // frame_bytes):
                await s.send(bytes(frame_bytes), zmq.SNDMORE)
            await s.send(b"")  # libzmq's own sockets begin to send when they have the end
            await monitor.poll(5_000)
            s.disable_monitor()
            s.close()

    pours = ((zmq.DEALER, REQUESTS, MIB), (zmq.XPUB, INGEST, MIB), (zmq.XSUB, FEED, 4_000))
    await _all([pour(t, *how) for t in targets for how in pours])


@attack
async def unfinished_messages(targets: list[Target]) -> None:
    """Slow writers: many connections, each with most of a large message, which never ends."""
    await _all([_unfinished(t, p) for t, p in _of_each(targets, (REQUESTS, INGEST), 5)])


async def _unfinished(target: Target, offset: int) -> None:
    context = zmq.asyncio.Context()
    while True:
        async with _Between(target, offset, forward_bytes=23 * MIB) as between:
            s = target.socket(
                context, zmq.DEALER if offset == REQUESTS else zmq.XPUB, offset, port=between.port
            )
            if offset == INGEST and await s.poll(2_000):
                await s.recv()
            await s.send_multipart([b"PUB", TOPIC.encode(), b"", *[bytes(4 * MIB)] * 6])
            await between.ended()
            s.close()


@attack
async def feed_subscriptions(targets: list[Target]) -> None:
    """A hundred thousand prefixes, permitted and not."""
    context = zmq.asyncio.Context()

    async def subscribe(target: Target) -> None:
        s = target.socket(context, zmq.XSUB, FEED, sndhwm=0)
        for n in range(100_000):
            await s.send(b"\x01" + (b"mallory.%d." if n % 2 else b"app.%d.") % n + b"x" * 40)
            if n % 100 == 0:
                await asyncio.sleep(0.001)
        await asyncio.sleep(3_600)

    await _all([subscribe(t) for t in targets])


@attack
async def read_subscriptions(targets: list[Target]) -> None:
    """A hundred thousand subscriptions and watches of the protocol on one connection."""

    async def subscribe(target: Target) -> None:
        async with _Client(target) as client:
            topic_id, version = target.topic
            for n in range(100_000):
                start = messages.ReadItem(topic_id, 0, version, messages.EARLIEST)
                await client.say(messages.Read(n, [start]))
                await client.say(messages.Watch(n, "mallory.#"))
                if n % 50 == 0:
                    await client.skip()
            await asyncio.sleep(3_600)

    await _all([subscribe(t) for t in targets])


@attack
async def slow_readers(targets: list[Target]) -> None:
    """Connections that ask for all they may be sent, and take none of it."""

    async def read(target: Target) -> None:
        while True:
            async with _Client(target, rcvhwm=1, rcvbuf=64 * 1024) as client:
                topic_id, version = target.topic
                for p in range(8):
                    item = messages.ReadItem(topic_id, p, version, messages.EARLIEST)
                    await client.say(messages.Read(p, [item]))
                    await client.say(messages.Credit(p, CREDIT_BYTES_MAX, 1_000_000))
                await asyncio.sleep(5)

    await _all([read(t) for t in targets for _ in range(12)])


@attack
async def slow_subscribers(targets: list[Target]) -> None:
    """Plain subscribers that take nothing of a feed of large records, which they see to themselves."""
    context = zmq.asyncio.Context()
    stuck = [target.socket(context, zmq.SUB, FEED, rcvhwm=1, rcvbuf=64 * 1024) for target in targets * 10]
    for s in stuck:
        s.subscribe(b"mallory.large")
    socket = targets[0].socket(context, zmq.DEALER, REQUESTS)
    while True:
        for _ in range(8):
            await socket.send_multipart([b"PUB", b"mallory.large", b"", bytes(400_000)])
        for _ in range(8):
            await socket.recv_multipart()


@attack
async def floods(targets: list[Target]) -> None:
    """As much as goes through of what is refused: no right, no sense, no session."""
    good = batch.frame(batch.seal([batch.RawRecord(None, bytes(100))], base_timestamp_ms=0))

    async def flood(target: Target, hello: bool) -> None:
        async with _Client(target, hello=hello) as client:
            for n in range(1 << 30):
                await client.say(messages.Ask(n, "topic.create", {"topic": f"app.made{n}"}))
                await client.say(messages.Produce([messages.ProduceItem(n, bytes(16), 0, 0)]), good)
                await client.send([messages.VERB, b"\xc1"])
                await client.send([b"PUB", b"app.orders", b"", b"x"])
                await client.send([b"NONSENSE"] * 10)
                if n % 10 == 0:
                    await client.skip()

    await _all([flood(t, hello) for t in targets for hello in (True, False)])


@attack
async def ingest_flood(targets: list[Target]) -> None:
    """PUB as fast as it goes: to a topic that is not its own, and things that are no records."""
    context = zmq.asyncio.Context()

    async def flood(target: Target) -> None:
        s = target.socket(context, zmq.PUB, INGEST)
        while True:
            for frames in ([b"app.orders", bytes(100)], [b"x"] * 50, [TOPIC.encode(), b"\xc1", b"v"]):
                await s.send_multipart(frames)
            await asyncio.sleep(0.0002)

    await _all([flood(t) for t in targets])


@attack
async def many_sessions(targets: list[Target]) -> None:
    """More connections under one key than it may have, all saying hello."""

    async def stay(target: Target) -> None:
        async with _Client(target):
            await asyncio.sleep(3_600)

    await _all([stay(t) for t in targets for _ in range(700)])


# ----------------------------------------------------------------------------------------------- tools
class _Client:
    """A connection that speaks the protocol, and reads an answer only when it likes."""

    _context: zmq.asyncio.Context | None = None

    def __init__(self, target: Target, *, hello: bool = True, **options: Any) -> None:
        if _Client._context is None:
            _Client._context = zmq.asyncio.Context()
            _Client._context.set(zmq.MAX_SOCKETS, 8_000)
        self._socket = target.socket(_Client._context, zmq.DEALER, REQUESTS, **options)
        self._hello = hello

    async def __aenter__(self) -> _Client:
        if self._hello:
            await self.say(messages.Hello(1, 1))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def say(self, message: Any, *payloads: bytes) -> None:
        await self.send([messages.VERB, messages.encode(message), *payloads])

    async def send(self, frames: list[bytes]) -> None:
        await self._socket.send_multipart(frames)

    async def skip(self) -> None:
        """Take what has come."""
        with contextlib.suppress(zmq.Again):
            while True:
                await self._socket.recv_multipart(zmq.NOBLOCK)


class _Between:
    """A wire that can be listened to and cut short: passes on so many bytes of what a client sends."""

    def __init__(self, target: Target, offset: int, forward_bytes: int = 1 << 62) -> None:
        self.sent = bytearray()
        self.port = 0
        self._target, self._offset, self._left = target, offset, forward_bytes
        self._ended = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> _Between:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def ended(self) -> None:
        """The peer has closed the connection."""
        await self._ended.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, to = await asyncio.open_connection(self._target.host, self._target.port + self._offset)
        except OSError:
            self._ended.set()
            return
        self._writers += [writer, to]
        await asyncio.gather(self._there(reader, to), self._back(there, writer), return_exceptions=True)

    async def _there(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(min(self._left, 64 * 1024)) if self._left else b"":
            self._left -= len(data)
            if len(self.sent) < MIB:
                self.sent += data
            to.write(data)
            await to.drain()

    async def _back(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await there.read(64 * 1024):
                writer.write(data)
        finally:
            self._ended.set()


def main(name: str, facts: str) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = json.loads(facts)
    keys = [bytes.fromhex(found[k]) for k in ("public", "secret")]
    topic = (bytes.fromhex(found["topic_id"]), found["topic_version"])
    targets = [
        Target(p["host"], p["port"], bytes.fromhex(p["server_key"]), *keys, topic) for p in found["peers"]
    ]
    print("ready", flush=True)
    asyncio.run(ATTACKS[name](targets))


if __name__ == "__main__":
    main(*sys.argv[1:])
