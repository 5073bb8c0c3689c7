"""`meshq recover`: when peers are lost for good and most voters of slots with them, go on with what is left.

Without --yes it only says what would be done and what may be lost. With it, the same is found out once more,
and is refused where it is not what it was a moment before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_json, print_table
from meshq.cli.reach import Failed, Where, with_mesh
from meshq.client.mesh import Mesh

ROWS = 20  # of slots, for people; --json has all


@click.command()
@click.option("--gone", multiple=True, metavar="NAME", help="A peer that is lost for good; each of them.")
@click.option("--yes", is_flag=True, help="Do it. What is said to be missing is lost then.")
@json_option
@reaching
def recover(gone: tuple[str, ...], yes: bool, as_json: bool, where: Where) -> None:
    """Go on where most voters of a slot are lost for good.

    Of each such slot the most advanced copy that is left goes on, and what was acknowledged and never came
    there is lost. Refused while it could be wrong: one named here is alive, or another one does not answer.
    """

    async def work(mesh: Mesh) -> dict[str, Any]:
        args: dict[str, Any] = {"gone": list(gone)}
        found: dict[str, Any] = await mesh.ask("recover.plan", args)
        if yes:
            found = await mesh.ask("recover.run", {**args, "plan": found["plan"]})
        return found

    found = with_mesh(where, work)
    if as_json:
        print_json({k: v for k, v in found.items() if k != "plan"})
    else:
        _show(found, done=yes)
    if found.get("failed"):
        slot, why = found["failed"][0]
        raise Failed(f"{len(found['failed'])} slots did not go on, the first one is {slot}: {why}")


def _show(found: dict[str, Any], *, done: bool) -> None:
    rows = found["slots"]
    for row in rows:
        ms = row["missing_since_ms"]
        row["since"] = _when(ms) if ms else None
    print_table(
        rows[:ROWS],
        {
            "slot": "SLOT", "peer": "GOES ON AT", "kept": "KEPT UP TO ENTRY", "last": "LOG ENDS AT",
            "since": "MAY BE MISSING SINCE", "members": "MEMBERS WERE",
        },
    )  # fmt: skip
    if len(rows) > ROWS:
        click.echo(f"... and {len(rows) - ROWS} more (--json has all)")
    if without := found["without_a_copy"]:
        click.echo(f"Of {len(without)} slots no copy is left, and they wait for one: {', '.join(without)}")
    if done:
        went = len(rows) - len(found["failed"])
        click.echo(f"{went} of {len(rows)} slots went on. Readers are told where records are lost.")
        click.echo("Peers that do not come back: meshq leave --peer NAME")
    else:
        click.echo(
            "\nRecords acknowledged after the times above may be lost; of slots without a time, any."
            "\nWho read them is told so."
            "\nNothing was changed. To do it: the same with --yes"
        )


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
