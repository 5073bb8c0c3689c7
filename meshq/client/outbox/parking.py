"""What the mesh refused for good, and rows that are damaged: kept, told, and decided about by their owner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meshq.batch import Body
from meshq.client.outbox import layout
from meshq.client.outbox.layout import BOUND, PARKED
from meshq.client.outbox.ledger import Ledger
from meshq.client.outbox.words import Parked, Put, ReadParked, TellParked
from meshq.errors import MeshqError, StoreCorrupt


class Parking:
    """Bounded by what the outbox may hold: what is parked counts against that."""

    def __init__(self, ledger: Ledger, parked: dict[int, Parked]) -> None:
        self._ledger = ledger
        self.batches = dict(parked)
        self.bytes = sum(p.bytes for p in parked.values())
        self._newest = max(parked, default=0)
        self._reading = 0  # that are to be sent again

    @property
    def is_reading(self) -> bool:
        return self._reading > 0

    @property
    def records(self) -> int:
        return sum(p.records for p in self.batches.values())

    def park(
        self,
        topic: str,
        partition: int,
        body: Body,
        numbers: Sequence[int],
        error: MeshqError,
        *,
        maybe_stored: bool,
    ) -> Put:
        """A batch; the row to put."""
        reason, when = type(error).__name__, self._ledger.wall_ms
        row = layout.ParkedRow(topic, partition, reason, str(error), maybe_stored, when, *body)
        return self._put(row, numbers, error)

    def put_aside(self, database: bytes, key: bytes, value: bytes, topic: str = "") -> Put:
        """A row that is not what was written: its bytes are kept, to be looked at."""
        partition = layout.parse_place(key)[1] if len(key) == layout.PLACE_BYTES else 0
        error = StoreCorrupt(f"a row of {database.decode()} ({key.hex()}) does not match its checksum")
        maybe_stored, when = database == BOUND, self._ledger.wall_ms
        row = layout.ParkedRow(
            topic, partition, StoreCorrupt.__name__, str(error), maybe_stored, when, None, 1, 0, 0, value
        )
        return self._put(row, (), error)

    def read(self, ids: Iterable[int]) -> None:
        """Have those read that are whole, to be sent again."""
        for number in ids:
            if number in self.batches and self.batches[number].reason != StoreCorrupt.__name__:
                self._reading += 1
                self._ledger.effects.append(ReadParked(number))

    def on_read(self, number: int) -> Parked | None:
        self._reading -= 1
        return self.batches.get(number)

    def drop(self, ids: Iterable[int]) -> list[tuple[bytes, bytes]]:
        """They are parked no more; the rows to delete."""
        known = [n for n in ids if n in self.batches]
        self.bytes -= sum(self.batches.pop(n).bytes for n in known)
        return [(PARKED, layout.parked_key(n)) for n in known]

    def _put(self, row: layout.ParkedRow, numbers: Sequence[int], error: MeshqError) -> Put:
        self._newest += 1
        parked = self.batches[self._newest] = Parked.of(self._newest, row)
        self.bytes += parked.bytes
        self._ledger.effects.append(TellParked(numbers, parked, error))
        key = layout.parked_key(self._newest)
        return PARKED, key, layout.encode(key, row)
