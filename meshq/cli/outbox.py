"""`meshq outbox`: what waits in an outbox, what the mesh refused for good, and what becomes of that.

`show` reads beside whoever has the outbox open. The others change it, so they need it for themselves: the
program that uses it is stopped first, or decides by its own calls (`mesh.outbox`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_facts, print_json, print_table, show_bytes
from meshq.cli.reach import Failed, NotReachable, Where, connected
from meshq.client.mesh import Mesh
from meshq.client.outbox.loading import load, verify
from meshq.client.outbox.outbox import Outbox
from meshq.client.outbox.store import looking_at
from meshq.client.outbox.terms import Terms
from meshq.errors import StoreError, Unavailable
from meshq.store.directory import DATA_NAME

CONNECT_S: Final = 2.0  # how long a verb looks for the mesh when it was not told how long
PATH = click.argument("path", type=click.Path(path_type=Path))
IDS = click.argument("ids", type=int, nargs=-1)
ALL = click.option("--all", "all_", is_flag=True, help="All that is parked.")


@click.group()
def outbox() -> None:
    """Look into a producer's own queue on this host's disk, and decide about what the mesh refused."""


@outbox.command()
@PATH
@json_option
@click.option("--check", is_flag=True, help="Read every record that waits, and compare its checksum.")
def show(path: Path, as_json: bool, check: bool) -> None:
    """Show how much waits, and what is parked. The program that uses it may go on."""
    with looking_at(path) as reader:
        loaded = load(reader)
        bad = verify(reader) if check else None
    if loaded is None:
        raise StoreError(f"the outbox in {path} was made, and never begun")
    parked = list(loaded.parked.values())
    found: dict[str, Any] = {
        "path": str(path.absolute()),
        "queued": loaded.queued_records,
        "sent": sum(row.count for _, row in loaded.bound),
        "parked": sum(p.records for p in parked),
        "bytes": loaded.queued_bytes
        + sum(len(r.data) for _, r in loaded.bound)
        + sum(p.bytes for p in parked),
        "epoch": loaded.state.epoch,
        "halted": loaded.state.halted or None,
        "topics": sorted(t.name for t in loaded.topics.values()),
        "damaged": None if bad is None else len(bad) + len(loaded.damaged),
    }
    rows = [{name: getattr(p, name) for name in p.__slots__} for p in parked]
    if as_json:
        print_json({**found, "parked_batches": rows})
        return
    print_facts({**found, "bytes": show_bytes(found["bytes"])})
    if rows:
        click.echo()
        for row in rows:
            row["since"] = datetime.fromtimestamp(row["parked_ms"] / 1000).strftime("%Y-%m-%d %H:%M:%S")
            row["stored"] = "perhaps" if row["maybe_stored"] else "no"
        print_table(
            rows,
            {
                "id": "ID", "topic": "TOPIC", "partition": "PARTITION", "records": "RECORDS",
                "bytes": "BYTES", "since": "SINCE", "stored": "STORED", "reason": "REASON", "text": "WHY",
            },
        )  # fmt: skip


@outbox.command()
@PATH
@IDS
@ALL
def retry(path: Path, ids: tuple[int, ...], all_: bool) -> None:
    """Send parked batches again, by their IDs of `show`, behind what waits.

    What is marked as perhaps stored may be stored a second time. An outbox that was halted because a copy of
    it is in use goes on as one of its own.
    """
    done = _decide(path, ids, all_, lambda box, chosen: box.retry(chosen))
    click.echo(f"{done} parked batches wait to be sent again", err=True)


@outbox.command()
@PATH
@IDS
@ALL
def drop(path: Path, ids: tuple[int, ...], all_: bool) -> None:
    """Discard parked batches, by their IDs of `show`. Their records are gone then."""
    done = _decide(path, ids, all_, lambda box, chosen: box.drop(chosen))
    click.echo(f"{done} parked batches dropped", err=True)


@outbox.command()
@PATH
def park(path: Path) -> None:
    """Park what was sent and not acknowledged, when the key it was sent under is lost.

    Peers know a record by the key of its connection: under another one it could be stored twice. Parked, it
    is there to be looked at, sent again or dropped.
    """
    done = asyncio.run(_opened(path, lambda box: box.park()))
    click.echo(f"{done} batches parked", err=True)


@outbox.command()
@PATH
@reaching
def send(path: Path, where: Where) -> None:
    """Send what waits, and end when nothing does."""
    _check_there(path)

    async def run() -> int:
        async with sending(where, path, Terms(), "meshq outbox send") as (box, mesh):
            if mesh is None:
                raise NotReachable(f"the mesh cannot be reached: {box.status()['queued']:,} records wait")
            return await forward(box, mesh, where)

    if left := asyncio.run(run()):
        raise Failed(f"{left:,} records still wait in {path}")


@contextlib.asynccontextmanager
async def sending(
    where: Where, path: Path, terms: Terms, name: str
) -> AsyncIterator[tuple[Outbox, Mesh | None]]:
    """An outbox and the connection it sends through, or None where there is nobody to ask for one."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            mesh = await stack.enter_async_context(connected(where, name, wait=False))
        except NotReachable:
            box = Outbox(path, terms)
            stack.push_async_callback(box.close)
            yield box, None
            return
        yield mesh.open_outbox(path, terms), mesh


async def forward(box: Outbox, mesh: Mesh, where: Where) -> int:
    """Send what waits while the mesh is there to take it; how many records still wait."""
    with contextlib.suppress(Unavailable):
        await mesh.connected(where.timeout if where.timeout_given else CONNECT_S)
    await box.drained(where.timeout if where.timeout_given else None, while_connected=True)
    status = box.status()
    return int(status["queued"] + status["sent"])


def _decide(
    path: Path,
    ids: tuple[int, ...],
    all_: bool,
    decide: Callable[[Outbox, list[int] | None], Coroutine[Any, Any, int]],
) -> int:
    if bool(ids) == all_:
        raise click.UsageError("name parked batches by their ids (`meshq outbox show`), or give --all")
    chosen = None if all_ else list(ids)
    return asyncio.run(_opened(path, lambda box: decide(box, chosen)))


async def _opened(path: Path, work: Callable[[Outbox], Coroutine[Any, Any, int]]) -> int:
    _check_there(path)
    box = Outbox(path)
    try:
        return await work(box)
    finally:
        await box.close()


def _check_there(path: Path) -> None:
    if not (path / DATA_NAME).exists():
        raise StoreError(f"there is no outbox in {path}")
