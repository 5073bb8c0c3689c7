"""Short ways to make entries and batches, and what the writer thread reported."""

from __future__ import annotations

import threading
from collections.abc import Callable

from meshq.batch import RawRecord, frame, seal
from meshq.entries import GENESIS_CHAIN, Entry, EntryKind, Payload, Write, make_entry
from meshq.errors import MeshqError
from meshq.ids import PartitionKey, TopicId
from meshq.store import Store

MESH = bytes(range(16))
TOPIC = TopicId(b"topic-id-16bytes")
P0 = PartitionKey(TOPIC, 0)


def batch(*, count: int = 1, size: int = 100, seed: int = 0) -> bytes:
    records = [RawRecord(None, bytes([seed % 256]) * size) for _ in range(count)]
    return frame(seal(records, base_timestamp_ms=1_000))


def payload(
    base: int, *, count: int = 1, at: int = 0, size: int = 100, partition: PartitionKey = P0
) -> Payload:
    return Payload(partition, base, count, at, batch(count=count, size=size, seed=base))


def entries(first: int, last: int, chain: bytes = GENESIS_CHAIN) -> list[Entry]:
    """Entries of one log, each made after the one before it."""
    made: list[Entry] = []
    for index in range(first, last + 1):
        body = b"body of %d" % index
        made.append(
            make_entry(chain, index=index, term=1, kind=EntryKind.PUBLISH, timestamp_ms=index, body=body)
        )
        chain = made[-1].chain
    return made


class Heard:
    """What the writer thread reported, to be waited for with a deadline."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self.failed: list[tuple[list[int], MeshqError]] = []
        self.fatal: list[MeshqError] = []
        self.dropped: list[PartitionKey] = []
        self._changed = threading.Condition()

    def start(self, store: Store) -> None:
        store.start(
            lambda tokens: self._add(self.done, tokens),
            lambda tokens, error: self._add(self.failed, (tokens, error)),
            on_fatal=lambda error: self._add(self.fatal, error),
            on_dropped=lambda partition, _: self._add(self.dropped, partition),
        )

    def tokens(self) -> list[int]:
        return [token for group in self.done for token in group]

    def wait(self, condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=seconds), vars(self)

    def _add(self, to: list, item: object) -> None:
        with self._changed:
            to.append(item)
            self._changed.notify_all()


def put(store: Store, heard: Heard, *writes: Write) -> None:
    """Write and wait until it is on disk."""
    for write in writes:
        store.write(write)
    heard.start(store)
    heard.wait(lambda: len(heard.tokens()) == len(writes))
