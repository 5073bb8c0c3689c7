"""The slots this peer owns: each one a log and the stream it means, made when first written to.

Publishing: the stream judges the batch (sequence, offset), the log gives it a place, the disk takes it; when
it is durable the log commits it, the stream applies it, and only then is there a receipt. State rows follow
within a second (`checkpoint`): what they miss after a crash, the log's tail says again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from meshq.batch import BatchHeader, Buffer
from meshq.entries import Entry, EntryKind, Payload, follows
from meshq.errors import DiskFull, MeshqError, Overloaded, StoreCorrupt
from meshq.ids import PartitionKey, Ref, Slot, TopicId
from meshq.limits import LOG_ENTRIES_KEPT, PENDING_BYTES_MAX
from meshq.peer.core.disk import Disk
from meshq.peer.core.events import DeletePayloads, Effect
from meshq.replication.log import SlotLog
from meshq.streams.producers import BatchReceipt
from meshq.streams.slot import (
    EMPTY,
    Dropped,
    PartitionState,
    SlotStream,
    Stored,
    encode_publish,
)

CHECKPOINT_S = 1.0
CHECKPOINT_ENTRIES = 1_024
_FENCE_ROW = b"F"


@dataclass(slots=True)
class _Host:
    log: SlotLog
    stream: SlotStream
    payloads: dict[int, Buffer] = field(default_factory=dict)  # by index, until committed
    trimmed_below: int = 1
    checkpointed: int = 0  # applied index of the last rows handed to the disk


@dataclass
class Slots:
    """All slots with anything in them on this peer's disk."""

    out: list[Effect]
    disk: Disk
    on_stored: Callable[[Stored, Buffer], None]
    on_refused: Callable[[Ref, MeshqError], None]
    hosts: dict[Slot, _Host] = field(default_factory=dict)  # bounded by the mesh's number of slots
    fences: dict[Slot, int] = field(default_factory=dict)
    _checkpoint_at: float = 0.0
    _fences_durable: dict[Slot, int] = field(default_factory=dict)
    _drop_again: set[TopicId] = field(default_factory=set)  # deletions the disk refused; topics held here

    # -------------------------------------------------------------------------------------- restart
    def restore(
        self,
        slot: Slot,
        rows: Mapping[bytes, bytes],
        *,
        last: Entry | None,
        first_index: int,
        tail: Iterable[Entry],
    ) -> None:
        """A slot as the disk has it; `tail` are the entries behind the rows' applied index."""
        stream = SlotStream(slot)
        stream.restore(rows.items())
        if _FENCE_ROW in rows:
            self.fences[slot] = self._fences_durable[slot] = int.from_bytes(rows[_FENCE_ROW], "big")
        if last is None and stream.applied_index == 0:
            return
        if last is None or last.index < stream.applied_index:
            raise StoreCorrupt(
                f"slot {slot}: its state is at entry {stream.applied_index}, its log ends before that"
            )
        host = _Host(SlotLog(slot, last=last), stream, trimmed_below=first_index)
        host.checkpointed = stream.applied_index
        self.hosts[slot] = host
        previous: Entry | None = None
        for entry in tail:
            if previous is not None and not follows(previous.chain, entry):
                raise StoreCorrupt(f"slot {slot}: entry {entry.index} does not continue the log before it")
            if entry.index != stream.applied_index + 1:
                raise StoreCorrupt(f"slot {slot}: entry {stream.applied_index + 1} is missing")
            stream.apply(entry)
            previous = entry
        if stream.applied_index != last.index or (previous is not None and previous.chain != last.chain):
            raise StoreCorrupt(f"slot {slot}: its log ends at entry {last.index}, not {stream.applied_index}")
        for partition in stream.dropping:
            self.out.append(DeletePayloads(slot, partition))

    # ----------------------------------------------------------------------------------- publishing
    def publish(
        self,
        slot: Slot,
        partition: PartitionKey,
        header: BatchHeader,
        payload: Buffer,
        *,
        client_key: bytes,
        ref: Ref,
        wall_ms: int,
    ) -> BatchReceipt | MeshqError | None:
        """Append a checked batch. None: `on_stored` will name `ref`, or `failed` its error."""
        host = self._host(slot)
        timestamp_ms = max(wall_ms, host.log.last_timestamp_ms)
        body = host.stream.judge(partition, header, client_key, ref, timestamp_ms=timestamp_ms)
        if body is None or isinstance(body, BatchReceipt | MeshqError):
            return body
        if len(payload) > self.disk.room_bytes:
            return DiskFull(
                "this peer's disk is at its watermark: delete topics, add space or raise `store_bytes_max`",
                retry_after_ms=1_000,
            )
        if self.disk.pending_bytes + len(payload) > PENDING_BYTES_MAX:
            return Overloaded("this peer has as much waiting for its disk as it may", retry_after_ms=50)
        data = encode_publish(body, payload)
        entry = host.log.propose(EntryKind.PUBLISH, data, wall_ms=wall_ms).entries[0]
        host.stream.on_proposed(entry, body, ref)
        host.payloads[entry.index] = payload
        stored = Payload(partition, body.base_offset, body.count, entry.timestamp_ms, payload)
        self._append(host, entry, (stored,))
        return None

    def drop_topic(self, topic_id: TopicId, *, wall_ms: int) -> None:
        """The registry deleted this topic: log it in every slot that holds some of it."""
        for host in self.hosts.values():
            if host.stream.holds(topic_id):
                entry = host.log.propose(EntryKind.DROP_TOPIC, topic_id, wall_ms=wall_ms).entries[0]
                self._append(host, entry, ())

    def _append(self, host: _Host, entry: Entry, payloads: tuple[Payload, ...]) -> None:
        self.disk.submit(
            host.log.slot,
            entries=(entry,),
            payloads=payloads,
            done=lambda: self._on_appended(host, entry.index),
            failed=lambda error: self._on_append_failed(host, error),
        )

    def _on_appended(self, host: _Host, index: int) -> None:
        for entry in host.log.on_appended(index).entries:
            applied = host.stream.apply(entry)
            if isinstance(applied, Dropped):
                for partition in applied.partitions:
                    self.out.append(DeletePayloads(host.log.slot, partition))
            elif applied is not None:
                self.on_stored(applied, host.payloads.pop(entry.index))
        if host.stream.applied_index - host.checkpointed >= CHECKPOINT_ENTRIES:
            self._checkpoint(host)

    def _on_append_failed(self, host: _Host, error: MeshqError) -> None:
        for entry in host.log.on_append_failed():
            if entry.kind is EntryKind.DROP_TOPIC:
                self._drop_again.add(TopicId(entry.body))  # nobody else will say it again
        host.payloads.clear()
        for ref in host.stream.on_append_failed():
            self.on_refused(ref, error)

    # --------------------------------------------------------------------------------- housekeeping
    def tick(self, now: float, *, wall_ms: int) -> None:
        if now >= self._checkpoint_at:
            self._checkpoint_at = now + CHECKPOINT_S
            self.checkpoint_all()
            again, self._drop_again = self._drop_again, set()
            for topic_id in again:
                self.drop_topic(topic_id, wall_ms=wall_ms)

    def checkpoint_all(self) -> None:
        for host in self.hosts.values():
            if host.stream.is_dirty:
                self._checkpoint(host)

    def _checkpoint(self, host: _Host) -> None:
        rows = host.stream.take_rows()
        applied = host.checkpointed = host.stream.applied_index
        keep_from = applied - LOG_ENTRIES_KEPT + 1
        trim = keep_from if keep_from > host.trimmed_below else None
        host.trimmed_below = max(host.trimmed_below, keep_from)
        self.disk.submit(
            host.log.slot,
            rows=rows,
            trim_below=trim,
            done=_nothing,
            failed=lambda _: host.stream.mark_again(key for key, _ in rows),
        )

    def on_payloads_deleted(self, slot: Slot, partition: PartitionKey) -> None:
        if slot in self.hosts:
            self.hosts[slot].stream.on_payloads_deleted(partition)

    # --------------------------------------------------------------------------------------- moving
    def release(
        self, asked: Collection[tuple[Slot, int]], done: Callable[[list[tuple[Slot, int]]], None]
    ) -> None:
        """Fence those of these (slot, epoch) that hold nothing; `done` gets them once that is durable."""
        free = [(slot, epoch) for slot, epoch in asked if self._is_empty(slot)]
        if not free:
            done([])
            return
        left = len(free)
        fenced: list[tuple[Slot, int]] = []

        def ended(slot: Slot, epoch: int, ok: bool) -> None:
            nonlocal left
            left -= 1
            if ok:
                self._fences_durable[slot] = max(epoch, self._fences_durable.get(slot, 0))
                fenced.append((slot, epoch))
            else:
                self._unfence(slot)
            if left == 0:
                self.disk.when_settled(lambda: done(fenced))

        for slot, epoch in free:
            # Fenced from now on: nothing may be appended between this decision and its being durable.
            self.fences[slot] = max(epoch, self.fences.get(slot, 0))
            self.disk.submit(
                slot,
                rows=((_FENCE_ROW, self.fences[slot].to_bytes(8, "big")),),
                done=lambda slot=slot, epoch=epoch: ended(slot, epoch, True),  # type: ignore[misc]
                failed=lambda _, slot=slot, epoch=epoch: ended(slot, epoch, False),  # type: ignore[misc]
            )

    def _unfence(self, slot: Slot) -> None:
        """The fence did not reach the disk and nobody heard of it: the slot goes on as before."""
        if slot in self._fences_durable:
            self.fences[slot] = self._fences_durable[slot]
        else:
            self.fences.pop(slot, None)

    def is_fenced(self, slot: Slot, epoch: int) -> bool:
        return self.fences.get(slot, -1) >= epoch

    # ---------------------------------------------------------------------------------------- facts
    def partition(self, slot: Slot, partition: PartitionKey) -> PartitionState:
        host = self.hosts.get(slot)
        return host.stream.partitions.get(partition, EMPTY) if host else EMPTY

    def written(self) -> int:
        """Slots that ever held something."""
        return sum(h.log.last_index > 0 for h in self.hosts.values())

    def topics_held(self) -> set[TopicId]:
        return {p.topic_id for h in self.hosts.values() for p in h.stream.partitions}

    def _is_empty(self, slot: Slot) -> bool:
        return slot not in self.hosts or self.hosts[slot].log.last_index == 0

    def _host(self, slot: Slot) -> _Host:
        host = self.hosts.get(slot)
        if host is None:
            host = self.hosts[slot] = _Host(SlotLog(slot), SlotStream(slot))
        return host


def _nothing() -> None:
    pass
