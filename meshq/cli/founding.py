"""`init`, `invite` and `join`: how a mesh begins and how a host gets in."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import tomli_w

from meshq.cli.options import DURATION, data_option, place_options
from meshq.cli.reach import NotReachable
from meshq.errors import SecurityError, Unavailable, UsageError
from meshq.gossip import remembered
from meshq.peer.doors import join as join_at_door
from meshq.peer.endpoints import advertised
from meshq.peer.presence import read_run
from meshq.peer.settings import DOOR, PORT, Settings, check_settings, load_settings
from meshq.security.directory import DataDirectory, Loaded, create_mesh
from meshq.security.files import write_private
from meshq.security.genesis import FOUNDERS_MAX
from meshq.security.text import check_name, show_time
from meshq.security.tokens import EXPIRES_S, Place, Token
from meshq.transport.interfaces import format_address, parse_address

PORT_STEP: Final = 10  # between the peers that `init --peers` makes for one host


@click.command()
@data_option
@click.option("--name", help="This peer's name (the host's).")
@click.option("--mesh", "mesh_name", default="mesh", show_default=True, help="The mesh's name.")
@click.option("--slots", type=click.IntRange(1, 4096), default=256, show_default=True, help="For life.")
@click.option("--replicas", type=click.IntRange(1, 5), default=3, show_default=True, help="Copies of a slot.")
@click.option("--peers", type=click.IntRange(1, FOUNDERS_MAX), help="Make this many directories at once.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where: DIR/peer1, DIR/peer2, ..."
)
@click.option("--port", type=click.IntRange(1, 65_530), help=f"Base port of the (first) peer ({PORT}).")
@click.option("--witness", is_flag=True, help="With --peers: the last one votes and keeps no records.")
@place_options
def init(
    data: Path,
    name: str | None,
    mesh_name: str,
    slots: int,
    replicas: int,
    peers: int | None,
    out: Path | None,
    port: int | None,
    witness: bool,
    weight: float | None,
    zone: str | None,
) -> None:
    """Make a mesh, and this host's peer in it.

    With --peers N --out DIR: N ready data directories, DIR/peer1 and so on, for this host or to be moved to
    others. peer1 holds the authority, which lets further hosts in.

    With --witness the last of them is a witness: with two others, either of those may be lost and publishing
    goes on, for the disk space of what the lost one lacks.
    """
    if witness and (peers is None or peers < 3):
        raise click.UsageError(
            "a witness helps two peers that keep records: --peers 3 --witness makes all three; on a third "
            "host, `meshq join TOKEN --witness`"
        )
    if (peers is None) != (out is None):
        raise click.UsageError("--peers N and --out DIR belong together")
    if peers is not None and name is not None:
        raise click.UsageError("--name is for one peer; with --peers they are called peer1, peer2, ...")
    if peers is not None and (weight is not None or zone is not None):
        raise click.UsageError("--weight and --zone are for one peer; with --peers, give them to `meshq up`")
    if out is not None and peers is not None:
        paths = [out / f"peer{i + 1}" for i in range(peers)]
        names = [p.name for p in paths]
        base = PORT if port is None else port
        ports: list[int | None] = [base + PORT_STEP * i for i in range(peers)]
        if max(p or 0 for p in ports) > 65_530:
            raise click.UsageError(
                f"{peers} peers from port {base} on go beyond 65535: choose a lower --port"
            )
    else:
        paths, names, ports = [data], [check_name(name) if name else host_name()], [port]
    check_name(mesh_name, "a mesh's name")
    settings = [_settings_of(ports, i) | _place(weight, zone) for i in range(len(paths))]
    for path, own in zip(paths, settings, strict=True):
        _refuse_to_overwrite(DataDirectory(path).settings, own)
    now = time.time()
    secret = create_mesh(
        paths, names, mesh_name=mesh_name, slots=slots, replicas=replicas, now=now, witness=witness
    )
    for path, own in zip(paths, settings, strict=True):
        if own:
            write_private(DataDirectory(path).settings, tomli_w.dumps(own).encode())
    _tell_made(paths, names, ports, mesh_name, secret, witness=witness)


def _settings_of(ports: list[int | None], mine: int) -> dict[str, Any]:
    """The port, and where the others are while they are on this host, which needs no multicast then."""
    settings: dict[str, Any] = {}
    if ports[mine] is not None:
        settings["port"] = ports[mine]
    if seeds := [f"127.0.0.1:{p}" for i, p in enumerate(ports) if i != mine]:
        settings["seed"] = seeds
    return settings


def _refuse_to_overwrite(file: Path, settings: dict[str, Any]) -> None:
    if settings and file.exists():
        lines = tomli_w.dumps(settings).strip().replace("\n", ", ")
        raise UsageError(
            f"{file} is there already: nothing was changed. Leave out --port, --weight and --zone and write "
            f"into it yourself ({lines}), or move it away"
        )


def _place(weight: float | None, zone: str | None) -> dict[str, Any]:
    """As settings. Raises: UsageError."""
    given = {"weight": weight, "zone": zone}
    found = {name: value for name, value in given.items() if value is not None}
    check_settings("the flags", found)
    return found


def _tell_made(
    paths: list[Path],
    names: list[str],
    ports: list[int | None],
    mesh_name: str,
    secret: str,
    *,
    witness: bool,
) -> None:
    click.echo(f"Mesh {mesh_name} is made.")
    for path, name, port in zip(paths, names, ports, strict=True):
        kind = "witness" if witness and path == paths[-1] else "peer"
        click.echo(f"  {kind} {name} in {path}" + (f", base port {port}" if port else ""))
    click.echo(f"  the authority, which lets others in, in {DataDirectory(paths[0]).authority}")
    click.echo(f"\nRecovery secret: {secret}")
    click.echo(
        "Write it down and keep it off this host: it is shown only now, and if the authority's file is ever\n"
        "lost, only this secret lets further hosts and clients into the mesh."
    )
    click.echo("\nNext:")
    for path in paths:
        click.echo(f"  meshq up --data {path}" + (" &" if len(paths) > 1 else ""))
    if len(paths) > 1:
        click.echo(
            "A directory may be moved to another host before that. Where multicast does not work, tell it\n"
            "where another peer is: --seed HOST:PORT"
        )


@click.command()
@data_option
@click.option("--expires", type=DURATION, default=f"{EXPIRES_S // 60}m", show_default=True, metavar="TIME")
@click.option("--advertise", multiple=True, metavar="HOST[:PORT]", help="Where the new host finds this peer.")
def invite(data: Path, expires: int, advertise: tuple[str, ...]) -> None:
    """Print a token with which one host may join, once.

    Only the token is on standard output. The peer need not run now, but when the token is used.
    """
    directory = DataDirectory(data)
    papers = directory.load()
    check_authority(directory, papers, "let others in")
    addresses = _addresses(directory, list(advertise))
    places = [Place(a, parse_address(a)[1] + DOOR) for a in addresses]
    now = time.time()
    made = directory.invites.create(now, expires)
    token = Token.new(made, places=places, mesh_id=papers.mesh_id, inviter_key=papers.identity.curve_public)
    click.echo(token.show())
    click.echo(
        f"One host may join with this token until {show_time(made.expires_s)}. It leads to "
        f"{', '.join(a.address for a in token.places)}.\nOn that host: meshq join TOKEN",
        err=True,
    )


def check_authority(directory: DataDirectory, papers: Loaded, purpose: str) -> None:
    if papers.authority is None:
        raise SecurityError(
            f"{directory.path} does not hold the mesh's authority, which is needed to {purpose}: "
            "do this on the peer that made the mesh"
        )


def _addresses(directory: DataDirectory, advertise: list[str]) -> list[str]:
    """Where this peer is: as told now, as it runs, or as it would run."""
    settings = load_settings(directory.settings, {"advertise": advertise} if advertise else {})
    try:
        run = read_run(directory)
    except Unavailable:
        return list(advertised(settings))
    if advertise:
        return [format_address(*parse_address(text, int(run["port"]))) for text in advertise]
    return [str(a) for a in run["addresses"]]


@click.command(no_args_is_help=True)
@click.argument("token")
@data_option
@click.option("--name", help="This peer's name (the host's).")
@click.option("--witness", is_flag=True, help="It votes and keeps no records.")
@place_options
def join(
    token: str, data: Path, name: str | None, witness: bool, weight: float | None, zone: str | None
) -> None:
    """Join a mesh with a token of `meshq invite`; - reads it from standard input."""
    text = sys.stdin.readline() if token == "-" else token
    Token.parse(text)
    settings = _place(weight, zone)
    _refuse_to_overwrite(DataDirectory(data).settings, settings)
    try:
        called = check_name(name) if name else host_name()
        directory, inviter = asyncio.run(join_at_door(data, text, called, witness=witness))
    except Unavailable as e:
        raise NotReachable(str(e)) from e
    remembered.save(directory.peers, inviter)
    if settings:
        write_private(directory.settings, tomli_w.dumps(settings).encode())
    papers = directory.load()
    kind = "Witness" if witness else "Peer"
    click.echo(f"{kind} {papers.identity.name} is a member of mesh {papers.genesis.mesh_name}, in {data}")
    port = _settings_or_default(directory).port
    hint = "" if port != PORT else f"   (--port, if {PORT} is taken on this host)"
    click.echo(f"\nNext:\n  meshq up --data {data}{hint}")


def _settings_or_default(directory: DataDirectory) -> Settings:
    try:
        return load_settings(directory.settings, {})
    except UsageError:
        return Settings()


def host_name() -> str:
    """This host's name as a peer may be called."""
    short = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", short).strip("-")[:63] or "peer"
