"""Topics of the registry: what there is by id and by name, and what is made, changed and deleted.

A proposal is repeated when its answer was lost. So a topic has an id that who proposes it draws, a change has
one too, and what was made or deleted under them is known for a while. Dead letters of a group are a topic of
their own, in the slot of the one that they are of, and go with it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from msgspec.structs import replace

from meshq.errors import Overloaded, Refused, TopicExists, TopicGone, UsageError
from meshq.ids import TopicId
from meshq.limits import DEAD_LETTER_TOPICS_MAX, TOPICS_MAX
from meshq.messages import Retain, TopicInfo
from meshq.registry.commands import AnyCommand, CreateTopic, DeleteTopic, SetTopic
from meshq.registry.facts import Change, TopicChanged, TopicRemoved
from meshq.ring import slot_of
from meshq.topics import check_topic, dead_letters_of, source_of

SET_MAX = 4_096  # changes of topics' settings that are not made twice; as many wait at most at a few peers
DELETED_MAX = 65_536  # topics' ids that are not made again; a proposal is repeated within seconds


@dataclass
class Topics:
    slots: int
    by_id: dict[TopicId, TopicInfo] = field(default_factory=dict)
    by_name: dict[str, TopicInfo] = field(default_factory=dict)
    _graves: Counter[str] = field(
        default_factory=Counter
    )  # by topic: how many have dead letters of its groups
    _names: list[str] = field(default_factory=list)  # sorted, for listing in pages
    _set: dict[bytes, int] = field(default_factory=dict)  # changes and when; the newest ones, SET_MAX
    _deleted: dict[TopicId, None] = field(default_factory=dict)  # the newest ones, DELETED_MAX

    def names(self, after: str = "", *, from_name: str = "") -> Iterator[str]:
        """Topic names in order: behind `after`, or beginning with what `from_name` begins with."""
        start = bisect_left(self._names, after or from_name.rstrip("."))
        if after and start < len(self._names) and self._names[start] == after:
            start += 1
        for i in range(start, len(self._names)):
            yield self._names[i]

    def made_at(self, command: AnyCommand) -> int | None:
        """The index at which this very topic is as it was last set, or at which this very change was made:
        its proposal came before, and its answer was lost. Its id says so, because whoever proposes it draws
        one.
        """
        if isinstance(command, SetTopic):
            return self._set.get(command.change)
        if not isinstance(command, CreateTopic):
            return None
        info = self.by_id.get(TopicId(command.topic_id))
        return info.version if info is not None and info.name == command.name else None

    def check_create(self, command: CreateTopic) -> None:
        check_topic(command.name)
        if command.name in self.by_name:
            raise TopicExists(f"topic {command.name!r} exists already")
        self._check_dead_letters(command)
        if len(self.by_id) >= TOPICS_MAX:
            raise Overloaded(f"the mesh has {TOPICS_MAX} topics, which is its limit")
        if TopicId(command.topic_id) in self.by_id:
            raise UsageError("that topic id is in use")
        if TopicId(command.topic_id) in self._deleted:
            raise TopicGone(f"topic {command.name!r} was deleted as it was made")

    def _check_dead_letters(self, command: CreateTopic) -> None:
        """A record and its dead letter have to be in one slot."""
        source = source_of(command.name)
        if source is None:
            return
        of = self.by_name.get(source[0])
        if of is None or self._start(of.topic_id) != self._start(command.topic_id):
            raise Refused(
                f"topic {command.name!r} would be the dead letters of group {source[1]!r}: the mesh makes it "
                "when there are some"
            )
        self.check_graves(*source)

    def check_graves(self, topic: str, group: str) -> None:
        """Raises: Overloaded where this group cannot have dead letters, for enough others have."""
        if dead_letters_of(topic, group) in self.by_name:
            return
        if self._graves[topic] >= DEAD_LETTER_TOPICS_MAX:
            raise Overloaded(
                f"{DEAD_LETTER_TOPICS_MAX} groups on topic {topic!r} have dead letters, which is the limit: "
                f"delete one of them (`meshq group delete`), or the letters of one (`meshq topic delete`)",
                retry_after_ms=1_000,
            )

    def _start(self, topic_id: bytes) -> int:
        return slot_of(TopicId(topic_id), 0, self.slots)

    def create(self, command: CreateTopic, index: int) -> list[Change]:
        if self.made_at(command) is not None:
            return []
        self.check_create(command)
        topic_id = TopicId(command.topic_id)
        info = TopicInfo(
            command.name, topic_id, command.partitions, index, command.record_bytes_max, command.copies_min,
            command.retain,
        )  # fmt: skip
        insort(self._names, command.name)
        if (source := source_of(command.name)) is not None:
            self._graves[source[0]] += 1
        return [self._keep(info)]

    def check_set(self, command: SetTopic) -> TopicInfo:
        old = self.existing(command.topic_id)
        if command.partitions is not None and command.partitions < old.partitions:
            raise UsageError(f"topic {old.name!r} has {old.partitions} partitions; they can only grow")
        return old

    def change(self, command: SetTopic, index: int) -> list[Change]:
        if self.made_at(command) is not None:
            return []
        old = self.check_set(command)
        self._note_set(command.change, index)
        partitions = command.partitions or old.partitions
        size = command.record_bytes_max or old.record_bytes_max
        copies = command.copies_min or old.copies_min
        retain = _retained(old.retain, command)
        return [self._keep(TopicInfo(old.name, old.topic_id, partitions, index, size, copies, retain))]

    def _note_set(self, change: bytes, index: int) -> None:
        if change:
            self._set[change] = index
            if len(self._set) > SET_MAX:
                del self._set[next(iter(self._set))]

    def delete(self, command: DeleteTopic) -> list[Change]:
        """With the dead letters of its groups."""
        gone, found = [self.existing(command.topic_id)], 0
        while found < len(gone):
            gone += self._dead_letters(gone[found].name)
            found += 1
        for info in gone:
            if len(self._deleted) >= DELETED_MAX:
                del self._deleted[next(iter(self._deleted))]
            self._deleted[TopicId(info.topic_id)] = None
            del self.by_id[TopicId(info.topic_id)]
            del self.by_name[info.name]
            if (source := source_of(info.name)) is not None:
                self._graves[source[0]] -= 1
                if not self._graves[source[0]]:
                    del self._graves[source[0]]
            del self._names[bisect_left(self._names, info.name)]
        return [TopicRemoved(info) for info in gone]

    def _dead_letters(self, name: str) -> list[TopicInfo]:
        names = takewhile(lambda n: n < "_dead/", self.names(from_name="_dead."))  # "/" comes behind "."
        return [self.by_name[n] for n in names if (source := source_of(n)) and source[0] == name]

    def existing(self, topic_id: bytes) -> TopicInfo:
        info = self.by_id.get(TopicId(topic_id))
        if info is None:
            raise TopicGone("that topic does not exist (any more)")
        return info

    def _keep(self, info: TopicInfo) -> TopicChanged:
        self.by_id[TopicId(info.topic_id)] = info
        self.by_name[info.name] = info
        return TopicChanged(info)


def _retained(old: Retain, command: SetTopic) -> Retain:
    """With what the command names."""
    named = {
        "age_ms": command.retain_age_ms,
        "bytes": command.retain_bytes,
        "records": command.retain_records,
        "compact": command.compact,
        "tombstone_age_ms": command.tombstone_age_ms,
    }
    return replace(old, **{name: value for name, value in named.items() if value is not None})
