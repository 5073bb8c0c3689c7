"""A siege: three real peers, an honest client at work, and an attack that comes and goes.

What is compared is within one run: the honest client's publishes in the calm before and after, and under the
attack; the peers' memory before it and at its worst during it; and what the peers say they refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meshq
from meshq.security.credentials import Credentials
from tests.hostile.attacks import TOPIC
from tests.peers import HOST, Peer, environment, mesh_of

RATE = 50  # records a second of the honest client
SAMPLE_S = 0.1


@dataclass
class Phase:
    """`seconds`: of each publish; `read`: records that the honest subscriber got."""

    seconds: list[float] = field(default_factory=list)
    read: int = 0
    memory: list[float] = field(default_factory=list)  # MiB that each peer has grown by at the worst

    @property
    def p99_ms(self) -> float:
        return sorted(self.seconds)[len(self.seconds) * 99 // 100] * 1000


class Siege:
    def __init__(self, peers: list[Peer], mesh: meshq.Mesh, facts: dict[str, Any]) -> None:
        self.peers, self._mesh, self._facts = peers, mesh, facts
        self._read = 0

    async def calm(self, seconds: float) -> Phase:
        return await self._work(seconds)

    async def under(self, attack: str, seconds: float) -> Phase:
        """The attack is begun, and ended after so long; the client works all that time."""
        before = self.memory_mib()
        with _attacking(attack, self._facts) as attacker:
            phase = await self._work(seconds, before)
            assert attacker.poll() is None, f"the attack ended by itself: {attacker.returncode}"
        return phase

    def memory_mib(self) -> list[float]:
        return [_anonymous_mib(peer) for peer in self.peers]

    def counters(self) -> dict[str, int]:
        """What all peers have counted, added up."""
        total: dict[str, int] = {}
        for peer in self.peers:
            found = json.loads(peer.meshq("status", "--json").ok())
            for name, count in found["counters"].items():
                total[name] = total.get(name, 0) + count
        return total

    async def _work(self, seconds: float, before: list[float] | None = None) -> Phase:
        phase, read, end = Phase(memory=[0.0] * len(self.peers)), self._read, time.monotonic() + seconds
        watching = asyncio.create_task(self._watch(before, phase)) if before else None
        due = time.monotonic()
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            start = time.perf_counter()
            await self._mesh.publish("app.orders", b"x" * 100, timeout=20)
            phase.seconds.append(time.perf_counter() - start)
            due = max(due + 1 / RATE, time.monotonic())
        if watching is not None:
            watching.cancel()
        async with asyncio.timeout(20):
            while self._read - read < len(phase.seconds):  # noqa: ASYNC110 the reader runs beside
                await asyncio.sleep(0.01)
        phase.read = self._read - read
        return phase

    async def _watch(self, before: list[float], phase: Phase) -> None:
        while True:
            grown = [now - was for now, was in zip(self.memory_mib(), before, strict=True)]
            phase.memory = list(map(max, phase.memory, grown))
            await asyncio.sleep(SAMPLE_S)

    async def keep_reading(self, records: Any) -> None:
        async for _ in records:
            self._read += 1


@contextlib.asynccontextmanager
async def siege(where: Path, mib: int = 100) -> AsyncIterator[Siege]:
    """The peers up, the honest client at work, and the attacker's own topic filled with so much."""
    with mesh_of(where, 3) as peers:
        app = _client(peers[0], where, "app", "app.#")
        mallory = _client(peers[0], where, "mallory", "mallory.#")
        async with meshq.connect(credentials=mallory) as mesh:
            facts = await _facts(mallory, mesh, peers, mib)
        async with meshq.connect(credentials=app) as mesh:
            await mesh.publish("app.orders", b"first")
            async with mesh.subscribe("app.orders", start="latest") as records:
                await records.ready(10)
                found = Siege(peers, mesh, facts)
                reading = asyncio.create_task(found.keep_reading(records))
                try:
                    yield found
                finally:
                    reading.cancel()


def _client(peer: Peer, where: Path, name: str, pattern: str) -> Path:
    file = where / f"{name}.meshq"
    peer.meshq("client", "add", name, "--publish", pattern, "--subscribe", pattern, "--out", file).ok()
    return file


async def _facts(file: Path, mesh: meshq.Mesh, peers: list[Peer], mib: int) -> dict[str, Any]:
    peers[0].meshq("topic", "create", TOPIC, "--partitions", 8).ok()
    async with mesh.producer(TOPIC) as out:
        for _ in range(mib * 4):
            await out.ready()
            out.send(bytes(256 * 1024))
        await out.flush()
    info = await mesh._driver.ask(lambda t, d: meshq.client.facts.TopicWanted(t, TOPIC, d), timeout=10)
    keys = Credentials.load(file)
    return {
        "peers": [
            {"host": HOST, "port": peer.port, "server_key": _of(keys, peer.port).hex()} for peer in peers
        ],
        "public": keys.public_key.hex(),
        "secret": keys.secret_key.hex(),
        "topic_id": info.topic_id.hex(),
        "topic_version": info.version,
    }


def _of(keys: Credentials, port: int) -> bytes:
    return next(p.server_key for p in keys.peers if p.requests.endswith(f":{port}"))


def _anonymous_mib(peer: Peer) -> float:
    assert peer.process is not None
    status = Path(f"/proc/{peer.process.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


@contextlib.contextmanager
def _attacking(name: str, facts: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.hostile.attacks", name, json.dumps(facts)]
    attacker = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    try:
        assert attacker.stdout is not None and attacker.stdout.readline() == b"ready\n"
        yield attacker
    finally:
        attacker.kill()
        attacker.wait()
        attacker.stdout.close() if attacker.stdout else None
