"""Placement: every peer computes the same, loads stay level, little moves.

Three replicas, 256 slots, a cap of 25 %, means over 20 seeds:

    peers   max/mean of replicas   with a plain ring of 128 tokens   moved by a join, of the ideal
        4                   1.05                              1.07                            1.00
       10                   1.15                              1.15                            1.01
       20                   1.24                              1.33                            1.08
       50                   1.30                              1.65                            1.33

At 10 peers, over 100 seeds: 1.155 (standard error 0.004) and 1.00 (0.01). The cap does not bind there: this
is what rendezvous gives by itself, whose moves are the ideal on average, so that a figure below (a first
measurement over few seeds said 1.13 and 0.93) is luck with the seeds and not to be had by another cap.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections import Counter
from hashlib import blake2b
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.ids import PeerId, TopicId
from meshq.ring import CAP, RingPeer, owners, slot_of, stride_of

SLOTS = 256
Placement = list[tuple[PeerId, ...]]


def peers_of(seed: int, count: int) -> list[RingPeer]:
    rng = random.Random(seed)
    return [RingPeer(PeerId(rng.randbytes(16))) for _ in range(count)]


def load_of(placement: Placement) -> Counter[PeerId]:
    return Counter(peer for slot in placement for peer in slot)


def max_over_mean(placement: Placement, peers: list[RingPeer]) -> float:
    load = load_of(placement)
    return max(load.values()) * len(peers) / sum(load.values())


def moved(before: Placement, after: Placement) -> int:
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


def token_ring(peers: list[RingPeer], *, replicas: int, tokens: int) -> Placement:
    """What most do instead: each peer at `tokens` random places, a slot goes to the next distinct peers."""

    def place(data: bytes) -> int:
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")

    ring = sorted((place(p.peer + bytes([n])), p.peer) for p in peers for n in range(tokens))
    result: Placement = []
    for slot in range(SLOTS):
        at = bisect(ring, (place(slot.to_bytes(4, "big")), b""))
        found: list[PeerId] = []
        while len(found) < replicas:
            peer = ring[at % len(ring)][1]
            if peer not in found:
                found.append(peer)
            at += 1
        result.append(tuple(found))
    return result


@pytest.mark.parametrize(("count", "most"), [(3, 1.0), (5, 1.08), (10, 1.16), (20, 1.25), (50, 1.305)])
def test_load_is_level(count: int, most: float) -> None:
    seen = [
        max_over_mean(owners(peers, slots=SLOTS, replicas=3), peers)
        for peers in (peers_of(seed, count) for seed in range(6))
    ]
    assert mean(seen) <= most, seen
    assert max(seen) <= CAP * 1.05, seen  # a cap is a whole number of slots


def test_a_plain_ring_of_tokens_is_less_level() -> None:
    for seed in range(3):
        peers = peers_of(seed, 50)
        plain = max_over_mean(token_ring(peers, replicas=3, tokens=128), peers)
        capped = max_over_mean(owners(peers, slots=SLOTS, replicas=3), peers)
        assert plain > 1.45 > 1.35 > capped


@pytest.mark.parametrize(("count", "most"), [(3, 1.02), (4, 1.05), (10, 1.02), (20, 1.12), (50, 1.35)])
def test_a_join_moves_little_beyond_its_share(count: int, most: float) -> None:
    """Ideal: the newcomer takes its share of the places, nothing moves between the others."""
    ratios = []
    for seed in range(6):
        peers = peers_of(seed, count + 1)
        before = owners(peers[:-1], slots=SLOTS, replicas=3)
        after = owners(peers, slots=SLOTS, replicas=3)
        ratios.append(moved(before, after) / (SLOTS * 3 / (count + 1)))
    assert 0.7 <= mean(ratios) <= most, ratios


def test_leadership_is_level_too() -> None:
    for count in (1, 2, 3, 10):
        peers = peers_of(count, count)
        leads = Counter(slot[0] for slot in owners(peers, slots=SLOTS, replicas=3))
        assert max(leads.values()) <= math.ceil(SLOTS / count * CAP)


peer_lists = st.lists(
    st.builds(
        RingPeer,
        peer=st.binary(min_size=16, max_size=16).map(PeerId),
        weight=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0, 3.0]),
        zone=st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda p: p.peer,
)


@given(peer_lists, st.integers(1, 40), st.integers(1, 5), st.randoms(use_true_random=False))
def test_owners_are_distinct_complete_and_the_same_for_everyone(
    peers: list[RingPeer], slots: int, replicas: int, rng: random.Random
) -> None:
    placement = owners(peers, slots=slots, replicas=replicas)
    assert len(placement) == slots
    for slot in placement:
        assert len(slot) == len(set(slot)) == min(replicas, len(peers))
        assert set(slot) <= {p.peer for p in peers}
    shuffled = rng.sample(peers, len(peers))  # everybody hears of the peers in another order
    assert owners(shuffled, slots=slots, replicas=replicas) == placement


def test_one_peer_owns_everything() -> None:
    (only,) = peers_of(1, 1)
    assert owners([only], slots=SLOTS, replicas=3) == [(only.peer,)] * SLOTS


def test_two_peers_hold_everything_and_lead_about_half() -> None:
    peers = peers_of(2, 2)
    placement = owners(peers, slots=SLOTS, replicas=3)
    assert all(set(slot) == {p.peer for p in peers} for slot in placement)
    leads = Counter(slot[0] for slot in placement)
    assert min(leads.values()) >= SLOTS * (2 - CAP) / 2 - 1


def test_no_peer_owns_nothing() -> None:
    assert owners([], slots=4, replicas=3) == [(), (), (), ()]


def test_what_is_computed_stays_as_it_is() -> None:
    """Mesh-wide agreement: another answer in a later version would move everybody's slots."""
    peers = [RingPeer(PeerId(bytes([n]) * 16)) for n in range(4)]
    placement = owners(peers, slots=8, replicas=2)
    assert [[peer[0] for peer in slot] for slot in placement] == [
        [0, 1],
        [1, 0],
        [3, 0],
        [1, 2],
        [1, 3],
        [2, 3],
        [0, 2],
        [0, 1],
    ]
    assert [slot_of(TopicId(bytes(16)), p, SLOTS) for p in (0, 1)] == [14, 173]


