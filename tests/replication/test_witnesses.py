"""A witness: what it may let go of, what is sent to it, and what it must not become."""

from __future__ import annotations

import random

import pytest

from meshq.errors import UsageError
from meshq.ids import PeerId, Slot
from meshq.replication.machine import Replica
from meshq.replication.progress import Pace, Progress
from meshq.replication.quorum import Config, Node, config_of, decode_config, encode_config, step_toward
from meshq.replication.saved import hard_row, restored
from meshq.replication.settings import Settings
from meshq.replication.snapshots import Sending
from meshq.replication.state import Configs, State
from meshq.replication.window import Log
from meshq.replication.witnesses import may_lack
from meshq.replication.words import (
    GENESIS,
    AppendEntries,
    Hard,
    Item,
    Persist,
    Persisted,
    Position,
    Received,
    Send,
    SnapshotMeta,
    SnapshotRead,
)
from tests.replication.test_following import items_after, position

A, B, W, C = (Node(PeerId(bytes([n]) * 16), b"\0") for n in (1, 2, 3, 4))
TWO = config_of([A, B, W], (), [W])


def witness() -> Replica:
    return Replica(
        Slot(0),
        W,
        hard=Hard(1, None),
        log=Log(),
        configs=[(0, TWO)],
        applied=0,
        rng=random.Random(1),
        now=0.0,
    )


def hears(r: Replica, frm: Node, message: AppendEntries) -> list[Persist]:
    """What it writes; all of it is on disk then."""
    written = []
    for effect in r.handle(Received(frm, message), now=1.0, wall_ms=0):
        if isinstance(effect, Persist):
            written.append(effect)
            r.handle(Persisted(effect.token), now=1.0, wall_ms=0)
    return written


def appends(
    term: int, prev: Position, items: tuple[Item, ...], commit: int, everywhere: int
) -> AppendEntries:
    return AppendEntries(term, prev, items, commit, 0, everywhere)


def test_it_needs_what_some_keeper_lacks_and_what_is_not_decided() -> None:
    r = witness()
    items = items_after(GENESIS, 1, 1, 1)
    hears(r, A, appends(1, GENESIS, items, 3, 2))
    assert r.everywhere == 2
    hears(r, A, appends(1, position(items[2]), (), 3, 9))  # no further than its log is known to agree
    assert r.everywhere == 3


def test_what_was_everywhere_and_is_cut_off_is_not_everywhere_any_more() -> None:
    r = witness()
    old = items_after(GENESIS, 1, 1, 1)
    hears(r, A, appends(1, GENESIS, old, 1, 3))
    new = items_after(position(old[0]), 2)
    hears(r, B, appends(2, position(old[0]), new, 2, 0))
    assert r.commit_index == 2
    assert r.everywhere == 1


def test_that_entries_may_be_without_payloads_is_on_disk_with_them() -> None:
    r = witness()
    (written,) = hears(r, A, appends(1, GENESIS, items_after(GENESIS, 1, 1, 1), 1, 2))
    assert written.hard is not None and written.hard.bare_until == 2
    hard, _, _ = restored(dict([hard_row(written.hard)]), TWO, ())
    assert hard == written.hard


def test_a_snapshot_it_may_have_without_payloads() -> None:
    last = Position(10, 1, b"")
    voter, learner = SnapshotMeta(last, TWO), SnapshotMeta(last, config_of([A], [B, W], [W]))
    assert may_lack(voter, W, 0)
    assert may_lack(learner, W, 10) and not may_lack(learner, W, 9)
    five = SnapshotMeta(last, config_of([A, B, C, W, Node(PeerId(b"5" * 16), b"\0")], (), [W]))
    assert not may_lack(five, W, 9)  # three others decide without it, and the fourth may lack that


@pytest.mark.parametrize(("lacks", "everywhere", "sent"), [(0, 0, True), (9, 9, False), (9, 10, True)])
def test_who_lost_something_waits_for_a_snapshot_until_all_have_it(
    lacks: int, everywhere: int, sent: bool
) -> None:
    """Some of what it lost was decided with its vote, and a keeper may lack it."""
    log, configs = Log(), Configs([(0, TWO)])
    state = State(Slot(0), A, Settings(), random.Random(1), Hard(1, None), log, configs, 0)
    sending, p = Sending(state), Progress(1, pace=Pace.SNAPSHOT, lacks=lacks)
    sending.begin(W, p)
    meta = SnapshotMeta(Position(10, 1, b""), TWO)
    sending.on_read(SnapshotRead(W, meta, 0, b"", True), p, everywhere=everywhere)
    assert any(isinstance(e, Send) for e in state.out) == sent


def test_a_member_is_a_witness_or_a_keeper_for_as_long_as_it_is_one() -> None:
    for target in (config_of([A, B, W]), config_of([A, B, W], (), [W, B]), config_of([A], [B, W])):
        with pytest.raises(UsageError, match="for as long as it is a member"):
            step_toward(TWO, target)
    joint = step_toward(TWO, config_of([A, B, C]))
    assert joint.witnesses == (W,) and joint.keepers() == {A, B, C}


def test_witnesses_alone_are_no_slot() -> None:
    with pytest.raises(UsageError, match="keeps payloads"):
        config_of([W], [A], [W])


def test_a_configuration_from_before_there_were_witnesses_is_read() -> None:
    assert decode_config(b"\x93" + encode_config(Config((A, B), (), (C,)))[1:-1]) == Config((A, B), (), (C,))
