"""Batches that an outbox numbered: their way to one partition, under one producer id.

As every pipeline's, but for what is not its to decide: id and sequences are on the outbox's disk, so no fresh
id is drawn here. Where the id ends (a batch was refused for good), what stood behind it goes back to the
outbox: as Unavailable when it was certainly not stored, to be numbered anew, else as OutcomeUnknown.

Nobody waits for these with a deadline of seconds. A batch's deadline is the moment before the peers forget
its producer: one that may have been stored must not be sent after it.
"""

from __future__ import annotations

from typing import Final

from meshq.client.facts import Doubt, Fail
from meshq.client.pipeline import Batch, Pipeline
from meshq.errors import Forbidden, MeshqError, OutcomeUnknown, Unavailable, UnknownProducer

FORBIDDEN_AGAIN_MS: Final = 10_000


class BoundPipeline(Pipeline):
    """Batches come in the order of their sequences, which have no gaps; at most `in_flight` at a time."""

    def expire(self, now: float) -> None:
        for batch in [b for b in (*self._sent, *self._queue) if not b.done and now >= b.deadline]:
            over = UnknownProducer("it has been on its way for as long as its sequence is remembered")
            self._end(batch, Unavailable(str(over)) if batch.certainly_not_stored else over)
            self._break_at(batch.sequence)

    def on_refused(self, batch: Batch, error: MeshqError, now: float) -> None:
        if isinstance(error, Forbidden):
            # What an administrator takes away he can give back, and the batch would be in doubt for ever.
            error = Unavailable(str(error), retry_after_ms=FORBIDDEN_AGAIN_MS)
        if isinstance(error, Unavailable):
            self._common.effects.append(Doubt(batch.ticket, error))
        super().on_refused(batch, error, now)

    def settle(self, now: float) -> None:
        if self._broken_at is not None and not self._on_the_way:
            for batch in [b for b in self._queue if b.uncertain]:
                # Sent in an earlier run, and the one before it was refused: it never left in this one.
                self._end(batch, batch.refusal or Unavailable("an earlier batch of it was refused"))
            self._queue = type(self._queue)(b for b in self._queue if not b.done)
        super().settle(now)

    def _take_new(self, now: float) -> list[Batch]:
        new: list[Batch] = []
        while self._queue and len(self._sent) < self.in_flight:
            batch = self._queue.popleft()
            batch.first_sent = self._used_at = now
            batch.as_head = not self._sent
            self._sent.append(batch)
            new.append(batch)
        return new

    def _renew(self, open_batches: list[Batch], now: float) -> None:
        """All that is left is certainly not stored: the outbox numbers it anew, in this order."""
        behind = Unavailable("an earlier batch was refused: number it anew")
        for batch in (*open_batches, *self._queue):
            self._end(batch, behind)
        self._sent.clear()
        self._queue.clear()
        self._broken_at = None
        self._resending = False

    def _end(self, batch: Batch, error: MeshqError) -> None:
        batch.done = True
        if batch.uncertain:
            unknown = OutcomeUnknown(f"it may have been stored by an earlier sending, and then: {error}")
            unknown.__cause__ = error
            error = unknown
        self._common.effects.append(Fail(batch.ticket, error))
