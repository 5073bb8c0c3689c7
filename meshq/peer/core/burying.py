"""Dead letters of the groups led here: what is dying is read, written as letters, and moved by one entry.

    dying ──> the dead-letter topic is there ──> read from disk ──> DEAD_LETTER entry ──> applied: buried
                 └─ no: it is made ──┘

One burial of a group and partition is under way at a time, whatever becomes of the desk there: one that is
proposed is remembered until it is applied, or the slot is lost. Nothing but its entry ends a record that is
dying, so what was read still holds when it is proposed, and when it is applied (that a record expired
meanwhile is said behind that); a new leader begins anew with what its state says. What cannot be done (the
registry has no majority, the disk is full) is tried again: meanwhile the records wait, and count as handed
out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from meshq.errors import MeshqError, Overloaded, StoreCorrupt, Unavailable
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.messages import TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.desks import Desks
from meshq.peer.core.lookups import Found
from meshq.peer.core.parts import Burial, Part
from meshq.peer.core.slots import Slots
from meshq.registry.commands import AnyCommand, CreateTopic, SetTopic
from meshq.ring import slot_of
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.letters import LETTERS_BYTES, write_letters
from meshq.streams.groups.table import GroupKey
from meshq.streams.groups.words import Bury, GroupBody, Lapse
from meshq.topics import dead_letters_of

AGAIN_S: Final = 1.0
FULL_S: Final = 60.0  # the topic has dead letters of as many groups as may be, until somebody deletes some


@dataclass
class Burying:
    """`propose`: a change of the registry. `check_copies`: whether enough peers would have what is stored."""

    ctx: Context
    slots: Slots
    desks: Desks
    propose: Callable[[AnyCommand, Callable[[int | MeshqError], None]], None] = field(init=False)
    check_copies: Callable[[Slot, TopicInfo], None] = field(init=False)
    _making: dict[str, None] = field(default_factory=dict)  # topics on their way into the registry

    def __post_init__(self) -> None:
        self.desks.bury = self.look

    def on_led(self, slot: Slot) -> None:
        """What a leader before had under way of this slot."""
        for key in self.slots.hosts[slot].stream.groups:
            self.go_on(key, slot)

    def go_on(self, key: GroupKey, slot: Slot) -> None:
        """What is dying there is moved, although nobody is at the desk."""
        host = self.slots.hosts[slot]
        state = host.stream.groups.get(key)
        if host.leads and state is not None and state.dying and key not in self.desks.parts:
            self.desks.begin(key, slot)

    def look(self, part: Part) -> None:
        """In each turn that something happened to this group."""
        desk = part.desk
        if not isinstance(desk, QueueDesk) or not desk.state.dying or part.burial is not None:
            return
        if part.ending or self.ctx.now < part.bury_at:
            return
        first = desk.state.dying.first
        assert first is not None
        if first < desk.state.low:  # it has expired: that is said first, and then the others are moved
            if part.lapsed < desk.state.low:
                part.lapsed = desk.state.low
                self.desks.add(part, Lapse())
            return
        source = self.ctx.topic(part.key.partition.topic_id)
        try:
            graves = self._graves(part, source) if source is not None else None
        except Overloaded:
            self.ctx.count("burials_Overloaded")
            part.bury_at = self.ctx.now + FULL_S
            return
        if source is None or graves is None:
            part.bury_at = self.ctx.now + AGAIN_S
            return
        burial = part.burial = Burial(part.slot)

        def read(found: Found) -> None:
            if part.burial is burial:
                self._bury(part, burial, source, graves, found)

        self.ctx.lookups.read(part.key.partition, first, desk.end, LETTERS_BYTES, read)

    def _bury(self, part: Part, burial: Burial, source: TopicInfo, graves: TopicInfo, found: Found) -> None:
        topic_id, number = part.key.partition
        try:
            if isinstance(found, MeshqError):
                raise found
            assert isinstance(part.desk, QueueDesk)
            if part.ending:
                raise Unavailable("the group is being deleted")
            letters = write_letters(source.name, number, part.key.group, part.desk.state.dying, found)
            if letters is None:
                raise StoreCorrupt(f"what is dying in partition {number} is not on this disk")
            moved = GroupBody(topic_id, number, part.key.group, (Bury(letters.ranges),))
            if self.ctx.topic(graves.topic_id) is None:
                raise StoreCorrupt("the dead-letter topic was deleted meanwhile")
            place = PartitionKey(TopicId(graves.topic_id), number)
            self.check_copies(part.slot, source)
            burial.index = self.slots.bury(part.slot, place, letters, moved)
            self.desks.burials[part.key] = burial
        except MeshqError as e:
            self.ctx.count(f"burials_{type(e).__name__}")
            part.burial, part.bury_at = None, self.ctx.now + AGAIN_S
            self.desks.stir(part.key)
        else:
            self.ctx.count("dead_letters", letters.count)

    # ------------------------------------------------------------------------------- where they go
    def _graves(self, part: Part, source: TopicInfo) -> TopicInfo | None:
        """The dead-letter topic, if it is there with that partition. Else it is made. Raises: Overloaded."""
        name = dead_letters_of(source.name, part.key.group)
        info = self.ctx.registry.topic(name)
        if info is None:
            self.ctx.registry.check_graves(source.name, part.key.group)
            slots = self.ctx.registry.slots
            topic_id = draw_id(TopicId(source.topic_id), slots, self.ctx.random_id)
            size, copies = source.record_bytes_max, source.copies_min
            self._make(part, name, CreateTopic(name, topic_id, source.partitions, size, copies))
        elif info.partitions <= part.key.partition.partition:
            self._make(part, name, SetTopic(info.topic_id, source.partitions))
        else:
            return info
        return None

    def _make(self, part: Part, name: str, command: AnyCommand) -> None:
        if name in self._making:
            return
        self._making[name] = None

        def done(_: int | MeshqError) -> None:
            del self._making[name]
            info = self.ctx.registry.topic(name)
            for other in list(self.desks.parts.values()):
                source = self.ctx.topic(other.key.partition.topic_id)
                if info is not None and source is not None and other.key.group == part.key.group:
                    other.bury_at = 0.0
                    self.desks.stir(other.key)

        self.propose(command, done)


def draw_id(source: TopicId, slots: int, draw: Callable[[], bytes]) -> TopicId:
    """A topic id that the ring lays where it lays the source: on average one in `slots` is."""
    wanted, prefix, n = slot_of(source, 0, slots), draw()[:12], 0
    while slot_of(TopicId(prefix + n.to_bytes(4, "big")), 0, slots) != wanted:
        n += 1
    return TopicId(prefix + n.to_bytes(4, "big"))
