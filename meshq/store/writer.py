"""The thread that writes. Group commit: everything that waits, in one transaction, with one full sync.

While one group is being synced the next one gathers, so the slower the disk, the larger the groups; there is
no delay of our own. Tokens are reported in the order the writes came in.

A full disk fails more than the transaction it hit: writes queued behind it may depend on it (a later entry of
the same log). So a failure fails everything queued, and from then on nothing is written until `resume()`,
which the event loop calls when it has heard of the failure; what it queued without knowing comes back from
that very call. Deletions go on meanwhile, for they make the room. Any other error is fatal: after a failed
sync nobody knows what the disk holds, so nothing is written any more (Rebello et al., "Can Applications
Recover from fsync Failures?", ATC 2020).

    writing --full disk--> refusing --resume()--> writing
    writing, refusing --any other error--> dead

Deletions are done in pieces, each partition in turn: with a group that is committed, so that they cost no
sync of their own and make more room than it takes, and by themselves while nothing is written.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import lmdb

from meshq.entries import Write
from meshq.errors import DiskFull, MeshqError, StoreError
from meshq.ids import PartitionKey
from meshq.limits import MIB, TRANSACTION_BYTES_MAX
from meshq.store.apply import (
    PIECE_BATCHES_MAX,
    Piece,
    apply_writes,
    drop_piece,
    pass_freed_on,
)
from meshq.store.directory import FULL_ERRNOS
from meshq.store.environment import Databases, error_code
from meshq.store.room import Room

TRANSACTION_WRITES_MAX = 8_192  # writes of one group commit, so that small ones have a bound too
_WITH_GROUP_BYTES = 2 * MIB  # deleted with a group, and twice what that has: many small ones free much too
_DROP_AGAIN_S = 1.0  # how long a deletion that found no room waits before it tries again
_NEAR_FULL_BYTES = (
    4 * MIB
)  # less than this beyond what the transaction needed: an I/O error means a full disk

OnDone = Callable[[list[int]], None]
OnFailed = Callable[[list[int], MeshqError], None]
OnFatal = Callable[[MeshqError], None]
OnDropped = Callable[[PartitionKey, int | None], None]


@dataclass(slots=True)
class Counters:
    """Totals since the store was opened, for metrics. Written by the writer thread alone."""

    commits: int = 0
    writes: int = 0
    bytes: int = 0  # of payload
    commit_seconds: float = 0.0
    failures: int = 0
    dropped_batches: int = 0
    dropped_bytes: int = 0


class _State(Enum):
    WRITING = auto()
    REFUSING = auto()
    DEAD = auto()


class Writer:
    """Owns the write transactions. The queue is bounded by who queues: PENDING_BYTES_MAX in a peer."""

    def __init__(self, dbs: Databases, room: Room) -> None:
        self.counters = Counters()
        self._dbs = dbs
        self._room = room
        self._lock = threading.Lock()
        self._bell = threading.Lock()  # held, until there is something for the thread to look at
        self._bell.acquire()
        self._queue: deque[tuple[Write, int]] = deque()
        self._drops: dict[PartitionKey, int | None] = {}  # one for a partition, however often it is asked for
        self._drop_at = 0.0  # not before this time
        self._drop_count_max = PIECE_BATCHES_MAX
        self._freed = False  # a deletion's pages wait to be passed on
        self._state = _State.WRITING
        self._closing = False
        self._error: MeshqError = DiskFull()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------- any thread
    def start(self, on_done: OnDone, on_failed: OnFailed, on_fatal: OnFatal, on_dropped: OnDropped) -> None:
        self._on_done, self._on_failed, self._on_fatal, self._on_dropped = (
            on_done, on_failed, on_fatal, on_dropped,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="meshq-store", daemon=True)
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def write(self, write: Write) -> None:
        size = write.payload_bytes()
        with self._lock:
            if self._state is _State.DEAD or self._closing:
                return
            self._room.accepted(size)
            self._queue.append((write, size))
            self._ring()

    def drop(self, partition: PartitionKey, below: int | None) -> None:
        with self._lock:
            if self._state is _State.DEAD or self._closing:
                return
            asked = self._drops.get(partition, below)
            self._drops[partition] = None if asked is None or below is None else max(asked, below)
            self._ring()

    def resume(self) -> list[int]:
        with self._lock:
            if self._state is not _State.REFUSING:
                return []
            self._state = _State.WRITING
            return self._empty_queue()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _ring(self) -> None:
        """With the lock held. A Condition does the same in Python, which who writes would wait for."""
        if self._bell.locked():
            self._bell.release()

    # ------------------------------------------------------------------------------- the writer thread
    def _run(self) -> None:
        try:
            while self._wait():
                if group := self._take_group():
                    self._commit(group)
                elif (partition := self._next_drop()) is not None:
                    self._drop_piece(partition)
            self._refuse_rest()
        except Exception as e:
            self._die(e)

    def _wait(self) -> bool:
        """Until there is something to do; False when the thread is to end."""
        while True:
            with self._lock:
                writable = bool(self._queue) and self._state is _State.WRITING
                if self._closing and not writable:
                    return False
                wait_s = max(self._drop_at - time.monotonic(), 0.0) if self._drops else -1
                if writable or wait_s == 0.0:
                    return True
            self._bell.acquire(timeout=wait_s)

    def _take_group(self) -> list[tuple[Write, int]]:
        group: list[tuple[Write, int]] = []
        total = 0
        with self._lock:
            while self._state is _State.WRITING and self._queue and len(group) < TRANSACTION_WRITES_MAX:
                total += self._queue[0][1]
                if group and total > TRANSACTION_BYTES_MAX:
                    break
                group.append(self._queue.popleft())
        return group

    def _commit(self, group: list[tuple[Write, int]]) -> None:
        tokens = [write.token for write, _ in group]
        size = sum(n for _, n in group)
        started = time.perf_counter()
        partition, piece = self._next_drop(), None
        below = self._drops.get(partition) if partition is not None else None
        try:
            with self._dbs.env.begin(write=True, buffers=True) as txn:
                apply_writes(txn, self._dbs, (write for write, _ in group))
                if partition is not None:
                    count_max = max(self._drop_count_max, 2 * len(group))
                    bytes_max = _WITH_GROUP_BYTES + 2 * size
                    piece = drop_piece(
                        txn, self._dbs, partition, below, count_max=count_max, bytes_max=bytes_max
                    )
        except lmdb.Error as e:
            if not self._is_full(e, size):
                raise
            self._refuse(tokens, size, e)
            return
        counters = self.counters
        counters.commit_seconds += time.perf_counter() - started
        counters.commits += 1
        counters.writes += len(group)
        counters.bytes += size
        self._room.settled(size)
        self._on_done(tokens)
        if partition is not None and piece is not None:
            self._count(piece)
            self._settle_drop(partition, below, finished=piece.finished)

    def _refuse(self, tokens: list[int], size: int, cause: lmdb.Error) -> None:
        self._error = DiskFull(
            f"no room to store records ({cause}): free some disk space or raise store_bytes_max; "
            "reading goes on, and writing when there is room again"
        )
        self._error.__cause__ = cause
        self.counters.failures += 1
        self._room.settled(size)
        with self._lock:
            self._state = _State.REFUSING
            tokens += self._empty_queue()
        self._on_failed(tokens, self._error)

    def _refuse_rest(self) -> None:
        """On closing: what came after a failure that nobody resumed from has failed with it."""
        with self._lock:
            tokens = self._empty_queue()
        if tokens:
            self._on_failed(tokens, self._error)

    def _next_drop(self) -> PartitionKey | None:
        with self._lock:
            if self._state is _State.DEAD or self._closing or time.monotonic() < self._drop_at:
                return None
            return next(iter(self._drops), None)

    def _drop_piece(self, partition: PartitionKey) -> None:
        with self._lock:
            below = self._drops[partition]
        try:
            finished = self._delete_some(partition, below)
        except lmdb.Error as e:
            if not self._is_full(e, 0):
                raise
            # Deleting needs a few pages of its own first; smaller steps need fewer, and others may make room.
            self._drop_count_max = max(1, self._drop_count_max // 8)
            self._drop_at = time.monotonic() + _DROP_AGAIN_S
            self._settle_drop(partition, below, finished=False)
            return
        self._drop_count_max = PIECE_BATCHES_MAX
        self._settle_drop(partition, below, finished=finished)

    def _settle_drop(self, partition: PartitionKey, below: int | None, *, finished: bool) -> None:
        """Report it, unless there is more to delete: then it is behind the others."""
        with self._lock:
            asked = self._drops.pop(partition)
            done = finished and asked == below
            if not done:
                self._drops[partition] = asked
        if done:
            self._on_dropped(partition, below)

    def _delete_some(self, partition: PartitionKey, below: int | None) -> bool:
        """One piece; whether that was the last, and its pages may be used again."""
        with self._dbs.env.begin(write=True, buffers=True) as txn:
            piece = drop_piece(txn, self._dbs, partition, below, count_max=self._drop_count_max)
        self._count(piece)
        if piece.finished and self._freed:
            with self._dbs.env.begin(write=True) as txn:
                pass_freed_on(txn, self._dbs)
            self._freed = False
        return piece.finished

    def _count(self, piece: Piece) -> None:
        self._freed = self._freed or piece.count > 0
        self.counters.dropped_batches += piece.count
        self.counters.dropped_bytes += piece.bytes

    def _is_full(self, error: lmdb.Error, size: int) -> bool:
        """LMDB reports a write cut short by a full disk as an I/O error, so the disk is asked."""
        code = error_code(error)
        if isinstance(error, lmdb.MapFullError) or code in FULL_ERRNOS:
            return True
        unclear = code == errno.EIO or "Input/output error" in str(error)
        return unclear and self._room.disk_free() < 2 * size + _NEAR_FULL_BYTES

    def _die(self, cause: Exception) -> None:
        error = StoreError(
            f"the store cannot write any more ({type(cause).__name__}: {cause}); check the disk, restart"
        )
        error.__cause__ = cause
        with self._lock:
            self._state = _State.DEAD
            self._empty_queue()
            self._drops.clear()
        with contextlib.suppress(Exception):  # whoever should hear of it is gone already
            self._on_fatal(error)

    def _empty_queue(self) -> list[int]:
        tokens = [write.token for write, _ in self._queue]
        self._room.settled(sum(size for _, size in self._queue))
        self._queue.clear()
        return tokens
