"""The asyncio shell of the client's machine: runs effects, keeps time, pairs tickets with who waits for them.

No decision is made here. Events are queued, so that whatever an effect leads to (a receipt whose waiter sends
the next batch, a link that comes up while it is opened) is the machine's next event and never happens inside
another one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, assert_never

from meshq.batch import Buffer
from meshq.client.core import ClientCore
from meshq.client.facts import (
    Closed,
    CloseLink,
    Doubt,
    Effect,
    EndSubscription,
    Event,
    Fail,
    Garbled,
    Grant,
    Hand,
    LinkDown,
    LinkUp,
    OpenLink,
    Place,
    Received,
    Revoke,
    Send,
    Settle,
    TellExpired,
    Ticked,
)
from meshq.errors import MeshqError, RemoteProtocolError, Unavailable
from meshq.limits import MIB
from meshq.messages import VERB, decode_answer, encode

BACKLOG_BYTES_MAX: Final = 64 * MIB  # sent to a link that takes nothing; beyond it the link is closed
RESEND_S: Final = 0.002  # between looks whether a full link takes more


# Seconds that go on while the host sleeps: what a peer forgot meanwhile must not look remembered.
steady_clock: Callable[[], float] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)


class LinkLike(Protocol):
    """One connection, never made anew. `send`: False when it takes nothing just now."""

    def send(self, frames: list[Buffer]) -> bool: ...

    def close(self) -> None: ...


class LinkOpener(Protocol):
    """Opens a link to a peer; the callbacks come on the loop's thread, `on_down` at most once and last."""

    def open(
        self,
        server_key: bytes,
        endpoints: list[str],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_frames: Callable[[list[Buffer]], None],
    ) -> LinkLike: ...

    def close(self) -> None: ...


class Waiter(Protocol):
    """Hears of a ticket: perhaps `doubted` once, then one of the others."""

    def settled(self, value: Any) -> None: ...

    def failed(self, error: MeshqError) -> None: ...

    def doubted(self, error: MeshqError) -> None: ...


class Sink(Protocol):
    """Hears of a subscription."""

    def handed(self, hand: Hand) -> None: ...

    def placed(self, place: Place) -> None: ...

    def expired(self, told: TellExpired) -> None: ...

    def granted(self, grant: Grant) -> None: ...

    def revoked(self, revoke: Revoke) -> None: ...

    def ended(self, error: MeshqError) -> None: ...


