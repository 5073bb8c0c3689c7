"""Whoever has no key, or has one and misuses it: gets nothing, delivers nothing, and harms nobody else."""

from __future__ import annotations

import os
import socket as sockets
from contextlib import ExitStack, suppress

import pytest
import zmq

KINDS = ["router", "feed", "ingest"]
CLIENTS = {"router": zmq.DEALER, "feed": zmq.SUB, "ingest": zmq.PUB}
DOMAINS = {"router": "requests", "feed": "feed", "ingest": "ingest"}


class Served:
    """One server of a kind, and a way for an honest client to see that it works."""

    def __init__(self, world, kind):
        self.world, self.kind, self.got = world, kind, []
        if kind == "feed":
            self.server = world.feed(lambda key, prefix: (self.got.append(key), [prefix])[1])
        elif kind == "router":
            self.server = world.router(lambda _session, key, _frames: self.got.append(key))
        else:
            self.server = world.ingest(lambda key, _frames: self.got.append(key))

    def client(self, keys, **options):
        extra = {"SUBSCRIBE": b""} if self.kind == "feed" else {}
        return self.world.client(CLIENTS[self.kind], self.server.bound[0], keys, **extra, **options)

    def use(self, socket):
        if self.kind != "feed":
            with suppress(zmq.Again):
                socket.send_multipart([b"a", b"b"], zmq.NOBLOCK)
        else:
            self.server.publish([b"a", b"b"])

    async def honest_is_served(self):
        keys = self.world.admit(DOMAINS[self.kind])
        socket = self.client(keys)
        await self.world.until(lambda: (self.use(socket), keys[0] in self.got)[1], "service")
        if self.kind == "feed":
            await self.world.until(lambda: (self.use(socket), socket.poll(0))[1], "a publication")
        return keys[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", ["random key", "other domain", "wrong server key", "NULL", "PLAIN"])
def test_strangers_get_nothing_and_deliver_nothing(run, kind, who):
    async def scenario(world):
        served = Served(world, kind)
        stranger_keys = world.new_keys()
        options = {}
        if who == "other domain":
            stranger_keys = world.admit("peers")
        elif who == "wrong server key":
            stranger_keys = world.admit(DOMAINS[kind])
            options = {"server_key": world.admit("x")[0]}
        elif who == "NULL":
            stranger_keys = None
        elif who == "PLAIN":
            stranger_keys, options = None, {"PLAIN_USERNAME": b"u", "PLAIN_PASSWORD": b"p"}
        stranger = served.client(stranger_keys, stranger=True, **options)
        served.use(stranger)
        assert await world.refused(stranger)
        served.use(stranger)
        honest = await served.honest_is_served()
        assert set(served.got) == {honest}
        assert kind == "ingest" or not stranger.poll(0)
        if who in ("random key", "other domain"):
            assert world.zap.refused[DOMAINS[kind], "key"] >= 1

    run(scenario)


@pytest.mark.parametrize("kind", ["router", "ingest"])
def test_an_oversized_frame_closes_that_connection_only(run, kind):
    async def scenario(world):
        got = []
        build = world.router if kind == "router" else world.ingest
        server = build(lambda *args: got.append([bytes(f) for f in args[-1]]), message_bytes_max=10_000)
        other = world.client(CLIENTS[kind], server.bound[0], world.admit(DOMAINS[kind]))
        big = world.client(CLIENTS[kind], server.bound[0], world.admit(DOMAINS[kind]))

        def send_until(socket, frame):
            socket.send_multipart([b"t", frame])
            return [b"t", frame] in got

        await world.until(lambda: send_until(other, b"1"))
        await world.until(lambda: send_until(big, b"2"))
        address = f"inproc://watch-{kind}"
        watch = {}
        for name, socket in (("other", other), ("big", big)):
            socket.monitor(address + name, zmq.EVENT_DISCONNECTED)
            watch[name] = world.own(world.outside.socket(zmq.PAIR))
            watch[name].connect(address + name)
        big.send_multipart([b"t", bytes(20_000)])
        await world.receive(watch["big"])
        await world.until(lambda: send_until(other, b"3"))
        assert not watch["other"].poll(0)
        assert [b"t", bytes(20_000)] not in got
        for socket in (other, big):
            socket.disable_monitor()

    run(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_client_is_served_amid_half_open_connections(run, kind):
    async def scenario(world):
        served = Served(world, kind)
        port = int(served.server.bound[0].rpartition(":")[2])
        with ExitStack() as stack:
            silent = []
            for n in range(300):
                tcp = stack.enter_context(sockets.create_connection(("127.0.0.1", port)))
                tcp.setblocking(False)
                if n % 3 == 1:
                    tcp.send(b"\xff")
                elif n % 3 == 2:
                    tcp.send(os.urandom(100))
                silent.append(tcp)
            honest = await served.honest_is_served()
            assert set(served.got) == {honest}
            # And they are not kept: each is closed when its time for the handshake is over.
            await world.until(lambda: all(closed(tcp) for tcp in silent), "half-open ones to be closed")

    def closed(tcp):
        try:
            while data := tcp.recv(1_000):
                del data
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    run(scenario)


def test_a_handshake_command_that_claims_much_is_refused_before_it_is_read(run):
    async def scenario(world):
        served = Served(world, "router")
        port = int(served.server.bound[0].rpartition(":")[2])
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
        with sockets.create_connection(("127.0.0.1", port)) as tcp:
            tcp.setblocking(False)
            tcp.send(greeting + b"\x06" + (1 << 40).to_bytes(8, "big") + b"\x05HELLO")

            def over():
                try:
                    while tcp.recv(1_000):
                        pass
                except BlockingIOError:
                    return False
                except OSError:
                    pass
                return True

            await world.until(over)
        await served.honest_is_served()

    run(scenario)
