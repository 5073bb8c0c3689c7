"""Subscriptions that take part in a group: the mesh keeps their place, and each record is settled.

Which topics match and where each partition is read is as with any other subscription (reading.py). What
differs: a partition is joined instead of read, batches come with the records that are meant, and nothing is
known here of positions. What is said of a record goes to whoever leads its partition, again and again until
there is an answer: settling twice does no harm, because a lease ends only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshq.batch import Buffer
from meshq.client.backoff import delay_s
from meshq.client.common import Common
from meshq.client.credit import SHARE_BYTES_MIN, Flow, share
from meshq.client.facts import Fail, Hand, Leased, RecordsSettled, Settle, SubscribeRequested
from meshq.client.pace import Pace
from meshq.client.reading import Reading
from meshq.client.routing import Routing
from meshq.client.subscribed import Subscribed
from meshq.errors import MeshqError, OutcomeUnknown, RemoteProtocolError, Unavailable
from meshq.messages import (
    ACK,
    NACK,
    REJECT,
    Credit,
    Expired,
    HandOut,
    Items,
    Join,
    ReadItem,
    ReadStarted,
    Settled,
    SettleItem,
)
from meshq.messages import Settle as SettleMessage

_WORKED_ON: Final = (ACK, NACK, REJECT)


@dataclass(slots=True, eq=False)
class _Settling:
    """`server`: where it was sent and is not answered yet."""

    event: RecordsSettled
    request: int = 0
    server: bytes | None = None
    attempt: int = 0
    retry_at: float = 0.0
    sent: bool = False  # ever


class Consuming(Reading):
    def __init__(self, common: Common, routing: Routing) -> None:
        super().__init__(common, routing)
        self._open_settlings: dict[_Settling, None] = {}  # bounded by what the mesh hands out
        self._unsent: dict[_Settling, None] = {}  # of these
        self._sent: dict[int, _Settling] = {}  # by request

    # -------------------------------------------------------------------- what the application does
    def on_subscribe(self, event: SubscribeRequested) -> None:
        super().on_subscribe(event)
        if not event.credit_records:
            self.subs[event.sub].pace = Pace()

    def on_settled(self, event: RecordsSettled) -> None:
        s = self.subs.get(event.sub)
        if s is not None and s.pace is not None and event.verdict in _WORKED_ON:
            s.pace.on_settled(sum(end - first for first, end, _ in event.ranges))
        settling = _Settling(event)
        self._open_settlings[settling] = self._unsent[settling] = None
        self.alarm.by(event.deadline)
        self._stir(settling)

    def on_at_work(self, sub: int) -> None:
        """To every leader: a Credit of nothing."""
        s = self.subs.get(sub)
        for server, flow in s.flows.items() if s is not None else ():
            if flow.readers and self._routing.is_ready(server):
                self._send(server, Credit(sub, 0, 0))

    def close(self) -> None:
        super().close()
        for settling in list(self._open_settlings):
            self._fail(settling, Unavailable("the client was closed"))

    # --------------------------------------------------------------------------- what the mesh says
    def on_lost(self, server_key: bytes, now: float) -> None:
        super().on_lost(server_key, now)
        for settling in [x for x in self._sent.values() if x.server == server_key]:
            self._again(settling, now)

    def on_started(self, server_key: bytes, message: ReadStarted, now: float) -> None:
        s = self.subs.get(message.sub)
        if s is None:
            return
        for item in message.items:
            part = s.parts.get((item.topic_id, item.partition))
            if part is not None and part.server == server_key:
                part.started, part.attempt = True, 0
                s.not_started.discard(part.key)
        self._stirred[s] = None
        self._check_ready(s)

    def on_expired(self, server_key: bytes, message: Expired) -> None:
        """Records went before the group had settled them."""
        s = self.subs.get(message.sub)
        for item in message.items if s is not None else ():
            part = s.parts.get((item.topic_id, item.partition)) if s is not None else None
            if s is not None and part is not None and part.server == server_key:
                self._expire(s, part, item.count, item.next)

    def on_hand_out(self, server_key: bytes, message: HandOut, payloads: Sequence[Buffer]) -> None:
        """Raises: RemoteProtocolError when it is not what a peer may push."""
        if len(payloads) != len(message.items):
            raise RemoteProtocolError(f"{len(message.items)} batches announced, {len(payloads)} delivered")
        s = self.subs.get(message.sub)
        if s is None:
            return  # of a subscription that was closed: the mesh hands them out again
        for item, payload in zip(message.items, payloads, strict=True):
            part = s.parts.get((item.topic_id, item.partition))
            if part is None or part.server != server_key or not item.ranges:
                continue
            leased = Leased(item.topic_id, item.lease, item.ranges)
            first, records = item.ranges[0][0], sum(end - start for start, end, _ in item.ranges)
            self._common.effects.append(
                Hand(
                    s.sub, server_key, part.topic, part.number, item.base_offset, item.timestamp_ms, first,
                    records, payload, leased,
                )
            )  # fmt: skip

    def on_answers(self, message: Settled) -> None:
        for request, refused in message.results:
            settling = self._sent.pop(request, None)
            if settling is not None:
                del self._open_settlings[settling]
                self._common.effects.append(Settle(settling.event.ticket, refused))

    def on_failure(self, request: int, error: MeshqError, now: float) -> bool:
        settling = self._sent.pop(request, None)
        if settling is None:
            return super().on_failure(request, error, now)
        if not isinstance(error, Unavailable | OutcomeUnknown):
            self._fail(settling, error)
            return True
        wait = max(delay_s(settling.attempt, self._common.rng), error.retry_after_ms / 1000)
        settling.retry_at = now + wait
        settling.attempt += 1
        self._again(settling, settling.retry_at)
        return True

    def on_tick(self, now: float) -> None:
        if self.alarm.at > now:
            return
        super().on_tick(now)
        for settling in list(self._open_settlings):
            if now >= settling.event.deadline:
                self._sent.pop(settling.request, None)
                self._fail(settling, _too_late(settling))
            else:
                self.alarm.by(settling.event.deadline)

    # --------------------------------------------------------------------------------------- asking
    def pump(self, now: float) -> None:
        super().pump(now)
        by_place: dict[tuple[int, bytes], list[SettleItem]] = {}
        for settling in list(self._unsent):
            event, s = settling.event, self.subs.get(settling.event.sub)
            part = s.parts.get((event.topic_id, event.partition)) if s is not None else None
            if part is None or part.server is None or not part.started:
                continue
            if now < settling.retry_at:
                self.alarm.by(settling.retry_at)
                continue
            settling.request, settling.server = next(self._common.requests), part.server
            settling.sent = True
            del self._unsent[settling]
            self._sent[settling.request] = settling
            by_place.setdefault((event.sub, part.server), []).append(
                SettleItem(
                    settling.request, event.topic_id, event.partition, event.verdict, list(event.ranges),
                    event.delay_ms, event.reason,
                )
            )  # fmt: skip
        for (sub, server), items in by_place.items():
            for i in range(0, len(items), Items):
                self._send(server, SettleMessage(sub, items[i : i + Items]))

    def _read(self, s: Subscribed, now: float) -> None:
        if s.pace is not None:
            s.pace.look(now)
        super()._read(s, now)
        for server, flow in s.flows.items():
            if flow.readers:
                self._grant(s, server, flow)

    def _open(self, s: Subscribed, server_key: bytes, items: list[ReadItem]) -> None:
        flow = s.flows[server_key]
        flow.open_records, flow.open_bytes = self._share(s)
        self._send(server_key, self._join(s, flow, items))

    def _grant(self, s: Subscribed, server_key: bytes, flow: Flow) -> None:
        """How much may be out at that peer, if that is not what it was told."""
        if self._share(s) != (flow.open_records, flow.open_bytes):
            self._open(s, server_key, [])

    def _share(self, s: Subscribed) -> tuple[int, int]:
        peers = sum(1 for f in s.flows.values() if f.readers)
        records = s.credit_records if s.pace is None else s.pace.records
        return share(records, peers, 1), share(s.credit_bytes, peers, SHARE_BYTES_MIN)

    def _join(self, s: Subscribed, flow: Flow, items: list[ReadItem]) -> Join:
        g = s.group
        assert g is not None
        terms = (g.name, g.member, g.mode, g.ack_wait_ms, g.max_deliver, flow.open_records, flow.open_bytes)
        return Join(s.sub, *terms, items)

    # ------------------------------------------------------------------------------- how it is done
    def _stir(self, settling: _Settling) -> None:
        s = self.subs.get(settling.event.sub)
        if s is None:
            self._fail(settling, Unavailable("the subscription was closed"))
        else:
            self._stirred[s] = None

    def _again(self, settling: _Settling, at: float) -> None:
        self._sent.pop(settling.request, None)
        settling.request, settling.server = 0, None
        self._unsent[settling] = None
        self.alarm.by(at)
        self._stir(settling)

    def _forget(self, s: Subscribed, error: MeshqError) -> None:
        super()._forget(s, error)
        for settling in [x for x in self._open_settlings if x.event.sub == s.sub]:
            self._sent.pop(settling.request, None)
            self._fail(settling, OutcomeUnknown(f"it was not answered before: {error}"))

    def _fail(self, settling: _Settling, error: MeshqError) -> None:
        self._open_settlings.pop(settling, None)
        self._unsent.pop(settling, None)
        self._common.effects.append(Fail(settling.event.ticket, error))


def _too_late(settling: _Settling) -> MeshqError:
    if settling.sent:
        return OutcomeUnknown("what was said of a record was sent and not answered in time")
    return Unavailable("nobody could be told in time what became of a record: see `meshq status`")
