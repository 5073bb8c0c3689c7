"""An outbox beside an ordinary producer, in turns: how fast records are on its own disk, and in the mesh.

One peer, which shares the machine and its disk with the outbox: every record is synced twice, and read and
written once more between (numbering), which the ordinary producer does not do.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import meshq
from benchmarks.publishing import publish_many

SIZE: Final = 100
TOPIC: Final = "bench.outbox"


async def run(data: Path, seconds: float, rounds: int) -> str:
    count = int(seconds * 100_000)
    direct, queued, stored = [], [], []
    for _ in range(rounds):
        async with meshq.connect(data=data) as mesh:
            direct.append(1 / await publish_many(mesh, TOPIC, os.urandom(SIZE), count))
        with tempfile.TemporaryDirectory(prefix="meshq-bench-") as place:
            on_disk, in_mesh = await _through(data, Path(place) / "outbox", count)
        queued.append(on_disk)
        stored.append(in_mesh)
    return "\n".join(
        [
            "",
            f"An outbox, records of {SIZE} B, median of {rounds} rounds in turns:",
            "",
            "| what | records/s |",
            "|---|---|",
            f"| an ordinary producer | {statistics.median(direct):,.0f} |",
            f"| an outbox, until its own disk has them | {statistics.median(queued):,.0f} |",
            f"| an outbox, until the mesh has them | {statistics.median(stored):,.0f} |",
            "",
        ]
    )


async def _through(data: Path, path: Path, count: int) -> tuple[float, float]:
    values = [os.urandom(SIZE)] * 1_000
    async with meshq.connect(data=data, outbox=path) as mesh:
        out = mesh.producer(TOPIC)
        await (await out.send(values[0])).committed()
        start, done = time.perf_counter(), 0
        while done < count:
            taken = out.send_many(values)
            done += taken
            if taken < len(values):
                await out.ready()
        await out.flush()
        on_disk = time.perf_counter() - start
        assert mesh.outbox is not None
        await mesh.outbox.drained(60)
        return done / on_disk, done / (time.perf_counter() - start)
