"""The disk side of the shell: load the core from the store, and carry out its reads and writes.

Reads are done in the loop's thread, where each takes microseconds to milliseconds. Clients may ask for
thousands at once, so they wait in one queue, in the order they came, and the loop gives it a few milliseconds
a turn. What goes wrong with a read ends that read; whatever else comes out of a callback here stops the peer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import lmdb

from meshq.entries import Entry, PayloadCorrupt, StoredBatch
from meshq.errors import MeshqError, StoreCorrupt, StoreError
from meshq.gossip import remembered
from meshq.ids import LOCAL_SLOT, SYSTEM_SLOT, PartitionKey, Slot
from meshq.peer.core.core import PeerCore
from meshq.peer.core.events import (
    BatchesFetched,
    BatchesSurveyed,
    Event,
    FetchBatches,
    Mended,
    PayloadsDeleted,
    PayloadsRead,
    ReadPayloads,
    ReadRows,
    ReadSlotLog,
    RowsRead,
    SeekTime,
    SlotLogRead,
    SurveyBatches,
    TimeSought,
    WritesDone,
    WritesFailed,
)
from meshq.peer.core.hosts import Tail
from meshq.replication.saved import bare_until
from meshq.replication.words import Item, LogRead
from meshq.security.directory import DataDirectory, Loaded
from meshq.store.reads import SlotImage
from meshq.store.store import Store
from meshq.streams.publish import check_payload, decode_publish, payload_key_of
from meshq.streams.rows import applied_index

log = logging.getLogger(__name__)
_PAGE_BYTES = 8 * 1024 * 1024
_PAGE_COUNT = 4_096
_RANGE_COUNT = 2_048  # batches of a snapshot's piece
_LOG_COUNT = 64  # entries for another peer at a time
TURN_S: Final = 0.005  # of reading, before the rest of the loop gets its turn


def refuse_lost_store(directory: DataDirectory, papers: Loaded, *, begin_empty: bool) -> None:
    """A peer that ran before has a store. An empty one in its place has another disk id, so it promises
    nothing and is filled by the others; where there are none, nobody could ever fill it. That the volume is
    just not mounted is to be ruled out first.

    Raises: StoreError.
    """
    if not directory.was_started() or (directory.store / "data.mdb").exists():
        return
    alone = papers.is_only_founder and not set(remembered.load(directory.peers)) - {papers.identity.peer_id}
    if alone:
        raise StoreError(
            f"{directory.store} is gone, and with it the registry and the records of this mesh, in which no "
            "other peer is known: put back a copy of it. Without one, begin a new mesh (`meshq init` in "
            "another directory)"
        )
    if not begin_empty:
        raise StoreError(
            f"{directory.store} is gone, and with it the records this peer had: put back a copy of it. "
            f"Without one, `meshq up --data {directory.path} --begin-empty` has it copy again what others "
            "have of its slots; slots that only this peer had are lost, and stay without a leader"
        )
    log.error(
        "%s is gone: this peer begins empty, as it was told, and copies what others have",
        directory.store,
        extra={"event": "StoreLost"},
    )


def restore(core: PeerCore, store: Store) -> None:
    """Bring the core to where the disk is. Raises: StoreCorrupt."""
    images = store.load(strict=False)
    if SYSTEM_SLOT in images:
        if (damage := images[SYSTEM_SLOT].damage) is not None:
            raise damage
        core.restore_registry(images[SYSTEM_SLOT].rows, _entries(store, SYSTEM_SLOT, 1))
    if LOCAL_SLOT in images:
        core.restore_local(images[LOCAL_SLOT].rows)
    for slot, image in images.items():
        if slot in (SYSTEM_SLOT, LOCAL_SLOT):
            continue
        core.restore_slot(slot, image.rows, tail=tail_of(store, slot, image), aside=image.aside)


def tail_of(store: Store, slot: Slot, image: SlotImage) -> Tail:
    """The entries behind a slot's state with their payloads, as far as all of it is sound."""
    items: list[Item] = []
    start = applied_index(image.rows) + 1
    try:
        bare = bare_until(image.rows)
        for entry in _entries(store, slot, start):
            items.append(Item(entry) if entry.index <= bare else item_of(store, entry))
    except StoreCorrupt as e:
        log.error("Slot %s has damage, its log is cut there: %s", slot, e, extra={"event": "SlotDamaged"})
        behind = store.read_sound(slot, start + len(items))
        keys = (payload_key_of(entry) for entry in behind)
        return Tail(items, image.last_index, e, tuple(k for k in keys if k is not None))
    if image.last_index >= start + len(items):
        missing = StoreCorrupt(f"slot {slot}: the log does not reach back to entry {start + len(items)}")
        return Tail(items, image.last_index, image.damage or missing)
    return Tail(items)


