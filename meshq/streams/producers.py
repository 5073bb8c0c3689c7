"""Idempotent producers: a retry gets the receipt of the first try.

A producer numbers the records it sends to a partition. The slot remembers, for each (client key, producer id,
partition), the epoch, the next sequence and the receipts of the last 32 batches, so that

- the next sequence is appended,
- a repeat gets its first receipt again (same epoch, same bytes) or `SequenceConflict`, never a second copy,
- a gap is `OutOfOrderSequence`, an older epoch `Fenced`, a number without any memory `UnknownProducer`.

A higher epoch takes the producer over: its sequences go on, its receipts stay, and what comes of the older
one is refused unless it repeats a batch that is remembered. Epochs are for producers that outlive their
process (outboxes); the others stay at 0 and are forgotten sooner.

`judge` decides without changing anything; `advance` is the only way the state moves, both for entries
proposed and for entries applied, so the two can't disagree. After Kafka's KIP-98, with receipts instead of
five cached offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import NamedTuple

import msgspec

from meshq.errors import (
    Fenced,
    MeshqError,
    OutOfOrderSequence,
    SequenceConflict,
    UnknownProducer,
)
from meshq.ids import TopicId
from meshq.limits import (
    OUTBOX_IDLE_MS,
    OUTBOXES_PER_SLOT_MAX,
    PRODUCER_IDLE_MS,
    PRODUCER_RECEIPTS_KEPT,
    PRODUCERS_PER_SLOT_MAX,
)


class ProducerKey(NamedTuple):
    client_key: bytes  # the connection's CURVE key: nobody can take another's place
    producer_id: bytes
    topic_id: TopicId
    partition: int


class BatchReceipt(msgspec.Struct, frozen=True, array_like=True):
    first_sequence: int
    count: int
    crc: int
    base_offset: int
    index: int  # of the log entry, to find a batch that is still on its way to disk
    epoch: int = 0


class ProducerState(msgspec.Struct, frozen=True, array_like=True):
    """Newest receipt last; never more than PRODUCER_RECEIPTS_KEPT."""

    epoch: int
    next_sequence: int
    receipts: tuple[BatchReceipt, ...]
    used_ms: int


def judge(
    state: ProducerState | None, *, epoch: int, first_sequence: int, count: int, crc: int
) -> BatchReceipt | MeshqError | None:
    """None: append it. A receipt: it is a repeat of that batch. An error: refuse it."""
    if state is None:
        return None if first_sequence == 0 else _unknown(epoch, first_sequence)
    if first_sequence == state.next_sequence and epoch >= state.epoch:
        return None  # as nearly always; no receipt is of a sequence that was not there yet
    same = next((r for r in reversed(state.receipts) if r.first_sequence == first_sequence), None)
    if same is not None and (same.epoch, same.count, same.crc) == (epoch, count, crc):
        return same
    if epoch < state.epoch:
        return Fenced(f"epoch {epoch} of this producer was ended by epoch {state.epoch}")
    if first_sequence > state.next_sequence:
        return OutOfOrderSequence(
            f"the batch begins at sequence {first_sequence}, but {state.next_sequence} is the next one"
        )
    if same is not None or epoch > state.epoch:
        return SequenceConflict(f"sequence {first_sequence} was used before for other records")
    return OutOfOrderSequence(
        f"sequence {first_sequence} is before the {PRODUCER_RECEIPTS_KEPT} batches whose receipts are kept"
    )


def _unknown(epoch: int, first_sequence: int) -> UnknownProducer:
    days, minutes = OUTBOX_IDLE_MS // 86_400_000, PRODUCER_IDLE_MS // 60_000
    after = f"{days} idle days" if epoch else f"{minutes} idle minutes"
    return UnknownProducer(
        f"nothing is remembered of this producer, yet its batch begins at sequence {first_sequence}; "
        f"sequences are forgotten after {after}"
    )


def advance(
    state: ProducerState | None, *, epoch: int, receipt: BatchReceipt, timestamp_ms: int
) -> ProducerState:
    """The state after a batch that `judge` let through."""
    kept = () if state is None else state.receipts
    return ProducerState(
        epoch,
        receipt.first_sequence + receipt.count,
        (*kept, receipt)[-PRODUCER_RECEIPTS_KEPT:],
        timestamp_ms,
    )


def is_expired(state: ProducerState, timestamp_ms: int) -> bool:
    """By the log's own time, so that every replica forgets at the same entry."""
    return state.used_ms + (OUTBOX_IDLE_MS if state.epoch else PRODUCER_IDLE_MS) < timestamp_ms


