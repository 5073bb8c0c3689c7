"""`meshq events` and `meshq peers --watch`: what changes in membership, as it changes.

A peer numbers its changes; whoever follows asks for those after the last one it saw, and the answer waits for
news. What is told is one peer's view: while that peer is away this waits for it and says so, and after its
restart, when the numbers begin again, tells everything since. With `--credentials` any peer named there will
do, and a change of views is told as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Final

import click
import msgspec

from meshq.cli.options import reaching
from meshq.cli.reach import NotReachable, Where, connected
from meshq.cli.stdio import Output
from meshq.client.mesh import Mesh
from meshq.errors import OutcomeUnknown, Unavailable

WAIT_MS: Final = 5_000  # how long one answer may wait for news
REFRESH_MS: Final = 2_000  # how old a round-trip time on the screen may get
ANSWER_S: Final = 10.0
AGAIN_S: Final = 0.2  # before a peer that is away is looked for again
Change = dict[str, Any]


@click.command()
@click.option("--past", is_flag=True, help="Begin with the changes that the peer still keeps.")
@click.option("--no-follow", is_flag=True, help="With --past: end after them.")
@click.option("--count", type=click.IntRange(min=1), help="End after this many.")
@reaching
def events(past: bool, no_follow: bool, count: int | None, where: Where) -> None:
    """Print what changes in membership, a JSON object a line, and go on as it comes.

    As one peer sees it: members that are alive, suspect, dead, or have left, and on whose word; that were
    restarted or have moved; blocked UDP; verdicts it took back.
    """
    if no_follow and not past:
        raise click.UsageError("--no-follow belongs to --past: from now on there is nothing yet")
    asyncio.run(_print(where, past, not no_follow, count))


async def _print(where: Where, past: bool, follow: bool, left: int | None) -> None:
    output = Output(sys.stdout.fileno())
    changes = following(where, "meshq events", past=past, follow=follow)
    async with contextlib.aclosing(changes):
        async for found, _ in changes:
            shown = found[:left]
            await output.write(b"".join(msgspec.json.encode(x) + b"\n" for x in shown))
            if left is not None:
                left -= len(shown)
                if left <= 0:
                    return


def watch_peers(where: Where, show: Callable[[list[dict[str, Any]]], None]) -> None:
    """Show the list of peers now, and again after each change, or after REFRESH_MS for what is measured."""

    async def watch() -> None:
        changes = following(where, "meshq peers", wait_ms=REFRESH_MS, idle=True)
        async with contextlib.aclosing(changes):
            async for _, mesh in changes:
                with contextlib.suppress(OutcomeUnknown, Unavailable):  # the next change waits for the peer
                    show(await mesh.ask("peers", timeout=ANSWER_S))
                    sys.stdout.flush()

    asyncio.run(watch())


@dataclass
class _Place:
    """How far has been read, and of whom."""

    after: int | None = None
    boot: str = ""
    peer: str = ""
    name: str = ""


class _Away(Exception):
    """The peer that is followed does not answer, or another one does."""


async def following(
    where: Where,
    what: str,
    *,
    past: bool = False,
    follow: bool = True,
    wait_ms: int = WAIT_MS,
    idle: bool = False,
) -> AsyncGenerator[tuple[list[Change], Mesh]]:
    """Changes as they come, some at a time, and the connection they came on. The first list may be empty:
    what comes after it is followed. `idle`: also an empty one each `wait_ms` without news.

    Raises: NotReachable when there is no peer to begin with.
    """
    place = _Place(after=0 if past else None)
    away = False
    while True:
        try:
            async with connected(where, what) as mesh:
                while True:
                    first = not place.peer
                    found = await _ask(mesh, place, wait_ms if follow and not first else 0, where)
                    away = False
                    if first or idle or found:
                        yield found, mesh
                    elif not follow:
                        return
        except (NotReachable, _Away) as e:
            if not place.peer:
                raise NotReachable(str(e)) from e
            if not away:
                click.echo(f"meshq: {place.name} does not answer ({e}); waiting for it", err=True)
            away = True
            await asyncio.sleep(AGAIN_S)


async def _ask(mesh: Mesh, place: _Place, wait_ms: int, where: Where) -> list[Change]:
    """What came after the place, which moves on."""
    args: dict[str, Any] = {"wait_ms": wait_ms}
    if place.after is not None:
        args |= {"after": place.after, "boot": place.boot}
    try:
        answer = await mesh.ask("events", args, timeout=ANSWER_S)
    except (OutcomeUnknown, Unavailable) as e:
        raise _Away(str(e)) from e
    found = [{**x, "by": answer["name"]} for x in answer["events"]]
    if answer["lost"]:
        found.insert(0, {"event": "EventsLost", "count": answer["lost"], "by": answer["name"]})
    after = answer["last"]
    if place.peer and answer["peer"] != place.peer:
        if where.credentials is None:
            raise _Away(f"{answer['name']} answers in its place")
        # Its past is not the other one's future: what is told begins now.
        found = [{"event": "FollowingAnother", "by": answer["name"], "instead_of": place.name}]
        after = answer["newest"]
    place.after, place.boot, place.peer, place.name = after, answer["boot"], answer["peer"], answer["name"]
    return found