def item_of(store: Store, entry: Entry, has_gone: Callable[[Entry], bool] = lambda _: False) -> Item:
    """The entry with its payload, if that has not gone by retention. Raises: PayloadCorrupt when it is not
    there, or another one.
    """
    key = payload_key_of(entry)
    if key is None:
        return Item(entry)
    if has_gone(entry):
        return Item(entry)
    try:
        data = store.read_payload(key)
        check_payload(entry, data)
    except MeshqError as e:
        text, crc = (
            f"entry {entry.index} is on disk and its payload is not: {e}",
            decode_publish(entry.body).payload_crc,
        )
        raise PayloadCorrupt(text, key.partition, key.base_offset, stored=key, crc=crc) from None
    return Item(entry, data)


def read_ranges(
    store: Store, ranges: Sequence[tuple[PartitionKey, int, int]], bytes_max: int
) -> tuple[list[StoredBatch], bool]:
    """Batches of these ranges in their order, and whether those are all. Raises: PayloadCorrupt."""
    batches: list[StoredBatch] = []
    left = bytes_max
    for partition, offset, end in ranges:
        while offset < end:
            if left <= 0 or len(batches) >= _RANGE_COUNT:
                return batches, False
            found = store.read_batches(partition, offset, end=end, bytes_max=left)
            if not found or found[0].base_offset > offset:
                raise PayloadCorrupt("it is missing", partition, offset)
            batches += found
            left -= sum(len(b.data) for b in found)
            offset = max(b.base_offset + b.count for b in found)
    return batches, True


def read_log(
    store: Store, slot: Slot, from_index: int, bytes_max: int, has_gone: Callable[[Entry], bool]
) -> list[Item]:
    """Entries from this index on with their payloads, but for those that have gone.

    Raises: StoreError, UsageError for what has been trimmed.
    """
    entries = store.read_entries(slot, from_index, bytes_max=bytes_max, count_max=_LOG_COUNT)
    items: list[Item] = []
    size = 0
    for entry in entries:
        items.append(item_of(store, entry, has_gone))
        size += len(items[-1].payload)
        if size >= bytes_max:
            break
    return items


def _entries(store: Store, slot: Slot, start: int):  # type: ignore[no-untyped-def]
    while page := store.read_entries(slot, start, bytes_max=_PAGE_BYTES, count_max=_PAGE_COUNT):
        yield from page
        start = page[-1].index + 1


def log_mended(told: Mended) -> None:
    if told.error is None:
        log.warning("Fetched from another peer: %s", told.damage, extra={"event": "BatchMended"})
    else:
        log.error("Damaged, and not mended: %s", told.error, extra={"event": "BatchDamaged"})