class ProducerTable:
    """Producers of one slot, those of a process apart from those that outlive it, each oldest use first, so
    that expiry looks only at the fronts.

    Outboxes have a bound of their own below that of all: remembered for a month, they may not shut the others
    out.
    """

    def __init__(self, on_changed: Callable[[ProducerKey], None]) -> None:
        # Together bounded by PRODUCERS_PER_SLOT_MAX at the proposer, outboxes by OUTBOXES_PER_SLOT_MAX.
        self._brief: dict[ProducerKey, ProducerState] = {}
        self._lasting: dict[ProducerKey, ProducerState] = {}
        self._on_changed = on_changed

    def __len__(self) -> int:
        return len(self._brief) + len(self._lasting)

    def get(self, key: ProducerKey, *, timestamp_ms: int) -> ProducerState | None:
        state = self._brief.get(key) or self._lasting.get(key)
        return None if state is None or is_expired(state, timestamp_ms) else state

    def has_room(
        self, proposed: Mapping[ProducerKey, ProducerState], *, epoch: int, timestamp_ms: int
    ) -> bool:
        """Whether one more producer may be remembered, beside those whose first batch is on its way to disk.

        Those whose time is over make room although nothing was appended since: else a full table of idle
        producers would refuse new ones for ever.
        """
        if len(self) + len(proposed) < min(PRODUCERS_PER_SLOT_MAX, OUTBOXES_PER_SLOT_MAX):
            return True
        fresh = [s for k, s in proposed.items() if self.get(k, timestamp_ms=timestamp_ms) is None]
        lasting = _alive(self._lasting, timestamp_ms) + sum(s.epoch > 0 for s in fresh)
        if epoch and lasting >= OUTBOXES_PER_SLOT_MAX:
            return False
        brief = _alive(self._brief, timestamp_ms) + sum(s.epoch == 0 for s in fresh)
        return brief + lasting < PRODUCERS_PER_SLOT_MAX

    def row(self, key: ProducerKey) -> ProducerState | None:
        return self._brief.get(key) or self._lasting.get(key)

    def put(self, key: ProducerKey, state: ProducerState) -> None:
        self._remove(key)
        (self._lasting if state.epoch else self._brief)[key] = state
        self._on_changed(key)

    def expire(self, timestamp_ms: int) -> None:
        for states in (self._brief, self._lasting):
            while states:
                key = next(iter(states))
                if not is_expired(states[key], timestamp_ms):
                    break
                del states[key]
                self._on_changed(key)

    def _remove(self, key: ProducerKey) -> None:
        self._brief.pop(key, None)
        self._lasting.pop(key, None)

    def drop_topic(self, topic_id: TopicId) -> None:
        for key in [k for k in (*self._brief, *self._lasting) if k.topic_id == topic_id]:
            self._remove(key)
            self._on_changed(key)

    def restore(self, states: dict[ProducerKey, ProducerState]) -> None:
        by_use = sorted(states.items(), key=lambda item: item[1].used_ms)
        self._brief = {k: s for k, s in by_use if not s.epoch}
        self._lasting = {k: s for k, s in by_use if s.epoch}


def _alive(states: dict[ProducerKey, ProducerState], timestamp_ms: int) -> int:
    return len(states) - sum(1 for _ in takewhile(lambda s: is_expired(s, timestamp_ms), states.values()))