def test_a_weight_is_a_share() -> None:
    for seed in range(4):
        big, *rest = peers_of(seed, 9)
        peers = [RingPeer(big.peer, weight=3.0), *rest]
        load = load_of(owners(peers, slots=SLOTS, replicas=3))
        fair = SLOTS * 3 * 3 / 11
        assert fair * 0.75 <= load[big.peer] <= math.ceil(fair * CAP)


def test_a_peer_of_no_weight_is_drained_while_others_have_room() -> None:
    drained, *rest = peers_of(3, 5)
    peers = [RingPeer(drained.peer, weight=0.0), *rest]
    assert load_of(owners(peers, slots=SLOTS, replicas=3))[drained.peer] == 0


def test_when_nobody_has_a_weight_slots_have_owners_all_the_same() -> None:
    peers = [RingPeer(p.peer, weight=0.0) for p in peers_of(4, 4)]
    placement = owners(peers, slots=SLOTS, replicas=3)
    assert all(len(set(slot)) == 3 for slot in placement)


def test_replicas_are_spread_over_zones() -> None:
    for seed in range(4):
        peers = [RingPeer(p.peer, zone="abc"[n % 3]) for n, p in enumerate(peers_of(seed, 9))]
        zone = {p.peer: p.zone for p in peers}
        placement = owners(peers, slots=SLOTS, replicas=3)
        apart = sum(len({zone[peer] for peer in slot}) == 3 for slot in placement)
        assert apart == SLOTS
        assert max_over_mean(placement, peers) <= CAP * 1.05


