"""What the client asks about groups: in pages, again until it is done, and never without an end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from meshq.client import groups
from meshq.client.groups import Redriven
from meshq.errors import UsageError


class Peer:
    """Answers what it was given, in order."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[dict[str, Any]]()

    async def ask(self, what: str, args: dict[str, Any]) -> Any:
        self.asked.append(args)
        return self.answers.pop(0)


def put_back(*rows: tuple[int, int, int]) -> dict[str, Any]:
    names = ("redriven", "expired", "left")
    return {"partitions": [dict(zip(names, row, strict=True), partition=p) for p, row in enumerate(rows)]}


async def test_redrive_goes_on_until_nothing_is_left() -> None:
    peer = Peer(put_back((100, 0, 50), (0, 0, 0)), put_back((49, 1, 0), (0, 0, 0)))
    assert await groups.redrive(peer.ask, "t", "g", None, dry_run=False) == Redriven(149, 1, 0)


async def test_redrive_ends_when_nothing_more_can_be_out() -> None:
    peer = Peer(put_back((100, 0, 50)), put_back((0, 0, 50)))
    assert await groups.redrive(peer.ask, "t", "g", None, dry_run=False) == Redriven(100, 0, 50)


async def test_redrive_takes_no_more_than_it_was_told() -> None:
    peer = Peer(put_back((3, 0, 50)), put_back((1, 1, 48)))
    assert await groups.redrive(peer.ask, "t", "g", 5, dry_run=False) == Redriven(4, 1, 48)
    assert [args["limit"] for args in peer.asked] == [5, 2]


async def test_all_groups_page_by_page() -> None:
    row = {"group": "g", "mode": "queue", "partitions": 1, "members": 0, "lag": 0, "dead": 0}
    first, second = {**row, "topic": "a"}, {**row, "topic": "b"}
    peer = Peer(
        {"groups": [first], "after": ["a", "g"]},
        {"groups": [], "after": ["a", "z"]},
        {"groups": [second], "after": None},
    )
    assert [g.topic for g in await groups.groups(peer.ask, "#")] == ["a", "b"]
    assert [args["after"] for args in peer.asked] == [None, ["a", "g"], ["a", "z"]]


async def test_where_a_reset_goes() -> None:
    for to, sent in (
        ("latest", {"to": "latest"}),
        (7, {"to": "offset", "value": 7}),
        (datetime(2025, 1, 31, tzinfo=UTC), {"to": "time", "value": 1_738_281_600_000}),
    ):
        peer = Peer({"partitions": [{"partition": 0, "from": 1, "to": 7}]})
        (row,) = await groups.reset(peer.ask, "t", "g", to, dry_run=True)  # type: ignore[arg-type]
        assert (row.from_, row.to) == (1, 7)
        assert {k: v for k, v in peer.asked[0].items() if k in ("to", "value")} == sent


@pytest.mark.parametrize("to", ["there", -1, True, 1.5, None])
async def test_places_that_make_no_sense(to: Any) -> None:
    with pytest.raises(UsageError, match="earliest"):
        await groups.reset(Peer().ask, "t", "g", to, dry_run=False)
    with pytest.raises(UsageError, match="limit"):
        await groups.redrive(Peer().ask, "t", "g", 0, dry_run=False)
