"""`peers` and `topics`: what there is."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any, Final

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_json, print_table
from meshq.cli.reach import Where, ask, with_mesh
from meshq.cli.watching import watch_peers
from meshq.client.mesh import Mesh
from meshq.topics import check_pattern

CLOCK_OFF_MS: Final = 30_000  # as peers judge


@click.command()
@click.option("--watch", is_flag=True, help="Go on: on a terminal as it changes, with --json a list a line.")
@json_option
@reaching
def peers(watch: bool, as_json: bool, where: Where) -> None:
    """List the mesh's peers, this one included, as the peer sees them that answers."""
    if watch:
        watch_peers(where, (lambda rows: click.echo(json.dumps(rows))) if as_json else _redraw)
        return
    found = ask(where, "peers")
    if as_json:
        print_json(found)
    else:
        _show_peers(found)


def _redraw(rows: list[dict[str, Any]]) -> None:
    """Over what stands there, on a terminal; one below the other in a file."""
    if sys.stdout.isatty():
        click.clear()
    _show_peers(rows)


def _show_peers(found: list[dict[str, Any]]) -> None:
    for row in found:
        row["name"] += " *" if row["holds_registry"] else ""
        row["state"] += ", witness" if row["witness"] else ""
        row["state"] += ", leaving" if row["standing"] == "leaving" else ""
        row["since"] = _show_time(row["since_ms"])
        row["reason"] = row["evidence"] or row["reason"] or _clock(row["clock_offset_ms"])
    print_table(
        found,
        {
            "name": "NAME", "state": "STATE", "since": "SINCE", "address": "ADDRESS", "slots": "SLOTS",
            "weight": "WEIGHT", "zone": "ZONE",
            "link": "LINK", "rtt_ms": "RTT MS", "incarnation": "INCARNATION", "id": "ID", "reason": "REASON",
        },
    )  # fmt: skip
    if any(row["holds_registry"] for row in found):
        click.echo("* votes on what is registered", err=True)


def _clock(offset_ms: int | None) -> str | None:
    """What is to be said of a clock that is off."""
    if offset_ms is None or abs(offset_ms) <= CLOCK_OFF_MS:
        return None
    return f"clock {abs(offset_ms) / 1000:,.0f} s {'ahead' if offset_ms > 0 else 'behind'}"


def _show_time(ms: int | None) -> str | None:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S") if ms else None


@click.command()
@click.argument("pattern", default="#")
@json_option
@reaching
def topics(pattern: str, as_json: bool, where: Where) -> None:
    """List the topics that match a pattern (all of them without one)."""
    check_pattern(pattern)
    found = with_mesh(where, lambda mesh: _all_topics(mesh, pattern))
    if as_json:
        print_json(found)
        return
    print_table(
        found,
        {"name": "NAME", "partitions": "PARTITIONS", "record_bytes_max": "RECORD BYTES MAX"},
        empty="There are no topics yet: `meshq topic create NAME`, or just `meshq pub NAME`.",
    )


async def _all_topics(mesh: Mesh, pattern: str) -> list[dict[str, Any]]:
    """Page by page; an empty one is the end."""
    found: list[dict[str, Any]] = []
    while page := await mesh.ask("topics", {"pattern": pattern, "after": found[-1]["name"] if found else ""}):
        found += page
    return found
