"""What a desk works with: who takes part, what is in hand, and what it has others do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from meshq.batch import Buffer
from meshq.ids import Ref
from meshq.streams.groups.table import GroupKey


@dataclass(slots=True, eq=False)
class Member:
    """One subscription of one connection, at all desks of this peer that it stands at."""

    ref: Ref
    id: bytes
    records_max: int
    bytes_max: int
    keys: set[GroupKey] = field(default_factory=set)  # these desks
    records: int = 0  # handed out and not settled
    bytes: float = 0.0
    heard: float = 0.0  # when it last said anything
    was_silent: bool = False  # for too long: its group goes on without it until it says something

    def room(self) -> int:
        if self.was_silent:
            return 0
        return max(self.records_max - self.records, 0) if self.bytes < self.bytes_max else 0


class Stock(NamedTuple):
    """A batch in hand."""

    base_offset: int
    end: int
    timestamp_ms: int
    data: Buffer


class Allotted(NamedTuple):
    member: Member
    batch: Stock
    first: int
    end: int


class Want(NamedTuple):
    """Effect: batches from `offset` on are to be fetched. `again`: because records of them came back."""

    offset: int
    end: int
    bytes_max: int
    again: bool


class Hand(NamedTuple):
    """Effect: records of a batch go to a member: [first, end) and how often each was handed out."""

    member: Member
    batch: Stock
    ranges: tuple[tuple[int, int, int], ...]
    lease: int
