"""`make bench`: what one peer does here, beside the raw loop in the same run.

Each figure is the median of several rounds in which both sides take turns, so that a busy machine slows both.
One producer process, full sync, encrypted, one peer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import meshq
from benchmarks.raw import Client as RawClient
from meshq.client.mesh import Mesh

BATCH_BYTES = 256 * 1024
IN_FLIGHT = 16
SIZES = (100, 1024)
IDLE_S = 10.0
REST_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one publishing round (about)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshq-bench-")))
        data, peer = stack.enter_context(_peer(where))
        raw = stack.enter_context(_raw(where))
        text = asyncio.run(_run(data, peer, raw, args.seconds, args.rounds))
    print(text)
    if args.write:
        args.write.write_text(text)


async def _run(data: Path, peer: subprocess.Popen[bytes], raw: RawClient, seconds: float, rounds: int) -> str:
    lines = [
        "# Benchmarks",
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
        many.append(await _publish_many(mesh, topic, value, count * per_batch))
        theirs.append(raw.publish(frame, count=count, in_flight=IN_FLIGHT) / (count * per_batch))
        each.append(await _publish_each(mesh, topic, value, count * per_batch))
    other = 1 / statistics.median(theirs)
    rows = []
    for how, found in (("`send_many`", many), ("`send` for each", each)):
        mine = 1 / statistics.median(found)
        rows.append(
            f"| durable publish, {size} B, {how} | {mine:,.0f} records/s ({mine * size / 1e6:.0f} MB/s) "
            f"| {other:,.0f} records/s ({other * size / 1e6:.0f} MB/s) | {mine / other:.2f} |"
        )
    return rows


async def _publish_many(mesh: Mesh, topic: str, value: bytes, count: int) -> float:
    """Seconds a record, from the first to the last receipt."""
    values = [value] * 4096
    async with mesh.producer(topic, batch_bytes=BATCH_BYTES, in_flight=IN_FLIGHT) as out:
        await out.send(value)
        start = time.perf_counter()
        done = 0
        while done < count:
            taken = out.send_many(values)
            done += taken
            if taken < len(values):
                await out.ready()
        await out.flush()
        return (time.perf_counter() - start) / done


async def _publish_each(mesh: Mesh, topic: str, value: bytes, count: int) -> float:
    async with mesh.producer(topic, batch_bytes=BATCH_BYTES, in_flight=IN_FLIGHT) as out:
        await out.send(value)
        start = time.perf_counter()
        send, done = out.send, 0
        while done < count:
            try:
                while done < count:
                    send(value)
                    done += 1
            except meshq.Overloaded:
                await out.ready()
        await out.flush()
        return (time.perf_counter() - start) / count


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
        mine, other = _percentile(ours, at) * 1e3, _percentile(theirs, at) * 1e3
        rows.append(
            f"| one publish at a time, {name} | {mine:.2f} ms | {other:.2f} ms | {mine / other:.2f} "
            f"(+{mine - other:.2f} ms) |"
        )
    return rows


def _percentile(values: list[float], at: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * at // 100)]


def _idle(peer: subprocess.Popen[bytes]) -> str:
    time.sleep(REST_S)
    before, start = _cpu_s(peer.pid), time.perf_counter()
    time.sleep(IDLE_S)
    share = (_cpu_s(peer.pid) - before) / (time.perf_counter() - start)
    status = [line.split() for line in Path(f"/proc/{peer.pid}/status").read_text().splitlines()]
    mib = {
        words[0].rstrip(":"): int(words[1]) / 1024 for words in status if words[0] in ("VmRSS:", "RssAnon:")
    }
    return (
        f"| an idle peer, {IDLE_S:.0f} s, {REST_S:.0f} s after its start "
        f"| {share:.2%} of a core, {mib['VmRSS']:.0f} MiB resident, {mib['RssAnon']:.0f} MiB of it anonymous "
        "| | |"
    )


def _cpu_s(pid: int) -> float:
    """On a core, all threads together, to the nanosecond: ticks of 10 ms would be the figure itself."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def _peer(where: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    data = where / "peer"
    run = [sys.executable, "-m", "meshq"]
    subprocess.run([*run, "init", "--data", data], check=True, capture_output=True)
    command = [*run, "up", "--data", data, "--bind", "127.0.0.1", "--port", str(_free_port()), "--no-mdns"]
    peer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(data / "admin.meshq", peer)
        yield data, peer
    finally:
        peer.terminate()
        peer.wait()


@contextmanager
def _raw(where: Path) -> Iterator[RawClient]:
    ready = where / "raw.json"
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.raw", str(ready)])
    try:
        _wait_for(ready, server)
        client = RawClient(ready)
        try:
            yield client
        finally:
            client.close()
    finally:
        server.wait(10)


def _free_port() -> int:
    """A base port: this one and the five above it are free."""
    for base in range(17_700, 19_000, 10):
        try:
            for offset in range(6):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise SystemExit("no free ports between 17700 and 19000")


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args} did not get ready")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
