"""Subscriptions that take part in an ordered group: whole partitions are this member's for a time, under
leases.

Joining and settling are as in any group (consuming.py), records come as to any reader (reading.py). A
partition is ours from its leader's Granted, or a ReadStarted that says so, to its Revoked (over), or until we
give it back. Where a link breaks it stays ours for as long as we may be silent: whoever leads it then says
under which lease, and if it is the same one the reading goes on where it was.

A member is alive by its own word: a Credit goes to each leader a few times in that while, if only with
nothing."""

from __future__ import annotations

from math import inf
from typing import Final

from meshq.client.common import Common
from meshq.client.consuming import Consuming
from meshq.client.credit import Flow
from meshq.client.facts import Grant, RecordsSettled, Revoke, SubscribeRequested
from meshq.client.reading import Reading
from meshq.client.routing import Routing
from meshq.client.subscribed import Part, Subscribed
from meshq.messages import RELEASE, Credit, Expired, Granted, Join, ReadItem, ReadStarted, Revoked, Started

BEATS: Final = 4  # in the time that a member may be silent


class Ordered(Consuming):
    def __init__(self, common: Common, routing: Routing) -> None:
        super().__init__(common, routing)
        self._beat_at = inf

    def has(self, sub: int) -> bool:
        return sub in self.subs

    # -------------------------------------------------------------------- what the application does
    def on_subscribe(self, event: SubscribeRequested) -> None:
        super().on_subscribe(event)
        self._beat_at = -inf

    def on_settled(self, event: RecordsSettled) -> None:
        s = self.subs.get(event.sub)
        part = s.parts.get((event.topic_id, event.partition)) if s is not None else None
        for _, end, lease in event.ranges:
            if part is None:
                break
            if event.verdict != RELEASE:
                part.said = max(part.said, (lease, end))
            elif lease == part.lease:
                part.released, part.lease, part.position = lease, 0, None
        super().on_settled(event)

    # --------------------------------------------------------------------------- what the mesh says
    def on_started(self, server_key: bytes, message: ReadStarted, now: float) -> None:
        s = self.subs.get(message.sub)
        for item in message.items if s is not None else ():
            part = s.parts.get((item.topic_id, item.partition)) if s is not None else None
            if s is not None and part is not None and part.server == server_key:
                self._on_lease(s, part, item)
        super().on_started(server_key, message, now)

    def _on_lease(self, s: Subscribed, part: Part, item: Started) -> None:
        """What we have of the partition, by its leader."""
        part.lapses_at = inf
        if item.lease == part.lease or (item.lease and item.lease == part.released):
            return
        self._end(s, part)
        if item.lease:
            self._begin(s, part, item.lease, item.offset, 1)

    def on_expired(self, server_key: bytes, message: Expired) -> None:
        """Records went before they came here, or (nothing of what is under way here) before anybody had
        acknowledged them.
        """
        s = self.subs.get(message.sub)
        for item in message.items if s is not None else ():
            part = s.parts.get((item.topic_id, item.partition)) if s is not None else None
            if s is None or part is None or part.server != server_key:
                continue
            if part.position is not None and part.position < item.next:
                self._expire(s, part, item.next - part.position, item.next)
                part.position = item.next
            else:
                self._expire(s, part, item.count, item.next)

    def on_granted(self, server_key: bytes, message: Granted) -> None:
        s = self.subs.get(message.sub)
        for item in message.items if s is not None else ():
            part = s.parts.get((item.topic_id, item.partition)) if s is not None else None
            if s is not None and part is not None and part.server == server_key and item.lease != part.lease:
                self._end(s, part)
                self._begin(s, part, item.lease, item.offset, item.attempts)

    def on_revoked(self, server_key: bytes, message: Revoked) -> None:
        s = self.subs.get(message.sub)
        for item in message.items if s is not None else ():
            part = s.parts.get((item.topic_id, item.partition)) if s is not None else None
            if s is None or part is None or part.server != server_key or item.lease != part.lease:
                continue
            if item.over:
                self._end(s, part)
            else:
                self._common.effects.append(Revoke(s.sub, part.topic_id, part.number, part.lease, False))

    # ------------------------------------------------------------------------------------- each turn
    def on_tick(self, now: float) -> None:
        if self.alarm.at > now:
            return
        super().on_tick(now)
        for s in self.subs.values():
            for part in s.parts.values():
                if part.lapses_at <= now:
                    self._end(s, part)
                self.alarm.by(part.lapses_at)

    def pump(self, now: float) -> None:
        super().pump(now)
        if not self.subs:
            return
        if now >= self._beat_at:
            for s in self.subs.values():
                self._beat(s)
            self._beat_at = now + min(_silence_s(s) for s in self.subs.values()) / BEATS
        self.alarm.by(self._beat_at)

    def _beat(self, s: Subscribed) -> None:
        for server, flow in s.flows.items():
            if flow.readers and self._routing.is_ready(server):
                self._send(server, Credit(s.sub, 0, 0))

    # ------------------------------------------------------------------------------- how it is done
    def _grant(self, s: Subscribed, server_key: bytes, flow: Flow) -> None:
        Reading._grant(self, s, server_key, flow)

    def _open(self, s: Subscribed, server_key: bytes, items: list[ReadItem]) -> None:
        g = s.group
        assert g is not None
        terms = (g.name, g.member, g.mode, g.ack_wait_ms, g.max_deliver, 0, 0)
        self._send(server_key, Join(s.sub, *terms, items))

    def _wait(self, s: Subscribed, part: Part, retry_at: float) -> None:
        super()._wait(s, part, retry_at)
        if part.lease:
            part.lapses_at = min(part.lapses_at, retry_at + _silence_s(s))
            self.alarm.by(part.lapses_at)

    def _drop_part(self, s: Subscribed, part: Part) -> None:
        self._end(s, part)
        super()._drop_part(s, part)

    def _begin(self, s: Subscribed, part: Part, lease: int, offset: int, attempts: int) -> None:
        if part.said[0] == lease:  # ours again after all: what was said of it is on its way
            offset = max(offset, part.said[1])
        part.lease, part.position, part.lapses_at = lease, offset, inf
        self._common.effects.append(
            Grant(s.sub, part.topic, part.topic_id, part.number, lease, offset, attempts)
        )

    def _end(self, s: Subscribed, part: Part) -> None:
        if part.lease:
            self._common.effects.append(Revoke(s.sub, part.topic_id, part.number, part.lease, True))
        part.lease, part.position, part.lapses_at = 0, None, inf


def _silence_s(s: Subscribed) -> float:
    """How long this member may be silent."""
    assert s.group is not None
    return s.group.ack_wait_ms / 1000
