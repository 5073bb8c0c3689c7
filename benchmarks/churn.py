"""Churn: a topic that keeps so many bytes is written twenty times over. Neither speed nor file may show it.

Deleted batches leave holes of all sizes in LMDB's file, and its list of free pages is where that could hurt
(others have seen it); so records come in sizes from 100 B to 32 KiB, and batches with them. What is measured
is each tenth of the time, and the file behind each: it never shrinks, so the last figure is the largest.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import meshq
from benchmarks.publishing import BATCH_BYTES, IN_FLIGHT
from meshq.client.mesh import Mesh

TOPIC = "bench.churn"
TIMES = 20
SIZES = (100, 300, 1_000, 4_000, 32_000)
LOT_BYTES = 400_000  # most of one size in a row


async def run(data: Path, retained: int) -> str:
    async with meshq.connect(data=data) as mesh:
        await mesh.ask("topic.create", {"topic": TOPIC, "partitions": 1, "retain_bytes": retained})
        tenths = [await _write(mesh, data, retained * TIMES // 10, seed) for seed in range(10)]
        shown = await mesh.ask("topic.show", {"topic": TOPIC})
    (partition,) = shown["partition"]
    first, last = tenths[0][0], tenths[-1][0]
    file = tenths[-1][1]
    lines = [
        "",
        f"A topic that keeps {retained >> 20} MiB, written {TIMES} times over, in records of {SIZES[0]} B to "
        f"{SIZES[-1] // 1_000} kB:",
        "",
        "| tenth | MB/s | the file, times what is kept |",
        "|---|---|---|",
        *(
            f"| {n} | {speed / 1e6:.0f} | {size / retained:.2f} |"
            for n, (speed, size) in enumerate(tenths, 1)
        ),
        "",
        f"The last tenth ran at {last / first:.0%} of the first one's speed; the file is "
        f"{file / retained:.2f} times what is kept ({partition['bytes'] / retained:.2f} of it are batches; "
        f"{partition['earliest']:,} records expired).",
    ]
    return "\n".join(lines) + "\n"


async def _write(mesh: Mesh, data: Path, total: int, seed: int) -> tuple[float, int]:
    """Bytes a second, from the first record to the last receipt, and the file's size behind that."""
    rng = random.Random(seed)
    blocks = [os.urandom(size) for size in SIZES]
    kinds = [rng.choice(blocks) for _ in range(64)]
    lots = [[block] * rng.randrange(1, LOT_BYTES // len(block) + 2) for block in kinds]
    start, done, turn = time.perf_counter(), 0, 0
    async with mesh.producer(TOPIC, batch_bytes=BATCH_BYTES, in_flight=IN_FLIGHT) as out:
        while done < total:
            values = lots[turn % len(lots)]
            taken = out.send_many(values)
            done += taken * len(values[0])
            if taken < len(values):
                await out.ready()
            else:
                turn += 1
        await out.flush()
    took = time.perf_counter() - start
    return done / took, (data / "store" / "data.mdb").stat().st_size
