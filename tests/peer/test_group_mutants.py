"""The tests of groups can fail: each of these lies, told by otherwise good code, is caught by one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshq.peer.core import consuming
from meshq.peer.core.desks import Desks
from meshq.streams.groups import desk, state
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.hands import Hand, Member
from meshq.streams.groups.state import GroupState, Lease
from meshq.streams.groups.table import GroupTable
from meshq.streams.groups.words import Settle, Verdict
from tests.peer import test_core_consuming as tests

Patch = pytest.MonkeyPatch


def pushes_before_the_commit(patch: Patch) -> None:
    hand_out = QueueDesk._hand_out

    def lie(self: QueueDesk) -> Any:
        ops = list(hand_out(self))
        pushed = (
            [Hand(m, b, ((first, end, 1),), 0) for m, b, first, end in (self._granting or ())] if ops else []
        )
        LIES.append(pushed)
        return ops

    take = Desks._take

    def pushing(self: Desks, part: Any) -> None:
        LIES.clear()
        take(self, part)
        self._hands += [(part.key, h) for pushed in LIES for h in pushed]

    patch.setattr(QueueDesk, "_hand_out", lie)
    patch.setattr(Desks, "_take", pushing)


LIES: list[Any] = []


def answers_before_the_commit(patch: Patch) -> None:
    add = Desks.add

    def lie(self: Desks, part: Any, op: Any, ref: Any = None) -> None:
        add(self, part, op)
        if ref is not None:
            self.answer(ref[0], ref[1], [])

    patch.setattr(Desks, "add", lie)


def forgets_at_restart(patch: Patch) -> None:
    """The row is written without what was acknowledged out of order."""
    encode = GroupState.encode

    def lie(self: GroupState) -> bytes:
        back, self.back = self.back, type(self.back)()
        try:
            return encode(self)
        finally:
            self.back = back

    patch.setattr(GroupState, "encode", lie)
    patch.setattr(GroupTable, "restore", lambda self, row, value: None)


def looks_at_no_lease(patch: Patch) -> None:
    settle = GroupState._settle

    def lie(self: GroupState, op: Settle, first: int, end: int, lease: int) -> Any:
        held = self.leased.get(first)
        return settle(self, op, first, end, held.lease if held else lease)

    patch.setattr(GroupState, "_settle", lie)


def looks_at_no_member(patch: Patch) -> None:
    apply = GroupState.apply

    def lie(self: GroupState, op: Any, index: int) -> Any:
        return apply(
            self, Settle(op.verdict, b"", op.ranges, op.delay_ms) if isinstance(op, Settle) else op, index
        )

    patch.setattr(GroupState, "apply", lie)


def counts_no_attempts(patch: Patch) -> None:
    patch.setattr(state, "Lease", lambda member, lease, attempts: Lease(member, lease, 1))


def counts_what_nobody_saw(patch: Patch) -> None:
    patch.setattr(
        consuming, "Verdict", lambda verdict: Verdict.NACK if verdict == Verdict.RELEASE else Verdict(verdict)
    )


def skips_a_record(patch: Patch) -> None:
    grant = GroupState._grant

    def lie(self: GroupState, member: bytes, first: int, end: int, index: int) -> bool:
        done = grant(self, member, first, end, index)
        self.leased.remove(first, first + (end - first > 1))
        return done

    patch.setattr(GroupState, "_grant", lie)


def never_takes_back(patch: Patch) -> None:
    patch.setattr(QueueDesk, "_give_back_late", lambda self: ())


def hands_back_without_a_wait(patch: Patch) -> None:
    patch.setattr(desk, "redelivery_delay_ms", lambda attempts, rng: 0)


def forgets_its_room(patch: Patch) -> None:
    patch.setattr(Member, "room", lambda self: 1_000_000)


def keeps_what_was_left(patch: Patch) -> None:
    on_leave = QueueDesk.on_leave
    patch.setattr(
        QueueDesk, "on_leave", lambda self, member, for_good: on_leave(self, member, for_good=False)
    )


CAUGHT: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (pushes_before_the_commit, tests.test_nothing_is_handed_out_before_the_grant_is_on_disk),
    (
        answers_before_the_commit,
        tests.test_a_crash_before_the_acknowledgement_is_on_disk_loses_it_and_it_was_not_confirmed,
    ),
    (forgets_at_restart, tests.test_what_is_acknowledged_is_not_handed_out_again_also_after_a_restart),
    (looks_at_no_lease, tests.test_late_verdicts_do_not_count_and_an_acknowledgement_twice_does_no_harm),
    (looks_at_no_member, tests.test_another_members_record_is_not_settled),
    (counts_no_attempts, tests.test_nack_brings_it_back_after_the_delay),
    (counts_what_nobody_saw, tests.test_a_record_given_back_unseen_has_not_been_tried),
    (skips_a_record, tests.test_what_is_acknowledged_is_not_handed_out_again_also_after_a_restart),
    (never_takes_back, tests.test_late_verdicts_do_not_count_and_an_acknowledgement_twice_does_no_harm),
    (hands_back_without_a_wait, tests.test_nack_without_a_delay_waits_longer_each_time),
    (forgets_its_room, tests.test_no_more_is_out_than_a_member_asked_for),
    (keeps_what_was_left, tests.test_a_member_that_leaves_gives_back_at_once_one_that_is_cut_off_in_time),
]


@pytest.mark.parametrize(("mutant", "test"), CAUGHT, ids=[mutant.__name__ for mutant, _ in CAUGHT])
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test()
