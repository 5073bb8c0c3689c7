"""A group in one partition that is led here: what there is to tell of it.

Nothing is kept for this: what the state says (streams/groups), who is at the desk, how old the first record
is that is not done, and how many dead letters were not put back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from meshq.errors import MeshqError
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.messages import TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.desks import Desks
from meshq.peer.core.lookups import Found
from meshq.peer.core.slots import Slots
from meshq.streams.groups.hands import Member
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.table import AnyState, GroupKey
from meshq.topics import dead_letters_of

Facts = dict[str, Any]
Tell = Callable[[Facts | MeshqError], None]
WHO_MAX: Final = 16_384  # members listed of all partitions of a topic; beyond that those with the lowest ids
WHO_EACH_MIN: Final = 16  # of each partition


@dataclass
class GroupFacts:
    ctx: Context
    slots: Slots
    desks: Desks

    def listed(self, slot: Slot) -> list[Facts]:
        """The groups of a slot, a row each partition."""
        groups, rows = self.slots.hosts[slot].stream.groups, list[Facts]()
        for key in groups:
            state, info = groups.get(key), self.ctx.topic(key.partition.topic_id)
            if state is not None and info is not None:
                end = self.slots.partition(slot, key.partition).end
                rows.append(
                    {
                        "topic": info.name,
                        "group": key.group,
                        "mode": state.mode.name.lower(),
                        "partitions": 1,
                        "members": self.members(key),
                        "lag": _lag(state, end),
                        "dead": self.letters(info, slot, key, state)[1],
                    }
                )
        return rows

    def show(self, info: TopicInfo, slot: Slot, key: GroupKey, state: AnyState, tell: Tell) -> None:
        at = self.slots.partition(slot, key.partition)
        floor = max(state.floor, at.low)
        facts: Facts = {
            "partition": key.partition.partition,
            "there": True,
            "leader": self.ctx.me.name,
            "mode": state.mode.name.lower(),
            "ack_wait_ms": state.ack_wait_ms,
            "max_deliver": state.max_deliver or None,
            "earliest": at.low,
            "end": at.end,
            "cursor": state.floor,
            "next": state.next,
            "lag": _lag(state, at.end),
            "lag_s": 0.0,
            "members": self.members(key),
            "who": self._who(key, state, info.partitions),
            "acked": state.acked,
            "dead": self.letters(info, slot, key, state)[1],
            "expired": state.expired,
            "reset": state.reset,
            **_own(state),
        }
        if floor >= at.end:
            tell(facts)
            return

        def found(batches: Found) -> None:
            """How old the first record is that is not done."""
            if isinstance(batches, MeshqError) or not batches:
                facts["lag_s"] = None
            else:
                facts["lag_s"] = max(self.ctx.wall_ms - batches[0].timestamp_ms, 0) / 1000
            tell(facts)

        self.ctx.lookups.read(key.partition, floor, at.end, 1, found)

    def members(self, key: GroupKey) -> int:
        part = self.desks.parts.get(key)
        return 0 if part is None else len(part.desk.members if part.desk else part.opening)

    def _who(self, key: GroupKey, state: AnyState, partitions: int) -> list[Facts]:
        """Its members here, and those that are not here and have something of it."""
        part = self.desks.parts.get(key)
        here = part.desk.members if part is not None and part.desk is not None else {}
        held: Counter[bytes] = Counter()
        if isinstance(state, GroupState):
            for first, end, lease in state.leased.runs():
                held[lease.member] += end - first
        elif state.holder:
            held[state.holder] = 0
        ids = sorted({*here, *held})[: max(WHO_MAX // partitions, WHO_EACH_MIN)]
        return [
            {"id": short(m), "name": self._name(here.get(m)), "leased": held[m], "here": m in here}
            for m in ids
        ]

    def _name(self, member: Member | None) -> str | None:
        """By whose credentials it is here."""
        state = self.ctx.sessions.states.get(member.ref[0]) if member is not None else None
        return state.principal.name if state is not None else None

    def letters(
        self, info: TopicInfo, slot: Slot, key: GroupKey, state: AnyState
    ) -> tuple[PartitionKey | None, int]:
        """Where its dead letters are, and how many were not put back."""
        graves = self.ctx.registry.topic(dead_letters_of(info.name, key.group))
        if graves is None or not isinstance(state, GroupState):
            return None, 0
        place = PartitionKey(TopicId(graves.topic_id), key.partition.partition)
        at = self.slots.partition(slot, place)
        return place, max(at.end - max(state.redriven, at.low), 0)


def _own(state: AnyState) -> Facts:
    """What there is of one mode only."""
    if isinstance(state, GroupState):
        return {
            "holder": None,
            "leased": state.leased.count,
            "waiting_again": state.back.count,
            "dying": state.dying.count,
            "redelivered": state.redelivered,
        }
    holder = short(state.holder) or None  # of a whole partition
    return {"holder": holder, "leased": 0, "waiting_again": 0, "dying": 0, "redelivered": 0}


def _lag(state: AnyState, end: int) -> int:
    """Records that are not done."""
    pending = state.pending if isinstance(state, GroupState) else 0
    return max(end - state.next, 0) + pending


def short(member: bytes) -> str:
    """What people see of a member's id."""
    return member[:4].hex()
