"""Where strangers may connect, none can fill the memory with a message that has no end, nor crowd it."""

from __future__ import annotations

import asyncio
import socket as sockets
import time
from contextlib import ExitStack
from itertools import pairwise

import pytest
import zmq

from meshq.limits import UNFINISHED_BYTES_MAX, WHOLE_MESSAGE_BYTES_MAX
from meshq.transport.allowance import Allowance
from meshq.transport.tcp import bytes_received, connection_of
from tests.greedy import MIB, rss, start_greedy


def _door(world, got, **allowance):
    return world.router(
        lambda session, key, frames: got.append((session, key)),
        domain="door", message_bytes_max=16 * 1024, frames_max=1,
        allowance=Allowance(**({"bytes_max": 64 * 1024} | allowance)),
    )  # fmt: skip


async def _grown_until_cut(world, server, keys, **how):
    """How much memory it took to cut one endless message."""
    before = peak = rss()
    greedy = await start_greedy(server.bound[0], world.public, *keys, **how)
    while greedy.returncode is None and not server.counters["cut_greedy"]:
        peak = max(peak, rss())
        await asyncio.sleep(0.001)
    await world.until(lambda: server.counters["cut_greedy"] == 1, "the cut")
    peak = max(peak, rss())
    await greedy.wait()
    return peak - before


def test_an_endless_message_is_cut_while_an_honest_caller_is_served(run):
    async def scenario(world):
        got = []
        server = _door(world, got)
        keys = world.admit("door")
        assert await _grown_until_cut(world, server, keys) < 40 * MIB
        assert got == []
        keys = world.admit("door")
        honest = world.client(zmq.DEALER, server.bound[0], keys)
        honest.send(b"y" * 15_000)
        await world.until(lambda: [key for _, key in got] == [keys[0]], "the honest one's request")
        server.send(got[0][0], [b"welcome"])
        assert await world.receive(honest) == [b"welcome"]

    run(scenario)


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "frame_bytes"),
    [("router", zmq.DEALER, 500_000), ("ingest", zmq.XPUB, 500_000), ("feed", zmq.XSUB, 4_000)],
)
def test_also_of_a_known_client_whether_others_keep_the_socket_busy_or_not(
    run, name, kind, frame_bytes, quiet
):
    async def scenario(world):
        got = []
        server = getattr(world, name)(lambda *message: got.append(message), allowance=Allowance.of_known())
        keys = world.admit("requests" if name == "router" else name)
        busy = world.client(kind, server.bound[0], keys)
        how = {"kind": kind, "frame_bytes": frame_bytes, "total": 200 * MIB}
        if quiet:
            assert await _grown_until_cut(world, server, keys, **how) < 120 * MIB
            return
        talking = asyncio.ensure_future(_talk(busy, kind))
        try:
            await world.until(lambda: got, "the other one's messages")
            assert await _grown_until_cut(world, server, keys, **how) < 120 * MIB
            count = len(got)
            await world.until(lambda: len(got) > count + 10, "the other one is served on")
        finally:
            talking.cancel()

    run(scenario)


async def _talk(socket, kind):
    for number in range(1_000_000):
        what = b"\x01" + str(number).encode() if kind == zmq.XSUB else b"x"
        for data in (what, b"\x00" + what[1:]) if kind == zmq.XSUB else (what,) * 20:
            socket.send(data, zmq.NOBLOCK)
        await asyncio.sleep(0.001)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)


def _begin_handshake(stack, server, size):
    """A connection with so much of the first command of a handshake, which claims to be one byte longer."""
    port = int(server.bound[0].rpartition(":")[2])
    tcp = stack.enter_context(sockets.create_connection(("127.0.0.1", port)))
    tcp.sendall(GREETING + b"\x06" + (size + 7).to_bytes(8, "big") + b"\x05HELLO" + bytes(size))
    tcp.setblocking(False)
    return tcp


def _is_closed(tcp):
    try:
        while tcp.recv(1_000):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_what_all_have_unfinished_is_bounded_and_who_has_the_most_is_cut(run):
    async def scenario(world):
        got = []
        bounds = {"allowance": Allowance.of_known(total_max=4 * MIB), "message_bytes_max": 6 * MIB}
        server = world.router(lambda _session, key, _frames: got.append(key), **bounds)
        with ExitStack() as stack:
            small = [_begin_handshake(stack, server, MIB) for _ in range(3)]
            large = await asyncio.to_thread(_begin_handshake, stack, server, 2 * MIB)
            await world.until(lambda: server.counters["cut_crowded"], "a cut")
            await world.until(lambda: _is_closed(large), "the largest to be cut")
            assert not any(map(_is_closed, small))
            keys = world.admit("requests")
            world.client(zmq.DEALER, server.bound[0], keys).send(b"hello")
            await world.until(lambda: keys[0] in got, "an honest one")
            assert server.counters["cut_crowded"] == 1

    run(scenario)


