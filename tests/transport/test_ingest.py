"""Plain publishers: what arrives, under whose key, within which limits."""

from __future__ import annotations

import zmq


async def publish_until(world, socket, frames, condition):
    """PUB drops until the subscription has reached it, so an accepted message may take several."""

    def once_more():
        socket.send_multipart(frames)
        return condition()

    await world.until(once_more)


def test_takes_what_an_admitted_key_publishes(run):
    async def scenario(world):
        got = []
        server = world.ingest(lambda key, frames: got.append((key, frames)))
        keys = world.admit("ingest")
        publisher = world.client(zmq.PUB, server.bound[0], keys)
        await publish_until(world, publisher, [b"topic", b"h", b"x" * 10_000], lambda: got)
        assert got[0] == (keys[0], [b"topic", b"h", b"x" * 10_000])
        assert isinstance(got[0][1][2], memoryview)

    run(scenario)


def test_too_many_frames_are_dropped_and_counted(run):
    async def scenario(world):
        got = []
        server = world.ingest(lambda _key, frames: got.append(frames), frames_max=3)
        publisher = world.client(zmq.PUB, server.bound[0], world.admit("ingest"))
        await publish_until(world, publisher, [b"topic", b"1"], lambda: got)
        publisher.send_multipart([b"topic"] * 200)
        publisher.send_multipart([b"topic", b"2"])
        await world.until(lambda: [b"topic", b"2"] in got)
        assert server.counters == {"too_many_frames": 1}
        assert {len(frames) for frames in got} == {2}

    run(scenario)


def test_order_holds_and_nothing_is_lost_below_the_queues(run):
    async def scenario(world):
        got = []
        server = world.ingest(lambda _key, frames: got.append(frames[1]))
        publisher = world.client(zmq.PUB, server.bound[0], world.admit("ingest"), SNDHWM=0)
        await publish_until(world, publisher, [b"topic", b"warm"], lambda: got)
        for n in range(20_000):
            publisher.send_multipart([b"topic", b"%d" % n])
        await world.until(lambda: got[-1] == b"19999", "20,000 messages")
        assert [g for g in got if g != b"warm"] == [b"%d" % n for n in range(20_000)]

    run(scenario)


def test_a_handler_that_raises_is_counted(run):
    async def scenario(world):
        def fail(_key, _frames):
            raise RuntimeError("on purpose")

        server = world.ingest(fail)
        publisher = world.client(zmq.PUB, server.bound[0], world.admit("ingest"))
        await publish_until(world, publisher, [b"t", b"x"], lambda: server.counters["on_message_failed"] > 3)

    run(scenario)
