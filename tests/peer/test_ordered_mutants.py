"""The tests of ordered groups can fail: each of these lies, told by good code, is caught by one of them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from meshq.peer.core.leases import Leases
from meshq.peer.core.reading import Reading
from meshq.streams.groups import roster
from meshq.streams.groups.ordered import Asked, Began, OrderedDesk
from meshq.streams.groups.ordered_state import OrderedState
from meshq.streams.groups.roster import Roster
from meshq.streams.groups.words import LEADER, Assign, Settle
from tests.peer import test_core_ordered as tests

Patch = pytest.MonkeyPatch


def pushes_before_the_commit(patch: Patch) -> None:
    take = OrderedDesk.take

    def lie(self: OrderedDesk) -> Any:
        ops, want = take(self)
        for op in ops:
            member = self.members.get(op.member) if isinstance(op, Assign) else None
            if member is not None:
                self.notices.append(Began(member, 1, self.state.next, 1))
        return ops, want

    patch.setattr(OrderedDesk, "take", lie)


def counts_what_is_said_too_late(patch: Patch) -> None:
    settle = OrderedState._settle

    def lie(self: OrderedState, op: Settle, end: int, lease: int) -> bool:
        return settle(self, replace_member(op, self.holder), end, self.lease)

    patch.setattr(OrderedState, "_settle", lie)


def looks_at_no_member(patch: Patch) -> None:
    settle = OrderedState._settle

    def lie(self: OrderedState, op: Settle, end: int, lease: int) -> bool:
        return settle(self, replace_member(op, self.holder), end, lease)

    patch.setattr(OrderedState, "_settle", lie)


def replace_member(op: Settle, member: bytes) -> Settle:
    return Settle(op.verdict, member or op.member, op.ranges, op.delay_ms)


def gives_back_anybodys_lease(patch: Patch) -> None:
    release = OrderedState._release
    patch.setattr(OrderedState, "_release", lambda self, member, lease: release(self, LEADER, lease))


def grants_what_is_still_held(patch: Patch) -> None:
    def lie(self: OrderedDesk) -> None:
        """Nobody is asked."""
        self._asked_until = self.now

    patch.setattr(OrderedDesk, "_ask", lie)
    take = OrderedDesk.take

    def twice(self: OrderedDesk) -> Any:
        found = take(self)
        return take(self) if self._asked_until <= self.now else found

    patch.setattr(OrderedDesk, "take", twice)


def pushes_on_while_it_asks(patch: Patch) -> None:
    take_notices = Leases.take_notices

    def lie(self: Leases, key: Any, desk: OrderedDesk) -> None:
        asked = [n for n in desk.notices if isinstance(n, Asked)]
        take_notices(self, key, desk)
        for notice in asked:
            self.push_from(notice.member.ref, key.partition, desk.end, desk)

    patch.setattr(Leases, "take_notices", lie)


def forgets_leases_at_restart(patch: Patch) -> None:
    encode = OrderedState.encode

    def lie(self: OrderedState) -> bytes:
        kept, self.holder = self.holder, b""
        try:
            return encode(self)
        finally:
            self.holder = kept

    patch.setattr(OrderedState, "encode", lie)


def acknowledges_one_record(patch: Patch) -> None:
    settle = OrderedState._settle

    def lie(self: OrderedState, op: Settle, end: int, lease: int) -> bool:
        return settle(self, op, min(end, self.next + 1), lease)

    patch.setattr(OrderedState, "_settle", lie)


def forgets_what_it_had_counted(patch: Patch) -> None:
    release = OrderedState._release

    def lie(self: OrderedState, member: bytes, lease: int) -> None:
        release(self, member, lease)
        self.before = (b"", 0, 0)

    patch.setattr(OrderedState, "_release", lie)


def believes_in_the_silent(patch: Patch) -> None:
    patch.setattr(Roster, "look", lambda self, now: None)


def holds_its_own_sleep_against_others(patch: Patch) -> None:
    patch.setattr(Roster, "on_stall", lambda self, seconds: None)


def lets_nobody_go_at_once(patch: Patch) -> None:
    on_leave = OrderedDesk.on_leave
    patch.setattr(
        OrderedDesk, "on_leave", lambda self, member, for_good: on_leave(self, member, for_good=False)
    )


def lets_everybody_go_at_once(patch: Patch) -> None:
    on_leave = OrderedDesk.on_leave
    patch.setattr(
        OrderedDesk, "on_leave", lambda self, member, for_good: on_leave(self, member, for_good=True)
    )


def waits_for_ever_for_what_it_asked(patch: Patch) -> None:
    patch.setattr(OrderedDesk, "_is_lost", lambda self: self.state.holder not in self.roster)


def takes_back_before_the_others_came(patch: Patch) -> None:
    patch.setattr(roster, "GATHERING_S", -inf)


def gives_all_to_one(patch: Patch) -> None:
    patch.setattr(
        roster, "assign", lambda members, partitions: [min(members)] * partitions if members else []
    )


def grants_in_an_entry_of_its_own(patch: Patch) -> None:
    settle = OrderedDesk.settle

    def lie(self: OrderedDesk, *args: Any) -> Settle:
        op = settle(self, *args)
        self._returned = False
        return op

    patch.setattr(OrderedDesk, "settle", lie)


def never_counts_tries(patch: Patch) -> None:
    apply = OrderedState.apply

    def lie(self: OrderedState, op: Any, index: int) -> Any:
        found = apply(self, op, index)
        self.tries = 1
        return found

    patch.setattr(OrderedState, "apply", lie)


def tells_of_records_first(patch: Patch) -> None:
    tell, push, held = Leases.flush, Reading.flush, list[Leases]()

    def pushing(self: Reading) -> None:
        push(self)
        for leases in held:
            tell(leases)

    def waiting(self: Leases) -> None:
        held.append(self)

    patch.setattr(Leases, "flush", waiting)
    patch.setattr(Reading, "flush", pushing)


CAUGHT: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (pushes_before_the_commit, tests.test_nothing_is_pushed_before_the_lease_is_on_disk),
    (
        counts_what_is_said_too_late,
        tests.test_a_late_acknowledgement_does_not_count_and_does_not_move_the_successors_cursor,
    ),
    (
        looks_at_no_member,
        tests.test_a_late_acknowledgement_does_not_count_and_does_not_move_the_successors_cursor,
    ),
    (
        forgets_what_it_had_counted,
        tests.test_a_late_acknowledgement_does_not_count_and_does_not_move_the_successors_cursor,
    ),
    (gives_back_anybodys_lease, tests.test_another_members_lease_is_not_given_back),
    (
        grants_what_is_still_held,
        tests.test_a_second_member_gets_its_share_once_the_first_has_let_go_and_the_rest_goes_on,
    ),
    (
        pushes_on_while_it_asks,
        tests.test_a_second_member_gets_its_share_once_the_first_has_let_go_and_the_rest_goes_on,
    ),
    (
        gives_all_to_one,
        tests.test_a_second_member_gets_its_share_once_the_first_has_let_go_and_the_rest_goes_on,
    ),
    (forgets_leases_at_restart, tests.test_an_acknowledgement_stands_for_all_before_it_also_after_a_restart),
    (acknowledges_one_record, tests.test_an_acknowledgement_stands_for_all_before_it_also_after_a_restart),
    (believes_in_the_silent, tests.test_who_leaves_leaves_at_once_and_who_is_silent_in_time),
    (lets_nobody_go_at_once, tests.test_who_leaves_leaves_at_once_and_who_is_silent_in_time),
    (lets_everybody_go_at_once, tests.test_a_member_that_comes_back_in_time_keeps_its_partitions),
    (
        holds_its_own_sleep_against_others,
        tests.test_what_a_peer_did_not_hear_while_it_stood_still_is_held_against_nobody,
    ),
    (
        waits_for_ever_for_what_it_asked,
        tests.test_who_does_not_give_back_what_it_is_asked_for_loses_it_in_time,
    ),
    (
        takes_back_before_the_others_came,
        tests.test_a_new_leader_takes_nothing_from_a_holder_before_the_others_had_time_to_come,
    ),
    (grants_in_an_entry_of_its_own, tests.test_the_next_lease_is_granted_by_the_entry_that_ends_the_last),
    (never_counts_tries, tests.test_attempts_count_the_leases_that_began_with_the_same_record),
    (tells_of_records_first, tests.test_who_is_told_of_its_lease_hears_that_before_the_records),
]


@pytest.mark.parametrize(("mutant", "test"), CAUGHT, ids=[mutant.__name__ for mutant, _ in CAUGHT])
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test()
