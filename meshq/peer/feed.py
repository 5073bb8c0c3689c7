"""The plain feed: what is committed anywhere in the mesh, to SUB sockets of this peer, at most once and from
now on.

Subscribers' prefixes are folded into the fewest that cover them all; each of those is one subscription of
this peer's own client, read by a *pump*. When who subscribes or leaves changes the fewest, a new pump takes
over from the old ones it overlaps: it waits until it is being served, and until each of them has passed on
everything from before the place where it begins. An offset passed on is not passed on again. So whoever
stays misses nothing and sees nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from meshq.client.mesh import Mesh
from meshq.client.records import Record
from meshq.client.subscription import Subscription
from meshq.errors import MeshqError, RecordsExpired, Unavailable
from meshq.transport.feed import FeedServer

log = logging.getLogger(__name__)
FRAMED, END = b"\x01", b"\x00"
PASSED_ON_MAX = 100_000  # partitions whose last offset is remembered
CREDIT_BYTES = 4 * 1024 * 1024
RETRY_S = 1.0
HANDOVER_S = 30.0  # the most a new pump waits for partitions that nobody serves just now, or for an old pump
PUMPS_MAX = 64  # subscriptions of this peer's own client for all its plain subscribers

Where = tuple[str, int]  # topic, partition


class Feed:
    """Keeps the peer's subscriptions in step with what its subscribers want, and passes records on."""

    def __init__(self, server: FeedServer, gateway: Mesh) -> None:
        self._server, self._gateway = server, gateway
        self._pumps: dict[str, _Pump] = {}  # at most PUMPS_MAX
        self._leaving: set[_Pump] = set()  # until others have taken over; each at most HANDOVER_S
        self._passed_on: OrderedDict[Where, tuple[int, int]] = OrderedDict()
        self._plain = self._framed = False
        self.records = 0

    def on_interest_changed(self) -> None:
        wanted = cover(self._server.interests())
        interests = self._server.interests()
        self._plain = any(not p.startswith(FRAMED) for p in interests)
        self._framed = any(p.startswith(FRAMED) for p in interests)
        for prefix in self._pumps.keys() - wanted:
            self._leaving.add(self._pumps.pop(prefix))
        for prefix in wanted - self._pumps.keys():
            pump = self._pumps[prefix] = _Pump(prefix)
            for old in self._leaving:
                if old.overlaps(pump):
                    old.successors.add(pump)
            pump.task = asyncio.get_running_loop().create_task(self._run(pump))
        for old in list(self._leaving):
            self._release(old)

    async def close(self) -> None:
        pumps = [*self._pumps.values(), *self._leaving]
        self._pumps, self._leaving = {}, set()
        tasks = [pump.task for pump in pumps if pump.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, pump: _Pump) -> None:
        prefix = pump.prefix
        try:
            while True:
                try:
                    async with self._gateway.subscribe_prefix(prefix, credit_bytes=CREDIT_BYTES) as records:
                        await self._take_over(pump, records)
                        pump.on_passed(records.positions)
                        while True:
                            with contextlib.suppress(RecordsExpired):  # the feed is at most once
                                for record in await records.take():
                                    self._pass_on(record)
                            pump.on_passed(records.positions)
                except MeshqError as e:
                    log.warning("The feed of %r broke off: %s", prefix, e, extra={"event": "FeedBroken"})
                except Exception:
                    log.exception("The feed of %r failed", prefix, extra={"event": "FeedFailed"})
                pump.on_broken()
                await asyncio.sleep(RETRY_S)
        finally:
            self._taken_over(pump)
            pump.on_broken()

    async def _take_over(self, pump: _Pump, records: Subscription) -> None:
        """Returns when nothing that comes before this subscription is left to older pumps."""
        olds = [old for old in self._leaving if pump in old.successors]
        if not olds:
            return
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANDOVER_S):
                    with contextlib.suppress(Unavailable):  # some partitions are served by nobody just now
                        await records.ready(HANDOVER_S / 2)
                    begins = records.positions()
                    for old in olds:
                        await old.passed(begins)
        finally:
            self._taken_over(pump)

    def _taken_over(self, pump: _Pump) -> None:
        for old in list(self._leaving):
            old.successors.discard(pump)
            self._release(old)

    def _release(self, old: _Pump) -> None:
        if not old.successors and old in self._leaving:
            self._leaving.remove(old)
            if old.task is not None:
                old.task.cancel()

    def _pass_on(self, record: Record) -> None:
        where = (record.topic, record.partition)
        offset, timestamp = self._passed_on.get(where, (-1, -1))
        # Along one log neither goes back; a lower offset at a later time is of a topic that was made again.
        if record.offset <= offset and record.timestamp <= timestamp:
            return
        self._passed_on[where] = record.offset, record.timestamp
        self._passed_on.move_to_end(where)
        if len(self._passed_on) > PASSED_ON_MAX:
            self._passed_on.popitem(last=False)
        topic = record.topic.encode()
        self.records += 1
        if self._plain:
            self._server.publish([topic, record.value])
        if self._framed:
            meta = {
                "partition": record.partition,
                "offset": record.offset,
                "timestamp": record.timestamp,
                "key": record.key,
                "headers": record.headers,
            }
            self._server.publish([FRAMED + topic + END, msgspec.msgpack.encode(meta), record.value])


class _Pump:
    """One subscription of the feed. `successors`: pumps that have yet to take over from it."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.task: asyncio.Task[None] | None = None
        self.successors: set[_Pump] = set()
        self._waiting: list[tuple[Mapping[Where, int], asyncio.Future[None]]] = []
        self._positions: Callable[[], Mapping[Where, int]] | None = None  # None: it is not reading

    def overlaps(self, other: _Pump) -> bool:
        return self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)

    def on_passed(self, positions: Callable[[], Mapping[Where, int]]) -> None:
        """All it has taken was passed on."""
        self._positions = positions
        if self._waiting:
            now = positions()
            for places, future in self._waiting:
                if not future.done() and _reaches(now, places):
                    future.set_result(None)

    def on_broken(self) -> None:
        """It will pass on nothing more of what it was to read."""
        self._positions = None
        for _, future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def passed(self, places: Mapping[Where, int]) -> None:
        """Until it has passed on what is before these places, of the partitions it reads."""
        if self._positions is None or _reaches(self._positions(), places):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((places, future))
        await future


def _reaches(positions: Mapping[Where, int], places: Mapping[Where, int]) -> bool:
    return all(position >= places.get(where, 0) for where, position in positions.items())


def cover(interests: set[bytes]) -> set[str]:
    """The fewest prefixes of topic names that cover what is wanted, in either form; at most PUMPS_MAX.

    More than that are covered by their first characters: more is read here than is wanted, and filtered out.
    """
    prefixes: list[str] = []
    with contextlib.suppress(UnicodeDecodeError):
        prefixes = sorted({p.removeprefix(FRAMED).removesuffix(END).decode("ascii") for p in interests})
    length = max(map(len, prefixes), default=0)
    while len(chosen := _fold(prefixes)) > PUMPS_MAX and length > 1:
        length = (length + 1) // 2
        prefixes = sorted({p[:length] for p in prefixes})
    return set(chosen)


def _fold(prefixes: list[str]) -> list[str]:
    chosen: list[str] = []
    for prefix in prefixes:
        if not (chosen and prefix.startswith(chosen[-1])):
            chosen.append(prefix)
    return chosen
