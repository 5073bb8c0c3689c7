"""`meshq pub`: one record a line.

The loop over lines is the hot path: a call of `send` a line and nothing else. Receipts are looked at only
when they are to be printed; otherwise the producer counts what failed. The first failure ends the reading:
what follows would only be out of order, or refused as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from meshq.cli.options import reaching
from meshq.cli.output import Progress
from meshq.cli.reach import Failed, Where, connected
from meshq.cli.stdio import Output, read_lines
from meshq.client.checking import Acks
from meshq.client.outbox.terms import Terms
from meshq.client.outgoing import PendingReceipt
from meshq.client.producer import Producer
from meshq.client.records import Receipt
from meshq.errors import MeshqError, Overloaded
from meshq.topics import check_topic

if TYPE_CHECKING:
    from meshq.client.outbox.producer import OutboxProducer
    from meshq.client.outbox.receipts import PendingQueued

STALL_S = 30.0  # how long a record may wait for its receipt

Compression = Literal["none", "lz4", "zstd"]


@click.command(no_args_is_help=True)
@click.argument("topic")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default=Path("-"))
@click.option("--key", help="Key of every record: one key, one partition, in order.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="May be given more than once.")
@click.option("--compression", type=click.Choice(["none", "lz4", "zstd"]), default="none", show_default=True)
@click.option(
    "--acks", type=click.Choice(["quorum", "leader", "none"]), default="quorum", show_default=True,
    help="When a line counts as stored: on a majority's disks, on the leader's, or taken.",
)  # fmt: skip
@click.option(
    "--outbox", type=click.Path(path_type=Path), metavar="DIR",
    help="Put the lines on this host's disk first, and send them from there, now or when the mesh is back.",
)  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Print `topic/partition@offset copies=N` for every line.")
@reaching
def pub(
    topic: str,
    file: Path,
    key: str | None,
    headers: tuple[str, ...],
    compression: Compression,
    acks: Acks,
    outbox: Path | None,
    verbose: bool,
    where: Where,
) -> None:
    """Publish a file, or standard input, one record a line.

    Lines end at \\n, which is stripped. An empty line is a record; the last line needs no newline.
    Exits with 1 and the counts when any line was not stored.

    With --outbox a line is safe when it is on this host's disk: the verb ends with 0 then, whether the mesh
    could be reached or not, and says how many lines still wait.
    """
    check_topic(topic)
    if outbox is not None and acks != "quorum":
        raise click.UsageError("an outbox asks for a quorum: leave out --acks")
    found = _headers(headers)
    with contextlib.ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
        publisher = _Publisher(
            key.encode() if key is not None else None, found, verbose=verbose, typed=source.isatty()
        )
        if outbox is None:
            asyncio.run(publisher.run(where, topic, source.fileno(), compression, acks))
        else:
            asyncio.run(publisher.run_outbox(where, topic, source.fileno(), compression, outbox))


class _Publisher:
    """`typed`: the lines come from a keyboard, where progress would only be in the way."""

    def __init__(
        self, key: bytes | None, headers: dict[str, bytes] | None, *, verbose: bool, typed: bool
    ) -> None:
        self._key, self._headers, self._verbose = key, headers, verbose
        self._progress = Progress(wanted=not typed and not (verbose and sys.stdout.isatty()))
        self._sent = self._bytes = 0
        self._refused = 0  # the line that `send` did not take; it is the last one then
        self._receipts = _Receipts() if verbose else None
        self._timeout = STALL_S

    async def run(self, where: Where, topic: str, fd: int, compression: Compression, acks: Acks) -> None:
        self._timeout = where.timeout if where.timeout_given else STALL_S
        async with connected(where, "meshq pub") as mesh:
            error = await self._publish(
                mesh.producer(topic, compression=compression, acks=acks, timeout=self._timeout), fd
            )
        self._progress.end(self._sent, self._bytes)
        if error is not None:
            raise error

    async def run_outbox(
        self, where: Where, topic: str, fd: int, compression: Compression, path: Path
    ) -> None:
        from meshq.cli.outbox import forward, sending
        from meshq.client.outbox.producer import OutboxProducer

        terms = Terms(compression=compression)
        async with sending(where, path, terms, "meshq pub") as (box, mesh):
            parked = sum(p.records for p in box.parked())
            error = await self._publish(OutboxProducer(box, topic, timeout=STALL_S), fd)
            left = await forward(box, mesh, where) if mesh is not None else box.status()["queued"]
            parked = sum(p.records for p in box.parked()) - parked
        self._progress.end(self._sent, self._bytes)
        if left:
            click.echo(
                f"meshq: {left:,} records wait in {path}: `meshq outbox send {path}` sends them", err=True
            )
        if error is not None:
            raise error
        if parked:
            raise Failed(f"{parked:,} records are parked in {path}: look with `meshq outbox show {path}`")

    async def _publish(self, out: Producer | OutboxProducer, fd: int) -> Failed | None:
        printing = asyncio.create_task(self._receipts.run()) if self._receipts else None
        error: Exception | None = None
        try:
            async for lines in read_lines(fd):
                await self._send(out, lines)
                self._progress.show(self._sent, self._bytes)
                if out.failed_records or (self._receipts and self._receipts.failed):
                    break
        except MeshqError as e:
            error, self._refused = e, 1
        except Failed as e:
            error = e
        try:
            await out.close()
        except MeshqError as e:
            error = error or e
        failed = out.failed_records
        if self._receipts and printing:
            self._receipts.end()
            await printing
            failed = self._receipts.failed  # it looks at every record's
            error = error or self._receipts.error
        if error is None and not failed:
            return None
        where = f"line {self._sent + 1}: " if self._refused else ""
        return Failed(f"{where}{error}. {self._counts(failed + self._refused)}")

    async def _send(self, out: Producer | OutboxProducer, lines: list[bytes]) -> None:
        send, key, headers, receipts = out.send, self._key, self._headers, self._receipts
        for line in lines:
            while True:
                try:
                    receipt = send(line, key=key, headers=headers)
                    break
                except Overloaded:
                    await out.ready()
            self._sent += 1
            if receipts is not None:
                receipts.add(receipt)
        self._bytes += sum(map(len, lines))

    def _counts(self, failed: int) -> str:
        lines = self._sent + self._refused
        return (
            f"Stored: {lines - failed:,}; not stored, or not known to be: {failed:,} of {lines:,} lines read"
        )


class _Receipts:
    """Prints receipts in the order of the lines, as they come. Holds what the producer's buffer holds."""

    def __init__(self) -> None:
        self.failed = 0
        self.error: MeshqError | None = None
        self._waiting: deque[PendingReceipt | PendingQueued] = deque()
        self._stirred = asyncio.Event()
        self._ended = False

    def add(self, receipt: PendingReceipt | PendingQueued) -> None:
        self._waiting.append(receipt)
        self._stirred.set()

    def end(self) -> None:
        self._ended = True
        self._stirred.set()

    async def run(self) -> None:
        output: Output | None = Output(sys.stdout.fileno())
        while self._waiting or not self._ended:
            self._stirred.clear()
            printed: list[str] = []
            while self._waiting and (self._waiting[0].done() or not printed):
                try:
                    printed.append(_show(await self._waiting[0]))
                except MeshqError as e:
                    self.failed += 1
                    self.error = self.error or e
                self._waiting.popleft()
            try:
                if output is not None:
                    await output.write("".join(printed).encode())
            except BrokenPipeError:
                output = None  # nobody wants to see them; the records are published all the same
            if not self._waiting and not self._ended:
                await self._stirred.wait()


def _show(r: Receipt) -> str:
    if r.state == "queued":
        return f"{r.topic} queued\n"
    return f"{r.topic}/{r.partition}@{'-' if r.offset is None else r.offset} copies={r.copies}\n"


def _headers(given: tuple[str, ...]) -> dict[str, bytes] | None:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--header")
        found[name] = value.encode()
    return found or None
