"""A producer that hands its records to an outbox: `send` as elsewhere, but this host's own disk answers.

It has the ordinary producer's calls, so that programs, `meshq.sync` and the command line use either.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from meshq.batch import Buffer
from meshq.client.checking import Headers, check_headers, check_key, check_value
from meshq.client.outbox.outbox import Outbox
from meshq.client.outbox.receipts import PendingQueued
from meshq.errors import MeshqError, OutboxFull, UsageError
from meshq.topics import check_topic


class OutboxProducer:
    """Made by `Mesh.producer(topic, outbox=PATH)`. To be used on the loop's thread.

    Raises (from an awaited PendingQueued): DiskFull, StoreError: not on disk, and never sent.
    """

    def __init__(self, outbox: Outbox, topic: str, *, timeout: float) -> None:
        self.topic = check_topic(topic)
        self.outbox = outbox
        self._timeout = timeout
        self._closed = False

    def send(
        self, value: Buffer, *, key: bytes | None = None, headers: Headers | None = None
    ) -> PendingQueued:
        """Take a record; await the result for the receipt of this host's disk, or leave it to `flush`.

        Raises: OutboxFull, Overloaded (`await ready()` first), Fenced, TooLarge, UsageError.
        """
        if self._closed:
            raise UsageError(f"the producer for {self.topic} was closed: make another one")
        return self.take(self._timeout, check_value(value), check_key(key), check_headers(headers))

    def send_many(self, values: Sequence[bytes]) -> int:
        """As the ordinary producer's: how many were taken. Raises: OutboxFull when none was; TooLarge,
        UsageError; records before the faulty one were taken.
        """
        taken = 0
        for value in values:
            if self.is_full():
                break
            try:
                self.send(value)
            except OutboxFull:
                if not taken:
                    raise
                break  # who takes it for nothing would send the others again
            taken += 1
        return taken

    def take(
        self, timeout: float, value: bytes, key: bytes | None, headers: dict[str, bytes] | None
    ) -> PendingQueued:
        """A record that was checked. It has no deadline: it is sent however long that takes."""
        return self.outbox.take(self.topic, value, key, headers)

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until `send` takes records again. Raises: Overloaded when it does not within the timeout."""
        await self.outbox.ready(self._timeout if timeout is None else timeout)

    async def flush(self) -> None:
        """Until everything taken is on this host's disk. Raises: the first error of records whose senders did
        not wait for them."""
        await self.outbox.synced(self._timeout)

    async def drained(self, timeout: float | None = None) -> bool:
        """Until the mesh has all that is in the outbox, but for what is parked; whether it has."""
        return await self.outbox.drained(timeout)

    async def close(self) -> None:
        """Flush, and take no more. What waits is sent for as long as the connection lives."""
        self._closed = True
        await self.flush()

    async def __aenter__(self) -> OutboxProducer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except MeshqError as e:
            if error is None:
                raise
            error.add_note(f"closing the producer for {self.topic} failed too: {e}")

    def take_failures(self) -> MeshqError | None:
        """What `flush` would raise now, without waiting; once."""
        return self.outbox.fates.take_failures()

    @property
    def failed_records(self) -> int:
        return self.outbox.fates.failed_records

    @property
    def has_failures(self) -> bool:
        return self.outbox.fates.has_failures

    @property
    def buffered_bytes(self) -> int:
        """Taken, and not known to be on disk."""
        return self.outbox.fates.buffered_bytes

    def is_full(self) -> bool:
        return self.outbox.is_full()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_idle(self) -> bool:
        return not self.outbox.fates.buffered_bytes
