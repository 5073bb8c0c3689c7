"""Batches that the core reads for its own ends: to move dead letters, to put them back, to tell a lag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

from meshq.entries import StoredBatch
from meshq.errors import MeshqError
from meshq.ids import PartitionKey
from meshq.peer.core.events import BatchesFetched, Effect, FetchBatches, SeekTime, TimeSought
from meshq.streams.delivery import Fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOKUPS: Final = "lookup"  # in the place of a door: who a fetch is for
Found = Sequence[StoredBatch] | MeshqError


@dataclass(slots=True)
class Lookups:
    """What was asked for comes to `done`; both are bounded by who asks."""

    out: list[Effect]
    _asked: dict[int, Callable[[Found], None]] = field(default_factory=dict)
    _sought: dict[int, Callable[[int], None]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def read(
        self, partition: PartitionKey, offset: int, end: int, bytes_max: int, done: Callable[[Found], None]
    ) -> None:
        """What there is of a range: batches from the one that holds its first offset on."""
        number = next(self._numbers)
        self._asked[number] = done
        self.out.append(FetchBatches(Fetch(((LOOKUPS, b""), number), partition, offset, end, bytes_max)))

    def seek(self, partition: PartitionKey, timestamp_ms: int, end: int, done: Callable[[int], None]) -> None:
        """The first offset of then or later, or `end`."""
        number = next(self._numbers)
        self._sought[number] = done
        self.out.append(SeekTime(((LOOKUPS, b""), number), partition, timestamp_ms, end))

    def on_sought(self, event: TimeSought) -> None:
        done = self._sought.pop(event.seek.sub[1], None)
        if done is not None:
            done(event.offset)

    def on_fetched(self, event: BatchesFetched) -> None:
        done = self._asked.pop(event.fetch.sub[1], None)
        if done is not None:
            done(event.batches)
