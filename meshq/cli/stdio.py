"""Standard input and output beside a running loop: never blocked on, so that the connection stays alive while
a pipe is slow, and what has come is handed on at once.

What can be waited for (pipes, terminals, sockets) is read and written when it is ready. A pipe that polls as
writable takes PIPE_BUF bytes without blocking, so that is how much is written at a time; its mode is left
alone, as it is shared with whoever else has it open. Files are always ready.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import AsyncIterator, Callable
from typing import Final

from meshq.cli.reach import Failed
from meshq.limits import KIB, RECORD_BYTES_CEILING

READ_BYTES: Final = 256 * KIB


async def read_lines(fd: int) -> AsyncIterator[list[bytes]]:
    """The lines that have come, without their newlines; a last one may lack it. Split at newlines only.

    Raises: Failed when a line is longer than any record may be.
    """
    rest = b""
    async for data in _read(fd):
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        if lines:
            yield lines
        if len(rest) > RECORD_BYTES_CEILING:
            raise Failed(f"a line is longer than {RECORD_BYTES_CEILING} bytes, the most a record may have")
    if rest:
        yield [rest]


async def _read(fd: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    waits = _can_wait(fd)
    while True:
        if waits:
            await _until(fd, loop.add_reader, loop.remove_reader)
        data = os.read(fd, READ_BYTES)
        if not data:
            return
        yield data
        await asyncio.sleep(0)


class Output:
    """Writes everything given to it, in order. Raises: BrokenPipeError when nobody reads any more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._piece = select.PIPE_BUF if _can_wait(fd) else 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        loop = asyncio.get_running_loop()
        while view:
            if self._piece and not self._poll.poll(0):
                await _until(self._fd, loop.add_writer, loop.remove_writer)
            view = view[os.write(self._fd, view[: self._piece or len(view)]) :]

    async def abandoned(self) -> None:
        """Returns when nobody reads the pipe any more, though nothing is written; else never."""
        if not stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            await asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        await _until(self._fd, loop.add_reader, loop.remove_reader)  # a pipe's error is all that can be read


def _can_wait(fd: int) -> bool:
    """Whether the loop can wait for it; files and /dev/null it cannot, and need not."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


async def _until(
    fd: int, add: Callable[[int, Callable[[], object]], None], remove: Callable[[int], bool]
) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, on_ready)
    try:
        await ready
    finally:
        remove(fd)
