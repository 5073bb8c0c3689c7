"""The table of bounds is what the code uses and what the page says."""

from __future__ import annotations

from pathlib import Path

from meshq import limits

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"


def test_the_page_begins_with_the_table() -> None:
    assert PAGE.read_text().startswith(limits.as_markdown()), "run `make docs`"


def test_every_bound_is_in_the_table_under_its_own_name() -> None:
    constants = {n: v for n, v in vars(limits).items() if n.isupper() and not n.startswith("_")}
    for unit in ("KIB", "MIB", "GIB"):
        del constants[unit]
    assert {row.name: row.value for row in limits.table()} == constants


def test_every_bound_is_a_positive_number_with_a_named_answer() -> None:
    for row in limits.table():
        assert row.value > 0, row.name
        assert row.what and row.answer, row.name


def test_what_is_inside_something_is_smaller_than_it() -> None:
    assert limits.RECORD_BYTES_MAX <= limits.RECORD_BYTES_CEILING < limits.BATCH_BYTES_MAX
    assert limits.BATCH_BYTES_MAX < limits.MESSAGE_BYTES_MAX
    assert limits.BATCH_BYTES_MAX < limits.TRANSACTION_BYTES_MAX <= limits.PENDING_BYTES_MAX
    assert limits.ASK_BYTES_MAX < limits.MESSAGE_BYTES_MAX


def test_the_table_can_not_be_altered_by_its_readers() -> None:
    limits.table().clear()
    assert limits.table()


def test_every_inner_bound_says_what_happens_beyond_it() -> None:
    inner = PAGE.read_text().partition("## Inner bounds")[2]
    assert [line for line in inner.splitlines() if line.endswith("|  |") and "`gossip." not in line] == []
