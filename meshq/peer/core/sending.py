"""Snapshots of slots led here, for followers that lack what the log no longer has.

The state rows are copied in one read transaction, at the index they were saved at, and kept in memory while
they are sent; batches are read from disk a piece at a time, at a bounded pace. The replica asks for one piece
after another, so one is on its way to a follower; a peer sends few snapshots at a time, and who waits is
asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshq.entries import StoredBatch
from meshq.errors import MeshqError
from meshq.ids import PartitionKey, Slot
from meshq.limits import SNAPSHOT_PARTITIONS_MAX, SNAPSHOT_PIECE_BYTES, SNAPSHOTS_SENT_MAX
from meshq.peer.core.events import ReadPayloads, ReadRows
from meshq.peer.core.pieces import OFFSET_MAX, encode_batches, encode_rows, part_of, position_of
from meshq.replication import words
from meshq.replication.quorum import Node
from meshq.replication.saved import meta_of
from meshq.replication.words import SnapshotMeta
from meshq.streams.applied import PartitionState
from meshq.streams.rows import is_shared, partition_states

if TYPE_CHECKING:
    from meshq.peer.core.hosts import Host
    from meshq.peer.core.slots import Slots

IDLE_S = 5.0  # a transfer that nothing was asked of for so long leaves its place to another
RANGES_MAX = 64  # partitions one piece is looked for in


@dataclass(frozen=True, slots=True)
class Image:
    """A slot's state at `meta`."""

    meta: SnapshotMeta
    rows: Sequence[tuple[bytes, bytes]]
    partitions: Sequence[tuple[PartitionKey, PartitionState]]


@dataclass(slots=True)
class _Transfer:
    """To one node. `asked` is what its replica waits for, until the disk has answered."""

    used: float
    asked: words.ReadSnapshot | None = None
    position: int = 0  # where the newest piece begins
    parts: tuple[int, ...] = ()  # that the piece is looked for in


