"""The shell of an outbox: its machine, its disk, and the connection it sends through.

Records may be taken from the moment it is open; `attach` gives it a connection, which may come and go. No
decision is made here. What the disk's thread reports is handed to the loop; all else happens there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

from meshq.client.checking import record_bytes, too_large
from meshq.client.driver import ClientDriver, steady_clock
from meshq.client.facts import BatchSealed, Binding, TopicWanted
from meshq.client.outbox import layout, words
from meshq.client.outbox.fates import Fates
from meshq.client.outbox.lanes import WINDOW
from meshq.client.outbox.loading import load
from meshq.client.outbox.machine import OutboxMachine
from meshq.client.outbox.receipts import PendingQueued
from meshq.client.outbox.store import OutboxStore
from meshq.client.outbox.terms import Terms
from meshq.client.outbox.waiters import BatchWaiter, TopicWaiter
from meshq.client.outbox.words import Event, Loaded, Parked
from meshq.errors import MeshqError, Overloaded, Unavailable, UsageError, WrongMesh
from meshq.ids import show_id
from meshq.limits import OUTBOX_BUFFER_BYTES, RECORD_BYTES_CEILING
from meshq.messages import TopicInfo
from meshq.topics import check_topic

log = logging.getLogger(__name__)
CLOSE_S = 5.0  # for what nobody waits for
ASK_S = 30.0  # how long one question for a topic may take; then it is asked again


class Outbox:
    """To be used on the thread of a running loop.

    Raises, when made: StoreError (also when another process has it), StoreCorrupt, DiskFull, UsageError.
    """

    def __init__(self, path: str | Path, terms: Terms | None = None) -> None:
        terms = terms or Terms()
        self.path = Path(path).expanduser().absolute()
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._store = OutboxStore(self.path, bytes_max=terms.bytes_max)
        try:
            with self._store.reader() as reader:
                loaded = load(reader) or Loaded(layout.StateRow(producer_id=os.urandom(16)))
        except BaseException:
            self._store.close()
            raise
        rng = random.Random(random.SystemRandom().getrandbits(256))
        self._machine = OutboxMachine(loaded, terms, rng)
        self.fates = Fates(self._loop, self.path)
        self._driver: ClientDriver | None = None
        self._lane = 0
        self._turn_ends = False
        self._fatal: MeshqError | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._store.start(self._from_disk, self._from_dead_disk)
        self._do(self._machine.start(now=steady_clock(), wall_ms=_wall_ms()))

    # ------------------------------------------------------------------------------- the connection
    def attach(self, driver: ClientDriver, mesh_id: bytes, client_key: bytes) -> None:
        """Send through this client from now on. Raises: WrongMesh; UsageError when batches are on their way
        under another key, for peers know them by that key alone."""
        owner_mesh, owner_key = self._machine.owner()
        if owner_mesh and mesh_id and owner_mesh != mesh_id:
            raise WrongMesh(
                f"the outbox in {self.path} belongs to mesh {show_id(owner_mesh)}, not to {show_id(mesh_id)}"
            )
        if owner_key not in (b"", client_key) and self._machine.bound_records:
            raise UsageError(
                f"the outbox in {self.path} has {self._machine.bound_records} records on their way under "
                "another client's key: open it with those credentials until they have arrived, or, if that "
                "key is lost, `meshq outbox park` them and look what became of them"
            )
        self._driver = driver
        self._lane = driver.draw_number()
        self.tell(words.Connected(mesh_id, client_key))

    # --------------------------------------------------------------------------------------- taking
    def take(
        self, topic: str, value: bytes, key: bytes | None, headers: dict[str, bytes] | None
    ) -> PendingQueued:
        """A record that was checked.

        Raises: OutboxFull, Overloaded, Fenced, TooLarge, StoreError, UsageError.
        """
        self._check_open()
        size, encoded = record_bytes(value, key, headers)
        if size > RECORD_BYTES_CEILING:
            raise too_large(size, RECORD_BYTES_CEILING, check_topic(topic))
        if self.is_full():
            raise Overloaded(
                f"{self.fates.buffered_bytes} bytes are on their way to the outbox's disk: `await ready()` "
                "first",
                retry_after_ms=10,
            )
        number = self._machine.take(topic, value, key, headers, wall_ms=_wall_ms())
        fate = self.fates.begin(number, encoded)
        if not self._turn_ends:
            self._turn_ends = True
            self._loop.call_soon(self._on_turn)
        return PendingQueued(topic, number, fate)

    def is_full(self) -> bool:
        return self.fates.buffered_bytes >= OUTBOX_BUFFER_BYTES

    async def ready(self, timeout: float) -> None:
        """Raises: Overloaded when its disk takes longer than that."""
        if not await self._until(lambda: not self.is_full(), timeout):
            raise Overloaded("the outbox's disk takes no more just now", retry_after_ms=100)

    async def synced(self, timeout: float | None = None) -> None:
        """Until everything that was taken is on disk. Raises: what records failed with whose senders do not
        wait for them; Unavailable when the disk takes longer than that."""
        if not await self._until(lambda: not self.fates.unsynced, timeout):
            raise Unavailable(f"{self.fates.unsynced} records are still on their way to the outbox's disk")
        if (error := self.fates.take_failures()) is not None:
            raise error

    async def drained(self, timeout: float | None = None, *, while_connected: bool = False) -> bool:
        """Until the mesh has everything that is not parked; whether it has."""

        def is_over() -> bool:
            connected = self._driver is not None and self._driver.is_connected
            if while_connected and (not connected or self._fatal is not None):
                return True
            return self.is_empty or bool(self._machine.halted)

        await self._until(is_over, timeout)
        return self.is_empty

    @property
    def is_empty(self) -> bool:
        return not self._machine.queued_records and not self._machine.bound_records

    # ---------------------------------------------------------------------------- looking, deciding
    def status(self) -> dict[str, Any]:
        return {"path": str(self.path), **self._machine.status()}

    def parked(self) -> list[Parked]:
        """What the mesh refused for good."""
        return list(self._machine.parked.values())

    async def retry(self, ids: Iterable[int] | None = None) -> int:
        """Send parked batches again (None: all), behind what waits; how many. What may have been stored may
        be stored a second time. A halted outbox goes on as one of its own."""
        return await self._decide(ids, words.RetryAsked)

    async def drop(self, ids: Iterable[int] | None = None) -> int:
        """Discard parked batches (None: all); how many."""
        return await self._decide(ids, words.DropAsked)

    async def park(self) -> int:
        """Park what was numbered and not acknowledged; how many batches. For when its key is lost."""
        before = len(self._machine.parked)
        self.tell(words.ParkAsked())
        await self._settled()
        return len(self._machine.parked) - before

    async def _decide(self, ids: Iterable[int] | None, make: Any) -> int:
        self._check_open()
        chosen = list(self._machine.parked if ids is None else ids)
        unknown = [n for n in chosen if n not in self._machine.parked]
        if unknown:
            raise UsageError(f"nothing is parked as {', '.join(map(str, unknown))} in {self.path}")
        before = len(self._machine.parked)
        self.tell(make(chosen))
        await self._settled()
        return before - len(self._machine.parked)

    async def _settled(self) -> None:
        """Until what was ordered of the disk is done."""
        await self._until(lambda: not self._machine.is_writing, None)

    # ------------------------------------------------------------------------------------- the end
    def abandon(self) -> None:
        """Let go of it at once, before anything was taken."""
        self.closed = True
        self._store.close()

    async def close(self) -> None:
        """What was taken is on disk when this returns; what waits is sent by the next opening. Idempotent."""
        if self.closed:
            return
        if self._turn_ends:
            self._on_turn()
        self._driver = None
        if self._fatal is None:
            await self._until(lambda: not self.fates.unsynced or self._fatal is not None, None)
            # The rest a full disk may hold up for ever. The next run does it again.
            await self._until(lambda: not self._machine.is_writing or self._fatal is not None, CLOSE_S)
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._store.close)

    # --------------------------------------------------------------------------------------- events
    def tell(self, event: Event) -> None:
        if not self.closed and self._fatal is None:
            self._do(self._machine.handle(event, now=steady_clock(), wall_ms=_wall_ms()))

    def _on_turn(self) -> None:
        self._turn_ends = False
        self.tell(words.TurnEnded())

    def _from_disk(self, events: list[Event]) -> None:
        self._loop.call_soon_threadsafe(self._on_disk, events)

    def _on_disk(self, events: list[Event]) -> None:
        for event in events:
            self.tell(event)
        self._wake()

    def _from_dead_disk(self, error: MeshqError) -> None:
        self._loop.call_soon_threadsafe(self._on_dead_disk, error)

    def _on_dead_disk(self, error: MeshqError) -> None:
        """Nothing more is taken. What was not known to be on disk has failed, as far as anybody can say."""
        log.error("The outbox in %s has stopped: %s", self.path, error, extra={"event": "OutboxFailed"})
        self._fatal = error
        self.fates.on_dead_disk(error)
        self._wake()

    def _do(self, effects: list[words.Effect]) -> None:
        for effect in effects:
            match effect:
                case words.Persist() | words.ReadQueue() | words.ReadParked():
                    self._store.order(effect)
                case words.SendBound():
                    self._send(effect)
                case words.WantTopic():
                    self._want(effect)
                case words.TellQueued():
                    self.fates.on_queued(effect)
                case words.TellCommitted():
                    self.fates.on_committed(effect)
                    self._wake()
                case words.TellParked():
                    self.fates.on_parked(effect)
                    self._wake()
        self._arm()

    def _send(self, effect: words.SendBound) -> None:
        if self._driver is None:
            return  # it is closing: the next opening sends it
        row, driver = effect.row, self._driver
        info = TopicInfo(effect.topic, row.topic_id, effect.partition + 1, row.version, RECORD_BYTES_CEILING)
        binding = Binding(row.producer_id, row.epoch, row.sequence, effect.sent_before)
        deadline = driver.clock() + effect.valid_s
        where = self._lane, info, effect.partition
        driver.request(
            BatchWaiter(self, driver, effect.ticket),
            lambda t: BatchSealed(t, *where, row.body(), deadline, WINDOW, binding=binding),
        )

    def _want(self, effect: words.WantTopic) -> None:
        driver = self._driver
        if driver is not None:
            until = driver.clock() + ASK_S
            driver.request(
                TopicWaiter(self, driver, effect.topic),
                lambda t: TopicWanted(t, effect.name, until, effect.fresh),
            )

    def is_through(self, driver: ClientDriver) -> bool:
        """Whether what this client says is to be heard: not how it ends what is under way on closing."""
        return self._driver is driver and not driver.closed

    # -------------------------------------------------------------------------------- who waits, when
    async def _until(self, is_so: Any, timeout: float | None) -> bool:
        end = None if timeout is None else self._loop.time() + timeout
        while not is_so():
            if self._fatal is not None:
                raise type(self._fatal)(str(self._fatal))
            left = 0.2 if end is None else min(0.2, end - self._loop.time())
            if left <= 0:
                return False
            future: asyncio.Future[None] = self._loop.create_future()
            self._changed.append(future)
            await asyncio.wait([future], timeout=left)  # a connection that is lost wakes nobody here
            if future in self._changed:
                self._changed.remove(future)
        return True

    def _wake(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    def _arm(self) -> None:
        at = self._machine.deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at < inf and not self.closed:
            delay = max(0.0, at - steady_clock())
            self._timer = self._loop.call_later(delay, self.tell, words.Ticked())

    def _check_open(self) -> None:
        if self._fatal is not None:
            raise type(self._fatal)(str(self._fatal))
        if self.closed:
            raise UsageError(f"the outbox in {self.path} was closed: open it again")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
