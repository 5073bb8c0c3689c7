"""Killed at any moment, a store has everything it had reported, and each write wholly or not at all."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

from meshq.entries import Write
from meshq.ids import Slot
from meshq.limits import MIB
from meshq.store import Store

from .helpers import MESH, P0, batch

S = Slot(1)
KILLS = 5

# Appends one entry, one batch and one row a write, and prints each token once it is reported done.
WRITER = """
import os, sys, threading
from meshq.entries import EntryKind, Payload, Write, make_entry
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.store import Store

path, mesh, topic, data = sys.argv[1], *map(bytes.fromhex, sys.argv[2:5])
store = Store.open(path, mesh_id=mesh, reserve_bytes=0)
image = store.load().get(Slot(1))
index, chain = (image.last_index, image.last_chain) if image else (0, bytes(8))
slots = threading.Semaphore(50)

def done(tokens):
    os.write(1, b"".join(b"%d\\n" % token for token in tokens))
    slots.release(len(tokens))

def failed(*what):
    os.write(2, repr(what).encode())

store.start(done, failed, on_fatal=failed, on_dropped=failed)
while True:
    slots.acquire()
    index += 1
    entry = make_entry(chain, index=index, term=1, kind=EntryKind.PUBLISH, timestamp_ms=index, body=b"x" * 50)
    chain = entry.chain
    payload = Payload(PartitionKey(TopicId(topic), 0), index - 1, 1, index, data)
    trim = index - 500 if index % 100 == 0 and index > 500 else None
    store.write(Write(index, Slot(1), (entry,), (payload,), ((b"last", b"%d" % index),), trim))
"""


def run_until_killed(path, after_lines: int) -> int:
    """The highest token the child reported before it was killed."""
    arguments = [str(path), MESH.hex(), P0.topic_id.hex(), batch(size=700).hex()]
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )  # without a buffer, for `communicate` would forget what is in it
    assert child.stdout and child.stderr
    seen = [child.stdout.readline() for _ in range(after_lines)]
    child.send_signal(signal.SIGKILL)
    rest, complaints = child.communicate(timeout=20)
    assert complaints == b""
    lines = [line for line in (*seen, *rest.splitlines(keepends=True)) if line.endswith(b"\n")]
    tokens = [int(line) for line in lines]
    assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
    return tokens[-1]


def test_what_was_reported_survives_kills(tmp_path):
    rng = random.Random(7)
    path = tmp_path / "s"
    for kill in range(KILLS):
        reported = run_until_killed(path, rng.randrange(1, 600))
        store = Store.open(path, mesh_id=MESH)
        try:
            assert store.boot_epoch == 2 * (kill + 1)
            check(store, reported)
        finally:
            store.close()


def check(store: Store, reported: int) -> None:
    image = store.load()[S]
    last = image.last_index
    assert last >= reported
    assert image.rows == {b"last": b"%d" % last}
    entries = store.read_entries(S, image.first_index, bytes_max=64 * MIB, count_max=100_000)
    assert [e.index for e in entries] == list(range(image.first_index, last + 1))
    assert entries[-1].chain == image.last_chain
    batches = store.read_batches(P0, 0, end=1 << 62, bytes_max=64 * MIB, count_max=100_000)
    assert [b.base_offset for b in batches] == list(range(last))


def test_a_killed_process_leaves_no_lock(tmp_path):
    run_until_killed(tmp_path / "s", 1)
    store = Store.open(tmp_path / "s", mesh_id=MESH)
    store.write(Write(1, S))
    store.close()
