"""Whom to tell what became of a record: on this disk, in the mesh, parked, or not taken at all.

A record's fate is remembered here only for as long as somebody holds its receipt, or it is on its way to
disk. A failure that nobody waits for is counted, and told to whoever flushes.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from weakref import WeakValueDictionary

from meshq.client.outbox.receipts import Fate, parked_error
from meshq.client.outbox.words import TellCommitted, TellParked, TellQueued
from meshq.client.records import Receipt
from meshq.errors import MeshqError

log = logging.getLogger(__name__)


class Fates:
    """Of one outbox, in this run. `path`: for what is logged."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop, self._path = loop, path
        self._fates: WeakValueDictionary[int, Fate] = WeakValueDictionary()
        self._held: set[Fate] = set()  # bounded by who asks to be called
        self._sizes: dict[int, int] = {}  # bytes on their way to disk, by number; OUTBOX_BUFFER_BYTES in all
        self.buffered_bytes = 0
        self.failed_records = self._failed_untold = 0  # whose senders did not wait for them
        self._first_failure: MeshqError | None = None

    @property
    def unsynced(self) -> int:
        """Records on their way to disk."""
        return len(self._sizes)

    def begin(self, number: int, size: int) -> Fate:
        """It was taken."""
        fate = self._fates[number] = Fate(self._loop, self._held)
        self._sizes[number] = size
        self.buffered_bytes += size
        return fate

    def on_queued(self, told: TellQueued) -> None:
        for number in range(told.first, told.end):
            self._on_taken(number, told.error)

    def on_dead_disk(self, error: MeshqError) -> None:
        """What was not known to be on it has failed, as far as anybody can say."""
        for number in list(self._sizes):
            self._on_taken(number, error)

    def on_committed(self, told: TellCommitted) -> None:
        for i, number in enumerate(told.numbers):
            if (fate := self._fates.get(number)) is not None:
                receipt = Receipt(told.topic, told.partition, told.base_offset + i, told.copies)
                fate.become("committed", receipt=receipt)

    def on_parked(self, told: TellParked) -> None:
        parked = told.parked
        log.warning(
            "%d records for %s/%d are parked as %d in the outbox %s: %s: %s",
            parked.records, parked.topic, parked.partition, parked.id, self._path, parked.reason, parked.text,
            extra={"event": "OutboxParked", "topic": parked.topic},
        )  # fmt: skip
        error = parked_error(told.error, parked.id, maybe_stored=parked.maybe_stored)
        for number in told.numbers:
            if (fate := self._fates.get(number)) is not None:
                fate.become("parked", error=error)

    def take_failures(self) -> MeshqError | None:
        """What `flush` raises, once."""
        error, count = self._first_failure, self._failed_untold
        self._first_failure, self._failed_untold = None, 0
        if error is None:
            return None
        return type(error)(f"{count} records were not taken by the outbox; the first error: {error}")

    @property
    def has_failures(self) -> bool:
        return self._first_failure is not None

    def _on_taken(self, number: int, error: MeshqError | None) -> None:
        self.buffered_bytes -= self._sizes.pop(number, 0)
        fate = self._fates.get(number)
        if error is None:
            if fate is not None:
                fate.become("queued")
            return
        if fate is None or not fate.is_awaited:
            self._failed_untold += 1
            self.failed_records += 1
            self._first_failure = self._first_failure or error
        if fate is not None:
            fate.become("failed", error=error)
