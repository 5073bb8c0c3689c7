"""`groups`, and `group show|reset|redrive|delete`."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import Any, Final

import click
import msgspec

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_facts, print_json, print_table
from meshq.cli.reach import Where, connected, with_mesh
from meshq.client.groups import GroupPartition, To
from meshq.topics import check_pattern, check_topic

REFRESH_S: Final = 1.0


@click.command()
@click.argument("pattern", default="#")
@json_option
@reaching
def groups(pattern: str, as_json: bool, where: Where) -> None:
    """List the groups of topics that match a pattern (of all of them without one)."""
    check_pattern(pattern)
    found = [msgspec.to_builtins(g) for g in with_mesh(where, lambda mesh: mesh.groups(pattern))]
    if as_json:
        print_json(found)
        return
    print_table(
        found,
        {
            "topic": "TOPIC", "group": "GROUP", "mode": "MODE", "partitions": "PARTITIONS",
            "members": "MEMBERS", "lag": "LAG", "dead": "DEAD LETTERS",
        },
        empty="There are no groups: they begin with their first member, `meshq sub TOPIC --group NAME`.",
    )  # fmt: skip


@click.group()
def group() -> None:
    """Show and change groups of consumers."""


@group.command()
@click.argument("topic")
@click.argument("name", metavar="GROUP")
@click.option("--watch", is_flag=True, help="Go on: on a terminal as it changes, with --json a list a line.")
@json_option
@reaching
def show(topic: str, name: str, watch: bool, as_json: bool, where: Where) -> None:
    """Show where a group stands in each partition of a topic."""
    check_topic(topic)
    if watch:
        asyncio.run(_watch(where, topic, name, as_json=as_json))
        return
    found = with_mesh(where, lambda mesh: mesh.group_show(topic, name))
    if as_json:
        print_json([msgspec.to_builtins(p) for p in found])
    else:
        _print_group(found)


async def _watch(where: Where, topic: str, name: str, *, as_json: bool) -> None:
    async with connected(where, "meshq group show") as mesh:
        while True:
            found = await mesh.group_show(topic, name)
            if as_json:
                click.echo(json.dumps([msgspec.to_builtins(p) for p in found]))
            else:
                if sys.stdout.isatty():
                    click.clear()
                _print_group(found)
            sys.stdout.flush()
            await asyncio.sleep(REFRESH_S)


def _print_group(found: list[GroupPartition]) -> None:
    first = found[0]
    lags = [p.lag_s for p in found if p.lag_s is not None]
    print_facts(
        {
            "mode": first.mode,
            "ack wait": f"{first.ack_wait_ms / 1000:g} s",
            "max deliver": first.max_deliver or "no limit",
            "members": max(p.members for p in found),
            "lag": f"{sum(p.lag for p in found):,} records, {max(lags, default=0.0):,.1f} s",
            "dead letters": sum(p.dead for p in found),
            "expired": f"{sum(p.expired for p in found):,} records before they were done",
        }
    )
    click.echo()
    print_table(
        [msgspec.to_builtins(p) for p in found],
        {
            "partition": "PARTITION", "end": "END", "cursor": "CURSOR", "lag": "LAG", "lag_s": "LAG S",
            "members": "MEMBERS", **(_OF_ORDERED if first.mode == "ordered" else _OF_QUEUES),
            "leader": "LEADER",
        },
    )  # fmt: skip
    members = _members(found)
    if members:
        click.echo()
        print_table(
            members,
            {
                "member": "MEMBER",
                "name": "NAME",
                "here": "HERE",
                "partitions": "PARTITIONS",
                "leased": "LEASED",
            },
        )


def _members(found: list[GroupPartition]) -> list[dict[str, Any]]:
    """Of all partitions: where each takes part (mode ordered: what it has), and what it has in hand."""
    rows: dict[str, dict[str, Any]] = {}
    for p in found:
        for m in p.who:
            new = {"member": m.id, "name": "", "here": "no", "partitions": 0, "leased": 0}
            row = rows.setdefault(m.id, new)
            if m.here:
                row["name"], row["here"] = m.name or "", "yes"
            row["partitions"] += m.id == p.holder if p.mode == "ordered" else m.here
            row["leased"] += m.leased
    return sorted(rows.values(), key=lambda r: (r["name"], r["member"]))


_OF_ORDERED: Final = {"holder": "HOLDER"}
_OF_QUEUES: Final = {
    "leased": "LEASED", "waiting_again": "WAITING AGAIN", "redelivered": "REDELIVERED", "dying": "DYING",
    "dead": "DEAD LETTERS",
}  # fmt: skip


class _ToType(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> To:
        if value in ("earliest", "latest"):
            return str(value)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value)
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is none of: earliest, latest, an offset, a time as in 2025-01-31T08:00",
                param,
                ctx,
            )


@group.command()
@click.argument("topic")
@click.argument("name", metavar="GROUP")
@click.option(
    "--to",
    type=_ToType(),
    required=True,
    metavar="earliest|latest|OFFSET|TIME",
    help="Where to go on in each partition; a time as in 2025-01-31T08:00 (local unless it says).",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be.")
@json_option
@reaching
def reset(topic: str, name: str, to: To, dry_run: bool, as_json: bool, where: Where) -> None:
    """Have a group go on from elsewhere. What its members have in hand is theirs no more."""
    check_topic(topic)
    found = with_mesh(where, lambda mesh: mesh.group_reset(topic, name, to, dry_run=dry_run))
    rows = [msgspec.to_builtins(p) for p in found]
    if as_json:
        print_json(rows)
        return
    print_table(rows, {"partition": "PARTITION", "from": "FROM", "to": "WOULD GO ON AT" if dry_run else "TO"})


@group.command()
@click.argument("topic")
@click.argument("name", metavar="GROUP")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many. [all]")
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@json_option
@reaching
def redrive(topic: str, name: str, limit: int | None, dry_run: bool, as_json: bool, where: Where) -> None:
    """Hand out again what is in a group's dead letters, to that group alone."""
    check_topic(topic)
    found = with_mesh(where, lambda mesh: mesh.group_redrive(topic, name, limit=limit, dry_run=dry_run))
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    click.echo(f"Dead letters {'that would be ' if dry_run else ''}put back: {found.redriven:,}")
    if found.expired:
        click.echo(f"Of {found.expired:,} the record is not kept any more: read their letters.", err=True)
    if found.void:
        click.echo(f"Of {found.void:,} a reset had handed out the record again: they stay.", err=True)
    if found.left and (limit is None or found.redriven + found.expired + found.void < limit):
        click.echo(
            f"{found.left:,} are left: as many records are out as may be. Again when some are done.", err=True
        )


@group.command()
@click.argument("topic")
@click.argument("name", metavar="GROUP")
@click.option("--yes", is_flag=True, help="Do not ask.")
@reaching
def delete(topic: str, name: str, yes: bool, where: Where) -> None:
    """Forget where a group stands, with its dead letters. It must have no members."""
    check_topic(topic)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to confirm it: give --yes")
        click.confirm(f"Delete group {name} of topic {topic} with its dead letters?", abort=True, err=True)
    with_mesh(where, lambda mesh: mesh.group_delete(topic, name))
    click.echo(f"Group {name} of topic {topic} is deleted.", err=True)
