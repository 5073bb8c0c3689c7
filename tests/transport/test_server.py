"""Requests: sessions, keys, limits, and what a full or vanished session answers."""

from __future__ import annotations

import pytest
import zmq

from meshq.errors import UsageError
from meshq.transport.drain import VIEW_FROM_BYTES
from meshq.transport.server import RouterServer, Sent


def test_says_who_sent_what_and_answers(run):
    async def scenario(world):
        server = world.router(lambda session, key, frames: got.append((session, key, frames)))
        got = []
        keys = world.admit("requests")
        client = world.client(zmq.DEALER, server.bound[0], keys)
        client.send_multipart([b"hello", b"x" * VIEW_FROM_BYTES, b""])
        session, key, frames = (await world.until(lambda: got))[0]
        assert key == keys[0]
        assert frames == [b"hello", b"x" * VIEW_FROM_BYTES, b""]
        assert [type(f) for f in frames] == [bytes, memoryview, bytes] and frames[1].readonly
        assert server.send(session, [b"to you", memoryview(b"y" * 100_000)]) is Sent.OK
        assert await world.receive(client) == [b"to you", b"y" * 100_000]

    run(scenario)


def test_two_connections_of_one_key_are_two_sessions(run):
    async def scenario(world):
        got = []
        server = world.router(lambda *message: got.append(message))
        keys = world.admit("requests")
        for _ in range(2):
            world.client(zmq.DEALER, server.bound[0], keys).send(b"x")
        await world.until(lambda: len(got) == 2)
        assert len({session for session, _, _ in got}) == 2
        assert {key for _, key, _ in got} == {keys[0]}

    run(scenario)


def test_order_holds_under_load_and_other_things_get_their_turn(run):
    async def scenario(world):
        got = []
        server = world.router(lambda _s, _k, frames: got.append(int(frames[0])))
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"), SNDHWM=0)
        for n in range(20_000):
            client.send(b"%d" % n)
        turns = 0

        def count():
            nonlocal turns
            turns += 1
            return len(got) == 20_000

        await world.until(count, "20,000 messages")
        assert got == list(range(20_000))
        assert turns > 5

    run(scenario)


def test_a_big_frame_arrives_and_leaves_intact(run):
    async def scenario(world):
        body = bytes(range(256)) * (20 * 1024)
        got = []

        def echo(session, _key, frames):
            got.append(server.send(session, frames))

        server = world.router(echo, message_bytes_max=6 << 20)
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        client.send_multipart([body, b"", body])
        assert await world.receive(client) == [body, b"", body]
        assert got == [Sent.OK]

    run(scenario)


def test_too_many_frames_are_dropped_and_counted_and_the_next_message_is_served(run):
    async def scenario(world):
        got = []
        server = world.router(lambda _s, _k, frames: got.append(frames), frames_max=3)
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        client.send_multipart([b"x"] * 500)
        client.send_multipart([b"1", b"2", b"3"])
        client.send_multipart([b"x"] * 4)
        client.send_multipart([b"after"])
        await world.until(lambda: len(got) == 2)
        assert got == [[b"1", b"2", b"3"], [b"after"]]
        assert server.counters["too_many_frames"] == 2

    run(scenario)


def test_an_id_that_the_client_chose_is_not_served(run):
    async def scenario(world):
        got = []
        server = world.router(lambda _s, _k, frames: got.append(frames))
        keys = world.admit("requests")
        squatter = world.client(zmq.DEALER, server.bound[0], keys, ROUTING_ID=b"victim")
        squatter.send(b"squat")
        await world.until(lambda: server.counters["chosen_id"])
        world.client(zmq.DEALER, server.bound[0], keys).send(b"honest")
        await world.until(lambda: got)
        assert got == [[b"honest"]]

    run(scenario)


def test_a_handler_that_raises_is_counted_and_the_next_message_is_served(run, caplog):
    async def scenario(world):
        got = []

        def picky(_session, _key, frames):
            if frames == [b"bad"]:
                raise ValueError("on purpose")
            got.append(frames)

        server = world.router(picky)
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        for text in (b"bad", b"bad", b"bad", b"good"):
            client.send(text)
        await world.until(lambda: got)
        assert server.counters["on_message_failed"] == 3
        assert caplog.text.count("Traceback") == 2  # the first and the second; then the fourth would be

    run(scenario)


