"""Whoever means harm, with a key or without: bounded memory, honest clients served, all refusals counted.

Each attack of `attacks.py` against three real peers under an honest client's load. These take minutes:
`pytest -m long tests/hostile`. What an attack may cost is compared within its own test, in turns with calm.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.hostile.attacks import ATTACKS
from tests.hostile.siege import siege
from tests.peers import wait_until

MEMORY_MIB_MAX = 200
P99_RATIO_MAX = 2.0
ROUNDS = 3
ROUND_S = 6.0

# What the peers must have counted: for each of these, at least one name that contains it.
REFUSALS = {
    "half_open": ["clients_handshake_unfinished", "door_handshake_unfinished", "peers_handshake_unfinished"],
    "junk": ["clients_handshake_foreign", "feed_handshake_broken", "peers_handshake_foreign"],
    "handshakes_that_claim_much": ["clients_handshake_unfinished", "peers_cut_greedy"],
    "wrong_keys": ["refused_clients_key", "refused_peers_key"],
    "replayed_connections": ["clients_handshake_broken"],
    "datagrams": ["datagram_foreign", "datagram_short", "datagram_replayed"],
    "door": ["door_cut_greedy", "door_refused_RemoteProtocolError"],
    "endless_messages": ["clients_cut_greedy", "ingest_cut_greedy"],
    "unfinished_messages": ["clients_cut_crowded"],
    "feed_subscriptions": ["feed_denied", "feed_over_limit"],
    "read_subscriptions": ["refused_Overloaded"],
    "slow_readers": ["clients_cut_unread"],
    "slow_subscribers": [],  # a feed drops what is not taken, and libzmq does not say how much
    "floods": ["refused_Forbidden", "refused_RemoteProtocolError"],
    "ingest_flood": ["ingest_Forbidden", "ingest_RemoteProtocolError"],
    "many_sessions": ["refused_Overloaded"],
}


def test_every_attack_has_its_refusals() -> None:
    assert REFUSALS.keys() == ATTACKS.keys()


@pytest.mark.long
@pytest.mark.deadline(400)
@pytest.mark.parametrize("attack", ATTACKS)
async def test_peers_stand_an_attack(attack: str, tmp_path: Path) -> None:
    async with siege(tmp_path) as held:
        await held.calm(3)  # leaders are where they belong, and all is warm
        before = held.counters()
        ratios, grown = [], 0.0
        for _ in range(ROUNDS):
            calm = await held.calm(ROUND_S)
            under = await held.under(attack, ROUND_S)
            ratios.append(under.p99_ms / calm.p99_ms)
            grown = max(grown, *under.memory)
            assert under.read == len(under.seconds), "what was published is read, each once"
            print(f"{attack}: p99 {calm.p99_ms:.1f} -> {under.p99_ms:.1f} ms, {grown:.0f} MiB", flush=True)
        for name in REFUSALS[attack]:
            wait_until(lambda name=name: _grew(name, before, held.counters()), 10, name)  # type: ignore[misc]
    assert grown < MEMORY_MIB_MAX
    assert statistics.median(ratios) <= P99_RATIO_MAX, ratios


def _grew(name: str, before: dict[str, int], now: dict[str, int]) -> bool:
    found = {k: v - before.get(k, 0) for k, v in now.items() if name in k}
    assert any(found.values()), f"nothing of {name} in {json.dumps(now)}"
    return True
