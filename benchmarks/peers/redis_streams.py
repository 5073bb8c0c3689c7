"""Redis Streams: a server that syncs its append-only file at every write, two replicas, the client redis-py.

`WAIT 1` after each write waits until one replica has it in memory. Nobody takes over when the server is
killed: for that Redis needs Sentinel or its cluster, and either may lose what was acknowledged.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from typing import Any

from benchmarks.peers.system import HOST, Node, System, Unable, free_ports, output

try:
    import redis.asyncio as redis
except ImportError:  # told by `start`
    redis = None  # type: ignore[assignment]

PIPELINE = 500


class Redis(System):
    name = "Redis Streams"
    settings = "`appendfsync always`, `WAIT 1`, two replicas, no TLS; pipelines of 500"
    promised = "on one disk (fsync) and in the memory of one replica"

    async def start(self) -> None:
        program = shutil.which("redis-server")
        if redis is None or program is None:
            raise Unable("redis-server or redis-py is missing")
        self.version = output(program, "--version").split("v=")[1].split()[0]
        base = free_ports(3)
        for i in range(3):
            data = self.where / f"redis{i}"
            data.mkdir()
            command = [
                program, "--port", str(base + i), "--bind", HOST, "--dir", data, "--save", "", "--appendonly",
                "yes", "--appendfsync", "always",
            ]  # fmt: skip
            command += ["--replicaof", f"{HOST} {base}"] if i else []
            self.nodes.append(Node(command, self.where / f"redis{i}.log", {}, self.where))
            self.nodes[-1].start()
        pool = redis.BlockingConnectionPool(host=HOST, port=base, max_connections=64, timeout=10)
        self._client = redis.Redis.from_pool(pool)

        async def together() -> None:
            while True:
                try:
                    if (await self._client.info("replication"))["connected_slaves"] == 2:
                        return
                except redis.RedisError:
                    pass
                await asyncio.sleep(0.2)

        await asyncio.wait_for(together(), 60)
        async with asyncio.timeout(60):
            await self._client.xadd("warm", {"v": b""})
            while await self._client.wait(2, 1_000) < 2:
                pass

    async def disconnect(self) -> None:
        if hasattr(self, "_client"):
            await self._client.aclose()

    async def leader_of(self, topic: str) -> int:
        raise Unable("nobody takes over by itself")

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        """A stream is made by its first record."""

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        left = list(range(0, count, PIPELINE))

        async def worker() -> None:
            while left:
                left.pop()
                async with self._client.pipeline(transaction=False) as pipe:
                    for _ in range(PIPELINE):
                        pipe.xadd(topic, {"v": value})
                    pipe.execute_command("WAIT", 1, 10_000)
                    _check(await pipe.execute())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(worker())

    async def publish(self, topic: str, value: bytes) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.xadd(topic, {"v": value})
            pipe.execute_command("WAIT", 1, 1_000)
            _check(await pipe.execute())

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        last = b"0"
        while count > 0:
            for at, fields in await self._client.xrange(topic, b"(" + last, count=min(count, 5_000)):
                take(fields[b"v"])
                last = at
                count -= 1

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        last: Any = b"0"
        ready.set()
        while True:
            for _, records in await self._client.xread({topic: last}, block=1_000, count=1_000):
                for at, fields in records:
                    take(fields[b"v"])
                    last = at

    async def work(self, topic: str, count: int) -> None:
        await self._client.xgroup_create(topic, "bench", id="0", mkstream=True)
        left = count

        async def consume(name: str) -> None:
            nonlocal left
            while left > 0:
                got = await self._client.xreadgroup("bench", name, {topic: ">"}, count=PIPELINE, block=200)
                for _, records in got:
                    async with self._client.pipeline(transaction=False) as pipe:
                        for at, _ in records:
                            pipe.xack(topic, "bench", at)
                        await pipe.execute()
                    left -= len(records)

        await asyncio.gather(consume("one"), consume("two"))


def _check(answers: list[Any]) -> None:
    if answers[-1] < 1:
        raise TimeoutError("no replica has it")