def test_a_session_that_is_gone_and_one_that_never_was_say_so(run):
    async def scenario(world):
        sessions = []
        server = world.router(lambda session, _k, _f: sessions.append(session))
        assert server.send(b"\0none", [b"x"]) is Sent.GONE
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        client.send(b"x")
        await world.until(lambda: sessions)
        client.close()
        await world.until(lambda: server.send(sessions[0], [b"x"]) is Sent.GONE)

    run(scenario)


def test_a_full_session_says_so_without_harm_to_others_and_hears_of_room(run):
    async def scenario(world):
        sessions = {}
        server = world.router(lambda session, _k, frames: sessions.update({frames[0]: session}), hwm=10)
        slow = world.client(zmq.DEALER, server.bound[0], world.admit("requests"), RCVHWM=1)
        quick = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        slow.send(b"slow")
        quick.send(b"quick")
        await world.until(lambda: len(sessions) == 2)
        sent = 0
        full = False

        def fill():
            nonlocal sent, full
            while (answer := server.send(sessions[b"slow"], [b"%d" % sent, bytes(200_000)])) is Sent.OK:
                sent += 1
            full = answer is Sent.FULL

        await world.until(lambda: (fill(), full)[1])
        assert server.send(sessions[b"quick"], [b"still here"]) is Sent.OK
        assert await world.receive(quick) == [b"still here"]

        got = []
        after = []

        def on_room():
            if server.send(sessions[b"slow"], [b"last"]) is Sent.OK:
                after.append(True)
            else:
                server.call_when_writable(on_room)

        server.call_when_writable(on_room)
        while not got or got[-1] != b"last":
            got.append((await world.receive(slow))[0])
        assert after == [True]
        assert got[:-1] == [b"%d" % n for n in range(sent)]

    run(scenario)


def test_a_port_in_use_is_a_usage_error_that_names_the_option(run):
    async def scenario(world):
        server = world.router()
        port = server.bound[0].rpartition(":")[2]
        with pytest.raises(UsageError, match=rf"port {port} on 127.0.0.1 is in use .* --port"):
            world.router(endpoints=["tcp://127.0.0.1:0", server.bound[0]])
        with pytest.raises(UsageError, match=r"not an address of this host.*--bind"):
            world.router(endpoints=["tcp://192.0.2.1:0"])
        with pytest.raises(UsageError, match="cannot listen on tcp://nonsense"):
            world.router(endpoints=["tcp://nonsense"])

    run(scenario)


def test_several_endpoints_are_all_served_and_named(run):
    async def scenario(world):
        got = []
        server = world.router(
            lambda _s, _k, frames: got.append(frames), endpoints=["tcp://127.0.0.1:0", "tcp://127.0.0.2:0"]
        )
        assert len(set(server.bound)) == 2 and not any(e.endswith(":0") for e in server.bound)
        for endpoint in server.bound:
            world.client(zmq.DEALER, endpoint, world.admit("requests")).send(b"x")
        await world.until(lambda: len(got) == 2)

    run(scenario)


def test_a_star_listens_on_both_families_and_the_decision_sees_plain_addresses(run):
    async def scenario(world):
        got, addresses = [], []
        decide = world.zap._decide
        world.zap._decide = lambda *question: (addresses.append(question[2]), decide(*question))[1]
        server = world.router(lambda _s, _k, frames: got.append(frames), endpoints=["tcp://*:0"])
        port = server.bound[0].rpartition(":")[2]
        hosts = ["127.0.0.1", *(["[::1]"] if "[::]" in server.bound[0] else [])]
        for host in hosts:
            keys = world.admit("requests")
            world.client(zmq.DEALER, f"tcp://{host}:{port}", keys, IPV6=1).send(b"x")
        await world.until(lambda: len(got) == len(hosts))
        assert sorted(addresses) == sorted(host.strip("[]") for host in hosts)

    run(scenario)


def test_nothing_is_called_after_close(run):
    async def scenario(world):
        got = []

        def on_message(session, _key, frames):
            got.append(frames)
            server.call_when_writable(lambda: got.append("writable"))
            server.close()
            server.close()
            assert server.send(session, [b"x"]) is Sent.GONE
            server.call_when_writable(lambda: got.append("writable"))

        server: RouterServer = world.router(on_message)
        client = world.client(zmq.DEALER, server.bound[0], world.admit("requests"))
        for _ in range(10):
            client.send(b"x")
        await world.until(lambda: got)
        other = world.router(lambda _s, _k, frames: got.append(frames))
        world.client(zmq.DEALER, other.bound[0], world.admit("requests")).send(b"other")
        await world.until(lambda: [b"other"] in got)
        assert got == [[b"x"], [b"other"]]

    run(scenario)
