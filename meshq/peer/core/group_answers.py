"""What this peer answers about groups for the partitions it leads, and does to them: `group.part`.

Nothing is said before a majority has confirmed, after it was asked, that this peer leads the slot, and what
was decided until then is applied here. What is led by somebody else by then is left to that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from meshq.errors import MeshqError, Overloaded, UsageError
from meshq.ids import SYSTEM_SLOT, PartitionKey, Session, Slot, TopicId
from meshq.limits import GROUP_QUESTIONS_MAX, PARTITIONS_MAX
from meshq.messages import Answer, Ask, TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.group_parts import GroupParts
from meshq.streams.groups.table import GroupKey

PART: Final = "group.part"  # asked of every peer: of the partitions it leads
LOOK_S: Final = 3.0
CHANGE_S: Final = 10.0
GROUPS_PAGE: Final = 1_000
NAME_BYTES: Final = 8  # of a reset
Found = dict[str, Any]  # by partition, or by slot


@dataclass(slots=True, eq=False)
class _Asked:
    """`waiting`: partitions or slots of which nothing is known yet. `done` gets what is when time is up."""

    waiting: set[Any]
    deadline: float
    done: Callable[[Found], None]
    found: Found = field(default_factory=dict)

    def tell(self, what: Any, facts: Any) -> None:
        if what in self.waiting:
            self.found[str(what)] = facts
            self.skip(what)

    def skip(self, what: Any) -> None:
        if what in self.waiting:
            self.waiting.discard(what)
            if not self.waiting:
                self.done(self.found)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A read that a majority has confirmed, of state that is not applied here yet."""

    slot: Slot
    index: int
    done: Callable[[], None]
    lost: Callable[[], None]


@dataclass
class GroupAnswers:
    ctx: Context
    parts: GroupParts
    _open: dict[_Asked, None] = field(default_factory=dict)  # GROUP_QUESTIONS_MAX; each ends by its deadline
    _waiting: list[_Waiting] = field(default_factory=list)  # as many as these ask for

    def check_room(self) -> None:
        """Raises: Overloaded."""
        if len(self._open) >= GROUP_QUESTIONS_MAX:
            raise Overloaded("as many questions about groups wait here as may", retry_after_ms=200)

    def on_part(self, session: Session, message: Ask) -> None:
        """Another peer asks. Raises: UsageError, Overloaded."""
        self.check_room()
        _check_asked(message.args)
        within_s = LOOK_S if message.args["do"] in ("show", "list") else CHANGE_S
        self.begin(message.args, lambda x: self.ctx.send(session, Answer(message.request, x)), within_s)

    def begin(self, args: dict[str, Any], done: Callable[[Found], None], within_s: float) -> None:
        slots = self.parts.slots
        by_slot: dict[Slot, list[Any]] = {}
        info = self.ctx.topic(args.get("topic_id", b""))
        if args["do"] == "list":
            listed, after = done, tuple(args["after"])
            done = lambda found: listed(page(found, after))  # noqa: E731
            by_slot = {h.slot: [h.slot] for h in slots.led() if h.slot != SYSTEM_SLOT}
        elif info is not None and info.version >= args.get("version", 0):
            for p in args.get("only") or range(info.partitions):
                slot = self.ctx.slot_of(PartitionKey(TopicId(info.topic_id), p))
                if slot in slots.hosts and slots.hosts[slot].leads:
                    by_slot.setdefault(slot, []).append(p)
        waiting = {x for xs in by_slot.values() for x in xs}
        if not waiting:
            done({})
            return

        def finished(found: Found) -> None:
            self._open.pop(part, None)
            done(found)

        part = _Asked(waiting, self.ctx.now + within_s, finished)
        self._open[part] = None
        for slot, whats in by_slot.items():

            def confirmed(slot: Slot = slot, whats: list[Any] = whats) -> None:
                for what in whats:
                    self._look(part, args, info, slot, what)

            def lost(whats: list[Any] = whats) -> None:
                for what in whats:
                    part.skip(what)

            self._confirm(slot, confirmed, lost)

    def _confirm(self, slot: Slot, done: Callable[[], None], lost: Callable[[], None]) -> None:
        """When a majority has said that this peer leads the slot, and what was decided then is applied.
        `lost`: it does not lead it (any more); whoever does answers.
        """

        def read(index: int | None) -> None:
            if index is None:
                lost()
                return
            self._waiting.append(_Waiting(slot, index, done, lost))
            self._look_at_waiting()

        try:
            self.parts.slots.read(slot, read)
        except MeshqError:
            lost()

    def _look_at_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for w in waiting:
            host = self.parts.slots.hosts.get(w.slot)
            if host is None or not host.leads:
                w.lost()
            elif host.stream.applied_index >= w.index:
                w.done()
            else:
                self._waiting.append(w)

    def _look(
        self, part: _Asked, args: dict[str, Any], info: TopicInfo | None, slot: Slot, what: Any
    ) -> None:
        def tell(facts: Any) -> None:
            if isinstance(facts, MeshqError):
                facts = {"failed": [facts.status, type(facts).__name__, str(facts)]}
            part.tell(what, facts)

        try:
            if info is None:
                tell(self.parts.facts.listed(slot))
                return
            key = GroupKey(PartitionKey(TopicId(info.topic_id), what), args["group"])
            self.parts.do(args, info, slot, key, tell)
        except MeshqError as e:
            tell(e)

    def tick(self) -> None:
        self._look_at_waiting()
        for part in [p for p in self._open if self.ctx.now >= p.deadline]:
            part.waiting.clear()
            part.done(part.found)


def _check_asked(args: dict[str, Any]) -> None:
    """Raises: UsageError."""
    after, only, wanted = args.get("after"), args.get("only", []), args.get("wanted", {})
    name, since = args.get("name", b""), args.get("since", {})
    if args.get("do") == "list":
        sound = isinstance(after, list) and [type(x) for x in after] == [str, str]
    else:
        sound = (
            [type(args.get(x)) for x in ("do", "group", "topic_id", "version")] == [str, str, bytes, int]
            and isinstance(only, list)
            and all(type(p) is int and 0 <= p < PARTITIONS_MAX for p in only)
            and isinstance(wanted, dict)
            and all(type(n) is int and n >= 0 for n in wanted.values())
            and isinstance(since, dict)
            and all(type(x) is bytes and len(x) <= NAME_BYTES for x in (name, *since.values()))
            and bool(name) == (args["do"] == "reset")
        )
    if not sound:
        raise UsageError("no peer asks for a part of a group like that")


def merge(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of one group as one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        old = found.get((row["topic"], row["group"]))
        if old is None:
            found[row["topic"], row["group"]] = dict(row)
        else:
            old["members"] = max(old["members"], row["members"])  # the same ones in every partition
            for name in ("partitions", "lag", "dead"):
                old[name] += row[name]
    return found


def page(found: dict[str, Any], after: tuple[str, ...]) -> dict[str, Any]:
    """Of what a peer has listed by slot: the first groups behind a place. `last`: there are more."""
    merged = merge(row for rows in found.values() for row in rows)
    keys = sorted(k for k in merged if k > after)
    last = list(keys[GROUPS_PAGE - 1]) if len(keys) > GROUPS_PAGE else None
    rows = [merged[k] for k in keys[:GROUPS_PAGE]]
    return {"slots": sorted(map(int, found)), "rows": rows, "last": last}