def test_before_its_first_message_a_stranger_may_send_little_and_after_it_a_peer_what_it_likes(run):
    async def scenario(world):
        got = []
        bounds = {"allowance": Allowance.of_strangers(), "message_bytes_max": 6 * MIB}
        server = world.router(lambda *message: got.append(len(message[-1][0])), **bounds)
        peer = world.client(zmq.DEALER, server.bound[0], world.admit("requests"), RECONNECT_IVL=-1)
        peer.send(b"hello")
        await world.until(lambda: got, "its hello")
        await world.until(lambda: len(server._watch) == 0 and server._watch._timer is None, "rest")
        for _ in range(4):
            peer.send_multipart([bytes(5 * MIB)] * 8)
        with ExitStack() as stack:
            tcp = await asyncio.to_thread(_begin_handshake, stack, server, 200_000)
            await world.until(lambda: _is_closed(tcp), "the stranger to be cut")
        await world.until(lambda: len(got) == 5, "all of the peer's")
        assert server.counters["cut_greedy"] == 1

    run(scenario)


def test_every_handshake_that_comes_to_nothing_is_counted_by_how_it_ended(run):
    async def scenario(world):
        server = world.router(allowance=Allowance.of_known())
        port = int(server.bound[0].rpartition(":")[2])
        honest = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        honest.send(b"hello")
        world.client(zmq.DEALER, server.bound[0], world.new_keys(), RECONNECT_IVL=-1)  # counted by ZAP
        with ExitStack() as stack:
            for data in (
                [b"GET / HTTP/1.1\r\n\r\n"] * 3
                + [GREETING + b"\x04\x10\x05HELLO" + bytes(10)] * 2
                + [b"", b"\xff", GREETING]
            ):
                tcp = stack.enter_context(sockets.create_connection(("127.0.0.1", port)))
                tcp.sendall(data)
            wanted = {"handshake_foreign": 3, "handshake_broken": 2, "handshake_unfinished": 3}
            await world.until(lambda: +server.counters == wanted, f"{wanted}")
        await world.until(lambda: world.zap.refused["requests", "key"] == 1, "the unknown key")

    run(scenario)


def test_the_largest_message_gets_through_however_long_it_has_to_wait(run):
    """A client that is ahead of a busy loop has several whole messages waiting: nobody is cut for that."""

    async def scenario(world):
        got = []

        def busy(_session, _key, frames):
            got.append(sum(map(len, frames)))
            time.sleep(0.05)

        bounds = {"allowance": Allowance.of_known(), "whole_bytes_max": WHOLE_MESSAGE_BYTES_MAX}
        server = world.router(busy, message_bytes_max=8 * MIB, **bounds)
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"), RECONNECT_IVL=-1)
        frames = [bytes(WHOLE_MESSAGE_BYTES_MAX // 4)] * 4
        for _ in range(6):
            client.send_multipart(frames, copy=False)
        await world.until(lambda: len(got) == 6, "all of them")
        assert set(got) == {WHOLE_MESSAGE_BYTES_MAX}
        assert got[0] * 6 > 4 * UNFINISHED_BYTES_MAX
        assert not server.counters, "nobody was cut"
        client.send_multipart([*frames, b"x"], copy=False)
        await world.until(lambda: server.counters["too_large"] == 1, "one more byte is too much")
        await world.until(lambda: len(server._watch) == 0, "and its connection is cut")

    run(scenario)


def test_whoever_stays_is_cut_and_nothing_is_looked_at_when_nobody_is_there(run):
    async def scenario(world):
        got = []
        server = _door(world, got, stay_s=0.2)
        idle = world.client(zmq.DEALER, server.bound[0], world.admit("door"), RECONNECT_IVL=-1)
        idle.send(b"hello")
        await world.until(lambda: got, "the request")
        await world.until(lambda: server.counters["cut_long"] == 1, "the cut")
        await world.until(lambda: len(server._watch) == 0 and server._watch._timer is None, "rest")

    run(scenario)


def test_the_oldest_go_when_many_come(run):
    async def scenario(world):
        got = []
        server = _door(world, got, connections_max=4)
        keys = [world.admit("door") for _ in range(8)]
        for number, pair in enumerate(keys, 1):
            client = world.client(zmq.DEALER, server.bound[0], pair, RECONNECT_IVL=-1)
            client.send(b"hello")
            await world.until(lambda n=number: len(got) == n, "the request")
        await world.until(lambda: server.counters["cut_many"] == 4, "the cuts")
        assert len(server._watch) == 4

    run(scenario)


def test_the_kernel_says_what_a_connection_has_sent(run):
    async def scenario(world):
        counts = []
        other = world.context.socket(zmq.PULL)
        world.own(other)
        port = other.bind_to_random_port("tcp://127.0.0.1")
        push = world.client(zmq.PUSH, f"tcp://127.0.0.1:{port}", None)
        for _ in range(3):
            push.send(b"z" * 10_000)
            await world.until(lambda: other.poll(0), "a frame")
            frame = other.recv(copy=False)
            counts.append(bytes_received(connection_of(frame)))
        assert 10_000 < counts[0] < 10_200
        assert counts[2] - counts[1] >= 10_000

    run(scenario)


def test_a_turn_ends_after_some_milliseconds_however_much_is_waiting(run):
    async def scenario(world):
        handled, others = [], []

        def slow(*_):
            handled.append(1)
            end = time.monotonic() + 0.004
            while time.monotonic() < end:
                pass

        server = world.router(slow)
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        for _ in range(60):
            client.send(b"x")
        await world.until(lambda: handled, "the first message")
        while len(handled) < 60:
            others.append(len(handled))
            await asyncio.sleep(0)
        assert max(b - a for a, b in pairwise(others)) <= 4

    run(scenario)
