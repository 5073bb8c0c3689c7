"""Records that failed and whose callers have not been told: kept until a `flush` tells of them.

Told is who got the error out of the record's own receipt. That is known for each record, in the batch it
failed with; to have waited and given up, or to have awaited the record beside it, is not to be told.
"""

from __future__ import annotations

from typing import Final

from meshq.client.outgoing import OutgoingBatch
from meshq.errors import MeshqError, OutcomeUnknown

KEPT_MAX: Final = 1_000  # batches; beyond them records are only counted


class Failures:
    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._batches: list[OutgoingBatch] = []  # at most KEPT_MAX
        self._look_at = 16  # so many are looked through for those whose records are all told of
        self._uncounted = 0  # records of batches that were not kept
        self._first: MeshqError | None = None  # what the first of those failed with
        self._taken = 0  # records a flush told of

    @property
    def records(self) -> int:
        """In all, over the producer's life, those that a flush told of included."""
        return self._taken + self._untold()

    def __bool__(self) -> bool:
        return self._uncounted > 0 or any(b.untold for b in self._batches)

    def add(self, batch: OutgoingBatch) -> None:
        if len(self._batches) >= self._look_at:
            self._batches = [b for b in self._batches if b.untold]
            self._look_at = min(KEPT_MAX, max(16, 2 * len(self._batches)))
        if len(self._batches) < KEPT_MAX:
            self._batches.append(batch)
        else:
            self._uncounted += batch.untold
            if self._first is None or isinstance(batch.error, OutcomeUnknown):
                self._first = batch.error

    def take(self) -> MeshqError | None:
        """The error for those nobody was told of, once: OutcomeUnknown when any of them may be stored."""
        count = self._untold()
        errors = [b.error for b in self._batches if b.untold]
        errors += [self._first] if self._uncounted else []
        self._batches, self._uncounted, self._first = [], 0, None
        self._taken += count
        found = [e for e in errors if e is not None]
        if not found:
            return None
        first = next((e for e in found if isinstance(e, OutcomeUnknown)), found[0])
        return type(first)(f"{count} records for {self._topic} failed; the first error: {first}")

    def _untold(self) -> int:
        return self._uncounted + sum(b.untold for b in self._batches)
