"""The verbs, and how every one of them ends.

A verb's module is imported when the verb is called, so that `meshq pub` does not wait for what only `up`
needs. A verb raises; what that means for the user (one line on standard error, an exit code) is decided here,
once. MESHQ_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from meshq.cli.reach import Failed, NotReachable
from meshq.errors import MeshqError, UsageError

DONE, FAILED, USAGE, NOT_REACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

_VERBS: Final = {
    "init": "founding:init",
    "invite": "founding:invite",
    "join": "founding:join",
    "up": "up:up",
    "leave": "leave:leave",
    "recover": "recover:recover",
    "upgrade": "upgrade:upgrade",
    "status": "status:status",
    "peers": "listing:peers",
    "events": "watching:events",
    "topics": "listing:topics",
    "topic": "topic:topic",
    "groups": "group:groups",
    "group": "group:group",
    "client": "client:client",
    "authority": "authority:authority",
    "pub": "pub:pub",
    "sub": "sub:sub",
    "outbox": "outbox:outbox",
    "demo": "demo:demo",
    "completion": "about:completion",
    "version": "about:version",
}


class Verbs(click.Group):
    """A group whose commands are imported when they are needed, listed in the order one meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _VERBS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command = getattr(importlib.import_module(f"meshq.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Who read our output has enough, and said so in the usual way.
            hush(sys.stdout)
            return DONE


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="MESHQ_DATA",
    help="Data directory of this host's peer (~/.meshq).",
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path),
    envvar="MESHQ_CREDENTIALS",
    help="Reach the mesh by this file of `meshq client add` instead.",
)
@click.option("--timeout", type=float, envvar="MESHQ_TIMEOUT", help="Seconds to wait for the mesh (10).")
def cli(**_: Any) -> None:
    """A durable message queue with no broker to run: the peers on your hosts are the queue.

    \b
    meshq init && meshq up          a mesh of one peer, on this host
    meshq invite                    a token, with which another host joins
    meshq pub TOPIC, meshq sub TOPIC
    meshq demo                      see it work
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line; its exit code."""
    try:
        result = cli.main(list(arguments), prog_name="meshq", standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as e:
        if os.environ.get("MESHQ_DEBUG") == "1":
            raise
        return _ended(e)


def _ended(e: Exception) -> int:
    match e:
        case click.UsageError() if type(e).__name__ == "NoArgsIsHelpError":  # click 8.1 has none
            e.show()
            return USAGE
        case click.UsageError():
            where = e.ctx.command_path if e.ctx else "meshq"
            say_error(f"{e.format_message().rstrip('.')}. `{where} --help` tells how it is used")
            return USAGE
        case click.ClickException():
            say_error(e.format_message())
            return FAILED
        case NotReachable():
            say_error(str(e))
            return NOT_REACHABLE
        case UsageError():
            say_error(str(e))
            return USAGE
        case MeshqError() | Failed():
            say_error(str(e) or type(e).__name__)
            return FAILED
        case OSError():
            where = f"{e.filename}: " if e.filename else ""
            say_error(f"{where}{e.strerror or e}")
            return FAILED
        case _:
            say_error(f"this should not happen: {type(e).__name__}: {e}. MESHQ_DEBUG=1 shows where")
            return FAILED


def say_error(text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"meshq: error: {text}", err=True)


def hush(stream: Any) -> None:
    """Let what is still buffered for a reader that left go nowhere, so that the interpreter ends silently."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
