"""One connection from this side: up once, down once with a reason, and in between what was sent, in order."""

from __future__ import annotations

import socket as sockets
import subprocess
import sys

import pytest
import zmq

from meshq.transport.link import LOST, NOBODY, NOT_A_PEER, REFUSED_KEY
from meshq.transport.server import Sent

SERVER = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.curve_server = 1
socket.curve_secretkey = bytes.fromhex(sys.argv[1])
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(port, flush=True)
while True:
    socket.send_multipart(socket.recv_multipart())
"""


def start_server(secret_key: bytes) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVER, secret_key.hex()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def closed_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def downed(world, log):
    await world.until(lambda: log and log[-1][0] == "down", "the link to go down")
    return log[-1][1]


def test_comes_up_once_and_carries_frames_both_ways(run):
    async def scenario(world):
        server = world.router(lambda session, _k, frames: server.send(session, frames))
        log = []
        link = world.link(server.bound[0], world.admit("requests"), log)
        assert not link.up and not link.writable() and not link.send([b"too early"])
        await world.until(lambda: log)
        assert link.up and link.writable()
        body = bytes(range(256)) * 2_000
        assert link.send([b"a", b"", body])
        await world.until(lambda: len(log) == 2)
        assert log == ["up", [b"a", b"", body]]

    run(scenario)


def test_order_holds_under_load_in_both_directions(run):
    async def scenario(world):
        echoed = []

        def echo(session, _key, frames):
            assert server.send(session, frames) is Sent.OK

        server = world.router(echo, hwm=30_000)
        sent = 0

        def more():
            nonlocal sent
            while sent < 20_000 and link.send([b"%d" % sent]):
                sent += 1

        link = world.link(
            server.bound[0], world.admit("requests"), [], on_up=more, on_writable=more,
            on_frames=lambda frames: echoed.append(int(frames[0])),
        )  # fmt: skip
        await world.until(lambda: len(echoed) == 20_000, "20,000 echoes")
        assert echoed == list(range(20_000))
        assert not server.counters and not link.counters

    run(scenario)


def test_a_full_queue_says_so_and_hears_when_there_is_room(run):
    async def scenario(world):
        got = []
        server = world.router(lambda _s, _k, frames: got.append(int(frames[0])), message_bytes_max=1 << 22)
        log = []
        sent = 0
        rooms = 0

        def room():
            nonlocal rooms
            rooms += 1

        link = world.link(server.bound[0], world.admit("requests"), log, hwm=5, on_writable=room)
        await world.until(lambda: log)
        while link.send([b"%d" % sent, bytes(2_000_000)]):
            sent += 1
        assert not link.writable() and rooms == 0
        await world.until(lambda: rooms == 1, "room")
        assert link.writable() and link.send([b"%d" % sent])
        await world.until(lambda: len(got) == sent + 1)
        assert got == list(range(sent + 1)) and rooms == 1 and log == ["up"]

    run(scenario)


def test_a_refused_key_reads_so(run):
    async def scenario(world):
        server = world.router()
        log = []
        world.link(server.bound[0], world.admit("another domain"), log)
        assert await downed(world, log) == REFUSED_KEY
        assert log == [("down", REFUSED_KEY)]

    run(scenario)


def test_a_wrong_server_key_reads_so(run):
    async def scenario(world):
        server = world.router()
        log = []
        world.link(server.bound[0], world.admit("requests"), log, server_key=world.admit("x")[0])
        assert await downed(world, log) == NOT_A_PEER
        assert log == [("down", NOT_A_PEER)]

    run(scenario)


def test_a_server_without_curve_reads_as_no_peer(run):
    async def scenario(world):
        plain = world.own(world.outside.socket(zmq.ROUTER))
        port = plain.bind_to_random_port("tcp://127.0.0.1")
        log = []
        world.link(f"tcp://127.0.0.1:{port}", world.admit("requests"), log)
        assert await downed(world, log) == NOT_A_PEER
        assert log == [("down", NOT_A_PEER)]

    run(scenario)


def test_a_port_where_nobody_listens_is_down_at_once(run):
    async def scenario(world):
        log = []
        world.link(f"tcp://127.0.0.1:{closed_port()}", world.admit("requests"), log, connect_timeout=60)
        assert await downed(world, log) == NOBODY
        assert log == [("down", NOBODY)]

    run(scenario)


@pytest.mark.parametrize("endpoint", ["tcp://nonsense", "tcp://", "foo://x:1"])
def test_an_endpoint_that_is_none_is_down_later_not_an_exception(run, endpoint):
    async def scenario(world):
        log = []
        world.link(endpoint, world.admit("requests"), log)
        assert log == []
        assert f"cannot connect to {endpoint}" in await downed(world, log)
        assert len(log) == 1

    run(scenario)


def test_a_listener_that_never_answers_is_down_after_the_timeout(run):
    async def scenario(world):
        with sockets.create_server(("127.0.0.1", 0)) as silent:
            log = []
            endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
            world.link(endpoint, world.admit("requests"), log, connect_timeout=0.1)
            assert await downed(world, log) == "no answer within 0.1 s"
            assert len(log) == 1

    run(scenario)


def test_a_killed_server_is_down_and_what_it_sent_before_is_delivered_first(run):
    async def scenario(world):
        process = start_server(world.secret)
        with process:
            port = int(process.stdout.readline())
            log = []
            link = world.link(f"tcp://127.0.0.1:{port}", world.admit("requests"), log)
            await world.until(lambda: log)
            link.send([b"echo"])
            await world.until(lambda: len(log) == 2)
            process.kill()
            assert await downed(world, log) == LOST
        assert log == ["up", [b"echo"], ("down", LOST)]
        assert not link.up and not link.send([b"x"]) and not link.writable()

    run(scenario)


def test_a_server_that_closes_is_down_and_does_not_come_back_by_itself(run):
    async def scenario(world):
        server = world.router()
        log = []
        keys = world.admit("requests")
        world.link(server.bound[0], keys, log)
        await world.until(lambda: log)
        server.close()
        assert await downed(world, log) == LOST
        again = []

        def rebound():
            try:
                return world.router(endpoints=server.bound)
            except ValueError:
                return None  # the port is let go a moment after close()

        await world.until(rebound)
        world.link(server.bound[0], keys, again)
        await world.until(lambda: again)
        assert log == ["up", ("down", LOST)] and again == ["up"]

    run(scenario)


def test_nothing_is_called_after_close_wherever_it_comes_from(run):
    async def scenario(world):
        server = world.router(lambda session, _k, _f: [server.send(session, [b"x"]) for _ in range(10)])
        keys = world.admit("requests")
        unused, at_up, at_frames = [], [], []
        early = world.link(server.bound[0], keys, unused)
        early.close()
        early.close()
        first = world.link(server.bound[0], keys, at_up, on_up=lambda: (at_up.append("up"), first.close()))
        second = world.link(
            server.bound[0], keys, at_frames,
            on_up=lambda: second.send([b"go"]),
            on_frames=lambda frames: (at_frames.append(frames), second.close()),
        )  # fmt: skip
        await world.until(lambda: at_up and at_frames)
        last = []
        world.link(server.bound[0], keys, last)
        await world.until(lambda: last)
        assert (unused, at_up, at_frames) == ([], ["up"], [[b"x"]])

    run(scenario)


def test_too_many_frames_are_dropped_and_a_handler_that_raises_is_counted(run):
    async def scenario(world):
        sessions = []
        server = world.router(lambda session, _k, _f: sessions.append(session))
        log = []

        def picky(frames):
            if frames == [b"bad"]:
                raise ValueError("on purpose")
            log.append(frames)

        link = world.link(
            server.bound[0], world.admit("requests"), log, on_frames=picky, on_up=lambda: link.send([b"hi"])
        )
        await world.until(lambda: sessions)
        for frames in ([b"x"] * 100, [b"bad"], [b"good"]):
            server.send(sessions[0], frames)
        await world.until(lambda: log)
        assert log == [[b"good"]]
        assert link.counters == {"too_many_frames": 1, "on_frames_failed": 1}

    run(scenario)


def test_a_hundred_links_one_after_another_leave_nothing_open(run):
    async def scenario(world):
        server = world.router()
        keys = world.admit("requests")
        for _ in range(100):
            log = []
            link = world.link(server.bound[0], keys, log)
            await world.until(lambda log=log: log == ["up"])
            link.close()
            world.open.remove(link)

    run(scenario)
