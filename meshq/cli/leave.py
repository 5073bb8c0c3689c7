"""`meshq leave`: let a peer go, with what it holds moved to the others first.

It says how far that is until it is done; interrupting it changes nothing, the peer goes on leaving, and
calling it again looks on. Where this host's own peer leaves it ends with the peer: the connection is lost
then, and the directory tells that it was let go.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_json
from meshq.cli.reach import Failed, NotReachable, Where, ask, check_running, connected
from meshq.client.mesh import Mesh
from meshq.errors import MeshqError, OutcomeUnknown, Unavailable, UsageError
from meshq.security.directory import DataDirectory

LOOK_S: Final = 0.5
ANSWER_S: Final = 3.0  # more than a survey of the others takes; a peer that stopped does not answer at all
TELL_S: Final = 2.0  # between two lines of progress
LOST_S: Final = 20.0  # how long a peer that does not answer is looked for again
Progress = dict[str, Any]


@click.command()
@click.option("--peer", metavar="NAME", help="Another peer than this host's, perhaps one that is gone.")
@click.option("--stay", is_flag=True, help="Take it back, while it has not left yet.")
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@click.option("--abandon-authority", is_flag=True, help="Though authority.key is in its directory.")
@json_option
@reaching
def leave(
    peer: str | None, stay: bool, no_wait: bool, abandon_authority: bool, as_json: bool, where: Where
) -> None:
    """Let a peer leave the mesh: its slots move to the others, then it stops.

    Publishing and reading go on meanwhile. A peer that is gone for good leaves by --peer, said on any other.
    """
    if peer is None and where.credentials is not None:
        raise click.UsageError("with --credentials, say which one leaves: --peer NAME")
    own = None if where.credentials is not None else str(check_running(where.data)["name"])
    args = {"peer": peer or own}
    leaves_here = DataDirectory(where.data) if args["peer"] == own else None
    if stay:
        ask(where, "peer.stay", args)
        click.echo(f"{args['peer']} stays.")
        return
    keeps = None if abandon_authority else leaves_here
    last = asyncio.run(_leave(where, args, wait=not no_wait, own=leaves_here, keeps=keeps))
    if as_json:
        print_json(last)
    elif last["standing"] == "left":
        click.echo(f"{last['name']} has left the mesh.")
    else:
        click.echo(f"{last['name']} is leaving; `meshq leave --peer {last['name']}` shows how far it is.")


async def _leave(
    where: Where, args: dict[str, Any], *, wait: bool, own: DataDirectory | None, keeps: DataDirectory | None
) -> Progress:
    """Until it has left; the last that was heard of it. `own`: its directory, when that is here; `keeps`: the
    same, when the mesh's authority must not go with it.
    """
    async with connected(where, "meshq leave") as mesh:
        last = await _progress(mesh, args)
        if last["standing"] == "member":
            if keeps is not None and keeps.authority.exists():
                raise UsageError(
                    f"{keeps.authority} is what lets hosts and clients into the mesh, and would leave with "
                    f"{args['peer']}: move it to another peer's directory and restart that one first, or say "
                    "--abandon-authority (only the recovery secret brings it back then)"
                )
            await mesh.ask("peer.leave", args)
            last = await _progress(mesh, args)
    told = _Told()
    end = time.monotonic() + LOST_S
    while wait and last["standing"] != "left":
        told.tell(last)
        try:
            async with connected(where, "meshq leave") as mesh:
                while last["standing"] == "leaving":
                    last = await _progress(mesh, args)
                    told.tell(last)
                    end = time.monotonic() + LOST_S
                    await asyncio.sleep(LOOK_S)
        except (NotReachable, Unavailable, OutcomeUnknown, MeshqError) as e:
            if own is not None and own.has_left:
                return {**last, "standing": "left", "left": 0, "votes": False}
            if time.monotonic() > end:
                raise NotReachable(f"{args['peer']} goes on leaving, but nobody tells how far: {e}") from e
            await asyncio.sleep(LOOK_S)
        if last["standing"] == "member":
            raise Failed(f"{args['peer']} stays: somebody took it back")
    return last


async def _progress(mesh: Mesh, args: dict[str, Any]) -> Progress:
    answer: Progress = await mesh.ask("peer.leaving", args, timeout=ANSWER_S)
    return answer


class _Told:
    """A line when something changed, and not more often than one can read."""

    def __init__(self) -> None:
        self._said, self._at = "", 0.0

    def tell(self, p: Progress) -> None:
        text = f"{p['name']} is leaving: {p['left']} of {p['slots']} slots are still there"
        if p["leaderless"]:
            text += f", {p['leaderless']} have no leader and wait for one"
        elif not p["left"] and p["votes"]:
            text += "; it still votes on the registry"
        if text != self._said and time.monotonic() >= self._at:
            click.echo(text, err=True)
            self._said, self._at = text, time.monotonic() + TELL_S
