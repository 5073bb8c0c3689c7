"""`authority restore`: the use of the recovery secret that `meshq init` printed once."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meshq.cli.options import data_option
from meshq.errors import SecurityError, UsageError
from meshq.ids import show_id
from meshq.security.authority import Authority
from meshq.security.directory import DataDirectory


@click.group()
def authority() -> None:
    """The key that lets hosts and clients into the mesh."""


@authority.command()
@data_option
def restore(data: Path) -> None:
    """Put the authority back from the recovery secret, read from standard input.

    On a peer of the same mesh; from then on it may issue (`invite`, `client add`). Restart it if it runs.
    """
    directory = DataDirectory(data)
    papers = directory.load()
    if papers.authority is not None:
        raise UsageError(f"{directory.authority} is there already: nothing was changed")
    if sys.stdin.isatty():
        text = click.prompt("Recovery secret", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    found = Authority.from_recovery(text.strip())
    if found.key != papers.genesis.authority_key:
        raise SecurityError(
            f"this is the secret of mesh {show_id(found.mesh_id)}, the peer in {data} is of mesh "
            f"{show_id(papers.mesh_id)}: nothing was changed"
        )
    found.save(directory.authority)
    click.echo(f"{directory.authority} is back. Restart the peer if it runs.", err=True)
