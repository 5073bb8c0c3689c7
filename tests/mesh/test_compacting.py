"""Compaction over a real disk: whoever reads from the beginning gets the last record of each key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshq
from meshq.peer.core import compacting
from tests.mesh.conftest import running

Directories = Callable[[int], list[Path]]
KEYS, TURNS = 20, 30


@pytest.mark.deadline(60)
async def test_the_last_record_of_each_key_is_left_also_after_a_restart(
    directories: Directories, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "DIRTY_BYTES_MIN", 1_000)
    paths = directories(1)
    async with running(paths) as (peer,):
        await peer.ask("topic.create", {"topic": "t", "partitions": 1, "compact": True})
        for turn in range(TURNS):
            async with peer.producer("t") as out:
                for n in range(KEYS):
                    out.send(b"%d" % turn * 10, key=b"k%d" % n)
        with pytest.raises(meshq.MeshqError, match="needs a key"):
            await peer.publish("t", b"x")
        await peer.publish("t", b"", key=b"k0")  # it is no more
        group = peer.subscribe("t", group="g")
        async with peer.producer("t") as out:
            for _ in range(60):
                out.send(b"x" * 400, key=b"big")

        async def is_compacted() -> bool:
            (partition,) = (await peer.ask("topic.show", {"topic": "t"}))["partition"]
            assert partition["end"] in (TURNS * KEYS + 61, None)
            return partition["bytes"] is not None and partition["bytes"] < 6_000

        await eventually(is_compacted)
        seen = await everything(peer, eventually)
        last = {record.key: record for record in seen}
        assert last[b"k0"].value == b""
        assert [last[b"k%d" % n].value for n in range(1, KEYS)] == [b"%d" % (TURNS - 1) * 10] * (KEYS - 1)
        assert last[b"k7"].offset == (TURNS - 1) * KEYS + 7
        handed = set()
        while (b"big", TURNS * KEYS + 60) not in handed:
            record = await anext(group)
            handed.add((record.key, record.offset))
            record.ack()
        assert {k for k, _ in handed} == {b"big", *(b"k%d" % n for n in range(KEYS))}
    async with running(paths) as (peer,):
        again = {record.key: record for record in await everything(peer, eventually)}
        assert {k: (r.offset, r.value) for k, r in again.items()} == {
            k: (r.offset, r.value) for k, r in last.items()
        }


async def everything(peer: meshq.Peer, eventually: Any) -> list[meshq.Record]:
    async def end() -> int | None:
        (partition,) = (await peer.ask("topic.show", {"topic": "t"}))["partition"]
        found: int | None = partition["end"]
        return found  # None: nobody leads it yet

    last = await eventually(end) - 1
    found: list[meshq.Record] = []
    async with peer.subscribe("t", start="earliest") as records:
        async for record in records:
            found.append(record)
            if record.offset == last:
                break
    return found
