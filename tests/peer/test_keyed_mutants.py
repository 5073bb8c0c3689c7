"""The tests of keyed groups can fail: each of these lies, told by otherwise good code, is caught by one of
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshq.streams.groups import keyed
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.keyed import KeyedDesk
from meshq.streams.groups.state import GroupState
from tests.peer import test_core_keyed as tests

Patch = pytest.MonkeyPatch


def moves_a_key_that_is_held(patch: Patch) -> None:
    patch.setattr(KeyedDesk, "is_busy", lambda self, key: False)
    patch.setattr(KeyedDesk, "_is_free", lambda self, offset: True)


def takes_nothing_back_behind(patch: Patch) -> None:
    patch.setattr(KeyedDesk, "_take_back_behind", lambda self, op: None)


def hands_out_what_is_behind_something_that_waits(patch: Patch) -> None:
    offer = keyed._Turn.offer

    def lie(self: keyed._Turn, *args: Any) -> bool:
        self._stuck.clear()
        return offer(self, *args)

    patch.setattr(KeyedDesk, "waiting_of", lambda self, key: Anything())
    patch.setattr(keyed._Turn, "offer", lie)


class Anything(list[int]):
    """Whatever comes is next."""

    def __getitem__(self, _: Any) -> Any:
        return Anything()

    def __eq__(self, _: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def reads_no_keys_at_the_start(patch: Patch) -> None:
    begin = KeyedDesk.__post_init__

    def lie(self: KeyedDesk) -> None:
        begin(self)
        self._unknown = Intervals()

    patch.setattr(KeyedDesk, "__post_init__", lie)


def skips_what_it_passes_by(patch: Patch) -> None:
    def lie(self: GroupState, first: int, end: int) -> bool:
        self.next = end
        return True

    patch.setattr(GroupState, "_pass", lie)


def looks_no_further_than_it_has(patch: Patch) -> None:
    patch.setattr(KeyedDesk, "_wants_more", QueueDesk._wants_more)


def holds_rejected_records_against_those_behind(patch: Patch) -> None:
    follow = KeyedDesk._follow

    def lie(self: KeyedDesk, first: int, end: int) -> None:
        dying = [o for o in self._keys if self.state.dying.get(o) is not None]
        kept = {o: self._keys.pop(o) for o in dying}
        follow(self, first, end)
        self._keys.update(kept)

    patch.setattr(KeyedDesk, "_follow", lie)


CAUGHT: list[tuple[Callable[[Patch], None], Callable[..., None]]] = [
    (
        moves_a_key_that_is_held,
        tests.test_a_key_is_with_one_member_and_its_records_wait_until_they_are_done,
    ),
    (
        skips_what_it_passes_by,
        tests.test_a_key_is_with_one_member_and_its_records_wait_until_they_are_done,
    ),
    (
        takes_nothing_back_behind,
        tests.test_what_comes_back_takes_what_is_behind_it_along_and_comes_first_again,
    ),
    (
        hands_out_what_is_behind_something_that_waits,
        tests.test_what_comes_back_takes_what_is_behind_it_along_and_comes_first_again,
    ),
    (
        reads_no_keys_at_the_start,
        tests.test_a_new_leader_reads_the_keys_of_what_is_out_before_it_hands_out_anything,
    ),
    (looks_no_further_than_it_has, tests.test_other_keys_are_looked_for_behind_what_waits),
    (holds_rejected_records_against_those_behind, tests.test_a_rejected_record_holds_up_nobody),
]


@pytest.mark.parametrize(("mutant", "test"), CAUGHT, ids=[mutant.__name__ for mutant, _ in CAUGHT])
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test()
