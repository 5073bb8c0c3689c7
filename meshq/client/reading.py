"""Subscriptions: where each partition of the topics that match (watching.py) is read, from which record on.

Each partition is read at the leader of its slot. Where it starts is what the subscriber said until the leader
named an offset (`latest` only to a leader that is asked at once; to any other it is the time of the first
complete answer); from then on the position is known here, moves on with every batch, and is what any later
Read asks for, so no record is skipped and none is handed out twice, whichever peer it comes from. A batch
that would leave a gap is not taken: the partition is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meshq.batch import Buffer, read_header
from meshq.client.backoff import delay_s
from meshq.client.credit import SHARE_BYTES_MIN, SHARE_RECORDS_MIN, Flow, share
from meshq.client.facts import (
    Consumed,
    EndSubscription,
    Fail,
    Hand,
    Leased,
    Place,
    SubscribeRequested,
    TellExpired,
)
from meshq.client.subscribed import Part, Subscribed
from meshq.client.watching import Watching
from meshq.errors import (
    Forbidden,
    MeshqError,
    RecordsLost,
    RemoteProtocolError,
    SecurityError,
    TopicGone,
    Unavailable,
    UsageError,
)
from meshq.messages import (
    OFFSET,
    TIMESTAMP,
    Credit,
    Deliver,
    DeliverItem,
    Expired,
    Items,
    Read,
    ReadEnded,
    ReadItem,
    ReadStarted,
    Unread,
    Unwatch,
    error_of,
)

_FOR_GOOD: Final = (Forbidden, SecurityError, UsageError, RemoteProtocolError)  # end a subscription


class Reading(Watching):
    def needs(self, server_key: bytes) -> bool:
        owner = self._routing.owner_of
        return any(
            part.server == server_key or (part.server is None and owner(*part.key) == server_key)
            for s in self.subs.values()
            for part in s.parts.values()
        )

    # -------------------------------------------------------------------- what the application does
    def on_subscribe(self, event: SubscribeRequested) -> None:
        s = self.subs[event.sub] = Subscribed(
            event.sub,
            event.pattern,
            event.start,
            event.credit_bytes,
            event.credit_records,
            event.ticket,
            later=event.start,
            prefixes=event.prefixes,
            group=event.group,
        )
        self._stirred[s] = None

    def on_consumed(self, event: Consumed) -> None:
        s = self.subs.get(event.sub)
        flow = s.flows.get(event.source) if s else None
        if s is None or flow is None:
            return
        flow.on_taken(event.bytes, event.records)
        if flow.readers:
            self._grant(s, event.source, flow)

    def on_unsubscribed(self, sub: int) -> None:
        s = self.subs.get(sub)
        if s is not None:
            self._forget(s, Unavailable("the subscription was closed"))

    def close(self) -> None:
        for s in list(self.subs.values()):
            self._forget(s, Unavailable("the client was closed"))

    # ------------------------------------------------------------------------ what happens to links
    def on_lost(self, server_key: bytes, now: float) -> None:
        self._registries.pop(server_key, None)
        for s in self.subs.values():
            for part in s.parts.values():
                if part.server == server_key:
                    self._wait(s, part, now)
            flow = s.flows.get(server_key)
            if flow is not None:
                flow.on_lost()
                if not flow.held_bytes:
                    del s.flows[server_key]

    def on_way_open(self, now: float) -> None:
        """A link came up or routes changed: read at once what waits, and move what is read at a former
        leader.
        """
        for s in self.subs.values():
            for part in s.parts.values():
                owner = self._routing.owner_of(*part.key)
                if part.server is not None and owner is not None and owner != part.server:
                    self._leave(s, part)
                    self._wait(s, part, now)
            for part in s.waiting.values():
                part.retry_at = min(part.retry_at, now)
            self._stirred[s] = None

    def on_tick(self, now: float) -> None:
        if self.alarm.rings(now):
            self._stirred.update(dict.fromkeys(self.subs.values()))

    # --------------------------------------------------------------------------- what the mesh says
    def on_started(self, server_key: bytes, message: ReadStarted, now: float) -> None:
        s = self.subs.get(message.sub)
        if s is None:
            return
        for item in message.items:
            part = s.parts.get((item.topic_id, item.partition))
            if part is None or part.server != server_key:
                continue
            if part.generation is not None and item.generation < part.generation:
                # It was cut off when the slot went on without it, and does not know it yet.
                self._leave(s, part)
                self._wait(s, part, now + delay_s(part.attempt, self._common.rng))
                part.attempt += 1
                continue
            if part.position is not None and item.offset < part.position:
                self._refuse(s, _records_lost(part, item.offset))
                return
            part.started = True
            part.attempt = 0
            part.generation = item.generation
            asked = part.start.value if part.start.kind == OFFSET else item.offset
            if part.position is not None:
                asked = part.position
            if item.offset > asked:  # the records in between went by retention
                self._expire(s, part, item.offset - asked, item.offset)
            part.position = item.offset
            self._common.effects.append(Place(s.sub, part.topic, part.number, part.position))
            s.not_started.discard(part.key)
        self._check_ready(s)

    def on_expired(self, server_key: bytes, message: Expired) -> None:
        """Records went before they came here; what comes next is behind them."""
        s = self.subs.get(message.sub)
        for item in message.items if s is not None else ():
            part = s.parts.get((item.topic_id, item.partition)) if s is not None else None
            if s is None or part is None or part.server != server_key or not part.started:
                continue
            if part.position is not None and item.next > part.position:
                self._expire(s, part, item.next - part.position, item.next)
                part.position = item.next

    def _expire(self, s: Subscribed, part: Part, count: int, then: int) -> None:
        self._common.effects.append(TellExpired(s.sub, part.topic, part.number, count, then))

    def on_ended(self, server_key: bytes, message: ReadEnded, now: float) -> None:
        s = self.subs.get(message.sub)
        part = s.parts.get((message.topic_id, message.partition)) if s else None
        if s is None or part is None or part.server != server_key:
            return
        error = error_of(message)
        if isinstance(error, TopicGone):
            self._drop_part(s, part)
            self._check_ready(s)
        elif isinstance(error, _FOR_GOOD):
            self._refuse(s, error)
        else:
            self._wait(s, part, now + delay_s(part.attempt, self._common.rng))
            part.attempt += 1

    def on_deliver(self, server_key: bytes, message: Deliver, payloads: Sequence[Buffer], now: float) -> None:
        """Raises: RemoteProtocolError when it is not what a peer may push."""
        if len(payloads) != len(message.items):
            raise RemoteProtocolError(f"{len(message.items)} batches announced, {len(payloads)} delivered")
        s = self.subs.get(message.sub)
        if s is None:
            return  # of a subscription that was closed
        flow = s.flows.get(server_key)
        if flow is None:
            return
        for item, payload in zip(message.items, payloads, strict=True):
            self._on_batch(s, server_key, flow, item, payload, now)
        if flow.readers:
            self._grant(s, server_key, flow)

    def _on_batch(
        self, s: Subscribed, server_key: bytes, flow: Flow, item: DeliverItem, payload: Buffer, now: float
    ) -> None:
        count = read_header(payload).count
        size, end = len(payload), item.base_offset + count
        records = max(end - item.first, 0)
        part = s.parts.get((item.topic_id, item.partition))
        position = part.position if part and part.started and part.server == server_key else None
        if part is None or position is None or end <= position:
            flow.on_pushed(size, records, keep=False)
            return
        if max(item.base_offset, item.first) > position:
            flow.on_pushed(size, records, keep=False)
            self._leave(s, part)
            self._wait(s, part, now + delay_s(part.attempt, self._common.rng))
            part.attempt += 1
            return
        if s.group is None and s.start.kind == TIMESTAMP and item.timestamp_ms < s.start.value:
            # The time asked for had not come when the reading began: what was appended since is too early.
            flow.on_pushed(size, records, keep=False)
            part.position = end
            return
        flow.on_pushed(size, records, keep=True)
        part.position = end
        leased = Leased(part.topic_id, part.lease, ()) if part.lease else None
        self._common.effects.append(
            Hand(
                s.sub, server_key, part.topic, part.number, item.base_offset, item.timestamp_ms, position,
                records, payload, leased,
            )
        )  # fmt: skip

    # --------------------------------------------------------------------------------------- asking
    def pump(self, now: float) -> None:
        for s in self._stirred:
            if s.sub in self.subs:
                self._watch(s, now)
                self._read(s, now)
        self._stirred.clear()

    def _read(self, s: Subscribed, now: float) -> None:
        by_server: dict[bytes, list[Part]] = {}
        for part in s.waiting.values():
            server = self._routing.owner_of(*part.key)
            if now < part.retry_at:
                self.alarm.by(part.retry_at)
            elif server is not None and self._routing.use(server, now):
                by_server.setdefault(server, []).append(part)
        for server, parts in by_server.items():
            flow = s.flows.setdefault(server, Flow())
            flow.readers += len(parts)
            for i in range(0, len(parts), Items):
                self._open(s, server, [p.item() for p in parts[i : i + Items]])
            for part in parts:
                part.server, part.started = server, False
                del s.waiting[part.key]
        for part in s.waiting.values():
            part.start = s.not_latest(part.start)
        for server in by_server:
            self._grant(s, server, s.flows[server])

    def _open(self, s: Subscribed, server_key: bytes, items: list[ReadItem]) -> None:
        self._send(server_key, Read(s.sub, items))

    def _grant(self, s: Subscribed, server_key: bytes, flow: Flow) -> None:
        peers = sum(1 for f in s.flows.values() if f.readers)
        granted = flow.grant(
            share(s.credit_bytes, peers, SHARE_BYTES_MIN), share(s.credit_records, peers, SHARE_RECORDS_MIN)
        )
        if granted is not None:
            self._send(server_key, Credit(s.sub, *granted))

    # ------------------------------------------------------------------------------- how it is done
    def _wait(self, s: Subscribed, part: Part, retry_at: float) -> None:
        """Not read anywhere just now; to be read at its leader from then on."""
        flow = s.flows.get(part.server) if part.server else None
        if flow is not None:
            flow.readers -= 1
        part.server, part.started, part.retry_at = None, False, retry_at
        part.start = s.not_latest(part.start)
        s.waiting[part.key] = part
        self._stirred[s] = None

    def _leave(self, s: Subscribed, part: Part) -> None:
        if part.server is not None and self._routing.is_ready(part.server):
            self._send(part.server, Unread(s.sub, [part.key]))

    def _drop_topic(self, s: Subscribed, topic_id: bytes) -> None:
        for number in range(s.topics.pop(topic_id, 0)):
            part = s.parts.get((topic_id, number))
            if part is not None:
                self._leave(s, part)
                self._drop_part(s, part)
        self._check_ready(s)

    def _drop_part(self, s: Subscribed, part: Part) -> None:
        self._wait(s, part, 0.0)
        s.drop(part)

    def _refuse(self, s: Subscribed, error: MeshqError) -> None:
        self._common.effects.append(EndSubscription(s.sub, error))
        self._forget(s, error)

    def _forget(self, s: Subscribed, error: MeshqError) -> None:
        if s.ticket is not None:
            self._common.effects.append(Fail(s.ticket, error))
        home = self._routing.home
        if s.watch in self._watches and home is not None:
            del self._watches[s.watch]
            self._send(home, Unwatch(s.watch))
        for server in s.flows:
            if self._routing.is_ready(server):
                self._send(server, Unread(s.sub))
        self.subs.pop(s.sub, None)


def _records_lost(part: Part, end: int) -> RecordsLost:
    return RecordsLost(
        f"{part.topic}/{part.number}@{end}: records from this offset on were read (up to {part.position}) "
        "and are lost, and their offsets go to others. The slot went on without them after most of its "
        "copies were lost (`meshq recover`). Subscribe again from that offset"
    )
