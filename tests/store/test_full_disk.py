"""A full disk refuses, loses nothing, goes on reading, and recovers when room is made."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import lmdb
import pytest

from meshq.entries import Write
from meshq.errors import DiskFull
from meshq.ids import Slot
from meshq.limits import MIB

from .helpers import P0, payload

S = Slot(3)
SIZE = 200_000


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MiB; where it cannot be mounted the test is skipped."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(store, heard) -> int:
    """Write until it fails; how many batches went in."""
    count = 0
    while not heard.failed:
        store.write(Write(count, S, payloads=(payload(count, size=SIZE),)))
        count += 1
        heard.wait(lambda wanted=count: len(heard.tokens()) == wanted or bool(heard.failed))
    return count - 1


def fill_the_room(store, heard) -> int:
    """Write until no room is left by a fresh measurement; how many batches went in."""
    count = 0
    store._room.refresh()
    while store.room() >= SIZE:
        while store.room() >= SIZE:
            store.write(Write(count, S, payloads=(payload(count, size=SIZE),)))
            count += 1
        heard.wait(lambda wanted=count: len(heard.tokens()) == wanted)
        store._room.refresh()
    return count


def test_a_full_disk_fails_writes_keeps_reading_and_recovers(opened, small_disk: Path, heard):
    store = opened(small_disk / "s", reserve_bytes=0)
    heard.start(store)
    stored = fill(store, heard)
    assert 55 < stored <= 12 * MIB // SIZE
    tokens, error = heard.failed[0]
    assert tokens == [stored] and isinstance(error, DiskFull)
    # Nothing is written before resume(), though it would fit.
    store.write(Write(1_000, S, rows=((b"a", b""),)))
    assert len(store.read_batches(P0, 0, end=99, bytes_max=64 * MIB)) == stored
    # Deletion goes on and makes room; what was queued unknowingly comes back as failed.
    store.drop_payloads(P0, below=20)
    heard.wait(lambda: heard.dropped == [P0])
    assert S not in store.load()
    assert store.resume() == [1_000]
    assert store.resume() == []
    store.write(Write(1_001, S, payloads=(payload(stored, size=SIZE),)))
    heard.wait(lambda: 1_001 in heard.tokens())
    assert [len(heard.failed), heard.fatal] == [1, []]
    assert len(store.read_batches(P0, 20, end=99, bytes_max=64 * MIB)) == stored - 20 + 1
    store.close()


def test_what_a_failed_transaction_left_behind_the_data_is_room(opened, small_disk, heard):
    store = opened(small_disk / "s", reserve_bytes=0)
    before = store.room()
    store.write(Write(1, S, payloads=tuple(payload(n, size=SIZE) for n in range(80))))
    heard.start(store)
    heard.wait(lambda: bool(heard.failed))
    assert os.statvfs(small_disk).f_bavail * 4096 < SIZE
    store.resume()
    store._room.refresh()
    assert store.room() > before - MIB
    store.write(Write(2, S, payloads=(payload(0, size=SIZE),)))
    heard.wait(lambda: 2 in heard.tokens())
    store.close()


def test_room_is_gone_before_the_disk_is_and_the_reserve_takes_small_entries(opened, small_disk, heard):
    store = opened(small_disk / "s", reserve_bytes=2 * MIB)
    heard.start(store)
    count = fill_the_room(store, heard)
    assert 45 < count <= 10 * MIB // SIZE
    for token in range(count, count + 200):
        store.write(Write(token, S, rows=((b"%d" % token, b"x" * 500),)))
    heard.wait(lambda: len(heard.tokens()) == count + 200)
    assert heard.failed == []
    store.close()


def test_room_is_gone_before_the_map_is_full(opened, tmp_path, heard):
    store = opened(tmp_path / "s", bytes_max=8 * MIB, reserve_bytes=0)
    heard.start(store)
    count = fill_the_room(store, heard)
    assert 35 < count <= 8 * MIB // SIZE
    assert store.used_bytes <= 8 * MIB
    for token in range(count, count + 500):
        store.write(Write(token, S, rows=((b"%d" % token, b"x" * 500),)))
    heard.wait(lambda: len(heard.tokens()) == count + 500)
    assert heard.failed == []


def test_a_full_map_is_a_full_disk(opened, tmp_path, heard, monkeypatch):
    monkeypatch.setattr("meshq.store.environment.map_bytes", lambda bytes_max: bytes_max)
    store = opened(tmp_path / "s", bytes_max=4 * MIB)
    heard.start(store)
    stored = fill(store, heard)
    assert isinstance(heard.failed[0][1], DiskFull)
    store.resume()
    store.write(Write(1_000, S, rows=((b"a", b""),)))
    heard.wait(lambda: 1_000 in heard.tokens())
    assert len(store.read_batches(P0, 0, end=99, bytes_max=64 * MIB)) == stored


def test_room_follows_the_free_disk_less_the_reserve_and_what_is_queued(opened, tmp_path):
    free = 10 * MIB
    store = opened(tmp_path / "s", reserve_bytes=4 * MIB, free_bytes=lambda: free)
    before = store.room()
    assert 6 * MIB <= before < 7 * MIB
    write = Write(1, S, payloads=(payload(0, size=SIZE),))
    store.write(write)
    assert store.room() == before - write.payload_bytes()
    free = MIB
    store._room.refresh()
    assert store.room() == 0


def failing(monkeypatch, error: lmdb.Error, on_token: int) -> None:
    from meshq.store import writer

    real = writer.apply_writes

    def apply(txn, dbs, writes):
        writes = list(writes)
        real(txn, dbs, writes)
        if any(w.token == on_token for w in writes):
            raise error

    monkeypatch.setattr(writer, "apply_writes", apply)


def test_a_failure_takes_everything_queued_with_it_and_leaves_nothing(opened, tmp_path, heard, monkeypatch):
    monkeypatch.setattr("meshq.store.writer.TRANSACTION_WRITES_MAX", 2)
    failing(monkeypatch, lmdb.MapFullError("mdb_put"), on_token=3)
    store = opened(tmp_path / "s")
    for token in range(1, 8):
        store.write(Write(token, S, rows=((b"%d" % token, b""),)))
    heard.start(store)
    heard.wait(lambda: bool(heard.failed))
    assert heard.done == [[1, 2]]
    assert [tokens for tokens, _ in heard.failed] == [[3, 4, 5, 6, 7]]
    assert set(store.load()[S].rows) == {b"1", b"2"}
    assert store._room._waiting == 0


def test_closing_reports_what_was_queued_after_a_failure(opened, tmp_path, heard, monkeypatch):
    failing(monkeypatch, lmdb.MapFullError("mdb_put"), on_token=1)
    store = opened(tmp_path / "s")
    heard.start(store)
    store.write(Write(1, S))
    heard.wait(lambda: bool(heard.failed))
    store.write(Write(2, S))
    store.close()
    assert [tokens for tokens, _ in heard.failed] == [[1], [2]]


@pytest.mark.parametrize(("free", "full"), [(0, True), (1_000 * MIB, False)])
def test_an_io_error_is_a_full_disk_only_if_the_disk_is_full(
    opened, tmp_path, heard, monkeypatch, free, full
):
    error = lmdb.Error("mdb_txn_commit: Input/output error")
    error.code = errno.EIO
    failing(monkeypatch, error, on_token=1)
    store = opened(tmp_path / "s", free_bytes=lambda: free)
    heard.start(store)
    store.write(Write(1, S))
    heard.wait(lambda: bool(heard.failed) or bool(heard.fatal))
    assert (bool(heard.failed), bool(heard.fatal)) == (full, not full)
