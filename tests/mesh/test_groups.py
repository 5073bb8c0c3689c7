"""Groups over real sockets and disks: work that is shared, done once, and done again when it was not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshq
from meshq.client.group import GroupRecord
from tests.mesh.conftest import all_linked, running

Directories = Callable[[int], list[Path]]


async def work(mesh: Any, done: Counter[bytes], count: int, **options: Any) -> int:
    """Take part until the group has done so many; how many were ours."""
    mine: list[Any] = []
    async with mesh.subscribe("jobs", group="workers", **options) as jobs:
        while done.total() < count:
            try:
                record = await asyncio.wait_for(anext(jobs), 0.2)
            except TimeoutError:
                continue
            mine.append(record.ack())
            done[record.value] += 1
        for acked in mine:
            await acked
    return len(mine)


@pytest.mark.deadline(60)
async def test_three_peers_share_out_what_is_published_and_each_record_is_done_once(
    directories: Directories, eventually: Any
) -> None:
    async with running(directories(3)) as peers:
        await eventually(lambda: all_linked(peers))
        await peers[0].ask("topic.create", {"topic": "jobs", "partitions": 8})
        done: Counter[bytes] = Counter()
        workers = [asyncio.create_task(work(p, done, 300, credit_records=20)) for p in peers]
        receipts = [peers[i % 3].publish("jobs", b"%d" % i, key=b"%d" % i) for i in range(300)]
        await asyncio.gather(*receipts)
        shares = await asyncio.gather(*workers)
        assert set(done.values()) == {1}
        assert done.total() == 300
        assert min(shares) > 30, "all of them worked"


@pytest.mark.deadline(60)
async def test_what_one_could_not_do_is_done_by_another(directories: Directories) -> None:
    async with running(directories(1)) as (peer,):
        for i in range(3):
            await peer.publish("jobs", b"%d" % i)
        jobs = peer.subscribe("jobs", group="g", ack_wait=0.5)
        records = [await anext(jobs) for _ in range(3)]
        assert all(isinstance(r, GroupRecord) for r in records)
        await records[0].ack()
        await records[1].nack(delay=0)
        again = await asyncio.wait_for(anext(jobs), 5)
        assert (again.value, again.attempts) == (b"1", 2)
        await again.ack()
        late = await asyncio.wait_for(anext(jobs), 5)
        for makes_no_sense in (
            lambda: late.nack(delay=1e9),
            lambda: late.nack(-1),
            lambda: late.reject("x" * 257),
        ):
            with pytest.raises(meshq.UsageError):
                makes_no_sense()
        assert (late.value, late.attempts) == (b"2", 2)
        with pytest.raises(meshq.LeaseLost):
            await records[2].ack()
        with pytest.raises(meshq.UsageError, match="settled before"):
            await records[0].ack()
        async with peer.subscribe("jobs", group="g") as other:
            await jobs.close()
            last = await asyncio.wait_for(anext(other), 5)
            assert (last.value, last.attempts) == (b"2", 3)
            with pytest.raises(meshq.UsageError, match="closed"):
                await late.ack()
            await last.ack()


@pytest.mark.deadline(60)
async def test_what_cannot_be_done_ends_with_the_dead_letters(
    directories: Directories, eventually: Any
) -> None:
    async with running(directories(3)) as peers:
        await eventually(lambda: all_linked(peers))
        await peers[0].ask("topic.create", {"topic": "jobs", "partitions": 4})
        for i in range(8):
            await peers[0].publish("jobs", b"%d" % i, key=b"%d" % i, headers={"trace": b"x"})
        async with peers[1].subscribe("jobs", group="g", max_deliver=2) as jobs:
            tried: Counter[bytes] = Counter()
            async with peers[2].subscribe("_dead.g.jobs", start="earliest") as dead:
                while tried.total() < 8 + 3:
                    record = await asyncio.wait_for(anext(jobs), 10)
                    tried[record.value] += 1
                    if record.value == b"1":
                        await record.reject("no such customer")
                    elif record.value in (b"3", b"5", b"7"):
                        await record.nack(delay=0)
                    else:
                        await record.ack()
                letters = [await asyncio.wait_for(anext(dead), 10) for _ in range(4)]
        found = {r.value: (r.key, r.headers) for r in letters}
        assert set(found) == {b"1", b"3", b"5", b"7"}
        assert found[b"1"][1]["meshq-reason"] == b"no such customer"
        for value in (b"3", b"5", b"7"):
            key, headers = found[value]
            assert (key, headers["trace"], headers["meshq-reason"]) == (value, b"x", b"max_deliver")
            assert (headers["meshq-attempts"], headers["meshq-group"]) == (b"2", b"g")
        assert all(r.headers["meshq-origin"].startswith(b"jobs/%d@" % r.partition) for r in letters)
        with pytest.raises(meshq.Forbidden):
            await peers[0].publish("_dead.g.jobs", b"forged")
        rows = await peers[0].group_show("jobs", "g")
        assert [(r.partition, r.lag, r.cursor) for r in rows] == [(p, 0, rows[p].end) for p in range(4)]
        assert (sum(r.acked for r in rows), sum(r.dead for r in rows)) == (4, 4)
        assert [(g.topic, g.dead) for g in await peers[2].groups()] == [("jobs", 4)]
        assert (await peers[1].group_redrive("jobs", "g")).redriven == 4
        async with peers[0].subscribe("jobs", group="g", max_deliver=2) as jobs:
            again = [await asyncio.wait_for(anext(jobs), 10) for _ in range(4)]
            assert {(r.value, r.attempts) for r in again} == {(v, 1) for v in found}
            for record in again:
                await record.ack()
            with pytest.raises(meshq.Refused, match="members"):
                await peers[2].group_delete("jobs", "g")
        await peers[2].group_delete("jobs", "g")
        with pytest.raises(meshq.UnknownGroup):
            await peers[1].group_show("jobs", "g")


@pytest.mark.deadline(60)
async def test_records_that_wait_here_stay_ours_while_we_work_and_are_let_go_unseen_when_we_close(
    directories: Directories,
) -> None:
    async with running(directories(1)) as (peer,):
        for i in range(4):
            await peer.publish("jobs", b"%d" % i)
        slow = peer.subscribe("jobs", group="g", ack_wait=0.6)
        for i in range(3):
            record = await anext(slow)
            assert (record.value, record.attempts) == (b"%d" % i, 1)
            await asyncio.sleep(0.4)
            await record.ack()
        await slow.close()
        async with peer.subscribe("jobs", group="g") as other:
            record = await asyncio.wait_for(anext(other), 5)
            assert (record.value, record.attempts) == (b"3", 1)


@pytest.mark.deadline(60)
async def test_a_group_goes_on_where_it_was_after_a_restart(directories: Directories) -> None:
    paths = directories(1)
    async with running(paths) as (peer,):
        for i in range(10):
            await peer.publish("jobs", b"%d" % i)
        async with peer.subscribe("jobs", group="g") as jobs:
            for _ in range(6):
                await (await anext(jobs)).ack()
    async with running(paths) as (peer,), peer.subscribe("jobs", group="g") as jobs:
        left = [await asyncio.wait_for(anext(jobs), 10) for _ in range(4)]
        assert [(r.value, r.attempts) for r in left] == [(b"%d" % i, 1) for i in range(6, 10)]


@pytest.mark.deadline(60)
async def test_without_async(directories: Directories) -> None:
    paths = directories(1)
    async with running(paths) as (peer,):
        (path,) = paths
        for i in range(3):
            await peer.publish("jobs", b"%d" % i)

        def consume() -> list[tuple[bytes, int]]:
            found = []
            with meshq.sync.connect(data=path) as mesh, mesh.subscribe("jobs", group="g") as jobs:
                first = next(jobs)
                first.extend()
                first.nack(delay=0)
                while len(found) < 3:
                    record = next(jobs)
                    record.ack()
                    found.append((record.value, record.attempts))
            return found

        found = await asyncio.get_running_loop().run_in_executor(None, consume)
        assert sorted(found) == [(b"0", 2), (b"1", 1), (b"2", 1)]


async def test_terms_that_make_no_sense(directories: Directories) -> None:
    async with running(directories(1)) as (peer,):
        for options in (
            {"group": "a b"},
            {"group": "g", "mode": "other"},
            {"group": "g", "ack_wait": 0},
            {"group": "g", "max_deliver": 0},
        ):
            with pytest.raises(meshq.UsageError):
                peer.subscribe("jobs", **options)


@pytest.mark.deadline(60)
async def test_keyed_a_key_is_worked_on_in_order_also_when_it_comes_back(directories: Directories) -> None:
    async with running(directories(1)) as (peer,):
        await asyncio.gather(*(peer.publish("jobs", b"%d" % i, key=b"%d" % (i % 3)) for i in range(30)))
        done: dict[bytes, list[int]] = {b"0": [], b"1": [], b"2": []}
        refused: set[bytes] = set()

        async def work() -> None:
            async with peer.subscribe("jobs", group="g", mode="keyed", credit_records=8) as jobs:
                while sum(map(len, done.values())) < 30:
                    try:
                        record = await asyncio.wait_for(anext(jobs), 0.2)
                    except TimeoutError:
                        continue
                    if int(record.value) % 4 == 0 and record.value not in refused:
                        refused.add(record.value)
                        await record.nack(delay=0.01)
                        continue
                    assert record.key is not None
                    done[record.key].append(int(record.value))
                    await record.ack()

        await asyncio.gather(work(), work())
        assert done == {b"%d" % k: list(range(k, 30, 3)) for k in range(3)}
        assert len(refused) == 8
