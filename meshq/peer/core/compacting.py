"""Compaction in the slots led here: one partition of this peer at a time, slice by slice.

    enough is dirty ──> learn its keys ──> read a slice ──> COMPACT entry ──> applied ──> written ──┐
                                             ^──────────────────────────────────────────────────────┘

What a pass decides is in streams/compaction.py. Nothing here outlives the leader: the next one begins a pass
anew, and what was done is done. A slice is read only when the one before is on this disk, and while retention
looks at the partition nothing is proposed: what either says of bytes has to be true when it is applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from meshq.entries import EntryKind, StoredBatch
from meshq.errors import MeshqError, NotOwner, RemoteProtocolError, TooLarge
from meshq.ids import PartitionKey, TopicId
from meshq.limits import KIB, MIB
from meshq.messages import Retain, TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host
from meshq.peer.core.lookups import Found
from meshq.peer.core.slots import Slots
from meshq.streams.applied import Compacted, PartitionState
from meshq.streams.compaction import (
    SLICE_BYTES,
    CompactBody,
    Latest,
    compact,
    encode_compact,
    slice_of,
)

DIRTY_BYTES_MIN: Final = 256 * KIB  # less is not worth a pass, unless it has waited for long
DIRTY_S: Final = 600.0  # so long
LEARN_BYTES: Final = MIB  # read at a time while keys are learned
LOOK_S: Final = 1.0  # between looks for what has waited for long


@dataclass(slots=True, eq=False)
class _Pass:
    partition: PartitionKey
    host: Host
    latest: Latest
    tombstones_before_ms: int | None
    upto: int = 0  # what was learned goes so far; 0: it is being learned
    at: int = 0  # the next slice begins here
    asked: bool = False  # batches are being read
    proposed: bool = False


@dataclass
class Compacting:
    """`is_looked_at(partition)`: retention is about to say something of it."""

    ctx: Context
    slots: Slots
    is_looked_at: Callable[[PartitionKey], bool]
    _pass: _Pass | None = None
    _waiting: dict[PartitionKey, None] = field(default_factory=dict)  # dirty enough; partitions led here
    _since: dict[PartitionKey, float] = field(default_factory=dict)  # dirty; compacted topics led here
    _next_look: float = 0.0

    # -------------------------------------------------------------------------------- what happens
    def on_stored(self, partition: PartitionKey) -> None:
        if self._retain(partition) is None:
            return
        self._since.setdefault(partition, self.ctx.now)
        state = self.slots.partition(self.ctx.slot_of(partition), partition)
        if _is_dirty(state):
            self._waiting[partition] = None

    def on_role(self, host: Host) -> None:
        if host.leads:
            for partition, state in host.stream.partitions.items():
                if self._retain(partition) is not None and state.clean < state.end:
                    self._since.setdefault(partition, self.ctx.now)
        else:
            self.on_lost(host)

    def on_topic(self, info: TopicInfo) -> None:
        """It is new, or has other settings."""
        for number in range(info.partitions):
            partition = PartitionKey(TopicId(info.topic_id), number)
            host = self._led(partition)
            if host is not None and partition in host.stream.partitions:
                self.on_stored(partition)

    def on_topic_gone(self, topic_id: TopicId) -> None:
        for partition in [p for p in self._since if p.topic_id == topic_id]:
            self._forget(partition)
        if self._pass is not None and self._pass.partition.topic_id == topic_id:
            self._pass = None

    def on_lost(self, host: Host) -> None:
        """What was proposed may not be decided, or it is led elsewhere."""
        if self._pass is not None and self._pass.host.slot == host.slot:
            self._again(self._pass)

    def on_compacted(self, applied: Compacted) -> None:
        self.ctx.count("slices_compacted")
        now = self._pass
        if now is not None and now.proposed and now.partition == applied.partition:
            now.proposed, now.at = False, max(now.at, applied.end)
            if now.at >= now.upto:
                self._end(now)

    def on_written(self, host: Host) -> None:
        """What was applied is on disk."""
        if self._pass is not None and self._pass.host is host:
            self._go_on(self._pass)

    def is_busy(self, partition: PartitionKey) -> bool:
        """Whether an entry that changes its bytes is on its way."""
        return self._pass is not None and self._pass.partition == partition and self._pass.proposed

    # --------------------------------------------------------------------------------------- passes
    def tick(self) -> None:
        if self.ctx.now >= self._next_look:
            self._next_look = self.ctx.now + LOOK_S
            late = self.ctx.now - DIRTY_S
            self._waiting.update((p, None) for p, since in self._since.items() if since <= late)
        if self._pass is not None:
            self._go_on(self._pass)
        while self._pass is None and self._waiting:
            partition = next(iter(self._waiting))
            del self._waiting[partition]
            self._begin(partition)

    def _begin(self, partition: PartitionKey) -> None:
        host, retain = self._led(partition), self._retain(partition)
        state = host.stream.partitions.get(partition) if host is not None else None
        if host is None or retain is None or state is None or state.clean >= state.end:
            self._forget(partition)
            return
        before_ms = self.ctx.wall_ms - retain.tombstone_age_ms if self.ctx.clock_trusted() else None
        start = max(state.clean, state.low)
        self._pass = _Pass(partition, host, Latest(start), before_ms)
        self._since.pop(partition, None)
        self._go_on(self._pass)

    def _go_on(self, now: _Pass) -> None:
        """Read what comes next, if nothing is under way."""
        if now.asked or now.proposed or now.host.rewriting or now.host.stream.rewrites:
            return
        state = now.host.stream.partitions.get(now.partition)
        if state is None or self._led(now.partition) is not now.host:
            self._again(now)
            return
        start, end, size = max(now.latest.end, state.low), state.end, LEARN_BYTES
        if now.upto:
            start, end, size = max(now.at, state.low), now.upto, SLICE_BYTES
        if start >= end:  # all that it was about has expired
            self._end(now)
            return
        now.asked = True
        self.ctx.lookups.read(now.partition, start, end, size, lambda found: self._on_read(now, found))

    def _on_read(self, now: _Pass, found: Found) -> None:
        if self._pass is not now:
            return
        now.asked = False
        state = now.host.stream.partitions.get(now.partition)
        if isinstance(found, MeshqError) or not found or state is None:
            self._again(now)
            return
        try:
            if now.upto:
                self._on_slice(now, state, list(found))
            else:
                self._on_dirty(now, state, list(found))
        except (RemoteProtocolError, NotOwner, TooLarge):
            self.ctx.count("compactions_failed")
            self._again(now)

    def _on_dirty(self, now: _Pass, state: PartitionState, found: list[StoredBatch]) -> None:
        for batch in found:
            if not now.latest.full:
                now.latest.learn(batch)
        if now.latest.full or now.latest.end >= state.end:
            now.upto, now.at = now.latest.end, state.low
        self._go_on(now)

    def _on_slice(self, now: _Pass, state: PartitionState, found: list[StoredBatch]) -> None:
        taken, made = list[StoredBatch](), None
        if found[0].base_offset < state.low:  # its first records have expired, and the others keep it
            now.at = found[0].base_offset + found[0].count
        else:
            taken = slice_of(found, now.upto)
            if not taken:
                raise RemoteProtocolError("a batch that goes on behind what was learned")
            made = compact(taken, now.latest.offsets, tombstones_before_ms=now.tombstones_before_ms)
            now.at = taken[-1].base_offset + taken[-1].count
        over = now.at >= now.upto
        if made is None and not over:
            self._go_on(now)
        elif self.is_looked_at(now.partition):
            now.at = taken[0].base_offset if taken else state.low  # read again at the next tick
        else:
            clean = now.upto if over else 0
            first, count, at_ms, freed, data = now.at, 0, state.timestamp_ms, 0, b""
            if made is not None:
                first, count, at_ms = made.first, made.end - made.first, made.timestamp_ms
                freed, data = made.freed, made.data
            body = CompactBody(*now.partition, first, count, at_ms, freed, clean, data)
            self.slots.append(now.host.slot, EntryKind.COMPACT, encode_compact(body))
            now.proposed = True

    def _end(self, now: _Pass) -> None:
        self.ctx.count("compactions")
        self._pass = None
        if now.latest.full:
            self._waiting[now.partition] = None  # there may be keys that it did not look for

    def _again(self, now: _Pass) -> None:
        """From the beginning, if it is led here at all."""
        self._pass = None
        if self._led(now.partition) is not None:
            self._since.setdefault(now.partition, self.ctx.now)

    def _forget(self, partition: PartitionKey) -> None:
        self._waiting.pop(partition, None)
        self._since.pop(partition, None)

    # --------------------------------------------------------------------------------------- facts
    def _retain(self, partition: PartitionKey) -> Retain | None:
        info = self.ctx.topic(partition.topic_id)
        return info.retain if info is not None and info.retain.compact else None

    def _led(self, partition: PartitionKey) -> Host | None:
        host = self.slots.hosts.get(self.ctx.slot_of(partition))
        return host if host is not None and host.leads else None


def _is_dirty(state: PartitionState) -> bool:
    """Whether at least half of it came since the last pass."""
    return state.bytes - state.clean_bytes >= max(state.clean_bytes, DIRTY_BYTES_MIN)
