"""Batches that failed and nobody awaited: kept until a `flush` tells of them."""

from __future__ import annotations

from typing import Final

from meshq.client.outgoing import OutgoingBatch
from meshq.errors import OutcomeUnknown

KEPT_MAX: Final = 1_000  # beyond them they are only counted


class Failures:
    def __init__(self, topic: str) -> None:
        self.records = 0  # in all, over the producer's life
        self._topic = topic
        self._batches: list[OutgoingBatch] = []  # at most KEPT_MAX

    def add(self, batch: OutgoingBatch) -> None:
        if batch.awaited:
            return
        self.records += batch.count
        if len(self._batches) >= KEPT_MAX:
            self._batches = [b for b in self._batches if not b.awaited]
        if len(self._batches) < KEPT_MAX:
            self._batches.append(batch)

    def raise_new(self) -> None:
        """Raise for those nobody awaited meanwhile, once: OutcomeUnknown when any of them may be stored."""
        batches, self._batches = self._batches, []
        failed = [(b.error, b.count) for b in batches if b.error is not None and not b.awaited]
        if not failed:
            return
        unknown = (e for e, _ in failed if isinstance(e, OutcomeUnknown))
        first = next(unknown, failed[0][0])
        count = sum(n for _, n in failed)
        raise type(first)(f"{count} records for {self._topic} failed; the first error: {first}")
