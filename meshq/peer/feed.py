"""The plain feed: what is committed anywhere in the mesh, to SUB sockets of this peer, at most once and from
now on.

Subscribers' prefixes are folded into the fewest that cover them all; each of those is one subscription of
this peer's own client. When a new prefix swallows older ones, both run for a moment: an offset already passed
on is not passed on again, so nobody sees a record twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict

import msgspec

from meshq.client.mesh import Mesh
from meshq.client.records import Record
from meshq.errors import MeshqError
from meshq.transport.feed import FeedServer

log = logging.getLogger(__name__)
FRAMED, END = b"\x01", b"\x00"
PASSED_ON_MAX = 100_000  # partitions whose last offset is remembered
CREDIT_BYTES = 4 * 1024 * 1024
RETRY_S = 1.0
PUMPS_MAX = 64  # subscriptions of this peer's own client for all its plain subscribers


class Feed:
    """Keeps the peer's subscriptions in step with what its subscribers want, and passes records on."""

    def __init__(self, server: FeedServer, gateway: Mesh) -> None:
        self._server, self._gateway = server, gateway
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._passed_on: OrderedDict[tuple[str, int], tuple[int, int]] = OrderedDict()
        self._plain = self._framed = False
        self.records = 0

    def on_interest_changed(self) -> None:
        wanted = cover(self._server.interests())
        interests = self._server.interests()
        self._plain = any(not p.startswith(FRAMED) for p in interests)
        self._framed = any(p.startswith(FRAMED) for p in interests)
        for prefix in wanted - self._pumps.keys():
            self._pumps[prefix] = asyncio.get_running_loop().create_task(self._pump(prefix))
        for prefix in self._pumps.keys() - wanted:
            self._pumps.pop(prefix).cancel()

    async def close(self) -> None:
        pumps, self._pumps = list(self._pumps.values()), {}
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, prefix: str) -> None:
        while True:
            try:
                async with self._gateway.subscribe_prefix(prefix, credit_bytes=CREDIT_BYTES) as records:
                    async for record in records:
                        self._pass_on(record)
            except MeshqError as e:
                log.warning("The feed of %r broke off: %s", prefix, e, extra={"event": "FeedBroken"})
            except Exception:
                log.exception("The feed of %r failed", prefix, extra={"event": "FeedFailed"})
            await asyncio.sleep(RETRY_S)

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
