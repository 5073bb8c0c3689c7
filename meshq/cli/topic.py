"""`topic create|show|set|delete`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from meshq.cli.options import (
    COUNT_OR_NONE,
    DURATION,
    DURATION_OR_NONE,
    SIZE,
    SIZE_OR_NONE,
    json_option,
    reaching,
)
from meshq.cli.output import print_facts, print_json, print_table, show_bytes, show_duration
from meshq.cli.reach import Where, ask
from meshq.topics import check_topic

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def topic() -> None:
    """Create, show, change and delete topics."""


copies_min_option = click.option(
    "--copies-min",
    type=click.IntRange(min=1),
    help="Acknowledge a record when so many peers have it, and take none while fewer could (1).",
)


_RETAIN = (
    click.option("--retain-age", type=DURATION_OR_NONE, help="Records older than this go (none)."),
    click.option(
        "--retain-bytes", type=SIZE_OR_NONE, help="The oldest go while a partition has more than this (none)."
    ),
    click.option("--retain-records", type=COUNT_OR_NONE, help="A partition has so many at most (none)."),
    click.option("--compact/--no-compact", default=None, help="Of a key's records only the last is kept."),
    click.option("--tombstone-age", type=DURATION, help="How long --compact keeps an empty value (24h)."),
)


def retain_options(f: F) -> F:
    return functools.reduce(lambda made, option: option(made), reversed(_RETAIN), f)


@topic.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(min=1), help="How many ordered logs it is spread over (8).")
@click.option("--record-bytes-max", type=SIZE, help="Largest record (1MiB).")
@copies_min_option
@retain_options
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
@retain_options
@json_option
@reaching
def set_(name: str, as_json: bool, where: Where, **settings: int | None) -> None:
    """Change a topic. Partitions only ever grow."""
    if all(value is None for value in settings.values()):
        raise click.UsageError("nothing to set: see `meshq topic set --help`")
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
    for key, value in settings.items():
        if value is None:
            continue
        if key.endswith("_age"):
            args[f"{key}_ms"] = value * 1000 or None
        else:
            args[key] = (value or None) if key.startswith("retain_") else value
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
            "kept": _show_retain(found),
        }
    )


def _show_retain(found: dict[str, Any]) -> str:
    """In words; a peer of an earlier version says nothing of it."""
    limits = []
    if age_ms := found.get("retain_age_ms"):
        limits.append(f"for {show_duration(age_ms / 1000)}")
    if size := found.get("retain_bytes"):
        limits.append(f"up to {show_bytes(size)} a partition")
    if records := found.get("retain_records"):
        limits.append(f"{records:,} records a partition")
    if found.get("compact"):
        tombstones = show_duration(found["tombstone_age_ms"] / 1000)
        limits.append(f"the last of each key (empty ones for {tombstones})")
    return ", ".join(limits) or "for ever"
