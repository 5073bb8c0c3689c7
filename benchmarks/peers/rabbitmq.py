"""RabbitMQ: three nodes; quorum queues with the client aio-pika, streams with rstream.

A quorum queue syncs on a majority before it confirms; a stream confirms what a majority has in memory, and
never syncs. Records leave a quorum queue when they are acknowledged, so nobody reads one twice: catch-up is
its backlog read by one consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.system import HOST, Node, System, Unable, free_ports, until

try:
    import aio_pika
    import rstream
except ImportError:  # told by `start`
    aio_pika = None  # type: ignore[assignment]

ERLANG = Path("/usr/lib/rabbitmq/bin")  # where Debian has the scripts that run as whoever calls them
WINDOW = 2_000  # publishes on their way at a time
BATCH = 500


class _Rabbit(System):
    async def start(self) -> None:
        server = ERLANG / "rabbitmq-server"
        if aio_pika is None or not server.exists():
            raise Unable("rabbitmq-server, aio-pika or rstream is missing")
        base = self._base = free_ports(14)
        epmd = base + 12
        self._env = {
            "ERL_EPMD_PORT": str(epmd), "HOME": str(self.where), "RABBITMQ_MNESIA_BASE": str(self.where),
            "RABBITMQ_LOG_BASE": str(self.where),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.where / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        (self.where / "plugins").write_text("[rabbitmq_stream].\n")
        (self.where / ".erlang.cookie").write_text("BENCHMARK")
        (self.where / ".erlang.cookie").chmod(0o400)
        names = shutil.which("epmd") or "epmd"
        self.nodes.append(Node([names, "-port", str(epmd)], self.where / "epmd.log", {}, self.where))
        self.nodes[-1].start()
        for i in range(3):
            config = self.where / f"rabbit{i}.conf"
            config.write_text(self._config(i))
            env = {
                "RABBITMQ_NODENAME": f"rabbit{i}@localhost", "RABBITMQ_CONFIG_FILE": str(config),
                "RABBITMQ_DIST_PORT": str(base + 6 + i), "RABBITMQ_NODE_PORT": str(base + i),
            }  # fmt: skip
            self.nodes.append(Node([server], self.where / f"rabbit{i}.log", self._env | env, self.where))
            self.nodes[-1].start()
            await until(lambda i=i: self._ctl(i, "await_startup"), f"node {i}")  # type: ignore[misc]
        self.version = self._ctl(0, "version").strip()
        for i in (1, 2):
            for words in (["stop_app"], ["join_cluster", "rabbit0@localhost"], ["start_app"]):
                await asyncio.to_thread(self._ctl, i, *words)
        # A queue's leader is at the node where it is declared. The client is at another one: it knows one
        # address, and what is measured of a kill is how the others go on.
        self._declaring = await aio_pika.connect_robust(host=HOST, port=base, reconnect_interval=0.2)
        self._connection = await aio_pika.connect_robust(host=HOST, port=base + 1, reconnect_interval=0.2)
        self._channel = await self._connection.channel(publisher_confirms=True)

    async def disconnect(self) -> None:
        if hasattr(self, "_connection"):
            await self._connection.close()
            await self._declaring.close()

    def _ctl(self, node: int, *words: str) -> str:
        command = [f"{ERLANG}/rabbitmqctl", "--quiet", "-n", f"rabbit{node}@localhost", *words]
        env = os.environ | self._env
        return (
            subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=60, check=True, cwd=self.where
            ).stdout
            or "done"
        )

    def _config(self, i: int) -> str:
        return f"""
