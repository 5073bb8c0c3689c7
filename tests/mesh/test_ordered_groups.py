"""Ordered groups over real sockets and disks: partitions shared out, handed over, and done in order."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshq
from tests.mesh.conftest import all_linked, running

Directories = Callable[[int], list[Path]]
PARTITIONS = 8
EACH = 15


async def work(logs: meshq.OrderedSubscription, seen: dict[int, list[int]]) -> None:
    async for record in logs:
        seen[record.partition].append(record.offset)
        await record.ack()


@pytest.mark.deadline(60)
async def test_partitions_go_from_one_to_two_to_the_other_and_every_record_is_worked_on_once_and_in_order(
    directories: Directories, eventually: Any
) -> None:
    async with running(directories(3)) as peers:
        await eventually(lambda: all_linked(peers))
        await peers[0].ask("topic.create", {"topic": "logs", "partitions": PARTITIONS})
        seen: dict[int, list[int]] = defaultdict(list)
        first = peers[0].subscribe("logs", group="g", mode="ordered")
        tasks = [asyncio.create_task(work(first, seen))]
        await eventually(lambda: len(first.partitions()) == PARTITIONS)

        async def publish(count: int) -> None:
            every = range(count * PARTITIONS)
            await asyncio.gather(*(peers[n % 3].publish("logs", b"%d" % n, key=b"%d" % n) for n in every))

        publishing = asyncio.create_task(publish(EACH))
        second = peers[1].subscribe("logs", group="g", mode="ordered")
        tasks.append(asyncio.create_task(work(second, seen)))
        await eventually(lambda: len(first.partitions()) == len(second.partitions()) == PARTITIONS // 2)
        await first.close()
        await eventually(lambda: len(second.partitions()) == PARTITIONS)
        await publishing
        await eventually(lambda: sum(map(len, seen.values())) >= EACH * PARTITIONS)
        assert all(offsets == list(range(len(offsets))) for offsets in seen.values())
        await second.close()
        await asyncio.gather(*tasks)


@pytest.mark.deadline(60)
async def test_who_is_asked_for_a_partition_is_told_and_finishes_it_and_who_is_late_is_fenced(
    directories: Directories, eventually: Any
) -> None:
    async with running(directories(1)) as (peer,):
        await peer.ask("topic.create", {"topic": "logs", "partitions": 2})
        told: list[tuple[str, int]] = []
        held: dict[int, meshq.OrderedRecord] = {}

        async def finish(topic: str, partition: int) -> None:
            told.append((topic, partition))
            if partition in held:
                await held[partition].ack()

        first = peer.subscribe("logs", group="g", mode="ordered", session_timeout=5, on_revoke=finish)
        keys = {meshq_partition(key): key for key in (b"%d" % n for n in range(20))}
        assert set(keys) == {0, 1}
        for n in range(6):
            await peer.publish("logs", b"%d" % n, key=keys[n % 2])
        for _ in range(4):  # two of each: taken, and nothing acknowledged yet
            record = await asyncio.wait_for(anext(first), 5)
            held[record.partition] = record
        taking = asyncio.create_task(anext(first))
        second = peer.subscribe("logs", group="g", mode="ordered", session_timeout=5)
        await eventually(lambda: len(second.partitions()) == 1)
        ((_, partition),) = second.partitions()
        assert told == [("logs", partition)]
        record = await asyncio.wait_for(anext(second), 5)
        assert (record.partition, record.offset) == (partition, held[partition].offset + 1)
        late = held[partition]
        late.tenure.acked = 0  # type: ignore[union-attr]
        late.offset += 1
        with pytest.raises(meshq.LeaseLost):
            await late.ack()
        await record.ack()
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await taking
        await first.close()
        with pytest.raises(meshq.UsageError, match="closed"):
            held[1 - partition].ack()
        await second.close()


def meshq_partition(key: bytes) -> int:
    return zlib.crc32(key) % 2


@pytest.mark.deadline(60)
async def test_without_async(directories: Directories) -> None:
    paths = directories(1)
    async with running(paths) as (peer,):
        for i in range(5):
            await peer.publish("logs", b"%d" % i)

        def consume(count: int) -> list[bytes]:
            with meshq.sync.connect(data=paths[0]) as mesh:
                options = {"group": "g", "mode": "ordered"}
                with mesh.subscribe("logs", **options) as logs:
                    records = [next(logs) for _ in range(count)]
                    records[-1].ack()
                    return [r.value for r in records]

        run = asyncio.get_running_loop().run_in_executor
        assert await run(None, consume, 3) == [b"0", b"1", b"2"]
        assert await run(None, consume, 2) == [b"3", b"4"]


async def test_terms_that_make_no_sense(directories: Directories) -> None:
    async with running(directories(1)) as (peer,):
        for options in ({"ack_wait": 3.0}, {"session_timeout": 0}):
            with pytest.raises(meshq.UsageError):
                peer.subscribe("logs", group="g", mode="ordered", **options)
        with pytest.raises(meshq.UsageError, match="session_timeout"):
            peer.subscribe("logs", group="g", session_timeout=3.0)
