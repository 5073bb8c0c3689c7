"""The shell of a running peer: drives the core with sockets, disk, gossip and clock.

It decides nothing. Every event goes through `tell`, one at a time and to its end; what the core orders is
carried out in order. Anything that goes wrong with the disk's writing, and any unexpected exception, stops
the peer, loudly and as a whole: one that answers but no longer ticks would be worse than none, since its
clients stay with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from typing import Any

from meshq import messages
from meshq.batch import Buffer
from meshq.client.mesh import Mesh
from meshq.errors import Unavailable
from meshq.ids import PeerId, show_id
from meshq.peer.carrying import Carriers, carriers
from meshq.peer.core.events import (
    LOCAL,
    Effect,
    Event,
    LinkProbeWanted,
    MessageArrived,
    RoomMeasured,
    RoundTripsMeasured,
    SessionClosed,
    Ticked,
)
from meshq.peer.disk import DiskShell, restore
from meshq.peer.doors import Door
from meshq.peer.endpoints import listen, tcp
from meshq.peer.feed import Feed
from meshq.peer.gateway import GatewayLinks
from meshq.peer.links import PeerLinks
from meshq.peer.neighbours import Neighbours, News
from meshq.peer.news import events_of
from meshq.peer.opening import make_core, make_gateway, open_store
from meshq.peer.plain import Plain, peers_rows
from meshq.peer.presence import Presence
from meshq.peer.proposals import Proposals
from meshq.peer.renewal import Renewal
from meshq.peer.settings import DOOR, PEERS, Settings
from meshq.peer.sockets import PeerSockets
from meshq.peer.tally import tally
from meshq.security.directory import DataDirectory, Loaded
from meshq.transport.context import make_context

log = logging.getLogger(__name__)
HAND_OVER_S = 2.0  # how long a stop waits for others to lead
LEFT_S = 1.0  # between having left and stopping
FLUSH_S = 5.0  # how long a stop waits for the disk
TALLY_S = 1.0
_now = time.monotonic  # as the loop does


class PeerShell:
    """One running peer. `start`, then `stop`; `failed` is done when it had to stop by itself, and then it
    stops as `stop` does.
    """

    def __init__(self, directory: DataDirectory, settings: Settings) -> None:
        self.directory, self.settings = directory, settings
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._events: deque[Event] = deque()
        self._busy = self._was_up = False
        self._idle = asyncio.Event()  # nothing is on its way to disk
        self.proposals = Proposals(self.tell)
        self._timer: asyncio.TimerHandle | None = None
        self._wound_at = -inf  # not before the core has started
        self._stopping: asyncio.Task[None] | None = None
        self._tally_at = 0.0
        self._closers: list[Callable[[], Any]] = []  # undone in reverse order
        self._presence: Presence | None = None  # once it is up
        self._carriers: Carriers = {}  # once all parts are there
        self.gateway: Mesh

    # ---------------------------------------------------------------------------------------- start
    async def start(self) -> None:
        """Raises: UsageError, SecurityError, StoreError; then nothing stays open."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self.directory.refuse_if_left()
        papers = self.papers = self.directory.load()
        papers.certificate.check_time(time.time())
        self._closers.append(self.directory.lock().release)
        self._open_core(papers)
        identity = papers.identity
        context = make_context()
        self._closers.append(context.term)
        self._make_gateway(context)
        self._closers.append(self._close_gateway)  # for a start that fails before the next time
        self.plain = Plain(self.gateway, self.core.ctx.principal, lambda: peers_rows(self.core), self._exists)
        self._closers.append(self.plain.close)
        self.sockets = PeerSockets(
            context,
            papers,
            self.settings,
            self.core,
            tell=self.tell,
            on_plain=self.plain.on_request,
            on_ingest=self.plain.on_ingest,
            on_interest_changed=self._on_interest_changed,
        )
        self._closers.append(self.sockets.close)
        self.feed = Feed(self.sockets.feed, self.gateway)
        self._closers.append(self.feed.close)
        self.links = PeerLinks(context, papers, self.tell)
        self._closers.append(self.links.close)
        self.door = Door(
            context,
            listen(self.settings, DOOR),
            papers,
            self.directory,
            self.core,
            self.propose,
            lambda shown: self._guarded(self.core.on_presented, shown),
        )
        self._closers.append(self.door.close)
        # Before what it publishes through, so that what is under way gets its answers.
        self._closers.append(self._close_gateway)
        self.neighbours = Neighbours(
            papers,
            self.settings,
            self.directory.peers,
            boot_epoch=self.core.ctx.me.starts,
            boot_id=self.core.ctx.me.boot,
            signing_key_of=self._signing_key_of,
            on_news=self._on_news,
            on_fatal=self.fail,
            probe_link=lambda peer, payload: self.tell(LinkProbeWanted(peer, payload)),
        )
        self._closers.append(self.neighbours.stop)
        self._closers.append(Renewal(self.directory, papers, self.core, self.propose).stop)
        presence = Presence(self.directory, papers, self.settings)
        self._closers.append(presence.withdraw)
        self.core.on_own_record(self.neighbours.addresses, self.neighbours.members.own.order)
        self._carriers = carriers(self)
        self._execute(self.core.start(now=_now(), wall_ms=_wall_ms(), room_bytes=self.store.room()))
        self.neighbours.start()
        self._tick()
        presence.announce(self.neighbours.addresses)
        self._presence = presence
        self._was_up = True
        log.info(
            "Peer %s of mesh %s is up on %s",
            identity.name,
            papers.genesis.mesh_name,
            ", ".join(self.neighbours.addresses),
            extra={"event": "PeerUp", "peer": show_id(identity.peer_id), "port": self.settings.port},
        )

    def _open_core(self, papers: Loaded) -> None:
        self.store = open_store(self.directory, self.settings, papers)
        self._closers.append(self._close_store)
        self.core = make_core(self.directory, self.settings, papers, self.store)
        restore(self.core, self.store)
        self.disk = DiskShell(
            self.store,
            self._loop,
            self.tell,
            self.fail,
            is_awaited=self.core.fetching.is_awaited,
            has_gone=self.core.slots.has_gone,
            was_rewritten=self.core.slots.was_rewritten,
        )

    def _make_gateway(self, context: Any) -> None:
        self.local_links = GatewayLinks(
            context,
            self.papers.identity,
            lambda session, frames: self._guarded(self._on_local, session, frames),
            lambda session: self.tell(SessionClosed((LOCAL, session))),
            _peers_port,
        )
        self.gateway = make_gateway(self.settings, self.papers, self.local_links)

    # ----------------------------------------------------------------------------------------- stop
    async def stop(self) -> None:
        """Take nothing new, finish what is on its way to disk, say goodbye. Idempotent."""
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop())
        await self._stopping

    async def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.failed.done():
            self._stop_serving()
        elif self._was_up:
            log.info("The peer stops", extra={"event": "PeerStopping"})
            await self._hand_over()
            self._guarded(self._checkpoint)
            await self._flushed()
        closers, self._closers = self._closers, []
        for close in reversed(closers):
            try:
                result = close()
                if asyncio.iscoroutine(result):
                    await result
            except Exception:
                log.exception("While stopping", extra={"event": "StopFailed"})
        self.proposals.cancel()
        if not self.failed.done():
            self.failed.cancel()

    def _stop_serving(self) -> None:
        """Before anything else, so that clients go elsewhere at once. Closing again later does nothing."""
        for part in ("sockets", "door"):
            if hasattr(self, part):
                getattr(self, part).close()

    async def _hand_over(self) -> None:
        """Have others lead what is led here, so that nobody has to notice that this peer is gone."""
        end = _now() + HAND_OVER_S
        left = 1
        while left and _now() < end and not self.failed.done():
            left, effects = self.core.hand_over(now=_now(), wall_ms=_wall_ms())
            self._guarded(self._execute, effects)
            if left:
                self.tell(Ticked())
                await asyncio.sleep(0.02)

    def _checkpoint(self) -> None:
        self._execute(self.core.checkpoint(now=_now(), wall_ms=_wall_ms()))

    async def _close_gateway(self) -> None:
        await self.gateway.close(**({"timeout": 0.0} if self.failed.done() else {}))

    def _close_store(self) -> None:
        (self.disk if hasattr(self, "disk") else self.store).close()

    async def _flushed(self) -> None:
        """Until nothing is on its way to disk, or the time is up."""
        self._idle.clear()
        if self.core.ctx.disk.outstanding:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._idle.wait()

    def fail(self, error: BaseException) -> None:
        if not self.failed.done():
            log.critical("The peer stops: %s", error, exc_info=error, extra={"event": "PeerFailed"})
            self.failed.set_exception(error)
            self._stop_soon()

    def _guarded(self, call: Callable[..., object], *args: Any) -> None:
        """Whatever the loop calls that is not an event: what it raises stops the peer."""
        if self.failed.done():
            return
        try:
            call(*args)
        except Exception as e:
            self.fail(e)

    # --------------------------------------------------------------------------------------- events
    def tell(self, event: Event) -> None:
        """An event for the core; what happens while one is handled waits its turn. After a failure:
        nothing.
        """
        if self.failed.done():
            return
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                event = self._events.popleft()
                for effect in self.core.handle(event, now=_now(), wall_ms=_wall_ms()):
                    self._carriers[type(effect)](effect)
            if self._stopping is not None and not self.core.ctx.disk.outstanding:
                self._idle.set()
            self._wind()
        except Exception as e:
            self.fail(e)
        finally:
            self._busy = False

    def _execute(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._carriers[type(effect)](effect)

    def on_left(self) -> None:
        """The mesh let this peer go: it stops as when it is told to, a moment later, so that who asks how far
        it is still gets an answer.
        """
        self.directory.mark_left(datetime.now(UTC).isoformat(timespec="seconds"))
        log.info("This peer has left the mesh", extra={"event": "PeerLeft"})
        self._loop.call_later(LEFT_S, self._stop_soon)

    def _stop_soon(self) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop())

    def _tick(self) -> None:
        self._wound_at = -inf  # not in between: what was due is due until the last event
        self._guarded(self._on_tick)
        self._wound_at = inf
        self._wind()

    def _wind(self) -> None:
        """Have the timer ring when the core wants its next tick, which any event may have brought nearer."""
        at = self.core.deadline()
        if at >= self._wound_at or self.failed.done() or self._stopping is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wound_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _on_tick(self) -> None:
        self.core.on_own_record(self.neighbours.addresses, self.neighbours.members.own.order)
        if self._presence is not None:
            self._presence.update(self.neighbours.addresses)  # `invite` tells it to others
        self.tell(Ticked())
        if _now() >= self._tally_at:
            self._tally_at = _now() + TALLY_S
            self._count()
            self.tell(
                RoomMeasured(self.store.room())
            )  # a write tells it too, but others use this disk as well
            self.tell(RoundTripsMeasured(self.neighbours.round_trips_ms()))

    def _count(self) -> None:
        parts = {
            "plain": self.plain.counters,
            "door": self.door.counters,
            "neighbours": self.neighbours.counters(),
            "feed": {"records": self.feed.records},
        }
        outbox = self.gateway.outbox
        self.core.ctx.outbox = outbox.status() if outbox is not None else None
        self.core.ctx.outside = tally(self.sockets, self.store, parts)

    # -------------------------------------------------------------------------------------- callers
    async def propose(self, command: bytes) -> int:
        """Commit a registry command; its index. Raises what it was refused with."""
        if self.failed.done():
            raise Unavailable("this peer is stopping")
        return await self.proposals.propose(command)

    def _on_local(self, session: bytes, frames: list[Buffer]) -> None:
        key = self.papers.identity.curve_public
        self.tell(MessageArrived((LOCAL, session), key, messages.decode_request(frames[1]), frames[2:]))

    def _exists(self, topic: str) -> bool:
        return self.core.ctx.registry.topic(topic) is not None

    def _on_interest_changed(self) -> None:
        self.feed.on_interest_changed()

    def _on_news(self, news: News) -> None:
        me = self.core.ctx.me.peer
        self.tell(events_of(news, me=me, name_of=self.name_of, now=_now(), wall_ms=_wall_ms()))

    def name_of(self, peer: PeerId) -> str | None:
        registered = self.core.ctx.registry.peers.get(peer)
        return registered.facts.name if registered else None

    def _signing_key_of(self, peer: PeerId) -> bytes | None:
        known = self.core.ctx.known_peers().get(peer)
        return known.signing_key if known else None


def _peers_port(endpoint: str) -> str:
    """The peers' listener that belongs to a `requests` endpoint."""
    return tcp(endpoint.removeprefix("tcp://"), PEERS)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
