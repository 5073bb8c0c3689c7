"""Plain subscribers: approval by hand, what becomes of it, and what cannot be smuggled past it."""

from __future__ import annotations

import asyncio

import zmq

from tests.greedy import MIB, rss


async def subscribed(world, feed, *prefixes: bytes) -> None:
    await world.until(lambda: feed.interests() >= set(prefixes), f"interest in {prefixes}")


def test_only_approved_prefixes_are_delivered(run):
    async def scenario(world):
        asked = []

        def on_subscribe(key, prefix):
            asked.append((key, prefix))
            return [prefix] if prefix.startswith(b"orders.") else []

        feed = world.feed(on_subscribe)
        keys = world.admit("feed")
        reader = world.client(zmq.SUB, feed.bound[0], keys, SUBSCRIBE=b"secret")
        reader.setsockopt(zmq.SUBSCRIBE, b"orders.")
        await subscribed(world, feed, b"orders.")
        feed.publish([b"secret", b"1"])
        feed.publish([b"orders.eu", b"x" * 100_000])
        assert await world.receive(reader) == [b"orders.eu", b"x" * 100_000]
        assert sorted(asked) == [(keys[0], b"orders."), (keys[0], b"secret")]
        assert feed.interests() == {b"orders."} and feed.counters["denied"] == 1

    run(scenario)


def test_one_subscription_may_be_approved_as_several_and_is_undone_whole(run):
    async def scenario(world):
        feed = world.feed(lambda _key, prefix: [b"a", b"b", b"c"] if prefix == b"" else [prefix])
        reader = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"")
        await subscribed(world, feed, b"a", b"b", b"c")
        for topic in (b"apple", b"\1apple", b"zebra", b"cherry"):
            feed.publish([topic, b""])
        assert (await world.receive(reader))[0] == b"apple"
        assert (await world.receive(reader))[0] == b"cherry"
        reader.setsockopt(zmq.SUBSCRIBE, b"b")
        reader.setsockopt(zmq.UNSUBSCRIBE, b"")
        # `b` was asked for by itself as well: it stays, in our books and on the wire.
        await world.until(lambda: feed.interests() == {b"b"})
        reader.setsockopt(zmq.SUBSCRIBE, b"apple")
        await subscribed(world, feed, b"apple")
        for topic in (b"cherry", b"banana", b"apple"):
            feed.publish([topic, b""])
        assert (await world.receive(reader))[0] == b"banana"
        assert (await world.receive(reader))[0] == b"apple"

    run(scenario)


def test_interest_is_counted_over_subscribers_and_goes_with_their_connections(run):
    async def scenario(world):
        changes = []
        feed = world.feed(on_interest_changed=lambda: changes.append(feed.interests()))
        one = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"both")
        await subscribed(world, feed, b"both")
        two = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"both")
        two.setsockopt(zmq.SUBSCRIBE, b"mine")
        await subscribed(world, feed, b"mine")
        one.close()
        two.setsockopt(zmq.SUBSCRIBE, b"later")
        await subscribed(world, feed, b"later")
        assert feed.interests() == {b"both", b"mine", b"later"}
        two.close()
        await world.until(lambda: not feed.interests())
        assert not feed._subscribers and not feed._asked_by_key and not feed._approved_by_key
        assert changes[0] == {b"both"} and changes[-1] == set()

    run(scenario)


def test_a_flood_of_subscriptions_stays_within_the_limit_of_its_key(run):
    async def scenario(world):
        feed = world.feed(subscriptions_max=1_000)
        keys = world.admit("feed")
        flood = world.client(zmq.SUB, feed.bound[0], keys, SNDHWM=0)  # its queue holds subscriptions too
        for n in range(2_000):
            flood.setsockopt(zmq.SUBSCRIBE, b"flood.%d" % n)
        await world.until(lambda: feed.counters["over_limit"] == 1_000)
        assert len(feed.interests()) == 1_000
        # The limit is the key's, not the connection's; another key has its own.
        world.client(zmq.SUB, feed.bound[0], keys, SUBSCRIBE=b"more")
        await world.until(lambda: feed.counters["cut"])
        honest = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"honest")
        await subscribed(world, feed, b"honest")
        feed.publish([b"honest", b"1"])
        assert await world.receive(honest) == [b"honest", b"1"]
        flood.close()
        await world.until(lambda: feed.interests() == {b"honest"} or feed.interests() == {b"honest", b"more"})

    run(scenario)


def test_a_key_that_goes_on_asking_over_its_limit_is_cut(run):
    async def scenario(world):
        feed = world.feed(subscriptions_max=10)
        flood = world.client(zmq.XSUB, feed.bound[0], world.admit("feed"), RECONNECT_IVL=-1)
        for n in range(1_000):
            flood.send(b"\1flood.%d" % n)
        await world.until(lambda: feed.counters["cut"] == 1)
        await world.until(lambda: not feed._subscribers)
        assert not feed.interests() and feed.counters["over_limit"] == 10

    run(scenario)


def test_a_long_prefix_is_not_approved(run):
    async def scenario(world):
        feed = world.feed()
        reader = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"x" * 301)
        reader.setsockopt(zmq.SUBSCRIBE, b"y" * 300)
        await subscribed(world, feed, b"y" * 300)
        assert feed.interests() == {b"y" * 300} and feed.counters["prefix_too_long"] == 1

    run(scenario)


