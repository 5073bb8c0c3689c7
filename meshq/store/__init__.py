"""This peer's disk: slots' logs, their state and the batches, in one LMDB environment.

Everything that waits is committed together, with one full sync (group commit), by the one thread that writes;
reads are short transactions on the caller's thread. What is reported done is on disk. The store is dumb on
purpose: it keeps rows, entries and payloads as they are handed to it and knows nothing of what they mean.

    store.py        the public face
    writer.py       the writing thread: group commit, failure, deletion in pieces
    apply.py        what one transaction does to the databases
    reads.py        looking things up again, and checking what was found
    room.py         how much more may be accepted
    environment.py  opening LMDB; whose store it is
    directory.py    the directory, its permissions and its lock
    layout.py       keys
"""

from meshq.store.reads import SlotImage
from meshq.store.store import Store
from meshq.store.writer import Counters

__all__ = ["Counters", "SlotImage", "Store"]
