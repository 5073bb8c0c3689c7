"""Witnesses: how two peers that keep records survive the loss of either, with a small third one.

A *witness* is a voter with a log and without a store of records. Its vote and its log are any voter's; what
it has of a payload it has only for as long as somebody lacks it:

    entry comes      with its payload, unless all *keepers* (the other members) have it already
    acknowledged     when both are on its disk: an entry of one keeper and the witness is on two disks, whole
    let go of        log and payloads up to `everywhere`, which leaders tell: the lowest match of all keepers

So of whatever was decided, some keeper lacks nothing or the witness has what it lacks. When the keeper that
has the most dies, the witness can be elected, and is, if its log is the longer one. It never *serves*: it
brings a keeper level from what it kept and hands over.

`everywhere` counts learners too. A witness that needs a snapshot gets one (of state, without payloads) when
all of it is everywhere, or when it was a voter of three in it: what was decided without its vote, both of the
others had to have. (Not when it lost the end of its log: that may have been decided with its vote.) So all
that it lets go of without regard to a learner lies before the entry that added that one, or is a snapshot of
a time before; a learner becomes a voter when it has all of that (leading.py).
"""

from __future__ import annotations

import msgspec

from meshq.replication.quorum import Node
from meshq.replication.words import AppendEntries, Item, SnapshotMeta


def for_witness(message: AppendEntries, everywhere: int) -> AppendEntries:
    """What a witness is sent of it: no payloads of what all keepers have."""
    items = tuple(i if i.entry.index > everywhere else Item(i.entry) for i in message.items)
    return msgspec.structs.replace(message, items=items, everywhere=everywhere)


def may_lack(meta: SnapshotMeta, witness: Node, everywhere: int, *, whole: bool = True) -> bool:
    """Whether nobody will ever have to get from this witness what is in the snapshot. `whole`: it has lost
    nothing that was decided with its vote.
    """
    return meta.last.index <= everywhere or (whole and meta.config.is_casting(witness))
