"""Opening LMDB, and whose store it is.

Full sync always, no write map (a write map on a full disk is a SIGBUS), LMDB 0.9's file format by name. The
map is larger than what may be stored, because pages freed in pieces do not fit every batch and small entries
must still go in when publishing is refused; it costs only address space.

`meta` says which mesh the store belongs to, and which disk it is: sixteen bytes drawn when the store is made,
so that a wiped disk is known to be another one, and a boot epoch raised durably by each opening, so that a
restored or cloned directory can be told from the one it was copied from.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from meshq.errors import DiskFull, MeshqError, StoreCorrupt, StoreError, WrongMesh
from meshq.ids import ID_BYTES, show_id
from meshq.limits import MIB
from meshq.store.directory import DATA_NAME, FULL_ERRNOS, free_bytes, sync_directory
from meshq.store.layout import (
    FORMAT,
    META_BOOT,
    META_DISK,
    META_FORMAT,
    META_MESH,
    pack_u64,
    parse_u64,
)

# Pages that a transaction allocated and freed again at the very end of the file are never written, so a sound
# file may be shorter than its own count by a few pages; by this much it is not.
_SHORT_BYTES = 4 * MIB
_MAP_STEP = 64 * 1024  # the largest page of any system we run on
# py-lmdb before 2.0 carries 0.9 alone and does not know the argument.
ENGINE: dict[str, Any] = {"lib_version": 0} if hasattr(lmdb.Environment, "lib_version") else {}


@dataclass(frozen=True, slots=True)
class Databases:
    """An open environment, its named databases, and what `meta` says."""

    env: lmdb.Environment
    log: Any
    rows: Any
    payloads: Any
    aside: Any
    meta: Any
    disk_id: bytes
    boot_epoch: int


def map_bytes(bytes_max: int) -> int:
    """The size of the map for a store of this size."""
    size = bytes_max + bytes_max // 8 + 64 * MIB
    return size - size % _MAP_STEP


def open_environment(
    path: Path, *, mesh_id: bytes, bytes_max: int, disk_id: bytes | None = None
) -> Databases:
    """Open the store's environment, or make it (under this disk id), and raise the boot epoch on disk.

    Raises: WrongMesh, StoreCorrupt, DiskFull, StoreError.
    """
    try:
        env = lmdb.open(
            str(path),
            map_size=map_bytes(bytes_max),
            max_dbs=8,
            max_spare_txns=4,
            mode=0o600,
            sync=True,
            metasync=True,
            writemap=False,
            **ENGINE,
        )
    except lmdb.Error as e:
        raise _why_not_opened(path, e) from e
    try:
        env.reader_check()
        check_length(path, env)
        opened = _adopt(path, env, mesh_id, disk_id or os.urandom(16))
        sync_directory(path)
        return opened
    except lmdb.Error as e:
        env.close()
        raise _why_not_opened(path, e) from e
    except BaseException:
        env.close()
        raise


def error_code(error: lmdb.Error) -> int:
    """The errno, or LMDB's own negative number; 0 when py-lmdb does not say."""
    return int(getattr(error, "code", 0) or 0)


def _adopt(path: Path, env: lmdb.Environment, mesh_id: bytes, disk_id: bytes) -> Databases:
    """Check that the store is ours, and take the next boot epoch. One transaction: all of it or nothing."""
    if len(mesh_id) != ID_BYTES:
        raise StoreError(f"a mesh id has {ID_BYTES} bytes, not {len(mesh_id)}")
    with env.begin(write=True) as txn:
        new = txn.stat()["entries"] == 0
        meta = env.open_db(b"meta", txn=txn)
        if new:
            txn.put(META_FORMAT, pack_u64(FORMAT), db=meta)
            txn.put(META_MESH, mesh_id, db=meta)
            txn.put(META_DISK, disk_id, db=meta)
            txn.put(META_BOOT, pack_u64(0), db=meta)
        found = {bytes(k): bytes(v) for k, v in txn.cursor(meta)}
        _check_ours(path, found, mesh_id)
        boot_epoch = parse_u64(found[META_BOOT]) + 1
        txn.put(META_BOOT, pack_u64(boot_epoch), db=meta)
        names = (b"log", b"rows", b"payloads", b"aside")
        log, rows, payloads, aside = (env.open_db(name, txn=txn) for name in names)
    return Databases(env, log, rows, payloads, aside, meta, found[META_DISK], boot_epoch)


def _check_ours(path: Path, found: dict[bytes, bytes], mesh_id: bytes) -> None:
    wanted = {META_FORMAT: 8, META_MESH: ID_BYTES, META_DISK: 16, META_BOOT: 8}
    if len(found.get(META_FORMAT, b"")) == 8 and parse_u64(found[META_FORMAT]) > FORMAT:
        raise StoreError(
            f"{path} was written by a newer meshq; upgrade meshq on this host "
            f"(format {parse_u64(found[META_FORMAT])}, known here: {FORMAT})"
        )
    if any(len(found.get(name, b"")) != size for name, size in wanted.items()):
        raise StoreCorrupt(
            f"{path} does not say whose store it is; restore the directory or use another --data"
        )
    if found[META_MESH] != mesh_id:
        raise WrongMesh(
            f"{path} belongs to mesh {show_id(found[META_MESH])}, not to {show_id(mesh_id)}; "
            "use that mesh's data directory, or another --data for this one"
        )


def check_length(path: Path, env: lmdb.Environment) -> None:
    """A file cut short would end the process with SIGBUS when a page behind its end is read."""
    counted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    length = (path / DATA_NAME).stat().st_size
    if length + _SHORT_BYTES < counted:
        raise StoreCorrupt(
            f"{path / DATA_NAME} has {length} bytes where {counted} were written: it was cut short; "
            "restore it, or remove the store's directory to start again with an empty one"
        )


def _why_not_opened(path: Path, error: lmdb.Error) -> MeshqError:
    code = error_code(error)
    if code in FULL_ERRNOS or (code == errno.EIO and free_bytes(path) < MIB):
        return DiskFull(f"no room to open the store in {path}: free some disk space")
    if isinstance(error, lmdb.InvalidError | lmdb.CorruptedError | lmdb.VersionMismatchError):
        return StoreCorrupt(f"{path / DATA_NAME} is damaged or no store of meshq ({error}); restore it")
    if code in (errno.ENOMEM, errno.EINVAL):
        return StoreError(f"cannot map the store in {path} ({error}); lower store_bytes_max")
    return StoreError(
        f"cannot open the store in {path} ({error}); check who owns it and that the disk is sound"
    )
