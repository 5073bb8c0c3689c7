"""Logs that keep next to nothing: whoever was away for a moment gets a snapshot, and the promises hold."""

from __future__ import annotations

from collections import Counter

import pytest

from meshq.peer.core import hosts, saving, sending
from tests.peer import test_exactly_once as once
from tests.peer import test_placing as placing
from tests.peer.world import World


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and pieces so small that catching up takes snapshots, and those take many pieces."""
    squeeze(monkeypatch.setattr)


def squeeze(put) -> None:  # type: ignore[no-untyped-def]
    put(saving, "LOG_ENTRIES_KEPT", 2)
    put(saving, "LOG_ENTRIES_MAX", 6)
    put(saving, "CHECKPOINT_S", 0.05)
    put(hosts, "REPLICA", hosts.Settings(memory_bytes=200))
    put(sending, "SNAPSHOT_PIECE_BYTES", 150)


def counted(world: World) -> Counter[str]:
    total: Counter[str] = Counter()
    for host in world.hosts:
        total.update(host.counted)
        total.update(host.core.ctx.counters)
    return total


@pytest.mark.parametrize("seed", range(40))
def test_what_a_receipt_promises_holds_across_snapshots(seed: int) -> None:
    once.test_a_receipt_means_once_at_its_offset_and_a_refusal_means_never(seed)


@pytest.mark.parametrize("seed", range(16))
def test_a_peer_that_joins_gets_what_logs_no_longer_have(seed: int) -> None:
    placing.test_a_join_loses_nothing_and_ends_where_the_ring_wants_it(seed)


def test_most_runs_have_snapshots() -> None:
    found = [counted(placing.play(seed)[0])["snapshots_installed"] for seed in range(6)]
    found += [counted(once._run(seed)[0])["snapshots_installed"] for seed in range(12) if seed % 3 != 2]
    assert sum(n > 0 for n in found) > len(found) / 2, found
