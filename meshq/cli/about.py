"""`completion` and `version`."""

from __future__ import annotations

import platform
import sys

import click
from click.shell_completion import shell_complete

import meshq
from meshq.levels import LEVEL_KNOWN
from meshq.messages import VERSION_MAX, VERSION_MIN
from meshq.store.layout import FORMAT

_HOW = {
    "bash": 'put into ~/.bashrc:  eval "$(meshq completion bash)"',
    "zsh": 'put into ~/.zshrc:  eval "$(meshq completion zsh)"',
    "fish": "run once:  meshq completion fish > ~/.config/fish/completions/meshq.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_HOW)))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash   eval "$(meshq completion bash)" in ~/.bashrc
    zsh    eval "$(meshq completion zsh)" in ~/.zshrc
    fish   meshq completion fish > ~/.config/fish/completions/meshq.fish
    """
    command = click.get_current_context().find_root().command
    shell_complete(command, {}, "meshq", "_MESHQ_COMPLETE", f"{shell}_source")
    if sys.stdout.isatty():
        click.echo(f"To enable it, {_HOW[shell]}", err=True)


@click.command()
def version() -> None:
    """Print the version of meshq."""
    import zmq

    click.echo(f"meshq {meshq.__version__} (Python {platform.python_version()}, libzmq {zmq.zmq_version()})")
    click.echo(f"protocol {VERSION_MIN} to {VERSION_MAX}, store format {FORMAT}, feature level {LEVEL_KNOWN}")
