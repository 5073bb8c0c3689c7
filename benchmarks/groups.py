"""Groups: what it costs that the mesh keeps the place, beside plain reading of the same records in turns.

Three peers on this machine, records of 100 B that are all there before anybody reads them (catching up), and
then some that come at a steady pace (end to end). A queue group is worked on by two processes, which
acknowledge each record by itself; `python -m benchmarks.groups DATA TOPIC GROUP` is one of them.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import meshq
from benchmarks.processes import percentile
from benchmarks.publishing import publish_many
from benchmarks.trio import all_led, three
from meshq.client.mesh import Mesh

TOPIC: Final = "bench.groups"
PARTITIONS: Final = 8
SIZE: Final = 100
ACK_EVERY: Final = 1_000  # in the ordered group: one acknowledgement stands for all before it
TOLD_EVERY: Final = 500  # records; a consumer of the queue group says how far it is
CONSUMERS: Final = 2
PACED: Final = 1_000  # records a second
WAIT_S: Final = 120.0
Read = Callable[[], Awaitable[float]]  # records a second


async def run(seconds: float, rounds: int) -> str:
    count = int(seconds * 400_000)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="meshq-bench-") as place, three(Path(place)) as peers:
        data = peers.data(0)
        async with meshq.connect(data=data) as mesh:
            await all_led(mesh)
            await mesh.ask("topic.create", {"topic": TOPIC, "partitions": PARTITIONS})
            await publish_many(mesh, TOPIC, os.urandom(SIZE), count)
            for n in range(rounds):
                parts: dict[str, Read] = {
                    "plain": lambda: _plain(mesh, count),
                    "ordered": lambda n=n: _ordered(mesh, f"ordered{n}", count),  # type: ignore[misc]
                    "queue": lambda n=n: _queue(data, f"queue{n}", count // 4),  # type: ignore[misc]
                }
                for what, read in parts.items():
                    found.setdefault(what, []).append(await read())
            times = await _paced(mesh, seconds)
    median = {what: statistics.median(rates) for what, rates in found.items()}
    plain = median["plain"]
    lines = [
        "",
        f"Three peers, {os.cpu_count()} cores shared by all, {PARTITIONS} partitions, records of {SIZE} B; "
        f"median of {rounds} rounds in turns:",
        "",
        "| what | records/s | beside plain reading |",
        "|---|---|---|",
        f"| catching up without a group | {plain:,.0f} | |",
        f"| an ordered group of one member, an `ack` every {ACK_EVERY:,} | {median['ordered']:,.0f} "
        f"| {median['ordered'] / plain:.2f} |",
        f"| a queue group of {CONSUMERS} processes, an `ack` each | {median['queue']:,.0f} "
        f"| {median['queue'] / plain:.2f} |",
        "",
        f"End to end in a queue group at {PACED:,} records/s: p50 {percentile(times, 50) * 1e3:.2f} ms, p99 "
        f"{percentile(times, 99) * 1e3:.2f} ms.",
    ]
    return "\n".join(lines) + "\n"


async def _plain(mesh: Mesh, count: int) -> float:
    async with mesh.subscribe(TOPIC, start="earliest") as records:
        start, done = time.perf_counter(), 0
        async for _ in records:
            done += 1
            if done == count:
                break
        return count / (time.perf_counter() - start)


async def _ordered(mesh: Mesh, group: str, count: int) -> float:
    async with mesh.subscribe(TOPIC, group=group, mode="ordered") as records:
        start, done = time.perf_counter(), 0
        async for record in records:
            done += 1
            if done % ACK_EVERY == 0 or done == count:
                last = record.ack()  # type: ignore[attr-defined]
            if done == count:
                break
        await last
        return count / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------------ the queue
async def _queue(data: Path, group: str, count: int) -> float:
    """From when both have begun until so many records are acknowledged."""
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.groups", str(data), TOPIC, group, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(CONSUMERS)
    ]
    try:
        async with asyncio.timeout(WAIT_S):
            streams = [w.stdout for w in workers if w.stdout is not None]
            for stream in streams:
                await stream.readline()  # it has joined
            start, done = time.perf_counter(), 0
            async for told in _lines(streams):
                done += told
                if done >= count:
                    return done / (time.perf_counter() - start)
    finally:
        for w in workers:
            w.kill()
            await w.wait()
    raise RuntimeError("the consumers ended")


async def _lines(streams: list[asyncio.StreamReader]) -> AsyncIterator[int]:
    waiting = {asyncio.ensure_future(s.readline()): s for s in streams}
    try:
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for line in ready:
                stream = waiting.pop(line)
                if line.result():
                    yield int(line.result())
                    waiting[asyncio.ensure_future(stream.readline())] = stream
    finally:
        for line in waiting:
            line.cancel()


async def consume(data: str, topic: str, group: str) -> None:
    """Say how many more are acknowledged, line by line."""
    async with meshq.connect(data=data) as mesh, mesh.subscribe(topic, group=group) as records:
        await records.ready()
        print(0, flush=True)

        async def tell(last: Awaitable[None]) -> None:
            await last  # those before it were said before
            print(TOLD_EVERY, flush=True)

        done, telling = 0, set[asyncio.Task[None]]()
        async for record in records:
            settling = record.ack()  # type: ignore[attr-defined]
            done += 1
            if done % TOLD_EVERY == 0:
                task = asyncio.create_task(tell(settling))
                telling.add(task)
                task.add_done_callback(telling.discard)


async def _paced(mesh: Mesh, seconds: float) -> list[float]:
    """From before a record is published until a member of a queue group has it."""
    topic, times, wanted = "bench.paced", list[float](), int(PACED * seconds * 3)
    async with mesh.subscribe(topic, group="paced") as records, mesh.producer(topic, linger_ms=0) as out:
        await out.send(b"0")
        await records.ready()

        async def publish() -> None:
            start = time.perf_counter()
            for n in range(wanted):
                await asyncio.sleep(max(0.0, start + n / PACED - time.perf_counter()))
                out.send(b"%d" % time.perf_counter_ns())

        task = asyncio.create_task(publish())
        async with asyncio.timeout(WAIT_S):
            async for record in records:
                record.ack()  # type: ignore[attr-defined]
                if record.value != b"0":
                    times.append(time.perf_counter() - int(record.value) / 1e9)
                if len(times) == wanted:
                    break
        await task
    return times


if __name__ == "__main__":
    asyncio.run(consume(*sys.argv[1:]))
