"""What is known of one subscription: the topics that match, where each partition is read, and from which
record on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshq.client.credit import Flow
from meshq.client.facts import Start
from meshq.messages import OFFSET, ReadItem, TopicInfo

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
    server: bytes | None = None
    started: bool = False
    attempt: int = 0
    retry_at: float = 0.0

    @property
    def key(self) -> PartKey:
        return (self.topic_id, self.number)

    def item(self) -> ReadItem:
        start = self.start if self.position is None else Start(OFFSET, self.position)
        return ReadItem(self.topic_id, self.number, self.version, start.kind, start.value)


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
    watch: int = 0  # request number at the present home; 0: to be sent
    watch_attempt: int = 0
    watch_retry_at: float = 0.0
    arriving: dict[bytes, TopicInfo] | None = None  # a complete answer, while it is not complete
    complete: bool = False
    topics: dict[bytes, int] = field(default_factory=dict)  # id -> partitions
    version: int = 0  # of the newest topic heard of
    parts: dict[PartKey, Part] = field(default_factory=dict)
    waiting: dict[PartKey, Part] = field(default_factory=dict)
    not_started: set[PartKey] = field(default_factory=set)  # of the first complete answer
    flows: dict[bytes, Flow] = field(default_factory=dict)
