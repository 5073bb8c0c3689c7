"""`meshq sub`: records of all topics that match, one a line, as they come.

A batch is written as soon as it has come, in one piece. There is no other buffer, so nothing is left
unwritten when the records run dry.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import click
import msgspec

from meshq.cli.options import reaching, verbose_option
from meshq.cli.output import Progress
from meshq.cli.reach import Where, connected
from meshq.cli.stdio import Output
from meshq.client.group import GroupRecord
from meshq.client.mesh import Mesh, Mode
from meshq.client.ordered_group import OrderedRecord
from meshq.client.records import Record
from meshq.client.subscription import Subscription
from meshq.errors import RecordsExpired
from meshq.topics import check_pattern

Start = Literal["latest", "earliest"] | int | datetime

GROUP_IN_FLIGHT: Final = 1_000  # what is printed takes no time: as with a plain subscription
LOOK_EVERY_S: Final = 0.5
AWAY_S: Final = 2.0  # so long a restart may take before it is worth a word


class _StartType(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    name = "start"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Start:
        match value:
            case "latest":
                return "latest"
            case "earliest":
                return "earliest"
            case str() if value.isascii() and value.isdigit():
                return int(value)
            case _:
                try:
                    return datetime.fromisoformat(str(value)).astimezone()
                except (ValueError, OverflowError):
                    self.fail(
                        f"{value!r} is none of: earliest, latest, an offset, a time as in 2025-01-31T08:00",
                        param,
                        ctx,
                    )


@click.command(no_args_is_help=True)
@click.argument("pattern")
@click.option(
    "--from",
    "start",
    type=_StartType(),
    metavar="earliest|latest|OFFSET|TIME",
    help="Where to begin in each partition; a time as in 2025-01-31T08:00 (local unless it says). [latest; a "
    "group, where it has not been yet: earliest]",
)
@click.option("--group", help="Share the records with all who name this group: each goes to one of them.")
@click.option(
    "--mode",
    type=click.Choice(["queue", "keyed", "ordered"]),
    help="How a group shares: any record to anyone (queue), the records of a key in order (keyed), or whole "
    "partitions, in order (ordered). [queue]",
)
@click.option("--count", type=click.IntRange(min=0), help="End after this many records.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@verbose_option
@reaching
def sub(
    pattern: str,
    start: Start | None,
    group: str | None,
    mode: Mode | None,
    count: int | None,
    as_json: bool,
    verbose: bool,
    where: Where,
) -> None:
    """Print the records of topics that match, and go on as they come.

    In a pattern * stands for one word and a # at its end for the rest. Printed is the value and a newline;
    with --json an object a line, in which text that is not UTF-8 turns the record's "encoding" to base64.
    Records of a group are acknowledged once they are written out.
    """
    check_pattern(pattern)
    if mode is not None and group is None:
        raise click.UsageError("--mode is of a --group")
    show = _json_lines if as_json else _lines
    join = _Joining(group, mode or "queue")
    asyncio.run(_follow(where, pattern, start, join, count, show, verbose=verbose))


async def _follow(
    where: Where,
    pattern: str,
    start: Start | None,
    joining: _Joining,
    left: int | None,
    show: Callable[[Sequence[Record]], bytes],
    *,
    verbose: bool,
) -> None:
    output = Output(sys.stdout.fileno())
    async with (
        connected(where, "meshq sub") as mesh,
        _subscribe(mesh, pattern, start, joining) as subscription,
    ):
        if verbose:
            await subscription.ready()
            click.echo(f"meshq: reading {pattern}", err=True)
        printing = asyncio.create_task(_print(subscription, left, show, output))
        abandoned = asyncio.create_task(output.abandoned())
        telling = asyncio.create_task(_tell_when_away(mesh))
        tasks = (printing, abandoned, telling)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if printing in done:
            printing.result()
        elif abandoned in done:
            raise BrokenPipeError


class _Joining(NamedTuple):
    group: str | None
    mode: Mode


def _subscribe(mesh: Mesh, pattern: str, start: Start | None, joining: _Joining) -> Subscription:
    group, mode = joining
    if group is None:
        return mesh.subscribe(pattern, start=start)
    if mode == "ordered":
        return mesh.subscribe(pattern, start=start, group=group, mode=mode)
    return mesh.subscribe(pattern, start=start, group=group, mode=mode, credit_records=GROUP_IN_FLIGHT)


async def _print(
    subscription: Subscription, left: int | None, show: Callable[[Sequence[Record]], bytes], output: Output
) -> None:
    progress = Progress(wanted=not sys.stdout.isatty())
    records = size = 0
    while left is None or left > 0:
        try:
            taken = await subscription.take(left)
        except RecordsExpired as e:
            click.echo(f"meshq: note: {e}", err=True)
            continue
        if left is not None:
            left -= len(taken)
        data = show(taken)
        await output.write(data)
        for record in taken:
            if isinstance(record, GroupRecord | OrderedRecord):
                record.ack()
        records, size = records + len(taken), size + len(data)
        progress.show(records, size)
    progress.end(records, size)


async def _tell_when_away(mesh: Mesh) -> None:
    """Else a mesh that is away looks like one in which nothing happens."""
    told = False
    gone_since: float | None = None
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        gone_since = None if mesh.is_connected else gone_since or now
        if gone_since is not None and not told and now - gone_since >= AWAY_S:
            click.echo("meshq: note: no peer can be reached; waiting for one", err=True)
            told = True
        elif gone_since is None and told:
            click.echo("meshq: note: connected again", err=True)
            told = False


def _lines(records: Sequence[Record]) -> bytes:
    return b"".join([r.value + b"\n" for r in records])


def _json_lines(records: Sequence[Record]) -> bytes:
    encode = msgspec.json.encode
    return b"".join([encode(_as_json(r)) + b"\n" for r in records])


def _as_json(r: Record) -> dict[str, Any]:
    """One encoding holds for key, headers and value together, so that a reader need not guess."""
    try:
        encoding = "utf-8"
        key, headers, value = _texts(r, bytes.decode)
    except UnicodeDecodeError:
        encoding = "base64"
        key, headers, value = _texts(r, _base64)
    return {
        "topic": r.topic,
        "partition": r.partition,
        "offset": r.offset,
        "timestamp_ms": r.timestamp,
        "key": key,
        "headers": headers,
        "value": value,
        "encoding": encoding,
    }


def _texts(r: Record, text: Callable[[bytes], str]) -> tuple[str | None, dict[str, str], str]:
    key = None if r.key is None else text(r.key)
    return key, {name: text(value) for name, value in r.headers.items()}, text(r.value)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
