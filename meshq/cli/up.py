"""`meshq up`: run the peer until it is told to stop.

The first SIGTERM or SIGINT stops it in order: nothing new, what is on its way to disk is finished, goodbye to
the others, exit 0 within ten seconds. The second one ends the process at once, which is safe too: what was
acknowledged is on disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final, Literal

import click

from meshq.cli.logs import set_up
from meshq.cli.options import DURATION, SIZE, data_option, place_options
from meshq.cli.reach import Failed
from meshq.errors import UsageError
from meshq.peer.settings import Settings, load_settings
from meshq.security.directory import DataDirectory

STOP_S: Final = 9.0  # a second less than what is promised
LEVELS = ["debug", "info", "warning", "error"]


@click.command()
@data_option
@click.option("--bind", multiple=True, metavar="ADDR", help="Listen here (all interfaces); more than once.")
@click.option("--advertise", multiple=True, metavar="HOST[:PORT]", help="Tell others to find it here.")
@click.option("--port", type=click.IntRange(1, 65_530), help="Base port (7700); the next five belong to it.")
@click.option(
    "--seed", multiple=True, metavar="HOST[:PORT]", help="Another peer, where there is no multicast."
)
@click.option("--no-mdns", is_flag=True, help="Do not announce or look for peers by multicast.")
@click.option("--no-auto-create", is_flag=True, help="Publishing to an unknown topic fails.")
@click.option("--store-bytes-max", type=SIZE, help="Most that is stored here.")
@click.option("--disk-reserve-bytes", type=SIZE, help="Free disk that is never used for records.")
@click.option(
    "--evacuate-after", "evacuate_after_s", type=DURATION, help="Replace a peer that was away so long (5m)."
)
@place_options
@click.option("--witness", is_flag=True, help="Refuse to run unless this peer joined as a witness.")
@click.option("--witness-bytes-max", type=SIZE, help="Most that a witness stores (4GiB).")
@click.option("--begin-empty", is_flag=True, help="Start though store/ is lost; copy what others have.")
@click.option("--log", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def up(data: Path, form: Literal["text", "json"], log_level: str, witness: bool, **flags: Any) -> None:
    """Run this host's peer until SIGTERM or Ctrl-C.

    Settings: `meshq.toml` in the data directory, then MESHQ_PORT and the like, then these flags.
    """
    if sys.platform != "linux":
        raise Failed(
            "peers run on Linux. Here, an application reaches a mesh with credentials of `meshq client add`"
        )
    directory = DataDirectory(data)
    settings = load_settings(directory.settings, _given(flags))
    if witness and not directory.load().certificate.witness:
        raise UsageError(
            f"the peer in {data} keeps records and will not be a witness: let it `meshq leave`, and join in "
            "a new directory with `meshq join TOKEN --witness`"
        )
    set_up(form, log_level)
    asyncio.run(_run(directory, settings))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Only what was said: the rest is left to the file and the environment."""
    given = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in flags.items()
        if v is not None and v is not False and v != ()
    }
    for name in ("mdns", "auto_create"):
        if given.pop(f"no_{name}", False):
            given[name] = False
    return given


async def _run(directory: DataDirectory, settings: Settings) -> None:
    from meshq.peer.shell import PeerShell

    stopped = _on_signals(asyncio.get_running_loop())
    shell = PeerShell(directory, settings)
    starting: asyncio.Future[Any] = asyncio.ensure_future(shell.start())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return
    starting.result()
    papers = shell.papers
    click.echo(
        f"meshq: peer {papers.identity.name} of mesh {papers.genesis.mesh_name} is up on "
        f"{', '.join(shell.neighbours.addresses)}"
    )
    failed: asyncio.Future[Any] = asyncio.ensure_future(_failure(shell.failed))
    await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    try:
        async with asyncio.timeout(STOP_S):
            await shell.stop()
    except TimeoutError:
        click.echo(
            "meshq: the peer did not stop in order in time; what was acknowledged is on disk", err=True
        )
        os._exit(1)
    if failed.done() and (error := failed.result()) is not None:
        raise Failed(f"the peer stopped: {error}") from error


async def _failure(failed: asyncio.Future[None]) -> BaseException | None:
    await asyncio.wait({failed})
    return None if failed.cancelled() else failed.exception()


def _on_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """Done at the first signal; the second one ends the process."""
    stopped: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        if stopped.done():
            os._exit(1)
        stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stopped
