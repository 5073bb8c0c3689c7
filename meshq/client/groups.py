"""Groups as they are seen and changed from outside: what `Mesh.groups()` and `Mesh.group_...` return.

All of it comes from the leaders of the topic's partitions, each of which had a majority confirm that it is
one: what is told was true after it was asked. Where one does not answer, that is `Unavailable`, and nothing
is left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec

from meshq.errors import UsageError

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]
To = str | int | datetime


class GroupInfo(msgspec.Struct, frozen=True):
    """A group of a topic. `lag`: records that are not done; `dead`: dead letters that were not put back."""

    topic: str
    group: str
    mode: str
    partitions: int  # that it has been in
    members: int
    lag: int
    dead: int


class GroupMember(msgspec.Struct, frozen=True):
    """A member of a group in one partition. `name`: of the credentials it is here with (None when it is not
    `here` just now); `leased`: records it has in hand.
    """

    id: str
    name: str | None
    leased: int
    here: bool


class GroupPartition(msgspec.Struct, frozen=True):
    """A group in one partition.

    cursor: every record below is done; next: none from here on was handed out yet
    lag: records that are not done; lag_s: how long the first of them has waited (None: not known now)
    leased, waiting_again, dying: records that are out; that came back; on their way to the dead letters
    redelivered, acked: in all; dead: dead letters that were not put back
    holder: of an ordered group, the member that has the partition, by the beginning of its id
    expired: records that went by retention, in all, before the group was through with them
    who: its members there, by the beginnings of their ids, and those that are away and have something in hand
    """

    partition: int
    leader: str
    mode: str
    ack_wait_ms: int
    max_deliver: int | None
    earliest: int
    end: int
    cursor: int
    next: int
    lag: int
    lag_s: float | None
    members: int
    holder: str | None
    leased: int
    waiting_again: int
    dying: int
    redelivered: int
    acked: int
    dead: int
    expired: int = 0
    who: list[GroupMember] = []


class GroupReset(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Where the group went on, and where it will, or would."""

    partition: int
    from_: int
    to: int


class Redriven(msgspec.Struct, frozen=True):
    """Dead letters that were put back, those whose records are not kept any more, and those that are left
    (None: not counted, as nothing was done). `void`: those that came before a reset which handed out their
    records again; they were passed over.
    """

    redriven: int
    expired: int
    left: int | None
    void: int = 0


async def groups(ask: Ask, pattern: str) -> list[GroupInfo]:
    found: list[GroupInfo] = []
    after: list[str] | None = None
    while True:
        page = await ask("groups", {"pattern": pattern, "after": after})
        found += msgspec.convert(page["groups"], list[GroupInfo])
        after = page["after"]
        if after is None:
            return found


async def show(ask: Ask, topic: str, group: str) -> list[GroupPartition]:
    answer = await ask("group.show", {"topic": topic, "group": group})
    return msgspec.convert(answer["partitions"], list[GroupPartition])


async def reset(ask: Ask, topic: str, group: str, to: To, *, dry_run: bool) -> list[GroupReset]:
    args = {"topic": topic, "group": group, "dry_run": dry_run, **_place(to)}
    return msgspec.convert((await ask("group.reset", args))["partitions"], list[GroupReset])


async def redrive(ask: Ask, topic: str, group: str, limit: int | None, *, dry_run: bool) -> Redriven:
    """Again and again, for an entry of the log takes some thousand letters at most."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UsageError(f"limit must be a whole number above 0, not {limit!r}")
    redriven = expired = void = 0
    while True:
        args: dict[str, Any] = {"topic": topic, "group": group, "dry_run": dry_run}
        if limit is not None:
            args["limit"] = limit - redriven - expired - void
        rows = (await ask("group.redrive", args))["partitions"]
        more = [sum(row.get(name, 0) for row in rows) for name in ("redriven", "expired", "void")]
        redriven, expired, void = redriven + more[0], expired + more[1], void + more[2]
        if dry_run:
            return Redriven(redriven, expired, None, void)
        left = sum(row["left"] for row in rows)
        if not left or not any(more) or (limit is not None and redriven + expired + void >= limit):
            return Redriven(redriven, expired, left, void)


def _place(to: To) -> dict[str, Any]:
    match to:
        case "earliest" | "latest":
            return {"to": to}
        case datetime():
            return {"to": "time", "value": max(0, int(to.timestamp() * 1000))}
        case int() if not isinstance(to, bool) and 0 <= to < 1 << 63:
            return {"to": "offset", "value": to}
        case _:
            raise UsageError(f'to must be "earliest", "latest", an offset or a datetime, not {to!r}')
