"""What the lab measured, printed as tables at the end of the run, and written to $MESHQ_LAB_REPORT if set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_tables: dict[str, list[Sequence[object]]] = {}


class Report:
    """`row` adds a line to the table of that heading; the heading is a markdown table's, `a | b | c`."""

    def row(self, heading: str, *cells: object) -> None:
        _tables.setdefault(heading, []).append(cells)


@pytest.fixture(scope="session")
def report() -> Report:
    return Report()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _tables:
        return
    lines: list[str] = []
    for heading, rows in _tables.items():
        columns = heading.count("|") + 1
        lines += ["", f"| {heading} |", "|" + "---|" * columns]
        lines += ["| " + " | ".join(map(str, cells)) + " |" for cells in rows]
    terminalreporter.write_line("\n".join(lines))
    if where := os.environ.get("MESHQ_LAB_REPORT"):
        Path(where).write_text("\n".join(lines).lstrip() + "\n")
