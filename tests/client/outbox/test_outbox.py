"""An outbox as an application has it: on a real disk, over a mesh in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from meshq.client import bound
from meshq.client.core import ClientCore
from meshq.client.driver import ClientDriver
from meshq.client.facts import Seed
from meshq.client.mesh import Mesh
from meshq.client.outbox import layout
from meshq.client.outbox import outbox as shell
from meshq.client.outbox.outbox import Outbox
from meshq.client.outbox.receipts import QueuedReceipt
from meshq.client.outbox.store import OutboxStore, looking_at, map_bytes
from meshq.client.records import Receipt
from meshq.errors import (
    DiskFull,
    Forbidden,
    OutboxFull,
    OutcomeUnknown,
    StoreError,
    TooLarge,
    TopicGone,
    UsageError,
    WrongMesh,
)
from meshq.limits import MIB
from meshq.store.environment import ENGINE
from tests.client.fake_peer import MESH_ID, FakeMesh, FakeOpener

KEY = b"k" * 32


@asynccontextmanager
async def meshed(
    fake: FakeMesh, path: Path | None, *, key: bytes = KEY, mesh_id: bytes = MESH_ID, **terms: Any
) -> AsyncIterator[tuple[Mesh, FakeOpener]]:
    seeds = [Seed(p.key, (f"tcp://{p.address}",), f"peer{p.number + 1}") for p in fake.peers]
    core = ClientCore(seeds, mesh_id=mesh_id, name="test", rng=random.Random(1))
    opener = FakeOpener(fake)
    mesh = Mesh(ClientDriver(core, opener), owner=(mesh_id, key))
    try:
        if path is not None:
            mesh.use_outbox(path, **terms)
        mesh._driver.start()
        yield mesh, opener
    finally:
        await mesh.close(2)


def away(fake: FakeMesh) -> None:
    for peer in fake.peers:
        peer.up = False


def back(fake: FakeMesh) -> None:
    for peer in fake.peers:
        peer.up = True


def outbox_of(mesh: Mesh) -> Outbox:
    assert mesh.outbox is not None
    return mesh.outbox


async def test_a_publish_returns_when_this_hosts_disk_has_it_and_is_committed_later(tmp_path: Path) -> None:
    fake = FakeMesh(2)
    away(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        receipt = await mesh.publish("orders.eu", b"one", key=b"k")
        assert isinstance(receipt, QueuedReceipt)
        assert (receipt.state, receipt.topic, receipt.offset) == ("queued", "orders.eu", None)
        with pytest.raises(TimeoutError):
            await receipt.committed(timeout=0.01)
        called: list[str] = []
        receipt.add_done_callback(lambda r: called.append(r.state))
        back(fake)
        assert await receipt.committed(timeout=10) == Receipt("orders.eu", 0, 0, 1)
        assert receipt.state == "committed"
        assert called == ["committed"]
        assert (await receipt.committed()).state == "committed"
    assert fake.records("orders.eu") == [b"one"]


async def test_what_waits_is_sent_by_the_next_opening_once_and_in_order(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    away(fake)
    for run in range(3):
        async with meshed(fake, tmp_path / "box") as (mesh, _), mesh.producer("orders") as out:
            for n in range(100):
                out.send(b"%d" % (run * 100 + n))
    back(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        assert outbox_of(mesh).status()["queued"] == 300
        assert await outbox_of(mesh).drained(10)
        assert outbox_of(mesh).status()["bytes"] == 0
    assert fake.records("orders") == [b"%d" % n for n in range(300)]


async def test_an_unacknowledged_batch_is_sent_by_the_next_run_under_the_same_number(
    tmp_path: Path, eventually: Any
) -> None:
    fake = FakeMesh(1)
    async with meshed(fake, tmp_path / "box") as (mesh, opener):
        await mesh.connected(5)
        fake.after_append = lambda item: OutcomeUnknown("who knows")  # it is stored, and nobody hears of it
        await mesh.publish("orders", b"one")
        await eventually(lambda: "orders" in fake.topics and fake.records("orders") == [b"one"])
        away(fake)
        opener.cut(fake.peers[0])
    fake.after_append = lambda item: None
    back(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        await mesh.publish("orders", b"two")
        assert await outbox_of(mesh).drained(10)
    assert fake.records("orders") == [b"one", b"two"]


async def test_many_sends_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, commits = FakeMesh(1), []
    away(fake)
    tried = OutboxStore._try
    monkeypatch.setattr(OutboxStore, "_try", lambda self, orders: commits.append(1) or tried(self, orders))
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        await asyncio.gather(*(mesh.publish("orders", b"%d" % n) for n in range(5_000)))
        assert len(commits) < 50


async def test_producers_of_one_connection_share_an_outbox(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    async with meshed(fake, None) as (mesh, _):
        first = mesh.producer("a", outbox=tmp_path / "box", compression="zstd")
        second = mesh.producer("b", outbox=tmp_path / "box")
        assert first.outbox is second.outbox
        queued = [await first.send(b"x" * 1_000), await second.send(b"y")]
        assert [await q.committed(10) for q in queued] == [Receipt("a", 0, 0, 1), Receipt("b", 0, 0, 1)]
        assert isinstance(await mesh.publish("a", b"direct"), Receipt)
        assert mesh.outbox is None


async def test_a_second_owner_is_told_who_has_it(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    async with meshed(fake, tmp_path / "box"):
        with pytest.raises(StoreError, match=r"in use by process .*one process has an outbox at a time"):
            Outbox(tmp_path / "box")


async def test_a_full_outbox_says_so_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    away(fake)
    async with meshed(fake, tmp_path / "box", bytes_max=10_000) as (mesh, _):
        with pytest.raises(OutboxFull, match="bytes it may"):
            for _ in range(100):
                await mesh.publish("orders", b"x" * 500)
        kept = outbox_of(mesh).status()["queued"]
        assert 10 <= kept < 20
        back(fake)
        assert await outbox_of(mesh).drained(10)
        await mesh.publish("orders", b"x")
    assert len(fake.records("orders")) == kept + 1


async def test_records_of_a_deleted_topic_are_parked_and_what_follows_goes_to_the_new_one(
    tmp_path: Path, eventually: Any
) -> None:
    fake = FakeMesh(1)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        first = await mesh.publish("orders", b"0")
        await first.committed(10)
        fake.delete_topic("orders")
        gone = await mesh.publish("orders", b"1")
        with pytest.raises(TopicGone, match="parked as 1"):
            await gone.committed(10)
        assert gone.state == "parked"
        later = await mesh.publish("orders", b"2")
        assert await later.committed(10) == Receipt("orders", 0, 0, 1)
        box = outbox_of(mesh)
        (parked,) = box.parked()
        assert (parked.topic, parked.records, parked.reason, parked.maybe_stored) == (
            "orders", 1, "TopicGone", False,
        )  # fmt: skip
        with pytest.raises(UsageError, match="nothing is parked as 7"):
            await box.drop([7])
        assert await box.retry([parked.id]) == 1
        assert await box.drained(10)
        assert box.parked() == []
    assert fake.records("orders") == [b"2", b"1"]


async def test_what_is_parked_stays_parked_until_it_is_dropped(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    fake.refuse = lambda item, payload: TopicGone("gone")
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        gone = await mesh.publish("orders", b"1")
        with pytest.raises(TopicGone):
            await gone.committed(10)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        assert outbox_of(mesh).status()["parked"] == 1
        assert await outbox_of(mesh).drop() == 1
    with looking_at(tmp_path / "box") as reader:
        assert reader.count(layout.PARKED) == 0


async def test_a_damaged_row_is_put_aside_and_the_good_part_kept(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    away(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _), mesh.producer("orders") as out:
        for n in range(10):
            out.send(b"value %d" % n)
    damage(tmp_path / "box", layout.QUEUE, 3)
    back(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        assert await outbox_of(mesh).drained(10)
        (parked,) = outbox_of(mesh).parked()
        assert (parked.topic, parked.reason) == ("orders", "StoreCorrupt")
        assert await outbox_of(mesh).retry() == 0, "there is nothing to send"
        assert await outbox_of(mesh).drop() == 1
    assert fake.records("orders") == [b"value %d" % n for n in range(10) if n != 3]


async def test_a_damaged_batch_is_put_aside_as_perhaps_stored(tmp_path: Path, eventually: Any) -> None:
    fake = FakeMesh(1)
    fake.refuse = lambda item, payload: DiskFull("not now")
    async with meshed(fake, tmp_path / "box") as (mesh, opener):
        await mesh.publish("orders", b"one")
        await eventually(lambda: outbox_of(mesh).status()["sent"] == 1)
        away(fake)
        opener.cut(fake.peers[0])
    damage(tmp_path / "box", layout.BOUND, 0)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        (parked,) = outbox_of(mesh).parked()
        assert (parked.topic, parked.reason, parked.maybe_stored) == ("orders", "StoreCorrupt", True)


def damage(path: Path, database: bytes, place: int) -> None:
    """Flip a bit of a value, as a disk might."""
    env = lmdb.open(str(path), max_dbs=8, **ENGINE)
    with env.begin(write=True) as txn:
        db = env.open_db(database, txn=txn)
        key, value = list(txn.cursor(db))[place]
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=db)
    env.close()


async def test_a_full_disk_refuses_the_record_and_the_next_one_may_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, tried, full = FakeMesh(1), OutboxStore._try, [True]

    def try_(self: OutboxStore, orders: Any) -> DiskFull | None:
        return DiskFull("no room") if full[0] and any(o.fallible for o in orders) else tried(self, orders)

    monkeypatch.setattr(OutboxStore, "_try", try_)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        with pytest.raises(DiskFull):
            await mesh.publish("orders", b"0")
        out = mesh.producer("orders")
        out.send(b"1")
        with pytest.raises(DiskFull, match="1 records were not taken"):
            await out.flush()
        full[0] = False
        await mesh.publish("orders", b"2")
        assert await outbox_of(mesh).drained(10)
        assert outbox_of(mesh).status()["bytes"] == 0
    assert fake.records("orders") == [b"2"]


def test_who_opens_it_with_a_smaller_limit_than_it_had_has_room_to_work(tmp_path: Path) -> None:
    assert map_bytes(tmp_path, 100 * MIB) >= 300 * MIB
    with (tmp_path / "data.mdb").open("wb") as file:
        file.truncate(4_000 * MIB)  # of zeros that take no room
    assert map_bytes(tmp_path, 100 * MIB) >= 8_000 * MIB


async def test_closing_does_not_wait_for_a_full_disk(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "CLOSE_S", 0.1)
    fake, tried, full = FakeMesh(1), OutboxStore._try, [False]

    def try_(self: OutboxStore, orders: Any) -> DiskFull | None:
        return DiskFull("no room") if full[0] else tried(self, orders)

    away(fake)
    monkeypatch.setattr(OutboxStore, "_try", try_)
    async with asyncio.timeout(10):
        async with meshed(fake, tmp_path / "box") as (mesh, _):
            await mesh.publish("orders", b"0")
            full[0] = True
            back(fake)
            await eventually(lambda: outbox_of(mesh)._machine.is_writing)
        full[0] = False
        async with meshed(fake, tmp_path / "box") as (mesh, _):
            assert await outbox_of(mesh).drained(10)
    assert fake.records("orders") == [b"0"]


async def test_who_sends_many_is_told_how_many_found_room(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    away(fake)
    async with meshed(fake, tmp_path / "box", bytes_max=1_000) as (mesh, _):
        out = mesh.producer("orders")
        taken = out.send_many([b"x" * 100] * 20)
        assert 0 < taken < 20
        with pytest.raises(OutboxFull):
            out.send_many([b"x" * 100] * (20 - taken))
        await out.flush()
        assert outbox_of(mesh).status()["queued"] == taken


async def test_who_asks_again_and_again_leaves_nothing_behind(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    away(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        queued = await mesh.publish("orders", b"0")
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await queued.committed(0.001)  # type: ignore[attr-defined]
        assert len(queued._fate._waiting) <= 1  # type: ignore[attr-defined]


async def test_what_is_too_large_for_its_topic_is_parked_and_holds_nothing_up(tmp_path: Path) -> None:
    fake = FakeMesh(1)
    fake.add_topic("orders", record_bytes_max=10)
    away(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        large = await mesh.publish("orders", b"x" * 11)  # nobody knows the topic yet
        small = await mesh.publish("orders", b"x")
        back(fake)
        await small.committed(10)
        with pytest.raises(TooLarge, match="parked"):
            await large.committed(10)
        with pytest.raises(TooLarge):
            await mesh.publish("orders", b"y" * 11)


async def test_an_outbox_belongs_to_one_mesh_and_while_batches_are_out_to_one_key(
    tmp_path: Path, eventually: Any
) -> None:
    fake = FakeMesh(1)
    fake.refuse = lambda item, payload: DiskFull("not now")
    async with meshed(fake, tmp_path / "box") as (mesh, opener):
        await mesh.publish("orders", b"one")
        await eventually(lambda: outbox_of(mesh).status()["sent"] == 1)
        away(fake)
        opener.cut(fake.peers[0])
    with pytest.raises(WrongMesh):
        async with meshed(fake, tmp_path / "box", mesh_id=b"another mesh 16b"):
            pass
    with pytest.raises(UsageError, match="another client's key"):
        async with meshed(fake, tmp_path / "box", key=b"x" * 32):
            pass
    box = Outbox(tmp_path / "box")
    assert await box.park() == 1
    await box.close()
    async with meshed(fake, tmp_path / "box", key=b"x" * 32) as (mesh, _):
        assert [p.maybe_stored for p in outbox_of(mesh).parked()] == [True]


async def test_a_damaged_disk_ends_it_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMesh(1)

    def fail(self: OutboxStore, orders: Any) -> None:
        raise lmdb.Error("Input/output error of the disk itself")

    async with meshed(fake, tmp_path / "box") as (mesh, _):
        await outbox_of(mesh).synced()
        monkeypatch.setattr(OutboxStore, "_try", fail)
        with pytest.raises(StoreError, match="cannot be written any more"):
            await mesh.publish("orders", b"one")
        with pytest.raises(StoreError, match="cannot be written any more"):
            await mesh.publish("orders", b"two")


async def test_what_is_forbidden_waits_for_who_may_allow_it(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "FORBIDDEN_AGAIN_MS", 20)
    fake = FakeMesh(1)
    fake.refuse = lambda item, payload: Forbidden("no capability for it")
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        queued = await mesh.publish("orders", b"0")
        await eventually(lambda: "no capability" in str(outbox_of(mesh).status()["waiting_for"]))
        assert outbox_of(mesh).parked() == []
        fake.refuse = lambda item, payload: None
        assert (await queued.committed(10)).offset == 0
        assert outbox_of(mesh).status()["waiting_for"] == {}


@pytest.mark.long
@pytest.mark.deadline(600)
async def test_a_million_records_that_wait_take_no_memory_and_all_arrive_in_order(tmp_path: Path) -> None:
    fake, count = FakeMesh(1), 1_000_000
    away(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _), mesh.producer("orders") as out:
        for n in range(1_000):
            out.send(b"%08d" % n)
        await out.flush()
        before = resident_bytes()
        for n in range(1_000, count):
            if n % 1_000 == 0:
                await out.flush()
            out.send(b"%08d" % n)
        await out.flush()
        assert resident_bytes() - before < 30 * MIB
    back(fake)
    async with meshed(fake, tmp_path / "box") as (mesh, _):
        assert outbox_of(mesh).status()["queued"] == count
        assert await outbox_of(mesh).drained(400)
    assert fake.records("orders") == [b"%08d" % n for n in range(count)]


def resident_bytes() -> int:
    """Without the pages of files, which LMDB's map is."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
