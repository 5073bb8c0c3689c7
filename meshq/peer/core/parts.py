"""Part: a group in one partition that is led here, and what is under way for it.

What is asked of it in a turn is gathered and goes into as few entries of the log as hold it; who asked hears
when the entry is decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

from meshq.errors import MeshqError
from meshq.ids import Ref, Slot
from meshq.peer.core.events import SeekTime
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.hands import Member, Want
from meshq.streams.groups.ordered import OrderedDesk
from meshq.streams.groups.table import GroupKey
from meshq.streams.groups.words import Op, bytes_of

if TYPE_CHECKING:
    pass

GROUPS: Final = "group"  # in the place of a door: who a fetch or a look-up by time is for
PUSH_ITEMS: Final = 64
POSTPONED_S: Final = 0.05
PUSH_BYTES: Final = 1024 * 1024

ENTRY_BYTES: Final = 512 * 1024  # of operations that go into one entry; a single one may be larger

Refused = list[tuple[int, int]]  # records for which it does not hold
Done = Callable[[Refused | MeshqError], None]
Asker = Ref | Done  # who hears of an operation: a session's request, or a part of this peer
Desk = QueueDesk | OrderedDesk


@dataclass(slots=True, eq=False)
class Burial:
    """Records on their way to the dead letters. `index`: of the entry, once it is proposed."""

    slot: Slot
    index: int = 0


@dataclass(slots=True, eq=False)
class Part:
    """A group in one partition that is led here. `desk`: None until the group is known to be in the log."""

    key: GroupKey
    slot: Slot
    desk: Desk | None = None
    opening: list[Member] = field(default_factory=list)  # who waits for it; GROUP_MEMBERS_MAX
    ops: list[Op] = field(default_factory=list)  # of this turn; GROUP_OPS_BYTES_MAX
    size: int = 0  # of `ops`
    asked: list[tuple[Asker, int]] = field(default_factory=list)  # whose they are, and their places in `ops`
    proposed: deque[tuple[int, list[tuple[Asker, int]]]] = field(default_factory=deque)  # by index
    want: Want | None = None
    told: int = 0  # of the records that expired: it is proposed that members were told of so many
    lapsed: int = 0  # it is proposed that what was dying before this offset has expired
    burial: Burial | None = None  # under way
    bury_at: float = 0.0  # not before: it could not be done
    ending: bool = False  # a deletion of the group is under way
    seek: SeekTime | None = None  # where the group begins is looked up

    def wake(self) -> float:
        """When it wants to be looked at, if nothing else calls for that."""
        if self.desk is None:
            return inf
        waits = self.burial is None and not self.ending and bool(self.desk.state.dying)
        return min(self.desk.deadline(), self.bury_at) if waits else self.desk.deadline()


def entries_of(
    ops: list[Op], asked: list[tuple[Asker, int]], own: list[Op]
) -> deque[tuple[list[Op], list[tuple[Asker, int]]]]:
    """In order, as many as it takes, with who asked for what is in each. `own` stays in one piece, since a
    desk that grants waits for one entry."""
    starts, size = [0], 0
    for place, op in enumerate(ops):
        size += bytes_of(op)
        if size > ENTRY_BYTES and place > starts[-1]:
            starts.append(place)
            size = bytes_of(op)
    entries = deque(
        (ops[first:end], [(asker, place - first) for asker, place in asked if first <= place < end])
        for first, end in zip(starts, [*starts[1:], len(ops)], strict=True)
    )
    if ops and own and size + sum(map(bytes_of, own)) > ENTRY_BYTES:
        entries.append((own, []))
    else:
        entries[-1][0].extend(own)
    return entries
