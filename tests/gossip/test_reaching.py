"""Writing to those who may be there: suggested addresses and the dead."""

from __future__ import annotations

import math

from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.suggestions import SUGGESTIONS_MAX
from meshq.gossip.wire import Gossip
from meshq.gossip.words import (
    AddressSuggested,
)
from tests.gossip.scripts import hear, knowing, pass_time, sent, signed
from tests.gossip.simulation import address_of, member


def tries(m: Membership, until: float) -> list[int]:
    """In which seconds something is sent to the suggested address."""
    return [
        math.floor(at)
        for at, x in pass_time(m, until)
        for address, g in sent([x])
        if address == "seed.lan:7700" and g.ask
    ]


def test_a_suggested_address_is_tried_at_once_and_ever_more_rarely() -> None:
    m = member(1, registered=[1, 2])
    ((address, gossip),) = sent(m.handle(AddressSuggested("seed.lan:7700", keep=True), now=0.0))
    assert address == "seed.lan:7700"
    assert wire.read_record(gossip.records[0]) == m.own
    assert m.handle(AddressSuggested("seed.lan:7700"), now=0.0) == []
    assert tries(m, 100) == [1, 3, 7, 15, 31, 61, 91]


def test_it_is_tried_no_more_while_the_one_who_answered_is_there() -> None:
    m = member(1, registered=[1, 2])
    ((_, gossip),) = sent(m.handle(AddressSuggested("seed.lan:7700"), now=0.0))
    hear(m, 2, Gossip(answered=gossip.ask), records=[signed(2)])
    found = tries(m, 10)
    assert found
    assert min(found) >= 3  # dead by then


def test_suggestions_are_bounded_and_a_flood_costs_few_datagrams() -> None:
    m = member(1, registered=[1, 2])
    flood = [f"10.9.{n // 250}.{n % 250}:1" for n in range(5_000)]
    effects = [x for address in flood for x in m.handle(AddressSuggested(address), now=0.0)]
    assert len(effects) == SUGGESTIONS_MAX
    assert m.suggestions_ignored == 5_000 - SUGGESTIONS_MAX
    assert len(m.handle(AddressSuggested("seed.lan:7700", keep=True), now=0.0)) == 1


def test_the_dead_are_written_to_with_what_is_said_of_them() -> None:
    m = knowing(2)
    asked = [g for t, x in pass_time(m, 20.0) for a, g in sent([x]) if t > 8 and a == address_of(2) and g.ask]
    assert 9 <= len(asked) <= 13
    assert all(g.claims[0].dead and g.records for g in asked)
