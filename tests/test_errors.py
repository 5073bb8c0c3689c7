"""Errors: the tree that is drawn is the tree there is, and each crosses the wire as itself."""

from __future__ import annotations

import re

import pytest

from meshq import errors
from meshq.errors import MeshqError, from_wire

ALL = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, MeshqError)]
# What is about one's own disk stays on it: elsewhere it is only a peer that failed.
LOCAL = {"MeshqError", "StoreError", "StoreCorrupt", "WrongMesh", "OutboxFull"}


def drawn() -> dict[str, tuple[str, int | None]]:
    """By class of the picture at the top of the module: its base and its status."""
    tree: dict[str, tuple[str, int | None]] = {}
    above = {-1: "MeshqError"}
    for line in (errors.__doc__ or "").splitlines():
        if m := re.match(r"    ((?:│   |    )*)[├└]── (\w+) +(\d{3})?", line):
            depth = len(m[1]) // 4
            above[depth] = m[2]
            tree[m[2]] = (above[depth - 1], int(m[3]) if m[3] else None)
    return tree


def test_the_tree_at_the_top_is_the_tree_there_is() -> None:
    tree = drawn()
    assert set(tree) == {c.__name__ for c in ALL} - {"MeshqError"}
    for c in ALL[1:]:
        base, status = tree[c.__name__]
        assert c.__bases__[0].__name__ == base
        if status is not None:
            assert c.status == status


@pytest.mark.parametrize("cls", [c for c in ALL if c.__name__ not in LOCAL], ids=lambda c: c.__name__)
def test_an_error_arrives_as_itself(cls: type[MeshqError]) -> None:
    sent = cls("no room", retry_after_ms=250)
    came = from_wire(sent.status, cls.__name__, sent.text, sent.retry_after_ms)
    assert type(came) is cls
    assert (came.text, came.retry_after_ms, came.retriable) == ("no room", 250, cls.retriable)


@pytest.mark.parametrize(
    ("status", "nearest"),
    [
        (400, errors.Refused),
        (403, errors.Forbidden),
        (404, errors.UnknownTopic),
        (409, errors.Refused),
        (413, errors.TooLarge),
        (429, errors.Overloaded),
        (503, errors.Unavailable),
        (504, errors.OutcomeUnknown),
        (507, errors.DiskFull),
        (500, MeshqError),
        (65535, MeshqError),
    ],
)
def test_a_name_not_known_here_becomes_the_nearest_class(status: int, nearest: type[MeshqError]) -> None:
    for name in ("FromTheFuture", "Exception", "WrongMesh", "__class__", ""):
        assert type(from_wire(status, name, "text")) is nearest


def test_only_what_may_succeed_later_is_retriable() -> None:
    retriable = {c for c in ALL if c.retriable}
    assert retriable == {c for c in ALL if issubclass(c, errors.Unavailable)}
    assert not errors.OutcomeUnknown.retriable  # whoever repeats it blindly may publish twice


def test_a_wrong_argument_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="not a topic"):
        raise errors.UsageError("not a topic")
