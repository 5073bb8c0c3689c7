"""The tests of dead letters, redrive and reset can fail: each of these lies is caught by one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshq.entries import EntryKind
from meshq.errors import MeshqError
from meshq.peer.core import burying
from meshq.peer.core.burying import Burying
from meshq.peer.core.desks import Desks, Part
from meshq.peer.core.group_answers import GroupAnswers
from meshq.peer.core.group_facts import GroupFacts
from meshq.peer.core.slots import Slots
from meshq.streams.groups import state
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.rewound import Rewound
from meshq.streams.groups.standing import Standing
from meshq.streams.groups.state import Back, GroupState
from meshq.streams.groups.words import Bury, Redrive, Reset, Settle, Verdict, encode_group
from tests.peer import test_core_bad_consumers as bad
from tests.peer import test_core_dead_letters as letters
from tests.peer import test_core_groups_asked as asked

Patch = pytest.MonkeyPatch


def hands_out_once_more(patch: Patch) -> None:
    take_back = GroupState._take_back

    def lie(self: GroupState, first: int, end: int, back: Back) -> None:
        right, self.max_deliver = self.max_deliver, self.max_deliver + bool(self.max_deliver)
        take_back(self, first, end, back)
        self.max_deliver = right

    patch.setattr(GroupState, "_take_back", lie)


def buries_without_an_end(patch: Patch) -> None:
    patch.setattr(GroupState, "_bury", lambda self, first, end: True)


def writes_no_letter(patch: Patch) -> None:
    def lie(self: Slots, slot: Any, partition: Any, letters: Any, moved: Any) -> int:
        return self.append(slot, EntryKind.GROUP, encode_group(moved)).index

    patch.setattr(Slots, "bury", lie)


def writes_the_letter_and_ends_nothing(patch: Patch) -> None:
    apply = GroupState.apply
    patch.setattr(GroupState, "apply", lambda self, op, i: () if isinstance(op, Bury) else apply(self, op, i))


def rejects_and_hands_out_all_the_same(patch: Patch) -> None:
    settle = GroupState._settle

    def lie(self: GroupState, op: Settle, first: int, end: int, lease: int) -> Any:
        refused = settle(self, op, first, end, lease)
        if op.verdict == Verdict.REJECT:
            self.back.set(first, end, Back(1, 0))
        return refused

    patch.setattr(GroupState, "_settle", lie)


def takes_a_dead_letter_for_done(patch: Patch) -> None:
    patch.setattr(state, "GRAVES_MAX", 0)


def forgets_in_its_row_what_is_dying(patch: Patch) -> None:
    encode = GroupState.encode

    def lie(self: GroupState) -> bytes:
        dying, self.dying = self.dying, Intervals()
        try:
            return encode(self)
        finally:
            self.dying = dying

    patch.setattr(GroupState, "encode", lie)


def leaves_what_is_dying_to_its_first_member(patch: Patch) -> None:
    patch.setattr(Burying, "on_led", lambda self, slot: None)


def puts_the_letters_anywhere(patch: Patch) -> None:
    patch.setattr(burying, "draw_id", lambda source, slots, draw: draw())


def gives_up_when_the_disk_is_full(patch: Patch) -> None:
    refuse = Desks.refuse

    def lie(self: Desks, part: Part, error: MeshqError) -> None:
        burial = part.burial
        refuse(self, part, error)
        part.burial = burial

    patch.setattr(Desks, "refuse", lie)


def puts_letters_back_twice(patch: Patch) -> None:
    redrive = GroupState._redrive

    def lie(self: GroupState, op: Redrive) -> bool:
        done = redrive(self, op)
        self.redriven = op.since
        return done

    patch.setattr(GroupState, "_redrive", lie)


def takes_from_who_has_it(patch: Patch) -> None:
    patch.setattr(GroupState, "_done", lambda self, first, end: [(first, end)])


def keeps_its_leases_at_a_reset(patch: Patch) -> None:
    apply = GroupState.apply

    def lie(self: GroupState, op: Any, index: int) -> Any:
        leased = self.leased
        result = apply(self, op, index)
        if isinstance(op, Reset):
            self.leased = leased
        return result

    patch.setattr(GroupState, "apply", lie)


def puts_back_what_a_reset_had_handed_out(patch: Patch) -> None:
    patch.setattr(Rewound, "covers", lambda self, letter, offset: False)


def resets_whatever_came_between(patch: Patch) -> None:
    apply = Standing.apply

    def lie(self: Standing, op: Any, index: int) -> Any:
        if isinstance(op, Reset):
            op = Reset(op.start, op.name, self.reset)
        return apply(self, op, index)

    patch.setattr(Standing, "apply", lie)


def tells_what_no_majority_confirmed(patch: Patch) -> None:
    patch.setattr(GroupAnswers, "_confirm", lambda self, slot, done, lost: done())


def deletes_under_its_members(patch: Patch) -> None:
    patch.setattr(GroupFacts, "members", lambda self, key: 0)


rejected = letters.test_a_rejected_record_is_moved_to_the_dead_letters_with_what_was_said_of_it


def hands_more_to_who_is_stuck(patch: Patch) -> None:
    patch.setattr(QueueDesk, "_doubt", lambda self, held: None)


CAUGHT: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (
        hands_out_once_more,
        letters.test_a_record_is_handed_out_max_deliver_times_and_then_it_is_a_dead_letter,
    ),
    (buries_without_an_end, rejected),
    (writes_no_letter, rejected),
    (
        writes_the_letter_and_ends_nothing,
        rejected,
    ),
    (
        rejects_and_hands_out_all_the_same,
        rejected,
    ),
    (
        takes_a_dead_letter_for_done,
        rejected,
    ),
    (forgets_in_its_row_what_is_dying, letters.test_the_state_survives_its_row),
    (leaves_what_is_dying_to_its_first_member, letters.test_a_crash_in_between_moves_it_exactly_once),
    (puts_the_letters_anywhere, letters.test_its_partitions_are_in_the_slots_of_the_source_and_grow_with_it),
    (gives_up_when_the_disk_is_full, letters.test_what_the_disk_refuses_is_moved_later),
    (
        puts_letters_back_twice,
        asked.test_redrive_hands_dead_letters_out_again_to_their_group_alone_each_once,
    ),
    (takes_from_who_has_it, asked.test_redrive_after_a_reset_takes_nobody_away_from_who_has_it),
    (keeps_its_leases_at_a_reset, lambda: asked.test_reset_begins_elsewhere({"to": "latest"}, 9)),
    (
        puts_back_what_a_reset_had_handed_out,
        asked.test_redrive_after_a_reset_hands_nothing_out_that_was_acknowledged_since,
    ),
    (
        resets_whatever_came_between,
        lambda: asked.test_a_reset_counts_once_and_never_behind_another_one_that_it_did_not_see(1),
    ),
    (tells_what_no_majority_confirmed, asked.test_a_leader_that_is_away_is_an_error_and_not_left_out),
    (
        hands_more_to_who_is_stuck,
        bad.test_one_that_never_says_anything_costs_each_record_one_delivery_and_others_do_them,
    ),
    (deletes_under_its_members, asked.test_delete_takes_a_group_without_members_and_its_dead_letters),
]


@pytest.mark.parametrize(("mutant", "test"), CAUGHT, ids=[mutant.__name__ for mutant, _ in CAUGHT])
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, MeshqError)):
        test()
