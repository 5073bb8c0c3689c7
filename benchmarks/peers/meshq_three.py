"""meshq: three peers as `meshq init --peers 3` makes them; its own asyncio client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import meshq
from benchmarks.peers.system import HOST, Node, System, free_ports, until
from benchmarks.publishing import BATCH_BYTES, IN_FLIGHT
from meshq.client.mesh import Mesh

RUN = (sys.executable, "-m", "meshq")


class Meshq(System):
    name = "meshq"
    settings = "three peers, `acks=quorum`, everything encrypted; 8 partitions in bulk"
    promised = "on two of three disks (fsync), in order, once"
    version = version("meshq")
    partitions = 8
    mesh: Mesh | None = None

    async def start(self) -> None:
        base = free_ports(30)
        out = self.where / "mesh"
        made = await asyncio.create_subprocess_exec(
            *RUN, "init", "--peers", "3", "--out", out, "--port", str(base),
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        if await made.wait():
            raise RuntimeError("meshq init failed")
        seeds = [word for i in range(3) for word in ("--seed", f"{HOST}:{base + 10 * i}")]
        for i in range(1, 4):
            command = [*RUN, "up", "--data", out / f"peer{i}", "--bind", HOST, "--no-mdns", *seeds]
            self.nodes.append(Node(command, self.where / f"peer{i}.log", {}, Path.cwd()))
            self.nodes[-1].start()
        await until(lambda: all((out / f"peer{i}" / "admin.meshq").exists() for i in (1, 2, 3)), "three up")
        await until((out / "peer1" / "run.json").exists, "the peer is up")
        self.mesh = await meshq.connect(data=out / "peer1").__aenter__()
        async with asyncio.timeout(60):
            while True:
                status = await self.mesh.ask("status")
                if status["peers_reachable"] == 3 and not status["slots"]["leaderless"]:
                    break
                await asyncio.sleep(0.1)

    async def disconnect(self) -> None:
        if self.mesh is not None:
            await self.mesh.__aexit__(None, None, None)

    async def leader_of(self, topic: str) -> int:
        shown = await self._client.ask("topic.show", {"topic": topic})
        return int(shown["partition"][0]["owner"].removeprefix("peer")) - 1

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        partitions = self.partitions if bulk else 1
        await self._client.ask("topic.create", {"topic": topic, "partitions": partitions})

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        values = [value] * 4096
        async with self._client.producer(topic, batch_bytes=BATCH_BYTES, in_flight=IN_FLIGHT) as out:
            while count:
                wanted = values if count >= len(values) else values[:count]
                taken = out.send_many(wanted)
                count -= taken
                if taken < len(wanted):
                    await out.ready()
            await out.flush()

    async def publish(self, topic: str, value: bytes) -> None:
        await self._client.publish(topic, value, timeout=2)

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        async with self._client.subscribe(topic, start="earliest") as records:
            async for record in records:
                take(record.value)
                count -= 1
                if not count:
                    return

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        async with self._client.subscribe(topic) as records:
            await records.ready()
            ready.set()
            async for record in records:
                take(record.value)

    async def work(self, topic: str, count: int) -> None:
        done = asyncio.Event()
        left = count

        async def consume() -> None:
            nonlocal left
            how = {"group": "bench", "credit_records": 2_000}
            async with self._client.subscribe(topic, **how) as records:  # type: ignore[call-overload]
                async for record in records:
                    record.ack()
                    left -= 1
                    if left <= 0:
                        done.set()

        workers = [asyncio.create_task(consume()) for _ in range(2)]
        await done.wait()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    @property
    def _client(self) -> Mesh:
        assert self.mesh is not None
        return self.mesh
