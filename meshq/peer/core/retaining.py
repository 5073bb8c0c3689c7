"""Retention in the slots led here: whether records have expired is looked at, decided, and logged.

    a commit, a new setting, a new leader, the time ──> look ──> SurveyBatches ──> cut ──> RETAIN entry
                                                         ^──────────── applied ────────────┘

One look at a partition is under way at a time, and it takes no more than its oldest SURVEY_COUNT batches: one
that has much too much is cut in slices, and between them everything else goes on. What costs nothing to see
(bytes, count) is seen at each commit; for age the oldest batch says when to look again.

After `meshq recover` a copy may lead that never had the entry which said that a partition begins later, and
yet was sent what comes before it empty, since that had expired. So whoever leads a slot that was recovered
looks at where its partitions begin, and says it again.

What an entry does, on every replica, is in streams/slot.py; payloads go once that is on disk (saving.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from meshq.entries import EntryKind, Mark
from meshq.errors import NotOwner
from meshq.ids import PartitionKey, TopicId
from meshq.messages import Retain, TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.events import BatchesSurveyed, SurveyBatches
from meshq.peer.core.hosts import Host
from meshq.peer.core.slots import Slots
from meshq.streams.applied import EMPTY, PartitionState, Retained
from meshq.streams.retention import Cut, RetainBody, cut, due_ms, empty_before, encode_retain, exceeds

LOOK_S: Final = 0.2  # between looks at a partition that keeps having too much
LOOKS_MAX: Final = 64  # in one go; the others are next
SURVEY_COUNT: Final = 1_024  # batches: about two milliseconds of reading
DOUBTED_COUNT: Final = 64  # batches, where only the beginning is looked for
DOUBT_MS: Final = 10_000  # after this the clock is asked again whether it can be trusted


@dataclass(slots=True)
class _Look:
    """`asked`: what there is, from this offset on. `proposed`: an entry is on its way."""

    asked: int | None = None
    proposed: bool = False


@dataclass
class Retaining:
    ctx: Context
    slots: Slots
    is_rewritten: Callable[[PartitionKey], bool] = lambda _: False  # compaction has proposed something of it
    _looks: dict[PartitionKey, _Look] = field(default_factory=dict)  # under way; partitions led here
    _blocked: dict[PartitionKey, None] = field(default_factory=dict)  # of `_stirred`
    _stirred: dict[PartitionKey, None] = field(default_factory=dict)  # to be looked at
    _due: list[tuple[int, PartitionKey]] = field(default_factory=list)  # a heap, one each of `_aging`
    _aging: set[PartitionKey] = field(default_factory=set)
    _next_look: float = 0.0

    def is_looking(self, partition: PartitionKey) -> bool:
        """Or waits for that."""
        return partition in self._looks or partition in self._blocked

    # -------------------------------------------------------------------------------- what happens
    def on_stored(self, partition: PartitionKey) -> None:
        """A batch was committed."""
        retain = self._retain(partition)
        if retain is None:
            return
        state = self.slots.partition(self.ctx.slot_of(partition), partition)
        if (retain.age_ms and partition not in self._aging) or _has_too_much(retain, state):
            self._stirred[partition] = None

    def on_role(self, host: Host) -> None:
        if not host.leads:
            return
        if host.stream.generation:
            host.doubted = {p for p, state in host.stream.partitions.items() if state.low < state.end}
        found = (p for p in host.stream.partitions if p in host.doubted or self._retain(p))
        self._stirred.update((p, None) for p in found)

    def on_topic(self, info: TopicInfo) -> None:
        """It is new, or has other settings."""
        partitions = [PartitionKey(TopicId(info.topic_id), number) for number in range(info.partitions)]
        self._wait_no_more({p for p in partitions if p in self._aging})
        for partition in partitions:
            if self._led(partition) is not None and self._retain(partition):
                self._stirred[partition] = None

    def on_topic_gone(self, topic_id: TopicId) -> None:
        for partition in [p for p in self._looks if p.topic_id == topic_id]:
            del self._looks[partition]
        self._wait_no_more({p for p in self._aging if p.topic_id == topic_id})

    def on_retained(self, retained: Retained) -> None:
        self.ctx.count("retain_entries")
        self.ctx.count("records_expired", retained.low - retained.first)
        if self._looks.pop(retained.partition, None) is not None:
            self._stirred[retained.partition] = None

    def on_lost(self, host: Host) -> None:
        """What was proposed may not be decided."""
        for partition in [p for p in self._looks if self.ctx.slot_of(p) == host.slot]:
            del self._looks[partition]
            self._stirred[partition] = None

    # ------------------------------------------------------------------------------------- looking
    def tick(self) -> None:
        if self.ctx.now < self._next_look:
            return
        self._next_look = self.ctx.now + LOOK_S
        while self._due and self._due[0][0] <= self.ctx.wall_ms:
            _, partition = heapq.heappop(self._due)
            self._aging.discard(partition)
            self._stirred[partition] = None
        for partition in list(self._stirred)[:LOOKS_MAX]:
            del self._stirred[partition]
            self._look(partition)

    def _look(self, partition: PartitionKey) -> None:
        host, retain = self._led(partition), self._retain(partition)
        doubted = host is not None and partition in host.doubted
        if host is None or not (retain or doubted) or partition in self._looks:
            self._blocked.pop(partition, None)
            return
        if host.rewriting or host.stream.rewrites or self.is_rewritten(partition):
            # What is stored is not what the state says just now. Compaction lets this go first next time.
            self._stirred[partition] = self._blocked[partition] = None
            return
        self._blocked.pop(partition, None)
        state = host.stream.partitions.get(partition, EMPTY)
        if doubted or (retain and self._may_expire(partition, retain, state)):
            self._looks[partition] = _Look(state.low)
            count = SURVEY_COUNT if retain else DOUBTED_COUNT
            self.ctx.out.append(SurveyBatches(host.slot, partition, state.low, count))

    def _may_expire(self, partition: PartitionKey, retain: Retain, state: PartitionState) -> bool:
        aged = retain.age_ms > 0 and partition not in self._aging and state.low < state.end
        return aged or _has_too_much(retain, state)

    def on_surveyed(self, event: BatchesSurveyed) -> None:
        partition, look = event.partition, self._looks.get(event.partition)
        if look is None or look.asked != event.offset:
            return
        del self._looks[partition]
        host, retain = self._led(partition), self._retain(partition)
        state = host.stream.partitions.get(partition) if host is not None else None
        if host is None or state is None or state.low != event.offset:
            return  # not led here any more: whoever is to decide looks again
        found = None
        if partition in host.doubted:
            found = empty_before(event.marks, low=state.low, end=state.end, size=state.bytes)
        if found is None:
            host.doubted.discard(partition)
            found = self._cut(partition, retain, state, event.marks) if retain else None
        if found is None:
            return
        body = RetainBody(*partition, state.low, found.low, found.size)
        try:
            self.slots.append(host.slot, EntryKind.RETAIN, encode_retain(body))
        except NotOwner:  # it hands over: the next leader will, or this one again
            self._stirred[partition] = None
        else:
            self._looks[partition] = _Look(proposed=True)

    def _cut(
        self, partition: PartitionKey, retain: Retain, state: PartitionState, marks: Sequence[Mark]
    ) -> Cut | None:
        trusted = self.ctx.clock_trusted()
        now_ms = self.ctx.wall_ms if trusted else None
        found = cut(retain, marks, low=state.low, end=state.end, size=state.bytes, now_ms=now_ms)
        if found is None:
            self._wait(partition, retain, marks, trusted=trusted)
        return found

    def _wait(self, partition: PartitionKey, retain: Retain, marks: Sequence[Mark], *, trusted: bool) -> None:
        """Nothing has expired yet: until the oldest batch does."""
        due = due_ms(retain, marks[0]) if marks else None
        if due is not None and partition not in self._aging:
            if not trusted:
                due = max(due, self.ctx.wall_ms + DOUBT_MS)
            self._aging.add(partition)
            heapq.heappush(self._due, (due, partition))

    def _wait_no_more(self, partitions: set[PartitionKey]) -> None:
        """When their batches will be too old is to be found out anew, if at all."""
        if partitions:
            self._aging -= partitions
            self._due = [x for x in self._due if x[1] not in partitions]
            heapq.heapify(self._due)

    # --------------------------------------------------------------------------------------- facts
    def _retain(self, partition: PartitionKey) -> Retain | None:
        """What is kept of it; None: everything."""
        info = self.ctx.topic(partition.topic_id)
        retain = info.retain if info is not None else None
        return retain if retain and (retain.age_ms or retain.bytes or retain.records) else None

    def _led(self, partition: PartitionKey) -> Host | None:
        host = self.slots.hosts.get(self.ctx.slot_of(partition))
        return host if host is not None and host.leads else None


def _has_too_much(retain: Retain, state: PartitionState) -> bool:
    return exceeds(retain, low=state.low, end=state.end, size=state.bytes)