class ClientDriver:
    """To be made and used on the thread of a running loop."""

    def __init__(
        self, core: ClientCore, opener: LinkOpener, *, clock: Callable[[], float] = steady_clock
    ) -> None:
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self._core = core
        self._opener = opener
        self._events: deque[Event] = deque()
        self._running = False
        self._channels: dict[bytes, _Channel] = {}
        self._waiters: dict[int, Waiter] = {}
        self._sinks: dict[int, Sink] = {}
        self._last_number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def is_connected(self) -> bool:
        return not self.closed and self._core.has_home

    def start(self) -> None:
        self.tell(Ticked())

    def tell(self, event: Event) -> None:
        """Something happened: run the machine, and what follows from it."""
        self._events.append(event)
        if self._running:
            return
        self._running = True
        try:
            while self._events:
                for effect in self._core.handle(self._events.popleft(), now=self.clock()):
                    self._execute(effect)
        finally:
            self._running = False
        self._arm()

    def request(self, waiter: Waiter, make: Callable[[int], Event]) -> None:
        """Tell the event that `make` makes of a ticket; the waiter hears what becomes of it."""
        if self.closed:
            waiter.failed(Unavailable("this client was closed: connect again"))
            return
        ticket = self.draw_number()
        self._waiters[ticket] = waiter
        self.tell(make(ticket))

    async def ask(self, make: Callable[[int, float], Event], *, timeout: float) -> Any:
        """The value of a ticket whose event `make` makes of ticket and deadline. Raises what it fails
        with.
        """
        waiter = FutureWaiter(self.loop)
        deadline = self.clock() + timeout
        self.request(waiter, lambda ticket: make(ticket, deadline))
        return await waiter.future

    def attach(self, sub: int, sink: Sink) -> None:
        self._sinks[sub] = sink

    def detach(self, sub: int) -> None:
        self._sinks.pop(sub, None)

    def draw_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def close(self) -> None:
        """Every ticket ends, every link closes."""
        if self.closed:
            return
        self.tell(Closed())
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for sink in list(self._sinks.values()):
            sink.ended(Unavailable("this client was closed"))
        self._sinks.clear()
        for channel in list(self._channels.values()):
            channel.close()
        self._channels.clear()
        self._opener.close()

    # -------------------------------------------------------------------------------------- effects
    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send():
                channel = self._channels.get(effect.server_key)
                if channel is not None:
                    channel.send([VERB, encode(effect.message), *effect.payloads])
            case Hand():
                if (sink := self._sinks.get(effect.sub)) is not None:
                    sink.handed(effect)
            case Settle():
                if (waiter := self._waiters.pop(effect.ticket, None)) is not None:
                    waiter.settled(effect.value)
            case Fail():
                if (waiter := self._waiters.pop(effect.ticket, None)) is not None:
                    waiter.failed(effect.error)
            case Doubt():
                if (waiter := self._waiters.get(effect.ticket)) is not None:
                    waiter.doubted(effect.error)
            case Place():
                if (sink := self._sinks.get(effect.sub)) is not None:
                    sink.placed(effect)
            case TellExpired():
                if (sink := self._sinks.get(effect.sub)) is not None:
                    sink.expired(effect)
            case Grant():
                if (sink := self._sinks.get(effect.sub)) is not None:
                    sink.granted(effect)
            case Revoke():
                if (sink := self._sinks.get(effect.sub)) is not None:
                    sink.revoked(effect)
            case EndSubscription():
                if (sink := self._sinks.pop(effect.sub, None)) is not None:
                    sink.ended(effect.error)
            case OpenLink():
                self._open(effect)
            case CloseLink():
                if (channel := self._channels.pop(effect.server_key, None)) is not None:
                    channel.close()
            case _:
                assert_never(effect)

    def _open(self, effect: OpenLink) -> None:
        channel = _Channel(self, effect.server_key)
        self._channels[effect.server_key] = channel
        try:
            channel.link = self._opener.open(
                effect.server_key, list(effect.endpoints), channel.on_up, channel.on_down, channel.on_frames
            )
        except (MeshqError, OSError) as e:
            channel.on_down(f"it could not be opened: {e}")

    def is_current(self, channel: _Channel) -> bool:
        return self._channels.get(channel.server_key) is channel

    def forget(self, channel: _Channel) -> None:
        if self.is_current(channel):
            del self._channels[channel.server_key]

    # ----------------------------------------------------------------------------------------- time
    def _arm(self) -> None:
        """Have the loop call at the machine's deadline. A timer that rings too early is left: it costs one
        look.
        """
        deadline = self._core.deadline()
        if deadline is None or self.closed:
            return
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self.loop.call_later(max(0.0, deadline - self.clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._core.deadline()
        if deadline is not None and deadline <= self.clock():
            self.tell(Ticked())
        else:
            self._arm()


class FutureWaiter:
    """A ticket as a future; one that nobody waits for any more is let go in silence."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()

    def settled(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def failed(self, error: MeshqError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()

    def doubted(self, error: MeshqError) -> None:
        self.failed(error)


class _Channel:
    """A link as the driver holds it: what it does not take at once waits here, and what it says late is not
    heard.
    """

    def __init__(self, driver: ClientDriver, server_key: bytes) -> None:
        self.server_key = server_key
        self.link: LinkLike | None = None
        self._driver = driver
        self._backlog: deque[list[Buffer]] = deque()  # bounded by BACKLOG_BYTES_MAX
        self._backlog_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, frames: list[Buffer]) -> None:
        if self.link is not None and not self._backlog and self.link.send(frames):
            return
        self._backlog.append(frames)
        self._backlog_bytes += _size(frames)
        if self._backlog_bytes > BACKLOG_BYTES_MAX:
            self.on_down("it takes nothing of what is sent to it")
            self.close()
        elif self._timer is None:
            self._timer = self._driver.loop.call_later(RESEND_S, self._resend)

    def _resend(self) -> None:
        self._timer = None
        while self._backlog and self.link is not None and self.link.send(self._backlog[0]):
            self._backlog_bytes -= _size(self._backlog.popleft())
        if self._backlog:
            self._timer = self._driver.loop.call_later(RESEND_S, self._resend)

    def close(self) -> None:
        self._backlog.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.link is not None:
            self.link.close()

    def on_up(self) -> None:
        if self._driver.is_current(self):
            self._driver.tell(LinkUp(self.server_key))

    def on_down(self, reason: str) -> None:
        if self._driver.is_current(self):
            self._driver.forget(self)
            self._driver.tell(LinkDown(self.server_key, reason))

    def on_frames(self, frames: list[Buffer]) -> None:
        if not self._driver.is_current(self):
            return
        try:
            if len(frames) < 2 or frames[0] != VERB:
                raise RemoteProtocolError(f"{len(frames)} frames that are no message")
            message = decode_answer(frames[1])
        except RemoteProtocolError as e:
            self._driver.tell(Garbled(self.server_key, str(e)))
            return
        self._driver.tell(Received(self.server_key, message, frames[2:]))


def _size(frames: Sequence[Buffer]) -> int:
    return sum(len(f) for f in frames)