@dataclass
class Sending:
    slots: Slots
    _images: dict[Slot, Image] = field(default_factory=dict)  # of slots in `_transfers` only
    _transfers: dict[tuple[Slot, Node], _Transfer] = field(default_factory=dict)  # SNAPSHOTS_SENT_MAX

    def on_order(self, host: Host, order: words.ReadSnapshot) -> None:
        """A replica wants a piece."""
        transfer = self._transfer(host.slot, order.to)
        if transfer is None or transfer.asked is not None:
            return
        transfer.used = self.slots.now
        image = self._images.get(host.slot)
        wanted = order.meta is not None and image is not None and image.meta == order.meta
        if image is not None and (wanted or image.meta.last.index >= host.replica.log.start.index):
            self._send_piece(host, transfer, order, image)
            return
        transfer.asked = order
        self.slots.out.append(ReadRows(host.slot, order.to))

    def on_rows(self, host: Host, to: Node, rows: Mapping[bytes, bytes] | MeshqError) -> None:
        transfer = self._transfers.get((host.slot, to))
        order = transfer.asked if transfer is not None else None
        if transfer is None or order is None:
            return
        transfer.asked = None
        meta = meta_of(rows) if not isinstance(rows, MeshqError) else None
        if meta is None or isinstance(rows, MeshqError):
            return  # asked for again in a while
        partitions = partition_states(rows)
        if len(partitions) > SNAPSHOT_PARTITIONS_MAX or any(s.end > OFFSET_MAX for _, s in partitions):
            self.slots.count("snapshots_refused")
            return
        image = Image(meta, sorted((k, v) for k, v in rows.items() if is_shared(k)), partitions)
        self._images[host.slot] = image
        self.slots.count("snapshots_made")
        self._send_piece(host, transfer, order, image)

    def on_payloads(self, host: Host, to: Node, batches: Sequence[StoredBatch], complete: bool) -> None:
        """What there is in the ranges that were asked for; `complete`: all of it."""
        transfer, image = self._transfers.get((host.slot, to)), self._images.get(host.slot)
        order = transfer.asked if transfer is not None else None
        if transfer is None or order is None or image is None or image.meta != order.meta:
            return
        transfer.asked = None
        parts = {image.partitions[part - 1][0]: part for part in transfer.parts}
        if complete:
            part = transfer.parts[-1]
            then = position_of(part + 1, 0)
        elif batches:
            last = batches[-1]
            part = parts[last.partition]
            then = position_of(part, last.base_offset + last.count)
        else:
            return  # damaged, which was counted: asked for again in a while
        data = encode_batches(list(batches), part=part, then=then)
        self._tell(host, order, image, data, done=not self._ranges(host, order, image, then))

    def on_role(self, host: Host) -> None:
        """Leadership went: nobody asks for the rest."""
        for key in [k for k in self._transfers if k[0] == host.slot]:
            del self._transfers[key]
        self._images.pop(host.slot, None)

    def sent_bytes(self, slot: Slot, to: Node) -> int | None:
        """Of the batches; None while no snapshot goes there. By offsets, as if a partition's batches were of
        one size."""
        transfer, image = self._transfers.get((slot, to)), self._images.get(slot)
        if transfer is None or image is None:
            return None
        part, offset = part_of(transfer.position)
        whole = sum(state.bytes for _, state in image.partitions[: max(part - 1, 0)])
        if not 0 < part <= len(image.partitions):
            return whole
        state = image.partitions[part - 1][1]
        share = (offset - state.low) / (state.end - state.low) if offset > state.low else 0.0
        return whole + int(state.bytes * min(share, 1.0))

    # ------------------------------------------------------------------------------------- pieces
    def _send_piece(self, host: Host, transfer: _Transfer, order: words.ReadSnapshot, image: Image) -> None:
        if order.meta != image.meta:
            order = words.ReadSnapshot(order.to, image.meta, 0)
        transfer.position = order.position
        part, offset = part_of(order.position)
        if part == 0 and offset < len(image.rows):
            self._send_rows(host, order, image, offset)
            return
        ranges = self._ranges(host, order, image, order.position)
        if not ranges:
            end = position_of(len(image.partitions) + 1, 0)
            self._tell(host, order, image, encode_rows([], then=end), done=True)
            return
        transfer.asked, transfer.parts = order, tuple(part for part, *_ in ranges)
        wanted = tuple((image.partitions[part - 1][0], start, end) for part, start, end in ranges)
        read = ReadPayloads(host.slot, order.to, wanted, SNAPSHOT_PIECE_BYTES)
        self.slots.pace(host, order.to, read)

    def _send_rows(self, host: Host, order: words.ReadSnapshot, image: Image, start: int) -> None:
        end, size = start, 0
        while end < len(image.rows) and (end == start or size < SNAPSHOT_PIECE_BYTES):
            size += len(image.rows[end][0]) + len(image.rows[end][1]) + 8
            end += 1
        then = position_of(0, end) if end < len(image.rows) else position_of(1, 0)
        data = encode_rows(list(image.rows[start:end]), then=then)
        done = end == len(image.rows) and not self._ranges(host, order, image, then)
        self._tell(host, order, image, data, done=done)

    def _ranges(
        self, host: Host, order: words.ReadSnapshot, image: Image, position: int
    ) -> tuple[tuple[int, int, int], ...]:
        """(part, offset, end) of what batches follow, in up to RANGES_MAX partitions; for a witness, none.

        What went by retention or with its topic since the image was made is left out. The entry that says so
        is in the log behind the image, and committed: who gets this knows it before it serves anybody.
        """
        if order.to in host.replica.config.witnesses:
            return ()
        part, offset = part_of(position)
        found: list[tuple[int, int, int]] = []
        if part == 0:
            part, offset = 1, 0
        while part <= len(image.partitions) and len(found) < RANGES_MAX:
            partition, state = image.partitions[part - 1]
            live = host.stream.partitions.get(partition)
            start = max(offset, state.low, live.low) if live is not None else state.end
            if start < state.end:
                found.append((part, start, state.end))
            part, offset = part + 1, 0
        return tuple(found)

    def _tell(self, host: Host, order: words.ReadSnapshot, image: Image, data: bytes, *, done: bool) -> None:
        self.slots.count("snapshot_pieces_sent")
        self.slots.pacing.spent(len(data))
        self.slots.soon(host, words.SnapshotRead(order.to, image.meta, order.position, data, done))

    def _waits(self, slot: Slot, to: Node) -> bool:
        """For its turn, and so is not idle."""
        return (slot, to, ReadPayloads) in self.slots.pacing.waiting

    def _transfer(self, slot: Slot, to: Node) -> _Transfer | None:
        """None when as many as may are being sent."""
        found = self._transfers.get((slot, to))
        if found is not None:
            return found
        for key, transfer in list(self._transfers.items()):
            if transfer.used + IDLE_S <= self.slots.now and not self._waits(*key):
                del self._transfers[key]
        for gone in set(self._images) - {s for s, _ in self._transfers}:
            del self._images[gone]
        if len(self._transfers) >= SNAPSHOTS_SENT_MAX:
            self.slots.count("snapshots_waiting")
            return None
        self._transfers[(slot, to)] = made = _Transfer(self.slots.now)
        return made
