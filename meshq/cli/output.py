"""What verbs print: tables for people, JSON for programs, figures with units, and progress.

Progress is for a person who waits: only on a terminal, one line, a few times a second.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

PROGRESS_EVERY_S: Final = 0.25
NONE: Final = "-"


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=_show_bytes))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str = "") -> None:
    """One line a row; `columns` gives each field its heading. Numbers stand right."""
    if not rows:
        if empty:
            click.echo(empty, err=True)
        return
    numbers = {c for c in columns if all(isinstance(r.get(c), int | float | None) for r in rows)}
    cells = [list(columns.values()), *([_cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        padded = [
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for cell, width, name in zip(line, widths, columns, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def print_facts(facts: Mapping[str, Any]) -> None:
    """One fact a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {_cell(value)}")


def show_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_duration(seconds: float) -> str:
    """In the largest unit that it is a whole number of."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


def show_rate(records: int, size: int, seconds: float) -> str:
    """`12,000 records, 1.2 MB, 6,000 records/s, 0.6 MB/s`"""
    seconds = max(seconds, 1e-6)
    return (
        f"{records:,} record{'s' * (records != 1)}, {size / 1e6:,.1f} MB in {seconds:,.1f} s "
        f"({records / seconds:,.0f} records/s, {size / 1e6 / seconds:,.1f} MB/s)"
    )


class Progress:
    """One line on the terminal that is written over; silent when standard error is none, or not wanted."""

    def __init__(self, *, wanted: bool = True) -> None:
        self._on = wanted and sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + PROGRESS_EVERY_S
        self._shown = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def due(self) -> bool:
        """Whether there is somebody to see it, and it is time to show something new."""
        return self._on and time.monotonic() >= self._next

    def show(self, records: int, size: int) -> None:
        if self.due:
            self.say(show_rate(records, size, self.seconds))

    def say(self, text: str) -> None:
        """Write this over the line, now."""
        if self._on:
            self._next = time.monotonic() + PROGRESS_EVERY_S
            self._write(f"\r\x1b[K{text}")
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    def end(self, records: int, size: int) -> None:
        """The line as it stays; nothing when it never was there."""
        if self._shown:
            self.say(show_rate(records, size, self.seconds) + "\n")
            self._shown = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _cell(value: Any) -> str:
    match value:
        case None:
            return NONE
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.1f}"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(str, value)) or NONE
        case _:
            return str(value)


def _show_bytes(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} in an answer")