def test_zones_yield_to_the_cap() -> None:
    """One peer alone in its zone does not get a replica of everything."""
    alone, *rest = peers_of(5, 10)
    peers = [RingPeer(alone.peer, zone="far"), *(RingPeer(p.peer, zone="near") for p in rest)]
    load = load_of(owners(peers, slots=SLOTS, replicas=3))
    assert load[alone.peer] <= math.ceil(SLOTS * 3 / 10 * CAP)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 3, 3), (4, 4, 2), (2, 2, 1), (5, 3, 1), (4, 2)])
def test_as_many_slots_are_spread_over_zones_as_the_cap_lets(sizes: tuple[int, ...]) -> None:
    """The smallest of three zones is in every slot, or holds all that its peers may; with two zones no slot
    is in one alone."""
    zones = [zone for zone, size in zip("abc", sizes, strict=False) for _ in range(size)]
    for seed in range(4):
        peers = [RingPeer(p.peer, zone=z) for p, z in zip(peers_of(seed, len(zones)), zones, strict=True)]
        zone = {p.peer: p.zone for p in peers}
        placement = owners(peers, slots=SLOTS, replicas=3)
        apart = sum(len({zone[peer] for peer in slot}) == len(sizes) for slot in placement)
        cap = math.ceil(SLOTS * 3 / len(peers) * CAP)
        assert apart == min(SLOTS, cap * sizes[-1])
        assert all(len({zone[peer] for peer in slot}) > 1 for slot in placement)


@pytest.mark.parametrize(
    ("weights", "least", "most"),
    [
        ((1, 1, 1, 2), 0.85, 1.0),
        ((1, 1, 2, 4), 0.9, 1.0),
        ((*[1] * 9, 3), 0.75, 0.95),
        ((*[1] * 5, 0.5), 1.0, 1.2),
    ],
)
def test_a_peer_gets_about_its_share_by_weight(weights: tuple[float, ...], least: float, most: float) -> None:
    """Of the last one; where its share is above all slots, all of them are its share. Rendezvous without
    replacement gives the heavy a little less than their share and the light a little more."""
    shares = []
    for seed in range(6):
        peers = [
            RingPeer(p.peer, weight=w) for p, w in zip(peers_of(seed, len(weights)), weights, strict=True)
        ]
        fair = min(SLOTS, SLOTS * 3 * weights[-1] / sum(weights))
        shares.append(load_of(owners(peers, slots=SLOTS, replicas=3))[peers[-1].peer] / fair)
    assert least <= mean(shares) <= most, shares


def test_another_weight_moves_what_the_peer_gains_and_no_more() -> None:
    for seed in range(6):
        *rest, last = peers_of(seed, 10)
        before = owners([*rest, last], slots=SLOTS, replicas=3)
        after = owners([*rest, RingPeer(last.peer, weight=3.0)], slots=SLOTS, replicas=3)
        assert moved(before, after) <= 1.1 * (load_of(after)[last.peer] - load_of(before)[last.peer])


@given(st.integers(1, 5_000))
def test_the_stride_is_the_first_coprime_above_the_golden_section(slots: int) -> None:
    golden = slots / ((1 + math.sqrt(5)) / 2)
    above = range(math.floor(golden) + 1, 2 * slots + 2)
    assert stride_of(slots) == next(s for s in above if math.gcd(s, slots) == 1)


@given(st.binary(min_size=16, max_size=16), st.integers(1, 600), st.data())
def test_partitions_of_a_topic_sit_on_different_slots_while_there_are_enough(
    topic: bytes, slots: int, data: st.DataObject
) -> None:
    partitions = data.draw(st.integers(1, slots))
    taken = {slot_of(TopicId(topic), p, slots) for p in range(partitions)}
    assert len(taken) == partitions
    assert taken <= set(range(slots))


def test_topics_begin_everywhere() -> None:
    rng = random.Random(6)
    first = Counter(slot_of(TopicId(rng.randbytes(16)), 0, SLOTS) for _ in range(SLOTS * 40))
    assert len(first) == SLOTS
    assert max(first.values()) < 40 * 2
