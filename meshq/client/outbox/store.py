"""An outbox's disk: one LMDB environment with full sync, one thread, everything that waits in one sync.

While one transaction is being synced the next orders gather, so a slow disk makes larger groups and no delay
of our own is needed. Reads go through the same thread, between transactions, so that each sees what was
ordered before it. Answers come in the order of the orders.

On a full disk new records are refused, and what the machine must have on disk (a receipt came, a number was
given) is tried until it fits. After any other error nothing is written any more: nobody knows what the disk
holds then.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from meshq.client.outbox import layout, loading, words
from meshq.client.outbox.words import Event, Persist
from meshq.errors import DiskFull, MeshqError, StoreCorrupt, StoreError
from meshq.limits import MIB, TRANSACTION_BYTES_MAX
from meshq.store.directory import DATA_NAME, FULL_ERRNOS, free_bytes, lock, prepare, sync_directory
from meshq.store.environment import ENGINE, check_length, error_code

Order = Persist | words.ReadQueue | words.ReadParked
AGAIN_S: Final = 1.0  # between tries on a full disk
_NEAR_FULL_BYTES: Final = 4 * MIB
_MAP_STEP: Final = 64 * 1024


class OutboxStore:
    """Opened by one process at a time; others may look (`looking_at`). Raises, when made: StoreError,
    StoreCorrupt, DiskFull.
    """

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self.path = path
        prepare(path)
        self._lock = lock(path, "give this one another outbox: one process has an outbox at a time")
        try:
            self._env, self._databases = _open(path, bytes_max)
        except BaseException:
            os.close(self._lock)
            raise
        self._wake = threading.Condition()
        self._orders: deque[Order] = deque()  # bounded by the machine: records taken, batches in windows
        self._closing = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def reader(self) -> Iterator[loading.Reader]:
        with self._env.begin() as txn:
            yield _Reader(txn, self._databases)

    # ------------------------------------------------------------------------------------- any thread
    def start(self, on_done: Callable[[list[Event]], None], on_fatal: Callable[[MeshqError], None]) -> None:
        """Both are called on the store's own thread."""
        self._on_done, self._on_fatal = on_done, on_fatal
        self._thread = threading.Thread(target=self._run, name="meshq-outbox", daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def close(self) -> None:
        """What was ordered is done first."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._env.close()
        os.close(self._lock)

    # -------------------------------------------------------------------------------- the store's thread
    def _run(self) -> None:
        try:
            while group := self._take_group():
                answers = self._commit(group) if isinstance(group[0], Persist) else self._read(group)
                self._on_done(answers)
        except Exception as e:
            error = StoreError(f"the outbox cannot be written any more ({type(e).__name__}: {e})")
            error.__cause__ = e
            self._on_fatal(error)

    def _take_group(self) -> list[Order]:
        """Orders of one kind, in their order; none when it is to end."""
        group: list[Order] = []
        size = 0
        with self._wake:
            while not self._orders and not self._closing:
                self._wake.wait()
            while self._orders and size < TRANSACTION_BYTES_MAX:
                order = self._orders[0]
                if group and isinstance(order, Persist) != isinstance(group[0], Persist):
                    break
                group.append(self._orders.popleft())
                size += _size(order)
        return group

    def _read(self, group: list[Order]) -> list[Event]:
        answers: list[Event] = []
        with self.reader() as reader:
            for order in group:
                if isinstance(order, words.ReadQueue):
                    read = loading.read_queue(reader, order.topic, order.partition, order.bytes_max)
                    answers.append(read)
                elif isinstance(order, words.ReadParked):
                    try:
                        rows = loading.read_parked(reader, order.id)
                    except MeshqError:
                        rows = []  # damaged: it stays where it is
                    answers.append(words.ParkedRead(order.id, rows))
        return answers

    def _commit(self, group: list[Order]) -> list[Event]:
        orders = [o for o in group if isinstance(o, Persist)]
        full = self._try(orders)
        if full is None:
            return [words.Persisted(o.token) for o in orders]
        refused = [o for o in orders if o.fallible]
        kept = [o for o in orders if not o.fallible]
        self._on_done([words.NotPersisted(o.token, full) for o in refused])
        while kept and (again := self._try(kept)) is not None:
            if not self._wait_for_room(again):
                return []
        return [words.Persisted(o.token) for o in kept]

    def _try(self, orders: list[Persist]) -> DiskFull | None:
        """All of it or nothing."""
        size = sum(map(_size, orders))
        try:
            with self._env.begin(write=True) as txn:
                for order in orders:
                    for database, key in order.deletes:
                        txn.delete(key, db=self._databases[database])
                    for database, key, value in order.puts:
                        txn.put(key, value, db=self._databases[database])
        except lmdb.Error as e:
            if not _is_full(e, self.path, size):
                raise
            full = DiskFull(f"no room for the outbox in {self.path} ({e}): free some disk space")
            full.__cause__ = e
            return full
        return None

    def _wait_for_room(self, full: DiskFull) -> bool:
        """A moment, in which new records are refused; False when it is to end instead."""
        with self._wake:
            if self._closing:
                return False
            self._wake.wait(AGAIN_S)
            refused = [o for o in self._orders if isinstance(o, Persist) and o.fallible]
            self._orders = deque(o for o in self._orders if not (isinstance(o, Persist) and o.fallible))
        self._on_done([words.NotPersisted(o.token, full) for o in refused])
        return True


@contextmanager
def looking_at(path: Path) -> Iterator[loading.Reader]:
    """Read an outbox that another process may have open. Raises: StoreError, StoreCorrupt."""
    if not (path / DATA_NAME).exists():
        raise StoreError(f"there is no outbox in {path}")
    try:
        env = lmdb.open(str(path), readonly=True, max_dbs=len(layout.DATABASES), **ENGINE)
    except lmdb.Error as e:
        raise StoreCorrupt(f"the outbox in {path} cannot be opened ({e})") from e
    try:
        check_length(path, env)
        with env.begin() as txn:
            databases = {name: env.open_db(name, txn=txn, create=False) for name in layout.DATABASES}
            yield _Reader(txn, databases)
    except lmdb.Error as e:
        raise StoreCorrupt(f"{path} is no outbox, or is damaged ({e})") from e
    finally:
        env.close()


class _Reader:
    def __init__(self, txn: Any, databases: dict[bytes, Any]) -> None:
        self._txn, self._databases = txn, databases

    def rows(self, database: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor(self._databases[database])
        if not (cursor.set_range(start) if start else cursor.first()):
            return
        for key, value in cursor:
            yield bytes(key), bytes(value)

    def count(self, database: bytes) -> int:
        return int(self._txn.stat(self._databases[database])["entries"])


def _open(path: Path, bytes_max: int) -> tuple[lmdb.Environment, dict[bytes, Any]]:
    try:
        env = lmdb.open(
            str(path),
            map_size=map_bytes(path, bytes_max),
            max_dbs=len(layout.DATABASES),
            mode=0o600,
            sync=True,
            metasync=True,
            writemap=False,
            **ENGINE,
        )
    except lmdb.Error as e:
        if _is_full(e, path, 0):
            raise DiskFull(f"no room to open the outbox in {path}: free some disk space") from e
        raise StoreCorrupt(
            f"{path / DATA_NAME} is damaged or no outbox ({e}): nothing in it was changed; restore it, or "
            "use another directory"
        ) from e
    try:
        env.reader_check()
        check_length(path, env)
        with env.begin(write=True) as txn:
            databases = {name: env.open_db(name, txn=txn) for name in layout.DATABASES}
        sync_directory(path)
    except lmdb.Error as e:
        env.close()
        raise StoreCorrupt(f"the outbox in {path} is damaged ({e}): restore it") from e
    except BaseException:
        env.close()
        raise
    return env, databases


def map_bytes(path: Path, bytes_max: int) -> int:
    """Numbering a batch has its records there twice for a moment, and pages are not filled to the brim. Who
    opens it to send what waits need not know how much it was allowed: there is room beyond what it takes.
    """
    data = path / DATA_NAME
    size = max(3 * bytes_max, 2 * data.stat().st_size if data.exists() else 0) + 256 * MIB
    return size - size % _MAP_STEP


def _is_full(error: lmdb.Error, path: Path, size: int) -> bool:
    """LMDB reports a write cut short by a full disk as an I/O error, so the disk is asked."""
    code = error_code(error)
    if isinstance(error, lmdb.MapFullError) or code in FULL_ERRNOS:
        return True
    unclear = code == errno.EIO or "Input/output error" in str(error)
    return unclear and free_bytes(path) < 2 * size + _NEAR_FULL_BYTES


def _size(order: Order) -> int:
    return sum(len(value) for _, _, value in order.puts) if isinstance(order, Persist) else 0
