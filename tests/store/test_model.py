"""Lookups by offset and by time, against a list that is searched from the front."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.entries import Payload, Write
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.limits import MIB
from meshq.store import Store
from meshq.store.apply import apply_writes, drop_piece

from .helpers import MESH, P0, TOPIC, payload

NEIGHBOURS = (
    PartitionKey(TOPIC, 1),
    PartitionKey(TopicId(b"a" * 16), 0),
    PartitionKey(TopicId(b"z" * 16), 0),
)

batches = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)), max_size=12)


def laid_out(steps: list[tuple[int, int, int]]) -> list[Payload]:
    """Batches along a partition: (records, gap before it, time passed since the one before)."""
    made, offset, now = [], 0, 10
    for count, gap, passed in steps:
        offset, now = offset + gap, now + passed
        made.append(payload(offset, count=count, at=now, size=20))
        offset += count
    return made


@settings(max_examples=60, deadline=None)
@given(steps=batches, around=st.booleans(), below=st.integers(0, 40), data=st.data())
def test_lookups_agree_with_a_dumb_model(steps, around, below, data):
    made = laid_out(steps)
    others = tuple(payload(n, at=n, partition=p) for p in NEIGHBOURS for n in range(3)) if around else ()
    with tempfile.TemporaryDirectory() as path:
        store = Store.open(Path(path), mesh_id=MESH, bytes_max=16 * MIB)
        with store._dbs.env.begin(write=True, buffers=True) as txn:
            apply_writes(txn, store._dbs, [Write(1, Slot(0), payloads=(*made, *others))])
            kept = [p for p in made if p.base_offset + p.count > below]
            piece = drop_piece(txn, store._dbs, P0, below, count_max=1_000)
            assert (piece.finished, piece.count) == (True, len(made) - len(kept))
        try:
            for _ in range(10):
                check_reads(store, kept, data)
            assert store.first_offset(P0) == (kept[0].base_offset if kept else None)
        finally:
            store.close()


def check_reads(store: Store, kept: list[Payload], data: st.DataObject) -> None:
    offset, end = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 60))
    bytes_max, count_max = data.draw(st.integers(1, 1_000)), data.draw(st.integers(1, 5))
    want: list[Payload] = []
    for p in kept:
        if p.base_offset + p.count > offset and p.base_offset < end and len(want) < count_max:
            if want and sum(len(w.data) for w in (*want, p)) > bytes_max:
                break
            want.append(p)
    found = store.read_batches(P0, offset, end=end, bytes_max=bytes_max, count_max=count_max)
    assert [(b.base_offset, b.count, b.timestamp_ms, b.data) for b in found] == [
        (p.base_offset, p.count, p.timestamp_ms, p.data) for p in want
    ]
    at = data.draw(st.integers(0, 50))
    later = [p.base_offset for p in kept if p.timestamp_ms >= at and p.base_offset < end]
    assert store.offset_at(P0, at, end=end) == (later[0] if later else end)
