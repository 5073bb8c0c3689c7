"""`meshq status`: how the peer sees itself and its mesh, and what is not as it should be.

For people the first few slots of each kind; `--json` has all of them. `--check` makes the exit code say it,
for a program that watches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_facts, print_json, show_bytes
from meshq.cli.reach import Failed, Where, ask

ROWS: Final = 5  # slots of a kind, for people
CLOCK_OFF_MS: Final = 30_000  # as peers judge
Found = dict[str, Any]


@click.command()
@click.option(
    "--check",
    "checks",
    multiple=True,
    type=click.Choice(["leaders", "copies", "clock"]),
    help="Exit with 1: a slot or the registry has no leader; a slot lacks a copy; the clock is wrong.",
)
@json_option
@reaching
def status(checks: tuple[str, ...], as_json: bool, where: Where) -> None:
    """Show how the peer sees itself and its mesh."""
    found = ask(where, "status")
    if as_json:
        print_json(found)
    else:
        _show(found)
    if wrong := [text for check in checks for text in _CHECKS[check](found)]:
        raise Failed("; ".join(wrong))


def _leaders(found: Found) -> list[str]:
    slots = found["slots"]
    said = [
        f"{slots[name]} slots {text}"
        for name, text in (("leaderless", "have no leader"), ("led_out_of_reach", "are led out of reach"))
        if slots[name]
    ]
    return said if found["registry"]["reachable"] else [*said, "the registry has no leader within reach"]


def _copies(found: Found) -> list[str]:
    lacking = found["slots"]["under_replicated"]
    return [f"{lacking} slots lack a copy"] if lacking else []


def _clock_wrong(found: Found) -> list[str]:
    return [found["clock"]["why"]] if found["clock"]["why"] else []


_CHECKS: Final[dict[str, Callable[[Found], list[str]]]] = {
    "leaders": _leaders,
    "copies": _copies,
    "clock": _clock_wrong,
}


# ------------------------------------------------------------------------------------------- for people
def _show(found: Found) -> None:
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
            "clock": _clock(found["clock"]),
            "outbox": _outbox(found["outbox"]),
            "clients": f"{found['sessions']} connected, {found['readers']} partitions being read",
        }
    )
    _show_health(found["health"])
    if counters := {k: v for k, v in found["counters"].items() if v}:
        click.echo()
        print_facts(counters)


def _place(found: Found) -> str | None:
    """Where it stands on the ring; nothing while the registry here does not know it yet."""
    if found["weight"] is None:
        return None
    if found["witness"]:
        return "a witness: it votes, and keeps no records" + (
            f", zone {found['zone']}" if found["zone"] else ""
        )
    return f"weight {found['weight']:g}" + (f", zone {found['zone']}" if found["zone"] else "")


def _clock(clock: Found) -> str:
    compared = f"compared with {clock['compared_with']} other{'s' * (clock['compared_with'] != 1)}"
    said = [clock["why"] or "right", compared]
    if clock["offset_ms"] is not None and not clock["why"]:
        said[0] = f"right, {clock['offset_ms'] / 1000:+.1f} s off the median"
    if clock["records_ahead_ms"] > CLOCK_OFF_MS:
        seconds = clock["records_ahead_ms"] / 1000
        said.append(f"a clock was wrong: times of new records stand still for {seconds:,.0f} s")
    return ", ".join(said)


def _outbox(found: Found | None) -> str | None:
    """Of the program that the peer is in."""
    if found is None:
        return None
    said = f"{found['queued']:,} queued, {found['sent']:,} sent, {found['parked']:,} parked"
    said += f", {show_bytes(found['bytes'])} of {show_bytes(found['bytes_max'])}"
    return f"{said}; halted: {found['halted']}" if found["halted"] else said


def _slots(slots: dict[str, int]) -> str:
    """What this peer has to do with them, and what is wrong with any in the mesh."""
    said = [f"{slots['led']} of {slots['total']} led here", f"{slots['replicas']} with a copy here"]
    for name in ("under_replicated", "moving", "leaderless", "led_out_of_reach"):
        if slots[name]:
            said.append(f"{slots[name]} {name.replace('_', '-')}")
    return ", ".join(said)


def _show_health(health: Found) -> None:
    """In the order of how much it matters."""
    _show_some("without a leader", health["leaderless"], _leaderless)
    _show_some("led by somebody who cannot be reached from here", health["led_out_of_reach"], str)
    _show_some("under-replicated", health["under_replicated"], _under_replicated)
    _show_some("moving", health["moving"], _moving)


def _show_some(title: str, rows: Sequence[Any], show: Callable[[Any], str]) -> None:
    if not rows:
        return
    click.echo(f"\nslots {title}: {len(rows)}")
    for row in rows[:ROWS]:
        click.echo(f"  {show(row)}")
    if len(rows) > ROWS:
        click.echo(f"  and {len(rows) - ROWS} more (--json has all)")


def _leaderless(row: Found) -> str:
    if row["voters"] is None:
        return f"{row['slot']}: no peer that answers has a copy"
    away = f"{_list(row['away'])} away" if row["away"] else "an election is under way"
    return f"{row['slot']}: since {_when(row['since_ms'])}, {away}, of voters {_list(row['voters'])}"


def _under_replicated(row: Found) -> str:
    def lacks(x: Found) -> str:
        behind = f" by {x['entries_behind']:,} entries" if x["why"] == "behind" else ""
        return f"{x['peer']} {x['why']}{behind}"

    missing = ", ".join(map(lacks, row["missing"]))
    return f"{row['slot']}: {row['copies']} of {row['wanted']} copies, led by {row['leader']}; {missing}"


def _moving(row: Found) -> str:
    to = ", ".join(f"{x['peer']} ({_progress(x)})" for x in row["to"])
    said = [f"{row['slot']}:"]
    said += [f"to {to}"] if to else []
    said += [f"from {_list(row['from'])}"] if row["from"] else []
    said += ["changing members"] if row["changing"] else []
    said += [f"waiting for {_list(row['waits_for'])}"] if row["waits_for"] else []
    return " ".join(said)


def _progress(to: Found) -> str:
    size = f"{show_bytes(to['bytes'])} of {show_bytes(to['bytes_total'])}"
    return f"{size}, entry {to['entries']:,} of {to['entries_total']:,}"


def _list(names: Collection[str]) -> str:
    return ", ".join(names)


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
