"""What is known of one subscription: the topics that match, where each partition is read, and from which
record on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Final

from meshq.client.credit import Flow
from meshq.client.facts import Group, Start
from meshq.client.pace import Pace
from meshq.messages import LATEST, OFFSET, ReadItem, TopicInfo

LEFT_AT_MAX: Final = 10_000  # the longest gone is forgotten first

PartKey = tuple[bytes, int]  # topic id, partition


@dataclass(slots=True, eq=False)
class Part:
    """One partition of a subscription. `server`: where it is read; None while it waits to be read."""

    topic: str
    topic_id: bytes
    number: int
    version: int
    start: Start
    position: int | None = None  # of the next record to hand out, once it is known
    generation: int | None = None  # of the slot, in which that was said; it only rises
    server: bytes | None = None
    started: bool = False
    attempt: int = 0
    retry_at: float = 0.0
    lease: int = 0  # of an ordered group: the partition is ours, under it
    released: int = 0  # the last one that was given back
    said: tuple[int, int] = (0, 0)  # the last one under which anything was acknowledged, and up to where
    lapses_at: float = inf  # when it is no longer ours, unless its leader says that it is

    @property
    def key(self) -> PartKey:
        return (self.topic_id, self.number)

    def item(self) -> ReadItem:
        start = self.start if self.position is None else Start(OFFSET, self.position)
        generation = None if self.position is None else self.generation
        return ReadItem(self.topic_id, self.number, self.version, start.kind, start.value, generation)


@dataclass(slots=True, eq=False)
class Subscribed:
    sub: int
    pattern: str
    start: Start
    credit_bytes: int
    credit_records: int
    ticket: int | None  # until it is ready
    later: Start  # where partitions begin that came after the first complete answer
    prefixes: tuple[str, ...] = ()  # instead of the pattern
    group: Group | None = None
    watch: int = 0  # request number at the present home; 0: to be sent
    watch_attempt: int = 0
    watch_retry_at: float = 0.0
    arriving: dict[bytes, TopicInfo] | None = None  # a complete answer, while it is not complete
    complete: bool = False
    version: int = 0  # highest that a topic of it had
    topics: dict[bytes, int] = field(default_factory=dict)  # id -> partitions
    parts: dict[PartKey, Part] = field(default_factory=dict)
    waiting: dict[PartKey, Part] = field(default_factory=dict)
    left_at: dict[PartKey, int] = field(default_factory=dict)  # positions of dropped parts; bounded
    not_started: set[PartKey] = field(default_factory=set)  # of the first complete answer
    pace: Pace | None = None  # of a queue or keyed group whose member did not say how many records
    flows: dict[bytes, Flow] = field(default_factory=dict)

    def not_latest(self, start: Start) -> Start:
        """What this start is at a leader that is not asked at once."""
        return self.later if start.kind == LATEST else start

    def add(self, info: TopicInfo) -> None:
        """A topic that matches, or more partitions of it; what was left before goes on where it was."""
        self.version = max(self.version, info.version)
        self.topics[info.topic_id] = max(info.partitions, self.topics.get(info.topic_id, 0))
        for number in range(info.partitions):
            part = self.parts.get((info.topic_id, number))
            if part is None:
                part = Part(info.name, info.topic_id, number, info.version, self.later)
                part.position = self.left_at.pop(part.key, None)
                self.parts[part.key] = self.waiting[part.key] = part
            part.version = max(part.version, info.version)

    def drop(self, part: Part) -> None:
        del self.waiting[part.key]
        del self.parts[part.key]
        self.not_started.discard(part.key)
        if part.position is not None:
            while len(self.left_at) >= LEFT_AT_MAX:
                del self.left_at[next(iter(self.left_at))]
            self.left_at[part.key] = part.position
