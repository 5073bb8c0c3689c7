"""What goes to disk of a slot, while the disk is slow."""

from __future__ import annotations

import pytest

from meshq.peer.core import saving
from meshq.replication.machine import Replica
from meshq.replication.quorum import Node
from meshq.replication.saved import REPLICA_ROW
from tests.peer.single import Single, identity, key_of


def test_a_trim_that_is_on_its_way_is_not_taken_back_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader keeps entries for followers that lack them; those that are on their way out are gone."""
    monkeypatch.setattr(saving, "LOG_ENTRIES_KEPT", 2)
    peer = Single()
    peer.hello()
    info = peer.make_topic()
    for _ in range(20):
        peer.produce(info, b"x")
    slot = peer.core.ctx.slot_of(key_of(info))
    host = peer.core.slots.hosts[slot]
    peer.hold = True
    peer.core.slots.saving.checkpoint(host)
    other = Node(identity("b").peer_id, bytes(16))
    match = Replica.match
    monkeypatch.setattr(Replica, "match", lambda self: {**match(self), other: 5})
    peer.core.slots.saving.checkpoint(host)
    peer.tick()
    first, second = (w.write for w in peer.waiting)
    assert first.trim_below is not None and first.trim_below > 6
    assert second.trim_below is None
    rows = [dict(w.rows) for w in (first, second)]
    assert rows[0][REPLICA_ROW] == rows[1][REPLICA_ROW], "both say where it begins then"
    peer.write()
    assert host.replica.log.start.index == first.trim_below - 1
