"""Idempotent producers: a retry gets the receipt of the first try.

A producer numbers the records it sends to a partition. The slot remembers, for each (client key, producer id,
partition), the epoch, the next sequence and the receipts of the last 32 batches, so that

- the next sequence is appended,
- a repeat gets its first receipt again (same bytes) or `SequenceConflict` (other bytes), never a second copy,
- a gap is `OutOfOrderSequence`, an older epoch `Fenced`, a number without any memory `UnknownProducer`.

`judge` decides without changing anything; `advance` is the only way the state moves, both for entries
proposed and for entries applied, so the two can't disagree. After Kafka's KIP-98, with receipts instead of
five cached offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
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
from meshq.limits import PRODUCER_IDLE_MS, PRODUCER_RECEIPTS_KEPT, PRODUCERS_PER_SLOT_MAX


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
    if state is None or epoch > state.epoch:
        if first_sequence == 0:
            return None
        return UnknownProducer(
            f"nothing is remembered of this producer, yet its batch begins at sequence {first_sequence}; "
            f"sequences are forgotten after {PRODUCER_IDLE_MS // 60_000} idle minutes"
        )
    if epoch < state.epoch:
        return Fenced(f"epoch {epoch} of this producer was ended by epoch {state.epoch}")
    if first_sequence == state.next_sequence:
        return None
    if first_sequence > state.next_sequence:
        return OutOfOrderSequence(
            f"the batch begins at sequence {first_sequence}, but {state.next_sequence} is the next one"
        )
    for receipt in reversed(state.receipts):
        if receipt.first_sequence == first_sequence:
            if receipt.count == count and receipt.crc == crc:
                return receipt
            return SequenceConflict(f"sequence {first_sequence} was used before for other records")
    return OutOfOrderSequence(
        f"sequence {first_sequence} is before the {PRODUCER_RECEIPTS_KEPT} batches whose receipts are kept"
    )


def advance(
    state: ProducerState | None, *, epoch: int, receipt: BatchReceipt, timestamp_ms: int
) -> ProducerState:
    """The state after a batch that `judge` let through."""
    kept = state.receipts if state is not None and state.epoch == epoch else ()
    return ProducerState(
        epoch,
        receipt.first_sequence + receipt.count,
        (*kept, receipt)[-PRODUCER_RECEIPTS_KEPT:],
        timestamp_ms,
    )


def is_expired(state: ProducerState, timestamp_ms: int) -> bool:
    """By the log's own time, so that every replica forgets at the same entry."""
    return state.used_ms + PRODUCER_IDLE_MS < timestamp_ms


class ProducerTable:
    """Producers of one slot, oldest use first, so that expiry looks only at the front."""

    def __init__(self, on_changed: Callable[[ProducerKey], None]) -> None:
        self._states: dict[
            ProducerKey, ProducerState
        ] = {}  # bounded by PRODUCERS_PER_SLOT_MAX at the proposer
        self._on_changed = on_changed

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: ProducerKey, *, timestamp_ms: int) -> ProducerState | None:
        state = self._states.get(key)
        return None if state is None or is_expired(state, timestamp_ms) else state

    def has_room(self, proposed: Collection[ProducerKey], *, timestamp_ms: int) -> bool:
        """Whether one more producer may be remembered, beside those whose first batch is on its way to disk.

        Those whose time is over make room although nothing was appended since: else a full table of idle
        producers would refuse new ones for ever.
        """
        if len(self._states) + len(proposed) < PRODUCERS_PER_SLOT_MAX:
            return True
        over = sum(1 for _ in takewhile(lambda s: is_expired(s, timestamp_ms), self._states.values()))
        fresh = sum(self.get(key, timestamp_ms=timestamp_ms) is None for key in proposed)
        return len(self._states) - over + fresh < PRODUCERS_PER_SLOT_MAX

    def row(self, key: ProducerKey) -> ProducerState | None:
        return self._states.get(key)

    def put(self, key: ProducerKey, state: ProducerState) -> None:
        self._states.pop(key, None)
        self._states[key] = state
        self._on_changed(key)

    def expire(self, timestamp_ms: int) -> None:
        while self._states:
            key = next(iter(self._states))
            if not is_expired(self._states[key], timestamp_ms):
                return
            del self._states[key]
            self._on_changed(key)

    def drop_topic(self, topic_id: TopicId) -> None:
        for key in [k for k in self._states if k.topic_id == topic_id]:
            del self._states[key]
            self._on_changed(key)

    def restore(self, states: dict[ProducerKey, ProducerState]) -> None:
        self._states = dict(sorted(states.items(), key=lambda item: item[1].used_ms))
