"""`client add`: an application's key, what it may do, and the file that tells it where the mesh is.

The key pair is made here and its certificate is signed here, so the secret never travels; the mesh is told of
the certificate, and the file is written last: a file that exists works.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import zmq
from zmq.utils import z85

from meshq.cli.founding import check_authority
from meshq.cli.options import DURATION, reaching
from meshq.cli.reach import Failed, Where, connected
from meshq.errors import UsageError
from meshq.peer.endpoints import tcp
from meshq.peer.settings import FEED, INGEST
from meshq.security.certificates import Verb, issue, new_serial
from meshq.security.credentials import Credentials, CredentialsPeer
from meshq.security.directory import DataDirectory, Loaded
from meshq.security.text import check_name, parse_key
from meshq.topics import check_pattern


@click.group()
def client() -> None:
    """Let applications in."""


@client.command()
@click.argument("name")
@click.option("--publish", multiple=True, metavar="PATTERN", help="Topics it may publish to; more than once.")
@click.option("--subscribe", multiple=True, metavar="PATTERN", help="Topics it may read; more than once.")
@click.option("--admin", is_flag=True, help="It may do everything: create topics, delete them, ...")
@click.option("--expires", type=DURATION, default="365d", show_default=True, metavar="TIME")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="(NAME.meshq)")
@reaching
def add(
    name: str,
    publish: Sequence[str],
    subscribe: Sequence[str],
    admin: bool,
    expires: int,
    out: Path | None,
    where: Where,
) -> None:
    """Make the credentials file of an application, and print its path.

    In a pattern * stands for one word of a topic and a # at its end for the rest: 'orders.#'. To be run on
    the peer that made the mesh, while it runs.
    """
    check_name(name, "a client's name")
    capabilities: list[tuple[Verb, str]] = [
        *(("publish", check_pattern(p)) for p in publish),
        *(("subscribe", check_pattern(p)) for p in subscribe),
    ]
    if admin:
        capabilities.append(("admin", "#"))
    if not capabilities:
        raise click.UsageError("it may do nothing yet: give --publish, --subscribe or --admin")
    path = out or Path(f"{name}.meshq")
    _check_free(path)
    directory = DataDirectory(where.data)
    papers = directory.load()
    check_authority(directory, papers, "let clients in")
    asyncio.run(_add(where, papers, name, capabilities, expires, path))
    click.echo(path)


async def _add(
    where: Where, papers: Loaded, name: str, capabilities: list[tuple[Verb, str]], expires: int, path: Path
) -> None:
    assert papers.authority is not None
    public, secret = (z85.decode(key) for key in zmq.curve_keypair())
    signed = issue(
        papers.authority, kind="client", name=name, curve_key=public, serial=new_serial(), now=time.time(),
        capabilities=capabilities, valid_s=expires,
    )  # fmt: skip
    async with connected(where) as mesh:
        peers = _peers(await mesh.ask("peers"))
        await mesh.ask("client.register", {"certificate": signed.encode()})
    Credentials(papers.genesis.authority_key, name, public, secret, peers).save(path)


def _peers(rows: list[dict[str, Any]]) -> tuple[CredentialsPeer, ...]:
    """Those whose address is known."""
    found = []
    for row in rows:
        if (address := row["address"]) is None:
            click.echo(f"meshq: note: where peer {row['name']} is, is not known: it is left out", err=True)
            continue
        key = parse_key(row["server_key"], f"the key of {row['name']}")
        found.append(
            CredentialsPeer(row["name"], tcp(address), tcp(address, FEED), tcp(address, INGEST), key)
        )
    if not found:
        raise Failed(
            "no peer says where it can be reached: give one an address with `meshq up --advertise HOST`"
        )
    return tuple(found)


def _check_free(path: Path) -> None:
    if path.exists():
        raise UsageError(
            f"{path} exists: nothing was changed. Move it away, or choose another with --out FILE"
        )
    if not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"{path.parent} is no directory that can be written to: choose another with --out FILE"
        )
