"""How much more may be accepted: the smaller of what the disk can take and what the store may hold.

LMDB's file never shrinks. Pages of deleted batches go onto its free list and are used again, so they count as
room, and so does the file's tail that a failed transaction wrote and nobody counts yet. What is in use is
known exactly: the pages of every database. Kept back from the disk: a reserve, so that entries without
payload (acks, deletions) still go in when publishing is refused.

Measuring takes some ten microseconds, so it is done at most every `REFRESH_S` or `REFRESH_BYTES` accepted; in
between every accepted byte counts as used.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshq.limits import MIB
from meshq.store.directory import DATA_NAME
from meshq.store.environment import Databases

REFRESH_S = 0.1
REFRESH_BYTES = 8 * MIB
_META_PAGES = 2


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: in use by rows, entries and batches; in the file and free to be used again; free on the disk."""

    used: int
    reusable: int
    disk_free: int


class Room:
    """Accounts of the disk. `accepted` is called by who queues a write, `settled` by who wrote it."""

    def __init__(
        self, dbs: Databases, path: Path, *, bytes_max: int, reserve_bytes: int, free_bytes: Callable[[], int]
    ) -> None:
        self._dbs = dbs
        self._file = path / DATA_NAME
        self._bytes_max = bytes_max
        self._reserve_bytes = reserve_bytes
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._waiting = 0  # accepted, and not yet in the databases or failed
        self._charged = 0  # accepted since the last measurement, or waiting when it was made
        self._charged_first = 0  # what `_charged` began with
        self._measured_at = float("-inf")
        self._usage = self._measure()

    def accepted(self, size: int) -> None:
        with self._lock:
            self._waiting += size
            self._charged += size

    def settled(self, size: int) -> None:
        with self._lock:
            self._waiting -= size

    def left(self) -> int:
        """Payload bytes that may still be accepted."""
        usage = self.usage()
        disk = usage.disk_free + usage.reusable - self._reserve_bytes
        return max(0, min(disk, self._bytes_max - usage.used) - self._charged)

    def usage(self) -> Usage:
        stale = time.monotonic() - self._measured_at >= REFRESH_S
        if stale or self._charged - self._charged_first >= REFRESH_BYTES:
            self.refresh()
        return self._usage

    def refresh(self) -> None:
        # What waits is charged before measuring: a commit in between is then counted twice, never not at all.
        with self._lock:
            self._charged = self._charged_first = self._waiting
        self._usage = self._measure()
        self._measured_at = time.monotonic()

    def disk_free(self) -> int:
        return self._free_bytes()

    def _measure(self) -> Usage:
        env = self._dbs.env
        with env.begin() as txn:
            stats = [
                txn.stat(db) for db in (self._dbs.log, self._dbs.rows, self._dbs.payloads, self._dbs.meta)
            ]
            stats.append(env.stat())
            file_pages = env.info()["last_pgno"] + 1
        page_bytes = stats[0]["psize"]
        pages = _META_PAGES + sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        counted = file_pages * page_bytes
        file = os.stat(self._file)
        tail = max(0, min(file.st_size, file.st_blocks * 512) - counted)
        used = pages * page_bytes
        return Usage(used, max(0, counted - used) + tail, self._free_bytes())
