"""A slot replaced by what was put aside: all of it or nothing, wherever the process is killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from meshq.entries import ASIDE_ROW, PayloadKey, Write
from meshq.ids import Slot
from meshq.limits import MIB
from meshq.store import Store

from .helpers import MESH, P0, Heard, entries, payload, put

S, OTHER = Slot(7), Slot(8)
KILLS = 6

# Snapshot after snapshot: its rows in pieces, each with a batch, and the last write puts it in place. A row
# of every snapshot says its number; its log begins empty and gets one entry.
WRITER = """
import os, sys, threading
from meshq.entries import ASIDE_ROW, EntryKind, Payload, Write, make_entry
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.store import Store

path, mesh, topic, data = sys.argv[1], *map(bytes.fromhex, sys.argv[2:5])
store = Store.open(path, mesh_id=mesh, reserve_bytes=0)
image = store.load().get(Slot(7))
number = int(image.rows.get(b"R", b"0")) if image else 0
partition = PartitionKey(TopicId(topic), 0)
slots = threading.Semaphore(40)
installs = {}

def done(tokens):
    for token in tokens:
        if token in installs:
            os.write(1, b"%d\\n" % installs.pop(token))
    slots.release(len(tokens))

def failed(*what):
    os.write(2, repr(what).encode())

store.start(done, failed, on_fatal=failed, on_dropped=failed)
token = 0
def write(**what):
    global token
    slots.acquire()
    token += 1
    if "replace" in what:
        installs[token] = number
    store.write(Write(token, Slot(7), **what))

while True:
    number += 1
    for piece in range(5):
        rows = tuple((ASIDE_ROW + b"P%d.%d" % (piece, i), b"%d" % number) for i in range(20))
        write(aside=(*rows, (b"m", b"%d" % piece)), clear_aside=ASIDE_ROW if piece == 0 else None,
              payloads=(Payload(partition, 5 * number + piece, 1, number, data),))
    write(replace=(b"H",), rows=((b"R", b"%d" % number),))
    entry = make_entry(bytes(8), index=number, term=1, kind=EntryKind.NOOP, timestamp_ms=1, body=b"")
    write(entries=(entry,), rows=((b"H", b"hard"),))
"""


def run_until_killed(path: Path, after_lines: int) -> int:
    arguments = [str(path), MESH.hex(), P0.topic_id.hex(), bytes(payload(0, size=300).data).hex()]
    command = [sys.executable, "-c", WRITER, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    seen = [child.stdout.readline() for _ in range(after_lines)]
    child.send_signal(signal.SIGKILL)
    rest, complaints = child.communicate(timeout=20)
    assert complaints == b""
    return int([x for x in (*seen, *rest.splitlines(keepends=True)) if x.endswith(b"\n")][-1])


def test_a_kill_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(KILLS):
        reported = run_until_killed(tmp_path / "s", rng.randrange(1, 60))
        store = Store.open(tmp_path / "s", mesh_id=MESH)
        try:
            image = store.load()[S]
            number = int(image.rows[b"R"])
            assert number >= reported
            state = {k: v for k, v in image.rows.items() if k[:1] == b"P"}
            assert len(state) == 100
            assert set(state.values()) == {b"%d" % number}, "rows of one snapshot, all of them"
            assert image.last_index in (0, number), "and no entry from before it"
            pieces = int(image.aside.get(b"m", b"-1")) + 1
            assert len([k for k in image.aside if k.startswith(ASIDE_ROW)]) == 20 * pieces
            batches = store.read_batches(P0, 0, end=1 << 62, bytes_max=64 * MIB, count_max=100_000)
            assert batches[-1].base_offset >= 5 * number + 4, "a state's batches are there before it is"
        finally:
            store.close()


def test_a_replaced_slot_has_what_was_aside_and_nothing_else(store: Store, heard: Heard) -> None:
    log = tuple(entries(1, 9))
    rows = ((b"H", b"hard"), (b"P1", b"old"), (b"P2", b"old"))
    put(
        store,
        heard,
        Write(1, S, entries=log, rows=rows, aside=((b"ra", b"1"), (b"t", b"2"))),
        Write(2, OTHER, entries=log, rows=rows, aside=((b"rP1", b"other"),)),
        Write(3, S, aside=((b"rP1", b"new"), (b"m", b"")), clear_aside=b"r"),
        Write(4, S, replace=(b"H", b"none"), rows=((b"R", b"begun"),)),
        Write(5, S, entries=tuple(entries(20, 20))),
    )
    images = store.load()
    assert images[S].rows == {b"H": b"hard", b"P1": b"new", b"R": b"begun"}
    assert (images[S].first_index, images[S].last_index, images[S].aside) == (20, 20, {})
    assert images[OTHER].rows == dict(rows)
    assert (images[OTHER].last_index, images[OTHER].aside) == (9, {b"rP1": b""})


def test_a_slot_emptied_keeps_what_is_written_with_it(store: Store, heard: Heard) -> None:
    put(
        store,
        heard,
        Write(1, S, entries=tuple(entries(1, 3)), rows=((b"P1", b"old"),), aside=((b"rP1", b"half"),)),
        Write(2, S, replace=(), clear_aside=b"", rows=((b"H", b"hard"),)),
    )
    image = store.load()[S]
    assert (image.rows, image.last_index, image.aside) == ({b"H": b"hard"}, 0, {})


def test_of_doubtful_batches_those_go_that_another_one_stands_beside(
    opened: Callable[..., Store], tmp_path: Path
) -> None:
    store, heard = opened(tmp_path / "s"), Heard()
    mine = [payload(5, count=2, at=100), payload(7, at=100), payload(8, at=100)]
    brought = [payload(5, at=200), payload(6, at=200), payload(7, at=100), payload(8, count=3, at=90)]
    keys = tuple(PayloadKey(P0, p.base_offset, p.timestamp_ms, p.count) for p in mine)
    put(
        store,
        heard,
        Write(1, S, payloads=tuple(mine)),
        Write(2, S, payloads=tuple(brought)),
        Write(3, S, replace=(), doubtful=keys),
    )
    found = store.read_batches(P0, 5, end=99, bytes_max=MIB, count_max=99)
    want = [(p.base_offset, p.count, p.timestamp_ms) for p in brought]
    assert [(b.base_offset, b.count, b.timestamp_ms) for b in found] == want
