"""Retention over real sockets and disks: what is kept, what is deleted, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshq
from meshq.entries import Mark
from meshq.ids import PartitionKey, TopicId
from tests.mesh.conftest import all_linked, running

Directories = Callable[[int], list[Path]]
KEPT, ALL, EACH = 400, 4_500, 300


@pytest.mark.deadline(60)
async def test_what_expires_is_told_and_goes_from_every_disk(
    directories: Directories, eventually: Any
) -> None:
    paths = directories(3)
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))
        await eventually(lambda: registry_is_there(peers))
        await peers[0].ask("topic.create", {"topic": "t", "partitions": 1, "retain_records": KEPT})
        slow = peers[1].subscribe("t", start="earliest", credit_records=1)
        await slow.ready()
        for start in range(0, ALL, EACH):
            async with peers[0].producer("t") as out:
                out.send_many([b"%d" % n for n in range(start, start + EACH)])

        async def earliest() -> int:
            (partition,) = (await peers[2].ask("topic.show", {"topic": "t"}))["partition"]
            assert partition["end"] in (ALL, None)
            return partition["earliest"] or 0

        async def has_expired() -> bool:
            return await earliest() == ALL - KEPT

        await eventually(has_expired)
        seen, missed = [], 0
        while len(seen) + missed < ALL:
            try:
                async for record in slow:
                    seen.append(record)
                    assert record.value == b"%d" % record.offset
                    if record.offset == ALL - 1:
                        break
            except meshq.RecordsExpired as gone:
                assert (gone.topic, gone.partition, gone.next) == ("t", 0, gone.count + len(seen) + missed)
                missed += gone.count
        assert missed > 0
        assert [r.offset for r in seen[-KEPT:]] == list(range(ALL - KEPT, ALL))
        with pytest.raises(meshq.RecordsExpired) as told:
            await anext(peers[2].subscribe("t", start=10))
        assert (told.value.count, told.value.next) == (ALL - KEPT - 10, ALL - KEPT)

        def is_gone() -> bool:
            """All have the same, from the batch on that holds the first record that is kept."""
            one, *others = batches(peers)
            return all(x == one for x in others) and one[0].base_offset <= ALL - KEPT < one[0].end

        await eventually(is_gone)
        first = await anext(peers[0].subscribe("t", start="earliest"))
        assert first.offset == ALL - KEPT


async def registry_is_there(peers: list[meshq.Peer]) -> bool:
    return all([(await p.ask("status"))["registry"]["reachable"] for p in peers])


def batches(peers: list[meshq.Peer]) -> list[list[Mark]]:
    """What each disk has."""
    found = []
    for peer in peers:
        shell = peer._shell
        assert shell is not None
        info = shell.core.ctx.registry.topic("t")
        assert info is not None
        partition = PartitionKey(TopicId(info.topic_id), 0)
        found.append(shell.store.survey(partition, 0, count_max=1_000))
    return found
