"""Follow a log file into a topic, as `tail -F` does, surviving its rotation.

    python examples/collect_log.py /var/log/syslog logs.syslog --data ~/.meshq
    python examples/collect_log.py app.log logs.app --credentials app.meshq

Every line is one record, keyed by this host's name, so that the lines of one host stay in order. A file that
was renamed or cut short is read to its end first, then the new one from its beginning. Only whole lines are
sent: a line still being written waits for its newline.

How far it has got is kept in memory only: after a restart it begins at the end of the file, or with
--from-start at its beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import meshq

LOOK_EVERY_S = 0.2  # at the file, when it has nothing new
READ_BYTES = 256 * 1024


class Follower:
    """Reads the whole lines that are new, through renames and truncation."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._rest = b""  # of a line whose newline has not come yet
        self._fd = self._open()
        if self._fd is not None and not from_start:
            os.lseek(self._fd, 0, os.SEEK_END)

    def new_lines(self) -> Iterator[bytes]:
        """What has come since the last call. Ends when there is nothing more just now."""
        if self._fd is None:
            self._fd = self._open()
        while self._fd is not None:
            yield from self._read(self._fd)
            if not self._rotated(self._fd):
                return
            # What was written between our last read and the rename; a last line without newline is one, too.
            yield from self._read(self._fd)
            if self._rest:
                yield self._rest
                self._rest = b""
            os.close(self._fd)
            self._fd = self._open()

    def _read(self, fd: int) -> Iterator[bytes]:
        """The whole lines from here to the end of this file."""
        while data := os.read(fd, READ_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines

    def _rotated(self, fd: int) -> bool:
        """Whether the path means another file by now, or this one was cut short."""
        mine = os.fstat(fd)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False  # renamed, and the new one is not there yet: this one may still grow
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            return True
        return there.st_size < os.lseek(fd, 0, os.SEEK_CUR)

    def _open(self) -> int | None:
        try:
            return os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None


async def collect(mesh: meshq.Mesh, path: Path, topic: str, *, from_start: bool) -> None:
    follower = Follower(path, from_start=from_start)
    key = socket.gethostname().encode()
    async with mesh.producer(topic, compression="zstd") as out:
        while True:
            for line in follower.new_lines():
                # A full buffer means that the mesh is slower than the log: the file itself waits for us.
                await out.ready()
                out.send(line, key=key)
            # Raises when lines could not be stored: better to stop loudly than to drop some silently.
            await out.flush()
            await asyncio.sleep(LOOK_EVERY_S)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("topic")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", help="data directory of the peer on this host")
    where.add_argument("--credentials", help="file of `meshq client add`")
    parser.add_argument("--from-start", action="store_true", help="send what is in the file already")
    args = parser.parse_args()
    async with meshq.connect(credentials=args.credentials, data=args.data, name="collect_log") as mesh:
        print(f"following {args.file} into {args.topic}", flush=True)
        await collect(mesh, args.file, args.topic, from_start=args.from_start)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
