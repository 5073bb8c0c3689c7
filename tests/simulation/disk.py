"""A host's disk: what is synced, what only waits to be, and what a crash leaves of it.

Operations are done in their order. One sync takes everything that waits, whatever slot it is of. A crash
keeps a prefix of what was not synced, or none of it: a transaction is there or it is not. Beside that, bits
flip, a directory is wiped, or an old copy of it comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from meshq.entries import EntryKind
from meshq.replication.quorum import Config, decode_config
from meshq.replication.words import (
    GENESIS,
    Hard,
    Item,
    Persist,
    Position,
    SnapshotMeta,
    StoreSnapshot,
)

NEW = Hard(0, None)
NOBODY = Config(())  # what a node believes of a slot that it never heard of


class Wrong(AssertionError):
    """An invariant does not hold: the finding that all of this looks for."""


class Applied(NamedTuple):
    """What the entries up to a place add up to. `digest` stands for the state itself."""

    position: Position = GENESIS
    count: int = 0  # records: the next offset
    digest: int = 0
    timestamp_ms: int = 0


EMPTY = Applied()


class Apply(NamedTuple):
    """One transaction: the state and the index it is at."""

    applied: Applied
    config: tuple[int, Config] | None


class ApplyIndexOnly(NamedTuple):
    """What a store that keeps the two apart would write first (a mutant's)."""

    applied: Applied


class Trim(NamedTuple):
    start: Position


Op = Persist | StoreSnapshot | Apply | ApplyIndexOnly | Trim


@dataclass(slots=True)
class Image:
    """What is on disk of one slot."""

    config: tuple[int, Config] = (0, NOBODY)  # as of what is applied
    hard: Hard = NEW
    start: Position = GENESIS
    items: list[Item] = field(default_factory=list)  # behind start
    applied: Applied = EMPTY
    partial: tuple[SnapshotMeta, bytes] | None = None
    damaged: set[int] = field(default_factory=set)

    def copy(self) -> Image:
        return Image(
            self.config,
            self.hard,
            self.start,
            list(self.items),
            self.applied,
            self.partial,
            set(self.damaged),
        )

    @property
    def last_index(self) -> int:
        return self.start.index + len(self.items)

    @property
    def end(self) -> tuple[int, int]:
        """Term and index of what the log ends with."""
        return (self.items[-1].entry.term if self.items else self.start.term), self.last_index

    def position(self, index: int) -> Position:
        if index == self.start.index:
            return self.start
        entry = self.items[index - self.start.index - 1].entry
        return Position(entry.index, entry.term, entry.chain)

    def has(self, index: int, chain: bytes) -> bool:
        """Whether the entry is here, or what it led to."""
        if index <= self.applied.position.index:
            return True  # that it is the same everywhere is another invariant
        return (
            self.start.index < index <= self.last_index
            and index not in self.damaged
            and self.items[index - self.start.index - 1].entry.chain == chain
        )

    def configs(self) -> list[tuple[int, Config]]:
        """The committed one and all that were appended behind it."""
        at = self.applied.position.index
        return [self.config] + [
            (i.entry.index, decode_config(i.entry.body))
            for i in self.items[at - self.start.index :]
            if i.entry.kind is EntryKind.CONFIG
        ]

    # ------------------------------------------------------------------------------------------- writing
    def do(self, op: Op) -> None:
        kind = type(op)
        if kind is Persist:
            self._persist(op)
        elif kind is Apply:
            self._apply(op.applied)
            if op.config is not None:
                self.config = op.config
        elif kind is Trim:
            self.trim(op.start)
        elif kind is StoreSnapshot:
            self._store(op)
        else:
            self.applied = Applied(op.applied.position, *self.applied[1:])

    def _persist(self, op: Persist) -> None:
        if op.hard is not None:
            self.hard = op.hard
        if op.truncate_from is not None:
            keep = op.truncate_from - 1 - self.start.index
            if op.truncate_from <= self.applied.position.index:
                raise Wrong(f"truncated from {op.truncate_from}, applied up to {self.applied.position.index}")
            if keep < len(self.items):
                del self.items[keep:]
                self.damaged = {i for i in self.damaged if i < op.truncate_from}
        if op.items:
            if op.items[0].entry.index != self.last_index + 1:
                raise Wrong(f"a hole on disk: {op.items[0].entry.index} after {self.last_index}")
            self.items += op.items

    def _apply(self, applied: Applied) -> None:
        if applied.position.index < self.applied.position.index:
            raise Wrong(
                f"the state on disk goes back from {self.applied.position.index} to {applied.position.index}"
            )
        if applied.position.index > self.last_index:
            raise Wrong(f"applied {applied.position.index}, which is not on disk")
        self.applied = applied

    def trim(self, start: Position) -> None:
        if self.start.index < start.index <= self.applied.position.index:
            del self.items[: start.index - self.start.index]
            self.start = start
            self.damaged = {i for i in self.damaged if i > start.index}

    def _store(self, op: StoreSnapshot) -> None:
        """A piece put aside; the last one replaces everything, in the same transaction."""
        if op.position == 0:
            data = b""
        else:
            if self.partial is None or self.partial[0] != op.meta or len(self.partial[1]) != op.position:
                raise Wrong("a piece of a snapshot that does not continue what was put aside")
            data = self.partial[1]
        data += bytes(op.data)
        if not op.done:
            self.partial = (op.meta, data)
            return
        last = op.meta.last
        if last.index < self.applied.position.index:
            raise Wrong(f"a snapshot at {last.index} over a state at {self.applied.position.index}")
        self.partial = None
        self.applied = unpack_state(op.meta, data)
        self.config = (last.index, op.meta.config)
        self.start = last
        self.items.clear()
        self.damaged.clear()


def pack_state(applied: Applied) -> bytes:
    """A slot's state in bytes, padded so that it takes a few pieces."""
    head = applied.count.to_bytes(8, "big") + applied.digest.to_bytes(8, "big")
    return head + bytes(16 + applied.position.index % 64)


def unpack_state(meta: SnapshotMeta, data: bytes) -> Applied:
    if data[16:] != bytes(16 + meta.last.index % 64):
        raise Wrong("a snapshot was put together wrongly")
    count, digest = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:16], "big")
    return Applied(meta.last, count, digest, meta.timestamp_ms)


@dataclass(slots=True)
class Disk:
    """One queue for all slots. A sync covers what was there when it began."""

    images: dict[int, Image] = field(default_factory=dict)
    queue: list[tuple[float, int, Op]] = field(default_factory=list)  # (since when, slot, what)
    since: float | None = None  # when the sync that is under way began

    def write(self, now: float, slot: int, op: Op) -> bool:
        """Whether a sync begins with this."""
        self.queue.append((now, slot, op))
        if self.since is not None:
            return False
        self.since = now
        return True

    def end_sync(self, now: float) -> list[tuple[int, Op]]:
        """What is durable now. The next one, if there is more, takes all that came meanwhile."""
        done = [(slot, op) for t, slot, op in self.queue if t <= self.since]
        del self.queue[: len(done)]
        for slot, op in done:
            self.images[slot].do(op)
        self.since = now if self.queue else None
        return done

    def crash(self, keep: int) -> None:
        """All that was not synced is gone, but for the first `keep` operations of it."""
        for _, slot, op in self.queue[:keep]:
            self.images[slot].do(op)
        self.queue, self.since = [], None

    def refuse(self, slot: int) -> None:
        """No room: what waits of this slot is gone."""
        self.queue = [x for x in self.queue if x[1] != slot]

    def copy_images(self) -> dict[int, Image]:
        return {slot: image.copy() for slot, image in self.images.items()}
