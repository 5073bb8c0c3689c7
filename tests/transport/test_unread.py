"""Who does not take what it asked for costs the peer a bounded amount, however many connections it has."""

from __future__ import annotations

import zmq

from meshq.transport.server import Sent
from tests.greedy import MIB

SLOW = {"RCVHWM": 1, "RCVBUF": 64 * 1024, "RECONNECT_IVL": -1}


def test_who_takes_least_is_cut_when_all_together_take_too_little(run):
    async def scenario(world):
        sessions = {}
        server = world.router(
            lambda session, key, _frames: sessions.update({key: session}), unread_bytes_max=24 * MIB
        )
        keys = [world.admit("requests") for _ in range(3)]
        reader, *slow = (
            world.client(zmq.DEALER, server.bound[0], pair, **({} if pair is keys[0] else SLOW))
            for pair in keys
        )
        for client in (reader, *slow):
            client.send(b"hello")
        await world.until(lambda: len(sessions) == 3, "their hellos")

        def give(at, size):
            server.on_given(sessions[keys[at][0]], size)
            return server.send(sessions[keys[at][0]], [bytes(size)])

        for _ in range(10):  # as much as all may hold, several times: but it is taken
            give(0, 6 * MIB)
            assert await world.receive(reader)
        for _ in range(2):
            give(1, 6 * MIB)
        assert not server.counters
        for _ in range(4):
            give(2, 6 * MIB)
        assert server.counters["cut_unread"] == 1
        await world.until(lambda: give(2, 1) is Sent.GONE, "the slowest to be gone")
        assert give(1, 1) is Sent.OK and give(0, 6 * MIB) is Sent.OK
        assert await world.receive(reader)
        assert server.counters["cut_unread"] == 1

    run(scenario)


def test_connections_that_ended_are_forgotten(run):
    async def scenario(world):
        heard = []
        server = world.router(lambda session, *_: heard.append(session), unread_bytes_max=200_000)
        for number in range(100):
            client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
            client.send(b"hello")
            await world.until(lambda number=number: len(heard) > number, "its hello")
            client.close()
        await world.until(lambda: len(server._unread._held) < 30, "forgetting")
        assert not server.counters

    run(scenario)
