"""How much a peer may push for one subscription before the application has taken it.

The subscription's credit is split evenly over the peers it reads from. What a peer may still push (`open`)
and what it pushed and nobody took yet (`held`) together stay at that share; credit is given again once half
of the share is free, so that it costs one small message per half. What is held outlives a link, what is open
does not: a fresh link starts with fresh credit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshq.limits import CREDIT_BYTES_MAX, KIB

SHARE_BYTES_MIN: Final = 256 * KIB
SHARE_RECORDS_MIN: Final = 1_000


@dataclass(slots=True)
class Flow:
    """Credit of one subscription at one peer. `open` may fall below zero: a batch is pushed whole."""

    readers: int = 0  # partitions read there
    open_bytes: int = 0
    open_records: int = 0
    held_bytes: int = 0
    held_records: int = 0

    def on_pushed(self, size: int, records: int, *, keep: bool) -> None:
        self.open_bytes -= size
        self.open_records -= records
        if keep:
            self.held_bytes += size
            self.held_records += records

    def on_taken(self, size: int, records: int) -> None:
        self.held_bytes -= size
        self.held_records -= records

    def on_lost(self) -> None:
        self.readers = self.open_bytes = self.open_records = 0

    def grant(self, share_bytes: int, share_records: int) -> tuple[int, int] | None:
        """The bytes and records to give now; None while more than half of both shares is in use."""
        free_bytes = share_bytes - self.open_bytes - self.held_bytes
        free_records = share_records - self.open_records - self.held_records
        if 2 * free_bytes < share_bytes and 2 * free_records < share_records:
            return None
        free_bytes, free_records = max(free_bytes, 0), max(free_records, 0)
        self.open_bytes += free_bytes
        self.open_records += free_records
        return free_bytes, free_records


def share(credit: int, peers: int, least: int) -> int:
    return min(max(credit // max(peers, 1), least), CREDIT_BYTES_MAX)
