"""A slot as this peer holds it: its replica, its stream, and what is known of both.

A slot begins with the configuration that genesis gives it, the same on every peer. A peer that is not in it
has no replica until a leader writes to it. After a restart it is what the disk has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from meshq.entries import PayloadKey
from meshq.errors import StoreCorrupt
from meshq.ids import SYSTEM_SLOT, PartitionKey, Slot
from meshq.limits import REPLICA_MEMORY_BYTES
from meshq.peer.core.receiving import Incoming
from meshq.peer.core.witnessing import Kept
from meshq.replication.machine import Replica
from meshq.replication.quorum import Config
from meshq.replication.saved import restored
from meshq.replication.settings import Settings
from meshq.replication.words import GENESIS, Item, Position
from meshq.streams.slot import SlotStream

if TYPE_CHECKING:
    from meshq.peer.core.slots import Slots

REPLICA = Settings(memory_bytes=REPLICA_MEMORY_BYTES)


@dataclass(frozen=True, slots=True)
class Tail:
    """Entries behind a slot's state, dense and sound. `damage`: why there are no more, although the log goes
    on to `last_index`; `lost` is where payloads of what is behind the damage are.
    """

    items: Sequence[Item] = ()
    last_index: int = 0
    damage: StoreCorrupt | None = None
    lost: tuple[PayloadKey, ...] = ()


@dataclass(slots=True, eq=False)
class Host:
    """`leads`: it serves as the slot's leader, and its stream knows all that was decided before."""

    slot: Slot
    replica: Replica
    stream: SlotStream
    checkpointed: int = 0  # applied index of the last rows handed to the disk
    leads: bool = False
    wake: float = inf
    incoming: Incoming | None = None  # a snapshot on its way here
    touched: dict[PartitionKey, int] = field(default_factory=dict)  # up to where snapshots brought batches
    marks: deque[tuple[int, int]] = field(default_factory=deque)  # (applied index, log bytes up to it)
    log_bytes: int = 0  # that were applied since the start
    is_emptied: bool = False  # a write that leaves nothing of it is on its way
    trimming: Position = GENESIS  # up to where the log is trimmed, on disk or on its way there
    damaged_below: int = 0  # entries below are unreadable: not to be kept for others
    members: Config | None = None  # that were last told of
    kept: Kept = field(default_factory=Kept)  # payloads, at a witness
    rewriting: int = 0  # compacted batches on their way to disk
    deleting: dict[PartitionKey, int | None] = field(default_factory=dict)  # payloads, up to where; None: all
    doubted: set[PartitionKey] = field(default_factory=set)  # led after a recovery: is the beginning there?

    @property
    def is_replaced(self) -> bool:
        """Whether what is in memory of its state is about to be another on disk."""
        return self.incoming is not None and self.incoming.installing


@dataclass(frozen=True, slots=True)
class Hosting:
    slots: Slots

    def restore(
        self,
        slot: Slot,
        rows: Mapping[bytes, bytes],
        *,
        tail: Tail,
        aside: Mapping[bytes, bytes],
        now: float,
    ) -> None:
        """A slot as the disk has it; `tail` are the entries behind the rows' applied index, with payloads,
        `aside` what is there of a snapshot. What is damaged is cut off and comes again from another copy.

        Raises: StoreCorrupt, where this is the only copy too.
        """
        stream = self._stream(slot)
        stream.restore(rows.items())
        hard, log, configs = restored(rows, self.slots.genesis(slot), tail.items)
        if tail.damage is not None:
            if configs[-1][1].nodes() == {self.slots.me}:
                raise tail.damage
            self.slots.damaged += 1
            self.slots.disk.submit(slot, dropped=tail.lost, done=lambda: None, failed=lambda _: None)
        until = tail.last_index if tail.damage is not None else 0
        incoming, touched = self.slots.receiving.restore(aside)
        partial = (incoming.meta, incoming.position) if incoming is not None else None
        host = self._add(
            slot, stream, now, hard=hard, log=log, configs=configs, partial=partial, repair_until=until
        )
        host.incoming, host.touched = incoming, touched
        self.slots.saving.delete(host, self.slots.saving.deletions(host))

    def begin(self, slots: Iterable[Slot], *, now: float) -> None:
        """Take part in the slots that genesis gave to this node, as far as the disk has none of them."""
        for slot in slots:
            if slot not in self.slots.hosts and self.slots.me in self.slots.genesis(slot).nodes():
                self.begin_one(slot, now)

    def begin_one(self, slot: Slot, now: float) -> Host:
        hard, log, configs = restored({}, self.slots.genesis(slot), ())
        return self._add(slot, self._stream(slot), now, hard=hard, log=log, configs=configs)

    def _stream(self, slot: Slot) -> SlotStream:
        return self.slots.system if slot == SYSTEM_SLOT else SlotStream(slot)

    def _add(self, slot: Slot, stream: SlotStream, now: float, **state: object) -> Host:
        replica = Replica(
            slot,
            self.slots.me,
            applied=stream.applied_index,
            rng=self.slots.rng,
            now=now,
            settings=REPLICA,
            supports=self.slots.supports,
            supported_by=self.slots.supported_by,
            frozen=self.slots.frozen,
            **state,  # type: ignore[arg-type]
        )
        host = self.slots.hosts[slot] = Host(slot, replica, stream, stream.applied_index)
        self.slots.mind(host)
        return host
