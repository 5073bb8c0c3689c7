"""The mesh as an application sees it: publish, produce, subscribe, ask.

It puts together what `publishers`, `producer`, `outboxes` and the subscriptions are; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, overload

from meshq.batch import Buffer
from meshq.client.checking import (
    MAX_DELIVER,
    Acks,
    Headers,
    check_group,
    check_producer,
    check_seconds,
    check_start,
)
from meshq.client.driver import ClientDriver
from meshq.client.facts import HomeWanted
from meshq.client.group import GroupSubscription
from meshq.client.ordered_group import OnRevoke, OrderedSubscription
from meshq.client.outbox.terms import Terms
from meshq.client.outboxes import Outboxes
from meshq.client.producer import Producer
from meshq.client.publishers import Publishers
from meshq.client.questions import Questions
from meshq.client.records import Receipt
from meshq.client.subscription import CREDIT_BYTES, CREDIT_RECORDS, Subscription
from meshq.errors import MeshqError, UsageError
from meshq.limits import KIB, OUTBOX_BYTES_MAX, PRODUCER_BUFFER_BYTES
from meshq.topics import check_pattern

if TYPE_CHECKING:
    from meshq.client.outbox.outbox import Outbox
    from meshq.client.outbox.producer import OutboxProducer

StartLike = Literal["latest", "earliest"] | int | datetime | None
Mode = Literal["queue", "keyed", "ordered"]


class Mesh(Questions):
    """Made by `connect`, or by an embedded peer over its own driver. To be used on the loop's thread.

    `owner`: the mesh's id and this client's key, by which peers know an outbox.
    """

    def __init__(self, driver: ClientDriver, *, owner: tuple[bytes, bytes] = (b"", b"")) -> None:
        super().__init__(driver)
        self._outboxes = Outboxes(driver, owner)
        self._outbox: Outbox | None = None  # of `publish` and every producer
        self._publishers = Publishers(driver)
        self._producers: list[Producer | OutboxProducer] = []  # as the application makes and keeps them
        self._consumers: list[
            GroupSubscription | OrderedSubscription
        ] = []  # as the application makes and keeps them

    async def publish(
        self,
        topic: str,
        value: Buffer,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        acks: Acks = "quorum",
        timeout: float = 30.0,
    ) -> Receipt:
        """Store one record; its receipt says where.

        acks: `quorum`: on the disks of a majority, so that no minority's loss takes it; `leader`: on the
        leader's, and lost if that peer is lost just then; `none`: taken by the leader, on no disk yet

        With an outbox this returns when the record is on this host's disk: a QueuedReceipt, whose
        `committed()` waits for the mesh. `acks` and `timeout` are without meaning then.

        Raises: OutcomeUnknown when it was sent and not answered in `timeout` seconds. Any other error means
        that it was certainly not stored: Unavailable (try again), Forbidden, TooLarge, UsageError.
        """
        check_seconds(timeout, "timeout")
        if self._outbox is not None:
            out = self._outboxes.producer(self._outbox, topic, timeout)
            while out.is_full():
                await out.ready()
            return await out.send(value, key=key, headers=headers)
        return await self._publishers.publish(topic, value, key, headers, acks, timeout)

    async def publish_directly(
        self,
        topic: str,
        value: Buffer,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        acks: Acks = "quorum",
        timeout: float = 30.0,
    ) -> Receipt:
        """`publish` past any outbox."""
        return await self._publishers.publish(topic, value, key, headers, acks, timeout)

    @overload
    def producer(
        self,
        topic: str,
        *,
        linger_ms: float = 5,
        batch_bytes: int = 256 * KIB,
        compression: Literal["none", "lz4", "zstd"] = "none",
        acks: Acks = "quorum",
        in_flight: int = 16,
        buffer_bytes: int = PRODUCER_BUFFER_BYTES,
        timeout: float = 30.0,
        outbox: None = None,
    ) -> Producer: ...

    @overload
    def producer(
        self,
        topic: str,
        *,
        batch_bytes: int = 256 * KIB,
        compression: Literal["none", "lz4", "zstd"] = "none",
        timeout: float = 30.0,
        outbox: str | Path,
        outbox_bytes: int = OUTBOX_BYTES_MAX,
    ) -> OutboxProducer: ...

    def producer(
        self,
        topic: str,
        *,
        linger_ms: float = 5,
        batch_bytes: int = 256 * KIB,
        compression: Literal["none", "lz4", "zstd"] = "none",
        acks: Acks = "quorum",
        in_flight: int = 16,
        buffer_bytes: int = PRODUCER_BUFFER_BYTES,
        timeout: float = 30.0,
        outbox: str | Path | None = None,
        outbox_bytes: int = OUTBOX_BYTES_MAX,
    ) -> Producer | OutboxProducer:
        """A producer for many records. `async with` it, so that all is sent and failures are raised in the
        end.

        outbox: a directory on this host; records go there first, and a receipt means that they are on its
        disk. Producers of one connection may share it; no other process may. `outbox_bytes`: what it may hold

        Raises (with an outbox): StoreError when another process has it, StoreCorrupt, DiskFull, WrongMesh.
        """
        self._forget_done()
        if outbox is not None or self._outbox is not None:
            check_producer(compression, in_flight, batch_bytes, buffer_bytes)
            opened = (
                self._outbox
                if outbox is None
                else self.open_outbox(outbox, Terms(outbox_bytes, batch_bytes, compression))
            )
            assert opened is not None
            made = self._outboxes.producer(opened, topic, check_seconds(timeout, "timeout"))
            self._producers.append(made)
            return made
        producer = Producer(
            self._driver,
            topic,
            linger_ms=linger_ms,
            batch_bytes=batch_bytes,
            compression=compression,
            acks=acks,
            in_flight=in_flight,
            buffer_bytes=buffer_bytes,
            timeout=check_seconds(timeout, "timeout"),
        )
        self._producers.append(producer)
        return producer

    def _forget_done(self) -> None:
        for done in [p for p in self._producers if p.is_closed and p.is_idle]:
            self._producers.remove(done)
            self._publishers.let_go(done)

    def use_outbox(self, path: str | Path, *, bytes_max: int = OUTBOX_BYTES_MAX) -> None:
        """Hand all records to it from now on. Raises: StoreError, StoreCorrupt, DiskFull, WrongMesh."""
        self._outbox = self._outboxes.open(path, Terms(bytes_max))

    def open_outbox(self, path: str | Path, terms: Terms) -> Outbox:
        """One for the producers that name it, on these terms. Raises: as `use_outbox`."""
        return self._outboxes.open(path, terms)

    @property
    def outbox(self) -> Outbox | None:
        """What `publish` hands its records to, if there is one: its depth, what it parked."""
        return self._outbox

    @overload
    def subscribe(
        self,
        pattern: str,
        *,
        group: None = None,
        start: StartLike = None,
        credit_bytes: int = CREDIT_BYTES,
        credit_records: int | None = None,
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        pattern: str,
        *,
        group: str,
        mode: Literal["queue", "keyed"] = "queue",
        start: StartLike = None,
        ack_wait: float | None = None,
        max_deliver: int | None = MAX_DELIVER,
        credit_bytes: int = CREDIT_BYTES,
        credit_records: int | None = None,
    ) -> GroupSubscription: ...

    @overload
    def subscribe(
        self,
        pattern: str,
        *,
        group: str,
        mode: Literal["ordered"],
        start: StartLike = None,
        session_timeout: float | None = None,
        on_revoke: OnRevoke | None = None,
        credit_bytes: int = CREDIT_BYTES,
        credit_records: int | None = None,
    ) -> OrderedSubscription: ...

    def subscribe(
        self,
        pattern: str,
        *,
        group: str | None = None,
        mode: Mode = "queue",
        start: StartLike = None,
        ack_wait: float | None = None,
        max_deliver: int | None = MAX_DELIVER,
        session_timeout: float | None = None,
        on_revoke: OnRevoke | None = None,
        credit_bytes: int = CREDIT_BYTES,
        credit_records: int | None = None,
    ) -> Subscription:
        """All records of all topics that match, now and later; with a group, this member's share of them.

        group: whoever names the same group shares the records of a topic: each goes to one of them, which
        settles it (`record.ack()`); one that is not settled is handed out again
        mode: `queue`: any record to any member; `keyed`: the same, but records of one key are with one member
        at a time, in order; `ordered`: each partition to one member, whose records are done in order (an
        `ack` stands for all before it)
        start: where in each partition; `latest` (the default) means the moment of subscribing, also for
        partitions that come later. With a group, where it begins where it has not been before (`earliest`)
        ack_wait: of a queue or keyed group, after how many seconds a record that is not settled is handed out
        again (30)
        max_deliver: of those, how often a record is handed out before it becomes a dead letter, in topic
        `_dead.GROUP.TOPIC`; None: as often as it takes
        session_timeout: of an ordered group, after how many seconds of silence its partitions go to others
        (10); also how long it may take to finish one that is to go
        on_revoke: of an ordered group, called with topic and partition (on the loop; may be a coroutine
        function) when one is to go to another member, or has gone: what is acknowledged by the time it
        returns counts. Without it a partition is given back when everything taken from it is acknowledged
        credit_bytes, credit_records: how much may wait here untaken (8 MiB, 100,000); of a queue group, how
        much may be here that is not settled (8 MiB; 256, and up to 8,192 while they are settled quickly)"""
        wanted: tuple[tuple[str, object], ...] = (("credit_bytes", credit_bytes),)
        if credit_records is not None:
            wanted += (("credit_records", credit_records),)
        for name, value in wanted:
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise UsageError(f"{name} must be a whole number above 0, not {value!r}")
        check_pattern(pattern)
        if group is None:
            begin = check_start("latest" if start is None else start)
            return Subscription(self._driver, pattern, begin, credit_bytes, credit_records or CREDIT_RECORDS)
        terms = check_group(
            group, mode, secrets.token_bytes(16), ack_wait=ack_wait, session_timeout=session_timeout,
            max_deliver=max_deliver,
        )  # fmt: skip
        begin = check_start("earliest" if start is None else start)
        made: GroupSubscription | OrderedSubscription
        if mode == "ordered":
            records = credit_records or CREDIT_RECORDS
            made = OrderedSubscription(self._driver, pattern, begin, credit_bytes, records, terms, on_revoke)
        else:
            made = GroupSubscription(self._driver, pattern, begin, credit_bytes, credit_records or 0, terms)
        self._consumers = [s for s in self._consumers if not s.is_closed]
        self._consumers.append(made)
        return made

    def subscribe_prefix(self, prefix: str, *, credit_bytes: int = CREDIT_BYTES) -> Subscription:
        """All records from now on of every topic whose name begins with these characters. For a peer's own
        use (its plain feed): peers refuse it to clients."""
        start = check_start("latest")
        return Subscription(self._driver, "", start, credit_bytes, CREDIT_RECORDS, (prefix,))

    async def connected(self, timeout: float = 10.0) -> None:
        """Wait for the first peer's welcome. Raises: Unavailable naming each peer tried and why not."""
        check_seconds(timeout, "timeout")
        await self._driver.ask(HomeWanted, timeout=timeout)

    @property
    def is_connected(self) -> bool:
        """Whether some peer is connected just now. When none is, it goes on trying by itself."""
        return self._driver.is_connected

    async def close(self, timeout: float = 10.0) -> None:
        """Send what is waiting, at most for `timeout` seconds, then let go of everything. Idempotent.

        What waits in an outbox stays there when no peer is connected, or the time is up.

        Raises: what a producer's `flush` would, for failed records whose callers were not told by their
        receipts.
        """
        if self._driver.closed:
            return
        producers = [*self._publishers.all(), *self._producers]
        flushing = [asyncio.ensure_future(p.flush()) for p in producers]
        flushing += [asyncio.ensure_future(s.close()) for s in self._consumers]
        try:
            end = self._driver.clock() + timeout
            if flushing:
                await asyncio.wait(flushing, timeout=timeout)
            await self._outboxes.drain(max(0.0, end - self._driver.clock()))
        finally:
            await self._outboxes.close()  # first: how the driver ends things is no news for them
            self._driver.close()  # whatever is unanswered ends now, and so does each flush
        flushed = await asyncio.gather(*flushing, return_exceptions=True)
        errors = [self._publishers.untold, *flushed]
        for error in errors:
            if isinstance(error, MeshqError):
                raise error

    async def __aenter__(self) -> Mesh:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except MeshqError as e:
            if error is None:
                raise
            error.add_note(f"closing failed too: {e}")
