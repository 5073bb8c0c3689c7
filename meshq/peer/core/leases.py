"""Ordered groups' leases, seen from outside: members are told what is theirs, and pushed it as readers are.

    OrderedDesk ──> Began ──> Granted, a reader at the cursor   (peer/core/desks.py proposes what it decides)
                    Asked ──> Revoked, no reader any more
                    Over  ──> Revoked (over), no reader any more

A roster is one group and topic at this peer, whatever partitions of it are led here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar, assert_never

from meshq.ids import PartitionKey, Ref, TopicId
from meshq.messages import Granted, GrantedItem, Revoked, RevokedItem
from meshq.peer.core.context import Context
from meshq.peer.core.events import FetchBatches
from meshq.streams.groups.ordered import Asked, Began, OrderedDesk, Over
from meshq.streams.groups.ordered_state import OrderedState
from meshq.streams.groups.roster import Roster
from meshq.streams.groups.table import GroupKey

STALL_S: Final = 1.0  # who did not look at the time for so long did not run, and has heard nobody
RosterKey = tuple[TopicId, str]
W = TypeVar("W", Granted, Revoked)


@dataclass
class Leases:
    """`stir(key)`: have that desk looked at in this turn."""

    ctx: Context
    stir: Callable[[GroupKey], None]
    _rosters: dict[RosterKey, Roster] = field(default_factory=dict)  # at most one a desk
    words: dict[Ref, list[Granted | Revoked]] = field(default_factory=dict)  # of this turn, in order
    _looked: float = 0.0

    def make_desk(self, key: GroupKey, state: OrderedState, end: int) -> OrderedDesk:
        topic_id = key.partition.topic_id
        roster = self._rosters.get((topic_id, key.group))
        if roster is None:
            roster = Roster(lambda: self._partitions(topic_id), self.stir)
            self._rosters[topic_id, key.group] = roster
        roster.desks[key] = None
        return OrderedDesk(state, end, self.ctx.now, key.partition.partition, roster)

    def drop(self, key: GroupKey, desk: OrderedDesk) -> None:
        desk.roster.desks.pop(key, None)
        if not desk.roster.desks:
            self._rosters.pop((key.partition.topic_id, key.group), None)

    def tick(self) -> None:
        stood_still = self.ctx.now - self._looked
        if stood_still > STALL_S:
            for roster in self._rosters.values():
                roster.on_stall(stood_still)
        self._looked = self.ctx.now

    def take_notices(self, key: GroupKey, desk: OrderedDesk) -> None:
        """What the desk has for its members: readers at once, words before this turn ends."""
        (topic_id, number), _ = key
        notices, desk.notices = desk.notices, []
        for notice in notices:
            ref = notice.member.ref
            match notice:
                case Began(_, lease, offset, attempts):
                    self.push_from(ref, key.partition, offset, desk)
                    granted = self._word(ref, Granted)
                    granted.items.append(GrantedItem(topic_id, number, lease, offset, attempts))
                case Asked(_, lease) | Over(_, lease):
                    self.ctx.deliveries.on_unread(ref, [key.partition])
                    revoked = self._word(ref, Revoked)
                    revoked.items.append(RevokedItem(topic_id, number, lease, isinstance(notice, Over)))
                case _:
                    assert_never(notice)

    def _word(self, ref: Ref, kind: type[W]) -> W:
        """The message that this goes into: the last one, if it says the same of others."""
        words = self.words.setdefault(ref, [])
        if not words or not isinstance(words[-1], kind):
            words.append(kind(ref[1], []))
        last = words[-1]
        assert isinstance(last, kind)
        return last

    def push_from(self, ref: Ref, partition: PartitionKey, offset: int, desk: OrderedDesk) -> None:
        end, low = desk.end, desk.state.low
        fetches = self.ctx.deliveries.on_read(ref, partition, position=min(offset, end), end=end, low=low)
        self.ctx.out.extend(FetchBatches(fetch) for fetch in fetches)

    def flush(self) -> None:
        """Before what readers are pushed in this turn."""
        for (session, _), words in self.words.items():
            for word in words:
                self.ctx.send(session, word)
        self.words.clear()

    def _partitions(self, topic_id: TopicId) -> int:
        info = self.ctx.topic(topic_id)
        return info.partitions if info is not None else 0
