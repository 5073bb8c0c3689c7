"""The store's directory: private to its owner, and used by one process at a time.

LMDB lets several processes share an environment; two peers on one store would be two peers under one name, so
a lock file is held (flock) for as long as the store is open. A new directory is made durable before anything
in it is promised: a file whose directory entry was never synced is not there after a power cut.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from meshq.errors import StoreError

LOCK_NAME = "in-use"
DATA_NAME = "data.mdb"
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def prepare(path: Path) -> None:
    """Make the directory if it is not there, and close it to everyone but its owner.

    Raises: StoreError.
    """
    try:
        made = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for new in made:
            sync_directory(new.parent)
        path.chmod(0o700)
        for file in path.iterdir():
            if file.is_file():
                file.chmod(0o600)
    except OSError as e:
        raise StoreError(
            f"cannot use {path} as the store's directory: {e.strerror}; "
            "make it a directory owned by the user meshq runs as, or use another --data"
        ) from e


def lock(path: Path, instead: str = "use another --data") -> int:
    """Hold the directory for this process; the lock goes with the returned descriptor. `instead`: what else
    to do than to stop the other one.

    Raises: StoreError when another process (or this one) has it open.
    """
    try:
        fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(f"cannot open {path / LOCK_NAME}: {e.strerror}; check who owns it") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StoreError(f"{path} is in use by process {holder}: stop it or {instead}") from None
    except OSError as e:
        # The number in it only helps people; without room for it the lock still holds.
        if e.errno not in FULL_ERRNOS:
            os.close(fd)
            raise StoreError(f"cannot lock {path / LOCK_NAME}: {e.strerror}; use a local file system") from e
    return fd


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the file system the directory is on."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
