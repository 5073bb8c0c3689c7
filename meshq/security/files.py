"""Private files: written whole or not at all, and refused when somebody else can read them.

A key that others can read is no key, so reading checks what writing promised: mode 0600 and this user as
owner. A file is replaced by rename after its bytes are on disk, and the directory is synced, so that after a
power cut there is the old file or the new one.

Structs are kept behind one line that says what the file is (`meshq identity 1`) and a checksum: a damaged key
must be called damaged, not be taken for another key.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from meshq.errors import SecurityError, StoreCorrupt, StoreError

FILE_BYTES_MAX: Final = 1 << 20  # `StoreError`
_FORMAT: Final = 1
_SUM_BYTES: Final = 8

T = TypeVar("T", bound=msgspec.Struct)


def write_private(path: Path, data: bytes) -> None:
    """Replace the file by these bytes, readable by this user only; on disk before this returns.

    Raises: StoreError.
    """
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
        try:
            with open(fd, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_dir(path.parent)
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror}") from e


def read_private(path: Path) -> bytes:
    """The file's bytes.

    Raises: SecurityError when others may read or write it or it is somebody else's, StoreError when it is
    missing, too large or cannot be read.
    """
    try:
        with open(path, "rb") as f:
            _check_private(path, os.fstat(f.fileno()))
            data = f.read(FILE_BYTES_MAX + 1)
    except OSError as e:
        raise StoreError(f"cannot read {path}: {e.strerror}") from e
    if len(data) > FILE_BYTES_MAX:
        raise StoreError(f"cannot read {path}: it is larger than {FILE_BYTES_MAX} bytes")
    return data


def make_private_dir(path: Path, ours: Collection[str] = ()) -> None:
    """Make the directory, private (0700). One that is there and has nothing in it but `ours` is made so too;
    one that others may enter and that has other things in it is left as it is.

    Raises: SecurityError when it is somebody else's or open to others, StoreError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if _is_foreign(found):
            raise SecurityError(
                f"{path} is owned by user {found.st_uid}, not by the user running this ({os.geteuid()}): "
                "run as its owner, or choose another directory"
            )
        if stat.S_IMODE(found.st_mode) & 0o077 or found.st_mode & 0o700 != 0o700:
            if any(file.name not in ours for file in path.iterdir()):
                raise SecurityError(
                    f"{path} has other things in it and can be entered by others (mode "
                    f"{stat.S_IMODE(found.st_mode):o}): keys are kept in a directory of their own. Choose "
                    f"another with --data, or if nobody else needs this one: chmod 700 {path}"
                )
            path.chmod(0o700)
        sync_dir(path.parent)
    except OSError as e:
        raise StoreError(
            f"cannot make the directory {path} ({e.strerror}): choose another with --data, or make it as "
            f"root: mkdir -p {path} && chown {os.geteuid()} {path}"
        ) from e


def sync_dir(path: Path) -> None:
    """Make what was created, renamed or removed in this directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save_struct(path: Path, kind: str, value: msgspec.Struct) -> None:
    """Keep a struct in a private file that says what it is."""
    body = msgspec.msgpack.encode(value)
    write_private(path, f"meshq {kind} {_FORMAT}\n".encode() + _sum(body) + body)


def load_struct(path: Path, kind: str, cls: type[T]) -> T:
    """The struct of this kind kept in the file.

    Raises: SecurityError, StoreError (missing, another kind, made by a newer version), StoreCorrupt.
    """
    head, _, rest = read_private(path).partition(b"\n")
    if head != f"meshq {kind} {_FORMAT}".encode():
        if head.startswith(f"meshq {kind} ".encode()):
            raise StoreError(f"{path} was written by a newer meshq: upgrade this one")
        raise StoreError(f"{path} is not meshq's file of kind {kind!r}: put back the right one")
    checksum, body = rest[:_SUM_BYTES], rest[_SUM_BYTES:]
    if checksum != _sum(body):
        raise StoreCorrupt(f"{path} is damaged: its checksum does not match. Put back a copy of it")
    try:
        return msgspec.msgpack.decode(body, type=cls)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise StoreCorrupt(f"{path} is damaged: {e}. Put back a copy of it") from None


def _sum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_SUM_BYTES, person=b"meshq file").digest()


def _check_private(path: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"cannot read {path}: it is not a regular file")
    if _is_foreign(found):
        raise SecurityError(
            f"{path} (mode {mode:04o}) is owned by user {found.st_uid}, not by the user running this "
            f"({os.geteuid()}): run as its owner, or: chown {os.geteuid()} {path} && chmod 600 {path}"
        )
    if os.name == "posix" and mode & 0o077:
        raise SecurityError(
            f"{path} has mode {mode:04o}: other users can reach the secrets in it. Run: chmod 600 {path}"
        )


def _is_foreign(found: os.stat_result) -> bool:
    return os.name == "posix" and found.st_uid != os.geteuid()
