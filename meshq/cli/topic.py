"""`topic create|show|set|delete`."""

from __future__ import annotations

import sys
from typing import Any

import click

from meshq.cli.options import SIZE, json_option, reaching
from meshq.cli.output import print_facts, print_json, print_table, show_bytes
from meshq.cli.reach import Where, ask
from meshq.topics import check_topic


@click.group()
def topic() -> None:
    """Create, show, change and delete topics."""


copies_min_option = click.option(
    "--copies-min",
    type=click.IntRange(min=1),
    help="Acknowledge a record when so many peers have it, and take none while fewer could (1).",
)


@topic.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(min=1), help="How many ordered logs it is spread over (8).")
@click.option("--record-bytes-max", type=SIZE, help="Largest record (1MiB).")
@copies_min_option
@json_option
@reaching
def create(name: str, as_json: bool, where: Where, **settings: int | None) -> None:
    """Create a topic."""
    _change(where, "topic.create", name, settings, as_json=as_json)


@topic.command("set")
@click.argument("name")
@click.option("--partitions", type=click.IntRange(min=1), help="More partitions: keys move between them.")
@click.option("--record-bytes-max", type=SIZE, help="Largest record from now on.")
@copies_min_option
@json_option
@reaching
def set_(name: str, as_json: bool, where: Where, **settings: int | None) -> None:
    """Change a topic. Partitions only ever grow."""
    if all(value is None for value in settings.values()):
        raise click.UsageError("nothing to set: give --partitions, --record-bytes-max or --copies-min")
    if settings["partitions"] is not None:
        click.echo(
            "meshq: note: with other partitions a key's later records may go to another one "
            "than its earlier ones, and then they are not in order with them",
            err=True,
        )
    _change(where, "topic.set", name, settings, as_json=as_json)


@topic.command()
@click.argument("name")
@json_option
@reaching
def show(name: str, as_json: bool, where: Where) -> None:
    """Show a topic and where its partitions are."""
    found = ask(where, "topic.show", {"topic": check_topic(name)})
    if as_json:
        print_json(found)
        return
    _print_topic(found)
    click.echo()
    print_table(
        found["partition"],
        {
            "partition": "PARTITION", "slot": "SLOT", "owner": "OWNER", "earliest": "EARLIEST", "end": "END",
            "bytes": "BYTES",
        },
    )  # fmt: skip


@topic.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@reaching
def delete(name: str, yes: bool, where: Where) -> None:
    """Delete a topic with all its records."""
    check_topic(name)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to confirm it: give --yes")
        click.confirm(f"Delete topic {name} with all its records?", abort=True, err=True)
    ask(where, "topic.delete", {"topic": name})
    click.echo(f"Topic {name} is deleted.", err=True)


def _change(where: Where, what: str, name: str, settings: dict[str, int | None], *, as_json: bool) -> None:
    args: dict[str, Any] = {"topic": check_topic(name)}
    args |= {key: value for key, value in settings.items() if value is not None}
    found = ask(where, what, args)
    print_json(found) if as_json else _print_topic(found)


def _print_topic(found: dict[str, Any]) -> None:
    print_facts(
        {
            "topic": found["name"],
            "id": found["id"],
            "partitions": found["partitions"],
            "record bytes max": show_bytes(found["record_bytes_max"]),
            "copies min": found["copies_min"],
        }
    )
