"""Outboxes over real peers and disks: of a peer inside a program, and of a program without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshq
import meshq.sync
from meshq.errors import OutboxFull
from tests.mesh.conftest import running


@pytest.mark.deadline(60)
async def test_an_embedded_peer_publishes_while_the_others_are_away_and_shows_what_waits(
    directories: Callable[[int], list[Path]], tmp_path: Path, eventually: Any
) -> None:
    paths, box = directories(3), tmp_path / "box"
    async with running(paths[:1], outbox=box) as (peer,):  # one of three decides nothing
        queued = [await peer.publish("orders", b"%d" % n, key=b"k") for n in range(50)]
        assert {r.state for r in queued} == {"queued"}

        async def told() -> bool:
            outbox = (await peer.ask("status"))["outbox"]  # looked at once a second
            return outbox is not None and outbox["queued"] == 50

        await eventually(told)
    async with running(paths, outbox=None) as peers:
        reading = peers[2].subscribe("orders", start="earliest")
        again = meshq.connect(data=paths[0], outbox=box)
        async with again as mesh, reading:
            await mesh.publish("orders", b"50", key=b"k")
            assert mesh.outbox is not None
            assert await mesh.outbox.drained(30)
            found: list[bytes] = []
            async for record in reading:
                found.append(record.value)
                if len(found) == 51:
                    break
        assert found == [b"%d" % n for n in range(51)]


@pytest.mark.deadline(60)
async def test_the_same_without_an_event_loop(
    directories: Callable[[int], list[Path]], tmp_path: Path
) -> None:
    (path,) = directories(1)

    def work() -> None:
        with meshq.sync.connect(data=path, outbox=tmp_path / "box") as mesh:
            receipt = mesh.publish("orders", b"0", key=b"k")
            assert receipt.state in ("queued", "committed")
            assert receipt.committed(10) == meshq.Receipt("orders", 0, 0, 1)  # type: ignore[comparison-overlap]
            with mesh.producer("orders") as out:
                results = [out.send(b"%d" % n, key=b"k") for n in range(1, 100)]
                assert results[-1].result().committed(10).offset == 99  # type: ignore[attr-defined]
            assert mesh.outbox is not None
            assert mesh.outbox.drained(10)
            assert mesh.outbox.status()["queued"] == 0
            assert mesh.outbox.parked() == []
        with (
            meshq.sync.connect(data=path) as mesh,
            mesh.producer("orders", outbox=tmp_path / "small", outbox_bytes=100) as out,
            pytest.raises(OutboxFull),
        ):
            out.send(b"x" * 200).result()

    async with running([path]):
        await asyncio.to_thread(work)
