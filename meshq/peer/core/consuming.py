"""Join and Settle: who takes part in which group, and what they say of their records.

    Join ──> Open (once a group) ──> a place at the desk        Settle ──> an operation at the desk

Desks are the leaders' (peer/core/desks.py). A member is one subscription, whatever connections it had: what
it holds stays its own while it connects anew, for as long as was agreed. Leaving by Unread ends that at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from meshq import messages
from meshq.errors import (
    Forbidden,
    MeshqError,
    NotOwner,
    Overloaded,
    RemoteProtocolError,
    TopicGone,
    Unavailable,
    UsageError,
)
from meshq.ids import PartitionKey, Ref, Session, Slot, TopicId
from meshq.levels import DEAD_LETTERS, MODES, check_in_use
from meshq.limits import (
    ACK_WAIT_MS_MAX,
    CREDIT_BYTES_MAX,
    GROUP_BYTES_MAX,
    GROUP_IN_FLIGHT_MAX,
    GROUP_MEMBERS_MAX,
    GROUPS_PER_SLOT_MAX,
    ORDERED_MEMBERS_MAX,
    SETTLE_RANGES_MAX,
)
from meshq.messages import (
    HandOut,
    Join,
    ReadItem,
    ReadStarted,
    ServerMessage,
    Settle,
    SettleItem,
    Started,
    Unread,
)
from meshq.peer.core.burying import Burying
from meshq.peer.core.context import Context
from meshq.peer.core.desks import GROUPS, Desks
from meshq.peer.core.events import SeekTime, TimeSought
from meshq.peer.core.parts import Desk, Part
from meshq.peer.core.publishing import check_partition, find_topic, led_slot
from meshq.peer.core.slots import Slots
from meshq.security.authorization import Principal
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.hands import Member
from meshq.streams.groups.ordered import OrderedDesk
from meshq.streams.groups.table import AnyState, GroupKey
from meshq.streams.groups.words import ONLY_SETTINGS, Mode, Open, Verdict
from meshq.topics import dead_letters_of

if TYPE_CHECKING:
    import random

_VERDICTS: Final = (messages.ACK, messages.NACK, messages.RELEASE, messages.REJECT)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@dataclass(slots=True, eq=False)
class _Joined:
    """One subscription of one connection."""

    member: Member
    group: str
    opened: Open


@dataclass
class Consuming:
    ctx: Context
    slots: Slots
    rng: random.Random
    desks: Desks = field(init=False)
    burying: Burying = field(init=False)
    _joined: dict[Ref, _Joined] = field(default_factory=dict)  # bounded by the sessions' subscriptions

    def __post_init__(self) -> None:
        self.desks = Desks(self.ctx, self.slots, self.rng, self._on_opened, self._end)
        self.burying = Burying(self.ctx, self.slots, self.desks)

    # ------------------------------------------------------------------------------------- joining
    def on_join(self, session: Session, principal: Principal, message: Join) -> None:
        ref = (session, message.sub)
        started: list[Started] = []
        try:
            joined = self._joined.get(ref) or self._enter(ref, principal, message)
            if joined.group != message.group:
                raise UsageError(f"this subscription takes part in group {joined.group!r}")
            joined.member.records_max = min(message.in_flight, GROUP_IN_FLIGHT_MAX)
            joined.member.bytes_max = min(message.in_flight_bytes, CREDIT_BYTES_MAX)
            self.on_heard(ref)
            self.desks.stir_all(joined.member)
        except MeshqError as e:
            for item in message.items:
                partition = PartitionKey(TopicId(item.topic_id), item.partition)
                self.ctx.end_read(session, message.sub, partition, e)
            return
        for item in message.items:
            partition = PartitionKey(TopicId(item.topic_id), item.partition)
            try:
                found = self._open(principal, joined, item, partition)
            except MeshqError as e:
                self.ctx.end_read(session, message.sub, partition, e)
                continue
            if found is not None:
                started.append(found)
        if started:
            self.ctx.send(session, ReadStarted(message.sub, started))
        if not joined.member.keys:
            del self._joined[ref]

    def _enter(self, ref: Ref, principal: Principal, message: Join) -> _Joined:
        """Raises: UsageError, Overloaded."""
        if len(message.group) > GROUP_BYTES_MAX or not _NAME.fullmatch(message.group):
            raise UsageError(
                f"{message.group[:300]!r} is not a group's name: letters, digits, _ and -, "
                f"at most {GROUP_BYTES_MAX}"
            )
        if message.mode not in tuple(Mode):
            raise UsageError("a group's mode is `queue`, `ordered` or `keyed`")
        if message.mode != Mode.QUEUE:
            check_in_use(self.ctx.registry.level, MODES, "an ordered or keyed group")
        if message.mode == Mode.ORDERED and message.max_deliver:
            raise UsageError("an ordered group has no `max_deliver`")
        if not 1 <= message.ack_wait_ms <= ACK_WAIT_MS_MAX:
            raise UsageError(f"`ack_wait` is between 1 ms and {ACK_WAIT_MS_MAX // 1000} s")
        self.ctx.sessions.states[ref[0]].check_subscription(False)
        # Whose it is goes into it: nobody can take another's place by saying its number.
        member_id = blake2b(principal.key + message.member, digest_size=16).digest()
        member = Member(ref, member_id, 0, 0)
        limited = self.ctx.registry.level >= DEAD_LETTERS  # till then as often as it takes
        opened = Open(message.mode, message.ack_wait_ms, message.max_deliver if limited else 0, 0)
        joined = self._joined[ref] = _Joined(member, message.group, opened)
        return joined

    def _open(
        self, principal: Principal, joined: _Joined, item: ReadItem, partition: PartitionKey
    ) -> Started | None:
        """None: the answer comes when the group is in the log."""
        info = find_topic(self.ctx, item.topic_id, item.version)
        if not principal.may_consume(info.name):
            raise Forbidden(f"{principal.name!r} may not consume {info.name!r}: it has no capability for it")
        check_partition(info, item.partition)
        dead_letters_of(info.name, joined.group)
        slot = led_slot(self.ctx, self.slots, partition)
        session, sub = joined.member.ref
        self.ctx.sessions.states[session].add_reader(sub, partition)
        key = GroupKey(partition, joined.group)
        part = self.desks.parts.get(key) or self._begin(key, slot, joined, item)
        if part.ending:
            raise Unavailable(f"group {joined.group!r} is being deleted", retry_after_ms=100)
        if part.desk is None:
            if joined.member not in part.opening:
                part.opening.append(joined.member)
            joined.member.keys.add(key)
            return None
        self._check_settings(part, part.desk.state, joined)
        started = self._take_part(part, part.desk, joined)
        joined.member.keys.add(key)
        return started

    def _begin(self, key: GroupKey, slot: Slot, joined: _Joined, item: ReadItem) -> Part:
        groups = self.slots.hosts[slot].stream.groups
        if groups.get(key) is None and len(groups) >= GROUPS_PER_SLOT_MAX:
            raise Overloaded("this slot has as many groups as it may: delete some")
        if not messages.EARLIEST <= item.start <= messages.TIMESTAMP:
            raise RemoteProtocolError(f"a group cannot start at {item.start}")
        part = self.desks.begin(key, slot)
        if part.desk is not None:
            return part
        state = self.slots.partition(slot, key.partition)
        match item.start:
            case messages.EARLIEST:
                start = state.low
            case messages.LATEST:
                start = state.end
            case messages.OFFSET:
                start = min(max(item.value, 0), state.end)  # what has expired of it is counted
            case _:
                ref = ((GROUPS, key.group.encode()), self.ctx.next_request())
                part.seek = SeekTime(ref, key.partition, item.value, state.end)
                self.ctx.out.append(part.seek)
                return part
        self.desks.add(part, replace(joined.opened, start=start))
        return part

    def _check_settings(self, part: Part, state: AnyState, joined: _Joined) -> None:
        """Who joins last says what holds for the group. Raises: UsageError for another mode."""
        o = joined.opened
        if o.mode != state.mode:
            raise UsageError(
                f"group {joined.group!r} is a group of mode `{state.mode.name.lower()}` here: "
                "join it in that mode, or take another name"
            )
        if (o.ack_wait_ms, o.max_deliver) != (state.ack_wait_ms, state.max_deliver):
            # Below that level groups are not deleted, and peers take any Open as a beginning.
            deletes = self.ctx.registry.level >= DEAD_LETTERS
            self.desks.add(part, replace(o, start=ONLY_SETTINGS) if deletes else o)

    def _take_part(self, part: Part, desk: Desk, joined: _Joined) -> Started:
        """Raises: Overloaded."""
        member, partition, lease = joined.member, part.key.partition, 0
        desk.now = self.ctx.now
        if isinstance(desk, OrderedDesk):
            if member.id not in desk.roster and len(desk.roster) >= ORDERED_MEMBERS_MAX:
                raise Overloaded(f"group {joined.group!r} has as many members as an ordered one may")
            lease = desk.on_join(member, joined.opened.ack_wait_ms / 1000)
            if lease:
                self.desks.leases.push_from(member.ref, partition, desk.state.next, desk)
            self.desks.take_notices(part)
        else:
            if len(desk.members) >= GROUP_MEMBERS_MAX:
                raise Overloaded(f"group {joined.group!r} has as many members here as it may")
            desk.on_join(member)
        self.desks.stir(part.key)
        return Started(partition.topic_id, partition.partition, desk.state.floor, desk.end, lease=lease)

    def on_sought(self, event: TimeSought) -> None:
        """Where a group begins that begins at a time."""
        for part in self.desks.of_partition(event.seek.partition):
            if part.seek == event.seek:
                part.seek = None
                first = self._joined.get(part.opening[0].ref) if part.opening else None
                if first is None:
                    self.desks.drop(part)
                else:
                    low = self.slots.partition(part.slot, event.seek.partition).low
                    self.desks.add(part, replace(first.opened, start=max(event.offset, low)))

    def _on_opened(self, part: Part) -> None:
        opening, part.opening = part.opening, []
        for joined in [j for m in opening if (j := self._joined.get(m.ref)) is not None and j.member is m]:
            session, sub = joined.member.ref
            try:
                assert part.desk is not None
                self._check_settings(part, part.desk.state, joined)
                started = self._take_part(part, part.desk, joined)
            except MeshqError as e:
                self._leave(joined, [part.key], for_good=False)
                self.ctx.end_read(session, sub, part.key.partition, e)
            else:
                self.ctx.send(session, ReadStarted(sub, [started]))

    # ------------------------------------------------------------------------------------- leaving
    def on_unread(self, session: Session, message: Unread) -> bool:
        """Whether it was of a group."""
        joined = self._joined.get((session, message.sub))
        if joined is None:
            return False
        gone = {GroupKey(PartitionKey(TopicId(t), p), joined.group) for t, p in message.items}
        keys = joined.member.keys & gone if gone else set(joined.member.keys)
        self._leave(joined, keys, for_good=True, closes=not gone)
        if not gone:
            del self._joined[session, message.sub]
        return True

    def on_heard(self, ref: Ref) -> None:
        """The heartbeat of a member."""
        joined = self._joined.get(ref)
        if joined is None:
            return
        joined.member.heard = self.ctx.now
        if joined.member.was_silent:  # and is back on the same connection
            for key in joined.member.keys:
                part = self.desks.parts.get(key)
                if part is not None and isinstance(part.desk, OrderedDesk):
                    part.desk.roster.join(joined.member, joined.opened.ack_wait_ms / 1000, self.ctx.now)
            joined.member.was_silent = False
            self.desks.stir_all(joined.member)

    def on_unsent(self, session: Session, message: ServerMessage | None) -> None:
        """Records that certainly did not come to who was handed them: for others, as if they had not been."""
        joined = self._joined.get((session, message.sub)) if isinstance(message, HandOut) else None
        if joined is None or not isinstance(message, HandOut):
            return
        for item in message.items:
            key = GroupKey(PartitionKey(TopicId(item.topic_id), item.partition), joined.group)
            part = self.desks.parts.get(key)
            if part is not None and isinstance(part.desk, QueueDesk):
                part.desk.on_unseen([(first, end, item.lease) for first, end, _ in item.ranges])
                self.desks.stir(key)

    def on_session_gone(self, session: Session) -> None:
        """It may be back: what it holds stays its own for as long as was agreed."""
        for ref in [r for r in self._joined if r[0] == session]:
            joined = self._joined.pop(ref)
            self._leave(joined, set(joined.member.keys), for_good=False)

    def _leave(
        self, joined: _Joined, keys: Iterable[GroupKey], *, for_good: bool, closes: bool = False
    ) -> None:
        """`closes`: the whole subscription. Nothing less makes anybody leave an ordered group, whose members
        are the same in all partitions."""
        for key in keys:
            joined.member.keys.discard(key)
            part = self.desks.parts.get(key)
            if part is not None:
                part.opening = [m for m in part.opening if m is not joined.member]
                if part.desk is not None:
                    part.desk.now = self.ctx.now
                    ordered = isinstance(part.desk, OrderedDesk)
                    part.desk.on_leave(joined.member, for_good=closes if ordered else for_good)
                self.desks.stir(key)
        self.desks.stir_all(joined.member)  # what it held there is room elsewhere

    def on_slot_lost(self, slot: Slot) -> None:
        """Another peer leads it, or nobody."""
        error = NotOwner(f"slot {slot} is not led here any more", retry_after_ms=50)
        for part in [p for p in self.desks.parts.values() if p.slot == slot]:
            self._end(part, error)

    def on_topic_gone(self, topic_id: TopicId, name: str) -> None:
        for part in [p for p in self.desks.parts.values() if p.key.partition.topic_id == topic_id]:
            self._end(part, TopicGone(f"topic {name!r} was deleted"))

    def _end(self, part: Part, error: MeshqError) -> None:
        """For all who take part; whether what is under way will count is not known."""
        self.desks.refuse(part, error)
        for member in [*part.opening, *(part.desk.members.values() if part.desk else ())]:
            joined = self._joined.get(member.ref)
            if joined is not None:
                self._leave(joined, [part.key], for_good=False)
                session, sub = member.ref
                self.ctx.end_read(session, sub, part.key.partition, error)
                if not joined.member.keys:
                    del self._joined[member.ref]
        self.desks.drop(part)
        if self.ctx.topic(part.key.partition.topic_id) is not None:
            self.burying.go_on(part.key, part.slot)

    # ------------------------------------------------------------------------------------- settling
    def on_settle(self, session: Session, message: Settle) -> None:
        self.on_heard((session, message.sub))
        joined = self._joined.get((session, message.sub))
        left = SETTLE_RANGES_MAX
        for item in message.items:
            try:
                left -= len(item.ranges)
                if left < 0:
                    raise Overloaded("that is much for one message", retry_after_ms=20)
                if joined is None:
                    raise Unavailable("this subscription has not joined its group here", retry_after_ms=50)
                self._settle(session, joined, item)
            except MeshqError as e:
                self.ctx.fail(session, item.request, e)

    def _settle(self, session: Session, joined: _Joined, item: SettleItem) -> None:
        partition = PartitionKey(TopicId(item.topic_id), item.partition)
        key = GroupKey(partition, joined.group)
        part = self.desks.parts.get(key)
        if part is None or part.desk is None or key not in joined.member.keys:
            led_slot(self.ctx, self.slots, partition)
            raise Unavailable("this subscription has not joined its group here", retry_after_ms=50)
        if any(first >= end for first, end, _ in item.ranges):
            raise RemoteProtocolError("a range of records that has none")
        part.desk.now = self.ctx.now
        if isinstance(part.desk, OrderedDesk):
            self._settle_ordered(session, part, part.desk, joined.member, item)
            return
        if item.verdict == messages.EXTEND:
            refused = part.desk.extend(joined.member, item.ranges)
            self.desks.answer(session, item.request, list(refused))
            return
        if item.verdict == messages.REJECT:
            check_in_use(self.ctx.registry.level, DEAD_LETTERS, "rejecting a record")
            info = self.ctx.topic(partition.topic_id)
            if info is not None:
                self.ctx.registry.check_graves(info.name, joined.group)
        if item.verdict not in _VERDICTS:
            raise RemoteProtocolError(f"records cannot be settled by {item.verdict}")
        delay_ms = None if item.delay_ms is None else min(item.delay_ms, ACK_WAIT_MS_MAX)
        op = part.desk.settle(joined.member, Verdict(item.verdict), item.ranges, delay_ms, item.reason)
        self.desks.add(part, op, (session, item.request))

    def _settle_ordered(
        self, session: Session, part: Part, desk: OrderedDesk, member: Member, item: SettleItem
    ) -> None:
        if item.verdict not in (messages.ACK, messages.RELEASE):
            raise UsageError("in an ordered group records are acknowledged, or their partition is given back")
        if item.verdict == messages.ACK and any(end > desk.end for _, end, _ in item.ranges):
            raise RemoteProtocolError("an acknowledgement of records that there are not")
        op = desk.settle(member, Verdict(item.verdict), item.ranges, None)
        self.desks.add(part, op, (session, item.request))
