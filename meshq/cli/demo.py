"""`meshq demo`: three peers on this host, real records, one of them killed on the way, nothing lost.

It is the ordinary mesh by ordinary means: `meshq init`, three times `meshq up`, one client that publishes
through the first peer and one that reads through another. While records flow, the peer that leads some of the
partitions is killed (kill -9), the others take over, and it is started again. In the end every key's records
must have been read once each, in order, byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from meshq.cli.demo_mesh import DemoMesh
from meshq.cli.demo_records import Tally, files_of_lines
from meshq.cli.output import Progress, show_rate
from meshq.cli.reach import Failed
from meshq.client.connect import connect
from meshq.client.mesh import Mesh
from meshq.client.outgoing import PendingReceipt
from meshq.client.producer import Producer
from meshq.client.subscription import Subscription
from meshq.errors import MeshqError, Overloaded

PEERS: Final = 3
PARTITIONS: Final = 8
LINES_MOST: Final = 600_000
AWAY_S: Final = 2.0  # between the killed peer's end and its new start
MEET_S: Final = 30.0
IDLE_S: Final = 30.0  # without a single record: something is lost
CHUNK: Final = 200  # lines sent in one turn, so that reading goes on beside it
BUFFER_BYTES: Final = 8 << 20  # less than what is sent: the publisher feels that a peer is away


@click.command()
@click.option(
    "--lines", type=click.IntRange(1_000, LINES_MOST), default=500_000, show_default=True, help="Records."
)
def demo(lines: int) -> None:
    """Three peers on this host, real records, one killed on the way, nothing lost.

    Takes some seconds; everything it starts and writes is gone afterwards.
    """
    asyncio.run(_until_signal(_Demo(lines).run()))


async def _until_signal(work: Any) -> None:
    """SIGTERM and a closed terminal end it as Ctrl-C does: after cleaning up."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if (me := asyncio.current_task()) is not None and me.cancelling():
            raise
        raise Failed("stopped by a signal; everything was cleaned up") from None


