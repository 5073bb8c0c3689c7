"""docs/guarantees.md names tests that exist, marked as it says, and every promise has some."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = re.findall(r"^\| `(tests/[^`:]+)::(test_\w+)` \| (.+?) \| ?(\w*) ?\|$", TEXT, re.MULTILINE)
PROMISES = re.split(r"^## (P\d)\. ", TEXT, flags=re.MULTILINE)[1:]


def test_all_tests_named_are_in_rows_that_are_checked() -> None:
    assert len(ROWS) == TEXT.count("::") > 40


@pytest.mark.parametrize(("file", "name", "mark"), [(file, name, mark) for file, name, _, mark in ROWS])
def test_it_exists_and_runs_where_it_is_said_to(file: str, name: str, mark: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    tests = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in tests, f"{file} has no {name}"
    marks = [ast.unparse(d) for d in tests[name].decorator_list]
    marks += [
        ast.unparse(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)
    ]
    if mark == "lab":
        assert file.startswith("tests/lab/")
    else:
        assert ("pytest.mark.long" in " ".join(marks)) == (mark == "long"), marks


def test_each_promise_of_the_design_has_tests_of_two_kinds_at_least() -> None:
    assert PROMISES[::2] == [f"P{n}" for n in range(1, 9)]
    for name, text in zip(PROMISES[::2], PROMISES[1::2], strict=True):
        files = set(re.findall(r"`(tests/[^`:]+)::", text))
        assert len(files) >= 2, name
        assert text.splitlines()[2].startswith("> "), f"{name} says what is promised"
