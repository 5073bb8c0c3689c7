"""`meshq upgrade`: let the mesh use what the newest version of meshq on all its peers has.

New software alone changes nothing that is written: peers of two versions run one mesh until somebody says
that there is no way back.
"""

from __future__ import annotations

from typing import Any

import click

from meshq.cli.options import json_option, reaching
from meshq.cli.output import print_json
from meshq.cli.reach import Failed, Where, ask


@click.command()
@click.option("--to", type=click.IntRange(min=1), metavar="LEVEL", help="Not as far as the peer asked knows.")
@click.option("--dry-run", is_flag=True, help="Say what would be gained, and who is in the way.")
@json_option
@reaching
def upgrade(to: int | None, dry_run: bool, as_json: bool, where: Where) -> None:
    """Raise the mesh's feature level, once every peer has the software for it.

    There is no way back: older software stops, and does not start again in this mesh.
    """
    args: dict[str, Any] = {"dry_run": dry_run} | ({"to": to} if to is not None else {})
    found = ask(where, "upgrade", args)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if dry_run and found["in_the_way"]:
        raise Failed(f"{len(found['in_the_way'])} of the peers would be in the way")


def _show(found: dict[str, Any]) -> None:
    if found["to"] == found["level"] and not found["raised"]:
        click.echo(f"The mesh has feature level {found['level']} already.")
        return
    did = "now has" if found["raised"] else "would get"
    click.echo(f"The mesh {did} feature level {found['to']}:")
    for level, what in found["gains"].items():
        click.echo(f"  {level}  {what}")
    for peer in found["in_the_way"]:
        click.echo(f"{peer['name']} {peer['why']}")