class DiskShell:
    """Executes the core's disk effects; what comes of them goes back as events, in the loop's thread.

    `is_awaited`: whether what a read finds is still of use to anybody when its turn comes; if not, nothing is
    read. `has_gone`: whether the payload of a slot's entry is not kept any more; `was_rewritten`: whether it
    may be stored as compaction left it. None of its callbacks does anything after `close()`.
    """

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Event], None],
        on_fatal: Callable[[BaseException], None],
        is_awaited: Callable[[FetchBatches | SeekTime], bool],
        has_gone: Callable[[Slot, Entry], bool],
        was_rewritten: Callable[[Slot, Entry], bool],
    ) -> None:
        self.store = store
        self._loop = loop
        self._tell = tell
        self._on_fatal = on_fatal
        self._is_awaited = is_awaited
        self._has_gone, self._was_rewritten = has_gone, was_rewritten
        self._deleting: dict[PartitionKey, Slot] = {}  # what may be reported; as many as slots hold
        self._reads: deque[FetchBatches | SeekTime] = deque()
        self._turn_due = False
        self._closed = False
        store.start(
            on_done=lambda tokens: self._post(self._done, tokens),
            on_failed=lambda tokens, error: self._post(self._failed, error),
            on_dropped=lambda partition, below: self._post(self._dropped, partition, below),
            on_fatal=lambda error: self._post(on_fatal, error),
        )

    def close(self) -> None:
        """Close the store; what it still reports is not heard any more. Idempotent."""
        self._closed = True
        self._reads.clear()
        self.store.close()

    def _post(self, call: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._guarded, call, *args)

    def _guarded(self, call: Callable[..., None], *args: object) -> None:
        if self._closed:
            return
        try:
            call(*args)
        except Exception as e:
            self._on_fatal(e)

    def _done(self, tokens: Sequence[int]) -> None:
        self._tell(WritesDone(tokens, self.store.room()))

    def _failed(self, error: MeshqError) -> None:
        self._tell(WritesFailed(error, self.store.room()))

    def _dropped(self, partition: PartitionKey, below: int | None) -> None:
        slot = self._deleting.get(partition)
        if slot is not None:
            if below is None:
                del self._deleting[partition]
            self._tell(PayloadsDeleted(slot, partition, below))

    def delete(self, slot: Slot, partition: PartitionKey, below: int | None) -> None:
        self._deleting[partition] = slot
        self.store.drop_payloads(partition, below=below)

    # -------------------------------------------------------------------------------------- reading
    def read(self, effect: FetchBatches | SeekTime) -> None:
        """In a later turn, after whatever was asked for before."""
        self._reads.append(effect)
        self._turn_soon()

    def _turn_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._guarded, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        end = self._loop.time() + TURN_S
        while self._reads:
            effect = self._reads.popleft()
            if isinstance(effect, FetchBatches):
                self._fetch(effect)
            else:
                self._seek(effect)
            if self._reads and self._loop.time() >= end:
                self._turn_soon()
                return

    def _fetch(self, effect: FetchBatches) -> None:
        f = effect.fetch
        batches: Sequence[StoredBatch] | MeshqError = []
        try:
            if self._is_awaited(effect):
                batches = self.store.read_batches(f.partition, f.offset, end=f.end, bytes_max=f.bytes_max)
        except StoreError as e:
            batches = e
        except lmdb.Error as e:
            batches = StoreError(f"{self.store.path} cannot be read ({e}): is the disk all right?")
        self._tell(BatchesFetched(f, batches))

    def _seek(self, seek: SeekTime) -> None:
        if self._is_awaited(seek):
            offset = self.store.offset_at(seek.partition, seek.timestamp_ms, end=seek.end)
            self._tell(TimeSought(seek, offset))

    def read_log(self, read: ReadSlotLog) -> None:
        """For a node that is behind. What can't be read is not sent: it is asked for again later."""
        items: list[Item] = []
        damage: StoreCorrupt | None = None
        try:
            has_gone = partial(self._is_without, read.slot)
            items = read_log(self.store, read.slot, read.prev.index + 1, read.bytes_max, has_gone)
        except (MeshqError, lmdb.Error) as e:
            log.warning("Slot %s cannot be read for a peer: %s", read.slot, e, extra={"event": "LogUnread"})
            damage = e if isinstance(e, StoreCorrupt) else None
        event = SlotLogRead(read.slot, LogRead(read.to, read.prev, tuple(items)), damage)
        self._loop.call_soon(self._guarded, self._tell, event)

    def _is_without(self, slot: Slot, entry: Entry) -> bool:
        """Whether the entry's payload, as it came, is not to be had here any more and need not be."""
        if self._has_gone(slot, entry):
            return True
        key = payload_key_of(entry) if self._was_rewritten(slot, entry) else None
        return key is not None and self.store.is_compacted(key)

    def read_rows(self, read: ReadRows) -> None:
        event = RowsRead(read.slot, read.to, self.store.read_rows(read.slot))
        self._loop.call_soon(self._guarded, self._tell, event)

    def survey(self, survey: SurveyBatches) -> None:
        s = survey
        try:
            marks = self.store.survey(s.partition, s.offset, count_max=s.count_max)
        except lmdb.Error as e:
            log.warning("Slot %s cannot be surveyed: %s", s.slot, e, extra={"event": "SurveyFailed"})
            marks = []
        event = BatchesSurveyed(s.slot, s.partition, s.offset, marks)
        self._loop.call_soon(self._guarded, self._tell, event)

    def read_payloads(self, read: ReadPayloads) -> None:
        """A piece of a snapshot. What can't be read is not sent: it is asked for again later."""
        batches, complete = list[StoredBatch](), False
        damage: PayloadCorrupt | None = None
        try:
            batches, complete = read_ranges(self.store, read.ranges, read.bytes_max)
        except (MeshqError, lmdb.Error) as e:
            log.error("Slot %s has damage: %s", read.slot, e, extra={"event": "SnapshotUnread"})
            damage = e if isinstance(e, PayloadCorrupt) else None
        event = PayloadsRead(read.slot, read.to, tuple(batches), complete, damage)
        self._loop.call_soon(self._guarded, self._tell, event)
