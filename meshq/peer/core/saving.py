"""What of a slot goes to this peer's disk, and what is trimmed from its log.

What a replica orders is written at once, because promises rest on it. State rows follow within a second: what
they miss after a crash, the log's tail says again. What rows have taken in need not stay in the log, except
for followers that lack it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshq.entries import PayloadKey
from meshq.errors import DiskFull, MeshqError
from meshq.ids import SYSTEM_SLOT, PartitionKey
from meshq.limits import LOG_BYTES_MAX, LOG_ENTRIES_KEPT, LOG_ENTRIES_MAX
from meshq.peer.core.events import DeletePayloads
from meshq.peer.core.witnessing import Kept
from meshq.replication import words
from meshq.replication.saved import hard_row, replica_row
from meshq.replication.words import GENESIS, Item, Position, Role
from meshq.streams.publish import payload_key_of, payload_of

if TYPE_CHECKING:
    from meshq.peer.core.hosts import Host
    from meshq.peer.core.slots import Slots

CHECKPOINT_S = 1.0
CHECKPOINT_ENTRIES = 1_024

Deletion = tuple[PartitionKey, int | None]  # payloads that end at or before this offset; None: all


@dataclass(slots=True)
class Saving:
    slots: Slots
    failing: dict[Host, MeshqError] = field(default_factory=dict)  # until what was under way is taken back
    refused: list[Host] = field(default_factory=list)  # of them, those of this turn that had no room
    _checkpoint_at: float = 0.0

    def on_order(self, host: Host, effect: words.Persist) -> None:
        if host in self.failing:
            return  # it hears of that first, and orders all of it anew
        items, dropped, truncate_from = effect.items, effect.dropped, effect.truncate_from
        if host.is_replaced:
            # While a snapshot takes the log's place on disk, what is said of that log is out of date.
            items, dropped, truncate_from = (), (), None
        bare = host.replica.hard.bare_until
        there = [payload_of(*i) for i in items if i.payload or i.entry.index > bare]
        payloads = tuple([p for p in there if p is not None])
        if host.replica.is_witness and sum(len(p.data) for p in payloads) > self.slots.disk.room_bytes:
            self.failing[host] = DiskFull("this witness keeps as much as it may (`witness_bytes_max`)")
            self.refused.append(host)
            return
        keys = tuple(_keys(dropped)) if dropped else ()
        clear_aside, aside = self.slots.receiving.give_up(host, keys) if keys else (None, ())
        self.slots.disk.submit(
            host.slot,
            entries=tuple([i.entry for i in items]),
            payloads=payloads,
            rows=(hard_row(effect.hard),) if effect.hard else (),
            truncate_from=truncate_from,
            dropped=keys,
            clear_aside=clear_aside,
            aside=aside,
            done=lambda: self.slots.tell(host, words.Persisted(effect.token)),
            failed=lambda error: self._on_failed(host, error),
        )

    def _on_failed(self, host: Host, error: MeshqError) -> None:
        """Once for all that a slot had under way, when everybody's has been taken back."""
        if host in self.failing:
            return
        self.failing[host] = error

        def settle() -> None:
            self.slots.tell(host, words.PersistFailed())
            del self.failing[host]

        self.slots.disk.when_settled(settle)

    def flush(self) -> None:
        refused, self.refused = self.refused, []
        for host in refused:
            del self.failing[host]
            self.slots.tell(host, words.PersistFailed())

    # ---------------------------------------------------------------------------------- state rows
    def on_applied(self, host: Host, *, now: bool) -> None:
        if now or host.stream.applied_index - host.checkpointed >= CHECKPOINT_ENTRIES:
            self.checkpoint(host)

    def tick(self) -> None:
        if self.slots.now >= self._checkpoint_at:
            self._checkpoint_at = self.slots.now + CHECKPOINT_S
            self.checkpoint_all()

    def checkpoint_all(self) -> None:
        for host in self.slots.hosts.values():
            behind = bool(host.stream.dirty) or host.stream.applied_index > host.checkpointed
            if behind or (host.replica.is_witness and Kept.trim_to(host.replica, start_of(host).index + 1)):
                self.checkpoint(host)

    def checkpoint(self, host: Host) -> None:
        if host.is_replaced or host.is_emptied:
            return
        self.slots.receiving.clean(host)
        log, applied = host.replica.log, host.stream.applied_index
        keep_from = self._trim_to(host, applied)
        before = keep_from - 1
        there = log.position(before) or Position(before, log.term_at(before) or 0, b"")
        start = there if keep_from else start_of(host)
        host.trimming = start
        deletions = self.deletions(host)
        rewrites, host.stream.rewrites = host.stream.rewrites, []
        if host.replica.is_witness:
            rewrites = []  # it keeps what somebody lacks as that was made: the entry rewrites it there
        host.rewriting += len(rewrites)
        rows = (*host.stream.take_rows(), replica_row(log, applied, host.replica.settled_config, start=start))
        host.checkpointed = applied
        witness = host.replica.is_witness
        ends = host.kept.take(host.stream) if witness else {}

        def done() -> None:
            if keep_from:
                host.replica.trim(start)
            host.rewriting -= len(rewrites)
            self.delete(host, deletions)
            if rewrites and host.leads:
                self.slots.react.on_written(host)
            if witness:
                host.kept.mark(applied, ends)
                self.slots.out += host.kept.let_go(host.replica)

        def failed(_: MeshqError) -> None:
            host.trimming = GENESIS
            host.rewriting -= len(rewrites)
            host.stream.rewrite(rewrites)
            host.stream.mark_again(key for key, _ in rows)
            host.kept.give_back(ends)

        self.slots.disk.submit(
            host.slot,
            rows=rows,
            trim_below=keep_from or None,
            done=done,
            failed=failed,
            rewritten=tuple((x.partition, x.first, x.end) for x in rewrites),
            payloads=tuple(x.payload for x in rewrites),
        )

    def deletions(self, host: Host) -> list[Deletion]:
        """Of payloads that the state is without, and that were not ordered yet. To be ordered when that state
        is on disk: a log that is read again from an older one needs them.
        """
        stream, ordered = host.stream, host.deleting
        found: list[Deletion] = [(p, None) for p in sorted(stream.dropping) if ordered.get(p, 0) is not None]
        found += [(p, low) for p, low in sorted(stream.expired.items()) if _is_more(low, ordered.get(p, 0))]
        return found

    def delete(self, host: Host, deletions: Iterable[Deletion]) -> None:
        if self.slots.hosts.get(host.slot) is not host:
            return
        for partition, below in deletions:
            host.deleting[partition] = below
            self.slots.out.append(DeletePayloads(host.slot, partition, below))

    def _trim_to(self, host: Host, applied: int) -> int:
        """The first entry to keep, or 0. Few are kept for nobody; for followers that lack them, and for one
        that a snapshot is on its way to, as many as a bound allows: beyond it they get a snapshot.
        """
        if host.slot == SYSTEM_SLOT:
            return 0  # the log is the registry
        if host.replica.is_witness:
            return Kept.trim_to(host.replica, start_of(host).index + 1)
        keep_from = applied - LOG_ENTRIES_KEPT + 1
        if host.replica.role is Role.LEADER:
            lacking = [m + 1 for m in host.replica.match().values()]
            keep_from = max(min([keep_from, *lacking]), applied - LOG_ENTRIES_MAX + 1)
        host.marks.append((applied, host.log_bytes))
        while host.marks[0][1] < host.log_bytes - LOG_BYTES_MAX:
            keep_from = max(keep_from, host.marks.popleft()[0] + 1)
        while len(host.marks) > 1 and host.marks[1][0] < keep_from:
            host.marks.popleft()
        keep_from = min(max(keep_from, host.damaged_below), applied + 1)
        return keep_from if keep_from > start_of(host).index + 1 else 0


def start_of(host: Host) -> Position:
    """Where the log begins once all that is on its way to disk is there; a slow disk has several to do."""
    return max(host.trimming, host.replica.log.start, key=lambda p: p.index)


def _is_more(below: int, ordered: int | None) -> bool:
    return ordered is not None and ordered < below


def _keys(items: Collection[Item]) -> Iterator[PayloadKey]:
    for item in items:
        key = payload_key_of(item.entry)
        if key is not None:
            yield key
