"""Apache Kafka: three nodes that are broker and controller (KRaft), the client confluent-kafka.

Once as it comes, where a broker acknowledges what it has not synced, and once with `flush.messages=1`, where
it syncs before.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.system import HOST, Node, System, Unable, free_ports, until

try:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic
except ImportError:  # told by `start`
    Producer = None

JARS = Path(__file__).resolve().parent.parent / "out" / "kafka"
HEAP = "512m"


class Kafka(System):
    name = "Kafka"
    settings = "KRaft, `acks=all`, `min.insync.replicas=2`, idempotent, no TLS; 8 partitions in bulk"
    promised = "in the memory of two of three hosts; synced when the kernel does"
    partitions = 8
    topic_config: dict[str, str] = {}  # noqa: RUF012 never changed

    async def start(self) -> None:
        jars = sorted(JARS.glob("*.jar"))
        if Producer is None or not jars:
            raise Unable("confluent-kafka or the broker's jars are missing")
        self.version = next(j.stem.rpartition("-")[2] for j in jars if j.name.startswith("kafka_2.13"))
        base, cluster = free_ports(6), _id()
        directories = [_id() for _ in range(3)]
        for i in range(3):
            data = self.where / f"kafka{i}"
            data.mkdir()
            (data / "server.properties").write_text(_properties(i, base, data))
            java = ["java", f"-Xmx{HEAP}", f"-Xms{HEAP}", "-XX:+UseG1GC", "-cp", f"{JARS}/*"]
            controllers = ",".join(f"{n}@{HOST}:{base + 2 * n + 1}:{d}" for n, d in enumerate(directories))
            settings = str(data / "server.properties")
            format_ = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", settings]
            command = [*java, *format_, "--initial-controllers", controllers]
            formatted = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
            if formatted.returncode:
                raise Unable(f"Kafka: {formatted.stderr.decode()[-300:]}")
            start = [*java, "kafka.Kafka", settings]
            self.nodes.append(Node(start, self.where / f"kafka{i}.log", {}, self.where))
            self.nodes[-1].start()
        self._servers = ",".join(f"{HOST}:{base + 2 * i}" for i in range(3))
        self._admin = AdminClient({"bootstrap.servers": self._servers, "logger": _silent()})
        await until(lambda: len(self._admin.list_topics(timeout=2).brokers) == 3, "three brokers")
        self._producer = Producer(
            {
                "bootstrap.servers": self._servers, "acks": "all", "enable.idempotence": True,
                "linger.ms": 5, "batch.size": 256 * 1024, "queue.buffering.max.messages": 1_000_000,
                "logger": _silent(),
            }
        )  # fmt: skip
        self._single = Producer(
            {
                "bootstrap.servers": self._servers, "acks": "all", "enable.idempotence": True, "linger.ms": 0,
                "request.timeout.ms": 2_000, "message.timeout.ms": 2_000,
                "topic.metadata.refresh.interval.ms": 500,
                "logger": _silent(),
            }
        )  # fmt: skip

    async def leader_of(self, topic: str) -> int:
        def look() -> int:
            return int(self._admin.list_topics(topic, timeout=5).topics[topic].partitions[0].leader)

        return await asyncio.to_thread(look)

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        config = {"min.insync.replicas": "2", **self.topic_config}
        new = NewTopic(topic, self.partitions if bulk else 1, 3, config=config)
        await asyncio.to_thread(self._admin.create_topics([new])[topic].result, 30)

        def led() -> bool:
            found = self._admin.list_topics(topic, timeout=5).topics[topic].partitions
            return bool(found) and all(p.leader >= 0 and len(p.isrs) == 3 for p in found.values())

        await until(led, "the topic has leaders")

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        await asyncio.to_thread(self._publish_many, topic, value, count)

    def _publish_many(self, topic: str, value: bytes, count: int) -> None:
        failed: list[Any] = []

        def told(error: Any, _message: Any) -> None:
            if error is not None:
                failed.append(error)

        for _ in range(count):
            while True:
                try:
                    self._producer.produce(topic, value, on_delivery=told)
                    break
                except BufferError:
                    self._producer.poll(0.01)
            self._producer.poll(0)
        self._producer.flush()
        if failed:
            raise KafkaException(failed[0])

    async def publish(self, topic: str, value: bytes) -> None:
        await asyncio.to_thread(self._publish, topic, value)

    def _publish(self, topic: str, value: bytes) -> None:
        told: list[Any] = []
        self._single.produce(topic, value, on_delivery=lambda error, _: told.append(error))
        while not told:
            self._single.poll(1)
        if told[0] is not None:
            raise KafkaException(told[0])

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        await asyncio.to_thread(self._read, topic, count, take)

    def _read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        consumer = self._consumer("read", topic, "earliest")
        while count:
            for message in consumer.consume(min(10_000, count), timeout=1):
                if message.error() is None:
                    take(message.value())
                    count -= 1
        consumer.close()

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        loop, stopped = asyncio.get_running_loop(), False
        consumer = self._consumer("follow", topic, "latest")

        def run() -> None:
            consumer.poll(1)  # its position is known after the first
            loop.call_soon_threadsafe(ready.set)
            while not stopped:
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    take(message.value())
            consumer.close()

        running = asyncio.ensure_future(asyncio.to_thread(run))
        try:
            await asyncio.shield(running)
        finally:
            stopped = True
            await running

    async def work(self, topic: str, count: int) -> None:
        raise Unable("share groups, which acknowledge each record, are not in its Python client")

    async def disconnect(self) -> None:
        if hasattr(self, "_single"):
            for producer in (self._producer, self._single):
                producer.purge()
                producer.flush(5)

    def _consumer(self, group: str, topic: str, start: str) -> Any:
        consumer = Consumer(
            {
                "bootstrap.servers": self._servers, "group.id": group, "enable.auto.commit": False,
                "auto.offset.reset": start, "fetch.wait.max.ms": 10, "logger": _silent(),
            }
        )  # fmt: skip
        partitions = self._admin.list_topics(topic, timeout=5).topics[topic].partitions
        places = [TopicPartition(topic, p, -2 if start == "earliest" else -1) for p in partitions]
        consumer.assign(places)
        return consumer


class KafkaFlushing(Kafka):
    name = "Kafka, `flush.messages=1`"
    promised = "on two of three disks (fsync at each append)"
    topic_config = {"flush.messages": "1"}  # noqa: RUF012 never changed


def _properties(i: int, base: int, data: Path) -> str:
    me = f"PLAINTEXT://{HOST}:{base + 2 * i}"
    voters = ",".join(f"{HOST}:{base + 2 * n + 1}" for n in range(3))
    return f"""
process.roles=broker,controller
node.id={i}
controller.quorum.bootstrap.servers={voters}
listeners={me},CONTROLLER://{HOST}:{base + 2 * i + 1}
advertised.listeners={me},CONTROLLER://{HOST}:{base + 2 * i + 1}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}/logs
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
default.replication.factor=3
num.network.threads=2
num.io.threads=4
"""


def _id() -> str:
    """What Kafka calls a UUID: 16 bytes in URL-safe base64 that does not begin with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def _silent() -> Any:
    logger = logging.getLogger("kafka-client")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