def test_subscribing_again_and_unsubscribing_what_was_never_asked_changes_nothing(run):
    async def scenario(world):
        feed = world.feed(lambda key, prefix: [prefix, prefix])
        raw = world.client(zmq.XSUB, feed.bound[0], world.admit("feed"))
        for data in (b"\1a", b"\1a", b"\0never", b"\1b"):
            raw.send(data)
        await subscribed(world, feed, b"b")
        assert feed.interests() == {b"a", b"b"}
        for _ in range(2):  # the client's library counts, and tells of the last only
            raw.send(b"\0a")
        await world.until(lambda: feed.interests() == {b"b"})

    run(scenario)


def test_a_decision_that_raises_approves_nothing(run):
    async def scenario(world):
        def fail(_key, _prefix):
            raise RuntimeError("on purpose")

        feed = world.feed(fail)
        world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"a")
        await world.until(lambda: feed.counters["on_subscribe_failed"])
        assert not feed.interests()

    run(scenario)


def test_a_message_that_is_no_subscription_wins_nobody_anothers_approval(run):
    """libzmq would apply the victim's approval to the attacker's connection here: see the module's text."""

    async def scenario(world):
        victims, attackers = world.admit("feed"), world.admit("feed")

        def on_subscribe(key, prefix):
            return [prefix] if key == victims[0] or prefix != b"secret" else []

        feed = world.feed(on_subscribe)
        attackers_sockets = [world.client(zmq.XSUB, feed.bound[0], attackers) for _ in range(2)]
        victim = world.client(zmq.XSUB, feed.bound[0], victims)
        for n, socket in enumerate((*attackers_sockets, victim)):
            socket.send(b"\1hello%d" % n)
        await subscribed(world, feed, b"hello0", b"hello1", b"hello2")
        # Let libzmq queue the three messages in this order before the first is read.
        feed._drain.close()
        for n, (socket, data) in enumerate(
            (
                (attackers_sockets[0], b"no subscription"),
                (victim, b"\1secret"),
                (attackers_sockets[1], b"\1x"),
            )
        ):
            socket.send(data)
            await queued(world, feed, n)
        while feed._read():
            pass
        feed._end_turn()
        feed._drain = type(feed._drain)(feed._socket, feed._read, after=feed._end_turn)
        assert feed.counters["not_a_subscription"] == 1 and feed.counters["doubtful"] == 2
        # The victim's library connects and subscribes again by itself while its owner waits for messages.
        await world.until(lambda: (victim.poll(0), b"secret" in feed.interests())[1], "the victim to be back")
        feed.publish([b"secret", b"for the victim"])
        assert await world.receive(victim) == [b"secret", b"for the victim"]
        for n, socket in enumerate(attackers_sockets):
            end = [b"hello%d" % n]
            await world.until(lambda socket=socket, end=end: (feed.publish(end), socket.poll(0))[1])
            assert socket.recv_multipart() == end

    async def queued(world, feed, n):
        """libzmq takes messages into its queue when asked for events; there is no telling how many it has."""
        deadline = world.loop_time() + 0.15
        await world.until(lambda: (feed._socket.getsockopt(zmq.EVENTS), world.loop_time() > deadline)[1])

    run(scenario)


def test_a_slow_subscriber_loses_messages_and_holds_nobody_up(run):
    async def scenario(world):
        feed = world.feed(hwm=10)
        slow = world.client(
            zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"t", RCVHWM=1, RCVBUF=4096
        )
        quick = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"t")
        await world.until(lambda: feed._interests[b"t"] == 2)
        got = []
        for n in range(300):
            feed.publish([b"t", b"%d" % n, bytes(100_000)])
            got.append((await world.receive(quick))[1])
        assert got == [b"%d" % n for n in range(300)]
        slowly = []
        while slow.poll(200):
            slowly.append(int(slow.recv_multipart()[1]))
        assert len(slowly) < 300 and slowly == sorted(set(slowly))

    run(scenario)


def test_queues_are_shorter_for_large_messages_and_long_again_for_small_ones(run):
    async def scenario(world):
        feed = world.feed(bytes_max=4 * MIB)
        stuck = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), RCVHWM=1, RCVBUF=64 * 1024)
        stuck.subscribe(b"")
        await world.until(feed.interests, "the subscription")
        feed.publish([b"small"])
        before = rss()
        for _ in range(300):
            feed.publish([b"large", bytes(MIB)])
            await asyncio.sleep(0)  # so that the queue is what holds them
        assert rss() - before < 60 * MIB
        for _ in range(2_001):
            feed.publish([b"small"])
        assert feed._hwm == 10_000

    run(scenario)


def test_disconnect_cuts_the_connections_of_one_key(run):
    async def scenario(world):
        feed = world.feed()
        revoked = world.admit("feed")
        other = world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"other")
        world.client(zmq.SUB, feed.bound[0], revoked, SUBSCRIBE=b"revoked")
        await subscribed(world, feed, b"other", b"revoked")
        world.admitted.discard(("feed", revoked[0]))
        assert feed.disconnect(revoked[0]) == 1
        await world.until(lambda: feed.interests() == {b"other"})
        await world.until(lambda: world.zap.refused["feed", "key"])
        feed.publish([b"other"])
        assert await world.receive(other) == [b"other"]

    run(scenario)


def test_nothing_is_called_or_sent_after_close(run):
    async def scenario(world):
        calls = []
        feed = world.feed(on_interest_changed=lambda: (calls.append(1), feed.close()))
        world.client(zmq.SUB, feed.bound[0], world.admit("feed"), SUBSCRIBE=b"t")
        await world.until(lambda: calls)
        feed.publish([b"t"])
        feed.close()
        assert calls == [1]

    run(scenario)
