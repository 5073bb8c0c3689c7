"""Snapshots that leaders send here: put aside piece by piece, put in place by one transaction.

Rows of state are kept aside in the store, where nobody takes them for state. Batches go straight to where
they belong: offsets that were decided once are never given to others, and readers see no offset above the
end that the state in place names. The last piece replaces rows, log and configuration at once; what had been
written to the log and not applied goes with it. So a crash leaves the old state or the new.

    aside  r + row key                state rows
           t + topic id + partition   up to which offset batches came, whichever snapshot brought them
           m                          which snapshot, and the position of the next piece

A newer snapshot begins again with the rows and, thanks to `t`, goes on with the batches. A partition that got
batches and is not in the state that comes to be in place (its topic was deleted) is deleted like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshq.entries import ASIDE_ROW, PayloadKey
from meshq.errors import OutcomeUnknown, RemoteProtocolError
from meshq.ids import PartitionKey, TopicId
from meshq.limits import PENDING_BYTES_MAX
from meshq.peer.core.events import ReadRows
from meshq.peer.core.pieces import BatchesPiece, RowsPiece, decode_piece, part_of, position_of
from meshq.replication import words
from meshq.replication.saved import HARD_ROW, decode_partial, encode_partial, snapshot_row
from meshq.replication.words import SnapshotMeta
from meshq.streams.applied import EMPTY
from meshq.streams.publish import payload_key_of
from meshq.streams.rows import begun_rows, partition_of_row, partition_states
from meshq.streams.slot import SlotStream

if TYPE_CHECKING:
    from meshq.peer.core.hosts import Host
    from meshq.peer.core.slots import Slots

_TOUCHED, _META = b"t", b"m"
Begun = tuple[bytes | None, tuple[tuple[bytes, bytes], ...]]  # what is cleared aside, and put there
AGAIN_S = 1.0  # a piece that could not be stored is asked for again after this


@dataclass(slots=True, eq=False)
class Incoming:
    """What is aside of one snapshot. `partitions` are those its rows have named so far; `rewritten` which of
    them were compacted, so that batches may be here that became others. After a restart that is not known.
    """

    meta: SnapshotMeta
    position: int = 0
    partitions: set[PartitionKey] = field(default_factory=set)
    rewritten: set[PartitionKey] | None = field(default_factory=set)
    installing: bool = False

    def may_differ(self, partition: PartitionKey) -> bool:
        """Whether what is here of the partition's batches may be others than the snapshot's."""
        return self.rewritten is None or partition in self.rewritten


@dataclass
class Receiving:
    slots: Slots
    _later: list[tuple[float, Host, Incoming]] = field(default_factory=list)  # one a slot

    # ------------------------------------------------------------------------------------ restart
    def restore(self, aside: Mapping[bytes, bytes]) -> tuple[Incoming | None, dict[PartitionKey, int]]:
        """What is aside, and up to where batches came. Raises: StoreCorrupt."""
        touched = {
            PartitionKey(TopicId(key[1:17]), int.from_bytes(key[17:21], "big")): int.from_bytes(value, "big")
            for key, value in aside.items()
            if key[:1] == _TOUCHED
        }
        if _META not in aside:
            return None, touched
        meta, position = decode_partial(aside[_META])
        partitions = _partitions(k[1:] for k in aside if k[:1] == ASIDE_ROW)
        return Incoming(meta, position, partitions, None), touched

    # ------------------------------------------------------------------------------------- pieces
    def on_order(self, host: Host, order: words.StoreSnapshot) -> None:
        """A replica got the piece it waits for."""
        incoming = host.incoming
        if incoming is None or incoming.meta != order.meta or order.position == 0:
            incoming = host.incoming = Incoming(order.meta)
        room = min(self.slots.disk.room_bytes, PENDING_BYTES_MAX - self.slots.disk.pending_bytes)
        try:
            piece = decode_piece(order.data)
            then = self._position_behind(host, incoming, order, piece)
        except RemoteProtocolError:
            self.slots.count("snapshot_pieces_malformed")
            self._again(host, incoming)
            return
        if len(order.data) > room:
            self._again(host, incoming)
            return
        came = self._put_aside(host, incoming, order, piece, then)
        if order.done:
            self._install(host, incoming, {**host.touched, **came})

    def _position_behind(
        self, host: Host, incoming: Incoming, order: words.StoreSnapshot, piece: RowsPiece | BatchesPiece
    ) -> int:
        """Where the next piece begins: behind this one, and behind what of the last partition is here."""
        if piece.next <= order.position and not order.done:
            raise RemoteProtocolError("a snapshot's piece that leads nowhere")
        if isinstance(piece, RowsPiece) or not piece.payloads:
            return piece.next
        if {p.partition for p in piece.payloads} - incoming.partitions:
            raise RemoteProtocolError("a snapshot with batches of a partition that it does not name")
        last = piece.payloads[-1].partition
        part, offset = part_of(piece.next)
        have = max(host.stream.partitions.get(last, EMPTY).end, host.touched.get(last, 0))
        if part == piece.part and have > offset and not order.done and not incoming.may_differ(last):
            return position_of(part, have)
        return piece.next

    def _put_aside(
        self,
        host: Host,
        incoming: Incoming,
        order: words.StoreSnapshot,
        piece: RowsPiece | BatchesPiece,
        then: int,
    ) -> dict[PartitionKey, int]:
        """Up to where batches will have come."""
        aside = [(_META, encode_partial(incoming.meta, then))]
        payloads = tuple(piece.payloads) if isinstance(piece, BatchesPiece) else ()
        if isinstance(piece, RowsPiece):
            aside += [(ASIDE_ROW + key, value) for key, value in piece.rows]
            incoming.partitions |= _partitions(key for key, _ in piece.rows)
            if incoming.rewritten is not None:
                states = partition_states(dict(piece.rows))
                incoming.rewritten |= {p for p, state in states if state.rewritten}
        came = {p.partition: p.base_offset + p.count for p in payloads}  # the last one of each counts
        came = {p: max(end, host.touched.get(p, 0)) for p, end in came.items()}
        aside += [_touched_row(p, end) for p, end in came.items()]

        def done() -> None:
            incoming.position = then
            kept = host.incoming is incoming
            if kept:
                host.touched.update(came)
            if not order.done:
                self.slots.tell(host, words.SnapshotStored(incoming.meta, then if kept else 0, False))

        self.slots.disk.submit(
            host.slot,
            payloads=payloads,
            rewritten=tuple(
                (p.partition, p.base_offset, p.base_offset + p.count)
                for p in payloads
                if incoming.may_differ(p.partition)
            ),
            aside=tuple(aside),
            clear_aside=ASIDE_ROW if order.position == 0 else None,
            done=done,
            failed=lambda _: None if order.done else self._again(host, incoming),
        )
        return came

    def _again(self, host: Host, incoming: Incoming) -> None:
        """The piece is not here: have it sent again, after a while."""
        incoming.installing = False
        at = self.slots.now + AGAIN_S
        self._later.append((at, host, incoming))
        self.slots.wake_at(at)

    def tick(self) -> None:
        due = [x for x in self._later if x[0] <= self.slots.now]
        self._later = [x for x in self._later if x[0] > self.slots.now]
        for _, host, incoming in due:
            position = incoming.position if host.incoming is incoming else 0
            self.slots.tell(host, words.SnapshotStored(incoming.meta, position, False))
        for at, *_ in self._later:
            self.slots.wake_at(at)

    # -------------------------------------------------------------------------------- put in place
    def _install(self, host: Host, incoming: Incoming, touched: Mapping[PartitionKey, int]) -> None:
        incoming.installing = True
        meta, stream = incoming.meta, host.stream
        gone = ({*stream.partitions, *touched} - incoming.partitions) | stream.dropping
        dropped, doubtful = self._unapplied(host, touched)
        self.slots.disk.submit(
            host.slot,
            rows=(snapshot_row(meta), *begun_rows(meta.last.index, gone)),
            dropped=tuple(dropped),
            doubtful=tuple(doubtful),
            replace=(HARD_ROW,),
            done=lambda: self.slots.out.append(ReadRows(host.slot, None)),
            failed=lambda _: self._again(host, incoming),
        )

    def _unapplied(
        self, host: Host, touched: Mapping[PartitionKey, int]
    ) -> tuple[list[PayloadKey], list[PayloadKey]]:
        """Batches of entries that were never applied: they go, unless the snapshot brought the very same."""
        log = host.replica.log
        items = log.between(host.stream.applied_index, log.last.index)
        keys = [key for key in (payload_key_of(i.entry) for i in items) if key is not None]
        came = [k.base_offset < touched.get(k.partition, 0) for k in keys]
        dropped = [k for k, there in zip(keys, came, strict=True) if not there]
        return dropped, [k for k, there in zip(keys, came, strict=True) if there]

    def on_rows(self, host: Host, rows: Mapping[bytes, bytes]) -> None:
        """The new state, as it is on disk. Raises: StoreCorrupt."""
        incoming = host.incoming
        if incoming is None or not incoming.installing:
            return
        stream = SlotStream(host.slot)
        stream.restore(rows.items())
        self.slots.refuse_waiting(
            host, OutcomeUnknown("this peer's copy of the slot was replaced: ask again")
        )
        had = {*host.stream.partitions, *host.touched}
        host.stream, host.checkpointed = stream, stream.applied_index
        host.kept.begin()
        host.incoming, host.touched = None, {}
        host.deleting.clear()
        self.slots.saving.delete(host, self.slots.saving.deletions(host))
        for partition in sorted(had & stream.partitions.keys()):
            stream.expire(partition, stream.partitions[partition].low)  # what was here may begin before that
        self.slots.count("snapshots_installed")
        self.slots.tell(host, words.SnapshotStored(incoming.meta, incoming.position, True))
        self.slots.react.on_role(host)

    # ------------------------------------------------------------------------------------ given up
    def clean(self, host: Host) -> None:
        """The log came as far as the snapshot that is aside: what it brought is there already."""
        incoming = host.incoming
        if incoming is None or incoming.installing or incoming.meta.last.index > host.stream.applied_index:
            return

        def done() -> None:
            if host.incoming is incoming:
                host.incoming, host.touched = None, {}
                host.replica.forget_partial()

        self.slots.disk.submit(host.slot, clear_aside=b"", done=done, failed=lambda _: None)

    def give_up(self, host: Host, dropped: Collection[PayloadKey]) -> Begun:
        """Batches leave with entries of the log, and one of the same key may have come with a snapshot: that
        begins again, and batches are counted on no further than where these were.
        """
        incoming = host.incoming
        if incoming is None:
            return None, ()
        for key in dropped:
            if key.partition in host.touched:
                host.touched[key.partition] = min(host.touched[key.partition], key.base_offset)
        host.incoming = Incoming(incoming.meta)
        host.replica.forget_partial()
        rows = [_touched_row(p, end) for p, end in host.touched.items()]
        return b"", (*rows, (_META, encode_partial(incoming.meta, 0)))


def _partitions(keys: Iterable[bytes]) -> set[PartitionKey]:
    found = (partition_of_row(key) for key in keys)
    return {p for p in found if p is not None}


def _touched_row(p: PartitionKey, end: int) -> tuple[bytes, bytes]:
    return _TOUCHED + p.topic_id + p.partition.to_bytes(4, "big"), end.to_bytes(8, "big")
