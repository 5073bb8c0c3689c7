"""What the disk read, on its way to who asked for it; what it could not read goes to be mended first.

    BatchesFetched   a client's reader, a group's desk, a look-up of this peer's, another peer's mending
    SlotLogRead      a follower that is behind
    PayloadsRead     a follower that is sent a snapshot

Who reads for a client or a group waits until the batch is whole again. Followers are told nothing: their
leader asks for them again in a while anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshq.entries import PayloadCorrupt, StoredBatch
from meshq.errors import MeshqError
from meshq.peer.core.consuming import Consuming
from meshq.peer.core.context import Context
from meshq.peer.core.desks import GROUPS
from meshq.peer.core.events import BatchesFetched, FetchBatches, PayloadsRead, SeekTime, SlotLogRead
from meshq.peer.core.lookups import LOOKUPS
from meshq.peer.core.mending import MENDING, Mending
from meshq.peer.core.reading import Reading
from meshq.peer.core.rereading import Rereading
from meshq.peer.core.slots import Slots
from meshq.streams.delivery import Fetch


@dataclass
class Fetching:
    ctx: Context
    slots: Slots
    reading: Reading
    consuming: Consuming
    mending: Mending
    rereading: Rereading

    def is_awaited(self, read: FetchBatches | SeekTime) -> bool:
        """False when it was unread meanwhile, or read again from elsewhere."""
        session, sub = read.fetch.sub if isinstance(read, FetchBatches) else read.sub
        if session[0] == GROUPS:
            return self.consuming.desks.is_awaited(read)
        if session[0] == LOOKUPS:
            return True
        if isinstance(read, FetchBatches):
            if session[0] == MENDING:
                return self.mending.is_awaited(read.fetch)
            return self.ctx.deliveries.is_awaited(read.fetch)
        state = self.ctx.sessions.states.get(session)
        return state is not None and state.seeks.get((sub, read.partition)) == read

    def on_fetched(self, event: BatchesFetched) -> None:
        fetch = event.fetch
        low = self.slots.partition(self.ctx.slot_of(fetch.partition), fetch.partition).low
        damage = _damage_of(fetch, event.batches) if fetch.offset >= low else None  # it may have expired
        if event.fetch.sub[0][0] == MENDING:
            self.mending.on_fetched(event)
        elif damage is not None and self.is_awaited(FetchBatches(event.fetch)):
            self.mending.mend(damage, lambda error: self._on_mended(event.fetch, error))
        else:
            self._hand_on(event)

    def _on_mended(self, fetch: Fetch, error: MeshqError | None) -> None:
        if error is None:
            self.ctx.out.append(FetchBatches(fetch))
        else:
            self._hand_on(BatchesFetched(fetch, error))

    def _hand_on(self, event: BatchesFetched) -> None:
        door = event.fetch.sub[0][0]
        if door == GROUPS:
            self.consuming.desks.on_fetched(event)
        elif door == LOOKUPS:
            self.ctx.lookups.on_fetched(event)
        else:
            self.reading.on_fetched(event)

    def on_log_read(self, event: SlotLogRead) -> None:
        if self.rereading.on_log_read(event):
            return
        if event.damage is not None and event.slot in self.slots.hosts:
            self.rereading.look(self.slots.hosts[event.slot])
        if isinstance(event.damage, PayloadCorrupt):
            self.mending.mend(event.damage, lambda _: None)
        damaged = event.damage is not None and not isinstance(event.damage, PayloadCorrupt)
        self.slots.on_log_read(event.slot, event.read, damaged=damaged)

    def on_payloads_read(self, event: PayloadsRead) -> None:
        if event.damage is not None:
            self.mending.mend(event.damage, lambda _: None)
        self.slots.on_payloads_read(event)


def _damage_of(fetch: Fetch, batches: Sequence[StoredBatch] | MeshqError) -> PayloadCorrupt | None:
    """Committed offsets that are not on the disk are damage too, and are never skipped silently."""
    if isinstance(batches, MeshqError):
        return batches if isinstance(batches, PayloadCorrupt) else None
    if batches and batches[0].base_offset <= fetch.offset < batches[0].base_offset + batches[0].count:
        return None
    return PayloadCorrupt("committed, and not on this peer's disk", fetch.partition, fetch.offset)
