"""`meshq events` and `meshq peers --watch`: what changes in membership, as it changes.

A peer numbers its changes; whoever follows asks for those after the last one it saw, and the answer waits for
news. While the peer is away this waits for it and says so; after its restart the numbers begin again, and
everything since then is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import click
import msgspec

from meshq.cli.options import reaching
from meshq.cli.reach import Where, connected
from meshq.cli.stdio import Output
from meshq.client.mesh import Mesh
from meshq.errors import OutcomeUnknown, Unavailable

WAIT_MS: Final = 5_000  # how long one answer may wait for news
ANSWER_S: Final = 10.0
REFRESH_MS: Final = 2_000  # how old a round-trip time on the screen may get
AGAIN_S: Final = 0.2  # before a peer that is away is asked again


@click.command()
@click.option("--past", is_flag=True, help="Begin with the changes that the peer still keeps.")
@click.option("--no-follow", is_flag=True, help="With --past: end after them.")
@click.option("--count", type=click.IntRange(min=1), help="End after this many.")
@reaching
def events(past: bool, no_follow: bool, count: int | None, where: Where) -> None:
    """Print what changes in membership, a JSON object a line, and go on as it comes.

    As the peer sees it that answers: members that are alive, suspect, dead, or have left, and on whose word;
    that were restarted or have moved; blocked UDP; verdicts it took back.
    """
    if no_follow and not past:
        raise click.UsageError("--no-follow belongs to --past: from now on there is nothing yet")
    asyncio.run(_print(where, past, not no_follow, count))


async def _print(where: Where, past: bool, follow: bool, left: int | None) -> None:
    output = Output(sys.stdout.fileno())
    async with connected(where, "meshq events") as mesh:
        async for changes in following(mesh, past=past, follow=follow):
            shown = changes[:left]
            await output.write(b"".join(msgspec.json.encode(x) + b"\n" for x in shown))
            if left is not None:
                left -= len(shown)
                if left <= 0:
                    return


def watch_peers(where: Where, show: Callable[[list[dict[str, Any]]], None]) -> None:
    """Show the list of peers now, and again after each change, or every REFRESH_MS for what is measured."""

    async def watch() -> None:
        async with connected(where, "meshq peers") as mesh:
            async for _ in following(mesh, wait_ms=REFRESH_MS, idle=True):
                with contextlib.suppress(OutcomeUnknown, Unavailable):  # the next change waits for the peer
                    show(await mesh.ask("peers", timeout=ANSWER_S))
                    sys.stdout.flush()

    asyncio.run(watch())


async def following(
    mesh: Mesh, *, past: bool = False, follow: bool = True, wait_ms: int = WAIT_MS, idle: bool = False
) -> AsyncIterator[list[dict[str, Any]]]:
    """Changes as they come, some at a time. The first list may be empty: what comes after it is followed.
    `idle`: also an empty one each `wait_ms` without news.

    `EventsLost` with a `count` stands where the peer has forgotten older ones than it was asked for.
    """
    seen: dict[str, Any] = {"after": 0} if past else {}
    peer = name = None
    away = False
    while True:
        first = "boot" not in seen
        try:
            args = {**seen, "wait_ms": wait_ms} if follow and not first else seen
            answer = await mesh.ask("events", args, timeout=ANSWER_S)
        except (OutcomeUnknown, Unavailable) as e:
            if first:
                raise
            if not away:
                click.echo(f"meshq: the peer does not answer: {e}. Waiting for it", err=True)
            away = True
            await asyncio.sleep(AGAIN_S)
            continue
        away = False
        changes = [{**x, "by": answer["name"]} for x in answer["events"]]
        if answer["lost"]:
            changes.insert(0, {"event": "EventsLost", "count": answer["lost"], "by": answer["name"]})
        if not first and answer["peer"] != peer:
            # Another peer answers for the one that is away: its past is not the other one's future.
            changes = [{"event": "FollowingAnother", "by": answer["name"], "instead_of": name}]
            answer["last"] = answer["newest"]
        peer, name = answer["peer"], answer["name"]
        seen = {"after": answer["last"], "boot": answer["boot"]}
        if first or idle or changes:
            yield changes
        elif not follow:
            return
