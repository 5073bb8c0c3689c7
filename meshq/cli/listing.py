"""`status`, `peers` and `topics`: what there is."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_facts, print_json, print_table, show_bytes
from meshq.cli.reach import Where, ask, with_mesh
from meshq.cli.watching import watch_peers
from meshq.client.mesh import Mesh
from meshq.topics import check_pattern


@click.command()
@json_option
@reaching
def status(as_json: bool, where: Where) -> None:
    """Show how the peer sees itself and its mesh."""
    found = ask(where, "status")
    if as_json:
        print_json(found)
        return
    registry, slots, disk = found["registry"], found["slots"], found["disk"]
    leader = f"led by {registry['holder']}" if registry["holder"] else "without a leader"
    away = "" if registry["reachable"] else " that can be reached: nothing new can be registered"
    print_facts(
        {
            "peer": f"{found['name']} ({found['peer']})",
            "mesh": f"{found['mesh']}, feature level {found['mesh_level']}",
            "place": _place(found),
            "peers": f"{found['peers_reachable']} of {found['peers']} reachable",
            "registry": f"version {registry['version']:,}, {leader}{away}",
            "registry voters": ", ".join(registry["voters"]) or None,
            "topics": found["topics"],
            "slots": _slots(slots),
            "disk": f"{show_bytes(disk['room_bytes'])} free, {show_bytes(disk['pending_bytes'])} on the way",
            "clients": f"{found['sessions']} connected, {found['readers']} partitions being read",
        }
    )
    if counters := {k: v for k, v in found["counters"].items() if v}:
        click.echo()
        print_facts(counters)


def _place(found: dict[str, Any]) -> str | None:
    """Where it stands on the ring; nothing while the registry here does not know it yet."""
    if found["weight"] is None:
        return None
    if found["witness"]:
        return "witness: votes, keeps no records" + (f", zone {found['zone']}" if found["zone"] else "")
    return f"weight {found['weight']:g}" + (f", zone {found['zone']}" if found["zone"] else "")


def _slots(slots: dict[str, int]) -> str:
    """What this peer has to do with them, and what is wrong with any."""
    said = [f"{slots['led']} of {slots['total']} led here", f"{slots['replicas']} with a copy here"]
    for name in ("under_replicated", "moving", "leaderless"):
        if slots[name]:
            said.append(f"{slots[name]} {name.replace('_', '-')}")
    return ", ".join(said)


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
        row["reason"] = row["evidence"] or row["reason"]
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
