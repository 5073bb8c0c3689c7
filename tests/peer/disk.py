"""A simulated peer's disk: what is synced, and the writes on their way. It can be read as the store is.

The peer's own code reads it (`meshq/peer/disk.py`), so what a flipped bit does is decided there and not here.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice, takewhile

from meshq.batch import COMPACTED, read_header
from meshq.entries import ASIDE_ROW, Entry, Mark, Payload, PayloadCorrupt, PayloadKey, StoredBatch, Write
from meshq.errors import StoreCorrupt
from meshq.ids import PartitionKey, Slot
from meshq.registry.state import GENESIS_DISK
from meshq.store.layout import BatchKey
from meshq.store.reads import SlotImage, fault_of
from meshq.streams.publish import payload_key_of


@dataclass
class Disk:
    log: dict[Slot, dict[int, Entry]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[Slot, dict[bytes, bytes]] = field(default_factory=lambda: defaultdict(dict))
    payloads: dict[PartitionKey, list[Payload]] = field(default_factory=lambda: defaultdict(list))
    aside: dict[Slot, dict[bytes, bytes]] = field(default_factory=lambda: defaultdict(dict))
    waiting: list[Write] = field(default_factory=list)
    full: bool = False
    room: int = 1 << 40  # for records
    refuses: bool = False  # a write failed, and until the peer has heard of it all others do
    id: bytes = GENESIS_DISK
    epoch: int = 0
    damaged: set[tuple[Slot, int]] = field(default_factory=set)  # entries that cannot be read

    # -------------------------------------------------------------------------------------- writing
    def sync(self, most: int | None = None) -> list[int]:
        """What waits is on disk (the first `most` of it); the tokens."""
        done, self.waiting = self.waiting[:most], self.waiting[len(self.waiting[:most]) :]
        for write in done:
            self._write(write)
        return [write.token for write in done]

    def _write(self, write: Write) -> None:
        slot, log = write.slot, self.log[write.slot]
        self._replace(write)
        if write.truncate_from is not None:
            self._forget(slot, [i for i in log if i >= write.truncate_from])
        for partition, first, end in write.rewritten:
            self.payloads[partition][:] = [
                p for p in self.payloads[partition] if not first <= p.base_offset < end
            ]
        for gone in write.dropped:
            self._delete(gone)
        for entry in write.entries:
            self.log[slot][entry.index] = entry
            self.damaged.discard((slot, entry.index))
        for payload in write.payloads:
            self._delete(payload)  # the same key holds one
            self.payloads[payload.partition].append(payload)
        for key, value in write.rows:
            if value is None:
                self.rows[slot].pop(key, None)
            else:
                self.rows[slot][key] = value
        if write.trim_below is not None:
            self._forget(slot, [i for i in self.log[slot] if i < write.trim_below])

    def _forget(self, slot: Slot, indexes: list[int]) -> None:
        for index in indexes:
            del self.log[slot][index]
            self.damaged.discard((slot, index))

    def _replace(self, write: Write) -> None:
        """What a write says of snapshots, as store/apply.py does it."""
        slot, aside = write.slot, self.aside[write.slot]
        if write.clear_aside is not None:
            for key in [k for k in aside if k.startswith(write.clear_aside)]:
                del aside[key]
        if write.replace is not None:
            kept = {k: v for k, v in self.rows[slot].items() if k in write.replace}
            state = {k[len(ASIDE_ROW) :]: v for k, v in aside.items() if k.startswith(ASIDE_ROW)}
            self.rows[slot] = kept | state
            self._forget(slot, list(self.log[slot]))
            aside.clear()
            for key in write.doubtful:
                stored, end = self.payloads[key.partition], key.base_offset + key.count
                over = [
                    p for p in stored if p.base_offset < end and p.base_offset + p.count > key.base_offset
                ]
                if any(where_of(p) != where_of(key) for p in over):
                    self._delete(key)
        aside.update(write.aside)

    def _delete(self, gone: PayloadKey | Payload) -> None:
        stored = self.payloads[gone.partition]
        stored[:] = [p for p in stored if where_of(p) != where_of(gone)]

    # --------------------------------------------------------------------------------------- damage
    def flip(self, rng: random.Random) -> PayloadKey | None:
        """A bit of a stored batch, mostly of a new one."""
        found = [(p, i) for p in sorted(self.payloads) for i in range(len(self.payloads[p]))]
        if not found:
            return None
        partition, place = rng.choice(found[-3:] if rng.random() < 0.4 else found)
        stored = self.payloads[partition]
        p, bit = stored[place], rng.randrange(8 * len(stored[place].data))
        data = bytearray(p.data)
        data[bit // 8] ^= 1 << bit % 8
        stored[place] = Payload(p.partition, p.base_offset, p.count, p.timestamp_ms, bytes(data))
        return PayloadKey(p.partition, p.base_offset, p.timestamp_ms, p.count)

    def is_whole(self) -> bool:
        return not any(_fault(p) for stored in self.payloads.values() for p in stored)

    # -------------------------------------------------------------------------- as the store is read
    def load(self, *, strict: bool) -> dict[Slot, SlotImage]:
        assert not strict
        images = {}
        for slot in sorted({*self.rows, *self.log, *self.aside}):
            log = self.log[slot]
            images[slot] = SlotImage(dict(self.rows[slot]), dict(self.aside[slot]))
            if log:
                images[slot].first_index, images[slot].last_index = min(log), max(log)
        return images

    def read_sound(self, slot: Slot, from_index: int) -> list[Entry]:
        log = sorted(self.log[slot].items())
        return [x for i, x in log if i >= from_index and (slot, i) not in self.damaged]

    def read_entries(self, slot: Slot, from_index: int, *, bytes_max: int, count_max: int) -> list[Entry]:
        log, found = self.log[slot], list[Entry]()
        for index in takewhile(log.__contains__, count(from_index)):
            if (slot, index) in self.damaged and found:
                break
            if (slot, index) in self.damaged:
                raise StoreCorrupt(f"log entry {index} of slot {slot} was damaged on purpose")
            found.append(log[index])
            if len(found) == count_max:
                break
        return found

    def read_payload(self, key: PayloadKey) -> bytes:
        for p in self.payloads[key.partition]:
            if where_of(p) == where_of(key):
                if not len(p.data):
                    return b""
                if fault := _fault(p):
                    raise PayloadCorrupt(fault, key.partition, key.base_offset, stored=key)
                return bytes(p.data)
        raise PayloadCorrupt("it is not there", key.partition, key.base_offset, stored=key)

    def is_compacted(self, key: PayloadKey) -> bool:
        found = [p for p in self.payloads[key.partition] if where_of(p) == where_of(key)]
        return not found or read_header(found[0].data).version == COMPACTED

    def read_batches(
        self, partition: PartitionKey, offset: int, *, end: int, bytes_max: int, count_max: int = 64
    ) -> list[StoredBatch]:
        found, size = list[StoredBatch](), 0
        for p in self._from(partition, offset):
            size += len(p.data)
            fault = _fault(p)
            if p.base_offset >= end or len(found) == count_max or (found and (fault or size > bytes_max)):
                break
            if fault:
                stored = PayloadKey(partition, p.base_offset, p.timestamp_ms, p.count)
                raise PayloadCorrupt(fault, partition, p.base_offset, stored=stored)
            found.append(StoredBatch(partition, p.base_offset, p.count, p.timestamp_ms, bytes(p.data)))
        return found

    def survey(self, partition: PartitionKey, offset: int, *, count_max: int) -> list[Mark]:
        found = islice(self._from(partition, offset), count_max)
        return [Mark(p.base_offset, p.count, p.timestamp_ms, len(p.data)) for p in found]

    def _from(self, partition: PartitionKey, offset: int) -> Iterator[Payload]:
        stored = sorted(self.payloads[partition], key=where_of)
        return (p for p in stored if p.base_offset + p.count > offset)

    def entries(self) -> Iterator[tuple[Slot, Entry]]:
        return ((slot, entry) for slot, log in self.log.items() for entry in log.values())

    def payload_keys(self) -> set[PayloadKey]:
        """Of what is in the log."""
        return {k for _, x in self.entries() if (k := payload_key_of(x)) is not None}


def where_of(x: PayloadKey | Payload) -> tuple[int, int, int]:
    return x.base_offset, x.timestamp_ms, x.count


def _fault(p: Payload) -> str:
    return fault_of(p.data, BatchKey(p.base_offset, p.timestamp_ms, p.count))
