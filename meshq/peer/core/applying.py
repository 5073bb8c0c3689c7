"""Applying: what is decided becomes state, and who has to is told.

Every copy of a slot applies the same entries in the same order. Only the leader's tells: receipts leave,
readers get batches, groups go on, retention and compaction look again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshq.batch import Buffer
from meshq.peer.core.hosts import Host
from meshq.replication.quorum import Node
from meshq.replication.words import Item
from meshq.streams.applied import Compacted, Dropped, Moved, Retained, Stored
from meshq.streams.groups.table import GroupApplied

if TYPE_CHECKING:
    from meshq.peer.core.slots import Slots

ENTRY_BYTES = 40  # of an entry on disk, beside its body


@dataclass(frozen=True, slots=True)
class Applying:
    slots: Slots

    def apply(self, host: Host, items: tuple[Item, ...]) -> None:
        copies = host.replica.copies() if host.leads else {}
        gone = False  # payloads can be deleted, once that is saved
        for entry, payload in items:
            applied = host.stream.apply(entry)
            host.log_bytes += len(entry.body) + ENTRY_BYTES
            match applied:
                case Stored():
                    self._on_stored(host, applied, payload, copies)
                case GroupApplied() if host.leads:
                    self.slots.react.on_group(applied)
                case Moved(group, stored):
                    if host.leads:
                        self.slots.react.on_group(group)
                    self._on_stored(host, stored, payload, copies)
                case Dropped():
                    gone = True
                case Retained():
                    gone = True
                    if host.leads:
                        self.slots.react.on_retained(applied)
                case Compacted():
                    gone = True
                    if host.leads:
                        self.slots.react.on_compacted(applied)
        self.slots.saving.on_applied(host, now=gone)

    def _on_stored(self, host: Host, stored: Stored, payload: Buffer, copies: Mapping[Node, int]) -> None:
        if host.leads:
            self.slots.react.on_stored(host, stored, payload, copies)
        elif host.replica.is_witness:
            host.kept.on_stored(stored.partition, stored.base_offset + stored.count)
