"""The plain feed under many subscribers, changing topics and changing rights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from meshq.peer.feed import PUMPS_MAX, Feed, cover
from tests.client.fake_peer import FakeMesh
from tests.client.test_mesh import meshed
from tests.mesh.conftest import add_client, running
from tests.mesh.test_plain_zmq import Plain, _keys, _receive, _silent, _subscribed


def test_prefixes_are_folded_into_few_that_cover_them_all() -> None:
    assert cover({b"a", b"ab", b"b.c", b"\x01abc\x00"}) == {"a", "b.c"}
    assert cover(set()) == set()
    many = {b"plant%04d.x" % n for n in range(5_000)} | {b"\x01other\x00"}
    folded = cover(many)
    assert len(folded) <= PUMPS_MAX
    assert all(any(p.removeprefix(b"\x01").decode().startswith(f) for f in folded) for p in many)


class _Wire:
    """A FeedServer without sockets: what is wanted, and what was passed on."""

    def __init__(self) -> None:
        self.wanted: set[bytes] = set()
        self.published: list[bytes] = []

    def interests(self) -> set[bytes]:
        return self.wanted

    def publish(self, frames: list[bytes]) -> None:
        self.published.append(frames[1])


async def test_who_stays_misses_nothing_while_others_come_and_go(eventually: Any) -> None:
    fake, wire = FakeMesh(2), _Wire()
    for name in ("a.x", "a.y", "ab"):
        fake.add_topic(name)
    async with meshed(fake) as (mesh, _):
        feed = Feed(wire, mesh)  # type: ignore[arg-type]
        stored = 0

        def store(count: int) -> None:
            nonlocal stored
            for _ in range(count):
                stored += 1
                fake.store("a.x", [b"%d" % stored])

        wire.wanted = {b"a.x"}
        feed.on_interest_changed()
        await eventually(lambda: any(s.readers for p in fake.peers for s in p.sessions))
        for number, others in enumerate([{b"a."}, {b"a", b"a."}, set(), {b""}, {b"a.y"}, {b"a"}, set()] * 5):
            store(3)
            wire.wanted = {b"a.x"} | others
            feed.on_interest_changed()
            store(3)
            for _ in range(number):  # further along the hand-over each time, or another one on top of it
                await asyncio.sleep(0)
            store(1)
        await eventually(lambda: len(wire.published) >= stored)
        assert wire.published == [b"%d" % n for n in range(1, stored + 1)]
        await eventually(lambda: not feed._leaving)
        assert set(feed._pumps) == {"a.x"}
        await feed.close()


@pytest.mark.deadline(60)
async def test_many_prefixes_of_one_subscriber_leave_others_alone(
    directories: Callable[[int], list[Path]], plain: Plain
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        greedy = await add_client(paths[0], peers, "greedy", ("subscribe", "#"))
        modest = await add_client(paths[0], peers, "modest", ("subscribe", "#"))
        many = plain(zmq.SUB, greedy.peers[0].feed, *_keys(greedy))
        for number in range(600):
            many.subscribe(b"t%03d." % number)
        one = plain(zmq.SUB, modest.peers[0].feed, *_keys(modest), subscribe=b"quiet.")
        await _subscribed(one, peers[0], "quiet.topic")
        await _subscribed(many, peers[0], "t599.x")
        await peers[0].publish("quiet.topic", b"heard")
        await peers[0].publish("t300.x", b"heard too")
        assert await _receive(one) == [b"quiet.topic", b"heard"]
        assert await _receive(many) == [b"t300.x", b"heard too"]


@pytest.mark.deadline(60)
async def test_a_topic_made_again_is_on_the_feed_from_its_first_record(
    directories: Callable[[int], list[Path]], plain: Plain
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "app", ("subscribe", "#"))
        feed = plain(zmq.SUB, client.peers[0].feed, *_keys(client), subscribe=b"again")
        await _subscribed(feed, peers[0], "again")
        for number in range(5):
            await peers[0].publish("again", b"old%d" % number)
            assert await _receive(feed) == [b"again", b"old%d" % number]
        await peers[0].ask("topic.delete", {"topic": "again"})
        for number in range(3):
            await peers[0].publish("again", b"new%d" % number)
            assert await _receive(feed) == [b"again", b"new%d" % number]


@pytest.mark.deadline(60)
async def test_who_may_not_read_any_more_is_cut_off_the_feed(
    directories: Callable[[int], list[Path]], plain: Plain, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = directories(1)
    async with running(paths) as peers:
        client = await add_client(paths[0], peers, "app", ("subscribe", "#"))
        feed = plain(zmq.SUB, client.peers[0].feed, *_keys(client), subscribe=b"t")
        await _subscribed(feed, peers[0], "t")
        core = peers[0]._running().core
        until_s = core.ctx.registry.clients[client.public_key].facts.not_after_s
        principal = core.ctx.principal
        wall_ms = core.ctx.wall_ms

        def expired(key: bytes) -> Any:
            if key == client.public_key:
                core.ctx.wall_ms = until_s * 1000
            try:
                return principal(key)
            finally:
                core.ctx.wall_ms = wall_ms

        monkeypatch.setattr(core.ctx, "principal", expired)
        sockets = peers[0]._running().sockets
        await eventually(lambda: client.public_key not in sockets.feed.subscribers())
        await peers[0].publish("t", b"not for you")
        assert await _silent(feed, 0.5)
