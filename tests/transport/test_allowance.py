"""Where strangers may connect, none can fill the memory with a message that has no end, nor crowd it."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import pairwise
from pathlib import Path

import zmq

from meshq.transport.allowance import Allowance
from meshq.transport.tcp import bytes_received, connection_of

MIB = 1024 * 1024
GREEDY = """
import sys, zmq
server, public, secret = (bytes.fromhex(key) for key in sys.argv[2:])
context = zmq.Context()
socket = context.socket(zmq.DEALER)
socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = server, public, secret
socket.reconnect_ivl = -1
monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
socket.connect(sys.argv[1])
for _ in range(100 * 1024 * 1024 // 16_000):
    socket.send(b"x" * 16_000, zmq.SNDMORE)
socket.send(b"")  # libzmq's own sockets begin to send when they have the end
monitor.poll(10_000)
context.destroy(linger=0)
"""


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _door(world, got, **allowance):
    return world.router(
        lambda session, key, frames: got.append((session, key)),
        domain="door", message_bytes_max=16 * 1024, frames_max=1,
        allowance=Allowance(**({"bytes_max": 64 * 1024} | allowance)),
    )  # fmt: skip


def test_an_endless_message_is_cut_while_an_honest_caller_is_served(run):
    async def scenario(world):
        got = []
        server = _door(world, got)
        keys = world.admit("door")
        arguments = [server.bound[0], *(key.hex() for key in (world.public, *keys))]
        greedy = await asyncio.create_subprocess_exec(sys.executable, "-c", GREEDY, *arguments)
        before, peak = _rss(), 0
        while greedy.returncode is None and not server.counters["cut_greedy"]:
            peak = max(peak, _rss())
            await asyncio.sleep(0.001)
        await world.until(lambda: server.counters["cut_greedy"] == 1, "the cut")
        assert max(peak, _rss()) - before < 40 * MIB
        await greedy.wait()
        assert got == []
        keys = world.admit("door")
        honest = world.client(zmq.DEALER, server.bound[0], keys)
        honest.send(b"y" * 15_000)
        await world.until(lambda: [key for _, key in got] == [keys[0]], "the honest one's request")
        server.send(got[0][0], [b"welcome"])
        assert await world.receive(honest) == [b"welcome"]

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