@dataclass
class _Demo:
    lines: int
    sent: Tally = field(default_factory=Tally)
    read: Tally = field(default_factory=Tally)
    waits: dict[int, float] = field(default_factory=dict)  # by partition, the longest from send to receipt
    leaders: list[str] = field(default_factory=list)  # of the partitions, when the topic was made
    receipt_at: float = 0.0
    gap: float = 0.0  # the longest time between two receipts, of any partition
    all_sent: bool = False
    progress: Progress = field(default_factory=Progress)
    began: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        click.echo("meshq demo: three peers, real records, one of them killed on the way\n")
        try:
            async with DemoMesh(PEERS) as mesh:
                try:
                    await self._run(mesh)
                except (MeshqError, Failed, ExceptionGroup) as e:
                    logs = "".join(
                        f"\n--- the end of {name}'s log\n{mesh.log_of(name)}" for name in mesh.names
                    )
                    raise Failed(f"{_first(e)}{logs}") from e
        finally:
            self.progress.clear()

    async def _run(self, mesh: DemoMesh) -> None:
        await mesh.make()
        await asyncio.gather(*(mesh.start(name) for name in mesh.names))
        self._say(f"{', '.join(mesh.names)} are up, each a process, from port {mesh.base_port} on")
        async with contextlib.AsyncExitStack() as stack:
            reached = [await stack.enter_async_context(_connect(mesh.data(n))) for n in mesh.names]
            await asyncio.gather(*(_meet(m) for m in reached))
            self._say("they found each other; all traffic between them is encrypted")
            topic, victim = await self._make_topic(reached[0], mesh.names)
        reader = next(n for n in mesh.names[1:] if n != victim)
        async with _connect(mesh.data(mesh.names[0])) as out, _connect(mesh.data(reader)) as back:
            await self._stream(mesh, out, back, topic, victim, reader)
            await self._judge(out, topic, victim)

    async def _make_topic(self, mesh: Mesh, names: list[str]) -> tuple[str, str]:
        """A topic some of whose partitions are led by a peer that does not hold the registry."""
        holder = (await mesh.ask("status"))["registry"]["holder"]
        for n in range(1, 20):
            topic = f"demo.lines{n}"
            await mesh.ask("topic.create", {"topic": topic, "partitions": PARTITIONS})
            shown = await mesh.ask("topic.show", {"topic": topic})
            self.leaders = [row["owner"] for row in shown["partition"]]
            share = Counter(self.leaders)
            victim = max((name for name in names if name != holder), key=lambda name: share[name])
            if share[victim]:
                spread = ", ".join(f"{name} leads {share[name]}" for name in names)
                self._say(f"topic {topic} has {PARTITIONS} partitions, each on all three: {spread}")
                return topic, victim
        raise Failed("no topic came to be led by a peer that may be killed")

    # ------------------------------------------------------------------------------------ streaming
    async def _stream(
        self, mesh: DemoMesh, out: Mesh, back: Mesh, topic: str, victim: str, reader: str
    ) -> None:
        async with back.subscribe(topic, start="earliest") as subscription:
            await subscription.ready()
            self._say(
                f"publishing the standard library, line by line, by {mesh.names[0]}; reading by {reader}"
            )
            began = time.monotonic()
            third = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish(out, topic, third, subscription))
                tasks.create_task(self._read(subscription))
                tasks.create_task(self._kill_and_start(mesh, victim, third))
            seconds = time.monotonic() - began
        self.progress.clear()
        self._say(f"read again: {show_rate(self.read.records, self.read.bytes, seconds)}")

    async def _publish(self, out: Mesh, topic: str, third: asyncio.Event, subscription: Subscription) -> None:
        receipts = []
        async with out.producer(topic, buffer_bytes=BUFFER_BYTES, timeout=60.0) as producer:
            for key, lines in files_of_lines(self.lines):
                last = await _send(producer, key, lines)
                self.sent.add(key, lines)
                receipts.append(asyncio.ensure_future(self._wait_for(last)))
                if self.sent.records * 3 >= self.lines:
                    third.set()
        third.set()
        await asyncio.gather(*receipts)
        self.all_sent = True
        if self.read.records >= self.sent.records:
            await (
                subscription.close()
            )  # the last record was read before the last receipt came: no more will come
        self.progress.clear()
        self._say(
            f"all {self.sent.records:,} records of {len(self.sent):,} files have a receipt: two disks have them"
        )

    async def _wait_for(self, pending: PendingReceipt) -> None:
        began = time.monotonic()
        partition = (await pending).partition
        now = time.monotonic()
        self.waits[partition] = max(self.waits.get(partition, 0.0), now - began)
        if self.receipt_at:
            self.gap = max(self.gap, now - self.receipt_at)
        self.receipt_at = now

    async def _read(self, subscription: Subscription) -> None:
        while not (self.all_sent and self.read.records >= self.sent.records):
            try:
                async with asyncio.timeout(IDLE_S):
                    records = await subscription.take()
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Failed(
                    f"no record came for {IDLE_S:g} s: {self.read.records:,} of {self.sent.records:,} read"
                ) from None
            first = 0
            for i, record in enumerate(records):  # runs of one key at a time
                if record.key != records[first].key:
                    self._count(records[first:i])
                    first = i
            self._count(records[first:])
            if self.progress.due:
                self.progress.say(f"          {self.sent.records:>9,} sent  {self.read.records:>9,} read")

    def _count(self, records: list[Any]) -> None:
        self.read.add(records[0].key or b"", [r.value for r in records])

    async def _kill_and_start(self, mesh: DemoMesh, victim: str, third: asyncio.Event) -> None:
        await third.wait()
        self.progress.clear()
        mine = self.leaders.count(victim)
        self._say(f"kill -9 {victim}, which leads {mine} partitions, after {self.sent.records:,} records")
        await mesh.kill(victim)
        gone = time.monotonic()
        await asyncio.sleep(AWAY_S)
        await mesh.start(victim)
        self.progress.clear()
        self._say(f"{victim} is back after {time.monotonic() - gone:.1f} s")

    # -------------------------------------------------------------------------------------- verdict
    async def _judge(self, mesh: Mesh, topic: str, victim: str) -> None:
        theirs = [wait for p, wait in self.waits.items() if self.leaders[p] == victim]
        others = [wait for p, wait in self.waits.items() if self.leaders[p] != victim]
        self._say(
            f"longest wait for a receipt: {max(theirs, default=0.0):.1f} s at {victim}'s partitions, "
            f"{max(others, default=0.0):.1f} s at the others'; longest gap between receipts: {self.gap:.1f} s"
        )
        stored = await _stored(mesh, topic)
        wrong = self.sent.differences(self.read)
        if stored != self.sent.records:
            wrong.insert(0, f"{stored:,} records are stored where {self.sent.records:,} were sent")
        if wrong:
            more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise Failed("NOT as it was sent:\n  " + "\n  ".join(wrong[:10]) + more)
        click.secho(
            f"\nNothing lost, nothing doubled: {self.read.records:,} records of {len(self.read):,} keys came "
            "back in order, byte for byte.",
            fg="green",
        )

    def _say(self, text: str) -> None:
        self.progress.clear()
        click.echo(f"{time.monotonic() - self.began:6.1f} s  {text}")


def _connect(data: Path) -> Any:
    return connect(data=data, name="meshq demo")


def _first(error: Exception) -> Exception:
    """Of errors that came together, the one that came first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _meet(mesh: Mesh) -> None:
    """Until this peer reaches all others."""
    try:
        async with asyncio.timeout(MEET_S):
            while (await mesh.ask("status"))["peers_reachable"] < PEERS:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Failed(f"the peers did not find each other within {MEET_S:g} s") from None


async def _stored(mesh: Mesh, topic: str) -> int:
    """How many records the leaders have; a peer that is only just back may not be heard at once."""
    try:
        async with asyncio.timeout(MEET_S):
            while True:
                shown = await mesh.ask("topic.show", {"topic": topic})
                ends = [row["end"] for row in shown["partition"]]
                if None not in ends:
                    return sum(ends)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Failed(f"not every peer told within {MEET_S:g} s what it has of {topic}") from None


async def _send(producer: Producer, key: bytes, lines: list[bytes]) -> PendingReceipt:
    """Lines of one key; the last one's receipt."""
    for at in range(0, len(lines), CHUNK):
        for line in lines[at : at + CHUNK]:
            while True:
                try:
                    last = producer.send(line, key=key)
                    break
                except Overloaded:
                    await producer.ready()
        await asyncio.sleep(0)
    return last
