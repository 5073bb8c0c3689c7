"""An application's view: publish, produce, subscribe against a mesh in memory."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from meshq.client import freshness
from meshq.client.batching import LOOK_AGAIN_S
from meshq.client.core import ClientCore
from meshq.client.driver import ClientDriver
from meshq.client.facts import Seed
from meshq.client.mesh import Mesh
from meshq.client.outgoing import PendingReceipt
from meshq.client.records import Receipt, Record
from meshq.errors import (
    DiskFull,
    Forbidden,
    OutcomeUnknown,
    Overloaded,
    RegistryUnavailable,
    TooLarge,
    TopicGone,
    Unavailable,
    UsageError,
)
from meshq.messages import Produce, Resolve, Watch

from .fake_peer import MESH_ID, FakeMesh, FakeOpener


@asynccontextmanager
async def meshed(fake: FakeMesh, *, wait: bool = True) -> AsyncIterator[tuple[Mesh, FakeOpener]]:
    seeds = [Seed(p.key, (f"tcp://{p.address}",), f"peer{p.number + 1}") for p in fake.peers]
    core = ClientCore(seeds, mesh_id=MESH_ID, name="test", rng=random.Random(1))
    opener = FakeOpener(fake)
    driver = ClientDriver(core, opener)
    driver.start()
    mesh = Mesh(driver)
    try:
        if wait:
            await mesh.connected(5)
        yield mesh, opener
    finally:
        await mesh.close(1)
        assert opener.closed and all(link.closed for link in opener.links)


async def until(condition: Callable[[], bool], timeout: float = 5) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.001)


async def take(records: AsyncIterator[Record], count: int) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(5):
        async for record in records:
            found.append(record)
            if len(found) == count:
                break
    return found


# ------------------------------------------------------------------------------------------------ publishing
async def test_publish_gives_the_place_it_was_stored_at() -> None:
    fake = FakeMesh(3)
    async with meshed(fake) as (mesh, _):
        assert await mesh.publish("orders.eu", b"one") == Receipt("orders.eu", 0, 0, 1)
        assert await mesh.publish("orders.eu", bytearray(b"two"), key=b"k") == Receipt("orders.eu", 0, 1, 1)
    assert fake.records("orders.eu") == [b"one", b"two"]


async def test_ten_thousand_publishes_at_once_make_few_batches() -> None:
    fake = FakeMesh()
    async with meshed(fake) as (mesh, _):
        receipts = await asyncio.gather(*(mesh.publish("t", b"%d" % i) for i in range(10_000)))
    values = fake.records("t")
    assert [values[r.offset] for r in receipts] == [b"%d" % i for i in range(10_000)]
    assert sum(len(m.items) for _, m in fake.heard if isinstance(m, Produce)) <= 4


async def test_keyed_records_go_to_the_partition_of_their_key() -> None:
    fake = FakeMesh(3)
    fake.add_topic("t", 8)
    async with meshed(fake) as (mesh, _):
        for i in range(20):
            receipt = await mesh.publish("t", b"x", key=b"%d" % i)
            assert receipt.partition == zlib.crc32(b"%d" % i) % 8


async def test_records_without_a_key_fill_one_partition_then_the_next() -> None:
    fake = FakeMesh()
    fake.add_topic("t", 4)
    async with meshed(fake) as (mesh, _), mesh.producer("t", batch_bytes=1_000) as out:
        pending = [out.send(b"x" * 75) for _ in range(40)]
        partitions = [(await p).partition for p in pending]
    assert partitions == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10


async def test_what_is_not_bytes_is_refused_at_the_door() -> None:
    async with meshed(FakeMesh()) as (mesh, _):
        with pytest.raises(UsageError, match=r"value must be bytes, not str.*encode"):
            await mesh.publish("t", "text")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="key must be bytes"):
            await mesh.publish("t", b"", key="k")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="header 'h' is str to int"):
            await mesh.publish("t", b"", headers={"h": 1})  # type: ignore[dict-item]
        with pytest.raises(UsageError, match="is not text"):
            await mesh.publish("t", b"", headers={"\ud800": b""})
        with pytest.raises(UsageError, match="is not a topic"):
            await mesh.publish("a b", b"")
        with pytest.raises(TooLarge, match="65 headers"):
            await mesh.publish("t", b"", headers={str(i): b"" for i in range(65)})
        with pytest.raises(UsageError, match="in_flight"):
            mesh.producer("t", in_flight=33)
        with pytest.raises(UsageError, match="timeout"):
            await mesh.publish("t", b"", timeout=0)


async def test_a_record_over_the_topics_limit_fails_alone() -> None:
    fake = FakeMesh()
    fake.add_topic("t", record_bytes_max=100)
    async with meshed(fake) as (mesh, _):
        out = mesh.producer("t")
        early = [out.send(b"a"), out.send(b"x" * 101), out.send(b"b")]  # the topic is not known yet
        assert (await early[0]).offset == 0
        with pytest.raises(TooLarge, match="101 bytes"):
            await early[1]
        assert (await early[2]).offset == 1
        with pytest.raises(TooLarge, match="101 bytes"):
            out.send(b"x" * 101)


async def test_one_partition_that_is_backed_up_does_not_slow_the_others_down() -> None:
    fake = FakeMesh(2)
    fake.owners = [0, 1] * (len(fake.owners) // 2)
    info = fake.add_topic("t", 2)
    slow, quick = (fake.owner_of((info.topic_id, p)) for p in (0, 1))
    keys = {zlib.crc32(b"%d" % i) % 2: b"%d" % i for i in range(10)}
    assert slow is not quick
    async with meshed(fake) as (mesh, opener), mesh.producer("t", linger_ms=5, in_flight=1) as out:
        await out.send(b"", key=keys[0])
        await out.send(b"", key=keys[1])
        (link,) = [x for x in opener.links if x.peer is slow]
        send, link.send = link.send, lambda frames: True  # type: ignore[method-assign]
        for _ in range(2):  # the second one waits for room in flight
            out.send(b"", key=keys[0])
            await asyncio.sleep(0.02)
        start = time.monotonic()
        for _ in range(5):
            await out.send(b"", key=keys[1])
        assert time.monotonic() - start < LOOK_AGAIN_S / 2, "each waits for its linger alone"
        link.send = send  # type: ignore[method-assign]
        opener.cut(slow)


async def test_a_limit_that_was_raised_is_asked_for_before_a_record_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeMesh()
    fake.add_topic("t", record_bytes_max=100)
    async with meshed(fake) as (mesh, _):
        out = mesh.producer("t")
        await out.send(b"small")
        fake.add_topic("t", record_bytes_max=200)
        with pytest.raises(TooLarge):
            out.send(b"x" * 150)  # it was asked for a moment ago
        monkeypatch.setattr(freshness, "SURE_S", 0.0)
        before = out.send(b"before")
        assert [(await p).offset for p in (before, out.send(b"x" * 150), out.send(b"after"))] == [1, 2, 3]
        with pytest.raises(TooLarge, match="201 bytes is over the limit of 200"):
            await out.send(b"x" * 201)


async def test_a_producer_hears_of_more_partitions_while_it_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeMesh()
    fake.add_topic("t", 1)
    async with meshed(fake) as (mesh, _):
        out = mesh.producer("t", linger_ms=1)
        await out.send(b"", key=b"0")
        fake.add_topic("t", 8)
        monkeypatch.setattr(freshness, "TOPIC_AGE_S", 0.0)
        await out.send(b"", key=b"0")
        await until(lambda: out._info is not None and out._info.partitions == 8)
        assert (await out.send(b"", key=b"0")).partition == zlib.crc32(b"0") % 8
        fake.delete_topic("t")
        await until(lambda: not out._freshness._asking)
        assert "t" not in fake.topics, "asking again makes nothing"


async def test_a_full_buffer_refuses_and_ready_waits_for_room() -> None:
    fake = FakeMesh()
    async with meshed(fake) as (mesh, _), mesh.producer("t", buffer_bytes=10_000) as out:
        sent = 0
        refused = 0
        while sent < 1_000:
            try:
                out.send(b"x" * 100)
                sent += 1
            except Overloaded:
                refused += 1
                await out.ready()
        await out.flush()
    assert refused > 0
    assert len(fake.records("t")) == 1_000


async def test_a_forbidden_topic_is_told_to_who_awaits_and_else_by_flush() -> None:
    fake = FakeMesh()
    fake.refuse_resolve = lambda name: Forbidden("no capability") if name == "secret" else None
    fake.refuse = lambda item, payload: Forbidden("not you")
    async with meshed(fake) as (mesh, _):
        with pytest.raises(Forbidden, match="no capability"):
            await mesh.publish("secret", b"")
        with pytest.raises(Forbidden, match="not you"):
            await mesh.publish("t", b"")
        out = mesh.producer("t")
        pending = out.send(b"awaited")
        with pytest.raises(Forbidden):
            await pending
        await out.flush()
        out.send(b"left")
        out.send(b"alone")
        with pytest.raises(Forbidden, match="2 records for t failed"):
            await out.flush()
        assert out.failed_records == 2
        with pytest.raises(Forbidden, match="1 records"):
            async with mesh.producer("t") as other:
                other.send(b"x")


async def test_flush_tells_of_each_record_whose_own_receipt_told_nobody() -> None:
    fake = FakeMesh()
    fake.refuse = lambda item, payload: Forbidden("not you")
    async with meshed(fake) as (mesh, _):
        out = mesh.producer("t")
        for limbo in (True, False):  # before and after the topic is known
            pending = [out.send(b"%d" % i) for i in range(100)]
            with pytest.raises(Forbidden, match="not you"):
                await pending[0]
            with pytest.raises(Forbidden, match="99 records for t failed"):
                await out.flush()
            assert out.failed_records == (99 if limbo else 198)
        pending = [out.send(b"%d" % i) for i in range(3)]
        told = [asyncio.ensure_future(_result(p)) for p in pending]
        await asyncio.sleep(0)
        told[1].cancel()
        with pytest.raises(Forbidden, match="1 records for t failed"):
            await out.flush()
        assert [type(e) for e in await asyncio.gather(*told, return_exceptions=True)] == [
            Forbidden, asyncio.CancelledError, Forbidden,
        ]  # fmt: skip


async def _result(pending: PendingReceipt) -> Receipt:
    return await pending


async def test_a_record_refused_in_limbo_is_told_of_though_another_was_awaited() -> None:
    fake = FakeMesh()
    fake.add_topic("t", record_bytes_max=100)
    async with meshed(fake) as (mesh, _):
        out = mesh.producer("t")
        first = out.send(b"a")
        out.send(b"x" * 101)
        await first
        with pytest.raises(TooLarge, match="1 records for t failed"):
            await out.flush()


async def test_closing_tells_of_what_failed_long_before() -> None:
    fake = FakeMesh()
    fake.refuse = lambda item, payload: Forbidden("not you")
    async with meshed(fake) as (mesh, _):
        mesh.producer("t", linger_ms=0).send(b"x")
        await until(lambda: any(isinstance(m, Produce) for _, m in fake.heard))
        await until(lambda: all(p.is_idle for p in mesh._producers))
        with pytest.raises(Forbidden, match="1 records for t failed"):
            await mesh.close()


async def test_publishes_refused_together_by_a_deleted_topic_begin_anew_together() -> None:
    fake = FakeMesh()
    async with meshed(fake) as (mesh, _):
        await mesh.publish("t", b"old")
        fake.delete_topic("t")
        await asyncio.gather(*(mesh.publish("t", b"%d" % i, timeout=20 + i % 2) for i in range(10)))
        assert sorted(fake.records("t")) == [b"%d" % i for i in range(10)]
        resolved = [m for _, m in fake.heard if isinstance(m, Resolve)]
        assert len(resolved) == 2


async def test_a_mesh_that_is_away_is_unavailable_and_says_why() -> None:
    fake = FakeMesh(2)
    for peer in fake.peers:
        peer.up = False
    async with meshed(fake, wait=False) as (mesh, _):
        with pytest.raises(Unavailable) as e:
            await mesh.connected(0.2)
        assert "peer1 at tcp://10.0.0.1:7700: nobody listens there" in str(e.value)
        assert "peer2 at tcp://10.0.0.2:7700: nobody listens there" in str(e.value)
        with pytest.raises(Unavailable, match="looking up topic t"):
            await mesh.publish("t", b"", timeout=0.1)
        fake.peers[1].up = True
        await mesh.publish("t", b"")


async def test_publishing_goes_on_over_restarts_without_loss_or_repeat() -> None:
    fake = FakeMesh(3)
    fake.add_topic("t", 3)
    async with meshed(fake) as (mesh, opener):
        out = mesh.producer("t", linger_ms=1)
        pending = []
        for i in range(300):
            pending.append(out.send(b"%d" % i))
            if i % 20 == 0:
                opener.cut(fake.peers[i // 20 % 3])
            await asyncio.sleep(0.001)
        places = {(r.partition, r.offset) for r in [await p for p in pending]}
    assert len(places) == 300
    stored = [v for p in range(3) for v in fake.records("t", p)]
    assert sorted(stored) == sorted(b"%d" % i for i in range(300))


async def test_refusals_for_now_are_tried_again_in_order() -> None:
    fake = FakeMesh()
    refusals = iter([Overloaded("busy", retry_after_ms=20), DiskFull("full"), Unavailable("not now")] * 2)
    fake.refuse = lambda item, payload: next(refusals, None)
    async with meshed(fake) as (mesh, _), mesh.producer("t", batch_bytes=100, linger_ms=1) as out:
        pending = [out.send(b"%d" % i) for i in range(20)]
        assert [(await p).offset for p in pending] == list(range(20))
    assert fake.records("t") == [b"%d" % i for i in range(20)]


async def test_the_last_refusal_names_the_error_when_time_is_up() -> None:
    fake = FakeMesh()
    fake.refuse = lambda item, payload: DiskFull("the disk of peer1 is full", retry_after_ms=10_000)
    async with meshed(fake) as (mesh, _):
        with pytest.raises(DiskFull, match="disk of peer1"):
            await mesh.publish("t", b"", timeout=0.2)
    fake = FakeMesh()
    fake.refuse_resolve = lambda name: RegistryUnavailable("its majority is away")
    async with meshed(fake) as (mesh, _):
        with pytest.raises(RegistryUnavailable, match="majority"):
            await mesh.publish("t", b"", timeout=0.2)


async def test_outcome_unknown_can_be_waited_for_again() -> None:
    fake = FakeMesh()
    fake.add_topic("t")
    async with meshed(fake) as (mesh, opener):
        await mesh.publish("t", b"first")
        opener.links[0].deaf = True
        opener.links[0].send = lambda frames: True  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknown) as e:
            await mesh.publish("t", b"second", timeout=0.1)
        opener.cut(fake.peers[0])
        assert await e.value.retry(5) == Receipt("t", 0, 1, 1)  # type: ignore[attr-defined]
    assert fake.records("t") == [b"first", b"second"]


async def test_a_deleted_topic_is_gone_and_then_made_anew() -> None:
    fake = FakeMesh()
    async with meshed(fake) as (mesh, _):
        out = mesh.producer("t", linger_ms=1)
        await out.send(b"old")
        fake.delete_topic("t")
        with pytest.raises(TopicGone):
            await out.send(b"lost")
        assert (await out.send(b"new")).offset == 0
        assert fake.records("t") == [b"new"]


async def test_closing_ends_everything_that_waits() -> None:
    fake = FakeMesh()
    fake.add_topic("t")
    async with meshed(fake) as (mesh, opener):
        opener.links[0].send = lambda frames: True  # type: ignore[method-assign]
        asked = asyncio.ensure_future(mesh.ask("status"))
        published = asyncio.ensure_future(mesh.publish("t", b""))
        records = mesh.subscribe("t")
        iterating = asyncio.ensure_future(records.__anext__())
        await asyncio.sleep(0)
        await mesh.close(0.01)
        done = await asyncio.gather(asked, published, iterating, return_exceptions=True)
        assert [isinstance(d, (Unavailable, OutcomeUnknown)) for d in done] == [True] * 3
        with pytest.raises(Unavailable, match="closed"):
            await mesh.publish("t", b"")
        with pytest.raises(Unavailable, match="closed"):
            await mesh.ask("status")


async def test_a_cancelled_awaiter_leaves_the_others_alone() -> None:
    async with meshed(FakeMesh()) as (mesh, _):
        out = mesh.producer("t")
        pending = out.send(b"x")

        async def wait() -> Receipt:
            return await pending

        one, two = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        one.cancel()
        assert (await two).offset == 0
        assert one.cancelled()


# ---------------------------------------------------------------------------------------------------- reading
async def test_a_subscription_from_the_earliest_gets_all_topics_that_match_and_new_ones() -> None:
    fake = FakeMesh(3)
    fake.add_topic("a.x", 4)
    for p in range(4):
        fake.store("a.x", [b"%d" % p, b"more"], p)
    async with meshed(fake) as (mesh, _), mesh.subscribe("a.*", start="earliest") as records:
        await records.ready()
        found = await take(records, 8)
        assert sorted((r.partition, r.offset) for r in found) == [(p, o) for p in range(4) for o in (0, 1)]
        assert found[0].headers == {} and found[0].attempts == 1 and found[0].timestamp == fake.now_ms
        receipt = await mesh.publish("a.y", b"new", key=b"k", headers={"h": b"v"})
        (record,) = await take(records, 1)
        assert record == Record("a.y", 0, receipt.offset, fake.now_ms, b"k", b"new", {"h": b"v"}, 1)


async def test_latest_means_the_moment_of_subscribing_also_for_later_partitions() -> None:
    fake = FakeMesh()
    fake.add_topic("t")
    fake.store("t", [b"old"])
    async with meshed(fake) as (mesh, _), mesh.subscribe("#") as records:
        await records.ready()
        assert records.positions() == {("t", 0): 1}
        fake.store("t", [b"new"])
        fake.now_ms -= 5
        fake.add_topic("u")
        fake.store("u", [b"from before"])
        fake.now_ms += 10
        fake.store("u", [b"from after"])
        values = [r.value for r in await take(records, 2)]
        assert values == [b"new", b"from after"]


async def test_starts_at_an_offset_and_at_a_time() -> None:
    fake = FakeMesh()
    fake.add_topic("t")
    fake.store("t", [b"0", b"1", b"2"])
    fake.now_ms += 1_000
    fake.store("t", [b"3", b"4"])
    async with meshed(fake) as (mesh, _):
        async with mesh.subscribe("t", start=1) as records:
            assert [r.offset for r in await take(records, 4)] == [1, 2, 3, 4]
            assert records.positions() == {("t", 0): 5}
        at = datetime.fromtimestamp(fake.now_ms / 1000, UTC)
        async with mesh.subscribe("t", start=at) as records:
            assert [r.offset for r in await take(records, 1)] == [3]
            assert records.positions() == {("t", 0): 4}
        for wrong in (-1, True, "first", 1.5):
            with pytest.raises(UsageError, match="start must be"):
                mesh.subscribe("t", start=wrong)  # type: ignore[arg-type]


async def test_reading_goes_on_over_cuts_and_moves_without_gap_or_repeat() -> None:
    fake = FakeMesh(3)
    fake.add_topic("t", 4)
    async with meshed(fake) as (mesh, opener), mesh.subscribe("t", start="earliest") as records:
        await records.ready()
        found: dict[int, list[int]] = {p: [] for p in range(4)}
        for round_ in range(30):
            for p in range(4):
                fake.store("t", [b"x", b"y"], p)
            if round_ % 3 == 0:
                opener.cut(fake.peers[round_ // 3 % 3])
            if round_ % 7 == 0:
                fake.move([(o + 1) % 3 for o in fake.owners])
            for record in await take(records, 8):
                found[record.partition].append(record.offset)
        assert found == {p: list(range(60)) for p in range(4)}


async def test_a_slow_reader_holds_at_most_its_credit() -> None:
    fake = FakeMesh()
    fake.add_topic("t")
    async with meshed(fake) as (mesh, opener):
        records = mesh.subscribe("t", start="earliest", credit_bytes=300 * 1024, credit_records=100_000)
        await records.ready()
        for _ in range(100):
            fake.store("t", [b"x" * 10_000])
        session = opener.links[0].session
        await until(lambda: session.credit[records._sub][0] <= 0)
        position = next(iter(session.readers.values()))
        assert 30 <= position <= 32
        assert len(await take(records, 100)) == 100
        await records.close()


async def test_a_forbidden_subscription_raises_and_a_deleted_topic_just_ends() -> None:
    fake = FakeMesh()
    fake.add_topic("t")
    fake.refuse_read = lambda item: Forbidden("not you")
    async with meshed(fake) as (mesh, _):
        records = mesh.subscribe("t")
        with pytest.raises(Forbidden, match="not you"):
            await records.ready()
        with pytest.raises(Forbidden, match="not you"):
            await records.__anext__()
        fake.refuse_read = lambda item: None
        async with mesh.subscribe("t", start="earliest") as records:
            await records.ready()
            fake.delete_topic("t")
            await mesh.publish("t", b"again")
            assert [r.value for r in await take(records, 1)] == [b"again"]


async def test_a_closed_subscription_ends_the_iteration() -> None:
    fake = FakeMesh()
    async with meshed(fake) as (mesh, _):
        records = mesh.subscribe("#")

        async def iterate() -> list[Record]:
            return [r async for r in records]

        iterating = asyncio.ensure_future(iterate())
        await records.ready()
        await records.close()
        assert await iterating == []
        await until(lambda: not fake.peers[0].sessions[0].watches)


async def test_topics_and_admin_requests() -> None:
    fake = FakeMesh()
    fake.add_topic("b")
    fake.add_topic("a", 3)
    async with meshed(fake) as (mesh, _):
        assert [(t.name, t.partitions) for t in await mesh.topics()] == [("a", 3), ("b", 1)]
        assert [t.name for t in await mesh.topics("b")] == ["b"]
        assert await mesh.ask("status", {"x": 1}) == {"what": "status", "x": 1}
        assert sum(isinstance(m, Watch) for _, m in fake.heard) == 2
        assert fake.peers[0].sessions[0].watches == {}
