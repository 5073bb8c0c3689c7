"""A group in one partition that is led here: what is done to it from outside.

Who asks has made sure that this peer leads the slot (group_answers.py). Changes are proposed at the group's
desk, as everything about it is; `tell` hears when they count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from meshq import errors
from meshq.errors import MeshqError, RemoteProtocolError, StoreCorrupt, Unavailable, UsageError
from meshq.ids import Slot
from meshq.levels import DEAD_LETTERS, check_in_use
from meshq.limits import GROUP_PENDING_MAX
from meshq.messages import TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.desks import Desks
from meshq.peer.core.group_facts import Facts, GroupFacts, Tell
from meshq.peer.core.lookups import Found
from meshq.peer.core.parts import Part, Refused
from meshq.peer.core.slots import Slots
from meshq.streams.applied import PartitionState
from meshq.streams.groups.letters import read_origins
from meshq.streams.groups.rewound import Rewound
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.table import AnyState, GroupKey
from meshq.streams.groups.words import Delete, Range, Redrive, Reset

REDRIVE_BYTES: Final = 1024 * 1024  # of letters that are looked at for one entry
_TO: Final = ("earliest", "latest", "offset", "time")


@dataclass
class GroupParts:
    ctx: Context
    slots: Slots
    desks: Desks
    facts: GroupFacts = field(init=False)

    def __post_init__(self) -> None:
        self.facts = GroupFacts(self.ctx, self.slots, self.desks)

    def do(self, args: Facts, info: TopicInfo, slot: Slot, key: GroupKey, tell: Tell) -> None:
        """Raises: UsageError, Unavailable."""
        if args["do"] != "show":
            check_in_use(self.ctx.registry.level, DEAD_LETTERS, "changing a group from outside")
        state = self.slots.hosts[slot].stream.groups.get(key)
        if state is None:
            tell({"partition": key.partition.partition, "there": False})
            return
        match args["do"]:
            case "show":
                self.facts.show(info, slot, key, state, tell)
            case "reset":
                self._reset(args, slot, key, tell)
            case "redrive":
                self._redrive(args, info, slot, key, state, tell)
            case "delete":
                self._delete(slot, key, state, tell)
            case what:
                raise UsageError(f"nothing that is done to groups is called {what!r}")

    # -------------------------------------------------------------------------------------- changing
    def _led_state(self, slot: Slot, key: GroupKey) -> AnyState | None:
        """After a look at the disk, which takes its time: who leads may have changed."""
        host = self.slots.hosts.get(slot)
        return host.stream.groups.get(key) if host is not None and host.leads else None

    def _part(self, slot: Slot, key: GroupKey) -> Part:
        """Raises: Unavailable."""
        part = self.desks.parts.get(key) or self.desks.begin(key, slot)
        if part.desk is None or part.ending or self.slots.hosts[slot].replica.is_handing_over:
            raise Unavailable("the group is just beginning, ending or moving here", retry_after_ms=200)
        return part

    def check_reset(self, args: Facts) -> None:
        """Raises: UsageError."""
        to, value = args.get("to"), args.get("value", 0)
        if to not in _TO or isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"`to` is one of {', '.join(_TO)}; `value` the offset, or the time in ms")

    def _reset(self, args: Facts, slot: Slot, key: GroupKey, tell: Tell) -> None:
        self.check_reset(args)
        at = self.slots.partition(slot, key.partition)
        if args["to"] == "time":
            self.ctx.lookups.seek(
                key.partition, args["value"], at.end, lambda to: self._reset_to(args, slot, key, to, tell)
            )
            return
        to: int = args.get("value", 0)
        if args["to"] != "offset":
            to = at.low if args["to"] == "earliest" else at.end
        self._reset_to(args, slot, key, min(max(to, at.low), at.end), tell)

    def _reset_to(self, args: Facts, slot: Slot, key: GroupKey, to: int, tell: Tell) -> None:
        state = self._led_state(slot, key)
        if state is None:
            tell(Unavailable("the partition has another leader now", retry_after_ms=100))
            return
        number = key.partition.partition
        facts = {"partition": number, "there": True, "to": to}
        name, since = args["name"], args["since"].get(str(number), b"")
        if args.get("dry_run") or state.reset == name:  # it was done, and its answer was lost
            tell(facts)
            return

        def judged(result: Refused | MeshqError) -> None:
            now = self._led_state(slot, key)
            if result and not isinstance(result, MeshqError) and now is not None and now.reset != since:
                text = "the group was reset by somebody else just now: look, and try again"
                result = [] if now.reset == name else errors.Refused(text)
            tell(_or_error(result, facts))

        try:
            part = self._part(slot, key)
            _check_quiet(part, state)
            self.desks.add(part, Reset(to, name, since), judged)
        except MeshqError as e:
            tell(e)

    def _delete(self, slot: Slot, key: GroupKey, state: AnyState, tell: Tell) -> None:
        members = self.facts.members(key)
        if members:  # they may have come since that was looked at, and begun it anew
            raise errors.Refused(
                f"group {key.group!r} has {members} members: close their subscriptions first"
            )
        part = self._part(slot, key)
        _check_quiet(part, state)
        facts = {"partition": key.partition.partition, "there": True}
        self.desks.add(part, Delete(), lambda result: tell(_or_error(result, facts)))
        part.ending = True

    def _redrive(
        self, args: Facts, info: TopicInfo, slot: Slot, key: GroupKey, state: AnyState, tell: Tell
    ) -> None:
        if not isinstance(state, GroupState):
            raise UsageError("a group of mode `ordered` has no dead letters")
        number = key.partition.partition
        place, dead = self.facts.letters(info, slot, key, state)
        room = GROUP_PENDING_MAX - state.pending
        wanted = min(args["wanted"].get(str(number), 0), dead)
        facts = {"partition": number, "there": True, "redriven": 0, "expired": 0, "void": 0, "left": dead}
        if place is None or not wanted or room <= 0:
            tell({**facts, "full": bool(wanted) and room <= 0})
            return
        at, since, reset = self.slots.partition(slot, place), state.redriven, state.reset
        first = max(since, at.low)

        def found(batches: Found) -> None:
            try:
                if isinstance(batches, MeshqError):
                    raise batches
                if self._led_state(slot, key) is not state:
                    raise Unavailable("the partition has another leader now", retry_after_ms=100)
                part = self._part(slot, key)
                held = self.slots.partition(slot, key.partition)
                chosen = _choose(info, number, batches, first, min(wanted, room), held, state.rewound)
                op = Redrive(since, chosen.end, chosen.ranges, reset)
                put = sum(e - s for s, e in chosen.ranges)
                left = dead - (chosen.end - first)
                facts.update(redriven=put, expired=chosen.expired, void=chosen.void, left=left)
                self.desks.add(part, op, lambda result: tell(_or_error(result, facts)))
            except MeshqError as e:
                tell(e)

        self.ctx.lookups.read(place, first, at.end, REDRIVE_BYTES, found)


class _Chosen(NamedTuple):
    """Up to which letter to go, and which records those are of. Of how many the record is not kept any more,
    and of how many it was handed out again by a reset: these stay where they are.
    """

    end: int
    ranges: tuple[Range, ...]
    expired: int
    void: int


def _choose(
    info: TopicInfo,
    number: int,
    batches: Any,
    first: int,
    count: int,
    held: PartitionState,
    rewound: Rewound,
) -> _Chosen:
    """Raises: StoreCorrupt."""
    end, offsets, expired, void = first, list[int](), 0, 0
    for batch in batches:
        if batch.base_offset > end:
            raise StoreCorrupt(f"dead letter {end} of partition {number} is not on this disk")
        try:
            origins = read_origins(batch.data)
        except RemoteProtocolError as e:
            raise StoreCorrupt(f"dead letter {end} of partition {number} cannot be read: {e}") from None
        for origin in origins[end - batch.base_offset :]:
            if end - first >= count:
                break
            if origin is None or origin[:2] != (info.name, number) or not held.low <= origin[2] < held.end:
                expired += 1
            elif rewound.covers(end, origin[2]):
                void += 1
            else:
                offsets.append(origin[2])
            end += 1
    ranges: list[Range] = []
    for offset in sorted(set(offsets)):
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + 1)
        else:
            ranges.append((offset, offset + 1))
    return _Chosen(end, tuple(ranges), expired, void)


def _check_quiet(part: Part, state: AnyState) -> None:
    """Raises: Unavailable."""
    if part.burial is not None or state.dying:
        raise Unavailable("records are on their way to the dead letters: try again", retry_after_ms=500)


def _or_error(result: Refused | MeshqError, facts: Facts) -> Facts | MeshqError:
    if isinstance(result, MeshqError):
        return result
    if result:
        return Unavailable("something else was done to it just now: look, and try again", retry_after_ms=200)
    return facts
