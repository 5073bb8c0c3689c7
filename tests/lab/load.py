"""The load: a publisher and a reader on the client library, each a program that runs on a lab's host.

    python -m tests.lab.load publish --credentials app.meshq --topic numbers --rate 2000 > history
    python -m tests.lab.load read    --credentials app.meshq --topic numbers [--count N] > read

The publisher prints a line for every record's end: `+ number partition offset time`, `? number`: outcome
unknown, `- number error`: certainly not published. SIGTERM ends its sending; when all has been answered,
`= count` is its last line. A reader prints `partition offset number time`; number -1: nobody sent that.
`Load` is the other end: it starts both and makes a History of what they print.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meshq
from tests.history import History, View, Where, by_partition
from tests.lab.network import Host
from tests.peers import environment

RATE = 2_000
KEYS = 64
OUTSTANDING_MAX = 60_000  # records; at it the publisher waits
TIMEOUT_S = 60.0
TICK_S = 0.004
FLUSH_S = 0.05
_FILLER = 80


def value_of(n: int) -> bytes:
    """100 bytes that only record n has."""
    return b"%020d" % n + hashlib.shake_128(b"%d" % n).hexdigest(_FILLER // 2).encode()


def number_of(value: bytes) -> int:
    """-1 for what was never sent."""
    head = bytes(value[:20])
    n = int(head) if head.isdigit() else -1
    return n if n >= 0 and value == value_of(n) else -1


# ------------------------------------------------------------------------------------------- the programs
async def publish(options: argparse.Namespace) -> None:
    stop = _on_sigterm()
    async with meshq.connect(credentials=options.credentials) as mesh:
        async with mesh.producer(options.topic, linger_ms=2, timeout=TIMEOUT_S) as out:
            queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(options.partitions)]
            keeping = [asyncio.create_task(_keep(queue)) for queue in queues]
            flushing = asyncio.create_task(_flush_now_and_then())
            sent, started, skipped = 0, time.monotonic(), 0
            while not stop.is_set():
                due = int((time.monotonic() - started) * options.rate) - skipped
                if sum(q.qsize() for q in queues) >= OUTSTANDING_MAX:
                    skipped += due - sent  # what it could not send now it will not send in one burst either
                else:
                    for n in range(sent, due):
                        key = b"%d" % (n % options.keys)
                        pending = out.send(value_of(n), key=key)
                        queues[zlib.crc32(key) % options.partitions].put_nowait((n, pending))
                    sent = max(sent, due)
                await asyncio.sleep(TICK_S)
            for queue in queues:
                queue.put_nowait(None)
            await asyncio.gather(*keeping)
            flushing.cancel()
        print(f"= {sent}", flush=True)


async def _keep(queue: asyncio.Queue[Any]) -> None:
    """Within a partition receipts come in the order of sending, so one waits for them one by one."""
    while (item := await queue.get()) is not None:
        n, pending = item
        try:
            receipt = await pending
            print(f"+ {n} {receipt.partition} {receipt.offset} {time.time():.4f}")
        except meshq.OutcomeUnknown:
            print(f"? {n}")
        except meshq.MeshqError as e:
            print(f"- {n} {type(e).__name__}")


async def read(options: argparse.Namespace) -> None:
    stop = _on_sigterm()
    flushing = asyncio.create_task(_flush_now_and_then())
    async with meshq.connect(credentials=options.credentials) as mesh:
        reading = asyncio.create_task(_read(mesh, options))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, reading):
            task.cancel()
        if reading.done():
            reading.result()
    flushing.cancel()


async def _read(mesh: meshq.Mesh, options: argparse.Namespace) -> None:
    left = options.count
    async with mesh.subscribe(options.topic, start="earliest") as records:
        async for record in records:
            n = number_of(record.value)
            print(f"{record.partition} {record.offset} {n} {time.time():.4f}")
            left -= 1
            if left == 0:
                return


def _on_sigterm() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


async def _flush_now_and_then() -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["publish", "read"])
    parser.add_argument("--credentials", required=True)
    parser.add_argument("--topic", default="numbers")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--rate", type=int, default=RATE)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--count", type=int, default=-1)
    options = parser.parse_args()
    asyncio.run(publish(options) if options.what == "publish" else read(options))


# ---------------------------------------------------------------------------------------- the other end
@dataclass
class Load:
    """A publisher and a reader on this host; what they print goes to files of `where`."""

    host: Host
    credentials: Path
    where: Path
    history: History = field(default_factory=History)
    ended: bool = False
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _read: int = 0  # bytes of what the publisher printed

    def start(self, *, rate: int = RATE) -> None:
        self._start("publisher", "publish", "--rate", str(rate))
        self._start("reader", "read")

    def _start(self, name: str, what: str, *options: str) -> None:
        file, errors = self.where / name, self.where / f"{name}.err"
        argv = (sys.executable, "-m", "tests.lab.load", what, "--credentials", self.credentials, *options)
        with file.open("wb") as out, errors.open("wb") as err:
            self._processes[name] = self.host.start(*argv, stdout=out, stderr=err, env=environment())

    def look(self) -> History:
        """The history as far as it has been printed."""
        assert self.ended or self._processes["publisher"].poll() is None, self.errors("publisher")
        with (self.where / "publisher").open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.decode().splitlines():
            self._take(line)
        return self.history

    def _take(self, line: str) -> None:
        kind, number, *rest = line.split()
        n = int(number)
        match kind:
            case "+":
                self.history.acknowledged(n, Where(int(rest[0]), int(rest[1])), float(rest[2]))
            case "?":
                self.history.unknown.add(n)
            case "-":
                self.history.refused[n] = rest[0]
            case "=":
                self.history.sent = n

    def end(self, wait: Callable[..., Any]) -> None:
        """No more is sent, and all that was is answered."""
        publisher = self._processes["publisher"]
        publisher.terminate()
        wait("the publisher has its answers", lambda: publisher.poll() is not None, TIMEOUT_S + 15)
        assert publisher.returncode == 0, self.errors("publisher")
        self.ended = True
        self.look()
        assert self.history.sent, "the publisher did not come to its end"

    def read_all(self, name: str, wait: Callable[..., Any], count: int) -> View:
        """What a reader gets who comes after all of it."""
        self._start(name, "read", "--count", str(count))
        process = self._processes[name]
        try:
            wait(f"{name} has {count} records", lambda: process.poll() is not None, 60)
        finally:
            process.terminate()
        assert process.wait(10) == 0, self.errors(name)
        return self.view(name)

    def followed(self, wait: Callable[..., Any], count: int) -> View:
        """What the reader got that read along, up to the end."""
        wait("the reader is through", lambda: self._lines("reader") >= count, 60)
        reader = self._processes["reader"]
        reader.terminate()
        assert reader.wait(10) == 0, self.errors("reader")
        return self.view("reader")

    def _lines(self, name: str) -> int:
        return (self.where / name).read_bytes().count(b"\n")

    def view(self, name: str) -> View:
        lines = (self.where / name).read_text().splitlines()
        return by_partition((int(p), int(o), int(n)) for p, o, n, _ in (line.split() for line in lines))

    def errors(self, name: str) -> str:
        return f"{name}: " + (self.where / f"{name}.err").read_text(errors="replace")[-3_000:]


if __name__ == "__main__":
    main()
