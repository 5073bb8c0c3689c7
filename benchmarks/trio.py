"""Three peers on this machine, as a user would run them: throughput, latency, fail-over, many topics.

Full sync, encrypted, three copies of every record, a receipt when two disks have it; one producer process.
The raw loop beside it (`raw_three.py`) moves the same bytes into three LMDBs with the same syncs, in one run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import zmq

import meshq
from benchmarks.processes import cpu_s, free_port, memory_mib, percentile, wait_for
from benchmarks.publishing import BATCH_BYTES, IN_FLIGHT, publish_many
from benchmarks.raw_three import Client as RawClient
from meshq.client.mesh import Mesh

PEERS = 3
PARTITIONS = 8
IDLE_S = 10.0
REST_S = 5.0
KILLS = 10
LED_LEAST = 40  # slots of the 256 that the next victim leads
TOPICS = 100_000
CREATING = 256  # topics asked for at a time
PUBLISHING = 1_000  # of the many topics, written to at a time
WAIT_S = 60.0


async def run(seconds: float, rounds: int) -> str:
    lines = [
        "",
        f"Three peers, one producer process, {os.cpu_count()} cores shared by all; batches of "
        f"{BATCH_BYTES // 1024} KiB, up to {IN_FLIGHT}",
        f"in flight for each of {PARTITIONS} partitions, {IN_FLIGHT * PARTITIONS} in the raw loop. Its "
        "three processes each lead a third.",
        "",
        "| what | meshq | raw loop of three | ratio |",
        "|---|---|---|---|",
    ]
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshq-bench-")))
        peers = stack.enter_context(three(where))
        async with meshq.connect(data=peers.data(0)) as mesh:
            await all_led(mesh)
            lines += await _idle(peers)
            with _raw(where) as raw:
                for size in (100, 1024):
                    lines.append(await _publishing(mesh, raw, size, seconds, rounds))
                lines += await _latency(mesh, raw, rounds)
    for part in (_failing, _many_topics):
        with tempfile.TemporaryDirectory(prefix="meshq-bench-") as path, three(Path(path)) as peers:
            lines.append(await part(peers))
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ publishing
async def _publishing(mesh: Mesh, raw: RawClient, size: int, seconds: float, rounds: int) -> str:
    topic, value = f"bench.publish{size}", os.urandom(size)
    per_batch = BATCH_BYTES // (size + 8)
    frame, count = os.urandom(BATCH_BYTES), max(4, int(seconds * 50e6 / BATCH_BYTES))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(await publish_many(mesh, topic, value, count * per_batch))
        took = await asyncio.to_thread(raw.publish, frame, count=count, in_flight=IN_FLIGHT * PARTITIONS)
        theirs.append(took / (count * per_batch))
    mine, other = 1 / statistics.median(ours), 1 / statistics.median(theirs)
    return (
        f"| durable publish, {size} B, `send_many` | {mine:,.0f} records/s ({mine * size / 1e6:.0f} MB/s) "
        f"| {other:,.0f} records/s ({other * size / 1e6:.0f} MB/s) | {mine / other:.2f} |"
    )


async def _latency(mesh: Mesh, raw: RawClient, rounds: int) -> list[str]:
    value = os.urandom(100)
    ours, theirs = list[float](), list[float]()
    for _ in range(rounds):
        ours += await latencies(mesh, "bench.latency", value, 200)
        theirs += await asyncio.to_thread(raw.latencies, value, count=200)
    rows = []
    for name, at in (("p50", 50), ("p99", 99)):
        mine, other = percentile(ours, at) * 1e3, percentile(theirs, at) * 1e3
        rows.append(
            f"| one publish at a time, {name} | {mine:.2f} ms | {other:.2f} ms | {mine / other:.2f} "
            f"(+{mine - other:.2f} ms) |"
        )
    return rows


async def latencies(mesh: Mesh, topic: str, value: bytes, count: int) -> list[float]:
    found = []
    for _ in range(count):
        start = time.perf_counter()
        await mesh.publish(topic, value)
        found.append(time.perf_counter() - start)
    return found


async def _idle(peers: Three) -> list[str]:
    await asyncio.sleep(REST_S)
    pids = [p.pid for p in peers.running.values()]
    before, start = [cpu_s(pid) for pid in pids], time.perf_counter()
    await asyncio.sleep(IDLE_S)
    took = time.perf_counter() - start
    shares = ", ".join(f"{(cpu_s(pid) - b) / took:.2%}" for pid, b in zip(pids, before, strict=True))
    memory = ", ".join(f"{memory_mib(pid)['RssAnon']:.0f}" for pid in pids)
    return [f"| three idle peers, {IDLE_S:.0f} s | {shares} of a core, {memory} MiB anonymous | | |"]


# ------------------------------------------------------------------------------------------- fail-over
async def _failing(peers: Three) -> str:
    """From kill -9 of one peer until both others know who leads each slot that it led."""
    gaps, led = [], []
    for kill in range(KILLS):
        victim = kill % PEERS
        survivors = [n for n in range(PEERS) if n != victim]
        async with AsyncExitStack() as stack:
            meshes = [await stack.enter_async_context(meshq.connect(data=peers.data(n))) for n in survivors]
            for mesh in meshes:
                await all_led(mesh)
            led.append(await _led_by(meshes[0], victim))
            start = time.perf_counter()
            peers.kill(victim)
            took = await asyncio.gather(*(_until_none(mesh, victim, start) for mesh in meshes))
            gaps.append(max(took))
            peers.start(victim)
            for mesh in meshes:
                await _balanced(mesh)
    return (
        f"| {KILLS} kills of one of three, {min(led)} to {max(led)} of 256 slots led there: all led again "
        f"| p50 {percentile(gaps, 50):.2f} s, max {max(gaps):.2f} s | | |"
    )


async def _led_by(mesh: Mesh, peer: int) -> int:
    rows = await mesh.ask("peers")
    return sum(row["slots"] for row in rows if row["name"] == f"peer{peer + 1}")


async def _until_none(mesh: Mesh, victim: int, start: float) -> float:
    async with asyncio.timeout(WAIT_S):
        while await _led_by(mesh, victim):  # noqa: ASYNC110 it is another process
            await asyncio.sleep(0.005)
    return time.perf_counter() - start


async def _balanced(mesh: Mesh) -> None:
    """Leadership has come back to whoever was started again."""
    async with asyncio.timeout(WAIT_S):
        while min(row["slots"] for row in await mesh.ask("peers")) < LED_LEAST:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


# ----------------------------------------------------------------------------------------- many topics
async def _many_topics(peers: Three) -> str:
    async with meshq.connect(data=peers.data(0)) as mesh:
        await all_led(mesh)
        value = os.urandom(100)
        await latencies(mesh, "alone", value, 100)
        alone = await latencies(mesh, "alone", value, 500)
        before = [memory_mib(p.pid)["RssAnon"] for p in peers.running.values()]
        start = time.perf_counter()
        await _each(CREATING, lambda n: mesh.ask("topic.create", {"topic": f"many.t{n}", "partitions": 1}))
        created = time.perf_counter() - start
        start = time.perf_counter()
        await _each(PUBLISHING, lambda n: mesh.publish(f"many.t{n}", value))
        used = time.perf_counter() - start
        await asyncio.sleep(REST_S)
        grown = [
            memory_mib(p.pid)["RssAnon"] - was for p, was in zip(peers.running.values(), before, strict=True)
        ]
        await latencies(mesh, f"many.t{TOPICS // 2}", value, 100)
        among = await latencies(mesh, f"many.t{TOPICS // 2}", value, 500)
    return (
        f"| {TOPICS:,} topics: created in {created:.0f} s, a record each in {used:.0f} s "
        f"| each peer grew by {', '.join(f'{g:.0f}' for g in grown)} MiB; one publish p50 "
        f"{percentile(among, 50) * 1e3:.2f} ms, {percentile(alone, 50) * 1e3:.2f} ms with one topic | | |"
    )


async def _each(width: int, call: Any) -> None:
    numbers = iter(range(TOPICS))

    async def worker() -> None:
        for n in numbers:
            await call(n)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(worker())


# ------------------------------------------------------------------------------------------- processes
class Three:
    def __init__(self, where: Path) -> None:
        self.path = where / "mesh"
        self.base = free_port(PEERS)
        run = [sys.executable, "-m", "meshq", "init", "--peers", str(PEERS), "--out", self.path]
        subprocess.run([*run, "--port", str(self.base)], check=True, capture_output=True)
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def data(self, n: int) -> Path:
        return self.path / f"peer{n + 1}"

    def start(self, n: int) -> None:
        data = self.data(n)
        command = [sys.executable, "-m", "meshq", "up", "--data", data, "--bind", "127.0.0.1", "--no-mdns"]
        for i in range(PEERS):
            command += ["--seed", f"127.0.0.1:{self.base + 10 * i}"]
        with (self.path / f"peer{n + 1}.log").open("ab") as log:
            self.running[n] = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(data / "run.json", self.running[n])

    def kill(self, n: int) -> None:
        peer = self.running.pop(n)
        peer.send_signal(signal.SIGKILL)
        peer.wait()
        (self.data(n) / "run.json").unlink(missing_ok=True)


@contextmanager
def three(where: Path) -> Iterator[Three]:
    peers = Three(where)
    try:
        for n in range(PEERS):
            peers.start(n)
        yield peers
    finally:
        for peer in peers.running.values():
            peer.terminate()
        for peer in peers.running.values():
            peer.wait()


async def all_led(mesh: Mesh) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            status = await mesh.ask("status")
            if status["peers_reachable"] == PEERS and not status["slots"]["leaderless"]:
                return
            await asyncio.sleep(0.1)


@contextmanager
def _raw(where: Path) -> Iterator[RawClient]:
    public, secret = zmq.curve_keypair()
    base = free_port(PEERS)
    ports = [base + 10 * i for i in range(PEERS)]
    facts = json.dumps({"ports": ports, "public": public.decode(), "secret": secret.decode()})
    nodes = []
    try:
        for i in range(PEERS):
            ready = where / f"raw{i}"
            nodes.append(
                subprocess.Popen([sys.executable, "-m", "benchmarks.raw_three", ready, str(i), facts])
            )
            wait_for(ready, nodes[-1])
        client = RawClient(ports, public)
        try:
            yield client
        finally:
            client.close()
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
