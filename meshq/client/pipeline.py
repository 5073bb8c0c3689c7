"""One producer's batches on their way to one partition: in order, again after a loss, and never stored twice.

The leader stores a batch only when its sequence is the next one of its producer id, and answers a repeat of
the last 32 batches with their first receipt. So sending the same bytes under the same producer id and
sequence again is always safe, and sending them under another one never is, unless the first cannot have been
stored. Hence the rules:

1. A batch gets its sequence when it is first sent, and keeps it. Every copy has a request number of its own;
   a copy is *accounted for* when its refusal came. A link that is lost, or an answer that leaves it open,
   makes the batch `uncertain` for good.
2. Only a batch all of whose copies are accounted for is certainly not stored. Only such a batch may fail with
   anything but `OutcomeUnknown`, and only such a batch may be sent under a fresh producer id.
3. At most `in_flight` (32 or fewer) batches stand between the oldest unresolved one and the newest, so a
   repeat always finds its receipt.
4. A batch is not sent again `GIVE_UP_S` after its first copy left: a leader forgets a producer after 15 idle
   minutes, and a forgotten sequence 0 would be taken for a new one.

When a batch is refused for now (or its link is lost), nothing more is sent until every copy on its way is
answered; then all unresolved ones go again, oldest first. When one is refused for good, its sequence stays
empty, and this producer id ends there (`broken_at`): the batches before it are resolved under the old id,
those behind it that are certainly not stored move on to a fresh id in their old order, and those that are not
certain end as `OutcomeUnknown`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from meshq.batch import Body
from meshq.client.backoff import delay_s
from meshq.client.common import Common
from meshq.client.facts import Doubt, Fail, Settle
from meshq.errors import (
    DiskFull,
    MeshqError,
    OutcomeUnknown,
    OutOfOrderSequence,
    Overloaded,
    Refused,
    RemoteProtocolError,
    SecurityError,
    Unavailable,
    UnknownProducer,
    UsageError,
)
from meshq.limits import PRODUCER_IDLE_MS
from meshq.messages import ACKS_QUORUM, Accepted, TopicInfo

GIVE_UP_S: Final = PRODUCER_IDLE_MS / 1000 - 60.0
FRESH_ID_AFTER_S: Final = (
    PRODUCER_IDLE_MS / 3000
)  # an idle producer takes a new id before its leader forgets the old

_FOR_GOOD = (Refused, RemoteProtocolError, UsageError, SecurityError)
_BEHIND = (OutOfOrderSequence, UnknownProducer)


@dataclass(slots=True, eq=False)
class Batch:
    """A sealed batch until its end is known."""

    ticket: int
    info: TopicInfo
    body: Body
    deadline: float
    acks: int = ACKS_QUORUM
    sequence: int = -1  # of its first record, from its first sending on
    epoch: int = 0
    request: int = 0  # the copy that is on its way; 0: none
    as_head: bool = False  # that copy left with nothing unresolved before it
    first_sent: float = 0.0
    uncertain: bool = False  # some copy of it was never accounted for
    doubted: bool = False  # its caller was told OutcomeUnknown already
    done: bool = False
    refusal: MeshqError | None = None

    @property
    def certainly_not_stored(self) -> bool:
        return not (self.done or self.uncertain or self.request)


class Lane(NamedTuple):
    """Whose pipeline it is."""

    number: int  # of the producer
    topic_id: bytes
    partition: int
    bound: bytes = b""  # the producer id, of an outbox


class Pipeline:
    """`why` says in words why nothing can be sent just now."""

    def __init__(self, common: Common, lane: Lane, *, in_flight: int, why: Callable[[], str]) -> None:
        self._common = common
        self.lane = lane
        self.topic_id, self.partition = lane.topic_id, lane.partition
        self.in_flight = in_flight
        self._why = why
        self.producer_id = common.rng.randbytes(16)
        self._next_sequence = 0
        self._sent: deque[Batch] = (
            deque()
        )  # in sequence, at most in_flight; resolved ones until the oldest is
        self._queue: deque[Batch] = (
            deque()
        )  # never sent under this producer id; bounded by the producer's buffer
        self._on_the_way = 0  # copies not answered yet, all at `server`
        self._resending = False
        self._broken_at: int | None = None
        self._attempt = 0
        self._paced_by: MeshqError | None = None  # the leader asked for time: a new link does not shorten it
        self._used_at = 0.0
        self.retry_at = 0.0
        self.server: bytes | None = None

    # ------------------------------------------------------------------------------ what others ask
    def has_work(self) -> bool:
        return bool(self._sent or self._queue)

    def is_idle_since(self, moment: float) -> bool:
        return not self.has_work() and self._used_at <= moment

    def next_moment(self, now: float) -> float:
        """When something is due here: a caller's deadline, giving up, trying again."""
        moments = [b.deadline for b in self._queue]
        moments += [b.first_sent + GIVE_UP_S if b.doubted else b.deadline for b in self._sent if not b.done]
        if not self._on_the_way and self.has_work():
            moments.append(self.retry_at)
        return min((m for m in moments if m > now), default=inf)

    # --------------------------------------------------------------------------------- what happens
    def on_sealed(self, batch: Batch) -> None:
        self._queue.append(batch)

    def on_accepted(self, batch: Batch, receipt: Accepted, now: float) -> None:
        self._answered(batch)
        self._attempt = 0
        self._paced_by = None
        self._used_at = now
        self._resolve(batch)
        self._common.effects.append(Settle(batch.ticket, receipt))

    def on_refused(self, batch: Batch, error: MeshqError, now: float) -> None:
        self._answered(batch)
        batch.refusal = error
        if isinstance(error, _BEHIND):
            self._on_out_of_sequence(batch, now)
        elif isinstance(error, _FOR_GOOD):
            self._end(batch, error)
            self._break_at(batch.sequence)
        else:
            # Unavailable means not stored; what is no refusal at all leaves it open.
            batch.uncertain |= not isinstance(error, Unavailable)
            self._paced_by = error if isinstance(error, (Overloaded, DiskFull)) else None
            self._again(now, error.retry_after_ms / 1000)
        if now >= batch.deadline:
            self.expire(now)

    def on_lost(self, now: float) -> list[int]:
        """The link is gone: no answer will come. Returns the requests to forget."""
        forgotten = [b.request for b in self._sent if b.request]
        for batch in self._sent:
            if batch.request:
                batch.request = 0
                batch.uncertain = True
        self._on_the_way = 0
        if forgotten:
            self._resending = True
            self.on_way_open(now)
        return forgotten

    def on_late_answer(self, batch: Batch) -> None:
        """Of a batch that was given up meanwhile: only its copy is accounted for."""
        self._answered(batch)

    def on_way_open(self, now: float) -> None:
        """A link came up or routes changed: no need to sit out the back-off."""
        if self._paced_by is None:
            self.retry_at = min(self.retry_at, now)

    def take_ready(self, server: bytes, now: float) -> list[Batch]:
        """Batches to send to this server now, in this order; the caller gives each its request number."""
        if self._on_the_way and (self._is_waiting() or server != self.server):
            return []  # first every copy on its way is answered
        if now < self.retry_at:
            return []
        ready = self._take_again(now) if self._is_waiting() else []
        if self._broken_at is None:
            ready += self._take_new(now)
        self.server = server
        self._on_the_way += len(ready)
        return ready

    def settle(self, now: float) -> None:
        """When nothing is on its way any more, an ended producer id is replaced as soon as it may be."""
        if self._broken_at is None or self._on_the_way:
            return
        for batch in self._sent:
            if not batch.done and batch.uncertain and batch.sequence >= self._broken_at:
                self._end(batch, batch.refusal or Unavailable("an earlier batch of it was refused"))
        open_batches = [b for b in self._sent if not b.done]
        if any(b.uncertain for b in open_batches):
            self._resending = True  # those before the break are still to be resolved under the old id
            return
        self._renew(open_batches, now)

    def expire(self, now: float) -> None:
        """End what is over its deadline, or doubt it."""
        if any(now >= b.deadline for b in self._queue):
            late = [b for b in self._queue if now >= b.deadline]
            self._queue = deque(b for b in self._queue if now < b.deadline)
            for batch in late:
                self._common.effects.append(Fail(batch.ticket, self._not_published(batch)))
        any_uncertain = any(b.uncertain and not b.done for b in self._sent)
        for batch in [b for b in self._sent if not b.done and now >= b.deadline]:
            if batch.certainly_not_stored and not any_uncertain:
                self._end(batch, self._not_published(batch))
                self._break_at(batch.sequence)
            elif now >= batch.first_sent + GIVE_UP_S and not batch.certainly_not_stored:
                self._give_up(batch)
            elif not batch.doubted:
                batch.doubted = True
                self._common.effects.append(Doubt(batch.ticket, self._unknown(self._why())))

    def close(self) -> None:
        closed = Unavailable("the client was closed")
        for batch in self._queue:
            self._common.effects.append(Fail(batch.ticket, closed))
        for batch in self._sent:
            if not batch.done:
                error = closed if batch.certainly_not_stored else self._unknown("the client was closed")
                self._common.effects.append(Fail(batch.ticket, error))
        self._queue.clear()
        self._sent.clear()

    # ------------------------------------------------------------------------------- how it is done
    def _is_waiting(self) -> bool:
        return self._resending or self._broken_at is not None

    def _take_again(self, now: float) -> list[Batch]:
        self.expire(now)  # nothing that was given up may leave again, however late the tick is
        again = [
            b for b in self._sent if not b.done and (self._broken_at is None or b.sequence < self._broken_at)
        ]
        for batch in again:
            batch.as_head = batch is again[0]
            if batch.certainly_not_stored:
                batch.first_sent = now  # no copy from before this one can have been stored
        self._resending = False
        return again

    def _take_new(self, now: float) -> list[Batch]:
        if not self._sent and now - self._used_at > FRESH_ID_AFTER_S:
            self._take_fresh_id()
        new: list[Batch] = []
        while self._queue and len(self._sent) < self.in_flight:
            batch = self._queue.popleft()
            if now >= batch.deadline:
                self._common.effects.append(Fail(batch.ticket, self._not_published(batch)))
                continue
            batch.sequence = self._next_sequence
            batch.first_sent = now
            batch.as_head = not self._sent
            self._next_sequence += batch.body.count
            self._sent.append(batch)
            self._used_at = now
            new.append(batch)
        return new

    def _answered(self, batch: Batch) -> None:
        batch.request = 0
        self._on_the_way -= 1

    def _resolve(self, batch: Batch) -> None:
        batch.done = True
        while self._sent and self._sent[0].done:
            self._sent.popleft()

    def _end(self, batch: Batch, error: MeshqError) -> None:
        """The batch failed for good; when a copy may have been stored, that is all that can be said."""
        if batch.uncertain:
            error = self._unknown(f"an earlier copy was not answered, and then: {error}")
        batch.done = True  # stays in place, so that sequences behind it are seen as behind
        self._common.effects.append(Fail(batch.ticket, error))

    def _give_up(self, batch: Batch) -> None:
        # A copy on its way keeps its request: whatever is answered then, this batch has ended.
        batch.uncertain = True
        self._end(batch, Unavailable(f"no answer for {GIVE_UP_S / 60:.0f} minutes"))
        self._break_at(batch.sequence)

    def _on_out_of_sequence(self, batch: Batch, now: float) -> None:
        """Behind an unresolved batch that is no news; from the oldest one it means the leader forgot this
        producer.
        """
        if not batch.as_head:
            self._resending = True
            return
        self._break_at(batch.sequence)
        if batch.sequence == 0:  # it would be again at once
            self._again(now, 0.0)

    def _break_at(self, sequence: int) -> None:
        self._broken_at = sequence if self._broken_at is None else min(self._broken_at, sequence)

    def _again(self, now: float, at_least_s: float) -> None:
        """All that was sent goes again. Its refusals come one by one and are one failed attempt."""
        if self._resending:
            self.retry_at = max(self.retry_at, now + at_least_s)
            return
        self._resending = True
        self.retry_at = now + max(at_least_s, delay_s(self._attempt, self._common.rng))
        self._attempt += 1

    def _renew(self, open_batches: list[Batch], now: float) -> None:
        """All that is left is certainly not stored: it goes on under a fresh producer id, before what is
        queued.
        """
        self._take_fresh_id()
        self._sent.clear()
        self._broken_at = None
        self._resending = False
        going_on: list[Batch] = []
        for batch in open_batches:
            if now >= batch.deadline:  # perhaps doubted before: now it is known
                self._common.effects.append(Fail(batch.ticket, self._not_published(batch)))
                continue
            batch.sequence = -1
            going_on.append(batch)
        self._queue.extendleft(reversed(going_on))

    def _take_fresh_id(self) -> None:
        self.producer_id = self._common.rng.randbytes(16)
        self._next_sequence = 0

    def _not_published(self, batch: Batch) -> MeshqError:
        # One that never left waited for others: for the one in front, or for the time the leader asked for.
        head = next((b for b in self._sent if not b.done), None)
        refusal = batch.refusal or (head.refusal if head else None) or self._paced_by
        name = f"a batch for {batch.info.name}/{self.partition} was not published in time"
        if refusal is not None and isinstance(refusal, Unavailable):
            return type(refusal)(
                f"{name}; the last answer was: {refusal}", retry_after_ms=refusal.retry_after_ms
            )
        return Unavailable(f"{name}: {self._why()}. It was certainly not stored: send it again")

    def _unknown(self, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"records for partition {self.partition} were sent and may or may not have been stored: {why}. "
            "`await error.retry()` waits for the same batch again, which can't store it twice"
        )
