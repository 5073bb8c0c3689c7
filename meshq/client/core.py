"""The client's machine: what happened goes in, what to do comes out. No socket, no clock, no chance of its
own.

    routing      links, home, whose slot is whose
    asking       topics resolved and listed, administrative requests
    producing    batches to the leaders of their slots (pipeline: one partition's order and repeats)
    reading      subscriptions, positions, credit
    consuming    subscriptions of groups: joining, settling
    ordered      of ordered groups: leases of partitions, heartbeats

Every shell drives this same machine: applications over TCP, a peer's own clients in its process, and the
plain ZeroMQ endpoints. They differ only in who opens a link.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, assert_never

from meshq.client.asking import Asking
from meshq.client.common import Alarm, Alarms, Common
from meshq.client.consuming import Consuming
from meshq.client.facts import (
    AskRequested,
    AtWork,
    BatchSealed,
    Closed,
    Consumed,
    Effect,
    Event,
    Garbled,
    HomeWanted,
    LinkDown,
    LinkUp,
    Received,
    RecordsSettled,
    Seed,
    SubscribeRequested,
    Ticked,
    TopicsWanted,
    TopicWanted,
    Unsubscribed,
)
from meshq.client.ordered import Ordered
from meshq.client.pipeline import Lane
from meshq.client.producing import Producing
from meshq.client.reading import Reading
from meshq.client.routing import Routing
from meshq.errors import RemoteProtocolError
from meshq.messages import (
    ORDERED,
    Answer,
    Deliver,
    Expired,
    Failure,
    Granted,
    HandOut,
    Pong,
    Produced,
    ReadEnded,
    ReadStarted,
    Resolved,
    Revoked,
    Routes,
    Settled,
    TopicsChanged,
    Welcome,
    error_of,
)

if TYPE_CHECKING:
    import random


class ClientCore:
    """`mesh_id` empty: whichever mesh answers. `rng` gives producer ids and the spread of back-offs."""

    def __init__(self, seeds: Sequence[Seed], *, mesh_id: bytes, name: str, rng: random.Random) -> None:
        self._common = Common(rng)
        self._routing = Routing(
            self._common, tuple(seeds), mesh_id=mesh_id, name=name, needed=self._is_needed
        )
        self._asking = Asking(self._common, self._routing)
        self._producing = Producing(self._common, self._routing, self._asking.on_topic_gone)
        self._reading = Reading(self._common, self._routing)
        self._consuming = Consuming(self._common, self._routing)
        self._ordered = Ordered(self._common, self._routing)
        self._readers: tuple[Reading, Consuming, Ordered] = (  # who has subscriptions
            self._reading, self._consuming, self._ordered,
        )  # fmt: skip
        self._alarms: list[Alarm | Alarms[Lane]] = [
            self._producing.alarms, self._routing.alarm, self._asking.alarm,
            *[reader.alarm for reader in self._readers],
        ]  # fmt: skip
        self._started = False
        self._closed = False

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        if not self._closed:
            if not self._started:
                self._started = True
                self._routing.start(now)
            self._on_event(event, now)
            self._on_changes(now)
            if self._asking.stirred:
                self._asking.pump(now)
            self._producing.pump(now)
            for reader in self._readers:
                if reader.subs:
                    reader.pump(now)
        effects, self._common.effects = self._common.effects, []
        return effects

    @property
    def has_home(self) -> bool:
        """Whether a peer is there to ask."""
        return self._routing.home is not None

    def deadline(self) -> float | None:
        """When it next wants a Ticked; None: never."""
        at = min([alarm.at for alarm in self._alarms])
        return None if self._closed or at == inf else at

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case Received():
                self._on_received(event, now)
            case BatchSealed():
                self._producing.on_sealed(event, now)
            case Consumed():
                self._reading.on_consumed(event)
                self._ordered.on_consumed(event)
            case Ticked():
                self._routing.on_tick(now)
                self._on_changes(now)
                self._asking.on_tick(now)
                self._producing.on_tick(now)
                for reader in self._readers:
                    reader.on_tick(now)
            case LinkUp():
                self._routing.on_link_up(event.server_key, now)
            case LinkDown():
                self._routing.on_link_down(event.server_key, event.reason, now)
            case Garbled():
                self._routing.drop(event.server_key, f"it sent what cannot be read: {event.reason}", now)
            case HomeWanted() | TopicWanted() | TopicsWanted() | AskRequested():
                self._asking.on_wanted(event, now)
            case SubscribeRequested():
                self._reader_for(event).on_subscribe(event)
            case RecordsSettled():
                (self._ordered if self._ordered.has(event.sub) else self._consuming).on_settled(event)
            case AtWork():
                self._consuming.on_at_work(event.sub)
            case Unsubscribed():
                for reader in self._readers:
                    reader.on_unsubscribed(event.sub)
            case Closed():
                self._close()
            case _:
                assert_never(event)

    def _reader_for(self, event: SubscribeRequested) -> Reading:
        if event.group is None:
            return self._reading
        return self._ordered if event.group.mode == ORDERED else self._consuming

    def _on_received(self, event: Received, now: float) -> None:
        key, message = event.server_key, event.message
        if not self._routing.on_heard(key, now):
            return  # of a link that was closed
        match message:
            case Produced():
                self._producing.on_produced(message, now)
            case Deliver():
                try:
                    reader = self._ordered if self._ordered.has(message.sub) else self._reading
                    reader.on_deliver(key, message, event.payloads, now)
                except RemoteProtocolError as e:
                    self._routing.drop(key, f"it pushed what cannot be read: {e}", now)
            case HandOut():
                try:
                    self._consuming.on_hand_out(key, message, event.payloads)
                except RemoteProtocolError as e:
                    self._routing.drop(key, f"it pushed what cannot be read: {e}", now)
            case Expired():
                self._reading.on_expired(key, message)
                self._consuming.on_expired(key, message)
                self._ordered.on_expired(key, message)
            case Settled():
                self._consuming.on_answers(message)
                self._ordered.on_answers(message)
            case Granted():
                self._ordered.on_granted(key, message)
            case Revoked():
                self._ordered.on_revoked(key, message)
            case Failure():
                self._on_failure(key, message, now)
            case Welcome():
                self._routing.on_welcome(key, message, now)
            case Routes():
                self._routing.on_routes(message, now)
                for reader in self._readers:
                    reader.on_routes(key, message.version)
            case Resolved():
                self._asking.on_resolved(message, now)
            case TopicsChanged():
                if not any(reader.on_topics(message) for reader in self._readers):
                    self._asking.on_topics(message)
            case ReadStarted():
                for reader in self._readers:
                    reader.on_started(key, message, now)
            case ReadEnded():
                for reader in self._readers:
                    reader.on_ended(key, message, now)
            case Answer():
                self._asking.on_answer(message)
            case Pong():
                pass  # being heard is all a Pong is for; the others are between peers
            case _:
                assert_never(message)

    def _on_failure(self, key: bytes, message: Failure, now: float) -> None:
        error = error_of(message)
        if message.request == 0:
            self._routing.on_refused(key, error, now)
        else:
            for machine in (self._producing, self._asking, *self._readers):
                if machine.on_failure(message.request, error, now):
                    break

    def _on_changes(self, now: float) -> None:
        """Tell the others what became of links and routes; losses first, for a link may be back already."""
        changes = self._routing.take_changes()
        if changes is None:
            return
        for key in changes.lost:
            self._producing.on_lost(key, now)
            for reader in self._readers:
                reader.on_lost(key, now)
            self._asking.on_lost(key)
        if changes.home:
            self._asking.on_home()
            for reader in self._readers:
                reader.on_home(now)
        if changes.gained or changes.routes:
            self._producing.on_way_open(now)
            for reader in self._readers:
                reader.on_way_open(now)

    def _is_needed(self, server_key: bytes) -> bool:
        return any(x.needs(server_key) for x in (self._producing, *self._readers))

    def _close(self) -> None:
        self._asking.close()
        self._producing.close()
        for reader in self._readers:
            reader.close()
        self._routing.close()
        self._closed = True