listeners.tcp.default = {HOST}:{self._base + i}
stream.listeners.tcp.1 = {HOST}:{self._base + 3 + i}
stream.advertised_host = {HOST}
stream.advertised_port = {self._base + 3 + i}
vm_memory_high_watermark.relative = 0.5
disk_free_limit.absolute = 50MB
log.file.level = warning
"""


class RabbitQuorum(_Rabbit):
    name = "RabbitMQ quorum queues"
    settings = "publisher confirms, up to 2,000 on their way, the client at a node that does not lead, no TLS"
    promised = "on two of three disks (fsync)"

    async def leader_of(self, topic: str) -> int:
        said = await asyncio.to_thread(self._ctl, 0, "list_queues", "name", "leader", "--formatter=csv")
        line = next(line for line in said.splitlines() if f'"{topic}"' in line)
        return int(line.split("rabbit")[1][0]) + 1

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
        channel = await self._declaring.channel()
        await channel.declare_queue(topic, durable=True, arguments=arguments)
        await channel.close()

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        window = asyncio.Semaphore(WINDOW)
        exchange, message = self._channel.default_exchange, aio_pika.Message(value, delivery_mode=2)

        async def one() -> None:
            try:
                await exchange.publish(message, routing_key=topic)
            finally:
                window.release()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                await window.acquire()
                tasks.create_task(one())

    async def publish(self, topic: str, value: bytes) -> None:
        message = aio_pika.Message(value, delivery_mode=2)
        await self._channel.default_exchange.publish(message, routing_key=topic, timeout=1)

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        await self._consume(topic, count, take, 1)

    async def work(self, topic: str, count: int) -> None:
        await self._consume(topic, count, lambda _: None, 2)

    async def _consume(self, topic: str, count: int, take: Callable[[bytes], None], consumers: int) -> None:
        done, left = asyncio.Event(), count

        async def told(message: Any) -> None:
            nonlocal left
            take(message.body)
            await message.ack()
            left -= 1
            if left == 0:
                done.set()

        channels = [await self._connection.channel() for _ in range(consumers)]
        for channel in channels:
            await channel.set_qos(prefetch_count=1_000)
            queue = await channel.get_queue(topic)
            await queue.consume(told)
        await done.wait()
        for channel in channels:
            await channel.close()

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        channel = await self._connection.channel()
        queue = await channel.get_queue(topic)

        async def told(message: Any) -> None:
            take(message.body)
            await message.ack()

        await queue.consume(told)
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await channel.close()


class RabbitStreams(_Rabbit):
    name = "RabbitMQ streams"
    settings = "three replicas, confirms, batches of 500, up to 8 of them on their way, no TLS"
    promised = "in the memory of two of three hosts; never synced"

    async def start(self) -> None:
        await super().start()
        self._producer = self._new_producer()
        await self._producer.start()

    def _new_producer(self) -> Any:
        return rstream.Producer(host=HOST, port=self._base + 3, username="guest", password="guest")

    async def disconnect(self) -> None:
        if hasattr(self, "_producer"):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._producer.close(), 5)
        await super().disconnect()

    async def leader_of(self, topic: str) -> int:
        raise Unable("its client does not find the new leader by itself in the time of this test")

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        await self._producer.create_stream(topic, exists_ok=True)

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        done, left = asyncio.Event(), count
        window = asyncio.Semaphore(8 * BATCH)

        async def told(status: Any) -> None:
            nonlocal left
            if not status.is_confirmed:
                raise RuntimeError("not confirmed")
            window.release()
            left -= 1
            if left == 0:
                done.set()

        name = f"many-{topic}-{count}-{id(done)}"
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            for _ in range(size):
                await window.acquire()
            batch = [rstream.AMQPMessage(body=value) for _ in range(size)]
            await self._producer.send_batch(topic, batch, publisher_name=name, on_publish_confirm=told)
        await done.wait()

    async def publish(self, topic: str, value: bytes) -> None:
        message = rstream.AMQPMessage(body=value)
        await self._producer.send_wait(topic, message, timeout=1)

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        done, left = asyncio.Event(), count

        async def told(message: Any, _context: Any) -> None:
            nonlocal left
            take(bytes(message.body))
            left -= 1
            if left == 0:
                done.set()

        consumer = rstream.Consumer(host=HOST, port=self._base + 3, username="guest", password="guest")
        await consumer.start()
        first = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST, None)
        await consumer.subscribe(
            topic, told, offset_specification=first, decoder=rstream.amqp_decoder, initial_credit=50
        )
        await done.wait()
        await consumer.close()

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        async def told(message: Any, _context: Any) -> None:
            take(bytes(message.body))

        consumer = rstream.Consumer(host=HOST, port=self._base + 3, username="guest", password="guest")
        await consumer.start()
        then = rstream.ConsumerOffsetSpecification(rstream.OffsetType.NEXT, None)
        await consumer.subscribe(topic, told, offset_specification=then, decoder=rstream.amqp_decoder)
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await consumer.close()

    async def work(self, topic: str, count: int) -> None:
        raise Unable("a stream has no acknowledgement of each record")
