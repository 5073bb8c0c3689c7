"""The store as the rest of a peer sees it: queue writes and deletions, read, ask for room.

Calls come from one thread (the event loop's); none of them waits for the writer but `close`. Callbacks given
to `start` are called in the writer thread. A store is not for use across fork: a child that shares the map
and the lock would be a second peer under the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from meshq.entries import Entry, Mark, PayloadKey, StoredBatch, Write
from meshq.errors import InternalError, UsageError
from meshq.ids import PartitionKey, Slot
from meshq.limits import DISK_RESERVE_BYTES, STORE_BYTES_MAX
from meshq.store import directory, reads
from meshq.store.environment import Databases, open_environment
from meshq.store.reads import SlotImage
from meshq.store.room import Room
from meshq.store.writer import Counters, OnDone, OnDropped, OnFailed, OnFatal, Writer


class Store:
    """One peer's store, open. Make it with `Store.open`."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mesh_id: bytes,
        bytes_max: int = STORE_BYTES_MAX,
        reserve_bytes: int = DISK_RESERVE_BYTES,
        free_bytes: Callable[[], int] | None = None,
        disk_id: bytes | None = None,
    ) -> Store:
        """Open the store in this directory, or make it; the boot epoch has been raised on disk on return.

        `free_bytes` tells what the disk has free (None: its file system is asked). A store that is made gets
        `disk_id` (None: a new one is drawn).
        Raises: WrongMesh; StoreError when it is in use, was written by a newer version or cannot be opened;
        StoreCorrupt; DiskFull.
        """
        place = Path(path)
        directory.prepare(place)
        lock = directory.lock(place)
        try:
            dbs = open_environment(place, mesh_id=mesh_id, bytes_max=bytes_max, disk_id=disk_id)
        except BaseException:
            os.close(lock)
            raise
        ask = free_bytes or (lambda: directory.free_bytes(place))
        room = Room(dbs, place, bytes_max=bytes_max, reserve_bytes=reserve_bytes, free_bytes=ask)
        return cls(place, dbs, room, lock)

    def __init__(self, path: Path, dbs: Databases, room: Room, lock: int) -> None:
        self.path = path
        self.disk_id = dbs.disk_id
        self.boot_epoch = dbs.boot_epoch
        self._dbs = dbs
        self._room = room
        self._writer = Writer(dbs, room)
        self._lock: int | None = lock
        self._pid = os.getpid()

    # ----------------------------------------------------------------------------------------- writing
    def start(
        self, on_done: OnDone, on_failed: OnFailed, *, on_fatal: OnFatal, on_dropped: OnDropped
    ) -> None:
        """Start the writer thread, which calls these. What was queued before goes into the first commit.

        on_done(tokens): these writes are on disk; in the order they were queued.
        on_failed(tokens, error): these writes failed and left nothing (DiskFull); answer by one `resume()`.
        on_fatal(error): nothing is written or reported any more; the peer has to stop.
        on_dropped(partition, below): what `drop_payloads` was asked for is gone.
        """
        self._check_open()
        if self._writer.started:
            raise UsageError("the store's writer was started already")
        self._writer.start(on_done, on_failed, on_fatal, on_dropped)

    def write(self, write: Write) -> None:
        """Queue a write; never blocks. Who calls bounds what is queued (`room()`, PENDING_BYTES_MAX)."""
        self._check_open()
        self._writer.write(write)

    def resume(self) -> list[int]:
        """Write again after a failure that the caller has heard of (`on_failed`).

        Returns the tokens of writes queued since the failure: they failed too, and are reported here only.
        """
        self._check_open()
        return self._writer.resume()

    def drop_payloads(self, partition: PartitionKey, *, below: int | None) -> None:
        """Delete, in pieces between commits, the batches that end at or below this offset (None: all).

        A deletion that was under way when the peer stopped is forgotten: ask again after a restart.
        """
        self._check_open()
        self._writer.drop(partition, below)

    # ----------------------------------------------------------------------------------------- reading
    def load(self, *, strict: bool = True) -> dict[Slot, SlotImage]:
        """What there is of every slot. Raises: StoreCorrupt; unless `strict`, an image tells its damage."""
        self._check_open()
        return reads.load(self._dbs, strict=strict)

    def read_sound(self, slot: Slot, from_index: int) -> list[Entry]:
        """Of the entries from this index on those that are sound: what is left behind a damaged one."""
        self._check_open()
        return reads.read_sound(self._dbs, slot, from_index)

    def read_rows(self, slot: Slot) -> dict[bytes, bytes]:
        """The slot's rows, as one transaction left them."""
        self._check_open()
        return reads.read_rows(self._dbs, slot)

    def read_payload(self, key: PayloadKey) -> bytes:
        """Raises: PayloadCorrupt when it is not there or damaged."""
        self._check_open()
        return reads.read_payload(self._dbs, key)

    def is_compacted(self, key: PayloadKey) -> bool:
        """Whether the batch that had exactly this key is stored as it came no more."""
        self._check_open()
        return reads.is_compacted(self._dbs, key)

    def read_entries(self, slot: Slot, from_index: int, *, bytes_max: int, count_max: int) -> list[Entry]:
        """Entries from this index on, dense and verified; at least one if there is any.

        Raises: StoreCorrupt naming slot and index; UsageError for an index that has been trimmed away.
        """
        self._check_open()
        return reads.read_entries(self._dbs, slot, from_index, bytes_max=bytes_max, count_max=count_max)

    def read_batches(
        self, partition: PartitionKey, offset: int, *, end: int, bytes_max: int, count_max: int = 64
    ) -> list[StoredBatch]:
        """Batches from the one that holds `offset` on, with a base offset below `end`; at least one if any.

        Raises: PayloadCorrupt when the first batch to return is the bad one.
        """
        self._check_open()
        return reads.read_batches(
            self._dbs, partition, offset, end=end, bytes_max=bytes_max, count_max=count_max
        )

    def survey(self, partition: PartitionKey, offset: int, *, count_max: int) -> list[Mark]:
        """Which batches there are, from the one that holds `offset` on; at most so many."""
        self._check_open()
        return reads.survey(self._dbs, partition, offset, count_max=count_max)

    def first_offset(self, partition: PartitionKey) -> int | None:
        """The base offset of the oldest batch kept; None without any."""
        self._check_open()
        return reads.first_offset(self._dbs, partition)

    def offset_at(self, partition: PartitionKey, timestamp_ms: int, *, end: int) -> int:
        """The base offset of the first batch below `end` appended at this time or later; or `end`."""
        self._check_open()
        return reads.offset_at(self._dbs, partition, timestamp_ms, end=end)

    # -------------------------------------------------------------------------------------------- room
    def room(self) -> int:
        """Payload bytes that may still be queued; 0 means that publishing should be refused with DiskFull."""
        return self._room.left()

    @property
    def used_bytes(self) -> int:
        """Bytes of pages in use (the file may be larger: freed pages stay in it to be used again)."""
        self._check_open()
        return self._room.usage().used

    @property
    def counters(self) -> Counters:
        return self._writer.counters

    # ------------------------------------------------------------------------------------------- end
    def close(self) -> None:
        """Write what is queued, stop the thread, close the files. Again, or after a fork: nothing.

        Without `start` there is nobody to report to, and what was queued is not written.
        """
        if self._lock is None or os.getpid() != self._pid:
            return
        self._writer.close()
        self._dbs.env.close()
        os.close(self._lock)
        self._lock = None

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise InternalError(
                f"the store was opened by process {self._pid}; open it after forking, where it is used"
            )
        if self._lock is None:
            raise UsageError(f"the store in {self.path} is closed")
