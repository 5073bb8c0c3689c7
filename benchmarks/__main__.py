"""`make bench`: what one peer does here, then three (`trio.py`), beside the raw loop in the same run; then
groups of consumers (`groups.py`), an outbox (`outboxes.py`), and a topic that is written over and over
(`churn.py`).

Each figure is the median of several rounds in which both sides take turns, so that a busy machine slows both.
One producer process, full sync, encrypted, one peer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import meshq
from benchmarks import churn, groups, outboxes, trio
from benchmarks.processes import cpu_s, memory_mib, one_peer, percentile, wait_for
from benchmarks.publishing import BATCH_BYTES, IN_FLIGHT, publish_each, publish_many
from benchmarks.raw import Client as RawClient
from meshq.client.mesh import Mesh

SIZES = (100, 1024)
IDLE_S = 10.0
REST_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one publishing round (about)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", choices=("one", "three", "groups", "outbox", "churn"), help="a part of it; all unless told"
    )
    parser.add_argument("--retained", type=int, default=256, help="MiB that the churned topic keeps")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    text = "# Benchmarks\n"
    if args.only in (None, "one"):
        with ExitStack() as stack:
            where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshq-bench-")))
            data, peer = stack.enter_context(one_peer(where))
            raw = stack.enter_context(_raw(where))
            text += asyncio.run(_run(data, peer, raw, args.seconds, args.rounds))
    if args.only in (None, "three"):
        text += asyncio.run(trio.run(args.seconds, args.rounds))
    if args.only in (None, "groups"):
        text += asyncio.run(groups.run(args.seconds, args.rounds))
    if args.only in (None, "outbox"):
        with tempfile.TemporaryDirectory(prefix="meshq-bench-") as place, one_peer(Path(place)) as (data, _):
            text += asyncio.run(outboxes.run(data, args.seconds, args.rounds))
    if args.only in (None, "churn"):
        with tempfile.TemporaryDirectory(prefix="meshq-bench-") as place, one_peer(Path(place)) as (data, _):
            text += asyncio.run(churn.run(data, args.retained << 20))
    print(text)
    if args.write:
        args.write.write_text(text)


async def _run(data: Path, peer: subprocess.Popen[bytes], raw: RawClient, seconds: float, rounds: int) -> str:
    lines = [
        "",
        f"`make bench`: one peer, one producer process, {os.cpu_count()} cores shared by all; median of",
        f"{rounds} rounds in which both sides take turns, with batches of {BATCH_BYTES // 1024} KiB and",
        f"{IN_FLIGHT} of them in flight on both sides.",
        "The raw loop moves the same bytes through ZeroMQ CURVE into LMDB with the same syncs and no logic.",
        "",
        "| what | meshq | raw loop | ratio |",
        "|---|---|---|---|",
    ]
    lines.append(_idle(peer))
    async with meshq.connect(data=data) as mesh:
        for size in SIZES:
            lines += await _publishing(mesh, raw, size, seconds, rounds)
        lines.append(await _catch_up(mesh, raw, rounds))
        lines += await _latency(mesh, raw, rounds)
    return "\n".join(lines) + "\n"


async def _publishing(mesh: Mesh, raw: RawClient, size: int, seconds: float, rounds: int) -> list[str]:
    topic = f"bench.publish{size}"
    value = os.urandom(size)
    per_batch = BATCH_BYTES // (size + 8)  # what the encoding adds to a record is about that
    frame = os.urandom(BATCH_BYTES)
    count = max(4, int(seconds * 80e6 / BATCH_BYTES))
    many, each, theirs = [], [], []
    for _ in range(rounds):
        many.append(await publish_many(mesh, topic, value, count * per_batch))
        theirs.append(raw.publish(frame, count=count, in_flight=IN_FLIGHT) / (count * per_batch))
        each.append(await publish_each(mesh, topic, value, count * per_batch))
    other = 1 / statistics.median(theirs)
    rows = []
    for how, found in (("`send_many`", many), ("`send` for each", each)):
        mine = 1 / statistics.median(found)
        rows.append(
            f"| durable publish, {size} B, {how} | {mine:,.0f} records/s ({mine * size / 1e6:.0f} MB/s) "
            f"| {other:,.0f} records/s ({other * size / 1e6:.0f} MB/s) | {mine / other:.2f} |"
        )
    return rows


async def _catch_up(mesh: Mesh, raw: RawClient, rounds: int) -> str:
    shown = await mesh.ask("topic.show", {"topic": "bench.publish100"})
    total = sum(p["end"] for p in shown["partition"])
    wanted = min(total, 2_000_000)
    ours, theirs = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        count = 0
        async with mesh.subscribe("bench.publish100", start="earliest") as records:
            async for _ in records:
                count += 1
                if count == wanted:
                    break
        ours.append((time.perf_counter() - start) / wanted)
        took, size = raw.read()
        theirs.append(took / size * 108)
    mine, other = 1 / statistics.median(ours), 1 / statistics.median(theirs)
    return (
        f"| catch-up reading, 100 B records | {mine:,.0f} records/s | {other:,.0f} records/s (never decoded) "
        f"| {mine / other:.2f} |"
    )


async def _latency(mesh: Mesh, raw: RawClient, rounds: int) -> list[str]:
    value = os.urandom(100)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        for _ in range(200):
            start = time.perf_counter()
            await mesh.publish("bench.latency", value)
            ours.append(time.perf_counter() - start)
        theirs += raw.latencies(value, count=200)
    rows = []
    for name, at in (("p50", 50), ("p99", 99)):
        mine, other = percentile(ours, at) * 1e3, percentile(theirs, at) * 1e3
        rows.append(
            f"| one publish at a time, {name} | {mine:.2f} ms | {other:.2f} ms | {mine / other:.2f} "
            f"(+{mine - other:.2f} ms) |"
        )
    return rows


def _idle(peer: subprocess.Popen[bytes]) -> str:
    time.sleep(REST_S)
    before, start = cpu_s(peer.pid), time.perf_counter()
    time.sleep(IDLE_S)
    share = (cpu_s(peer.pid) - before) / (time.perf_counter() - start)
    mib = memory_mib(peer.pid)
    return (
        f"| an idle peer, {IDLE_S:.0f} s, {REST_S:.0f} s after its start "
        f"| {share:.2%} of a core, {mib['VmRSS']:.0f} MiB resident, {mib['RssAnon']:.0f} MiB of it anonymous "
        "| | |"
    )


@contextmanager
def _raw(where: Path) -> Iterator[RawClient]:
    ready = where / "raw.json"
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.raw", str(ready)])
    try:
        wait_for(ready, server)
        client = RawClient(ready)
        try:
            yield client
        finally:
            client.close()
    finally:
        server.wait(10)


if __name__ == "__main__":
    main()
